"""What is known of a machine, and what shall be changed on it, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

DNS_PORT: Final = 53
RESOLV_CONF: Final = "/etc/resolv.conf"
MADE_BY: Final = '# Made by "waypost setup dns"; "waypost setup dns -undo" removes it.\n'

Part = Literal["host", "docker"]


class AgentDns(msgspec.Struct, frozen=True, kw_only=True):
    """A place where an agent answers DNS for the domain."""

    address: str
    port: int
    forwards: bool
    """It asks recursors for names outside the domain."""
    datacenter: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a machine. Paths are those of the machine."""

    files: Mapping[str, bytes | None] = {}
    """Every file that was looked for; None: there is none."""
    resolv_conf: str = RESOLV_CONF
    """The file that /etc/resolv.conf leads to."""
    programs: frozenset[str] = frozenset()
    """Which of the programs that matter here are installed."""
    processes: frozenset[str] = frozenset()
    """Names of the processes in this network namespace, as the kernel has them: at most 15 characters."""
    dockerd: tuple[str, ...] = ()
    """The command line of the Docker engine that runs."""
    bridge_address: str = ""
    """The address of Docker's bridge; "" without one."""
    node_address: str = ""
    """The address other machines reach this one at; "" without a network."""
    is_systemd: bool = False
    """systemd is the init system."""
    systemd_version: int = 0
    answers: tuple[AgentDns, ...] = ()
    """Where agents answered."""

    def text(self, path: str) -> str:
        """Return what is in a file; "" when there is none."""
        # Whatever bytes a file holds come back the same.
        return (self.files.get(path) or b"").decode("utf-8", "surrogateescape")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for on the command line; "" and 0: to be found out."""

    domain: str = "consul"
    address: str = ""
    port: int = 0
    docker_address: str = ""
    docker_config: str = "/etc/docker/daemon.json"
    force: bool = False


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """One file to change: `after` None removes it, `before` None makes it."""

    part: Part
    path: str
    before: bytes | None
    after: bytes | None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a program read its changed file."""

    part: Part
    what: str
    """In words: restart dnsmasq."""
    argv: tuple[str, ...] = ()
    """The command; empty where none is known."""
    why: str
    is_asked: bool = False
    """Done only when asked for, because it disturbs what runs."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be done, in this order; `notes` are for the person who asked."""

    edits: tuple[Edit, ...] = ()
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
