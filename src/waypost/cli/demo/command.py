"""The demo's story: start everything, ask everything, stop and start instances under the balancer's eyes, clean up."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from waypost.base.errors import Unavailable, WaypostError
from waypost.cli.demo.services import (
    Containers,
    Processes,
    Runner,
    free_port,
    private_engine,
    running_engine,
)
from waypost.cli.flags import Command, Settings, flag

SUMMARY = "Show the whole platform at work on this machine"

HOST: Final = "httpfront.example.com"
_CLIENTS: Final = {"curl": "curl", "dig": "bind9-dnsutils", "nc": "netcat-openbsd"}
"""Programs that the demo proposes to a person, and the Debian packages they come with."""
_READY_S: Final = 30.0
_STEP_S: Final = 20.0


class DemoFlags(Settings):
    """What may stand on the command line."""

    once: bool = flag(False, "Check each answer, print what was seen, exit 0 or 1.")
    services: str = flag(
        "auto", "containers or processes; auto takes containers where a Docker engine can be had."
    )
    keep: bool = flag(False, "Leave the working directory with its logs.")


class Failed(WaypostError):
    """A step did not come out as it must; the text says what was seen."""

    code = "demo_failed"


class Over(Failed):
    """A step can no longer come out as it must: trying again is of no use."""


class Stopped(BaseException):
    """SIGTERM came: clean up and go."""


class Places(msgspec.Struct, frozen=True):
    """Where the parts of this run listen."""

    http: int
    dns: int
    balancer: int
    tcp: int
    backend: int


class Story:
    """Prints the steps, and keeps count of what failed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._step = 0
        self.failures: list[str] = []
        self._color = sys.stdout.isatty()

    def step(self, text: str) -> None:
        """Begin a step."""
        self._step += 1
        self._write(f"\n[{time.monotonic() - self._began:5.1f} s] {self._step}. {text}", bold=True)

    def say(self, text: str) -> None:
        """Show something that was seen."""
        for line in text.rstrip("\n").split("\n"):
            self._write(f"            {line}")

    def check(self, what: str, probe: Callable[[], str], *, within_s: float = _STEP_S) -> None:
        """Try `probe` until it returns what was seen; after `within_s` note the failure and go on."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                seen = probe()
            except (WaypostError, OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, Over) or time.monotonic() > deadline:
                    self.failures.append(f"{what}: {error}")
                    self.say(f"FAILED: {what}: {error}")
                    return
                time.sleep(0.05)
            else:
                self.say(seen)
                self.say(f"ok: {what}")
                return

    def _write(self, text: str, *, bold: bool = False) -> None:
        if bold and self._color:
            text = f"\033[1m{text}\033[0m"
        print(text, flush=True)


def choose_runner(wanted: str, folder: Path, story: Story) -> Runner:
    """Return how the services will run, and say why. Raises Unavailable when what was asked for cannot be had."""
    hint = "\nWith one (apt-get install docker.io iptables iproute2) they run as containers."
    if wanted != "processes":
        found: Containers | None = running_engine(os.environ)
        if found is not None:
            story.say("The sample services run as containers on this machine's Docker engine.")
            return found
        found = private_engine(folder / "docker")
        if found is not None:
            story.say("A Docker engine was started for this demo alone.")
            try:
                found.prepare_images()
            except BaseException as error:
                found.close()
                if wanted == "containers" or not isinstance(error, Unavailable):
                    raise
                story.say(f"It takes no image, though: {error}")
                hint = ""
            else:
                story.say("The sample services run as containers on it.")
                return found
        if wanted == "containers":
            msg = "no Docker engine: none answers, and none can be started (needs root, dockerd, ip, iptables)"
            raise Unavailable(msg)
        story.say(
            "The sample services run as plain processes, registered through the API: no Docker engine can be had here."
            + hint
        )
    else:
        story.say(
            "The sample services run as plain processes, registered through the API, as asked for."
        )
    return Processes(folder)


def choose_places() -> Places:
    """Return the usual ports where they are free, others where not."""
    return Places(
        http=free_port(8500),
        dns=free_port(8600, kind=socket.SOCK_DGRAM),
        balancer=free_port(80 if os.geteuid() == 0 else 8080, host="0.0.0.0"),
        tcp=free_port(9999, host="0.0.0.0"),
        backend=free_port(8081, host="0.0.0.0"),
    )


def start_agent(folder: Path, places: Places, runner: Runner) -> subprocess.Popen[bytes]:
    """Start `waypost agent` with everything on; its log goes to `agent.log`."""
    with (folder / "agent.log").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "waypost",
                "agent",
                f"-data-dir={folder}/data",
                "-node=demo",
                "-ui",
                f"-http-port={places.http}",
                f"-dns-port={places.dns}",
                f"-balancer-listen=0.0.0.0:{places.balancer}",
                "-balancer=on",
                *runner.agent_flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def stop_agent(agent: subprocess.Popen[bytes]) -> None:
    """End the agent as SIGTERM does, and what it left behind if it must be killed."""
    with suppress(ProcessLookupError):
        agent.send_signal(signal.SIGTERM)
    try:
        agent.wait(15)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


class Questions:
    """What the demo asks, each as a user would."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def api(self, path: str) -> Any:
        """GET a path of the HTTP API."""
        status, _, body = _get("127.0.0.1", self._places.http, path)
        if status != 200:
            msg = f"{path} answered {status}: {body.strip()}"
            raise Failed(msg)
        return json.loads(body)

    def ready(self) -> str:
        """Return the empty catalog."""
        services = self.api("/v1/catalog/services")
        if services != {"consul": []}:
            msg = f"expected only consul, got {services}"
            raise Failed(msg)
        return f"$ curl -s localhost:{self._places.http}/v1/catalog/services\n" + json.dumps(
            services, separators=(",", ":")
        )

    def instances(self, service: str, count: int) -> str:
        """Return the catalog's entries of a service."""
        found = self.api(f"/v1/health/service/{service}?passing")
        if len(found) != count:
            msg = f"{len(found)} of {count} instances are there"
            raise Failed(msg)
        return "\n".join(
            f"{one['Service']['ID']}  {one['Service']['Address'] or one['Node']['Address']}:{one['Service']['Port']}"
            for one in found
        )

    def srv(self, service: str, count: int) -> str:
        """Return the SRV records of a service."""
        import dns.message
        import dns.query
        import dns.rdatatype

        name = f"{service}.service.dc1.consul"
        query = dns.message.make_query(name, dns.rdatatype.SRV)
        answer = dns.query.udp(query, "127.0.0.1", port=self._places.dns, timeout=2)
        records = sorted(str(record) for rrset in answer.answer for record in rrset)
        if len(records) != count:
            msg = f"{len(records)} of {count} records for {name}"
            raise Failed(msg)
        return f"$ dig +short @127.0.0.1 -p {self._places.dns} {name} SRV\n" + "\n".join(records)

    def fronts(self, *, expected: set[str]) -> str:
        """Return answers through the balancer that come from exactly the `expected` instances."""
        lines, seen = [], set()
        for _ in range(2 * max(3, len(expected))):
            status, headers, body = _get("127.0.0.1", self._places.balancer, "/", host=HOST)
            if status != 200 or "calling backendservice ok" not in body:
                msg = f"the balancer answered {status}: {body.strip()}"
                raise Failed(msg)
            instance = headers.get("x-instance", "?")
            if instance not in seen:
                lines.append(" ".join(body.split()))
            seen.add(instance)
        if seen != expected:
            msg = f"answers came from {sorted(seen)}, not from {sorted(expected)}"
            raise Failed(msg)
        port = "" if self._places.balancer == 80 else f":{self._places.balancer}"
        command = f"$ curl -s -H 'Host: {HOST}' localhost{port}"
        return "\n".join(f"{command}\n{line}" for line in lines)

    def echo(self, *, expected: set[str]) -> str:
        """Return lines echoed through the balancer's TCP port by the `expected` instances."""
        lines, seen = [], set()
        for _ in range(2 * max(2, len(expected))):
            with socket.create_connection(("127.0.0.1", self._places.tcp), timeout=3) as client:
                client.sendall(b"hello\n")
                line = client.makefile("r").readline().strip()
            if "tcpfrontservice" not in line:
                msg = f"port {self._places.tcp} answered {line!r}"
                raise Failed(msg)
            instance = line.partition("instance: ")[2].partition(",")[0]
            if instance not in seen:
                lines.append(line)
            seen.add(instance)
        if seen != expected:
            msg = f"answers came from {sorted(seen)}, not from {sorted(expected)}"
            raise Failed(msg)
        return "\n".join(
            f"$ echo hello | nc -q1 localhost {self._places.tcp}\n{line}" for line in lines
        )

    def page(self) -> str:
        """Return what the web interface answers."""
        status, _, body = _get("127.0.0.1", self._places.http, "/ui/")
        if status != 200 or "waypost" not in body:
            msg = f"/ui/ answered {status}"
            raise Failed(msg)
        return f"http://localhost:{self._places.http}/ui/ answers with {len(body)} bytes"


