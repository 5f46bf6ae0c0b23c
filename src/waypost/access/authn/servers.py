"""Bearer tokens on a machine without a server: what it cannot verify itself, a server is asked.

A client agent has neither the Secrets of bootstrap tokens nor the files of static ones. It sends the token to a server,
over the connection that both ends have proved who they are on, and remembers the answer for a few seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from waypost.access.authn.records import (
    Accepted,
    Authentication,
    Identity,
    Pending,
    Rejected,
    Skipped,
    Verdict,
)
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, WaypostError

PATH: Final = "/cluster/v1/authenticate"
REMEMBER_S: Final = 10.0
"""How long a withdrawn token may still be good on a client agent."""
_REMEMBERED: Final = 4096


class TokenAsk(msgspec.Struct, frozen=True, array_like=True):
    """Whose token is this? `audiences` empty: it must be meant for the API itself."""

    token: str
    audiences: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "TokenAsk(***)"


class TokenAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Whose it is; without a user it is nobody's, and `error` says why."""

    user: str = ""
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = {}
    audiences: tuple[str, ...] = ()
    expires_s: float | None = None
    error: str = ""


def encode_ask(token: str, audiences: tuple[str, ...]) -> bytes:
    """Return the question. Raises Malformed for a token that is no text."""
    try:
        return msgspec.msgpack.encode(TokenAsk(token, audiences))
    except UnicodeEncodeError as exc:
        raise Malformed("the token is no text") from exc


def decode_ask(body: bytes) -> TokenAsk:
    """Return the question. Raises Malformed, without the token in its text."""
    try:
        return msgspec.msgpack.decode(body, type=TokenAsk)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Malformed("no question about a token") from exc


def encode_answer(found: Authentication) -> bytes:
    """Return the answer for what a chain found (`Chain.review`)."""
    actor = found.actor
    if actor is None:
        return msgspec.msgpack.encode(TokenAnswer(error=found.error or "invalid bearer token"))
    return msgspec.msgpack.encode(
        TokenAnswer(
            user=actor.user,
            groups=actor.groups,
            uid=actor.uid,
            extra=actor.extra,
            audiences=found.audiences,
            expires_s=found.expires_s,
        )
    )


class RemoteAuthenticator:
    """Asks a server whose token it is.

    `ask` sends the question and returns the answer, or raises an error of the tree. Answers, good and bad, are
    remembered for `remember_s` by the token's digest, at most 4096 of each kind, the oldest go first; that no server
    answered is not remembered. Requests with the same token at the same time ask once.
    """

    name = "server"

    def __init__(
        self,
        ask: Callable[[bytes], Awaitable[bytes]],
        *,
        clock: Clock,
        remember_s: float = REMEMBER_S,
    ) -> None:
        self._send = ask
        self._clock = clock
        self._remember_s = remember_s
        # Bad tokens are kept apart, so that a flood of them does not push out the good ones.
        self._good: OrderedDict[_Key, tuple[float, Verdict]] = OrderedDict()
        self._bad: OrderedDict[_Key, tuple[float, Verdict]] = OrderedDict()
        self._locks: dict[_Key, tuple[asyncio.Lock, int]] = {}

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict | Pending:
        """Return what is remembered, else Pending."""
        key = (hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest(), audiences)
        known = self._known(key, now_s=now_s)
        if known is not None:
            return known

        async def ask() -> Verdict:
            lock, users = self._locks.get(key, (asyncio.Lock(), 0))
            self._locks[key] = (lock, users + 1)
            try:
                async with lock:
                    return self._known(key, now_s=now_s) or await self._ask(token, audiences, key)
            finally:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = (lock, users - 1)

        return Pending(ask)

    def _known(self, key: _Key, *, now_s: float) -> Verdict | None:
        for cache in (self._good, self._bad):
            found = cache.get(key)
            if found is None or self._clock.now() >= found[0]:
                continue
            verdict = found[1]
            if isinstance(verdict, Accepted):
                expires_s = verdict.identity.expires_s
                if expires_s is not None and now_s >= expires_s:
                    continue
            return verdict
        return None

    async def _ask(self, token: str, audiences: tuple[str, ...], key: _Key) -> Verdict:
        try:
            body = await self._send(encode_ask(token, audiences))
            answer = msgspec.msgpack.decode(body, type=TokenAnswer)
        except WaypostError as exc:
            return Rejected(error=f"cannot be verified here: {exc}")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Rejected(error="the server's answer about a token cannot be read")
        verdict = _verdict(answer)
        good = isinstance(verdict, Accepted)
        cache, other = (self._good, self._bad) if good else (self._bad, self._good)
        other.pop(key, None)
        cache[key] = (self._clock.now() + self._remember_s, verdict)
        cache.move_to_end(key)
        if len(cache) > _REMEMBERED:
            cache.popitem(last=False)
        return verdict


_Key = tuple[bytes, tuple[str, ...]]


def _verdict(answer: TokenAnswer) -> Verdict:
    if not answer.user:
        return Skipped(f"the server does not accept the token: {answer.error}")
    return Accepted(
        identity=Identity(
            user=answer.user,
            groups=answer.groups,
            uid=answer.uid,
            extra=answer.extra,
            audiences=answer.audiences,
            expires_s=answer.expires_s,
        ),
        detail="a server accepts the token",
    )
