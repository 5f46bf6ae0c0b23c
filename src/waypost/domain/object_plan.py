"""Writes of objects as pure decisions on one view: a document in, a transaction out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from waypost.access.actor import Actor
from waypost.access.authz import escalation
from waypost.access.authz.aggregation import aggregate, selects
from waypost.access.authz.bootstrap import Change as PolicyChange
from waypost.access.authz.bootstrap import reconcile
from waypost.access.authz.escalation import Held, Refusal
from waypost.access.authz.records import GROUP as RBAC
from waypost.access.authz.records import (
    Binding,
    BindingKind,
    Role,
    RoleKind,
    parse_binding,
    parse_role,
    rule_document,
)
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.domain import object_kinds as kinds
from waypost.domain.object_admission import Passage, Subject
from waypost.domain.planning import Draft
from waypost.model.object import Object
from waypost.state.keys import object_key
from waypost.state.state import Plan
from waypost.state.view import View
from waypost.wire.kube import managed_fields, meta, status
from waypost.wire.kube.bodies import DeleteOptions, FieldValidation, with_defaults
from waypost.wire.kube.resources import CERTIFICATES, Catalog, Resource
from waypost.wire.kube.status import ApiError, FieldError
from waypost.wire.kube.validate import create_errors, update_errors
from waypost.wire.kube.values import JsonObject

MAX_SINGLE_DELETES: Final = 64
"""A namespace with more objects of one resource is emptied by one range instead of key by key."""


class Place(msgspec.Struct, frozen=True):
    """Where an object or a collection is."""

    resource: Resource
    namespace: str = ""
    """Empty for cluster-scoped resources, and for a collection over all namespaces."""
    name: str = ""
    """Empty for a collection."""
    subresource: str = ""

    @property
    def topic(self) -> str:
        """`group/resource`, as the view calls it."""
        return f"{self.resource.group}/{self.resource.plural}"

    @property
    def subject(self) -> Subject:
        """What admission calls it."""
        return Subject(
            resource=self.resource,
            namespace=self.namespace,
            name=self.name,
            subresource=self.subresource,
        )

    def asked(self, verb: str) -> Attributes:
        """Return what the gate is asked. A namespace is in itself, so that a Role in it can grant it."""
        in_itself = not self.resource.group and self.resource.plural == "namespaces"
        return Attributes(
            verb,
            self.resource.plural,
            self.name,
            group=self.resource.group,
            namespace=self.name if in_itself else self.namespace,
            subresource=self.subresource,
            version=self.resource.version,
        )


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with a write."""

    dry_run: bool = False
    manager: str = "unknown"
    """Who owns the fields that change."""
    field_validation: FieldValidation = FieldValidation.WARN
    force: bool = False
    """Of a server-side apply: take over fields of others."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a write. Without `pending` the object has its final resourceVersion."""

    object: JsonObject
    created: bool = False
    pending: bool = False
    """The resourceVersion is known only once the transaction is done."""
    warnings: tuple[str, ...] = ()


def document(found: Object) -> JsonObject:
    """Return an object as the API shows it."""
    return meta.read_body(found.body, modify_index=found.modify_index)


def find(view: View, place: Place) -> Object | None:
    """Return the object at a place."""
    return view.object(place.resource.group, place.resource.plural, place.namespace, place.name)


def missing(place: Place) -> ApiError:
    """Return the 404 of an object that is not there."""
    return status.not_found(place.resource.plural, place.name, group=place.resource.group)


def check_version(place: Place, asked: str, live: JsonObject) -> None:
    """Raise the 409 when `asked` is not the resourceVersion of what is there."""
    if asked != live["metadata"].get("resourceVersion"):
        raise status.conflict(place.resource.plural, place.name, group=place.resource.group)


