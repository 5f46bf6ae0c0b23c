"""The checker itself: known histories, and small random ones against trying every order."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .linearizability import (
    ABSENT,
    Operation,
    State,
    TooHard,
    apply,
    explain,
    first_contradiction,
    is_linearizable,
    unknown,
)


def op(kind, began, ended, value=None, **more):
    return Operation(kind, began, ended, value, **more)


HISTORIES = {
    "nothing happened": ([], True),
    "a write is read": ([op("write", 0, 1, "a"), op("read", 2, 3, "a")], True),
    "a write is not read afterwards": ([op("write", 0, 1, "a"), op("read", 2, 3, None)], False),
    "a write may or may not be read meanwhile": (
        [op("write", 0, 9, "a"), op("read", 1, 2, None), op("read", 3, 4, "a")],
        True,
    ),
    "once read, it stays": (
        [op("write", 0, 9, "a"), op("read", 1, 2, "a"), op("read", 3, 4, None)],
        False,
    ),
    "two readers at once may differ": (
        [op("write", 0, 9, "a"), op("read", 1, 4, None), op("read", 1, 4, "a")],
        True,
    ),
    "one of two that compare the same wins": (
        [
            op("write", 0, 1, "a"),
            op("cas", 2, 5, "b", expected="a"),
            op("cas", 2, 5, "c", expected="a", ok=False),
            op("read", 6, 7, "b"),
        ],
        True,
    ),
    "both win": (
        [
            op("write", 0, 1, "a"),
            op("cas", 2, 5, "b", expected="a"),
            op("cas", 2, 5, "c", expected="a"),
        ],
        False,
    ),
    "nobody wins though nobody else wrote": (
        [op("write", 0, 1, "a"), op("cas", 2, 5, "b", expected="a", ok=False)],
        False,
    ),
    "creation": ([op("cas", 0, 1, "a", expected=None), op("read", 2, 3, "a")], True),
    "an acknowledged write is lost": (
        [op("write", 0, 1, "a"), op("cas", 2, 3, "b", expected="a"), op("read", 4, 5, "a")],
        False,
    ),
    "what timed out took effect": (
        [unknown(op("write", 0, 1, "a")), op("read", 5, 6, None), op("read", 7, 8, "a")],
        True,
    ),
    "what timed out took effect late": (
        [
            unknown(op("write", 0, 1, "a")),
            op("write", 2, 3, "b"),
            op("read", 4, 5, "b"),
            op("read", 6, 7, "a"),
        ],
        True,
    ),
    "what timed out took effect twice": (
        [
            unknown(op("write", 0, 1, "a")),
            op("read", 2, 3, "a"),
            op("write", 4, 5, "b"),
            op("read", 6, 7, "b"),
            op("read", 8, 9, "a"),
        ],
        False,
    ),
    "what timed out took effect before it began": (
        [op("read", 0, 1, "a"), unknown(op("write", 2, 3, "a"))],
        False,
    ),
    "what timed out explains a comparison that failed": (
        [
            op("write", 0, 1, "a"),
            unknown(op("cas", 2, 3, "b", expected="a")),
            op("cas", 4, 5, "c", expected="a", ok=False),
        ],
        True,
    ),
    "a lock": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            op("acquire", 2, 3, "b", holder="t", ok=False),
            op("read", 4, 5, "a", holder="s"),
            op("release", 6, 7, "c", holder="s"),
            op("acquire", 8, 9, "d", holder="t"),
        ],
        True,
    ),
    "two hold a lock": (
        [op("acquire", 0, 1, "a", holder="s"), op("acquire", 2, 3, "b", holder="t")],
        False,
    ),
    "a lock is released by somebody else": (
        [op("acquire", 0, 1, "a", holder="s"), op("release", 2, 3, "b", holder="t")],
        False,
    ),
    "the end of a session frees what it held, and the value stays": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            op("end", 2, 3, holder="s"),
            op("read", 4, 5, "a"),
            op("acquire", 6, 7, "b", holder="t"),
        ],
        True,
    ),
    "a session that ended holds on": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            op("end", 2, 3, holder="s"),
            op("read", 4, 5, "a", holder="s"),
        ],
        False,
    ),
    "the end of a session frees what another holds": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            op("end", 2, 3, holder="t"),
            op("acquire", 4, 5, "b", holder="u"),
        ],
        False,
    ),
    "a version from before the end of a session is an old one": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            op("end", 2, 3, holder="s"),
            op("cas", 4, 5, "b", expected="a", expected_holder="s"),
        ],
        False,
    ),
    "a lock is taken over while its session may or may not have ended": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            unknown(op("end", 2, 3, holder="s")),
            op("acquire", 4, 5, "b", holder="t", ok=False),
            op("acquire", 6, 7, "c", holder="t"),
        ],
        True,
    ),
    "a lock does not keep others from writing": (
        [
            op("acquire", 0, 1, "a", holder="s"),
            op("write", 2, 3, "b"),
            op("read", 4, 5, "b", holder="s"),
        ],
        True,
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_known_histories(name):
    history, wanted = HISTORIES[name]
    assert is_linearizable(history) is wanted


def by_every_order(history):
    """The definition: some of the unknown ones, and all known ones, in an order that time and outcomes allow."""
    known = [one for one in history if one.is_known]
    loose = [one for one in history if not one.is_known and one.kind != "read"]
    for count in range(len(loose) + 1):
        for chosen in itertools.combinations(loose, count):
            for order in itertools.permutations([*known, *chosen]):
                if fits(order):
                    return True
    return False


def fits(order, start=ABSENT):
    state, latest = start, -math.inf
    for number, one in enumerate(order):
        latest = max(latest, one.began_s)
        if any(later.ended_s < one.began_s for later in order[number + 1 :]):
            return False
        done, state = apply(one, state)
        if done != (one.ok if one.is_known else True):
            return False
    return True


@st.composite
def small_histories(draw):
    made = []
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["read", "write", "cas", "acquire", "release", "end"]))
        began = draw(st.integers(0, 8))
        seen = draw(st.sampled_from([None, *[f"v{one}" for one in range(number + 2)]]))
        one = op(
            kind,
            began,
            began + draw(st.integers(1, 5)) + 0.5,
            seen if kind == "read" else f"v{number}",
            holder=draw(st.sampled_from([None, "s", "t"])) if kind == "read" else None,
            expected=seen if kind == "cas" else None,
            expected_holder=draw(st.sampled_from([None, "s"])) if kind == "cas" else None,
            ok=kind in ("read", "write", "end") or draw(st.booleans()),
        )
        if kind in ("acquire", "release", "end"):
            one = one._replace(holder=draw(st.sampled_from(["s", "t"])))
        made.append(unknown(one) if draw(st.integers(0, 4)) == 0 else one)
    return made


@settings(max_examples=300, deadline=None)
@given(small_histories())
def test_same_as_trying_every_order(history):
    assert is_linearizable(history) is by_every_order(history)
    order = explain(history)
    assert order is None or fits(order)


def simulated(rng, count, clients):
    """A history of an atomic key: every operation happens at one moment between its call and its answer."""
    state, history, free_at = State(), [], [0.0] * clients
    seen = [State()] * clients
    moment = 0.0
    for number in range(count):
        moment += rng.random()
        client = rng.randrange(clients)
        began = max(free_at[client], moment - rng.random() * 3)
        if began > moment:
            continue
        kind = rng.choice(["read", "write", "cas", "acquire", "release", "end"])
        one = op(
            kind,
            began,
            moment + rng.random() * 3,
            f"v{number}",
            holder=f"s{client}" if kind in ("acquire", "release", "end") else None,
            expected=seen[client].value if kind == "cas" else None,
            expected_holder=seen[client].holder if kind == "cas" else None,
        )
        if kind == "read":
            one = one._replace(value=state.value, holder=state.holder)
            seen[client] = state
        done, after = apply(one, state)
        free_at[client] = one.ended_s
        if rng.random() < 0.03 and kind != "read":
            state = after if rng.random() < 0.5 else state
            history.append(unknown(one))
        else:
            state = after
            history.append(one._replace(ok=done))
    return history


@pytest.mark.parametrize("seed", range(20))
def test_long_histories_of_an_atomic_key_pass_and_damaged_ones_do_not(seed):
    rng = random.Random(seed)
    history = simulated(rng, 400, 6)
    order = explain(history)
    assert order is not None
    assert fits(order)
    last = max(one.ended_s for one in history if one.is_known)
    damaged = [*history, op("read", last + 1, last + 2, "never written")]
    assert not is_linearizable(damaged)


def test_a_lost_write_in_a_long_history_is_found():
    rng = random.Random(7)
    history = simulated(rng, 300, 4)
    last = max(one.ended_s for one in history if one.is_known)
    holder = explain(history)
    assert holder is not None
    tail = [op("write", last + 1, last + 2, "kept"), op("read", last + 3, last + 4, "v0")]
    assert not is_linearizable([*history, *tail])


def test_the_answer_that_cannot_be_is_named():
    rng = random.Random(3)
    history = simulated(rng, 200, 3)
    assert first_contradiction(history) is None
    last = max(one.ended_s for one in history if one.is_known)
    wrong = op("read", last + 3, last + 4, "gone")
    tail = [op("write", last + 1, last + 2, "kept"), wrong, op("write", last + 5, last + 6, "more")]
    assert first_contradiction([*history, *tail]) == wrong


def test_a_search_that_takes_too_long_says_so():
    rng = random.Random(1)
    with pytest.raises(TooHard):
        is_linearizable(simulated(rng, 200, 4), most_steps=10)
