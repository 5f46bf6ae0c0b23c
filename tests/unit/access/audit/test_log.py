from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from waypost.access.audit.log import AuditLog, LogSettings, Rotation
from waypost.access.audit.past import find_event
from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed, Unavailable


class Wall(SystemClock):
    """A clock whose wall time is set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.wall_s = 1_700_000_000.0

    def wall(self) -> float:
        return self.wall_s


def older(path: Path) -> list[Path]:
    return sorted(one for one in path.parent.iterdir() if one != path)


def test_a_file_turns_over_before_it_is_too_large_and_lines_stay_whole(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Wall()
    file = Rotation(LogSettings(path=str(path), max_size_bytes=30), clock=clock)
    file.open()
    for number in range(5):
        file.write(b"line %05d...\n" % number)
        clock.wall_s += 1
    file.close()
    assert path.read_bytes() == b"line 00004...\n"
    assert [one.read_bytes().count(b"\n") for one in older(path)] == [2, 2]
    assert older(path)[0].name == "audit-2023-11-14T22-13-22.000.log"
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, *older(path))} == {0o600}


def test_only_so_many_old_files_stay(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Wall()
    file = Rotation(LogSettings(path=str(path), max_size_bytes=1, max_backups=2), clock=clock)
    file.open()
    for number in range(6):
        file.write(b"%d\n" % number)
        for one in older(path):
            os.utime(one, ns=(int(one.read_bytes()) * 10**9,) * 2)
    file.close()
    assert sorted(one.read_bytes() for one in older(path)) == [b"3\n", b"4\n"]


def test_old_files_go_when_they_are_too_old(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Wall()
    file = Rotation(LogSettings(path=str(path), max_size_bytes=1, max_age_s=100), clock=clock)
    file.open()
    file.write(b"a\n")
    file.write(b"b\n")
    (first,) = older(path)
    os.utime(first, (clock.wall_s - 200,) * 2)
    file.write(b"c\n")
    file.close()
    assert [one.read_bytes() for one in older(path)] == [b"b\n"]


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text("before\n")
    path.chmod(0o644)
    file = Rotation(LogSettings(path=str(path)), clock=Wall())
    file.open()
    file.write(b"after\n")
    file.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "before\nafter\n"


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    file = Rotation(LogSettings(path=str(tmp_path / "dir")), clock=Wall())
    with pytest.raises(Malformed, match=r"audit log .*/dir"):
        file.open()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Malformed):
        Rotation(LogSettings(path=str(tmp_path / "link")), clock=Wall()).open()
    assert not (tmp_path / "elsewhere").exists()


async def test_what_was_put_is_in_the_file_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(LogSettings(path=str(path)), clock=SystemClock())
    log.open()
    for number in range(1000):
        assert log.put(b"%d\n" % number, is_late=True)
    await log.close()
    assert path.read_text().split() == [str(n) for n in range(1000)]


async def test_written_waits_until_the_file_has_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(LogSettings(path=str(path), blocks=True), clock=SystemClock())
    log.open()
    log.put(b"a\n", is_late=True)
    await log.written()
    assert path.read_text() == "a\n"
    await log.close()


async def test_a_full_buffer_drops_beginnings_first_and_counts(tmp_path: Path) -> None:
    log = AuditLog(LogSettings(path=str(tmp_path / "a.log"), buffer_events=20), clock=SystemClock())
    # Not opened: nothing is written, as with a disk that hangs.
    early = [log.put(b"early\n", is_late=False) for _ in range(25)]
    late = [log.put(b"late\n", is_late=True) for _ in range(5)]
    assert early.count(True) == 18
    assert late == [True, True, False, False, False]
    assert log.dropped == 7 + 3


async def test_a_disk_that_is_full_fails_who_waits_and_nothing_is_torn(tmp_path: Path) -> None:
    log = AuditLog(LogSettings(path="/dev/full", blocks=True), clock=SystemClock())
    log.open()
    log.put(b"a\n", is_late=True)
    with pytest.raises(Unavailable, match="audit log cannot be written"):
        await log.written()
    await log.close()


def test_a_past_request_is_found_in_older_files_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    (tmp_path / "audit-2023-11-14T22-13-22.000.log").write_text(
        '{"auditID":"a","stage":"RequestReceived"}\n{"auditID":"a","stage":"ResponseComplete"}\n'
    )
    path.write_text('{"auditID":"b","stage":"ResponseComplete"}\n')
    found = find_event(path, "a")
    assert found is not None
    assert found["stage"] == "ResponseComplete"
    assert find_event(path, "c") is None
