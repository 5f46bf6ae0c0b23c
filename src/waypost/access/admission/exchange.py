"""What is said to a webhook and what it may answer: AdmissionReview admission.k8s.io/v1. Pure."""

from __future__ import annotations

import base64
import binascii
import itertools
import logging
import re
from typing import Any, Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission.records import Denied, JsonObject, Review
from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.wire.kube.patch import json_patch
from waypost.wire.kube.values import check_depth, decode_json

log = logging.getLogger(__name__)

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
MAX_WARNINGS: Final = 32
_MAX_WARNING_CHARS: Final = 256
_MAX_ANNOTATIONS: Final = 64
_ANNOTATION_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
"""Behind the webhook's name this makes a qualified name, as every audit annotation has one."""


class Status(msgspec.Struct, frozen=True):
    """Why a webhook refused."""

    code: int = 0
    message: str = ""
    reason: str = ""
    details: dict[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook's answer that can be used."""

    allowed: bool
    status: Status = Status()
    patch: tuple[json_patch.Operation, ...] = ()
    warnings: tuple[str, ...] = ()
    annotations: dict[str, str] = {}


class _Response(msgspec.Struct, frozen=True, rename="camel"):
    uid: str = ""
    allowed: bool = False
    status: Status | None = None
    patch: str | None = None
    patch_type: str | None = None
    warnings: tuple[str, ...] | None = None
    audit_annotations: dict[str, str] | None = None


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    response: _Response | None = None


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(_Review)


def question(actor: Actor, review: Review, *, uid: str) -> bytes:
    """Return the body of the request that asks a webhook about a change."""
    kind = {"group": review.group, "version": review.version, "kind": review.kind}
    if review.kind_group is not None:
        kind["group"] = review.kind_group
    resource = {"group": review.group, "version": review.version, "resource": review.resource}
    request: JsonObject = {"uid": uid, "kind": kind, "resource": resource}
    if review.subresource:
        request["subResource"] = review.subresource
    request |= {"requestKind": kind, "requestResource": resource}
    if review.subresource:
        request["requestSubResource"] = review.subresource
    if review.name:
        request["name"] = review.name
    if review.namespace:
        request["namespace"] = review.namespace
    request |= {
        "operation": review.operation,
        "userInfo": _user(actor),
        "object": review.object,
        "oldObject": review.old,
        "dryRun": review.dry_run,
        "options": review.options,
    }
    return _ENCODER.encode({"kind": KIND, "apiVersion": API_VERSION, "request": request})


def _user(actor: Actor) -> JsonObject:
    found: JsonObject = {"username": actor.user}
    if actor.uid:
        found["uid"] = actor.uid
    if actor.groups:
        found["groups"] = list(actor.groups)
    if actor.extra:
        found["extra"] = {key: list(values) for key, values in actor.extra.items()}
    return found


def read_answer(body: bytes, *, uid: str, mutates: bool) -> Answer:
    """Return the answer in the body of a webhook's response. Raises Malformed when it cannot be used."""
    try:
        found = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"it did not answer with an AdmissionReview: {exc}") from exc
    if (found.api_version, found.kind) != (API_VERSION, KIND):
        raise Malformed(
            f"expected webhook response of {API_VERSION}, Kind={KIND}, "
            f"got {found.api_version}, Kind={found.kind}"
        )
    response = found.response
    if response is None:
        raise Malformed("webhook response is missing")
    if response.uid != uid:
        raise Malformed(f"expected response.uid={quoted(uid)}, got {quoted(response.uid)}")
    return Answer(
        allowed=response.allowed,
        status=response.status or Status(),
        patch=_patch(response) if mutates and response.allowed else (),
        warnings=_warnings(response.warnings or ()),
        annotations=_annotations(response.audit_annotations or {}),
    )


def _annotations(sent: dict[str, str]) -> dict[str, str]:
    wrong = next((key for key in sent if not _ANNOTATION_KEY.match(key)), None)
    if wrong is not None:
        log.warning("audit annotation %.80r is left out: not the name of one", wrong)
    found = ((key, text) for key, text in sent.items() if _ANNOTATION_KEY.match(key))
    return dict(itertools.islice(found, _MAX_ANNOTATIONS))


def _warnings(sent: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text[:_MAX_WARNING_CHARS] for text in sent[:MAX_WARNINGS] if text)


def _patch(response: _Response) -> tuple[json_patch.Operation, ...]:
    if not response.patch:
        if response.patch_type is not None:
            raise Malformed("webhook returned response.patchType but not response.patch")
        return ()
    if response.patch_type is None:
        raise Malformed("webhook returned response.patch but not response.patchType")
    if response.patch_type != "JSONPatch":
        raise Malformed(
            f"webhook returned invalid response.patchType of {quoted(response.patch_type)}"
        )
    try:
        decoded = base64.b64decode(response.patch, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Malformed(f"response.patch is not base64: {exc}") from exc
    return tuple(json_patch.parse(decode_json(decoded)))


def patched(value: JsonObject, patch: tuple[json_patch.Operation, ...]) -> JsonObject:
    """Return an object with a webhook's patch applied. Raises Malformed when the patch does not fit."""
    found = json_patch.applied(value, patch)
    if not isinstance(found, dict):
        raise Malformed("the patch leaves no object")
    check_depth(found)
    return found


def denial(name: str, status: Status, warnings: tuple[str, ...] = ()) -> Denied:
    """Return the refusal of a webhook in the words of a kube-apiserver. Its code is kept if it is an error's."""
    text = f"admission webhook {quoted(name)} denied the request"
    if status.message:
        text += f": {status.message}"
    elif status.reason:
        text += f": {status.reason}"
    else:
        text += " without explanation"
    code = status.code if 400 <= status.code <= 599 else 400
    return Denied(
        text,
        http_status=code,
        reason=status.reason,
        details=status.details,
        warnings=warnings,
    )
