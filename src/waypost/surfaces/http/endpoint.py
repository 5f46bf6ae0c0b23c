"""Where the server listens, and what is known about who connects there."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from waypost.base.errors import Malformed, Unavailable
from waypost.surfaces.http.message import Peer
from waypost.surfaces.http.tls import (
    HANDSHAKE_S,
    Handshakes,
    OpenTls,
    TlsEndpoint,
    TlsProtocol,
    TlsTransport,
)

_BACKLOG = 4096
_UCRED = struct.Struct("3i")


class TcpEndpoint(msgspec.Struct, frozen=True):
    """A TCP address; `port` 0 takes a free one. `::` listens on IPv4 as well."""

    host: str
    port: int
    name: str = "http"
    """Told to handlers as `request.peer.listener`."""
    tls: ssl.SSLContext | OpenTls | TlsEndpoint | None = None
    """With an SSLContext, a client certificate that it does not accept breaks the handshake off; with
    `OpenTls` any is taken, unverified, into `request.peer`, for an authenticator to judge. A `TlsEndpoint` is an
    `OpenTls` that can be exchanged."""


class UnixEndpoint(msgspec.Struct, frozen=True):
    """A unix socket. A socket file that nobody listens on is replaced, any other file is not."""

    path: str
    name: str = "unix"
    mode: int = 0o600
    uid: int = -1
    """Owner of the file; -1 leaves it. Likewise `gid`."""
    gid: int = -1


Endpoint = TcpEndpoint | UnixEndpoint
ProtocolFactory = Callable[[Endpoint], asyncio.Protocol]


class Listener:
    """An open endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        servers: list[asyncio.Server],
        *,
        addresses: tuple[str, ...],
        port: int = 0,
        handshakes: Handshakes | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.addresses = addresses
        self.port = port
        self._servers = servers
        self._handshakes = handshakes
        self._inode = _inode(endpoint.path) if isinstance(endpoint, UnixEndpoint) else None

    def close(self) -> None:
        """Stop accepting, drop unfinished handshakes; remove the socket file if it is still ours."""
        for server in self._servers:
            server.close()
        if self._handshakes is not None:
            self._handshakes.abort()
        if isinstance(self.endpoint, UnixEndpoint) and self._inode is not None:
            path = Path(self.endpoint.path)
            if _inode(self.endpoint.path) == self._inode:
                path.unlink(missing_ok=True)

    async def wait_closed(self) -> None:
        """Wait until the sockets are closed."""
        for server in self._servers:
            await server.wait_closed()


async def open_endpoint(endpoint: Endpoint, factory: ProtocolFactory) -> Listener:
    """Listen. Raises Unavailable with the address and the system's reason, Malformed for a bad host."""
    if isinstance(endpoint, UnixEndpoint):
        return await _open_unix(endpoint, factory)
    return await _open_tcp(endpoint, factory)


async def _open_tcp(endpoint: TcpEndpoint, factory: ProtocolFactory) -> Listener:
    loop = asyncio.get_running_loop()
    handshakes = Handshakes()
    make, context = _layers(endpoint, factory, handshakes=handshakes)
    try:
        found = await loop.getaddrinfo(
            endpoint.host,
            endpoint.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as exc:
        raise Malformed(f"listen tcp: {endpoint.host}: {exc.strerror}") from exc
    servers: list[asyncio.Server] = []
    addresses: list[str] = []
    port = endpoint.port
    try:
        for family, kind, proto, _, sockaddr in dict.fromkeys(found):
            bound = (sockaddr[0], port, *sockaddr[2:])
            sock = _bind(socket.socket(family, kind, proto), bound)
            port = sock.getsockname()[1]
            addresses.append(format_address(str(sockaddr[0]), port))
            servers.append(
                await loop.create_server(
                    make,
                    sock=sock,
                    ssl=context,
                    backlog=_BACKLOG,
                    ssl_handshake_timeout=None if context is None else HANDSHAKE_S,
                )
            )
    except BaseException:
        for server in servers:
            server.close()
        raise
    return Listener(endpoint, servers, addresses=tuple(addresses), port=port, handshakes=handshakes)


def _layers(
    endpoint: TcpEndpoint, factory: ProtocolFactory, *, handshakes: Handshakes
) -> tuple[Callable[[], asyncio.Protocol], ssl.SSLContext | None]:
    tls = TlsEndpoint(endpoint.tls) if isinstance(endpoint.tls, OpenTls) else endpoint.tls
    if not isinstance(tls, TlsEndpoint):
        return lambda: factory(endpoint), tls
    loop = asyncio.get_running_loop()
    exchangeable = tls
    _ = exchangeable.context  # a bad pair of files is said now, not to the first client

    def make() -> asyncio.Protocol:
        return TlsProtocol(
            exchangeable.context, inner=factory(endpoint), handshakes=handshakes, loop=loop
        )

    return make, None


def _bind(sock: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        text = f"listen tcp {format_address(str(address[0]), address[1])}: {_reason(exc)}"
        raise Unavailable(text) from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_unix(endpoint: UnixEndpoint, factory: ProtocolFactory) -> Listener:
    sock = _bind_unix(endpoint)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: factory(endpoint), sock=sock, backlog=_BACKLOG)
    return Listener(endpoint, [server], addresses=(f"unix://{endpoint.path}",))


def _bind_unix(endpoint: UnixEndpoint) -> socket.socket:
    path = endpoint.path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        _remove_stale(path)
        previous = os.umask(0o177)  # nobody may connect before the mode is set
        try:
            sock.bind(path)
        finally:
            os.umask(previous)
        if endpoint.uid != -1 or endpoint.gid != -1:
            os.chown(path, endpoint.uid, endpoint.gid)
        Path(path).chmod(endpoint.mode)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        raise Unavailable(f"listen unix {path}: {_reason(exc)}") from exc
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError(errno.EEXIST, "file exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)


def _reason(exc: OSError) -> str:
    text = exc.strerror or str(exc)
    return f"bind: {text[:1].lower()}{text[1:]}"


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def format_address(host: str, port: object) -> str:
    """Return `127.0.0.1:80` or `[::1]:80`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_of(transport: asyncio.BaseTransport, endpoint: Endpoint) -> Peer:
    """Return what the kernel and TLS say about the other end. Source: unix(7), SO_PEERCRED."""
    if isinstance(endpoint, UnixEndpoint):
        sock = transport.get_extra_info("socket")
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:  # gone already
            return Peer(listener=endpoint.name, is_unix=True)
        pid, uid, gid = _UCRED.unpack(raw)
        return Peer(listener=endpoint.name, is_unix=True, pid=pid, uid=uid, gid=gid)
    name = transport.get_extra_info("peername") or ("", 0)
    certificates: tuple[bytes, ...] = ()
    tls = transport.get_extra_info("ssl_object")
    if isinstance(transport, TlsTransport):
        certificates = transport.get_extra_info("client_certificates")
    elif tls is not None:
        leaf = tls.getpeercert(binary_form=True)
        certificates = () if leaf is None else (leaf,)
    return Peer(
        listener=endpoint.name,
        address=str(name[0]).partition("%")[0].removeprefix("::ffff:"),
        port=int(name[1]),
        is_tls=endpoint.tls is not None,
        certificates_der=certificates,
    )
