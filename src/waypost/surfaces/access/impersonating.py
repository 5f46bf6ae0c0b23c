"""Acting as somebody else on every endpoint that does not see to it itself.

The kube-style API answers in words of its own (`surfaces.kube.access`); what is here serves all others. A request that
wants to be somebody else and may not is refused: nobody is answered as himself who asked to be another.
"""

from __future__ import annotations

from collections.abc import Callable

from waypost.access.actor import Actor
from waypost.access.authn.impersonation import impersonation
from waypost.access.authz.chain import Chain
from waypost.base.errors import Forbidden, Malformed
from waypost.surfaces.http.message import Request


class Impersonator:
    """Asks `authorizers`. `sees_to_it` tells which paths (decoded) are left alone."""

    def __init__(self, authorizers: Chain, *, sees_to_it: Callable[[str], bool]) -> None:
        self._authorizers = authorizers
        self._sees_to_it = sees_to_it

    async def become(self, request: Request, actor: Actor) -> Actor:
        """Return who the request acts as. Raises Forbidden, Malformed."""
        try:
            if self._sees_to_it(request.path):
                return actor
        except Malformed:
            return actor  # the router refuses such a path
        wish = impersonation(request.headers, requester=actor)
        if wish is None:
            return actor
        for asked in wish.attributes:
            decision = self._authorizers.authorize(actor, asked)
            if decision is None:
                decision = await self._authorizers.resolve(actor, asked)
            if not decision.allowed:
                why = decision.error or decision.reason
                text = f'Forbidden: User "{actor.user}" cannot {asked.text}'
                raise Forbidden(f"{text}: {why}" if why else text)
        return wish.actor
