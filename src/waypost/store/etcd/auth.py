"""Names and passwords for an etcd with its authentication switched on, and the tokens that they are exchanged for.

The JSON gateway does not know the name in a client's certificate, so there a password is needed.
Source: https://etcd.io/docs/v3.4/op-guide/authentication/ .
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from waypost.base.errors import Unavailable
from waypost.store.etcd.failure import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    UNAUTHENTICATED,
    Failure,
)

log = logging.getLogger(__name__)

AUTHENTICATE = "/v3/auth/authenticate"

_STALE_TEXTS = (
    "invalid auth token",
    "revision of auth store is old",
    "user name is empty",
)
"""What etcd says to a token that has expired or was given before its users changed, and to a request without one."""
_OFF_TEXT = "authentication is not enabled"


class EtcdAuth(msgspec.Struct, frozen=True, kw_only=True):
    """Who we are to etcd. `repr` shows no password."""

    username: str
    password: str = ""
    password_file: Path | None = None
    """Read at each authentication, so that a new password counts without a restart."""

    def __repr__(self) -> str:
        return f"EtcdAuth(username={self.username!r})"

    def secret(self) -> str:
        """Return the password. Raises Unavailable when its file cannot be read."""
        if self.password_file is None:
            return self.password
        try:
            return self.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the password for etcd cannot be read: {self.password_file}: {error}"
            raise Unavailable(msg) from error


class _Answer(msgspec.Struct):
    token: str = ""


_decoder = msgspec.json.Decoder(_Answer)

Post = Callable[[str, bytes], Awaitable[bytes]]
"""One attempt at one endpoint, without a token: path, body → answer. Raises Failure."""


def is_stale(failure: Failure) -> bool:
    """Return whether a new token helps: nothing was done, and the request may be sent again. Pure."""
    return failure.code in (UNAUTHENTICATED, INVALID_ARGUMENT) and any(
        text in failure.text for text in _STALE_TEXTS
    )


class Tokens:
    """The token that is good now; whoever finds it stale gets another, and those who wait meanwhile share that."""

    def __init__(self, auth: EtcdAuth) -> None:
        self._auth = auth
        self._token: str | None = None
        self._changing = asyncio.Lock()
        self._said_off = False

    async def get(self, post: Post, *, endpoint: str) -> str:
        """Return the token, empty while etcd's authentication is off. Raises Failure."""
        if self._token is not None:
            return self._token
        async with self._changing:
            if self._token is None:
                self._token = await self._authenticate(post, endpoint)
            return self._token

    def stale(self, token: str) -> None:
        """Forget a token that etcd does not take any more."""
        if self._token == token:
            self._token = None

    async def _authenticate(self, post: Post, endpoint: str) -> str:
        try:
            secret = self._auth.secret()
        except Unavailable as error:
            raise Failure(str(error), outcome="not_applied", endpoint=endpoint) from error
        body = msgspec.json.encode({"name": self._auth.username, "password": secret})
        try:
            answer = await post(AUTHENTICATE, body)
        except Failure as failure:
            if failure.code != FAILED_PRECONDITION or _OFF_TEXT not in failure.text:
                raise
            if not self._said_off:
                log.warning(
                    "etcd at %s has its authentication switched off: whoever reaches it may read and write; "
                    "the name %s is not used",
                    endpoint,
                    self._auth.username,
                )
            self._said_off = True
            return ""
        self._said_off = False
        try:
            return _decoder.decode(answer).token
        except msgspec.MsgspecError as error:
            text = f"an answer that cannot be read: {error}"
            raise Failure(text, outcome="unknown", endpoint=endpoint) from error
