"""/v1/agent/service, /v1/agent/check, /v1/agent/maintenance, /v1/agent/health. Source: Consul HTTP API, agent."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

import msgspec

from waypost.access.actor import Actor
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed, NotFound, Rejected
from waypost.domain.agent import RegisterService
from waypost.domain.catalog import LIST_CHECKS, LIST_SERVICES
from waypost.model.catalog import (
    CRITICAL,
    MAINTENANCE,
    PASSING,
    WARNING,
    Check,
    Service,
    fold,
)
from waypost.state.view import aggregated_status
from waypost.surfaces.consul.context import DONE, Context
from waypost.surfaces.consul.reading import Options
from waypost.surfaces.http.message import Answer, Request, Response, text_response
from waypost.wire.consul import decode, encode
from waypost.wire.consul import filter as filters
from waypost.wire.consul.filter import parse_bool, select
from waypost.wire.consul.gojson import quote
from waypost.wire.consul.validate import (
    NO_SCRIPTS,
    STATUSES,
    check_addresses,
    check_agent_check,
    check_agent_service,
    runs_commands,
)

_STATUS_CODE: Final = {PASSING: 200, WARNING: 429, CRITICAL: 503, MAINTENANCE: 503}
_SEVERITY: Final = (PASSING, WARNING, CRITICAL, MAINTENANCE)
_MIN_INTERVAL_NS: Final = 10**9
_MIN_DEREGISTER_NS: Final = 60 * 10**9


def cut_output(output: str, *, max_bytes: int) -> str:
    """Return what is kept of a reported output, in Consul's form when it is too long."""
    raw = output.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return output
    kept = raw[:max_bytes].decode("utf-8", "ignore")
    return f"{kept} ... (captured {max_bytes} of {len(raw)} bytes)"


def within_limits(check: Check) -> Check:
    """Return the check with intervals raised to what Consul allows at least."""
    definition = check.definition
    if definition is None:
        return check
    interval = definition.interval_ns
    after = definition.deregister_critical_service_after_ns
    return msgspec.structs.replace(
        check,
        definition=msgspec.structs.replace(
            definition,
            interval_ns=max(interval, _MIN_INTERVAL_NS) if interval > 0 else 0,
            deregister_critical_service_after_ns=max(after, _MIN_DEREGISTER_NS) if after > 0 else 0,
        ),
    )


def enabled(request: Request) -> bool:
    """Return the `enable` parameter. Raises Malformed in Consul's words."""
    if "enable" not in request.query:
        msg = "Missing value for enable"
        raise Malformed(msg)
    text = request.query.get("enable")
    try:
        return parse_bool(text)
    except Malformed:
        msg = f"Invalid value for enable: {quote(text)}"
        raise Malformed(msg) from None


class HealthObject(msgspec.Struct, frozen=True):
    """The health of one instance of this agent."""

    AggregatedStatus: str
    Service: encode.AgentServiceObject | None
    Checks: list[encode.CheckObject] | None


