"""Questions about the policy: what may I, who can, and what looks wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from waypost.access.actor import ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED, Actor
from waypost.access.authz.decision import Grant, Step
from waypost.access.authz.rbac import RbacIndex, actor_keys, missing_role_text, subject_key
from waypost.access.authz.records import GROUP, Binding, PolicyRule, Role, Subject
from waypost.access.authz.rules import allows, resource_matches
from waypost.access.authz.text import aggregate
from waypost.access.gate import Attributes

# -- SelfSubjectRulesReview ----------------------------------------------------------------------------------------------


class RulesReview(msgspec.Struct, frozen=True, kw_only=True):
    """What an actor may do in a namespace."""

    resource_rules: tuple[PolicyRule, ...]
    non_resource_rules: tuple[PolicyRule, ...]
    incomplete: bool
    evaluation_error: str = ""

    @property
    def status(self) -> dict[str, Any]:
        """The `status` of a SelfSubjectRulesReview."""
        status: dict[str, Any] = {
            "resourceRules": [_resource_rule(rule) for rule in self.resource_rules],
            "nonResourceRules": [
                {"verbs": list(rule.verbs), "nonResourceURLs": list(rule.non_resource_urls)}
                for rule in self.non_resource_rules
            ],
            "incomplete": self.incomplete,
        }
        if self.evaluation_error:
            status["evaluationError"] = self.evaluation_error
        return status


def _resource_rule(rule: PolicyRule) -> dict[str, list[str]]:
    parts = (
        ("verbs", rule.verbs),
        ("apiGroups", rule.api_groups),
        ("resources", rule.resources),
        ("resourceNames", rule.resource_names),
    )
    return {name: list(values) for name, values in parts if values}


_CANNOT_LIST: Final = {
    "Node": "node authorizer does not support user rule resolution",
    "Webhook": "webhook authorizer does not support user rule resolution",
}


def review_rules(
    index: RbacIndex, actor: Actor, namespace: str, *, authorizers: Sequence[str] = ("RBAC",)
) -> RulesReview:
    """Return the rules that `actor` holds in `namespace`; `authorizers` are the names of the chain.

    Authorizers that cannot list rules make the answer incomplete, as in the original.
    """
    rules: list[PolicyRule] = []
    errors: list[str] = []
    if MASTERS in actor.groups or "AlwaysAllow" in authorizers:
        rules += [
            PolicyRule(verbs=("*",), api_groups=("*",), resources=("*",)),
            PolicyRule(verbs=("*",), non_resource_urls=("*",)),
        ]
    if "RBAC" in authorizers:
        held, unresolved = index.rules(actor, namespace)
        rules += held
        errors += unresolved
    errors += [
        text
        for name in authorizers
        for prefix, text in _CANNOT_LIST.items()
        if name.startswith(prefix)
    ]
    return RulesReview(
        resource_rules=tuple(rule for rule in rules if rule.resources),
        non_resource_rules=tuple(rule for rule in rules if rule.non_resource_urls),
        incomplete=bool(errors),
        evaluation_error=aggregate(errors) if errors else "",
    )


# -- who can -------------------------------------------------------------------------------------------------------------


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A subject that may, and why."""

    subject: Subject
    grant: Grant


def who_can(index: RbacIndex, asked: Attributes) -> list[Holder]:
    """Return every subject that RBAC lets do this, with each grant, in order of bindings.

    Members of `system:masters` may do everything besides; webhooks and ABAC are not looked at.
    """
    found: list[Holder] = []
    for binding in index.bindings():
        if binding.namespace and (binding.namespace != asked.namespace or asked.path):
            continue
        role = index.role_of(binding)
        at = _first_rule(role, asked)
        if role is None or at is None:
            continue
        found += [
            Holder(subject=subject, grant=_grant(binding, subject, role, at))
            for subject in binding.subjects
            if subject_key(subject, namespace=binding.namespace) is not None
        ]
    return found


def _first_rule(role: Role | None, asked: Attributes) -> int | None:
    rules = role.rules if role is not None else ()
    return next((at for at, rule in enumerate(rules) if allows(rule, asked)), None)


