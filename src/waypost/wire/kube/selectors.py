"""Label and field selectors: `env in (a,b),!old` and `metadata.name=x`, with the original's errors.

Source: Kubernetes documentation, "Labels and selectors" and "Field selectors"; recorded answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from waypost.base.quoting import quoted
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.status import ApiError, bad_request
from waypost.wire.kube.validate.names import label_value_faults, qualified_name_faults
from waypost.wire.kube.values import JsonObject

_TOKEN: Final = re.compile(r"\s*(==|!=|[=!<>(),]|[^\s=!<>(),]+)")
_SYMBOLS: Final = frozenset(("==", "!=", "=", "!", "<", ">", "(", ")", ","))
_BINARY: Final = ("in", "notin", "=", "==", "!=", ">", "<")
_MAX_BYTES: Final = 64 * 1024


class Requirement(msgspec.Struct, frozen=True):
    """A condition on one label."""

    key: str
    operator: str
    """`in`, `notin`, `exists`, `!`, `gt`, `lt`."""
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels fulfil it."""
        value = labels.get(self.key)
        if self.operator == "in":
            return value is not None and value in self.values
        if self.operator == "notin":
            return value is None or value not in self.values
        if self.operator in ("exists", "!"):
            return (value is not None) == (self.operator == "exists")
        if value is None:
            return False
        left, right = _integer(value), _integer(self.values[0])
        if left is None or right is None:
            return False
        return left > right if self.operator == "gt" else left < right


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) else None


