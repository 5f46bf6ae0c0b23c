"""Bearer tokens that another service knows: a TokenReview over HTTPS, remembered for a while.

Source: kube "Webhook Token Authentication".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from waypost.access.authn.records import (
    Accepted,
    Identity,
    Pending,
    Rejected,
    Skipped,
    Verdict,
)
from waypost.base.clock import Clock
from waypost.base.errors import Unavailable

VERSIONS: Final = ("v1", "v1beta1")
DEFAULT_TTL_S: Final = 120.0
_REMEMBERED: Final = 4096


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] | None = None
    extra: dict[str, tuple[str, ...]] | None = None


class _Status(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    audiences: tuple[str, ...] | None = None
    error: str = ""


class _Review(msgspec.Struct, frozen=True):
    status: _Status = msgspec.field(default_factory=_Status)


_REVIEW = msgspec.json.Decoder(_Review)
_Key = tuple[bytes, tuple[str, ...]]


class _Flight:
    """One question that is on its way, for all who want to know. Who waits last keeps it going."""

    def __init__(self, ask: Coroutine[Any, Any, Verdict]) -> None:
        self._task = asyncio.create_task(ask, name="token webhook")
        self._waiting = 0

    async def wait(self) -> Verdict:
        """Return the answer. Somebody who stops waiting hurts nobody else; without anybody the question is dropped."""
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._task.cancel()

    @property
    def is_over(self) -> bool:
        """Whether whoever comes now has to ask anew."""
        return self._task.done() or self._task.cancelling() > 0


class TokenWebhook:
    """Asks a webhook whose token it is. Equal questions that come while one is on its way share its answer.

    `post` sends a JSON body and returns the answer, or raises Unavailable (`remote.HttpsCaller.post`). Answers, good
    and bad, are remembered for `ttl_s` by the token's digest, at most 4096 of each kind; the oldest go first.
    """

    name = "token webhook"

    def __init__(
        self,
        post: Callable[[bytes], Awaitable[bytes]],
        *,
        clock: Clock,
        audiences: tuple[str, ...] = (),
        version: str = "v1",
        ttl_s: float = DEFAULT_TTL_S,
    ) -> None:
        self._post = post
        self._clock = clock
        self._audiences = audiences
        self._version = version
        self._ttl_s = ttl_s
        # Bad tokens are kept apart, so that a flood of them does not push out the good ones.
        self._good: OrderedDict[_Key, tuple[float, Verdict]] = OrderedDict()
        self._bad: OrderedDict[_Key, tuple[float, Verdict]] = OrderedDict()
        self._flights: dict[_Key, _Flight] = {}

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict | Pending:
        """Return what is remembered, else Pending."""
        asked = audiences or self._audiences
        key = (hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest(), asked)
        for cache in (self._good, self._bad):
            found = cache.get(key)
            # What is remembered ages by the monotonic clock.
            left_s = 0.0 if found is None else found[0] - self._clock.now()
            if found is not None and left_s > 0:
                return _for_a_while(found[1], until_s=now_s + left_s)

        async def ask() -> Verdict:
            flight = self._flights.get(key)
            if flight is None or flight.is_over:
                flight = self._flights[key] = _Flight(self._ask(token, asked, key))
            try:
                return await flight.wait()
            finally:
                if flight.is_over and self._flights.get(key) is flight:
                    del self._flights[key]

        return Pending(ask)

    async def _ask(self, token: str, asked: tuple[str, ...], key: _Key) -> Verdict:
        body = {
            "kind": "TokenReview",
            "apiVersion": f"authentication.k8s.io/{self._version}",
            "metadata": {"creationTimestamp": None},
            "spec": {"token": token, **({"audiences": asked} if asked else {})},
            "status": {"user": {}},
        }
        try:
            answer = await self._post(msgspec.json.encode(body))
            status = _REVIEW.decode(answer).status
        except Unavailable as exc:
            return Rejected(error=str(exc))
        except (msgspec.MsgspecError, UnicodeDecodeError, UnicodeEncodeError):
            return Rejected(error="the token webhook's answer is no TokenReview")
        verdict = _verdict(status, asked=asked)
        cache = self._good if isinstance(verdict, Accepted) else self._bad
        cache[key] = (self._clock.now() + self._ttl_s, verdict)
        cache.move_to_end(key)
        if len(cache) > _REMEMBERED:
            cache.popitem(last=False)
        return verdict


def _for_a_while(verdict: Verdict, *, until_s: float) -> Verdict:
    if not isinstance(verdict, Accepted):
        return verdict
    return msgspec.structs.replace(verdict, is_steady=True, steady_until_s=until_s)


def _verdict(status: _Status, *, asked: tuple[str, ...]) -> Verdict:
    if not status.authenticated:
        if status.error:
            return Rejected(error=status.error)
        return Skipped("the webhook does not know the token")
    if not status.user.username:
        return Rejected(error="the token webhook named no user")
    audiences = status.audiences or ()
    if asked and audiences:
        audiences = tuple(one for one in audiences if one in asked)
        if not audiences:
            return Rejected(error="the token webhook's audiences are not the ones asked for")
    user = status.user
    return Accepted(
        identity=Identity(
            user=user.username,
            uid=user.uid,
            groups=user.groups or (),
            extra=user.extra or {},
            audiences=audiences or asked,
        ),
        detail="the webhook knows the token",
    )
