"""Certificates while the agent runs: the serving one is issued again in time, and requests that waited for a key are signed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from waypost.access.pki.issue import Names
from waypost.access.pki.setup import (
    SERVING,
    InitSettings,
    Layout,
    expiries,
    initialise,
    renew_serving,
    serving_renewal_s,
)
from waypost.agent.config import DEFAULT_HTTPS_PORT, AgentSettings
from waypost.base.clock import Clock
from waypost.base.errors import Conflict, NotFound, WaypostError
from waypost.domain.object import Objects
from waypost.domain.object_plan import Place
from waypost.state.view import View
from waypost.wire.kube.resources import CERTIFICATES
from waypost.wire.kube.status import ApiError

log = logging.getLogger(__name__)

_LOOK_S: Final = 3600.0
"""A wall clock may jump, and files may be exchanged by hand: it is looked at least so often."""
_AGAIN_S: Final = 60.0
"""The least time between two attempts."""


class Certificates:
    """Watches the certificates below a data directory."""

    def __init__(self, layout: Layout, *, renewed: Callable[[], None], clock: Clock) -> None:
        """`renewed` is called once a new serving certificate is in its place; it raises WaypostError if that is no good."""
        self._layout = layout
        self._renewed = renewed
        self._clock = clock
        self._tried_s: float | None = None
        self._told: set[tuple[str, float]] = set()

    async def look(self) -> float:
        """Renew what is due here, tell of what is due and cannot be renewed here; return the seconds until the next look."""
        try:
            due_s = serving_renewal_s(self._layout)
        except WaypostError as exc:
            log.error("serving certificate: %s", exc)
            return _LOOK_S
        left_s = _LOOK_S if due_s is None else due_s - self._clock.wall()
        if left_s <= 0:
            left_s = await self._renew()
        self._tell()
        return min(left_s, _LOOK_S)

    async def _renew(self) -> float:
        if self._tried_s is not None:
            wait_s = self._tried_s + _AGAIN_S - self._clock.now()
            if wait_s > 0:
                return wait_s
        self._tried_s = self._clock.now()
        try:
            # RSA keys take their time.
            done = await asyncio.to_thread(renew_serving, self._layout, now_s=self._clock.wall())
            self._renewed()
        except Conflict as exc:
            log.info("the serving certificate is not renewed yet: %s", exc)
            return _AGAIN_S
        except WaypostError as exc:
            log.error("the serving certificate is not renewed: %s; trying again in an hour", exc)
            return _LOOK_S
        log.info(
            "serving certificate renewed, good for %.1f days",
            done.left_s(now_s=self._clock.wall()) / 86400,
        )
        return _AGAIN_S

    def _tell(self) -> None:
        now_s = self._clock.wall()
        for one in expiries(self._layout):
            end_s = one.expires_s
            if end_s is None or not one.is_due(now_s=now_s) or (one.name, end_s) in self._told:
                continue
            self._told.add((one.name, end_s))
            where = " where the key of its authority is" if one.externally_managed else ""
            log.warning(
                "certificate of %s: %.1f days left; `waypost certs renew %s`%s issues it again",
                "the agent's API" if one.name == SERVING else one.name,
                one.left_s(now_s=now_s) / 86400,
                one.name,
                where,
            )


async def sign_waiting(objects: Objects, view: View) -> None:
    """Sign the approved requests that nobody could sign when they were approved. Raises Unavailable."""
    resource = objects.catalog.find(
        group=CERTIFICATES, version="v1", plural="certificatesigningrequests"
    )
    if resource is None:
        return
    for one in list(view.objects(CERTIFICATES, resource.plural)):
        try:
            await objects.sign_approved(Place(resource, name=one.name, subresource="status"))
        except (NotFound, ApiError) as exc:
            # Deleted meanwhile, or changed so that it must not be signed: the others still are.
            log.warning("certificate signing request %s is not signed: %s", one.name, exc)


def certify(settings: AgentSettings, *, now_s: float) -> None:
    """Make what `waypost init` makes, for a server that got the authority when it joined. Raises Malformed, Unavailable."""
    assert settings.data_dir is not None, "a member keeps its identity on disk"
    config = settings.config
    domain = config.domain.strip(".")
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    port = config.ports.https if config.ports.https > 0 else DEFAULT_HTTPS_PORT
    names = Names.of(
        [
            settings.node_name,
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"server.{config.datacenter}.{domain}",
            f"{domain}.service.{domain}",
            "127.0.0.1",
            "::1",
            settings.address,
        ]
    )
    initialise(
        InitSettings(node=settings.node_name, server=f"https://{address}:{port}", names=names),
        Layout(settings.data_dir),
        now_s=now_s,
    )
