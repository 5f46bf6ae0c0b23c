"""Filter expressions compiled to predicates over the catalog's records, with a table of selectors per endpoint.

Source: behaviour of Consul 1.8.7, `?filter=`. Errors carry Consul's prefix and are `Rejected`, because Consul answers
them with 500.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from waypost.base.errors import Malformed, Rejected
from waypost.model.catalog import Check, Node, Service
from waypost.wire.consul.expression import And, Expression, Match, Not, Operator, Or, parse
from waypost.wire.consul.gojson import quote
from waypost.wire.consul.regex import compile_regex

PREFIX: Final = "Failed to create boolean expression evaluator: "

Predicate = Callable[[Any], bool]
Getter = Callable[[Any], Any]
_NEGATIVE: Final = {
    "Not Equal": "Equal",
    "Not In": "In",
    "Is Not Empty": "Is Empty",
    "Not Matches": "Matches",
}


class _Kind(Protocol):
    """What a selector leads to, and what may be asked of it."""

    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        """Return the predicate of `match`, whose selector still has `rest` to go after `get`."""
        ...


def _invalid_selector(match: Match, rest: tuple[str, ...]) -> Malformed:
    """Return the error that names the selector up to its first part that leads nowhere."""
    shown = match.selector[: len(match.selector) - len(rest) + 1]
    return Malformed(f'Selector "{".".join(shown)}" is not valid')


def _invalid_operator(match: Match) -> Malformed:
    return Malformed(f'Invalid match operator "{match.operator}" for selector "{match.name}"')


def _signed(match: Match, positive: Predicate) -> Predicate:
    if match.operator not in _NEGATIVE:
        return positive
    return lambda row: not positive(row)


def _positive(operator: Operator) -> str:
    return _NEGATIVE.get(operator, operator)


def _value(match: Match) -> str:
    assert match.value is not None
    return match.value


class _Text:
    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        if rest:
            raise _invalid_selector(match, rest)
        operator = _positive(match.operator)
        if operator == "Is Empty":
            raise _invalid_operator(match)
        value = _value(match)
        if operator == "Equal":
            return _signed(match, lambda row: bool(get(row) == value))
        if operator == "In":
            return _signed(match, lambda row: value in get(row))
        try:
            regex = compile_regex(value)
        except Malformed as error:
            msg = f"Failed to compile regular expression {quote(value)}: {error}"
            raise Malformed(msg) from None
        return _signed(match, lambda row: regex.search(get(row)))


class _Coerced:
    """An int or a bool."""

    def __init__(self, coerce: Callable[[str], int | bool]) -> None:
        self._coerce = coerce

    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        if rest:
            raise _invalid_selector(match, rest)
        if _positive(match.operator) != "Equal":
            raise _invalid_operator(match)
        try:
            value = self._coerce(_value(match))
        except Malformed as error:
            msg = f'Failed to coerce value {quote(_value(match))} for selector "{match.name}": {error}'
            raise Malformed(msg) from None
        return _signed(match, lambda row: bool(get(row) == value))


def parse_int(text: str) -> int:
    """Return an int64 as Go's strconv.ParseInt with base 0 reads it. Raises Malformed in its words."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    try:
        is_octal = digits[:1] == "0" and digits[1:].isdigit()
        value = int(digits, 8 if is_octal else 0)
        if not digits[:1].isdigit() or not digits.isascii():
            raise ValueError(text)
    except ValueError:
        msg = f"strconv.ParseInt: parsing {quote(text)}: invalid syntax"
        raise Malformed(msg) from None
    value = -value if text.startswith("-") else value
    if not -(2**63) <= value < 2**63:
        msg = f"strconv.ParseInt: parsing {quote(text)}: value out of range"
        raise Malformed(msg)
    return value


_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def parse_bool(text: str) -> bool:
    """Return a bool as Go's strconv.ParseBool reads it. Raises Malformed in its words."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    msg = f"strconv.ParseBool: parsing {quote(text)}: invalid syntax"
    raise Malformed(msg)


def _collection(match: Match, get: Getter) -> Predicate:
    """Membership in, and emptiness of, a list or of a map's keys."""
    operator = _positive(match.operator)
    if operator == "Is Empty":
        return _signed(match, lambda row: not get(row))
    if operator == "In":
        value = _value(match)
        return _signed(match, lambda row: value in (get(row) or ()))
    raise _invalid_operator(match)


class _Texts:
    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        if rest:
            raise _invalid_selector(match, rest)
        return _collection(match, get)


