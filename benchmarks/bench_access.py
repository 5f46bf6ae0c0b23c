"""What access control costs on a hot read: the agent's own CPU time for a request, with and without it.

    python benchmarks/bench_access.py [--seconds 2] [--rounds 5] [--connections 32] [--json FILE]

Two agents of the same program with the same catalog: `open` has no access control at all, `protected` has been through
`waypost init` (Node and RBAC, a token file). The same read is asked over keep-alive connections in every way that a
caller can prove who it is; wrk measures them in turn, round by round, and the order turns round with every round. wrk
cannot show a client certificate, so over HTTPS it goes through nginx, which opens one TLS connection for each of wrk's;
all HTTPS ways do, so that they can be compared.

The figure is the agent's own user and system time divided by the requests that it answered, which does not depend on
what else the machine does as throughput does. Needs wrk; the HTTPS ways need nginx with its stream module.
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
from contextlib import ExitStack
from pathlib import Path

from bench_http import fill, free_ports

TARGET = "/v1/health/service/svc-3?passing"
TOKEN = "token-of-the-benchmark"
TICKS = os.sysconf("SC_CLK_TCK")


class Agent:
    """An agent process and what can be asked of it."""

    def __init__(self, folder, log, *, protected):
        self.folder = folder
        self.data = folder / "data"
        self.http, self.https, server = free_ports(3)
        config = {
            "ports": {"http": self.http, "dns": -1, "server": server},
            "balancer": {"enabled": False},
            "docker": {"enabled": False},
        }
        (folder / "waypost.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "waypost"]
        agent = [*command, "agent", f"-config-file={folder / 'waypost.json'}", "-log-level=warn"]
        agent += ["-bind=127.0.0.1", f"-data-dir={self.data}"]
        if protected:
            init = ["init", f"-data-dir={self.data}", "-advertise=127.0.0.1"]
            subprocess.run([*command, *init], check=True, capture_output=True)
            tokens = folder / "tokens.csv"
            tokens.touch(mode=0o600)
            tokens.write_text(f'{TOKEN},bench,1,"readers"\n')
            agent += [f"-https-port={self.https}", f"-token-auth-file={tokens}"]
        self._process = subprocess.Popen(agent, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 30
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit(f"the agent in {folder} did not start")
            time.sleep(0.1)

    def _answers(self):
        try:
            return self.ask("GET", "/v1/status/leader")[0] == 200
        except OSError:
            return False

    def ask(self, method, path, body=None):
        """Send a request as root over the unix socket."""
        import http.client

        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.data / "waypost.sock"))
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

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


def prepare(agent, *, protected):
    """Fill the catalog; return the tokens that the protected agent knows."""
    if not protected:
        fill(agent.http)
        return {}
    group = "rbac.authorization.k8s.io"
    bind = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "bench"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    }
    rbac = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    assert agent.ask("POST", rbac, bind)[0] == 201
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    status, body = agent.ask("POST", path, request)
    assert status == 201, body
    account = json.loads(body)["status"]["token"]
    fill(agent.http, token=account)
    return {"static token": TOKEN, "account token": account}


def client_pem(data, folder):
    """Write the certificate and key of operator.conf; return the path."""
    import base64

    text = (data / "operator.conf").read_text()
    pem = b"".join(
        base64.b64decode(re.search(rf"{key}: (\S+)", text).group(1))
        for key in ("client-certificate-data", "client-key-data")
    )
    path = folder / "client.pem"
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return path


class Proxy:
    """nginx that speaks TLS to the agent for wrk: one port without a client certificate, one with it."""

    def __init__(self, folder, agent, pem, log):
        self.plain, self.certified = free_ports(2)
        module = next(
            (p for p in ("/usr/lib/nginx/modules/ngx_stream_module.so",) if Path(p).exists()), None
        )
        load = f"load_module {module};\n" if module else ""
        server = (
            "server {{ listen 127.0.0.1:{port}; proxy_ssl on; proxy_pass 127.0.0.1:{to}; {more} }}"
        )
        shows = f"proxy_ssl_certificate {pem}; proxy_ssl_certificate_key {pem};"
        (folder / "nginx.conf").write_text(
            f"{load}daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;\n"
            "events { worker_connections 1024; }\nstream {\n"
            + server.format(port=self.plain, to=agent.https, more="")
            + "\n"
            + server.format(port=self.certified, to=agent.https, more=shows)
            + "\n}\n"
        )
        command = ["nginx", "-p", str(folder), "-e", f"{folder}/nginx.log"]
        self._process = subprocess.Popen(
            [*command, "-c", str(folder / "nginx.conf")], stdout=log, stderr=log
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.certified), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    text = (folder / "nginx.log").read_text()
                    raise SystemExit(f"nginx did not start: {text}") from None
            time.sleep(0.05)

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)


class Way:
    """One way to ask."""

    def __init__(self, name, agent, port, *, base, token=None):
        self.name, self.agent, self.port, self.base, self.token = name, agent, port, base, token
        self.costs_us, self.rates = [], []

    def measure(self, *, seconds, connections):
        headers = [] if self.token is None else ["-H", f"X-Consul-Token: {self.token}"]
        before_s = self.agent.cpu_s()
        url = f"http://127.0.0.1:{self.port}{TARGET}"
        out = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *headers, url],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        spent_s = self.agent.cpu_s() - before_s
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", out)
        if bad:
            raise SystemExit(f"{self.name}: {bad.group(0)}")
        count = int(re.search(r"(\d+) requests in", out).group(1))
        self.costs_us.append(spent_s / count * 1e6)
        self.rates.append(float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)))


def has_stream():
    found = shutil.which("nginx")
    if found is None:
        return False
    said = subprocess.run([found, "-V"], capture_output=True, text=True, check=False).stderr
    return "--with-stream" in said


def measure(args):
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-access-")))
        log = stack.enter_context((folder / "log").open("wb"))
        agents, tokens = {}, {}
        for name in ("open", "protected"):
            (folder / name).mkdir()
            agents[name] = Agent(folder / name, log, protected=name == "protected")
            stack.callback(agents[name].stop)
            tokens = prepare(agents[name], protected=name == "protected") or tokens
        unprotected, protected = agents["open"], agents["protected"]
        ways = [
            Way("http, no access control", unprotected, unprotected.http, base=0),
            Way("http, anonymous", protected, protected.http, base=0),
            *(
                Way(f"http, {name}", protected, protected.http, base=0, token=token)
                for name, token in tokens.items()
            ),
        ]
        if has_stream():
            pem = client_pem(protected.data, folder)
            proxy = Proxy(folder, protected, pem, log)
            stack.callback(proxy.stop)
            first = len(ways)
            ways.append(Way("https, anonymous", protected, proxy.plain, base=first))
            for name, token in tokens.items():
                ways.append(Way(f"https, {name}", protected, proxy.plain, base=first, token=token))
            ways.append(Way("https, client certificate", protected, proxy.certified, base=first))
        for way in ways:
            way.measure(seconds=1, connections=args.connections)
            way.costs_us.clear()
            way.rates.clear()
        for round_ in range(args.rounds):
            for way in ways if round_ % 2 == 0 else reversed(ways):
                way.measure(seconds=args.seconds, connections=args.connections)
    return ways


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    ways = measure(args)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds of {args.seconds} s, "
        f"{args.connections} connections, GET {TARGET}; medians"
    )
    print(f"{'':28}{'CPU µs':>8}{'more':>8}{'worst':>8}{'req/s':>10}{'ratio':>8}")
    table = {}
    for way in ways:
        base = ways[way.base]
        cost_us = statistics.median(way.costs_us)
        more = [mine - theirs for mine, theirs in zip(way.costs_us, base.costs_us, strict=True)]
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(way.rates, base.rates, strict=True)
        )
        rate = statistics.median(way.rates)
        print(
            f"{way.name:28}{cost_us:8.1f}{statistics.median(more):+8.1f}{max(more):+8.1f}{rate:10,.0f}{ratio:7.2f}x"
        )
        table[way.name] = {"cpu_us": cost_us, "more_us": statistics.median(more), "rate": rate}
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
