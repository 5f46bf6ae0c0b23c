"""How decisions about records ask admission: always with what they are about to store, on the view they decide on.

A decision gets an `Admits` and asks it for every record that the request writes or removes. What follows from that
without anybody's will, such as the tags that a check shows of its instance, is not asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from waypost.access.actor import Actor
from waypost.access.admission import Admission, settled
from waypost.access.admission.rules import Record
from waypost.state.state import Commit, Plan, State
from waypost.state.view import View

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Admits(Protocol):
    """Admission as a decision sees it: `access.admission.Pass`, or `UNREVIEWED`."""

    @property
    def asks(self) -> bool:
        """Whether anything but the fixed rules has a say."""
        ...

    def record(self, new: R, old: R | None, *, subresource: str = "") -> R:
        """Return what is to be stored in place of `old` instead of `new`. Raises Denied, TooLarge, WebhookFailed."""
        ...

    def removal(self, *gone: Record) -> None:
        """Return when all of `gone` may go. Raises Denied, WebhookFailed."""
        ...


class _Unreviewed:
    @property
    def asks(self) -> bool:
        return False

    def record(self, new: R, old: R | None, *, subresource: str = "") -> R:
        return new

    def removal(self, *gone: Record) -> None:
        pass


UNREVIEWED: Final[Admits] = _Unreviewed()
"""Admits everything: for what the agent must have to be one, and for tests of plain decisions."""


def opened(admission: Admission | None, actor: Actor) -> Admits:
    """Return what the decisions of one request of `actor` ask; whoever awaits them does so by `settled`."""
    return UNREVIEWED if admission is None else admission.open(actor)


async def reviewed(admission: Admission | None, actor: Actor, decide: Callable[[Admits], T]) -> T:
    """Return what `decide` returns once admission has agreed. Raises what it raises."""
    admits = opened(admission, actor)

    async def now() -> T:
        return decide(admits)

    return await settled(now)


async def commit_reviewed(
    state: State,
    admission: Admission | None,
    actor: Actor,
    decide: Callable[[View, Admits], Plan[T]],
    *,
    is_own: bool = False,
) -> T:
    """Commit what `decide` comes to once admission has agreed to it; see `State.commit`, if `is_own` `commit_own`.

    It is decided again, and asked about again as far as it differs, when somebody else wrote meanwhile. Raises Denied,
    TooLarge, WebhookFailed besides.
    """
    admits = opened(admission, actor)
    commit: Commit = state.commit_own if is_own else state.commit
    return await settled(lambda: commit(lambda view: decide(view, admits)))
