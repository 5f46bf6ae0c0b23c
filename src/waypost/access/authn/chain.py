"""The union of authenticators.

In order: front proxy, basic, client certificate, bearer token; then `system:authenticated` is added; without any
credential the peer of the unix socket (who shows a credential there wants to be that), else anonymous. The first success wins and forgets earlier errors. An error does not stop the others;
if nobody succeeds and somebody found a bad credential, the answer is 401 and anonymous is not tried.

    chain = Chain(authenticators=(…), tokens=(…), anonymous=AnonymousRule())
    answer = chain.authenticate_now(credentials, now_s=clock.wall())
    if answer is None:                       # somebody has to be asked over the network
        answer = await chain.authenticate(credentials, now_s=clock.wall())
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Final

import msgspec

from waypost.access.actor import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, Actor
from waypost.access.authn.local import anonymous, unix_peer
from waypost.access.authn.records import (
    Accepted,
    Attempt,
    Authentication,
    Authenticator,
    Credentials,
    Identity,
    Outcome,
    Pending,
    Rejected,
    Skipped,
    TokenAuthenticator,
    Verdict,
)
from waypost.access.authz.text import aggregate

INVALID_BEARER_TOKEN: Final = "invalid bearer token"  # noqa: S105  (a text, no password)
EXTRA_SPACE_WARNING: Final = (
    "the provided Authorization header contains extra space before the bearer token, and is ignored"
)

_Steps = Generator[Pending, Verdict, Authentication]


class AnonymousRule(msgspec.Struct, frozen=True, kw_only=True):
    """Who may come without a credential. Source: kube `AuthenticationConfiguration.anonymous`."""

    enabled: bool = True
    paths: tuple[str, ...] = ()
    """If not empty: only these exact URL paths."""

    def allows(self, path: str) -> bool:
        """Tell whether a request for `path` may be anonymous."""
        return self.enabled and (not self.paths or path in self.paths)


class Chain:
    """All authenticators of an agent.

    `authenticators` are asked in the order given (front proxy, basic, client certificate), then the bearer token goes
    to `tokens` in order. `owner_uid` is the user the agent runs as. Holds no state of its own; safe for any number of
    requests at once. `replace` gives it others while it is in use.
    """

    def __init__(
        self,
        *,
        authenticators: Iterable[Authenticator] = (),
        tokens: Iterable[TokenAuthenticator] = (),
        anonymous_rule: AnonymousRule | None = None,
        owner_uid: int = 0,
    ) -> None:
        self._authenticators = tuple(authenticators)
        self._tokens = tuple(tokens)
        self._anonymous = anonymous_rule or AnonymousRule()
        self._owner_uid = owner_uid

    def replace(
        self,
        *,
        authenticators: Iterable[Authenticator],
        tokens: Iterable[TokenAuthenticator],
        anonymous_rule: AnonymousRule,
    ) -> None:
        """Ask these from now on; a request that is being asked about over the network ends with those it began with."""
        self._authenticators = tuple(authenticators)
        self._tokens = tuple(tokens)
        self._anonymous = anonymous_rule

    def authenticate_now(
        self, credentials: Credentials, *, now_s: float, path: str = ""
    ) -> Authentication | None:
        """Return the answer, or None when it needs the network: then await `authenticate`."""
        try:
            next(self._steps(credentials, now_s=now_s, path=path))
        except StopIteration as done:
            answer: Authentication = done.value
            return answer
        return None

    async def authenticate(
        self, credentials: Credentials, *, now_s: float, path: str = ""
    ) -> Authentication:
        """Return the answer. `path` is the URL path, for the paths that anonymous may see."""
        return await _drive(self._steps(credentials, now_s=now_s, path=path))

    async def review(
        self, token: str, *, audiences: tuple[str, ...] = (), now_s: float
    ) -> Authentication:
        """Return what a TokenReview says of `token`: only bearer tokens, never anonymous.

        `error` is the text for `status.error`; `actor.groups` include `system:authenticated`.
        """
        return await _drive(self._review_steps(token, audiences=audiences, now_s=now_s))

    def _steps(self, credentials: Credentials, *, now_s: float, path: str) -> _Steps:
        trace: list[Attempt] = []
        errors: list[str] = []
        token, why_not, warning = _bearer(credentials)
        for authenticator in self._authenticators:
            answer = authenticator.authenticate(credentials, now_s=now_s)
            verdict = (yield answer) if isinstance(answer, Pending) else answer
            trace.append(_line(authenticator.name, verdict))
            if isinstance(verdict, Accepted):
                return _known(verdict, credentials, name=authenticator.name, trace=trace)
            if isinstance(verdict, Rejected):
                errors.append(verdict.error)
        if token:
            # kube asks its own loopback token first; that one does not know the token and says so, which is where
            # this text at the front comes from.
            errors.insert(0, INVALID_BEARER_TOKEN)
            found = yield from self._ask_tokens(
                token, audiences=(), now_s=now_s, trace=trace, errors=errors
            )
            if found is not None:
                verdict, name = found
                return _known(verdict, credentials, name=name, trace=trace)
        else:
            trace.append(_attempt("bearer token", Outcome.NOT_ATTEMPTED, why_not))
        if errors:
            return Authentication(
                actor=None, error=aggregate(errors), trace=tuple(trace), warning=warning
            )
        return self._nobody(credentials, path=path, trace=trace, warning=warning)

    def _review_steps(self, token: str, *, audiences: tuple[str, ...], now_s: float) -> _Steps:
        trace: list[Attempt] = []
        errors = [INVALID_BEARER_TOKEN]
        found = yield from self._ask_tokens(
            token, audiences=audiences, now_s=now_s, trace=trace, errors=errors
        )
        if found is not None:
            verdict, name = found
            return _known(verdict, Credentials(), name=name, trace=trace)
        return Authentication(actor=None, error=aggregate(errors), trace=tuple(trace))

    def _ask_tokens(
        self,
        token: str,
        *,
        audiences: tuple[str, ...],
        now_s: float,
        trace: list[Attempt],
        errors: list[str],
    ) -> Generator[Pending, Verdict, tuple[Accepted, str] | None]:
        for authenticator in self._tokens:
            answer = authenticator.authenticate_token(token, audiences=audiences, now_s=now_s)
            verdict = (yield answer) if isinstance(answer, Pending) else answer
            trace.append(_line(authenticator.name, verdict))
            if isinstance(verdict, Accepted):
                return verdict, authenticator.name
            if isinstance(verdict, Rejected):
                errors.append(verdict.error)
        return None

    def _nobody(
        self, credentials: Credentials, *, path: str, trace: list[Attempt], warning: str
    ) -> Authentication:
        if credentials.is_unix and credentials.unix_uid is not None:
            actor = unix_peer(credentials.unix_uid, self._owner_uid)
            trace.append(_attempt("unix socket", Outcome.ACCEPTED, actor.origin))
            return Authentication(actor=actor, trace=tuple(trace), warning=warning)
        if not self._anonymous.allows(path):
            detail = (
                "anonymous requests are off"
                if not self._anonymous.enabled
                else "not a path that anonymous may ask for"
            )
            trace.append(_attempt("anonymous", Outcome.NOT_ATTEMPTED, detail))
            return Authentication(
                actor=None, error="no credential", trace=tuple(trace), warning=warning
            )
        trace.append(_attempt("anonymous", Outcome.ACCEPTED, "no credential"))
        return Authentication(
            actor=anonymous(credentials.address), trace=tuple(trace), warning=warning
        )


async def _drive(steps: _Steps) -> Authentication:
    try:
        pending = next(steps)
        while True:
            pending = steps.send(await pending.ask())
    except StopIteration as done:
        answer: Authentication = done.value
        return answer


def groups_with_authenticated(user: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return `groups` with `system:authenticated`, unless they say otherwise already or `user` is anonymous."""
    if user == ANONYMOUS or AUTHENTICATED in groups or UNAUTHENTICATED in groups:
        return groups
    return (*groups, AUTHENTICATED)


