"""/v1/agent/self, members, host, metrics, monitor, join, leave. Source: Consul HTTP API, agent."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import platform
import resource
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from waypost.access.gate import Attributes
from waypost.base.duration import format_ns
from waypost.base.errors import Malformed, Rejected
from waypost.domain.cluster import FarServer, agents
from waypost.domain.member import Member, depart, members, plan_leave
from waypost.model.catalog import fold
from waypost.surfaces.consul.context import DONE, Context
from waypost.surfaces.http.message import Request, Response, text_response

_STATUS: Final = {"alive": 1, "left": 3, "failed": 4}
"""Serf's numbers."""
_READ: Final = Attributes("get", "agents")
_CHANGE: Final = Attributes("update", "agents")
_JOIN_S: Final = 5.0
_LEVELS: Final = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "ERROR": logging.ERROR,
}
_QUEUED_LINES: Final = 512
_GO_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}
"""What Go, and so Consul, calls the processors."""
ZERO_COORDINATE: Final[dict[str, Any]] = {
    "Vec": [0, 0, 0, 0, 0, 0, 0, 0],
    "Error": 1.5,
    "Adjustment": 0,
    "Height": 0.00001,
}
"""Where a node is on the network's map as long as nothing was measured. Source: Vivaldi, serf's coordinates."""


