"""Is a history of concurrent operations on one key one that a single, atomic key could have given?

The model is a key with a value and, for locks, the session that holds it. Values have to be unique in a history (each
write its own), so "the version I read" and "the value and holder I read" are the same thing, and `?cas=` compares those:
only the end of a session changes a key's version and keeps its value, and it takes the holder away.

The search is the one of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memory of
configurations that failed (2017): take any operation that may come first, namely one that began before every other that
is left had ended; apply it to the state; go on; step back when its outcome does not fit. An operation whose outcome
nobody knows (a time-out) may take effect at any time after it began, or never; these make the search hard, so two
shortcuts are taken. Having fewer of them left is never better: where the same configuration failed with more of them
left, it is not tried again. And values that nobody ever read or compared with are all the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

Kind = Literal["read", "write", "cas", "acquire", "release", "end"]
"""`end` is the end of a session: nobody holds the key any more whose holder it was."""


class State(NamedTuple):
    """What a key holds; `value` None: it does not exist."""

    value: str | None = None
    holder: str | None = None


ABSENT: Final = State()
_UNTOLD: Final = "\0"


class Operation(NamedTuple):
    """One call of one client. Times are of one monotonic clock, in seconds."""

    kind: Kind
    began_s: float
    ended_s: float
    """Infinite when the outcome is not known."""
    value: str | None = None
    """What was read, or what was to be written."""
    holder: str | None = None
    """Whose lock was seen (`read`), who acts (`acquire`, `release`), or who is no more (`end`)."""
    expected: str | None = None
    """`cas`: the value that had to be there; None: the key had to be absent."""
    expected_holder: str | None = None
    """`cas`: who had to hold it; None: nobody."""
    ok: bool = True
    """Whether the answer said that it was done."""
    client: str = ""

    @property
    def is_known(self) -> bool:
        return self.ended_s != math.inf


def unknown(operation: Operation) -> Operation:
    """Return the operation without an outcome."""
    return operation._replace(ended_s=math.inf)


def apply(operation: Operation, state: State) -> tuple[bool, State]:
    """Return whether an atomic key would do it, and its state then; for a read, whether it sees this."""
    kind = operation.kind
    if kind == "read":
        return (operation.value, operation.holder) == state, state
    if kind == "write":
        return True, State(operation.value, state.holder)
    if kind == "cas":
        done, holder = state == (operation.expected, operation.expected_holder), state.holder
    elif kind == "end":
        return True, State(state.value, None) if state.holder == operation.holder else state
    elif kind == "acquire":
        done, holder = state.holder in (None, operation.holder), operation.holder
    else:
        done, holder = state.holder == operation.holder, None
    return done, State(operation.value, holder) if done else state


def is_linearizable(
    history: Iterable[Operation], *, start: State = ABSENT, most_steps: int = 2_000_000
) -> bool:
    """Return whether some order explains the history. Raises TooHard after `most_steps` steps."""
    return explain(history, start=start, most_steps=most_steps) is not None


class TooHard(Exception):
    """The search was given up; nothing is known about the history."""


def explain(
    history: Iterable[Operation], *, start: State = ABSENT, most_steps: int = 2_000_000
) -> list[Operation] | None:
    """Return an order of the operations that explains the history, None if there is none. Raises TooHard."""
    ordered = sorted(history, key=lambda one: one.began_s)
    known = [one for one in ordered if one.is_known]
    # A read that nobody got an answer to says nothing.
    open_ended = [one for one in ordered if not one.is_known and one.kind != "read"]
    search = _Search(known, open_ended, most_steps)
    return search.run(start)


def first_contradiction(history: Iterable[Operation], *, start: State = ABSENT) -> Operation | None:
    """Return the operation with whose answer the history became impossible, None if it is possible. Raises TooHard.

    What was seen up to a moment is a history, too: answers that came later are not known yet.
    """
    ordered = sorted(history, key=lambda one: one.ended_s)
    known = [one for one in ordered if one.is_known]

    def possible_until(count: int) -> bool:
        moment = known[count - 1].ended_s if count else -math.inf
        rest = (unknown(one) for one in ordered[count:] if one.began_s <= moment)
        return is_linearizable([*known[:count], *rest], start=start)

    low, high = 0, len(known)
    if possible_until(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if possible_until(middle) else (low, middle)
    return known[high - 1]


class _Place(NamedTuple):
    """How far a search is: all of `known` before `low` are done, and those whose bits are set, counted from `low`."""

    low: int
    done: int
    state: State
    open_done: int


class _Search:
    def __init__(
        self, known: Sequence[Operation], open_ended: Sequence[Operation], most_steps: int
    ) -> None:
        self._known = known
        self._open = open_ended
        self._steps_left = most_steps
        self._seen: dict[tuple[int, int, State], list[int]] = {}
        told = {one.value for one in known if one.kind == "read"}
        self._told = told | {one.expected for one in (*known, *open_ended)} | {None}

    def run(self, start: State) -> list[Operation] | None:
        here = _Place(0, 0, start, 0)
        path: list[Operation] = []
        moves = [self._moves(here)]
        while here.low < len(self._known):
            for operation, there in moves[-1]:
                if self._is_new(there):
                    here = there
                    path.append(operation)
                    moves.append(self._moves(here))
                    break
            else:
                moves.pop()
                if not path:
                    return None
                path.pop()
        return path

    def _is_new(self, place: _Place) -> bool:
        tried = self._seen.setdefault((place.low, place.done, place.state), [])
        if any(open_done & place.open_done == open_done for open_done in tried):
            return False
        tried.append(place.open_done)
        return True

    def _after(self, operation: Operation, state: State) -> tuple[bool, State]:
        done, after = apply(operation, state)
        return done, after if after.value in self._told else State(_UNTOLD, after.holder)

    def _moves(self, here: _Place) -> Iterator[tuple[Operation, _Place]]:
        """Yield the operations that may come next, with where they lead."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise TooHard("too many ways to order this history")
        window = []
        soonest_s = math.inf
        for index in range(here.low, len(self._known)):
            one = self._known[index]
            if one.began_s > soonest_s:
                break
            if not here.done >> (index - here.low) & 1:
                window.append((index, one))
                soonest_s = min(soonest_s, one.ended_s)
        for index, one in window:
            if one.began_s > soonest_s:
                break
            done, state = self._after(one, here.state)
            if done == one.ok:
                yield one, _slid(here, index, state)
        for index, one in enumerate(self._open):
            if one.began_s > soonest_s:
                break
            if here.open_done >> index & 1:
                continue
            done, state = self._after(one, here.state)
            if done and state != here.state:
                yield one, here._replace(open_done=here.open_done | 1 << index, state=state)


def _slid(here: _Place, index: int, state: State) -> _Place:
    done, low = here.done | 1 << (index - here.low), here.low
    while done & 1:
        done >>= 1
        low += 1
    return _Place(low, done, state, here.open_done)
