"""What the gate is asked for each endpoint of the Consul API: one table, for the audit log and for the reference.

A test compares it with the routes and with what their handlers really ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import msgspec

from waypost.access.gate import GROUP, Attributes
from waypost.surfaces.consul.snapshot import STORE_GROUP

PATH: Final = "PATH"
"""The name is what follows in the path."""


class Ask(msgspec.Struct, frozen=True):
    """One question to the gate. `name` is PATH, a word for what of the body it is, or empty."""

    verb: str
    resource: str
    name: str = ""
    group: str = GROUP

    @property
    def text(self) -> str:
        """The question as documents show it."""
        resource = self.resource if self.group == GROUP else f"{self.resource}.{self.group}"
        return " ".join(part for part in (self.verb, resource, self.name) if part)


_LIST_NODES: Final = (Ask("list", "nodes"),)
_LIST_SERVICES: Final = (Ask("list", "services"),)
_EACH_SERVICE: Final = (Ask("list", "services"), Ask("get", "services", "EACH"))
_LIST_CHECKS: Final = (Ask("list", "checks"),)
_GET_SERVICE: Final = (Ask("get", "services", PATH),)
_NODE_SERVICES: Final = (Ask("get", "nodes", PATH), Ask("list", "services"))
_UPDATE_CHECK: Final = (Ask("update", "checks", PATH),)
_GET_AGENT: Final = (Ask("get", "agents"),)
_UPDATE_AGENT: Final = (Ask("update", "agents"),)
_GET_OPERATOR: Final = (Ask("get", "operators"),)

ENDPOINTS: Final[Mapping[str, Mapping[str, tuple[Ask, ...]]]] = {
    "catalog/register": {"PUT": (Ask("update", "services", "SERVICE"),)},
    "catalog/deregister": {"PUT": (Ask("delete", "services", "SERVICE"),)},
    "catalog/datacenters": {"GET": _LIST_NODES},
    "catalog/nodes": {"GET": _LIST_NODES},
    "catalog/services": {"GET": _LIST_SERVICES},
    "catalog/service/": {"GET": _GET_SERVICE},
    "catalog/connect/": {"GET": _EACH_SERVICE},
    "catalog/node/": {"GET": _NODE_SERVICES},
    "catalog/node-services/": {"GET": _NODE_SERVICES},
    "catalog/gateway-services/": {"GET": _LIST_SERVICES},
    "health/node/": {"GET": _LIST_CHECKS},
    "health/checks/": {"GET": _LIST_CHECKS},
    "health/state/": {"GET": _LIST_CHECKS},
    "health/service/": {"GET": _GET_SERVICE},
    "health/connect/": {"GET": _EACH_SERVICE},
    "health/ingress/": {"GET": _LIST_SERVICES},
    "session/create": {"PUT": (Ask("create", "sessions", "NODE"),)},
    "session/destroy/": {"PUT": (Ask("delete", "sessions", PATH),)},
    "session/renew/": {"PUT": (Ask("update", "sessions", PATH),)},
    "session/info/": {"GET": (Ask("get", "sessions", PATH),)},
    "session/node/": {"GET": (Ask("list", "sessions"),)},
    "session/list": {"GET": (Ask("list", "sessions"),)},
    "event/fire/": {"PUT": (Ask("create", "events", PATH),)},
    "event/list": {"GET": (Ask("list", "events"),)},
    "internal/ui/nodes": {"GET": (*_LIST_NODES, *_LIST_SERVICES, *_LIST_CHECKS)},
    "internal/ui/node/": {"GET": (Ask("get", "nodes", PATH), *_LIST_SERVICES, *_LIST_CHECKS)},
    "internal/ui/services": {"GET": _EACH_SERVICE},
    "agent/service/register": {"PUT": (Ask("update", "services", "SERVICE"),)},
    "agent/service/deregister/": {"PUT": (Ask("delete", "services", "SERVICE"),)},
    "agent/service/maintenance/": {"PUT": (Ask("update", "services", PATH),)},
    "agent/services": {"GET": _LIST_SERVICES},
    "agent/service/": {"GET": _LIST_SERVICES},
    "agent/check/register": {"PUT": (Ask("update", "checks", "CHECK"),)},
    "agent/check/deregister/": {"PUT": (Ask("delete", "checks", PATH),)},
    "agent/check/pass/": {"PUT": _UPDATE_CHECK},
    "agent/check/warn/": {"PUT": _UPDATE_CHECK},
    "agent/check/fail/": {"PUT": _UPDATE_CHECK},
    "agent/check/update/": {"PUT": _UPDATE_CHECK},
    "agent/checks": {"GET": _LIST_CHECKS},
    "agent/maintenance": {"PUT": (Ask("update", "nodes", "NODE"),)},
    "agent/health/service/id/": {"GET": (*_LIST_SERVICES, *_LIST_CHECKS)},
    "agent/health/service/name/": {"GET": (*_LIST_CHECKS, *_LIST_SERVICES)},
    "agent/self": {"GET": _GET_AGENT},
    "agent/members": {"GET": _GET_AGENT},
    "agent/host": {"GET": _GET_AGENT},
    "agent/version": {"GET": _GET_AGENT},
    "agent/metrics": {"GET": _GET_AGENT},
    "agent/monitor": {"GET": _GET_AGENT},
    "agent/reload": {"PUT": _UPDATE_AGENT},
    "agent/leave": {"PUT": _UPDATE_AGENT},
    "agent/join/": {"PUT": _UPDATE_AGENT},
    "agent/force-leave/": {"PUT": _UPDATE_AGENT},
    "status/leader": {"GET": (Ask("get", "nodes"),)},
    "status/peers": {"GET": (Ask("get", "nodes"),)},
    "operator/raft/configuration": {"GET": _GET_OPERATOR},
    "operator/raft/peer": {"DELETE": (Ask("update", "operators"),)},
    "operator/raft/transfer-leader": {"POST": (Ask("update", "operators"),)},
    "operator/autopilot/configuration": {
        "GET": _GET_OPERATOR,
        "PUT": (Ask("update", "operators"),),
    },
    "operator/autopilot/health": {"GET": _GET_OPERATOR},
    "operator/keyring": dict.fromkeys(("GET", "POST", "PUT", "DELETE"), _GET_OPERATOR),
    "snapshot": {
        "GET": (Ask("get", "snapshots", group=STORE_GROUP),),
        "PUT": (Ask("update", "snapshots", group=STORE_GROUP),),
    },
    "coordinate/datacenters": {"GET": _LIST_NODES},
    "coordinate/nodes": {"GET": _LIST_NODES},
    "coordinate/node/": {"GET": (Ask("get", "nodes", PATH),)},
    "coordinate/update": {"PUT": (Ask("update", "nodes"),)},
}
"""Path below /v1/ → method → questions, the one that names the request first. Paths ending in `/` take a name.

