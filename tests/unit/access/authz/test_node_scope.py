"""What a node may do with keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.access.authz.node_scope import (
    NodeScope,
    check_range,
    check_txn,
    describe,
    shown,
    shown_batch,
)
from waypost.base.errors import Forbidden, Malformed, WaypostError
from waypost.model.catalog import Check, CheckDefinition, Node, Service, Weights, fold
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.model.session import Session
from waypost.state.keys import decode, put
from waypost.store.engine import Batch, Compare, Delete, Event, Get, KeyValue, Put, Txn

SCOPE = NodeScope("Web-1")
ID = "11111111-2222-3333-4444-555555555555"
THEIRS = Session(id=ID, node="other", modify_index=9)
OURS = Session(id=ID, node="web-1", modify_index=9)


def nobody(_session_id: str) -> None:
    return None


def key(text: str) -> bytes:
    return text.replace("|", "\0").encode()


@pytest.mark.parametrize(
    ("text", "with_kv", "without"),
    [
        ("n|other", True, True),
        ("s|other|web", True, True),
        ("c|other|web", True, True),
        (f"x|{ID}", True, True),
        ("k|a/b", True, False),
        ("o|rbac.authorization.k8s.io/clusterroles||admin", True, True),
        ("o|/serviceaccounts|default|default", True, True),
        ("o|/secrets|kube-system|bootstrap-token-abcdef", False, False),
        ("o|/secretsx|a|b", False, False),
        ("o|/configmaps|default|a", False, False),
        ("o|certificates.k8s.io/certificatesigningrequests||a", False, False),
        ("o|later.io/kinds||a", False, False),
        ("_|event|1", True, True),
        ("_|events|1", False, False),
        ("_|leader", False, False),
        ("_|lock-delay|1", False, False),
        ("", False, False),
        ("z|a", False, False),
        ("n", False, False),
    ],
)
def test_what_is_shown(text: str, with_kv: bool, without: bool) -> None:
    assert NodeScope("a", reads_kv=True).may_read(key(text)) is with_kv
    assert NodeScope("a").may_read(key(text)) is without
    for scope, expected in ((NodeScope("a", reads_kv=True), with_kv), (NodeScope("a"), without)):
        try:
            check_range(scope, key(text), None)
        except Forbidden:
            assert not expected
        else:
            assert expected


@pytest.mark.parametrize(
    ("start", "end", "allowed"),
    [
        ("|", "\x7f", True),
        ("n|", "n|\x7f", True),
        ("o|/secrets|", "o|/secrets\x01", False),
        ("o|", "o\x01", True),
        ("k|", "k\x01", False),
        ("_|", "_\x01", True),
        ("z", "zz", False),
    ],
)
def test_ranges_of_which_nothing_is_shown_are_refused(start: str, end: str, allowed: bool) -> None:
    if allowed:
        check_range(SCOPE, key(start), key(end))
    else:
        with pytest.raises(Forbidden, match="node 'Web-1' cannot read"):
            check_range(SCOPE, key(start), key(end))


def row(record: object) -> KeyValue:
    made = put(record)  # type: ignore[arg-type]
    return KeyValue(made.key, made.value, 3, 4)


CHECK = Check(
    node="other",
    check_id="c",
    name="definition",
    definition=CheckDefinition(http="http://x", header={"Authorization": ("s3cret",)}),
)


def test_how_a_check_of_another_node_is_run_is_left_out() -> None:
    seen = shown(SCOPE, row(CHECK))
    assert seen is not None
    assert b"s3cret" not in seen.value
    check = decode(seen)
    assert isinstance(check, Check)
    assert (check.name, check.definition, check.modify_index) == ("definition", None, 4)
    own = row(Check(node="WEB-1", check_id="c", name="c", definition=CHECK.definition))
    assert shown(SCOPE, own) is own
    assert shown(NodeScope("web"), own) is not own
    plain = row(Check(node="other", check_id="c", name="definition"))
    assert shown(SCOPE, plain) == plain


def test_a_revision_keeps_its_number_whatever_is_hidden_of_it() -> None:
    node, secret = row(Node(node="a", address="b")), KeyValue(key("o|/secrets|a|b"), b"x", 1, 1)
    gone = KeyValue(key("c|other|c"), b"", 0, 7)
    all_seen = Batch(7, (Event("put", node), Event("delete", gone)))
    assert shown_batch(SCOPE, all_seen) is all_seen
    assert shown_batch(SCOPE, Batch(7, (Event("put", secret),))) == Batch(7, ())
    assert shown_batch(SCOPE, Batch(7, (Event("put", secret), Event("put", node)))) == Batch(
        7, (Event("put", node),)
    )


SERVICE = Service(node="web-1", id="w", name="web", port=80)


@pytest.mark.parametrize(
    "txn",
    [
        Txn(),
        Txn(then=(put(Node(node="web-1", address="10.0.0.1")),)),
        Txn(then=(put(SERVICE), put(Check(node="WEB-1", check_id="a", name="a")))),
        Txn(
            when=(Compare(key("n|other"), "modify", "==", 3),), then=(Get(key("s|o"), key("s|p")),)
        ),
        Txn(then=(Delete(key("n|web-1")), Delete(key("s|web-1|"), key("s|web-1\x01")))),
        Txn(then=(Delete(key("c|web-1|a")), Delete(key("c|web-1|a"), key("c|web-1|b")))),
    ],
)
def test_its_own_records_are_its_own(txn: Txn) -> None:
    assert check_txn(SCOPE, txn, session_of=nobody) is txn


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (Put(b"n\0web-1", b"garbage"), Malformed),
        (Put(b"n\0web-1", b"\x80"), Malformed),
        (Put(b"s\0web-1\0other id", put(SERVICE).value), Malformed),
        (Put(b"s\0web-1\0w", put(Service(node="other", id="w", name="w")).value), Malformed),
        (Put(b"x\0" + ID.encode(), put(THEIRS).value), Forbidden),
        (Put(b"x\0another", put(OURS).value), Malformed),
        (put(Service(node="web-1", id="w", name="w", port=70000)), Malformed),
        (put(Service(node="web-1", id="w", name="w", weights=Weights(passing=-1))), Malformed),
        (put(Check(node="web-1", check_id="c", name="c", status="fine")), Malformed),
        (Put(b"n\0web-1", put(Node(node="web-1", address="")).value, 5), Forbidden),
        (put(KVEntry(key="a", value=b"")), Forbidden),
        (put(Object(group="", resource="serviceaccounts", name="a", body=b"{}")), Forbidden),
        (Delete(b"n\0web-10"), Forbidden),
        (Delete(b"s\0web-10\0a"), Forbidden),
        (Delete(b"n\0web-1", b"n\0web-1\0"), Forbidden),
        (Delete(b"s\0web-1\0", b"s\0web-2"), Forbidden),
        (Delete(b"x\0", b"x\1"), Forbidden),
        (Get(b"\0", b"\xff"), Forbidden),
        (Get(b"n\0", b"o\0"), Forbidden),
        (Get(b"k\0a"), Forbidden),
    ],
)
def test_refused(operation: Put | Delete | Get, error: type[WaypostError]) -> None:
    for txn in (Txn(then=(operation,)), Txn(otherwise=(operation,))):
        with pytest.raises(error):
            check_txn(SCOPE, txn, session_of=nobody)


def test_a_session_has_to_be_its_own_when_it_is_written() -> None:
    for operation in (put(OURS), Delete(put(OURS).key)):
        with pytest.raises(Forbidden, match="of node 'other'"):
            check_txn(SCOPE, Txn(then=(operation,)), session_of=lambda _: THEIRS)
        for before, revision in ((None, 0), (OURS, 9)):
            made = check_txn(SCOPE, Txn(then=(operation,)), session_of=lambda _, s=before: s)
            assert made.when == (Compare(put(OURS).key, "modify", "==", revision),)
    both = Txn(then=(put(OURS),), otherwise=(put(SERVICE),))
    with pytest.raises(Forbidden):
        check_txn(SCOPE, both, session_of=nobody)


def test_words() -> None:
    assert describe(key("s|n1|web")) == 'service "web" of node "n1"'
    assert describe(key("o|/secrets|a|b")) == 'object "/secrets" "a/b"'
    assert describe(key("_|x")) == "what waypost keeps for itself"
    assert "\n" not in describe(b"k\0a\nb")


NAMES = st.sampled_from(["web-1", "WEB-1", "web-10", "web", "other", "", "web-1\x01"])
RECORDS = st.one_of(
    st.builds(Node, node=NAMES, address=st.just("10.0.0.1")),
    st.builds(Service, node=NAMES, id=st.sampled_from(["a", "b"]), name=st.just("n")),
    st.builds(Check, node=NAMES, check_id=st.sampled_from(["a", "b"]), name=st.just("n")),
    st.builds(Session, id=st.just(ID), node=NAMES),
    st.builds(KVEntry, key=NAMES, value=st.just(b"")),
    st.builds(Object, group=st.just(""), resource=st.sampled_from(["secrets", "nodes"]), name=NAMES, body=st.just(b"{}")),
)  # fmt: skip
KEYS = st.one_of(
    RECORDS.map(lambda r: put(r).key),
    st.binary(max_size=6),
    st.builds(lambda a, b: a + b, st.sampled_from([b"n\0", b"s\0", b"c\0", b"x\0", b"k\0", b"o\0", b"_\0"]), st.binary(max_size=8)),
)  # fmt: skip
WRITES = st.one_of(
    RECORDS.map(put),
    st.builds(Put, KEYS, RECORDS.map(lambda r: put(r).value) | st.binary(max_size=8)),
    st.builds(Delete, KEYS, st.none() | KEYS),
)


def is_own(at: bytes) -> bool:
    parts = at.split(b"\0")
    return (len(parts) == 2 and parts[0] == b"n" and parts[1] == b"web-1") or (
        len(parts) >= 3 and parts[0] in (b"s", b"c") and parts[1] == b"web-1"
    )


@given(WRITES)
def test_whatever_is_let_through_touches_only_the_nodes_own_keys(write: Put | Delete) -> None:
    try:
        made = check_txn(NodeScope("web-1"), Txn(then=(write,)), session_of=nobody)
    except WaypostError:
        return
    if isinstance(write, Put):
        record = decode(KeyValue(write.key, write.value, 0, 0))
        assert put(record).key == write.key  # type: ignore[arg-type]
        assert fold(record.node) == "web-1"  # type: ignore[union-attr]
    elif write.end is not None:
        # Every key of the range begins as its own do.
        assert write.key[:8] in (b"s\0web-1\0", b"c\0web-1\0")
        assert write.end <= write.key[:7] + b"\1"
        return
    if write.key.startswith(b"x\0"):
        assert made.when == (Compare(write.key, "modify", "==", 0),)
    else:
        assert is_own(write.key)
