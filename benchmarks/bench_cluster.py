"""Three servers of waypost beside three real Consul servers: writes, registrations, reads, and from a write to a view.

    python benchmarks/bench_cluster.py [--rounds 3] [--seconds 1] [--callers 1,16,64] [--samples 300] [--only TEXT]

All six run on this machine, each on a loopback address of its own, with their data on the same disk and every write
durable on a majority (waypost: etcd children with fsync; Consul: raft logs). They are asked in turn, round by round,
by wrk over keep-alive connections: the leader, a follower, and all three at once. Every write is a change. The CPU time of a
request is that of all processes of a product (agents and etcds; consuls), so it counts the work of all three servers.
Last, a write goes to one server after the other while a blocking query waits at each: how long after the write was sent, and
after it was acknowledged, is it seen. A negative time after the acknowledgement: the change was seen before.
Needs wrk, etcd and consul; without consul waypost is measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from bench_http import TICKS, fill, free_ports

SERVERS = 3
READS = {
    "default": "/v1/health/service/svc-3?passing",
    "?stale": "/v1/health/service/svc-3?passing&stale",
    "?consistent": "/v1/health/service/svc-3?passing&consistent",
}
WRITES = {
    "kv": ("PUT kv/K", "kv/"),
    "agent": ("PUT agent/service/register", "agent/service/register"),
    "catalog": ("PUT catalog/register", "catalog/register"),
}
READERS = 32

_WRITE = """
local made = 0
function setup(thread)
  made = made + 1
  thread:set("me", made)
  local parts = {}
  for part in string.gmatch("%(addresses)s", "[^,]+") do parts[#parts + 1] = part end
  thread.addr = wrk.lookup(parts[(made - 1) %% #parts + 1], "%(port)d")[1]
end
local n = 0
request = function()
  n = n + 1
  local who = me * 1000 + n %% %(callers)d
  local path, body
  if "%(kind)s" == "kv" then
    path, body = string.format("/v1/kv/bench/%%d-%%d", who, n %% 5000), string.rep("x", 92) .. string.format("%%08d", n) .. "%(tag)s"
  else
    local instance = string.format('"ID":"w%%d-%%d","Port":%%d,"Tags":["%(tag)s"]', who %% 8, who, 1000 + n %% 60000)
    if "%(kind)s" == "agent" then
      path, body = "/v1/agent/service/register", string.format('{"Name":"w%%d",%%s}', who %% 8, instance)
    else
      path = "/v1/catalog/register"
      body = string.format('{"Node":"bench-%%d","Address":"10.1.0.1","Service":{"Service":"w%%d",%%s}}', who, who %% 8, instance)
    end
  end
  return wrk.format("PUT", path, nil, body)
end
"""


def get(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read()


class Three:
    """Three servers of one product. `processes()` are all of them, children too."""

    def __init__(self, name, commands, addresses, port, log):
        self.name, self.addresses, self.port = name, addresses, port
        self._processes = [
            subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            for command in commands
        ]

    def wait(self):
        """Return once each of the three knows the leader and takes a write."""
        deadline = time.monotonic() + 60
        for address in self.addresses:
            while True:
                try:
                    url = f"{self.url(address)}/v1/kv/ready"
                    request = urllib.request.Request(url, data=b"", method="PUT")
                    with urllib.request.urlopen(request, timeout=5) as response:
                        if response.read() == b"true":
                            break
                except OSError:
                    pass
                if time.monotonic() > deadline:
                    raise SystemExit(f"{self.name} has no leader")
                time.sleep(0.2)

    def url(self, address):
        return f"http://{address}:{self.port}"

    def leader_first(self):
        """Return the addresses, the leader's first."""
        said = json.loads(get(f"{self.url(self.addresses[0])}/v1/status/leader"))
        leader = said.rpartition(":")[0]
        return [leader, *(one for one in self.addresses if one != leader)]

    def processes(self):
        found = [process.pid for process in self._processes]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(word) for word in children.read_text().split()]
        return found

    def cpu_s(self):
        """Return the user and system time of all processes so far."""
        total = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory_mb(self):
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.processes())
        return sum(pages) * os.sysconf("SC_PAGESIZE") / 2**20

    def stop(self):
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_waypost(folder, log):
    http, serf, server, wan = free_ports(4)
    stores = free_ports(SERVERS)
    addresses = [f"127.0.21.{n + 1}" for n in range(SERVERS)]
    commands = []
    for n, address in enumerate(addresses):
        config = {
            # etcd listens on 127.0.0.1 as well, so these have to differ on one machine.
            "ports": {"http": http, "dns": -1, "server": server, "serf_lan": serf, "serf_wan": wan, "store": stores[n]},
            "client_addr": address,
            "bind_addr": address,
            "balancer": {"enabled": False},
            "docker": {"enabled": False},
            "limits": {"http_max_conns_per_client": 1000},
            "start_join": addresses[:n][:1],
        }  # fmt: skip
        file = folder / f"waypost-{n}.json"
        file.write_text(json.dumps(config))
        commands.append(
            [
                sys.executable, "-m", "waypost", "agent", "-server", f"-bootstrap-expect={SERVERS}", f"-node=n{n}",
                f"-config-file={file}", f"-data-dir={folder / f'waypost-{n}'}", "-log-level=warn",
            ]
        )  # fmt: skip
    return Three("waypost", commands, addresses, http, log)


def start_consul(folder, log):
    http, server, lan, wan = free_ports(4)
    addresses = [f"127.0.22.{n + 1}" for n in range(SERVERS)]
    commands = [
        [
            "consul", "agent", "-server", f"-bootstrap-expect={SERVERS}", f"-node=n{n}", f"-bind={address}", f"-client={address}",
            f"-http-port={http}", "-dns-port=-1", "-grpc-port=-1", f"-server-port={server}", f"-serf-lan-port={lan}",
            f"-serf-wan-port={wan}", "-hcl=limits { http_max_conns_per_client = 1000 }", f"-retry-join={addresses[0]}",
            f"-data-dir={folder / f'consul-{n}'}", "-log-level=warn",
        ]
        for n, address in enumerate(addresses)
    ]  # fmt: skip
    return Three("consul", commands, addresses, http, log)


def wrk(url, *, seconds, connections, threads=1, script=None):
    """Return requests/s, their number, and p50 and p99 in ms."""
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", url]  # fmt: skip
    if script is not None:
        command[1:1] = ["-s", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"wrk: {ended.stdout}{ended.stderr}")
    done = ended.stdout
    if bad := re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", done):
        raise SystemExit(f"{url}: {bad.group(0)}")
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    quantiles = {}
    for part in ("50", "99"):
        found = re.search(rf"{part}%\s+([\d.]+)(us|ms|s)", done)
        quantiles[part] = float(found.group(1)) * scale[found.group(2)]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done).group(1))
    count = int(re.search(r"(\d+) requests in", done).group(1))
    return rate, count, quantiles["50"], quantiles["99"]