class _Map:
    """A map from strings to `item`. What is asked of a missing key is false, its negation true."""

    def __init__(self, item: _Kind) -> None:
        self._item = item

    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        if not rest:
            return _collection(match, get)
        key = rest[0]
        # Compiled for the value itself; looked up first.
        inner = self._item.compile(match, rest[1:], lambda value: value)
        absent = match.operator in _NEGATIVE

        def predicate(row: Any) -> bool:
            values = get(row)
            if not values or key not in values:
                return absent
            return inner(values[key])

        return predicate


class _Records:
    """A list of records: a comparison holds when it holds for any of them, negated ones too."""

    def __init__(self, item: Fields) -> None:
        self._item = item

    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        if not rest:
            if _positive(match.operator) != "Is Empty":
                raise _invalid_operator(match)
            return _collection(match, get)
        inner = self._item.compile(match, rest, lambda item: item)
        return lambda row: any(inner(item) for item in get(row) or ())


class Field(NamedTuple):
    """One selectable member: how to get it from its record, and what it is."""

    get: Getter
    kind: _Kind


class Fields:
    """What can be selected of a record."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = dict(fields)

    def compile(self, match: Match, rest: tuple[str, ...], get: Getter) -> Predicate:
        """See _Kind."""
        if not rest:
            raise _invalid_operator(match)
        field = self.fields.get(rest[0])
        if field is None:
            raise _invalid_selector(match, rest)
        inner = field.get
        return field.kind.compile(match, rest[1:], lambda row: inner(get(row)))


_TEXT: Final = _Text()
_INT: Final = _Coerced(parse_int)
_BOOL: Final = _Coerced(parse_bool)
_TEXTS: Final = _Texts()
_TEXT_MAP: Final = _Map(_TEXT)


def _attributes(kind: _Kind, **members: str) -> dict[str, Field]:
    """Return fields by Consul's name for attributes of a record."""
    return {name: Field(attrgetter(attribute), kind) for name, attribute in members.items()}


def _member(kind: _Kind, name: str, *path: str, default: Any) -> Field:
    """Return a field inside of one of Consul's own objects that are kept as they were sent."""

    def get(holder: Mapping[str, Any] | None) -> Any:
        value: Any = holder or {}
        for step in (*path, name):
            value = value.get(step) if isinstance(value, Mapping) else None
        return default if value is None else value

    return Field(get, kind)


_ADDRESSES: Final = _Map(
    Fields({**_attributes(_TEXT, Address="address"), **_attributes(_INT, Port="port")})
)
_WEIGHTS: Final = Fields(_attributes(_INT, Passing="passing", Warning="warning"))
_UPSTREAM: Final = Fields(
    {
        **{
            name: _member(_TEXT, name, default="")
            for name in (
                "DestinationType",
                "DestinationNamespace",
                "DestinationName",
                "Datacenter",
                "LocalBindAddress",
            )
        },
        "LocalBindPort": _member(_INT, "LocalBindPort", default=0),
        "MeshGateway": Field(
            lambda value: value, Fields({"Mode": _member(_TEXT, "Mode", "MeshGateway", default="")})
        ),
    }
)
_PROXY: Final = Fields(
    {
        "DestinationServiceName": _member(_TEXT, "DestinationServiceName", default=""),
        "DestinationServiceID": _member(_TEXT, "DestinationServiceID", default=""),
        "LocalServiceAddress": _member(_TEXT, "LocalServiceAddress", default=""),
        "LocalServicePort": _member(_INT, "LocalServicePort", default=0),
        "MeshGateway": Field(
            lambda value: value, Fields({"Mode": _member(_TEXT, "Mode", "MeshGateway", default="")})
        ),
        "Expose": Field(
            lambda value: value,
            Fields({"Checks": _member(_BOOL, "Checks", "Expose", default=False)}),
        ),
        "Upstreams": _member(_Records(_UPSTREAM), "Upstreams", default=()),
    }
)
_CONNECT: Final = Fields({"Native": _member(_BOOL, "Native", default=False)})

NODE: Final = Fields(
    {
        **_attributes(_TEXT, ID="id", Node="node", Address="address", Datacenter="datacenter"),
        **_attributes(_TEXT_MAP, TaggedAddresses="tagged_addresses", Meta="meta"),
    }
)
"""Selectors of catalog/nodes, over `Node`."""

