"""Signed tokens: what they say before and after their signature is checked.

Which algorithm is allowed follows from the key, never from the token, so neither `none` nor an HMAC made with a
public key gets anywhere. Source: RFC 7515, 7518, 8725.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    import jwt
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
else:
    jwt = later("jwt")
    exceptions = later("cryptography.exceptions")
    x509 = later("cryptography.x509")
    serialization = later("cryptography.hazmat.primitives.serialization")
    ec = later("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = later("cryptography.hazmat.primitives.asymmetric.rsa")

PublicKey: TypeAlias = "rsa.RSAPublicKey | ec.EllipticCurvePublicKey"
PrivateKey: TypeAlias = "rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey"

MAX_TOKEN_CHARACTERS: Final = 64 * 1024
BAD_SIGNATURE: Final = "square/go-jose: error in cryptographic primitive"
"""What a kube-apiserver 1.20 answers to a TokenReview of a token with a wrong signature."""

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_REMEMBERED: Final = 4096


class VerificationKey(msgspec.Struct, frozen=True):
    """A public key, its id and the algorithms it may verify."""

    key_id: str
    key: Any
    algorithms: tuple[str, ...]


class _Issuer(msgspec.Struct, frozen=True):
    iss: str = ""


_ISSUER = msgspec.json.Decoder(_Issuer)


@cache
def _jws() -> jwt.PyJWS:
    return jwt.PyJWS()


def key_id(public: PublicKey) -> str:
    """Return the id of a key as a kube-apiserver makes it: SHA-256 of its DER form, in base64url without padding."""
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def algorithm_of(key: PublicKey | PrivateKey) -> str:
    """Return the algorithm a key signs with. Raises Malformed for a curve that JWS has no algorithm for."""
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return "RS256"
    algorithm = _CURVES.get(key.curve.name)
    if algorithm is None:
        raise Malformed(f"keys of the curve {key.curve.name} cannot sign tokens")
    return algorithm


def verification_key(public: PublicKey, *, key_id_text: str = "") -> VerificationKey:
    """Return the key as a verifier uses it. Raises Malformed for an unusable curve."""
    is_rsa = isinstance(public, rsa.RSAPublicKey)
    algorithms = _RSA if is_rsa else (algorithm_of(public),)
    return VerificationKey(key_id_text or key_id(public), public, algorithms)


def load_keys(pem: bytes, *, name: str) -> tuple[PublicKey, ...]:
    """Return the public keys of a PEM file: of public keys, private keys and certificates in it, in order.

    Raises Malformed with `name` for anything else, and when there is none.
    """
    keys: list[PublicKey] = []
    blocks = pem.split(b"-----BEGIN ")[1:]
    for number, block in enumerate(blocks, 1):
        try:
            key = _load_block(b"-----BEGIN " + block)
        except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as exc:
            raise Malformed(f"{name}: the key number {number} cannot be read") from exc
        if key is None:
            continue
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise Malformed(f"{name}: the key number {number} is neither RSA nor ECDSA")
        keys.append(key)
    if not keys:
        raise Malformed(f"{name}: no PEM key in it")
    return tuple(keys)


def _load_block(pem: bytes) -> object | None:
    label = pem[len(b"-----BEGIN ") :].split(b"-----", 1)[0]
    if label == b"CERTIFICATE":
        return x509.load_pem_x509_certificate(pem).public_key()
    if label.endswith(b"PRIVATE KEY"):
        return serialization.load_pem_private_key(pem, password=None).public_key()
    if label.endswith(b"PUBLIC KEY"):
        return serialization.load_pem_public_key(pem)
    return None  # such as EC PARAMETERS


def issuer_of(token: str) -> str | None:
    """Return what a token says its issuer is (unverified), or None if it is no JWT."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_TOKEN_CHARACTERS:
        return None
    try:
        payload = base64.b64decode(
            parts[1].encode("ascii") + b"=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True
        )
        return _ISSUER.decode(payload).iss
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        return None


class SignatureVerifier:
    """Checks signatures against any of several keys, so that keys can be exchanged one after the other.

    Tokens that were good are remembered (the last 4096, by digest): the same ones come with every request, and a
    signature does not turn bad. What ends a token (time, deleted objects) is checked each time by the caller.
    """

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self.keys = tuple(keys)
        self._known: OrderedDict[bytes, bytes] = OrderedDict()

    def payload(self, token: str) -> bytes | None:
        """Return the payload of a token if one of the keys signed it, else None. Never raises for a bad token."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is not None:
            return known
        payload = self._verify(token)
        if payload is not None:
            self._known[digest] = payload
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return payload

    def _verify(self, token: str) -> bytes | None:
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        try:
            header = _jws().get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None
        algorithm, wanted = header.get("alg"), header.get("kid")
        # The id is only a hint: with it the right key is tried first.
        for key in sorted(self.keys, key=lambda one: one.key_id != wanted):
            if algorithm not in key.algorithms:
                continue
            try:
                payload = _jws().decode(token, key.key, algorithms=list(key.algorithms))
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
                continue
            return bytes(payload)
        return None


def sign(payload: bytes, key: PrivateKey) -> str:
    """Return the token of `payload`: header `{"alg", "kid"}`, as a kube-apiserver writes it."""
    return _jws().encode(
        payload,
        key,
        algorithm=algorithm_of(key),
        headers={"kid": key_id(key.public_key()), "typ": ""},
    )
