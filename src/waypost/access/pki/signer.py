"""Signing requests: what the built-in signers of kube sign, and which requests of nodes may be approved unasked.

Pure: PEM, signer and usages in, certificate out. Who may create, approve and sign is for the authorizer.
Source: kube "Certificates and Certificate Signing Requests", "Kubernetes signers".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from waypost.access.pki.issue import (
    BACKDATE_S,
    LEAF_VALIDITY_S,
    Authority,
    Names,
    Usage,
    certificate_pem,
    issue,
)
from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509 import oid as known
else:
    exceptions = later("cryptography.exceptions")
    x509 = later("cryptography.x509")
    ec = later("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = later("cryptography.hazmat.primitives.asymmetric.rsa")
    known = later("cryptography.x509.oid")

CLIENT: Final = "kubernetes.io/kube-apiserver-client"
NODE_CLIENT: Final = "kubernetes.io/kube-apiserver-client-kubelet"
NODE_SERVING: Final = "kubernetes.io/kubelet-serving"
SIGNERS: Final = (CLIENT, NODE_CLIENT, NODE_SERVING)
NODES: Final = "system:nodes"
NODE_PREFIX: Final = "system:node:"
MIN_EXPIRATION_S: Final = 600
MAX_REQUEST_BYTES: Final = 64 * 1024
_SHORT_S: Final = 8 * 3600.0
_COMMON: Final = frozenset({"digital signature", "key encipherment"})


class SigningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a CertificateSigningRequest's spec that signing needs."""

    request_pem: bytes
    signer: str
    usages: tuple[str, ...]
    expiration_s: int | None = None


class Wish(msgspec.Struct, frozen=True):
    """What a PKCS #10 request asks for; its own signature is verified."""

    subject: x509.Name
    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    names: Names
    emails: tuple[str, ...]
    uris: tuple[str, ...]

    @property
    def common_name(self) -> str:
        """The last CN, "" without one."""
        return _texts(self.subject, common=True)[-1] if _texts(self.subject, common=True) else ""

    @property
    def organizations(self) -> tuple[str, ...]:
        """Every O, in order."""
        return _texts(self.subject, common=False)


def _texts(name: x509.Name, *, common: bool) -> tuple[str, ...]:
    oid = known.NameOID.COMMON_NAME if common else known.NameOID.ORGANIZATION_NAME
    return tuple(str(one.value) for one in name.get_attributes_for_oid(oid))


def read_request(pem: bytes) -> Wish:
    """Return what a PEM request asks for. Raises Malformed for one that is broken or not signed by its own key."""
    if len(pem) > MAX_REQUEST_BYTES:
        raise Malformed("the certificate request is too large")
    try:
        request = x509.load_pem_x509_csr(pem)
        public = request.public_key()
        signed = request.is_signature_valid
        names, emails, uris = _requested_names(request)
        subject = request.subject
    except (
        ValueError,
        TypeError,
        exceptions.UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
    ) as exc:
        raise Malformed(
            "PEM block type must be CERTIFICATE REQUEST with a readable request"
        ) from exc
    if not signed:
        raise Malformed("the certificate request is not signed by its own key")
    if not isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise Malformed("the certificate request's key is neither RSA nor ECDSA")
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < 2048:
        raise Malformed("RSA keys of fewer than 2048 bits are not signed")
    return Wish(subject, public, names, emails, uris)


def _requested_names(
    request: x509.CertificateSigningRequest,
) -> tuple[Names, tuple[str, ...], tuple[str, ...]]:
    try:
        san = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Names(), (), ()
    return (
        Names.of(
            [
                *san.get_values_for_type(x509.DNSName),
                *map(str, san.get_values_for_type(x509.IPAddress)),
            ]
        ),
        tuple(san.get_values_for_type(x509.RFC822Name)),
        tuple(san.get_values_for_type(x509.UniformResourceIdentifier)),
    )


