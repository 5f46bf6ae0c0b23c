"""Who may do what on this agent: authenticators and authorizers, made from what lies in the data directory.

Without `pki/` (made by `waypost init`) the agent behaves like Consul on its own machine: see `ExposureAuthorizer`.
With it, every request on every TCP listener is authenticated, and allowed by Node and RBAC.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from waypost.access.actor import Actor
from waypost.access.authn.bootstrap import BootstrapTokens
from waypost.access.authn.certificate import ClientCertificate
from waypost.access.authn.chain import Chain as Authenticators
from waypost.access.authn.jws import load_keys
from waypost.access.authn.records import Authentication
from waypost.access.authn.request import credentials_of
from waypost.access.authn.service_account import ServiceAccountTokens, TokenIssuer
from waypost.access.authz.bootstrap import node_rules
from waypost.access.authz.chain import Chain as Authorizers
from waypost.access.authz.decision import Step
from waypost.access.authz.escalation import Held
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacAuthorizer, RbacIndex
from waypost.access.authz.records import PolicyRule, Role
from waypost.access.gate import Attributes, ExposureAuthorizer, Gate
from waypost.access.pki.issue import Authority, load_authority
from waypost.access.pki.keys import load_private_key
from waypost.access.pki.setup import Layout
from waypost.access.pki.signer import SIGNERS
from waypost.access.pki.signer import sign as sign_request
from waypost.access.pki.verify import ClientVerifier
from waypost.base.clock import Clock
from waypost.base.errors import Unavailable
from waypost.domain.object_kinds import signing_request
from waypost.state.view import View
from waypost.surfaces.http.message import Head, Peer, Request
from waypost.surfaces.http.tls import OpenTls
from waypost.surfaces.kube.access import Access
from waypost.wire.kube.values import JsonObject

log = logging.getLogger(__name__)

AUDIENCES: Final = ("https://kubernetes.default.svc",)
_MAX_KNOWN: Final = 4096


class Keys(msgspec.Struct, frozen=True):
    """What `waypost init` made."""

    layout: Layout
    authority: Authority
    issuer: TokenIssuer
    token_public_pem: bytes

    @property
    def tls(self) -> OpenTls:
        """The serving certificate."""
        return OpenTls(
            certificate_file=str(self.layout.certificate("apiserver")),
            key_file=str(self.layout.key("apiserver")),
        )


def load_pki(data_dir: Path | None) -> Keys | None:
    """Return the keys below a data directory, None when there is no authority. Raises Malformed, Unavailable."""
    if data_dir is None:
        return None
    layout = Layout(data_dir)
    certificate = layout.certificate("ca")
    if not certificate.exists():
        return None
    try:
        key = layout.key("ca")
        authority = load_authority(
            certificate.read_bytes(),
            key.read_bytes() if key.exists() else None,
            name=str(certificate),
            key_name=str(key),
        )
        signing = load_private_key(layout.key("sa").read_bytes(), name=str(layout.key("sa")))
        public = layout.token_public_keys.read_bytes()
    except OSError as exc:
        raise Unavailable(f"{exc.filename}: {exc.strerror}; see `waypost init`") from exc
    return Keys(layout, authority, TokenIssuer(signing), public)


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
        return self._authorizers.decide(actor, asked).allowed

    def rules(self, actor: Actor, namespace: str) -> tuple[list[PolicyRule], list[str]]:
        """Return the rules an actor holds, and what could not be resolved."""
        return self._rbac.index.rules(actor, namespace)

    def role(self, kind: str, namespace: str, name: str) -> Role | None:
        """Return a role."""
        return self._rbac.index.role(kind, namespace, name)


class AccessControl:
    """The access control of one agent."""

    def __init__(
        self, view: View, *, exposure: ExposureAuthorizer, keys: Keys | None, clock: Clock
    ) -> None:
        self.keys = keys
        self.is_protected = keys is not None
        self._clock = clock
        self._known: dict[str, Authentication] = {}
        self.held: Held | None = None
        self._policy: Callable[[], RbacIndex] | None = None
        if keys is None:
            self._authenticators = Authenticators(owner_uid=os.geteuid())
            self.authorizers = Authorizers([_Exposure(exposure)])
            self.gate = Gate(exposure)
            return
        verifier = ClientVerifier([keys.authority.certificate])
        public = load_keys(keys.token_public_pem, name=str(keys.layout.token_public_keys))
        self._authenticators = Authenticators(
            authenticators=[ClientCertificate(verifier)],
            tokens=[
                ServiceAccountTokens(view, keys=public, issuers=(keys.issuer.issuer,)),
                BootstrapTokens(view),
            ],
            owner_uid=os.geteuid(),
        )
        rbac = RbacAuthorizer(view)
        self.authorizers = Authorizers([NodeAuthorizer(node_rules()), rbac])
        self.gate = Gate(self.authorizers)
        self.held = _Held(self.authorizers, rbac)
        self._policy = lambda: rbac.index

    # -- who --------------------------------------------------------------------------------------------------------------

    def authenticate(self, request: Request) -> Authentication | Awaitable[Authentication]:
        """Return who sends a request; at once unless somebody has to be asked over the network."""
        head, peer = request.head, request.peer
        if not peer.certificates_der and not _shows_credential(head):
            return self.of_peer(peer)
        credentials = credentials_of(
            head.headers,
            query_token=head.query.get("token") if "token" in head.raw_query else "",
            certificates_der=peer.certificates_der,
            address=peer.address,
            is_unix=peer.is_unix,
            unix_uid=peer.uid,
        )
        now_s = self._clock.wall()
        path = head.raw_path
        found = self._authenticators.authenticate_now(credentials, now_s=now_s, path=path)
        if found is not None:
            if found.actor is None:
                # The client is never told why; the operator has to be.
                log.warning("%s: not authenticated: %s", head.loggable(), found.error)
            return found
        return self._authenticators.authenticate(credentials, now_s=now_s, path=path)

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
            policy=self._policy,
            issuer=None if self.keys is None else self.keys.issuer,
            audiences=AUDIENCES,
        )

    def sign(self, request: JsonObject) -> bytes | None:
        """Sign an approved signing request; None when its signer is not ours. Raises Malformed why not."""
        if self.keys is None or self.keys.authority.key is None:
            return None
        spec = request.get("spec") or {}
        if spec.get("signerName") not in SIGNERS:
            return None
        return sign_request(signing_request(spec), self.keys.authority, now_s=self._clock.wall())


class _Nothing:
    def get(self, _name: str) -> str | None:
        return None

    def all(self, _name: str) -> tuple[str, ...]:
        return ()


_NO_HEADERS: Final = _Nothing()


def _shows_credential(head: Head) -> bool:
    headers = head.headers
    return "authorization" in headers or "x-consul-token" in headers or "token" in head.raw_query
