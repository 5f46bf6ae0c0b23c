"""`Status`, the body of every refusal (and of a delete), with the words kube-apiserver has for each.

`ApiError` carries one to the surface, which answers it as it is. Constructors are named after the
refusal: `not_found`, `already_exists`, `conflict`, `invalid`, … Source: recorded answers of
kube-apiserver 1.20; where newer servers speak differently the docstring says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from waypost.base.errors import WaypostError
from waypost.base.quoting import quoted
from waypost.wire.kube.values import JsonObject

BODY_TYPES: Final = "application/json, application/yaml, application/vnd.kubernetes.protobuf"


class Cause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of several reasons."""

    reason: str = ""
    """`FieldValueRequired`, `FieldValueInvalid`, `FieldManagerConflict`, `NamespaceTerminating`, …"""
    message: str = ""
    field: str = ""
    """Where: `rules[0].verbs`, `.rules`."""


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What a status speaks of. `kind` is the plural, except in `invalid` and failed preconditions."""

    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: tuple[Cause, ...] = ()
    retry_after_seconds: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome; `body()` is its JSON form."""

    code: int
    message: str = ""
    reason: str = ""
    details: Details | None = None
    success: bool = False

    def body(self) -> JsonObject:
        """Return the JSON object with the keys in the original's order."""
        body: JsonObject = {"kind": "Status", "apiVersion": "v1", "metadata": {}}
        body["status"] = "Success" if self.success else "Failure"
        if self.message:
            body["message"] = self.message
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            details = msgspec.to_builtins(self.details)
            if "causes" in details:
                details["causes"] = list(details["causes"])
            body["details"] = details
        if not self.success:
            body["code"] = self.code
        return body


class ApiError(WaypostError):
    """A request of the kube-style API was refused; `status` is the answer."""

    code = "kube_status"

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


class FieldError(msgspec.Struct, frozen=True):
    """One fault of an object, an entry of `details.causes` of an `invalid` status."""

    field: str
    reason: str
    message: str

    @property
    def text(self) -> str:
        """The fault with its place."""
        return f"{self.field}: {self.message}"


# -- faults of fields ------------------------------------------------------------------------------


def required(field: str, detail: str = "") -> FieldError:
    """Return the fault of a field that must be there."""
    return FieldError(
        field, "FieldValueRequired", f"Required value{': ' if detail else ''}{detail}"
    )


def invalid_value(field: str, value: Any, detail: str) -> FieldError:
    """Return the fault of a field with a wrong value; texts are quoted, other values shown as they are."""
    shown = quoted(value) if isinstance(value, str) else str(value)
    return FieldError(field, "FieldValueInvalid", f"Invalid value: {shown}: {detail}")


def unsupported(field: str, value: str, supported: Sequence[str]) -> FieldError:
    """Return the fault of a field whose value is none of `supported`."""
    listed = ", ".join(map(quoted, supported))
    return FieldError(
        field, "FieldValueNotSupported",
        f"Unsupported value: {quoted(value)}: supported values: {listed}",
    )  # fmt: skip


def forbidden_field(field: str, detail: str) -> FieldError:
    """Return the fault of a field that must not be set here."""
    return FieldError(field, "FieldValueForbidden", f"Forbidden: {detail}")


def duplicate(field: str, value: Any) -> FieldError:
    """Return the fault of a value that may be there only once."""
    shown = quoted(value) if isinstance(value, str) else str(value)
    return FieldError(field, "FieldValueDuplicate", f"Duplicate value: {shown}")


def too_long(field: str, *, limit: int) -> FieldError:
    """Return the fault of a value of more than `limit` bytes."""
    text = f"Too long: must have at most {limit} bytes"
    return FieldError(field, "FieldValueTooLong", text)


# -- refusals --------------------------------------------------------------------------------------


def qualified(resource: str, group: str) -> str:
    """Return `roles.rbac.authorization.k8s.io`, or just `secrets` for the core group."""
    return f"{resource}.{group}" if group else resource


def _named(code: int, reason: str, message: str, *, group: str, kind: str, name: str) -> ApiError:
    details = Details(name=name, group=group, kind=kind)
    return ApiError(Status(code=code, reason=reason, message=message, details=details))


def not_found(resource: str, name: str, *, group: str = "") -> ApiError:
    """Return the 404 of a missing object; `resource` is the plural."""
    text = f"{qualified(resource, group)} {quoted(name)} not found"
    return _named(404, "NotFound", text, group=group, kind=resource, name=name)


def no_such_resource() -> ApiError:
    """Return the 404 of a known group with an unknown resource or version."""
    text = "the server could not find the requested resource"
    return ApiError(Status(code=404, reason="NotFound", message=text, details=Details()))


def already_exists(resource: str, name: str, *, group: str = "") -> ApiError:
    """Return the 409 of a create whose name is taken."""
    text = f"{qualified(resource, group)} {quoted(name)} already exists"
    return _named(409, "AlreadyExists", text, group=group, kind=resource, name=name)


def conflict(
    resource: str,
    name: str,
    *,
    group: str = "",
    detail: str = "the object has been modified; please apply your changes to the latest version and try again",
) -> ApiError:
    """Return the 409 of an update of a state that is no more; failed preconditions pass the Kind."""
    text = f"Operation cannot be fulfilled on {qualified(resource, group)} {quoted(name)}: {detail}"
    return _named(409, "Conflict", text, group=group, kind=resource, name=name)


def uid_precondition_text(*, asked: str, found: str) -> str:
    """Return the `detail` of a conflict about `preconditions.uid`."""
    return (
        f"the UID in the precondition ({asked}) does not match the UID in record ({found}). "
        "The object might have been deleted and then recreated"
    )


