"""ABAC: a policy file with one JSON object a line, read once at start.

Source: kube `abac.authorization.kubernetes.io/v1beta1`. A field that is not set is the empty string (core group,
cluster scope), not a wildcard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from waypost.access.actor import AUTHENTICATED, Actor
from waypost.access.authz.decision import Step
from waypost.access.authz.rules import url_matches
from waypost.access.gate import READ_VERBS, Attributes
from waypost.base.errors import Malformed

_API_VERSION: Final = "abac.authorization.kubernetes.io/v1beta1"


class AbacPolicy(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One line: who (user and group, both when both are set) may what."""

    user: str = ""
    group: str = ""
    readonly: bool = False
    api_group: str = ""
    resource: str = ""
    namespace: str = ""
    non_resource_path: str = ""


class _Line(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    spec: AbacPolicy = AbacPolicy()


def parse_policies(text: str, *, source: str) -> list[AbacPolicy]:
    """Return the policies of a file; `source` is its name for messages. Raises Malformed with the line."""
    found: list[AbacPolicy] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            read = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeEncodeError) as exc:
            msg = f"{source}:{number}: {exc}"
            raise Malformed(msg) from exc
        if (read.api_version, read.kind) != (_API_VERSION, "Policy"):
            msg = f'{source}:{number}: expected apiVersion "{_API_VERSION}" and kind "Policy"'
            raise Malformed(msg)
        policy = read.spec
        if "*" in (policy.user, policy.group):
            # Everybody means: everybody who has shown a credential.
            policy = msgspec.structs.replace(policy, group=AUTHENTICATED)
        found.append(policy)
    return found


class AbacAuthorizer:
    """Allows what some policy matches."""

    name: Final = "ABAC"

    def __init__(self, policies: Sequence[AbacPolicy]) -> None:
        self.policies = tuple(policies)

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        """Return allow or no opinion."""
        for policy in self.policies:
            if matches(policy, actor, asked):
                return Step(authorizer=self.name, verdict="allow")
        return Step(authorizer=self.name, verdict="no-opinion", reason="No policy matched.")


def matches(policy: AbacPolicy, actor: Actor, asked: Attributes) -> bool:
    """Return whether one policy allows a request."""
    if not policy.user and not policy.group:
        return False
    if policy.user and policy.user not in ("*", actor.user):
        return False
    if policy.group and policy.group not in actor.groups:
        return False
    if policy.readonly and asked.verb not in READ_VERBS:
        return False
    if asked.path:
        return url_matches(policy.non_resource_path, asked.path)
    return (
        policy.namespace in ("*", asked.namespace)
        and policy.resource in ("*", asked.resource)
        and policy.api_group in ("*", asked.group)
    )
