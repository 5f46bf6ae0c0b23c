"""JSON Patch. Source: RFC 6902, and RFC 6901 for its pointers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube.values import copied, equal, json_type

MAX_OPERATIONS: Final = 10_000
"""As in the original."""
MAX_COPIED: Final = 300_000
"""Values that `copy` operations may add in all, so that a small patch makes no giant object."""
_OPS: Final = ("add", "remove", "replace", "move", "copy", "test")
_INDEX: Final = re.compile(r"0|[1-9]\d{0,9}", re.ASCII)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step. Pointers are in parts, unescaped."""

    op: str
    path: tuple[str, ...]
    source: tuple[str, ...] = ()
    """`from` of move and copy."""
    value: Any = None


def parse(value: Any) -> list[Operation]:
    """Return the steps of a decoded patch. Raises Malformed."""
    if not isinstance(value, list):
        raise Malformed(
            f"error decoding patch: json: cannot unmarshal {json_type(value)} into Go value of type jsonpatch.Patch"
        )
    if len(value) > MAX_OPERATIONS:
        raise Malformed(
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(value)}"
        )
    return [_operation(one) for one in value]


def _operation(value: Any) -> Operation:
    if not isinstance(value, dict):
        raise Malformed("error decoding patch: an operation is no object")
    op = value.get("op")
    if op not in _OPS:
        raise Malformed(f"error decoding patch: unexpected kind: {op}")
    if op in ("add", "replace", "test") and "value" not in value and op != "test":
        raise Malformed(f"error decoding patch: {op} operation has no value")
    source = _pointer(value.get("from"), "from") if op in ("move", "copy") else ()
    return Operation(
        op=op, path=_pointer(value.get("path"), "path"), source=source, value=value.get("value")
    )


def _pointer(text: Any, name: str) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise Malformed(f"error decoding patch: operation has no {name}")
    if text == "":
        return ()
    if not text.startswith("/"):
        raise Malformed(f"error decoding patch: {name} {quoted(text)} does not start with /")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))


def applied(value: Any, operations: Sequence[Operation]) -> Any:
    """Return `value` after all steps. Raises Malformed at the first one that does not fit."""
    try:
        return _applied(value, operations)
    except RecursionError as exc:  # moves can nest a value deeper and deeper
        raise Malformed("exceeded max depth") from exc


def _applied(value: Any, operations: Sequence[Operation]) -> Any:
    root = {"": copied(value)}
    budget = MAX_COPIED
    for one in operations:
        path = ("", *one.path)
        source = ("", *one.source)
        if one.op == "test":
            if not equal(_find(root, path), one.value):
                raise Malformed(f"testing value {_shown(one.path)} failed")
        elif one.op == "add":
            _add(root, path, copied(one.value))
        elif one.op == "replace":
            _find(root, path)
            _remove(root, path)
            _add(root, path, copied(one.value))
        elif one.op == "remove":
            _remove(root, path)
        elif one.op == "copy":
            found = _find(root, source)
            budget -= _size(found)
            if budget < 0:
                raise Malformed("the copied values are too large")
            _add(root, path, copied(found))
        else:
            if path[: len(source)] == source and path != source:
                raise Malformed("a value cannot be moved into itself")
            moved = _find(root, source)
            _remove(root, source)
            _add(root, path, moved)
    if "" not in root:
        raise Malformed("nothing is left")
    return root[""]


def _size(value: Any) -> int:
    count, todo = 0, [value]
    while todo:
        one = todo.pop()
        count += 1
        if isinstance(one, dict):
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
    return count


def _shown(path: Sequence[str]) -> str:
    return "/" + "/".join(path)


def _missing(path: Sequence[str]) -> Malformed:
    return Malformed(f"unable to find {_shown(path[1:])}: missing path")


def _index(part: str, length: int, path: Sequence[str]) -> int:
    if not _INDEX.fullmatch(part) or int(part) >= length:
        raise _missing(path)
    return int(part)


def _find(root: Any, path: Sequence[str]) -> Any:
    at = root
    for part in path:
        if isinstance(at, dict):
            if part not in at:
                raise _missing(path)
            at = at[part]
        elif isinstance(at, list):
            at = at[_index(part, len(at), path)]
        else:
            raise _missing(path)
    return at


def _add(root: Any, path: Sequence[str], value: Any) -> None:
    parent, part = _find(root, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[part] = value
    elif isinstance(parent, list):
        at = len(parent) if part == "-" else _index(part, len(parent) + 1, path)
        parent.insert(at, value)
    else:
        raise _missing(path)


def _remove(root: Any, path: Sequence[str]) -> None:
    _find(root, path)
    parent, part = _find(root, path[:-1]), path[-1]
    if isinstance(parent, dict):
        del parent[part]
    else:
        del parent[_index(part, len(parent), path)]
