"""What one rule grants and what it covers, straight from the definition.

`allows` is the reference; `table.RuleTable` answers the same from an index. `missing` is the privilege-escalation
check: rules are broken into atoms of one group, resource, verb and name (or one URL and verb), and each atom must be
covered by a single held rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from waypost.access.authz.records import PolicyRule, Strings
from waypost.access.authz.text import quoted_list
from waypost.access.gate import Attributes


def allows(rule: PolicyRule, asked: Attributes) -> bool:
    """Return whether one rule, by itself, grants a request."""
    return first_mismatch(rule, asked) == ""


def first_mismatch(rule: PolicyRule, asked: Attributes) -> str:
    """Return the first part of a rule that does not fit a request, empty when all fit.

    One of `kind` (URL rule against a resource or the reverse), `apiGroups`, `resources`, `resourceNames`,
    `nonResourceURLs`, `verbs`.
    """
    if asked.path:
        if not rule.non_resource_urls:
            return "kind"
        if not any(url_matches(entry, asked.path) for entry in rule.non_resource_urls):
            return "nonResourceURLs"
    else:
        if rule.non_resource_urls and not rule.resources:
            return "kind"
        if "*" not in rule.api_groups and asked.group not in rule.api_groups:
            return "apiGroups"
        if not resource_matches(rule.resources, asked.resource, asked.subresource):
            return "resources"
        if rule.resource_names and asked.name not in rule.resource_names:
            return "resourceNames"
    return "" if "*" in rule.verbs or asked.verb in rule.verbs else "verbs"


def url_matches(entry: str, path: str) -> bool:
    """Return whether an entry of `nonResourceURLs` matches: equal, or a prefix when it ends in `*`."""
    return entry == path or (entry.endswith("*") and path.startswith(entry.rstrip("*")))


def resource_matches(entries: Strings, resource: str, subresource: str) -> bool:
    """Return whether entries of `resources` match: `*`, `RES`, `RES/SUB`, or `*/SUB`."""
    wanted = f"{resource}/{subresource}" if subresource else resource
    return any(
        entry in ("*", wanted) or (subresource != "" and entry == f"*/{subresource}")
        for entry in entries
    )


def atoms(rule: PolicyRule) -> Iterator[PolicyRule]:
    """Yield the atoms of a rule."""
    for group in rule.api_groups:
        for resource in rule.resources:
            for verb in rule.verbs:
                base = PolicyRule(verbs=(verb,), api_groups=(group,), resources=(resource,))
                if not rule.resource_names:
                    yield base
                for name in rule.resource_names:
                    yield msgspec.structs.replace(base, resource_names=(name,))
    for url in rule.non_resource_urls:
        for verb in rule.verbs:
            yield PolicyRule(verbs=(verb,), non_resource_urls=(url,))


def covers(held: PolicyRule, atom: PolicyRule) -> bool:
    """Return whether one held rule grants all that an atom grants."""
    if not _has_all(held.verbs, atom.verbs) or not _has_all(held.api_groups, atom.api_groups):
        return False
    if held.resource_names and not (
        atom.resource_names and set(atom.resource_names) <= set(held.resource_names)
    ):
        return False
    return all(_resource_covered(held.resources, one) for one in atom.resources) and all(
        _url_covered(held.non_resource_urls, one) for one in atom.non_resource_urls
    )


def _has_all(held: Strings, wanted: Strings) -> bool:
    return "*" in held or all(one in held for one in wanted)


def _resource_covered(held: Strings, wanted: str) -> bool:
    if "*" in held or wanted in held:
        return True
    _, slash, subresource = wanted.partition("/")
    return slash != "" and f"*/{subresource}" in held


def _url_covered(held: Strings, wanted: str) -> bool:
    return any(
        one in ("*", wanted) or (one.endswith("*") and wanted.startswith(one.rstrip("*")))
        for one in held
    )


def missing(held: Sequence[PolicyRule], wanted: Iterable[PolicyRule]) -> list[PolicyRule]:
    """Return the atoms of `wanted` that no held rule covers, in order."""
    found = dict.fromkeys(atom for rule in wanted for atom in atoms(rule))
    return [atom for atom in found if not any(covers(one, atom) for one in held)]


def compact(found: Iterable[PolicyRule]) -> list[PolicyRule]:
    """Return atoms with those of the same group, resource and name made one rule, verbs in order of appearance."""
    merged: dict[tuple[Strings, Strings, Strings], list[str]] = {}
    others: list[PolicyRule] = []
    for rule in found:
        if rule.non_resource_urls:
            others.append(rule)
            continue
        key = (rule.api_groups, rule.resources, rule.resource_names)
        merged.setdefault(key, []).extend(rule.verbs)
    return others + [
        PolicyRule(
            verbs=tuple(dict.fromkeys(verbs)),
            api_groups=groups,
            resources=resources,
            resource_names=names,
        )
        for (groups, resources, names), verbs in merged.items()
    ]


def rule_text(rule: PolicyRule) -> str:
    """Return a rule as the original prints it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`."""
    parts = (
        ("APIGroups", rule.api_groups),
        ("Resources", rule.resources),
        ("NonResourceURLs", rule.non_resource_urls),
        ("ResourceNames", rule.resource_names),
        ("Verbs", rule.verbs),
    )
    return "{" + ", ".join(f"{name}:{quoted_list(of)}" for name, of in parts if of) + "}"
