"""Who may do what on this agent: authenticators and authorizers, made from the data directory and the settings.

Without `pki/` (made by `waypost init`) and without a setting that names users or authorizers, the agent behaves like
Consul on its own machine: see `ExposureAuthorizer`. Else every request on every TCP listener is authenticated, and
allowed by the configured chain, which is Node and RBAC by default.
"""

from __future__ import annotations

import logging
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from waypost.access.actor import Actor
from waypost.access.audit.log import AuditLog
from waypost.access.audit.trail import NotedChain
from waypost.access.authn.bootstrap import BootstrapTokens
from waypost.access.authn.certificate import ClientCertificate, FrontProxy
from waypost.access.authn.chain import AnonymousRule
from waypost.access.authn.chain import Chain as Authenticators
from waypost.access.authn.jws import load_keys
from waypost.access.authn.local import is_loopback
from waypost.access.authn.oidc import FetchedKeys, OidcSettings, OidcTokens
from waypost.access.authn.records import Authentication, Authenticator, TokenAuthenticator
from waypost.access.authn.remote import Endpoint, HttpsCaller, tls_context
from waypost.access.authn.request import credentials_of
from waypost.access.authn.secret_files import BasicPasswords, StaticTokens
from waypost.access.authn.service_account import ServiceAccountTokens, TokenIssuer
from waypost.access.authn.webhook import TokenWebhook
from waypost.access.authz.abac import AbacAuthorizer, parse_policies
from waypost.access.authz.bootstrap import node_rules
from waypost.access.authz.chain import Chain as Authorizers
from waypost.access.authz.configuration import AuthorizerPlan, WebhookPlan
from waypost.access.authz.decision import Authorizer, Step
from waypost.access.authz.escalation import Held
from waypost.access.authz.fixed import AlwaysAllow, AlwaysDeny
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacAuthorizer, RbacIndex
from waypost.access.authz.records import PolicyRule, Role, Subject
from waypost.access.authz.review import lint
from waypost.access.authz.settled import SettledChain
from waypost.access.authz.webhook import WebhookAuthorizer, WebhookSettings
from waypost.access.gate import Attributes, ExposureAuthorizer, Gate, Undecided
from waypost.access.pki.issue import Authority, load_authority
from waypost.access.pki.keys import load_private_key
from waypost.access.pki.setup import Layout
from waypost.access.pki.signer import SIGNERS
from waypost.access.pki.signer import sign as sign_request
from waypost.access.pki.verify import ClientVerifier, load_bundle
from waypost.agent.access_config import (
    AccessConfig,
    audit_settings,
    authorizer_plans,
    endpoint_of,
    exposed_files,
    key_files,
    pairs,
    read_secret,
    read_text,
    require_private,
    seconds,
)
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable
from waypost.domain.object import TokenOwner
from waypost.domain.object_kinds import signing_request
from waypost.state.view import View
from waypost.surfaces.access.routes import Questions
from waypost.surfaces.http.audit import Auditor
from waypost.surfaces.http.message import Fast, Head, Peer, Rendered, Request
from waypost.surfaces.http.tls import OpenTls
from waypost.surfaces.kube.access import Access
from waypost.wire.kube.values import JsonObject

