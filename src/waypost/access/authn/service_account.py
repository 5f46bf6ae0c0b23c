"""Tokens of service accounts: issued, verified, and dead as soon as what they are bound to is gone.

Two kinds, as in kube: bound tokens (TokenRequest; audience, end, object) and the legacy ones that live in a secret and
have no end. Objects are looked up for every request; nothing but signatures is remembered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final

import msgspec

from waypost.access.authn.jws import (
    BAD_SIGNATURE,
    PrivateKey,
    PublicKey,
    SignatureVerifier,
    algorithm_of,
    issuer_of,
    key_id,
    sign,
    verification_key,
)
from waypost.access.authn.kube_objects import KubeObject, Secret, find_object, find_secret
from waypost.access.authn.records import (
    Accepted,
    Identity,
    Objects,
    Rejected,
    Skipped,
    Verdict,
)
from waypost.base.later import later

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from jwt import algorithms
else:
    rsa = later("cryptography.hazmat.primitives.asymmetric.rsa")
    algorithms = later("jwt.algorithms")

DEFAULT_ISSUER: Final = "https://kubernetes.default.svc"
LEGACY_ISSUER: Final = "kubernetes/serviceaccount"
SECRET_TYPE: Final = "kubernetes.io/service-account-token"  # noqa: S105  (a type's name)
USER_PREFIX: Final = "system:serviceaccount:"
ALL_GROUP: Final = "system:serviceaccounts"
LEEWAY_S: Final = 60.0
"""How far the clocks of issuer and verifier may differ, and how long a deletion may take."""
DEFAULT_EXPIRATION_S: Final = 3600
INVALIDATED: Final = "service account token has been invalidated"
_MIN_EXPIRATION_S: Final = 600
_INVALID_SINCE: Final = "kubernetes.io/legacy-token-invalid-since"


def user_of(namespace: str, name: str) -> str:
    """Return the user name of a service account."""
    return f"{USER_PREFIX}{namespace}:{name}"


def groups_of(namespace: str) -> tuple[str, ...]:
    """Return the groups of every service account of `namespace`."""
    return (ALL_GROUP, f"{ALL_GROUP}:{namespace}")


class Reference(msgspec.Struct, frozen=True):
    """Name and uid of an object that a token speaks of."""

    name: str = ""
    uid: str = ""


class _Bound(msgspec.Struct, frozen=True, omit_defaults=True):
    namespace: str = ""
    node: Reference | None = None
    pod: Reference | None = None
    secret: Reference | None = None
    serviceaccount: Reference | None = None


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """The claims of a bound token. Times are seconds since the Unix epoch."""

    aud: tuple[str, ...] | str = ()
    exp: float | None = None
    iat: float | None = None
    iss: str = ""
    jti: str = ""
    kubernetes: _Bound | None = msgspec.field(default=None, name="kubernetes.io")
    nbf: float | None = None
    sub: str = ""

    @property
    def audiences(self) -> tuple[str, ...]:
        """The audiences, also where a single one is written as text."""
        return (self.aud,) if isinstance(self.aud, str) else self.aud


class _LegacyClaims(msgspec.Struct, frozen=True):
    iss: str = ""
    sub: str = ""
    namespace: str = msgspec.field(default="", name="kubernetes.io/serviceaccount/namespace")
    secret: str = msgspec.field(default="", name="kubernetes.io/serviceaccount/secret.name")
    account: str = msgspec.field(
        default="", name="kubernetes.io/serviceaccount/service-account.name"
    )
    uid: str = msgspec.field(default="", name="kubernetes.io/serviceaccount/service-account.uid")


_CLAIMS = msgspec.json.Decoder(Claims)
_LEGACY_CLAIMS = msgspec.json.Decoder(_LegacyClaims)
_UNREADABLE = Rejected(error="service account token claims could not be validated")


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bound token shall say. `bound_kind` is "", "pod", "secret" or "node"."""

    namespace: str
    name: str
    uid: str
    audiences: tuple[str, ...]
    expires_in_s: int = DEFAULT_EXPIRATION_S
    bound_kind: str = ""
    bound: Reference | None = None
    bound_node: Reference | None = None
    """With a pod: the node it runs on."""