def check_preconditions(place: Place, options: DeleteOptions, live: JsonObject) -> None:
    """Raise the 409 of a deletion whose preconditions do not hold."""
    metadata = live["metadata"]
    detail = ""
    if options.uid is not None and options.uid != metadata["uid"]:
        detail = status.uid_precondition_text(asked=options.uid, found=metadata["uid"])
    elif options.resource_version not in (None, metadata["resourceVersion"]):
        detail = status.version_precondition_text(
            asked=options.resource_version or "", found=metadata["resourceVersion"]
        )
    if detail:
        resource = place.resource
        raise status.conflict(resource.kind, place.name, group=resource.group, detail=detail)


def _record(resource: Resource, value: JsonObject) -> Object:
    metadata = value["metadata"]
    return Object(
        group=resource.group,
        resource=resource.plural,
        namespace=metadata.get("namespace", "") if resource.namespaced else "",
        name=metadata["name"],
        body=meta.stored_body(value),
    )


class Asks(Protocol):
    """The questions about access that come up while a write is decided."""

    @property
    def held(self) -> Held | None:
        """Who answers the questions of privilege escalation; None where access is not controlled."""
        ...

    def may(self, actor: Actor, asked: Attributes) -> bool:
        """Return whether the gate allows `asked`."""
        ...


