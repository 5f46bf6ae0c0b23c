"""Private keys: made, written as PEM, read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
else:
    exceptions = later("cryptography.exceptions")
    serialization = later("cryptography.hazmat.primitives.serialization")
    ec = later("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = later("cryptography.hazmat.primitives.asymmetric.rsa")

PrivateKey: TypeAlias = "rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey"
PublicKey: TypeAlias = "rsa.RSAPublicKey | ec.EllipticCurvePublicKey"

DEFAULT_ALGORITHM: Final = "ECDSA-P256"
ALGORITHMS: Final = ("ECDSA-P256", "ECDSA-P384", "RSA-2048", "RSA-3072", "RSA-4096")
"""The names of kubeadm's `encryptionAlgorithm`."""


def generate_key(algorithm: str = DEFAULT_ALGORITHM) -> PrivateKey:
    """Return a new key, made with the system's randomness. Raises Malformed for an unknown algorithm."""
    if algorithm not in ALGORITHMS:
        raise Malformed(f'unknown key algorithm "{algorithm}": known are {", ".join(ALGORITHMS)}')
    family, _, size = algorithm.partition("-")
    if family == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=int(size))
    return ec.generate_private_key(ec.SECP256R1() if size == "P256" else ec.SECP384R1())


def algorithm_of(key: PublicKey) -> str:
    """Return the name of what `generate_key` would make instead of this one; the nearest for a size it does not make."""
    if isinstance(key, rsa.RSAPublicKey):
        sizes = [name for name in ALGORITHMS if name.startswith("RSA-")]
        return next((name for name in sizes if int(name[4:]) >= key.key_size), sizes[-1])
    return "ECDSA-P256" if key.curve.name == "secp256r1" else "ECDSA-P384"


def private_pem(key: PrivateKey) -> bytes:
    """Return the key as PEM in the traditional form (`EC PRIVATE KEY`, `RSA PRIVATE KEY`), without password."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def public_pem(key: PublicKey) -> bytes:
    """Return a public key as PEM (`PUBLIC KEY`)."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_private_key(pem: bytes, *, name: str) -> PrivateKey:
    """Return the key of a PEM file. Raises Malformed with `name`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as exc:
        raise Malformed(f"{name}: no unencrypted PEM private key that can be read") from exc
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise Malformed(f"{name}: the key is neither RSA nor ECDSA")
    return key


def spki_der(key: PublicKey) -> bytes:
    """Return a public key's SubjectPublicKeyInfo."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
