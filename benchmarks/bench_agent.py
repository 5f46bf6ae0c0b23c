"""How fast a started container is found, how much memory the agent takes, how fast it starts: beside Consul where it can.

    python benchmarks/bench_agent.py [--containers 10] [--starts 5] [--load-s 5] [--json FILE]

- container → DNS, container → balancer: from the moment `docker start` has returned (the engine's API call, not the
  docker command, whose own end comes tens of milliseconds later) to the first right answer; probes follow each other
  every millisecond. `new`: the first instance of a service that nobody has heard of (it has no `server` in nginx yet);
  `known`: one more instance of a service that is balanced already.
- memory: resident set with everything on (UI, Docker, nginx, checks), after start and after the load of HTTP reads,
  registrations and DNS queries. nginx is a process of its own and not counted. Consul gets the same HTTP load.
- start: from the start of the process to the first answer that the agent can give (Consul: a leader is elected), and
  what the agent itself measured.

Needs root, dockerd, ip, busybox and nginx; Consul is left out when it is not installed.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "integration"
LIMIT_S = 20.0


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


process = load(TESTS / "agent/process.py", "bench_agent_process")
docker = load(TESTS / "docker/engine.py", "bench_docker_engine")


# -- containers ----------------------------------------------------------------------------------------------------------


def srv_count(probe, port, name):
    """Return how many SRV records `name` has, by a DNS query made by hand: nothing else costs time."""
    question = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"
    probe.sendto(
        struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + question + struct.pack(">2H", 33, 1),
        ("127.0.0.1", port),
    )
    return struct.unpack(">H", probe.recv(4096)[6:8])[0]


def ask_balancer(port, host):
    """Return the answer's text, None if it is no 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        text = answer.read().decode()
        return text if answer.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def until(probe, began):
    while not probe():
        if time.perf_counter() - began > LIMIT_S:
            raise SystemExit("no right answer in time")
        time.sleep(0.001)
    return (time.perf_counter() - began) * 1000


