"""The key/value store. Source: Consul HTTP API, KV; a key is a plain path for access control (`/v1/kv/KEY`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Malformed, Rejected, TooLarge
from waypost.domain.planning import Draft
from waypost.domain.reviewing import UNREVIEWED, Admits, commit_reviewed
from waypost.model.kv import MAX_VALUE_BYTES, KVEntry
from waypost.state.keys import kv_key, session_key
from waypost.state.state import Plan, State
from waypost.state.view import View


class PutKey(msgspec.Struct, frozen=True, kw_only=True):
    """One write. At most one of `cas`, `acquire`, `release` is set."""

    key: str
    value: bytes
    flags: int = 0
    cas: int | None = None
    """Write only if the key's modify index is this; 0 = only if the key is not there."""
    acquire: str = ""
    """Session that takes the lock."""
    release: str = ""
    """Session that gives the lock back; the value is written all the same."""


def plan_put(
    view: View,
    command: PutKey,
    *,
    locked_out: Callable[[str], bool],
    admits: Admits = UNREVIEWED,
) -> Plan[bool]:
    """Decide a write; the answer is whether the key has been written (or had this value already).

    `locked_out(key)` tells whether the key may not be locked now because of a lock-delay.
    """
    if not command.key:
        msg = "Must provide key"
        raise Rejected(msg)
    old = view.kv(command.key)
    draft = Draft()
    if command.cas is not None and command.cas != (old.modify_index if old else 0):
        return Plan(answer=False)
    session = old.session if old else ""
    # A plain write keeps the holder but starts the count of its locks again, as Consul does.
    lock_index = old.lock_index if old and (command.acquire or command.release) else 0
    if command.acquire:
        holder = view.session(command.acquire)
        if holder is None:
            msg = f'invalid session "{command.acquire}"'
            raise Rejected(msg)
        if (session and session != command.acquire) or (not session and locked_out(command.key)):
            return Plan(answer=False)
        if not session:
            lock_index += 1
        session = command.acquire
        draft.guard(session_key(holder.id), holder)
    elif command.release:
        if session != command.release:
            return Plan(answer=False)
        session = ""
    new = KVEntry(
        key=command.key,
        value=command.value,
        flags=command.flags,
        lock_index=lock_index,
        session=session,
    )
    if not draft.replace(old, admits.record(new, old)):
        return Plan(answer=True)
    return draft.plan(answer=True)


def plan_delete(
    view: View, key: str, *, cas: int | None = None, admits: Admits = UNREVIEWED
) -> Plan[bool]:
    """Decide a deletion; False only when `cas` does not match an existing key."""
    old = view.kv(key)
    if old is None:
        return Plan(answer=True)
    if cas is not None and cas != old.modify_index:
        return Plan(answer=False)
    admits.removal(old)
    draft = Draft()
    draft.delete(old)
    return draft.plan(answer=True)


def plan_delete_below(view: View, prefix: str, admits: Admits = UNREVIEWED) -> Plan[bool]:
    """Decide to delete every key that starts with `prefix`."""
    draft = Draft()
    found = view.kv_below(prefix)
    admits.removal(*found)
    if admits.asks:
        # One by one: nothing goes that was not asked about.
        for entry in found:
            draft.delete(entry)
    elif found:
        draft.delete_below(kv_key(prefix))
    return draft.plan(answer=True)


def _never(_key: str) -> bool:
    return False


class KV:
    """The verbs of the key/value store."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        max_value_bytes: int = MAX_VALUE_BYTES,
        locked_out: Callable[[str], bool] = _never,
        admission: Admission | None = None,
    ) -> None:
        self._state = state
        self._admission = admission
        self._gate = gate
        self.max_value_bytes = max_value_bytes
        self._locked_out = locked_out

    async def put(self, actor: Actor, command: PutKey) -> bool:
        """Write; return whether it happened. Raises Forbidden, Rejected, TooLarge, Unavailable."""
        self._gate.admit(actor, _path("update", command.key))
        if len(command.value) > self.max_value_bytes:
            msg = f"value of {len(command.value)} bytes, at most {self.max_value_bytes} are allowed"
            raise TooLarge(msg)

        def decide(view: View, admits: Admits) -> Plan[bool]:
            return plan_put(view, command, locked_out=self._locked_out, admits=admits)

        return await commit_reviewed(self._state, self._admission, actor, decide)

    async def delete(self, actor: Actor, key: str, *, cas: int | None = None) -> bool:
        """Delete a key; False when `cas` does not match. Raises Forbidden, Unavailable."""
        self._gate.admit(actor, _path("delete", key))
        if not key:
            msg = "Missing key name"
            raise Malformed(msg)
        return await commit_reviewed(
            self._state,
            self._admission,
            actor,
            lambda view, admits: plan_delete(view, key, cas=cas, admits=admits),
        )

    async def delete_below(self, actor: Actor, prefix: str) -> bool:
        """Delete every key that starts with `prefix`. Raises Forbidden, Unavailable."""
        self._gate.admit(actor, _path("delete", prefix))
        return await commit_reviewed(
            self._state,
            self._admission,
            actor,
            lambda view, admits: plan_delete_below(view, prefix, admits),
        )

    def get(self, actor: Actor, key: str) -> KVEntry | None:
        """Return one key. Raises Forbidden."""
        self._gate.admit(actor, _path("get", key))
        return self._state.view.kv(key)

    def below(self, actor: Actor, prefix: str) -> Sequence[KVEntry]:
        """Return every key that starts with `prefix`, in order. Raises Forbidden."""
        self._gate.admit(actor, _path("list", prefix))
        return self._state.view.kv_below(prefix)


def _path(verb: str, key: str) -> Attributes:
    return Attributes(verb, path="/v1/kv/" + key)
