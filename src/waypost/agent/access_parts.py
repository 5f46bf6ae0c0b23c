"""Authenticators and authorizers as the files say at one moment.

Everything is read and made before anything is used, so that a file that is wrong leaves the agent with what it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from waypost.access.authn.bootstrap import BootstrapTokens
from waypost.access.authn.certificate import ClientCertificate, FrontProxy
from waypost.access.authn.jws import PublicKey, load_keys
from waypost.access.authn.oidc import FetchedKeys, OidcSettings, OidcTokens
from waypost.access.authn.records import Authenticator, TokenAuthenticator
from waypost.access.authn.remote import Endpoint, HttpsCaller, tls_context
from waypost.access.authn.secret_files import BasicPasswords, StaticTokens
from waypost.access.authn.service_account import ServiceAccountTokens, TokenIssuer
from waypost.access.authn.webhook import TokenWebhook
from waypost.access.authz.abac import AbacAuthorizer, parse_policies
from waypost.access.authz.bootstrap import node_rules
from waypost.access.authz.configuration import AuthorizerPlan, WebhookPlan
from waypost.access.authz.decision import Authorizer, RemoteAuthorizer
from waypost.access.authz.fixed import AlwaysAllow, AlwaysDeny
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacAuthorizer
from waypost.access.authz.webhook import WebhookAuthorizer, WebhookSettings
from waypost.access.pki.issue import Authority, load_authority
from waypost.access.pki.keys import load_private_key
from waypost.access.pki.setup import Layout
from waypost.access.pki.verify import ClientVerifier, load_bundle
from waypost.agent.access_config import (
    AccessConfig,
    authorizer_plans,
    endpoint_of,
    key_files,
    pairs,
    read_secret,
    read_text,
    require_private,
    seconds,
)
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable
from waypost.state.view import View
from waypost.surfaces.http.tls import OpenTls

if TYPE_CHECKING:
    import aiohttp

AUDIENCES: Final = ("https://kubernetes.default.svc",)
"""Whom tokens are for unless they say otherwise."""


class Keys(msgspec.Struct, frozen=True):
    """What `waypost init` made."""

    layout: Layout
    authority: Authority
    issuer: TokenIssuer
    token_keys: tuple[PublicKey, ...]
    """What verifies service-account tokens."""

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
    for path in key_files(layout):
        require_private(path)
    try:
        key = layout.key("ca")
        authority = load_authority(
            certificate.read_bytes(),
            key.read_bytes() if key.exists() else None,
            name=str(certificate),
            key_name=str(key),
        )
        signing = load_private_key(layout.key("sa").read_bytes(), name=str(layout.key("sa")))
        public = load_keys(
            layout.token_public_keys.read_bytes(), name=str(layout.token_public_keys)
        )
    except OSError as exc:
        raise Unavailable(f"{exc.filename}: {exc.strerror}; see `waypost init`") from exc
    return Keys(layout, authority, TokenIssuer(signing), public)


class Oidc(msgspec.Struct, frozen=True):
    """The tokens of an issuer with what they were made from, which may be the same after a reload."""

    settings: OidcSettings
    ca_pem: bytes
    tokens: OidcTokens
    remote: Remote


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """One generation."""

    keys: Keys | None
    authenticators: tuple[Authenticator, ...]
    tokens: tuple[TokenAuthenticator, ...]
    front_proxy: FrontProxy | None
    authorizers: tuple[Authorizer | RemoteAuthorizer, ...]
    modes: tuple[str, ...]
    rbac: RbacAuthorizer | None
    oidc: Oidc | None
    remote: Remote
    """What calls webhooks."""


def make_parts(
    view: View,
    *,
    config: AccessConfig,
    keys: Keys | None,
    clock: Clock,
    rng: random.Random,
    keys_changed: Callable[[], None],
    before: Parts | None = None,
) -> Parts:
    """Read every file that `config` names and make what decides by them.

    `keys_changed` is called when an issuer's keys have been fetched. Of the generation `before` that goes on which depends on no file: the policy's index and an issuer's fetched keys.
    Raises Malformed that names the key or file that is wrong.
    """
    return _Maker(
        view,
        config,
        keys=keys,
        clock=clock,
        rng=rng,
        keys_changed=keys_changed,
        before=before,
    ).make()


class _Maker:
    def __init__(
        self,
        view: View,
        config: AccessConfig,
        *,
        keys: Keys | None,
        clock: Clock,
        rng: random.Random,
        keys_changed: Callable[[], None],
        before: Parts | None,
    ) -> None:
        self._keys_changed = keys_changed
        self._view = view
        self._config = config
        self._keys = keys
        self._clock = clock
        self._rng = rng
        self._before = before
        self._remote = Remote(rng=rng)
        self._rbac: RbacAuthorizer | None = None

    def make(self) -> Parts:
        front_proxy = self._front_proxy()
        oidc = self._oidc() if self._config.oidc_issuer_url else None
        plans = authorizer_plans(self._config)
        return Parts(
            keys=self._keys,
            authenticators=self._authenticators(front_proxy),
            tokens=self._tokens(oidc),
            front_proxy=front_proxy,
            authorizers=tuple(self._authorizer(plan) for plan in plans),
            modes=tuple(plan.mode for plan in plans),
            rbac=self._rbac,
            oidc=oidc,
            remote=self._remote,
        )

    # -- who ---------------------------------------------------------------------------------------------------------------

    def _front_proxy(self) -> FrontProxy | None:
        config = self._config
        if not config.requestheader_client_ca_file:
            return None
        return FrontProxy(
            _verifier("requestheader_client_ca_file", config.requestheader_client_ca_file),
            allowed_names=config.requestheader_allowed_names,
            user_fields=config.requestheader_username_headers,
            uid_fields=config.requestheader_uid_headers,
            group_fields=config.requestheader_group_headers,
            extra_prefixes=config.requestheader_extra_headers_prefix,
        )

    def _authenticators(self, front_proxy: FrontProxy | None) -> tuple[Authenticator, ...]:
        config, keys = self._config, self._keys
        found: list[Authenticator] = []
        if front_proxy is not None:
            found.append(front_proxy)
        if config.basic_auth_file:
            path = Path(config.basic_auth_file)
            found.append(BasicPasswords.parse(read_secret(path), name=str(path)))
        roots = [] if keys is None else [keys.authority.certificate]
        if config.client_ca_file:
            path = Path(config.client_ca_file)
            roots += load_bundle(read_text(path).encode(), name=str(path))
        if roots:
            found.append(ClientCertificate(ClientVerifier(roots)))
        return tuple(found)

    def _tokens(self, oidc: Oidc | None) -> tuple[TokenAuthenticator, ...]:
        config, keys = self._config, self._keys
        tokens: list[TokenAuthenticator] = []
        if config.token_auth_file:
            path = Path(config.token_auth_file)
            tokens.append(StaticTokens.parse(read_secret(path), name=str(path)))
        if keys is not None:
            tokens.append(
                ServiceAccountTokens(
                    self._view, keys=keys.token_keys, issuers=(keys.issuer.issuer,)
                )
            )
        tokens.append(BootstrapTokens(self._view))
        if oidc is not None:
            tokens.append(oidc.tokens)
        if config.authentication_token_webhook_config_file:
            caller = self._remote.caller(
                endpoint_of(Path(config.authentication_token_webhook_config_file))
            )
            tokens.append(
                TokenWebhook(
                    caller.post,
                    clock=self._clock,
                    audiences=AUDIENCES,
                    version=config.authentication_token_webhook_version,
                    ttl_s=seconds(
                        "authentication_token_webhook_cache_ttl",
                        config.authentication_token_webhook_cache_ttl,
                    ),
                )
            )
        return tuple(tokens)

    def _oidc(self) -> Oidc:
        config = self._config
        if not config.oidc_client_id:
            msg = "access.oidc_client_id is needed with oidc_issuer_url"
            raise Malformed(msg)
        if not config.oidc_issuer_url.startswith("https://"):
            msg = f"access.oidc_issuer_url: {config.oidc_issuer_url!r} is no https URL"
            raise Malformed(msg)
        algorithms = tuple(one.strip() for one in config.oidc_signing_algs.split(","))
        ca_pem = b""
        if config.oidc_ca_file:
            ca_pem = read_text(Path(config.oidc_ca_file)).encode("ascii", "replace")
            load_bundle(ca_pem, name=config.oidc_ca_file)
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
        before = None if self._before is None else self._before.oidc
        if before is not None and (before.settings, before.ca_pem) == (settings, ca_pem):
            # Its keys are fetched; an issuer that cannot be reached at this moment must not lock anybody out.
            return before
        remote = Remote(rng=self._rng)
        source = FetchedKeys(
            config.oidc_issuer_url,
            fetch=lambda url: remote.caller(Endpoint(url=url, ca_pem=ca_pem)).get(),
            clock=self._clock,
            algorithms=algorithms,
            changed=self._keys_changed,
        )
        return Oidc(settings, ca_pem, OidcTokens(settings, source=source), remote)

    # -- may they ----------------------------------------------------------------------------------------------------------

    def _authorizer(self, plan: AuthorizerPlan) -> Authorizer | RemoteAuthorizer:
        match plan.mode:
            case "Node":
                return NodeAuthorizer(node_rules())
            case "RBAC":
                before = None if self._before is None else self._before.rbac
                self._rbac = before or RbacAuthorizer(self._view)
                return self._rbac
            case "ABAC":
                path = Path(self._config.authorization_policy_file)
                return AbacAuthorizer(parse_policies(read_text(path), source=str(path)))
            case "Webhook":
                return self._webhook(plan)
            case "AlwaysAllow":
                return AlwaysAllow()
            case "AlwaysDeny":
                return AlwaysDeny()

    def _webhook(self, plan: AuthorizerPlan) -> WebhookAuthorizer:
        config, found = self._config, plan.webhook
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