SERVICE: Final = Fields(
    {
        **_attributes(_TEXT, Kind="kind", ID="id", Service="name", Address="address"),
        **_attributes(_TEXTS, Tags="tags"),
        **_attributes(_ADDRESSES, TaggedAddresses="tagged_addresses"),
        **_attributes(_TEXT_MAP, Meta="meta"),
        **_attributes(_INT, Port="port"),
        **_attributes(_WEIGHTS, Weights="weights"),
        **_attributes(_BOOL, EnableTagOverride="enable_tag_override"),
        **_attributes(_PROXY, Proxy="proxy"),
        **_attributes(_CONNECT, Connect="connect"),
    }
)
"""Selectors of agent/services, catalog/node and catalog/node-services, over `Service`."""

CHECK: Final = Fields(
    {
        **_attributes(
            _TEXT,
            Node="node",
            CheckID="check_id",
            Name="name",
            Status="status",
            Notes="notes",
            Output="output",
            ServiceID="service_id",
            ServiceName="service_name",
            Type="type",
        ),
        **_attributes(_TEXTS, ServiceTags="service_tags"),
    }
)
"""Selectors of agent/checks and health/node, checks, state, over `Check`."""

SERVICE_NODE: Final = Fields(
    {
        **_attributes(
            _TEXT,
            ID="node.id",
            Node="node.node",
            Address="node.address",
            Datacenter="node.datacenter",
            ServiceKind="service.kind",
            ServiceID="service.id",
            ServiceName="service.name",
            ServiceAddress="service.address",
        ),
        **_attributes(
            _TEXT_MAP,
            TaggedAddresses="node.tagged_addresses",
            NodeMeta="node.meta",
            ServiceMeta="service.meta",
        ),
        **_attributes(_TEXTS, ServiceTags="service.tags"),
        **_attributes(_INT, ServicePort="service.port"),
        **_attributes(_BOOL, ServiceEnableTagOverride="service.enable_tag_override"),
        **_attributes(_WEIGHTS, ServiceWeights="service.weights"),
        **_attributes(_ADDRESSES, ServiceTaggedAddresses="service.tagged_addresses"),
        **_attributes(_PROXY, ServiceProxy="service.proxy"),
        **_attributes(_CONNECT, ServiceConnect="service.connect"),
    }
)
"""Selectors of catalog/service and catalog/connect, over anything with `node` and `service`."""

INSTANCE: Final = Fields(
    {
        **_attributes(NODE, Node="node"),
        **_attributes(SERVICE, Service="service"),
        **_attributes(_Records(CHECK), Checks="checks"),
    }
)
"""Selectors of health/service, over anything with `node`, `service` and `checks`."""


class NodeSummary(NamedTuple):
    """A node with what runs on it, as internal/ui shows it."""

    node: Node
    services: tuple[Service, ...]
    checks: tuple[Check, ...]


UI_NODE: Final = Fields(
    {
        **_attributes(_TEXT, ID="node.id", Node="node.node", Address="node.address"),
        **_attributes(_TEXT_MAP, TaggedAddresses="node.tagged_addresses", Meta="node.meta"),
        **_attributes(_Records(SERVICE), Services="services"),
        **_attributes(_Records(CHECK), Checks="checks"),
    }
)
"""Selectors of internal/ui/nodes, over `NodeSummary`."""


def _compile(expression: Expression, fields: Fields) -> Predicate:
    match expression:
        case Match():
            return fields.compile(expression, expression.selector, lambda row: row)
        case Not():
            operand = _compile(expression.operand, fields)
            return lambda row: not operand(row)
        case And():
            every = [_compile(operand, fields) for operand in expression.operands]
            return lambda row: all(holds(row) for holds in every)
        case Or():
            some = [_compile(operand, fields) for operand in expression.operands]
            return lambda row: any(holds(row) for holds in some)


@lru_cache(maxsize=512)
def compile_filter(text: str, fields: Fields) -> Predicate:
    """Return the predicate of a filter expression for the records that `fields` describes.

    Raises Rejected with Consul's text and prefix.
    """
    try:
        return _compile(parse(text), fields)
    except Malformed as error:
        raise Rejected(PREFIX + str(error)) from None


def select(rows: Iterable[Any], text: str, fields: Fields) -> list[Any]:
    """Return the rows that a filter expression lets through; an empty one lets everything through.

    Raises Rejected; also without any rows, as Consul does.
    """
    if not text:
        return list(rows)
    predicate = compile_filter(text, fields)
    return [row for row in rows if predicate(row)]
