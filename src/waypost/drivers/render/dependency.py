"""What a template asked for: one frozen record a kind, which is also the key under which data is kept.

The query grammar is consul-template's; error texts and printed names are its own.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import msgspec

from waypost.base.errors import Malformed
from waypost.gotemplate.strconv import quote

_WORD: Final = r"[A-Za-z0-9_.\-]+"
_DC: Final = rf"(@(?P<dc>{_WORD}))?"
_NEAR: Final = rf"(~(?P<near>{_WORD}))?"
_SERVICE: Final = re.compile(
    r"((?P<tag>[A-Za-z0-9_=:.\-]+)\.)?(?P<name>[A-Za-z0-9_\-]+)"
    + _DC
    + _NEAR
    + r"(\|(?P<filter>[A-Za-z0-9_,]+))?"
)
_NODE: Final = re.compile(rf"(?P<name>{_WORD}){_DC}")
_NODES: Final = re.compile(_DC + _NEAR)
_SERVICES: Final = re.compile(_DC)
_KEY: Final = re.compile(r"/?(?P<key>[^@]+)" + _DC, re.DOTALL)

FILTERS: Final = frozenset(("any", "passing", "warning", "critical", "maintenance"))


class _Base(msgspec.Struct, frozen=True):
    datacenter: str = ""

    def _named(self, kind: str, subject: str = "") -> str:
        place = f"@{self.datacenter}" if self.datacenter else ""
        inside = subject + place
        return f"{kind}({inside})" if inside else kind


class ServiceDependency(_Base, frozen=True):
    """Instances of a service in the wanted statuses. Value: tuple of HealthService."""

    name: str = ""
    tag: str = ""
    near: str = ""
    filters: tuple[str, ...] = ("passing",)

    def __str__(self) -> str:
        text = f"{self.tag}.{self.name}" if self.tag else self.name
        text += f"@{self.datacenter}" if self.datacenter else ""
        text += f"~{self.near}" if self.near else ""
        return f"health.service({text}|{','.join(self.filters)})"


class ServicesDependency(_Base, frozen=True):
    """All services with their tags. Value: tuple of CatalogSnippet."""

    def __str__(self) -> str:
        return self._named("catalog.services")


class NodesDependency(_Base, frozen=True):
    """All nodes. Value: tuple of NodeRecord."""

    near: str = ""

    def __str__(self) -> str:
        text = f"@{self.datacenter}" if self.datacenter else ""
        text += f"~{self.near}" if self.near else ""
        return f"catalog.nodes({text})" if text else "catalog.nodes"


class NodeDependency(_Base, frozen=True):
    """One node with its instances; no name means the agent's own. Value: CatalogNode."""

    name: str = ""

    def __str__(self) -> str:
        return self._named("catalog.node", self.name)


class KeyDependency(_Base, frozen=True):
    """One key. Value: str, or None if there is none; `blocks` means that the template waits for it."""

    key: str = ""
    blocks: bool = False

    def __str__(self) -> str:
        return self._named("kv.block" if self.blocks else "kv.get", self.key)


class KeyExistsDependency(_Base, frozen=True):
    """Whether a key exists. Value: bool."""

    key: str = ""

    def __str__(self) -> str:
        return self._named("kv.exists", self.key)


class PrefixDependency(_Base, frozen=True):
    """All keys below a prefix, by key. Value: tuple of KeyPair."""

    prefix: str = ""

    def __str__(self) -> str:
        return self._named("kv.list", self.prefix)


class DatacentersDependency(_Base, frozen=True):
    """All datacenters. Value: tuple of str."""

    ignore_down: bool = False

    def __str__(self) -> str:
        return "catalog.datacenters"


class FileDependency(_Base, frozen=True):
    """A file of this machine. Value: str."""

    path: str = ""

    def __str__(self) -> str:
        return f"file({self.path})"


Dependency: TypeAlias = (
    ServiceDependency
    | ServicesDependency
    | NodesDependency
    | NodeDependency
    | KeyDependency
    | KeyExistsDependency
    | PrefixDependency
    | DatacentersDependency
    | FileDependency
)


def _match(pattern: re.Pattern[str], text: str, kind: str) -> dict[str, str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise Malformed(f"{kind}: invalid format: {quote(text)}")
    return {name: value or "" for name, value in match.groupdict().items()}


def service(text: str) -> ServiceDependency:
    """Parse `[tag.]name[@dc][~near][|filter[,filter]]`. Raises Malformed."""
    parts = _match(_SERVICE, text, "health.service")
    filters: list[str] = []
    for each in filter(None, parts["filter"].split(",")):
        if each not in FILTERS:
            raise Malformed(f"health.service: invalid filter: {quote(each)} in {quote(text)}")
        filters.append(each)
    return ServiceDependency(
        datacenter=parts["dc"],
        name=parts["name"],
        tag=parts["tag"],
        near=parts["near"],
        filters=tuple(sorted(filters)) if parts["filter"] else ("passing",),
    )


def services(text: str) -> ServicesDependency:
    """Parse `[@dc]`. Raises Malformed."""
    return ServicesDependency(datacenter=_match(_SERVICES, text, "catalog.services")["dc"])


def nodes(text: str) -> NodesDependency:
    """Parse `[@dc][~near]`. Raises Malformed."""
    parts = _match(_NODES, text, "catalog.nodes")
    return NodesDependency(datacenter=parts["dc"], near=parts["near"])


def node(text: str) -> NodeDependency:
    """Parse `[name[@dc]]`. Raises Malformed."""
    if not text:
        return NodeDependency()
    parts = _match(_NODE, text, "catalog.node")
    return NodeDependency(datacenter=parts["dc"], name=parts["name"])


def key(text: str, *, blocks: bool) -> KeyDependency:
    """Parse `[/]key[@dc]`. Raises Malformed."""
    parts = _match(_KEY, text, "kv.get")
    return KeyDependency(datacenter=parts["dc"], key=parts["key"], blocks=blocks)


def key_exists(text: str) -> KeyExistsDependency:
    """Parse `[/]key[@dc]`. Raises Malformed."""
    parts = _match(_KEY, text, "kv.exists")
    return KeyExistsDependency(datacenter=parts["dc"], key=parts["key"])


def prefix(text: str) -> PrefixDependency:
    """Parse `[/]prefix[@dc]`. Raises Malformed."""
    parts = _match(_KEY, text, "kv.list")
    return PrefixDependency(datacenter=parts["dc"], prefix=parts["key"])
