"""Sessions: what locks are held by, and the task that ends them.

A session ends when somebody destroys it, when its TTL is missed, when one of its checks turns critical or goes away,
and when its node goes away. Its keys are then released or deleted, and locked out for its lock-delay.
Source: Consul HTTP API, sessions; observed times of Consul 1.8.7 (a TTL counts double before it is enforced).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission, settled
from waypost.access.admission.discovery import RENEWAL
from waypost.access.gate import Attributes, Gate
from waypost.base.clock import Clock
from waypost.base.duration import parse_ns
from waypost.base.errors import Malformed, Rejected, Unavailable
from waypost.domain.planning import Draft
from waypost.domain.reviewing import UNREVIEWED, Admits, commit_reviewed, opened, reviewed
from waypost.model.catalog import CRITICAL, SERF_HEALTH_ID
from waypost.model.kv import KVEntry
from waypost.model.session import Session
from waypost.state.keys import check_key, node_key
from waypost.state.state import Plan, State
from waypost.state.view import View

log = logging.getLogger(__name__)

DEFAULT_LOCK_DELAY_NS: Final = 15 * 10**9
_TTL_MIN_NS: Final = 10 * 10**9
_TTL_MAX_NS: Final = 86_400 * 10**9
_TTL_FACTOR: Final = 2
"""Consul's clients renew at half the TTL and rely on the slack."""
_MAX_LOCKED_OUT: Final = 65_536
_RETRY_S: Final = 1.0
_IDLE_S: Final = 60.0


class CreateSession(msgspec.Struct, frozen=True, kw_only=True):
    """A new session of a node. `lock_delay_ns` None = 15 s; `node_checks` None = the node's own health."""

    node: str
    name: str = ""
    behavior: str = ""
    ttl: str = ""
    lock_delay_ns: int | None = None
    node_checks: tuple[str, ...] | None = None
    service_checks: tuple[str, ...] | None = None
    checks: tuple[str, ...] = ()


def require_uuid(text: str) -> None:
    """Refuse what cannot be the id of a session, in the words of Consul's index. Raises Rejected."""
    problem = ""
    if len(text) != 36:
        problem = "UUID must be 36 characters"
    elif text.count("-") > 4:
        problem = f'UUID should have maximum of 4 "-"; got {text.count("-")}'
    else:
        digits = text.replace("-", "")
        if len(digits) % 2:
            problem = "Input (without hyphens) must be even length"
        bad = next((c for c in digits if c not in "0123456789abcdefABCDEF"), None)
        if not problem and bad is not None:
            problem = f"Invalid UUID: encoding/hex: invalid byte: U+{ord(bad):04X} '{bad}'"
    if problem:
        msg = f"failed session lookup: index error: {problem}"
        raise Rejected(msg)


def ttl_ns(ttl: str) -> int:
    """Return a session's TTL in nanoseconds, 0 = none. Raises Rejected in Consul's words."""
    if not ttl:
        return 0
    try:
        found = parse_ns(ttl)
    except Malformed as error:
        msg = f"Session TTL '{ttl}' invalid: {error}"
        raise Rejected(msg) from error
    if found and not _TTL_MIN_NS <= found <= _TTL_MAX_NS:
        msg = f"Invalid Session TTL '{found}', must be between [10s=24h0m0s]"
        raise Rejected(msg)
    return found


