"""Sessions: what locks are held by, and the task that ends them.

In a cluster one agent, the leader, ends sessions. Lock-delays are then written down with the transaction that frees the
keys, so that no agent grants a lock too early, whoever leads; each counts them by its own monotonic clock from when it
sees them. Renewals reach the leader with the next heartbeat of the agent that took them (`take_renewals`).

A session ends when somebody destroys it, when its TTL is missed, when one of its checks turns critical or goes away,
and when its node goes away. Its keys are then released or deleted, and locked out for its lock-delay.
Source: Consul HTTP API, sessions; observed times of Consul 1.8.7 (a TTL counts double before it is enforced).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
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
from waypost.state.keys import check_key, node_key, system_key
from waypost.state.state import Commit, Plan, State
from waypost.state.view import View

log = logging.getLogger(__name__)

DEFAULT_LOCK_DELAY_NS: Final = 15 * 10**9
_TTL_MIN_NS: Final = 10 * 10**9
_TTL_MAX_NS: Final = 86_400 * 10**9
_TTL_FACTOR: Final = 2
"""Consul's clients renew at half the TTL and rely on the slack."""
_MAX_LOCKED_OUT: Final = 65_536
_MAX_RENEWALS: Final = 65_536
_LOCK_DELAY: Final = "lock-delay"
"""Owner of the lock-delays of a cluster, in the view's system entries."""
_RETRY_S: Final = 1.0
_IDLE_S: Final = 60.0
_LIST: Final = Attributes("list", "sessions")


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


class _LockDelay(msgspec.Struct, frozen=True, array_like=True):
    """Keys that nobody may lock for `delay_ns` from when this is seen first."""

    keys: tuple[str, ...]
    delay_ns: int


def plan_end(
    view: View, session_id: str, *, shares_delay: bool = False, admits: Admits = UNREVIEWED
) -> Plan[tuple[str, ...]]:
    """Decide the end of a session; the answer is the keys it gave up. Also for one of which only keys are left.

    `shares_delay`: its lock-delay is written down for the other agents.
    """
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
    keys = tuple(entry.key for entry in held)
    if session is not None:
        draft.delete(session)
        if shares_delay and keys and session.lock_delay_ns:
            value = msgspec.msgpack.encode(_LockDelay(keys, session.lock_delay_ns))
            draft.write(system_key(_LOCK_DELAY, session_id), value, revision=0)
    return draft.plan(keys)


def _plan_forget_delay(view: View, *, name: str) -> Plan[None]:
    entry = view.system(name)
    draft = Draft()
    if entry is not None:
        draft.erase(system_key(*name.split("\0")), revision=entry.modify_index)
    return draft.plan(None)


