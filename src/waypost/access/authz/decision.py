"""What an authorizer answers, and the trace that everything else prints from."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from waypost.access.actor import Actor
from waypost.access.authz.records import BindingKind, PolicyRule, Subject
from waypost.access.gate import Attributes

Verdict = Literal["allow", "deny", "no-opinion"]


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Why RBAC allows: binding → subject → role → rule."""

    binding_kind: BindingKind
    namespace: str
    """Of the binding; empty for a ClusterRoleBinding."""
    binding: str
    subject: Subject
    role_kind: str
    role: str
    rule_index: int
    """Place of the rule in the role, from 0."""
    rule: PolicyRule


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One authorizer's answer."""

    authorizer: str
    verdict: Verdict
    reason: str = ""
    error: str = ""
    grant: Grant | None = None


class Decision(msgspec.Struct, frozen=True):
    """An answer. `deny` ends a chain; `no-opinion` at its end is a refusal as well, or with an error a fault (500)."""

    verdict: Verdict
    reason: str = ""
    trace: tuple[Step, ...] = ()
    error: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return self.verdict == "allow"

    @property
    def http_status(self) -> int:
        """200, 403, or 500 when nobody allowed and somebody failed."""
        if self.verdict == "allow":
            return 200
        return 500 if self.error else 403

    @property
    def review_status(self) -> dict[str, bool | str]:
        """The `status` of a SubjectAccessReview."""
        status: dict[str, bool | str] = {"allowed": self.verdict == "allow"}
        if self.verdict == "deny":
            status["denied"] = True
        if self.reason:
            status["reason"] = self.reason
        if self.error and self.verdict != "allow":
            status["evaluationError"] = self.error
        return status


class Authorizer(Protocol):
    """Answers from memory: no I/O, so that it can be asked for every row of a list."""

    @property
    def name(self) -> str:
        """What a trace calls it: `Node`, `RBAC`, `Webhook "x"`."""
        ...

    def authorize(self, actor: Actor, asked: Attributes) -> Step | None:
        """Return the answer; None when it has to be fetched first (see `RemoteAuthorizer`)."""
        ...


class RemoteAuthorizer(Authorizer, Protocol):
    """Somebody else decides; `authorize` knows only answers that are still fresh."""

    async def resolve(self, actor: Actor, asked: Attributes) -> Step:
        """Return the answer, asking for it if need be. Never raises for a failing peer: that is an error in the step."""
        ...
