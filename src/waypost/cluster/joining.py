"""How a machine gets into a cluster that stands: it asks one of its servers to be taken in."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from waypost.base.clock import Clock
from waypost.base.errors import (
    Conflict,
    Forbidden,
    Malformed,
    NoLeader,
    Rejected,
    Unauthenticated,
    Unavailable,
)
from waypost.cluster.certificates import Certificates
from waypost.cluster.directory import Directory
from waypost.cluster.greeting import Greeting
from waypost.cluster.messages import Hello, Join, JoinAnswer, Path, decode, encode
from waypost.cluster.peers import Peers
from waypost.cluster.records import Phase, ServerFacts, State
from waypost.cluster.report import Report
from waypost.cluster.standing import Standing
from waypost.cluster.transport import PeerClient

log = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5
_REFUSED_S: Final = 5.0
_TIMEOUT_S: Final = 10.0

InTurn = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Has a change made by whoever owns this machine's state."""


class Joining:
    """Asks to be taken in, and takes what comes of it."""

    def __init__(
        self,
        standing: Standing,
        directory: Directory,
        peers: Peers,
        client: PeerClient,
        certificates: Certificates,
        greeting: Greeting,
        report: Report,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._standing = standing
        self._settings = standing.settings
        self._trust = standing.trust
        self._directory = directory
        self._peers = peers
        self._client = client
        self._certificates = certificates
        self._greeting = greeting
        self._report = report
        self._clock = clock
        self._rng = rng
        self._at_s = float("-inf")
        self._told_pin = ""

    @property
    def may_ask(self) -> bool:
        """Whether the pause after a request is over."""
        return self._clock.now() >= self._at_s

    def rest(self) -> None:
        """Begin a short pause."""
        self._at_s = self._clock.now() + _AGAIN_S

    async def ask(self, targets: tuple[ServerFacts, ...], *, in_turn: InTurn) -> None:
        """Ask these servers, the first first, until one has an answer; what comes of it is done by `in_turn`.

        Refusals are reported. Raises Malformed for an answer that cannot be used, Unavailable.
        """
        self._at_s = self._clock.now() + _AGAIN_S * self._rng.uniform(0.8, 1.4)
        message = Join(
            sender=self._directory.own(),
            token=self._settings.join_token,
            csr_pem=b"" if self._settings.is_server else self._trust.request(),
            last_member_id=self._standing.state.member_id,
        )
        try:
            answer = await self._ask_one_of(targets, message)
        except (Unauthenticated, Forbidden, Conflict, Malformed, Rejected) as exc:
            self._at_s = self._clock.now() + _REFUSED_S
            text = f"cluster: joining was refused: {exc}"
            self._report.say("join", text, level=logging.ERROR)
            return
        except Unavailable as exc:
            text = f"cluster: joining was not possible: {exc}"
            self._report.say("join", text, level=logging.WARNING)
            return
        if answer.why:
            self._report.say("join", f"cluster: not taken in yet: {answer.why}")
            return
        self._report.say("join", "")

        async def conclude() -> None:
            await self._taken_in(answer)

        await in_turn(conclude)

    async def _ask_one_of(self, targets: tuple[ServerFacts, ...], message: Join) -> JoinAnswer:
        failure: Unavailable = Unavailable("no server of the cluster answers")
        for target in targets:
            try:
                answer = await self._ask(target.contact, message)
                if answer.leader and answer.leader != target.contact:
                    answer = await self._ask(answer.leader, message)
                if not answer.leader:
                    return answer
                failure = NoLeader("the cluster's leader is just changing")
            except Unavailable as exc:
                failure = exc
        raise failure

    async def _ask(self, address: str, message: Join) -> JoinAnswer:
        if self._trust.is_credible:
            data = await self._client.call(
                address, Path.JOIN, encode(message), timeout_s=_TIMEOUT_S
            )
            return decode(data, JoinAnswer, what=Path.JOIN)
        hello = encode(self._greeting.hello())
        first = await self._client.first_contact(address, Path.HELLO, hello)
        authority_pem = decode(first.body, Hello, what=Path.HELLO).authority_pem
        if not authority_pem:
            raise Unavailable(f"{address} is not a member of a cluster yet")
        self._check_pin(address, self._trust.check_server(first.certificate_der, authority_pem))
        answer = await self._client.first_contact(
            address,
            Path.JOIN,
            encode(message),
            fingerprint=first.fingerprint,
            timeout_s=_TIMEOUT_S,
        )
        found = decode(answer.body, JoinAnswer, what=Path.JOIN)
        if found.authority_pem and found.authority_pem != authority_pem:
            raise Unauthenticated(f"{address} changed its authority while this machine joined")
        return found

    def _check_pin(self, address: str, pin: str) -> None:
        wanted = self._settings.ca_pin
        if wanted and pin != wanted:
            raise Unauthenticated(
                f"{address} belongs to a cluster with the authority {pin}, expected {wanted} "
                "(-discovery-token-ca-cert-hash); the token was not sent"
            )
        if not wanted and pin != self._told_pin:
            self._told_pin = pin
            log.warning(
                "cluster: trusted on first use: the authority %s, because %s shows it and no other was named; the token goes to "
                "its servers. Compare it with the servers' logs; -discovery-token-ca-cert-hash %s accepts no other",
                pin,
                address,
                pin,
            )

    async def _taken_in(self, answer: JoinAnswer) -> None:
        if self._standing.phase not in (Phase.NONE, Phase.LEFT):
            return
        servers = tuple(one for one in answer.servers if one.id != self._settings.node_id)
        if self._settings.is_server:
            if answer.secrets is None:
                raise Malformed("the cluster's answer has no keys for a server")
            self._certificates.found(answer.secrets)
            phase = Phase.JOINING
        else:
            self._certificates.accept(answer)
            phase = Phase.MEMBER
        self._standing.save(
            State(
                is_server=self._settings.is_server,
                phase=phase,
                ballot=self._standing.state.ballot,
                cluster=answer.cluster,
                epoch=answer.epoch,
                initial_cluster=answer.initial_cluster,
                member_id=answer.member_id,
                joins_only=True,
                is_protected=answer.is_protected or self._standing.state.is_protected,
                servers=servers,
            )
        )
        self._greeting.taken_in()
        self._peers.learn(servers, now_s=self._clock.now())
        await self._certificates.changed()
        log.info("cluster: taken in; its authority is %s", self._trust.pin)
