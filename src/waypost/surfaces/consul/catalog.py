"""/v1/catalog. Source: Consul HTTP API, catalog."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from waypost.access.actor import Actor
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.domain.catalog import Deregister, Register
from waypost.model.catalog import Node, Service, fold
from waypost.state.view import Instance
from waypost.surfaces.consul.context import Context
from waypost.surfaces.consul.reading import Question
from waypost.surfaces.http.message import Answer, Request, Response
from waypost.wire.consul import decode, encode
from waypost.wire.consul import filter as filters
from waypost.wire.consul.filter import select
from waypost.wire.consul.validate import check_catalog_service

Found = tuple[Node, Mapping[str, Service]] | None


def has_meta(meta: Mapping[str, str] | None, wanted: Iterable[str]) -> bool:
    """Return whether metadata has every `key:value` of `wanted`."""
    pairs = (pair.partition(":") for pair in wanted)
    return all((meta or {}).get(key) == value for key, _, value in pairs)


def has_tags(service: Service, wanted: Sequence[str]) -> bool:
    """Return whether an instance has every tag of `wanted`, in any case; an empty tag is had by none."""
    if not wanted:
        return True
    tags = {tag.lower() for tag in service.tags}
    return all(tag and tag.lower() in tags for tag in wanted)


def narrow(request: Request, instances: Iterable[Instance]) -> Sequence[Instance]:
    """Return the instances that match `?tag` and `?node-meta`."""
    query = request.query
    if not query:
        return tuple(instances)
    tags, meta = query.all("tag"), query.all("node-meta")
    return [
        instance
        for instance in instances
        if has_tags(instance.service, tags) and has_meta(instance.node.meta, meta)
    ]


def takes_connect(service: Service, *, name: str) -> bool:
    """Return whether connections of the mesh to service `name` may go to this instance."""
    if service.kind == "connect-proxy":
        return fold(str((service.proxy or {}).get("DestinationServiceName", ""))) == fold(name)
    return fold(service.name) == fold(name) and bool((service.connect or {}).get("Native"))


def connect_instances(
    instances_of: Callable[[str], Sequence[Instance]], names: Iterable[str], *, name: str
) -> list[Instance]:
    """Return the instances of all services through which the mesh reaches `name`."""
    return [
        instance
        for service in names
        for instance in instances_of(service)
        if takes_connect(instance.service, name=name)
    ]


class CatalogRoutes:
    """Handlers of /v1/catalog."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._catalog = context.domain.catalog
        self._answer = context.reader.answer

    async def register(self, request: Request) -> Response:
        """PUT register."""
        context = self._context
        body = context.decode(request, decode.catalog_registration)
        context.require_datacenter(request, named=body.datacenter)
        if body.service is not None and body.node:
            check_catalog_service(body.service, node=body.node)
        command = Register(
            node=body.node,
            address=body.address,
            id=body.id,
            tagged_addresses=body.tagged_addresses,
            meta=body.meta,
            skip_node_update=body.skip_node_update,
            service=body.service,
            checks=body.checks,
        )
        await self._catalog.register(context.actor(request), command)
        return context.json(request, value=True)

    async def deregister(self, request: Request) -> Response:
        """PUT deregister."""
        context = self._context
        body = context.decode(request, decode.catalog_deregistration)
        context.require_datacenter(request, named=body.datacenter)
        command = Deregister(node=body.node, service_id=body.service_id, check_id=body.check_id)
        await self._catalog.deregister(context.actor(request), command)
        return context.json(request, value=True)

    def datacenters(self, request: Request) -> Response:
        """GET datacenters."""
        self._context.admit(request, Attributes("list", "nodes"))
        return self._context.json(request, self._context.reader.datacenters())

    def nodes(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET nodes."""
        query = request.query
        wanted, expression = query.all("node-meta"), query.get("filter")

        def read(actor: Actor) -> list[Node]:
            found = [n for n in self._catalog.nodes(actor) if has_meta(n.meta, wanted)]
            return select(found, expression, filters.NODE)

        question = Question(
            topics=(("nodes",),),
            read=read,
            encode=lambda found: [encode.node_object(node) for node in found],
            asked=Attributes("list", "nodes"),
        )
        return self._answer(request, self._context.actor(request), question)

    def services(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET services."""
        wanted = request.query.all("node-meta")

        def read(actor: Actor) -> dict[str, list[str]]:
            if not wanted:
                return self._catalog.services(actor)
            found: dict[str, set[str]] = {}
            for node in self._catalog.nodes(actor):
                if has_meta(node.meta, wanted):
                    for service in self._catalog.node_services(actor, node.node).values():
                        found.setdefault(service.name, set()).update(service.tags)
            return {name: sorted(tags) for name, tags in found.items()}

        question = Question(
            topics=(("services",), ("nodes",)) if wanted else (("services",),),
            read=read,
            encode=lambda found: found,
            asked=Attributes("list", "services"),
            caches=True,
        )
        return self._answer(request, self._context.actor(request), question)

    def service(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET service/:name."""
        name = _named(request, "Missing service name")
        expression = request.query.get("filter")
        question = Question(
            topics=(("catalog", fold(name)),),
            read=lambda actor: select(
                narrow(request, self._catalog.instances(actor, name)),
                expression,
                filters.SERVICE_NODE,
            ),
            encode=lambda found: [encode.service_node_object(i.node, i.service) for i in found],
            asked=Attributes("get", "services", name),
            caches=True,
        )
        return self._answer(request, self._context.actor(request), question)

    def connect(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET connect/:name."""
        name = _named(request, "Missing service name")
        expression = request.query.get("filter")

        def read(actor: Actor) -> list[Instance]:
            found = connect_instances(
                lambda service: self._catalog.instances(actor, service),
                self._catalog.services(actor),
                name=name,
            )
            return select(narrow(request, found), expression, filters.SERVICE_NODE)

        question = Question(
            topics=(("services",), ("nodes",)),
            read=read,
            encode=lambda found: [encode.service_node_object(i.node, i.service) for i in found],
            asked=Attributes("list", "services"),
            caches=True,
        )
        return self._answer(request, self._context.actor(request), question)

    def node(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET node/:node."""

        def shape(found: Found) -> object:
            if found is None:
                return None
            node, services = found
            return {
                "Node": encode.node_object(node),
                "Services": {i: encode.node_service_object(s) for i, s in services.items()},
            }

        return self._node(request, shape)

    def node_services(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET node-services/:node."""

        def shape(found: Found) -> object:
            if found is None:
                return {"Node": None, "Services": None}
            node, services = found
            shown = [encode.node_service_object(service) for _, service in sorted(services.items())]
            return {"Node": encode.node_object(node), "Services": shown}

        return self._node(request, shape)

    def _node(
        self, request: Request, shape: Callable[[Found], object]
    ) -> Answer | Awaitable[Answer]:
        wanted = _named(request, "Missing node name")
        expression = request.query.get("filter")
        actor = self._context.actor(request)

        def read(actor: Actor) -> Found:
            node = self._catalog.node(actor, wanted)
            if node is None:
                return None
            services = self._catalog.node_services(actor, node.node).values()
            return node, {s.id: s for s in select(services, expression, filters.SERVICE)}

        known = self._catalog.node(actor, wanted)
        topic = ("node", fold(known.node if known is not None else wanted))
        question: Question[Found] = Question(
            topics=(topic,),
            read=read,
            encode=shape,
            asked=Attributes("get", "nodes", wanted) if known is not None else None,
            also=(Attributes("list", "services"),),
        )
        return self._answer(request, actor, question)

    def gateway_services(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET gateway-services/:gateway: no gateway has services here yet."""
        _named(request, "Missing gateway name")

        def read(actor: Actor) -> None:
            self._catalog.services(actor)

        question = Question(topics=(("services",),), read=read, encode=lambda _: None)
        return self._answer(request, self._context.actor(request), question)


def _named(request: Request, missing: str) -> str:
    if not request.rest:
        raise Malformed(missing)
    return request.rest