def start_one(agent, engine, service, *, instances):
    """Start one container; return milliseconds to DNS and to the balancer, and its id."""
    body = {
        "Image": "waypost/httpbackend:v1.0.0",
        "Labels": {"SERVICE_NAME": service, "SERVICE_TAGS": "http"},
        "HostConfig": {"PublishAllPorts": True},
    }
    made = engine.request("POST", "/containers/create", body=body)["Id"]
    found = {}
    engine.request("POST", f"/containers/{made}/start")
    began = time.perf_counter()

    def dns():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(2)
            name = f"{service}.service.consul"
            found["dns"] = until(lambda: srv_count(probe, agent.dns, name) >= instances, began)

    def balancer():
        wanted = f"instance: {made[:12]}"
        found["balanced"] = until(
            lambda: wanted in (ask_balancer(agent.balancer, f"{service}.example.com") or ""), began
        )

    threads = [threading.Thread(target=dns), threading.Thread(target=balancer)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found, made


def measure_containers(agent, engine, count):
    """Return the figures of `count` new services and of `count` further instances of a known one."""
    new, known = [], []
    for number in range(count + 1):
        found, made = start_one(agent, engine, f"fresh{number}", instances=1)
        new.append(found)
        engine.request("DELETE", f"/containers/{made}?force=1")
    kept = [start_one(agent, engine, "known", instances=1)[1]]
    for _ in range(count):
        # Always the second instance: one stays, one comes and goes.
        found, made = start_one(agent, engine, "known", instances=2)
        known.append(found)
        engine.request("DELETE", f"/containers/{made}?force=1")
        agent.eventually(lambda: len(agent.get("/v1/health/service/known")), 1)
    for made in kept:
        engine.request("DELETE", f"/containers/{made}?force=1")
    return {"new": new[1:], "known": known}  # the very first start also starts nginx


# -- memory --------------------------------------------------------------------------------------------------------------


def rss_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def load_http(port, seconds, *, callers=8):
    """Register 200 instances, then read and register for `seconds`; return the number of requests."""
    done = [0] * callers
    ends = time.monotonic() + seconds

    def work(caller):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        number = 0
        while number < 25 or time.monotonic() < ends:
            number += 1
            if number <= 25 or number % 20 == 0:
                one = number if number <= 25 else number % 25
                body = {"Name": f"svc{one}", "ID": f"svc{one}-{caller}", "Port": number % 60000 + 1}
                connection.request("PUT", "/v1/agent/service/register", json.dumps(body))
            elif number % 20 == 10:
                connection.request("PUT", f"/v1/kv/load/{caller}/{number % 50}", b"x" * 1000)
            else:
                connection.request("GET", f"/v1/health/service/svc{number % 25 + 1}?passing")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            done[caller] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(callers)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(done)


def load_dns(port, queries):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(2)
        for number in range(queries):
            srv_count(probe, port, f"svc{number % 25 + 1}.service.consul")


# -- start ---------------------------------------------------------------------------------------------------------------


def answers(port, path, good):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status == 200 and good(text)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_waypost(**options):
    """Start an agent in a fresh directory; return it, the seconds to its first answer and its own figure."""
    agent = process.AgentProcess("-ui", balancer=True, **options)
    began = time.perf_counter()
    agent.spawn()
    until(
        lambda: answers(agent.http, "/v1/catalog/services", lambda t: t == b'{"consul":[]}'), began
    )
    took_s = time.perf_counter() - began
    agent.wait_ready()
    return agent, took_s, agent.ready_s()


class Consul:
    """A Consul server that keeps its data."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="bench-consul-"))
        self.http, dns, server, lan, wan = process.free_ports(5)
        command = [
            "consul", "agent", "-server", "-bootstrap-expect=1", "-ui", "-bind=127.0.0.1",
            f"-data-dir={self.folder}", f"-http-port={self.http}", f"-dns-port={dns}",
            "-grpc-port=-1", f"-server-port={server}", f"-serf-lan-port={lan}",
            f"-serf-wan-port={wan}", "-log-level=err",
        ]  # fmt: skip
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until(lambda: answers(self.http, "/v1/status/leader", lambda t: len(t) > 4), began)
        until(
            lambda: answers(
                self.http, "/v1/catalog/services", lambda t: json.loads(t) == {"consul": []}
            ),
            began,
        )
        self.took_s = time.perf_counter() - began

    def close(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


# -- all -----------------------------------------------------------------------------------------------------------------


def row(name, values, unit, aim=""):
    median, most = statistics.median(values), max(values)
    print(f"{name:<52} {median:>9.1f} {most:>9.1f} {unit:<3} n={len(values):<3} {aim}")
    return {"name": name, "median": median, "max": most, "unit": unit, "values": values}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--containers", type=int, default=10)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--load-s", type=float, default=5.0)
    parser.add_argument("--no-docker", action="store_true", help="leave the containers out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    has_consul = shutil.which("consul") is not None
    rows = []
    print(
        f"{'':<52} {'median':>9} {'max':>9}   ({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"
    )

    walls, owns, theirs = [], [], []
    for _ in range(options.starts):
        agent, wall_s, own_s = start_waypost()
        walls.append(wall_s * 1000)
        owns.append(own_s * 1000)
        agent.close()
        if has_consul:
            consul = Consul()
            theirs.append(consul.took_s * 1000)
            consul.close()
    rows.append(row("start to first answer", walls, "ms", "aim < 1000"))
    rows.append(row("  of it, as the agent says", owns, "ms"))
    if theirs:
        rows.append(row("Consul: start to leader and first answer", theirs, "ms"))

    with ExitStack() as stack:
        engine = None
        if not options.no_docker:
            from waypost.samples import image

            engine = stack.enter_context(docker.running_engine())
            image.build(str(engine.socket))
        agent, _, _ = start_waypost(docker=engine.host if engine else "")
        stack.callback(agent.close)
        time.sleep(1)
        idle = rss_mb(agent.pid)
        if engine is not None:
            found = measure_containers(agent, engine, options.containers)
            for kind, figures in found.items():
                for what, aim in (("dns", "aim < 100"), ("balanced", "aim < 300")):
                    text = "first DNS answer" if what == "dns" else "first balanced request"
                    name = f"container started to {text}, {kind} service"
                    rows.append(row(name, [one[what] for one in figures], "ms", aim))
        rows.append(row("memory with everything on, idle", [idle], "MB", "aim < 80"))
        requests = load_http(agent.http, options.load_s)
        load_dns(agent.dns, 5000)
        name = f"memory after {requests} requests and 5000 queries"
        rows.append(row(name, [rss_mb(agent.pid)], "MB", "aim < 80"))
        if has_consul:
            consul = Consul()
            stack.callback(consul.close)
            time.sleep(1)
            rows.append(row("Consul: memory idle", [rss_mb(consul.process.pid)], "MB"))
            requests = load_http(consul.http, options.load_s)
            name = f"Consul: memory after {requests} requests"
            rows.append(row(name, [rss_mb(consul.process.pid)], "MB"))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
