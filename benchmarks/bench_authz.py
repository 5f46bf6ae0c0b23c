"""Time of one authorization, by number of bindings and by how the request is decided.

    python benchmarks/bench_authz.py [--bindings 10000] [--rounds 20000]

`hot` asks the same question again, `cold` never asks the same question twice, so each is looked up in the index.
"""

from __future__ import annotations

import argparse
import time

import msgspec

from waypost.access.actor import AUTHENTICATED, Actor
from waypost.access.authz.bootstrap import default_policy, node_rules
from waypost.access.authz.chain import Chain
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacAuthorizer
from waypost.access.authz.records import (
    GROUP,
    RESOURCES,
    Binding,
    PolicyRule,
    Role,
    RoleRef,
    Subject,
    binding_document,
    role_document,
)
from waypost.access.gate import Attributes
from waypost.model.object import Object
from waypost.state.keys import put
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue


def stored(record: Role | Binding) -> Object:
    document = role_document(record) if isinstance(record, Role) else binding_document(record)
    return Object(
        group=GROUP,
        resource=RESOURCES[record.kind],
        namespace=record.namespace,
        name=record.name,
        body=msgspec.json.encode(document),
    )


def apply(view: View, records: list[Role | Binding]) -> None:
    revision = view.revision + 1
    events = []
    for record in records:
        one = put(stored(record))
        events.append(Event("put", KeyValue(one.key, one.value, revision, revision)))
    view.apply(Batch(revision, tuple(events)))


def user(name: str) -> Subject:
    return Subject(kind="User", api_group=GROUP, name=name)


def bind(name: str, role: str, *subjects: Subject) -> Binding:
    return Binding(
        kind="ClusterRoleBinding",
        name=name,
        role_ref=RoleRef(kind="ClusterRole", name=role),
        subjects=subjects,
    )


def policy(count: int) -> list[Role | Binding]:
    """`count` bindings: to users one each, to one busy user, and to one busy group, a third each."""
    roles: list[Role | Binding] = [
        Role(
            kind="ClusterRole",
            name=f"role-{at}",
            rules=(
                PolicyRule(verbs=("get", "list"), api_groups=("",), resources=(f"things{at}",)),
                PolicyRule(
                    verbs=("update",),
                    api_groups=("discovery.waypost.io",),
                    resources=("services",),
                    resource_names=(f"web{at}",),
                ),
            ),
        )
        for at in range(count // 3)
    ]
    everybody = Subject(kind="Group", api_group=GROUP, name="team")
    bindings: list[Role | Binding] = []
    for at in range(count // 3):
        bindings.append(bind(f"one-{at}", f"role-{at}", user(f"user{at}")))
        bindings.append(bind(f"busy-{at}", f"role-{at}", user("busy")))
        bindings.append(bind(f"team-{at}", f"role-{at}", everybody))
    return roles + bindings


def timed(name: str, rounds: int, ask) -> None:
    ask(0)
    started = time.perf_counter()
    for at in range(rounds):
        ask(at)
    each = (time.perf_counter() - started) / rounds
    print(f"{name:<58}{each * 1e6:9.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bindings", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20_000)
    given = parser.parse_args()
    view = View()
    apply(view, [*default_policy(), *policy(given.bindings)])
    rbac = RbacAuthorizer(view)
    chain = Chain([NodeAuthorizer(node_rules()), rbac])
    ann = Actor(user="user7", groups=("team", "ops", AUTHENTICATED))
    lone = Actor(user="user7", groups=("ops", AUTHENTICATED))
    busy = Actor(user="busy", groups=("team", AUTHENTICATED))
    asked = Attributes("update", "services", "web7")

    started = time.perf_counter()
    assert chain.authorize(lone, asked).allowed
    print(
        f"{'first request: the whole policy is read':<58}{(time.perf_counter() - started) * 1e3:9.2f} ms"
    )
    started = time.perf_counter()
    assert chain.authorize(ann, asked).allowed
    print(
        f"{'first request of a group with a third of all':<58}{(time.perf_counter() - started) * 1e3:9.2f} ms"
    )

    timed("hot, chain", given.rounds, lambda _: chain.authorize(lone, asked))
    timed("hot, through the gate's decide", given.rounds, lambda _: chain.decide(lone, asked))
    questions = [Attributes("update", "services", f"web{at}") for at in range(given.rounds)]
    refused = [Attributes("delete", "services", f"web{at}") for at in range(given.rounds)]
    paths = [Attributes("get", path=f"/v1/kv/app/{at}") for at in range(given.rounds)]
    decide = rbac.index.decide
    for name, actor in (("lone", lone), ("in the busy group", ann), ("busy user and group", busy)):
        for what, rows in (
            ("allowed, or refused by name", questions),
            ("refused", refused),
            ("path", paths),
        ):
            timed(
                f"cold, {name}: {what}",
                given.rounds,
                lambda at, actor=actor, rows=rows: decide(actor, rows[at]),
            )

    def change(at: int) -> None:
        apply(view, [bind("one-9", "role-9", user(f"user{at}"))])
        chain.authorize(lone, asked)

    timed("a binding changes, and the next request", 50, change)

    def change_role(at: int) -> None:
        rule = PolicyRule(verbs=("get",), api_groups=("",), resources=(f"r{at}",))
        apply(view, [Role(kind="ClusterRole", name="role-9", rules=(rule,))])
        chain.authorize(lone, asked)

    timed("a role changes, and the next request", 50, change_role)

    def change_busy(at: int) -> None:
        apply(view, [bind("one-9", "role-9", user(f"user{at}"))])
        chain.authorize(busy, asked)

    timed("a binding changes, and the next request of the busy one", 50, change_busy)


if __name__ == "__main__":
    main()