class Writer:
    """Decides one request's write, as often as it takes: everything random or timed is fixed beforehand."""

    def __init__(
        self,
        access: Asks,
        actor: Actor,
        options: Options,
        *,
        uid: str,
        account_uid: str,
        now_s: float,
        passage: Passage,
    ) -> None:
        self._access = access
        self._actor = actor
        self._options = options
        self._uid = uid
        self._account_uid = account_uid
        self.now_s = now_s
        self._passage = passage

    # -- create ------------------------------------------------------------------------------------------------------------

    def create(
        self,
        view: View,
        place: Place,
        value: JsonObject,
        *,
        url_name: str,
        is_managed: bool = False,
    ) -> Plan[Written]:
        """Decide a creation. `url_name` is empty for a POST. Takes `value` over. Raises ApiError."""
        resource = place.resource
        name = value["metadata"].get("name", "")
        draft = Draft()
        if resource.namespaced:
            self._enter_namespace(view, draft, place, name)
        subject = msgspec.structs.replace(place.subject, name=name)
        value, warnings = self._passage.mutated(subject, value, None, is_managed=is_managed)
        value = meta.new_object(
            value,
            resource=resource,
            namespace=place.namespace,
            name=name,
            uid=self._uid,
            now_s=self.now_s,
        )
        kinds.prepare_create(value, resource=resource, actor=self._actor)
        value = with_defaults(value, resource=resource)
        self._confirm_grants(value, None, resource=resource, url_name=url_name)
        self._require_valid(
            [
                *create_errors(value, resource=resource),
                *kinds.policy_errors(value, resource=resource, live=None),
            ],
            value,
            resource,
        )
        if view.object(resource.group, resource.plural, place.namespace, name) is not None:
            raise status.already_exists(resource.plural, name, group=resource.group)
        if not is_managed:
            value = managed_fields.updated(
                None,
                value,
                resource=resource,
                manager=self._options.manager,
                now_s=self.now_s,
                subresource=place.subresource,
            )
        warnings += self._passage.validated(subject, value, None)
        written = Written(object=value, created=True, pending=True, warnings=warnings)
        if self._options.dry_run:
            return Plan(msgspec.structs.replace(written, pending=False))
        value = self._aggregated(view, draft, value, resource=resource)
        record = _record(resource, value)
        draft.guard(object_key(record.group, record.resource, record.namespace, record.name), None)
        draft.put(record)
        if not resource.group and resource.plural == "namespaces":
            self._furnish(draft, name)
        return draft.plan(msgspec.structs.replace(written, object=value))

    def _enter_namespace(self, view: View, draft: Draft, place: Place, name: str) -> None:
        found = view.object("", "namespaces", "", place.namespace)
        if found is None:
            raise status.not_found("namespaces", place.namespace)
        if document(found)["metadata"].get("deletionTimestamp"):
            raise status.namespace_terminating(
                place.resource.plural,
                name,
                group=place.resource.group,
                namespace=place.namespace,
            )
        draft.guard(object_key("", "namespaces", "", place.namespace), found)

    def _furnish(self, draft: Draft, namespace: str) -> None:
        """Give a new namespace its ServiceAccount."""
        account: JsonObject = {
            "kind": "ServiceAccount",
            "apiVersion": "v1",
            "metadata": {
                "name": "default",
                "namespace": namespace,
                "uid": self._account_uid,
                "creationTimestamp": meta.time_text(self.now_s),
            },
        }
        draft.put(
            Object(
                group="",
                resource="serviceaccounts",
                namespace=namespace,
                name="default",
                body=meta.stored_body(account),
            )
        )

    # -- update ------------------------------------------------------------------------------------------------------------

    def update(
        self,
        view: View,
        place: Place,
        found: Object,
        live: JsonObject,
        value: JsonObject,
        *,
        is_managed: bool = False,
    ) -> Plan[Written]:
        """Decide what replaces `found`, whose document is `live`. Takes `value` over. Raises ApiError."""
        resource = place.resource
        self._check_identity(place, live, value)
        value, warnings = self._passage.mutated(place.subject, value, live, is_managed=is_managed)
        value = meta.changed_object(live, value, resource=resource)
        kinds.prepare_update(value, live=live, resource=resource, subresource=place.subresource)
        value = with_defaults(value, resource=resource)
        if resource.group == CERTIFICATES:
            self._confirm_decision(value, live, place)
            kinds.stamp_conditions(value, live=live, now_text=meta.time_text(self.now_s))
        if not place.subresource:
            self._confirm_grants(value, live, resource=resource, url_name=place.name)
        self._require_valid(
            [
                *update_errors(live, value, resource=resource, subresource=place.subresource),
                *kinds.policy_errors(value, resource=resource, live=live),
            ],
            value,
            resource,
        )
        if not is_managed:
            value = managed_fields.updated(
                live,
                value,
                resource=resource,
                manager=self._options.manager,
                now_s=self.now_s,
                subresource=place.subresource,
            )
        warnings += self._passage.validated(place.subject, value, live)
        if self._options.dry_run:
            value["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
            return Plan(Written(object=value, warnings=warnings))
        draft = Draft()
        value = self._aggregated(view, draft, value, resource=resource)
        if meta.same_but_metadata(live, value):
            return draft.plan(Written(object=live, warnings=warnings))
        metadata = value["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            # The last finalizer is gone, so is the object.
            draft.delete(found)
            close_namespace(view, draft, place.resource, found)
            value["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
            return draft.plan(Written(object=value, warnings=warnings))
        draft.guard(object_key(found.group, found.resource, found.namespace, found.name), found)
        draft.put(_record(resource, value))
        return draft.plan(Written(object=value, pending=True, warnings=warnings))

    @staticmethod
    def _check_identity(place: Place, live: JsonObject, value: JsonObject) -> None:
        uid = value["metadata"].get("uid")
        if uid and uid != live["metadata"]["uid"]:
            error = status.invalid_value("metadata.uid", uid, "field is immutable")
            resource = place.resource
            raise status.invalid(resource.kind, place.name, [error], group=resource.group)
        asked = value["metadata"].get("resourceVersion")
        if asked:
            check_version(place, asked, live)
        elif not place.resource.unconditional_update:
            error = FieldError(
                "metadata.resourceVersion",
                "FieldValueInvalid",
                "Invalid value: 0x0: must be specified for an update",
            )
            resource = place.resource
            raise status.invalid(resource.kind, place.name, [error], group=resource.group)

    # -- admission -----------------------------------------------------------------------------------------------------------

    def _require_valid(
        self, errors: list[FieldError], value: JsonObject, resource: Resource
    ) -> None:
        if errors:
            distinct = list({one.text: one for one in errors}.values())
            name = value["metadata"].get("name", "")
            raise status.invalid(resource.kind, name, distinct, group=resource.group)

    def _confirm_grants(
        self, value: JsonObject, live: JsonObject | None, *, resource: Resource, url_name: str
    ) -> None:
        """Refuse to give away rights that the actor does not hold. Raises ApiError 403, or 404 for a missing role."""
        held = self._access.held
        if held is None or resource.group != RBAC:
            return
        if live is not None and escalation.exempt(value, live):
            return
        try:
            refusal = self._refusal(value, live, held=held, resource=resource, url_name=url_name)
        except Malformed as error:
            raise status.bad_request(str(error)) from error
        if refusal is not None:
            name = value["metadata"].get("name", "")
            raise _refused(refusal, resource, name)

    def _refusal(
        self,
        value: JsonObject,
        live: JsonObject | None,
        *,
        held: Held,
        resource: Resource,
        url_name: str,
    ) -> Refusal | None:
        if resource.kind in ("Role", "ClusterRole"):
            kind = cast("RoleKind", resource.kind)
            return escalation.check_role(
                self._actor,
                held,
                parse_role(value, kind=kind),
                old=None if live is None else parse_role(live, kind=kind),
                name=url_name,
            )
        binding = parse_binding(value, kind=cast("BindingKind", resource.kind))
        return escalation.check_binding(self._actor, held, binding)

    def _confirm_decision(self, value: JsonObject, live: JsonObject, place: Place) -> None:
        """Require `approve` or `sign` on the signer of a signing request. Raises ApiError 403."""
        verb = {"approval": "approve", "status": "sign"}.get(place.subresource)
        if verb is None:
            return
        if verb == "approve" and not kinds.changed_decisions(value, live):
            return
        signed = (value.get("status") or {}).get("certificate")
        if verb == "sign" and signed == (live.get("status") or {}).get("certificate"):
            return
        signer = (live.get("spec") or {}).get("signerName", "")
        domain, _, _ = signer.partition("/")
        for name in (signer, f"{domain}/*"):
            asked = Attributes(verb, "signers", name, group=CERTIFICATES, version="*")
            if self._access.may(self._actor, asked):
                return
        detail = f"user not permitted to {verb} requests with signerName {quoted(signer)}"
        raise status.forbidden(place.resource.plural, place.name, detail, group=CERTIFICATES)

    def _aggregated(
        self, view: View, draft: Draft, value: JsonObject, *, resource: Resource
    ) -> JsonObject:
        """Return a ClusterRole with its aggregated rules; roles that aggregate it are rewritten in `draft`."""
        if resource.group != RBAC or resource.plural != "clusterroles":
            return value
        return aggregate_roles(view, draft, changed=value) or value


def _refused(refusal: Refusal, resource: Resource, name: str) -> ApiError:
    error = (
        status.not_found(resource.plural, name, group=resource.group)
        if refusal.status == 404
        else status.forbidden(resource.plural, name, "", group=resource.group)
    )
    return ApiError(msgspec.structs.replace(error.status, message=refusal.message))


# -- aggregation -------------------------------------------------------------------------------------------------------------


def aggregate_roles(
    view: View, draft: Draft, *, changed: JsonObject | None = None, gone: Sequence[str] = ()
) -> JsonObject | None:
    """Rewrite the ClusterRoles that aggregate what changes; return `changed` itself if its rules are rewritten.

    Without either, every aggregated role is brought up to date. All that the new rules were made from is guarded.
    """
    stored = {one.name: one for one in view.objects(RBAC, "clusterroles")}
    roles: dict[str, Role] = {}
    for name, one in stored.items():
        try:
            roles[name] = parse_role(one.body, kind="ClusterRole")
        except Malformed:
            continue  # grants nothing and so gives nothing; the authorizer warns about it
    concerned = [roles.pop(name) for name in gone if name in roles]
    if changed is not None:
        after = parse_role(changed, kind="ClusterRole")
        concerned += [one for one in (roles.get(after.name), after) if one is not None]
        roles[after.name] = after
    selectors = [one for role in roles.values() for one in role.aggregation or ()]
    if concerned and not any(
        role.aggregation is not None or any(selects(one, role.labels) for one in selectors)
        for role in concerned
    ):
        return None
    for name, role in roles.items():
        if name in stored and any(selects(one, role.labels) for one in selectors):
            draft.guard(object_key(RBAC, "clusterroles", "", name), stored[name])
    rewritten: JsonObject | None = None
    for role in aggregate(roles.values()):
        rules = [rule_document(rule) for rule in role.rules] or None
        if changed is not None and role.name == changed["metadata"]["name"]:
            rewritten = changed | {"rules": rules}
            continue
        found = stored[role.name]
        value = msgspec.json.decode(found.body)
        value["rules"] = rules
        draft.replace(found, msgspec.structs.replace(found, body=meta.stored_body(value)))
    return rewritten


# -- default policy ------------------------------------------------------------------------------------------------------------


def plan_policy(
    view: View,
    expected: Sequence[Role | Binding],
    *,
    catalog: Catalog,
    uids: Sequence[str],
    manager: str,
    now_s: float,
) -> Plan[list[PolicyChange]]:
    """Decide what brings stored roles and bindings up to what is expected; `uids` has one for each expected object.

    Raises Malformed when a stored object cannot be read.
    """

    def stored(resource: str, namespace: str, name: str) -> Object | None:
        return view.object(RBAC, resource, namespace, name)

    draft = Draft()
    changes = reconcile(expected, stored)
    for change, uid in zip(changes, uids, strict=False):
        resource = catalog.of_kind(api_version=f"{RBAC}/v1", kind=change.kind)
        if change.document is None or resource is None:
            continue
        found = stored(resource.plural, change.namespace, change.name)
        live: JsonObject | None = None
        if found is not None and change.action == "update":
            live = document(found)
            value = meta.changed_object(live, change.document, resource=resource)
        else:
            value = meta.new_object(
                change.document,
                resource=resource,
                namespace=change.namespace,
                name=change.name,
                uid=uid,
                now_s=now_s,
            )
        value = managed_fields.updated(live, value, resource=resource, manager=manager, now_s=now_s)
        draft.replace(found, _record(resource, value))
    return draft.plan(changes)


# -- deletion ------------------------------------------------------------------------------------------------------------------


class Remover:
    """Decides deletions."""

    def __init__(self, catalog: Catalog, *, now_s: float) -> None:
        self._catalog = catalog
        self._now_s = now_s

    def delete(
        self, view: View, draft: Draft, resource: Resource, found: Object, live: JsonObject
    ) -> JsonObject | status.Status:
        """Add a deletion to `draft`; return what the API answers. Raises ApiError 403."""
        if not resource.group and resource.plural == "namespaces":
            return self._mark_namespace(draft, resource, found, live)
        if live["metadata"].get("finalizers"):
            return self._mark(draft, resource, found, live)
        draft.delete(found)
        if not resource.group and resource.plural == "serviceaccounts":
            self._delete_tokens(view, draft, found, uid=live["metadata"]["uid"])
        close_namespace(view, draft, resource, found)
        return status.deleted(
            resource.plural, found.name, group=resource.group, uid=live["metadata"]["uid"]
        )

    def _delete_tokens(self, view: View, draft: Draft, account: Object, *, uid: str) -> None:
        """Delete the token secrets of a service account that goes."""
        resource = self._catalog.of_kind(api_version="v1", kind="Secret")
        if resource is None:
            return
        for one in view.objects("", resource.plural, namespace=account.namespace):
            value = document(one)
            annotations = value["metadata"].get("annotations") or {}
            if (
                kinds.token_account(resource, value) == account.name
                and annotations.get(kinds.ACCOUNT_UID) == uid
                and not value["metadata"].get("finalizers")
            ):
                draft.delete(one)

    def _mark(
        self, draft: Draft, resource: Resource, found: Object, live: JsonObject
    ) -> JsonObject:
        if live["metadata"].get("deletionTimestamp"):
            return live
        value = meta.marked_deleted(live, now_s=self._now_s)
        draft.replace(found, _record(resource, value))
        return value

    def _mark_namespace(
        self, draft: Draft, resource: Resource, found: Object, live: JsonObject
    ) -> JsonObject:
        """Mark a namespace: from then on nothing is created in it, so that `empty_namespace` finds everything."""
        if found.name in kinds.PROTECTED_NAMESPACES:
            raise status.forbidden("namespaces", found.name, "this namespace may not be deleted")
        value = meta.marked_deleted(live, now_s=self._now_s)
        value = value | {"status": {**(value.get("status") or {}), "phase": "Terminating"}}
        draft.replace(found, _record(resource, value))
        return value

    def empty_namespace(self, view: View, draft: Draft, name: str) -> None:
        """Add to `draft`: the content of a marked namespace, and itself unless finalizers hold something."""
        found = view.object("", "namespaces", "", name)
        if found is None:
            return
        metadata = document(found)["metadata"]
        if not metadata.get("deletionTimestamp"):
            return
        held = bool(metadata.get("finalizers"))
        for one in self._catalog:
            if one.namespaced and one.stored:
                held |= self._empty(view, draft, one, namespace=name)
        if held:
            draft.guard(object_key("", "namespaces", "", name), found)
        else:
            draft.delete(found)

    def _empty(self, view: View, draft: Draft, resource: Resource, *, namespace: str) -> bool:
        """Delete all objects of a resource in a namespace; return whether finalizers hold some of them."""
        objects = view.objects(resource.group, resource.plural, namespace=namespace)
        held = False
        free: list[Object] = []
        for one in objects:
            live = document(one)
            if live["metadata"].get("finalizers"):
                held = True
                self._mark(draft, resource, one, live)
            else:
                free.append(one)
        if held or len(free) <= MAX_SINGLE_DELETES:
            for one in free:
                draft.delete(one)
        else:
            draft.delete_below(object_key(resource.group, resource.plural, namespace, ""))
        return held


def close_namespace(view: View, draft: Draft, resource: Resource, gone: Object) -> None:
    """Add to `draft`: a namespace that waits for its last object goes with it."""
    if not resource.namespaced:
        return
    home = view.object("", "namespaces", "", gone.namespace)
    if home is None:
        return
    metadata = document(home)["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return
    if view.has_objects_in(gone.namespace, besides=gone):
        return
    draft.delete(home)


# -- signing -------------------------------------------------------------------------------------------------------------------


def sign_outcome(
    sign: Callable[[JsonObject], bytes | None], request: JsonObject, *, now_text: str
) -> JsonObject | None:
    """Return the additions to the status of a signing request; None when there is nothing to do."""
    state: dict[str, Any] = request.get("status") or {}
    types = {one.get("type") for one in state.get("conditions") or ()}
    if (
        "Approved" not in types
        or "Failed" in types
        or "Denied" in types
        or state.get("certificate")
    ):
        return None
    try:
        chain = sign(request)
    except Malformed as error:
        failed = {
            "type": "Failed",
            "status": "True",
            "reason": "SignerValidationFailure",
            "message": str(error),
            "lastUpdateTime": now_text,
            "lastTransitionTime": now_text,
        }
        return {"conditions": [failed]}
    return None if chain is None else {"certificate": base64.b64encode(chain).decode()}
