"""Metadata of objects: names, what the server sets and keeps, revisions and continue tokens."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import random
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.schema.conform import parse_time
from waypost.wire.kube.schema.meta import MESSAGES
from waypost.wire.kube.status import bad_request, name_mismatch, namespace_mismatch
from waypost.wire.kube.values import JsonObject, copied, decode_json, encode_json, equal

NAME_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"
"""Without vowels and look-alikes, so that no words come out."""
_RANDOM_LETTERS: Final = 5
_MAX_GENERATED: Final = 63
_MAX_REVISION: Final = 2**64 - 1
_ORDER: Final = tuple(one.name for one in MESSAGES[0].fields)
_SYSTEM: Final = (
    "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp",
    "deletionGracePeriodSeconds",
)  # fmt: skip
_COUNTED: Final = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
"""Kinds with a generation."""


# -- names and times -------------------------------------------------------------------------------


def generated_name(prefix: str, *, rng: random.Random) -> str:
    """Return `prefix`, cut so that 63 letters are not passed, and 5 random letters."""
    tail = "".join(rng.choice(NAME_LETTERS) for _ in range(_RANDOM_LETTERS))
    return prefix[: _MAX_GENERATED - _RANDOM_LETTERS] + tail


def time_text(at_s: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC, whole seconds."""
    return dt.datetime.fromtimestamp(int(at_s), tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_s(text: str) -> float | None:
    """Return seconds since the epoch of an RFC 3339 text with any offset, or None if it is none."""
    found = parse_time(text)
    return None if found is None else found.timestamp()


# -- what the server sets --------------------------------------------------------------------------


def ordered_metadata(metadata: JsonObject) -> JsonObject:
    """Return the fields of ObjectMeta in the schema's order, empty ones left out."""
    return {name: metadata[name] for name in _ORDER if metadata.get(name) not in (None, "", {}, [])}


def _with_metadata(value: JsonObject, metadata: JsonObject) -> JsonObject:
    fresh: JsonObject = copied({key: one for key, one in value.items() if key != "metadata"})
    ordered = {key: fresh.pop(key) for key in ("kind", "apiVersion") if key in fresh}
    kept = ordered_metadata(metadata)
    if "deletionGracePeriodSeconds" in metadata:  # 0 says something here
        kept = {**kept, "deletionGracePeriodSeconds": metadata["deletionGracePeriodSeconds"]}
        kept = {name: kept[name] for name in _ORDER if name in kept}
    return ordered | {"metadata": kept} | fresh


def new_object(
    value: JsonObject, *, resource: Resource, namespace: str, name: str, uid: str, now_s: float
) -> JsonObject:
    """Return what is stored for a create: what the server knows is set, what only it may set is dropped."""
    metadata = copied(value.get("metadata") or {})
    for key in _SYSTEM:
        metadata.pop(key, None)
    metadata |= {"name": name, "uid": uid, "creationTimestamp": time_text(now_s)}
    metadata["namespace"] = namespace if resource.namespaced else ""
    if resource.kind in _COUNTED:
        metadata["generation"] = 1
    return _with_metadata(value, metadata)


def changed_object(live: JsonObject, value: JsonObject, *, resource: Resource) -> JsonObject:
    """Return what is stored for an update: what only the server may set is `live`'s.

    A kind with a generation counts it up if anything but metadata and status differs.
    """
    metadata = copied(value.get("metadata") or {})
    old = live["metadata"]
    for key in (*_SYSTEM, "name", "namespace", "generateName"):
        metadata.pop(key, None)
        if key in old:
            metadata[key] = old[key]
    if "generation" in old and not equal(_desired(live), _desired(value)):
        metadata["generation"] = old["generation"] + 1
    return _with_metadata(value, metadata)


def _desired(value: JsonObject) -> JsonObject:
    return {key: one for key, one in value.items() if key not in ("metadata", "status")}


def marked_deleted(live: JsonObject, *, now_s: float) -> JsonObject:
    """Return the object as one that goes when its finalizers are gone; a marked one as it is."""
    metadata = dict(live["metadata"])
    if metadata.get("deletionTimestamp"):
        return live
    metadata |= {"deletionTimestamp": time_text(now_s), "deletionGracePeriodSeconds": 0}
    return _with_metadata(live, metadata)


def same_but_metadata(live: JsonObject, value: JsonObject) -> bool:
    """Tell whether nothing needs to be written: equal but for resourceVersion and times of managedFields."""
    return equal(_compared(live), _compared(value))


def _compared(value: JsonObject) -> JsonObject:
    metadata = {
        key: one for key, one in value.get("metadata", {}).items() if key != "resourceVersion"
    }
    entries = metadata.get("managedFields")
    if isinstance(entries, list):
        metadata["managedFields"] = [
            {key: one for key, one in entry.items() if key != "time"}
            for entry in entries
            if isinstance(entry, dict)
        ]
    return value | {"metadata": metadata}


def check_url(value: JsonObject, *, resource: Resource, namespace: str, name: str) -> None:
    """Raise ApiError 400 if the body's name or namespace is not the URL's.

    Empty values in the body are fine; `name` is empty for a create.
    """
    metadata = value.get("metadata") or {}
    found = metadata.get("name") or ""
    if name and found and found != name:
        raise name_mismatch(in_object=found, in_url=name)
    if resource.namespaced and metadata.get("namespace") and metadata["namespace"] != namespace:
        raise namespace_mismatch()


# -- to and from the store -------------------------------------------------------------------------


def stored_body(value: JsonObject) -> bytes:
    """Return the bytes of `model.Object.body`: the object without metadata.resourceVersion."""
    metadata = value["metadata"]
    if "resourceVersion" in metadata:
        bare = {key: one for key, one in metadata.items() if key != "resourceVersion"}
        value = value | {"metadata": bare}
    return encode_json(value)


_STORED: Final = msgspec.json.Decoder(dict[str, Any])


def read_body(body: bytes, *, modify_index: int) -> JsonObject:
    """Return a stored object with its resourceVersion. Raises Malformed if the bytes are no JSON object."""
    try:
        value = _STORED.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"stored object: {exc}") from exc
    value["metadata"] = with_revision(value.get("metadata") or {}, modify_index)
    return value


