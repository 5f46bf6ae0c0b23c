"""The verbs of stored resources over HTTP."""

from __future__ import annotations

import random

from waypost.access.actor import Actor
from waypost.base.clock import Clock
from waypost.base.errors import Malformed
from waypost.domain.object import Listing, Objects, Selection, Watching
from waypost.domain.object_plan import Options, Place, Written
from waypost.surfaces.http.message import Request, Response
from waypost.surfaces.kube import answers
from waypost.surfaces.kube.answers import Form, form_of
from waypost.surfaces.kube.target import Target
from waypost.surfaces.kube.watching import lines
from waypost.wire.kube import meta, status
from waypost.wire.kube.bodies import (
    JSON,
    Body,
    DeleteOptions,
    FieldValidation,
    decode_body,
    decode_delete_options,
    parse_dry_run,
    parse_field_validation,
)
from waypost.wire.kube.managed_fields import manager_name
from waypost.wire.kube.negotiate import body_type
from waypost.wire.kube.patch import APPLY_PATCH, patch_type
from waypost.wire.kube.selectors import parse_field_selector, parse_label_selector
from waypost.wire.kube.status import FieldError

_WATCH_S = 1800.0
"""A watch without `timeoutSeconds` ends after this to twice this, so that many do not come back at once."""
_MAX_WATCH_S = 86400.0
_TRUE = ("1", "t", "T", "true", "TRUE", "True")