def plan_create(
    view: View, command: CreateSession, *, session_id: str, admits: Admits = UNREVIEWED
) -> Plan[Session]:
    """Decide a new session. Raises Rejected in Consul's words."""
    _check_kind(command.behavior or "release", command.ttl)
    node = view.node(command.node)
    if node is None:
        msg = "Missing node registration"
        raise Rejected(msg)
    delay = command.lock_delay_ns
    sent = Session(
        id=session_id,
        node=node.node,
        name=command.name,
        behavior=command.behavior or "release",
        lock_delay_ns=DEFAULT_LOCK_DELAY_NS if delay is None else max(0, delay),
        ttl=command.ttl,
        node_checks=(SERF_HEALTH_ID,) if command.node_checks is None else command.node_checks,
        service_checks=command.service_checks,
        checks=command.checks,
    )
    session = admits.record(sent, None)
    if session is not sent:
        _check_kind(session.behavior, session.ttl)
    draft = Draft()
    draft.guard(node_key(node.node), node)
    for check_id in _watched(session):
        check = view.check(node.node, check_id)
        if check is None:
            msg = f"Missing check '{check_id}' registration"
            raise Rejected(msg)
        if check.status == CRITICAL:
            msg = f"Check '{check_id}' is in {CRITICAL} state"
            raise Rejected(msg)
        draft.guard(check_key(node.node, check_id), check)
    draft.put(session)
    return draft.plan(session)


def _check_kind(behavior: str, ttl: str) -> None:
    if behavior not in ("release", "delete"):
        msg = f"Invalid Behavior setting '{behavior}'"
        raise Rejected(msg)
    ttl_ns(ttl)


def _watched(session: Session) -> Iterator[str]:
    yield from session.checks
    yield from session.node_checks
    yield from session.service_checks or ()


def why_ended(view: View, session: Session) -> str:
    """Return why a session may not go on, empty when it may."""
    node = view.node(session.node)
    if node is None:
        return f"node {session.node} is gone"
    for check_id in _watched(session):
        check = view.check(session.node, check_id)
        if check is None:
            return f"check {check_id} is gone"
        if check.status == CRITICAL:
            return f"check {check_id} is critical"
    return ""


def held_keys(view: View, session_id: str) -> list[KVEntry]:
    """Return the keys that a session holds."""
    return [entry for entry in view.kv_below("") if entry.session == session_id]


def plan_end(view: View, session_id: str, *, admits: Admits = UNREVIEWED) -> Plan[tuple[str, ...]]:
    """Decide the end of a session; the answer is the keys it gave up. Also for one of which only keys are left."""
    session = view.session(session_id)
    draft = Draft()
    held = held_keys(view, session_id)
    if session is not None:
        admits.removal(session, *(held if session.behavior == "delete" else ()))
    for entry in held:
        if session is not None and session.behavior == "delete":
            draft.delete(entry)
        else:
            draft.replace(entry, msgspec.structs.replace(entry, session=""))
    if session is not None:
        draft.delete(session)
    return draft.plan(tuple(entry.key for entry in held))