def version_precondition_text(*, asked: str, found: str) -> str:
    """Return the `detail` of a conflict about `preconditions.resourceVersion`."""
    return (
        f"the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record "
        f"({found}). The object might have been modified"
    )


def forbidden(resource: str, name: str, detail: str, *, group: str = "") -> ApiError:
    """Return the 403 `RESOURCE "NAME" is forbidden: DETAIL` of authorization or admission."""
    what = qualified(resource, group) + (f" {quoted(name)}" if name else "")
    text = f"{what} is forbidden: {detail}"
    return _named(403, "Forbidden", text, group=group, kind=resource, name=name)


def forbidden_path(detail: str) -> ApiError:
    """Return the 403 of a path that is no resource: `forbidden: User "x" cannot get path "/metrics"`."""
    text = f"forbidden: {detail}"
    return ApiError(Status(code=403, reason="Forbidden", message=text, details=Details()))


def namespace_terminating(resource: str, name: str, *, group: str = "", namespace: str) -> ApiError:
    """Return the 403 of a create in a namespace that is being deleted."""
    detail = f"unable to create new content in namespace {namespace} because it is being terminated"
    error = forbidden(resource, name, detail, group=group)
    cause = Cause(
        reason="NamespaceTerminating",
        message=f"namespace {namespace} is being terminated",
        field="metadata.namespace",
    )
    details = Details(name=name, group=group, kind=resource, causes=(cause,))
    return ApiError(msgspec.structs.replace(error.status, details=details))


def invalid(kind: str, name: str, errors: Sequence[FieldError], *, group: str = "") -> ApiError:
    """Return the 422 of an object that does not pass validation; `kind` is the Kind."""
    texts = list(dict.fromkeys(one.text for one in errors))
    shown = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    causes = tuple(Cause(reason=one.reason, message=one.message, field=one.field) for one in errors)
    status = Status(
        code=422,
        reason="Invalid",
        message=f"{qualified(kind, group)} {quoted(name)} is invalid: {shown}",
        details=Details(name=name, group=group, kind=kind, causes=causes),
    )
    return ApiError(status)


def rejected_patch() -> ApiError:
    """Return the 422 of a patch that does not fit the object (a failed `test`, a missing path)."""
    text = "the server rejected our request due to an error in our request"
    return ApiError(Status(code=422, reason="Invalid", message=text, details=Details()))


def bad_request(message: str) -> ApiError:
    """Return the 400 with `message`."""
    return ApiError(Status(code=400, reason="BadRequest", message=message))


def name_mismatch(*, in_object: str, in_url: str) -> ApiError:
    """Return the 400 of a body that names another object than the URL."""
    text = f"the name of the object ({in_object}) does not match the name on the URL ({in_url})"
    return bad_request(text)


def namespace_mismatch() -> ApiError:
    """Return the 400 of a body that lies in another namespace than the URL says."""
    return bad_request(
        "the namespace of the provided object does not match the namespace sent on the request"
    )


def unauthorized() -> ApiError:
    """Return the 401; it never says why."""
    return ApiError(Status(code=401, reason="Unauthorized", message="Unauthorized"))


def method_not_allowed() -> ApiError:
    """Return the 405."""
    text = "the server does not allow this method on the requested resource"
    return ApiError(Status(code=405, reason="MethodNotAllowed", message=text, details=Details()))


def not_acceptable() -> ApiError:
    """Return the 406 of an Accept that names nothing we can write."""
    text = f"only the following media types are accepted: {BODY_TYPES}"
    return ApiError(Status(code=406, reason="NotAcceptable", message=text))


def unsupported_media_type(accepted: str = BODY_TYPES) -> ApiError:
    """Return the 415 of a body in a form we cannot read."""
    text = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return ApiError(Status(code=415, reason="UnsupportedMediaType", message=text))


def too_large(*, limit_bytes: int) -> ApiError:
    """Return the 413 of a body over `limit_bytes`."""
    text = f"Request entity too large: limit is {limit_bytes}"
    return ApiError(Status(code=413, reason="RequestEntityTooLarge", message=text))


def expired(message: str) -> ApiError:
    """Return the 410 of a resourceVersion or continue token that is too old."""
    return ApiError(Status(code=410, reason="Expired", message=message))


def too_old_resource_version(asked: int, *, oldest: int) -> ApiError:
    """Return the 410 a watch answers in its one ERROR event."""
    return expired(f"too old resource version: {asked} ({oldest})")


def too_large_resource_version(asked: int, *, current: int) -> ApiError:
    """Return the 504 of a resourceVersion from the future."""
    cause = Cause(reason="ResourceVersionTooLarge", message="Too large resource version")
    status = Status(
        code=504,
        reason="Timeout",
        message=f"Timeout: Too large resource version: {asked}, current: {current}",
        details=Details(causes=(cause,), retry_after_seconds=1),
    )
    return ApiError(status)


def internal_error(detail: str) -> ApiError:
    """Return the 500 `Internal error occurred: DETAIL`."""
    status = Status(
        code=500,
        reason="InternalError",
        message=f"Internal error occurred: {detail}",
        details=Details(causes=(Cause(message=detail),)),
    )
    return ApiError(status)


def unexpected(message: str) -> ApiError:
    """Return the 500 without a reason, as the original has it for a bad resourceVersion of a watch."""
    return ApiError(Status(code=500, message=message))


def service_unavailable(message: str) -> ApiError:
    """Return the 503 of a server that cannot reach its store."""
    return ApiError(Status(code=503, reason="ServiceUnavailable", message=message))


def deleted(resource: str, name: str, *, group: str = "", uid: str = "") -> Status:
    """Return the answer of a delete that is done."""
    details = Details(name=name, group=group, kind=resource, uid=uid)
    return Status(code=200, success=True, details=details)
