"""DNS answers a second beside a real Consul, by dnsperf, in turns.

    .venv/bin/python benchmarks/bench_dns.py [--rounds 3] [--seconds 4] [--skip-consul]

Both serve the same catalog: a service with three passing instances and a node. Each is measured alone while the
other stands still (SIGSTOP), with the same dnsperf settings; dnsperf shares the machine's cores with the server,
which costs the faster one more, and perhaps with other work. So beside the rate there is the server's own CPU time
an answer, which says how many answers a core is good for. Consul runs as `agent -dev`, its fastest mode.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUESTIONS = {
    "A": "web.service.consul A",
    "SRV": "web.service.consul SRV",
    "node A": "w1.node.consul A",
    "absent": "nope.service.consul A",
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def serve() -> None:
    """Run our server until killed; print its port."""
    import uvloop

    from waypost.model.catalog import Check, Node, Service
    from waypost.state.keys import encode, key_of
    from waypost.state.view import View
    from waypost.store.engine import KeyValue
    from waypost.surfaces.dns.catalog import OpenAdmission
    from waypost.surfaces.dns.server import DnsServer
    from waypost.surfaces.dns.settings import DnsSettings

    records = []
    for number in (1, 2, 3):
        node, web = f"w{number}", f"web{number}"
        records += [
            Node(node=node, address=f"10.1.9.{number}", datacenter="dc1"),
            Service(node=node, id=web, name="web", port=8000 + number),
            Check(node=node, check_id=web, name="c", status="passing", service_id=web),
        ]
    view = View()
    view.load([KeyValue(key_of(r), encode(r), 1, 1) for r in records], revision=len(records))

    async def main() -> None:
        async with DnsServer(DnsSettings(), OpenAdmission(view), [("127.0.0.1", 0)]) as server:
            print(server.addresses[0][1], flush=True)
            await server.run()

    uvloop.run(main())


def start_consul(home: Path) -> tuple[subprocess.Popen[bytes], int]:
    ports = {name: free_port() for name in ("http", "dns", "serf-lan", "serf-wan", "server")}
    arguments = [part for name, port in ports.items() for part in (f"-{name}-port", str(port))]
    process = subprocess.Popen(
        [
            *[
                "consul",
                "agent",
                "-dev",
                "-bind",
                "127.0.0.1",
                "-client",
                "127.0.0.1",
                "-node",
                "bench",
            ],
            *["-grpc-port", "-1", "-log-level", "err"],
            *arguments,
        ],
        stdout=(home / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    for number in (1, 2, 3):
        web = f"web{number}"
        body = {
            "Node": f"w{number}",
            "Address": f"10.1.9.{number}",
            "Service": {"ID": web, "Service": "web", "Port": 8000 + number},
            "Check": {"CheckID": web, "Name": "c", "Status": "passing", "ServiceID": web},
        }
        for _ in range(60):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=5)
                connection.request("PUT", "/v1/catalog/register", json.dumps(body))
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.5)
        else:
            sys.exit("consul did not start")
    return process, ports["dns"]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, all threads, user and system. Source: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    pid: int, port: int, question: str, *, seconds: int, home: Path
) -> tuple[float, float, float]:
    """Return (answers a second, mean latency in ms, CPU µs of the server an answer)."""
    before = cpu_s(pid)
    path = home / "questions"
    path.write_text(question + "\n")
    out = subprocess.run(
        f"dnsperf -s 127.0.0.1 -p {port} -d {path} -l {seconds} -c 4 -q 100".split(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    spent_s = cpu_s(pid) - before
    done = re.search(r"Queries completed:\s+(\d+)", out)
    lost = re.search(r"Queries lost:\s+(\d+)", out)
    rate = re.search(r"Queries per second:\s+([\d.]+)", out)
    latency = re.search(r"Average Latency \(s\):\s+([\d.]+)", out)
    if not (done and lost and rate and latency):
        sys.exit(f"dnsperf said:\n{out}")
    if int(lost[1]):
        print(f"  ({lost[1]} lost)")
    return float(rate[1]), float(latency[1]) * 1000, spent_s / int(done[1]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--skip-consul", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    source = Path(__file__).parents[1] / "src"
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        ours = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        servers = {}
        try:
            assert ours.stdout is not None
            servers["waypost"] = (ours, int(ours.stdout.readline()))
            if not options.skip_consul:
                servers["consul"] = start_consul(home)
            report(servers, rounds=options.rounds, seconds=options.seconds, home=home)
        finally:
            for process, _ in [*servers.values(), (ours, 0)]:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def report(
    servers: dict[str, tuple[subprocess.Popen[bytes], int]],
    *,
    rounds: int,
    seconds: int,
    home: Path,
) -> None:
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for kind, question in QUESTIONS.items():
            for name, (process, port) in servers.items():
                for other, _ in servers.values():
                    other.send_signal(signal.SIGCONT if other is process else signal.SIGSTOP)
                result = measure(process.pid, port, question, seconds=seconds, home=home)
                found.setdefault((kind, name), []).append(result)
    heads = "".join(f"{name + ' /s':>14}{'ms':>8}{'CPU µs':>8}" for name in servers)
    print(f"{'':8}{heads}{'rate':>10}{'CPU':>8}")
    for kind in QUESTIONS:
        medians = [
            [statistics.median(column) for column in zip(*found[kind, name], strict=True)]
            for name in servers
        ]
        line = f"{kind:8}" + "".join(f"{r:14.0f}{ms:8.2f}{us:8.1f}" for r, ms, us in medians)
        if len(medians) == 2:
            (ours, _, our_us), (theirs, _, their_us) = medians
            line += f"{ours / theirs:9.1f}x{their_us / our_us:7.1f}x"
        print(line)


if __name__ == "__main__":
    main()
