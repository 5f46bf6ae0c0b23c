"""Faults, many times, and what came of it: no acknowledged write is lost, hosts that are up go on answering, nothing stale
is left, every key behaves as one atomic key, and afterwards all is as before.

Each run is a line of JSON in the file that `-out` names: an interrupted series goes on where it stopped, and several files
make one table. A lab is used again as long as its runs leave it well; after one that did not, its logs are kept and a
new lab is made.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from .faults import FAULTS, Fault
from .host import Host, fake_clock_library
from .lab import Lab
from .load import Load, Seen
from .place import LabError

_WARM_S: Final = 1.0
_COOL_S: Final = 0.5


class Run(msgspec.Struct, kw_only=True):
    """One injection of one fault."""

    fault: str
    number: int
    program: str
    flags: list[str]
    began: str
    """UTC."""
    took_s: float
    seen: Seen | None = None
    failure: str = ""
    """Why it could not be carried through; then nothing was seen."""
    logs: str = ""
    """Where the hosts' logs are, of a run with problems."""

    @property
    def problems(self) -> list[str]:
        return [self.failure] if self.seen is None else self.seen.problems()


class Bench:
    """The lab that faults are tried in; another is made when a fault needs one, or the last was left broken."""

    def __init__(self, *, program: str = "waypost", flags: Sequence[str] = ()) -> None:
        self.program = program
        self.flags = tuple(flags)
        self._lab: Lab | None = None
        self._kind: tuple[Any, ...] = ()

    def close(self) -> None:
        """Remove the lab."""
        lab, self._lab = self._lab, None
        if lab is not None:
            lab.close()

    def inject(self, name: str, *, seed: int = 1) -> Seen:
        """Break one thing under load; return what clients saw. Raises LabError."""
        fault = FAULTS[name]
        lab = self._ready(fault)
        is_balanced = self.program == "waypost"
        with Load(lab, seed=seed, is_balanced=is_balanced) as load:
            time.sleep(_WARM_S)
            fault.run(lab, load)
            time.sleep(_COOL_S)
            seen = load.finish()
        load.clean()
        _wait_until_well(lab)
        return seen

    def _ready(self, fault: Fault) -> Lab:
        kind = (fault.disk_mb, fault.has_fake_clock)
        if self._lab is not None and self._kind != kind:
            self.close()
        if self._lab is None:
            if fault.has_fake_clock and fake_clock_library() is None:
                raise LabError("libfaketime is not installed (apt-get install faketime)")
            self._kind = kind
            self._lab = Lab(hosts=3, disk_mb=fault.disk_mb)
            self._lab.__enter__()
            self._lab.start_agents(
                *self.flags, program=self.program, fake_clock=fault.has_fake_clock
            )
            _wait_until_well(self._lab)
        return self._lab

    def logs(self) -> Iterator[tuple[str, Path]]:
        """Return name and log folder of each host."""
        for host in self._lab or ():
            yield host.name, host.log_folder


def _wait_until_well(lab: Lab) -> None:
    """Return once there are three voters and all hosts take writes and agree on who leads. Raises LabError."""
    for host in lab:
        host.eventually(lambda h=host: h.put("/v1/kv/again/well", b"x") is True, within_s=90)
        host.eventually(lambda h=host: _voters(h), len(lab), within_s=90)
    lab[0].eventually(lambda: len({one.agent.leader() for one in lab} - {""}), 1, within_s=60)


def _voters(host: Host) -> int:
    found = host.get("/v1/operator/raft/configuration")["Servers"]
    return sum(one["Voter"] for one in found)


def inject(name: str, *, program: str = "waypost", seed: int = 1) -> Seen:
    """Break one thing on three fresh servers under load; return what clients saw. Raises LabError."""
    with contextlib.closing(Bench(program=program)) as bench:
        try:
            return bench.inject(name, seed=seed)
        except LabError as error:
            ends = (f"--- {host}\n{_end_of(folder)}" for host, folder in bench.logs())
            raise LabError("\n".join([str(error), *ends])) from None


def _end_of(folder: Path) -> str:
    return (folder / "agent.log").read_text(errors="replace")[-2000:]


def run(
    *,
    repeat: int = 1,
    only: Sequence[str] = (),
    program: str = "waypost",
    flags: Sequence[str] = (),
    out: Path | None = None,
) -> int:
    """Inject faults one after the other and print a table, also when interrupted; return the exit status."""
    chosen = list(only) or [name for name, one in FAULTS.items() if program in one.programs]
    for name in chosen:
        if name not in FAULTS:
            raise LabError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
    runs = [
        one
        for one in read(out)
        if one.fault in chosen and (one.program, one.flags) == (program, list(flags))
    ]
    done = {(one.fault, one.number) for one in runs}
    try:
        with contextlib.closing(Bench(program=program, flags=flags)) as bench:
            for name in chosen:
                for number in range(1, repeat + 1):
                    if (name, number) not in done:
                        one = _try(bench, name, number, out)
                        runs.append(one)
                        print(f"{name} {number}: {told(one)}", flush=True)
    finally:
        print("\n" + table(runs), flush=True)
    return 1 if any(one.problems for one in runs) else 0


