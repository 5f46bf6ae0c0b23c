"""Who owns which field: managedFields after an update, and server-side apply with its conflicts.

Source: Kubernetes documentation, "Server-Side Apply"; texts and entries as recorded from kube-apiserver
1.20. All kinds here have one version, so no field is ever converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube import fieldsets
from waypost.wire.kube.fieldsets import FieldSet
from waypost.wire.kube.meta import ordered_metadata, time_text
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.schema.conform import conform
from waypost.wire.kube.status import (
    ApiError,
    Cause,
    Details,
    FieldError,
    Status,
    bad_request,
    invalid,
    required,
)
from waypost.wire.kube.values import JsonObject

MAX_UPDATE_MANAGERS: Final = 10
"""More managers that update are put together into one, `ancient-changes`."""
_ANCIENT: Final = "ancient-changes"
_BEFORE: Final = "before-first-apply"
_MAX_NAME: Final = 128
_IGNORED: Final = (
    ("f:apiVersion",), ("f:kind",), ("f:metadata",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation",
            "managedFields", "resourceVersion", "generateName", "deletionTimestamp", "deletionGracePeriodSeconds",
        )
    ),
)  # fmt: skip
"""Fields nobody owns."""


class Manager(msgspec.Struct, frozen=True, order=True):
    """An owner. Applying managers have no time of their own."""

    operation: str
    """`Apply` or `Update`."""
    name: str
    api_version: str
    subresource: str = ""


class _Owned(msgspec.Struct, frozen=True):
    """The fields of one manager and when they last changed."""

    fields: FieldSet
    time: str = ""


_Owners = dict[Manager, _Owned]


# -- names -----------------------------------------------------------------------------------------


def manager_name(field_manager: str, *, user_agent: str) -> str:
    """Return `?fieldManager=`, or the User-Agent up to the first slash, `unknown` without one."""
    name = field_manager or user_agent.partition("/")[0]
    return name[:_MAX_NAME] or "unknown"


def check_field_manager(field_manager: str, *, options_kind: str, is_apply: bool = False) -> None:
    """Raise ApiError 422 for a name that is too long or unprintable, or missing where it is needed."""
    fault: FieldError | None = None
    if is_apply and not field_manager:
        fault = required("fieldManager", "is required for apply patch")
    elif len(field_manager.encode()) > _MAX_NAME:
        fault = FieldError(
            "fieldManager", "FieldValueTooLong", f"Too long: may not be more than {_MAX_NAME} bytes"
        )
    elif not field_manager.isprintable():
        text = f"Invalid value: {quoted(field_manager)}: should only contain printable characters"
        fault = FieldError("fieldManager", "FieldValueInvalid", text)
    if fault is not None:
        raise invalid(options_kind, "", (fault,), group="meta.k8s.io")


# -- reading and writing ---------------------------------------------------------------------------


def read_owners(value: JsonObject | None) -> dict[Manager, tuple[FieldSet, str]]:
    """Return the fields and the time of every manager of an object. Raises Malformed."""
    return {key: (one.fields, one.time) for key, one in _owners(value).items()}


def _owners(value: JsonObject | None) -> _Owners:
    entries = ((value or {}).get("metadata") or {}).get("managedFields") or ()
    owners: _Owners = {}
    if not isinstance(entries, list | tuple):
        raise Malformed("metadata.managedFields is no list")
    for entry in entries:
        if not isinstance(entry, dict):
            raise Malformed("metadata.managedFields: an entry is no object")
        if entry.get("operation") not in ("Apply", "Update"):
            raise Malformed(
                f"metadata.managedFields: invalid operation {quoted(str(entry.get('operation', '')))}"
            )
        manager = Manager(
            operation=entry["operation"],
            name=_text(entry, "manager"),
            api_version=_text(entry, "apiVersion"),
            subresource=_text(entry, "subresource"),
        )
        fields = fieldsets.from_fields_v1(entry.get("fieldsV1") or {})
        before = owners.get(manager)
        if before is not None:
            fields |= before.fields
        owners[manager] = _Owned(fields, _text(entry, "time"))
    return owners


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _written(value: JsonObject, owners: _Owners) -> JsonObject:
    entries = []
    order = sorted(owners.items(), key=lambda one: (one[0].operation, one[1].time, one[0]))
    for manager, owned in order:
        if not owned.fields:
            continue
        entry: JsonObject = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
        }
        if owned.time:
            entry["time"] = owned.time
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": fieldsets.to_fields_v1(owned.fields)}
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    metadata = (value.get("metadata") or {}) | {"managedFields": entries}
    return _in_order(value, metadata)


def _in_order(value: JsonObject, metadata: JsonObject) -> JsonObject:
    kept = ordered_metadata(metadata)
    if "deletionGracePeriodSeconds" in metadata:
        kept["deletionGracePeriodSeconds"] = metadata["deletionGracePeriodSeconds"]
    head = {key: value[key] for key in ("kind", "apiVersion") if key in value}
    return (
        head
        | {"metadata": kept}
        | {key: one for key, one in value.items() if key not in {*head, "metadata"}}
    )


def _unmanaged(value: JsonObject) -> JsonObject:
    metadata = {
        key: one for key, one in (value.get("metadata") or {}).items() if key != "managedFields"
    }
    return value | {"metadata": metadata}


def _ours(fields: FieldSet) -> FieldSet:
    return fields.difference(_IGNORED) - {()}


# -- updates ---------------------------------------------------------------------------------------


def updated(
    live: JsonObject | None,
    new: JsonObject,
    *,
    resource: Resource,
    manager: str,
    now_s: float,
    subresource: str = "",
) -> JsonObject:
    """Return `new` with its managedFields after an update, or a create if `live` is None.

    The manager owns what it added or changed; what went is owned by nobody. An object that says
    nothing of managedFields carries on those of `live`; `managedFields: [{}]` or `[]` starts anew.
    """
    place = fieldsets.root(resource.schema)
    empty = conform({}, message=resource.schema).value
    try:
        owners = _update_base(live, new)
    except Malformed as error:
        raise bad_request(f"metadata.managedFields: {error}") from error
    before = _unmanaged(live) if live is not None else empty
    changes = fieldsets.compared(before, _unmanaged(new), place)
    me = Manager("Update", manager, resource.group_version, subresource)
    taken = changes.added | changes.modified
    result: _Owners = {}
    for other, owned in owners.items():
        kept = owned.fields - changes.removed
        if other != me:
            kept -= taken
        result[other] = _Owned(kept, owned.time)
    mine = result.get(me, _Owned(frozenset()))
    fields = _ours(mine.fields | taken)
    if fields != owners.get(me, _Owned(frozenset())).fields:
        result[me] = _Owned(fields, time_text(now_s))
    elif me in result:
        result[me] = _Owned(fields, mine.time)
    return _written(new, _capped(result))


def _update_base(live: JsonObject | None, new: JsonObject) -> _Owners:
    entries = (new.get("metadata") or {}).get("managedFields")
    if live is None:
        return {}
    if entries is None:
        return _owners(live)
    if entries == [] or entries == [{}]:
        return {}
    return _owners(new)


def _capped(owners: _Owners) -> _Owners:
    updates = [
        (manager, owned)
        for manager, owned in owners.items()
        if manager.operation == "Update" and owned.fields and not manager.subresource
    ]
    if len(updates) <= MAX_UPDATE_MANAGERS:
        return owners
    updates.sort(key=lambda one: (one[1].time, one[0]))
    surplus = updates[: len(updates) - MAX_UPDATE_MANAGERS + 1]
    gone = {manager for manager, _ in surplus}
    fields: FieldSet = frozenset().union(*(owned.fields for _, owned in surplus))
    kept = {manager: owned for manager, owned in owners.items() if manager not in gone}
    newest = surplus[-1]
    kept[Manager("Update", _ANCIENT, newest[0].api_version)] = _Owned(fields, newest[1].time)
    return kept


# -- apply -----------------------------------------------------------------------------------------


def applied(
    live: JsonObject | None,
    config: JsonObject,
    *,
    resource: Resource,
    manager: str,
    now_s: float,
    force: bool = False,
    subresource: str = "",
) -> JsonObject:
    """Return the object after `manager` applies `config`, its managedFields included.

    `config` is what the manager says, as from `bodies.decode_body`: without defaults. Returns an object equal
    to `live` if nothing changes. Raises ApiError 409 with every conflict unless `force`.
    """
    if (config.get("metadata") or {}).get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    place = fieldsets.root(resource.schema)
    config = _declared(config)
    try:
        owners = _owners(live)
    except Malformed as error:
        raise bad_request(str(error)) from error
    before = _unmanaged(live) if live is not None else conform({}, message=resource.schema).value
    if live is not None and not owners:
        base = Manager("Update", _BEFORE, resource.group_version)
        owners = {base: _Owned(_ours(frozenset(fieldsets.leaves(before, place))), time_text(now_s))}
    me = Manager("Apply", manager, resource.group_version, subresource)
    mine = _ours(frozenset(fieldsets.leaves(config, place)))
    others = {one: owned for one, owned in owners.items() if one != me}
    last = owners.get(me, _Owned(frozenset()))

    value = fieldsets.merged(before, config, place)
    # What this manager said last time and no longer says goes, unless somebody else wants it.
    wanted: FieldSet = fieldsets.with_parents(
        frozenset().union(mine, *(owned.fields for owned in others.values()))
    )
    dropped = fieldsets.with_parents(last.fields) - wanted
    value = fieldsets.without(value, place, dropped.__contains__)
    value = conform(value, message=resource.schema).value

    changes = fieldsets.compared(before, value, place)
    contested = changes.added | changes.modified
    conflicts = [
        (other, path)
        for other, owned in sorted(others.items())
        for path in sorted(owned.fields & contested & fieldsets.with_parents(mine))
    ]
    if conflicts and not force:
        raise _conflict(conflicts, owners)
    result = {
        other: _Owned(owned.fields - contested - changes.removed, owned.time)
        for other, owned in others.items()
    }
    time = last.time if mine == last.fields and last.time else time_text(now_s)
    result[me] = _Owned(mine, time)
    return _written(value, result)


def _declared(value: JsonObject) -> JsonObject:
    """Return a conformed object without the empty values that stand for fields nobody spoke of."""
    kept = {}
    for key, one in value.items():
        found = _declared(one) if isinstance(one, dict) else one
        if found is not None and found not in ("", {}):
            kept[key] = found
    return kept


def _conflict(conflicts: list[tuple[Manager, fieldsets.Path]], owners: _Owners) -> ApiError:
    causes = []
    by_manager: dict[str, list[str]] = {}
    for manager, path in conflicts:
        who, where = _shown(manager, owners[manager].time), fieldsets.path_text(path)
        by_manager.setdefault(who, []).append(where)
        causes.append(
            Cause(reason="FieldManagerConflict", message=f"conflict with {who}", field=where)
        )
    if len(conflicts) == 1:
        text = f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}"
    else:
        lines = []
        for who in sorted(by_manager):
            lines += [f"conflicts with {who}:", *(f"- {where}" for where in by_manager[who])]
        text = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    details = Details(causes=tuple(causes))
    return ApiError(Status(code=409, reason="Conflict", message=text, details=details))


def _shown(manager: Manager, time: str) -> str:
    text = quoted(manager.name)
    if manager.subresource:
        text += f" with subresource {quoted(manager.subresource)}"
    if manager.operation == "Update":
        text += f" using {manager.api_version}" + (f" at {time}" if time else "")
    return text
