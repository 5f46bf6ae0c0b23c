"""From the parts of a request to credentials, and which of its header fields go no further."""

from __future__ import annotations

from typing import Final

from waypost.access.authn.records import Credentials, HeaderFields

CONSUL_TOKEN_HEADER: Final = "x-consul-token"  # noqa: S105  (the field's name)
REMOTE_PREFIX: Final = "x-remote-"


def credentials_of(
    headers: HeaderFields,
    *,
    remote_fields: tuple[str, ...] = (),
    query_token: str = "",
    certificates_der: tuple[bytes, ...] = (),
    address: str = "",
    is_unix: bool = False,
    unix_uid: int | None = None,
) -> Credentials:
    """Return the credentials of a request.

    `query_token` is Consul's `?token=`, which comes before its header. `remote_fields` are the names of the fields
    that a front proxy may set (`FrontProxy.fields_in`); their values are taken only when a certificate came along.
    """
    remote = {}
    if certificates_der:
        remote = {name.lower(): headers.all(name) for name in remote_fields}
    return Credentials(
        authorization=headers.get("authorization") or "",
        consul_token=query_token or headers.get(CONSUL_TOKEN_HEADER) or "",
        certificates_der=certificates_der,
        remote_headers=remote,
        address=address,
        is_unix=is_unix,
        unix_uid=unix_uid,
    )


def is_credential_field(name: str) -> bool:
    """Tell whether a header field must not reach a handler once the request is authenticated."""
    lower = name.lower()
    return lower in ("authorization", CONSUL_TOKEN_HEADER) or lower.startswith(REMOTE_PREFIX)