def sign(request: SigningRequest, authority: Authority, *, now_s: float) -> bytes:
    """Return the certificate as PEM.

    Raises Malformed with the text for condition `Failed`, reason `SignerValidationFailure`.
    """
    wish = read_request(request.request_pem)
    problem = signing_problem(request, wish)
    if problem:
        raise Malformed(problem)
    validity_s = float(request.expiration_s or LEAF_VALIDITY_S)
    if validity_s >= _SHORT_S:
        # As kube: five minutes of the past count, unless the certificate is to live for a short time only.
        validity_s -= BACKDATE_S
    usage = Usage.SERVER if request.signer == NODE_SERVING else Usage.CLIENT
    certificate = issue(
        authority,
        wish.public,
        subject=wish.subject,
        usages=(usage,),
        names=wish.names,
        now_s=now_s,
        validity_s=validity_s,
    )
    return certificate_pem(certificate)


def signing_problem(request: SigningRequest, wish: Wish) -> str:
    """Return why a signer refuses an approved request, in kube's words, or ""."""
    if request.expiration_s is not None and request.expiration_s < MIN_EXPIRATION_S:
        return "may not specify a duration less than 600 seconds (10 minutes)"
    if request.signer == CLIENT:
        return _client_problem(request)
    if request.signer == NODE_CLIENT:
        return _node_client_problem(request, wish)
    if request.signer == NODE_SERVING:
        return _node_serving_problem(request, wish)
    return f'there is no signer "{request.signer}" here'


def creation_problem(request: SigningRequest, wish: Wish) -> str:
    """Return why a request must not even be created (403), or "": nobody asks for `system:masters` this way."""
    if request.signer == CLIENT and "system:masters" in wish.organizations:
        return f"use of {CLIENT} signer with system:masters group is not allowed"
    return ""


def _client_problem(request: SigningRequest) -> str:
    for usage in request.usages:
        if usage not in _COMMON and usage != Usage.CLIENT:
            return f"invalid usage for client certificate: {usage}"
    if Usage.CLIENT not in request.usages:
        return "missing required usage for client certificate: client auth"
    return ""


def _node_client_problem(request: SigningRequest, wish: Wish) -> str:
    problem = _node_subject_problem(wish)
    if problem:
        return problem
    kinds = (
        ("DNS", wish.names.dns),
        ("email", wish.emails),
        ("IP", wish.names.addresses),
        ("URI", wish.uris),
    )
    for kind, found in kinds:
        if found:
            return f"{kind} subjectAltNames are not allowed"
    return _node_usages_problem(request, Usage.CLIENT)


def _node_serving_problem(request: SigningRequest, wish: Wish) -> str:
    problem = _node_subject_problem(wish)
    if problem:
        return problem
    if not wish.names.texts:
        return "DNS or IP subjectAltName is required"
    for kind, found in (("email", wish.emails), ("URI", wish.uris)):
        if found:
            return f"{kind} subjectAltNames are not allowed"
    return _node_usages_problem(request, Usage.SERVER)


def _node_subject_problem(wish: Wish) -> str:
    if wish.organizations != (NODES,):
        return "organization in subject is not system:nodes"
    if not wish.common_name.startswith(NODE_PREFIX):
        return "subject common name does not begin with system:node:"
    return ""


def _node_usages_problem(request: SigningRequest, purpose: Usage) -> str:
    given = set(request.usages)
    if given in ({"digital signature", purpose}, {*_COMMON, purpose}):
        return ""
    return f"usages did not match [digital signature {purpose}] with or without key encipherment"


def approval_subresource(request: SigningRequest, wish: Wish, *, requester: str) -> str:
    """Return which right makes a node's request approved unasked: `nodeclient`, `selfnodeclient`, or "" for never.

    Approve it when `requester` may create `certificatesigningrequests/<that>` in `certificates.k8s.io`.
    """
    if request.signer != NODE_CLIENT or _node_client_problem(request, wish):
        return ""
    return "selfnodeclient" if requester == wish.common_name else "nodeclient"
