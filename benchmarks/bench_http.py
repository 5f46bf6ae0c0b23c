"""Reads and durable registrations a second over HTTP: waypost beside a real Consul, interleaved.

    python benchmarks/bench_http.py [--seconds 3] [--rounds 3] [--connections 32] [--json FILE]

Both get the same catalog: 10 services of 3 instances each on 3 nodes, with a check each, and 100 keys. Reads are
measured by wrk on the same machine, so client and server share its cores; all systems are measured in turn, round by
round, and the median is shown, with the server's own CPU time for a request, which a busy machine changes less than the
rate. Registrations are different on every request; each is on disk before its answer (waypost: SQLite, synchronous=FULL;
Consul: raft log with a data directory).
Needs wrk; Consul is left out when it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

READS = {
    "catalog/service/X": "/v1/catalog/service/svc-3",
    "health/service/X?passing": "/v1/health/service/svc-3?passing",
    "kv/K": "/v1/kv/app/key-7",
    "catalog/services": "/v1/catalog/services",
}
CALLERS = (1, 16, 64)
TICKS = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).parent


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for one in sockets:
        one.close()
    return ports


def call(port, method, path, body=None, *, token=None, host="127.0.0.1"):
    data = None if body is None else json.dumps(body).encode()
    headers = {} if token is None else {"X-Consul-Token": token}
    url = f"http://{host}:{port}{path}"
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


def fill(port, *, token=None, host="127.0.0.1"):
    for service in range(10):
        for node in range(3):
            call(
                port,
                "PUT",
                "/v1/catalog/register",
                {
                    "Node": f"node-{node}",
                    "Address": f"10.0.0.{node + 1}",
                    "Service": {
                        "ID": f"svc-{service}-{node}",
                        "Service": f"svc-{service}",
                        "Tags": ["http", f"v{node}"],
                        "Address": f"10.0.0.{node + 1}",
                        "Port": 8000 + service,
                        "Meta": {"version": "1.2.3"},
                    },
                    "Check": {
                        "CheckID": f"check-{service}-{node}",
                        "Name": "alive",
                        "Status": "passing",
                        "ServiceID": f"svc-{service}-{node}",
                    },
                },
                token=token,
                host=host,
            )
    for key in range(100):
        call(port, "PUT", f"/v1/kv/app/key-{key}", "x" * 100, token=token, host=host)


class Running:
    """A server process of ours or of theirs."""

    def __init__(self, name, command, port, log):
        self.name, self.port = name, port
        self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            try:
                if json.loads(call(port, "GET", "/v1/catalog/service/consul")):
                    break
            except (OSError, ValueError):
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit(f"{name} did not start")
            time.sleep(0.1)

    def cpu_s(self):
        """Return the user and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start_waypost(folder, log, *, dev):
    http, server = free_ports(2)
    hcl = json.dumps(
        {
            "ports": {"http": http, "dns": -1, "server": server},
            "balancer": {"enabled": False},
            "docker": {"enabled": False},
        }
    )
    config = folder / "waypost.json"
    config.write_text(hcl)
    command = [
        sys.executable,
        "-m",
        "waypost",
        "agent",
        f"-config-file={config}",
        "-bind=127.0.0.1",
    ]
    command += ["-dev"] if dev else [f"-data-dir={folder / 'data'}", "-log-level=warn"]
    return Running("waypost -dev" if dev else "waypost", command, http, log)


def start_consul(folder, log, *, dev):
    http, dns, server, lan, wan = free_ports(5)
    command = [
        "consul", "agent", "-bind=127.0.0.1", f"-http-port={http}", f"-dns-port={dns}", "-grpc-port=-1",
        f"-server-port={server}", f"-serf-lan-port={lan}", f"-serf-wan-port={wan}",
        "-hcl=limits { http_max_conns_per_client = 1000 }", "-log-level=warn",
    ]  # fmt: skip
    if dev:
        command.append("-dev")
    else:
        command += ["-server", "-bootstrap-expect=1", f"-data-dir={folder / 'data'}"]
    return Running("consul -dev" if dev else "consul", command, http, log)