def _grant(binding: Binding, subject: Subject, role: Role, at: int) -> Grant:
    return Grant(
        binding_kind=binding.kind,
        namespace=binding.namespace,
        binding=binding.name,
        subject=subject,
        role_kind=role.kind,
        role=role.name,
        rule_index=at,
        rule=role.rules[at],
    )


def grants(index: RbacIndex, actor: Actor, asked: Attributes) -> list[Grant]:
    """Return every grant that lets `actor` do this: taking away one may not be enough."""
    found: list[Grant] = []
    for binding, subject in index.bindings_of(actor, "" if asked.path else asked.namespace):
        role = index.role_of(binding)
        at = _first_rule(role, asked)
        if role is not None and at is not None:
            found.append(_grant(binding, subject, role, at))
    return found


# -- reach and change ----------------------------------------------------------------------------------------------------


def reach(index: RbacIndex, actor: Actor) -> list[tuple[Binding, Subject]]:
    """Return every binding that matches `actor`, those of the cluster first: where it has any rights at all."""
    keys = set(actor_keys(actor))
    found: list[tuple[Binding, Subject]] = []
    for binding in index.bindings():
        for subject in binding.subjects:
            if subject_key(subject, namespace=binding.namespace) in keys:
                found.append((binding, subject))
                break
    return found


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A request that another policy decides otherwise."""

    actor: Actor
    asked: Attributes
    before: Step
    after: Step


def outcome_changes(
    before: RbacIndex, after: RbacIndex, questions: Iterable[tuple[Actor, Attributes]]
) -> list[Outcome]:
    """Return which of the given requests (of an audit log, say) `after` decides otherwise than `before`."""
    found: list[Outcome] = []
    for actor, asked in questions:
        old, new = before.decide(actor, asked), after.decide(actor, asked)
        if old.verdict != new.verdict:
            found.append(Outcome(actor=actor, asked=asked, before=old, after=new))
    return found


# -- lint ----------------------------------------------------------------------------------------------------------------

Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the policy that is probably not meant."""

    code: str
    severity: Severity
    kind: str
    namespace: str
    name: str
    text: str


_SENSITIVE_VERBS: Final = ("escalate", "bind", "impersonate")


def lint(index: RbacIndex, *, known: Callable[[Subject, str], bool] | None = None) -> list[Finding]:
    """Return what looks wrong in a policy, errors first.

    `known(subject, namespace)` says whether a subject exists; without it that is not looked at. Default roles and
    bindings are taken as meant.
    """
    findings: list[Finding] = []
    used: set[tuple[str, str, str]] = set()
    for binding in index.bindings():
        role = index.role_of(binding)
        if role is not None:
            used.add((role.kind, role.namespace, role.name))
        findings += _lint_binding(binding, role, known)
    for role in index.roles():
        findings += _lint_role(role)
        if (role.kind, role.namespace, role.name) not in used and not _contributes(role):
            findings.append(_finding("unused-role", "note", role, "no binding uses it"))
    order = ("error", "warning", "note")
    return sorted(
        findings, key=lambda one: (order.index(one.severity), one.code, one.namespace, one.name)
    )


def _default(record: Role | Binding) -> bool:
    return record.labels.get("kubernetes.io/bootstrapping") == "rbac-defaults"


def _contributes(role: Role) -> bool:
    return _default(role) or any("aggregate-to-" in label for label in role.labels)


def _finding(code: str, severity: Severity, record: Role | Binding, text: str) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        kind=record.kind,
        namespace=record.namespace,
        name=record.name,
        text=text,
    )


def _lint_binding(
    binding: Binding, role: Role | None, known: Callable[[Subject, str], bool] | None
) -> Iterator[Finding]:
    if role is None:
        text = f"grants nothing: {missing_role_text(binding.role_ref)}"
        yield _finding("missing-role", "error", binding, text)
    if not binding.subjects and not _default(binding):
        yield _finding(
            "no-subjects", "warning", binding, "grants nobody anything: it has no subjects"
        )
    if role is not None and binding.namespace and any(r.non_resource_urls for r in role.rules):
        yield _finding(
            "urls-in-namespace",
            "warning",
            binding,
            f"the nonResourceURLs of {role.kind} {role.name} have no effect in a RoleBinding",
        )
    seen: set[Subject] = set()
    for subject in binding.subjects:
        if subject in seen:
            yield _finding(
                "duplicate-subject", "note", binding, f"names {subject.kind} {subject.name} twice"
            )
        seen.add(subject)
        yield from _lint_subject(binding, role, subject)
        if known is not None and not known(subject, binding.namespace):
            yield _finding(
                "unknown-subject", "warning", binding, f"{subject.kind} {subject.name} is not known"
            )


