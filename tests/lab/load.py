"""What clients on every host do while something breaks, and what they saw of it.

All of it runs on one event loop in a thread of its own, over sockets that belong to the hosts. On each host:

- a *writer* that starts a new key every 50 ms, whatever became of those before (open loop: a slow answer does not hide
  a gap), each created with `?cas=0`;
- two clients that read, write, compare-and-set, lock and unlock shared keys and end their sessions, and note when and
  with what outcome;
- a *registrar* that registers instances with TTL checks, keeps them alive, and deregisters them;
- a *reader* of a service that every host has an instance of, over HTTP with and without `?stale`, and over DNS, which
  also notes which hosts' instances are given out;
- a *visitor* of a web service behind the host's balancer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import math
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Self

import dns.message
import dns.rcode
import msgspec

from .host import Host
from .lab import Lab
from .linearizability import Operation, TooHard, first_contradiction, unknown
from .place import LabError, Place

TTL_S: Final = 3
_WRITE_EVERY_S: Final = 0.05
_READ_EVERY_S: Final = 0.1
_CLIENT_PAUSE_S: Final = 0.05
_MOST_OPEN: Final = 200
"""Writes of one host that wait for an answer; then it starts no new ones."""
_TIMEOUT_S: Final = 12.0
"""Longer than any server keeps a request that waits for a leader."""
_SHARED_KEYS: Final = 3
_END_SESSION: Final = 0.04
"""How often a client of shared keys ends its session instead."""
_GONE_WITHIN_S: Final = {"waypost": 12.0, "consul": 60.0}
"""How long others may give out the instances of a machine that is down: failure timeout (5 s), election and some more.
Of Consul, which promises nothing, it is measured."""
STEADY: Final = "steady"
CHURN: Final = "churn"
WEB: Final = "web"
_WEB_PORT: Final = 9000


class Seen(msgspec.Struct, kw_only=True):
    """What a load saw, from `Load.begin_window` on where a time matters."""

    struck: list[str] = msgspec.field(default_factory=list)
    """The hosts of which less was expected for a while."""
    acknowledged: int = 0
    lost: list[str] = msgspec.field(default_factory=list)
    """Acknowledged writes that a host does not have afterwards."""
    denied: list[str] = msgspec.field(default_factory=list)
    """Keys that were new and were refused as if they had been there: written twice, or by somebody else."""
    refused: int = 0
    """Writes that hosts which were up answered with an error."""
    slowest_refusal_s: float = 0.0
    gap_s: float = 0.0
    """The longest time in which no write was acknowledged on any host."""
    gone_after_s: float | None = None
    """How long the others gave out the instances of a host that was down; None where none was, or not for long."""
    own_gone_after_s: float | None = None
    """How long a host without a quorum gave out an instance of its own that had ended."""
    back_after_s: float | None = None
    """How long after the end of the fault until all hosts took writes and gave out the instances of all."""
    stale_reads: int = 0
    reads: int = 0
    lookups: int = 0
    visits: int = 0
    failed_stale_reads: list[str] = msgspec.field(default_factory=list)
    """`?stale` reads that failed on hosts that were up."""
    failed_reads: list[str] = msgspec.field(default_factory=list)
    """Reads of the default consistency that failed on hosts that were up and not cut off."""
    failed_lookups: list[str] = msgspec.field(default_factory=list)
    failed_visits: list[str] = msgspec.field(default_factory=list)
    """Requests that a balancer did not bring to an instance."""
    left_over: list[str] = msgspec.field(default_factory=list)
    """Instances that were deregistered, whose TTL ran out, or whose machine was down, and that a host still gives out."""
    missing: list[str] = msgspec.field(default_factory=list)
    """Instances that were registered and not deregistered, and that a host does not know."""
    differs: list[str] = msgspec.field(default_factory=list)
    """What is not the same on all hosts at the end."""
    operations: int = 0
    locks: int = 0
    """Those of the operations that took or gave back a lock, or ended a session."""
    not_linearizable: list[str] = msgspec.field(default_factory=list)
    """Shared keys whose history no atomic key could have given."""
    undecided: list[str] = msgspec.field(default_factory=list)

    @property
    def answers(self) -> int:
        """How often hosts that were up were asked for what they have to know by themselves."""
        return self.stale_reads + self.reads + self.lookups + self.visits

    @property
    def failed_answers(self) -> int:
        lists = (
            self.failed_stale_reads, self.failed_reads, self.failed_lookups, self.failed_visits,
        )  # fmt: skip
        return sum(map(len, lists))

    @property
    def is_damaged(self) -> bool:
        """Whether something is wrong that lasts."""
        return bool(
            self.lost or self.left_over or self.missing or self.differs or self.not_linearizable
        )

    def problems(self) -> list[str]:
        """Return what must not be."""
        found = []
        for name in (
            "lost", "denied", "failed_stale_reads", "failed_reads", "failed_lookups", "failed_visits",
            "left_over", "missing", "differs", "not_linearizable",
        ):  # fmt: skip
            bad = getattr(self, name)
            if bad:
                found.append(f"{name} {len(bad)}: {'; '.join(bad[:3])}")
        return found


class _Http:
    """HTTP/1.1 from a host to its own agent, over connections that are kept."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float = _TIMEOUT_S
    ) -> tuple[int, bytes]:
        """Return status and body. Raises OSError, also for a connection that ends early or takes too long."""
        pair = None
        try:
            async with asyncio.timeout(timeout_s):
                pair = self._idle.pop() if self._idle else await self._connect()
                answer = await self._exchange(*pair, method, path, body)
            self._idle.append(pair)
        except BaseException as error:
            if pair is not None:
                pair[1].close()
            if isinstance(error, asyncio.IncompleteReadError | ValueError | LabError):
                raise OSError(str(error)) from None
            raise
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        made = self._place.new_socket()
        try:
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", 8500))
            return await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        body: bytes,
    ) -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        length = -1
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length >= 0:
            return status, await reader.readexactly(length)
        text = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            text += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, text

    def close(self) -> None:
        """Close what is kept."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


_Part = Callable[[Host, _Http], Awaitable[None]]


class Load:
    """`with Load(lab) as load:` break something; then `load.finish()` says what was seen.

    `excuse(host)` before a host loses power or its agent is stopped: nothing is expected of it until `expect(host)`.
    """

    def __init__(self, lab: Lab, *, seed: int = 1, is_balanced: bool = False) -> None:
        self.lab = lab
        self.seen = Seen()
        self._rng = random.Random(seed)
        self._is_balanced = is_balanced
        self._down: set[int] = set()
        self._isolated: set[int] = set()
        self._no_balancer: set[int] = set()
        self._written: dict[str, str] = {}
        self._acknowledged_at: list[float] = []
        self._window_began: float | None = None
        self._gap_began: float | None = None
        self._struck_at: float | None = None
        self._ended_at: float | None = None
        self._history: dict[str, list[Operation]] = {}
        self._instances: dict[str, bool] = {}
        """By id: whether the last word that was acknowledged about it was a registration."""
        self._unsure: set[str] = set()
        self._given: dict[tuple[int, str], frozenset[str]] = {}
        """By observer and means: the addresses in its last answer."""
        self._given_at: dict[tuple[int, str, str], float] = {}
        self._withheld_at: dict[tuple[int, str, str], float] = {}
        self._visited: dict[int, bool] = {}
        self._failed_visits: list[tuple[float, str]] = []
        """With the time at which each began."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run_thread, name="load")
        self._failure: BaseException | None = None
        self._began_key = f"{seed}-{int(time.time())}"

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for host in self.lab:
            self._register_lasting(host)
        for host in self.lab:
            host.eventually(
                lambda h=host: len(h.get(f"/v1/health/service/{STEADY}?passing")), len(self.lab)
            )
        self._thread.start()
        try:
            self._wait(self._is_settled, within_s=20.0, what="names and balancers do not settle")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()

    def _register_lasting(self, host: Host) -> None:
        host.put("/v1/agent/service/register", {"Name": STEADY, "Port": 1})
        if self._is_balanced:
            web = {"Name": WEB, "Port": _WEB_PORT, "Tags": ["http"]}
            host.put("/v1/agent/service/register", web)

    def _wait(self, probe: Callable[[], bool], *, within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not probe():
            if time.monotonic() > deadline or self._failure is not None:
                raise LabError(f"after {within_s} s: {what}: {self._failure or self._state()}")
            time.sleep(0.02)

    def _state(self) -> str:
        given = {f"{key[0]} {key[1]}": sorted(found) for key, found in self._given.items()}
        return f"given out {given}, visited {self._visited}"

    def begin_window(self) -> None:
        """From now on the time without writes, and until a host that is down is not given out, is looked at."""
        self._window_began = self._gap_began = time.monotonic()

    def end_fault(self, *, gap_begins: bool = False) -> None:
        """The fault is about to end; `gap_begins`: there could be no writes until now."""
        self._ended_at = time.monotonic()
        if gap_begins:
            self._gap_began = self._ended_at

    def excuse(self, host: Host, *, isolated: bool = False, without_balancer: bool = False) -> None:
        """Expect nothing of a host; `isolated`: only what it can do alone, stale reads, names, balancing.

        A balancer goes on without its agent; `without_balancer`: this one does not, or reaches nobody but itself.
        """
        (self._isolated if isolated else self._down).add(host.number)
        if without_balancer:
            self._no_balancer.add(host.number)
        self.seen.struck.append(host.name)

    def expect(self, host: Host) -> None:
        """Expect everything of a host again."""
        self._down.discard(host.number)
        self._isolated.discard(host.number)
        self._no_balancer.discard(host.number)

    def forget(self, host: Host) -> None:
        """Expect nothing of what was registered at a host so far."""
        mark = f"{CHURN}-{self._began_key}-{host.number}-"
        self._unsure |= {one for one in self._instances if one.startswith(mark)}

        def register() -> bool:
            self._register_lasting(host)
            return True

        host.eventually(register, within_s=30)

    def wait_until_gone(self, host: Host) -> None:
        """Return once no other host that is up gives the host's instances out, or too late, which is noted."""
        assert self._window_began is not None
        self._struck_at = time.monotonic()
        ways = [
            (one, how)
            for one in self.lab
            if one is not host and one.number not in self._down | self._isolated
            for how in ("http", "dns")
        ]

        def left() -> list[str]:
            return [
                f"{one.name} gives out the instance of {host.name} over {how} {within_s} s after it went"
                for one, how in ways
                if host.address in self._given.get((one.number, how), ())
            ]

        within_s = _GONE_WITHIN_S[host.agent.program]
        deadline = time.monotonic() + within_s
        while left() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.seen.left_over += left()
        last = max(self._given_at[one.number, how, host.address] for one, how in ways)
        self.seen.gone_after_s = max(self.seen.gone_after_s or 0.0, last - self._window_began)

    def wait_until_back(self, *hosts: Host, within_s: float = 60.0) -> None:
        """Return once hosts acknowledge writes and all is given out by all. Raises LabError.

        From then on everything is expected of them again.
        """
        for host in hosts:
            host.eventually(
                lambda h=host: h.put(f"/v1/kv/again/{h.name}", b"x") is True, within_s=within_s
            )
        took = time.monotonic()
        began = self._ended_at if self._ended_at is not None else self._window_began
        assert began is not None
        self._wait(lambda: self._is_settled(after=took), within_s=within_s, what="not as before")
        for host in hosts:
            self.expect(host)
        seen_at = max(self._withheld_at.values(), default=began)
        self.seen.back_after_s = max(took, seen_at) - began

    def _is_settled(self, *, after: float = -math.inf) -> bool:
        """Whether the last answers of all hosts name all hosts, and every balancer works."""
        wanted = frozenset(one.address for one in self.lab)
        return all(
            self._given.get((one.number, how)) == wanted
            and min(self._given_at[one.number, how, address] for address in wanted) > after
            for one in self.lab
            for how in ("http", "dns")
        ) and (not self._is_balanced or all(self._visited.get(one.number) for one in self.lab))

    def wait_for_writes(self, *, within_s: float = 30.0) -> None:
        """Return once every host that is up has acknowledged a write. Raises LabError."""
        for host in self.lab:
            if host.number not in self._down | self._isolated:
                host.eventually(
                    lambda h=host: h.put(f"/v1/kv/again/{h.name}", b"x") is True, within_s=within_s
                )

    def finish(self) -> Seen:
        """End the load, look whether all is there that must be, and nothing else; return what was seen."""
        self._stop()
        if self._failure is not None:
            raise LabError(f"the load ended early: {self._failure!r}")
        self._measure_gap()
        self._judge_visits()
        up = [host for host in self.lab if host.is_on and host.number not in self._down]
        for host in up:
            self._look_for_lost(host)
            self._look_for_instances(host)
        self._judge_histories()
        self._look_for_expired(up)
        self._look_for_differences(up)
        return self.seen

    def clean(self) -> None:
        """Remove what this load wrote. Raises LabError."""
        for host in self.lab:
            for one in host.get("/v1/agent/services"):
                if one.startswith(CHURN):
                    host.put(f"/v1/agent/service/deregister/{one}")
        host = self.lab[0]
        for session in host.get("/v1/session/list"):
            host.put(f"/v1/session/destroy/{session['ID']}")
        for folder in ("load", "shared", "again"):
            host.http(f"/v1/kv/{folder}/?recurse", method="DELETE", timeout_s=30).json()

    def _look_for_expired(self, up: list[Host]) -> None:
        """Nobody keeps the instances with a TTL alive any more."""

        def passing() -> list[str]:
            return [
                f"{host.name}: {row['Service']['ID']} passes {TTL_S + 2} s after its last sign of life"
                for host in up
                for row in host.get(f"/v1/health/service/{CHURN}?passing&stale")
            ]

        with contextlib.suppress(LabError):
            up[0].eventually(lambda: not passing(), within_s=TTL_S + 2)
        self.seen.left_over += passing()

    def _look_for_differences(self, up: list[Host]) -> None:
        """Every host knows the same, and of each host what its agent was told."""

        def wrong() -> list[str]:
            pictures = {host.name: _picture(host) for host in up}
            first = pictures[up[0].name]
            found = [
                f"{up[0].name} and {name} differ: {sorted(first ^ other)[:3]}"
                for name, other in pictures.items()
                if other != first
            ]
            for host in up:
                told = set(host.get("/v1/agent/services"))
                known = {
                    one.rpartition(" ")[2]
                    for one in first
                    if one.startswith(f"instance {host.name} ") and not one.endswith(" consul")
                }
                found += [
                    f"{host.name} was told of {one}, the catalog was not" for one in told - known
                ]
                found += [
                    f"the catalog has {one} of {host.name}, which was not told of it"
                    for one in known - told
                ]
            return found

        with contextlib.suppress(LabError):
            up[0].eventually(lambda: not wrong(), within_s=8)
        self.seen.differs += wrong()

    def _judge_visits(self) -> None:
        """Leave out what a machine had before it that lost its power or its network: nobody may send that again."""
        struck_at = self._struck_at if self._struck_at is not None else -math.inf
        self.seen.failed_visits += [
            told
            for began, told in self._failed_visits
            if self._window_began is None or not self._window_began - 1.0 < began < struck_at
        ]

    def _measure_gap(self) -> None:
        assert self._gap_began is not None
        times = sorted(at for at in self._acknowledged_at if at >= self._gap_began)
        edges = [self._gap_began, *times]
        self.seen.gap_s = max((b - a for a, b in itertools.pairwise(edges)), default=math.inf)

    def _look_for_lost(self, host: Host) -> None:
        rows = host.get(f"/v1/kv/load/{self._began_key}?recurse", timeout_s=30)
        there = {row["Key"]: base64.b64decode(row["Value"] or "").decode() for row in rows}
        self.seen.lost += [
            f"{host.name}: {key}" for key, value in self._written.items() if there.get(key) != value
        ]

    def _look_for_instances(self, host: Host) -> None:
        def wrong() -> tuple[list[str], list[str]]:
            there = {row["ServiceID"] for row in host.get(f"/v1/catalog/service/{CHURN}")}
            sure = {
                one: wanted for one, wanted in self._instances.items() if one not in self._unsure
            }
            left = [f"{host.name}: {one}" for one in there if sure.get(one) is False]
            missing = [
                f"{host.name}: {one}" for one, wanted in sure.items() if wanted and one not in there
            ]
            return left, missing

        with contextlib.suppress(LabError):
            host.eventually(lambda: wrong() == ([], []), within_s=TTL_S + 2)
        left, missing = wrong()
        self.seen.left_over += left
        self.seen.missing += missing

    def _judge_histories(self) -> None:
        for key, history in self._history.items():
            self.seen.operations += len(history)
            self.seen.locks += sum(one.kind in ("acquire", "release", "end") for one in history)
            try:
                wrong = first_contradiction(history)
                if wrong is not None:
                    self.seen.not_linearizable.append(self._tell(key, wrong, history))
            except TooHard:
                self.seen.undecided.append(key)

    def _tell(self, key: str, wrong: Operation, history: list[Operation]) -> str:
        """Return the answer that cannot be, and what else was going on then."""
        began_s = self._window_began or 0.0

        def line(one: Operation) -> str:
            return (
                f"  {one.began_s - began_s:+.3f} {one.ended_s - began_s:+.3f} {one.client} {one.kind} "
                f"{one.value} holder={one.holder} expected={one.expected},{one.expected_holder} ok={one.ok}"
            )

        near = [one for one in history if -3 < one.began_s - wrong.ended_s <= 0]
        before = sorted(near, key=lambda one: one.began_s)[-25:]
        return "\n".join([f"{key}: impossible:", line(wrong), "after", *map(line, before)])

    # -- the loop --------------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001 - told by `finish`
            self._failure = error

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for host in self.lab:
                group.create_task(self._on(host, self._write))
                group.create_task(self._on(host, self._register))
                # Answers on shared keys have to be right at any time, also those of a server that is just starting;
                # the others judge themselves what may be expected.
                always: list[_Part] = [
                    partial(self._use_shared, number=number) for number in range(2)
                ]
                always += [self._read, self._look_up]
                if self._is_balanced:
                    always += [self._serve, self._visit]
                for what in always:
                    group.create_task(self._on(host, what, always=True))

    async def _on(self, host: Host, what: _Part, *, always: bool = False) -> None:
        """Do it again and again, with new connections after each loss of power, until the end.

        Only while something is expected of the host, or `always`.
        """
        while not self._stopping:
            if not host.is_on or (host.number in self._down and not always):
                await asyncio.sleep(_READ_EVERY_S)
                continue
            client = _Http(host.place)
            try:
                await what(host, client)
            except (OSError, LabError):
                await asyncio.sleep(_READ_EVERY_S)
            finally:
                client.close()

    def _works_on(self, host: Host, client: _Http) -> bool:
        return not self._stopping and host.is_on and client._place.pid == host.place.pid

    def _told(self, host: Host, problem: str) -> str:
        since_s = time.monotonic() - (self._window_began or math.inf)
        return f"{since_s:+.1f} s {host.name}: {problem}"

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _write(self, host: Host, client: _Http) -> None:
        waiting: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                while self._works_on(host, client):
                    if len(waiting) < _MOST_OPEN and host.number not in self._down:
                        key = f"load/{self._began_key}/{host.number}-{time.monotonic_ns()}"
                        task = group.create_task(self._write_one(host, client, key))
                        waiting.add(task)
                        task.add_done_callback(waiting.discard)
                    await asyncio.sleep(_WRITE_EVERY_S)
        finally:
            client.close()

    async def _write_one(self, host: Host, client: _Http, key: str) -> None:
        value = f"v{self._rng.random()}"
        began = time.monotonic()
        with contextlib.suppress(OSError):
            status, text = await client.ask("PUT", f"/v1/kv/{key}?cas=0", value.encode())
            now = time.monotonic()
            if status == 200 and text.strip() == b"true":
                self._acknowledged_at.append(now)
                self._written[key] = value
                self.seen.acknowledged += 1
            elif status == 200:
                self.seen.denied.append(self._told(host, key))
            elif host.number not in self._down:
                self.seen.refused += 1
                self.seen.slowest_refusal_s = max(self.seen.slowest_refusal_s, now - began)

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, host: Host, client: _Http) -> None:
        path = f"/v1/health/service/{STEADY}?passing"
        while self._works_on(host, client):
            self.seen.stale_reads += 1
            problem, found = await self._problem_of(client, f"{path}&stale")
            if not problem:
                self._note_given(host, "http", found)
            elif host.number not in self._down:
                self.seen.failed_stale_reads.append(self._told(host, problem))
            self.seen.reads += 1
            problem, _ = await self._problem_of(client, path)
            if problem and host.number not in self._down | self._isolated:
                self.seen.failed_reads.append(self._told(host, problem))
            await asyncio.sleep(_READ_EVERY_S)

    def _note_given(self, host: Host, how: str, found: frozenset[str]) -> None:
        now = time.monotonic()
        for one in self.lab:
            noted = self._given_at if one.address in found else self._withheld_at
            noted[host.number, how, one.address] = now
        # Last: another thread looks at the times of whatever it finds here.
        self._given[host.number, how] = found

    async def _problem_of(self, client: _Http, path: str) -> tuple[str, frozenset[str]]:
        try:
            status, text = await client.ask("GET", path, timeout_s=5)
        except OSError as error:
            return repr(error), frozenset()
        if status != 200:
            return f"{status} {text.decode(errors='replace')[:100]}", frozenset()
        found = frozenset(row["Node"]["Address"] for row in json.loads(text))
        return "" if found else "no instance", found

    async def _look_up(self, host: Host, _client: _Http) -> None:
        question = dns.message.make_query(f"{STEADY}.service.dc1.consul", "A")
        with host.place.new_socket(socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", 53))
            while self._works_on(host, _client):
                self.seen.lookups += 1
                problem, found = await self._problem_of_lookup(client, question)
                if not problem:
                    self._note_given(host, "dns", found)
                elif host.number not in self._down:
                    self.seen.failed_lookups.append(self._told(host, problem))
                await asyncio.sleep(_READ_EVERY_S)

    async def _problem_of_lookup(
        self, client: socket.socket, question: dns.message.Message
    ) -> tuple[str, frozenset[str]]:
        loop = asyncio.get_running_loop()
        question.id = self._rng.randrange(65536)
        try:
            async with asyncio.timeout(2):
                await loop.sock_sendall(client, question.to_wire())
                while True:
                    reply = dns.message.from_wire(await loop.sock_recv(client, 4096))
                    if reply.id == question.id:
                        break
        except OSError as error:
            return repr(error), frozenset()
        if reply.rcode() != dns.rcode.NOERROR or not reply.answer:
            problem = f"{dns.rcode.to_text(reply.rcode())}, {len(reply.answer)} answers"
            return problem, frozenset()
        return "", frozenset(one.address for one in reply.answer[0])

    # -- balancing -------------------------------------------------------------------------------------------------

    async def _serve(self, host: Host, client: _Http) -> None:
        """Be the host's instance of the web service."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
                writer.write(head + b"here")
            writer.close()

        listener = host.place.new_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", _WEB_PORT))
        server = await asyncio.start_server(answer, sock=listener)
        try:
            while self._works_on(host, client):
                await asyncio.sleep(_READ_EVERY_S)
        finally:
            server.close()

    async def _visit(self, host: Host, client: _Http) -> None:
        self._visited.pop(host.number, None)
        has_begun = False
        while self._works_on(host, client):
            began = time.monotonic()
            problem = await self._problem_of_visit(client)
            if self._stopping:
                break  # and so do the instances
            self._visited[host.number] = not problem
            # The balancer of a host that was just switched on is started by its agent.
            has_begun = has_begun or not problem
            if has_begun and host.number not in self._no_balancer:
                self.seen.visits += 1
                if problem:
                    self._failed_visits.append((began, self._told(host, problem)))
            await asyncio.sleep(_READ_EVERY_S)

    async def _problem_of_visit(self, client: _Http) -> str:
        """Ask the host's balancer once, over a connection of its own."""
        made = client._place.new_socket()
        made.setblocking(False)
        writer = None
        try:
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", 80))
                reader, writer = await asyncio.open_connection(sock=made)
                writer.write(
                    f"GET / HTTP/1.1\r\nHost: {WEB}.example.com\r\nConnection: close\r\n\r\n".encode()
                )
                text = await reader.read()
        except OSError as error:
            return repr(error)
        finally:
            if writer is not None:
                writer.close()
            else:
                made.close()
        return "" if text.startswith(b"HTTP/1.1 200 ") else text[:40].decode(errors="replace")

    # -- registering -----------------------------------------------------------------------------------------------

    async def _register(self, host: Host, client: _Http) -> None:
        alive: list[str] = []
        number = 0
        while self._works_on(host, client):
            number += 1
            name = f"{CHURN}-{self._began_key}-{host.number}-{time.monotonic_ns()}"
            check = {"TTL": f"{TTL_S}s", "Status": "passing"}
            body = json.dumps({"Name": CHURN, "ID": name, "Port": number, "Check": check}).encode()
            if await self._say(client, "/v1/agent/service/register", name, body, wanted=True):
                alive.append(name)
            if len(alive) > 3:
                gone = alive.pop(0)
                await self._say(client, f"/v1/agent/service/deregister/{gone}", gone, wanted=False)
            for one in alive:
                with contextlib.suppress(OSError):
                    await client.ask("PUT", f"/v1/agent/check/pass/service:{one}")
            await asyncio.sleep(0.5)

    async def _say(
        self, client: _Http, path: str, name: str, body: bytes = b"", *, wanted: bool
    ) -> bool:
        self._unsure.add(name)
        status, _ = await client.ask("PUT", path, body)
        if status == 200:
            self._instances[name] = wanted
            self._unsure.discard(name)
        return status == 200

    # -- shared keys -----------------------------------------------------------------------------------------------

    async def _use_shared(self, host: Host, client: _Http, *, number: int) -> None:
        session = await self._session(client)
        name = f"{host.number}-{number}"
        # What this client saw last of each key: its value, its holder and its version.
        versions: dict[str, tuple[str | None, str | None, int]] = {}
        while self._works_on(host, client):
            key = f"shared/{self._began_key}/{self._rng.randrange(_SHARED_KEYS)}"
            kind = self._rng.choice(("read", "read", "write", "cas", "cas", "acquire", "release"))
            if self._rng.random() < _END_SESSION:
                await self._end_session(client, name, session)
                session = await self._session(client)
            else:
                await self._use(client, name, session, key, kind, versions)
            await asyncio.sleep(_CLIENT_PAUSE_S * (0.5 + self._rng.random()))

    async def _session(self, client: _Http) -> str:
        # It outlives every fault here: in the model sessions end because somebody ends them.
        wanted = {"TTL": "600s", "LockDelay": "0s", "Checks": [], "NodeChecks": []}
        status, text = await client.ask("PUT", "/v1/session/create", json.dumps(wanted).encode())
        if status != 200:
            raise OSError(f"no session: {status}")
        return str(json.loads(text)["ID"])

    async def _end_session(self, client: _Http, name: str, session: str) -> None:
        """End a session, which gives back whatever it holds."""
        held = {
            key: history
            for key, history in self._history.items()
            if any(one.holder == session and one.kind == "acquire" for one in history)
        }
        made = Operation("end", time.monotonic(), math.inf, holder=session, client=name)
        try:
            status, _ = await client.ask("PUT", f"/v1/session/destroy/{session}")
        except OSError:
            status = 0
        if status == 200:
            made = made._replace(ended_s=time.monotonic())
        for history in held.values():
            history.append(made)

    async def _use(
        self,
        client: _Http,
        name: str,
        session: str,
        key: str,
        kind: Any,
        versions: dict[str, tuple[str | None, str | None, int]],
    ) -> None:
        expected, expected_holder, version = versions.get(key, (None, None, 0))
        value = f"{name}-{time.monotonic_ns()}"
        query = {
            "read": "?consistent",
            "write": "",
            "cas": f"?cas={version}",
            "acquire": f"?acquire={session}",
            "release": f"?release={session}",
        }[kind]
        holder = session if kind in ("acquire", "release") else None
        made = Operation(kind, time.monotonic(), math.inf, value, holder, client=name)
        if kind == "cas":
            made = made._replace(expected=expected, expected_holder=expected_holder)
        history = self._history.setdefault(key, [])
        try:
            method = "GET" if kind == "read" else "PUT"
            body = b"" if kind == "read" else value.encode()
            status, text = await client.ask(method, f"/v1/kv/{key}{query}", body)
        except ConnectionRefusedError:
            return  # nothing was sent
        except OSError:
            history.append(unknown(made))
            return
        made = made._replace(ended_s=time.monotonic())
        if kind == "read" and status in (200, 404):
            row = json.loads(text)[0] if status == 200 else None
            seen = base64.b64decode(row["Value"] or "").decode() if row else None
            held_by = row.get("Session") if row else None
            versions[key] = (seen, held_by, row["ModifyIndex"] if row else 0)
            history.append(made._replace(value=seen, holder=held_by))
        elif status == 200 and text.strip() in (b"true", b"false"):
            history.append(made._replace(ok=text.strip() == b"true"))
        else:
            history.append(unknown(made))


def _picture(host: Host) -> frozenset[str]:
    """Return all instances and the status of all checks, as a host knows them without asking others."""
    found = set()
    for name in host.get("/v1/catalog/services?stale"):
        for row in host.get(f"/v1/catalog/service/{name}?stale"):
            found.add(f"instance {row['Node']} {name} {row['ServiceID']}")
    for row in host.get("/v1/health/state/any?stale"):
        found.add(f"check {row['Node']} {row['ServiceID']} {row['CheckID']} {row['Status']}")
    return frozenset(found)