def _get(address: str, port: int, path: str, *, host: str = "") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
    finally:
        connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body


def _short(name: str) -> str:
    """Return an instance's name as it gives it itself."""
    return name.removeprefix("waypost-demo-")


def tell(story: Story, runner: Runner, places: Places, questions: Questions) -> None:
    """Run the whole story."""
    story.step("A service that others call by its name")
    runner.start("httpbackend", service="httpbackend", port=places.backend)
    story.check("it registered itself", lambda: questions.instances("httpbackend", 1))
    story.check("its name resolves", lambda: questions.srv("httpbackend", 1))

    story.step("Three instances of a web service, tagged http: the balancer follows")
    fronts = [runner.start("httpfront", service="httpfront", tags="http") for _ in range(3)]
    story.check("they registered themselves", lambda: questions.instances("httpfront", 3))
    expected = {_short(name) for name in fronts}
    story.check("requests spread over all three", lambda: questions.fronts(expected=expected))

    story.step(f"Two instances of a TCP service, named tcpfront-{places.tcp} and tagged tcp")
    service = f"tcpfront-{places.tcp}"
    echoes = {_short(runner.start("tcpfront", service=service, tags="tcp")) for _ in range(2)}
    story.check("they registered themselves", lambda: questions.instances(service, 2))
    story.check("lines are echoed by both", lambda: questions.echo(expected=echoes))

    story.step("One web instance stops, another one starts: the answers follow")
    gone = fronts.pop(0)
    runner.stop(gone)
    expected_left = {_short(name) for name in fronts}
    story.check(
        f"{_short(gone)} gets no more requests", lambda: questions.fronts(expected=expected_left)
    )
    fronts.append(runner.start("httpfront", service="httpfront", tags="http"))
    expected_now = {_short(name) for name in fronts}
    story.check(
        f"{_short(fronts[-1])} gets its share", lambda: questions.fronts(expected=expected_now)
    )

    story.step("What a browser shows")
    story.check("the web interface answers", questions.page)


