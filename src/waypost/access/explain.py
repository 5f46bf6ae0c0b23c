"""Why a request is allowed or refused: one record, one screen, and the smallest change that would allow it.

`explain` is pure: it asks every authorizer of a chain for what it knows. Webhooks whose answer is not known appear as
not asked; await `Chain.resolve` first to have them asked.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from waypost.access.actor import (
    ANONYMOUS,
    AUTHENTICATED,
    MASTERS,
    UNAUTHENTICATED,
    Actor,
)
from waypost.access.authz.chain import MASTERS_STEP, Chain, conclude
from waypost.access.authz.decision import Decision, Grant, Step
from waypost.access.authz.escalation import Held, check_role
from waypost.access.authz.rbac import (
    RbacIndex,
    actor_keys,
    missing_role_text,
    subject_key,
    subject_text,
)
from waypost.access.authz.records import (
    GROUP,
    SERVICE_ACCOUNT_PREFIX,
    Binding,
    PolicyRule,
    Role,
    RoleRef,
    Subject,
    binding_document,
    role_document,
)
from waypost.access.authz.review import everything, grants
from waypost.access.authz.rules import allows, first_mismatch, resource_matches, rule_text
from waypost.access.authz.text import action, forbidden
from waypost.access.gate import Attributes
from waypost.base.later import later
from waypost.base.quoting import quoted

if TYPE_CHECKING:
    import yaml
else:
    yaml = later("yaml")

_MAX_NEAR_MISSES: Final = 5
_MAX_GRANTS: Final = 5
_SHORT_NAMES: Final = {
    "po": "pods", "svc": "services", "ns": "namespaces", "no": "nodes", "sa": "serviceaccounts", "cm": "configmaps",
    "ep": "endpoints", "csr": "certificatesigningrequests", "deploy": "deployments", "ds": "daemonsets",
    "rs": "replicasets", "sts": "statefulsets", "ing": "ingresses", "pod": "pods", "node": "nodes",
    "service": "services", "check": "checks", "session": "sessions", "secret": "secrets", "role": "roles",
}  # fmt: skip
_CLUSTER_SCOPED: Final = frozenset(
    {
        "nodes",
        "persistentvolumes",
        "clusterroles",
        "clusterrolebindings",
        "certificatesigningrequests",
    }
)
_KNOWN_VERBS: Final = frozenset(
    {
        "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy", "escalate", "bind",
        "impersonate", "approve", "sign", "attest", "use",
    }
)  # fmt: skip


# -- the record ----------------------------------------------------------------------------------------------------------


class Membership(msgspec.Struct, frozen=True):
    """A group and where it comes from: a certificate's O, a claim, a file, or added by the server."""

    group: str
    origin: str


