"""Which address of this machine others reach it at."""

from __future__ import annotations

import socket
from typing import Literal


def default_route_ip(family: Literal["ipv4", "ipv6"] = "ipv4") -> str:
    """Return the address from which this machine talks to the rest of the world, or an empty string.

    It asks the routing table by connecting a datagram socket to an address of the documentation's range
    (RFC 5737, RFC 3849); nothing is sent. Resolving the own host name, as Registrator does, gives 127.0.1.1
    on many distributions.
    """
    kind, far = (
        (socket.AF_INET, "192.0.2.1") if family == "ipv4" else (socket.AF_INET6, "2001:db8::1")
    )
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""
