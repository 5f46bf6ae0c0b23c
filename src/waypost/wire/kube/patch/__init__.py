"""Patches of objects: JSON patch, merge patch and strategic merge patch; apply is `managed_fields`."""

from __future__ import annotations

from typing import Any, Final

from waypost.base.errors import Malformed
from waypost.wire.kube.patch import json_patch, merge_patch, strategic
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.status import bad_request, rejected_patch, unsupported_media_type
from waypost.wire.kube.values import JsonObject, check_depth, decode_json

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
MEDIA_TYPES: Final = (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH)


def patch_type(content_type: str) -> str:
    """Return the bare media type of a PATCH. Raises ApiError 415 if it is none of `MEDIA_TYPES`."""
    bare = content_type.partition(";")[0].strip().lower()
    if bare not in MEDIA_TYPES:
        raise unsupported_media_type(", ".join(MEDIA_TYPES))
    return bare


def patched(current: JsonObject, body: bytes, *, media_type: str, resource: Resource) -> JsonObject:
    """Return `current` with the patch in `body` applied; `current` stays as it is.

    The result may hold anything: give it to `bodies.conform`. Raises ApiError 400 (unreadable patch), 422
    (a JSON patch that does not fit the object), 415 (unknown type, or apply).
    """
    if media_type not in (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH):
        raise unsupported_media_type(", ".join(MEDIA_TYPES))
    try:
        patch: Any = decode_json(body)
    except Malformed as error:
        raise bad_request(f"error decoding patch: {error}") from error
    if media_type == JSON_PATCH:
        return _json_patched(current, patch)
    if not isinstance(patch, dict):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal into map[string]interface {}"
        )
    try:
        if media_type == MERGE_PATCH:
            value: Any = merge_patch.merged(current, patch)
        else:
            value = strategic.merged(current, patch, message=resource.schema)
        check_depth(value)
    except Malformed as error:
        raise bad_request(str(error)) from error
    return _object(value)


def _json_patched(current: JsonObject, patch: Any) -> JsonObject:
    try:
        operations = json_patch.parse(patch)
    except Malformed as error:
        raise bad_request(str(error)) from error
    try:
        value = json_patch.applied(current, operations)
        check_depth(value)
    except Malformed as error:
        raise rejected_patch() from error
    return _object(value)


def _object(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise rejected_patch()
    return value