Registration is asked for the service, else the first check, else the node that a body names.
"""

KV: Final = "kv/"
TXN: Final = "txn"
_KV_VERBS: Final = {"GET": "get", "PUT": "update", "DELETE": "delete"}


def consul_attributes(method: str, raw_path: str, raw_query: str = "") -> Attributes:
    """Return what a request to /v1/… asks first, as far as its line tells it.

    A path that is not in the table is itself what is asked for.
    """
    path = unquote(raw_path)
    below = path.removeprefix("/v1/")
    if below.startswith(KV):
        verb = _KV_VERBS.get(method, method.lower())
        if verb == "get" and any(
            piece.partition("=")[0] in ("recurse", "keys") for piece in raw_query.split("&")
        ):
            verb = "list"
        return Attributes(verb, path=path)
    if below == TXN:
        return Attributes("update", "transactions")
    found, rest = _find(below)
    asks = (found or {}).get(method)
    if not asks:
        return Attributes(method.lower(), path=path, group="")
    first = asks[0]
    return Attributes(
        first.verb,
        first.resource,
        rest if first.name == PATH else "",
        group=first.group,
        version="v1",
    )


def _find(below: str) -> tuple[Mapping[str, tuple[Ask, ...]] | None, str]:
    found = ENDPOINTS.get(below)
    if found is not None:
        return found, ""
    at = len(below)
    while (at := below.rfind("/", 0, at)) >= 0:
        found = ENDPOINTS.get(below[: at + 1])
        if found is not None:
            return found, below[at + 1 :]
    return None, ""


_INTRODUCTION: Final = """\
# Attributes of each endpoint

