"""Making certificates: an authority, and what it signs. Pure but for the system's randomness in serial numbers.

Source: RFC 5280; the profiles are kubeadm's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.access.pki.keys import PrivateKey, PublicKey, load_private_key, spki_der
from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import oid as known
else:
    x509 = later("cryptography.x509")
    hashes = later("cryptography.hazmat.primitives.hashes")
    serialization = later("cryptography.hazmat.primitives.serialization")
    ec = later("cryptography.hazmat.primitives.asymmetric.ec")
    known = later("cryptography.x509.oid")

DAY_S: Final = 86_400.0
CA_VALIDITY_S: Final = 3650 * DAY_S
LEAF_VALIDITY_S: Final = 365 * DAY_S
BACKDATE_S: Final = 300.0
"""New certificates are valid from five minutes ago: other machines' clocks may be a little behind."""


class Usage(StrEnum):
    """What a certificate is for; the values are the names in a CSR's `usages`."""

    SERVER = "server auth"
    CLIENT = "client auth"


@cache
def _oids() -> dict[Usage, x509.ObjectIdentifier]:
    return {
        Usage.SERVER: known.ExtendedKeyUsageOID.SERVER_AUTH,
        Usage.CLIENT: known.ExtendedKeyUsageOID.CLIENT_AUTH,
    }


class Subject(msgspec.Struct, frozen=True):
    """Whom a certificate is for: CN (kube: the user) and O (kube: the groups)."""

    common_name: str
    organizations: tuple[str, ...] = ()

    def to_x509(self) -> x509.Name:
        """Return the X.509 name: each O, then CN. Raises Malformed when a part is empty or too long (64)."""
        try:
            return x509.Name(
                [
                    *(
                        x509.NameAttribute(known.NameOID.ORGANIZATION_NAME, one)
                        for one in self.organizations
                    ),
                    x509.NameAttribute(known.NameOID.COMMON_NAME, self.common_name),
                ]
            )
        except ValueError as exc:
            raise Malformed(f'the subject "{self.common_name}" cannot be used: {exc}') from exc


