"""Which requests are written down, and how much of them: a policy of `audit.k8s.io/v1`.

The first rule that matches gives the level; without one nothing is written. Source: kube "Auditing", and the matching
rules of its policy evaluator.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Any, Final

import msgspec

from waypost.access.actor import UNAUTHENTICATED, Actor
from waypost.access.gate import DISCOVERY, GROUP, Attributes
from waypost.base.errors import Malformed

_API_VERSIONS: Final = ("audit.k8s.io/v1",)


class Level(IntEnum):
    """How much of a request is written."""

    NONE = 0
    METADATA = 1
    REQUEST = 2
    REQUEST_RESPONSE = 3

    @property
    def text(self) -> str:
        """The level's name in policies and events."""
        return _LEVEL_NAMES[self]


_LEVEL_NAMES: Final = {
    Level.NONE: "None",
    Level.METADATA: "Metadata",
    Level.REQUEST: "Request",
    Level.REQUEST_RESPONSE: "RequestResponse",
}
_LEVELS: Final = {name: level for level, name in _LEVEL_NAMES.items()}


class Stage(StrEnum):
    """When an event is written."""

    REQUEST_RECEIVED = "RequestReceived"
    RESPONSE_STARTED = "ResponseStarted"
    RESPONSE_COMPLETE = "ResponseComplete"
    PANIC = "Panic"


class ResourceRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resources of one group; no resources: all of it."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = msgspec.field(name="resourceNames", default=())


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule; what is empty matches everything."""

    level: Level
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    resources: tuple[ResourceRule, ...] = ()
    namespaces: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    omits: frozenset[Stage] = frozenset()


class Policy(msgspec.Struct, frozen=True):
    """Rules in the order they are asked."""

    rules: tuple[Rule, ...] = ()

    def decide(self, actor: Actor | None, asked: Attributes, path: str) -> Verdict:
        """Return what to write of a request by `actor` (None: nobody was believed) for the URL `path`."""
        for rule in self.rules:
            if matches(rule, actor, asked, path):
                return Verdict(rule.level, rule.omits)
        return _NOTHING


class Verdict(msgspec.Struct, frozen=True):
    """The level for one request, and the stages that are left out."""

    level: Level
    omits: frozenset[Stage] = frozenset()


_NOTHING: Final = Verdict(Level.NONE)


def matches(rule: Rule, actor: Actor | None, asked: Attributes, path: str) -> bool:
    """Return whether a rule is for this request."""
    if rule.users and (actor is None or actor.user not in rule.users):
        return False
    if rule.groups and (actor is None or not set(rule.groups) & set(actor.groups)):
        return False
    if rule.verbs and asked.verb not in rule.verbs:
        return False
    if rule.namespaces or rule.resources:
        return _matches_resource(rule, asked)
    if rule.paths:
        # The endpoints of Consul's API have a URL of their own and a resource, so they can be named by either.
        is_object = path.startswith(("/api/", "/apis/")) and not asked.path
        return not is_object and any(_path_matches(one, path) for one in rule.paths)
    return True


def _path_matches(pattern: str, path: str) -> bool:
    if pattern == "*" or pattern == path:
        return True
    return pattern.endswith("*") and path.startswith(pattern.rstrip("*"))


def _matches_resource(rule: Rule, asked: Attributes) -> bool:
    if asked.path or (rule.namespaces and asked.namespace not in rule.namespaces):
        return False
    return not rule.resources or any(_names(one, asked) for one in rule.resources)


def _names(rule: ResourceRule, asked: Attributes) -> bool:
    if rule.group != asked.group:
        return False
    if not rule.resources:
        return True
    if rule.resource_names and asked.name not in rule.resource_names:
        return False
    full = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    for pattern in rule.resources:
        if pattern in ("*", full):
            return True
        if asked.subresource and pattern == f"*/{asked.subresource}":
            return True
        if pattern == f"{asked.resource}/*":
            return True
    return False


# -- the file ------------------------------------------------------------------------------------------------------------


class _RuleJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    level: str = ""
    users: tuple[str, ...] | None = None
    user_groups: tuple[str, ...] | None = None
    verbs: tuple[str, ...] | None = None
    resources: tuple[ResourceRule, ...] | None = None
    namespaces: tuple[str, ...] | None = None
    non_resource_urls: tuple[str, ...] | None = msgspec.field(name="nonResourceURLs", default=None)
    omit_stages: tuple[str, ...] | None = None
    omit_managed_fields: bool | None = None


class _PolicyJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    metadata: dict[str, Any] | None = None
    rules: tuple[_RuleJson, ...] | None = None
    omit_stages: tuple[str, ...] | None = None
    omit_managed_fields: bool = False


def parse_policy(document: Any, *, name: str) -> Policy:
    """Return the policy of a decoded file. Raises Malformed with the file and the place."""
    try:
        found = msgspec.convert(document, _PolicyJson)
    except msgspec.ValidationError as exc:
        raise Malformed(f"{name}: {exc}") from exc
    if found.kind != "Policy" or found.api_version not in _API_VERSIONS:
        raise Malformed(
            f"{name}: expected kind Policy of {_API_VERSIONS[0]}, found {found.kind!r} of {found.api_version!r}"
        )
    if not found.rules:
        raise Malformed(f"{name}: rules: a policy without rules writes nothing; name at least one")
    everywhere = _stages(found.omit_stages, f"{name}: omitStages")
    return Policy(
        tuple(_rule(one, everywhere, f"{name}: rules[{at}]") for at, one in enumerate(found.rules))
    )


def _stages(texts: Sequence[str] | None, where: str) -> frozenset[Stage]:
    found = set()
    for at, text in enumerate(texts or ()):
        if text not in tuple(Stage):
            raise Malformed(f"{where}[{at}]: {text!r} is none of {', '.join(Stage)}")
        found.add(Stage(text))
    return frozenset(found)


def _rule(found: _RuleJson, everywhere: frozenset[Stage], where: str) -> Rule:
    level = _LEVELS.get(found.level)
    if level is None:
        raise Malformed(f"{where}.level: {found.level!r} is none of {', '.join(_LEVELS)}")
    if found.non_resource_urls and (found.resources or found.namespaces):
        raise Malformed(f"{where}: a rule is for nonResourceURLs or for resources, not for both")
    for at, url in enumerate(found.non_resource_urls or ()):
        if url != "*" and (not url.startswith("/") or "*" in url.removesuffix("*")):
            raise Malformed(
                f"{where}.nonResourceURLs[{at}]: {url!r} must start with / and may end with *"
            )
    for at, one in enumerate(found.resources or ()):
        if one.resource_names and not one.resources:
            raise Malformed(f"{where}.resources[{at}]: resourceNames need resources")
        if "/" in one.group:
            raise Malformed(f"{where}.resources[{at}].group: {one.group!r}: without a version")
    return Rule(
        level=level,
        users=found.users or (),
        groups=found.user_groups or (),
        verbs=found.verbs or (),
        resources=found.resources or (),
        namespaces=found.namespaces or (),
        paths=found.non_resource_urls or (),
        omits=everywhere | _stages(found.omit_stages, f"{where}.omitStages"),
    )


def default_policy() -> Policy:
    """Return what is written without a policy file: everything but finding services and looking at health and pages.

    A kube-apiserver writes nothing without a file; who asks for a log here gets one.
    """
    received = frozenset({Stage.REQUEST_RECEIVED})
    reads = ("get", "list", "watch")
    return Policy(
        (
            Rule(
                level=Level.NONE,
                groups=(UNAUTHENTICATED, "waypost:local"),
                verbs=reads,
                resources=(ResourceRule(GROUP, tuple(sorted(DISCOVERY))),),
            ),
            Rule(
                level=Level.NONE,
                verbs=("get", "head"),
                paths=(
                    "/healthz*", "/livez*", "/readyz*", "/version", "/openapi*", "/api", "/apis", "/api/*", "/apis/*",
                    "/ui/*", "/", "/v1/status/*",
                ),
            ),
            Rule(level=Level.METADATA, omits=received),
        )
    )  # fmt: skip
