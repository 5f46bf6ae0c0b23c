"""Service and check definitions of configuration files: parsed as the API's bodies are, kept with the owner `config`.

A definition that is gone from the files is gone from the catalog at the next reload.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.agent.config import FileConfig
from waypost.base.errors import Malformed, WaypostError
from waypost.domain.agent import LocalAgent, RegisterService
from waypost.model.catalog import Check
from waypost.state.view import View
from waypost.wire.consul.decode import check_registration, service_registration
from waypost.wire.consul.validate import check_agent_check, check_agent_service, runs_commands
from waypost.wire.definitions import check_definitions
from waypost.wire.definitions import definitions as service_definitions

log = logging.getLogger(__name__)

OWNER: Final = "config"


class Definitions(msgspec.Struct, frozen=True):
    """What the files define for this node."""

    services: tuple[RegisterService, ...] = ()
    checks: tuple[Check, ...] = ()


def parse(config: FileConfig) -> Definitions:
    """Return the definitions. Raises Malformed that names the service or check and what is wrong with it."""
    services = []
    for body in service_definitions(
        {"services": [*config.services, *config.service]}, name="configuration"
    ):
        name = body.get("Name", "")
        if not name:
            msg = f"service {body.get('ID', '')!r}: Service name missing"
            raise Malformed(msg)
        try:
            found = service_registration(msgspec.json.encode(body))
            check_agent_service(found.service, found.checks)
            _refuse_scripts(found.checks, config)
        except Malformed as error:
            msg = f"service {name!r}: {_reason(error)}"
            raise Malformed(msg) from error
        service = msgspec.structs.replace(found.service, owner=OWNER)
        checks = tuple(msgspec.structs.replace(check, owner=OWNER) for check in found.checks)
        services.append(RegisterService(service=service, checks=checks))
    checks_of_node = []
    for body in check_definitions(
        {"checks": [*config.checks, *config.check]}, name="configuration"
    ):
        name = body.get("Name") or body.get("ID", "")
        if not name:
            msg = "check: Missing check name"
            raise Malformed(msg)
        try:
            check = check_registration(msgspec.json.encode({**body, "Name": name})).check
            check_agent_check(check)
            _refuse_scripts((check,), config)
        except Malformed as error:
            msg = f"check {name!r}: {_reason(error)}"
            raise Malformed(msg) from error
        checks_of_node.append(msgspec.structs.replace(check, owner=OWNER))
    return Definitions(tuple(services), tuple(checks_of_node))


def _refuse_scripts(checks: Iterable[Check], config: FileConfig) -> None:
    if config.enable_script_checks or config.enable_local_script_checks:
        return
    if any(runs_commands(check) for check in checks):
        msg = (
            "Scripts are disabled on this agent; to enable, configure "
            "'enable_script_checks' or 'enable_local_script_checks' to true"
        )
        raise Malformed(msg)


def _reason(error: Malformed) -> str:
    return str(error).removeprefix("Request decode failed: ").removeprefix("json: ")


async def apply(agent: LocalAgent, view: View, *, actor: Actor, definitions: Definitions) -> None:
    """Register what is defined and remove what once was; one that is refused does not keep the others out."""
    for command in definitions.services:
        try:
            await agent.register_service(
                actor, msgspec.structs.replace(command, replace_existing_checks=True), is_own=True
            )
        except WaypostError as error:
            log.error("service %r of the configuration: %s", command.service.name, error)
    for check in definitions.checks:
        try:
            await agent.register_check(actor, check, is_own=True)
        except WaypostError as error:
            log.error("check %r of the configuration: %s", check.name, error)
    wanted = {command.service.id or command.service.name for command in definitions.services}
    for service in list(view.node_services(agent.local.node).values()):
        if service.owner == OWNER and service.id not in wanted:
            await agent.deregister_service(actor, service.id, is_own=True)
    wanted = {check.check_id or check.name for check in definitions.checks}
    for check in list(view.node_checks(agent.local.node).values()):
        if check.owner == OWNER and not check.service_id and check.check_id not in wanted:
            await agent.deregister_check(actor, check.check_id, is_own=True)
