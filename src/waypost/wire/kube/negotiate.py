"""Accept and Content-Type: which form an answer gets and which a body has.

Source: Kubernetes API concepts, "Alternate representations of resources"; RFC 9110 section 12.5.1.
"""

from __future__ import annotations

from typing import Final

import msgspec

from waypost.wire.kube.bodies import JSON, PROTOBUF, YAML
from waypost.wire.kube.status import not_acceptable, unsupported_media_type

_CONVERTS: Final = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")
_VERSIONS: Final = {
    "Table": ("v1", "v1beta1"),
    "PartialObjectMetadata": ("v1", "v1beta1"),
    "PartialObjectMetadataList": ("v1", "v1beta1"),
    "APIGroupDiscoveryList": ("v2",),
}
_GROUPS: Final = {"APIGroupDiscoveryList": "apidiscovery.k8s.io"}
_PRETTY_AGENTS: Final = ("curl", "Wget", "Mozilla/5.0")


class Representation(msgspec.Struct, frozen=True, kw_only=True):
    """What to answer."""

    media_type: str = JSON
    """`JSON`, `YAML` or `PROTOBUF` of `bodies`."""
    convert: str = ""
    """`Table`, `PartialObjectMetadata`, `PartialObjectMetadataList`, `APIGroupDiscoveryList` or empty."""
    version: str = ""
    """Of `convert`: v1, v1beta1, v2."""


def negotiate(
    accept: str,
    *,
    converts: tuple[str, ...] = _CONVERTS,
    media_types: tuple[str, ...] = (JSON, YAML),
) -> Representation:
    """Return the best we can do for an Accept header; an empty one is content with anything.

    Clauses count in the order of their `q`, equal ones in the order they stand. Raises ApiError 406.
    """
    if not accept.strip():
        return Representation()
    for media_type, parameters in _clauses(accept):
        chosen = _media_type(media_type, media_types)
        if not chosen:
            continue
        convert = parameters.get("as", "")
        if not convert:
            return Representation(media_type=chosen)
        version = parameters.get("v", "")
        group = _GROUPS.get(convert, "meta.k8s.io")
        # Tables and the like are written as JSON or YAML only.
        if (
            convert in converts
            and parameters.get("g") == group
            and version in _VERSIONS.get(convert, ())
            and chosen != PROTOBUF
        ):
            return Representation(media_type=chosen, convert=convert, version=version)
    raise not_acceptable()


def _media_type(asked: str, known: tuple[str, ...]) -> str:
    if asked in known:
        return asked
    return JSON if asked in ("*/*", "application/*") and JSON in known else ""


def _clauses(accept: str) -> list[tuple[str, dict[str, str]]]:
    found = []
    for clause in accept.split(","):
        media_type, *rest = (part.strip() for part in clause.split(";"))
        parameters = {}
        for part in rest:
            key, _, value = part.partition("=")
            parameters[key.strip().lower()] = value.strip().strip('"')
        quality = _quality(parameters.get("q", "1"))
        if media_type and quality > 0:
            found.append((quality, media_type.lower(), parameters))
    found.sort(key=lambda one: -one[0])
    return [(media_type, parameters) for _, media_type, parameters in found]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def body_type(content_type: str) -> str:
    """Return `JSON`, `YAML` or `PROTOBUF` for a Content-Type; an empty one is JSON. Raises ApiError 415."""
    bare = content_type.partition(";")[0].strip().lower()
    if not bare:
        return JSON
    if bare in (JSON, YAML, PROTOBUF):
        return bare
    raise unsupported_media_type()


def wants_pretty(query: str | None, *, user_agent: str) -> bool:
    """Tell whether to indent: `?pretty=` (also empty) if it is there, else for curl, wget and browsers."""
    if query is not None:
        return query.lower() not in ("0", "false", "f")
    return user_agent.startswith(_PRETTY_AGENTS)
