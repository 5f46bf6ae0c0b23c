"""Tokens of an OpenID Connect issuer: signature against its keys, then claims become user and groups.

Source: OpenID Connect Core 1.0 §3.1.3.7; kube flags `--oidc-…`. Keys come from a file, or from the issuer: then they
are fetched when the first token comes and again when a token's signature fits none (at most every 10 s). Tokens that
come while they are fetched wait for them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from waypost.access.authn.jws import (
    SignatureVerifier,
    VerificationKey,
    issuer_of,
    verification_key,
)
from waypost.access.authn.records import Accepted, Identity, Pending, Rejected, Skipped, Verdict
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, Unavailable
from waypost.base.later import later

if TYPE_CHECKING:
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
else:
    jwt = later("jwt")
    ec = later("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = later("cryptography.hazmat.primitives.asymmetric.rsa")

_REFETCH_S: Final = 10.0
_PATIENCE_S: Final = 10.0
_LEEWAY_S: Final = 60.0
DISCOVERY: Final = "/.well-known/openid-configuration"


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of an issuer's tokens. The defaults are kube's."""

    issuer: str
    client_ids: tuple[str, ...]
    """One of these must be in `aud`."""
    username_claim: str = "sub"
    username_prefix: str | None = None
    """None: `ISSUER#`, but nothing for the claim `email`. `-`: nothing."""
    groups_claim: str = ""
    groups_prefix: str = ""
    required_claims: tuple[tuple[str, str], ...] = ()
    algorithms: tuple[str, ...] = ("RS256",)

    @property
    def prefix(self) -> str:
        """What stands before the user's name."""
        if self.username_prefix is None:
            return "" if self.username_claim == "email" else f"{self.issuer}#"
        return "" if self.username_prefix == "-" else self.username_prefix


class KeySource(Protocol):
    """The keys of an issuer."""

    def keys(self) -> tuple[VerificationKey, ...] | None:
        """Return the keys known now; None if they have never been fetched."""
        ...

    def may_refresh(self) -> bool:
        """Tell whether fetching them (again) is worth trying now."""
        ...

    async def refresh(self) -> None:
        """Fetch them. Raises Unavailable."""
        ...


class FixedKeys:
    """Keys of a file: they do not change."""

    def __init__(self, keys: tuple[VerificationKey, ...]) -> None:
        self._keys = keys

    def keys(self) -> tuple[VerificationKey, ...]:
        """Return the keys."""
        return self._keys

    def may_refresh(self) -> bool:
        """Return False."""
        return False

    async def refresh(self) -> None:
        """Do nothing."""


