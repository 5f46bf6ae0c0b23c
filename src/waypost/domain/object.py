"""Objects of the kube-style API: get, list, watch, create, update, patch, delete.

Documents are the JSON objects of the API (`wire.kube.values.JsonObject`); what is stored is `model.object.Object`.
Every verb asks the gate first. A write is decided by a pure plan on one view and committed with guards on what it
read; another writer in between makes it decide again, so a patch never overwrites what it has not seen.

What other systems leave to controllers happens in the same transaction: a namespace takes its content along, an
aggregated ClusterRole is rewritten together with the role that changed, a namespace is born with its ServiceAccount.
"""

from __future__ import annotations

import base64
import logging
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from waypost.access.actor import Actor
from waypost.access.admission import Admission, Pending
from waypost.access.authz.escalation import Held
from waypost.access.authz.records import GROUP as RBAC
from waypost.access.authz.records import Binding, Role
from waypost.access.authz.text import action
from waypost.access.gate import Attributes, Gate, Undecided
from waypost.access.pki.signer import approval_subresource, read_request
from waypost.base.clock import Clock
from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.domain.object_admission import Passage, admitted
from waypost.domain.object_kinds import ACCOUNT_UID, signing_request, token_account
from waypost.domain.object_plan import (
    Options,
    Place,
    Remover,
    Writer,
    Written,
    aggregate_roles,
    check_preconditions,
    check_version,
    document,
    find,
    missing,
    plan_policy,
    sign_outcome,
)
from waypost.domain.object_projection import PROJECTIONS, Projection, changes
from waypost.domain.planning import Draft
from waypost.model.object import Object
from waypost.state.object_history import Change
from waypost.state.state import Plan, State
from waypost.state.topics import Topic
from waypost.state.view import View
from waypost.wire.kube import managed_fields, meta, status
from waypost.wire.kube.bodies import YAML, Body, DeleteOptions, conform, decode_body
from waypost.wire.kube.patch import APPLY_PATCH, patched
from waypost.wire.kube.resources import BUILT_IN, CERTIFICATES, Catalog, Resource
from waypost.wire.kube.selectors import FieldSelector, LabelSelector
from waypost.wire.kube.status import ApiError
from waypost.wire.kube.values import JsonObject, copied

log = logging.getLogger(__name__)

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
BOOKMARK_S: Final = 60.0
NAMESPACES: Final = ("default", "kube-node-lease", "kube-public", "kube-system")
_SYSTEM: Final = Actor(
    user="system:apiserver", groups=("system:masters", "system:authenticated"), origin="the agent"
)
_MANAGER: Final = "waypost"
_MAX_NAME_TRIES: Final = 8

T = TypeVar("T")
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which objects of a collection are meant; None selects everything."""

    labels: LabelSelector | None = None
    fields: FieldSelector | None = None

    @property
    def is_empty(self) -> bool:
        """Whether everything is meant."""
        return (self.labels is None or self.labels.empty) and (
            self.fields is None or self.fields.empty
        )

    def matches(self, value: JsonObject) -> bool:
        """Tell whether an object is meant."""
        labels = value["metadata"].get("labels") or {}
        return (self.labels is None or self.labels.matches(labels)) and (
            self.fields is None or self.fields.matches(value)
        )


EVERYTHING: Final = Selection()


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """How a list is asked for."""

    selection: Selection = EVERYTHING
    limit: int = 0
    """At most so many objects; 0 = all."""
    continues: meta.Continue | None = None
    revision: int | None = None
    """Not older than this; None = as of now, 0 = whatever is at hand."""
    is_exact: bool = False
    """Exactly `revision`."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Objects of a collection, as of `revision`."""

    items: list[JsonObject]
    revision: int
    continue_token: str = ""
    remaining: int | None = None
    warnings: tuple[str, ...] = ()


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a deletion: a Status when the object is gone, itself when it stays, marked, for a while."""

    answer: JsonObject | status.Status
    warnings: tuple[str, ...] = ()


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """How a watch is asked for."""

    selection: Selection = EVERYTHING
    revision: int | None = None
    """Changes after this; None or 0 = first what there is, as ADDED."""
    bookmarks: bool = False
    initial_events: bool = False
    """What there is first, ended by a bookmark that says so."""
    timeout_s: float = 1800.0


class Event(msgspec.Struct, frozen=True):
    """One event of a watch."""

    type: EventType
    object: JsonObject


class TokenOwner(msgspec.Struct, frozen=True, kw_only=True):
    """The service account of a token secret."""

    namespace: str
    name: str
    uid: str
    secret: str


TokenData = Callable[[TokenOwner], Mapping[str, bytes]]
"""Returns the `data` of a secret of type `kubernetes.io/service-account-token`: token, ca.crt, namespace."""
Sign = Callable[[JsonObject], bytes | None]
"""Returns the PEM chain for an approved signing request, None when its signer is none of ours.

