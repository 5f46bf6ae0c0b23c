"""The short way for the registrations that programs send all day: exact spelling, no proxies, no surprises.

msgspec reads such a body into a struct in one go. Whatever it does not take (another spelling, an unknown field, null,
a wrong type, text behind the value, a bad duration) is None here and goes the long way of `decode`, which knows all
of Consul's rules and words; so this may refuse too much but must never read anything differently.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final

import msgspec

from waypost.base.duration import parse_ns
from waypost.base.errors import Malformed
from waypost.model.catalog import Check as CheckRecord
from waypost.model.catalog import CheckDefinition
from waypost.model.catalog import Service as ServiceRecord

_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Number = _Int | float
"""A float is noticed and refused: Go does not take `80.0` for an int."""
_Duration = str | _Int


class _NodeService(msgspec.Struct, forbid_unknown_fields=True):
    ID: str = ""
    Service: str = ""
    Tags: tuple[str, ...] = ()
    Address: str = ""
    Meta: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    Port: _Number = 0
    EnableTagOverride: bool = False


class _HealthCheck(msgspec.Struct, forbid_unknown_fields=True):
    Node: str = ""
    CheckID: str = ""
    Name: str = ""
    Status: str = ""
    Notes: str = ""
    Output: str = ""
    ServiceID: str = ""


class CatalogBody(msgspec.Struct, forbid_unknown_fields=True):
    """The usual body of catalog/register."""

    Node: str = ""
    Address: str = ""
    ID: str = ""
    Datacenter: str = ""
    TaggedAddresses: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    NodeMeta: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    SkipNodeUpdate: bool = False
    Service: _NodeService | msgspec.UnsetType = msgspec.UNSET
    Check: _HealthCheck | msgspec.UnsetType = msgspec.UNSET
    Checks: tuple[_HealthCheck, ...] = ()

    def service(self) -> ServiceRecord | None:
        """Return the instance, if one is sent."""
        return (
            None if self.Service is msgspec.UNSET else _service(self.Service, self.Service.Service)
        )

    def checks(self) -> tuple[CheckRecord, ...]:
        """Return the checks; the single one is the last."""
        sent = self.Checks if self.Check is msgspec.UNSET else (*self.Checks, self.Check)
        return tuple(
            CheckRecord(
                node=check.Node,
                check_id=check.CheckID,
                name=check.Name,
                status=check.Status,
                notes=check.Notes,
                output=check.Output,
                service_id=check.ServiceID,
            )
            for check in sent
        )


class _Probe(msgspec.Struct, forbid_unknown_fields=True):
    CheckID: str = ""
    Name: str = ""
    Status: str = ""
    Notes: str = ""
    HTTP: str = ""
    TCP: str = ""
    TTL: _Duration = 0
    Interval: _Duration = 0
    Timeout: _Duration = 0
    DeregisterCriticalServiceAfter: _Duration = 0


class AgentBody(msgspec.Struct, forbid_unknown_fields=True):
    """The usual body of agent/service/register."""

    Name: str = ""
    ID: str = ""
    Tags: tuple[str, ...] = ()
    Address: str = ""
    Meta: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    Port: _Number = 0
    EnableTagOverride: bool = False
    Check: _Probe | msgspec.UnsetType = msgspec.UNSET
    Checks: tuple[_Probe, ...] = ()

    def service(self) -> ServiceRecord:
        """Return the service."""
        return _service(self, self.Name)

    def checks(self) -> tuple[CheckRecord, ...]:
        """Return the checks; the single one is the last. Raises Malformed for a bad duration."""
        sent = self.Checks if self.Check is msgspec.UNSET else (*self.Checks, self.Check)
        return tuple(map(_probe, sent))


def _service(sent: _NodeService | AgentBody, name: str) -> ServiceRecord:
    assert isinstance(sent.Port, int)
    return ServiceRecord(
        node="",
        id=sent.ID,
        name=name,
        tags=sent.Tags,
        address=sent.Address,
        port=sent.Port,
        meta=None if sent.Meta is msgspec.UNSET else sent.Meta or None,
        enable_tag_override=sent.EnableTagOverride,
    )


@lru_cache(maxsize=1024)
def _ns(duration: str | int) -> int:
    return parse_ns(duration) if isinstance(duration, str) else duration


def _probe(sent: _Probe) -> CheckRecord:
    definition = CheckDefinition(
        http=sent.HTTP,
        tcp=sent.TCP,
        ttl_ns=_ns(sent.TTL),
        interval_ns=_ns(sent.Interval),
        timeout_ns=_ns(sent.Timeout),
        deregister_critical_service_after_ns=_ns(sent.DeregisterCriticalServiceAfter),
    )
    kinds = (("http", definition.http), ("ttl", definition.ttl_ns), ("tcp", definition.tcp))
    return CheckRecord(
        node="",
        check_id=sent.CheckID,
        name=sent.Name,
        status=sent.Status,
        notes=sent.Notes,
        type=next((kind for kind, given in kinds if given), ""),
        definition=definition,
    )


_catalog: Final = msgspec.json.Decoder(CatalogBody)
_agent: Final = msgspec.json.Decoder(AgentBody)


def catalog_body(body: bytes) -> CatalogBody | None:
    """Return a usual body of catalog/register, None for any other."""
    try:
        found = _catalog.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if found.Service is not msgspec.UNSET and not isinstance(found.Service.Port, int):
        return None
    return found


def agent_body(body: bytes) -> AgentBody | None:
    """Return a usual body of agent/service/register, None for any other."""
    try:
        found = _agent.decode(body)
        found.checks()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Malformed):
        return None
    return found if isinstance(found.Port, int) else None
