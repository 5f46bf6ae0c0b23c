"""Strategic merge patch: a merge patch that knows which lists merge, and by what.

Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/FIELD`,
`$deleteFromPrimitiveList/FIELD`. Source: Kubernetes documentation, "Update API objects in place".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from waypost.base.errors import Malformed
from waypost.wire.kube.schema import SCHEMA, Field, Shape
from waypost.wire.kube.values import JsonObject, copied, equal, json_type

_PATCH: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_ORDER: Final = "$setElementOrder/"
_DELETE: Final = "$deleteFromPrimitiveList/"


def merged(value: JsonObject, patch: JsonObject, *, message: str) -> JsonObject:
    """Return `value`, an object of `message`, with `patch` merged in. Raises Malformed."""
    return _merge_object(value, patch, message)


def _merge_object(value: JsonObject, patch: JsonObject, message: str | None) -> JsonObject:
    directive = patch.get(_PATCH)
    if directive is not None:
        if directive == "replace":
            return {key: copied(one) for key, one in patch.items() if key != _PATCH}
        if directive == "delete":
            return {}
        if directive != "merge":
            raise Malformed(f"unrecognized patch type: {directive}")
    result = _retained(value, patch)
    _delete_from_lists(result, patch)
    orders = {key.removeprefix(_ORDER): one for key, one in patch.items() if key.startswith(_ORDER)}
    for key, one in patch.items():
        if key in (_PATCH, _RETAIN) or key.startswith((_ORDER, _DELETE)):
            continue
        if one is None:
            result.pop(key, None)
            continue
        field = SCHEMA.child(message, key)
        result[key] = _merge_value(result.get(key), one, field, key)
    for key, order in orders.items():
        if not isinstance(order, list):
            raise Malformed(f"{_ORDER}{key} is no list")
        if isinstance(result.get(key), list):
            result[key] = _ordered(result[key], order, SCHEMA.child(message, key))
    return result


def _retained(value: JsonObject, patch: JsonObject) -> JsonObject:
    keys = patch.get(_RETAIN)
    if keys is None:
        return dict(value)
    if not isinstance(keys, list):
        raise Malformed(f"{_RETAIN} is no list")
    for key in patch:
        if not key.startswith("$") and key not in keys:
            raise Malformed(f"{_RETAIN} does not name {key}, which the patch sets")
    return {key: one for key, one in value.items() if key in keys}


def _delete_from_lists(result: JsonObject, patch: JsonObject) -> None:
    for key, gone in patch.items():
        if not key.startswith(_DELETE):
            continue
        if not isinstance(gone, list):
            raise Malformed(f"{key} is no list")
        name = key.removeprefix(_DELETE)
        found = result.get(name)
        if isinstance(found, list):
            result[name] = [one for one in found if not any(equal(one, other) for other in gone)]


def _merge_value(value: Any, patch: Any, field: Field | None, key: str) -> Any:
    below = field.of if field is not None and isinstance(field.of, str) else None
    if isinstance(patch, dict):
        if field is not None and field.shape is Shape.MAP:
            below = None
        return _merge_object(value if isinstance(value, dict) else {}, patch, below)
    if not isinstance(patch, list):
        return patch
    if field is None or not field.merge:
        return copied(patch)
    found = value if isinstance(value, list) else []
    if field.merge_key:
        return _merge_by_key(found, patch, field, key)
    return _merge_set(found, patch)


def _merge_set(value: Sequence[Any], patch: Sequence[Any]) -> list[Any]:
    result = list(value)
    for one in patch:
        if not any(equal(one, other) for other in result):
            result.append(copied(one))
    return result


def _merge_by_key(value: Sequence[Any], patch: Sequence[Any], field: Field, name: str) -> list[Any]:
    entries = [_checked(one, field, name) for one in patch]
    if any(one.get(_PATCH) == "replace" for one in entries):
        return [copied(one) for one in entries if _PATCH not in one]
    result: list[Any] = [one for one in value if isinstance(one, dict)]
    below = field.of if isinstance(field.of, str) else None
    for one in entries:
        key = one[field.merge_key]
        at = _position(result, field.merge_key, key)
        if one.get(_PATCH) == "delete":
            result = [old for old in result if not equal(old.get(field.merge_key), key)]
        elif at is None:
            result.append(_merge_object({}, one, below))
        else:
            result[at] = _merge_object(result[at], one, below)
    return result


def _checked(entry: Any, field: Field, name: str) -> JsonObject:
    if not isinstance(entry, dict):
        raise Malformed(f"{name}: expected objects in the list, but found {json_type(entry)}")
    if field.merge_key not in entry and entry.get(_PATCH) != "replace":
        raise Malformed(f"{name}: an entry does not contain declared merge key: {field.merge_key}")
    return entry


def _position(entries: Sequence[JsonObject], merge_key: str, key: Any) -> int | None:
    return next((at for at, one in enumerate(entries) if equal(one.get(merge_key), key)), None)


def _ordered(entries: list[Any], order: list[Any], field: Field | None) -> list[Any]:
    """Return entries in the given order; one that the order lacks stays behind the one before it."""
    merge_key = field.merge_key if field is not None else ""

    def identity(one: Any) -> Any:
        return one.get(merge_key) if merge_key and isinstance(one, dict) else one

    wanted = [identity(one) for one in order]

    def rank(one: Any) -> int | None:
        found = identity(one)
        return next((at for at, other in enumerate(wanted) if equal(found, other)), None)

    ranked = [(rank(one), one) for one in entries]
    named = iter(sorted((at for at in ranked if at[0] is not None), key=lambda one: one[0] or 0))
    # Entries the patch does not know keep their places; the known ones fill the others in order.
    return [one if at is None else next(named)[1] for at, one in ranked]
