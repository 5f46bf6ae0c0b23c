"""The whole platform on fresh hosts, step by step: what an operator types, and what must be seen.

Three hosts run the agent, which does everything (registration, DNS, balancing); a fourth, the *edge*, is set up the
way people glue the parts together: an nginx of the distribution whose configuration a template writes.
"""

from __future__ import annotations

import datetime as dt
import http.client
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .host import Host, eventually
from .lab import Lab
from .place import LabError

BACKEND, FRONT, TCP = (
    f"waypost/{name}:v1.0.0" for name in ("httpbackend", "httpfront", "tcpfront")
)
_BASE: Final = "waypost/sample-base:v1.0.0"
_BOX: Final = "lab/box"
_CONSUL_FIELDS: Final = {
    "ServiceName": "consul",
    "ServiceTags": [],
    "ServiceAddress": "",
    "ServicePort": 8300,
    "ServiceEnableTagOverride": False,
    "Datacenter": "dc1",
}
_ALSO_THERE: Final = (
    "ID", "Node", "Address", "NodeMeta", "TaggedAddresses", "ServiceID", "ServiceMeta", "CreateIndex", "ModifyIndex",
)  # fmt: skip
TEMPLATE: Final = """\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;
events { worker_connections 768; }
http {
        access_log off;
        {{range services -}}
        {{$name := .Name}}
        {{$service := service .Name}}
        {{- if in .Tags "http" -}}
        upstream {{$name}} {
          zone upstream-{{$name}} 64k;
          {{range $service}}
          server {{.Address}}:{{.Port}} max_fails=3 fail_timeout=60 weight=1;
          {{end}}
        }{{end}}
        {{end}}

        {{- range services -}} {{$name := .Name}}
        {{- if in .Tags "http" -}}
        server {
          listen 80;
          server_name {{$name}}.example.com;

          location / {
            proxy_pass http://{{$name}};
          }
        }
        {{end}}
        {{end}}
}
stream {
   {{- range services -}}
   {{$name := .Name}}
   {{$service := service .Name}}
     {{- if in .Tags "tcp" -}}
  upstream {{$name}} {
    least_conn;
    {{- range $service}}
    server {{.Address}}:{{.Port}} max_fails=3 fail_timeout=30s weight=5;
    {{ end }}
  }
     {{end}}
  {{end}}

   {{- range services -}}
   {{$name := .Name}}
   {{$nameAndPort := $name | split "-"}}
    {{- if in .Tags "tcp" -}}
  server {
      listen {{ index $nameAndPort 1 }};
      proxy_pass {{$name}};
  }
    {{end}}
   {{end}}
}
"""
_SECURE_SERVER: Final = """\
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tls/tls.pem")
listener = socket.create_server(("", 8443))
while True:
    try:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as client:
            client.recv(65536)
            client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + sys.argv[1].encode())
    except OSError as error:
        print(error, flush=True)
"""