class IssuedToken(msgspec.Struct, frozen=True):
    """A new token and its end. `repr` does not show it."""

    token: str
    expires_s: int

    def __repr__(self) -> str:
        return f"IssuedToken(token=***, expires_s={self.expires_s})"


def expiration_problem(seconds: int) -> str:
    """Return why `spec.expirationSeconds` is refused, in kube's words, or ""."""
    if seconds < _MIN_EXPIRATION_S:
        return "may not specify a duration less than 10 minutes"
    if seconds > 1 << 32:
        return "may not specify a duration larger than 2^32 seconds"
    return ""


class TokenIssuer:
    """Signs tokens with the agent's service-account key."""

    def __init__(self, key: PrivateKey, *, issuer: str = DEFAULT_ISSUER) -> None:
        algorithm_of(key)
        self._key = key
        self.issuer = issuer

    def replace(self, other: TokenIssuer) -> None:
        """Sign with the key of another from now on."""
        self._key = other._key

    def issue(self, request: TokenRequest, *, now_s: float, token_id: str) -> IssuedToken:
        """Return a bound token. `token_id` (a uuid) goes into `jti`, for the audit log."""
        now = int(now_s)
        bound = {request.bound_kind: request.bound} if request.bound_kind else {}
        if request.bound_node is not None:
            bound["node"] = request.bound_node
        claims = Claims(
            aud=request.audiences,
            exp=now + request.expires_in_s,
            iat=now,
            iss=self.issuer,
            jti=token_id,
            kubernetes=_Bound(
                namespace=request.namespace,
                serviceaccount=Reference(request.name, request.uid),
                **bound,
            ),
            nbf=now,
            sub=user_of(request.namespace, request.name),
        )
        return IssuedToken(sign(msgspec.json.encode(claims), self._key), now + request.expires_in_s)

    def issue_legacy(self, *, namespace: str, name: str, uid: str, secret: str) -> str:
        """Return the token that lives in a secret of type `kubernetes.io/service-account-token`."""
        prefix = "kubernetes.io/serviceaccount/"
        claims = {
            "iss": LEGACY_ISSUER,
            f"{prefix}namespace": namespace,
            f"{prefix}secret.name": secret,
            f"{prefix}service-account.name": name,
            f"{prefix}service-account.uid": uid,
            "sub": user_of(namespace, name),
        }
        return sign(msgspec.json.encode(claims), self._key)


