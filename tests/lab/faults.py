"""What may break. Each function breaks one thing on three servers under load, and mends it; `trials` says what must hold.

waypost-lab faults [-repeat 20] [-only leader-killed,disk-full] [-program consul] [-out FILE]
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from .host import Host
from .lab import Lab
from .load import Load
from .place import LabError

_HOLD_S: Final = 5.0
"""How long a fault lasts that others need not notice."""
_SLOW_S: Final = 0.2
_LOSS: Final = 0.05
_OWN: Final = "own"
_OWN_INTERVAL_S: Final = 0.2
_OWN_WITHIN_S: Final = 1.0 + _OWN_INTERVAL_S
_BACK_S: Final = 90.0
"""Real Consul with its default timing needs a while."""


def _hold() -> None:
    time.sleep(_HOLD_S)


def _leader(lab: Lab) -> Host:
    found: Host = lab[0].eventually(lab.leader, within_s=30)
    return found


def _follower(lab: Lab) -> Host:
    leader = _leader(lab)
    return next(one for one in lab if one is not leader)


def _kill(load: Load, host: Host) -> None:
    load.excuse(host)
    load.begin_window()
    host.agent.kill()
    load.wait_until_gone(host)
    load.end_fault()
    host.agent.start_again()
    load.wait_until_back(host, within_s=_BACK_S)


def leader_killed(lab: Lab, load: Load) -> None:
    """kill -9 of the agent that leads, until its instances are gone everywhere; it comes back."""
    _kill(load, _leader(lab))


def follower_killed(lab: Lab, load: Load) -> None:
    """The same with an agent that does not lead."""
    _kill(load, _follower(lab))


def leader_loses_power(lab: Lab, load: Load) -> None:
    """The machine that leads is off, at once and altogether; it comes back."""
    host = _leader(lab)
    load.excuse(host, without_balancer=True)
    load.begin_window()
    host.power_off()
    load.wait_until_gone(host)
    load.end_fault()
    host.restart()
    load.wait_until_back(host, within_s=_BACK_S)


def leaders_store_killed(lab: Lab, load: Load) -> None:
    """kill -9 of the etcd beside the leader; its agent goes on and starts it again."""
    host = _leader(lab)
    load.excuse(host, isolated=True)
    load.begin_window()
    host.kill("etcd")
    load.end_fault()
    _hold()
    load.wait_until_back(host, within_s=_BACK_S)


def leader_frozen(lab: Lab, load: Load) -> None:
    """The leader hangs (SIGSTOP) and goes on later, believing that it still leads."""
    host = _leader(lab)
    load.excuse(host)
    load.begin_window()
    host.freeze()
    load.wait_until_gone(host)
    load.end_fault()
    host.thaw()
    load.wait_until_back(host, within_s=_BACK_S)


def leader_cut_off(lab: Lab, load: Load) -> None:
    """The leader reaches nobody and is reached by nobody; it goes on answering stale reads and names."""
    host = _leader(lab)
    load.excuse(host, isolated=True, without_balancer=True)
    load.begin_window()
    host.cut()
    load.wait_until_gone(host)
    load.end_fault()
    host.heal()
    load.wait_until_back(host, within_s=_BACK_S)


def leader_mute(lab: Lab, load: Load) -> None:
    """Nothing that the leader sends arrives; what others send reaches it."""
    host = _leader(lab)
    load.excuse(host, isolated=True, without_balancer=True)
    load.begin_window()
    host.mute()
    load.wait_until_gone(host)
    load.end_fault()
    host.heal()
    load.wait_until_back(host, within_s=_BACK_S)


def leader_deaf(lab: Lab, load: Load) -> None:
    """Nothing reaches the leader; what it sends arrives."""
    host = _leader(lab)
    load.excuse(host, isolated=True, without_balancer=True)
    load.begin_window()
    host.deafen()
    load.wait_until_gone(host)
    load.end_fault()
    host.heal()
    load.wait_until_back(host, within_s=_BACK_S)


def follower_deaf(lab: Lab, load: Load) -> None:
    """Nothing reaches a follower; what it sends arrives."""
    host = _follower(lab)
    load.excuse(host, isolated=True, without_balancer=True)
    load.begin_window()
    host.deafen()
    _hold()
    load.end_fault()
    host.heal()
    load.wait_until_back(host, within_s=_BACK_S)


def leader_slow(lab: Lab, load: Load) -> None:
    """All that the leader sends is late by 0.2 s, and one frame in twenty is lost."""
    host = _leader(lab)
    load.begin_window()
    host.slow(_SLOW_S, loss=_LOSS)
    _hold()
    load.end_fault()
    host.heal()
    load.wait_until_back(*lab, within_s=_BACK_S)


def all_restarted(lab: Lab, load: Load) -> None:
    """Every agent is killed at once and started again."""
    for host in lab:
        load.excuse(host)
    load.begin_window()
    lab.on_all(lambda host: host.agent.kill())
    load.end_fault()
    lab.on_all(lambda host: host.agent.start_again())
    load.wait_until_back(*lab, within_s=_BACK_S)


def without_quorum(lab: Lab, load: Load) -> None:
    """Two of three are killed, the leader among them; the third goes on alone. Then they are started again."""
    gone = _leader(lab)
    keeper, also_gone = (one for one in lab if one is not gone)
    with keeper.place.new_socket() as instance:
        _register_own(lab, keeper, instance)
        for host in (gone, also_gone):
            load.excuse(host)
        load.excuse(keeper, isolated=True)
        load.begin_window()
        lab.on_all(lambda host: host.agent.kill() if host is not keeper else None)
        _hold()
    _wait_until_own_is_gone(load, keeper)
    reply = keeper.http("/v1/kv/without/quorum", method="PUT", body=b"x", timeout_s=15)
    if reply.status != 500:
        raise LabError(f"a write without a quorum: {reply.status} {reply.text!r}")
    load.end_fault(gap_begins=True)
    lab.on_all(lambda host: host.agent.start_again() if host is not keeper else None)
    load.wait_until_back(*lab, within_s=_BACK_S)
    for host in lab:
        with contextlib.suppress(LabError):
            host.eventually(lambda h=host: not _knows_own(h))
        if _knows_own(host):
            load.seen.left_over.append(f"{host.name} gives out {_OWN}, which ended")
    keeper.put(f"/v1/agent/service/deregister/{_OWN}")


def _register_own(lab: Lab, keeper: Host, instance: socket.socket) -> None:
    """Register an instance whose check connects to it. It is there until the socket is closed."""
    instance.bind(("127.0.0.1", 0))
    instance.listen(1000)
    port = instance.getsockname()[1]
    check = {"TCP": f"127.0.0.1:{port}", "Interval": f"{_OWN_INTERVAL_S}s"}
    keeper.put("/v1/agent/service/register", {"Name": _OWN, "Port": port, "Check": check})
    for host in lab:
        host.eventually(lambda h=host: _knows_own(h))


def _knows_own(host: Host) -> bool:
    """Whether a host gives the instance out, asked in any way."""
    rows = host.get(f"/v1/health/service/{_OWN}?passing&stale")
    return bool(rows) or bool(host.dig(f"{_OWN}.service.dc1.consul"))


def _wait_until_own_is_gone(load: Load, keeper: Host) -> None:
    began = time.monotonic()
    while _knows_own(keeper) and time.monotonic() - began < _OWN_WITHIN_S:
        time.sleep(0.02)
    load.seen.own_gone_after_s = time.monotonic() - began
    if _knows_own(keeper):
        text = f"{keeper.name} gives out {_OWN} {_OWN_WITHIN_S} s after it ended, without a quorum"
        load.seen.left_over.append(text)


def one_wiped(lab: Lab, load: Load) -> None:
    """A server loses its data directory, and joins again with a token, as the manual says."""
    host, other = lab[2], lab[0]
    load.excuse(host, without_balancer=True)
    load.begin_window()
    host.wipe()
    load.wait_until_gone(host)
    more = _join_flags(other) if host.agent.program == "waypost" else []
    load.end_fault()
    host.agent.start(*host.agent.more, *more, join=other.address, program=host.agent.program)
    host.eventually(
        lambda: (
            host.run(host.agent.program, "operator", "raft", "list-peers").out.count(" true ") == 3
        ),
        within_s=60,
    )
    # Whatever was registered through the agent that lost everything is lost with it.
    load.forget(host)
    load.wait_until_back(host, within_s=_BACK_S)


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
    load.end_fault()
    host.free_disk()
    load.wait_until_back(host, within_s=_BACK_S)


def clock_jumps(lab: Lab, load: Load) -> None:
    """The time of day of the leader's agent and store jumps an hour on, then two back."""
    host = _leader(lab)
    load.begin_window()
    for seconds in (3600.0, -3600.0, 0.0):
        host.agent.shift_clock(seconds)
        time.sleep(_HOLD_S / 2)
    load.end_fault()
    load.wait_until_back(*lab, within_s=_BACK_S)


class Fault(NamedTuple):
    """A thing that breaks, and what the lab has to have for it."""

    run: Callable[[Lab, Load], None]
    disk_mb: int = 0
    has_fake_clock: bool = False
    programs: tuple[str, ...] = ("waypost", "consul")


FAULTS: Final[dict[str, Fault]] = {
    "leader-killed": Fault(leader_killed),
    "leader-off": Fault(leader_loses_power),
    "leader-frozen": Fault(leader_frozen),
    "leader-cut-off": Fault(leader_cut_off),
    "all-restarted": Fault(all_restarted),
    "one-wiped": Fault(one_wiped),
    # etcd takes 64 MB for each piece of its log ahead of time.
    "disk-full": Fault(disk_full, disk_mb=400),
    "clock-jumps": Fault(clock_jumps, has_fake_clock=True),
    "leader-mute": Fault(leader_mute),
    "leader-deaf": Fault(leader_deaf),
    "follower-deaf": Fault(follower_deaf),
    "no-quorum": Fault(without_quorum),
    "leader-slow": Fault(leader_slow),
    "follower-killed": Fault(follower_killed),
    "store-killed": Fault(leaders_store_killed, programs=("waypost",)),
}
