"""When most servers are lost for good: the survivor becomes a cluster of one again. For a command, while no agent runs.

The last writes that were acknowledged may be lost: whatever the survivor had not yet written down as agreed. Choose the
server with the highest raft index. The others need not be touched: when they come back they see that the cluster was
recovered without them (its epoch is higher), delete their store's data and join.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Conflict, NotFound, Unavailable, WaypostError
from waypost.cluster.child import EtcdChild, arguments, find_binary, has_data
from waypost.cluster.files import StateFiles
from waypost.cluster.records import FORMED, Phase, State
from waypost.cluster.settings import ClusterPorts, ClusterSettings, join_host, split_address
from waypost.cluster.store_members import StoreMembers
from waypost.cluster.trust import Trust

log = logging.getLogger(__name__)

_WITHIN_S: Final = 60.0
_EVERY_S: Final = 0.1


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What `recover` made."""

    member_id: str
    raft_index: int
    epoch: int
    removed: int
    """How many members the cluster had besides this one."""


def settings_of(data_dir: Path, *, ports: Mapping[str, int], etcd: str) -> ClusterSettings:
    """Return what a server is, by what it wrote down; `ports` has `server` and `store`. Raises NotFound, Malformed."""
    directory = data_dir.absolute() / "cluster"
    if not (directory / "cluster.json").exists():
        raise NotFound(f"{directory}: there is no data of a server of a cluster")
    state = StateFiles(directory).load(is_server=True)
    try:
        node_id = (data_dir / "node-id").read_text(encoding="ascii").strip()
    except OSError as exc:
        raise Unavailable(f"{data_dir / 'node-id'}: {exc.strerror}") from exc
    own = next((one for one in state.servers if one.id == node_id), None)
    address, port = split_address(state.contact, port=ClusterPorts().cluster)
    return ClusterSettings(
        data_dir=data_dir.absolute(),
        node=own.node if own is not None else node_id,
        node_id=node_id,
        datacenter=state.servers[0].datacenter if state.servers else "dc1",
        address=address,
        is_server=True,
        ports=ClusterPorts(cluster=port, server=ports["server"], store=ports["store"]),
        etcd=etcd,
    )


async def recover(settings: ClusterSettings, *, clock: Clock, rng: random.Random) -> Recovered:
    """Make the server of `settings.data_dir` the only member of its cluster, with the data that it has.

    Afterwards the agent is started as always. May be called again after a crash.

    Raises NotFound (no data of a cluster here), Conflict (an agent is running), Malformed, Unavailable.
    """
    files = StateFiles(settings.directory)
    directory = settings.directory / "etcd"
    if not (settings.directory / "id.json").exists() or not has_data(directory):
        raise NotFound(f"{settings.directory}: there is no data of a server of a cluster")
    files.claim(settings)
    state = files.load(is_server=True)
    if state.phase not in FORMED:
        raise NotFound(f"{settings.directory}: this server is not a member (phase {state.phase})")
    _refuse_running(directory)
    trust = Trust(settings, clock=clock)
    trust.open()
    trust.refresh(now_s=clock.wall())
    tls = trust.store_tls
    if tls is None:
        raise NotFound(f"{settings.directory}: the certificate of the store is missing")
    binary = await find_binary(settings.etcd)
    # On loopback only: the members that are lost, if they are not, must not talk to it.
    alone = msgspec.structs.replace(settings, bind="127.0.0.1")
    own_url = f"https://{join_host(settings.address, settings.ports.server)}"
    flags = arguments(
        alone,
        version=binary.version,
        tls=tls,
        initial_cluster=f"{settings.node_id}={own_url}",
        is_new=False,
        token=state.cluster,
        force_new=True,
    )
    child = EtcdChild(binary, directory, clock=clock)
    store = StoreMembers(tls, clock=clock, rng=rng)
    await store.open()
    try:
        await child.start(flags)
        found = await _become_one(child, store, settings, state, clock=clock)
    finally:
        await child.stop()
        await store.close()
    recovered = State(
        phase=Phase.MEMBER,
        ballot=state.ballot,
        cluster=state.cluster,
        initial_cluster=f"{settings.node_id}={own_url}",
        member_id=found.member_id,
        epoch=found.epoch,
        joins_only=True,
        contact=state.contact,
        abandoned=state.abandoned,
        is_protected=state.is_protected,
    )
    files.save(recovered)
    log.warning("the cluster was recovered with %s as its only server", settings.node)
    return found


async def _become_one(
    child: EtcdChild, store: StoreMembers, settings: ClusterSettings, state: State, *, clock: Clock
) -> Recovered:
    endpoint = f"https://{join_host('127.0.0.1', settings.ports.store)}"
    own_url = f"https://{join_host(settings.address, settings.ports.server)}"
    deadline_s, why = clock.now() + _WITHIN_S, "etcd does not answer"
    while clock.now() < deadline_s:
        if child.exits:
            raise Unavailable("etcd ended by itself; the agent's log of etcd says why")
        await asyncio.sleep(_EVERY_S)
        try:
            await store.confirm(endpoint)
            status = await store.status(endpoint)
            members = await store.list(endpoint)
            if len(members) == 1 and members[0].peer_url != own_url:
                await store.update(endpoint, members[0], own_url)
        except WaypostError as exc:
            why = str(exc)
            continue
        if len(members) != 1:
            why = f"the store still has {len(members)} members"
            continue
        return Recovered(
            member_id=f"{status.member_id:x}",
            raft_index=status.raft_index,
            epoch=state.epoch + 1,
            removed=max(0, len(state.initial_cluster.split(",")) - 1),
        )
    raise Unavailable(f"the store did not become a cluster of one in {_WITHIN_S:g} s: {why}")


def _refuse_running(directory: Path) -> None:
    """Raise Conflict when an etcd has this data open: it locks its file, and a second one would wait for ever."""
    path = directory / "member" / "snap" / "db"
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise Conflict(f"{directory} is in use: stop the agent first") from exc
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror or exc}") from exc