class Names(msgspec.Struct, frozen=True):
    """The names and addresses (SANs) that a serving certificate is good for."""

    dns: tuple[str, ...] = ()
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Names:
        """Return names and addresses of texts, each once. Raises Malformed for what is neither."""
        dns: dict[str, None] = {}
        addresses: dict[IPv4Address | IPv6Address, None] = {}
        for text in texts:
            try:
                addresses[ip_address(text)] = None
            except ValueError:
                dns[_checked_name(text)] = None
        return cls(tuple(dns), tuple(addresses))

    def missing_in(self, other: Names) -> tuple[str, ...]:
        """Return those of these names that `other` does not have."""
        return (
            *(one for one in self.dns if one not in other.dns),
            *(str(one) for one in self.addresses if one not in other.addresses),
        )

    def union(self, other: Names) -> Names:
        """Return both, these first."""
        return Names(
            tuple(dict.fromkeys((*self.dns, *other.dns))),
            tuple(dict.fromkeys((*self.addresses, *other.addresses))),
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them as text."""
        return (*self.dns, *map(str, self.addresses))


def _checked_name(text: str) -> str:
    labels = text.removeprefix("*.").split(".")
    good = len(text) <= 253 and all(
        0 < len(one) <= 63
        and one.isascii()
        and all(c.isalnum() or c in "-_" for c in one)
        and one[0] != "-"
        and one[-1] != "-"
        for one in labels
    )
    if not good:
        raise Malformed(f'"{text}" is neither a DNS name nor an IP address')
    return text.lower()


class Authority(msgspec.Struct, frozen=True):
    """A certificate authority; without `key` it can only verify ("externally managed")."""

    certificate: x509.Certificate
    key: PrivateKey | None = None

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()!r})"

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return certificate_pem(self.certificate)

    @property
    def pin(self) -> str:
        """The public key's hash as kubeadm shows it for `--discovery-token-ca-cert-hash`."""
        return ca_pin(self.certificate)


def ca_pin(certificate: x509.Certificate) -> str:
    """Return `sha256:` and the hash of the certificate's SubjectPublicKeyInfo."""
    der = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256:" + hashlib.sha256(der).hexdigest()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_certificate(pem: bytes, *, name: str) -> x509.Certificate:
    """Return the first certificate of a PEM file. Raises Malformed with `name`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as exc:
        raise Malformed(f"{name}: no PEM certificate in it that can be read") from exc


def load_authority(
    certificate: bytes, key: bytes | None, *, name: str, key_name: str = "key"
) -> Authority:
    """Return the authority of two PEM files. Raises Malformed if it is none, or the key is another's."""
    found = load_certificate(certificate, name=name)
    if not is_authority(found):
        raise Malformed(f"{name}: the certificate is not one of a certificate authority")
    if key is None:
        return Authority(found)
    private = load_private_key(key, name=key_name)
    if not belongs(found, private):
        raise Malformed(f"{key_name} is not the key of {name}")
    return Authority(found, private)


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False


def belongs(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Tell whether `key` is the private key of `certificate`."""
    public = certificate.public_key()
    ours = key.public_key()
    return isinstance(public, type(ours)) and spki_der(public) == spki_der(ours)


def names_of(certificate: x509.Certificate) -> Names:
    """Return the names and addresses of a certificate."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return Names()
    addresses = [
        one
        for one in found.get_values_for_type(x509.IPAddress)
        if isinstance(one, IPv4Address | IPv6Address)
    ]
    return Names(tuple(found.get_values_for_type(x509.DNSName)), tuple(addresses))


def usages_of(certificate: x509.Certificate) -> tuple[Usage, ...]:
    """Return what a certificate is for, as far as this module knows it."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ()
    return tuple(usage for usage, oid in _oids().items() if oid in found)


def make_authority(
    key: PrivateKey,
    *,
    common_name: str,
    now_s: float,
    validity_s: float = CA_VALIDITY_S,
) -> Authority:
    """Return a self-signed authority: BasicConstraints CA, key usage for signing, 10 years by default."""
    name = Subject(common_name).to_x509()
    public = key.public_key()
    builder = (
        _builder(name, name, public, now_s=now_s, until_s=now_s + validity_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            _key_usage(key_cert_sign=True, crl_sign=True, key_encipherment=False), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Authority,
    public: PublicKey,
    *,
    subject: x509.Name,
    usages: Iterable[Usage],
    now_s: float,
    names: Names | None = None,
    validity_s: float = LEAF_VALIDITY_S,
) -> x509.Certificate:
    """Return a certificate signed by `authority`; it never outlives the authority.

    Without `usages` it says nothing of what it is for, which means everything.

    Raises Malformed when the authority has no key, or is not valid now.
    """
    if authority.key is None:
        raise Malformed("the authority's key is not here, so nothing can be issued")
    ca_until_s = authority.certificate.not_valid_after_utc.timestamp()
    if now_s >= ca_until_s:
        raise Malformed("the certificate authority has expired, so nothing can be issued")
    until_s = min(now_s + validity_s, ca_until_s)
    ca_names = authority.certificate
    oids = [_oids()[one] for one in usages]
    builder = (
        _builder(subject, ca_names.subject, public, now_s=now_s, until_s=until_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            # Key encipherment means something for RSA keys only (RFC 5480 §3).
            _key_usage(key_encipherment=not isinstance(public, ec.EllipticCurvePublicKey)),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority_key(authority.certificate), critical=False)
    )
    if oids:
        builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=False)
    if names is not None and names.texts:
        san = [
            *(x509.DNSName(one) for one in names.dns),
            *(x509.IPAddress(one) for one in names.addresses),
        ]
        # RFC 5280 §4.2.1.6: critical when there is no subject.
        builder = builder.add_extension(
            x509.SubjectAlternativeName(san), critical=not list(subject)
        )
    return builder.sign(authority.key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: PublicKey, *, now_s: float, until_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now_s - BACKDATE_S))
        .not_valid_after(_moment(until_s))
    )


def _key_usage(
    *, key_cert_sign: bool = False, crl_sign: bool = False, key_encipherment: bool
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        public = certificate.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)
