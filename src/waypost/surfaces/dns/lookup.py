"""From a question to its answer: the name forms, the records and the health rules. Pure.

Source: Consul's DNS interface as observed on 1.8.7, and RFC 1464 (TXT), 1035, 2782, 3596. Matching ignores case; the
owner of an answer is the name as it was asked.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from waypost.base.errors import Malformed
from waypost.model.catalog import CRITICAL, PASSING, Node, fold
from waypost.state.topics import Topic
from waypost.state.view import Instance
from waypost.surfaces.dns import reverse
from waypost.surfaces.dns.catalog import Catalog, Finder, Found, NothingFound
from waypost.surfaces.dns.settings import DnsSettings, domain_name, packed
from waypost.wire.dns import message as wire
from waypost.wire.dns.message import Question, Record
from waypost.wire.dns.name import Name, is_below, parse_name
from waypost.wire.dns.name import fold as fold_name

SERVERS: Final = "consul"
"""The service whose instances are the name servers."""

_ARPA: Final[Name] = (b"arpa",)
_MAX_DEPTH: Final = 3
_MAX_NAME_SERVERS: Final = 3
_MAX_CHAINED: Final = 5
"""Records that follow a CNAME, for a client without EDNS."""
_KINDS: Final = frozenset({"service", "node", "addr", "query", "connect", "ingress"})
_NOT_A_HOST_NAME = re.compile(r"[^A-Za-z0-9-]")
_ADDRESS_TYPES: Final = frozenset({wire.ANY, wire.TXT, wire.SRV, wire.NS})
"""Types besides A and AAAA that get whatever address there is."""
_CHAIN_TYPES: Final = frozenset({wire.CNAME, wire.A, wire.AAAA})

Arrange = Callable[[Sequence[Instance]], Sequence[Instance]]
"""Puts the instances of one answer in order."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said, before it is cut to a size."""

    rcode: int = wire.NOERROR
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    topics: tuple[Topic, ...] = ()
    """It holds while the indexes of these stand still."""
    width: int = 1
    """Number of instances that were arranged: so many turns bring each to the front once."""
    elsewhere: bool = False
    """Not ours: the recursors are to be asked, and nothing else here counts."""
    unresolved: tuple[Name, ...] = ()
    """Host names outside our domains that recursors can add addresses for."""
    may_cut: bool = True
    """The limits on answers over UDP apply."""
    negative: Record | None = None
    """The SOA to add when the limits leave no answer."""
    subnet_matters: bool = False
    """Another client subnet may get another answer (RFC 7871 scope)."""

    @property
    def has_serial(self) -> bool:
        """Whether it holds an SOA, whose serial is the time."""
        return any(record.type == wire.SOA for record in (*self.answer, *self.authority))


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One order of many: random permutations, of each all rotations in turn.

    Over as many turns as there are instances every one of them is in every place exactly once, so what a client
    takes (the first, the first three) spreads evenly. Rotations jump by about the golden ratio, so that a few turns
    of many are spread as well; the permutation changes with every round, so no instance always inherits the load of
    the same other one.
    """

    seed: int
    number: int = 0

    def arrange(self, instances: Sequence[Instance]) -> Sequence[Instance]:
        """Return the instances in the order of this turn."""
        count = len(instances)
        if count < 2:
            return instances
        order = list(instances)
        # S311: the order of answers is not a secret.
        random.Random(f"{self.seed}/{self.number // count}").shuffle(order)  # noqa: S311
        first = self.number * _stride(count) % count
        return order[first:] + order[:first]


def _stride(count: int) -> int:
    """Return a step near `count` / golden ratio that visits every place: it has no factor in common with `count`."""
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) != 1:
        step += 1
    return step


class Lookup:
    """Answers questions with one set of settings. Raises Malformed at once when the settings cannot be used."""

    def __init__(self, settings: DnsSettings, *, finder: Finder | None = None) -> None:
        self.settings = settings
        self.finder: Finder = finder or NothingFound()
        self.domain = domain_name(settings.domain, key="domain")
        self.domains = [self.domain]
        if settings.alt_domain.strip("."):
            self.domains.append(domain_name(settings.alt_domain, key="alt_domain"))
        self.domains.sort(key=len, reverse=True)
        self.datacenter = settings.datacenter.lower()
        self.suffix = f"{self.datacenter}.{settings.domain.rstrip('.')}"
        self._exact_ttl_s: dict[str, int] = {}
        self._prefix_ttl_s: list[tuple[str, int]] = []
        for pattern, ttl_s in settings.service_ttl_s.items():
            if pattern.endswith("*"):
                self._prefix_ttl_s.append((fold(pattern[:-1]), int(ttl_s)))
            else:
                self._exact_ttl_s[fold(pattern)] = int(ttl_s)
        self._prefix_ttl_s.sort(key=lambda item: len(item[0]), reverse=True)

    def answer(
        self,
        question: Question,
        catalog: Catalog,
        *,
        arrange: Arrange,
        now_s: int,
        has_edns: bool = False,
        resolved: Mapping[Name, tuple[Record, ...]] | None = None,
        reversed_by: reverse.ReverseIndex | None = None,
    ) -> Answer:
        """Return the answer. `now_s` is the unix time; `resolved` has what recursors said about `unresolved` names.

        Raises Forbidden when the catalog does.
        """
        asked = _Asked(
            self,
            catalog,
            arrange=arrange,
            now_s=now_s,
            has_edns=has_edns,
            resolved=resolved or {},
        )
        folded = fold_name(question.name)
        domain = self.domain_of(folded)
        if domain is not None:
            if question.type == wire.DS and self.settings.recursors:
                # The parent of a zone knows its DS records, so the question goes up.
                return Answer(elsewhere=True)
            return asked.inside(question)
        if is_below(folded, _ARPA):
            return asked.pointer(question, folded, reversed_by or reverse.ReverseIndex())
        return Answer(elsewhere=True)

    def domain_of(self, folded: Name) -> Name | None:
        """Return which of our domains a folded name is in."""
        for domain in self.domains:
            if is_below(folded, domain):
                return domain
        return None

    def datacenter_of(self, question: Question) -> str:
        """Return the other datacenter that a name in our domain says it is in, folded; "" when it is here."""
        folded = fold_name(question.name)
        domain = self.domain_of(folded)
        if domain is None:
            return ""
        labels = [
            label.decode("utf-8", "surrogateescape").lower()
            for label in folded[: len(folded) - len(domain)]
        ]
        _, parts, after = _split(labels, is_srv=question.type == wire.SRV)
        if not parts or len(after) != 1 or after[0] == self.datacenter:
            return ""
        return after[0]

    def service_ttl_s(self, service: str) -> int:
        """Return the TTL of a service (folded name)."""
        exact = self._exact_ttl_s.get(service)
        if exact is not None:
            return exact
        for prefix, ttl_s in self._prefix_ttl_s:
            if service.startswith(prefix):
                return ttl_s
        return 0


class _Asked:
    """One question on its way through: what it needs and what it depended on."""

    def __init__(
        self,
        lookup: Lookup,
        catalog: Catalog,
        *,
        arrange: Arrange,
        now_s: int,
        has_edns: bool,
        resolved: Mapping[Name, tuple[Record, ...]],
    ) -> None:
        self.lookup = lookup
        self.settings = lookup.settings
        self.node_ttl_s = int(lookup.settings.node_ttl_s)
        self.catalog = catalog
        self.arrange = arrange
        self.now_s = now_s
        self.has_edns = has_edns
        self.resolved = resolved
        self.topics: set[Topic] = set()
        self.unresolved: list[Name] = []
        self.width = 1

    # -- whole answers ---------------------------------------------------------------------------------------------------

    def inside(self, question: Question) -> Answer:
        """Answer a question about a name in one of our domains."""
        if question.type in (wire.SOA, wire.NS):
            servers, glue = self.name_servers()
            if question.type == wire.NS:
                return self._answer(servers, additional=glue, may_cut=False)
            return self._answer([self.soa()], authority=servers, additional=glue, may_cut=False)
        if question.type == wire.AXFR:
            return self._answer(rcode=wire.NOTIMP, may_cut=False)
        return self.form(question, depth=_MAX_DEPTH)

    def pointer(
        self, question: Question, folded: Name, reversed_by: reverse.ReverseIndex
    ) -> Answer:
        """Answer with the name of an address, whatever type is asked."""
        address = reverse.address_of(folded)
        found = reversed_by.find(address, catalog=self.catalog) if address is not None else None
        target = _name(f"{found[1]}.{found[0]}.{self.lookup.suffix}") if found else None
        if target is None:
            return Answer(elsewhere=True)
        self.topics.update(reverse.TOPICS)
        record = Record(question.name, wire.PTR, 0, target)
        soa = [self.soa()] if question.type == wire.SOA else []
        return self._answer([record], authority=soa, may_cut=False)

    def form(self, question: Question, *, depth: int) -> Answer:
        """Answer by the form of the name. `depth`: how many CNAMEs may still be followed."""
        folded = fold_name(question.name)
        domain = self.lookup.domain_of(folded) or ()
        labels = [
            label.decode("utf-8", "surrogateescape").lower()
            for label in folded[: len(folded) - len(domain)]
        ]
        kind, parts, after = _split(labels, is_srv=question.type == wire.SRV)
        if not parts or len(after) > 1:
            return self._nothing()
        is_here = not after or after[0] == self.lookup.datacenter
        match kind:
            case "addr":
                return self.address(question, folded, parts)
            case "node":
                return self.node(question, ".".join(parts), is_here=is_here, depth=depth)
            case "service" if is_here:
                return self.service(question, *_service_and_tag(parts), depth=depth)
            case "query" | "connect" | "ingress" if is_here:
                name = ".".join(parts) if kind == "query" else parts[-1]
                return self.found(question, kind, name, depth=depth)
        return self._nothing()

    def address(self, question: Question, folded: Name, parts: list[str]) -> Answer:
        """Answer `<hex>.addr`, an address in its own name, whatever type is asked. Source: consul-dns, `addr`."""
        if len(parts) != 1:
            return self._nothing()
        size = len(parts[0]) // 2
        if size not in (4, 16):
            return self._answer()
        try:
            data = bytes.fromhex(parts[0]) if parts[0].isalnum() else b""
        except ValueError:
            data = b""
        if not data:
            return self._nothing()
        kind = wire.A if size == 4 else wire.AAAA
        return self._answer([Record(folded, kind, self.node_ttl_s, data)])

    def node(self, question: Question, name: str, *, is_here: bool, depth: int) -> Answer:
        """Answer `<node>.node`. Other types than addresses and texts are empty and the name is not looked up."""
        if question.type not in (wire.A, wire.AAAA, wire.TXT, wire.ANY):
            return self._answer()
        self.topics.add(("node", fold(name)))
        node = self.catalog.node(name) if is_here else None
        if node is None:
            return self._nothing()
        records: list[Record] = []
        if question.type != wire.TXT:
            address = _node_address(node, question.type)
            records = self._host(question, address, self.node_ttl_s, depth=depth, keeps_ttl=True)
        if question.type in (wire.TXT, wire.ANY):
            return self._answer([*records, *_texts(question.name, node, self.node_ttl_s)])
        if self.settings.enable_additional_node_meta_txt:
            return self._answer(records, additional=_texts(question.name, node, self.node_ttl_s))
        return self._answer(records)

    def service(self, question: Question, service: str, tag: str, *, depth: int) -> Answer:
        """Answer `[<tag>.]<service>.service` and its RFC 2782 forms."""
        instances = [
            instance
            for instance in self.healthy(service)
            if not tag or any(fold(own) == tag for own in instance.service.tags)
        ]
        return self._instances(
            question,
            self._arranged(instances),
            ttl_s=self.lookup.service_ttl_s(service),
            depth=depth,
        )

    def found(self, question: Question, kind: str, name: str, *, depth: int) -> Answer:
        """Answer the forms that somebody else knows."""
        found = self.lookup.finder.find(kind, name, catalog=self.catalog)
        if found is None:
            return self._nothing(is_cacheable=False)
        self.topics.update(found.topics)
        instances = found.instances if found.keep_order else self._arranged(found.instances)
        return msgspec.structs.replace(
            self._instances(question, instances, ttl_s=self._found_ttl_s(found), depth=depth),
            subnet_matters=kind == "query",
        )

    # -- instances -------------------------------------------------------------------------------------------------------

    def healthy(self, service: str) -> list[Instance]:
        """Return the instances without a critical check, with `only_passing` those that pass all."""
        self.topics.add(("health", service))
        instances = self.catalog.instances(service)
        if self.settings.only_passing:
            return [i for i in instances if all(c.status == PASSING for c in i.checks)]
        return [i for i in instances if all(c.status != CRITICAL for c in i.checks)]

    def name_servers(self) -> tuple[list[Record], list[Record]]:
        """Return NS records and their addresses; a node whose name is no host name cannot be one."""
        servers: list[Record] = []
        glue: list[Record] = []
        for instance in self._arranged(self.healthy(SERVERS)):
            node = instance.node
            target = _name(f"{node.node}.node.{self.lookup.suffix}".lower())
            if _NOT_A_HOST_NAME.search(node.node) or target is None:
                continue
            servers.append(Record(self.lookup.domain, wire.NS, self.node_ttl_s, target))
            about = Question(target, wire.ANY)
            address = _node_address(node, wire.ANY)
            glue += self._host(about, address, self.node_ttl_s, depth=_MAX_DEPTH, keeps_ttl=True)
            if len(servers) == _MAX_NAME_SERVERS:
                break
        return servers, glue

    def _instances(
        self, question: Question, instances: Sequence[Instance], *, ttl_s: int, depth: int
    ) -> Answer:
        if not instances:
            return self._nothing()
        if question.type == wire.SRV:
            answer, additional = self._servers(question, instances, ttl_s, depth=depth)
        else:
            answer, additional = self._addresses(question, instances, ttl_s, depth=depth), []
        soa = self.soa()
        return self._answer(
            answer,
            authority=[] if answer else [soa],
            additional=additional,
            negative=soa,
        )

    def _addresses(
        self, question: Question, instances: Sequence[Instance], ttl_s: int, *, depth: int
    ) -> list[Record]:
        """Return the distinct addresses; a CNAME only when there is no address at all, and then one."""
        found: dict[bytes, Record] = {}
        alias: list[Record] = []
        for instance in instances:
            address = self._address(question, instance)
            data = packed(address)
            if data is None:
                if address and not alias:
                    alias = self._host(question, address, ttl_s, depth=depth)
            elif data not in found:
                record = _address_record(question.name, question.type, data, ttl_s)
                if record is not None:
                    found[data] = record
                    if len(found) == self.settings.a_record_limit:
                        break
        return list(found.values()) or alias

    def _servers(
        self, question: Question, instances: Sequence[Instance], ttl_s: int, *, depth: int
    ) -> tuple[list[Record], list[Record]]:
        answer: list[Record] = []
        additional: list[Record] = []
        seen: set[tuple[str, str, int]] = set()
        for instance in instances:
            own = _service_address(instance, wire.ANY)
            key = (instance.node.node, own, instance.service.port)
            if key in seen:
                continue
            seen.add(key)
            address = self._address(question, instance)
            data = packed(address)
            if data is None:
                target = _name(address) if address else None
            elif own and own == address:
                target = _name(f"{data.hex()}.addr.{self.lookup.suffix}")
            else:
                target = _name(f"{instance.node.node}.node.{self.lookup.suffix}")
            if target is None:
                continue
            srv = wire.Srv(1, _weight(instance), instance.service.port & 0xFFFF, target)
            answer.append(Record(question.name, wire.SRV, ttl_s, srv))
            if data is None:
                additional += self._chain(target, ttl_s, depth=depth)
            else:
                kind = wire.A if len(data) == 4 else wire.AAAA
                additional.append(Record(target, kind, ttl_s, data))
            if self.settings.enable_additional_node_meta_txt:
                owner = _name(f"{instance.node.node}.node.{self.lookup.suffix}")
                if owner is not None:
                    additional += _texts(owner, instance.node, ttl_s)
        return answer, additional

    def _address(self, question: Question, instance: Instance) -> str:
        """Return the address that stands for an instance: its own, else its node's."""
        own = _service_address(instance, question.type)
        if own and packed(own) is None and _name(own) == question.name:
            # It points at the very name that is asked; that test minds the case.
            own = ""
        return own or _node_address(instance.node, question.type)

    def _host(
        self, question: Question, address: str, ttl_s: int, *, depth: int, keeps_ttl: bool = False
    ) -> list[Record]:
        """Return the record of an IP address, or the CNAME of a host name with what follows it."""
        data = packed(address)
        if data is not None:
            record = _address_record(question.name, question.type, data, ttl_s)
            return [] if record is None else [record]
        target = _name(address) if address else None
        if target is None:
            return []
        alias = Record(question.name, wire.CNAME, ttl_s, target)
        return [alias, *self._chain(target, None if keeps_ttl else ttl_s, depth=depth)]

    def _chain(self, target: Name, ttl_s: int | None, *, depth: int) -> list[Record]:
        """Return the records that a host name leads to, with `ttl_s` unless None."""
        records = [r for r in self._follow(target, depth=depth) if r.type in _CHAIN_TYPES]
        if not self.has_edns:
            records = records[:_MAX_CHAINED]
        if ttl_s is None:
            return records
        return [Record(r.name, r.type, ttl_s, r.data) for r in records]

    def _follow(self, target: Name, *, depth: int) -> Iterable[Record]:
        folded = fold_name(target)
        if self.lookup.domain_of(folded) is not None:
            if depth < 1:
                return ()
            width = self.width
            answer = self.form(Question(target, wire.ANY), depth=depth - 1).answer
            self.width = max(width, self.width)
            return answer
        if not self.settings.recursors:
            return ()
        known = self.resolved.get(folded)
        if known is None:
            if folded not in self.unresolved:
                self.unresolved.append(folded)
            return ()
        return known

    def _arranged(self, instances: Sequence[Instance]) -> Sequence[Instance]:
        self.width = max(self.width, len(instances))
        return self.arrange(instances)

    def _found_ttl_s(self, found: Found) -> int:
        if found.ttl_s is not None:
            return int(found.ttl_s)
        return self.lookup.service_ttl_s(fold(found.service))

    # -- ends ------------------------------------------------------------------------------------------------------------

    def soa(self) -> Record:
        """Return the SOA of the first domain; its serial is the time."""
        soa = self.settings.soa
        domain = self.lookup.domain
        data = wire.Soa(
            (b"ns", *domain),
            (b"hostmaster", *domain),
            self.now_s & 0xFFFFFFFF,
            soa.refresh_s,
            soa.retry_s,
            soa.expire_s,
            soa.min_ttl_s,
        )
        return Record(domain, wire.SOA, soa.min_ttl_s, data)

    def _nothing(self, *, is_cacheable: bool = True) -> Answer:
        """Return NXDOMAIN."""
        if not is_cacheable:
            self.topics.add(("all",))
        return self._answer(authority=[self.soa()], rcode=wire.NXDOMAIN)

    def _answer(
        self,
        answer: Sequence[Record] = (),
        *,
        authority: Sequence[Record] = (),
        additional: Sequence[Record] = (),
        rcode: int = wire.NOERROR,
        may_cut: bool = True,
        negative: Record | None = None,
    ) -> Answer:
        return Answer(
            rcode=rcode,
            answer=tuple(answer),
            authority=tuple(authority),
            additional=tuple(additional),
            topics=tuple(sorted(self.topics)),
            width=self.width,
            unresolved=tuple(self.unresolved),
            may_cut=may_cut,
            negative=negative,
        )


