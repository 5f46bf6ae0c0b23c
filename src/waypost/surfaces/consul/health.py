"""/v1/health. Source: Consul HTTP API, health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from waypost.access.actor import Actor
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.model.catalog import PASSING, Check, fold
from waypost.state.topics import Topic
from waypost.state.view import Instance
from waypost.surfaces.consul.catalog import connect_instances, has_meta, narrow
from waypost.surfaces.consul.context import Context
from waypost.surfaces.consul.reading import Question
from waypost.surfaces.http.message import Answer, Request
from waypost.wire.consul import encode
from waypost.wire.consul import filter as filters
from waypost.wire.consul.encode import CheckObject, InstanceObject
from waypost.wire.consul.filter import parse_bool, select


def _shape(found: Sequence[Instance]) -> list[InstanceObject]:
    return [encode.instance_object(i.node, i.service, i.checks) for i in found]


def _check_list(found: Sequence[Check]) -> list[CheckObject]:
    return [encode.check_object(check) for check in found]


def _wants_passing(request: Request) -> bool:
    if "passing" not in request.query:
        return False
    text = request.query.get("passing")
    try:
        return parse_bool(text) if text else True
    except Malformed:
        msg = "Invalid value for ?passing"
        raise Malformed(msg) from None


class HealthRoutes:
    """Handlers of /v1/health."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._catalog = context.domain.catalog

    def _answer(self, request: Request, question: Question[Any]) -> Answer | Awaitable[Answer]:
        return self._context.reader.answer(request, self._context.actor(request), question)

    def service(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET service/:name."""
        name = request.rest
        return self._instances(
            request,
            topics=(("health", fold(name)),),
            asked=Attributes("get", "services", name),
            find=lambda actor: self._catalog.instances(actor, name),
        )

    def connect(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET connect/:name."""
        name = request.rest
        return self._instances(
            request,
            topics=(("services",), ("nodes",), ("checks", "any")),
            asked=Attributes("list", "services"),
            find=lambda actor: connect_instances(
                lambda service: self._catalog.instances(actor, service),
                self._catalog.services(actor),
                name=name,
            ),
        )

    def ingress(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET ingress/:name: no ingress gateway serves anything here yet."""

        def find(actor: Actor) -> Sequence[Instance]:
            self._catalog.services(actor)
            return ()

        return self._instances(
            request, topics=(("services",),), asked=Attributes("list", "services"), find=find
        )

    def _instances(
        self,
        request: Request,
        *,
        topics: tuple[Topic, ...],
        asked: Attributes,
        find: Callable[[Actor], Sequence[Instance]],
    ) -> Answer | Awaitable[Answer]:
        if not request.rest:
            msg = "Missing service name"
            raise Malformed(msg)
        passing = _wants_passing(request)
        expression = request.query.get("filter")

        def read(actor: Actor) -> list[Instance]:
            found = select(narrow(request, find(actor)), expression, filters.INSTANCE)
            if not passing:
                return found
            return [i for i in found if all(check.status == PASSING for check in i.checks)]

        question = Question(topics=topics, read=read, encode=_shape, asked=asked, caches=True)
        return self._context.reader.answer(request, self._context.actor(request), question)

    def node(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET node/:node."""
        node = request.rest
        if not node:
            msg = "Missing node name"
            raise Malformed(msg)
        expression = request.query.get("filter")
        question = Question(
            topics=(("node", fold(node)),),
            read=lambda actor: select(
                self._catalog.node_checks(actor, node), expression, filters.CHECK
            ),
            encode=_check_list,
            asked=Attributes("list", "checks"),
        )
        return self._answer(request, question)

    def checks(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET checks/:service."""
        name = request.rest
        if not name:
            msg = "Missing service name"
            raise Malformed(msg)
        return self._checks(
            request,
            topic=("health", fold(name)),
            find=lambda actor: sorted(
                self._catalog.service_checks(actor, name),
                key=lambda check: (check.node.lower(), check.check_id.lower()),
            ),
        )

    def state(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET state/:state."""
        status = request.rest
        if not status:
            msg = "Missing check state"
            raise Malformed(msg)
        return self._checks(
            request,
            topic=("checks", status),
            find=lambda actor: self._catalog.checks_in(actor, status),
        )

    def _checks(
        self, request: Request, *, topic: Topic, find: Callable[[Actor], Sequence[Check]]
    ) -> Answer | Awaitable[Answer]:
        wanted, expression = request.query.all("node-meta"), request.query.get("filter")
        view = self._context.domain.state.view

        def read(actor: Actor) -> list[Check]:
            found = find(actor)
            if wanted:
                found = [
                    check
                    for check in found
                    if (node := view.node(check.node)) is not None and has_meta(node.meta, wanted)
                ]
            return select(found, expression, filters.CHECK)

        question = Question(
            topics=(topic, ("nodes",)) if wanted else (topic,),
            read=read,
            encode=_check_list,
            asked=Attributes("list", "checks"),
        )
        return self._answer(request, question)
