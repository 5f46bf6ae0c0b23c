"""Who may do what on this agent: authenticators and authorizers, made from the data directory and the settings.

Without `pki/` (made by `waypost init`) and without a setting that names users or authorizers, the agent behaves like
Consul on its own machine: see `ExposureAuthorizer`. Else every request on every TCP listener is authenticated, and
allowed by the configured chain, which is Node and RBAC by default.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.audit.log import AuditLog
from waypost.access.audit.trail import NotedChain
from waypost.access.authn.certificate import FrontProxy
from waypost.access.authn.chain import AnonymousRule
from waypost.access.authn.chain import Chain as Authenticators
from waypost.access.authn.jws import PublicKey
from waypost.access.authn.local import is_loopback
from waypost.access.authn.records import Authentication, TokenAuthenticator
from waypost.access.authn.remembered import Remembered
from waypost.access.authn.request import credentials_of
from waypost.access.authz.chain import Chain as Authorizers
from waypost.access.authz.decision import Step
from waypost.access.authz.escalation import Held
from waypost.access.authz.rbac import RbacAuthorizer, RbacIndex
from waypost.access.authz.records import PolicyRule, Role, Subject
from waypost.access.authz.review import lint
from waypost.access.authz.settled import SettledChain
from waypost.access.gate import Attributes, ExposureAuthorizer, Gate, Undecided
from waypost.access.pki.signer import SIGNERS
from waypost.access.pki.signer import sign as sign_request
from waypost.agent.access_config import AccessConfig, audit_settings, exposed_files, jwks_uri
from waypost.agent.access_parts import AUDIENCES, Keys, Parts, Remote, load_pki, make_parts
from waypost.agent.certificates import Certificates
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, WaypostError
from waypost.domain.object import TokenOwner
from waypost.domain.object_kinds import signing_request
from waypost.state.view import View
from waypost.surfaces.access.routes import Questions
from waypost.surfaces.http.audit import Auditor
from waypost.surfaces.http.message import Fast, Head, Peer, Rendered, Request
from waypost.surfaces.http.tls import TlsEndpoint, make_context
from waypost.surfaces.kube.access import Access
from waypost.wire.kube.values import JsonObject

if TYPE_CHECKING:
    from OpenSSL import SSL

__all__ = ["AccessControl", "Keys", "Reading", "load_pki"]

log = logging.getLogger(__name__)

_MAX_KNOWN: Final = 4096
_RETIREMENT_S: Final = 60.0
"""So long a connection to a webhook outlives the settings that it was made from."""
_MAX_RETIRED: Final = 16
_LOOK_S: Final = 3600.0
_LEAST_PAUSE_S: Final = 0.1
_NEED_A_START: Final = (
    "authorization_mode",
    "authorization_config",
    *(key for key in AccessConfig.__struct_fields__ if key.startswith("audit_")),
)
"""Settings that are taken at the start only."""

Kept = Callable[[Head, Actor], Rendered | None]
"""Returns a kept answer that this actor may have; see `ConsulApi.kept`."""


class Reading(msgspec.Struct, frozen=True):
    """What a reload read. `parts` is None where access is not controlled."""

    config: AccessConfig
    parts: Parts | None
    context: SSL.Context | None
    """The serving certificate, where somebody listens with it."""


class _Exposure:
    """The posture without keys, as a member of a chain."""

    name: Final = "Exposure"

    def __init__(self, authorizer: ExposureAuthorizer) -> None:
        self._authorizer = authorizer

    def authorize(self, actor: Actor, asked: Attributes) -> Step:
        """Return allow or no opinion, with the reason."""
        decision = self._authorizer.decide(actor, asked)
        verdict = "allow" if decision.allowed else "no-opinion"
        return Step(
            authorizer=self.name,
            verdict="allow" if verdict == "allow" else "no-opinion",
            reason=decision.reason,
        )


class _Held(Held):
    """What an actor may do already, as escalation checks ask it."""

    def __init__(self, authorizers: Authorizers, rbac: RbacAuthorizer) -> None:
        self._authorizers = authorizers
        self._rbac = rbac

    def may(self, actor: Actor, asked: Attributes) -> bool:
        """Return whether the chain allows a request."""
        decision = self._authorizers.decide(actor, asked)
        if not decision.is_known:
            raise Undecided(decision.reason, actor=actor, asked=asked)
        return decision.allowed

    def rules(self, actor: Actor, namespace: str) -> tuple[list[PolicyRule], list[str]]:
        """Return the rules an actor holds, and what could not be resolved."""
        return self._rbac.index.rules(actor, namespace)

    def role(self, kind: str, namespace: str, name: str) -> Role | None:
        """Return a role."""
        return self._rbac.index.role(kind, namespace, name)


class AccessControl:
    """The access control of one agent. `open` and `close` stand around its use; `remote` calls go over the network."""

    def __init__(
        self,
        view: View,
        *,
        exposure: ExposureAuthorizer,
        keys: Keys | None,
        clock: Clock,
        rng: random.Random | None = None,
        config: AccessConfig | None = None,
        servers: TokenAuthenticator | None = None,
        external_address: str = "",
    ) -> None:
        """`external_address` is `HOST:PORT` of HTTPS for others. `servers` is asked for tokens that nobody here knows, on a machine without a server.

        Raises Malformed that names the key or file that is wrong.
        """
        config = config or AccessConfig()
        self._servers = servers
        self.config = config
        self._external_address = external_address
        self._jwks_uri = jwks_uri(config)
        self.keys = keys
        self.is_protected = keys is not None or config.is_protected
        self._view = view
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._known: dict[str, Authentication] = {}
        self._remembered = Remembered(view, clock=clock)
        self._issuer = None if keys is None else keys.issuer
        self.held: Held | None = None
        self.policy: Callable[[], RbacIndex] | None = None
        """The roles and bindings of this moment; None where RBAC is not one of the authorizers."""
        audit = audit_settings(config)
        chain = SettledChain if audit is None else NotedChain
        self._audit = audit
        self.audit_log = None if audit is None else AuditLog(audit.log, clock=clock)
        self.tls = None if keys is None else TlsEndpoint(keys.tls)
        """The serving certificate, for every endpoint that shows it."""
        self.when_read: Callable[[], Awaitable[None]] | None = None
        """Called by `run` at the start and after each reload: there may be a key now that was not there before."""
        self._read = asyncio.Event()
        self._retired: list[tuple[float, Remote]] = []
        self._parts: Parts | None = None
        self._front_proxy: FrontProxy | None = None
        self._authenticators = Authenticators(
            owner_uid=os.geteuid(), anonymous_rule=AnonymousRule(enabled=config.anonymous_auth)
        )
        if not self.is_protected:
            self.authorizers: Authorizers = chain([_Exposure(exposure)])
            # Hot reads ask the gate each time, and this one question needs no chain.
            self.gate = Gate(exposure if audit is None else self.authorizers)
            return
        parts = make_parts(
            view,
            config=config,
            keys=keys,
            clock=clock,
            rng=self._rng,
            keys_changed=self._remembered.clear,
        )
        self.authorizers = chain(parts.authorizers)
        self.gate = Gate(self.authorizers)
        self._use(config, parts)
        rbac = parts.rbac
        if rbac is not None:
            self.held = _Held(self.authorizers, rbac)
            self.policy = lambda: rbac.index

    @property
    def asks_others(self) -> bool:
        """Whether some decisions need the network."""
        return self._parts is not None and "Webhook" in self._parts.modes

    # -- reading the files again -------------------------------------------------------------------------------------------

    def read_again(self, config: AccessConfig, *, data_dir: Path | None) -> Reading:
        """Read every file that `config` names, and the keys; change nothing. Raises Malformed, Unavailable.

        What needs another start is left as it is, and said.
        """
        keys = load_pki(data_dir)
        if not self.is_protected:
            if keys is not None or config.is_protected:
                log.warning("access control begins when the agent is started again")
            return Reading(self.config, None, None)
        if self.keys is not None and keys is None:
            msg = f"{self.keys.layout.certificate('ca')}: No such file or directory"
            raise Malformed(msg)
        if self.keys is None and keys is not None:
            log.warning("%s is used when the agent is started again", keys.layout.pki)
            keys = None
        fixed = {key: getattr(self.config, key) for key in _NEED_A_START}
        changed = [key for key, value in fixed.items() if getattr(config, key) != value]
        if changed:
            names = ", ".join(f"access.{key}" for key in changed)
            log.warning("%s: changes count when the agent is started again", names)
        config = msgspec.structs.replace(config, **fixed)
        before = self._parts
        parts = make_parts(
            self._view,
            config=config,
            keys=keys,
            clock=self._clock,
            rng=self._rng,
            keys_changed=self._remembered.clear,
            before=before,
        )
        if before is not None and parts.modes != before.modes:
            msg = (
                f"{config.authorization_config}: the authorizers are {', '.join(before.modes)}; "
                f"they become {', '.join(parts.modes)} only when the agent is started again"
            )
            raise Malformed(msg)
        context = None if keys is None or not self._shows_certificate else make_context(keys.tls)
        return Reading(config, parts, context)

    def take_over(self, reading: Reading) -> None:
        """Use what `read_again` returned, for every request from now on."""
        if reading.parts is None:
            return
        before = self._parts
        self._use(reading.config, reading.parts)
        if self.tls is not None and reading.context is not None:
            self.tls.use(reading.context)
        if before is not None:
            # Requests that wait for a webhook get its answer.
            self._retire(before.remote)
            if before.oidc is not None and before.oidc is not reading.parts.oidc:
                self._retire(before.oidc.remote)
        log.info("access control: read again: %s", ", ".join(_files(reading)) or "nothing")
        self._read.set()

    def _use(self, config: AccessConfig, parts: Parts) -> None:
        self.config = config
        self._parts = parts
        keys = parts.keys
        if self._issuer is not None and keys is not None:
            self._issuer.replace(keys.issuer)
        self.keys = keys
        self._authenticators.replace(
            authenticators=parts.authenticators,
            tokens=parts.tokens if self._servers is None else (*parts.tokens, self._servers),
            anonymous_rule=AnonymousRule(enabled=config.anonymous_auth),
        )
        self.authorizers.replace(parts.authorizers)
        self._front_proxy = parts.front_proxy
        self._known.clear()
        self._remembered.clear()

    def _retire(self, remote: Remote) -> None:
        self._retired.append((self._clock.now() + _RETIREMENT_S, remote))

    async def _close_retired(self) -> None:
        """Close what is due; of a flood of reloads the oldest at once."""
        while self._retired and (
            len(self._retired) > _MAX_RETIRED or self._retired[0][0] <= self._clock.now()
        ):
            await self._retired.pop(0)[1].close()

    async def run(self) -> None:
        """Look after what access control needs while the agent runs; until cancelled.

        The serving certificate is issued again in time, whoever waits for a key is told of new ones, and connections
        that nobody needs any more are closed.
        """
        certificates: Certificates | None = None
        while True:
            self._read.clear()
            if self.when_read is not None:
                try:
                    await self.when_read()
                except WaypostError as exc:
                    log.error("what waited for keys: %s", exc)
            keys = self.keys
            if certificates is None and keys is not None:
                certificates = Certificates(
                    keys.layout, renewed=self._show_renewed, clock=self._clock
                )
            while not self._read.is_set():
                pause_s = _LOOK_S if certificates is None else await certificates.look()
                await self._close_retired()
                if self._retired:
                    pause_s = min(pause_s, self._retired[0][0] - self._clock.now())
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(pause_s, _LEAST_PAUSE_S)):
                        await self._read.wait()

    def _show_renewed(self) -> None:
        if self._shows_certificate and self.tls is not None and self.keys is not None:
            self.tls.replace(self.keys.tls)

    @property
    def _shows_certificate(self) -> bool:
        return self.tls is not None and self.tls.is_open

    # -- life --------------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the audit log. Raises Malformed when its file cannot be opened."""
        if self.audit_log is not None:
            self.audit_log.open()

    async def close(self) -> None:
        """Write what is left of the audit log and close connections."""
        if self.audit_log is not None:
            await self.audit_log.close()
        if self._parts is not None:
            self._retire(self._parts.remote)
            if self._parts.oidc is not None:
                self._retire(self._parts.oidc.remote)
        for _, remote in self._retired:
            await remote.close()
        self._retired.clear()

    def warnings(self, *, http_addresses: Iterable[str], ports: tuple[int, int]) -> list[str]:
        """Return what the operator has to be told at every start; `ports` are those of HTTP and HTTPS, -1 = off."""
        found: list[str] = []
        config = self.config
        if "AlwaysAllow" in self.authorizers.names:
            found.append("authorization mode AlwaysAllow: whoever reaches a port may do everything")
        open_ones = [one for one in http_addresses if _is_elsewhere(one)] if ports[0] >= 0 else []
        if open_ones and not self.is_protected:
            found.append(
                f"plain HTTP on {', '.join(open_ones)} without access control: `waypost init` sets it up"
            )
        elif open_ones:
            found.append(
                f"plain HTTP on {', '.join(open_ones)}: tokens and passwords sent there can be read on the way"
            )
        if config.basic_auth_file:
            found.append("basic_auth_file: passwords do not expire and are sent with every request")
        if self.policy is not None:
            found += [
                f"{one.kind} {one.name}: {one.text}"
                for one in lint(self.policy())
                if one.code == "anonymous"
            ]
        if self.keys is not None:
            found += exposed_files(self.keys.layout)
        return found

    def auditor(self, *, asked_of: Callable[[Head], Attributes]) -> Auditor | None:
        """Return what writes requests down; None without an audit log."""
        if self.audit_log is None or self._audit is None:
            return None
        rng = self._rng
        return Auditor(
            self._audit.policy,
            self.audit_log,
            asked_of=asked_of,
            new_id=lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            clock=self._clock,
        )

    def fast(self, kept: Kept, auditor: Auditor | None) -> Fast:
        """Return the short way for hot reads: for whoever is known already, and not for what has to be written down."""

        def fast(head: Head, peer: Peer) -> Rendered | None:
            if not head.is_simple:
                return None
            if not self.is_protected or (not head.credential and not peer.certificates_der):
                actor = self.of_peer(peer).actor
            else:
                known = self._remembered.get(self._key(head, peer))
                actor = None if known is None else known.actor
            if actor is None or (auditor is not None and not auditor.is_quiet(head, actor)):
                return None
            return kept(head, actor)

        return fast

    # -- who --------------------------------------------------------------------------------------------------------------

    def authenticate(self, request: Request) -> Authentication | Awaitable[Authentication]:
        """Return who sends a request; at once unless somebody has to be asked over the network."""
        head, peer = request.head, request.peer
        if not self.is_protected or (not peer.certificates_der and not _shows_credential(head)):
            # Without access control there is nobody to be: a token is ignored, as by Consul with its own switched off.
            return self.of_peer(peer)
        key = self._key(head, peer)
        known = self._remembered.get(key)
        if known is not None:
            return known
        front_proxy = self._front_proxy
        credentials = credentials_of(
            head.headers,
            remote_fields=front_proxy.fields_in(name for name, _ in head.headers)
            if front_proxy is not None
            else (),
            query_token=head.query.get("token") if "token" in head.raw_query else "",
            certificates_der=peer.certificates_der,
            address=peer.address,
            is_unix=peer.is_unix,
            unix_uid=peer.uid,
        )
        now_s = self._clock.wall()
        path = head.raw_path
        found = self._authenticators.authenticate_now(credentials, now_s=now_s, path=path)
        if found is None:
            later = self._authenticators.authenticate(credentials, now_s=now_s, path=path)
            return _told(head, later)
        if found.actor is None:
            _tell(head, found)
        elif key is not None:
            self._remembered.put(key, found)
        return found

    async def review(
        self, token: str, *, audiences: tuple[str, ...] = (), now_s: float
    ) -> Authentication:
        """Return whose a token is, for machines that cannot tell themselves."""
        return await self._authenticators.review(token, audiences=audiences, now_s=now_s)

    def _key(self, head: Head, peer: Peer) -> Hashable:
        """Return what an identity is remembered under; None where more than the credential counts."""
        shown = head.credential
        certificates = peer.certificates_der
        if shown is None or (certificates and self._front_proxy is not None):
            return None
        return shown, certificates, peer.address

    def of_peer(self, peer: Peer) -> Authentication:
        """Return who is at the other end of a connection that shows no credential; remembered, because asked often."""
        key = f"unix {peer.uid}" if peer.is_unix else peer.address
        found = self._known.get(key)
        if found is None:
            credentials = credentials_of(
                _NO_HEADERS, address=peer.address, is_unix=peer.is_unix, unix_uid=peer.uid
            )
            answer = self._authenticators.authenticate_now(credentials, now_s=self._clock.wall())
            assert answer is not None  # nobody asks the network about no credential
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = self._known[key] = answer
        return found

    # -- for the kube-style surface ------------------------------------------------------------------------------------------

    def for_kube(self) -> Access:
        """Return what the kube-style surface needs."""
        return Access(
            authorizers=self.authorizers,
            tokens=self._authenticators if self.is_protected else None,
            policy=self.policy,
            issuer=self._issuer,
            token_keys=self._token_keys,
            external_address=self._external_address,
            jwks_uri=self._jwks_uri,
            audiences=AUDIENCES,
        )

    def _token_keys(self) -> tuple[PublicKey, ...]:
        return () if self.keys is None else self.keys.token_keys

    def questions(self) -> Questions:
        """Return what answers questions about access."""
        settings = None if self._audit is None else self._audit.log
        return Questions(
            authorizers=self.authorizers,
            authenticators=self._authenticators,
            policy=self.policy,
            held=self.held,
            audit_path=None if settings is None or not settings.path else Path(settings.path),
            known=self._is_known,
        )

    def _is_known(self, subject: Subject, namespace: str) -> bool:
        # Users and groups live in certificates and files; only accounts are objects.
        if subject.kind != "ServiceAccount":
            return True
        where = subject.namespace or namespace
        if where == "kube-system":  # the controllers of a Kubernetes cluster, which do not run here
            return True
        return self._view.object("", "serviceaccounts", where, subject.name) is not None

    def token_data(self, owner: TokenOwner) -> dict[str, bytes]:
        """Return what a token secret holds; nothing without keys."""
        if self.keys is None:
            return {}
        token = self.keys.issuer.issue_legacy(
            namespace=owner.namespace, name=owner.name, uid=owner.uid, secret=owner.secret
        )
        return {
            "token": token.encode(),
            "ca.crt": self.keys.authority.pem,
            "namespace": owner.namespace.encode(),
        }

    def sign(self, request: JsonObject) -> bytes | None:
        """Sign an approved signing request; None when its signer is not ours. Raises Malformed why not."""
        if self.keys is None or self.keys.authority.key is None:
            return None
        spec = request.get("spec") or {}
        if spec.get("signerName") not in SIGNERS:
            return None
        return sign_request(signing_request(spec), self.keys.authority, now_s=self._clock.wall())


def _is_elsewhere(address: str) -> bool:
    return not address.startswith("unix://") and not is_loopback(address.strip("[]"))


class _Nothing:
    def get(self, _name: str) -> str | None:
        return None

    def all(self, _name: str) -> tuple[str, ...]:
        return ()


_NO_HEADERS: Final = _Nothing()


def _files(reading: Reading) -> list[str]:
    """Return the names of what was read."""
    keys = None if reading.parts is None else reading.parts.keys
    found = [] if keys is None else [str(keys.layout.pki)]
    values = msgspec.structs.asdict(reading.config)
    found += [str(value) for key, value in values.items() if key.endswith("_file") and value]
    return found + [one for one in (reading.config.authorization_config,) if one]


def _shows_credential(head: Head) -> bool:
    headers = head.headers
    return "authorization" in headers or "x-consul-token" in headers or "token" in head.raw_query


def _tell(head: Head, found: Authentication) -> None:
    # The client is never told why; the operator has to be.
    log.warning("%s: not authenticated: %s", head.loggable(), found.error)


async def _told(head: Head, later: Awaitable[Authentication]) -> Authentication:
    found = await later
    if found.actor is None:
        _tell(head, found)
    return found
