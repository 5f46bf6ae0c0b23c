"""Authorizers that need no policy."""

from __future__ import annotations

from typing import Final

from waypost.access.actor import Actor
from waypost.access.authz.decision import Step
from waypost.access.gate import Attributes


class AlwaysAllow:
    """Allows everything."""

    name: Final = "AlwaysAllow"

    def authorize(self, _actor: Actor, _asked: Attributes) -> Step:
        """Return allow."""
        return Step(authorizer=self.name, verdict="allow")


class AlwaysDeny:
    """Has no opinion on anything, as the original: it blocks nothing that is placed after it."""

    name: Final = "AlwaysDeny"

    def authorize(self, _actor: Actor, _asked: Attributes) -> Step:
        """Return no opinion with a reason."""
        return Step(authorizer=self.name, verdict="no-opinion", reason="Everything is forbidden.")