class Sessions:
    """The verbs of sessions, the lock-delays and the TTLs.

    Lock-delays and renewals are kept in memory: they concern seconds, and after a restart every TTL starts anew.
    """

    def __init__(
        self, state: State, gate: Gate, *, clock: Clock, admission: Admission | None = None
    ) -> None:
        self._state = state
        self._admission = admission
        self._gate = gate
        self._clock = clock
        self._renewed: dict[str, float] = {}
        self._locked_until: dict[str, float] = {}

    def _about(self, verb: str, session_id: str) -> Attributes:
        session = self._state.view.session(session_id)
        return Attributes(verb, "sessions", session_id, node=session.node if session else "")

    async def create(self, actor: Actor, command: CreateSession, *, session_id: str) -> Session:
        """Create a session under a fresh id. Raises Forbidden, Rejected, Unavailable."""
        self._gate.admit(actor, Attributes("create", "sessions", command.node, node=command.node))
        made = await commit_reviewed(
            self._state,
            self._admission,
            actor,
            lambda view, admits: plan_create(view, command, session_id=session_id, admits=admits),
        )
        self._renewed[session_id] = self._clock.now()
        return self._state.view.session(session_id) or made

    async def destroy(self, actor: Actor, session_id: str) -> None:
        """End a session; unknown ones are fine. Raises Forbidden, Rejected (no UUID), Unavailable."""
        self._gate.admit(actor, self._about("delete", session_id))
        require_uuid(session_id)
        admits = opened(self._admission, actor)
        await settled(lambda: self._end(session_id, admits=admits))

    async def _end(self, session_id: str, *, admits: Admits = UNREVIEWED) -> None:
        session = self._state.view.session(session_id)
        delay_s = session.lock_delay_ns / 1e9 if session is not None else 0.0
        while True:
            # Locks that were taken while the session went away are found by the next round.
            keys = await self._state.commit(lambda view: plan_end(view, session_id, admits=admits))
            if delay_s:
                until = self._clock.now() + delay_s
                for key in keys:
                    self._lock_out(key, until)
            if not held_keys(self._state.view, session_id):
                break
        self._renewed.pop(session_id, None)

    def _lock_out(self, key: str, until: float) -> None:
        if len(self._locked_until) >= _MAX_LOCKED_OUT:
            # Overflow: the oldest lock-delay ends early.
            del self._locked_until[next(iter(self._locked_until))]
        self._locked_until[key] = until

    def locked_out(self, key: str) -> bool:
        """Return whether a lock-delay keeps `key` from being locked now."""
        until = self._locked_until.get(key)
        if until is None:
            return False
        if self._clock.now() < until:
            return True
        del self._locked_until[key]
        return False

    async def renew(self, actor: Actor, session_id: str) -> Session | None:
        """Start a session's TTL anew; None when there is no such session. Raises Forbidden, Rejected."""
        self._gate.admit(actor, self._about("update", session_id))
        require_uuid(session_id)

        def admit(admits: Admits) -> Session | None:
            found = self._state.view.session(session_id)
            if found is not None:
                admits.record(found, found, subresource=RENEWAL)
            return found

        session = await reviewed(self._admission, actor, admit)
        if session is not None:
            self._renewed[session_id] = self._clock.now()
        return session

    def get(self, actor: Actor, session_id: str) -> Session | None:
        """Return one session. Raises Forbidden, Rejected."""
        self._gate.admit(actor, Attributes("get", "sessions", session_id))
        require_uuid(session_id)
        return self._state.view.session(session_id)

    def of_node(self, actor: Actor, node: str) -> Sequence[Session]:
        """Return the sessions of a node. Raises Forbidden."""
        self._gate.admit(actor, Attributes("list", "sessions"))
        wanted = node.lower()
        return [s for s in self._state.view.sessions() if s.node.lower() == wanted]

    def all(self, actor: Actor) -> Sequence[Session]:
        """Return all sessions. Raises Forbidden."""
        self._gate.admit(actor, Attributes("list", "sessions"))
        return self._state.view.sessions()

    async def run(self) -> None:
        """End sessions whose time has come, until cancelled. To be run by one agent of a cluster only."""
        topics = [("checks", "any"), ("nodes",), ("sessions",)]
        while True:
            wait_s = _IDLE_S
            try:
                wait_s = await self._end_due()
            except Unavailable as error:
                log.warning("cannot end sessions now: %s", error)
                wait_s = _RETRY_S
            await self._state.view.topics.wait(topics, at_most_s=wait_s)

    async def _end_due(self) -> float:
        """End what has to end; return the seconds until the next TTL runs out."""
        view = self._state.view
        next_s = _IDLE_S
        now = self._clock.now()
        for session in view.sessions():
            why = why_ended(view, session)
            if not why and session.ttl:
                renewed = self._renewed.setdefault(session.id, now)
                left = renewed + _TTL_FACTOR * ttl_ns(session.ttl) / 1e9 - now
                if left > 0:
                    next_s = min(next_s, left)
                elif ttl_ns(session.ttl):
                    why = "its TTL was missed"
            if why:
                log.info("session %s of node %s ends: %s", session.id, session.node, why)
                await self._end(session.id)
        for session_id in self._renewed.keys() - {s.id for s in view.sessions()}:
            del self._renewed[session_id]
        return next_s