class FetchedKeys:
    """Keys that the issuer publishes: discovery document, then its `jwks_uri`. `fetch` gets a URL and returns its body."""

    def __init__(
        self,
        issuer: str,
        *,
        fetch: Callable[[str], Awaitable[bytes]],
        clock: Clock,
        algorithms: tuple[str, ...],
        discovery_url: str = "",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called once keys are fetched: what only the ones before had signed is dead."""
        self._issuer = issuer
        self._changed = changed
        self._discovery_url = discovery_url or issuer.rstrip("/") + DISCOVERY
        self._fetch = fetch
        self._clock = clock
        self._algorithms = algorithms
        self._keys: tuple[VerificationKey, ...] | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()

    def keys(self) -> tuple[VerificationKey, ...] | None:
        """Return the keys as fetched last, or None."""
        return self._keys

    def may_refresh(self) -> bool:
        """Tell whether the last attempt is long enough ago, or one is being made."""
        return self._tried_at is None or self._clock.now() - self._tried_at >= _REFETCH_S

    async def refresh(self) -> None:
        """Fetch both documents, or wait for whoever does it already. Raises Unavailable; the keys known before stay then."""
        async with self._fetching:
            if not self.may_refresh():
                return  # done while this one waited
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    self._keys = await self._fetch_keys()
            except TimeoutError as exc:
                self._tried_at = self._clock.now()
                text = f"{self._discovery_url}: no answer within {_PATIENCE_S:g} s"
                raise Unavailable(text) from exc
            except Unavailable:
                self._tried_at = self._clock.now()
                raise
            self._tried_at = self._clock.now()
            self._changed()

    async def _fetch_keys(self) -> tuple[VerificationKey, ...]:
        try:
            document = json.loads(await self._fetch(self._discovery_url))
            if not isinstance(document, dict) or document.get("issuer") != self._issuer:
                raise Unavailable(f"{self._discovery_url} is not of the issuer {self._issuer}")
            keys = await self._fetch(str(document.get("jwks_uri", "")))
            return parse_key_set(keys, name="jwks_uri", algorithms=self._algorithms)
        except (ValueError, RecursionError, Malformed) as exc:
            raise Unavailable(f"the keys of {self._issuer} cannot be read: {exc}") from exc


def parse_key_set(
    data: bytes, *, name: str, algorithms: tuple[str, ...]
) -> tuple[VerificationKey, ...]:
    """Return the RSA and ECDSA keys of a JWKS for signing with `algorithms`. Raises Malformed if there is none."""
    try:
        values = json.loads(data)
        entries = values["keys"]
        found = [_parse_key(one, algorithms=algorithms) for one in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Malformed(f"{name} is no JSON Web Key Set") from exc
    keys = tuple(one for one in found if one is not None)
    if not keys:
        raise Malformed(f"{name} holds no key for {', '.join(algorithms)}")
    return keys


def _parse_key(entry: Any, *, algorithms: tuple[str, ...]) -> VerificationKey | None:
    if not isinstance(entry, dict):
        raise TypeError("a key is no object")
    if entry.get("kty") not in ("RSA", "EC") or entry.get("use", "sig") != "sig":
        return None
    try:
        public = jwt.PyJWK(entry).key
        if not isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            return None
        key = verification_key(public, key_id_text=str(entry.get("kid", "")))
    except (jwt.PyJWTError, Malformed, ValueError, TypeError):
        return None  # one key nobody can use does not make the others useless
    usable = tuple(one for one in key.algorithms if one in algorithms)
    return VerificationKey(key.key_id, key.key, usable) if usable else None


class OidcTokens:
    """Accepts ID tokens of one issuer."""

    name = "oidc"

    def __init__(self, settings: OidcSettings, *, source: KeySource) -> None:
        self._settings = settings
        self._source = source
        self._verifier: SignatureVerifier | None = None
        self._of: tuple[VerificationKey, ...] | None = None

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict | Pending:
        """Return the verdict; Pending when the issuer's keys have to be fetched first."""
        if issuer_of(token) != self._settings.issuer:
            return Skipped("no token of this issuer")
        payload = self._payload(token)
        if payload is not None:
            return self._verdict(payload, audiences=audiences, now_s=now_s)
        if self._source.may_refresh():

            async def ask() -> Verdict:
                return await self._after_refresh(token, audiences=audiences, now_s=now_s)

            return Pending(ask)
        return _bad_signature(fetched=self._source.keys() is not None)

    def _payload(self, token: str) -> bytes | None:
        keys = self._source.keys()
        if keys is None:
            return None
        if self._verifier is None or keys is not self._of:
            self._verifier, self._of = SignatureVerifier(keys), keys
        return self._verifier.payload(token)

    async def _after_refresh(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict:
        try:
            await self._source.refresh()
        except Unavailable as exc:
            return Rejected(error=f"oidc: verify token: {exc}")
        payload = self._payload(token)
        if payload is None:
            return _bad_signature(fetched=self._source.keys() is not None)
        return self._verdict(payload, audiences=audiences, now_s=now_s)

    def _verdict(self, payload: bytes, *, audiences: tuple[str, ...], now_s: float) -> Verdict:
        try:
            claims = json.loads(payload)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            return Rejected(error="oidc: parse claims: not a JSON object")
        settings = self._settings
        problem = (
            _time_problem(claims, now_s=now_s)
            or _audience_problem(claims, settings.client_ids)
            or _required_problem(claims, settings.required_claims)
            or _user_problem(claims, settings.username_claim)
        )
        if problem:
            return Rejected(error=f"oidc: {problem}")
        groups = _groups(claims, settings.groups_claim)
        if groups is None:
            return Rejected(
                error=f'oidc: parse groups claim "{settings.groups_claim}": neither text nor a list of texts'
            )
        return Accepted(
            identity=Identity(
                user=settings.prefix + claims[settings.username_claim],
                groups=tuple(settings.groups_prefix + one for one in groups),
                audiences=audiences,
                expires_s=float(claims["exp"]),
            ),
            detail=f"{settings.issuer}, claim {settings.username_claim}",
            is_steady=True,
        )


def _bad_signature(*, fetched: bool) -> Rejected:
    if fetched:
        return Rejected(error="oidc: verify token: failed to verify id token signature")
    return Rejected(
        error="oidc: authenticator not initialized", detail="the issuer's keys are not known yet"
    )


def _is_time(value: object) -> bool:
    # The bound keeps NaN, infinity and numbers without a float away; it is the year 33658.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _time_problem(claims: dict[str, Any], *, now_s: float) -> str:
    expires, not_before = claims.get("exp"), claims.get("nbf")
    if expires is None or not _is_time(expires):
        return "verify token: no claim exp"
    if expires <= now_s:
        return "verify token: token is expired"
    if not_before is not None and not (_is_time(not_before) and not_before <= now_s + _LEEWAY_S):
        return "verify token: current time is before the nbf (not before) time"
    return ""


def _audience_problem(claims: dict[str, Any], client_ids: tuple[str, ...]) -> str:
    audiences = claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    if isinstance(audiences, list) and any(one in client_ids for one in audiences):
        return ""
    wanted = ", ".join(client_ids)
    return f'verify token: expected audience "{wanted}", the token is for another'


def _required_problem(claims: dict[str, Any], required: tuple[tuple[str, str], ...]) -> str:
    for name, value in required:
        if name not in claims:
            return f"required claim {name} not present in ID token"
        if claims[name] != value:
            return f"required claim {name} value does not match"
    return ""


def _user_problem(claims: dict[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not value:
        return f'parse username claims "{claim}": claim not present'
    if claim == "email" and claims.get("email_verified", True) is not True:
        return "email not verified"
    return ""


def _groups(claims: dict[str, Any], claim: str) -> list[str] | None:
    value = claims.get(claim) if claim else None
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    return None
