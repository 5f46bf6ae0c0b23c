"""Request bodies of Consul's API → typed records, with every spelling Consul 1.8 knows.

The tables follow Consul's types; their Go names appear in error texts that clients show. `strict` refuses unknown
fields as Consul 1.8 does; without it they are ignored, and the id of a check may be spelled `ID`, `CheckID` or
`check_id` anywhere.

Sources: recorded answers of Consul 1.8.7; Consul HTTP API, agent, catalog, session, txn.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.model.catalog import Check, CheckDefinition, Service, TaggedAddress, Weights
from waypost.wire.consul.schema import (
    Anything,
    Boolean,
    Bytes,
    Duration,
    Errors,
    Integer,
    ListOf,
    MapOf,
    Record,
    Text,
    Type,
    Where,
    decode,
)
from waypost.wire.consul.usual import agent_body, catalog_body

_TEXT: Final = Text()
_INT: Final = Integer()
_BOOL: Final = Boolean()
_DURATION: Final = Duration()
_TEXTS: Final = ListOf(_TEXT)
_TEXT_MAP: Final = MapOf(_TEXT)
_HEADER: Final = MapOf(ListOf(_TEXT))
_ANY: Final = Anything()
_INDEXES: Final[dict[str, tuple[str, Type]]] = {
    "CreateIndex": ("create_index", Integer(unsigned=True)),
    "ModifyIndex": ("modify_index", Integer(unsigned=True)),
}

_ADDRESS = Record("structs.ServiceAddress", {"Address": ("address", _TEXT), "Port": ("port", _INT)})
_ADDRESSES = MapOf(_ADDRESS, "map[string]structs.ServiceAddress")
_WEIGHTS = Record("structs.Weights", {"Passing": ("passing", _INT), "Warning": ("warning", _INT)})


def _exactly(names: str, type_: Type) -> dict[str, tuple[str, Type]]:
    """Return fields whose member is called as they are."""
    return {name: (name, type_) for name in names.split()}


_PROXY = Record(
    "structs.ConnectProxyConfig",
    {
        **_exactly("DestinationServiceName DestinationServiceID LocalServiceAddress", _TEXT),
        **_exactly("LocalServicePort", _INT),
        **_exactly("Config Upstreams MeshGateway Expose", _ANY),
    },
    other_names={
        "destination_service_name": ("DestinationServiceName", _TEXT),
        "destination_service_id": ("DestinationServiceID", _TEXT),
        "local_service_address": ("LocalServiceAddress", _TEXT),
        "local_service_port": ("LocalServicePort", _INT),
        "mesh_gateway": ("MeshGateway", _ANY),
    },
    custom=True,
)
_CONNECT = Record(
    "structs.ServiceConnect",
    {**_exactly("Native", _BOOL), **_exactly("SidecarService", _ANY)},
    other_names={"sidecar_service": ("SidecarService", _ANY)},
    custom=True,
)

_CHECK_STRUCT: Final = (
    "struct { Interval interface {}; Timeout interface {}; TTL interface {}; "
    "DeregisterCriticalServiceAfter interface {}; "
    'Args []string "json:\\"args\\""; ScriptArgsSnake []string "json:\\"script_args\\""; '
    "DeregisterCriticalServiceAfterSnake interface {} "
    '"json:\\"deregister_critical_service_after\\""; '
    'DockerContainerIDSnake string "json:\\"docker_container_id\\""; '
    'TLSSkipVerifySnake bool "json:\\"tls_skip_verify\\""; '
    'ServiceID string "json:\\"ServiceID\\""; ServiceIDSnake string "json:\\"service_id\\""; '
    "*structs.Alias }"
)
_PROBE: Final[dict[str, tuple[str, Type]]] = {
    "Name": ("name", _TEXT),
    "Notes": ("notes", _TEXT),
    "Status": ("status", _TEXT),
    "HTTP": ("http", _TEXT),
    "Header": ("header", _HEADER),
    "Method": ("method", _TEXT),
    "Body": ("body", _TEXT),
    "TCP": ("tcp", _TEXT),
    "Interval": ("interval_ns", _DURATION),
    "Timeout": ("timeout_ns", _DURATION),
    "TTL": ("ttl_ns", _DURATION),
    "DockerContainerID": ("docker_container_id", _TEXT),
    "Shell": ("shell", _TEXT),
    "GRPC": ("grpc", _TEXT),
    "GRPCUseTLS": ("grpc_use_tls", _BOOL),
    "TLSSkipVerify": ("tls_skip_verify", _BOOL),
    "AliasNode": ("alias_node", _TEXT),
    "AliasService": ("alias_service", _TEXT),
    "SuccessBeforePassing": ("success_before_passing", _INT),
    "FailuresBeforeCritical": ("failures_before_critical", _INT),
    "DeregisterCriticalServiceAfter": ("deregister_critical_service_after_ns", _DURATION),
    "OutputMaxSize": ("output_max_size", _INT),
    "ScriptArgs": ("args", _TEXTS),
}
_PROBE_OTHER: Final[dict[str, tuple[str, Type]]] = {
    "args": ("args", _TEXTS),
    "script_args": ("args", _TEXTS),
    "deregister_critical_service_after": ("deregister_critical_service_after_ns", _DURATION),
    "docker_container_id": ("docker_container_id", _TEXT),
    "tls_skip_verify": ("tls_skip_verify", _BOOL),
}
_LENIENT_CHECK_ID: Final[dict[str, tuple[str, Type]]] = {
    "ID": ("check_id", _TEXT),
    "CheckID": ("check_id", _TEXT),
    "check_id": ("check_id", _TEXT),
}
_SERVICE_CHECK = Record(
    _CHECK_STRUCT,
    {"CheckID": ("check_id", _TEXT), **_PROBE},
    other_names={
        **_PROBE_OTHER,
        # Known to Consul's decoder, but an instance's check belongs to that instance.
        "ServiceID": ("", _TEXT),
        "service_id": ("", _TEXT),
    },
    lenient=_LENIENT_CHECK_ID,
    custom=True,
)
_CHECK_DEFINITION = Record(
    _CHECK_STRUCT.replace('ServiceID string "json:\\"ServiceID\\""; ', ""),
    {"ID": ("check_id", _TEXT), "Token": ("token", _TEXT), **_PROBE},
    other_names={
        **_PROBE_OTHER,
        "ServiceID": ("service_id", _TEXT),
        "service_id": ("service_id", _TEXT),
    },
    lenient=_LENIENT_CHECK_ID,
    custom=True,
)
_SERVICE_DEFINITION = Record(
    'struct { EnableTagOverrideSnake bool "json:\\"enable_tag_override\\""; '
    "TaggedAddressesSnake map[string]structs.ServiceAddress "
    '"json:\\"tagged_addresses\\""; *structs.Alias }',
    {
        "Kind": ("kind", _TEXT),
        "ID": ("id", _TEXT),
        "Name": ("name", _TEXT),
        "Tags": ("tags", _TEXTS),
        "Address": ("address", _TEXT),
        "TaggedAddresses": ("tagged_addresses", _ADDRESSES),
        "Meta": ("meta", _TEXT_MAP),
        "Port": ("port", _INT),
        "Check": ("check", _SERVICE_CHECK),
        "Checks": ("checks", ListOf(_SERVICE_CHECK, "structs.CheckTypes")),
        "Weights": ("weights", _WEIGHTS),
        "Token": ("token", _TEXT),
        "EnableTagOverride": ("enable_tag_override", _BOOL),
        "Proxy": ("proxy", _PROXY),
        "Connect": ("connect", _CONNECT),
    },
    other_names={
        "enable_tag_override": ("enable_tag_override", _BOOL),
        "tagged_addresses": ("tagged_addresses", _ADDRESSES),
    },
    custom=True,
)
_NODE_SERVICE = Record(
    "structs.NodeService",
    {
        "Kind": ("kind", _TEXT),
        "ID": ("id", _TEXT),
        "Service": ("name", _TEXT),
        "Tags": ("tags", _TEXTS),
        "Address": ("address", _TEXT),
        "TaggedAddresses": ("tagged_addresses", _ADDRESSES),
        "Meta": ("meta", _TEXT_MAP),
        "Port": ("port", _INT),
        "Weights": ("weights", _WEIGHTS),
        "EnableTagOverride": ("enable_tag_override", _BOOL),
        "Proxy": ("proxy", _PROXY),
        "Connect": ("connect", _CONNECT),
        **_INDEXES,
    },
)
_SHOWN_DEFINITION = Record(
    "structs.HealthCheckDefinition",
    {
        **_exactly("HTTP Method Body TCP", _TEXT),
        **_exactly("Header", _HEADER),
        **_exactly("TLSSkipVerify", _BOOL),
        **_exactly("Interval Timeout DeregisterCriticalServiceAfter", _DURATION),
        # Older clients send the same three once more as numbers, which are only read where the others are absent.
        "IntervalDuration": ("", _ANY),
        "TimeoutDuration": ("", _ANY),
        "DeregisterCriticalServiceAfterDuration": ("", _ANY),
        **_exactly(
            "ScriptArgs DockerContainerID Shell GRPC GRPCUseTLS AliasNode AliasService TTL", _ANY
        ),
    },
    custom=True,
)
_HEALTH_CHECK = Record(
    "structs.HealthCheck",
    {
        "Node": ("node", _TEXT),
        "CheckID": ("check_id", _TEXT),
        "Name": ("name", _TEXT),
        "Status": ("status", _TEXT),
        "Notes": ("notes", _TEXT),
        "Output": ("output", _TEXT),
        "ServiceID": ("service_id", _TEXT),
        "ServiceName": ("", _TEXT),
        "ServiceTags": ("", _TEXTS),
        "Type": ("type", _TEXT),
        "Definition": ("shown_definition", _SHOWN_DEFINITION),
        **_INDEXES,
    },
)
_REGISTER_REQUEST = Record(
    "structs.RegisterRequest",
    {
        "Datacenter": ("datacenter", _TEXT),
        "ID": ("id", _TEXT),
        "Node": ("node", _TEXT),
        "Address": ("address", _TEXT),
        "TaggedAddresses": ("tagged_addresses", _TEXT_MAP),
        "NodeMeta": ("meta", _TEXT_MAP),
        "Service": ("service", _NODE_SERVICE),
        "Check": ("check", _HEALTH_CHECK),
        "Checks": ("checks", ListOf(_HEALTH_CHECK, "structs.HealthChecks")),
        "SkipNodeUpdate": ("skip_node_update", _BOOL),
        **_INDEXES,
    },
    lenient={"WriteRequest": ("", _ANY)},
)
_DEREGISTER_REQUEST = Record(
    "struct { Address string; *structs.Alias }",
    {
        "Datacenter": ("datacenter", _TEXT),
        "Node": ("node", _TEXT),
        "Address": ("", _TEXT),
        "ServiceID": ("service_id", _TEXT),
        "CheckID": ("check_id", _TEXT),
    },
    custom=True,
)
_CHECK_UPDATE = Record(
    "agent.checkUpdate", {"Status": ("status", _TEXT), "Output": ("output", _TEXT)}
)


class CheckRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """A check as somebody registers it with an agent; its `node` is left empty."""

    check: Check
    token: str = ""


class ServiceRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """A service as somebody registers it with an agent; `node` and `owner` are left empty."""

    service: Service
    checks: tuple[Check, ...] = ()
    token: str = ""
    sidecar: bool = False
    """The body asks for a sidecar proxy."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a program reports for its TTL check."""

    status: str = ""
    output: str = ""


class CatalogRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `catalog/register`."""

    node: str = ""
    address: str = ""
    id: str = ""
    datacenter: str = ""
    tagged_addresses: dict[str, str] | None = None
    meta: dict[str, str] | None = None
    skip_node_update: bool = False
    service: Service | None = None
    checks: tuple[Check, ...] = ()


class CatalogDeregistration(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `catalog/deregister`."""

    node: str = ""
    datacenter: str = ""
    service_id: str = ""
    check_id: str = ""


class SessionCreation(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `session/create`. `lock_delay_ns` None = the default; None for checks = not given."""

    name: str = ""
    node: str = ""
    datacenter: str = ""
    behavior: str = ""
    ttl: str = ""
    lock_delay_ns: int | None = None
    node_checks: tuple[str, ...] | None = None
    checks: tuple[str, ...] = ()
    service_checks: tuple[tuple[str, str], ...] | None = None
    """Pairs of id and namespace."""


def _service(found: dict[str, Any]) -> Service:
    weights = found.get("weights")
    tagged = found.get("tagged_addresses")
    return Service(
        node="",
        id=found.get("id", ""),
        name=found.get("name", ""),
        tags=tuple(found.get("tags", ())),
        address=found.get("address", ""),
        port=found.get("port", 0),
        meta=found.get("meta") or None,
        tagged_addresses={k: TaggedAddress(**v) for k, v in tagged.items()} if tagged else None,
        weights=Weights(weights.get("passing", 0), weights.get("warning", 0))
        if weights is not None
        else Weights(),
        enable_tag_override=found.get("enable_tag_override", False),
        kind=found.get("kind", ""),
        proxy=found.get("proxy") or None,
        connect=found.get("connect") or None,
        modify_index=found.get("modify_index", 0),
    )


def _probe_type(definition: CheckDefinition) -> str:
    """Return Consul's name for what a definition runs: the first kind that applies."""
    kinds = (
        ("grpc", definition.grpc),
        ("http", definition.http),
        ("ttl", definition.ttl_ns),
        ("tcp", definition.tcp),
        ("alias", definition.alias_node or definition.alias_service),
        ("docker", definition.docker_container_id and definition.args),
        ("script", definition.args),
    )
    return next((kind for kind, given in kinds if given), "")


_DEFINITION_FIELDS: Final = frozenset(CheckDefinition.__struct_fields__)


def _probe(found: dict[str, Any]) -> Check:
    members: dict[str, Any] = {k: v for k, v in found.items() if k in _DEFINITION_FIELDS}
    if "args" in members:
        members["args"] = tuple(members["args"])
    if members.get("header"):
        members["header"] = {k: tuple(v) for k, v in members["header"].items()}
    if not members.get("output_max_size", 1):
        del members["output_max_size"]
    definition = CheckDefinition(**members)
    return Check(
        node="",
        check_id=found.get("check_id", ""),
        name=found.get("name", ""),
        status=found.get("status", ""),
        notes=found.get("notes", ""),
        service_id=found.get("service_id", ""),
        type=_probe_type(definition),
        definition=definition,
    )


_NO_CHECK: Final = _probe({})


def _present(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Return the checks without those that say nothing: an empty `Check` is no check."""
    return tuple(check for check in checks if check != _NO_CHECK)


def service_registration(body: bytes, *, strict: bool = True) -> ServiceRegistration:
    """Decode the body of `agent/service/register`. Raises Malformed."""
    usual = agent_body(body)
    if usual is not None:
        return ServiceRegistration(service=usual.service(), checks=_present(usual.checks()))
    found = decode(_SERVICE_DEFINITION, body, strict=strict)
    checks = list(found.get("checks", ()))
    if any(found.get("check", {}).values()):
        # Consul puts the single check behind the list.
        checks.append(found["check"])
    connect = found.get("connect") or {}
    sidecar = connect.pop("SidecarService", None)
    return ServiceRegistration(
        service=_service(found),
        checks=_present(tuple(_probe(check) for check in checks)),
        token=found.get("token", ""),
        sidecar=sidecar is not None,
    )


def check_registration(body: bytes, *, strict: bool = True) -> CheckRegistration:
    """Decode the body of `agent/check/register`. Raises Malformed."""
    found = decode(_CHECK_DEFINITION, body, strict=strict)
    return CheckRegistration(check=_probe(found), token=found.get("token", ""))


def check_result(body: bytes, *, strict: bool = True) -> CheckResult:
    """Decode the body of `agent/check/update/:id`. Raises Malformed."""
    return CheckResult(**decode(_CHECK_UPDATE, body, strict=strict))


def _health_check(found: dict[str, Any]) -> Check:
    shown = found.get("shown_definition")
    kind = found.get("type", "")
    if shown:
        shown.pop("", None)
        shown = {k: v for k, v in shown.items() if v not in ("", 0, False, None, {}, [])}
        kind = kind or ("http" if shown.get("HTTP") else "tcp" if shown.get("TCP") else "")
    return Check(
        node=found.get("node", ""),
        check_id=found.get("check_id", ""),
        name=found.get("name", ""),
        status=found.get("status", ""),
        notes=found.get("notes", ""),
        output=found.get("output", ""),
        service_id=found.get("service_id", ""),
        type=kind,
        shown_definition=shown or None,
        modify_index=found.get("modify_index", 0),
    )


_NO_NAMESPACES: Final = 'json: unknown field "Namespace"'


def _decode_catalog(record: Record, body: bytes, *, strict: bool) -> dict[str, Any]:
    try:
        found: dict[str, Any] = decode(record, body, strict=strict)
    except Malformed as error:
        if str(error) == _NO_NAMESPACES:
            msg = f"{error} - Namespaces are a Consul Enterprise feature"
            raise Malformed(msg) from None
        raise
    return found


def _given(value: dict[str, str] | msgspec.UnsetType) -> dict[str, str] | None:
    return None if value is msgspec.UNSET else value


def catalog_registration(body: bytes, *, strict: bool = True) -> CatalogRegistration:
    """Decode the body of `catalog/register`. Raises Malformed."""
    usual = catalog_body(body)
    if usual is not None:
        return CatalogRegistration(
            node=usual.Node,
            address=usual.Address,
            id=usual.ID,
            datacenter=usual.Datacenter,
            tagged_addresses=_given(usual.TaggedAddresses),
            meta=_given(usual.NodeMeta),
            skip_node_update=usual.SkipNodeUpdate,
            service=usual.service(),
            checks=usual.checks(),
        )
    found = _decode_catalog(_REGISTER_REQUEST, body, strict=strict)
    checks = [c for c in found.get("checks", ()) if c is not None]
    if found.get("check") is not None:
        checks.append(found["check"])
    service = found.get("service")
    return CatalogRegistration(
        node=found.get("node", ""),
        address=found.get("address", ""),
        id=found.get("id", ""),
        datacenter=found.get("datacenter", ""),
        tagged_addresses=found.get("tagged_addresses"),
        meta=found.get("meta"),
        skip_node_update=found.get("skip_node_update", False),
        service=None if service is None else _service(service),
        checks=tuple(_health_check(check) for check in checks),
    )


def catalog_deregistration(body: bytes, *, strict: bool = True) -> CatalogDeregistration:
    """Decode the body of `catalog/deregister`. Raises Malformed."""
    found = _decode_catalog(_DEREGISTER_REQUEST, body, strict=strict)
    found.pop("", None)
    return CatalogDeregistration(**found)


# -- sessions ------------------------------------------------------------------------------------------------------


class _LockDelay(Duration):
    """A duration in which a number below 1000 means seconds. Source: Consul `session_endpoint.go`."""

    def read(self, value: Any, where: Where, errors: Errors) -> int | None:
        """See Type."""
        found = super().read(value, where, errors)
        if found is not None and not isinstance(value, str) and found < 1000:
            return found * 10**9
        return found


_CHECK_IDS = ListOf(Text("string"), "[]types.CheckID")
_SESSION = Record(
    "struct { LockDelay interface {}; *structs.Alias }",
    {
        "Name": ("name", _TEXT),
        "Node": ("node", _TEXT),
        "Datacenter": ("datacenter", _TEXT),
        "Behavior": ("behavior", _TEXT),
        "TTL": ("ttl", _TEXT),
        "LockDelay": ("lock_delay_ns", _LockDelay()),
        "NodeChecks": ("node_checks", _TEXTS),
        "Checks": ("checks", _CHECK_IDS),
        "ServiceChecks": (
            "service_checks",
            ListOf(
                Record(
                    "structs.ServiceCheck", {"ID": ("id", _TEXT), "Namespace": ("namespace", _TEXT)}
                )
            ),
        ),
    },
    custom=True,
)


def session_creation(body: bytes) -> SessionCreation:
    """Decode the body of `session/create`; none is as `{}`, and unknown fields are ignored. Raises Malformed."""
    if not body:
        return SessionCreation()
    found = decode(_SESSION, body, strict=False)
    for member in ("node_checks", "checks"):
        if member in found:
            found[member] = tuple(found[member])
    services = found.get("service_checks")
    if services is not None:
        found["service_checks"] = tuple((c.get("id", ""), c.get("namespace", "")) for c in services)
    return SessionCreation(**found)


# -- transactions --------------------------------------------------------------------------------------------------


class KVOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on a key."""

    verb: str = ""
    key: str = ""
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""


class NodeOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on a node."""

    verb: str = ""
    node: str = ""
    id: str = ""
    address: str = ""
    datacenter: str = ""
    tagged_addresses: dict[str, str] | None = None
    meta: dict[str, str] | None = None
    index: int = 0


class ServiceOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on an instance; `service.modify_index` is the index to compare with."""

    service: Service
    verb: str = ""
    node: str = ""


class CheckOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on a check; `check.modify_index` is the index to compare with."""

    check: Check
    verb: str = ""


Operation = KVOperation | NodeOperation | ServiceOperation | CheckOperation


_KV_OPERATION = Record(
    "api.KVTxnOp",
    {
        "Verb": ("verb", Text("api.KVOp")),
        "Key": ("key", _TEXT),
        "Value": ("value", Bytes()),
        "Flags": ("flags", Integer(unsigned=True)),
        "Index": ("index", Integer(unsigned=True)),
        "Session": ("session", _TEXT),
        "Namespace": ("", _TEXT),
    },
)
_NODE_OPERATION = Record(
    "api.NodeTxnOp",
    {
        "Verb": ("verb", Text("api.NodeOp")),
        "Node": (
            "node",
            Record(
                "api.Node",
                {
                    "ID": ("id", _TEXT),
                    "Node": ("node", _TEXT),
                    "Address": ("address", _TEXT),
                    "Datacenter": ("datacenter", _TEXT),
                    "TaggedAddresses": ("tagged_addresses", _TEXT_MAP),
                    "Meta": ("meta", _TEXT_MAP),
                    **_INDEXES,
                },
            ),
        ),
    },
)
_API_SERVICE = Record(
    "api.AgentService",
    {
        "Kind": ("kind", Text("api.ServiceKind")),
        "ID": ("id", _TEXT),
        "Service": ("name", _TEXT),
        "Tags": ("tags", _TEXTS),
        "Meta": ("meta", _TEXT_MAP),
        "Port": ("port", _INT),
        "Address": ("address", _TEXT),
        "TaggedAddresses": ("tagged_addresses", MapOf(_ADDRESS, "map[string]api.ServiceAddress")),
        "Weights": (
            "weights",
            Record(
                "api.AgentWeights", {"Passing": ("passing", _INT), "Warning": ("warning", _INT)}
            ),
        ),
        "EnableTagOverride": ("enable_tag_override", _BOOL),
        "ContentHash": ("", _TEXT),
        "Proxy": ("proxy", _ANY),
        "Connect": ("connect", _ANY),
        "Namespace": ("", _TEXT),
        **_INDEXES,
    },
)
_SERVICE_OPERATION = Record(
    "api.ServiceTxnOp",
    {
        "Verb": ("verb", Text("api.ServiceOp")),
        "Node": ("node", _TEXT),
        "Service": ("service", _API_SERVICE),
    },
)
_CHECK_OPERATION = Record(
    "api.CheckTxnOp",
    {"Verb": ("verb", Text("api.CheckOp")), "Check": ("check", _HEALTH_CHECK)},
)
_TXN_OP = Record(
    "api.TxnOp",
    {
        "KV": ("kv", _KV_OPERATION),
        "Node": ("node", _NODE_OPERATION),
        "Service": ("service", _SERVICE_OPERATION),
        "Check": ("check", _CHECK_OPERATION),
    },
)
_TXN = ListOf(_TXN_OP, "api.TxnOps")


def transaction(body: bytes, *, strict: bool = True) -> tuple[Operation, ...]:
    """Decode the body of `txn`; members of an operation that are absent are left out. Raises Malformed."""
    found = decode(_TXN, body, strict=strict)
    operations: list[Operation] = []
    for item in found or ():
        if "kv" in item:
            operations.append(_kv_operation(item["kv"]))
        elif "node" in item:
            node = item["node"].get("node", {})
            operations.append(
                NodeOperation(
                    verb=item["node"].get("verb", ""),
                    index=node.pop("modify_index", 0),
                    **{k: v for k, v in node.items() if k != "create_index"},
                )
            )
        elif "service" in item:
            inner = item["service"]
            operations.append(
                ServiceOperation(
                    verb=inner.get("verb", ""),
                    node=inner.get("node", ""),
                    service=_service(inner.get("service", {})),
                )
            )
        elif "check" in item:
            inner = item["check"]
            operations.append(
                CheckOperation(
                    verb=inner.get("verb", ""), check=_health_check(inner.get("check", {}))
                )
            )
    return tuple(operations)


def _kv_operation(found: dict[str, Any]) -> KVOperation:
    found.pop("", None)
    value = found.pop("value", "")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        # Consul's decoder names byte 0 whatever is wrong.
        msg = "illegal base64 data at input byte 0"
        raise Malformed(msg) from error
    return KVOperation(value=raw, **found)
