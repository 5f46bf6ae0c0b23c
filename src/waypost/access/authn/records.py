"""What goes into authentication and what comes out: credentials, verdicts, the trace."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from waypost.access.actor import Actor
from waypost.model.object import Object

HIDDEN: Final = "***"


class Objects(Protocol):
    """The look-ups that authenticators need; `state.view.View` has them."""

    def object(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        """Return one object, or None."""
        ...


class HeaderFields(Protocol):
    """The header fields of a request; names compare without case, values are latin-1."""

    def get(self, name: str) -> str | None:
        """Return the first value of `name`, or None."""
        ...

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of `name` in order."""
        ...


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in a request that may prove who sends it. Its `repr` shows no secret."""

    authorization: str = ""
    """The value of the header `Authorization`."""
    consul_token: str = ""
    """Consul's `?token=` or `X-Consul-Token`: a bearer token that comes before `authorization`."""
    certificates_der: tuple[bytes, ...] = ()
    """The client's certificate and intermediates as TLS gave them: leaf first, unverified."""
    remote_headers: Mapping[str, tuple[str, ...]] = {}
    """The header fields that a front proxy may have set (`x-remote-…`), names in lower case."""
    address: str = ""
    """IP address of the peer, without port; empty for a unix socket."""
    is_unix: bool = False
    unix_uid: int | None = None

    def __repr__(self) -> str:
        shown = [f"address={self.address!r}"]
        shown += [f"authorization={HIDDEN}"] if self.authorization else []
        shown += [f"consul_token={HIDDEN}"] if self.consul_token else []
        shown += [f"certificates={len(self.certificates_der)}"] if self.certificates_der else []
        shown += [f"unix_uid={self.unix_uid}"] if self.is_unix else []
        return f"Credentials({', '.join(shown)})"

    __str__ = __repr__


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a credential belongs to. Source: kube `user.Info`."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = {}
    audiences: tuple[str, ...] = ()
    """Audiences of the token that were asked for as well; empty for what has none."""
    expires_s: float | None = None
    """When the credential ends, in seconds since the Unix epoch; None: it does not."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The credential is good. `detail` says where the identity comes from, for people."""

    identity: Identity
    detail: str = ""
    is_steady: bool = False
    """It stays good until its end, unless a file of the configuration or a stored object of the core group changes."""
    steady_until_s: float = math.inf
    """When that has to be found out again, in seconds since the Unix epoch, whatever the credential's own end."""


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A credential of this kind is there and is bad. `error` is kube's text; `detail` says more where that is vague."""

    error: str
    detail: str = ""


class Skipped(msgspec.Struct, frozen=True):
    """No credential that this authenticator would know; `detail` says why not."""

    detail: str = ""


Verdict = Accepted | Rejected | Skipped


class Pending(msgspec.Struct, frozen=True):
    """The answer has to be fetched over the network: await `ask()`."""

    ask: Callable[[], Awaitable[Verdict]]


class Outcome(StrEnum):
    """What an authenticator said."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_ATTEMPTED = "not attempted"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the trace: who was asked, and what it said. Never holds a secret."""

    authenticator: str
    outcome: Outcome
    detail: str = ""


class Authentication(msgspec.Struct, frozen=True, kw_only=True):
    """The chain's answer. With `actor` None the request is answered 401; `error` is for the log and `auth explain`."""

    actor: Actor | None
    error: str = ""
    trace: tuple[Attempt, ...] = ()
    expires_s: float | None = None
    audiences: tuple[str, ...] = ()
    is_steady: bool = False
    """As in `Accepted`; and nobody who was asked before found anything wrong that might become right."""
    steady_until_s: float = math.inf
    """As in `Accepted`."""
    warning: str = ""
    """Text for a `Warning: 299` header, or empty."""


class Authenticator(Protocol):
    """Looks at one kind of credential. Pure but for `Pending`: the time is given, objects come from the view."""

    @property
    def name(self) -> str:
        """The name in traces and logs, such as `x509`."""
        ...

    def authenticate(self, credentials: Credentials, *, now_s: float) -> Verdict | Pending:
        """Return the verdict; never raises for bad credentials. `now_s` is wall-clock time since the Unix epoch."""
        ...


class TokenAuthenticator(Protocol):
    """Looks at a bearer token."""

    @property
    def name(self) -> str:
        """The name in traces and logs, such as `service account`."""
        ...

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict | Pending:
        """Return the verdict for `token`, which must be meant for one of `audiences` (empty: for this server)."""
        ...