def wrk(port, path, *, seconds, connections, script=None):
    extra = [] if script is None else ["-s", str(script)]
    out = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            f"http://127.0.0.1:{port}{path}",
            *extra,
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    if bad:
        raise SystemExit(f"{path}: {bad.group(0)}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    count = int(re.search(r"(\d+) requests in", out).group(1))
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[slow.group(2)]
    return rate, float(slow.group(1)) * scale, count


_SCRIPT = """
local n = 0
request = function()
  n = n + 1
  local who = n %% %(callers)d
  local instance = string.format('"ID":"w%%d-%%d","Port":%%d,"Tags":["%(tag)s"]', who %% 8, who, 1000 + n %% 60000)
  local body
  if %(agent)s then
    body = string.format('{"Name":"w%%d",%%s}', who %% 8, instance)
  else
    body = string.format('{"Node":"bench-%%d","Address":"10.1.0.1","Service":{"Service":"w%%d",%%s}}', who, who %% 8, instance)
  end
  return wrk.format("PUT", nil, nil, body)
end
"""


def registrations(running, *, path, callers, seconds, tag, folder):
    """Return registrations a second, and CPU µs for each; every one is a change."""
    script = folder / "register.lua"
    values = {"callers": callers, "tag": tag, "agent": str("agent" in path).lower()}
    script.write_text(_SCRIPT % values)
    before_s = running.cpu_s()
    rate, _, count = wrk(running.port, path, seconds=seconds, connections=callers, script=script)
    return rate, (running.cpu_s() - before_s) / count * 1e6


def measure(args):
    results: dict[str, dict[str, list[float]]] = {}
    slow: dict[str, dict[str, list[float]]] = {}
    costs: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="bench-http-", dir=args.directory)
            )
        )
        log = stack.enter_context((folder / "log").open("wb"))
        systems = []
        for dev in (False, True):
            for start in (start_waypost, start_consul):
                if start is start_consul and shutil.which("consul") is None:
                    continue
                place = folder / f"{start.__name__}-{dev}"
                place.mkdir()
                running = start(place, log, dev=dev)
                stack.callback(running.stop)
                systems.append(running)
        for running in systems:
            fill(running.port)
        for round_ in range(args.rounds):
            for name, path in READS.items():
                for running in systems:
                    before_s = running.cpu_s()
                    rate, p99_ms, count = wrk(
                        running.port, path, seconds=args.seconds, connections=args.connections
                    )
                    cost_us = (running.cpu_s() - before_s) / count * 1e6
                    costs.setdefault(name, {}).setdefault(running.name, []).append(cost_us)
                    results.setdefault(name, {}).setdefault(running.name, []).append(rate)
                    slow.setdefault(name, {}).setdefault(running.name, []).append(p99_ms)
            for path in ("/v1/agent/service/register", "/v1/catalog/register"):
                for callers in CALLERS:
                    for running in systems:
                        if "-dev" in running.name:
                            continue
                        rate, cost_us = registrations(
                            running,
                            path=path,
                            callers=callers,
                            seconds=args.seconds,
                            tag=f"r{round_}",
                            folder=folder,
                        )
                        key = f"PUT {path[4:]}, {callers} callers"
                        costs.setdefault(key, {}).setdefault(running.name, []).append(cost_us)
                        results.setdefault(key, {}).setdefault(running.name, []).append(rate)
    return results, slow, costs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--directory", default=None, help="where the data directories go; a real disk, not tmpfs"
    )
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    results, slow, costs = measure(args)
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    print(
        f"{os.cpu_count()} cores, {args.rounds} rounds of {args.seconds} s, load {os.getloadavg()[0]:.1f}, "
        "medians of requests/s (p99 in ms), CPU µs a request"
    )
    print(f"{'':44}" + "".join(f"{name:>26}" for name in names) + f"{'ratio':>8}")
    table = {}
    for key, row in results.items():
        medians = {name: statistics.median(values) for name, values in row.items()}
        cells = ""
        for name in names:
            text = f"{medians[name]:,.0f}" if name in medians else "-"
            if name in slow.get(key, {}):
                text += f" ({statistics.median(slow[key][name]):.2f})"
            if name in costs.get(key, {}):
                text += f" {statistics.median(costs[key][name]):.0f} µs"
            cells += f"{text:>26}"
        ratio = medians["waypost"] / medians["consul"] if "consul" in medians else float("nan")
        print(f"{key:44}{cells}{ratio:>7.1f}x")
        table[key] = {
            name: {"rate": rate, "cpu_us": statistics.median(costs[key][name])}
            for name, rate in medians.items()
        }
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
