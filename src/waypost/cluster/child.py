"""The store's process: etcd, started and kept by the agent, ended with it.

One etcd at a time, below one data directory. It ends when the agent ends, however suddenly (PR_SET_PDEATHSIG), so no orphan
keeps ports and data. Its log is ours: at debug, what it warns of at its own level.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import platform
import re
import shutil
import signal
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable
from waypost.cluster.settings import ClusterSettings, join_host
from waypost.cluster.trust import STORE_NAME
from waypost.store.etcd.http import UNIX
from waypost.store.etcd.tls import EtcdTls
from waypost.store.etcd.versions import Version, judge

log = logging.getLogger(__name__)
etcd_log = logging.getLogger("waypost.etcd")

PACKAGE: Final = "etcd-server"
_BACKOFF_S: Final = (0.5, 5.0)
_STEADY_S: Final = 30.0
_STOP_S: Final = 10.0
_SOCKET: Final = "etcd:1"
"""etcd asks for a name that looks like HOST:PORT, and takes it as a path from where it was started."""
_SOCKET_PATH_MAX_BYTES: Final = 107
"""Source: unix(7)."""
_MAX_LINE_BYTES: Final = 65536
_KEPT_LINES: Final = 20
_PR_SET_PDEATHSIG: Final = 1
_VERSION: Final = re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)")
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.DEBUG,
    "warn": logging.DEBUG,
    "error": logging.WARNING,
    "dpanic": logging.ERROR,
    "panic": logging.ERROR,
    "fatal": logging.ERROR,
}
"""etcd's levels as ours. It warns of every peer that is away several times a second: the agent says that once itself."""


class Binary(msgspec.Struct, frozen=True):
    """An etcd program."""

    path: Path
    version: Version

    @property
    def text(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))


