"""A service that speaks plain TCP: sends every line back with its version and the time. Port 9999."""

from __future__ import annotations

import socket
import sys
import time

from waypost.samples.serving import INSTANCE, VERSION, serve


def handle(connection: socket.socket) -> None:
    """Echo the lines of one connection until the client ends it."""
    with connection.makefile("rwb") as stream:
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            reply = f"{text} (tcpfrontservice, version: {VERSION}, instance: {INSTANCE}, {now})\n"
            stream.write(reply.encode())
            stream.flush()


if __name__ == "__main__":
    sys.exit(serve(9999, handle))
