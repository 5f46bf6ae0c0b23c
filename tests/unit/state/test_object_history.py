"""The bounded history that watches start from."""

from __future__ import annotations

from waypost.model.object import Object
from waypost.state.object_history import Change, ObjectHistory

KIND = "/secrets"


def change(revision, size=10):
    body = b"x" * size
    new = Object(group="", resource="secrets", namespace="n", name=f"s{revision}", body=body)
    return Change(revision, None, new)


def revisions(found):
    return None if found is None else [one.revision for one in found]


def test_changes_after_a_revision_in_order():
    history = ObjectHistory()
    history.reset(revision=5)
    for revision in (6, 8, 9):
        history.add(KIND, change(revision))
    assert revisions(history.since(KIND, 5)) == [6, 8, 9]
    assert revisions(history.since(KIND, 7)) == [8, 9]
    assert revisions(history.since(KIND, 9)) == []
    assert revisions(history.since(KIND, 100)) == []


def test_before_the_load_nothing_is_known():
    history = ObjectHistory()
    history.reset(revision=5)
    assert history.since(KIND, 4) is None
    assert history.since(KIND, 5) == []
    assert history.oldest(KIND) == 5


def test_the_oldest_goes_when_there_are_too_many():
    history = ObjectHistory(max_changes=2)
    for revision in (1, 2, 3):
        history.add(KIND, change(revision))
    assert history.since(KIND, 0) is None
    assert revisions(history.since(KIND, 1)) == [2, 3]
    assert history.oldest(KIND) == 1


def test_the_oldest_goes_when_they_are_too_large_but_never_the_last():
    history = ObjectHistory(max_bytes=100)
    history.add(KIND, change(1, size=80))
    history.add(KIND, change(2, size=30))
    assert history.since(KIND, 0) is None
    assert revisions(history.since(KIND, 1)) == [2]
    history.add(KIND, change(3, size=500))
    assert revisions(history.since(KIND, 2)) == [3]


def test_kinds_do_not_push_each_other_out():
    history = ObjectHistory(max_changes=1)
    history.add(KIND, change(1))
    for revision in range(2, 50):
        history.add("/configmaps", change(revision))
    assert revisions(history.since(KIND, 0)) == [1]


def test_a_reload_forgets_everything():
    history = ObjectHistory()
    history.add(KIND, change(1))
    history.reset(revision=7)
    assert history.since(KIND, 1) is None
    assert history.since(KIND, 7) == []
