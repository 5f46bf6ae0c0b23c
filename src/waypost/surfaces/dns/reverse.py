"""From an address to the name that a PTR record gives."""

from __future__ import annotations

from typing import Final

from waypost.state.topics import Topic
from waypost.surfaces.dns.catalog import Catalog
from waypost.surfaces.dns.settings import packed
from waypost.wire.dns.name import Name

TOPICS: Final[tuple[Topic, ...]] = (("nodes",), ("services",))
"""What a reverse answer depends on."""


def address_of(name: Name) -> bytes | None:
    """Return the address a folded name below `in-addr.arpa` or `ip6.arpa` stands for, None for another name."""
    if name[-2:] == (b"in-addr", b"arpa") and len(name) == 6:
        octets = name[3::-1]
        if all(octet.isdigit() and len(octet) <= 3 and int(octet) < 256 for octet in octets):
            return bytes(int(octet) for octet in octets)
    elif name[-2:] == (b"ip6", b"arpa") and len(name) == 34:
        try:
            return bytes.fromhex(b"".join(name[31::-1]).decode("ascii"))
        except ValueError:
            return None
    return None


class ReverseIndex:
    """Node names first, then service names, by address; the first by name wins. Built on demand, kept until a change."""

    def __init__(self) -> None:
        self._built_for: tuple[int, ...] | None = None
        self._names: dict[bytes, tuple[str, str]] = {}

    def find(self, address: bytes, *, catalog: Catalog) -> tuple[str, str] | None:
        """Return (`node` or `service`, name as registered) of an address, None when nobody has it."""
        now = tuple(catalog.index(topic) for topic in TOPICS)
        if now != self._built_for:
            self._names = _names(catalog)
            self._built_for = now
        return self._names.get(address)


def _names(catalog: Catalog) -> dict[bytes, tuple[str, str]]:
    names: dict[bytes, tuple[str, str]] = {}
    nodes = list(catalog.nodes())
    for node in nodes:
        address = packed(node.address)
        if address is not None:
            names.setdefault(address, ("node", node.node))
    for node in nodes:
        for _, service in sorted(catalog.node_services(node.node).items()):
            address = packed(service.address) if service.address else None
            if address is not None:
                names.setdefault(address, ("service", service.name))
    return names
