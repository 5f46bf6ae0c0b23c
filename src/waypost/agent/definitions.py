"""Service and check definitions of configuration files: parsed as the API's bodies are, kept with the owner `config`.

The files' snake_case keys are the API's names with underscores, and the API's decoder does not mind the case, so one
table of fields serves both. A definition that is gone from the files is gone from the catalog at the next reload.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from waypost.access.actor import Actor
from waypost.base.errors import Malformed, WaypostError
from waypost.domain.agent import LocalAgent, RegisterService
from waypost.model.catalog import Check
from waypost.state.view import View
from waypost.wire.consul.decode import check_registration, service_registration

log = logging.getLogger(__name__)

OWNER: Final = "config"
_FREE_KEYS: Final = frozenset({"meta", "header", "proxy", "connect"})
"""Members whose own keys are the user's."""


class Definitions(msgspec.Struct, frozen=True):
    """What the files define for this node."""

    services: tuple[RegisterService, ...] = ()
    checks: tuple[Check, ...] = ()


def _as_body(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_body(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key.replace("_", ""): item if key in _FREE_KEYS else _as_body(item)
        for key, item in value.items()
    }


def _service_body(definition: Mapping[str, Any]) -> dict[str, Any]:
    body = dict(definition)
    tagged = body.pop("tagged_addresses", None)
    checks = body.get("checks", [])
    single = body.pop("check", None)
    # HCL makes a list of a block that stands several times.
    several = single if isinstance(single, list) else [single] if single else []
    body["checks"] = [*(checks if isinstance(checks, list) else [checks]), *several]
    converted: dict[str, Any] = _as_body(body)
    if tagged:
        converted["TaggedAddresses"] = tagged
    for check in converted["checks"]:
        if isinstance(check, dict) and "id" in check:
            check["CheckID"] = check.pop("id")
    return converted


def parse(
    services: Iterable[Mapping[str, Any]], checks: Iterable[Mapping[str, Any]]
) -> Definitions:
    """Return the definitions. Raises Malformed that names the service or check and what is wrong with it."""
    parsed_services = []
    for definition in services:
        name = definition.get("name", "")
        if not name:
            msg = f"service {definition.get('id', '')!r}: Service name missing"
            raise Malformed(msg)
        try:
            found = service_registration(msgspec.json.encode(_service_body(definition)))
        except Malformed as error:
            msg = f"service {name!r}: {_reason(error)}"
            raise Malformed(msg) from error
        service = msgspec.structs.replace(found.service, owner=OWNER)
        parsed_services.append(RegisterService(service=service, checks=found.checks))
    parsed_checks = []
    for definition in checks:
        name = definition.get("name") or definition.get("id", "")
        if not name:
            msg = "check: Missing check name"
            raise Malformed(msg)
        body = {"name": name, **definition}
        try:
            check = check_registration(msgspec.json.encode(_as_body(body))).check
        except Malformed as error:
            msg = f"check {name!r}: {_reason(error)}"
            raise Malformed(msg) from error
        parsed_checks.append(msgspec.structs.replace(check, owner=OWNER))
    return Definitions(tuple(parsed_services), tuple(parsed_checks))


def _reason(error: Malformed) -> str:
    return str(error).removeprefix("Request decode failed: ").removeprefix("json: ")


async def apply(agent: LocalAgent, view: View, *, actor: Actor, definitions: Definitions) -> None:
    """Register what is defined and remove what once was; one that is refused does not keep the others out."""
    for command in definitions.services:
        try:
            await agent.register_service(
                actor, msgspec.structs.replace(command, replace_existing_checks=True)
            )
        except WaypostError as error:
            log.error("service %r of the configuration: %s", command.service.name, error)
    for check in definitions.checks:
        try:
            await agent.register_check(actor, check)
        except WaypostError as error:
            log.error("check %r of the configuration: %s", check.name, error)
    wanted = {command.service.id or command.service.name for command in definitions.services}
    for service in list(view.node_services(agent.local.node).values()):
        if service.owner == OWNER and service.id not in wanted:
            await agent.deregister_service(actor, service.id)
    wanted = {check.check_id or check.name for check in definitions.checks}
    for check in list(view.node_checks(agent.local.node).values()):
        if check.owner == OWNER and not check.service_id and check.check_id not in wanted:
            await agent.deregister_check(actor, check.check_id)