class Results:
    """What was measured: row → product → figure → values of the rounds."""

    def __init__(self):
        self.rows = {}

    def add(self, row, product, **figures):
        into = self.rows.setdefault(row, {}).setdefault(product, {})
        for name, value in figures.items():
            into.setdefault(name, []).append(value)

    def median(self, row, product, figure):
        return statistics.median(self.rows[row][product][figure])

    def run(self, row, system, **how):
        before_s = system.cpu_s()
        rate, count, p50, p99 = wrk(**how)
        cost_us = (system.cpu_s() - before_s) / max(1, count) * 1e6
        self.add(row, system.name, rate=rate, p50=p50, p99=p99, cpu=cost_us)


def targets(system):
    """Return where writes go: name → addresses."""
    order = system.leader_first()
    return {"leader": order[:1], "follower": order[1:2], "all three": order}


def measure_writes(results, systems, *, kind, callers, seconds, round_, folder):
    name = WRITES[kind][0]
    for where in ("leader", "follower", "all three"):
        for count in callers:
            if where == "all three" and count < SERVERS:
                continue
            for system in systems:
                addresses = targets(system)[where]
                # wrk gives each thread the same number of connections.
                each = -(-count // len(addresses))
                script = folder / "write.lua"
                values = {
                    "addresses": ",".join(addresses),
                    "port": system.port,
                    "callers": each,
                    "kind": kind,
                    # What is there already would not be written again.
                    "tag": f"{round_}-{where}-{count}",
                }
                script.write_text(_WRITE % values)
                results.run(
                    f"{name}, {where}, {count}",
                    system,
                    url=system.url(addresses[0]),
                    seconds=seconds,
                    connections=each * len(addresses),
                    threads=len(addresses),
                    script=script,
                )


def measure_reads(results, systems, *, seconds):
    for where in ("leader", "follower"):
        for mode, path in READS.items():
            for system in systems:
                address = targets(system)[where][0]
                results.run(
                    f"GET health/service, {where}, {mode}",
                    system,
                    url=system.url(address) + path,
                    seconds=seconds,
                    connections=READERS,
                )


class Waiter:
    """Blocking queries at one server, one after the other."""

    def __init__(self, session, url):
        self._session, self._url = session, url
        self.index = 0
        self.seen_s = 0.0

    async def once(self, wanted):
        """Return when an answer holds `wanted`; `seen_s` is when it came."""
        while True:
            url = f"{self._url}{'&' if '?' in self._url else '?'}index={self.index}&wait=30s"
            async with self._session.get(url) as response:
                body = await response.read()
                self.seen_s = time.perf_counter()
                self.index = int(response.headers["X-Consul-Index"])
            if wanted in body:
                return


async def view_latency(system, *, samples):
    """Return, for a key and for a service, milliseconds from sending and from the acknowledgement until seen.

    As seen at the server written to ("here") and at the others ("elsewhere").
    """
    found = {}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:  # fmt: skip
        for what, read in {"key": "/v1/kv/watched?raw", "service": "/v1/health/service/watched"}.items():  # fmt: skip
            waiters = [Waiter(session, system.url(a) + read) for a in system.addresses]

            async def write(at, mark, what=what):
                url = system.url(system.addresses[at])
                if what == "key":
                    async with session.put(f"{url}/v1/kv/watched", data=mark) as response:
                        assert await response.read() == b"true"
                    return
                body = {"Node": "watched", "Address": "10.9.9.9", "Service": {"Service": "watched", "Tags": [mark.decode()]}}  # fmt: skip
                async with session.put(f"{url}/v1/catalog/register", json=body) as response:
                    assert response.status == 200

            await write(0, b"first")
            for n in range(samples + 3):
                mark, at = b"mark-%06d" % n, n % SERVERS
                async with asyncio.TaskGroup() as group:
                    for waiter in waiters:
                        group.create_task(waiter.once(mark))
                    await asyncio.sleep(0.015)  # every server waits by now
                    sent_s = time.perf_counter()
                    await write(at, mark)
                    told_s = time.perf_counter()
                if n < 3:
                    continue  # the first indexes are old ones
                for number, waiter in enumerate(waiters):
                    row = f"{what}, {'here' if number == at else 'elsewhere'}"
                    into = found.setdefault(row, {"sent": [], "told": []})
                    into["sent"].append((waiter.seen_s - sent_s) * 1000)
                    into["told"].append((waiter.seen_s - told_s) * 1000)
    return found


def measure_views(results, systems, *, samples):
    for system in systems:
        for row, values in asyncio.run(view_latency(system, samples=samples)).items():
            for since, times in values.items():
                into = results.rows.setdefault(row, {}).setdefault(system.name, {})
                into.setdefault(since, []).extend(times)


def measure(args, results):
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="bench-cluster-", dir=args.directory)
            )
        )
        log = stack.enter_context((folder / "log").open("wb"))
        systems = []
        for start in (start_waypost, start_consul):
            if start is start_consul and (args.alone or shutil.which("consul") is None):
                continue
            system = start(folder, log)
            stack.callback(system.stop)
            systems.append(system)
        for system in systems:
            system.wait()
        # fill() asks 127.0.0.1; these listen elsewhere.
        for system in systems:
            fill(system.port, host=system.addresses[0])
        for round_ in range(args.rounds):
            for kind in WRITES:
                if args.only in ("", kind):
                    measure_writes(
                        results, systems, kind=kind, callers=args.callers, seconds=args.seconds,
                        round_=round_, folder=folder,
                    )  # fmt: skip
            if args.only in ("", "reads"):
                measure_reads(results, systems, seconds=args.seconds)
            if args.only in ("", "views"):
                measure_views(results, systems, samples=-(-args.samples // args.rounds))
        return {system.name: system.memory_mb() for system in systems}


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def print_tables(results, names):
    both = len(names) == 2
    print(f"| request, at, callers | {' | '.join(f'{n}/s' for n in names)} | ratio | p99 ms | CPU µs a request |")  # fmt: skip
    print("|---|" + "---|" * (len(names) + 3))
    for row, by in results.rows.items():
        if "rate" not in by[names[0]]:
            continue
        rates = [results.median(row, name, "rate") for name in names]
        slow = ", ".join(f"{results.median(row, name, 'p99'):.1f}" for name in names)
        cpu = ", ".join(f"{results.median(row, name, 'cpu'):,.0f}" for name in names)
        ratio = f"{rates[0] / rates[1]:.2f}" if both else ""
        print(f"| {row} | {' | '.join(f'{r:,.0f}' for r in rates)} | {ratio} | {slow} | {cpu} |")
    print()
    print(f"| seen, ms (p50, p99) | {' | '.join(f'{n} since sent | {n} since acknowledged' for n in names)} |")  # fmt: skip
    print("|---|" + "---|" * (2 * len(names)))
    for row, by in results.rows.items():
        if "sent" not in by[names[0]]:
            continue
        cells = [
            f"{quantile(by[name][since], 0.5):.1f}, {quantile(by[name][since], 0.99):.1f}"
            for name in names
            for since in ("sent", "told")
        ]
        print(f"| {row} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--callers", type=lambda text: [int(one) for one in text.split(",")], default=[1, 16, 64])  # fmt: skip
    parser.add_argument("--samples", type=int, default=300, help="writes watched, over all rounds")
    parser.add_argument("--only", choices=("", *WRITES, "reads", "views"), default="")
    parser.add_argument("--alone", action="store_true", help="without Consul")
    parser.add_argument(
        "--directory", default=None, help="where the data directories go; a real disk, not tmpfs"
    )
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    if shutil.which("etcd") is None or shutil.which("wrk") is None:
        raise SystemExit("etcd and wrk are needed")
    results = Results()
    memory = measure(args, results)
    print(
        f"{os.cpu_count()} cores, {args.rounds} rounds of {args.seconds} s, load {os.getloadavg()[0]:.1f}, medians; "
        f"memory of all processes at the end: {', '.join(f'{name} {mb:.0f} MB' for name, mb in memory.items())}\n"
    )
    print_tables(results, list(memory))
    if args.json:
        Path(args.json).write_text(json.dumps(results.rows, indent=1))


if __name__ == "__main__":
    main()