def _lint_subject(binding: Binding, role: Role | None, subject: Subject) -> Iterator[Finding]:
    if subject.kind == "User" and subject.name in (AUTHENTICATED, UNAUTHENTICATED, MASTERS):
        yield _finding(
            "group-as-user", "error", binding, f"{subject.name} is a group, but bound as a User"
        )
    if "*" in subject.name:
        yield _finding(
            "literal-star",
            "warning",
            binding,
            f'"*" in {subject.kind} {subject.name} is no wildcard',
        )
    if _default(binding):
        return
    if subject.name in (ANONYMOUS, UNAUTHENTICATED):
        yield _finding(
            "anonymous",
            "warning",
            binding,
            f"grants {binding.role_ref.name} to callers without a credential",
        )
    if role is not None and any(everything(rule) for rule in role.rules):
        where = f"namespace {binding.namespace}" if binding.namespace else "the whole cluster"
        yield _finding(
            "all-powerful",
            "warning",
            binding,
            f"makes {subject.kind} {subject.name} all-powerful in {where}",
        )


def everything(rule: PolicyRule) -> bool:
    """Return whether a rule grants every verb on every resource."""
    return "*" in rule.verbs and "*" in rule.api_groups and "*" in rule.resources


def _lint_role(role: Role) -> Iterator[Finding]:
    if _default(role):
        return
    for at, rule in enumerate(role.rules):
        where = f"rules[{at}]"
        if not rule.non_resource_urls:
            stars = [
                name
                for name, values in (
                    ("verbs", rule.verbs), ("apiGroups", rule.api_groups), ("resources", rule.resources),
                )
                if "*" in values
            ]  # fmt: skip
            if stars:
                yield _finding("wildcard", "warning", role, f"{where}: * in {', '.join(stars)}")
        elif "*" in rule.non_resource_urls:
            yield _finding("wildcard", "warning", role, f"{where}: * in nonResourceURLs")
        yield from _lint_rule(role, rule, where)


def _lint_rule(role: Role, rule: PolicyRule, where: str) -> Iterator[Finding]:
    held = [verb for verb in _SENSITIVE_VERBS if verb in rule.verbs]
    if held:
        yield _finding(
            "escalation", "warning", role, f"{where}: {', '.join(held)} can lead to any other right"
        )
    if rule.resource_names and _any_of(rule.verbs, ("create", "deletecollection")):
        yield _finding(
            "names-without-name",
            "warning",
            role,
            f"{where}: create and deletecollection carry no name, so resourceNames makes them match nothing",
        )
    if (
        "" in rule.api_groups
        and resource_matches(rule.resources, "secrets", "")
        and _any_of(rule.verbs, ("list", "watch"))
        and not rule.resource_names
    ):
        yield _finding(
            "secrets", "warning", role, f"{where}: list and watch show the contents of all secrets"
        )
    for entry in rule.resources:
        if entry != "*" and "*" in entry and not (entry.startswith("*/") and "*" not in entry[2:]):
            yield _finding(
                "literal-star",
                "warning",
                role,
                f'{where}: "{entry}" is no pattern and matches nothing',
            )
    if rule.api_groups and "" in rule.api_groups and _any_of(rule.resources, tuple(_MOVED)):
        for name in rule.resources:
            if name in _MOVED and len(rule.api_groups) == 1:
                yield _finding(
                    "wrong-group",
                    "warning",
                    role,
                    f'{where}: {name} is in group "{_MOVED[name]}", not in ""',
                )


_MOVED: Final = {
    **dict.fromkeys(("roles", "rolebindings", "clusterroles", "clusterrolebindings"), GROUP),
    "leases": "coordination.k8s.io",
    "certificatesigningrequests": "certificates.k8s.io",
    "checks": "discovery.waypost.io",
    "sessions": "discovery.waypost.io",
}


def _any_of(values: Iterable[str], wanted: Iterable[str]) -> bool:
    return bool(set(values) & set(wanted))