class ServiceAccountTokens:
    """Accepts both kinds of service-account tokens.

    `keys` verify (all of them: to exchange the signing key, add the new one here first); `issuers`: the first is the
    one that signs, all are accepted; `audiences`: whom this server is, by default the issuer.
    """

    name = "service account"

    def __init__(
        self,
        objects: Objects,
        *,
        keys: Iterable[PublicKey],
        issuers: tuple[str, ...] = (DEFAULT_ISSUER,),
        audiences: tuple[str, ...] = (),
    ) -> None:
        self._objects = objects
        self._issuers = frozenset(issuers)
        self.audiences = audiences or issuers[:1]
        self._verifier = SignatureVerifier(verification_key(one) for one in keys)

    def replace_keys(self, keys: Iterable[PublicKey]) -> None:
        """Verify with other keys from now on; what only the old ones signed is dead at once."""
        self._verifier = SignatureVerifier(verification_key(one) for one in keys)

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict:
        """Return `system:serviceaccount:NAMESPACE:NAME`, or kube's reason why not."""
        issuer = issuer_of(token)
        if issuer is None:
            return Skipped("not a JWT")
        legacy = issuer == LEGACY_ISSUER
        if not legacy and issuer not in self._issuers:
            return Skipped("a JWT of another issuer")
        payload = self._verifier.payload(token)
        if payload is None:
            count = len(self._verifier.keys)
            which = "the key does not verify" if count == 1 else f"none of {count} keys verifies"
            return Rejected(error=BAD_SIGNATURE, detail=f"{which} the signature")
        asked = audiences or self.audiences
        try:
            if legacy:
                return self._legacy(_LEGACY_CLAIMS.decode(payload), token, asked=asked, now_s=now_s)
            return self._bound(_CLAIMS.decode(payload), asked=asked, now_s=now_s)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _UNREADABLE

    # -- bound ------------------------------------------------------------------------------------------------------

    def _bound(self, claims: Claims, *, asked: tuple[str, ...], now_s: float) -> Verdict:
        audiences = _common(claims.audiences or self.audiences, asked)
        if not audiences:
            return _wrong_audience(claims.audiences, asked)
        problem = time_problem(claims, now_s=now_s)
        if problem:
            return Rejected(error=problem)
        bound = claims.kubernetes
        if bound is None or bound.serviceaccount is None:
            return _UNREADABLE
        account = bound.serviceaccount
        looked = _LookUp(self._objects, now_s=now_s)
        problem = _account_problem(looked, bound.namespace, account)
        problem = problem or _bound_problem(looked, bound)
        if problem:
            return Rejected(error=problem)
        extra: dict[str, tuple[str, ...]] = {}
        prefix = "authentication.kubernetes.io/"
        if claims.jti:
            extra[f"{prefix}credential-id"] = (f"JTI={claims.jti}",)
        for kind, reference in (("node", bound.node), ("pod", bound.pod)):
            if reference is not None:
                extra[f"{prefix}{kind}-name"] = (reference.name,)
                extra[f"{prefix}{kind}-uid"] = (reference.uid,)
        return Accepted(
            identity=Identity(
                user=user_of(bound.namespace, account.name),
                uid=account.uid,
                groups=groups_of(bound.namespace),
                extra=extra,
                audiences=audiences,
                expires_s=claims.exp,
            ),
            detail=f"bound token {claims.jti}".rstrip() + _bound_to(bound),
            is_steady=not looked.is_ending,
        )

    # -- legacy -----------------------------------------------------------------------------------------------------

    def _legacy(
        self, claims: _LegacyClaims, token: str, *, asked: tuple[str, ...], now_s: float
    ) -> Verdict:
        audiences = _common(self.audiences, asked)
        if not audiences:
            return _wrong_audience((), asked)
        namespace, name = claims.namespace, claims.account
        problem = _legacy_claims_problem(claims)
        if not problem:
            secret = find_secret(self._objects, namespace, claims.secret)
            problem = _legacy_secret_problem(secret, token)
        looked = _LookUp(self._objects, now_s=now_s)
        if not problem:
            problem = _account_problem(looked, namespace, Reference(name, claims.uid))
        if problem:
            return Rejected(error=problem)
        return Accepted(
            identity=Identity(
                user=user_of(namespace, name),
                uid=claims.uid,
                groups=groups_of(namespace),
                audiences=audiences,
            ),
            detail=f"legacy token of the secret {namespace}/{claims.secret}",
            is_steady=not looked.is_ending,
        )


class _LookUp:
    """Finds the objects of one token."""

    def __init__(self, objects: Objects, *, now_s: float) -> None:
        self._objects = objects
        self._before_s = now_s - LEEWAY_S
        self.is_ending = False
        """One of them is marked as deleted, so the token ends a minute later without a further change."""

    def find(self, resource: str, namespace: str, name: str) -> tuple[KubeObject | None, bool]:
        """Return the object, and whether it has been marked as deleted for longer than a minute."""
        found = find_object(self._objects, resource, namespace, name)
        if found is None or found.metadata.deletion_timestamp is None:
            return found, False
        self.is_ending = True
        return found, found.is_deleted_since(self._before_s)


