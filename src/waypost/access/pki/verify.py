"""Whether a client certificate is to be believed: chain, validity, extended key usage, and nothing about host names.

The verdict is the library's (`cryptography.x509.verification`); the reason for a refusal is worked out afterwards, in
the words that a kube-apiserver logs, because the library's are not for operators. The reason decides nothing.
"""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    from cryptography import exceptions, x509
    from cryptography.x509 import oid as known
    from cryptography.x509 import verification
else:
    exceptions = later("cryptography.exceptions")
    x509 = later("cryptography.x509")
    known = later("cryptography.x509.oid")
    verification = later("cryptography.x509.verification")

MAX_CHAIN: Final = 8
"""Certificates a client may send; more are refused before anything is computed."""
MAX_CERTIFICATE_BYTES: Final = 64 * 1024
_REMEMBERED: Final = 1024
_BAD_FOR_S: Final = 1.0


class Verified(msgspec.Struct, frozen=True):
    """A good certificate, and the time in which its whole chain is valid (seconds since the Unix epoch)."""

    certificate: x509.Certificate
    not_before_s: float
    not_after_s: float


class Untrusted(msgspec.Struct, frozen=True):
    """A certificate that must not be believed, with the reason."""

    reason: str


class ClientVerifier:
    """Verifies client certificates against the authorities of one PEM bundle.

    The last 1024 verdicts are remembered, because a connection shows the same chain with every request: good ones for
    as long as the whole chain is valid, bad ones for a second.
    """

    def __init__(self, roots: Iterable[x509.Certificate]) -> None:
        self.roots = tuple(roots)
        if not self.roots:
            raise Malformed("no certificate authority given")
        self._store = verification.Store(list(self.roots))
        self._known: OrderedDict[tuple[bytes, ...], tuple[Verified | Untrusted, float]] = (
            OrderedDict()
        )
        self._policy = (
            verification.ExtensionPolicy.permit_all().require_present(
                x509.BasicConstraints, verification.Criticality.AGNOSTIC, _is_authority
            ).may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _may_sign)
            .may_be_present(x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, _is_for_clients)
        )  # fmt: skip
        self._leaf_policy = verification.ExtensionPolicy.permit_all().may_be_present(
            x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, _is_for_clients
        )

    @classmethod
    def from_pem(cls, pem: bytes, *, name: str = "CA bundle") -> ClientVerifier:
        """Return the verifier for a bundle. Raises Malformed if it holds no certificate."""
        return cls(load_bundle(pem, name=name))

    def verify(self, chain_der: Sequence[bytes], *, now_s: float) -> Verified | Untrusted:
        """Return the leaf if it may be believed at `now_s`; never raises for what a client sent."""
        key = tuple(chain_der)
        known = self._known.get(key)
        if known is not None and _still_holds(*known, now_s=now_s):
            return known[0]
        found = self._verify(key, now_s=now_s)
        if sum(map(len, key)) > MAX_CERTIFICATE_BYTES:
            return found  # 1024 of these would be too much to keep
        self._known[key] = (found, now_s)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _verify(self, chain_der: tuple[bytes, ...], *, now_s: float) -> Verified | Untrusted:
        if len(chain_der) > MAX_CHAIN or any(len(one) > MAX_CERTIFICATE_BYTES for one in chain_der):
            return Untrusted("x509: the certificate chain is too large")
        try:
            leaf, *between = [x509.load_der_x509_certificate(one) for one in chain_der]
        except (ValueError, exceptions.UnsupportedAlgorithm, x509.InvalidVersion):
            return Untrusted("x509: malformed certificate")
        now = dt.datetime.fromtimestamp(now_s, dt.UTC)
        verifier = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(now)
            .extension_policies(ca_policy=self._policy, ee_policy=self._leaf_policy)
            .build_client_verifier()
        )
        try:
            chain = verifier.verify(leaf, between).chain
        except (
            verification.VerificationError,
            ValueError,
            TypeError,
            exceptions.UnsupportedAlgorithm,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
        ):
            return Untrusted(self._why_not(leaf, between, now=now))
        return Verified(
            leaf,
            max(one.not_valid_before_utc.timestamp() for one in chain),
            min(one.not_valid_after_utc.timestamp() for one in chain),
        )

    def _why_not(
        self, leaf: x509.Certificate, between: Sequence[x509.Certificate], *, now: dt.datetime
    ) -> str:
        reason = (
            _validity_problem(leaf, now=now)
            or self._authority_problem(leaf, between, now=now)
            or _usage_problem(leaf)
            or "x509: certificate is not acceptable (key, signature algorithm or extensions)"
        )
        return f"verifying certificate {certificate_text(leaf)} failed: {reason}"

    def _authority_problem(
        self, leaf: x509.Certificate, between: Sequence[x509.Certificate], *, now: dt.datetime
    ) -> str:
        current = leaf
        for _ in range(MAX_CHAIN):
            found = next((one for one in (*self.roots, *between) if _issued_by(current, one)), None)
            if found is None:
                return "x509: certificate signed by unknown authority"
            problem = _validity_problem(found, now=now)
            if problem:
                return problem
            if found in self.roots:
                return ""
            current = found
        return "x509: certificate signed by unknown authority"