Raises Malformed when it must not be signed: that becomes the condition Failed.
"""


class Objects:
    """The verbs of the kube-style API."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        *,
        clock: Clock,
        rng: random.Random,
        held: Held | None = None,
        catalog: Catalog = BUILT_IN,
        admission: Admission | None = None,
    ) -> None:
        """`held` answers the questions of privilege escalation; None where access is not controlled."""
        self._admission = admission
        self._state = state
        self._view = state.view
        self._gate = gate
        self._clock = clock
        self._rng = rng
        self._held = held
        self.catalog = catalog
        self.sign: Sign | None = None
        """Signs approved requests; set once the keys of the CA are at hand."""
        self.token_data: TokenData | None = None
        """Makes the content of token secrets; likewise."""

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def get(self, actor: Actor, place: Place) -> JsonObject:
        """Return one object. Raises ApiError (403, 404), Unavailable."""
        self._admit(actor, place, "get")
        await self._state.confirm()
        found = self.stored(place)
        if found is None:
            raise missing(place)
        return found

    def stored(self, place: Place) -> JsonObject | None:
        """Return one object without asking the gate: for decisions about something else that was admitted."""
        projection = PROJECTIONS.get(place.topic)
        if projection is None:
            found = find(self._view, place)
        else:
            key = place.namespace, place.name
            found = next((one for one in projection.make(self._view) if _key(one) == key), None)
        return None if found is None else document(found)

    async def list(self, actor: Actor, place: Place, asked: Listing) -> Page:
        """Return a collection or a page of it. Raises ApiError (403, 410, 504), Unavailable."""
        self._admit(actor, place, "list")
        if asked.revision != 0:
            await self._state.confirm()
        now = self._view.revision
        at = now
        if asked.continues is not None:
            at = asked.continues.revision
        elif asked.revision:
            if asked.revision > now:
                raise status.too_large_resource_version(asked.revision, current=now)
            if asked.is_exact:
                at = asked.revision
        objects = self._as_of(place, at)
        start = _start_key(asked.continues, place)
        rest = [one for one in objects if start is None or _key(one) > start]
        items: list[JsonObject] = []
        looked_at = 0
        for one in rest:
            looked_at += 1
            value = document(one)
            if asked.selection.matches(value):
                items.append(value)
                if asked.limit and len(items) >= asked.limit:
                    break
        token = ""
        remaining: int | None = None
        if asked.limit and len(items) >= asked.limit and looked_at < len(rest):
            last = rest[looked_at - 1]
            key = (
                last.name
                if place.namespace or not last.namespace
                else f"{last.namespace}/{last.name}"
            )
            token = meta.Continue(revision=at, start=key).text()
            remaining = len(rest) - looked_at if asked.selection.is_empty else None
        return Page(items=items, revision=at, continue_token=token, remaining=remaining)

    def _as_of(self, place: Place, revision: int) -> Sequence[Object]:
        """Return the collection as it was at a revision. Raises ApiError 410 when that is forgotten."""
        resource = place.resource
        namespace = place.namespace or None
        projection = PROJECTIONS.get(place.topic)
        if projection is not None:
            return [
                one for one in projection.make(self._view) if namespace in (None, one.namespace)
            ]
        objects = self._view.objects(resource.group, resource.plural, namespace=namespace)
        if revision >= self._view.revision:
            return objects
        after = self._view.history.since(place.topic, revision)
        if after is None:
            raise status.expired(
                "The provided continue parameter is too old to display a consistent list result. "
                "You can start a new list without the continue parameter."
            )
        if not after:
            return objects
        then = {_key(one): one for one in objects}
        for change in reversed(after):
            one = change.new or change.old
            assert one is not None
            if namespace is not None and one.namespace != namespace:
                continue
            if change.old is None:
                then.pop(_key(one), None)
            else:
                then[_key(one)] = change.old
        return [then[key] for key in sorted(then)]

    async def watch(self, actor: Actor, place: Place, asked: Watching) -> AsyncGenerator[Event]:
        """Return the events of a collection, or of one object by its selector, for `timeout_s` seconds.

        The gate is asked before this returns. A watch that starts too early or falls too far behind ends with
        one ERROR. Raises ApiError 403.
        """
        self._admit(actor, place, "watch")
        if asked.revision != 0:
            await self._state.confirm()
        return self._events(place, asked)

    async def _events(self, place: Place, asked: Watching) -> AsyncGenerator[Event]:
        deadline = self._clock.now() + asked.timeout_s
        cursor = asked.revision or 0
        if not cursor or asked.initial_events:
            cursor = self._view.revision
            existing = self._as_of(place, cursor)
            for one in existing:
                value = document(one)
                if asked.selection.matches(value):
                    yield Event("ADDED", value)
            if asked.initial_events:
                yield self._bookmark(place, cursor, ends_initial=True)
        log = self._log(place, cursor)
        beat = self._clock.now() + BOOKMARK_S
        while True:
            found = log.since(cursor)
            if found is None:
                error = status.too_old_resource_version(cursor, oldest=log.oldest())
                yield Event("ERROR", error.status.body())
                return
            cursor = max(cursor, self._view.revision)
            if found:
                for event in _seen(found, place, asked.selection):
                    yield event
                continue
            now = self._clock.now()
            if now >= deadline:
                return
            if asked.bookmarks and now >= beat:
                beat = now + BOOKMARK_S
                yield self._bookmark(place, cursor)
                continue
            wait_s = min(deadline, beat) - now if asked.bookmarks else deadline - now
            await self._view.topics.wait(log.topics, at_most_s=wait_s)

    def _log(self, place: Place, cursor: int) -> _Log:
        projection = PROJECTIONS.get(place.topic)
        if projection is not None:
            return _ProjectedLog(self._view, projection, since=cursor)
        return _StoredLog(self._view, place.topic)

    def _bookmark(self, place: Place, revision: int, *, ends_initial: bool = False) -> Event:
        metadata: JsonObject = {"resourceVersion": str(revision), "creationTimestamp": None}
        if ends_initial:
            metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
        resource = place.resource
        return Event(
            "BOOKMARK",
            {
                "kind": resource.kind,
                "apiVersion": resource.group_version,
                "metadata": metadata,
            },
        )

    # -- writing -----------------------------------------------------------------------------------------------------------

    async def create(
        self, actor: Actor, place: Place, value: JsonObject, options: Options
    ) -> Written:
        """Store a new object; a name is made where only `generateName` is given.

        Raises ApiError (400, 403, 404 for its namespace, 409, 422, 500), Unavailable.
        """
        self._admit(actor, place, "create")
        meta.check_url(value, resource=place.resource, namespace=place.namespace, name="")
        if value["metadata"].get("resourceVersion"):
            raise status.unexpected("resourceVersion should not be set on objects to be created")
        prefix = value["metadata"].get("generateName", "")
        if value["metadata"].get("name") or not prefix:
            return await self._create(actor, place, value, options)
        for attempt in range(_MAX_NAME_TRIES):
            named = copied(value)
            named["metadata"]["name"] = meta.generated_name(prefix, rng=self._rng)
            try:
                return await self._create(actor, place, named, options)
            except ApiError as error:
                if error.status.reason != "AlreadyExists" or attempt == _MAX_NAME_TRIES - 1:
                    raise
        raise AssertionError

    async def _create(
        self, actor: Actor, place: Place, value: JsonObject, options: Options
    ) -> Written:
        value = self._with_token(place, value)
        writer = self._writer(actor, options)
        written = await self._write(
            place, lambda view: writer.create(view, place, copied(value), url_name="")
        )
        if place.resource.group == CERTIFICATES and not options.dry_run:
            await self._approve_own(actor, place, written.object)
        return written

    def _with_token(self, place: Place, value: JsonObject) -> JsonObject:
        """Return a token secret with its token, if it names a service account that is there; others as they are."""
        name = token_account(place.resource, value)
        account = self._view.object("", "serviceaccounts", place.namespace, name) if name else None
        if account is None or self.token_data is None:
            return value
        owner = TokenOwner(
            namespace=place.namespace,
            name=name,
            uid=document(account)["metadata"]["uid"],
            secret=value["metadata"].get("name", ""),
        )
        data = {
            key: base64.b64encode(content).decode()
            for key, content in self.token_data(owner).items()
        }
        metadata = value["metadata"]
        annotations = metadata["annotations"] | {ACCOUNT_UID: owner.uid}
        return value | {
            "metadata": metadata | {"annotations": annotations},
            "data": (value.get("data") or {}) | data,
        }

    async def update(
        self, actor: Actor, place: Place, value: JsonObject, options: Options
    ) -> Written:
        """Replace an object; kinds that allow it are created when missing (needs `create` as well).

        Raises ApiError (400, 403, 404, 409, 422), Unavailable.
        """
        self._admit(actor, place, "update")
        meta.check_url(value, resource=place.resource, namespace=place.namespace, name=place.name)
        writer = self._writer(actor, options)
        creates = place.resource.creates_on_update and not place.subresource

        def decide(view: View) -> Plan[Written]:
            found = find(view, place)
            if found is None:
                if not creates:
                    raise missing(place)
                self._admit(actor, place, "create")
                new = copied(value)
                new["metadata"].pop("resourceVersion", None)
                return writer.create(view, place, new, url_name=place.name)
            live = document(found)
            uid = value["metadata"].get("uid")
            if uid and uid != live["metadata"]["uid"]:
                detail = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {live['metadata']['uid']}"
                raise status.conflict(
                    place.resource.plural, place.name, group=place.resource.group, detail=detail
                )
            return writer.update(view, place, found, live, copied(value))

        return await self._written(place, decide, options)

    async def patch(
        self, actor: Actor, place: Place, body: bytes, *, media_type: str, options: Options
    ) -> Written:
        """Change an object by a patch; a server-side apply creates a missing one (needs `create` as well).

        Raises ApiError (400, 403, 404, 409, 415, 422), Unavailable.
        """
        self._admit(actor, place, "patch")
        writer = self._writer(actor, options)
        resource = place.resource
        if media_type == APPLY_PATCH:
            config = self._apply_config(place, body, options)
            return await self._apply(actor, place, config, options, writer)

        def decide(view: View) -> Plan[Written]:
            found = find(view, place)
            if found is None:
                raise missing(place)
            live = document(found)
            raw = patched(live, body, media_type=media_type, resource=resource)
            outcome = conform(
                raw,
                resource=resource,
                subresource=place.subresource,
                field_validation=options.field_validation,
            )
            meta.check_url(
                outcome.object, resource=resource, namespace=place.namespace, name=place.name
            )
            plan = writer.update(view, place, found, live, outcome.object)
            return _warned(plan, outcome.warnings)

        return await self._written(place, decide, options)

    def _apply_config(self, place: Place, body: bytes, options: Options) -> Body:
        config = decode_body(
            body,
            media_type=YAML,
            resource=place.resource,
            subresource=place.subresource,
            field_validation=options.field_validation,
        )
        if config.object["metadata"].get("managedFields"):
            raise status.bad_request("metadata.managedFields must be nil")
        meta.check_url(
            config.object,
            resource=place.resource,
            namespace=place.namespace,
            name=place.name,
        )
        return config

    async def _apply(
        self, actor: Actor, place: Place, config: Body, options: Options, writer: Writer
    ) -> Written:
        def decide(view: View) -> Plan[Written]:
            found = find(view, place)
            live = None if found is None else document(found)
            asked_version = config.object["metadata"].get("resourceVersion")
            if live is not None and asked_version:
                check_version(place, asked_version, live)
            value = managed_fields.applied(
                live,
                config.object,
                resource=place.resource,
                manager=options.manager,
                now_s=writer.now_s,
                force=options.force,
                subresource=place.subresource,
            )
            if found is None or live is None:
                if place.subresource:
                    raise missing(place)
                self._admit(actor, place, "create")
                plan = writer.create(view, place, value, url_name=place.name, is_managed=True)
            else:
                plan = writer.update(view, place, found, live, value, is_managed=True)
            return _warned(plan, config.warnings)

        return await self._written(place, decide, options)

    async def delete(self, actor: Actor, place: Place, options: DeleteOptions) -> Removed:
        """Delete an object; one with finalizers stays, marked, and is returned, as is a namespace.

        Raises ApiError (403, 404, 409 for preconditions), Unavailable.
        """
        self._admit(actor, place, "delete")
        remover = Remover(self.catalog, now_s=self._clock.wall())
        passage = Passage(self._admission, actor, dry_run=options.dry_run)

        def decide(view: View) -> Plan[Removed]:
            found = find(view, place)
            if found is None:
                raise missing(place)
            live = document(found)
            check_preconditions(place, options, live)
            warnings = passage.removed(place.subject, live)
            draft = Draft()
            answer = remover.delete(view, draft, place.resource, found, live)
            removed = Removed(answer=answer, warnings=warnings)
            if options.dry_run:
                return Plan(removed)
            self._aggregate_after(view, draft, place.resource, gone=[place.name])
            return draft.plan(removed)

        removed = await self._commit(decide)
        answer = removed.answer
        if isinstance(answer, status.Status):
            if place.resource.plural == "serviceaccounts" and place.name == "default":
                await self.ensure_accounts()
            return removed
        if options.dry_run:
            return removed
        marked = self.stored(place) or answer
        if place.resource.plural == "namespaces":
            await self._empty_namespace(place.name)
        return msgspec.structs.replace(removed, answer=marked)

    async def _empty_namespace(self, name: str) -> None:
        remover = Remover(self.catalog, now_s=self._clock.wall())

        def decide(view: View) -> Plan[None]:
            draft = Draft()
            remover.empty_namespace(view, draft, name)
            return draft.plan(None)

        await self._commit(decide)

    async def delete_collection(
        self, actor: Actor, place: Place, selection: Selection, options: DeleteOptions
    ) -> Page:
        """Delete what is selected of a collection, at once; return what was there. Raises ApiError (403), Unavailable."""
        self._admit(actor, place, "deletecollection")
        remover = Remover(self.catalog, now_s=self._clock.wall())
        passage = Passage(self._admission, actor, dry_run=options.dry_run)
        resource = place.resource

        def decide(view: View) -> Plan[Page]:
            draft = Draft()
            items = []
            warnings: dict[str, None] = {}
            unknown: list[Pending] = []
            for one in view.objects(
                resource.group, resource.plural, namespace=place.namespace or None
            ):
                live = document(one)
                if not selection.matches(live):
                    continue
                items.append(live)
                where = Place(resource, one.namespace, one.name)
                try:
                    warnings |= dict.fromkeys(passage.removed(where.subject, live))
                except Pending as pending:
                    # All are asked about before the next look: one look for each would be a square of them.
                    unknown.append(pending)
                    continue
                remover.delete(view, draft, resource, one, live)
            if unknown:
                raise Pending.all(unknown)
            page = Page(items=items, revision=view.revision, warnings=tuple(warnings))
            if options.dry_run or not items:
                return Plan(page)
            names = [live["metadata"]["name"] for live in items]
            self._aggregate_after(view, draft, resource, gone=names)
            return draft.plan(page)

        page = await self._commit(decide)
        if resource.plural == "serviceaccounts":
            await self.ensure_accounts()
        return page

    # -- what is always there ------------------------------------------------------------------------------------------------

    async def ensure_namespaces(self) -> None:
        """Create the namespaces every cluster has, and the default ServiceAccount of every namespace.

        A namespace whose deletion was interrupted is emptied.
        """
        for one in self._view.objects("", "namespaces"):
            await self._empty_namespace(one.name)
        resource = self._builtin("", "namespaces")
        for name in NAMESPACES:
            if self._view.object("", "namespaces", "", name) is None:
                value: JsonObject = {
                    "kind": "Namespace",
                    "apiVersion": "v1",
                    "metadata": {"name": name},
                }
                await self._ensure(Place(resource), value)
        await self.ensure_accounts()

    async def reconcile(self, expected: Sequence[Role | Binding]) -> None:
        """Bring stored roles and bindings up to what every cluster has; what the operator added stays.

        Raises Malformed when a stored object cannot be read, Unavailable.
        """
        uids = [self._new_uid() for _ in expected]
        now_s = self._clock.wall()
        changes = await self._commit(
            lambda view: plan_policy(
                view, expected, catalog=self.catalog, uids=uids, manager=_MANAGER, now_s=now_s
            )
        )
        for change in changes:
            what = f"{change.kind} {change.namespace}/{change.name}".replace(" /", " ")
            if change.action == "protected":
                log.info("%s is protected by its annotation, left as it is", what)
            elif change.action != "create":
                log.warning("%s lacked defaults, restored (%s)", what, change.action)

        def decide(view: View) -> Plan[None]:
            draft = Draft()
            aggregate_roles(view, draft)
            return draft.plan(None)

        await self._commit(decide)

    async def ensure_accounts(self) -> None:
        """Create the ServiceAccount `default` wherever it is missing."""
        resource = self._builtin("", "serviceaccounts")
        for one in self._view.objects("", "namespaces"):
            if self._view.object("", "serviceaccounts", one.name, "default") is None:
                value: JsonObject = {
                    "kind": "ServiceAccount",
                    "apiVersion": "v1",
                    "metadata": {"name": "default", "namespace": one.name},
                }
                try:
                    await self._ensure(Place(resource, one.name), value)
                except ApiError as error:
                    # The namespace is going or gone: then it needs no account.
                    if error.status.code not in (403, 404):
                        raise

    async def _ensure(self, place: Place, value: JsonObject) -> None:
        writer = self._writer(_SYSTEM, Options(manager=_MANAGER))
        try:
            await self._commit(lambda view: writer.create(view, place, copied(value), url_name=""))
        except ApiError as error:
            if error.status.reason != "AlreadyExists":
                raise

    def _builtin(self, group: str, plural: str) -> Resource:
        found = self.catalog.find(group=group, version="v1", plural=plural)
        assert found is not None
        return found

    # -- parts ---------------------------------------------------------------------------------------------------------------

    def _admit(self, actor: Actor, place: Place, verb: str) -> None:
        asked = place.asked(verb)
        decision = self._gate.decide(actor, asked)
        if not decision.allowed:
            detail = f"User {quoted(actor.user)} cannot {action(asked)}"
            if decision.reason:
                detail += f": {decision.reason}"
            if not decision.is_known:
                raise Undecided(detail, actor=actor, asked=asked)
            raise status.forbidden(
                place.resource.plural, asked.name, detail, group=place.resource.group
            )

    def passage(self, actor: Actor, *, dry_run: bool) -> Passage:
        """Return the admission of a request that is answered and not stored."""
        return Passage(self._admission, actor, dry_run=dry_run)

    def _writer(self, actor: Actor, options: Options) -> Writer:
        now_s = self._clock.wall()
        passage = Passage(
            # What every cluster has must come into being whatever webhooks say.
            None if actor is _SYSTEM else self._admission,
            actor,
            dry_run=options.dry_run,
            manager=options.manager,
            now_s=now_s,
        )
        return Writer(
            self,
            actor,
            options,
            uid=self._new_uid(),
            account_uid=self._new_uid(),
            now_s=now_s,
            passage=passage,
        )

    def _new_uid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    @property
    def held(self) -> Held | None:
        """Who answers the questions of privilege escalation."""
        return self._held

    def may(self, actor: Actor, asked: Attributes) -> bool:
        """Return whether the gate allows a further question about the same write."""
        decision = self._gate.decide(actor, asked)
        if not decision.is_known:
            raise Undecided(decision.reason, actor=actor, asked=asked)
        return decision.allowed

    async def _written(
        self, place: Place, decide: Callable[[View], Plan[Written]], options: Options
    ) -> Written:
        written = await self._write(place, decide)
        approves = place.resource.group == CERTIFICATES and place.subresource == "approval"
        if self.sign is not None and approves and not options.dry_run:
            await self.sign_approved(place)
        return written

    async def _commit(self, decide: Callable[[View], Plan[T]]) -> T:
        return await admitted(lambda: self._state.commit(decide))

    async def _write(self, place: Place, decide: Callable[[View], Plan[Written]]) -> Written:
        """Commit, and give what was written its resourceVersion."""
        written = await self._commit(decide)
        if not written.pending:
            return written
        name = written.object["metadata"]["name"]
        stored = find(self._view, msgspec.structs.replace(place, name=name))
        if (
            stored is None
            or document(stored)["metadata"]["uid"] != written.object["metadata"]["uid"]
        ):
            # Deleted again before this line: the object still deserves a version, if not its own.
            value = copied(written.object)
            value["metadata"]["resourceVersion"] = str(self._view.revision)
        else:
            value = document(stored)
        return msgspec.structs.replace(written, object=value, pending=False)

    async def _approve_own(self, actor: Actor, place: Place, request: JsonObject) -> None:
        """Approve the request of a node for its own client certificate, if the node may have that unasked."""
        try:
            asked = signing_request(request["spec"])
            right = approval_subresource(
                asked, read_request(asked.request_pem), requester=actor.user
            )
        except Malformed:
            return
        attributes = Place(place.resource, subresource=right).asked("create")
        if not right or not self.may(actor, attributes):
            return
        where = Place(place.resource, name=request["metadata"]["name"], subresource="approval")
        writer = self._writer(_SYSTEM, Options(manager=_MANAGER))

        def decide(view: View) -> Plan[Written]:
            found = find(view, where)
            if found is None:
                raise missing(where)
            live = document(found)
            value = copied(live)
            approved = {
                "type": "Approved",
                "status": "True",
                "reason": "AutoApproved",
                "message": "Auto approving kubelet client certificate after SubjectAccessReview.",
            }
            value["status"] = {"conditions": [approved]}
            return writer.update(view, where, found, live, value)

        await self._commit(decide)
        await self.sign_approved(where)

    async def sign_approved(self, place: Place) -> None:
        """Sign an approved request if its signer is ours; a request that must not be signed becomes Failed."""
        found = find(self._view, place)
        if self.sign is None or found is None:
            return
        now_text = meta.time_text(self._clock.wall())
        outcome = sign_outcome(self.sign, document(found), now_text=now_text)
        if outcome is None:
            return
        writer = self._writer(_SYSTEM, Options(manager=_MANAGER))
        where = msgspec.structs.replace(place, subresource="status")

        def decide(view: View) -> Plan[Written]:
            one = find(view, where)
            if one is None:
                raise missing(where)
            live = document(one)
            value = copied(live)
            state = value.get("status") or {}
            conditions = [*(state.get("conditions") or ()), *outcome.get("conditions", ())]
            value["status"] = state | outcome | {"conditions": conditions}
            return writer.update(view, where, one, live, value)

        await self._commit(decide)

    def _aggregate_after(
        self, view: View, draft: Draft, resource: Resource, *, gone: Sequence[str]
    ) -> None:
        if resource.group == RBAC and resource.plural == "clusterroles":
            aggregate_roles(view, draft, gone=gone)


