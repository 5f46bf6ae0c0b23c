"""Setting up and taking back, on files that are held in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec
import pytest

from waypost.base.errors import Conflict, Malformed, Rejected
from waypost.drivers.host.records import Facts, Wanted
from waypost.drivers.host.setup import PARTS, Change, diff, wants_setup, wants_undo
from waypost.drivers.host.undo import Record

from . import machines
from .machines import ON_53, ON_BRIDGE, ON_NODE, debian, ubuntu

RESOLV_CONF = "/etc/resolv.conf"
DAEMON = "/etc/docker/daemon.json"


def with_docker(facts: Facts, settings: bytes | None = b'{"log-driver": "journald"}\n') -> Facts:
    return msgspec.structs.replace(
        facts,
        files={**facts.files, DAEMON: settings},
        answers=(*facts.answers, ON_BRIDGE),
        bridge_address="172.17.0.1",
        dockerd=("dockerd",),
    )


def done(facts: Facts, change: Change) -> Facts:
    files: Mapping[str, bytes | None] = {
        **facts.files,
        **{edit.path: edit.after for edit in change.edits},
    }
    return msgspec.structs.replace(facts, files=files)


def edited(facts: Facts, path: str, old: bytes, new: bytes) -> Facts:
    data = facts.files[path] or b""
    assert old in data
    return msgspec.structs.replace(facts, files={**facts.files, path: data.replace(old, new)})


def set_up(facts: Facts, wanted: Wanted | None = None, record: Record | None = None):
    change = wants_setup(facts, wanted or Wanted(), record or Record(), parts=PARTS)
    return done(facts, change), change


def there(facts: Facts) -> dict[str, bytes]:
    return {path: data for path, data in facts.files.items() if data is not None}


@pytest.mark.parametrize("name", machines.ALL)
@pytest.mark.parametrize(
    "settings", [None, b"", b"{}", b'{"dns":["8.8.8.8"],\n"a":1}', b'{"a": 1}']
)
def test_twice_is_once_and_undo_gives_back_every_byte(name, settings):
    before = with_docker(machines.ALL[name](), settings)
    after, change = set_up(before)
    assert change.edits
    assert there(after) != there(before)

    again, second = set_up(after, record=change.record)
    assert second.is_empty
    assert second.record == change.record
    assert there(again) == there(after)

    undo = wants_undo(after, change.record, parts=PARTS)
    assert there(done(after, undo)) == there(before)
    assert undo.record == Record()
    assert {edit.path for edit in undo.edits} == {edit.path for edit in change.edits}
    # Whoever was told of the change is told that it is gone.
    assert [step.what for step in undo.steps] == [step.what for step in change.steps]


def test_setting_up_for_another_address_starts_from_the_original():
    before = debian(answers=(ON_53, ON_NODE))
    first, change = set_up(before, Wanted(docker_address="10.0.0.5"))
    second, moved = set_up(
        first, Wanted(address="10.0.0.5", docker_address="10.0.0.5"), change.record
    )
    text = (second.files[RESOLV_CONF] or b"").decode()
    assert "127.0.0.1" not in text
    assert "nameserver 10.0.0.5\nnameserver 10.0.0.1\n" in text
    assert len(moved.edits) == 1
    assert there(done(second, wants_undo(second, moved.record, parts=PARTS))) == there(before)


def test_a_machine_that_has_got_another_resolver_meanwhile():
    plain, change = set_up(with_docker(debian()))
    record = change.record
    # systemd-resolved was installed, and took the file's place.
    resolved = ubuntu(files={DAEMON: (plain.files[DAEMON] or b"").decode()})
    resolved = msgspec.structs.replace(
        resolved, answers=(ON_53, ON_BRIDGE), bridge_address="172.17.0.1"
    )
    after, second = set_up(resolved, record=record)
    assert [edit.path for edit in second.edits] == ["/etc/systemd/resolved.conf.d/waypost.conf"]
    assert there(done(after, wants_undo(after, second.record, parts=PARTS))) == {
        **there(resolved),
        DAEMON: b'{"log-driver": "journald"}\n',
    }


def test_one_part_alone():
    before = with_docker(debian())
    host = wants_setup(before, Wanted(), Record(), parts=("host",))
    assert [edit.path for edit in host.edits] == [RESOLV_CONF]
    middle = done(before, host)
    docker = wants_setup(middle, Wanted(), host.record, parts=("docker",))
    assert [edit.path for edit in docker.edits] == [DAEMON]
    after = done(middle, docker)
    assert {one.path for one in docker.record.files} == {RESOLV_CONF, DAEMON}

    undo = wants_undo(after, docker.record, parts=("host",))
    assert [edit.path for edit in undo.edits] == [RESOLV_CONF]
    assert [one.path for one in undo.record.files] == [DAEMON]


def test_what_is_refused_changes_nothing_at_all():
    facts = msgspec.structs.replace(with_docker(debian()), answers=(ON_53,))
    with pytest.raises(Rejected):
        set_up(facts)


# -- files that somebody has changed since --------------------------------------------------------------------------


def test_lines_of_others_stay():
    before = debian("search lan\nnameserver 10.0.0.1\noptions rotate ndots:2\n")
    after, change = set_up(with_docker(before))
    assert b"rotate" not in (after.files[RESOLV_CONF] or b"")
    changed = edited(after, RESOLV_CONF, b"search lan\n", b"search lan home\n")
    undo = wants_undo(changed, change.record, parts=("host",))
    (edit,) = undo.edits
    assert edit.after == b"search lan home\nnameserver 10.0.0.1\noptions rotate ndots:2\n"
    assert any("was changed since" in note for note in undo.notes)


def test_a_file_that_somebody_has_written_anew_stays_as_it_is():
    after, change = set_up(with_docker(debian()))
    renewed = msgspec.structs.replace(
        after, files={**after.files, RESOLV_CONF: b"nameserver 10.0.0.7\n"}
    )
    undo = wants_undo(renewed, change.record, parts=("host",))
    assert undo.is_empty
    assert undo.record.of(RESOLV_CONF) is None

    # Setting up again puts us first once more, and undoing that gives the new file back.
    again, second = set_up(renewed, record=change.record)
    assert (again.files[RESOLV_CONF] or b"").endswith(
        b"nameserver 127.0.0.1\nnameserver 10.0.0.7\n"
    )
    assert there(done(again, wants_undo(again, second.record, parts=("host",)))) == there(renewed)


def test_a_change_in_our_own_lines_is_left_to_the_person():
    after, change = set_up(with_docker(debian()))
    mangled = edited(after, RESOLV_CONF, b"# From", b"# from")
    with pytest.raises(Conflict, match=r"/etc/resolv\.conf was changed in the same place"):
        wants_undo(mangled, change.record, parts=PARTS)
    forced = wants_undo(mangled, change.record, parts=PARTS, force=True)
    assert done(mangled, forced).files[RESOLV_CONF] == debian().files[RESOLV_CONF]


def test_a_drop_in_that_somebody_has_changed_is_left_to_the_person():
    after, change = set_up(with_docker(ubuntu()))
    path = "/etc/systemd/resolved.conf.d/waypost.conf"
    changed = edited(after, path, b"DNS=", b"DNSSEC=no\nDNS=")
    with pytest.raises(Conflict, match="remove it yourself, or use -force"):
        wants_undo(changed, change.record, parts=PARTS)
    assert (
        done(changed, wants_undo(changed, change.record, parts=PARTS, force=True)).files[path]
        is None
    )
    gone = msgspec.structs.replace(after, files={**after.files, path: None})
    assert [one.path for one in wants_undo(gone, change.record, parts=PARTS).edits] == [DAEMON]


@pytest.mark.parametrize(
    ("before", "old", "new", "wanted"),
    [
        (b'{"a": 1}', b'"a": 1', b'"a": 2, "b": 3', {"a": 2, "b": 3}),
        (b'{"dns": ["8.8.8.8"], "a": 1}', b'"a": 1', b'"a": 2', {"dns": ["8.8.8.8"], "a": 2}),
        (b'{\n "a": 1\n}', b'"a": 1\n', b'"a": 1,\n "b": 2\n', {"a": 1, "b": 2}),
        # Somebody else's server is not ours to take away.
        (b'{"a": 1}', b"172.17.0.1", b"10.1.1.1", {"dns": ["10.1.1.1"], "a": 1}),
        (None, b"\n}", b',\n  "b": 1\n}', {"b": 1}),
    ],
)
def test_settings_of_the_engine_that_others_made_stay(before, old, new, wanted):
    after, change = set_up(with_docker(debian(), before))
    changed = edited(after, DAEMON, old, new)
    undone = done(changed, wants_undo(changed, change.record, parts=("docker",)))
    assert json.loads(undone.files[DAEMON] or b"") == wanted


def test_force_counts_only_where_nothing_else_helps():
    after, change = set_up(with_docker(debian()))
    changed = edited(after, RESOLV_CONF, b"search lan\n", b"search lan home\n")
    undo = wants_undo(changed, change.record, parts=PARTS, force=True)
    assert b"search lan home\n" in (done(changed, undo).files[RESOLV_CONF] or b"")
    again, _ = set_up(changed, Wanted(force=True), change.record)
    assert again.files[RESOLV_CONF] == changed.files[RESOLV_CONF]


def test_settings_that_somebody_has_broken_since():
    after, change = set_up(with_docker(debian(), b'{"a": 1}'))
    broken = edited(after, DAEMON, b"1}", b"1,}")
    with pytest.raises(Malformed, match="no valid JSON"):
        wants_undo(broken, change.record, parts=PARTS)
    assert [one.path for one in wants_undo(broken, change.record, parts=("host",)).edits] == [
        RESOLV_CONF
    ]
    forced = wants_undo(broken, change.record, parts=PARTS, force=True)
    assert done(broken, forced).files[DAEMON] == b'{"a": 1}'


def test_a_run_that_ended_before_it_changed_anything_has_nothing_to_undo():
    before = with_docker(debian())
    change = wants_setup(before, Wanted(), Record(), parts=PARTS)
    assert wants_undo(before, change.record, parts=PARTS).is_empty


def test_a_difference_is_shown_as_diff_does():
    _, change = set_up(with_docker(ubuntu(), b'{"a":1}'))
    made, changed = map(diff, change.edits)
    assert made.startswith(
        "--- /dev/null\n+++ /etc/systemd/resolved.conf.d/waypost.conf\n@@ -0,0 +1,4 @@\n+# Made"
    )
    assert changed == (
        f"--- {DAEMON}\n+++ {DAEMON}\n@@ -1 +1 @@\n"
        '-{"a":1}\n\\ No newline at end of file\n'
        '+{"dns": ["172.17.0.1"], "a":1}\n\\ No newline at end of file\n'
    )
