"""Alias checks: the health of another service or node, copied. Pure. Source: Consul alias checks."""

from __future__ import annotations

from collections.abc import Iterable

from waypost.drivers.checks.probes import Result
from waypost.model.catalog import CRITICAL, PASSING, WARNING, Check


def alias_result(check: Check, checks: Iterable[Check], *, target_exists: bool) -> Result:
    """Return what `check` shows, given the checks of the node it looks at.

    With `alias_service` the node's own checks and those of that service count, else the node's own.
    """
    definition = check.definition
    assert definition is not None
    service_id = definition.alias_service
    if service_id and not target_exists:
        return Result(
            CRITICAL, f"Service {service_id} could not be found on node {definition.alias_node}"
        )
    seen = [
        other
        for other in checks
        if other.check_id != check.check_id and other.service_id in ("", service_id)
    ]
    for status in (CRITICAL, WARNING):
        for other in seen:
            if other.status == status:
                return Result(status, f'Aliased check "{other.name}" failing: {other.output}')
    if not seen:
        return Result(PASSING, "No checks found.")
    return Result(PASSING, "All checks passing.")
