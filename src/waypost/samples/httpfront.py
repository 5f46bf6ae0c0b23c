"""A service that the balancer shows to the outside: calls the backend by its name and reports the answer.

Variables: BACKEND (`httpbackend.service.dc1.consul:8081`); RESOLVER (`ADDRESS:PORT` of a DNS server to ask instead of
the system's resolver, for a program that runs beside the agent where nobody has set up the resolver).
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys

from waypost.samples.serving import INSTANCE, VERSION, answer_http, serve

BACKEND = os.environ.get("BACKEND", "httpbackend.service.dc1.consul:8081")
RESOLVER = os.environ.get("RESOLVER", "")
_TIMEOUT_S = 2.0


def resolve(name: str) -> tuple[str, int | None]:
    """Return the address of `name` and, when the DNS server says one, its port (from SRV)."""
    if not RESOLVER:
        return name, None
    host, _, port = RESOLVER.rpartition(":")
    number = random.getrandbits(16)
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    query = struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + question + struct.pack(">2H", 33, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(_TIMEOUT_S)
        client.sendto(query, (host, int(port)))
        reply = client.recv(4096)
    address, target_port = "", None
    counts = struct.unpack(">4H", reply[4:12])
    position = 12 + len(question) + 4
    for _ in range(sum(counts[1:])):
        while reply[position] and reply[position] < 0xC0:
            position += reply[position] + 1
        position += 2 if reply[position] >= 0xC0 else 1
        kind, _, _, length = struct.unpack(">2HIH", reply[position : position + 10])
        data = reply[position + 10 : position + 10 + length]
        position += 10 + length
        if kind == 33 and target_port is None:
            target_port = struct.unpack(">H", data[4:6])[0]
        elif kind == 1 and not address:
            address = socket.inet_ntoa(data)
    if not address:
        msg = f"no address for {name}"
        raise OSError(msg)
    return address, target_port


def call_backend() -> str:
    """Return the backend's answer. Raises OSError."""
    name, _, port = BACKEND.rpartition(":")
    address, srv_port = resolve(name)
    with socket.create_connection((address, srv_port or int(port)), timeout=_TIMEOUT_S) as client:
        client.sendall(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


def respond(_path: str) -> tuple[int, str]:
    """Return status and text of one answer."""
    me = f"this is httpfrontservice, version: {VERSION}, instance: {INSTANCE}, calling backendservice"
    try:
        return 200, f"{me} ok, its resp: [{call_backend()}]\n"
    except OSError as error:
        return 502, f"{me} failed: {error}\n"


def handle(connection: socket.socket) -> None:
    """Answer the requests of one connection."""
    answer_http(connection, respond)


if __name__ == "__main__":
    sys.exit(serve(8080, handle))