class MemberRoutes:
    """Handlers of what an agent says about itself and the others."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._agent = context.domain.agent
        self._view = context.domain.state.view

    # -- members -------------------------------------------------------------------------------------------------------

    def _member(self, member: Member, *, wan: bool, port: int = 0) -> dict[str, Any]:
        network, version = self._context.network, self._context.settings.version
        tags = {
            "acls": "0",
            "build": f"{version}:",
            "dc": member.datacenter,
            "id": member.id,
            "role": "consul" if member.server_port else "node",
            "segment": "",
            "vsn": "2",
            "vsn_max": "3",
            "vsn_min": "2",
        }
        if member.server_port:
            tags |= {"ft_fs": "1", "port": str(member.server_port), "raft_vsn": "3"}
            if not wan:
                tags["wan_join_port"] = str(network.serf_wan_port)
        return {
            "Name": f"{member.node}.{member.datacenter}" if wan else member.node,
            "Addr": member.address,
            "Port": port or (network.serf_wan_port if wan else network.serf_lan_port),
            "Tags": dict(sorted(tags.items())),
            "Status": _STATUS[member.status],
            "ProtocolMin": 1,
            "ProtocolMax": 5,
            "ProtocolCur": 2,
            "DelegateMin": 2,
            "DelegateMax": 5,
            "DelegateCur": 4,
        }

    def members(self, request: Request) -> Response:
        """GET members; who may get some agents by name sees those."""
        actor = self._context.actor(request)
        query = request.query
        # Whatever its value is, `wan=false` included.
        wan = "wan" in query and query.get("wan") != ""
        if query.get("segment") not in ("", "_all"):
            if wan:
                msg = "Cannot provide a segment with wan=true"
                raise Malformed(msg)
            msg = "Network segments are not supported in this version of Consul"
            raise Rejected(msg)
        seen = self._context.domain.gate.visible(
            actor,
            _READ,
            [member for member in members(self._view) if member.server_port or not wan],
            each=lambda member: (Attributes("get", "agents", member.node),),
            known=lambda: members(self._view),
        )
        found = [self._member(member, wan=wan) for member in seen]
        if wan and self._context.domain.gate.allows(actor, _READ):
            # Who may see only some agents by name is meant to see those of this datacenter.
            found += [
                self._member(_as_member(one), wan=True, port=one.port)
                for one in self._context.far_servers()
            ]
        return self._context.json(
            request, _ordered(found), headers=self._context.marks(actor, _READ)
        )

    # -- self ----------------------------------------------------------------------------------------------------------

    def self(self, request: Request) -> Response:
        """GET self."""
        self._context.admit(request, _READ)
        local, settings = self._agent.local, self._context.settings
        node = self._view.node(local.node)
        own = next((m for m in members(self._view) if fold(m.node) == fold(local.node)), None)
        value = {
            "Config": {
                "Datacenter": local.datacenter,
                "NodeName": local.node,
                "NodeID": local.id,
                "Revision": "",
                "Server": local.server,
                "Version": settings.version,
            },
            "DebugConfig": self._debug_config(),
            "Coord": ZERO_COORDINATE,
            "Member": self._member(own, wan=False) if own is not None else None,
            "Stats": self._stats(),
            "Meta": dict(node.meta or {}) if node is not None else {},
        }
        return self._context.json(request, _ordered(value))

    def _debug_config(self) -> dict[str, Any]:
        local, settings, network = self._agent.local, self._context.settings, self._context.network
        return {
            "ACLsEnabled": False,
            "AdvertiseAddrLAN": local.address,
            "Datacenter": local.datacenter,
            "DevMode": settings.indent,
            "EnableDebug": False,
            "EnableRemoteScriptChecks": settings.script_checks,
            "KVMaxValueSize": settings.max_value_bytes,
            "NodeID": local.id,
            "NodeMeta": dict(local.meta),
            "NodeName": local.node,
            "SerfPortLAN": network.serf_lan_port,
            "SerfPortWAN": network.serf_wan_port,
            "ServerMode": local.server,
            "ServerPort": network.server_port,
            "TxnMaxReqLen": settings.max_txn_bytes,
            "Version": settings.version,
        }

    def _stats(self) -> dict[str, dict[str, str]]:
        local, view = self._agent.local, self._view
        services = view.node_services(local.node).values()
        checks = view.node_checks(local.node).values()
        ttls = sum(1 for c in checks if c.definition is not None and c.definition.ttl_ns)
        polled = sum(1 for c in checks if c.definition is not None and c.definition.interval_ns)
        return {
            "agent": {
                "check_monitors": str(polled),
                "check_ttls": str(ttls),
                "checks": str(sum(1 for c in checks if c.owner != "self")),
                "services": str(sum(1 for s in services if s.owner != "self")),
            },
            "build": {
                "prerelease": "",
                "revision": "",
                "version": self._context.settings.version,
            },
            **self._group_stats(),
            "runtime": {
                "arch": _GO_ARCH.get(platform.machine(), platform.machine()),
                "cpu_count": str(os.cpu_count() or 1),
                "os": sys.platform,
                "version": f"python{platform.python_version()}",
            },
            **self._serf_stats(),
        }

    def _group_stats(self) -> dict[str, dict[str, str]]:
        """Return what an agent says about the group of servers; one that is no server says less."""
        cluster, applied = self._context.cluster, str(self._view.revision)
        servers = len(agents(self._view, servers=True))
        if not self._agent.local.server:
            return {"consul": {"acl": "disabled", "known_servers": str(servers), "server": "false"}}
        return {
            "consul": {
                "acl": "disabled",
                "bootstrap": "false",
                "known_datacenters": str(len(self._context.reader.datacenters())),
                "leader": str(cluster.is_leader).lower(),
                "leader_addr": cluster.leader_address(),
                "server": "true",
            },
            "raft": {
                "applied_index": applied,
                "commit_index": applied,
                "last_contact": _contact(cluster.last_contact_s()),
                "last_log_index": applied,
                "num_peers": str(max(0, servers - 1)),
                "state": "Leader" if cluster.is_leader else "Follower",
            },
        }

    def _serf_stats(self) -> dict[str, dict[str, str]]:
        found = members(self._view)
        lan = {
            "members": str(len(found)),
            "failed": str(sum(1 for member in found if member.status == "failed")),
        }
        if self._context.is_clustered:
            lan["left"] = str(sum(1 for member in found if member.status == "left"))
        if not self._agent.local.server:
            return {"serf_lan": lan}
        far = self._context.far_servers()
        own = [member for member in found if member.server_port]
        statuses = [*(one.status for one in own), *(one.status for one in far)]
        wan = {
            "members": str(len(statuses)),
            "failed": str(statuses.count("failed")),
            "left": str(statuses.count("left")),
        }
        return {"serf_lan": lan, "serf_wan": wan}

    def version(self, request: Request) -> Response:
        """GET version."""
        self._context.admit(request, _READ)
        human = self._context.settings.version
        return self._context.json(
            request,
            _ordered({"SHA": "", "BuildDate": "", "HumanVersion": human, "FIPS": ""}),
        )

    # -- the machine ---------------------------------------------------------------------------------------------------

    def host(self, request: Request) -> Response:
        """GET host."""
        self._context.admit(request, _READ)
        return self._context.json(request, _ordered(host_facts()))

    def metrics(self, request: Request) -> Response:
        """GET metrics."""
        self._context.admit(request, _READ)
        if request.query.get("format") == "prometheus":
            text = "Prometheus is not enabled since its retention time is not positive"
            return text_response(415, text)
        view = self._view
        usage = resource.getrusage(resource.RUSAGE_SELF)
        gauges = {
            "consul.raft.applied_index": view.revision,
            "consul.runtime.alloc_bytes": _resident_bytes(),
            "consul.runtime.sys_bytes": usage.ru_maxrss * 1024,
            "consul.session_ttl.active": len(view.sessions()),
            "consul.state.nodes": len(view.nodes()),
            "consul.state.services": len(view.service_names()),
            "consul.blocking.waiters": view.topics.waiting,
        }
        now = datetime.now(UTC)
        value = {
            "Timestamp": f"{now:%Y-%m-%d %H:%M:%S} +0000 UTC",
            "Gauges": [
                {"Name": name, "Value": number, "Labels": {}} for name, number in gauges.items()
            ],
            "Points": [],
            "Counters": [],
            "Samples": [],
        }
        return self._context.json(request, _ordered(value))

    def monitor(self, request: Request) -> Response:
        """GET monitor: the log, line by line, as it comes."""
        self._context.admit(request, _READ)
        level = request.query.get("loglevel") or "INFO"
        number = _LEVELS.get(level.upper())
        if number is None:
            msg = f"Bad request: Unknown log level: {level}"
            raise Malformed(msg)
        request.may_interrupt = True
        lines = log_lines(level=number, as_json="logjson" in request.query)
        return Response(stream=lines, content_type="text/plain; charset=utf-8", vary=False)

    # -- changes -------------------------------------------------------------------------------------------------------

    async def reload(self, request: Request) -> Response:
        """PUT reload."""
        self._context.admit(request, _CHANGE)
        if self._context.reload is None:
            msg = "this agent is not reloaded from here; send it SIGHUP"
            raise Rejected(msg)
        await self._context.reload()
        return DONE

    async def leave(self, request: Request) -> Response:
        """PUT leave: in a cluster out of the catalog and the group of servers first, and then the agent ends."""
        self._context.admit(request, _CHANGE)
        if self._context.leave is None:
            msg = "this agent is not stopped from here; send it SIGTERM"
            raise Rejected(msg)
        if self._context.is_clustered:
            await depart(self._context.domain.state, self._agent, self._context.cluster)
        await self._context.leave()
        return DONE

    async def join(self, request: Request) -> Response:
        """PUT join/:address."""
        self._context.admit(request, _CHANGE)
        port = self._context.network.serf_lan_port
        problem = await _join_problem(request.rest, port=port)
        if not problem:
            try:
                await self._context.cluster.join(request.rest)
            except Rejected as error:
                problem = str(error)
        if problem:
            msg = f"1 error occurred:\n\t* {problem}\n\n"
            raise Rejected(msg)
        return DONE

    async def force_leave(self, request: Request) -> Response:
        """PUT force-leave/:node."""
        self._context.admit(request, _CHANGE)
        wanted = fold(request.rest)
        prune = "prune" in request.query
        found = next((m for m in members(self._view) if fold(m.node) == wanted), None)
        if found is None:
            msg = f"agent: No node found with name '{request.rest}'"
            raise Rejected(msg)
        if self._context.is_clustered:
            if found.server_port and found.status == "failed":
                await self._remove_server(found)
            await self._context.domain.state.commit(
                lambda view: plan_leave(view, found.node, forget=prune)
            )
        return DONE

    async def _remove_server(self, member: Member) -> None:
        for server in await self._context.cluster.servers():
            if server.id.lower() == member.id.lower():
                await self._context.cluster.remove_server(server.id)


def _as_member(server: FarServer) -> Member:
    return Member(
        node=server.node,
        id=server.id,
        address=server.address,
        datacenter=server.datacenter,
        status=server.status,
        server_port=server.server_port,
    )


def _ordered(value: Any) -> msgspec.Raw:
    """Return `value` as raw JSON, so that the members of its objects stay in the order of Consul's answers."""
    return msgspec.Raw(msgspec.json.encode(value))