class LabelSelector(msgspec.Struct, frozen=True):
    """Conditions that must all hold; none selects everything."""

    requirements: tuple[Requirement, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether it selects everything."""
        return not self.requirements

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Tell whether labels are selected."""
        found = labels or {}
        return all(one.matches(found) for one in self.requirements)


def parse_label_selector(text: str) -> LabelSelector:
    """Return the selector of `?labelSelector=`. Raises ApiError 400."""
    if len(text) > _MAX_BYTES:
        raise bad_request("unable to parse requirement: the selector is too long")
    return LabelSelector(tuple(_LabelParser(text).requirements()))


def label_selector_of(value: JsonObject) -> LabelSelector:
    """Return the selector of a LabelSelector object that passed validation."""
    found = [
        Requirement(key, "in", (one,)) for key, one in (value.get("matchLabels") or {}).items()
    ]
    names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
    for one in value.get("matchExpressions") or ():
        operator = names.get(one.get("operator", ""))
        if operator is not None:
            found.append(Requirement(one["key"], operator, tuple(one.get("values") or ())))
    return LabelSelector(tuple(found))


def _refused(text: str) -> ApiError:
    return bad_request(f"unable to parse requirement: {text}")


class _LabelParser:
    """Recursive descent over the tokens; the empty text is the end."""

    def __init__(self, text: str) -> None:
        self.tokens = [*_TOKEN.findall(text), ""]
        self.at = 0

    def peek(self) -> str:
        return str(self.tokens[self.at])

    def next(self) -> str:
        piece = self.peek()
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return piece

    def requirements(self) -> Iterator[Requirement]:
        if self.peek() == "":
            return
        while True:
            yield self.requirement()
            piece = self.next()
            if piece == "":
                return
            if piece != ",":
                raise _refused(f"found '{piece}', expected: ',' or 'end of string'")
            after = self.peek()
            if after in _SYMBOLS and after != "!":
                raise _refused(f"found '{after}', expected: identifier after ','")
            if after == "":
                raise _refused("found '', expected: identifier after ','")

    def requirement(self) -> Requirement:
        negated = self.peek() == "!"
        if negated:
            self.next()
        key = self.next()
        if key in _SYMBOLS or key == "":
            raise _refused(
                f"found '{key}', expected: !, identifier, or 'end of string'"
                if not negated
                else f"found '{key}', expected: identifier"
            )
        _check_key(key)
        if self.peek() in ("", ","):
            return Requirement(key, "!" if negated else "exists")
        if negated:
            raise _refused(f"found '{self.peek()}', expected: ',' or 'end of string'")
        operator = self.next()
        if operator not in _BINARY:
            raise _refused(f"found '{operator}', expected: in, notin, =, ==, !=, gt, lt")
        if operator in ("in", "notin"):
            return self.checked(key, operator, self.values())
        value = self.exact()
        if operator in (">", "<"):
            if _integer(value) is None:
                raise _refused(
                    f"values[0][{key}]: Invalid value: {quoted(value)}: for 'Gt', 'Lt' operators, the value must be an integer"
                )
            return Requirement(key, "gt" if operator == ">" else "lt", (value,))
        return self.checked(key, "notin" if operator == "!=" else "in", (value,))

    def exact(self) -> str:
        if self.peek() in ("", ","):
            return ""
        value = self.next()
        if value in _SYMBOLS:
            raise _refused(f"found '{value}', expected: identifier")
        return value

    def values(self) -> tuple[str, ...]:
        opening = self.next()
        if opening != "(":
            raise _refused(f"found '{opening}' expected: '('")
        found: list[str] = []
        wants_value = True
        while True:
            piece = self.next()
            if piece == ")":
                return tuple(sorted({*found, *([""] if wants_value else [])}))
            if piece == ",":
                if wants_value:
                    found.append("")
                wants_value = True
            elif piece in _SYMBOLS or piece == "":
                raise _refused(f"found '{piece}', expected: ',', ')' or identifier")
            elif not wants_value:
                raise _refused(f"found '{piece}', expected: ',' or ')'")
            else:
                found.append(piece)
                wants_value = False

    def checked(self, key: str, operator: str, values: Sequence[str]) -> Requirement:
        for at, value in enumerate(values):
            for fault in label_value_faults(value):
                raise _refused(f"values[{at}][{key}]: Invalid value: {quoted(value)}: {fault}")
        return Requirement(key, operator, tuple(values))


def _check_key(key: str) -> None:
    for fault in qualified_name_faults(key):
        raise _refused(f"<nil>: Invalid value: {quoted(key)}: {fault}")


# -- fields ----------------------------------------------------------------------------------------


class FieldTerm(msgspec.Struct, frozen=True):
    """`field=value`, or `field!=value` with `negated`."""

    field: str
    value: str
    negated: bool = False


class FieldSelector(msgspec.Struct, frozen=True):
    """Conditions that must all hold; none selects everything."""

    terms: tuple[FieldTerm, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether it selects everything."""
        return not self.terms

    @property
    def name(self) -> str | None:
        """The metadata.name that is asked for exactly, or None."""
        return self._exact("metadata.name")

    @property
    def namespace(self) -> str | None:
        """The metadata.namespace that is asked for exactly, or None."""
        return self._exact("metadata.namespace")

    def _exact(self, field: str) -> str | None:
        found = (one for one in self.terms if one.field == field and not one.negated)
        return next((one.value for one in found), None)

    def matches(self, value: JsonObject) -> bool:
        """Tell whether an object is selected; a missing field is an empty text."""
        return all((_value_at(value, one.field) == one.value) != one.negated for one in self.terms)


def _value_at(value: JsonObject, path: str) -> str:
    if path == "source":
        path = "source.component"
    at: Any = value
    for part in path.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at if isinstance(at, str) else ""


def parse_field_selector(text: str, *, resource: Resource) -> FieldSelector:
    """Return the selector of `?fieldSelector=`. Raises ApiError 400 for bad syntax and unknown fields."""
    terms = []
    for part in _split_terms(text):
        if not part:
            continue
        term = _field_term(part)
        if term is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        _check_field(term.field, resource)
        terms.append(term)
    return FieldSelector(tuple(terms))


def _split_terms(text: str) -> Iterator[str]:
    start, at = 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == ",":
            yield text[start:at]
            start = at + 1
        at += 1
    yield text[start:]


def _field_term(text: str) -> FieldTerm | None:
    found = re.match(r"([^=!]*)(!=|==|=)(.*)", text, re.DOTALL)
    if found is None:
        return None
    field, operator, raw = found.groups()
    # "\\", "\," and "\=" stand for the character; a bare "," or "=" in a value is a mistake.
    if re.search(r"(?<!\\)(?:\\\\)*=", raw) or re.search(r"\\(?![\\,=])", raw):
        raise bad_request(
            f"invalid field selector: invalid escape sequence or unescaped = in: {raw}"
        )
    value = re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)
    return FieldTerm(field, value, operator == "!=")


def _check_field(field: str, resource: Resource) -> None:
    if field in ("metadata.name", "metadata.namespace") or field in resource.field_labels:
        return
    if resource.field_labels:
        raise bad_request(f"field label not supported: {field}")
    raise bad_request(
        f'{quoted(field)} is not a known field selector: only "metadata.name", "metadata.namespace"'
    )