class AgentRoutes:
    """Handlers of what an agent keeps for its own node."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._agent = context.domain.agent

    # -- services ------------------------------------------------------------------------------------------------------

    async def register_service(self, request: Request) -> Response:
        """PUT service/register."""
        context = self._context
        body = context.decode(request, decode.service_registration)
        check_agent_service(body.service, body.checks)
        if body.sidecar:
            msg = "Connect sidecar services are not supported by this agent"
            raise Rejected(msg)
        self._require_scripts(body.checks)
        check_addresses(body.service)
        query = request.query
        replaces = "replace-existing-checks" in query
        if replaces and query.get("replace-existing-checks"):
            replaces = query.get("replace-existing-checks").lower() in ("true", "1")
        command = RegisterService(
            service=body.service,
            checks=tuple(within_limits(check) for check in body.checks),
            replace_existing_checks=replaces,
        )
        await self._agent.register_service(context.actor(request), command)
        return DONE

    def _require_scripts(self, checks: Sequence[Check]) -> None:
        if not self._context.settings.script_checks and any(map(runs_commands, checks)):
            raise Rejected(NO_SCRIPTS)

    async def deregister_service(self, request: Request) -> Response:
        """PUT service/deregister/:id."""
        if not request.rest:
            msg = "ServiceID missing"
            raise Rejected(msg)
        await self._agent.deregister_service(self._context.actor(request), request.rest)
        return DONE

    async def maintain_service(self, request: Request) -> Response:
        """PUT service/maintenance/:id."""
        if not request.rest:
            msg = "Missing service ID"
            raise Malformed(msg)
        enable = enabled(request)
        await self._agent.set_service_maintenance(
            self._context.actor(request),
            request.rest,
            enable=enable,
            reason=request.query.get("reason"),
        )
        return DONE

    def services(self, request: Request) -> Response:
        """GET services."""
        actor = self._context.actor(request)
        found = self._agent.services(actor)
        wanted = select(found.values(), request.query.get("filter"), filters.SERVICE)
        shown = {service.id: encode.agent_service_object(service) for service in wanted}
        marks = self._context.marks(actor, LIST_SERVICES)
        return self._context.json(request, shown, headers=marks)

    def service(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET service/:id, waiting for a change with ?hash."""
        actor = self._context.actor(request)
        shown = self._show_service(actor, request.rest)
        if request.query.get("hash") == shown.ContentHash:
            request.may_interrupt = True
            return self._wait_for_service(request, actor)
        return self._service_response(request, shown)

    def _show_service(self, actor: Actor, service_id: str) -> encode.AgentServiceObject:
        service = self._agent.service(actor, service_id)
        return encode.agent_service_object(service, with_hash=True)

    def _service_response(self, request: Request, shown: encode.AgentServiceObject) -> Response:
        headers = (("X-Consul-Contenthash", str(shown.ContentHash)),)
        return self._context.json(request, shown, headers=headers)

    async def _wait_for_service(self, request: Request, actor: Actor) -> Answer:
        try:
            wait_s = parse_s(request.query.get("wait") or "0")
        except Malformed:
            msg = "Invalid wait time"
            raise Malformed(msg) from None
        context = self._context
        now = context.reader.now
        deadline = now() + context.reader.wait_limit(Options(wait_s=wait_s))
        topic = ("node", fold(self._agent.local.node))
        while True:
            shown = self._show_service(actor, request.rest)
            left = deadline - now()
            if shown.ContentHash != request.query.get("hash") or left <= 0:
                return self._service_response(request, shown)
            await context.domain.state.view.topics.wait([topic], at_most_s=left)

    # -- checks --------------------------------------------------------------------------------------------------------

    async def register_check(self, request: Request) -> Response:
        """PUT check/register."""
        context = self._context
        body = context.decode(request, decode.check_registration)
        check_agent_check(body.check)
        self._require_scripts([body.check])
        await self._agent.register_check(context.actor(request), within_limits(body.check))
        return DONE

    async def deregister_check(self, request: Request) -> Response:
        """PUT check/deregister/:id."""
        if not request.rest:
            msg = "CheckID missing"
            raise Rejected(msg)
        await self._agent.deregister_check(self._context.actor(request), request.rest)
        return DONE

    async def pass_check(self, request: Request) -> Response:
        """PUT check/pass/:id."""
        return await self._report(request, PASSING, request.query.get("note"))

    async def warn_check(self, request: Request) -> Response:
        """PUT check/warn/:id."""
        return await self._report(request, WARNING, request.query.get("note"))

    async def fail_check(self, request: Request) -> Response:
        """PUT check/fail/:id."""
        return await self._report(request, CRITICAL, request.query.get("note"))

    async def update_check(self, request: Request) -> Response:
        """PUT check/update/:id."""
        body = self._context.decode(request, decode.check_result)
        if body.status not in STATUSES:
            msg = f"Invalid check status: '{body.status}'"
            raise Malformed(msg)
        return await self._report(request, body.status, body.output)

    async def _report(self, request: Request, status: str, output: str) -> Response:
        actor = self._context.actor(request)
        check = self._context.domain.state.view.check(self._agent.local.node, request.rest)
        if check is not None and check.definition is not None:
            output = cut_output(output, max_bytes=check.definition.output_max_size)
        try:
            await self._agent.heartbeat(actor, request.rest, status=status, output=output)
        except NotFound as error:
            raise Rejected(str(error)) from None
        return DONE

    def checks(self, request: Request) -> Response:
        """GET checks."""
        actor = self._context.actor(request)
        found = self._agent.checks(actor)
        wanted = select(found.values(), request.query.get("filter"), filters.CHECK)
        shown = {check.check_id: encode.agent_check_object(check) for check in wanted}
        return self._context.json(request, shown, headers=self._context.marks(actor, LIST_CHECKS))

    # -- maintenance and health ----------------------------------------------------------------------------------------

    async def maintain_node(self, request: Request) -> Response:
        """PUT maintenance."""
        enable = enabled(request)
        await self._agent.set_node_maintenance(
            self._context.actor(request), enable=enable, reason=request.query.get("reason")
        )
        return DONE

    def health_of_id(self, request: Request) -> Response:
        """GET health/service/id/:id."""
        service_id = request.rest
        if not service_id:
            msg = "Bad request: Missing serviceID"
            raise Rejected(msg)
        # Health that leaves out checks one may not see would be wrong, so here it is all or nothing.
        actor = self._context.admit(request, LIST_SERVICES)
        service = self._agent.services(actor).get(service_id)
        if service is None:
            text = f"ServiceId {service_id} not found"
            value: Any = text if _wants_text(request) else HealthObject(CRITICAL, None, None)
            return self._context.json(request, value, status=404, headers=_reason(text))
        self._context.admit(request, LIST_CHECKS)
        checks = self._agent.checks(actor)
        status = _status_of(service, checks)
        if _wants_text(request):
            return _text(status)
        return self._context.json(
            request,
            _health(service, checks),
            status=_STATUS_CODE[status],
            headers=_reason(status),
        )

    def health_of_name(self, request: Request) -> Response:
        """GET health/service/name/:name."""
        name = request.rest
        if not name:
            msg = "Bad request: Missing service Name"
            raise Rejected(msg)
        actor = self._context.admit(request, LIST_CHECKS)
        checks = self._agent.checks(actor)
        self._context.admit(request, LIST_SERVICES)
        found = [s for s in self._agent.services(actor).values() if s.name == name]
        if not found:
            text = f"ServiceName {name} Not Found"
            if _wants_text(request):
                return _plain(404, text, reason=text)
            return self._context.json(request, [], status=404, headers=_reason(text))
        status = max((_status_of(service, checks) for service in found), key=_SEVERITY.index)
        if _wants_text(request):
            return _text(status)
        return self._context.json(
            request,
            [_health(service, checks) for service in found],
            status=_STATUS_CODE[status],
            headers=_reason(status),
        )


def _concerning(service: Service, checks: Mapping[str, Check]) -> list[Check]:
    return [check for check in checks.values() if check.service_id in ("", service.id)]


def _status_of(service: Service, checks: Mapping[str, Check]) -> str:
    return aggregated_status(_concerning(service, checks))


def _health(service: Service, checks: Mapping[str, Check]) -> HealthObject:
    concerning = _concerning(service, checks)
    return HealthObject(
        aggregated_status(concerning),
        encode.agent_service_object(service),
        [encode.agent_health_check_object(check) for check in concerning],
    )


def _wants_text(request: Request) -> bool:
    accept = request.headers.get("accept") or ""
    return request.query.get("format") == "text" or accept.startswith("text/plain")


def _reason(text: str) -> tuple[tuple[str, str], ...]:
    return (("X-Consul-Reason", text if text.isprintable() else quote(text)),)


def _plain(status: int, text: str, *, reason: str) -> Response:
    answer = text_response(status, text, headers=_reason(reason))
    return msgspec.structs.replace(answer, content_type="text/plain")


def _text(status: str) -> Response:
    return _plain(_STATUS_CODE[status], status, reason=status)