def with_revision(metadata: JsonObject, revision: int) -> JsonObject:
    """Return metadata with the resourceVersion behind the uid, where the original has it; 0 leaves it out."""
    if not revision:
        return {key: one for key, one in metadata.items() if key != "resourceVersion"}
    placed: JsonObject = {}
    for key, one in metadata.items():
        if key in ("generation", "creationTimestamp") and "resourceVersion" not in placed:
            placed["resourceVersion"] = str(revision)
        if key != "resourceVersion":
            placed[key] = one
    placed.setdefault("resourceVersion", str(revision))
    return placed


def object_list(
    resource: Resource,
    items: list[JsonObject],
    *,
    revision: int,
    continue_token: str = "",
    remaining: int | None = None,
) -> JsonObject:
    """Return a `RoleList`; items are without kind and apiVersion."""
    metadata: JsonObject = {"resourceVersion": str(revision)}
    if continue_token:
        metadata["continue"] = continue_token
    if remaining is not None:
        metadata["remainingItemCount"] = remaining
    bare = [
        {key: one for key, one in item.items() if key not in ("kind", "apiVersion")}
        for item in items
    ]
    return {
        "kind": resource.list_kind,
        "apiVersion": resource.group_version,
        "metadata": metadata,
        "items": bare,
    }


def parse_resource_version(text: str) -> int | None:
    """Return the revision, None for "". Raises Malformed with the original's words."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise Malformed(revision_error(text, "invalid syntax"))
    if len(text) > 20 or int(text) > _MAX_REVISION:
        raise Malformed(revision_error(text, "value out of range"))
    return int(text)


def revision_error(text: str, why: str) -> str:
    """Return what the original says of a resourceVersion that is no number."""
    return f"resourceVersion: Invalid value: {quoted(text)}: strconv.ParseUint: parsing {quoted(text)}: {why}"


class Continue(msgspec.Struct, frozen=True, kw_only=True):
    """Where a list goes on: at `revision`, with the first key after `start` (`NAMESPACE/NAME`, `NAME`)."""

    revision: int
    start: str

    def text(self) -> str:
        """Return the opaque token."""
        token = {"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start + "\0"}
        return base64.urlsafe_b64encode(encode_json(token)).decode().rstrip("=")


def parse_continue(text: str) -> Continue:
    """Return where a token points. Raises ApiError 400."""
    head = "invalid continue token: continue key is not valid: "
    try:
        raw = base64.b64decode(
            text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True
        )
        value = decode_json(raw)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise bad_request(f"{head}illegal base64 data") from exc
    except Malformed as error:
        # Go reads bytes where we read characters.
        first = f"'{chr(raw[0])}'" if raw and raw[0] > 0x7F else None
        shown = f"invalid character {first} looking for beginning of value" if first else str(error)
        raise bad_request(head + shown) from error
    if not isinstance(value, dict) or value.get("v") != "meta.k8s.io/v1":
        raise bad_request(f"{head}server does not recognize this encoded version")
    revision, start = value.get("rv"), value.get("start")
    if not isinstance(revision, int) or isinstance(revision, bool) or revision <= 0:
        raise bad_request(f"{head}incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
    if not isinstance(start, str) or not start:
        raise bad_request(f"{head}encoded start key empty (version meta.k8s.io/v1)")
    return Continue(revision=revision, start=start.removesuffix("\0"))