class ObjectRoutes:
    """Answers requests for stored resources whose caller has been let in."""

    def __init__(self, objects: Objects, *, clock: Clock, rng: random.Random) -> None:
        self._objects = objects
        self._clock = clock
        self._rng = rng

    async def answer(self, request: Request, target: Target, verb: str, actor: Actor) -> Response:
        """Answer; `verb` is what `target.verb_of` says. Raises ApiError and other errors of the tree."""
        place = Place(target.resource, target.namespace, target.name, target.subresource)
        match verb:
            case "list" if is_true(request, "watch"):
                return await self._watch(request, place, actor)
            case "get":
                return self._one(
                    request, Written(object=await self._objects.get(actor, place)), place
                )
            case "list":
                return await self._list(request, place, actor)
            case "create":
                return await self._create(request, place, actor)
            case "update":
                return await self._update(request, place, actor)
            case "patch":
                return await self._patch(request, place, actor)
            case "delete":
                return await self._delete(request, place, actor)
        return await self._delete_collection(request, place, actor)

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def _list(self, request: Request, place: Place, actor: Actor) -> Response:
        form = form_of(request)
        query = request.query
        token = query.get("continue")
        version = query.get("resourceVersion")
        if token and version and version != "0":
            raise status.bad_request(
                "specifying resource version is not allowed when using continue"
            )
        asked = Listing(
            selection=_selection(request, place),
            limit=_whole_number(request, "limit"),
            continues=meta.parse_continue(token) if token else None,
            revision=meta.parse_resource_version(version),
            is_exact=query.get("resourceVersionMatch") == "Exact",
        )
        found = await self._objects.list(actor, place, asked)
        return answers.page(found, form, resource=place.resource, now_s=self._clock.wall())

    async def _watch(self, request: Request, place: Place, actor: Actor) -> Response:
        form = form_of(request)
        query = request.query
        timeout_s = float(_whole_number(request, "timeoutSeconds"))
        initial = is_true(request, "sendInitialEvents")
        if initial and query.get("resourceVersionMatch") != "NotOlderThan":
            error = FieldError(
                "resourceVersionMatch",
                "FieldValueForbidden",
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
            raise status.invalid("ListOptions", "", [error], group="meta.k8s.io")
        asked = Watching(
            selection=_selection(request, place),
            revision=_watch_revision(query.get("resourceVersion")),
            bookmarks=is_true(request, "allowWatchBookmarks"),
            initial_events=initial,
            timeout_s=min(timeout_s, _MAX_WATCH_S) or _WATCH_S * (1 + self._rng.random()),
        )
        events = await self._objects.watch(actor, place, asked)
        request.may_interrupt = True
        return Response(
            stream=lines(events, form, resource=place.resource, wall=self._clock.wall),
            content_type=JSON,
            headers=(("Cache-Control", "no-cache, private"),),
            vary=False,
        )

    # -- writing -----------------------------------------------------------------------------------------------------------

    async def _create(self, request: Request, place: Place, actor: Actor) -> Response:
        options = self._options(request, "CreateOptions")
        body = _body(request, place, options)
        written = await self._objects.create(actor, place, body.object, options)
        return self._one(request, written, place, warnings=body.warnings)

    async def _update(self, request: Request, place: Place, actor: Actor) -> Response:
        options = self._options(request, "UpdateOptions")
        body = _body(request, place, options)
        written = await self._objects.update(actor, place, body.object, options)
        return self._one(request, written, place, warnings=body.warnings)

    async def _patch(self, request: Request, place: Place, actor: Actor) -> Response:
        media_type = patch_type(request.headers.get("content-type") or "")
        is_apply = media_type == APPLY_PATCH
        options = self._options(request, "PatchOptions")
        if is_apply and not request.query.get("fieldManager"):
            error = FieldError(
                "fieldManager",
                "FieldValueRequired",
                "Required value: is required for apply patch",
            )
            raise status.invalid("PatchOptions", "", [error], group="meta.k8s.io")
        if not is_apply and "force" in request.query:
            error = FieldError(
                "force",
                "FieldValueForbidden",
                "Forbidden: may not be specified for non-apply patch",
            )
            raise status.invalid("PatchOptions", "", [error], group="meta.k8s.io")
        written = await self._objects.patch(
            actor, place, request.body, media_type=media_type, options=options
        )
        return self._one(request, written, place)

    async def _delete(self, request: Request, place: Place, actor: Actor) -> Response:
        removed = await self._objects.delete(actor, place, _delete_options(request))
        if isinstance(removed.answer, status.Status):
            return answers.status_response(removed.answer, warnings=removed.warnings)
        return self._one(request, Written(object=removed.answer, warnings=removed.warnings), place)

    async def _delete_collection(self, request: Request, place: Place, actor: Actor) -> Response:
        selection = _selection(request, place)
        form = form_of(request)
        found = await self._objects.delete_collection(
            actor, place, selection, _delete_options(request)
        )
        return answers.page(found, form, resource=place.resource, now_s=self._clock.wall())

    def _one(
        self,
        request: Request,
        written: Written,
        place: Place,
        *,
        warnings: tuple[str, ...] = (),
    ) -> Response:
        form: Form = form_of(request)
        return answers.one_object(
            written.object,
            form,
            resource=place.resource,
            now_s=self._clock.wall(),
            http_status=201 if written.created else 200,
            warnings=warnings + written.warnings,
        )

    @staticmethod
    def _options(request: Request, kind: str) -> Options:
        form_of(request)  # an answer that cannot be given is no reason to change anything
        return Options(
            dry_run=parse_dry_run(list(request.query.all("dryRun")), options_kind=kind),
            manager=manager_name(
                request.query.get("fieldManager"),
                user_agent=request.headers.get("user-agent") or "",
            ),
            field_validation=parse_field_validation(
                request.query.get("fieldValidation"), options_kind=kind
            ),
            force=is_true(request, "force"),
        )


def field_validation_of(request: Request, kind: str) -> FieldValidation:
    """Return the value of `?fieldValidation=`. Raises ApiError 422."""
    return parse_field_validation(request.query.get("fieldValidation"), options_kind=kind)


def is_true(request: Request, name: str) -> bool:
    """Return a boolean of the query; for `watch` anything but false counts, as authorization has it."""
    if name not in request.query:
        return False
    text = request.query.get(name)
    if name == "watch":
        return text.lower() not in ("false", "0")
    return text in _TRUE


def _selection(request: Request, place: Place) -> Selection:
    query = request.query
    return Selection(
        labels=parse_label_selector(query.get("labelSelector")),
        fields=parse_field_selector(query.get("fieldSelector"), resource=place.resource),
    )


def _whole_number(request: Request, name: str) -> int:
    text = request.query.get(name)
    if not text:
        return 0
    try:
        return max(0, int(text))
    except ValueError as exc:
        shown = text.replace('"', '\\"')
        raise status.bad_request(f'strconv.ParseInt: parsing "{shown}": invalid syntax') from exc


def _watch_revision(text: str) -> int | None:
    try:
        return meta.parse_resource_version(text)
    except Malformed as error:
        # For a watch, unlike a list, the original finds this out too late to blame the client.
        raise status.unexpected(str(error)) from error


def _delete_options(request: Request) -> DeleteOptions:
    query = {name: list(request.query.all(name)) for name, _ in request.query.pairs}
    content_type = request.headers.get("content-type") or ""
    media_type = body_type(content_type) if request.body else JSON
    return decode_delete_options(request.body, media_type=media_type, query=query)


def _body(request: Request, place: Place, options: Options) -> Body:
    """Return the object that a request carries. Raises ApiError."""
    return decode_body(
        request.body,
        media_type=body_type(request.headers.get("content-type") or ""),
        resource=place.resource,
        subresource=place.subresource,
        field_validation=options.field_validation,
    )