class Sessions:
    """The verbs of sessions, the lock-delays and the TTLs.

    Renewals, and without a cluster lock-delays, are kept in memory: they concern seconds, and after a restart every
    TTL starts anew.
    """

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        clock: Clock,
        is_clustered: bool = False,
        admission: Admission | None = None,
    ) -> None:
        """`is_clustered`: other agents use the same store; only the leader's `run` may run."""
        self._state = state
        self._admission = admission
        self._gate = gate
        self._clock = clock
        self._is_clustered = is_clustered
        self._renewals: dict[str, None] = {}
        self._delays: dict[str, float] = {}
        """Lock-delays of the cluster by name: when each was seen first."""
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

    async def _end(
        self, session_id: str, *, commit: Commit | None = None, admits: Admits = UNREVIEWED
    ) -> None:
        commit = commit or self._state.commit
        session = self._state.view.session(session_id)
        delay_s = session.lock_delay_ns / 1e9 if session is not None else 0.0
        while True:
            # Locks that were taken while the session went away are found by the next round.
            keys = await commit(
                lambda view: plan_end(
                    view, session_id, shares_delay=self._is_clustered, admits=admits
                )
            )
            if delay_s and not self._is_clustered:
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
        if self._is_clustered:
            return self._shared_delay(key) > 0
        until = self._locked_until.get(key)
        if until is None:
            return False
        if self._clock.now() < until:
            return True
        del self._locked_until[key]
        return False

    def _shared_delay(self, key: str = "") -> float:
        """Return the longest time for which a lock-delay of the cluster goes on, of `key` or of any key."""
        entries = self._state.view.system_below(_LOCK_DELAY + "\0")
        if not entries and not self._delays:
            return 0.0
        now, longest = self._clock.now(), 0.0
        for entry in entries:
            delay = msgspec.msgpack.decode(entry.value, type=_LockDelay)
            if not key or key in delay.keys:
                longest = max(longest, self._left(entry.name, delay, now))
        for name in self._delays.keys() - {entry.name for entry in entries}:
            del self._delays[name]
        return longest

    def _left(self, name: str, delay: _LockDelay, now: float) -> float:
        return self._delays.setdefault(name, now) + delay.delay_ns / 1e9 - now

    def take_renewals(self) -> tuple[str, ...]:
        """Return the sessions renewed here since the last call, for the leader; without a cluster there are none."""
        found = tuple(self._renewals)
        self._renewals.clear()
        return found

    def heard_renewals(self, session_ids: Iterable[str]) -> None:
        """Start the TTLs of sessions anew that another agent renewed."""
        now = self._clock.now()
        for session_id in session_ids:
            if self._state.view.session(session_id) is not None:
                self._renewed[session_id] = now

    def renewed_again(self, session_ids: Iterable[str]) -> None:
        """Take back what `take_renewals` gave, because the leader was not reached."""
        self._renewals = dict.fromkeys(session_ids) | self._renewals
        while len(self._renewals) > _MAX_RENEWALS:
            # Overflow: the oldest is lost; its holder renews again before the TTL has passed twice.
            del self._renewals[next(iter(self._renewals))]

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
            if self._is_clustered:
                self.renewed_again((session_id,))
        return session

    def get(self, actor: Actor, session_id: str) -> Session | None:
        """Return one session. Raises Forbidden, Rejected."""
        self._gate.admit(actor, Attributes("get", "sessions", session_id))
        require_uuid(session_id)
        return self._state.view.session(session_id)

    def of_node(self, actor: Actor, node: str) -> Sequence[Session]:
        """Return the sessions of a node, or those that `actor` may get by id. Raises Forbidden."""
        wanted = node.lower()
        found = [s for s in self._state.view.sessions() if s.node.lower() == wanted]
        return self._seen(actor, found)

    def all(self, actor: Actor) -> Sequence[Session]:
        """Return all sessions, or those that `actor` may get by id. Raises Forbidden."""
        return self._seen(actor, self._state.view.sessions())

    def _seen(self, actor: Actor, sessions: Sequence[Session]) -> Sequence[Session]:
        return self._gate.visible(
            actor,
            _LIST,
            sessions,
            each=lambda one: (Attributes("get", "sessions", one.id),),
            known=self._state.view.sessions,
        )

    async def run(self, *, commit: Commit | None = None) -> None:
        """End sessions whose time has come, until cancelled. To be run by one agent of a cluster only.

        Every TTL and lock-delay starts afresh: whoever runs this cannot know what was heard before. `commit` is the
        leader's.
        """
        commit = commit or self._state.commit
        self._renewed.clear()
        self._delays.clear()
        topics = [("checks", "any"), ("nodes",), ("sessions",)]
        while True:
            wait_s = _IDLE_S
            try:
                wait_s = await self._end_due(commit)
                if self._is_clustered:
                    wait_s = min(wait_s, await self._end_delays(commit))
            except Unavailable as error:
                log.warning("cannot end sessions now: %s", error)
                wait_s = _RETRY_S
            await self._state.view.topics.wait(topics, at_most_s=wait_s)

    async def _end_delays(self, commit: Commit) -> float:
        """Remove the lock-delays that are over; return the seconds until the next one is."""
        next_s = _IDLE_S
        for entry in self._state.view.system_below(_LOCK_DELAY + "\0"):
            delay = msgspec.msgpack.decode(entry.value, type=_LockDelay)
            # A beat longer here than on other agents, who may have seen it a little later.
            left = self._left(entry.name, delay, self._clock.now()) + _RETRY_S
            if left > 0:
                next_s = min(next_s, left)
            else:
                await commit(functools.partial(_plan_forget_delay, name=entry.name))
                self._delays.pop(entry.name, None)
        return next_s

    async def _end_due(self, commit: Commit | None = None) -> float:
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
                await self._end(session.id, commit=commit)
        for session_id in self._renewed.keys() - {s.id for s in view.sessions()}:
            del self._renewed[session_id]
        return next_s
