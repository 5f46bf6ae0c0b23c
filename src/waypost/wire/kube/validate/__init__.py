"""What an object must look like to be stored; faults come in the original's words and order.

The rules of roles and bindings themselves are `access.authz.validate`'s; here are their names and labels.
"""

from __future__ import annotations

from waypost.wire.kube.resources import Resource
from waypost.wire.kube.status import FieldError
from waypost.wire.kube.validate import kinds, metadata
from waypost.wire.kube.validate.kinds import token_request_errors
from waypost.wire.kube.values import JsonObject

__all__ = ["create_errors", "review_errors", "token_request_errors", "update_errors"]


def create_errors(value: JsonObject, *, resource: Resource) -> list[FieldError]:
    """Return the faults of a new object with its name, namespace and defaults set; empty when it is fine."""
    found = list(metadata.metadata_errors(value, resource=resource))
    check = kinds.ON_WRITE.get(resource.kind)
    return found + list(check(value)) if check is not None else found


def update_errors(
    live: JsonObject, value: JsonObject, *, resource: Resource, subresource: str = ""
) -> list[FieldError]:
    """Return the faults of a changed object, also what changed and must not; empty when it is fine.

    `value` is the object as sent (with defaults); what it leaves out of the server's own metadata is no change.
    """
    sent = value.get("metadata") or {}
    kept = {key: live["metadata"][key] for key in ("name", "namespace") if key in live["metadata"]}
    judged = value | {"metadata": kept | {key: one for key, one in sent.items() if one}}
    found = list(metadata.metadata_update_errors(live, value))
    found += metadata.metadata_errors(judged, resource=resource)
    check = kinds.ON_WRITE.get(resource.kind)
    if check is not None and not subresource:
        found += check(judged)
    elif subresource and resource.kind == "CertificateSigningRequest":
        found += kinds.csr_condition_errors(judged)
    compare = kinds.ON_UPDATE.get(resource.kind)
    if compare is not None:
        found += compare(live, value)
    return list({(one.field, one.message): one for one in found}.values())


def review_errors(value: JsonObject, *, resource: Resource) -> list[FieldError]:
    """Return the faults of a review, which needs no name; empty when it is fine."""
    check = kinds.ON_WRITE.get(resource.kind)
    return list(check(value)) if check is not None else []
