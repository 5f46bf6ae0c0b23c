"""Tables: the columns and rows `kubectl get` prints.

Columns and texts are those of kube-apiserver 1.20 (recorded), CSR's RequestedDuration that of 1.22.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from waypost.wire.kube.meta import time_s
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.values import JsonObject

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_YEAR: Final = 365 * _DAY
_UNKNOWN: Final = "<unknown>"
_NONE: Final = "<none>"

Cell = Callable[[JsonObject, float], Any]
"""Makes a cell of an object and the time (seconds since the epoch)."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column."""

    name: str
    cell: Cell
    doc: str
    type: str = "string"
    format: str = ""
    wide: bool = False
    """Only printed with `-o wide`."""

    def definition(self) -> JsonObject:
        """Return the entry of columnDefinitions."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.doc,
            "priority": int(self.wide),
        }


def age_text(seconds: float) -> str:
    """Return a time span for people: `90s`, `5m30s`, `90m`, `5h20m`, `30h`, `3d4h`, `400d`, `3y`."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    total = max(total, 0)
    minutes, hours, days = total // _MINUTE, total // _HOUR, total // _DAY
    if total < 2 * _MINUTE:
        return f"{total}s"
    if minutes < 10:
        return _two(minutes, "m", total % _MINUTE, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 2 * 365:
        return f"{days}d"
    if days < 8 * 365:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}" + (f"{small}{small_unit}" if small else "")


# -- cells -----------------------------------------------------------------------------------------


def _name(value: JsonObject, _now_s: float) -> Any:
    return value["metadata"].get("name", "")


def _created(value: JsonObject, _now_s: float) -> Any:
    return value["metadata"].get("creationTimestamp")


def _age(value: JsonObject, now_s: float) -> Any:
    return _since(value["metadata"].get("creationTimestamp"), now_s)


def _since(text: Any, now_s: float) -> str:
    at_s = time_s(text) if isinstance(text, str) else None
    return _UNKNOWN if at_s is None else age_text(now_s - at_s)


def _role(value: JsonObject, _now_s: float) -> Any:
    ref = value.get("roleRef") or {}
    return f"{ref.get('kind', '')}/{ref.get('name', '')}"


