"""Questions that are answered and not stored: reviews of access and tokens, and requests for tokens."""

from __future__ import annotations

import random
import uuid
from typing import Any

import msgspec

from waypost.access.actor import Actor
from waypost.access.authn.service_account import Reference, TokenRequest, expiration_problem
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.review import review_rules
from waypost.access.gate import Attributes
from waypost.base.clock import Clock
from waypost.base.quoting import quoted
from waypost.domain.object import Objects
from waypost.domain.object_admission import Passage, admitted
from waypost.domain.object_plan import Place
from waypost.surfaces.http.message import Request, Response
from waypost.surfaces.kube import answers
from waypost.surfaces.kube.access import Access, decide
from waypost.surfaces.kube.objects import field_validation_of
from waypost.surfaces.kube.target import Target
from waypost.wire.kube import meta, status
from waypost.wire.kube.bodies import Body, decode_body, parse_dry_run
from waypost.wire.kube.negotiate import body_type
from waypost.wire.kube.resources import AUTHENTICATION, AUTHORIZATION
from waypost.wire.kube.status import FieldError, invalid_value
from waypost.wire.kube.values import JsonObject

_DEFAULT_EXPIRATION_S = 3600
_EVERYTHING = Attributes("*", "*", group="*")


class ReviewRoutes:
    """Answers reviews whose caller has been let in."""

    def __init__(
        self, objects: Objects, access: Access, *, clock: Clock, rng: random.Random
    ) -> None:
        self._objects = objects
        self._access = access
        self._clock = clock
        self._rng = rng

    async def answer(self, request: Request, target: Target, actor: Actor) -> Response:
        """Answer with 201 and the question, its `status` filled in. Raises ApiError."""
        body = decode_body(
            request.body,
            media_type=body_type(request.headers.get("content-type") or ""),
            resource=target.resource,
            subresource=target.subresource,
            field_validation=field_validation_of(request, "CreateOptions"),
        )
        warnings = body.warnings
        if target.subresource == "token":
            dry_run = parse_dry_run(list(request.query.all("dryRun")), options_kind="CreateOptions")
            passage = self._objects.passage(actor, dry_run=dry_run)
            value, told = await self._issue(target, body.object, passage)
            warnings += told
        else:
            value = await self._ask(target, body, actor)
        return answers.encoded(value, answers.form_of(request), http_status=201, warnings=warnings)

    async def _ask(self, target: Target, body: Body, actor: Actor) -> JsonObject:
        value = body.object
        match target.resource.kind:
            case "SelfSubjectReview":
                metadata = value["metadata"] | {
                    "creationTimestamp": meta.time_text(self._clock.wall())
                }
                return value | {"metadata": metadata, "status": {"userInfo": _user_info(actor)}}
            case "TokenReview":
                return value | {"status": await self._token(value)}
            case "SelfSubjectRulesReview":
                return value | {"status": self._rules(value, actor)}
        return value | {"status": await self._access_review(target, value, actor)}

    # -- access --------------------------------------------------------------------------------------------------------------

    async def _access_review(
        self, target: Target, value: JsonObject, actor: Actor
    ) -> dict[str, bool | str]:
        spec = value.get("spec") or {}
        is_self = target.resource.kind == "SelfSubjectAccessReview"
        errors = _spec_errors(spec, is_self=is_self)
        if target.resource.kind == "LocalSubjectAccessReview":
            errors += self._local_errors(target, value, spec)
        if errors:
            raise status.invalid("", "", errors, group=AUTHORIZATION)
        if not is_self:
            extra = spec.get("extra") or {}
            actor = Actor(
                user=spec.get("user") or "",
                groups=tuple(spec.get("groups") or ()),
                uid=spec.get("uid") or "",
                extra={key: tuple(values or ()) for key, values in extra.items()},
                origin="named in a review",
            )
        decision = await decide(self._access.authorizers, actor, _attributes(spec))
        return decision.review_status

    @staticmethod
    def _local_errors(target: Target, value: JsonObject, spec: JsonObject) -> list[FieldError]:
        attributes = spec.get("resourceAttributes")
        if attributes is None:
            path = spec.get("nonResourceAttributes")
            shown = _go_path(path) if path is not None else "null"
            return [
                FieldError(
                    "spec.nonResourceAttributes",
                    "FieldValueInvalid",
                    f"Invalid value: {shown}: disallowed on this kind of request",
                )
            ]
        if not attributes.get("namespace"):
            raise status.bad_request(
                f"spec.resourceAttributes.namespace must match namespace: {target.namespace}"
            )
        mine = value["metadata"].get("namespace") or target.namespace
        if attributes["namespace"] != mine or mine != target.namespace:
            return [
                invalid_value(
                    "spec.resourceAttributes.namespace",
                    attributes["namespace"],
                    "must match metadata.namespace",
                )
            ]
        return []

    def _rules(self, value: JsonObject, actor: Actor) -> dict[str, Any]:
        namespace = (value.get("spec") or {}).get("namespace", "")
        if not namespace:
            raise status.bad_request("no namespace on request")
        chain = self._access.authorizers
        if self._access.policy is not None:
            index = self._access.policy()
            names = chain.names
        else:
            index = RbacIndex()
            decision = chain.authorize(actor, _EVERYTHING)
            names = ("AlwaysAllow",) if decision is not None and decision.allowed else ()
        return review_rules(index, actor, namespace, authorizers=names).status

    # -- tokens --------------------------------------------------------------------------------------------------------------

    async def _token(self, value: JsonObject) -> JsonObject:
        spec = value.get("spec") or {}
        token = spec.get("token")
        if not token:
            raise status.bad_request("token is required for TokenReview in authentication")
        asked = tuple(spec.get("audiences") or ())
        chain = self._access.tokens
        if chain is None:
            return {"user": {}, "error": "invalid bearer token"}
        found = await chain.review(token, audiences=asked, now_s=self._clock.wall())
        if found.actor is None:
            return {"user": {}, "error": found.error}
        answer: JsonObject = {"authenticated": True, "user": _user_info(found.actor)}
        audiences = found.audiences or asked or self._access.audiences
        if audiences:
            answer["audiences"] = list(audiences)
        return answer

    async def _issue(
        self, target: Target, value: JsonObject, passage: Passage
    ) -> tuple[JsonObject, tuple[str, ...]]:
        """Return the request with its token, and warnings. Raises ApiError."""
        now_s = self._clock.wall()

        async def decide() -> tuple[JsonObject, TokenRequest, tuple[str, ...]]:
            return self._admitted_token(target, value, passage, now_s=now_s)

        asked, wanted, warnings = await admitted(decide)
        assert self._access.issuer is not None
        issued = self._access.issuer.issue(
            wanted,
            now_s=now_s,
            token_id=str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
        )
        made = {
            "token": issued.token,
            "expirationTimestamp": meta.time_text(issued.expires_s),
        }
        return asked | {"status": made}, warnings

    def _admitted_token(
        self, target: Target, value: JsonObject, passage: Passage, *, now_s: float
    ) -> tuple[JsonObject, TokenRequest, tuple[str, ...]]:
        """Return what is asked for, completed and admitted, what is issued for it, and warnings. Raises ApiError."""
        place = Place(target.resource, target.namespace, target.name)
        account = self._objects.stored(place)
        if account is None:
            raise status.not_found("serviceaccounts", target.name)
        if self._access.issuer is None:
            raise status.service_unavailable(
                "this server has no key to sign service account tokens with: run `waypost init`"
            )
        subject = msgspec.structs.replace(place.subject, subresource=target.subresource)
        value, warnings = passage.mutated(subject, value, None)
        spec = dict(value.get("spec") or {})
        seconds = spec.get("expirationSeconds")
        seconds = _DEFAULT_EXPIRATION_S if seconds is None else int(seconds)
        problem = expiration_problem(seconds)
        if problem:
            error = invalid_value("spec.expirationSeconds", seconds, problem)
            raise status.invalid("TokenRequest", "", [error], group=AUTHENTICATION)
        audiences = tuple(spec.get("audiences") or ()) or self._access.audiences
        metadata = value["metadata"] | {
            "name": target.name,
            "namespace": target.namespace,
            "creationTimestamp": meta.time_text(now_s),
        }
        value = value | {
            "metadata": metadata,
            "spec": {
                "audiences": list(audiences),
                "expirationSeconds": seconds,
                "boundObjectRef": spec.get("boundObjectRef"),
            },
        }
        # Nobody but this server says what the token is.
        value.pop("status", None)
        warnings += passage.validated(subject, value, None)
        kind, bound = self._bound(target, spec.get("boundObjectRef"))
        wanted = TokenRequest(
            namespace=target.namespace,
            name=target.name,
            uid=account["metadata"]["uid"],
            audiences=audiences,
            expires_in_s=seconds,
            bound_kind=kind,
            bound=bound,
        )
        return value, wanted, warnings

    def _bound(self, target: Target, ref: JsonObject | None) -> tuple[str, Reference | None]:
        if not ref:
            return "", None
        kind, name = ref.get("kind", ""), ref.get("name", "")
        if (ref.get("apiVersion", ""), kind) != ("v1", "Secret"):
            text = f"cannot bind token to object of type {ref.get('apiVersion', '')}, Kind={kind}"
            raise status.bad_request(text)
        resource = self._objects.catalog.of_kind(api_version="v1", kind=kind)
        assert resource is not None
        found = self._objects.stored(Place(resource, target.namespace, name))
        if found is None:
            raise status.not_found(resource.plural, name)
        uid = found["metadata"]["uid"]
        if ref.get("uid") and ref["uid"] != uid:
            detail = (
                f"the UID in the bound object reference ({ref['uid']}) does not match the UID in record. "
                "The object might have been deleted and then recreated"
            )
            raise status.conflict(kind, name, detail=detail)
        return kind.lower(), Reference(name, uid)


