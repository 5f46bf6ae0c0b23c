"""Whom the cluster takes in: the answers of a server to machines that join, and to nodes that renew."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Conflict, Forbidden, NoLeader, Rejected, Unauthenticated
from waypost.cluster.directory import Directory
from waypost.cluster.local_store import LocalStore
from waypost.cluster.membership import Admitted, Membership
from waypost.cluster.messages import Join, JoinAnswer, Renew
from waypost.cluster.records import ServerFacts
from waypost.cluster.standing import Standing
from waypost.cluster.trust import Caller, NodeCaller, ServerCaller

log = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5


class TokenFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A bootstrap token that is good now."""

    id: str
    """The public half."""
    groups: tuple[str, ...] = ()


TokenCheck = Callable[[str], TokenFacts | None]
"""Returns what is known of a token, None for one that is not good."""


class Admission:
    """Judges those who join. `token_facts` judges their tokens; without it no token is good."""

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        store: LocalStore,
        membership: Membership,
        *,
        clock: Clock,
        token_facts: TokenCheck | None,
    ) -> None:
        self._standing = standing
        self._settings = standing.settings
        self._trust = standing.trust
        self._directory = directory
        self._store = store
        self._membership = membership
        self._clock = clock
        self.token_facts = token_facts

    async def answer(self, message: Join, caller: Caller) -> JoinAnswer:
        """Take a machine in, name the leader, or say why not now.

        Raises Unauthenticated, Rejected, Conflict, Malformed (a bad request), Unavailable.
        """
        sender = message.sender
        if not self._standing.is_member or not self._settings.is_server:
            raise NoLeader("this machine is not a member of a cluster")
        if sender.datacenter != self._settings.datacenter:
            raise Rejected(f"this cluster is the datacenter {self._settings.datacenter}")
        if not is_member(sender, caller):
            check_token(message, self.token_facts, open_join=self._settings.open_join)
        if sender.is_server:
            return await self._admit(message)
        self._refuse_name(sender)
        return self._certify(message.csr_pem, node=sender.node)

    def renew(self, message: Renew, caller: Caller) -> JoinAnswer:
        """Give a node a new certificate. Raises Forbidden to others, Malformed (a bad request)."""
        if not isinstance(caller, NodeCaller):
            raise Forbidden("only a node with a certificate of this cluster renews it")
        return self._certify(message.csr_pem, node=caller.node)

    async def _admit(self, message: Join) -> JoinAnswer:
        sender, authority, state = message.sender, self._trust.authority, self._standing.state
        assert authority is not None
        if not self._store.is_leader:
            leader = self._directory.leader()
            if leader is None:
                raise NoLeader("No cluster leader")
            return JoinAnswer(leader=leader.contact)
        if sender.authority and sender.authority != authority.pin:
            raise Conflict(
                f"{sender.node} has an authority of its own ({sender.authority}), the cluster's is {authority.pin}: "
                "move its pki directory away"
            )
        found = await self._membership.admit(message)
        if not isinstance(found, Admitted):
            return JoinAnswer(why=found.why, retry_after_s=_AGAIN_S)
        return JoinAnswer(
            authority_pem=authority.pem,
            secrets=self._trust.secrets(),
            cluster=state.cluster,
            epoch=state.epoch,
            initial_cluster=found.initial_cluster,
            member_id=found.member_id,
            is_protected=self._is_protected,
            servers=self._directory.known_members(),
        )

    @property
    def _is_protected(self) -> bool:
        return self._standing.asks_callers or self._standing.state.is_protected

    def _certify(self, csr_pem: bytes, *, node: str) -> JoinAnswer:
        assert self._trust.authority is not None
        return JoinAnswer(
            authority_pem=self._trust.authority.pem,
            certificate_pem=self._trust.sign_node(csr_pem, node=node, now_s=self._clock.wall()),
            cluster=self._standing.state.cluster,
            epoch=self._standing.state.epoch,
            is_protected=self._is_protected,
            servers=self._directory.known_members(),
        )

    def _refuse_name(self, sender: ServerFacts) -> None:
        for one in self._directory.servers():
            if one.node == sender.node and one.id != sender.id:
                raise Conflict(f"the node name {sender.node} is in use by a server of the cluster")


def check_token(message: Join, token_facts: TokenCheck | None, *, open_join: bool) -> None:
    """Raise Unauthenticated unless a machine that joins brings a token that is good, or none is needed."""
    if message.token:
        facts = token_facts(message.token) if token_facts is not None else None
        if facts is not None:
            log.info("cluster: %s joins with the token %s", message.sender.node, facts.id)
            return
    if open_join:
        return
    if message.token:
        raise Unauthenticated("the token is not good: it is unknown or has expired")
    raise Unauthenticated(
        "joining this cluster needs a token: make one on a server with "
        '"waypost token create" and give it with -join-token'
    )


def is_member(sender: ServerFacts, caller: Caller) -> bool:
    """Tell whether the caller's certificate proves that it is this machine of the cluster."""
    match caller:
        case ServerCaller(id):
            return sender.is_server and id == sender.id
        case NodeCaller(node):
            return not sender.is_server and node == sender.node
    return False
