"""What may break, each under load on hosts of its own, and what must hold: no acknowledged write is lost, hosts that are
up go on answering reads and names, nothing stale is left, and every key behaves as one atomic key.

    waypost-lab faults [-repeat 20] [-only leader-killed,disk-full] [-program consul]
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .host import Host, fake_clock_library
from .lab import Lab
from .load import Load, Seen
from .place import LabError

_HOLD_S: Final = 7.0
"""How long a fault lasts: longer than a silent machine is given (5 s)."""


def _hold() -> None:
    time.sleep(_HOLD_S)


def _leader(lab: Lab) -> Host:
    found: Host = lab[0].eventually(lab.leader, within_s=30)
    return found


def leader_killed(lab: Lab, load: Load) -> None:
    """kill -9 of the agent that leads; it comes back."""
    host = _leader(lab)
    load.excuse(host)
    load.begin_window()
    host.agent.kill()
    _hold()
    host.agent.start_again()
    load.wait_until_back(host)


def leader_loses_power(lab: Lab, load: Load) -> None:
    """The machine that leads is off, at once and altogether; it comes back."""
    host = _leader(lab)
    load.excuse(host)
    load.begin_window()
    host.power_off()
    _hold()
    host.restart()
    load.wait_until_back(host)


def leader_frozen(lab: Lab, load: Load) -> None:
    """The leader hangs (SIGSTOP) and goes on later, believing that it still leads."""
    host = _leader(lab)
    load.excuse(host)
    load.begin_window()
    host.freeze()
    _hold()
    host.thaw()
    load.wait_until_back(host)


def leader_cut_off(lab: Lab, load: Load) -> None:
    """The leader reaches nobody; it goes on answering stale reads and names."""
    host = _leader(lab)
    load.excuse(host, isolated=True)
    load.begin_window()
    host.cut()
    _hold()
    host.heal()
    load.wait_until_back(host)


def all_restarted(lab: Lab, load: Load) -> None:
    """Every agent is killed at once and started again."""
    for host in lab:
        load.excuse(host)
    load.begin_window()
    lab.on_all(lambda host: host.agent.kill())
    lab.on_all(lambda host: host.agent.start_again())
    for host in lab:
        load.wait_until_back(host)


def one_wiped(lab: Lab, load: Load) -> None:
    """A server loses its data directory, and joins again with a token, as the manual says."""
    host = lab[2]
    load.excuse(host)
    load.begin_window()
    host.wipe()
    _hold()
    more = _join_flags(lab[0]) if host.agent.program == "waypost" else []
    host.agent.start(*more, join=lab[0].address, program=host.agent.program)
    host.eventually(
        lambda: (
            host.run(host.agent.program, "operator", "raft", "list-peers").out.count(" true ") == 3
        ),
        within_s=60,
    )
    # Whatever was registered through the agent that lost everything is lost with it.
    load.forget(host)
    load.wait_until_back(host)


def _join_flags(host: Host) -> list[str]:
    text = host.run("waypost", "token", "create", "-print-join-command").out
    token = re.search(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", text)
    pin = re.search(r"sha256:[0-9a-f]{64}", text)
    if token is None:
        raise LabError(f"no token: {text!r}")
    pinned = [f"-discovery-token-ca-cert-hash={pin[0]}"] if pin is not None else []
    return [f"-join-token={token[0]}", *pinned]


def disk_full(lab: Lab, load: Load) -> None:
    """The disk of the leader is full, and later is not."""
    host = _leader(lab)
    load.excuse(host, isolated=True)
    load.begin_window()
    host.fill_disk()
    _hold()
    host.free_disk()
    load.wait_until_back(host)


def clock_jumps(lab: Lab, load: Load) -> None:
    """The time of day of the leader's agent jumps an hour on, then two back."""
    host = _leader(lab)
    load.begin_window()
    for seconds in (3600.0, -3600.0, 0.0):
        host.agent.shift_clock(seconds)
        time.sleep(_HOLD_S / 2)
    load.wait_for_writes()


