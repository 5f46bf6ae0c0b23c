"""What a kind looks like: messages of fields, in one small vocabulary.

One declaration serves strict decoding, pruning, the protobuf codec, OpenAPI, strategic merge and field
ownership. `field("verbs", 1, "[string]", "…")` declares a list of texts under protobuf number 1; `{T}`
is a map from texts to T; any other name than a scalar's is a message.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1."
API: Final = "io.k8s.api."


class Scalar(enum.Enum):
    """A value without fields."""

    STRING = "string"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    BYTES = "bytes"
    """Base64 in JSON."""
    TIME = "time"
    """RFC 3339 in whole seconds."""
    MICRO_TIME = "microtime"
    """RFC 3339 with six digits after the second."""
    FIELDS = "fields"
    """`FieldsV1`: any JSON object, in protobuf its bytes."""
    TEXTS = "texts"
    """`ExtraValue`: a list of texts, in protobuf a message of its own."""


class Shape(enum.Enum):
    """How many values a field holds."""

    ONE = "one"
    LIST = "list"
    MAP = "map"


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a message."""

    name: str
    number: int
    """Of the protobuf field; 0 if it has none."""
    shape: Shape = Shape.ONE
    of: Scalar | str
    """Type of the value, of an entry or of a map's value; a text names a message."""
    doc: str
    required: bool = False
    """OpenAPI says so; clients check it."""
    pointer: bool = False
    """An empty value differs from none and is kept."""
    keep: bool = False
    """Is written even when empty."""
    default: Any = None
    """Scalar that is filled in."""
    merge_key: str = ""
    """Strategic merge patch merges entries with the same value here."""
    merge: bool = False
    """Strategic merge patch merges the list (of texts if there is no `merge_key`)."""
    list_type: str = "atomic"
    """Field ownership: `atomic`, `set` or `map`."""
    map_keys: tuple[str, ...] = ()
    enum: tuple[str, ...] = ()
    """Known values, for the documentation."""
    inline: bool = False
    """The message's fields stand in this message in JSON, in protobuf under `number`."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object with known fields."""

    name: str
    """`io.k8s.api.rbac.v1.Role`."""
    doc: str
    fields: tuple[Field, ...]
    is_kind: bool = False
    """Has apiVersion and kind in front."""
    atomic: bool = False
    """Field ownership takes it as a whole."""

    @property
    def short(self) -> str:
        """`Role`."""
        return self.name.rpartition(".")[2]

    @property
    def go_type(self) -> str:
        """`v1.Role`, as Go's errors name it."""
        return ".".join(self.name.split(".")[-2:])


def field(name: str, number: int, of: str, doc: str, **more: Any) -> Field:
    """Return a field; `of` is `string`, `[string]`, `{bytes}` or `[meta.OwnerReference]`."""
    shape = Shape.ONE
    if of[0] == "[":
        shape, of = Shape.LIST, of[1:-1]
    elif of[0] == "{":
        shape, of = Shape.MAP, of[1:-1]
    if more.get("merge_key"):
        more.setdefault("merge", True)
        if more.get("list_type", "map") == "map":
            more.setdefault("list_type", "map")
            more.setdefault("map_keys", (more["merge_key"],))
    try:
        kind: Scalar | str = Scalar(of)
    except ValueError:
        kind = qualified_name(of)
    return Field(name=name, number=number, shape=shape, of=kind, doc=doc, **more)


def qualified_name(short: str) -> str:
    """Return the full name of `meta.ObjectMeta` or `rbac.v1.Role`."""
    area, _, rest = short.partition(".")
    return META + rest if area == "meta" else API + short


def message(
    name: str, doc: str, *fields: Field, is_kind: bool = False, atomic: bool = False
) -> Message:
    """Return the message `name` (short form) of these fields."""
    if is_kind:
        fields = (METADATA, *fields)
    return Message(
        name=qualified_name(name), doc=doc, fields=fields, is_kind=is_kind, atomic=atomic
    )


METADATA: Final = field(
    "metadata", 1, "meta.ObjectMeta", "Name, labels and bookkeeping of the object."
)


class Schema:
    """Messages by name; immutable."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self.messages: Final[Mapping[str, Message]] = {one.name: one for one in messages}
        self._fields: Final = {
            one.name: {f.name: f for f in self._flat(one)} for one in self.messages.values()
        }

    def _flat(self, one: Message) -> Iterable[Field]:
        for found in one.fields:
            if found.inline and isinstance(found.of, str):
                yield from self._flat(self.messages[found.of])
            else:
                yield found

    def message(self, name: str) -> Message:
        """Return a message by its full name; KeyError if the schema lacks it."""
        return self.messages[name]

    def fields(self, name: str) -> Mapping[str, Field]:
        """Return the fields of a message as JSON shows them, by name and in order."""
        return self._fields[name]

    def child(self, parent: str | None, key: str) -> Field | None:
        """Return the field `key` of message `parent`; None if either is unknown."""
        return None if parent is None else self._fields[parent].get(key)

    def reachable(self, roots: Iterable[str]) -> tuple[str, ...]:
        """Return the names of `roots` and of all messages they refer to, sorted."""
        found: set[str] = set()
        todo = list(roots)
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found.add(name)
            todo += [one.of for one in self._fields[name].values() if isinstance(one.of, str)]
        return tuple(sorted(found))
