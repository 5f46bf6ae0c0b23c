"""What other machines ask for on the cluster port: read, checked, handed to who answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from waypost.base.errors import NotFound
from waypost.cluster.admission import Admission
from waypost.cluster.forming import Forming
from waypost.cluster.greeting import Greeting
from waypost.cluster.leading import Leading
from waypost.cluster.messages import (
    AboutMember,
    AskAccess,
    AskPlan,
    Commit,
    Hello,
    Join,
    Path,
    Prepare,
    Renew,
    decode,
    encode,
)
from waypost.cluster.sharing import Sharing
from waypost.cluster.transport import answer_parts, request_parts
from waypost.cluster.trust import Caller, Stranger, Trust, check_mac, mac


class Reply(msgspec.Struct, frozen=True):
    """The answer to a message, and its MAC (empty without a shared key)."""

    body: bytes
    mac: str = ""


async def authenticated(
    answer: Callable[[str, bytes, Caller], Awaitable[msgspec.Struct]],
    path: str,
    body: bytes,
    *,
    caller: Caller,
    shown_mac: str,
    trust: Trust,
    secret: bytes | None,
) -> Reply:
    """Return what `answer` makes of a message. With `secret`, the shared key, strangers need its MAC and get one.

    Raises Forbidden without it, and what `answer` raises.
    """
    if secret is None or not isinstance(caller, Stranger):
        return Reply(encode(await answer(path, body, caller)))
    parts = request_parts(path, client=caller.fingerprint, server=trust.fingerprint, body=body)
    check_mac(secret, parts, shown_mac, who="the caller")
    reply = encode(await answer(path, body, caller))
    return Reply(reply, mac(secret, answer_parts(shown_mac, reply)))


class Answers:
    """Answers messages. With `secret`, the shared key, those of strangers count only with its MAC."""

    def __init__(
        self,
        greeting: Greeting,
        forming: Forming,
        admission: Admission,
        leading: Leading,
        sharing: Sharing,
        *,
        trust: Trust,
        secret: bytes | None,
    ) -> None:
        self._greeting = greeting
        self._forming = forming
        self._admission = admission
        self._leading = leading
        self._sharing = sharing
        self._trust = trust
        self._secret = secret

    async def answer(self, path: str, body: bytes, *, caller: Caller, shown_mac: str) -> Reply:
        """Answer a message of another machine. Raises errors of the tree, which go back to it."""
        return await authenticated(
            self._answer,
            path,
            body,
            caller=caller,
            shown_mac=shown_mac,
            trust=self._trust,
            secret=self._secret,
        )

    async def _answer(self, path: str, body: bytes, caller: Caller) -> msgspec.Struct:
        match path:
            case Path.HELLO:
                return self._greeting.answer(decode(body, Hello, what=path), caller)
            case Path.PREPARE:
                return await self._forming.answer_prepare(decode(body, Prepare, what=path), caller)
            case Path.COMMIT:
                return await self._forming.answer_commit(decode(body, Commit, what=path), caller)
            case Path.PLAN:
                return self._forming.answer_plan(decode(body, AskPlan, what=path), caller)
            case Path.ABANDON:
                return await self._forming.answer_abandon(decode(body, AskPlan, what=path), caller)
            case Path.JOIN:
                return await self._admission.answer(decode(body, Join, what=path), caller)
            case Path.RENEW:
                return self._admission.renew(decode(body, Renew, what=path), caller)
            case Path.LEAVE | Path.REMOVE | Path.TRANSFER:
                about = decode(body, AboutMember, what=path)
                return await self._leading.answer_change(Path(path), about, caller)
            case Path.RAFT:
                return await self._leading.answer_raft(caller)
            case Path.ACCESS:
                decode(body, AskAccess, what=path)
                return self._sharing.answer(caller)
            case Path.HEALTH:
                return self._leading.answer_health(caller)
        raise NotFound(f"no such message: {path}")
