"""Whether callers are asked who they are, on a machine of a cluster: as on all others, from the moment that is known.

A machine is never less protected than its cluster was known to be: what it learned is on disk and holds at every start,
before a port is open. It becomes protected by starting again, with its ports closed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

import msgspec

from waypost.access.pki.setup import Layout
from waypost.agent.access_config import AccessConfig
from waypost.agent.access_parts import load_pki
from waypost.agent.certificates import certify
from waypost.agent.config import AgentSettings
from waypost.base.clock import Clock
from waypost.base.errors import WaypostError

log = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
_MODES: Final = "Node,RBAC"


class StartAgain(Exception):
    """The machine got what changes everything (the cluster's access control): the agent has to be made anew."""


class Known(Protocol):
    """What is known of the cluster."""

    @property
    def is_protected(self) -> bool:
        """Whether the cluster asks callers who they are, as written down on this machine."""
        ...

    async def protected(self) -> None:
        """Return when this machine has what it needs to do so as well, and may start again."""
        ...


def access_config(config: AccessConfig, *, is_protected: bool) -> AccessConfig:
    """Return the settings that hold on a machine whose cluster is protected: what the operator wrote counts, silence does not."""
    if not is_protected or config.is_protected:
        return config
    return msgspec.structs.replace(config, authorization_mode=_MODES)


def contradiction(modes: tuple[str, ...], *, is_protected: bool) -> str:
    """Return what the operator has to be told at every start about settings that open a machine of a protected cluster."""
    if not is_protected or "AlwaysAllow" not in modes:
        return ""
    return (
        "the cluster asks callers who they are, and this machine does not: its authorization mode AlwaysAllow, which was "
        "given explicitly, counts here. Without it the machine does as the cluster"
    )


def complete(settings: AgentSettings, *, now_s: float) -> None:
    """Make the serving certificate of a server that was stopped after it got the keys and before it had one.

    Raises Malformed, Conflict, Unavailable.
    """
    if settings.data_dir is None or settings.role == "client":
        return
    layout = Layout(settings.data_dir)
    given = (layout.key("ca"), layout.key("sa"), layout.certificate("ca"))
    is_member = (settings.data_dir / "cluster" / "ca.crt").exists()
    is_certified = layout.certificate("apiserver").exists()
    if is_member and not is_certified and all(path.exists() for path in given):
        certify(settings, now_s=now_s)


class Posture:
    """Watches whether this machine still is as its cluster."""

    def __init__(
        self,
        settings: AgentSettings,
        known: Known,
        *,
        is_protected: bool,
        has_keys: bool,
        modes: tuple[str, ...],
        clock: Clock,
    ) -> None:
        """`is_protected`: this agent asks callers who they are; `has_keys`: with the keys of `waypost init`; `modes`: who decides."""
        self._settings = settings
        self._known = known
        self._is_protected = is_protected
        self._has_keys = has_keys
        self._modes = modes
        self._told = ""
        self._clock = clock

    def check(self) -> None:
        """Raise StartAgain if this machine has to begin anew before it does anything in its cluster.

        For a machine that has just joined. Raises Malformed, Conflict, Unavailable for keys that cannot be used.
        """
        self._warn()
        if self._settings.role == "client":
            if self._known.is_protected and not self._is_protected:
                self._start_again("the cluster is protected")
        elif not self._has_keys and load_pki(self._settings.data_dir) is not None:
            certify(self._settings, now_s=self._clock.wall())
            self._start_again("this server got the cluster's access control")

    async def run(self) -> None:
        """Raise StartAgain when the cluster has become protected and this machine is not; return if it is."""
        await self._known.protected()
        self._warn()
        is_client = self._settings.role == "client"
        while not (self._is_protected if is_client else self._has_keys):
            try:
                self.check()
            except WaypostError as exc:
                log.error("access control does not begin, again in %g s: %s", _AGAIN_S, exc)
            await asyncio.sleep(_AGAIN_S)

    def _warn(self) -> None:
        text = contradiction(self._modes, is_protected=self._known.is_protected)
        if text and text != self._told:
            log.warning("%s", text)
        self._told = text

    def _start_again(self, why: str) -> None:
        log.warning("%s: from now on callers are asked who they are; the agent starts again", why)
        raise StartAgain