def _look_up(name: str) -> Path | None:
    """Return where a program is, as an absolute path: the child has a working directory of its own."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin")
    return Path(found).absolute() if found is not None else None


async def find_binary(name: str) -> Binary:
    """Return the etcd program `name`, looked up in PATH. Raises Malformed with what to install."""
    found = _look_up(name)
    if found is None:
        raise Malformed(
            f'a server of a cluster needs etcd, and there is no program "{name}": install the package {PACKAGE} '
            '(Debian, Ubuntu), or name the program with "cluster { etcd = … }"'
        )
    try:
        process = await asyncio.create_subprocess_exec(
            found,
            "--version",
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(10.0):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as exc:
        raise Malformed(f"{found} --version cannot be run: {exc}") from exc
    match = _VERSION.search(output.decode("utf-8", "replace"))
    if match is None:
        raise Malformed(f"{found} does not say which version of etcd it is")
    version = (int(match[1]), int(match[2]), int(match[3]))
    binary, verdict = Binary(found, version), judge(version)
    if verdict.grade in ("useless", "unsafe"):
        raise Malformed(f"{found}: etcd {binary.text}: {verdict.text}")
    if verdict.text:
        log.warning("%s: etcd %s: %s", found, binary.text, verdict.text)
    return binary


def _started_in(data: Path) -> Path:
    """Return where etcd is started and has its socket: nobody else may enter it, for the socket asks for no certificate."""
    return data.absolute().parent / "local"


def local_endpoint(settings: ClusterSettings) -> str:
    """Return how this machine's agent reaches its own etcd: by the socket, by TLS where the socket's path is too long."""
    path = _started_in(settings.directory / "etcd") / _SOCKET
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX_BYTES:
        return f"https://{join_host('127.0.0.1', settings.ports.store)}"
    return f"{UNIX}{path}"


def arguments(
    settings: ClusterSettings,
    *,
    version: Version,
    tls: EtcdTls,
    initial_cluster: str,
    is_new: bool,
    token: str,
    force_new: bool = False,
) -> tuple[str, ...]:
    """Return etcd's flags."""
    ports, address = settings.ports, settings.address
    bind = settings.bind or address
    loopback = f"https://{join_host('127.0.0.1', ports.store)}"
    # Everywhere includes loopback, and etcd refuses to listen twice.
    wide = bind in ("0.0.0.0", "::", "127.0.0.1")
    clients = (
        f"https://{join_host(bind, ports.store)}"
        if wide
        else f"{loopback},https://{join_host(bind, ports.store)}"
    )
    clients += f",unix://{_SOCKET}"
    is_later = version >= (3, 6, 0)
    skip_san = "peer-skip-client-san-verification"
    pairs = {
        "name": settings.node_id,
        "data-dir": str(settings.directory.absolute() / "etcd"),
        "listen-peer-urls": f"https://{join_host(bind, ports.server)}",
        "initial-advertise-peer-urls": f"https://{join_host(address, ports.server)}",
        "listen-client-urls": clients,
        "advertise-client-urls": f"https://{join_host(address, ports.store)}",
        "initial-cluster": initial_cluster,
        "initial-cluster-state": "new" if is_new else "existing",
        "initial-cluster-token": token,
        "heartbeat-interval": str(settings.heartbeat_ms),
        "election-timeout": str(settings.election_ms),
        "pre-vote": "true",
        # With it on, a dead voter can never be replaced, and nobody joins in the first 5 s.
        "strict-reconfig-check": "false",
        "max-txn-ops": "4096",
        "quota-backend-bytes": str(settings.quota_bytes),
        "auto-compaction-mode": "revision",
        "auto-compaction-retention": "100000",
        "trusted-ca-file": str(tls.ca_file),
        "cert-file": str(tls.certificate_file),
        "key-file": str(tls.key_file),
        "client-cert-auth": "true",
        "peer-trusted-ca-file": str(tls.ca_file),
        "peer-cert-file": str(tls.certificate_file),
        "peer-key-file": str(tls.key_file),
        "peer-client-cert-auth": "true",
        "peer-cert-allowed-cn": STORE_NAME,
        # etcd would compare the caller's source address with its certificate: wrong behind NAT, with several addresses.
        (skip_san if is_later else f"experimental-{skip_san}"): "true",
        "experimental-initial-corrupt-check": "true",
        "logger": "zap",
        "log-outputs": "stderr",
        "log-level": "info",
    }
    if is_later:
        del pairs["experimental-initial-corrupt-check"]
        pairs["feature-gates"] = "InitialCorruptCheck=true"
    flags = [f"--{name}={value}" for name, value in pairs.items()]
    if force_new:
        flags.append("--force-new-cluster=true")
    return tuple(flags)


