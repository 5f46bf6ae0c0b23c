"""Policies for tests: short constructors, random ones, and the definition of RBAC without any index."""

from __future__ import annotations

from waypost.access.actor import Actor
from waypost.access.authz.chain import Chain
from waypost.access.authz.decision import Step
from waypost.access.authz.escalation import Holdings
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.records import GROUP, Binding, PolicyRule, Role, RoleRef, Subject
from waypost.access.gate import Attributes


def rule(verbs="get", groups="", resources="pods", names=(), urls=()):
    if urls:
        return PolicyRule(verbs=tuple(verbs.split()), non_resource_urls=tuple(urls))
    return PolicyRule(
        verbs=tuple(verbs.split()),
        api_groups=tuple(groups.split(",")),
        resources=tuple(resources.split()),
        resource_names=tuple(names),
    )


def cluster_role(name, *rules, **more):
    return Role(kind="ClusterRole", name=name, rules=rules, **more)


def role(name, namespace, *rules):
    return Role(kind="Role", name=name, namespace=namespace, rules=rules)


def user(name):
    return Subject(kind="User", api_group=GROUP, name=name)


def group(name):
    return Subject(kind="Group", api_group=GROUP, name=name)


def account(name, namespace=""):
    return Subject(kind="ServiceAccount", name=name, namespace=namespace)


def cluster_binding(name, to, *subjects):
    return Binding(
        kind="ClusterRoleBinding",
        name=name,
        role_ref=RoleRef(kind="ClusterRole", name=to),
        subjects=subjects,
    )


def binding(name, namespace, to, *subjects, kind="ClusterRole"):
    return Binding(
        kind="RoleBinding",
        name=name,
        namespace=namespace,
        role_ref=RoleRef(kind=kind, name=to),
        subjects=subjects,
    )


class Rbac:
    """An index as a member of a chain."""

    name = "RBAC"

    def __init__(self, index: RbacIndex) -> None:
        self.index = index

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        return self.index.decide(actor, asked)


def held(index: RbacIndex) -> Holdings:
    return Holdings(Chain([Rbac(index)]), index)


# -- the definition --------------------------------------------------------------------------------------------------------


def rule_allows(one: PolicyRule, asked: Attributes) -> bool:
    """Written from the tables of the reference, apart from the code under test."""
    if not (set(one.verbs) & {"*", asked.verb}):
        return False
    if asked.path:
        for url in one.non_resource_urls:
            literal = url
            while literal.endswith("*"):
                literal = literal[:-1]
            if url == asked.path or (url != literal and asked.path[: len(literal)] == literal):
                return True
        return False
    if not (set(one.api_groups) & {"*", asked.group}):
        return False
    wanted = {"*", asked.resource}
    if asked.subresource:
        wanted = {"*", f"{asked.resource}/{asked.subresource}", f"*/{asked.subresource}"}
    if not (set(one.resources) & wanted):
        return False
    return not one.resource_names or asked.name in one.resource_names


def subject_matches(subject: Subject, actor: Actor, namespace: str) -> bool:
    if subject.kind == "User":
        return subject.name == actor.user
    if subject.kind == "Group":
        return subject.name in actor.groups
    home = subject.namespace or namespace
    return (
        subject.kind == "ServiceAccount"
        and home != ""
        and actor.user == f"system:serviceaccount:{home}:{subject.name}"
    )


def naive(roles: list[Role], bindings: list[Binding], actor: Actor, asked: Attributes):
    """Return (verdict, binding, rule index, missing roles) the slow way."""
    missing = []
    by_key = {(one.kind, one.namespace, one.name): one for one in roles}
    clusterwide = sorted((b for b in bindings if not b.namespace), key=lambda b: b.name)
    local = sorted(
        (b for b in bindings if b.namespace and b.namespace == asked.namespace),
        key=lambda b: b.name,
    )
    for one in [*clusterwide, *local]:
        if not any(subject_matches(s, actor, one.namespace) for s in one.subjects):
            continue
        kind = one.role_ref.kind
        found = by_key.get((kind, one.namespace if kind == "Role" else "", one.role_ref.name))
        if found is None:
            missing.append(one.role_ref.name)
            continue
        if one.namespace and asked.path:
            continue
        for at, each in enumerate(found.rules):
            if rule_allows(each, asked):
                return "allow", (one.namespace, one.name), at, []
    return "no-opinion", None, None, list(dict.fromkeys(missing))