def bearer_token(authorization: str) -> str:
    """Return the token of an `Authorization` value, or "": the scheme in any case, one blank, what follows a second blank ignored."""
    parts = authorization.strip().split(" ")
    return parts[1] if len(parts) > 1 and parts[0].lower() == "bearer" else ""


def _bearer(credentials: Credentials) -> tuple[str, str, str]:
    """Return the token, else why there is none, and a warning for the caller."""
    if credentials.consul_token:
        return credentials.consul_token, "", ""
    if not credentials.authorization:
        return "", "no token", ""
    token = bearer_token(credentials.authorization)
    if token:
        return token, "", ""
    scheme, _, rest = credentials.authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        return "", "the Authorization header has another scheme", ""
    if rest.strip():
        return (
            "",
            "there is more than one space before the token, so it is ignored",
            EXTRA_SPACE_WARNING,
        )
    return "", "the token is empty", ""


def _known(
    verdict: Accepted, credentials: Credentials, *, name: str, trace: list[Attempt]
) -> Authentication:
    identity: Identity = verdict.identity
    actor = Actor(
        user=identity.user,
        groups=groups_with_authenticated(identity.user, identity.groups),
        uid=identity.uid,
        extra=identity.extra,
        address=credentials.address,
        origin=f"{name}: {verdict.detail}" if verdict.detail else name,
    )
    return Authentication(
        actor=actor,
        trace=tuple(trace),
        expires_s=identity.expires_s,
        audiences=identity.audiences,
        is_steady=verdict.is_steady
        and all(one.outcome is Outcome.NOT_ATTEMPTED for one in trace[:-1]),
        steady_until_s=verdict.steady_until_s,
    )


def _line(name: str, verdict: Verdict) -> Attempt:
    match verdict:
        case Accepted():
            return _attempt(name, Outcome.ACCEPTED, verdict.detail)
        case Rejected():
            text = f"{verdict.error}: {verdict.detail}" if verdict.detail else verdict.error
            return _attempt(name, Outcome.REJECTED, text)
        case Skipped():
            return _attempt(name, Outcome.NOT_ATTEMPTED, verdict.detail)


def _attempt(name: str, outcome: Outcome, detail: str) -> Attempt:
    return Attempt(authenticator=name, outcome=outcome, detail=detail)
