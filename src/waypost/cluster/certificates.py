"""This machine's certificates over time: taken into use when they come, renewed before they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from waypost.access.pki.setup import RENEW_AT
from waypost.base.clock import Clock
from waypost.base.errors import WaypostError
from waypost.cluster.local_store import LocalStore
from waypost.cluster.messages import JoinAnswer, Renew, Secrets
from waypost.cluster.settings import ClusterSettings
from waypost.cluster.transport import PeerClient
from waypost.cluster.trust import Trust

log = logging.getLogger(__name__)

_LOOK_S: Final = 600.0


class Certificates:
    """Keeps those who use the certificates up to date. `on_serving_changed` is for who serves the cluster port.

    `ask_servers` asks a server for a node's new certificate. Raises Unavailable, and what servers refuse with.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        *,
        trust: Trust,
        client: PeerClient,
        store: LocalStore,
        clock: Clock,
        ask_servers: Callable[[Renew], Awaitable[JoinAnswer]],
    ) -> None:
        self._is_server = settings.is_server
        self._trust = trust
        self._client = client
        self._store = store
        self._clock = clock
        self._ask_servers = ask_servers
        self.on_serving_changed: Callable[[], None] | None = None

    def found(self, secrets: Secrets) -> None:
        """Write a server's keys and certificates; `changed` takes them into use. Raises Malformed, Unavailable."""
        self._trust.found(secrets, now_s=self._clock.wall())

    async def forget(self) -> None:
        """Be nobody's member any more. Raises Unavailable."""
        self._trust.forget()
        await self.changed()

    def accept(self, answer: JoinAnswer) -> None:
        """Write a client's certificate; `changed` takes it into use. Raises Malformed, Unavailable."""
        self._trust.accept(
            authority_pem=answer.authority_pem, certificate_pem_=answer.certificate_pem
        )

    async def changed(self) -> None:
        """Use what is on disk now."""
        await self._client.renewed()
        await self._store.reconnect()
        if self.on_serving_changed is not None:
            self.on_serving_changed()

    async def run(self) -> None:
        """Renew certificates at two thirds of their lives (RENEW_AT), until cancelled; a client asks a server for it."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.renew()
            except WaypostError as exc:
                log.warning("certificates were not renewed, again in %g s: %s", _LOOK_S, exc)

    async def renew(self) -> bool:
        """Renew what needs it now; return whether anything did. Raises Unavailable, and what servers refuse with."""
        now_s = self._clock.wall()
        if self._is_server:
            if not self._trust.refresh(now_s=now_s):
                return False
        else:
            if not self._trust.node_needs_renewal(now_s=now_s):
                return False
            self.accept(await self._ask_servers(Renew(csr_pem=self._trust.request())))
            log.info(
                "the certificate of this node was renewed after %.0f %% of its life", RENEW_AT * 100
            )
        await self.changed()
        return True