def has_data(directory: Path) -> bool:
    """Tell whether etcd has a log below its data directory."""
    try:
        return any((directory / "member" / "wal").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise Unavailable(f"{directory}: {exc.strerror or exc}") from exc


def remove_data(directory: Path) -> None:
    """Delete etcd's data. Raises Unavailable."""
    try:
        if directory.exists():
            # First out of the way in one step: half of a log must never be found by the next start.
            gone = directory.with_name(directory.name + ".removed")
            shutil.rmtree(gone, ignore_errors=True)
            directory.rename(gone)
            shutil.rmtree(gone)
    except OSError as exc:
        raise Unavailable(f"{directory}: {exc.strerror or exc}") from exc


class EtcdChild:
    """Runs etcd with the flags it was given last. Not for concurrent use: one task starts and stops it."""

    def __init__(self, binary: Binary, directory: Path, *, clock: Clock) -> None:
        self._binary = binary
        self._directory = directory
        self._start_in = _started_in(directory)
        self._clock = clock
        self._flags: tuple[str, ...] = ()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._started_s = 0.0
        self._not_before_s = 0.0
        self._backoff_s = _BACKOFF_S[0]
        self.exits = 0
        """How often it ended by itself since it was stopped, or got other flags."""

    @property
    def version(self) -> Version:
        """Which etcd it is."""
        return self._binary.version

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Its process id, None when it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    async def start(self, flags: tuple[str, ...]) -> bool:
        """Start etcd unless it runs, or rests after a failure; return whether it was started now. Raises Unavailable."""
        if self.is_running:
            return False
        if flags != self._flags:
            self._flags, self.exits, self._not_before_s = flags, 0, 0.0
            self._backoff_s = _BACKOFF_S[0]
        if self._clock.now() < self._not_before_s:
            return False
        self._lines.clear()
        parent = os.getpid()
        try:
            for directory in (self._directory, self._start_in):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._start_in.chmod(0o700)
            # One that was killed leaves its socket behind, and etcd does not take it away.
            (self._start_in / _SOCKET).unlink(missing_ok=True)
            self._process = await asyncio.create_subprocess_exec(
                str(self._binary.path),
                *flags,
                cwd=self._start_in,
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=_MAX_LINE_BYTES,
                preexec_fn=lambda: _die_with_parent(parent),
                # A session of its own: Ctrl-C at the agent's terminal is for the agent, which stops etcd last.
                start_new_session=True,
            )
        except OSError as exc:
            raise Unavailable(f"{self._binary.path} cannot be started: {exc}") from exc
        self._started_s = self._clock.now()
        self._reader = asyncio.get_running_loop().create_task(
            self._read(self._process), name="cluster.etcd-log"
        )
        log.info("etcd %s started (pid %d)", self._binary.text, self._process.pid)
        return True

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Forward the log until the end; then say how it ended."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # longer than the limit: dropped
                continue
            if not line:
                break
            self._forward(line)
        code = await process.wait()
        self._ended(code)

    def _forward(self, line: bytes) -> None:
        level, text = parse_line(line)
        if level >= logging.WARNING or b'"warn"' in line:
            self._lines.append(text)
        etcd_log.log(level, "%s", text)

    def _ended(self, code: int) -> None:
        if self._process is None:  # it was stopped
            return
        self.exits += 1
        ran_s = self._clock.now() - self._started_s
        if ran_s > _STEADY_S:
            self._backoff_s = _BACKOFF_S[0]
        self._not_before_s = self._clock.now() + self._backoff_s
        log.error(
            "etcd ended by itself after %.1f s (%s); it starts again in %.1f s%s",
            ran_s,
            f"signal {-code}" if code < 0 else f"exit code {code}",
            self._backoff_s,
            f": {self._lines[-1]}" if self._lines else "",
        )
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S[1])

    async def stop(self) -> None:
        """End etcd: asked first, killed after 10 s. Safe to call when it does not run."""
        process, self._process = self._process, None
        reader, self._reader = self._reader, None
        self.exits = 0
        if process is None or reader is None:
            return
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(_STOP_S):
                        await process.wait()
                except TimeoutError:
                    log.warning("etcd did not end in %g s and is killed", _STOP_S)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await process.wait()
        await reader
        log.info("etcd stopped")


class _Line(msgspec.Struct):
    level: str = "info"
    msg: str = ""
    error: str = ""


def parse_line(line: bytes) -> tuple[int, str]:
    """Return our level and the text of a line of etcd's log (zap's JSON, or anything)."""
    try:
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
        text = line.decode("utf-8", "replace").strip()
        return logging.DEBUG, text.encode("ascii", "backslashreplace").decode()
    text = found.msg + (f": {found.error}" if found.error else "")
    return _LEVELS.get(found.level, logging.DEBUG), text


def _environment() -> dict[str, str]:
    """Return a clean environment: etcd reads flags from variables as well, and refuses some machines without one."""
    environment = {"PATH": os.defpath}
    machine = platform.machine()
    if machine == "aarch64":
        environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"
    return environment


_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent(parent: int) -> None:
    """Run in the child before etcd: it gets SIGTERM when the agent ends. Source: prctl(2)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the agent ended in between
        os._exit(1)
