"""How the demo's sample services run: as containers on a Docker engine, or as plain processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

from waypost.base.errors import Unavailable
from waypost.client import api as calls
from waypost.client.settings import Overrides, settings_from
from waypost.client.transport import Client
from waypost.samples import image

IMAGE_VERSION: Final = "v1.0.0"
DEMO_LABEL: Final = "waypost.demo"
_BRIDGE_PREFIX: Final = "wpdemo"
_BRIDGES: Final = 32
"""Several demos may run at once; each takes the first bridge name that is free, and the network of its number."""
_ENGINE_START_S: Final = 30.0


class Runner(Protocol):
    """Starts and stops instances of the samples."""

    kind: str
    """`containers` or `processes`, for people."""
    agent_flags: tuple[str, ...]
    """What the agent must be told so that the instances can be reached."""

    def prepare(self, *, api: str, dns: str) -> None:
        """Get ready; the agent's HTTP API and DNS are at these addresses."""
        ...

    def start(self, sample: str, *, service: str, tags: str = "", port: int = 0) -> str:
        """Start an instance and return its name; `port` 0 = any free one. Raises Unavailable."""
        ...

    def stop(self, name: str) -> None:
        """Stop an instance."""
        ...

    def close(self) -> None:
        """Stop everything and remove every trace. Safe to call at any time and twice."""
        ...


