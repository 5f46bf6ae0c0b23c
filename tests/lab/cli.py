"""`waypost-lab`: hosts on this machine, to look at and to break."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .host import Host
from .lab import Lab, known_labs, sweep
from .place import LabError

_ABOUT: Final = """\
Hosts on one machine, each with its own address, resolver, Docker engine, agent and nginx.

  waypost-lab up                 three hosts, a cluster of three servers (-hosts 1: one machine alone)
  waypost-lab exec 1 waypost members
  waypost-lab kill 2 etcd; waypost-lab cut 3; waypost-lab heal 3
  waypost-lab scenario           the whole platform on fresh hosts, step by step; status 0 or 1
  waypost-lab faults             everything that may break, under load; status 0 or 1
  waypost-lab down

HOST is a name (consul-1), a number (1) or an address.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="waypost-lab",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.set_defaults(run=run)
        return made

    def on_host(name: str, what: Callable[[Host, Any], None], about: str) -> Any:
        made = command(name, lambda flags: _on_host(flags, what), about)
        made.add_argument("host")
        return made

    up = command("up", _up, "make hosts and start everything on them; they stay until `down`")
    up.add_argument("-hosts", type=int, default=3)
    up.add_argument("-bare", action="store_true", help="no Docker and no agents")
    up.add_argument("-program", choices=("waypost", "consul"), default="waypost")
    up.add_argument("-disk", type=int, default=0, metavar="MB", help="data on a disk of this size")
    command("down", _down, "end and remove every lab of this kind, also what killed ones left")
    command("status", _status, "say what runs")
    shell = command("shell", _shell, "a shell on a host")
    shell.add_argument("host")
    execute = command("exec", _exec, "run a program on a host; `outside` is a client machine")
    execute.add_argument("host")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    log = command("log", _log, "print a log of a host")
    log.add_argument("host")
    log.add_argument("job", nargs="?", default="agent")

    on_host("cut", lambda host, _: host.cut(), "cut a host off from all others")
    on_host("mute", lambda host, _: host.mute(), "lose all that a host sends to others")
    on_host("deafen", lambda host, _: host.deafen(), "lose all that others send to a host")
    on_host("heal", lambda host, _: host.heal(), "end cut, mute, deafen and slow")
    slow = on_host(
        "slow",
        lambda host, flags: host.slow(seconds(flags.delay), loss=flags.loss),
        "delay what it sends, and lose some of it",
    )
    slow.add_argument("delay", help="50ms, 0.5s")
    slow.add_argument("loss", nargs="?", type=float, default=0.0, help="a share: 0.05")
    kill = on_host("kill", lambda host, flags: host.kill(flags.part), "kill -9 a part, or all")
    freeze = on_host("freeze", lambda host, flags: host.freeze(flags.part), "SIGSTOP a part")
    thaw = on_host("thaw", lambda host, flags: host.thaw(flags.part), "SIGCONT a part")
    for one, without in ((kill, "cut the power"), (freeze, "agent and etcd"), (thaw, "the same")):
        parts = ("agent", "etcd", "nginx", "docker", "consul", "")
        one.add_argument("part", nargs="?", default="", choices=parts, help=f"none: {without}")
    on_host("wipe", lambda host, _: host.wipe(), "end the agent and lose its data directory")
    on_host("restart", _restart, "power off, boot, start again; after wipe: start again")

    scenario = command("scenario", _scenario, "the whole platform, step by step, on fresh hosts")
    scenario.add_argument("-hosts", type=int, default=3)
    faults = command("faults", _faults, "break what can break, under load, on fresh hosts")
    faults.add_argument("-repeat", type=int, default=1)
    faults.add_argument("-only", default="", help="names, separated by commas")
    faults.add_argument("-program", choices=("waypost", "consul"), default="waypost")
    faults.add_argument("-flag", action="append", default=[], help="one more flag of the agents")
    faults.add_argument(
        "-out", type=Path, help="a line of JSON for each run; goes on where it ends"
    )
    table = command("table", _table, "print the table of runs that `faults -out` wrote")
    table.add_argument("file", type=Path, nargs="+")
    flags = parser.parse_args(arguments)
    try:
        return int(flags.run(flags))
    except LabError as error:
        print(f"waypost-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def seconds(text: str) -> float:
    """Return a duration such as `50ms` in seconds. Raises LabError."""
    found = re.fullmatch(r"([0-9.]+)(ms|s)", text)
    if found is None:
        raise LabError(f"{text!r} is no duration: 50ms, 0.5s")
    return float(found[1]) * (0.001 if found[2] == "ms" else 1.0)


def _running() -> Lab:
    sweep()
    kept = [lab for lab in known_labs() if lab._owner is None]
    if not kept:
        raise LabError("there is no lab; `waypost-lab up` makes one")
    return kept[0]


def _up(flags: Any) -> int:
    if any(lab._owner is None for lab in known_labs()):
        raise LabError("there is a lab already; `waypost-lab down` removes it")
    lab = Lab(hosts=flags.hosts, keep=True, disk_mb=flags.disk, link=True)
    try:
        lab.up()
        if not flags.bare:
            print("starting Docker, making the images", flush=True)
            lab.start_docker()
            print("starting the agents", flush=True)
            lab.start_agents(program=flags.program)
    except BaseException:
        lab.close()
        raise
    _print_status(lab)
    print(f"\nIn a browser: http://{lab[0].address}:8500/ui/    Logs: {lab.folder}/h*/log/")
    return 0


def _down(_: Any) -> int:
    for lab in known_labs():
        if lab._owner is None or lab.is_abandoned:
            lab.close()
            print(f"removed {lab.id}")
    return 0


def _status(_: Any) -> int:
    _print_status(_running())
    return 0


def _print_status(lab: Lab) -> None:
    print(f"{'Host':10} {'Address':13} {'Power':6} {'Link':11} {'Agent':8} {'Leader':18} Runs")
    for host in lab:
        broken = {
            "cut": host.is_cut,
            "mute": host.is_mute,
            "deaf": host.is_deaf,
            f"+{host.slowed_s:g} s": host.slowed_s,
        }
        link = " ".join(word for word, is_so in broken.items() if is_so) or "ok"
        agent, leader, names = "-", "-", []
        if host.is_on:
            known = host.jobs()
            job = known["jobs"].get("agent")
            if job is not None:
                agent = "runs" if job["status"] is None else f"ended {job['status']}"
            names = sorted({name for _, name in known["programs"]})
            leader = host.agent.leader() or "-" if agent == "runs" else "-"
        power = "on" if host.is_on else "off"
        runs = " ".join(names)
        print(f"{host.name:10} {host.address:13} {power:6} {link:11} {agent:8} {leader:18} {runs}")


def _shell(flags: Any) -> int:
    flags.argv = ["bash", "--norc", "-i"]
    return _exec(flags, {"PS1": f"{flags.host}:\\w# "})


def _exec(flags: Any, more: dict[str, str] | None = None) -> int:
    lab = _running()
    argv = flags.argv[1:] if flags.argv[:1] == ["--"] else flags.argv
    if not argv:
        raise LabError("which program?")
    place = lab.outside if flags.host == "outside" else lab.host(flags.host).place
    command = place.command(argv)
    os.execvpe(command[0], command, {**place.environment, **(more or {})})


def _log(flags: Any) -> int:
    sys.stdout.write(_running().host(flags.host).log(flags.job))
    return 0


def _on_host(flags: Any, what: Callable[[Host, Any], None]) -> int:
    what(_running().host(flags.host), flags)
    return 0


def _restart(host: Host, _: Any) -> None:
    if host.is_on and host.agent.command and not host.agent.runs:
        host.agent.start_again()
    else:
        host.restart()


def _scenario(flags: Any) -> int:
    from .scenario import run

    return run(hosts=flags.hosts)


def _faults(flags: Any) -> int:
    from .trials import run

    chosen = tuple(name for name in flags.only.split(",") if name)
    return run(
        repeat=flags.repeat, only=chosen, program=flags.program, flags=flags.flag, out=flags.out
    )


def _table(flags: Any) -> int:
    from .trials import read, table

    print(table(one for file in flags.file for one in read(file)))
    return 0