class NearMiss(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the policy that almost allowed a request."""

    kind: Literal["missing-role", "rule", "scope", "subject"]
    binding_kind: str
    namespace: str
    binding: str
    role_kind: str
    role: str
    rule_index: int | None = None
    part: str = ""
    """The part of the rule that does not fit: verbs, apiGroups, resources, resourceNames, nonResourceURLs."""
    text: str
    rank: int
    """0 is nearest."""


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest policy that would allow a request."""

    manifest: str
    """The role and the binding as YAML."""
    commands: tuple[str, ...]
    """The same as kubectl commands."""
    existing: tuple[str, ...] = ()
    """Commands that bind a role which is there already and allows this and more, smallest first."""
    lacking: tuple[str, ...] = ()
    """Rules that who asks would have to hold to make this role; only when that was asked."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to say about one decision."""

    verdict: Literal["allow", "deny", "no-opinion"]
    message: str
    """The message of the 403; empty when it is allowed."""
    user: str
    uid: str
    origin: str
    address: str
    groups: tuple[Membership, ...]
    asked: Attributes
    action: str
    notes: tuple[str, ...]
    """What is surprising about the question."""
    steps: tuple[Step, ...]
    """Every authorizer's answer, those behind the one that decided included."""
    decided_by: str
    reason: str
    error: str
    grants: tuple[Grant, ...]
    """Every RBAC grant that allows this."""
    near_misses: tuple[NearMiss, ...]
    fix: Fix | None
    incomplete: bool
    """Whether an authorizer could not be asked."""

    @property
    def exit_code(self) -> int:
        """0 allowed, 1 refused, 2 not known because somebody could not be asked."""
        if self.verdict == "allow":
            return 0
        return 2 if self.incomplete else 1

    @property
    def json(self) -> bytes:
        """The record as JSON."""
        return msgspec.json.encode(self)


def explain(
    chain: Chain,
    index: RbacIndex,
    actor: Actor,
    asked: Attributes,
    *,
    origins: Mapping[str, str] | None = None,
    held: Held | None = None,
    asker: Actor | None = None,
) -> Explanation:
    """Explain what `chain` decides about a request of `actor`.

    `origins` says where groups come from. With `held` and `asker`, the fix says what `asker` lacks to make it.
    """
    steps, decision = _ask_everybody(chain, actor, asked)
    allowed = decision.verdict == "allow"
    undecided = any(step.error == _NOT_ASKED for step in steps)
    decider = decision.trace[-1] if decision.trace and decision.verdict != "no-opinion" else None
    refused_by_policy = decision.verdict == "no-opinion"
    return Explanation(
        verdict=decision.verdict,
        message="" if allowed else forbidden(actor.user, asked, decision.reason),
        user=actor.user,
        uid=actor.uid,
        origin=actor.origin,
        address=actor.address,
        groups=tuple(
            Membership(group, (origins or {}).get(group) or _usual_origin(group))
            for group in actor.groups
        ),
        asked=asked,
        action=action(asked),
        notes=tuple(_notes(actor, asked)),
        steps=steps,
        decided_by=decider.authorizer if decider is not None else "",
        reason=decision.reason,
        error=decision.error,
        grants=tuple(grants(index, actor, asked)),
        near_misses=tuple(near_misses(index, actor, asked)) if refused_by_policy else (),
        fix=smallest_fix(index, actor, asked, held=held, asker=asker)
        if refused_by_policy
        else None,
        incomplete=undecided,
    )


_NOT_ASKED: Final = "not asked"


def _ask_everybody(
    chain: Chain, actor: Actor, asked: Attributes
) -> tuple[tuple[Step, ...], Decision]:
    steps: list[Step] = []
    if MASTERS in actor.groups:
        steps.append(MASTERS_STEP)
    for authorizer in chain.authorizers:
        step = authorizer.authorize(actor, asked)
        steps.append(
            step or Step(authorizer=authorizer.name, verdict="no-opinion", error=_NOT_ASKED)
        )
    until = next(
        (at for at, step in enumerate(steps, start=1) if step.verdict != "no-opinion"), len(steps)
    )
    return tuple(steps), conclude(steps[:until])


def _usual_origin(group: str) -> str:
    if group in (AUTHENTICATED, UNAUTHENTICATED):
        return "added to every caller"
    if group.startswith("system:serviceaccounts"):
        return "added to every service account"
    return ""


def _notes(actor: Actor, asked: Attributes) -> Iterator[str]:
    if actor.user == ANONYMOUS:
        yield "no credential was accepted, so this is the anonymous user"
    if asked.path:
        if asked.verb == "head":
            yield 'HEAD of a plain path is the verb "head", which "get" does not cover'
        return
    if asked.verb not in _KNOWN_VERBS:
        if asked.verb.lower() in _KNOWN_VERBS:
            yield f'verbs are lower case: "{asked.verb.lower()}"'
        else:
            yield f"{quoted(asked.verb)} is no verb of any API; only a rule that names it, or *, allows it"
    if "/" in asked.resource:
        yield f"{quoted(asked.resource)} holds a slash: give the subresource by itself"
    known = _SHORT_NAMES.get(asked.resource)
    if known is not None:
        yield f"rules name resources in the plural: {quoted(known)}, not {quoted(asked.resource)}"
    if asked.name and nameless(asked):
        yield f"{asked.verb} carries no name: a real request would be asked without {quoted(asked.name)}"
    if asked.namespace and asked.resource in _CLUSTER_SCOPED:
        yield f"{asked.resource} have no namespace: a real request would be asked without {quoted(asked.namespace)}"


def nameless(asked: Attributes) -> bool:
    """Return whether a real request of this verb carries no name, so that rules must not have one."""
    return asked.verb in ("create", "deletecollection") and not asked.subresource


# -- near misses ---------------------------------------------------------------------------------------------------------


def near_misses(index: RbacIndex, actor: Actor, asked: Attributes) -> list[NearMiss]:
    """Return what almost allowed a request, nearest first, at most five."""
    found: list[NearMiss] = []
    keys = set(actor_keys(actor))
    for binding in index.bindings():
        mine = next(
            (
                one
                for one in binding.subjects
                if subject_key(one, namespace=binding.namespace) in keys
            ),
            None,
        )
        role = index.role_of(binding)
        if mine is None:
            found += _other_subject(binding, role, actor, asked)
        elif role is None:
            found += _dangling(binding, asked)
        elif binding.namespace and (asked.path or binding.namespace != asked.namespace):
            found += _other_scope(binding, role, asked)
        else:
            found += _wrong_rules(binding, role, asked)
    found.sort(key=lambda one: (one.rank, one.namespace, one.binding))
    return found[:_MAX_NEAR_MISSES]


def _miss(
    kind: Literal["missing-role", "rule", "scope", "subject"],
    binding: Binding,
    text: str,
    *,
    rank: int,
    rule_index: int | None = None,
    part: str = "",
) -> NearMiss:
    return NearMiss(
        kind=kind,
        binding_kind=binding.kind,
        namespace=binding.namespace,
        binding=binding.name,
        role_kind=binding.role_ref.kind,
        role=binding.role_ref.name,
        rule_index=rule_index,
        part=part,
        text=text,
        rank=rank,
    )


def _dangling(binding: Binding, asked: Attributes) -> Iterator[NearMiss]:
    if not binding.namespace or binding.namespace == asked.namespace:
        yield _miss(
            "missing-role",
            binding,
            f"names this caller, but {missing_role_text(binding.role_ref)}",
            rank=1,
        )


def _other_scope(binding: Binding, role: Role, asked: Attributes) -> Iterator[NearMiss]:
    if not any(allows(rule, asked) for rule in role.rules):
        return
    if asked.path:
        text = "allows it, but a RoleBinding never grants URLs: a ClusterRoleBinding is needed"
    elif not asked.namespace:
        text = (
            f"allows it in namespace {quoted(binding.namespace)} only, and this request has none: "
            "a ClusterRoleBinding is needed"
        )
    else:
        text = (
            f"allows it in namespace {quoted(binding.namespace)}, not in {quoted(asked.namespace)}"
        )
    yield _miss("scope", binding, text, rank=0)


def _wrong_rules(binding: Binding, role: Role, asked: Attributes) -> Iterator[NearMiss]:
    best: tuple[int, int, str] | None = None
    for at, rule in enumerate(role.rules):
        parts = _mismatches(rule, asked)
        if len(parts) == 1 and (best is None or _WEIGHTS[parts[0]] < best[0]):
            best = (_WEIGHTS[parts[0]], at, parts[0])
    if best is not None:
        weight, at, part = best
        text = _mismatch_text(role.rules[at], part, asked)
        yield _miss("rule", binding, text, rank=weight, rule_index=at, part=part)


_WEIGHTS: Final = {
    "resourceNames": 1,
    "verbs": 2,
    "resources": 3,
    "nonResourceURLs": 3,
    "apiGroups": 3,
}


def _mismatches(rule: PolicyRule, asked: Attributes) -> list[str]:
    """Return every part that does not fit; rules for other things are far away."""
    if first_mismatch(rule, asked) == "kind":
        return ["kind", "kind"]
    parts: list[str] = []
    if asked.path:
        if not any(_same_root(entry, asked.path) for entry in rule.non_resource_urls):
            parts.append("far")
        probe = msgspec.structs.replace(rule, verbs=("*",))
        if not allows(probe, asked):
            parts.append("nonResourceURLs")
    else:
        if "*" not in rule.api_groups and asked.group not in rule.api_groups:
            parts.append("apiGroups")
        if not resource_matches(rule.resources, asked.resource, asked.subresource):
            parts.append("resources")
            if not any(one.partition("/")[0] == asked.resource for one in rule.resources):
                parts.append("far")
        if rule.resource_names and asked.name not in rule.resource_names:
            parts.append("resourceNames")
    if "*" not in rule.verbs and asked.verb not in rule.verbs:
        parts.append("verbs")
    return parts


def _same_root(entry: str, path: str) -> bool:
    return entry == "*" or entry.strip("/*").split("/")[:2] == path.strip("/").split("/")[:2]


def _mismatch_text(rule: PolicyRule, part: str, asked: Attributes) -> str:
    match part:
        case "verbs":
            return f"fits but for the verb: it has {', '.join(rule.verbs)}, not {asked.verb}"
        case "apiGroups":
            have = ", ".join(map(quoted, rule.api_groups))
            return f"fits but for the API group: it has {have}, not {quoted(asked.group)}"
        case "resourceNames":
            names = ", ".join(map(quoted, rule.resource_names[:4]))
            if not asked.name:
                return f"is limited to the names {names}, and {asked.verb} carries no name" + (
                    f" (ask with fieldSelector metadata.name={rule.resource_names[0]})"
                    if asked.verb in ("list", "watch")
                    else ""
                )
            return f"is limited to the names {names}, not {quoted(asked.name)}"
        case "nonResourceURLs":
            urls = ", ".join(map(quoted, rule.non_resource_urls[:4]))
            return f"fits but for the URL: {urls} does not match {quoted(asked.path)}"
    resource = asked.resource + (f"/{asked.subresource}" if asked.subresource else "")
    have = ", ".join(map(quoted, rule.resources[:4]))
    return f"fits but for the subresource: it has {have}, not {quoted(resource)}"


def _other_subject(
    binding: Binding, role: Role | None, actor: Actor, asked: Attributes
) -> Iterator[NearMiss]:
    if role is None or (binding.namespace and binding.namespace != asked.namespace):
        return
    if (binding.namespace and asked.path) or not any(allows(rule, asked) for rule in role.rules):
        return
    for subject in binding.subjects:
        difference = _difference(subject, actor, binding.namespace)
        if difference:
            named = subject_text(subject, namespace=binding.namespace)
            yield _miss("subject", binding, f"allows it to {named}: {difference}", rank=0)
            return


def _difference(subject: Subject, actor: Actor, namespace: str) -> str:
    """Return how a subject resembles the caller without being it, empty when it does not."""
    account = ""
    if actor.user.startswith(SERVICE_ACCOUNT_PREFIX):
        account = actor.user.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")[2]
    if subject.kind == "ServiceAccount":
        home = subject.namespace or namespace
        if subject.name == account:
            return f"this service account is in another namespace than {quoted(home)}"
        if subject.name == actor.user:
            return "this caller is no service account: the subject must be of kind User"
        return ""
    if subject.kind == "Group" and subject.name == actor.user:
        return "that is the name of the user: the subject must be of kind User"
    if subject.kind == "User" and subject.name in actor.groups:
        return "that is the name of a group: the subject must be of kind Group"
    names: Sequence[str] = (actor.user,) if subject.kind == "User" else actor.groups
    for name in names:
        if name.casefold() == subject.name.casefold():
            return f"the caller is {quoted(name)}, and case counts"
        if account and subject.name == account:
            return f"a service account's user name is {quoted(actor.user)}"
        if (
            not name.startswith("system:")
            and len(name) > 3
            and difflib.SequenceMatcher(None, name, subject.name).ratio() > 0.85
        ):
            return f"the caller is {quoted(name)}: is one of the two a typing error?"
    return ""


# -- the fix -------------------------------------------------------------------------------------------------------------


def smallest_fix(
    index: RbacIndex,
    actor: Actor,
    asked: Attributes,
    *,
    held: Held | None = None,
    asker: Actor | None = None,
) -> Fix:
    """Return a role that allows exactly a request, bound to exactly its caller."""
    subject, flag = _subject_of(actor)
    resource = asked.resource + (f"/{asked.subresource}" if asked.subresource else "")
    if asked.path:
        rule = PolicyRule(verbs=(asked.verb,), non_resource_urls=(asked.path,))
    else:
        rule = PolicyRule(
            verbs=(asked.verb,),
            api_groups=(asked.group,),
            resources=(resource,),
            resource_names=(asked.name,) if asked.name and not nameless(asked) else (),
        )
    namespaced = bool(asked.namespace) and not asked.path
    name = _fix_name(actor, asked)
    namespace = asked.namespace if namespaced else ""
    role = Role(
        kind="Role" if namespaced else "ClusterRole", name=name, namespace=namespace, rules=(rule,)
    )
    binding = Binding(
        kind="RoleBinding" if namespaced else "ClusterRoleBinding",
        name=name,
        namespace=namespace,
        role_ref=RoleRef(kind=role.kind, name=name),
        subjects=(subject,),
    )
    lacking: tuple[str, ...] = ()
    if held is not None and asker is not None:
        refusal = check_role(asker, held, role, old=None, name="")
        lacking = tuple(map(rule_text, refusal.missing)) if refusal is not None else ()
    return Fix(
        manifest=yaml.safe_dump_all(
            [role_document(role), binding_document(binding)], sort_keys=False
        ),
        commands=_commands(role, binding, rule, flag),
        existing=tuple(_existing(index, asked, namespace, flag)),
        lacking=lacking,
    )


def _subject_of(actor: Actor) -> tuple[Subject, str]:
    if actor.user.startswith(SERVICE_ACCOUNT_PREFIX):
        namespace, _, name = actor.user.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
        if namespace and name:
            subject = Subject(kind="ServiceAccount", name=name, namespace=namespace)
            return subject, f"--serviceaccount={namespace}:{name}"
    subject = Subject(kind="User", api_group=GROUP, name=actor.user)
    return subject, f"--user={shlex.quote(actor.user)}"


def _fix_name(actor: Actor, asked: Attributes) -> str:
    who = actor.user.removeprefix(SERVICE_ACCOUNT_PREFIX)
    what = asked.path or f"{asked.resource}-{asked.subresource}"
    name = re.sub(r"[^a-z0-9]+", "-", f"{who}-{asked.verb}-{what}".lower()).strip("-")
    return name[:60].strip("-") or "grant"


def _commands(role: Role, binding: Binding, rule: PolicyRule, flag: str) -> tuple[str, ...]:
    where = f" --namespace={shlex.quote(role.namespace)}" if role.namespace else ""
    if rule.non_resource_urls:
        what = f"--non-resource-url={shlex.quote(rule.non_resource_urls[0])}"
    else:
        resource, slash, subresource = rule.resources[0].partition("/")
        group = f".{rule.api_groups[0]}" if rule.api_groups[0] else ""
        what = f"--resource={shlex.quote(resource + group + slash + subresource)}"
        if rule.resource_names:
            what += f" --resource-name={shlex.quote(rule.resource_names[0])}"
    kind = role.kind.lower()
    return (
        f"kubectl create {kind} {role.name} --verb={shlex.quote(rule.verbs[0])} {what}{where}",
        f"kubectl create {binding.kind.lower()} {binding.name} --{kind}={role.name} {flag}{where}",
    )


def _existing(index: RbacIndex, asked: Attributes, namespace: str, flag: str) -> list[str]:
    fitting = [
        role
        for role in index.roles()
        if (role.kind == "ClusterRole" or role.namespace == namespace)
        and any(allows(rule, asked) for rule in role.rules)
        # The roles of the system's own parts and of its owner are no advice.
        and not role.name.startswith("system:")
        and not any(everything(rule) for rule in role.rules)
    ]
    fitting.sort(key=lambda role: (_size(role), role.name))
    kind = "rolebinding" if namespace else "clusterrolebinding"
    where = f" --namespace={shlex.quote(namespace)}" if namespace else ""
    return [
        f"kubectl create {kind} NAME --{role.kind.lower()}={shlex.quote(role.name)} {flag}{where}"
        for role in fitting[:3]
    ]


def _size(role: Role) -> int:
    """Return about how much a role grants: the atoms of its rules, where * counts for a hundred."""
    total = 0
    for rule in role.rules:
        atoms = 1
        for values in (rule.verbs, rule.api_groups, rule.resources, rule.non_resource_urls):
            atoms *= max(1, sum(100 if "*" in one else 1 for one in values))
        total += atoms
    return total


# -- the screen ----------------------------------------------------------------------------------------------------------


def render(explanation: Explanation) -> str:
    """Return an explanation as text for one screen."""
    lines = [_headline(explanation), ""]
    lines += _section("who", _who(explanation))
    name = f", name {quoted(explanation.asked.name)}" if explanation.asked.name else ""
    notes = [f"! {note}" for note in explanation.notes]
    lines += _section("asks", [explanation.action + name, *notes])
    lines += _section("answers", list(_answers(explanation)))
    if explanation.verdict == "allow":
        lines += _section("because", list(_because(explanation)))
    elif explanation.near_misses:
        lines += _section("near", [_near_text(one) for one in explanation.near_misses])
    if explanation.fix is not None:
        lines += _section("fix", list(_fix_lines(explanation.fix)))
    return "\n".join(lines).rstrip() + "\n"


def _headline(explanation: Explanation) -> str:
    if explanation.verdict == "allow":
        return f"ALLOWED  {explanation.user} may {explanation.action}"
    if explanation.incomplete:
        return f"UNKNOWN  {explanation.message}"
    return f"{'DENIED ' if explanation.verdict == 'deny' else 'REFUSED'}  {explanation.message}"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    shown = [line for text in lines for line in text.splitlines()]
    return [f"{title if at == 0 else '':<9}{line}" for at, line in enumerate(shown)]


def _who(explanation: Explanation) -> list[str]:
    source = ", ".join(part for part in (explanation.origin, explanation.address) if part)
    lines = [f"{explanation.user}" + (f"   ({source})" if source else "")]
    lines += [
        f"in {one.group}" + (f"   ({one.origin})" if one.origin else "")
        for one in explanation.groups
    ]
    return lines


def _answers(explanation: Explanation) -> Iterator[str]:
    decided = False
    width = max((len(step.authorizer) for step in explanation.steps), default=0)
    for step in explanation.steps:
        detail = step.error or step.reason
        line = f"{step.authorizer:<{width}}  {step.verdict.replace('-', ' ')}"
        if decided:
            line += "   (not asked any more)"
        yield line + (f": {detail}" if detail else "")
        decided = decided or step.verdict != "no-opinion"


def _because(explanation: Explanation) -> Iterator[str]:
    if explanation.decided_by == MASTERS_STEP.authorizer:
        yield f"members of {MASTERS} may do everything; no policy is looked at"
    for grant in explanation.grants[:_MAX_GRANTS]:
        where = f" in namespace {grant.namespace}" if grant.namespace else ""
        yield (
            f"{grant.binding_kind} {grant.binding}{where} → {subject_text(grant.subject, namespace=grant.namespace)}"
            f" → {grant.role_kind} {grant.role}, rule {grant.rule_index}"
        )
        yield f"  {rule_text(grant.rule)}"
    more = len(explanation.grants) - _MAX_GRANTS
    if more > 0:
        yield f"and {more} more"
    elif len(explanation.grants) > 1:
        yield "taking away one of these is not enough"


def _near_text(one: NearMiss) -> str:
    name = f"{one.namespace}/{one.binding}" if one.namespace else one.binding
    rule = f", rule {one.rule_index}" if one.rule_index is not None else ""
    return f"{one.binding_kind} {name} → {one.role_kind} {one.role}{rule}: {one.text}"


def _fix_lines(fix: Fix) -> Iterator[str]:
    yield from fix.commands
    for command in fix.existing:
        yield f"or, for more than this: {command}"
    if fix.lacking:
        yield "you may not grant that: you lack " + ", ".join(fix.lacking)


def explanation_document(explanation: Explanation) -> Any:
    """Return an explanation as JSON-ready data."""
    return msgspec.to_builtins(explanation)