# -- random policies -------------------------------------------------------------------------------------------------------

VERBS = ["get", "list", "create", "*"]
GROUPS = ["", "apps", "*"]
RESOURCES = ["pods", "pods/log", "secrets", "*", "*/log", "pods/*", "*/*"]
NAMES = ["a", "b", "*"]
URLS = ["*", "/a", "/a/*", "/a*", "/a/b", "/a/b*", "**", "/a*/b"]
NAMESPACES = ["n1", "n2"]
USERS = ["ann", "ben", "devs", "system:serviceaccount:n1:robot"]
USER_GROUPS = ["devs", "ops", "ann"]


def _some(rng, values):
    return tuple(rng.sample(values, rng.randint(1, 2)))


def random_rule(rng):
    if rng.random() < 0.3:
        return PolicyRule(verbs=_some(rng, VERBS), non_resource_urls=_some(rng, URLS))
    return PolicyRule(
        verbs=_some(rng, VERBS),
        api_groups=_some(rng, GROUPS),
        resources=_some(rng, RESOURCES),
        resource_names=_some(rng, NAMES) if rng.random() < 0.4 else (),
    )


def random_rules(rng, most=4):
    return [random_rule(rng) for _ in range(rng.randint(0, most))]


def random_request(rng):
    if rng.random() < 0.3:
        paths = ["/", "/a", "/a/", "/a/b", "/a/bc", "/ab", "/a1/b", "/a*/b", "/c"]
        return Attributes(rng.choice(["get", "list", "delete"]), path=rng.choice(paths), group="")
    return Attributes(
        rng.choice(["get", "list", "create", "*", "delete"]),
        rng.choice(["pods", "secrets", "*", "deployments"]),
        rng.choice(["", "a", "b", "*", "c"]),
        group=rng.choice(["", "apps", "x"]),
        namespace=rng.choice(["", "n1", "n2"]),
        subresource=rng.choice(["", "", "log", "*", "status"]),
    )


def random_actor(rng):
    groups = rng.sample(USER_GROUPS, rng.randint(0, 3))
    return Actor(user=rng.choice(USERS), groups=tuple(groups))


def random_subject(rng):
    return rng.choice(
        [
            user(rng.choice(USERS)),
            group(rng.choice(USER_GROUPS)),
            account("robot", rng.choice(["", "n1", "n2"])),
            Subject(kind="Robot", name="ann"),
        ]
    )


def random_role(rng):
    name = f"r{rng.randrange(8)}"
    if rng.random() < 0.5:
        return cluster_role(name, *random_rules(rng))
    return role(name, rng.choice(NAMESPACES), *random_rules(rng))


def random_binding(rng):
    name, to = f"b{rng.randrange(12)}", f"r{rng.randrange(8)}"
    subjects = [random_subject(rng) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.5:
        return cluster_binding(name, to, *subjects)
    kind = rng.choice(["Role", "ClusterRole"])
    return binding(name, rng.choice(NAMESPACES), to, *subjects, kind=kind)


def random_policy(rng):
    """Return roles and bindings; of two with the same key the later one counts."""
    roles = [random_role(rng) for _ in range(rng.randint(0, 10))]
    bindings = [random_binding(rng) for _ in range(rng.randint(0, 14))]
    return (
        list({(one.namespace, one.name): one for one in roles}.values()),
        list({(one.namespace, one.name): one for one in bindings}.values()),
    )
