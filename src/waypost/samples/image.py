"""Container images of the samples, made without any registry: the Python of this machine and the samples' own files.

The root file system is what the interpreter needs to run: its binary, the standard library without tests and tools,
and the shared libraries that `ldd` names. The engine imports it once as the base; each sample is the base with a
command and a port. Source: Docker Engine API, `POST /images/create?fromSrc=-` and `POST /build`.

    python -m waypost.samples.image            # waypost/httpbackend, waypost/httpfront, waypost/tcpfront
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

BASE = "waypost/sample-base"
SAMPLES = {"httpbackend": 8081, "httpfront": 8080, "tcpfront": 9999}
_SKIPPED = frozenset(
    [
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "ensurepip",
        "site-packages",
        "dist-packages",
        "distutils",
        "venv",
        "pydoc_data",
        "unittest",
        "config-3.11-x86_64-linux-gnu",
    ]
)


class EngineConnection(http.client.HTTPConnection):
    """HTTP over the engine's unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_socket(environment: dict[str, str] | None = None) -> str:
    """Return the path of the engine's socket. Raises ValueError for a DOCKER_HOST that is no unix socket."""
    host = (environment if environment is not None else dict(os.environ)).get("DOCKER_HOST", "")
    if not host:
        return "/var/run/docker.sock"
    if not host.startswith("unix://"):
        msg = f"images are built over the engine's unix socket; DOCKER_HOST is {host}"
        raise ValueError(msg)
    return host.removeprefix("unix://")


def _request(
    path: str, method: str, target: str, body: bytes = b"", kind: str = "application/x-tar"
) -> bytes:
    connection = EngineConnection(path)
    try:
        connection.request(method, target, body=body, headers={"Content-Type": kind})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    text = answer.decode("utf-8", "replace")
    if response.status >= 400:
        msg = f"Docker answered {response.status} to {method} {target.partition('?')[0]}: {text.strip()}"
        raise RuntimeError(msg)
    # A stream of JSON objects whose last one may be the error.
    for line in text.splitlines():
        if '"error"' in line:
            msg = f"Docker could not make the image: {json.loads(line).get('error')}"
            raise RuntimeError(msg)
    return answer


def _libraries(binaries: list[Path]) -> Iterator[Path]:
    seen: set[str] = set()
    for binary in binaries:
        done = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            for word in line.split():
                if word.startswith("/") and word not in seen:
                    seen.add(word)
                    yield Path(word)


def root_file_system() -> bytes:
    """Return a tar of everything that Python and the samples need, with `python` at /usr/bin/python3."""
    interpreter = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    dynamic = library / "lib-dynload"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "app"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(interpreter, arcname="usr/bin/python3")
        for path in _libraries([interpreter, *sorted(dynamic.glob("*.so"))]):
            tar.add(os.path.realpath(path), arcname=str(path).lstrip("/"))
        prefix = f"usr/lib/{library.name}"
        tar.add(library, arcname=prefix, filter=_wanted)
        here = Path(__file__).parent
        tar.add(here.parent / "__init__.py", arcname="app/waypost/__init__.py")
        tar.add(here, arcname="app/waypost/samples", filter=_wanted)
    return out.getvalue()


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(entry.name).parts
    if any(part in _SKIPPED or part.startswith("config-") for part in parts):
        return None
    entry.uid = entry.gid = 0
    return entry


def build(path: str | None = None, *, version: str = "v1.0.0") -> list[str]:
    """Make the images on the engine at socket `path`; return their names. Raises OSError, RuntimeError."""
    path = path or engine_socket()
    base = f"{BASE}:{version}"
    environment = f"ENV PYTHONHOME=/usr PYTHONPATH=/app VERSION={version} PATH=/usr/bin"
    _request(
        path,
        "POST",
        f"/images/create?fromSrc=-&repo={quote(BASE)}&tag={version}&changes={quote(environment)}",
        root_file_system(),
    )
    names = []
    for sample, port in SAMPLES.items():
        recipe = (
            f"FROM {base}\nWORKDIR /app\nEXPOSE {port}\n"
            f'CMD ["/usr/bin/python3", "-S", "-m", "waypost.samples.{sample}"]\n'
        ).encode()
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(recipe)
            tar.addfile(entry, io.BytesIO(recipe))
        name = f"waypost/{sample}:{version}"
        _request(path, "POST", f"/build?t={quote(name)}&pull=false&rm=true", context.getvalue())
        names.append(name)
    return names


if __name__ == "__main__":
    for made in build(version=sys.argv[1] if len(sys.argv) > 1 else "v1.0.0"):
        print(made)
