"""Policies and requests of the recorded decisions as our records."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from waypost.access.actor import Actor
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import Binding, Role, parse_binding, parse_role
from waypost.access.gate import Attributes

DATA = Path(__file__).parent / "data"


def cases(kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (DATA / "decisions.jsonl").read_text().splitlines()]
    return [row for row in rows if row["type"] == kind]


@lru_cache(maxsize=1)
def recorded_defaults() -> tuple[dict[str, Any], ...]:
    with (DATA / "default-rbac.yaml").open() as stream:
        return tuple(one for one in yaml.load_all(stream, yaml.CSafeLoader) if one)


def records(documents: Any) -> tuple[list[Role], list[Binding]]:
    roles: list[Role] = []
    bindings: list[Binding] = []
    for one in documents:
        if one["kind"].endswith("Binding"):
            bindings.append(parse_binding(one, kind=one["kind"]))
        else:
            roles.append(parse_role(one, kind=one["kind"]))
    return roles, bindings


def documents(policy: Any) -> list[dict[str, Any]]:
    if policy == "default":
        return list(recorded_defaults())
    if isinstance(policy, dict):
        return documents(policy["base"]) + policy["add"]
    return list(policy)


def index_of(policy: Any) -> RbacIndex:
    return RbacIndex.of(*records(documents(policy)))


def actor_of(row: dict[str, Any]) -> Actor:
    return Actor(user=row["user"], groups=tuple(row["groups"]))


def asked_of(request: dict[str, Any]) -> Attributes:
    if "path" in request:
        return Attributes(request["verb"], path=request["path"], group="")
    return Attributes(
        request["verb"],
        request.get("resource", ""),
        request.get("name", ""),
        group=request.get("apiGroup", ""),
        namespace=request.get("namespace", ""),
        subresource=request.get("subresource", ""),
        version=request.get("apiVersion", ""),
    )


def by_id(row: dict[str, Any]) -> str:
    return str(row["id"])