Fault = Callable[[Lab, Load], None]
FAULTS: Final[dict[str, Fault]] = {
    "leader-killed": leader_killed,
    "leader-off": leader_loses_power,
    "leader-frozen": leader_frozen,
    "leader-cut-off": leader_cut_off,
    "all-restarted": all_restarted,
    "one-wiped": one_wiped,
    "disk-full": disk_full,
    "clock-jumps": clock_jumps,
}
_DISK_MB: Final = 400
"""etcd takes 64 MB for each piece of its log ahead of time."""


def inject(name: str, *, program: str = "waypost", seed: int = 1) -> Seen:
    """Break one thing on three fresh servers under load; return what clients saw. Raises LabError."""
    if name == "clock-jumps" and fake_clock_library() is None:
        raise LabError("libfaketime is not installed (apt-get install faketime)")
    with Lab(hosts=3, disk_mb=_DISK_MB if name == "disk-full" else 0) as lab:
        try:
            lab.start_agents(program=program, fake_clock=name == "clock-jumps")
            lab[0].eventually(lab.leader, within_s=60)
            for host in lab:
                host.eventually(lambda h=host: h.put("/v1/kv/first", b"x") is True, within_s=60)
            with Load(lab, seed=seed) as load:
                time.sleep(1.5)
                FAULTS[name](lab, load)
                time.sleep(1.5)
                return load.finish()
        except LabError as error:
            tails = "\n".join(f"--- {one.name}\n{one.agent.tail()[-2000:]}" for one in lab)
            raise LabError(f"{error}\n{tails}") from None


def run(*, repeat: int = 1, only: Sequence[str] = (), program: str = "waypost") -> int:
    """Inject faults one after the other and print a table; return the exit status."""
    for name in only:
        if name not in FAULTS:
            raise LabError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
    failed = 0
    head = (
        "fault",
        "runs",
        "writes",
        "gap s: best",
        "median",
        "worst",
        "reads",
        "failed",
        "problems",
    )
    rows: list[tuple[Any, ...]] = [head]
    for name in only or FAULTS:
        seen: list[Seen] = []
        problems: list[str] = []
        for number in range(repeat):
            try:
                one = inject(name, program=program, seed=number + 1)
            except LabError as error:
                problems.append(str(error))
                print(f"{name} {number + 1}: FAILED: {error}", flush=True)
                continue
            seen.append(one)
            problems += one.problems()
            print(f"{name} {number + 1}: {told(one)}", flush=True)
        failed += bool(problems)
        gaps = sorted(one.gap_s for one in seen) or [float("nan")]
        rows.append(
            (
                name, len(seen), sum(one.acknowledged for one in seen), f"{gaps[0]:.2f}",
                f"{statistics.median(gaps):.2f}", f"{gaps[-1]:.2f}",
                sum(one.stale_reads + one.lookups for one in seen),
                sum(len(one.failed_stale_reads) + len(one.failed_lookups) for one in seen),
                len(problems),
            )
        )  # fmt: skip
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(head))]
    print()
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(f"{cell!s:<{width}}" for cell, width in cells).rstrip())
    return 1 if failed else 0


def told(seen: Seen) -> str:
    """Return one line for people."""
    problems = seen.problems()
    return (
        f"{', '.join(seen.struck)}: {seen.acknowledged} writes acknowledged, {len(seen.lost)} lost, {seen.gap_s:.2f} s without any; "
        f"failed: {len(seen.failed_stale_reads)} of {seen.stale_reads} stale reads, "
        f"{len(seen.failed_reads)} of {seen.reads} default reads, "
        f"{len(seen.failed_lookups)} of {seen.lookups} names; {seen.operations} operations on shared keys"
        + (f", undecided {len(seen.undecided)}" if seen.undecided else "")
        + (f"; PROBLEMS: {' | '.join(problems)}" if problems else "; ok")
    )