Every request passes one gate: whoever asks must be allowed a *verb* on a *resource*, as in Kubernetes. Consul's
endpoints belong to the API group `discovery.waypost.io`; keys of KV are plain paths, so that a rule with
`nonResourceURLs: ["/v1/kv/app/*"]` covers a prefix. The kube-style API (`/api`, `/apis`) asks what kube-apiserver asks.

This page is made from the table in `waypost/surfaces/consul/attributes.py`; a test compares it with what handlers ask.
`PATH` is the name in the URL, other capitals are names in the body (or of what is addressed).

```yaml
rules:                                   # may register, change and remove the service web, and nothing else
- apiGroups: [discovery.waypost.io]
  resources: [services]
  resourceNames: [web]
  verbs: [update, delete]
```

Who may `get` single nodes, services, checks or sessions by name, but not `list` them, gets lists with those rows only,
and of `/v1/agent/members` those agents that he may `get` by the names of their nodes; the answer then carries
`X-Consul-Results-Filtered-By-ACLs: true`. Lists of checks show those of his services as well, as the services' health
does. With no visible row at all the answer is 403.

DNS asks `list services` and `list nodes` for `system:anonymous`, the web interface `list` on services, nodes and checks
for whoever looks. `/metrics` asks `get path /metrics`, which the role `system:monitoring` holds.

| endpoint | method | asked |
|---|---|---|
"""
_SPECIAL_ROWS: Final = (
    ("kv/KEY", "GET", "get path /v1/kv/KEY; with `?recurse` or `?keys`: list"),
    ("kv/KEY", "PUT", "update path /v1/kv/KEY"),
    ("kv/KEY", "DELETE", "delete path /v1/kv/KEY"),
    (
        TXN,
        "PUT",
        "each operation as it would be asked alone; in the audit log: update transactions",
    ),
    ("waypost/auth/whoami", "GET", "nothing: it is about the caller"),
    (
        "waypost/auth/explain",
        "POST",
        "nothing about oneself; about others: create subjectaccessreviews.authorization.k8s.io",
    ),
    (
        "waypost/auth/who-can",
        "POST",
        "list roles, rolebindings, clusterroles, clusterrolebindings",
    ),
    ("waypost/auth/lint", "GET", "the same"),
)
_IN_BODIES: Final = {
    "catalog/register": "update services SERVICE; without one: update checks CHECK, or update nodes NODE; "
    "before these update nodes NODE where the node is new or changes",
    "catalog/deregister": "delete services SERVICE; without one: delete checks CHECK, or delete nodes NODE",
}


def markdown() -> str:
    """Return the reference page."""
    rows = [
        (
            path + ("PATH" if path.endswith("/") else ""),
            method,
            _IN_BODIES.get(path) or ", ".join(dict.fromkeys(ask.text for ask in asks)),
        )
        for path, methods in ENDPOINTS.items()
        for method, asks in methods.items()
    ]
    return _INTRODUCTION + "".join(
        f"| `/v1/{path}` | {method} | {asked} |\n"
        for path, method, asked in (*rows, *_SPECIAL_ROWS)
    )
