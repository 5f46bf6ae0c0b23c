"""Sets of fields of an object: what managedFields hold, and what server-side apply computes with.

A field is named by a path of elements as `fieldsV1` spells them: `f:NAME`, `k:{"KEY":…}` for an entry of a
list with keys, `v:VALUE` for an entry of a set. A set is a frozenset of paths; that `.` stands for the
element itself is a matter of its JSON form only.
Source: Kubernetes documentation, "Server-Side Apply".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.wire.kube.schema import SCHEMA, Field, Shape
from waypost.wire.kube.values import JsonObject, decode_json, encode_json, equal

Path = tuple[str, ...]
FieldSet = frozenset[Path]

_SELF: Final = "."
MAX_PATH: Final = 100


class Place(msgspec.Struct, frozen=True):
    """What is known of the value at a path."""

    message: str | None = None
    """The value is an object of this message."""
    field: Field | None = None
    """The value is the list or map of this field."""
    atomic: bool = False
    """Owned as a whole."""


def root(message: str) -> Place:
    """Return the place of a whole object."""
    return Place(message=message)


def _below(field: Field) -> Place:
    if field.shape is not Shape.ONE:
        return Place(field=field, atomic=field.shape is Shape.LIST and field.list_type == "atomic")
    if isinstance(field.of, str):
        return Place(message=field.of, atomic=SCHEMA.message(field.of).atomic)
    return Place(atomic=True)


def _entry(field: Field) -> Place:
    return Place(message=field.of) if isinstance(field.of, str) else Place(atomic=True)


def children(value: Any, place: Place) -> dict[str, tuple[Any, Place]] | None:
    """Return the parts of a value by path element; None if it is owned as a whole."""
    if place.atomic or not isinstance(value, dict | list):
        return None
    if isinstance(value, dict):
        if place.field is not None:
            return {f"f:{key}": (one, _entry(place.field)) for key, one in value.items()}
        fields = SCHEMA.fields(place.message) if place.message else {}
        return {
            f"f:{key}": (one, _below(fields[key]) if key in fields else Place(atomic=True))
            for key, one in value.items()
        }
    if place.field is None or place.field.list_type == "atomic":
        return None
    found: dict[str, tuple[Any, Place]] = {}
    for one in value:
        element = _element(one, place.field)
        if element is None or element in found:
            return None  # no list with keys after all: taken as a whole
        found[element] = (one, _entry(place.field))
    return found


def _element(entry: Any, field: Field) -> str | None:
    if field.list_type == "set":
        return None if isinstance(entry, dict | list) else "v:" + encode_json(entry).decode()
    if not isinstance(entry, dict):
        return None
    keys = {key: entry[key] for key in sorted(field.map_keys) if entry.get(key) is not None}
    return "k:" + encode_json(keys).decode() if keys else None


def _is_entry(element: str) -> bool:
    return element[:2] in ("k:", "v:")


def leaves(value: Any, place: Place, *, path: Path = ()) -> Iterator[Path]:
    """Yield what a manager owns that says exactly `value`: its leaves, and the entries of lists themselves."""
    parts = children(value, place)
    if not parts:
        yield path
        return
    for element, (one, below) in parts.items():
        here = (*path, element)
        if _is_entry(element):
            yield here
            if children(one, below) is None:
                continue
        yield from leaves(one, below, path=here)


class Changes(msgspec.Struct, frozen=True):
    """How one object differs from another."""

    added: FieldSet
    modified: FieldSet
    removed: FieldSet


def compared(old: Any, new: Any, place: Place) -> Changes:
    """Return what is new, different and gone from `old` to `new`, values that appear or go with all below."""
    added: set[Path] = set()
    modified: set[Path] = set()
    removed: set[Path] = set()

    def all_below(value: Any, here: Place, path: Path, into: set[Path]) -> None:
        into.add(path)
        for element, (one, below) in (children(value, here) or {}).items():
            # A list that is new is named by its entries, an object and a map also by itself.
            all_below(one, below, (*path, element), into)

    def walk(left: Any, right: Any, here: Place, path: Path) -> None:
        if equal(left, right):
            return
        one, other = children(left, here), children(right, here)
        if one is None and other is None:
            modified.add(path)
            return
        one, other = one or {}, other or {}
        if not one and not other:
            modified.add(path)
        for element in {**one, **other}:
            where = (*path, element)
            if element not in other:
                all_below(*one[element], where, removed)
            elif element not in one:
                all_below(*other[element], where, added)
            else:
                walk(one[element][0], other[element][0], one[element][1], where)

    walk(old, new, place, ())
    return Changes(frozenset(added), frozenset(modified), frozenset(removed))


def with_parents(fields: FieldSet) -> FieldSet:
    """Return the set with every field above a member that has a name."""
    return fields | {path[:at] for path in fields for at in range(1, len(path))}


def without(value: Any, place: Place, gone: Callable[[Path], bool], *, path: Path = ()) -> Any:
    """Return `value` without the parts that `gone` names; containers that become empty go as well."""
    parts = children(value, place)
    if parts is None:
        return value
    kept: list[tuple[str, Any]] = []
    for element, (one, below) in parts.items():
        where = (*path, element)
        if gone(where):
            continue
        rest = without(one, below, gone, path=where)
        if rest in ({}, []) and one not in ({}, []):
            continue
        kept.append((element, rest))
    if isinstance(value, list):
        return [one for _, one in kept]
    return {element[2:]: one for element, one in kept}


def merged(value: Any, config: Any, place: Place) -> Any:
    """Return `value` with everything `config` says: objects and keyed lists merge, the rest is replaced."""
    one, other = children(value, place), children(config, place)
    if one is None or other is None or type(value) is not type(config):
        return config
    result = {element: part for element, (part, _) in one.items()}
    for element, (part, below) in other.items():
        result[element] = merged(result[element], part, below) if element in result else part
    if isinstance(value, list):
        return list(result.values())
    return {element[2:]: part for element, part in result.items()}


# -- fieldsV1 --------------------------------------------------------------------------------------


def to_fields_v1(fields: Iterable[Path]) -> JsonObject:
    """Return a set as a tree, elements in order."""
    members = frozenset(fields)
    tree: JsonObject = {}
    inner = {path[:at] for path in members for at in range(1, len(path))}
    for path in sorted(members):
        at = tree
        for element in path:
            at = at.setdefault(element, {})
        if path in inner:
            at[_SELF] = {}
    return _sorted_tree(tree)


def _sorted_tree(tree: JsonObject) -> JsonObject:
    return {key: _sorted_tree(tree[key]) for key in sorted(tree)}


def from_fields_v1(tree: Any) -> FieldSet:
    """Return the set of a tree. Raises Malformed."""
    found: set[Path] = set()

    def walk(at: Any, path: Path) -> None:
        if not isinstance(at, dict):
            raise Malformed(f"fieldsV1: {'/'.join(path) or 'root'} is no object")
        if len(path) > MAX_PATH:
            raise Malformed("fieldsV1: too deep")
        if not at and path:
            found.add(path)
        for element, below in at.items():
            if element == _SELF:
                found.add(path)
                continue
            walk(below, (*path, _canonical(element)))

    walk(tree, ())
    return frozenset(found)


def _canonical(element: str) -> str:
    if element[:2] not in ("f:", "k:", "v:", "i:"):
        raise Malformed(f"fieldsV1: unknown element {element!r}")
    if element[:2] in ("f:", "i:"):
        return element
    value = decode_json(element[2:].encode("utf-8", "replace"))
    if element[0] == "k":
        if not isinstance(value, dict):
            raise Malformed(f"fieldsV1: {element!r} has no keys")
        value = {key: value[key] for key in sorted(value)}
    return element[:2] + encode_json(value).decode()


def path_text(path: Path) -> str:
    """Return a path as conflicts print it: `.metadata.ownerReferences[uid="x"].name`."""
    return "".join(map(_element_text, path))


def _element_text(element: str) -> str:
    kind, rest = element[:2], element[2:]
    if kind == "f:":
        return "." + rest
    if kind == "i:":
        return f"[{rest}]"
    if kind == "v:":
        return f"[={rest}]"
    keys = decode_json(rest.encode())
    return "[" + ",".join(f"{key}={encode_json(one).decode()}" for key, one in keys.items()) + "]"
