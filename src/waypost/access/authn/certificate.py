"""Client certificates and front proxies: identities that TLS brings along.

Certificate: CN → user, every O → a group, in the certificate's order. Source: kube "X509 client certificates".
Front proxy: a proxy that shows a certificate of its own authority names the user in header fields.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from waypost.access.authn.records import (
    Accepted,
    Credentials,
    Identity,
    Rejected,
    Skipped,
    Verdict,
)
from waypost.access.pki.verify import ClientVerifier, Untrusted, Verified
from waypost.base.later import later

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509 import oid as known
else:
    x509 = later("cryptography.x509")
    known = later("cryptography.x509.oid")

UID_OID: Final = "1.3.6.1.4.1.57683.2"
CREDENTIAL_ID: Final = "authentication.kubernetes.io/credential-id"
_REMEMBERED: Final = 1024
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class ClientCertificate:
    """Verifies the connection's client certificate."""

    name = "x509"

    def __init__(self, verifier: ClientVerifier) -> None:
        self._verifier = verifier
        self._named: OrderedDict[bytes, tuple[Verified, Verdict]] = OrderedDict()
        """Who the verifier's last good certificates are: reading a name costs more than finding it here."""

    def replace(self, verifier: ClientVerifier) -> None:
        """Trust other authorities from now on (the CA file changed)."""
        self._verifier = verifier

    def authenticate(self, credentials: Credentials, *, now_s: float) -> Verdict:
        """Return the verdict on the client certificate; an empty CN counts as none."""
        chain = credentials.certificates_der
        if not chain:
            return Skipped("no client certificate")
        found = self._verifier.verify(chain, now_s=now_s)
        if isinstance(found, Untrusted):
            return Rejected(error=found.reason)
        named = self._named.get(chain[0])
        if named is not None and named[0] is found:
            return named[1]
        try:
            verdict = _identity_of(found, chain[0])
        except ValueError:  # the library reads names lazily
            return Rejected(error="x509: malformed certificate")
        self._named[chain[0]] = (found, verdict)
        if len(self._named) > _REMEMBERED:
            self._named.popitem(last=False)
        return verdict


def _identity_of(found: Verified, der: bytes) -> Verdict:
    subject = found.certificate.subject
    names = _values(subject, known.NameOID.COMMON_NAME)
    user = names[-1] if names else ""  # the last one, as Go's pkix.Name
    if not user:
        return Skipped("the certificate's common name (CN) is empty")
    uids = _values(subject, x509.ObjectIdentifier(UID_OID))
    expires = found.certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Accepted(
        identity=Identity(
            user=user,
            groups=tuple(_values(subject, known.NameOID.ORGANIZATION_NAME)),
            uid=uids[0] if len(uids) == 1 else "",
            extra={CREDENTIAL_ID: (f"X509SHA256={hashlib.sha256(der).hexdigest()}",)},
            expires_s=found.not_after_s,
        ),
        detail=f"CN={user}, serial number {found.certificate.serial_number}, valid until {expires}",
        is_steady=True,
    )


def _values(name: x509.Name, oid: x509.ObjectIdentifier) -> list[str]:
    return [
        one.value if isinstance(one.value, str) else one.value.decode("utf-8", "replace")
        for one in name.get_attributes_for_oid(oid)
    ]


class FrontProxy:
    """Takes the user from header fields when the peer's certificate is one of the proxy authority.

    `allowed_names` are the common names that may do so (empty: every one). Field names as kube's flags
    `--requestheader-…`; all are compared without case.
    """

    name = "front proxy"

    def __init__(
        self,
        verifier: ClientVerifier,
        *,
        allowed_names: Iterable[str] = (),
        user_fields: Iterable[str] = ("X-Remote-User",),
        uid_fields: Iterable[str] = ("X-Remote-Uid",),
        group_fields: Iterable[str] = ("X-Remote-Group",),
        extra_prefixes: Iterable[str] = ("X-Remote-Extra-",),
    ) -> None:
        self._verifier = verifier
        self._allowed = frozenset(allowed_names)
        self._user = tuple(one.lower() for one in user_fields)
        self._uid = tuple(one.lower() for one in uid_fields)
        self._group = tuple(one.lower() for one in group_fields)
        self._extra = tuple(one.lower() for one in extra_prefixes)

    def fields_in(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of a request's field names that this authenticator reads (for `credentials_of`)."""
        exact = {*self._user, *self._uid, *self._group}
        lower = dict.fromkeys(name.lower() for name in names)
        return tuple(n for n in lower if n in exact or n.startswith(self._extra))

    def authenticate(self, credentials: Credentials, *, now_s: float) -> Verdict:
        """Return the verdict; fields without a certificate of the proxy authority are never read."""
        if not credentials.certificates_der:
            return Skipped("no client certificate")
        found = self._verifier.verify(credentials.certificates_der, now_s=now_s)
        if isinstance(found, Untrusted):
            return Rejected(error=found.reason)
        try:
            names = _values(found.certificate.subject, known.NameOID.COMMON_NAME)
        except ValueError:
            return Rejected(error="x509: malformed certificate")
        proxy = names[-1] if names else ""
        if self._allowed and proxy not in self._allowed:
            return Rejected(error=f"x509: subject with cn={proxy} is not in the allowed list")
        fields = credentials.remote_headers
        user = _first(fields, self._user)
        if not user:
            return Skipped("the proxy named no user")
        groups = tuple(value for name in self._group for value in fields.get(name, ()))
        return Accepted(
            identity=Identity(
                user=user,
                groups=groups,
                uid=_first(fields, self._uid),
                extra=extra_fields(fields.items(), prefixes=self._extra),
            ),
            detail=f"named by the proxy {proxy}",
        )


def _first(fields: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> str:
    values = (value for name in names for value in fields.get(name, ()))
    return next((value for value in values if value), "")


def extra_fields(
    fields: Iterable[tuple[str, tuple[str, ...]]], *, prefixes: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Return the extra values of fields such as `x-remote-extra-KEY` or `impersonate-extra-KEY`.

    The key is put in lower case, then its %-escapes are decoded; one with a broken escape stays as it is.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, values in fields:
        lower = name.lower()
        prefix = next((one for one in prefixes if lower.startswith(one)), None)
        if prefix is None:
            continue
        key = lower[len(prefix) :]
        if not _BAD_ESCAPE.search(key):
            key = unquote(key)
        found[key] = (*found.get(key, ()), *values)
    return found
