"""The balancer: keeps this machine's nginx at what the catalog says.

Four tasks of one group: `watch` turns each new picture into what is wanted and tells nginx the endpoints at once;
`routes` starts and reloads nginx, at most once a second; `master` waits for the master's death; DNS answers nginx.
Endpoints never wait behind a reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import hashlib
import logging
import os
import pwd
import resource
import shutil
import socket
from pathlib import Path
from typing import Final, Literal

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import NotFound, Unavailable
from waypost.drivers.nginx.backends import Endpoint, Feed
from waypost.drivers.nginx.config import Facts, Ports, Site, is_fast, label
from waypost.drivers.nginx.early import news
from waypost.drivers.nginx.edge import Edge
from waypost.drivers.nginx.facts import find_binary, inspect
from waypost.drivers.nginx.names import Names, NamesServer
from waypost.drivers.nginx.process import Master, Nginx, cannot_bind
from waypost.drivers.nginx.routing import HttpRoute, Problem, Route, even_weights
from waypost.drivers.nginx.settings import Listen, Settings
from waypost.drivers.nginx.wanted import Tracker, Wanted

log = logging.getLogger(__name__)

DNS_PORT: Final = 8653
HTTP_SENTINEL_PORT: Final = 8654
STREAM_SENTINEL_PORT: Final = 8655

_SETTLE_S: Final = 0.005  # changes that come in one burst share the first reload
_TELL_S: Final = 0.05  # a reload waits so long at most for what needs none
_DNS_EFFECT_S: Final = 0.03  # from our answer until nginx balances by it
_PUTS_AT_ONCE: Final = 8
_RETRY_S: Final = 5.0
_NO_NGINX_RETRY_S: Final = 30.0
_RESTART_DELAYS_S: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_S: Final = 30.0
_STOP_S: Final = 5.0
_HOUSEKEEPING_S: Final = 60.0

_Untold = dict[str, tuple[int, tuple[Endpoint, ...]]]
"""ident → version and endpoints that nginx does not know yet."""

State = Literal["absent", "waiting", "idle", "serving", "degraded", "down", "stopped"]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the balancer shows to people, metrics and the UI."""

    state: State
    """`absent` no nginx to run, `waiting` for the first catalog, `idle` nothing to serve yet, `serving`,
    `degraded` serving but something was refused or failed, `down` nginx does not run, `stopped`."""
    lane: Literal["", "live", "fast", "reload"] = ""
    """How endpoints reach nginx: `fast` control socket and DNS, `live` DNS, `reload`."""
    nginx_version: str = ""
    binary: str = ""
    master_pid: int = 0
    worker_pids: tuple[int, ...] = ()
    listen: tuple[str, ...] = ()
    generation: int = 0
    services: int = 0
    reloads: int = 0
    starts: int = 0
    last_error: str = ""
    problems: tuple[Problem, ...] = ()
    """What services asked for and did not get."""
    quarantined: tuple[Problem, ...] = ()
    """Services that nginx refused, with its words."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be the same after a restart of the agent, or nginx would need a reload."""

    ports: Ports
    listen: tuple[Listen, ...]
    tls_listen: tuple[Listen, ...]