def _split(labels: list[str], *, is_srv: bool) -> tuple[str, list[str], list[str]]:
    """Return (kind, labels before it, labels behind it); the last label that names a kind counts."""
    for position in range(len(labels) - 1, -1, -1):
        label = labels[position]
        if label in _KINDS:
            return label, labels[:position], labels[position + 1 :]
        if is_srv and label.startswith("_"):
            # RFC 2782: `_name._proto.<domain>`; only an SRV question may leave out `service`.
            return "service", labels[: position + 1], labels[position + 1 :]
    return "", [], []


def _service_and_tag(parts: list[str]) -> tuple[str, str]:
    """Return service and tag (empty: any) of the labels before `service`."""
    if len(parts) == 2 and parts[0].startswith("_") and parts[1].startswith("_"):
        tag = parts[1][1:]
        return parts[0][1:], "" if tag == "tcp" else tag
    return parts[-1], ".".join(parts[:-1])


def _name(text: str) -> Name | None:
    """Return a name made of what is registered, None when it cannot be one; a record with it is left out."""
    try:
        return parse_name(text) or None
    except Malformed:
        return None


def _node_address(node: Node, asked: int) -> str:
    """Return the node's address for a type: the `lan_ipv4` or `lan_ipv6` one where that is tagged."""
    tagged = node.tagged_addresses
    if not tagged:
        return node.address
    return _choose(node.address, tagged.get("lan_ipv4", ""), tagged.get("lan_ipv6", ""), asked)


