"""Objects that nobody stores: the catalog as the kube-style API shows it, read-only.

A projection is made anew from the view whenever somebody looks; its objects carry the newest revision of what they
were made from. So a watch compares what there is with what there was, and can start from now only.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from waypost.model.object import Object
from waypost.state.object_history import Change
from waypost.state.topics import Topic
from waypost.state.view import View
from waypost.wire.kube.meta import stored_body
from waypost.wire.kube.values import JsonObject

NAMESPACE: Final = "default"
"""Services of the catalog have no namespace; here they are in this one."""
TAGS: Final = "discovery.waypost.io/tags"
_UIDS: Final = uuid.UUID("3d2f64f0-7e0d-5a53-9a3e-5f0b7a4f7a10")


class Projection(msgspec.Struct, frozen=True):
    """One resource that is made from other tables."""

    topics: tuple[Topic, ...]
    """What it is made from."""
    make: Callable[[View], list[Object]]


def services(view: View) -> list[Object]:
    """Return the services of the catalog as headless Services: a port for each port of an instance, tags as annotation."""
    found: list[Object] = []
    for name, tags in view.services().items():
        if "/" in name or "%" in name or name in (".", ".."):
            continue  # cannot be a part of a path, so nobody could get it
        instances = view.instances(name)
        ports = sorted({one.service.port for one in instances if one.service.port})
        metadata: JsonObject = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid5(_UIDS, f"service {name}")),
        }
        if tags:
            metadata["annotations"] = {TAGS: ",".join(tags)}
        value: JsonObject = {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": metadata,
            "spec": {
                "ports": [
                    {"name": f"port-{port}", "protocol": "TCP", "port": port} for port in ports
                ],
                "clusterIP": "None",
                "type": "ClusterIP",
            },
            "status": {},
        }
        newest = max((one.service.modify_index for one in instances), default=view.revision)
        found.append(
            Object(
                group="",
                resource="services",
                namespace=NAMESPACE,
                name=name,
                body=stored_body(value),
                modify_index=newest,
            )
        )
    return found


PROJECTIONS: Final[Mapping[str, Projection]] = {"/services": Projection((("services",),), services)}
"""By `group/resource`."""


def changes(before: Sequence[Object], now: Sequence[Object], *, revision: int) -> list[Change]:
    """Return what happened between two looks at a projection, as one revision."""
    old = {(one.namespace, one.name): one for one in before}
    new = {(one.namespace, one.name): one for one in now}
    found = [
        Change(revision, old.get(key), one)
        for key, one in new.items()
        if key not in old or old[key].body != one.body
    ]
    found += [Change(revision, one, None) for key, one in old.items() if key not in new]
    return found