class Balancer:
    """Drives nginx from `feed`. `run` once; everything else may be called any time from the same loop."""

    def __init__(self, *, settings: Settings, feed: Feed, clock: Clock) -> None:
        self._settings = msgspec.structs.replace(settings, prefix=settings.prefix.absolute())
        self._feed = feed
        self._clock = clock
        self._names = Names(on_answer=self._answered)
        self._edge: Edge | None = None
        self._wanted: Wanted | None = None
        self._applied_version = 0
        self._named: dict[str, tuple[Route, tuple[Endpoint, ...]]] = {}
        """ident → what our DNS was told last."""
        self._versions: dict[str, int] = {}
        """ident → version of the answer that our DNS gives."""
        self._pushed: dict[str, int] = {}
        """ident → version that nginx was told through the control socket."""
        self._dns_answered: dict[str, tuple[int, float]] = {}
        self._early: dict[str, str] = {}
        """Hosts that no `server` of nginx has yet, as nginx was told (`early.py`)."""
        self._pushing = asyncio.Lock()
        self._work = asyncio.Event()
        self._progress = asyncio.Event()
        self._ready = asyncio.Event()
        self._absent = ""
        self._stopped = False
        self._failures = 0
        self._retry_s: float | None = None
        self._started_at = clock.now()
        self._last_reload_at = clock.now() - settings.reload_spacing_s

    # for others

    async def ready(self) -> None:
        """Return when nginx serves a picture of the catalog for the first time. Cancel-safe."""
        await self._ready.wait()

    @property
    def status(self) -> Status:
        """Return the state of this moment."""
        edge, wanted = self._edge, self._wanted
        if edge is None:
            state: State = "stopped" if self._stopped else "absent" if self._absent else "waiting"
            return Status(state=state, last_error=self._absent)
        master = edge.master
        problems = () if wanted is None else wanted.problems
        quarantined = tuple(
            Problem(one.service, one.reason)
            for one in sorted(edge.quarantined.values(), key=lambda q: q.service)
        )
        plan = edge.applied
        return Status(
            state=self._state(edge, troubled=bool(problems or quarantined or edge.closed)),
            lane=_lane(edge.facts),
            nginx_version=edge.facts.version_text,
            binary=str(edge.facts.binary),
            master_pid=master.pid if master else 0,
            worker_pids=edge.nginx.worker_pids(master) if master else (),
            listen=() if plan is None else tuple(one.text() for one in plan.site.listen),
            generation=edge.generation,
            services=0 if plan is None else len(plan.routes.services()),
            reloads=edge.reloads,
            starts=edge.starts,
            last_error=edge.last_error,
            problems=problems,
            quarantined=quarantined,
        )

    async def settled(self, service: str) -> None:
        """Return when nginx balances `service` over the endpoints of the newest picture at the time of the call.

        The acknowledgement that an orderly replacement needs: after it an instance that was taken out gets no new
        request. Never returns for a service that has no route: the caller sets the time limit. Cancel-safe.
        """
        version = self._feed.version
        while (wait_s := self._unsettled_s(service, version=version)) is None or wait_s > 0:
            progress = self._progress
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await progress.wait()

    # the tasks

    async def run(self) -> None:
        """Serve until cancelled. Then nginx is stopped, unless `leave_running`.

        Raises Unavailable when the directory or a port for our DNS cannot be had; nginx, if it runs, runs on, and
        `run` may be called again.
        """
        self._forget()
        try:
            await self._serve()
        except asyncio.CancelledError:
            await self._stop()
            raise
        finally:
            self._edge = None
            self._stopped = True

    def _forget(self) -> None:
        self._wanted = None
        self._applied_version = 0
        self._named, self._versions, self._pushed, self._dns_answered = {}, {}, {}, {}
        self._early = {}
        self._stopped = False
        self._failures = 0
        self._retry_s = None

    async def _serve(self) -> None:
        facts = await self._facts()
        nginx = Nginx(binary=facts.binary, prefix=self._settings.prefix, clock=self._clock)
        nginx.prepare()
        server = NamesServer(self._names)
        kept = _load(self._settings.prefix)
        running = nginx.find() is not None
        if not running:
            await nginx.retire_orphans(
                within_s=5.0
            )  # they would hold the ports that are tried next
        try:
            dns_port = await server.open(kept.ports.dns if kept else DNS_PORT)
            site = self._make_site(kept if running else None, dns_port=dns_port)
            _save(
                self._settings.prefix,
                _Kept(ports=site.ports, listen=site.listen, tls_listen=site.tls_listen),
            )
            settings = msgspec.structs.replace(
                self._settings, listen=site.listen, tls_listen=site.tls_listen
            )
            edge = Edge(nginx=nginx, facts=facts, settings=settings, site=site, clock=self._clock)
            self._edge = edge
            await edge.adopt()
            tracker = Tracker(settings=settings, clock=self._clock)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(edge, tracker), name="nginx.watch")
                group.create_task(self._routes(edge), name="nginx.routes")
        finally:
            await server.close()

    async def _facts(self) -> Facts:
        while True:
            try:
                facts = await inspect(find_binary(self._settings.binary))
            except (NotFound, Unavailable) as error:
                if str(error) != self._absent:
                    log.warning("balancing is off: %s", error)
                self._absent = str(error)
                await asyncio.sleep(_NO_NGINX_RETRY_S)
                continue
            self._absent = ""
            log.info("nginx %s (%s), %s lane", facts.version_text, facts.binary, _lane(facts))
            if not facts.stream:
                log.warning("%s has no stream module: TCP services are not balanced", facts.binary)
            return facts

    async def _watch(self, edge: Edge, tracker: Tracker) -> None:
        version = 0
        while True:
            version = await self._next_picture(version)
            backends = self._feed.backends
            if backends is None:
                continue
            before = self._wanted
            wanted = tracker.update(backends, version=version)
            self._wanted = wanted
            for problem in wanted.problems:
                if before is None or problem not in before.problems:
                    log.warning("balancer: %s", problem.text)
            # A reload keeps all processors busy, so what needs none goes first; but it does not wait for a deaf nginx.
            later = asyncio.get_running_loop().call_later(_TELL_S, self._work.set)
            try:
                await self._tell(wanted, edge=edge)
            finally:
                later.cancel()
                self._work.set()
            self._progressed()

    async def _next_picture(self, version: int) -> int:
        due_at = self._wanted.due_at if self._wanted else None
        wait_s = None if due_at is None else max(0.0, due_at - self._clock.now())
        try:
            async with asyncio.timeout(wait_s):
                return await self._feed.wait_past(version)
        except TimeoutError:
            return version

    async def _routes(self, edge: Edge) -> None:
        async with asyncio.TaskGroup() as group:
            if edge.master is not None:
                group.create_task(self._mourn(edge, edge.master), name="nginx.master")
            while True:
                await self._wait_for_work(edge)
                wanted = self._wanted
                if wanted is None:
                    continue
                edge.nginx.rotate_log(edge.master)
                # Without anything to serve nginx is not started, and nobody's port is taken.
                idle = edge.master is None and not edge.starts and not wanted.routes.services()
                if idle or not edge.pending(wanted):
                    self._applied(wanted)
                    continue
                await asyncio.sleep(self._pause_s(edge))
                before = edge.master
                if await self._bring(edge) and edge.master is not None and edge.master != before:
                    group.create_task(self._mourn(edge, edge.master), name="nginx.master")

    async def _wait_for_work(self, edge: Edge) -> None:
        waits = [_HOUSEKEEPING_S] if self._retry_s is None else [self._retry_s]
        due_at = edge.due_at()
        if due_at is not None:
            waits.append(max(0.01, due_at - self._clock.now()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(waits)):
                await self._work.wait()
        self._work.clear()

    def _pause_s(self, edge: Edge) -> float:
        """Return how long a start or reload has to wait: the first change is immediate, the rest is coalesced."""
        if edge.master is None:
            return _RESTART_DELAYS_S[min(self._failures, len(_RESTART_DELAYS_S) - 1)]
        next_at = self._last_reload_at + self._settings.reload_spacing_s
        return max(_SETTLE_S, next_at - self._clock.now())

    async def _bring(self, edge: Edge) -> bool:
        """Bring the newest wanted state into force; returns False when it failed and has to be tried again."""
        wanted = self._wanted
        assert wanted is not None
        starting = edge.master is None
        began_at = self._clock.now()
        try:
            changed = await edge.apply(wanted)
        except Unavailable as error:
            log.error("nginx: %s", error)
            self._failures += 1
            self._retry_s = 0.0 if edge.master is None else _RETRY_S
            return False
        finally:
            if not starting:
                self._last_reload_at = began_at
        self._retry_s = None
        if starting:
            self._started_at = began_at
            self._pushed.clear()
            self._early = {}
            await self._tell(self._wanted or wanted, edge=edge)
        if changed:
            log.debug("nginx: picture %d is in force", wanted.version)
        self._applied(wanted)
        return True

    async def _mourn(self, edge: Edge, master: Master) -> None:
        """Wait for the end of `master` and have it replaced."""
        await edge.nginx.wait_dead(master)
        if edge.master != master:
            return
        steady = self._clock.now() - self._started_at > _STEADY_S
        self._failures = 0 if steady else self._failures + 1
        edge.lost()
        edge.last_error = f"the master process {master.pid} ended"
        log.error("nginx: %s; it is started again", edge.last_error)
        self._work.set()

    # what nginx learns without a reload

    async def _tell(self, wanted: Wanted, *, edge: Edge) -> None:
        """Tell our DNS and nginx the endpoints, and nginx the hosts whose `server` comes with the next reload."""
        early = edge.early(wanted)
        fresh = news(early, told=self._early, served=edge.served_hosts)
        for ident in fresh.values():
            # A host must not be known without its list, so the list is told again, and before.
            self._pushed.pop(ident, None)
        await self._push(self._name_endpoints(wanted, edge=edge), edge=edge)
        if not fresh or edge.master is None:
            self._early = early
            return
        try:
            await edge.nginx.control.put_hosts(
                {host: ident if ident in self._pushed else "" for host, ident in fresh.items()}
            )
        except Unavailable as error:
            log.debug("%d new hosts wait for a reload: %s", len(fresh), error)
        else:
            self._early = early

    def _name_endpoints(self, wanted: Wanted, *, edge: Edge) -> _Untold:
        """Tell our DNS the endpoints; returns those of the fast routes that nginx was not told yet."""
        ports = edge.site.ports
        named: dict[str, tuple[Route, tuple[Endpoint, ...]]] = {}
        for route in wanted.routes.every():
            found = wanted.endpoints.get(route.service, ())
            if not found and isinstance(route, HttpRoute) and route.canary_of:
                found = wanted.endpoints.get(route.canary_of, ())
            known = self._named.get(route.ident)
            if known is not None and known[0] is route and known[1] is found:
                named[route.ident] = known
                continue
            named[route.ident] = (route, found)
            is_http = isinstance(route, HttpRoute)
            self._versions[route.ident] = self._names.put(
                label(route.ident),
                endpoints=even_weights(found, method=route.method),
                sentinel_port=ports.http_sentinel if is_http else ports.stream_sentinel,
            )
        for ident in self._named.keys() - named.keys():
            self._names.remove(label(ident))
            self._versions.pop(ident, None)
            self._pushed.pop(ident, None)
        self._named = named
        return {
            ident: (self._versions[ident], even_weights(found, method=route.method))
            for ident, (route, found) in named.items()
            if self._pushed.get(ident) != self._versions[ident]
            and isinstance(route, HttpRoute)
            and is_fast(route, facts=edge.facts)
        }

    async def _push(self, untold: _Untold, *, edge: Edge) -> None:
        """Tell nginx endpoints through the control socket. What fails there arrives by DNS within a second."""
        if not untold or edge.nginx.find() is None:
            return
        slots = asyncio.Semaphore(_PUTS_AT_ONCE)

        async def tell(ident: str, version: int, endpoints: tuple[Endpoint, ...]) -> None:
            async with slots:
                if self._versions.get(ident) != version:
                    return  # newer ones follow
                try:
                    if await edge.nginx.control.put_endpoints(ident, endpoints=endpoints):
                        self._pushed[ident] = version
                except Unavailable as error:
                    log.debug("endpoints of %s travel by DNS only: %s", ident, error)

        # One round at a time: two lists of one service must not overtake each other.
        async with self._pushing, asyncio.TaskGroup() as group:
            for ident, (version, endpoints) in untold.items():
                group.create_task(tell(ident, version, endpoints), name=f"nginx.put.{ident}")

    def _answered(self, name: str, version: int) -> None:
        known = self._dns_answered.get(name)
        if known is None or known[0] != version:
            self._dns_answered[name] = (version, self._clock.now())
            self._progressed()

    # acknowledgement

    def _applied(self, wanted: Wanted) -> None:
        self._applied_version = wanted.version
        self._ready.set()
        self._progressed()

    def _progressed(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _unsettled_s(self, service: str, *, version: int) -> float | None:
        """Return 0 when settled, else how long to wait until looking again, None = until there is progress."""
        edge, wanted = self._edge, self._wanted
        if (
            edge is None
            or edge.applied is None
            or edge.master is None
            or wanted is None
            or wanted.version < version
        ):
            return None
        asked, routes = wanted.routes.of(service), edge.applied.routes.of(service)
        everything = self._applied_version >= version
        if not routes and any(one in wanted.routes.canary for one in asked):
            return 0.0 if everything else None  # a canary without instances is in no plan
        if not routes or routes != asked or not (edge.facts.live or everything):
            return None
        wait_s = 0.0
        for route in routes:
            current = self._versions.get(route.ident)
            if not edge.facts.live or self._pushed.get(route.ident) == current:
                continue
            answered, at = self._dns_answered.get(label(route.ident), (0, 0.0))
            if answered != current:
                return None
            wait_s = max(wait_s, at + _DNS_EFFECT_S - self._clock.now())
        return wait_s

    # start and end

    def _make_site(self, kept: _Kept | None, *, dns_port: int) -> Site:
        """Return the site. `kept` are the choices of the agent before, when its nginx still runs."""
        settings = self._settings
        if kept is not None:
            sentinels = (kept.ports.http_sentinel, kept.ports.stream_sentinel)
        else:
            sentinels = _free_ports((HTTP_SENTINEL_PORT, STREAM_SENTINEL_PORT))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        open_files = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        return Site(
            prefix=settings.prefix,
            temp=_temp_dir(settings.prefix),
            listen=settings.listen
            or (kept.listen if kept else _usable(80, instead=8080, level=logging.WARNING)),
            tls_listen=settings.tls_listen
            or (kept.tls_listen if kept else _usable(443, instead=8443, level=logging.INFO)),
            tcp_addresses=settings.tcp_addresses,
            ports=Ports(dns=dns_port, http_sentinel=sentinels[0], stream_sentinel=sentinels[1]),
            workers=settings.workers or len(os.sched_getaffinity(0)),
            open_files=open_files,
            body_bytes=settings.max_body_bytes,
            user=_worker_user(),
            access_log=settings.access_log,
        )

    async def _stop(self) -> None:
        edge = self._edge
        if edge is None or self._settings.leave_running:
            return
        master = edge.nginx.find()
        if master is not None:
            log.info("nginx: pid %d is stopped with the agent", master.pid)
            await edge.nginx.stop(master, within_s=_STOP_S)
        if edge.nginx.find() is None:
            _remove_outside(_temp_dir_path(self._settings.prefix), prefix=self._settings.prefix)

    def _state(self, edge: Edge, *, troubled: bool) -> State:
        if self._wanted is None:
            return "waiting"
        if edge.master is None:
            return "down" if edge.starts or self._wanted.routes.services() else "idle"
        return "degraded" if troubled else "serving"


def _lane(facts: Facts) -> Literal["fast", "live", "reload"]:
    if not facts.live:
        return "reload"
    return "fast" if facts.fast else "live"


def _usable(port: int, *, instead: int, level: int) -> tuple[Listen, ...]:
    wanted, second = Listen("0.0.0.0", port), Listen("0.0.0.0", instead)
    refused = cannot_bind([wanted]).get(wanted)
    if refused is None:
        return (wanted,)
    log.log(level, "port %d cannot be used (%s), %d takes its place", port, refused, instead)
    return (second,)


def _free_ports(wanted: tuple[int, int]) -> tuple[int, int]:
    """Return `wanted`, or free ports of 127.0.0.1 in place of those that are taken."""
    held: list[socket.socket] = []
    try:
        for port in wanted:
            taken = cannot_bind([Listen("127.0.0.1", port)])
            held.append(socket.create_server(("127.0.0.1", 0 if taken else port)))
        first, second = (int(one.getsockname()[1]) for one in held)
        return first, second
    finally:
        for one in held:
            one.close()


def _worker_user() -> str:
    """Return user and group for the workers of a master that runs as root: nobody, whatever nginx was built with."""
    if os.geteuid() != 0:
        return ""
    try:
        nobody = pwd.getpwnam("nobody")
        return f"{nobody.pw_name} {grp.getgrgid(nobody.pw_gid).gr_name}"
    except KeyError:
        return ""


def _temp_dir_path(prefix: Path) -> Path:
    """Return where nginx keeps bodies that do not fit into memory.

    Workers that run as nobody have to get there, and the way to our own directory may be closed to them.
    """
    open_to_all = all(path.stat().st_mode & 0o001 for path in (prefix, *prefix.parents))
    if os.geteuid() == 0 and not open_to_all:
        digest = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:12]
        return Path("/run") / f"waypost-nginx-{digest}"
    return prefix / "temp"


def _temp_dir(prefix: Path) -> Path:
    """Return the directory for nginx's temporary files, made if need be."""
    path = _temp_dir_path(prefix)
    path.mkdir(mode=0o711, exist_ok=True)
    path.chmod(0o711)  # a service's umask of 077 would shut the workers out
    return path


def _remove_outside(temp: Path, *, prefix: Path) -> None:
    """Remove a directory for temporary files that does not lie in our own: nobody else would."""
    if not temp.is_relative_to(prefix):
        shutil.rmtree(temp, ignore_errors=True)


def _load(prefix: Path) -> _Kept | None:
    try:
        return msgspec.json.decode((prefix / "kept.json").read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None


def _save(prefix: Path, kept: _Kept) -> None:
    aside = prefix / "kept.json.new"
    aside.write_bytes(msgspec.json.encode(kept))
    aside.replace(prefix / "kept.json")
