"""Policies for tests: short constructors, random ones, and the definition of RBAC without any index."""

from __future__ import annotations

from hypothesis import strategies as st

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


def _some(values, *, least=1):
    return st.lists(st.sampled_from(values), min_size=least, max_size=2, unique=True).map(tuple)


rules = st.one_of(
    st.builds(
        PolicyRule,
        verbs=_some(VERBS),
        api_groups=_some(GROUPS),
        resources=_some(RESOURCES),
        resource_names=st.one_of(st.just(()), _some(NAMES)),
    ),
    st.builds(PolicyRule, verbs=_some(VERBS), non_resource_urls=_some(URLS)),
)
resource_requests = st.builds(
    Attributes,
    verb=st.sampled_from(["get", "list", "create", "*", "delete"]),
    resource=st.sampled_from(["pods", "secrets", "*", "deployments"]),
    name=st.sampled_from(["", "a", "b", "*", "c"]),
    group=st.sampled_from(["", "apps", "x"]),
    namespace=st.sampled_from(["", "n1", "n2"]),
    subresource=st.sampled_from(["", "log", "*", "status"]),
)
url_requests = st.builds(
    Attributes,
    verb=st.sampled_from(["get", "list", "delete"]),
    path=st.sampled_from(["/", "/a", "/a/", "/a/b", "/a/bc", "/ab", "/a1/b", "/a*/b", "/c"]),
    group=st.just(""),
)
requests = st.one_of(resource_requests, url_requests)
actors = st.builds(
    Actor,
    user=st.sampled_from(USERS),
    groups=st.lists(st.sampled_from(USER_GROUPS), max_size=3, unique=True).map(tuple),
)
subjects = st.one_of(
    st.sampled_from(USERS).map(user),
    st.sampled_from(USER_GROUPS).map(group),
    st.builds(account, st.just("robot"), st.sampled_from(["", "n1", "n2"])),
    st.just(Subject(kind="Robot", name="ann")),
)
role_names = st.sampled_from([f"r{at}" for at in range(8)])
some_rules = st.lists(rules, max_size=4).map(tuple)
roles = st.one_of(
    st.builds(lambda name, of: cluster_role(name, *of), role_names, some_rules),
    st.builds(
        lambda name, where, of: role(name, where, *of),
        role_names,
        st.sampled_from(NAMESPACES),
        some_rules,
    ),
)
some_subjects = st.lists(subjects, max_size=3).map(tuple)
binding_names = st.sampled_from([f"b{at}" for at in range(12)])
bindings = st.one_of(
    st.builds(
        lambda name, to, of: cluster_binding(name, to, *of),
        binding_names,
        role_names,
        some_subjects,
    ),
    st.builds(
        lambda name, where, to, of, kind: binding(name, where, to, *of, kind=kind),
        binding_names,
        st.sampled_from(NAMESPACES),
        role_names,
        some_subjects,
        st.sampled_from(["Role", "ClusterRole"]),
    ),
)
