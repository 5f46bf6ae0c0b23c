"""A bad wire, for kernels without netem: frames from port A reach port B `DELAY` seconds later, and some of them (`LOSS`,
0 to 1) never; B's reach A at once.

    python relay.py A B DELAY LOSS

Frames keep the kernel's notes on checksums and segmentation (PACKET_VNET_HDR), so that big ones pass as they are.
"""

from __future__ import annotations

import collections
import random
import select
import socket
import sys
import time

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_ALL = 3
_MOST = 20_000
"""Frames on the way; more are dropped, as on a real wire."""


def port(name: str) -> socket.socket:
    """Return a socket that sees and sends whole frames of an interface."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    made.bind((name, 0))
    made.setblocking(False)
    return made


def receive(source: socket.socket) -> bytes | None:
    """Return the next frame that came in."""
    try:
        return source.recv(1 << 17)
    except BlockingIOError:
        return None


def send(target: socket.socket, frame: bytes) -> None:
    """Send a frame, or lose it."""
    try:
        target.send(frame)
    except OSError:
        return


def main() -> None:
    """Relay for ever."""
    a, b = port(sys.argv[1]), port(sys.argv[2])
    delay_s, loss = float(sys.argv[3]), float(sys.argv[4])
    rng = random.Random(1)
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    print("ready", flush=True)
    while True:
        wait_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([a, b], [], [], wait_s)
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            send(b, waiting.popleft()[1])
        if a in readable:
            while (frame := receive(a)) is not None:
                if len(waiting) < _MOST and rng.random() >= loss:
                    waiting.append((now + delay_s, frame))
        if b in readable:
            while (frame := receive(b)) is not None:
                send(a, frame)


if __name__ == "__main__":
    main()
