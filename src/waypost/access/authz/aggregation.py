"""Which rules an aggregated ClusterRole has: those of all ClusterRoles that its selectors match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from waypost.access.authz.records import (
    LabelSelector,
    PolicyRule,
    Requirement,
    Role,
    rule_document,
)


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Return whether labels match; an empty selector matches all."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(one, labels) for one in selector.match_expressions
    )


def _holds(one: Requirement, labels: Mapping[str, str]) -> bool:
    match one.operator:
        case "In":
            return one.key in labels and labels[one.key] in one.values
        case "NotIn":
            return one.key not in labels or labels[one.key] not in one.values
        case "Exists":
            return one.key in labels
        case "DoesNotExist":
            return one.key not in labels
    return False


def aggregated_rules(role: Role, roles: Iterable[Role]) -> tuple[PolicyRule, ...]:
    """Return the rules of an aggregated role: selectors in order, roles by name, each rule once, itself left out."""
    found: dict[PolicyRule, None] = {}
    ordered = sorted(roles, key=lambda one: one.name)
    for selector in role.aggregation or ():
        for other in ordered:
            if other.name != role.name and selects(selector, other.labels):
                found.update(dict.fromkeys(other.rules))
    return tuple(found)


def aggregate(roles: Iterable[Role]) -> list[Role]:
    """Return the ClusterRoles whose rules must be rewritten, with the rules they are to have.

    Roles aggregate each other by labels (view → edit → admin), so one pass is not enough. Aggregated roles start
    without rules: so what somebody wrote into one of them does not travel on, and roles that aggregate each other in
    a ring come to rest instead of handing each other their rules for ever.
    """
    before = {role.name: role for role in roles if role.kind == "ClusterRole"}
    aggregating = sorted(name for name, role in before.items() if role.aggregation is not None)
    now = before | {name: msgspec.structs.replace(before[name], rules=()) for name in aggregating}
    # Without a ring, as many rounds as there are levels are enough; in a ring only the order could go on changing.
    for _ in range(2 * len(aggregating) + 1):
        changed = False
        for name in aggregating:
            rules = aggregated_rules(now[name], now.values())
            if rules != now[name].rules:
                now[name] = msgspec.structs.replace(now[name], rules=rules)
                changed = True
        if not changed:
            break
    return [now[name] for name in aggregating if now[name].rules != before[name].rules]


def with_rules(body: bytes, rules: Iterable[PolicyRule]) -> bytes:
    """Return a stored role with other rules and everything else as it was."""
    document = msgspec.json.decode(body)
    document["rules"] = [rule_document(rule) for rule in rules] or None
    return msgspec.json.encode(document)
