"""Aggregated roles: whose rules they have, in which order, and that it comes to rest."""

from __future__ import annotations

import random

import msgspec

from waypost.access.authz.aggregation import aggregate, aggregated_rules, selects, with_rules
from waypost.access.authz.records import LabelSelector, Requirement, parse_role

from . import policies as p


def test_selectors_in_order_roles_by_name_each_rule_once():
    a, b, c = p.rule("get"), p.rule("list"), p.rule("watch")
    roles = [
        p.cluster_role("z", a, labels={"one": "1"}),
        p.cluster_role("y", b, a, labels={"one": "1", "two": "2"}),
        p.cluster_role("x", c, labels={"two": "2"}),
        p.cluster_role(
            "self",
            labels={"one": "1"},
            aggregation=(
                LabelSelector(match_labels={"two": "2"}),
                LabelSelector(match_labels={"one": "1"}),
            ),
        ),
    ]
    assert aggregated_rules(roles[3], roles) == (c, b, a)


def test_aggregates_of_aggregates_are_followed_and_edits_are_undone():
    def to(name):
        return (LabelSelector(match_labels={"to": name}),)

    roles = [
        p.cluster_role("admin", p.rule("stray"), aggregation=to("admin")),
        p.cluster_role("edit", aggregation=to("edit"), labels={"to": "admin"}),
        p.cluster_role("view", aggregation=to("view"), labels={"to": "edit"}),
        p.cluster_role("part", p.rule(), labels={"to": "view"}),
    ]
    found = {role.name: role.rules for role in aggregate(roles)}
    assert found == dict.fromkeys(("admin", "edit", "view"), (p.rule(),))
    settled = [msgspec.structs.replace(r, rules=found.get(r.name, r.rules)) for r in roles]
    assert aggregate(settled) == []


def test_expressions():
    def one(operator, *values):
        expression = Requirement(key="k", operator=operator, values=values)
        return LabelSelector(match_expressions=(expression,))

    assert selects(LabelSelector(), {})
    assert selects(one("In", "a", "b"), {"k": "b"})
    assert not selects(one("In", "a"), {})
    assert selects(one("NotIn", "a"), {})
    assert not selects(one("NotIn", "a"), {"k": "a"})
    assert selects(one("Exists"), {"k": ""})
    assert selects(one("DoesNotExist"), {"x": ""})
    assert not selects(one("Like", "a"), {"k": "a"})


def test_it_comes_to_rest_whatever_the_labels():
    rng = random.Random(7)

    def labels():
        return {key: rng.choice("12") for key in rng.sample("ab", rng.randint(0, 2))}

    for _ in range(1500):
        roles = [
            p.cluster_role(
                f"r{at}",
                *p.random_rules(rng, 2),
                labels=labels(),
                aggregation=tuple(
                    LabelSelector(match_labels=labels()) for _ in range(rng.randint(0, 2))
                )
                if rng.random() < 0.6
                else None,
            )
            for at in range(rng.randint(0, 6))
        ]
        found = {role.name: role for role in aggregate(roles)}
        settled = [found.get(role.name, role) for role in roles]
        assert aggregate(settled) == []
        for one in settled:
            if one.aggregation is not None:
                assert set(aggregated_rules(one, settled)) == set(one.rules)


def test_a_ring_holds_only_what_comes_from_outside():
    def one(name, to, of, *rules):
        by = (LabelSelector(match_labels={"to": of}),)
        return p.cluster_role(name, *rules, labels={"to": to}, aggregation=by)

    ring = [
        one("a", "c", "a", p.rule("stray")),
        one("b", "a", "b", p.rule("other")),
        one("c", "b", "c"),
        p.cluster_role("part", p.rule(), labels={"to": "b"}),
    ]
    found = {role.name: role.rules for role in aggregate(ring)}
    assert found == dict.fromkeys("abc", (p.rule(),))


def test_rules_are_rewritten_and_nothing_else():
    body = b'{"metadata":{"name":"r","uid":"u"},"future":1,"rules":null}'
    after = with_rules(body, (p.rule(),))
    assert parse_role(after, kind="ClusterRole").rules == (p.rule(),)
    assert msgspec.json.decode(with_rules(after, ())) == msgspec.json.decode(body)