class Scenario:
    """The steps, in order; each returns what was seen or raises LabError."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts = list(lab.hosts)
        self.edge = lab.add_host()
        self.certificates: dict[str, bytes] = {}
        self.failures: list[str] = []

    def run(self) -> int:
        """Run all steps, print a line for each; return how many failed."""
        steps: list[tuple[str, Callable[[], str]]] = [
            ("A3", self.one_machine),
            ("A1", self.first_server),
            ("A2", self.other_servers),
            ("A4", self.web_interface),
            ("A5", self.empty_catalog),
            ("A6", self.consul_service),
            ("A7", self.names_on_hosts),
            ("A8", self.names_in_containers),
            ("A9", self.backend),
            ("A9", self.containers_while_the_agent_was_away),
            ("A10", self.template),
            ("A11", self.front),
            ("A12", self.tcp),
            ("A13", self.tls),
        ]
        began = time.monotonic()
        for number, (name, step) in enumerate(steps):
            try:
                seen = step()
            except (LabError, OSError, http.client.HTTPException, LookupError) as error:
                self.failures.append(f"{name}: {error}")
                _say(began, f"{name} FAILED: {type(error).__name__}: {error}")
                if name in ("A1", "A2"):
                    left = sorted({one for one, _ in steps[number + 1 :]})
                    _say(began, f"not run without a cluster: {', '.join(left)}")
                    self.failures += left
                    break
            else:
                _say(began, f"{name} ok {seen}")
        for host in self.hosts if self.failures else ():
            print(f"--- {host.name}, end of the agent's log\n{host.agent.tail()[-2500:]}")
        return len(self.failures)

    # -- A1 to A3: servers -----------------------------------------------------------------------------------------

    def one_machine(self) -> str:
        """`-dev`, and no -bootstrap-expect at all: ready in under a second."""
        host = self.hosts[-1]
        seen = []
        for flags in (["-dev"], host.agent.flags()):
            host.agent.command = ["waypost", "agent", *flags]
            known = len(host.agent.log())
            host.agent.start_again()
            found = eventually(lambda k=known: _READY.search(host.agent.log(), k))
            if float(found[1]) >= 1.0:
                raise LabError(f"{' '.join(flags)}: ready after {found[1]} s")
            if host.put("/v1/kv/lab/alone", b"1") is not True:
                raise LabError("a write of one machine alone is not taken")
            seen.append(f"{'-dev' if '-dev' in flags else 'with -data-dir'} after {found[1]} s")
            host.agent.stop()
        host.wipe()
        return f"ready {', '.join(seen)}"

    def first_server(self) -> str:
        """The first of three servers waits, and says so to those who need a leader."""
        first = self.hosts[0]
        expect = len(self.hosts) if len(self.hosts) > 1 else 0
        first.agent.start(expect=expect)
        if not expect:
            return "one server, which waits for nobody"
        time.sleep(2)
        for method, path in (("PUT", "/v1/kv/lab/a"), ("GET", "/v1/kv/lab/a?consistent")):
            reply = first.http(path, method=method, body=b"x" if method == "PUT" else None)
            if (reply.status, reply.text.strip()) != (500, "No cluster leader"):
                raise LabError(f"{method} {path}: {reply.status} {reply.text!r}")
        if not first.agent.runs:
            raise LabError(f"the agent ended: {first.agent.tail()}")
        lines = [line for line in first.agent.log().splitlines() if "wait" in line.lower()]
        if not lines:
            raise LabError("nothing in the log says that it waits for servers")
        return f'answers 500 "No cluster leader"; logs: {lines[0].partition("] ")[2].strip()}'

    def other_servers(self) -> str:
        """The others join; all agree on one leader, and list the same voters."""
        began = time.monotonic()
        for host in self.hosts[1:]:
            host.agent.start(expect=len(self.hosts), join=self.hosts[0].address)
        eventually(
            lambda: (
                len({host.agent.leader() for host in self.hosts} - {""}) == 1
                and all(host.agent.leader() for host in self.hosts)
            ),
            within_s=40,
        )
        took_s = time.monotonic() - began
        tables = [eventually(lambda h=host: self._peers(h), within_s=20) for host in self.hosts]
        if any(table != tables[0] for table in tables):
            raise LabError(f"hosts do not list the same servers: {tables}")
        state = next(line for line in tables[0] if line[3] == "leader")
        return (
            f"{len(tables[0])} voters, leader {state[0]}, {took_s:.1f} s after the last two began"
        )

    def _peers(self, host: Host) -> list[tuple[str, ...]]:
        lines = host.run("waypost", "operator", "raft", "list-peers").out.splitlines()
        head, rows = lines[0].split(), sorted(tuple(line.split()) for line in lines[1:])
        if head != ["Node", "ID", "Address", "State", "Voter", "RaftProtocol"]:
            raise LabError(f"columns {head}")
        states = sorted(row[3] for row in rows)
        followers = ["follower"] * (len(self.hosts) - 1)
        if states != [*followers, "leader"] or any(row[4] != "true" for row in rows):
            raise LabError(f"no {len(self.hosts)} voters with one leader: {rows}")
        if {row[0] for row in rows} != {one.name for one in self.hosts}:
            raise LabError(f"other nodes: {rows}")
        if {row[2] for row in rows} != {f"{one.address}:8300" for one in self.hosts}:
            raise LabError(f"other addresses: {rows}")
        return rows

    # -- A4 to A6: what it shows -----------------------------------------------------------------------------------

    def web_interface(self) -> str:
        """The page is there, and a change reaches whoever watches, on every host."""
        for host in self.hosts:
            page = host.http("/ui/")
            if page.status != 200 or "<html" not in page.text.lower():
                raise LabError(f"{host.name}: /ui/ answers {page.status}")
            picture = host.get("/ui/api/picture")
            if not isinstance(picture, dict):
                raise LabError(f"{host.name}: no picture")
        watcher = self.hosts[-1].place.connection("127.0.0.1", 8500, timeout_s=10)
        try:
            watcher.request("GET", "/ui/api/events")
            stream = watcher.getresponse()
            kind = stream.getheader("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise LabError(f"/ui/api/events is {kind!r}")
            # A service registered at one host is told to a browser at another.
            self._register_for_a_moment(self.hosts[0], "seen-live")
            began = time.monotonic()
            text = b""
            while b"seen-live" not in text:
                if time.monotonic() - began > 10:
                    raise LabError(f"the event stream does not tell of a new service: {text!r}")
                text += stream.read1(65536)
        finally:
            watcher.close()
            self.hosts[0].put("/v1/agent/service/deregister/seen-live")
        return f"page on {len(self.hosts)} hosts, a new service was told live to another host"

    def _register_for_a_moment(self, host: Host, name: str) -> None:
        host.put("/v1/agent/service/register", {"Name": name, "Port": 9})

    def empty_catalog(self) -> str:
        """`curl localhost:8500/v1/catalog/services` on every host."""
        for host in self.hosts:
            eventually(
                lambda h=host: h.curl("localhost:8500/v1/catalog/services").strip(),
                '{"consul":[]}',
            )
        return '{"consul":[]}'

    def consul_service(self) -> str:
        """One entry a server, with every field, the same on all hosts."""
        wanted = {(host.name, host.address) for host in self.hosts}
        for host in self.hosts:
            rows = host.get("/v1/catalog/service/consul")
            if {(row["Node"], row["Address"]) for row in rows} != wanted or len(rows) != len(
                wanted
            ):
                raise LabError(f"{host.name} has {[(r['Node'], r['Address']) for r in rows]}")
            for row in rows:
                wrong = {k: row.get(k) for k, v in _CONSUL_FIELDS.items() if row.get(k) != v}
                missing = [key for key in _ALSO_THERE if key not in row]
                if wrong or missing or row["TaggedAddresses"].get("lan") != row["Address"]:
                    raise LabError(f"{host.name}: wrong {wrong}, missing {missing}")
        return f"{len(wanted)} entries with all fields, the same on every host"

    # -- A7, A8: names ---------------------------------------------------------------------------------------------

    def names_on_hosts(self) -> str:
        """ping through the host's resolver, and the addresses rotate over the servers.

        A program on a server that uses getaddrinfo gets the server's own address first, whatever the order of the
        answer (RFC 6724, longest matching prefix). So the order is looked at in the answers, and by pings of the edge,
        which is none of the servers.
        """
        name, wanted = "consul.service.dc1.consul", {host.address for host in self.hosts}
        resolvers = "".join(f"nameserver {host.address}\n" for host in self.hosts)
        (self.edge.folder / "etc/resolv.conf").write_text(resolvers)
        for host in self.hosts:
            for _ in range(3):
                reached = _ping(host.run(*_PING, name).out)
                if reached not in wanted:
                    raise LabError(f"{host.name}: {name} is {reached}")
            self._rotates(f"{host.name}: first answers", wanted, lambda h=host: h.dig(name)[0])
        self._rotates("pings of the edge", wanted, lambda: _ping(self.edge.run(*_PING, name).out))
        return f"pings of {name} from the edge reached {', '.join(sorted(wanted))} in turn"

    def _rotates(self, what: str, wanted: set[str], probe: Callable[..., str]) -> None:
        seen: set[str] = set()
        for _ in range(40):
            seen.add(probe())
            if seen == wanted:
                return
        raise LabError(f"{what} were {sorted(seen)} in 40 tries")

    def names_in_containers(self) -> str:
        """The same from inside a container, by the engine's `dns` setting."""
        for host in self.hosts:
            command = ["run", "--rm", _BOX, "ping", "-c", "1", "-W", "2"]
            seen = _ping(host.docker(*command, "consul.service.dc1.consul"))
            if seen not in {one.address for one in self.hosts}:
                raise LabError(f"{host.name}: a container reached {seen}")
        return f"containers of {len(self.hosts)} engines reach consul.service.dc1.consul"

    # -- A9: containers --------------------------------------------------------------------------------------------

    def backend(self) -> str:
        """docker run on each host: registered everywhere within a second; docker stop takes it out."""
        slowest_s = 0.0
        made = []
        for count, host in enumerate(self.hosts, 1):
            made.append(_start(host, BACKEND, "httpbackend", "-p", "8081:8081"))
            started = time.monotonic()
            for other in self.hosts:
                eventually(
                    lambda o=other: len(o.get("/v1/catalog/service/httpbackend")), count, within_s=5
                )
            slowest_s = max(slowest_s, time.monotonic() - started)
        if slowest_s > 1.0:
            raise LabError(f"registered on all hosts only {slowest_s:.2f} s after docker run")
        addresses = sorted(host.address for host in self.hosts)
        for host in self.hosts:
            _same(sorted(host.dig("httpbackend.service.dc1.consul")), addresses)
            records = host.dig("httpbackend.service.dc1.consul", "SRV")
            _same({line.split()[2] for line in records}, {"8081"})
            _same(sorted(host.dig(line.split()[3])[0] for line in records), addresses)
            text = eventually(lambda h=host: h.curl("httpbackend.service.dc1.consul:8081"))
            if "this is httpbackendservice, version: v1.0.0" not in text:
                raise LabError(f"{host.name}: {text!r}")
        last = self.hosts[-1]
        last.docker("stop", "-t", "1", made[-1])
        for host in self.hosts:
            eventually(
                lambda h=host: sorted(h.dig("httpbackend.service.dc1.consul")),
                sorted(one.address for one in self.hosts[:-1]),
            )
        last.docker("start", made[-1])
        for host in self.hosts:
            eventually(lambda h=host: sorted(h.dig("httpbackend.service.dc1.consul")), addresses)
        hidden = _start(last, BACKEND, "hidden")
        eventually(
            lambda: any(
                hidden[:12] in line and "ignored" in line for line in last.agent.log().splitlines()
            )
        )
        if "hidden" in last.get("/v1/catalog/services"):
            raise LabError("a container without published ports is registered")
        last.docker("rm", "-f", hidden)
        return f"{len(self.hosts)} instances, on all hosts {slowest_s:.2f} s after docker run; A, SRV, stop, ignored"

    def containers_while_the_agent_was_away(self) -> str:
        """What was started before the agent is picked up, what vanished without it is removed."""
        host = self.hosts[-1]
        gone = _start(host, BACKEND, "vanishes", "-P")
        eventually(lambda: "vanishes" in self.hosts[0].get("/v1/catalog/services"))
        host.agent.kill()
        host.docker("rm", "-f", gone)
        late = _start(host, BACKEND, "was-there", "-P")
        host.agent.start_again()
        for one in self.hosts:
            eventually(
                lambda o=one: (
                    {"vanishes", "was-there"} & set(o.get("/v1/catalog/services")) == {"was-there"}
                ),
                within_s=20,
            )
        host.docker("rm", "-f", late)
        eventually(lambda: "was-there" not in host.get("/v1/catalog/services"))
        return "after kill -9 and start: started meanwhile is there, vanished meanwhile is not"

    # -- A10 to A13: the way in ------------------------------------------------------------------------------------

    def template(self) -> str:
        """The edge: a template writes nginx.conf; nothing is generated without a tagged service."""
        edge = self.edge
        (edge.folder / "etc/nginx/nginx.conf.template").write_text(TEMPLATE)
        edge.run("rm", "-f", "/etc/nginx/nginx.conf", "/etc/nginx/sites-enabled/default")
        # As a distribution's unit does it: nginx runs, and is told to read its file again.
        command = "sh -c 'nginx -s reload 2>/dev/null || nginx'"
        edge.spawn(
            "template",
            [
                "waypost", "template", f"-consul-addr={self.hosts[0].address}:8500", "-template",
                f"/etc/nginx/nginx.conf.template:/etc/nginx/nginx.conf:{command}",
            ],
        )  # fmt: skip
        text = eventually(self._edge_file, within_s=15)
        if "upstream" in text or "listen" in text:
            raise LabError(f"something is generated without a tagged service: {text}")
        eventually(lambda: edge.run("pgrep", "-x", "nginx").out)
        return "rendered, nginx runs; no upstream without a tagged service"

    def _edge_file(self) -> str:
        return (self.edge.folder / "etc/nginx/nginx.conf").read_text()

    def front(self) -> str:
        """httpfront on each host: asked by host name at every way in, all instances answer, each calls the backend."""
        names = {
            _start(host, FRONT, "httpfront", "-P", tags="http")[:12]: host for host in self.hosts
        }
        eventually(lambda: self._edge_file().count("max_fails=3 fail_timeout=60"), len(self.hosts))
        ways = [*self.hosts, self.edge]
        for way in ways:
            eventually(lambda w=way: self._fronts(w) >= set(names), within_s=15)
        return f"{len(names)} instances answer through {len(ways)} ways in, each with the backend's answer"

    def _fronts(self, way: Host) -> set[str]:
        seen = set()
        for _ in range(12):
            reply = self.lab.outside.request(
                "GET", way.address, 80, "/", headers={"Host": "httpfront.example.com"}
            )
            found = re.search(r"httpfrontservice.*instance: (\w+), calling", reply.text)
            if found is None or "ok, its resp: [this is httpbackendservice" not in reply.text:
                raise LabError(f"{way.name}: {reply.status} {reply.text!r}")
            seen.add(found[1])
        return seen

    def tcp(self) -> str:
        """tcpfront-9999 on each host: lines come back with version and time, from all instances."""
        names = {_start(host, TCP, "tcpfront-9999", "-P", tags="tcp")[:12] for host in self.hosts}
        ways = [*self.hosts, self.edge]
        for way in ways:
            eventually(lambda w=way: self._echoes(w) >= names, within_s=15)
        return f"{len(names)} instances echo through port 9999 of {len(ways)} ways in"

    def _echoes(self, way: Host) -> set[str]:
        seen = set()
        for _ in range(9):
            with self.lab.outside.connect(way.address, 9999) as client:
                client.sendall(b"hello\n")
                text = client.recv(1000).decode()
            found = re.search(r"^hello .*version: v1.0.0, instance: (\w+), \d{4}-\d\d-\d\d", text)
            if found is None:
                raise LabError(f"{way.name}: {text!r}")
            seen.add(found[1])
        return seen

    def tls(self) -> str:
        """Two services with certificates of their own, passed through by server name and by port."""
        for name, tag, host in (
            ("secure-a", "https", self.hosts[0]),
            ("secure-b", "https", self.hosts[-1]),
            ("porta-9443", "tcp", self.hosts[0]),
            ("portb-9444", "tcp", self.hosts[-1]),
        ):
            self._start_secure(host, name, tag)
        ports = {"secure-a": 443, "secure-b": 443, "porta-9443": 9443, "portb-9444": 9444}
        for way in self.hosts:
            for name, port in ports.items():
                eventually(lambda w=way, n=name, p=port: self._shakes(w, n, p), within_s=15)
        for name in ("porta-9443", "portb-9444"):
            eventually(lambda n=name: self._shakes(self.edge, n, ports[n]), within_s=15)
        return "4 services show their own certificates: 2 by name on port 443, 2 by port"

    def _start_secure(self, host: Host, name: str, tag: str) -> None:
        folder = host.folder / "etc/lab" / name
        folder.mkdir(parents=True)
        (folder / "server.py").write_text(_SECURE_SERVER)
        self.certificates[name] = _make_certificate(f"{name}.example.com", folder / "tls.pem")
        _start(
            host, _BASE, name, "-p", "8443", "-v", f"/etc/lab/{name}:/tls:ro", tags=tag,
            command=("/usr/bin/python3", "-S", "/tls/server.py", name),
        )  # fmt: skip

    def _shakes(self, way: Host, name: str, port: int) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = self.lab.outside.connect(way.address, port)
        with context.wrap_socket(plain, server_hostname=f"{name}.example.com") as client:
            if client.getpeercert(binary_form=True) != self.certificates[name]:
                raise LabError(f"{way.name}:{port}: another certificate than that of {name}")
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            text = b""
            while chunk := client.recv(1000):
                text += chunk
        return text.endswith(name.encode())