def _service_address(instance: Instance, asked: int) -> str:
    service = instance.service
    tagged = service.tagged_addresses
    if not tagged:
        return service.address
    v4, v6 = tagged.get("lan_ipv4"), tagged.get("lan_ipv6")
    return _choose(service.address, v4.address if v4 else "", v6.address if v6 else "", asked)


def _choose(default: str, v4: str, v6: str, asked: int) -> str:
    if asked == wire.A:
        return v4 or default
    if asked == wire.AAAA:
        return v6 or default
    return v6 or v4 or default


def _address_record(owner: Name, asked: int, data: bytes, ttl_s: int) -> Record | None:
    kind = wire.A if len(data) == 4 else wire.AAAA
    if asked == kind or asked in _ADDRESS_TYPES:
        return Record(owner, kind, ttl_s, data)
    return None


def _weight(instance: Instance) -> int:
    weights = instance.service.weights
    passing = all(check.status == PASSING for check in instance.checks)
    return max(0, min(65535, weights.passing if passing else weights.warning))


def _texts(owner: Name, node: Node, ttl_s: int) -> list[Record]:
    """Return a TXT record for each pair of the node's metadata."""
    return [
        Record(owner, wire.TXT, ttl_s, wire.txt_data(_text(key, value)))
        for key, value in (node.meta or {}).items()
    ]


def _text(key: str, value: str) -> bytes:
    """Return `key=value` quoted by RFC 1464; the bare value for a key that starts with `rfc1035-`."""
    if key.lower().startswith("rfc1035-"):
        return value.encode("utf-8", "surrogateescape")
    bare = key.strip(" ")
    before = len(key) - len(key.lstrip(" "))
    after = len(key) - len(bare) - before
    quoted = bare.replace("`", "``").replace("=", "`=")
    text = "` " * before + quoted + "` " * after + "=" + value.replace("`", "``")
    return text.encode("utf-8", "surrogateescape")
