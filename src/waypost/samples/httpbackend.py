"""A service that others call by its name: answers every HTTP request on port 8081 with its version."""

from __future__ import annotations

import socket
import sys

from waypost.samples.serving import INSTANCE, VERSION, answer_http, serve


def handle(connection: socket.socket) -> None:
    """Answer the requests of one connection."""
    answer_http(
        connection,
        lambda _path: (
            200,
            f"this is httpbackendservice, version: {VERSION}, instance: {INSTANCE}\n",
        ),
    )


if __name__ == "__main__":
    sys.exit(serve(8081, handle))
