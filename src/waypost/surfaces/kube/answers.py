"""From documents to responses: the form that was asked for, the headers every answer has, errors as Status."""

from __future__ import annotations

import msgspec

from waypost.base import errors
from waypost.domain.object import Page
from waypost.domain.object_admission import Refused
from waypost.surfaces.http.message import Request, Response
from waypost.wire.kube import meta, status
from waypost.wire.kube.bodies import JSON, encode_body
from waypost.wire.kube.negotiate import Representation, negotiate, wants_pretty
from waypost.wire.kube.resources import Resource
from waypost.wire.kube.status import ApiError, Status
from waypost.wire.kube.table import partial, render
from waypost.wire.kube.values import JsonObject

_NO_CACHE = ("Cache-Control", "no-cache, private")


class Plain(errors.WaypostError):
    """A refusal that the original answers as plain text."""

    code = "plain"

    def __init__(self, http_status: int, text: str) -> None:
        super().__init__(text)
        self.http_status = http_status


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How one request wants its answer."""

    wanted: Representation = Representation()
    is_pretty: bool = False
    include_object: str = "Metadata"
    """Of a table: `None`, `Metadata` or `Object`."""


def form_of(request: Request) -> Form:
    """Return what the request asks for. Raises ApiError 406."""
    query = request.query
    return Form(
        wanted=negotiate(request.headers.get("accept") or ""),
        is_pretty=wants_pretty(
            query.get("pretty") if "pretty" in query else None,
            user_agent=request.headers.get("user-agent") or "",
        ),
        include_object=query.get("includeObject") or "Metadata",
    )


def encoded(
    value: JsonObject,
    form: Form,
    *,
    http_status: int = 200,
    warnings: tuple[str, ...] = (),
) -> Response:
    """Return a document as a response."""
    media_type = form.wanted.media_type
    return Response(
        status=http_status,
        body=encode_body(value, media_type=media_type, pretty=form.is_pretty),
        content_type=media_type,
        headers=_headers(warnings),
    )


def _headers(warnings: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    # The same one twice tells nobody more.
    return (_NO_CACHE, *(("Warning", warning_text(one)) for one in dict.fromkeys(warnings)))


def warning_text(text: str) -> str:
    """Return the value of a Warning header. Source: RFC 7234 section 5.5."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    escaped = shown.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'


def one_object(
    value: JsonObject,
    form: Form,
    *,
    resource: Resource,
    now_s: float,
    http_status: int = 200,
    warnings: tuple[str, ...] = (),
) -> Response:
    """Return one object, or its table row or metadata if that is what was asked for."""
    if form.wanted.convert == "Table":
        version = value["metadata"].get("resourceVersion", "")
        metadata = {"resourceVersion": version} if version else {}
        value = render(
            resource,
            [value],
            now_s=now_s,
            metadata=metadata,
            include_object=form.include_object,
            version=form.wanted.version,
        )
    elif form.wanted.convert == "PartialObjectMetadata":
        value = partial(value, version=form.wanted.version)
    return encoded(value, form, http_status=http_status, warnings=warnings)


def page(found: Page, form: Form, *, resource: Resource, now_s: float) -> Response:
    """Return a list in the form that was asked for."""
    value = meta.object_list(
        resource,
        found.items,
        revision=found.revision,
        continue_token=found.continue_token,
        remaining=found.remaining,
    )
    if form.wanted.convert == "Table":
        value = render(
            resource,
            found.items,
            now_s=now_s,
            metadata=value["metadata"],
            include_object=form.include_object,
            version=form.wanted.version,
        )
    elif form.wanted.convert == "PartialObjectMetadataList":
        version = form.wanted.version
        value = {
            "kind": "PartialObjectMetadataList",
            "apiVersion": f"meta.k8s.io/{version}",
            "metadata": value["metadata"],
            "items": [partial(one, version=version) for one in found.items],
        }
    return encoded(value, form, warnings=found.warnings)


def status_response(
    found: Status, *, close: bool = False, warnings: tuple[str, ...] = ()
) -> Response:
    """Return a Status as JSON."""
    return Response(
        status=found.code,
        body=encode_body(found.body(), media_type=JSON),
        content_type=JSON,
        headers=_headers(warnings),
        close=close,
    )


def plain(text: str, *, http_status: int = 200) -> Response:
    """Return plain text."""
    return Response(
        status=http_status,
        body=text.encode(),
        content_type="text/plain; charset=utf-8",
        headers=(_NO_CACHE, ("X-Content-Type-Options", "nosniff")),
    )


def document(value: JsonObject, *, content_type: str = JSON, vary_accept: bool = False) -> Response:
    """Return a document that has one form only."""
    vary = (("Vary", "Accept"),) if vary_accept else ()
    return Response(
        body=encode_body(value, media_type=JSON),
        content_type=content_type,
        headers=(_NO_CACHE, *vary),
    )


def failed(error: errors.WaypostError) -> Response:
    """Return the answer for an error: a Status, or the plain text the original has."""
    if isinstance(error, Plain):
        return plain(str(error), http_status=error.http_status)
    warnings = error.warnings if isinstance(error, Refused) else ()
    return status_response(status_of(error), warnings=warnings)


def status_of(error: errors.WaypostError) -> Status:
    """Return the Status of an error of the tree."""
    text = str(error)
    match error:
        case ApiError():
            return error.status
        case errors.Malformed():
            return status.bad_request(text).status
        case errors.Unauthenticated():
            return status.unauthorized().status
        case errors.Forbidden():
            return Status(code=403, reason="Forbidden", message=text, details=status.Details())
        case errors.NotFound():
            return Status(code=404, reason="NotFound", message=text, details=status.Details())
        case errors.Conflict():
            return Status(code=409, reason="Conflict", message=text, details=status.Details())
        case errors.TooLarge():
            return Status(code=413, reason="RequestEntityTooLarge", message=text)
        case errors.Unknown():
            return Status(code=504, reason="Timeout", message=f"Timeout: {text}")
        case errors.Unavailable():
            return status.service_unavailable(text).status
    return status.internal_error(text).status