_READY: Final = re.compile(r"agent is ready after ([0-9.]+) s")
_PING: Final = ("busybox", "ping", "-c", "1", "-W", "2")


def _ping(text: str) -> str:
    found = re.search(r"bytes from ([0-9.]+):", text)
    if found is None:
        raise LabError(f"no answer: {text!r}")
    return found[1]


def _same(seen: Any, wanted: Any) -> None:
    if seen != wanted:
        raise LabError(f"{seen!r} instead of {wanted!r}")


def _start(
    host: Host, image: str, name: str, *flags: str, tags: str = "", command: tuple[str, ...] = ()
) -> str:
    labels = ["-l", f"SERVICE_NAME={name}", *(["-l", f"SERVICE_TAGS={tags}"] if tags else [])]
    return host.docker("run", "-d", *labels, *flags, image, *command)


def _make_certificate(name: str, file: Path) -> bytes:
    """Write key and self-signed certificate into one file; return the certificate (DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return made.public_bytes(serialization.Encoding.DER)


def _say(began: float, text: str) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)


def _make_box(host: Host) -> None:
    """A container image with nothing but busybox."""
    host.run(
        "sh", "-ec",
        "d=$(mktemp -d); mkdir $d/bin; cp $(command -v busybox) $d/bin/busybox; "
        f"tar -C $d -c . | docker import -c 'ENTRYPOINT [\"/bin/busybox\"]' - {_BOX}; rm -r $d",
    )  # fmt: skip


def run(*, hosts: int = 3) -> int:
    """Run the scenario on a lab of its own; return the exit status."""
    began = time.monotonic()
    with Lab(hosts=hosts) as lab:
        lab.start_docker()
        lab.on_all(_make_box)
        print(f"{hosts} hosts with Docker are up after {time.monotonic() - began:.1f} s")
        failed = Scenario(lab).run()
    print(f"{'ok' if not failed else f'{failed} FAILED'} after {time.monotonic() - began:.1f} s")
    return 1 if failed else 0
