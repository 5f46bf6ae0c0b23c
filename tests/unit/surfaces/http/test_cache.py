from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from waypost.surfaces.http.cache import AnswerCache, HeadMemo
from waypost.surfaces.http.message import Head, Headers, Rendered, Response


def answer(size: int) -> Rendered:
    return Rendered(Response(body=b"x" * size, vary=False))


def test_valid_until_the_caller_says_otherwise() -> None:
    now = 5
    cache: AnswerCache[int] = AnswerCache(lambda index: index == now)
    one = answer(10)
    cache.put(b"/a", one, validity=5)
    assert cache.get(b"/a") is one
    assert cache.get(b"/b") is None
    now = 6
    assert cache.get(b"/a") is None
    assert len(cache) == 0
    assert cache.size_bytes == 0


def test_the_unused_go_first() -> None:
    cache: AnswerCache[None] = AnswerCache(lambda _: True, max_entries=3)
    for key in "abc":
        cache.put(key, answer(1), validity=None)
    assert cache.get("a") is not None
    cache.put("d", answer(1), validity=None)
    assert cache.get("b") is None
    assert [k for k in "acd" if cache.get(k)] == ["a", "c", "d"]


def test_too_large_an_answer_is_not_kept() -> None:
    cache: AnswerCache[None] = AnswerCache(lambda _: True, max_bytes=1000)
    cache.put("a", answer(1), validity=None)
    cache.put("b", answer(500), validity=None)
    assert cache.get("b") is None
    assert cache.get("a") is not None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300), st.booleans()), max_size=60))
def test_bounds_hold(steps: list[tuple[int, int, bool]]) -> None:
    cache: AnswerCache[None] = AnswerCache(lambda _: True, max_entries=5, max_bytes=1000)
    for key, size, read in steps:
        if read:
            cache.get(key)
        else:
            cache.put(key, answer(size), validity=None)
        assert len(cache) <= 5
        assert cache.size_bytes <= 1000
    cache.clear()
    assert cache.size_bytes == 0


def test_memo_is_bounded() -> None:
    memo = HeadMemo(max_entries=2, max_head_bytes=4)
    head = Head(method="GET", target=b"/", headers=Headers())
    for data in (b"a", b"b", b"c", b"long!"):
        memo.put(data, head)
    assert [memo.get(d) for d in (b"a", b"b", b"c", b"long!")] == [None, head, head, None]
    assert len(memo) == 2