def free_port(preferred: int, *, host: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> int:
    """Return `preferred` if it can be bound now, else another free port."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    msg = f"no free port on {host}"
    raise Unavailable(msg)


class Engine:
    """The few calls of the Docker Engine API that the demo needs."""

    def __init__(self, path: str) -> None:
        self.path = path

    def call(self, method: str, target: str, body: Any = None) -> Any:
        """Return the decoded answer. Raises Unavailable with the engine's own words."""
        connection = image.EngineConnection(self.path)
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(
                method, target, body=data, headers={"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            text = response.read()
        except OSError as error:
            msg = f"Docker engine at {self.path}: {error}"
            raise Unavailable(msg) from error
        finally:
            connection.close()
        if response.status >= 400:
            with suppress(ValueError, AttributeError):
                text = json.loads(text).get("message", "").encode() or text
            msg = f"Docker engine: {text.decode('utf-8', 'replace').strip()}"
            raise Unavailable(msg)
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return text

    def answers(self) -> bool:
        """Return whether an engine listens there."""
        try:
            self.call("GET", "/_ping")
        except Unavailable:
            return False
        return True


class Containers:
    """Instances as containers: of the engine that runs, else of one started for the demo alone."""

    kind = "containers"

    def __init__(
        self,
        engine: Engine,
        *,
        gateway: str,
        private: subprocess.Popen[bytes] | None = None,
        bridge: str = "",
        folder: Path | None = None,
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._private = private
        self._bridge = bridge
        self._folder = folder
        self._names: list[str] = []
        self._count = 0
        self._images: tuple[str, ...] | None = None
        self.agent_flags: tuple[str, ...] = (
            f"-bind={gateway}",
            f"-docker-host=unix://{engine.path}",
            # Containers ask the agent for names on the bridge's own address.
            "-hcl",
            f'addresses {{ dns = "127.0.0.1 {gateway}:53" }}',
        )

    def prepare(self, *, api: str, dns: str) -> None:
        """Make the images, unless that was done."""
        del api, dns
        if self._images is None:
            self.prepare_images()

    def prepare_images(self) -> None:
        """Make the images; no registry is asked. Raises Unavailable when the engine does not take them."""
        wanted = [f"waypost/{name}:{IMAGE_VERSION}" for name in (*image.SAMPLES, "sample-base")]
        # Whoever made these before the demo did still wants them afterwards.
        self._images = tuple(name for name in wanted if not self._has_image(name))
        try:
            image.build(self._engine.path, version=IMAGE_VERSION)
        except (OSError, RuntimeError) as error:
            raise Unavailable(str(error)) from error

    def start(self, sample: str, *, service: str, tags: str = "", port: int = 0) -> str:
        """Start a container with Registrator's labels."""
        self._count += 1
        name = f"waypost-demo-{sample}-{self._count}"
        labels = {"SERVICE_NAME": service, DEMO_LABEL: "1"}
        if tags:
            labels["SERVICE_TAGS"] = tags
        exposed = f"{image.SAMPLES[sample]}/tcp"
        environment = [f"INSTANCE={name.removeprefix('waypost-demo-')}"]
        if sample == "httpfront":
            environment.append(f"BACKEND=httpbackend.service.dc1.consul:{self._backend_port}")
        if sample == "httpbackend":
            self._backend_port = port
        host: dict[str, Any] = {
            "Dns": [self._gateway],
            "PortBindings": {exposed: [{"HostPort": str(port) if port else ""}]},
            "AutoRemove": True,
        }
        body = {
            "Image": f"waypost/{sample}:{IMAGE_VERSION}",
            "Labels": labels,
            "Env": environment,
            "ExposedPorts": {exposed: {}},
            "HostConfig": host,
        }
        made = self._engine.call("POST", f"/containers/create?{urlencode({'name': name})}", body)
        self._names.append(name)
        self._engine.call("POST", f"/containers/{made['Id']}/start")
        return name

    _backend_port = 8081

    def _has_image(self, name: str) -> bool:
        try:
            self._engine.call("GET", f"/images/{quote(name, safe='')}/json")
        except Unavailable:
            return False
        return True

    def stop(self, name: str) -> None:
        """Stop a container as `docker stop` does."""
        self._engine.call("POST", f"/containers/{quote(name)}/stop?t=5")
        self._names.remove(name)

    def close(self) -> None:
        """Remove the containers, and the engine if it is the demo's own."""
        if self._private is None:
            for name in self._names:
                with suppress(Unavailable):
                    self._engine.call("DELETE", f"/containers/{quote(name)}?force=1")
            for name in self._images or ():
                with suppress(Unavailable):
                    self._engine.call("DELETE", f"/images/{quote(name, safe='')}")
        self._names.clear()
        if self._private is not None:
            _end_engine(self._private, self._engine, bridge=self._bridge, folder=self._folder)
            self._private = None


def _end_engine(
    process: subprocess.Popen[bytes], engine: Engine, *, bridge: str, folder: Path | None
) -> None:
    with suppress(Unavailable):
        for container in engine.call("GET", "/containers/json?all=1"):
            with suppress(Unavailable):
                engine.call("DELETE", f"/containers/{container['Id']}?force=1")
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    subprocess.run(
        [_which("ip") or "ip", "link", "delete", bridge], capture_output=True, check=False
    )
    if folder is not None:
        with suppress(OSError):
            for mount in sorted(_mounts_below(folder), reverse=True):
                subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]


def running_engine(environment: Mapping[str, str]) -> Containers | None:
    """Return the engine that runs on this machine, if there is one and it has its usual bridge."""
    try:
        engine = Engine(image.engine_socket(dict(environment)))
    except ValueError:
        return None
    if not engine.answers():
        return None
    network = engine.call("GET", "/networks/bridge")
    configs = (network.get("IPAM") or {}).get("Config") or []
    gateway = next((one.get("Gateway", "") for one in configs if "." in one.get("Gateway", "")), "")
    return Containers(engine, gateway=gateway) if gateway else None


def private_engine(folder: Path) -> Containers | None:
    """Start an engine for the demo alone, below `folder`; None where dockerd is not installed or not allowed."""
    needed = ("dockerd", "ip", "iptables")
    if os.geteuid() != 0 or any(_which(program) is None for program in needed):
        return None
    ip = str(_which("ip"))
    made = _make_bridge(ip)
    if made is None:
        return None
    bridge, gateway = made
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "docker.sock"
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(_which("dockerd")),
                f"--data-root={folder}/data",
                f"--exec-root={folder}/exec",
                f"--pidfile={folder}/docker.pid",
                f"--host=unix://{path}",
                f"--bridge={bridge}",
                # The host's packet filter is left alone; the engine's own proxy publishes the ports.
                "--iptables=false",
                "--ip-forward=false",
                "--ip-masq=false",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    engine = Engine(str(path))
    deadline = time.monotonic() + _ENGINE_START_S
    try:
        while not engine.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                _end_engine(process, engine, bridge=bridge, folder=folder)
                return None
            time.sleep(0.1)
    except BaseException:  # Ctrl-C: nobody else knows of this engine yet
        _end_engine(process, engine, bridge=bridge, folder=folder)
        raise
    return Containers(engine, gateway=gateway, private=process, bridge=bridge, folder=folder)


def _make_bridge(ip: str) -> tuple[str, str] | None:
    """Make a bridge that no other demo has; return its name and address, None where that is not allowed."""
    for number in range(_BRIDGES):
        bridge, gateway = f"{_BRIDGE_PREFIX}{number}", f"10.213.{97 + number}.1"
        if subprocess.run(
            [ip, "link", "add", bridge, "type", "bridge"], capture_output=True, check=False
        ).returncode:
            if Path(f"/sys/class/net/{bridge}").exists():
                continue
            return None
        for arguments in (
            ["addr", "add", f"{gateway}/24", "dev", bridge],
            ["link", "set", bridge, "up"],
        ):
            if subprocess.run([ip, *arguments], capture_output=True, check=False).returncode:
                subprocess.run([ip, "link", "delete", bridge], capture_output=True, check=False)
                return None
        return bridge, gateway
    return None


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


class Processes:
    """Instances as plain processes that are registered through the agent's API."""

    kind = "processes"
    agent_flags: tuple[str, ...] = ("-bind=127.0.0.1", "-docker=off")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        self._count = 0
        self._dns = ""

    def prepare(self, *, api: str, dns: str) -> None:
        """Note where the agent is."""
        self._client = Client(settings_from({}, overrides=Overrides(address=api)))
        self._dns = dns

    def start(self, sample: str, *, service: str, tags: str = "", port: int = 0) -> str:
        """Start a process and register it with a TCP check, so that it counts once it answers."""
        self._count += 1
        name = f"{sample}-{self._count}"
        port = free_port(port)
        environment = {
            **os.environ,
            "PORT": str(port),
            "BIND": "127.0.0.1",
            "INSTANCE": name,
            "RESOLVER": self._dns,
        }
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"waypost.samples.{sample}"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = (process, service)
        definition = {
            "ID": name,
            "Name": service,
            "Tags": [tag for tag in tags.split(",") if tag],
            "Address": "127.0.0.1",
            "Port": port,
            "Check": {"TCP": f"127.0.0.1:{port}", "Interval": "1s", "Timeout": "1s"},
        }
        self._client.do(calls.register_service(definition))
        return name

    def stop(self, name: str) -> None:
        """Deregister, then stop: the order that loses no request."""
        process, _ = self._running.pop(name)
        self._client.do(calls.deregister_service(name))
        time.sleep(1.0)  # what nginx has already passed on may finish
        _end(process)

    def close(self) -> None:
        """Stop every process."""
        for process, _ in self._running.values():
            _end(process)
        self._running.clear()


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
