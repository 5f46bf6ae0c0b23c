"""What the three samples share: a TCP server with one thread a connection, and an orderly end on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

VERSION = os.environ.get("VERSION", "v1.0.0")
INSTANCE = os.environ.get("INSTANCE") or socket.gethostname()
_LAME_DUCK_S = 3.0


def serve(port: int, handle: Callable[[socket.socket], None]) -> int:
    """Serve connections on `port` until SIGTERM or SIGINT; return the exit status.

    The port can be moved with the variable PORT. On SIGTERM no new connection is taken, and those that are open may
    finish for a few seconds.
    """
    port = int(os.environ.get("PORT", port))
    stopping = threading.Event()
    listener = socket.create_server((os.environ.get("BIND", ""), port), backlog=512)

    def stop(_signal: int, _frame: object) -> None:
        stopping.set()
        # Wakes the accept below; closing alone would not.
        listener.shutdown(socket.SHUT_RDWR)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"version {VERSION}, instance {INSTANCE}, listening on port {port}", flush=True)
    open_connections: set[threading.Thread] = set()
    while not stopping.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            continue
        thread = threading.Thread(target=_handle, args=(connection, handle), daemon=True)
        open_connections = {one for one in open_connections if one.is_alive()} | {thread}
        thread.start()
    listener.close()
    for thread in open_connections:
        thread.join(_LAME_DUCK_S / max(1, len(open_connections)))
    return 0


def _handle(connection: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    with connection:
        try:
            connection.settimeout(60)
            handle(connection)
        except OSError as error:
            print(f"connection ended: {error}", file=sys.stderr, flush=True)


def answer_http(connection: socket.socket, body_of: Callable[[str], tuple[int, str]]) -> None:
    """Answer HTTP/1.1 requests without bodies; `body_of` gets the path and returns status and text."""
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            chunk = connection.recv(65536)
            if not chunk or len(buffer) > 65536:
                return
            buffer += chunk
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, protocol = (*lines[0].split(" "), "", "")[:3]
        closing = protocol == "HTTP/1.0" or any(
            line.lower().replace(" ", "") == "connection:close" for line in lines[1:]
        )
        status, text = body_of(path)
        body = text.encode()
        reason = {200: "OK", 502: "Bad Gateway"}.get(status, "Error")
        connection.sendall(
            (
                f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nX-Instance: {INSTANCE}\r\n"
                f"Connection: {'close' if closing else 'keep-alive'}\r\n\r\n"
            ).encode()
            + (b"" if method == "HEAD" else body)
        )
        if closing:
            return
