from __future__ import annotations

import os
import stat

import pytest

from waypost.base.errors import Conflict, Malformed, Unavailable
from waypost.drivers.host import files
from waypost.drivers.host.records import Edit, Step, Wanted
from waypost.drivers.host.setup import PARTS, perform, wants_setup, wants_undo
from waypost.drivers.host.undo import Kept, Record

from .machines import ubuntu


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_its_mode_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("a")
    path.chmod(0o640)
    assert files.write(path, b"b") == ()
    assert path.read_text() == "b"
    assert mode_of(path) == 0o640
    assert names(tmp_path) == ["resolv.conf"]


def test_a_link_stays_and_leads_to_the_new_contents(tmp_path):
    real, link = tmp_path / "real", tmp_path / "resolv.conf"
    real.write_text("a")
    link.symlink_to("real")
    files.write(link, b"b")
    assert link.is_symlink()
    assert real.read_text() == "b"


def test_directories_are_made_and_told(tmp_path):
    old = os.umask(0o077)
    try:
        made = files.write(tmp_path / "a/b/c.conf", b"x")
    finally:
        os.umask(old)
    assert made == (str(tmp_path / "a/b"), str(tmp_path / "a"))
    assert mode_of(tmp_path / "a/b/c.conf") == 0o644
    (tmp_path / "a/other").touch()
    files.write(tmp_path / "a/b/c.conf", None)
    files.remove_directories(made)
    assert names(tmp_path / "a") == ["other"]


def test_all_or_none(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/one").write_text("1")
    (tmp_path / "file").touch()
    edits = [
        Edit(part="host", path="/etc/one", before=b"1", after=b"2"),
        Edit(part="host", path="/etc/new/two", before=None, after=b"2"),
        Edit(part="host", path="/file/three", before=None, after=b"3"),
    ]
    with pytest.raises(Unavailable, match="three"):
        files.apply(edits, root=tmp_path)
    assert (tmp_path / "etc/one").read_text() == "1"
    assert names(tmp_path / "etc") == ["one"]


def test_a_record_comes_back_as_it_was_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "dns.json"
    assert files.read_record(path) == Record()
    record = Record(
        files=(
            Kept(part="docker", path="/x", before=b"\xff", after=None, made_directories=("/a",)),
        ),
        steps=(Step(part="host", what="restart x", why="y"),),
    )
    files.write_record(path, record)
    assert mode_of(path) == 0o600
    assert files.read_record(path) == record
    files.write_record(path, Record())
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", '{"version": 2}', '{"files": [{}]}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "dns.json"
    path.write_text(text)
    with pytest.raises(Malformed, match=r"dns\.json"):
        files.read_record(path)


def test_only_one_at_a_time(tmp_path):
    with files.locked(tmp_path / "setup"):
        assert mode_of(tmp_path / "setup") == 0o700
        with pytest.raises(Conflict, match="another waypost"), files.locked(tmp_path / "setup"):
            raise AssertionError


def _on_disk(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_doing_and_undoing_leaves_the_disk_as_it_was(tmp_path):
    root, record_path = tmp_path / "root", tmp_path / "dns.json"
    facts = ubuntu()
    for path, data in facts.files.items():
        files.write(files.below(root, path), data)
    before = _on_disk(root)
    change = wants_setup(facts, Wanted(), Record(), parts=("host",))
    perform(change, record_path=record_path, root=root)
    record = files.read_record(record_path)
    assert (root / "etc/systemd/resolved.conf.d/waypost.conf").exists()

    (kept,) = record.files
    now = files.read(files.below(root, kept.path)) or b""
    after = ubuntu(files={kept.path: now.decode()})
    again = wants_setup(after, Wanted(), record, parts=("host",))
    assert again.is_empty
    perform(again, record_path=record_path, root=root)
    assert files.read_record(record_path) == record

    perform(wants_undo(after, record, parts=PARTS), record_path=record_path, root=root)
    assert _on_disk(root) == before
    assert not (root / "etc/systemd").exists()
    assert not record_path.exists()


def test_a_failure_leaves_files_and_record_as_they_were(tmp_path):
    root, record_path = tmp_path / "root", tmp_path / "dns.json"
    root.mkdir()
    (root / "etc").touch()  # no directory can be made here
    change = wants_setup(ubuntu(), Wanted(), Record(), parts=("host",))
    with pytest.raises(Unavailable):
        perform(change, record_path=record_path, root=root)
    assert _on_disk(root) == {"etc": b""}
    assert not record_path.exists()