def _still_holds(found: Verified | Untrusted, at_s: float, *, now_s: float) -> bool:
    if isinstance(found, Verified):
        return found.not_before_s <= now_s <= found.not_after_s
    return 0 <= now_s - at_s < _BAD_FOR_S


def load_bundle(pem: bytes, *, name: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM bundle. Raises Malformed with `name` if there is none, or one is broken."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, exceptions.UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        msg = f"{name}: no PEM certificate in it that can be read"
        raise Malformed(msg) from exc


def certificate_text(certificate: x509.Certificate) -> str:
    """Return what tells one certificate from others in a log: serial number and key identifiers."""
    subject_key, authority_key = "", ""
    try:
        for extension in certificate.extensions:
            value = extension.value
            if isinstance(value, x509.SubjectKeyIdentifier):
                subject_key = _colons(value.digest)
            elif isinstance(value, x509.AuthorityKeyIdentifier):
                authority_key = _colons(value.key_identifier or b"")
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        pass  # the text is for people; the verdict is made already
    return f"SN={certificate.serial_number}, SKID={subject_key}, AKID={authority_key}"


def _colons(digest: bytes) -> str:
    return digest.hex(":").upper()


def _is_for_clients(
    _policy: verification.Policy,
    _certificate: x509.Certificate,
    usage: x509.ExtendedKeyUsage | None,
) -> None:
    if usage is not None and not _allows_clients(usage):
        raise ValueError("incompatible key usage")


def _allows_clients(usage: x509.ExtendedKeyUsage) -> bool:
    return (
        known.ExtendedKeyUsageOID.CLIENT_AUTH in usage
        or known.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage
    )


def _is_authority(
    _policy: verification.Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints
) -> None:
    if not constraints.ca:
        raise ValueError("not an authority")


def _may_sign(
    _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the authority may not sign certificates")


def _validity_problem(certificate: x509.Certificate, *, now: dt.datetime) -> str:
    text = "x509: certificate has expired or is not yet valid: current time"
    if now > certificate.not_valid_after_utc:
        return f"{text} {_stamp(now)} is after {_stamp(certificate.not_valid_after_utc)}"
    if now < certificate.not_valid_before_utc:
        return f"{text} {_stamp(now)} is before {_stamp(certificate.not_valid_before_utc)}"
    return ""


def _usage_problem(certificate: x509.Certificate) -> str:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ""
    if _allows_clients(usage):
        return ""
    return "x509: certificate specifies an incompatible key usage"


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, exceptions.InvalidSignature, exceptions.UnsupportedAlgorithm):
        return False
    return True


def _stamp(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
