"""Messages of `certificates.k8s.io`."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Message, field, message

MESSAGES: Final[tuple[Message, ...]] = (
    message(
        "certificates.v1.CertificateSigningRequest", "Asks for a certificate; somebody approves, a signer signs.",
        field("spec", 2, "certificates.v1.CertificateSigningRequestSpec", "The request; cannot be changed.", required=True),
        field("status", 3, "certificates.v1.CertificateSigningRequestStatus", "What became of it."),
        is_kind=True,
    ),
    message(
        "certificates.v1.CertificateSigningRequestSpec", "What is asked for, and by whom.",
        field("request", 1, "bytes", "PKCS #10 request in PEM.", required=True, keep=True),
        field("signerName", 7, "string", "Who should sign: kubernetes.io/kube-apiserver-client, …", required=True, keep=True),
        field("expirationSeconds", 8, "int32", "Seconds the certificate should be good for, 600 or more; the signer may choose otherwise.", pointer=True),
        field("usages", 5, "[string]", "Key usages: digital signature, key encipherment, client auth, server auth, …"),
        field("username", 2, "string", "Who asked; set by the server."),
        field("uid", 3, "string", "UID of who asked; set by the server."),
        field("groups", 4, "[string]", "Groups of who asked; set by the server."),
        field("extra", 6, "{texts}", "What else was known of who asked; set by the server."),
    ),
    message(
        "certificates.v1.CertificateSigningRequestStatus", "What became of a request.",
        field("conditions", 1, "[certificates.v1.CertificateSigningRequestCondition]", "Approved, Denied, Failed.", merge_key="type"),
        field("certificate", 2, "bytes", "The certificate chain in PEM, once signed."),
    ),
    message(
        "certificates.v1.CertificateSigningRequestCondition", "One step of a request's way.",
        field("type", 1, "string", "Approved, Denied or Failed.", required=True, keep=True),
        field("status", 6, "string", "True, False or Unknown; the first two types only True.", required=True, keep=True),
        field("reason", 2, "string", "One word for programs."),
        field("message", 3, "string", "Text for people."),
        field("lastUpdateTime", 4, "time", "Last change of this condition."),
        field("lastTransitionTime", 5, "time", "Last change of its status."),
    ),
)  # fmt: skip
