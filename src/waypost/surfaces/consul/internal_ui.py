"""/v1/internal/ui, which Consul's own interface reads. Source: recorded answers of Consul 1.8.7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from typing import Any

import msgspec

from waypost.access.actor import Actor
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.model.catalog import CRITICAL, PASSING, WARNING, Node
from waypost.state.view import Instance
from waypost.surfaces.consul.context import Context
from waypost.surfaces.consul.reading import Body, Question
from waypost.surfaces.http.message import Answer, Request, Response
from waypost.wire.consul import encode
from waypost.wire.consul import filter as filters
from waypost.wire.consul.filter import NodeSummary, select

_EXTERNAL_SOURCE = "external-source"


class NodeSummaryObject(msgspec.Struct, frozen=True):
    """A node with what runs on it."""

    ID: str
    Node: str
    Address: str
    TaggedAddresses: dict[str, str] | None
    Meta: dict[str, str] | None
    Services: list[encode.NodeServiceObject]
    Checks: list[encode.CheckObject]


class ServiceSummaryObject(msgspec.Struct, frozen=True):
    """A service with the numbers of its checks."""

    Name: str
    Tags: list[str] | None
    Nodes: list[str]
    InstanceCount: int
    ChecksPassing: int
    ChecksWarning: int
    ChecksCritical: int
    ExternalSources: list[str] | None
    GatewayConfig: dict[str, Any]


def _node(summary: NodeSummary) -> NodeSummaryObject:
    node = summary.node
    return NodeSummaryObject(
        node.id,
        node.node,
        node.address,
        node.tagged_addresses,
        node.meta,
        [encode.node_service_object(service, null_tags=True) for service in summary.services],
        [encode.check_object(check, null_tags=True) for check in summary.checks],
    )


def summarize(name: str, instances: tuple[Instance, ...]) -> ServiceSummaryObject:
    """Return the numbers of one service."""
    tags = {tag for instance in instances for tag in instance.service.tags}
    sources = {
        source
        for instance in instances
        if (source := (instance.service.meta or {}).get(_EXTERNAL_SOURCE))
    }
    states = Counter(check.status for instance in instances for check in instance.checks)
    return ServiceSummaryObject(
        Name=name,
        Tags=sorted(tags) or None,
        Nodes=[instance.node.node for instance in instances],
        InstanceCount=len(instances),
        ChecksPassing=states[PASSING],
        ChecksWarning=states[WARNING],
        ChecksCritical=states[CRITICAL],
        ExternalSources=sorted(sources) or None,
        GatewayConfig={},
    )


class InternalUIRoutes:
    """Handlers of /v1/internal/ui."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._catalog = context.domain.catalog

    def _summary(self, actor: Actor, node: Node) -> NodeSummary:
        services = self._catalog.node_services(actor, node.node)
        return NodeSummary(
            node,
            tuple(service for _, service in sorted(services.items())),
            tuple(self._catalog.node_checks(actor, node.node)),
        )

    def nodes(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET nodes."""
        expression = request.query.get("filter")

        def read(actor: Actor) -> list[NodeSummary]:
            found = [self._summary(actor, node) for node in self._catalog.nodes(actor)]
            return select(found, expression, filters.UI_NODE)

        question = Question(
            topics=(("nodes",), ("services",), ("checks", "any")),
            read=read,
            encode=lambda found: [_node(summary) for summary in found],
            asked=Attributes("list", "nodes"),
            also=(Attributes("list", "services"), Attributes("list", "checks")),
            shows_consistency=False,
        )
        return self._context.reader.answer(request, self._context.actor(request), question)

    def node(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET node/:node."""
        name = request.rest
        if not name:
            msg = "Missing node name"
            raise Malformed(msg)
        actor = self._context.actor(request)
        known = self._catalog.node(actor, name)
        if known is None:
            return Response(status=404)
        topic = ("node", known.node.lower())

        def read(actor: Actor) -> NodeSummary | None:
            node = self._catalog.node(actor, name)
            return None if node is None else self._summary(actor, node)

        question: Question[NodeSummary | None] = Question(
            topics=(topic,),
            read=read,
            encode=lambda found: Body(status=404) if found is None else _node(found),
            shows_consistency=False,
        )
        return self._context.reader.answer(request, actor, question)

    def services(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET services."""

        def read(actor: Actor) -> list[ServiceSummaryObject]:
            names = sorted(self._catalog.services(actor))
            return [summarize(name, tuple(self._catalog.instances(actor, name))) for name in names]

        question = Question(
            topics=(("nodes",), ("services",), ("checks", "any")),
            read=read,
            encode=lambda found: found,
            asked=Attributes("list", "services"),
            shows_consistency=False,
        )
        return self._context.reader.answer(request, self._context.actor(request), question)