def _warned(plan: Plan[Written], warnings: tuple[str, ...]) -> Plan[Written]:
    """Return a plan whose answer carries further warnings, in front of its own."""
    answer = plan.answer
    warnings += answer.warnings
    return Plan(msgspec.structs.replace(answer, warnings=warnings), plan.txn)


class _Log(Protocol):
    """Where a watch reads from."""

    @property
    def topics(self) -> tuple[Topic, ...]:
        """What wakes it up."""
        ...

    def since(self, revision: int) -> list[Change] | None:
        """Return the changes after a revision, None when they are not known any more."""
        ...

    def oldest(self) -> int:
        """Return the lowest revision to start from."""
        ...


class _StoredLog:
    def __init__(self, view: View, kind: str) -> None:
        self._history = view.history
        self._kind = kind
        self.topics: tuple[Topic, ...] = (("objects", kind),)

    def since(self, revision: int) -> list[Change] | None:
        return self._history.since(self._kind, revision)

    def oldest(self) -> int:
        return self._history.oldest(self._kind)


class _ProjectedLog:
    """Remembers what was there at the last look; what was before the first look is not known."""

    def __init__(self, view: View, projection: Projection, *, since: int) -> None:
        self._view = view
        self._projection = projection
        self.topics = projection.topics
        self._oldest = max(view.index(topic) for topic in projection.topics)
        self._is_known = since >= self._oldest
        self._at = view.revision
        self._seen = projection.make(view)

    def since(self, revision: int) -> list[Change] | None:
        if not self._is_known:
            return None
        if self._at == self._view.revision:
            return []
        now = self._projection.make(self._view)
        found = changes(self._seen, now, revision=self._view.revision)
        self._seen, self._at = now, self._view.revision
        return found

    def oldest(self) -> int:
        return self._oldest


def _key(one: Object) -> tuple[str, str]:
    return one.namespace, one.name


def _start_key(continues: meta.Continue | None, place: Place) -> tuple[str, str] | None:
    """Return the key after which a page starts."""
    if continues is None:
        return None
    if place.namespace or not place.resource.namespaced:
        return place.namespace, continues.start
    namespace, _, name = continues.start.partition("/")
    return namespace, name


def _seen(changes: Sequence[Change], place: Place, selection: Selection) -> Iterator[Event]:
    """Yield changes as somebody sees them who only sees what is selected."""
    for change in changes:
        one = change.new or change.old
        if one is None or (place.namespace and one.namespace != place.namespace):
            continue
        old = None if change.old is None else document(change.old)
        new = None if change.new is None else document(change.new)
        was = old is not None and selection.matches(old)
        if new is not None and selection.matches(new):
            yield Event("MODIFIED" if was else "ADDED", new)
        elif was and old is not None:
            # The last state that was seen, with the version of its end.
            old["metadata"]["resourceVersion"] = str(change.revision)
            yield Event("DELETED", old)