def _subjects(kind: str) -> Cell:
    def cell(value: JsonObject, _now_s: float) -> Any:
        found = [one for one in value.get("subjects") or () if one.get("kind") == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{one.get('namespace', '')}/{one.get('name', '')}" for one in found)
        return ", ".join(one.get("name", "") for one in found)

    return cell


def _phase(value: JsonObject, _now_s: float) -> Any:
    return (value.get("status") or {}).get("phase", "")


def _count(*fields: str) -> Cell:
    def cell(value: JsonObject, _now_s: float) -> Any:
        return sum(len(value.get(field) or ()) for field in fields)

    return cell


def _text(*path: str, missing: str = "") -> Cell:
    def cell(value: JsonObject, _now_s: float) -> Any:
        at: Any = value
        for part in path:
            at = at.get(part) if isinstance(at, dict) else None
        return missing if at is None else at

    return cell


def _requested_duration(value: JsonObject, _now_s: float) -> Any:
    seconds = (value.get("spec") or {}).get("expirationSeconds")
    return _NONE if seconds is None else age_text(seconds)


def _condition(value: JsonObject, _now_s: float) -> Any:
    status = value.get("status") or {}
    types = [one.get("type", "") for one in status.get("conditions") or ()]
    parts = [one for one in ("Denied", "Approved") if one in types] or ["Pending"]
    # Denied wins over everything; a certificate counts only with an approval.
    shown = parts[0]
    if "Failed" in types:
        shown += ",Failed"
    if status.get("certificate"):
        shown += ",Issued"
    return shown


def _last_seen(value: JsonObject, now_s: float) -> Any:
    series = value.get("series") or {}
    texts = (value.get("lastTimestamp"), series.get("lastObservedTime"), value.get("eventTime"))
    return _since(next((one for one in texts if one), None), now_s)


def _first_seen(value: JsonObject, now_s: float) -> Any:
    return _since(value.get("firstTimestamp") or value.get("eventTime"), now_s)


def _event_object(value: JsonObject, _now_s: float) -> Any:
    found = value.get("involvedObject") or {}
    return f"{found.get('kind', '').lower()}/{found.get('name', '')}"


def _event_source(value: JsonObject, _now_s: float) -> Any:
    source = value.get("source") or {}
    parts = (source.get("component") or value.get("reportingComponent", ""), source.get("host", ""))
    return ", ".join(one for one in parts if one)


def _ports(value: JsonObject, _now_s: float) -> Any:
    ports = (value.get("spec") or {}).get("ports") or ()
    return ",".join(f"{one['port']}/{one.get('protocol', 'TCP')}" for one in ports) or "<none>"


# -- columns ---------------------------------------------------------------------------------------

_NAME: Final = Column(name="Name", cell=_name, format="name", doc="Name of the object.")
_AGE: Final = Column(name="Age", cell=_age, doc="Time since the object was created.")
_CREATED: Final = Column(
    name="Created At", cell=_created, type="date", doc="When the object was created."
)
_ROLES: Final = (_NAME, _CREATED)
_BINDINGS: Final = (
    _NAME,
    Column(name="Role", cell=_role, doc="Role whose rules are given."),
    _AGE,
    Column(name="Users", cell=_subjects("User"), doc="Users among the subjects.", wide=True),
    Column(name="Groups", cell=_subjects("Group"), doc="Groups among the subjects.", wide=True),
    Column(
        name="ServiceAccounts", cell=_subjects("ServiceAccount"), wide=True,
        doc="Service accounts among the subjects.",
    ),
)  # fmt: skip
_WEBHOOKS: Final = (
    _NAME,
    Column(name="Webhooks", cell=_count("webhooks"), doc="Number of webhooks."),
    _AGE,
)

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "Role": _ROLES,
    "ClusterRole": _ROLES,
    "RoleBinding": _BINDINGS,
    "ClusterRoleBinding": _BINDINGS,
    "ServiceAccount": (
        _NAME,
        Column(name="Secrets", cell=_count("secrets"), doc="Number of secrets of the account."),
        _AGE,
    ),
    "Namespace": (
        _NAME,
        Column(name="Status", cell=_phase, doc="Active or Terminating."),
        _AGE,
    ),
    "Secret": (
        _NAME,
        Column(name="Type", cell=_text("type"), doc="What the secret is for."),
        Column(name="Data", cell=_count("data"), doc="Number of values."),
        _AGE,
    ),
    "ConfigMap": (
        _NAME,
        Column(name="Data", cell=_count("data", "binaryData"), doc="Number of values."),
        _AGE,
    ),
    "CertificateSigningRequest": (
        _NAME,
        _AGE,
        Column(name="SignerName", cell=_text("spec", "signerName"), doc="Who should sign."),
        Column(name="Requestor", cell=_text("spec", "username"), doc="Who asked."),
        Column(name="RequestedDuration", cell=_requested_duration, doc="How long it should be good for."),
        Column(name="Condition", cell=_condition, doc="What became of the request."),
    ),
    "Lease": (
        _NAME,
        Column(name="Holder", cell=_text("spec", "holderIdentity"), doc="Who holds the lease."),
        _AGE,
    ),
    "MutatingWebhookConfiguration": _WEBHOOKS,
    "ValidatingWebhookConfiguration": _WEBHOOKS,
    "Service": (
        _NAME,
        Column(name="Type", cell=_text("spec", "type"), doc="How it is reached."),
        Column(name="Cluster-IP", cell=_text("spec", "clusterIP"), doc="None: found through DNS."),
        Column(name="External-IP", cell=lambda _value, _now_s: "<none>", doc="Always none."),
        Column(name="Port(s)", cell=_ports, doc="Ports of its instances."),
        _AGE,
    ),
    "Event": (
        Column(name="Last Seen", cell=_last_seen, doc="When it was last seen."),
        Column(name="Type", cell=_text("type"), doc="Normal or Warning."),
        Column(name="Reason", cell=_text("reason"), doc="Why, in one word."),
        Column(name="Object", cell=_event_object, doc="Object it happened to."),
        Column(name="Subobject", cell=_text("involvedObject", "fieldPath"), doc="Part of the object.", wide=True),
        Column(name="Source", cell=_event_source, doc="Who reports it.", wide=True),
        Column(name="Message", cell=_text("message"), doc="What happened."),
        Column(name="First Seen", cell=_first_seen, doc="When it was first seen.", wide=True),
        Column(name="Count", cell=_text("count"), doc="How often it was seen.", wide=True),
        Column(name="Name", cell=_name, format="name", doc="Name of the event.", wide=True),
    ),
}  # fmt: skip
"""Columns by kind; other kinds have name and time of creation."""


def columns_of(
    resource: Resource, *, catalog: dict[str, tuple[Column, ...]] | None = None
) -> tuple[Column, ...]:
    """Return the columns of a resource; `catalog` adds kinds to `COLUMNS`."""
    return (catalog or {}).get(resource.kind) or COLUMNS.get(resource.kind, _ROLES)


def render(
    resource: Resource,
    objects: Sequence[JsonObject],
    *,
    now_s: float,
    metadata: JsonObject,
    include_object: str = "Metadata",
    columns: bool = True,
    version: str = "v1",
    extra_columns: dict[str, tuple[Column, ...]] | None = None,
) -> JsonObject:
    """Return a `Table` of meta.k8s.io.

    `metadata` is the list's. `include_object` is `None`, `Metadata` or `Object`. Without `columns`
    columnDefinitions is null, as in all but the first event of a watch.
    """
    shown = columns_of(resource, catalog=extra_columns)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": metadata,
        "columnDefinitions": [one.definition() for one in shown] if columns else None,
        "rows": [_row(one, shown, now_s, include_object, version) for one in objects],
    }


def _row(
    value: JsonObject, columns: Iterable[Column], now_s: float, include_object: str, version: str
) -> JsonObject:
    row: JsonObject = {"cells": [column.cell(value, now_s) for column in columns]}
    if include_object == "Object":
        row["object"] = value
    elif include_object != "None":
        row["object"] = partial(value, version=version)
    else:
        row["object"] = None
    return row


def partial(value: JsonObject, *, version: str = "v1") -> JsonObject:
    """Return the object as PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": value["metadata"],
    }