def _account_problem(looked: _LookUp, namespace: str, account: Reference) -> str:
    found, is_deleted = looked.find("serviceaccounts", namespace, account.name)
    if found is None:
        return f'serviceaccounts "{account.name}" not found'
    if is_deleted:
        return f"service account {namespace}/{account.name} has been deleted"
    if found.metadata.uid != account.uid:
        return f"service account UID ({found.metadata.uid}) does not match claim ({account.uid})"
    return ""


def _bound_problem(looked: _LookUp, bound: _Bound) -> str:
    references = (
        ("secret", bound.secret, bound.namespace),
        ("pod", bound.pod, bound.namespace),
        # A token for a pod says its node too, but lives and dies with the pod.
        ("node", bound.node if bound.pod is None else None, ""),
    )
    for kind, reference, namespace in references:
        if reference is None:
            continue
        found, is_deleted = looked.find(kind + "s", namespace, reference.name)
        if found is None or is_deleted:
            return INVALIDATED
        if found.metadata.uid != reference.uid:
            return (
                f"{kind} UID ({found.metadata.uid}) does not match "
                f"service account {kind} ref claim ({reference.uid})"
            )
    return ""


def time_problem(claims: Claims, *, now_s: float) -> str:
    """Return why a token is not valid at `now_s`, or "". A minute is allowed for clocks that differ."""
    if claims.nbf is not None and now_s + LEEWAY_S < claims.nbf:
        return "service account token is not valid yet"
    if claims.exp is not None and now_s - LEEWAY_S > claims.exp:
        return "service account token has expired"
    if claims.iat is not None and now_s + LEEWAY_S < claims.iat:
        return "service account token is issued in the future"
    return ""


def _bound_to(bound: _Bound) -> str:
    for kind in ("pod", "secret", "node"):
        reference = getattr(bound, kind)
        if reference is not None:
            return f", bound to the {kind} {reference.name}"
    return ""


def _legacy_claims_problem(claims: _LegacyClaims) -> str:
    needed = (
        ("sub", claims.sub),
        ("namespace", claims.namespace),
        ("secretName", claims.secret),
        ("serviceAccountName", claims.account),
        ("serviceAccountUID", claims.uid),
    )
    for name, value in needed:
        if not value:
            return f"{name} claim is missing"
    if claims.sub != user_of(claims.namespace, claims.account):
        return "sub claim is invalid"
    return ""


def _legacy_secret_problem(secret: Secret | None, token: str) -> str:
    if secret is None or secret.metadata.deletion_timestamp is not None:
        return INVALIDATED
    if not compare_digest(secret.value("token").encode(), token.encode()):
        return "service account token does not match server's copy"
    since = (secret.metadata.labels or {}).get(_INVALID_SINCE)
    if since is not None:
        return f"the secret of the token was marked invalid by the label {_INVALID_SINCE}={since}"
    return ""


def _common(have: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in have if one in asked)


def _wrong_audience(have: tuple[str, ...], asked: tuple[str, ...]) -> Rejected:
    return Rejected(
        error=f"token audiences {_quoted(have)} is invalid for the target audiences {_quoted(asked)}"
    )


def _quoted(texts: tuple[str, ...]) -> str:
    return "[" + " ".join(json.dumps(one, ensure_ascii=False) for one in texts) + "]"


# -- OIDC discovery of our own issuer ----------------------------------------------------------------------------------


def discovery_document(*, issuer: str, jwks_uri: str, keys: Iterable[PublicKey]) -> dict[str, Any]:
    """Return `/.well-known/openid-configuration` of this server as an issuer."""
    return {
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": sorted({algorithm_of(key) for key in keys}),
    }


def key_set(keys: Iterable[PublicKey]) -> dict[str, Any]:
    """Return `/openid/v1/jwks`: the public keys that verify this server's tokens. Source: RFC 7517."""
    found = []
    for key in keys:
        if isinstance(key, rsa.RSAPublicKey):
            values = algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
        else:
            values = algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
        values.pop("key_ops", None)
        found.append({**values, "use": "sig", "alg": algorithm_of(key), "kid": key_id(key)})
    return {"keys": found}