async def _join_problem(text: str, *, port: int) -> str:
    """Try to reach another agent and return why it cannot be joined; empty if somebody answers there."""
    host, _, given = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
    target = int(given) if given.isdigit() else port
    try:
        async with asyncio.timeout(_JOIN_S):
            _, writer = await asyncio.open_connection(host, target)
    except TimeoutError:
        return f"Failed to join {host}: dial tcp {host}:{target}: i/o timeout"
    except ConnectionRefusedError:
        return f"Failed to join {host}: dial tcp {host}:{target}: connect: connection refused"
    except OSError as error:
        if error.errno is None or error.errno < 0:
            return f"Failed to resolve {host}: lookup {host}: no such host"
        return (
            f"Failed to join {host}: dial tcp {host}:{target}: {os.strerror(error.errno).lower()}"
        )
    writer.close()
    return ""


def _contact(age_s: float) -> str:
    """Return an age as Consul's figures show it."""
    if age_s == 0:
        return "0"
    return "never" if math.isinf(age_s) else format_ns(round(age_s * 1e6) * 1000)


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _meminfo() -> Mapping[str, int]:
    found = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[0]
        found[name] = int(number) * 1024
    return found


def host_facts() -> dict[str, Any]:
    """Return what there is to know about this machine, as far as its kernel tells without privileges."""
    errors: list[str] = []
    memory: dict[str, int] = {}
    uptime_s = 0.0
    try:
        info = _meminfo()
        total, free = info["MemTotal"], info["MemFree"]
        available = info.get("MemAvailable", free)
        memory = {
            "total": total,
            "available": available,
            "used": total - available,
            "free": free,
            "buffers": info.get("Buffers", 0),
            "cached": info.get("Cached", 0),
            "swaptotal": info.get("SwapTotal", 0),
            "swapfree": info.get("SwapFree", 0),
        }
        uptime_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, LookupError) as error:
        errors.append(str(error))
    disk = os.statvfs("/")
    now = datetime.now(UTC)
    return {
        "Memory": memory,
        "CPU": [{"cpu": number} for number in range(os.cpu_count() or 1)],
        "Host": {
            "hostname": platform.node(),
            "uptime": int(uptime_s),
            "bootTime": int(now.timestamp() - uptime_s),
            "os": sys.platform,
            "kernelVersion": platform.release(),
            "kernelArch": platform.machine(),
        },
        "Disk": {
            "path": "/",
            "total": disk.f_blocks * disk.f_frsize,
            "free": disk.f_bavail * disk.f_frsize,
            "used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        },
        "CollectionTime": int(now.timestamp() * 1e9),
        "Errors": errors or None,
    }


class _Lines(logging.Handler):
    """Puts log lines into a bounded queue; what does not fit is dropped and counted."""

    def __init__(self, *, level: int, as_json: bool) -> None:
        super().__init__(level)
        self._loop = asyncio.get_running_loop()
        self._as_json = as_json
        self._dropped = 0
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUED_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler; called from any thread."""
        self._loop.call_soon_threadsafe(self._put, self._format(record))

    def _format(self, record: logging.LogRecord) -> bytes:
        level = {"WARNING": "WARN", "CRITICAL": "ERROR"}.get(record.levelname, record.levelname)
        when = datetime.fromtimestamp(record.created, UTC)
        stamp = f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"
        text = record.getMessage()
        if self._as_json:
            fields = {
                "@level": level.lower(),
                "@message": text,
                "@module": record.name,
                "@timestamp": stamp,
            }
            return json.dumps(fields).encode() + b"\n"
        return f"{stamp} [{level}] {record.name}: {text!s}\n".encode("utf-8", "replace")

    def _put(self, line: bytes) -> None:
        if self.queue.full():
            self._dropped += 1
            return
        if self._dropped:
            note = f"{self._dropped} lines were dropped, the reader is too slow\n".encode()
            self._dropped = 0
            line = note + line
        self.queue.put_nowait(line)


async def log_lines(*, level: int, as_json: bool) -> AsyncIterator[bytes]:
    """Yield the log from now on until the reader goes away."""
    handler = _Lines(level=level, as_json=as_json)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        while True:
            yield await handler.queue.get()
    finally:
        root.removeHandler(handler)