def _try(bench: Bench, name: str, number: int, out: Path | None) -> Run:
    began = time.monotonic()
    one = Run(
        fault=name, number=number, program=bench.program, flags=list(bench.flags),
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), took_s=0.0,
    )  # fmt: skip
    try:
        one.seen = bench.inject(name, seed=number)
    except LabError as error:
        one.failure = str(error)
    except Exception:  # noqa: BLE001 - one run that cannot be carried through does not end a night of them
        one.failure = traceback.format_exc()
    one.took_s = round(time.monotonic() - began, 1)
    if one.problems:
        one.logs = _keep_logs(bench, out, f"{bench.program}-{name}-{number}")
    if one.seen is None or one.seen.is_damaged:
        bench.close()
    if out is not None:
        with out.open("ab") as file:
            file.write(msgspec.json.encode(one) + b"\n")
    return one


def _keep_logs(bench: Bench, out: Path | None, name: str) -> str:
    if out is None:
        return ""
    folder = out.with_name(f"{out.name}.logs") / name
    for host, source in bench.logs():
        shutil.copytree(source, folder / host, dirs_exist_ok=True)
    return os.fspath(folder)


def read(file: Path | None) -> list[Run]:
    """Return the runs that a file holds; none where there is no file. Raises LabError."""
    if file is None or not file.exists():
        return []
    try:
        return [msgspec.json.decode(line, type=Run) for line in file.read_bytes().splitlines()]
    except msgspec.MsgspecError as error:
        raise LabError(f"{file}: {error}") from None


def told(one: Run) -> str:
    """Return one line for people."""
    seen = one.seen
    if seen is None:
        return f"FAILED after {one.took_s} s: {one.failure} {one.logs}"
    problems = seen.problems()
    return (
        f"{', '.join(seen.struck) or 'all'}: {seen.acknowledged} writes acknowledged, {len(seen.lost)} lost, "
        f"{seen.gap_s:.2f} s without any, {seen.refused} refused (after at most {seen.slowest_refusal_s:.1f} s); "
        f"gone after {_seconds(seen.gone_after_s)}"
        + (f", own {_seconds(seen.own_gone_after_s)}" if seen.own_gone_after_s else "")
        + f", back after {_seconds(seen.back_after_s)}; "
        f"{seen.failed_answers} of {seen.answers} answers failed; "
        f"{seen.operations} operations on shared keys, {seen.locks} of locks"
        + (f", undecided {len(seen.undecided)}" if seen.undecided else "")
        + f"; {one.took_s} s; "
        + (f"PROBLEMS: {' | '.join(problems)} {one.logs}" if problems else "ok")
    )


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


# -- the table -------------------------------------------------------------------------------------------------------

_HEAD: Final = (
    "fault", "runs", "bad", "writes", "lost", "no write for, s", "instances gone after, s", "all as before after, s",
    "answers", "failed", "stale left", "operations", "not atomic",
)  # fmt: skip


def table(runs: Iterable[Run]) -> str:
    """Return what came of the runs, a line for each fault: minimum / median / 90th percentile / maximum of times."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for one in runs:
        program = " ".join([one.program, *one.flags])
        groups.setdefault((program, one.fault), []).append(one)
    lines = []
    for program in dict.fromkeys(program for program, _ in groups):
        rows: list[tuple[str, ...]] = [_HEAD]
        rows += [_row(fault, group) for (whose, fault), group in groups.items() if whose == program]
        lines += [f"{program}:", "", *_markdown(rows), ""]
    took_s = sum(one.took_s for group in groups.values() for one in group)
    count = sum(map(len, groups.values()))
    lines.append(f"{count} runs, {took_s / 60:.0f} min, {took_s / max(count, 1):.1f} s each")
    return "\n".join(lines)


def _row(fault: str, runs: list[Run]) -> tuple[str, ...]:
    seen = [one.seen for one in runs if one.seen is not None]
    stale = sum(len(one.left_over) + len(one.missing) + len(one.differs) for one in seen)
    cells = (
        fault,
        len(runs),
        sum(bool(one.problems) for one in runs),
        sum(one.acknowledged for one in seen),
        sum(len(one.lost) for one in seen),
        spread([one.gap_s for one in seen]),
        spread(
            [
                found
                for one in seen
                if (found := one.gone_after_s or one.own_gone_after_s) is not None
            ]
        ),
        spread([one.back_after_s for one in seen if one.back_after_s is not None]),
        sum(one.answers for one in seen),
        sum(one.failed_answers for one in seen),
        stale,
        sum(one.operations for one in seen),
        sum(len(one.not_linearizable) for one in seen),
    )
    return tuple(map(str, cells))


def spread(values: Sequence[float]) -> str:
    """Return minimum, median, 90th percentile and maximum; the nearest of the values, none between two."""
    if not values:
        return "–"
    ordered = sorted(values)
    picked = [ordered[max(math.ceil(share * len(ordered)) - 1, 0)] for share in (0, 0.5, 0.9, 1)]
    return " / ".join(f"{value:.2f}" for value in picked)


def _markdown(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