if TYPE_CHECKING:
    import aiohttp

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
    ) -> None:
        """Raises Malformed that names the key or file that is wrong."""
        config = config or AccessConfig()
        self.config = config
        self.keys = keys
        self.is_protected = keys is not None or config.is_protected
        self._view = view
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._known: dict[str, Authentication] = {}
        self.held: Held | None = None
        self.policy: Callable[[], RbacIndex] | None = None
        """The roles and bindings of this moment; None where RBAC is not one of the authorizers."""
        audit = audit_settings(config)
        chain = SettledChain if audit is None else NotedChain
        self._audit = audit
        self.audit_log = None if audit is None else AuditLog(audit.log, clock=clock)
        self._remote = Remote(rng=self._rng)
        self._front_proxy: FrontProxy | None = None
        if not self.is_protected:
            self._authenticators = Authenticators(
                owner_uid=os.geteuid(),
                anonymous_rule=AnonymousRule(enabled=config.anonymous_auth),
            )
            self.authorizers: Authorizers = chain([_Exposure(exposure)])
            # Hot reads ask the gate each time, and this one question needs no chain.
            self.gate = Gate(exposure if audit is None else self.authorizers)
            return
        self._authenticators = self._make_authenticators()
        members, rbac = self._make_authorizers()
        self.authorizers = chain(members)
        self.gate = Gate(self.authorizers)
        if rbac is not None:
            self.held = _Held(self.authorizers, rbac)
            self.policy = lambda: rbac.index

    def _make_authenticators(self) -> Authenticators:
        config, keys = self.config, self.keys
        if keys is not None:
            for path in key_files(keys.layout):
                require_private(path)
        authenticators: list[Authenticator] = []
        if config.requestheader_client_ca_file:
            self._front_proxy = FrontProxy(
                _verifier("requestheader_client_ca_file", config.requestheader_client_ca_file),
                allowed_names=config.requestheader_allowed_names,
                user_fields=config.requestheader_username_headers,
                uid_fields=config.requestheader_uid_headers,
                group_fields=config.requestheader_group_headers,
                extra_prefixes=config.requestheader_extra_headers_prefix,
            )
            authenticators.append(self._front_proxy)
        if config.basic_auth_file:
            path = Path(config.basic_auth_file)
            authenticators.append(BasicPasswords.parse(read_secret(path), name=str(path)))
        roots = [] if keys is None else [keys.authority.certificate]
        if config.client_ca_file:
            path = Path(config.client_ca_file)
            roots += load_bundle(read_text(path).encode(), name=str(path))
        if roots:
            authenticators.append(ClientCertificate(ClientVerifier(roots)))
        return Authenticators(
            authenticators=authenticators,
            tokens=self._make_tokens(),
            anonymous_rule=AnonymousRule(enabled=config.anonymous_auth),
            owner_uid=os.geteuid(),
        )

    def _make_tokens(self) -> list[TokenAuthenticator]:
        config, keys = self.config, self.keys
        tokens: list[TokenAuthenticator] = []
        if config.token_auth_file:
            path = Path(config.token_auth_file)
            tokens.append(StaticTokens.parse(read_secret(path), name=str(path)))
        if keys is not None:
            public = load_keys(keys.token_public_pem, name=str(keys.layout.token_public_keys))
            tokens.append(
                ServiceAccountTokens(self._view, keys=public, issuers=(keys.issuer.issuer,))
            )
        tokens.append(BootstrapTokens(self._view))
        if config.oidc_issuer_url:
            tokens.append(self._oidc())
        if config.authentication_token_webhook_config_file:
            caller = self._remote.caller(
                endpoint_of(Path(config.authentication_token_webhook_config_file))
            )
            tokens.append(
                TokenWebhook(
                    caller.post,
                    clock=self._clock,
                    version=config.authentication_token_webhook_version,
                    ttl_s=seconds(
                        "authentication_token_webhook_cache_ttl",
                        config.authentication_token_webhook_cache_ttl,
                    ),
                )
            )
        return tokens

    def _oidc(self) -> OidcTokens:
        config = self.config
        if not config.oidc_client_id:
            msg = "access.oidc_client_id is needed with oidc_issuer_url"
            raise Malformed(msg)
        if not config.oidc_issuer_url.startswith("https://"):
            msg = f"access.oidc_issuer_url: {config.oidc_issuer_url!r} is no https URL"
            raise Malformed(msg)
        algorithms = tuple(one.strip() for one in config.oidc_signing_algs.split(","))
        ca_pem = (
            read_text(Path(config.oidc_ca_file)).encode("ascii", "replace")
            if config.oidc_ca_file
            else b""
        )
        settings = OidcSettings(
            issuer=config.oidc_issuer_url,
            client_ids=(config.oidc_client_id,),
            username_claim=config.oidc_username_claim,
            username_prefix=config.oidc_username_prefix,
            groups_claim=config.oidc_groups_claim,
            groups_prefix=config.oidc_groups_prefix,
            required_claims=pairs("oidc_required_claim", config.oidc_required_claim),
            algorithms=algorithms,
        )
        source = FetchedKeys(
            config.oidc_issuer_url,
            fetch=lambda url: self._remote.caller(Endpoint(url=url, ca_pem=ca_pem)).get(),
            clock=self._clock,
            algorithms=algorithms,
        )
        return OidcTokens(settings, source=source)

    def _make_authorizers(self) -> tuple[list[Authorizer], RbacAuthorizer | None]:
        config = self.config
        rbac: RbacAuthorizer | None = None
        members: list[Authorizer] = []
        for plan in authorizer_plans(config):
            match plan.mode:
                case "Node":
                    members.append(NodeAuthorizer(node_rules()))
                case "RBAC":
                    rbac = RbacAuthorizer(self._view)
                    members.append(rbac)
                case "ABAC":
                    path = Path(config.authorization_policy_file)
                    members.append(
                        AbacAuthorizer(parse_policies(read_text(path), source=str(path)))
                    )
                case "Webhook":
                    members.append(self._webhook(plan))
                case "AlwaysAllow":
                    members.append(AlwaysAllow())
                case "AlwaysDeny":
                    members.append(AlwaysDeny())
        return members, rbac

    def _webhook(self, plan: AuthorizerPlan) -> WebhookAuthorizer:
        config, found = self.config, plan.webhook
        if found is None:
            found = WebhookPlan(
                kubeconfig=config.authorization_webhook_config_file,
                timeout_s=30.0,
                authorized_ttl_s=seconds(
                    "authorization_webhook_cache_authorized_ttl",
                    config.authorization_webhook_cache_authorized_ttl,
                ),
                unauthorized_ttl_s=seconds(
                    "authorization_webhook_cache_unauthorized_ttl",
                    config.authorization_webhook_cache_unauthorized_ttl,
                ),
                failure_policy="NoOpinion",
            )
        endpoint = endpoint_of(Path(found.kubeconfig))
        self.asks_others = True
        return WebhookAuthorizer(
            WebhookSettings(
                name=plan.name,
                url=endpoint.url,
                timeout_s=found.timeout_s,
                authorized_ttl_s=found.authorized_ttl_s,
                unauthorized_ttl_s=found.unauthorized_ttl_s,
                failure_policy=found.failure_policy,
            ),
            session=self._remote.session(endpoint),
            clock=self._clock,
        )

    asks_others = False
    """Whether some decisions need the network."""

    # -- life --------------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the audit log. Raises Malformed when its file cannot be opened."""
        if self.audit_log is not None:
            self.audit_log.open()

    async def close(self) -> None:
        """Write what is left of the audit log and close connections."""
        if self.audit_log is not None:
            await self.audit_log.close()
        await self._remote.close()

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

    def fast(self, fast: Fast, auditor: Auditor | None) -> Fast | None:
        """Return the short way for hot reads: none without anonymous callers, none for what has to be written down."""
        if not self.config.anonymous_auth:
            return None
        if auditor is None:
            return fast

        def quiet(head: Head, peer: Peer) -> Rendered | None:
            if not head.is_plain or not peer.is_anonymous:
                return None
            actor = self.of_peer(peer).actor
            if actor is None or not auditor.is_quiet(head, actor):
                return None
            return fast(head, peer)

        return quiet

    # -- who --------------------------------------------------------------------------------------------------------------

    def authenticate(self, request: Request) -> Authentication | Awaitable[Authentication]:
        """Return who sends a request; at once unless somebody has to be asked over the network."""
        head, peer = request.head, request.peer
        if not self.is_protected or (not peer.certificates_der and not _shows_credential(head)):
            # Without access control there is nobody to be: a token is ignored, as by Consul with its own switched off.
            return self.of_peer(peer)
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
            policy=self.policy,
            issuer=None if self.keys is None else self.keys.issuer,
            token_keys=()
            if self.keys is None
            else load_keys(
                self.keys.token_public_pem, name=str(self.keys.layout.token_public_keys)
            ),
            audiences=AUDIENCES,
        )

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


