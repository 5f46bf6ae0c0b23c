"""A server's part in a cluster whose store is an etcd that the operator runs.

No server starts an etcd, and none has to meet another: they share a store, and what they have to agree on stands there.

    e NUL authority        the cluster's keys: made by the first server, taken over by every other
    e NUL election         who leads (`election`)
    e NUL server NUL ID    what each server says about itself

Nothing of it is part of the state that views, client agents and snapshots hold. Client agents join as in any cluster,
over the cluster port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from waypost.access.pki.issue import ca_pin, load_certificate
from waypost.base.clock import Clock
from waypost.base.errors import (
    Conflict,
    Forbidden,
    Malformed,
    NoLeader,
    NotFound,
    Rejected,
    Unavailable,
    WaypostError,
)
from waypost.cluster.admission import TokenCheck, check_token, is_member
from waypost.cluster.answers import Reply, authenticated
from waypost.cluster.election import RENEW_S, Claim, Election
from waypost.cluster.files import StateFiles
from waypost.cluster.messages import (
    AboutMember,
    Done,
    Hello,
    Join,
    JoinAnswer,
    MemberHealth,
    Path,
    RaftAnswer,
    Renew,
    Secrets,
    decode,
    encode,
)
from waypost.cluster.records import Phase, RaftMember, ServerFacts, ServerInfo, server_info
from waypost.cluster.report import Report
from waypost.cluster.settings import ClusterSettings, join_host
from waypost.cluster.standing import new_id
from waypost.cluster.transport import PeerClient, import_http_client
from waypost.cluster.trust import (
    Caller,
    NodeCaller,
    ServerCaller,
    ServingFiles,
    Stranger,
    Trust,
)
from waypost.store.engine import Compare, Delete, Engine, KeyValue, Put, Txn

log = logging.getLogger(__name__)

AUTHORITY: Final = b"e\0authority"
ELECTION: Final = b"e\0election"
SERVER: Final = b"e\0server\0"
_MEETING: Final = (b"e\0e", b"e\0t")
"""The span of the election and the servers."""
_FRESH_S: Final = 3 * RENEW_S
_RENEW_LOOK_S: Final = 600.0
_CALL_S: Final = 10.0
_RESIGN_S: Final = 2.0
_NONCE_BYTES: Final = 12
_VERSION: Final = 1

_encode = msgspec.msgpack.Encoder().encode


class Founding(msgspec.Struct, frozen=True, kw_only=True):
    """What makes machines servers of one cluster, as it stands in the store. `repr` shows no key."""

    version: int = _VERSION
    cluster: str
    datacenter: str
    is_sealed: bool
    secrets: bytes
    """`Secrets`; sealed with the shared key (AES-GCM, after a nonce of 12 bytes) if the servers have one."""

    def __repr__(self) -> str:
        return f"Founding(cluster={self.cluster!r})"


def seal(secrets: Secrets, *, cluster: str, datacenter: str, key: bytes | None) -> Founding:
    """Return what is written to the store."""
    plain = _encode(secrets)
    if key is not None:
        nonce = os.urandom(_NONCE_BYTES)
        plain = nonce + AESGCM(key).encrypt(nonce, plain, cluster.encode())
    return Founding(
        cluster=cluster, datacenter=datacenter, is_sealed=key is not None, secrets=plain
    )


def unseal(founding: Founding, *, key: bytes | None) -> Secrets:
    """Return the keys that stand in the store. Raises Malformed when this machine cannot read them."""
    data = founding.secrets
    if founding.is_sealed:
        if key is None:
            raise Malformed(
                "the cluster's keys in the store are sealed: this machine has to be started with the same -encrypt"
            )
        try:
            data = AESGCM(key).decrypt(
                data[:_NONCE_BYTES], data[_NONCE_BYTES:], founding.cluster.encode()
            )
        except InvalidTag as exc:
            raise Malformed(
                "the cluster's keys in the store are sealed with another key for -encrypt"
            ) from exc
    try:
        return msgspec.msgpack.decode(data, type=Secrets)
    except msgspec.MsgspecError as exc:
        raise Malformed(f"the cluster's keys in the store cannot be read: {exc}") from exc


class ExternalCluster:
    """One server's part; what `Cluster` is where the servers run the store themselves. For one event loop.

    `engine` is opened by whoever runs this, then `meet` makes this machine a server and `run` keeps it one.
    `is_alive` tells of a node whether it was heard of lately, `on_serving_changed` is called when the files of `serving()`
    have another content.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        engine: Engine,
        *,
        clock: Clock,
        rng: random.Random,
        on_serving_changed: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._clock = clock
        self._rng = rng
        self._secret = settings.secret()
        self.token_facts: TokenCheck | None = None
        self.is_alive: Callable[[str], bool] = lambda _: True
        self.on_serving_changed = on_serving_changed
        self.trust = Trust(settings, clock=clock)
        self.client = PeerClient(self.trust, datacenter=settings.datacenter, secret=self._secret)
        self._incarnation = new_id(rng)
        self._election = Election(server_id=settings.node_id, session=self._incarnation)
        self._report = Report(clock=clock)
        self._servers: dict[str, ServerFacts] = {}
        self._cluster = ""
        self._looked_s = float("-inf")
        self._has_left = False
        self._asks_callers = False
        self._ready = asyncio.Event()

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read what is on disk and make what is missing; asks nobody. Raises Malformed, Unavailable."""
        import_http_client()
        StateFiles(self._settings.directory).claim(self._settings)
        self.trust.open()
        if self._settings.open_join:
            log.warning("cluster.open_join: any machine that reaches the cluster port may join")

    async def close(self) -> None:
        """Close connections; `run` has ended."""
        await self.client.close()

    async def ready(self) -> None:
        """Return when this machine is a server of its cluster."""
        await self._ready.wait()

    @property
    def is_ready(self) -> bool:
        """Whether this machine is a server of its cluster."""
        return self._ready.is_set()

    async def meet(self) -> None:
        """Become a server: take the cluster's keys from the open store, or put them there.

        Raises Unavailable; Malformed, Conflict for a store that belongs to others.
        """
        row = await self._row(AUTHORITY)
        if row is None:
            row = await self._found_cluster()
        founding = self._read(row)
        await self._take_over(founding, row)
        self._cluster = founding.cluster
        await self._look()
        self._ready.set()
        await self._register()
        log.info(
            "cluster: this server shares its store with the others; the authority is %s",
            self.trust.pin,
        )

    async def run(self) -> None:
        """Say that this server is there and stand for election, until cancelled."""
        await self._ready.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_looking(), name="cluster.election")
            group.create_task(self._keep_certificates(), name="cluster.certificates")

    async def resign(self) -> None:
        """Lead no more, and have another server lead at once if the store can be told. Before the engine is closed."""
        self._has_left = True
        if self.is_leader:
            with contextlib.suppress(WaypostError, TimeoutError):
                async with asyncio.timeout(_RESIGN_S):
                    await self._hand_over("")

    # -- the cluster's keys ------------------------------------------------------------------------------------------

    async def _row(self, key: bytes) -> KeyValue | None:
        page = await self._engine.range(key)
        return page.items[0] if page.items else None

    async def _found_cluster(self) -> KeyValue:
        """Put keys into a store without any: this machine's if it has some, so that its clients know it again."""
        has_keys = self.trust.authority is not None and self.trust.authority.key is not None
        secrets = self.trust.secrets() if has_keys else self.trust.propose()
        founding = seal(
            secrets,
            cluster=self._cluster or new_id(self._rng),
            datacenter=self._settings.datacenter,
            key=self._secret,
        )
        put = Put(AUTHORITY, _encode(founding))
        await self._engine.commit(Txn(when=(Compare(AUTHORITY, "version", "==", 0),), then=(put,)))
        row = await self._row(AUTHORITY)
        if row is None:
            raise Unavailable("the cluster's keys went from the store as soon as they were written")
        if row.value == put.value:
            log.info("cluster: founded; nobody had put keys into the store")
        return row

    def _read(self, row: KeyValue) -> Founding:
        try:
            founding = msgspec.msgpack.decode(row.value, type=Founding)
        except msgspec.MsgspecError as exc:
            raise Malformed(f"what stands in the store cannot be read: {exc}") from exc
        if founding.version > _VERSION:
            raise Malformed(
                f"the store was made by a later version of waypost ({founding.version})"
            )
        if founding.datacenter != self._settings.datacenter:
            raise Conflict(
                f"the store belongs to the datacenter {founding.datacenter}, this machine to {self._settings.datacenter}: "
                "datacenters that share an etcd need prefixes of their own (-etcd-prefix)"
            )
        return founding

    async def _take_over(self, founding: Founding, row: KeyValue) -> None:
        secrets = unseal(founding, key=self._secret)
        pin = ca_pin(load_certificate(secrets.authority_pem, name="the cluster's authority"))
        own = self.trust.pin or self.trust.own_authority
        if own and own != pin:
            raise Conflict(
                f"this machine has an authority of its own ({own}), that of the store's cluster is {pin}: give it the "
                f"store it had, or move {self._settings.directory} and the pki directory away"
            )
        now_s = self._clock.wall()
        wants_pki = bool(secrets.pki) and not self.trust.own_authority
        if self.trust.authority is None or self.trust.store_tls is None or wants_pki:
            self.trust.found(secrets, now_s=now_s)
        else:
            self.trust.refresh(now_s=now_s)
            await self._complete(founding, secrets, row)
        await self._certificates_changed()

    async def _complete(self, founding: Founding, secrets: Secrets, row: KeyValue) -> None:
        """Add the keys of access control, if this machine is the first to have them (`waypost init`)."""
        mine = self.trust.secrets()
        if secrets.pki or not mine.pki:
            return
        more = seal(
            msgspec.structs.replace(secrets, pki=mine.pki),
            cluster=founding.cluster,
            datacenter=founding.datacenter,
            key=self._secret,
        )
        when = Compare(AUTHORITY, "modify", "==", row.modify_revision)
        await self._engine.commit(Txn(when=(when,), then=(Put(AUTHORITY, _encode(more)),)))
        log.info("cluster: the keys of access control are in the store now, for the other servers")

    async def _certificates_changed(self) -> None:
        await self.client.renewed()
        if self.on_serving_changed is not None:
            self.on_serving_changed()

    async def _keep_certificates(self) -> None:
        """Renew this server's certificates at two thirds of their lives."""
        while True:
            await asyncio.sleep(_RENEW_LOOK_S)
            try:
                if self.trust.refresh(now_s=self._clock.wall()):
                    await self._certificates_changed()
            except WaypostError as exc:
                log.warning("certificates were not renewed: %s", exc)

    # -- election, and who is there ----------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        while True:
            began_s = self._clock.now()
            if not self._has_left:
                try:
                    await self._look()
                    await self._stand()
                    await self._register()
                    self._report.say("store", "")
                except WaypostError as exc:
                    text = f"cluster: the store cannot be asked who leads: {exc}"
                    self._report.say("store", text, level=logging.WARNING)
            spent_s = self._clock.now() - began_s
            await asyncio.sleep(max(0.1, RENEW_S * self._rng.uniform(0.9, 1.1) - spent_s))

    async def _look(self) -> None:
        page = await self._engine.range(*_MEETING)
        now_s = self._clock.now()
        claim, revision = None, 0
        servers: dict[str, ServerFacts] = {}
        for row in page.items:
            try:
                if row.key == ELECTION:
                    revision = row.modify_revision
                    claim = msgspec.msgpack.decode(row.value, type=Claim)
                elif row.key.startswith(SERVER):
                    facts = msgspec.msgpack.decode(row.value, type=ServerFacts)
                    servers[facts.id] = facts
            except msgspec.MsgspecError as exc:
                # Whoever leads writes the claim again; a server's words are written again by that server.
                self._report.say(
                    f"row {row.key!r}",
                    f"cluster: what stands under {row.key!r} cannot be read: {exc}",
                    level=logging.ERROR,
                )
        self._election.saw(claim, revision=revision, now_s=now_s)
        self._servers, self._looked_s = servers, now_s

    async def _stand(self) -> None:
        began_s = self._clock.now()
        claim = self._election.wants(now_s=began_s)
        if claim is None:
            return
        led = self.is_leader
        revision = await self._write_claim(claim)
        if revision:
            now_s = self._clock.now()
            self._election.succeeded(claim, revision=revision, began_s=began_s, now_s=now_s)
            if not led:
                log.info("cluster: this server is elected")

    async def _write_claim(self, claim: Claim) -> int:
        """Write it in place of the one seen; return the revision, 0 when somebody was faster."""
        when = Compare(ELECTION, "modify", "==", self._election.revision)
        result = await self._engine.commit(Txn(when=(when,), then=(Put(ELECTION, _encode(claim)),)))
        return result.revision if result.succeeded else 0

    async def _hand_over(self, to: str) -> None:
        claim = self._election.given_up(to=to)
        revision = await self._write_claim(claim)
        if revision:
            now_s = self._clock.now()
            self._election.succeeded(claim, revision=revision, began_s=now_s, now_s=now_s)

    async def _register(self) -> None:
        own = self._own()
        if own.id not in self._servers and await self._row(AUTHORITY) is None:
            log.warning("cluster: etcd's data were lost; the cluster's keys are put there again")
            await self._found_cluster()
        if self._servers.get(own.id) != own:
            await self._engine.commit(Txn(then=(Put(SERVER + own.id.encode(), _encode(own)),)))

    def _own(self) -> ServerFacts:
        settings = self._settings
        return ServerFacts(
            id=settings.node_id,
            node=settings.node,
            datacenter=settings.datacenter,
            address=settings.address,
            cluster_port=settings.ports.cluster,
            server_port=settings.ports.server,
            store_port=settings.ports.store,
            phase=Phase.MEMBER if self.is_ready else Phase.NONE,
            cluster=self._cluster,
            fingerprint=self.trust.fingerprint,
            authority=self.trust.pin,
            incarnation=self._incarnation,
            is_protected=self._asks_callers,
            joins_only=True,
        )

    # -- access control ------------------------------------------------------------------------------------------------

    def asks_callers(self) -> None:
        """Tell others that this agent asks callers who they are."""
        self._asks_callers = True

    is_protected: Final = False
    """Keys of access control lie in the store: who enters has them, and nothing has to be remembered."""

    async def protected(self) -> None:
        """Never return: keys that come later are found at the next start."""
        await asyncio.Event().wait()

    # -- what others need ----------------------------------------------------------------------------------------------

    def authority_pem(self) -> bytes:
        """Return the certificate of the cluster's authority. Raises NotFound before there is one."""
        return self.trust.authority_pem()

    def serving(self) -> ServingFiles:
        """Return the certificate and key for the cluster port; the paths stay, their content changes."""
        return self.trust.serving

    def identify(self, chain_der: tuple[bytes, ...]) -> Caller:
        """Return who a caller of the cluster port is."""
        return self.trust.identify(chain_der)

    def servers(self) -> tuple[ServerInfo, ...]:
        """Return the servers: live ones first, then by node name."""
        own = self._own()
        leader = self._leader_id()
        found = []
        for facts in (self._servers | {own.id: own}).values():
            is_self = facts.id == own.id
            is_live = is_self or self.is_alive(facts.node)
            found.append(
                server_info(
                    facts,
                    is_leader=facts.id == leader,
                    is_self=is_self,
                    is_live=is_live,
                    last_seen_s=self._looked_s if is_live else float("-inf"),
                )
            )
        return tuple(sorted(found, key=lambda one: (not one.is_live, one.node, one.id)))

    def _leader_id(self) -> str:
        now_s = self._clock.now()
        if now_s - self._looked_s > _FRESH_S:
            return ""
        return self._election.leader(now_s=now_s)

    def leader(self) -> ServerInfo | None:
        """Return the server that leads, None when none is known."""
        return next((one for one in self.servers() if one.is_leader), None)

    @property
    def is_leader(self) -> bool:
        """Whether this server leads."""
        return self._election.leads(now_s=self._clock.now())

    @property
    def knows_leader(self) -> bool:
        """Whether somebody leads, as far as this server knows."""
        return bool(self._leader_id())

    async def raft(self) -> tuple[RaftMember, ...]:
        """Return the servers: the members of the operator's etcd are its own affair."""
        return tuple(
            RaftMember(
                id=one.id,
                node=one.node,
                address=join_host(one.address, one.server_port),
                is_leader=one.is_leader,
                is_voter=True,
                member_id="",
            )
            for one in self.servers()
        )

    async def health(self) -> tuple[MemberHealth, ...]:
        """Return how the servers are: alive or not."""
        since_s = self._clock.wall()
        status = await self._engine.status()
        return tuple(
            MemberHealth(
                id=one.id,
                is_healthy=one.is_live and status.has_quorum,
                why=_why_not(is_live=one.is_live, has_quorum=status.has_quorum),
                contact_s=0.0 if one.is_live else None,
                index=status.revision,
                since_s=since_s,
            )
            for one in self.servers()
        )

    async def join(self, addresses: tuple[str, ...]) -> int:
        """Raise Unavailable: servers find each other in the store."""
        raise Unavailable(
            f"{', '.join(addresses)} is not asked: the servers of this cluster share an etcd (-etcd-servers) and find "
            "each other there"
        )

    async def leave(self) -> None:
        """Hand the leadership over and forget this server. Raises Unavailable."""
        await self.resign()
        await self._engine.commit(Txn(then=(Delete(SERVER + self._settings.node_id.encode()),)))
        log.info("this server has left the cluster")

    async def remove_peer(self, member: str) -> None:
        """Forget a server that is gone: node id or `IP:PORT`. Raises NotFound, Conflict while it is alive."""
        one = self._find(member)
        if one.is_live:
            raise Conflict(f"{one.node} is alive: stop its agent, or let it leave")
        await self._engine.commit(Txn(then=(Delete(SERVER + one.id.encode()),)))
        self._servers.pop(one.id, None)

    async def transfer_leader(self, member: str = "") -> None:
        """Let another server lead; empty: any live one. Raises NotFound, Conflict, Unavailable."""
        if self.is_leader:
            await self._transfer(member)
            return
        leader = self.leader()
        if leader is None:
            raise NoLeader("No cluster leader")
        message = encode(AboutMember(member=member))
        await self.client.call(leader.contact, Path.TRANSFER, message, timeout_s=_CALL_S)

    async def _transfer(self, member: str) -> None:
        others = [one for one in self.servers() if one.is_live and not one.is_self]
        if member:
            one = self._find(member)
            if one.is_self:
                raise Conflict(f"{one.node} leads already")
            if not one.is_live:
                raise Conflict(f"{one.node} is not alive")
            others = [one]
        if not others:
            raise Conflict("no other server is alive")
        await self._hand_over(others[0].id)

    def _find(self, member: str) -> ServerInfo:
        wanted = member.lower()
        for one in self.servers():
            if wanted in (one.id.lower(), join_host(one.address, one.server_port)):
                return one
        raise NotFound(f"no server {member!r}")

    # -- what other machines ask ---------------------------------------------------------------------------------------

    async def answer(self, path: str, body: bytes, *, caller: Caller, shown_mac: str) -> Reply:
        """Answer a message of another machine. Raises errors of the tree, which go back to it."""
        return await authenticated(
            self._answer,
            path,
            body,
            caller=caller,
            shown_mac=shown_mac,
            trust=self.trust,
            secret=self._secret,
        )

    async def _answer(self, path: str, body: bytes, caller: Caller) -> msgspec.Struct:
        match path:
            case Path.HELLO:
                return self._greet(decode(body, Hello, what=path))
            case Path.JOIN:
                return self._admit(decode(body, Join, what=path), caller)
            case Path.RENEW:
                message = decode(body, Renew, what=path)
                if not isinstance(caller, NodeCaller):
                    raise Forbidden("only a node with a certificate of this cluster renews it")
                return self._certify(message.csr_pem, node=caller.node)
            case Path.TRANSFER:
                about = decode(body, AboutMember, what=path)
                if not isinstance(caller, ServerCaller):
                    raise Forbidden("only servers of the cluster may ask this")
                if not self.is_leader:
                    raise NoLeader("the cluster's leader is just changing")
                await self._transfer(about.member)
                return Done()
            case Path.RAFT:
                if isinstance(caller, Stranger):
                    raise Forbidden("only members of the cluster may ask this")
                return RaftAnswer(members=await self.raft())
        raise NotFound(f"no such message in a cluster whose servers share an etcd: {path}")

    def _check_datacenter(self, sender: ServerFacts) -> None:
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(f"this cluster is the datacenter {self._settings.datacenter}")

    def _greet(self, hello: Hello) -> Hello:
        self._check_datacenter(hello.sender)
        authority = self.trust.authority if self.is_ready else None
        return Hello(
            sender=self._facts(),
            servers=self._members(),
            authority_pem=authority.pem if authority else b"",
        )

    def _facts(self) -> ServerFacts:
        return msgspec.structs.replace(self._own(), is_leader=self.is_leader)

    def _members(self) -> tuple[ServerFacts, ...]:
        own = self._facts()
        return (own, *(facts for key, facts in self._servers.items() if key != own.id))

    def _admit(self, message: Join, caller: Caller) -> JoinAnswer:
        sender = message.sender
        if not self.is_ready:
            raise NoLeader("this machine is not a member of a cluster")
        self._check_datacenter(sender)
        if sender.is_server:
            raise Rejected(
                "the servers of this cluster share an etcd: start this one with the same -etcd-servers, without -join"
            )
        if not is_member(sender, caller):
            check_token(message, self.token_facts, open_join=self._settings.open_join)
        for one in self.servers():
            if one.node == sender.node and one.id != sender.id:
                raise Conflict(f"the node name {sender.node} is in use by a server of the cluster")
        return self._certify(message.csr_pem, node=sender.node)

    def _certify(self, csr_pem: bytes, *, node: str) -> JoinAnswer:
        authority = self.trust.authority
        if authority is None:
            raise NoLeader("this machine is not a member of a cluster")
        return JoinAnswer(
            authority_pem=authority.pem,
            certificate_pem=self.trust.sign_node(csr_pem, node=node, now_s=self._clock.wall()),
            cluster=self._cluster,
            is_protected=self._asks_callers,
            servers=self._members(),
        )


def _why_not(*, is_live: bool, has_quorum: bool) -> str:
    if not is_live:
        return "it is not heard of"
    return "" if has_quorum else "etcd does not answer with a quorum"
