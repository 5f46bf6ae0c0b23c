"""Rules compiled for look-up.

Whatever the number of rules, names or URL prefixes, a question is at most a dozen dictionary look-ups: one for each
combination of the asked value and `*` that occurs in the rules at all. `rules.allows` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence

from waypost.access.authz.records import PolicyRule
from waypost.access.gate import Attributes

NONE = -1


class _Slot:
    """First rule of a (verb, group, resource) for any name, and for single names."""

    __slots__ = ("any_name", "names")

    def __init__(self) -> None:
        self.any_name = NONE
        self.names: dict[str, int] = {}


class RuleTable:
    """Finds the first of `rules` that grants a request."""

    __slots__ = ("_all_groups", "_all_resources", "_all_verbs", "_prefixes", "_resources", "_star_subs", "_url_all_verbs", "_url_lengths", "_urls")  # fmt: skip

    def __init__(self, rules: Sequence[PolicyRule]) -> None:
        self._resources: dict[tuple[str, str, str], _Slot] = {}
        self._all_verbs = self._all_groups = self._all_resources = self._star_subs = False
        self._urls: dict[tuple[str, str], int] = {}
        self._prefixes: dict[tuple[str, str], int] = {}
        self._url_lengths: tuple[int, ...] = ()
        self._url_all_verbs = False
        for at, rule in enumerate(rules):
            self._add_resources(at, rule)
            self._add_urls(at, rule)
        self._url_lengths = tuple(sorted({len(prefix) for _, prefix in self._prefixes}))

    def _add_resources(self, at: int, rule: PolicyRule) -> None:
        if not rule.resources:
            return
        self._all_verbs |= "*" in rule.verbs
        self._all_groups |= "*" in rule.api_groups
        self._all_resources |= "*" in rule.resources
        self._star_subs |= any(one.startswith("*/") for one in rule.resources)
        for verb in rule.verbs:
            for group in rule.api_groups:
                for resource in rule.resources:
                    slot = self._resources.setdefault((verb, group, resource), _Slot())
                    if rule.resource_names:
                        for name in rule.resource_names:
                            slot.names.setdefault(name, at)
                    elif slot.any_name == NONE:
                        slot.any_name = at

    def _add_urls(self, at: int, rule: PolicyRule) -> None:
        if not rule.non_resource_urls:
            return
        self._url_all_verbs |= "*" in rule.verbs
        for verb in rule.verbs:
            for url in rule.non_resource_urls:
                self._urls.setdefault((verb, url), at)
                if url.endswith("*"):
                    self._prefixes.setdefault((verb, url.rstrip("*")), at)

    def find(self, asked: Attributes) -> int:
        """Return the index of the first rule that grants a request, or NONE."""
        return self._find_url(asked.verb, asked.path) if asked.path else self._find_resource(asked)

    def _find_resource(self, asked: Attributes) -> int:
        resource = asked.resource
        resources: tuple[str, ...]
        if asked.subresource:
            resource = f"{resource}/{asked.subresource}"
            if self._star_subs:
                resources = (resource, f"*/{asked.subresource}", "*")
            else:
                resources = (resource, "*") if self._all_resources else (resource,)
        else:
            resources = (resource, "*") if self._all_resources else (resource,)
        verbs = (asked.verb, "*") if self._all_verbs else (asked.verb,)
        groups = (asked.group, "*") if self._all_groups else (asked.group,)
        best = NONE
        slots = self._resources
        for verb in verbs:
            for group in groups:
                for one in resources:
                    slot = slots.get((verb, group, one))
                    if slot is None:
                        continue
                    at = slot.any_name
                    if at != NONE and (best == NONE or at < best):
                        best = at
                    if slot.names:
                        at = slot.names.get(asked.name, NONE)
                        if at != NONE and (best == NONE or at < best):
                            best = at
        return best

    def _find_url(self, verb: str, path: str) -> int:
        best = NONE
        for one in (verb, "*") if self._url_all_verbs else (verb,):
            at = self._urls.get((one, path), NONE)
            if at != NONE and (best == NONE or at < best):
                best = at
            for length in self._url_lengths:
                if length > len(path):
                    break
                at = self._prefixes.get((one, path[:length]), NONE)
                if at != NONE and (best == NONE or at < best):
                    best = at
        return best