class Remote:
    """Connections to webhooks and issuers; each is opened when it is first used, and all are closed together."""

    def __init__(self, *, rng: random.Random) -> None:
        self._rng = rng
        self._callers: dict[str, HttpsCaller] = {}
        self._sessions: list[_LaterSession] = []

    def caller(self, endpoint: Endpoint) -> HttpsCaller:
        """Return what calls an endpoint, the same one for the same URL. Raises Malformed."""
        found = self._callers.get(endpoint.url)
        if found is None:
            found = self._callers[endpoint.url] = HttpsCaller(endpoint, rng=self._rng)
        return found

    def session(self, endpoint: Endpoint) -> aiohttp.ClientSession:
        """Return a session with an endpoint's TLS and credentials. Raises Malformed."""
        session = _LaterSession(endpoint)
        self._sessions.append(session)
        return cast("aiohttp.ClientSession", session)

    async def close(self) -> None:
        """Close everything."""
        for caller in self._callers.values():
            await caller.close()
        for session in self._sessions:
            await session.close()


class _LaterSession:
    """A client session that begins with its first request, because it needs a running loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tls = tls_context(endpoint) if endpoint.url.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None

    def post(self, url: str, **options: Any) -> Any:
        """Return the context manager of a request."""
        import aiohttp

        endpoint = self._endpoint
        if self._session is None:
            headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
            if endpoint.user and not endpoint.token:
                headers["Authorization"] = aiohttp.BasicAuth(
                    endpoint.user, endpoint.password
                ).encode()
            self._session = aiohttp.ClientSession(headers=headers, trust_env=False)
        if self._tls is not None:
            options |= {"ssl": self._tls, "server_hostname": endpoint.server_name or None}
        return self._session.post(url, **options)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _verifier(key: str, name: str) -> ClientVerifier:
    try:
        return ClientVerifier.from_pem(read_text(Path(name)).encode(), name=name)
    except Malformed as exc:
        msg = f"access.{key}: {exc}"
        raise Malformed(msg) from exc


def _is_elsewhere(address: str) -> bool:
    return not address.startswith("unix://") and not is_loopback(address.strip("[]"))


class _Nothing:
    def get(self, _name: str) -> str | None:
        return None

    def all(self, _name: str) -> tuple[str, ...]:
        return ()


_NO_HEADERS: Final = _Nothing()


def _shows_credential(head: Head) -> bool:
    headers = head.headers
    return "authorization" in headers or "x-consul-token" in headers or "token" in head.raw_query
