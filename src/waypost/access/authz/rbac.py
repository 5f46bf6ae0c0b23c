"""RBAC: an index over roles and bindings, and the authorizer that keeps it in step with the view.

Bindings are found by subject, so a question costs the same among ten bindings and ten thousand; rules are found
through `table.RuleTable`. Roles and bindings are taken over one by one as they change.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast

from waypost.access.actor import Actor
from waypost.access.authz.decision import Grant, Step
from waypost.access.authz.records import (
    GROUP,
    RESOURCES,
    SERVICE_ACCOUNT_PREFIX,
    Binding,
    BindingKind,
    PolicyRule,
    Role,
    RoleKind,
    RoleRef,
    Subject,
    parse_binding,
    parse_role,
)
from waypost.access.authz.table import NONE, RuleTable
from waypost.access.authz.text import aggregate
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.model.object import Object
from waypost.state.view import View

log = logging.getLogger(__name__)

_FEW_ROLES: Final = 8
"""Up to so many roles of one subject are asked one by one; more are merged into one table."""
_MAX_MERGED: Final = 256
"""So many subjects have a merged table at a time. Overflow: the one made first goes."""
_MAX_DECISIONS: Final = 16384

RoleKey = tuple[str, str]
"""(namespace, name); the namespace of a ClusterRole is empty."""


def subject_key(subject: Subject, *, namespace: str) -> str | None:
    """Return what an actor must have for `subject` to match, None if nothing ever matches.

    `namespace` is the binding's, empty for a ClusterRoleBinding.
    """
    match subject.kind:
        case "User":
            return "u" + subject.name
        case "Group":
            return "g" + subject.name
        case "ServiceAccount":
            home = subject.namespace or namespace
            return f"s{SERVICE_ACCOUNT_PREFIX}{home}:{subject.name}" if home else None
    return None


def actor_keys(actor: Actor) -> list[str]:
    """Return every key that `subject_key` can have for `actor`."""
    keys = ["u" + actor.user]
    if actor.user.startswith(SERVICE_ACCOUNT_PREFIX):
        keys.append("s" + actor.user)
    keys.extend("g" + group for group in actor.groups)
    return keys


def role_key(binding: Binding) -> RoleKey | None:
    """Return the key of the role that a binding grants, None for a kind that does not exist."""
    match binding.role_ref.kind:
        case "ClusterRole":
            return "", binding.role_ref.name
        case "Role":
            return binding.namespace, binding.role_ref.name
    return None


def missing_role_text(ref: RoleRef) -> str:
    """Return the error about a role that is not there."""
    if ref.kind not in ("ClusterRole", "Role"):
        return f"unsupported role reference kind: {quoted(ref.kind)}"
    return f"{ref.kind.lower()}.{GROUP} {quoted(ref.name)} not found"


def subject_text(subject: Subject, *, namespace: str) -> str:
    """Return a subject as reasons name it: `User "u"`, `ServiceAccount "NAME/NAMESPACE"`."""
    name = subject.name
    if subject.kind == "ServiceAccount":
        name = f"{name}/{subject.namespace or namespace}"
    return f"{subject.kind} {quoted(name)}"


def grant_text(grant: Grant) -> str:
    """Return the reason of an allowed request."""
    name = f"{grant.binding}/{grant.namespace}" if grant.namespace else grant.binding
    return (
        f"RBAC: allowed by {grant.binding_kind} {quoted(name)} of {grant.role_kind} {quoted(grant.role)} "
        f"to {subject_text(grant.subject, namespace=grant.namespace)}"
    )


class _StoredRole:
    """A role with its table, compiled when it is first asked."""

    __slots__ = ("_table", "role")

    def __init__(self, role: Role) -> None:
        self.role = role
        self._table: RuleTable | None = None

    def table(self) -> RuleTable:
        if self._table is None:
            self._table = RuleTable(self.role.rules)
        return self._table


class _Merged:
    """One table over the rules of several roles."""

    __slots__ = ("starts", "table")

    def __init__(self, roles: Sequence[_StoredRole]) -> None:
        rules: list[PolicyRule] = []
        self.starts: list[int] = []
        for role in roles:
            self.starts.append(len(rules))
            rules.extend(role.role.rules)
        self.table = RuleTable(rules)


class _Entry:
    """A role that a subject has, with the first binding by name that gives it."""

    __slots__ = ("binding", "order", "role")

    def __init__(self, binding: Binding, order: int, role: _StoredRole) -> None:
        self.binding = binding
        self.order = order
        self.role = role


class _Holder:
    """All bindings of one subject in one scope."""

    __slots__ = ("bindings", "entries", "errors", "generation", "merged")

    def __init__(self) -> None:
        self.bindings: list[tuple[str, int, Binding]] = []
        """(binding name, place of the subject in it, binding), sorted by name."""
        self.generation = -1
        self.entries: list[_Entry] = []
        self.merged: _Merged | None = None
        self.errors: list[tuple[str, str]] = []
        """(binding name, error) of bindings whose role is missing."""


class RbacIndex:
    """Roles and bindings by what a decision needs. Belongs to one thread."""

    def __init__(self) -> None:
        self._roles: dict[RoleKey, _StoredRole] = {}
        self._bindings: dict[RoleKey, Binding] = {}
        self._holders: dict[tuple[str, str], _Holder] = {}
        self._merged: list[_Holder] = []
        self._generation = 0

    @classmethod
    def of(cls, roles: Iterable[Role], bindings: Iterable[Binding]) -> RbacIndex:
        """Return an index over given records."""
        index = cls()
        for role in roles:
            index.put_role(role)
        for binding in bindings:
            index.put_binding(binding)
        return index

    # -- changes ---------------------------------------------------------------------------------------------------------

    def put_role(self, role: Role) -> None:
        """Add or replace a role."""
        self._roles[role.namespace, role.name] = _StoredRole(role)
        self._generation += 1

    def delete_role(self, namespace: str, name: str) -> None:
        """Remove a role if it is there."""
        self._roles.pop((namespace, name), None)
        self._generation += 1

    def put_binding(self, binding: Binding) -> None:
        """Add or replace a binding."""
        self.delete_binding(binding.namespace, binding.name)
        self._bindings[binding.namespace, binding.name] = binding
        for key, order in self._keys(binding).items():
            holder = self._holders.setdefault((binding.namespace, key), _Holder())
            bisect.insort(holder.bindings, (binding.name, order, binding), key=lambda one: one[:2])
            holder.generation = -1

    def delete_binding(self, namespace: str, name: str) -> None:
        """Remove a binding if it is there."""
        binding = self._bindings.pop((namespace, name), None)
        if binding is None:
            return
        for key, order in self._keys(binding).items():
            holder = self._holders[namespace, key]
            at = bisect.bisect_left(holder.bindings, (name, order), key=lambda one: one[:2])
            del holder.bindings[at]
            holder.generation = -1
            if not holder.bindings:
                del self._holders[namespace, key]
                self._unmerge(holder)

    @staticmethod
    def _keys(binding: Binding) -> dict[str, int]:
        keys: dict[str, int] = {}
        for order, subject in enumerate(binding.subjects):
            key = subject_key(subject, namespace=binding.namespace)
            if key is not None:
                keys.setdefault(key, order)
        return keys

    # -- decisions -------------------------------------------------------------------------------------------------------

    def decide(self, actor: Actor, asked: Attributes) -> Step:
        """Return allow with its grant, or no opinion with what was wrong with bindings that concern `actor`."""
        keys = actor_keys(actor)
        grant = self._find(keys, asked, "")
        if grant is None and asked.namespace and not asked.path:
            grant = self._find(keys, asked, asked.namespace)
        if grant is not None:
            return Step(authorizer="RBAC", verdict="allow", reason=grant_text(grant), grant=grant)
        errors = self._errors(keys, asked.namespace)
        reason = f"RBAC: {aggregate(errors)}" if errors else ""
        return Step(authorizer="RBAC", verdict="no-opinion", reason=reason)

    def _find(self, keys: Sequence[str], asked: Attributes, namespace: str) -> Grant | None:
        best: _Entry | None = None
        best_rule = NONE
        for key in keys:
            holder = self._holders.get((namespace, key))
            if holder is None:
                continue
            at, rule = self._first(holder, asked)
            if at == NONE:
                continue
            entry = holder.entries[at]
            if best is None or (entry.binding.name, entry.order) < (best.binding.name, best.order):
                best, best_rule = entry, rule
        if best is None:
            return None
        role = best.role.role
        return Grant(
            binding_kind=best.binding.kind,
            namespace=best.binding.namespace,
            binding=best.binding.name,
            subject=best.binding.subjects[best.order],
            role_kind=role.kind,
            role=role.name,
            rule_index=best_rule,
            rule=role.rules[best_rule],
        )

    def _first(self, holder: _Holder, asked: Attributes) -> tuple[int, int]:
        """Return (place of the first entry that allows, its rule), NONE without one."""
        entries = self._entries(holder)
        if len(entries) <= _FEW_ROLES:
            for at, entry in enumerate(entries):
                rule = entry.role.table().find(asked)
                if rule != NONE:
                    return at, rule
            return NONE, NONE
        merged = self._merge(holder)
        rule = merged.table.find(asked)
        if rule == NONE:
            return NONE, NONE
        at = bisect.bisect_right(merged.starts, rule) - 1
        return at, rule - merged.starts[at]

    def _merge(self, holder: _Holder) -> _Merged:
        if holder.merged is None:
            if len(self._merged) >= _MAX_MERGED:
                self._merged.pop(0).merged = None
            self._merged.append(holder)
            holder.merged = _Merged([entry.role for entry in holder.entries])
        return holder.merged

    def _unmerge(self, holder: _Holder) -> None:
        if holder.merged is not None:
            holder.merged = None
            self._merged.remove(holder)

    def _entries(self, holder: _Holder) -> list[_Entry]:
        if holder.generation == self._generation:
            return holder.entries
        entries: list[_Entry] = []
        seen: set[RoleKey] = set()
        holder.errors = []
        for name, order, binding in holder.bindings:
            key = role_key(binding)
            role = None if key is None else self._roles.get(key)
            if key is None or role is None:
                holder.errors.append((name, missing_role_text(binding.role_ref)))
            elif key not in seen:
                seen.add(key)
                entries.append(_Entry(binding, order, role))
        self._unmerge(holder)
        holder.entries = entries
        holder.generation = self._generation
        return entries

    def _errors(self, keys: Sequence[str], namespace: str) -> list[str]:
        errors: list[str] = []
        for scope in ("", namespace) if namespace else ("",):
            found: list[tuple[str, str]] = []
            for key in keys:
                holder = self._holders.get((scope, key))
                if holder is not None:
                    self._entries(holder)
                    found += holder.errors
            errors += [error for _, error in sorted(found)]
        return list(dict.fromkeys(errors))

    # -- questions of other parts ------------------------------------------------------------------------------------------

    def roles(self) -> Iterator[Role]:
        """Yield every role, ClusterRoles first, by namespace and name."""
        for key in sorted(self._roles):
            yield self._roles[key].role

    def bindings(self) -> Iterator[Binding]:
        """Yield every binding, ClusterRoleBindings first, by namespace and name."""
        for key in sorted(self._bindings):
            yield self._bindings[key]

    def role(self, kind: str, namespace: str, name: str) -> Role | None:
        """Return a role; the namespace of a ClusterRole does not matter."""
        found = self._roles.get(("" if kind == "ClusterRole" else namespace, name))
        return found.role if found is not None else None

    def role_of(self, binding: Binding) -> Role | None:
        """Return the role that a binding grants, None when it is missing."""
        key = role_key(binding)
        found = self._roles.get(key) if key is not None else None
        return found.role if found is not None else None

    def bindings_of(self, actor: Actor, namespace: str) -> list[tuple[Binding, Subject]]:
        """Return the bindings that match `actor`: those of the cluster, then those of `namespace` unless empty."""
        found: list[tuple[Binding, Subject]] = []
        keys = actor_keys(actor)
        for scope in ("", namespace) if namespace else ("",):
            here: dict[str, tuple[int, Binding]] = {}
            for key in keys:
                holder = self._holders.get((scope, key))
                for name, order, binding in holder.bindings if holder is not None else ():
                    if name not in here or order < here[name][0]:
                        here[name] = (order, binding)
            found += [
                (binding, binding.subjects[order])
                for _, (order, binding) in sorted(here.items(), key=lambda one: one[0])
            ]
        return found

    def rules(self, actor: Actor, namespace: str) -> tuple[list[PolicyRule], list[str]]:
        """Return the rules `actor` holds in a namespace (empty: in the cluster), and what could not be resolved."""
        rules: list[PolicyRule] = []
        errors: list[str] = []
        for binding, _ in self.bindings_of(actor, namespace):
            role = self.role_of(binding)
            if role is None:
                errors.append(missing_role_text(binding.role_ref))
            else:
                rules += role.rules
        return rules, list(dict.fromkeys(errors))


class RbacAuthorizer:
    """Decides from the roles and bindings of a view as they are at this moment.

    Decisions are kept until a role or binding changes; overflow: the oldest goes.
    """

    name: Final = "RBAC"

    def __init__(self, view: View) -> None:
        self._view = view
        self._index = RbacIndex()
        self._revision = -1
        self._topics: dict[str, int] = {}
        self._objects: dict[str, dict[RoleKey, Object]] = {kind: {} for kind in RESOURCES}
        self._decisions: dict[tuple[str, tuple[str, ...], Attributes], Step] = {}

    @property
    def index(self) -> RbacIndex:
        """The index, in step with the view."""
        if self._view.revision != self._revision:
            self._sync()
        return self._index

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        """Return allow with its grant, or no opinion."""
        if self._view.revision != self._revision:
            self._sync()
        key = (actor.user, actor.groups, asked)
        step = self._decisions.get(key)
        if step is None:
            step = self._index.decide(actor, asked)
            if len(self._decisions) >= _MAX_DECISIONS:
                del self._decisions[next(iter(self._decisions))]
            self._decisions[key] = step
        return step

    def _sync(self) -> None:
        for kind, resource in RESOURCES.items():
            at = self._view.topics.index(("objects", f"{GROUP}/{resource}"))
            # The very first change of an empty store has the index of a topic that was never touched.
            if self._topics.get(kind) != at or at > self._revision:
                self._read(kind, self._view.object_table(GROUP, resource))
                self._topics[kind] = at
                self._decisions.clear()
        self._revision = self._view.revision

    def _read(self, kind: str, now: Mapping[RoleKey, Object]) -> None:
        known = self._objects[kind]
        for key in known.keys() - now.keys():
            self._drop(kind, key)
        for key, one in now.items():
            old = known.get(key)
            if old is one or old == one:
                continue
            try:
                self._take(kind, one)
            except Malformed as exc:
                # Whatever it granted before, an object that cannot be read grants nothing.
                log.warning("%s %s/%s is ignored: %s", kind, *key, exc)
                self._drop(kind, key)
        self._objects[kind] = dict(now)

    def _take(self, kind: str, one: Object) -> None:
        # The key of the object is what counts, not what its document says; and a namespaced one without a namespace
        # must never pass for one of the cluster.
        if (one.namespace == "") != kind.startswith("Cluster"):
            msg = "its namespace does not fit its kind"
            raise Malformed(msg)
        if kind in ("Role", "ClusterRole"):
            role = parse_role(one.body, kind=cast("RoleKind", kind))
            if (role.namespace, role.name) != (one.namespace, one.name):
                msg = f"its metadata names {role.namespace}/{role.name}"
                raise Malformed(msg)
            self._index.put_role(role)
        else:
            binding = parse_binding(one.body, kind=cast("BindingKind", kind))
            if (binding.namespace, binding.name) != (one.namespace, one.name):
                msg = f"its metadata names {binding.namespace}/{binding.name}"
                raise Malformed(msg)
            self._index.put_binding(binding)

    def _drop(self, kind: str, key: RoleKey) -> None:
        if kind in ("Role", "ClusterRole"):
            self._index.delete_role(*key)
        else:
            self._index.delete_binding(*key)