def _invite(story: Story, places: Places) -> None:
    port = "" if places.balancer == 80 else f":{places.balancer}"
    waypost = "waypost" if shutil.which("waypost") else sys.argv[0]
    story.step("Everything runs. Try, in another terminal:")
    story.say(
        f"curl -s localhost:{places.http}/v1/catalog/services\n"
        f"dig +short @127.0.0.1 -p {places.dns} httpfront.service.dc1.consul SRV\n"
        f"curl -s -H 'Host: {HOST}' localhost{port}\n"
        f"echo hello | nc -q1 localhost {places.tcp}\n"
        f"{waypost} members -http-addr=127.0.0.1:{places.http}\n"
        f"and in a browser: http://localhost:{places.http}/ui/"
    )
    missing = [package for program, package in _CLIENTS.items() if shutil.which(program) is None]
    if missing:
        story.say(f"\n(for these: apt-get install {' '.join(missing)})")
    story.say("\nCtrl-C removes everything.")


def _run(flags: DemoFlags, args: list[str]) -> int:
    if args:
        msg = f"unexpected argument: {args[0]}"
        raise Failed(msg)
    if flags.services not in ("auto", "containers", "processes"):
        msg = f"-services is auto, containers or processes, not {flags.services!r}"
        raise Failed(msg)
    signal.signal(signal.SIGTERM, _on_term)
    story = Story()
    folder = Path(tempfile.mkdtemp(prefix="waypost-demo-"))
    status = 1
    with ExitStack() as cleanup:
        cleanup.callback(_remove, folder, flags, story)
        try:
            status = _play(flags, story, folder, cleanup)
        except (KeyboardInterrupt, Stopped):
            print("\nremoving everything", flush=True)
            status = 0 if not flags.once and not story.failures else 1
            _ignore_signals()
    return status


def _play(flags: DemoFlags, story: Story, folder: Path, cleanup: ExitStack) -> int:
    places = choose_places()
    story.step("Where the services run")
    runner = choose_runner(flags.services, folder, story)
    cleanup.callback(runner.close)
    story.step("The agent: registry, DNS, registrator, balancer and web interface in one process")
    began = time.monotonic()
    agent = start_agent(folder, places, runner)
    cleanup.callback(stop_agent, agent)
    questions = Questions(places)
    story.check("it answers", lambda: _alive(agent, folder, questions.ready), within_s=_READY_S)
    if story.failures:
        story.say("the agent's last words:\n" + _tail(folder / "agent.log"))
        return 1
    story.say(f"ready after {time.monotonic() - began:.2f} s")
    runner.prepare(api=f"127.0.0.1:{places.http}", dns=f"127.0.0.1:{places.dns}")
    tell(story, runner, places, questions)
    if story.failures:
        story.say("the agent's last words:\n" + _tail(folder / "agent.log"))
    if flags.once:
        return _conclude(story)
    _invite(story, places)
    while agent.poll() is None:
        time.sleep(0.5)
    story.say("the agent ended:\n" + _tail(folder / "agent.log"))
    return 1


def _alive(agent: subprocess.Popen[bytes], folder: Path, probe: Callable[[], str]) -> str:
    if agent.poll() is not None:
        msg = f"the agent ended with status {agent.returncode}"
        raise Over(msg)
    return probe()


def _conclude(story: Story) -> int:
    if story.failures:
        print(f"\nFAILED: {len(story.failures)} of the checks", flush=True)
        for failure in story.failures:
            print(f"  {failure}", flush=True)
        return 1
    print("\nAll checks passed.", flush=True)
    return 0


def _tail(path: Path, *, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _remove(folder: Path, flags: DemoFlags, story: Story) -> None:
    if flags.keep:
        story.say(f"the logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _on_term(_signal: int, _frame: object) -> None:
    raise Stopped


def _ignore_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


COMMAND = Command(
    "demo [options]",
    "Starts an agent and three small services on this machine, asks everything that can be asked, stops and starts\n"
    "instances, and removes everything at the end (with Ctrl-C unless -once).",
    settings=DemoFlags,
    action=_run,
)


def run(argv: Sequence[str]) -> int:
    """Run `waypost demo`."""
    return COMMAND.run(argv)
