"""What Consul refuses of a well-formed registration, in its words.

Pure checks of one record; what needs the catalog is decided by the domain. Source: recorded answers of Consul 1.8.7.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final

from waypost.base.errors import Malformed, Rejected
from waypost.model.catalog import (
    CRITICAL,
    PASSING,
    WARNING,
    Check,
    CheckDefinition,
    Service,
    Weights,
)

STATUSES: Final = frozenset({PASSING, WARNING, CRITICAL})
ANY_ADDRESSES: Final = frozenset({"0.0.0.0", "::", "[::]"})
_META_KEY: Final = re.compile(r"[a-zA-Z0-9_-]*\Z")
_MAX_META: Final = 64
_MAX_META_KEY: Final = 128
_MAX_META_VALUE: Final = 512
_MAX_WEIGHT: Final = 65535
_RESERVED: Final = "consul-"
NO_SCRIPTS: Final = (
    "Scripts are disabled on this agent from remote calls; "
    "to enable, configure 'enable_script_checks' to true"
)


def _weights_problem(weights: Weights) -> str:
    if weights.passing < 1:
        return "Passing must be greater than 0"
    if weights.warning < 0:
        return "Warning must be greater or equal than 0"
    if weights.passing > _MAX_WEIGHT or weights.warning > _MAX_WEIGHT:
        return "DNS Weight must be between 0 and 65535"
    return ""


def _pair_problem(key: str, value: str, *, is_gateway: bool) -> str:
    if not key:
        return "Key cannot be blank"
    if not _META_KEY.match(key):
        return "Key contains invalid characters"
    if len(key) > _MAX_META_KEY:
        return f"Key is too long (limit: {_MAX_META_KEY} characters)"
    if key.startswith(_RESERVED) and not is_gateway:
        return f"Key prefix '{_RESERVED}' is reserved for internal use"
    if len(value) > _MAX_META_VALUE:
        return f"Value is too long (limit: {_MAX_META_VALUE} characters)"
    return ""


def meta_problem(meta: Mapping[str, str] | None, *, is_gateway: bool = False) -> str:
    """Return what is wrong with metadata, empty for nothing."""
    if not meta:
        return ""
    if len(meta) > _MAX_META:
        return f"Node metadata cannot contain more than {_MAX_META} key/value pairs"
    for key, value in meta.items():
        problem = _pair_problem(key, value, is_gateway=is_gateway)
        if problem:
            return f"Couldn't load metadata pair ('{key}', '{value}'): {problem}"
    return ""


def _errors(problems: list[str]) -> str:
    """Return a list of errors as Go's multierror prints it."""
    count = f"{len(problems)} error{'s' if len(problems) > 1 else ''} occurred:"
    return count + "".join(f"\n\t* {problem}" for problem in problems) + "\n\n"


def _kind_problem(service: Service) -> str:
    if service.kind != "connect-proxy":
        return ""
    problems = []
    if not str((service.proxy or {}).get("DestinationServiceName", "")).strip():
        problems.append("Proxy.DestinationServiceName must be non-empty for Connect proxy services")
    if service.port == 0:
        problems.append("Port must be set for a Connect proxy")
    if (service.connect or {}).get("Native"):
        problems.append("A Proxy cannot also be Connect Native, only typical services")
    return _errors(problems) if problems else ""


def check_agent_service(service: Service, checks: Iterable[Check]) -> None:
    """Refuse what agent/service/register refuses. Raises Malformed."""
    if not service.name:
        msg = "Missing service name"
        raise Malformed(msg)
    if service.address in ANY_ADDRESSES:
        msg = "Invalid service address"
        raise Malformed(msg)
    problem = _weights_problem(service.weights)
    if problem:
        msg = f"Invalid Weights: {problem}"
        raise Malformed(msg)
    is_gateway = service.kind.endswith("-gateway")
    problem = meta_problem(service.meta, is_gateway=is_gateway)
    if problem:
        msg = f"Invalid Service Meta: {problem}"
        raise Malformed(msg)
    problem = _kind_problem(service)
    if problem:
        raise Malformed(problem)
    for check in checks:
        problem = definition_problem(check.definition)
        if problem:
            msg = f"Invalid check: {problem}"
            raise Malformed(msg)
        if check.status and check.status not in STATUSES:
            msg = "Status for checks must 'passing', 'warning', 'critical'"
            raise Malformed(msg)


def check_addresses(service: Service) -> None:
    """Refuse tagged addresses whose name promises another kind of address. Raises Rejected."""
    for name, tagged in (service.tagged_addresses or {}).items():
        if name not in ("lan_ipv4", "wan_ipv4", "lan_ipv6", "wan_ipv6"):
            continue
        version = int(name[-1])
        try:
            fits = ipaddress.ip_address(tagged.address).version == version
        except ValueError:
            fits = False
        if not fits:
            msg = f'Service tagged address "{name}" must be a valid ipv{version} address'
            raise Rejected(msg)


def check_agent_check(check: Check) -> None:
    """Refuse what agent/check/register refuses. Raises Malformed."""
    if not check.name:
        msg = "Missing check name"
        raise Malformed(msg)
    if check.status and check.status not in STATUSES:
        msg = "Bad check status"
        raise Malformed(msg)
    problem = definition_problem(check.definition)
    if problem:
        msg = f"Invalid check: {problem}"
        raise Malformed(msg)


def definition_problem(definition: CheckDefinition | None) -> str:
    """Return what is wrong with how a check is to be run, empty for nothing."""
    if definition is None:
        return ""
    polls = bool(definition.args or definition.http or definition.tcp or definition.grpc)
    is_alias = bool(definition.alias_node or definition.alias_service)
    rules = (
        (
            definition.interval_ns > 0 and definition.ttl_ns > 0,
            "Interval and TTL cannot both be specified",
        ),
        (
            polls and definition.interval_ns <= 0,
            "Interval must be > 0 for Script, HTTP, or TCP checks",
        ),
        (polls and is_alias, "Interval cannot be set for Alias checks"),
        (is_alias and definition.ttl_ns > 0, "TTL must be not be set for Alias checks"),
        (
            not polls and not is_alias and definition.ttl_ns <= 0,
            "TTL must be > 0 for TTL checks",
        ),
        (definition.output_max_size < 0, "MaxOutputMaxSize must be positive"),
    )
    return next((text for broken, text in rules if broken), "")


def runs_commands(check: Check) -> bool:
    """Return whether a check runs a command on the agent's machine or in one of its containers."""
    return check.definition is not None and bool(check.definition.args)


def check_catalog_service(service: Service, *, node: str) -> None:
    """Refuse what catalog/register refuses of an instance. Raises Rejected."""
    if not service.name:
        if not service.id:
            msg = "failed inserting service: failed inserting service: object missing primary index"
            raise Rejected(msg)
        return
    problem = _kind_problem(service)
    if problem:
        raise Rejected(problem)
    problem = meta_problem(service.meta, is_gateway=service.kind.endswith("-gateway"))
    if problem:
        msg = (
            f"failed inserting service: Invalid Service Meta for node {node} "
            f"and serviceID {service.id or service.name}: {problem}"
        )
        raise Rejected(msg)