def _user_info(actor: Actor) -> JsonObject:
    info: JsonObject = {"username": actor.user}
    if actor.uid:
        info["uid"] = actor.uid
    if actor.groups:
        info["groups"] = list(actor.groups)
    if actor.extra:
        info["extra"] = {key: list(values) for key, values in actor.extra.items()}
    return info


def _spec_errors(spec: JsonObject, *, is_self: bool) -> list[FieldError]:
    errors: list[FieldError] = []
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and path is not None:
        errors.append(
            FieldError(
                "spec.nonResourceAttributes",
                "FieldValueInvalid",
                f"Invalid value: {_go_path(path)}: cannot be specified in combination with resourceAttributes",
            )
        )
    if resource is None and path is None:
        errors.append(
            invalid_value(
                "spec.resourceAttributes",
                "null",
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            )
        )
    if not is_self and not spec.get("user") and not spec.get("groups"):
        errors.append(
            invalid_value("spec.user", "", "at least one of user or group must be specified")
        )
    return errors


def _go_path(path: JsonObject) -> str:
    return (
        f"authorization.NonResourceAttributes{{Path:{quoted(path.get('path', ''))}, "
        f"Verb:{quoted(path.get('verb', ''))}}}"
    )


def _attributes(spec: JsonObject) -> Attributes:
    path = spec.get("nonResourceAttributes")
    if path is not None:
        return Attributes(path.get("verb", ""), path=path.get("path") or "/", group="")
    asked = spec.get("resourceAttributes") or {}
    return msgspec.convert(
        {
            name: asked.get(name) or ""
            for name in (
                "verb", "resource", "name", "group", "namespace", "subresource", "version",
            )
        },
        Attributes,
    )  # fmt: skip
