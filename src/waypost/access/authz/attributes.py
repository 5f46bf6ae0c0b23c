"""From method and URL to what is asked.

The path is percent-decoded, trimmed of slashes at both ends and split; inner double slashes and dots are taken as
they are. Routing must use the same parts. Source: recorded audit log of kube-apiserver 1.20.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs, unquote

import msgspec

from waypost.access.authz.validate import path_segment_faults
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed

_VERBS: Final = {
    "POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete",
}  # fmt: skip
_SPECIAL: Final = ("proxy", "watch")
_NAMESPACE_SUBRESOURCES: Final = ("status", "finalize")


def request_attributes(method: str, target: str) -> Attributes:
    """Return what a request asks for; `target` is path and query as on the request line.

    Everything that is not below `/api/VERSION/` or `/apis/GROUP/VERSION/` is a plain path with the lower-case method
    as verb. Raises Malformed for `/api/v1/watch` and `/api/v1/proxy` without anything behind.
    """
    raw, _, query = target.partition("?")
    path = unquote(raw)
    parts = path.strip("/").split("/")
    group = ""
    if parts[0] == "apis" and len(parts) >= 4:
        group = parts[1]
        del parts[1]
    elif parts[0] != "api" or len(parts) < 3:
        return Attributes(method.lower(), path=path or "/", group="")
    version, parts = parts[1], parts[2:]
    verb = _VERBS.get(method, "")
    if parts[0] in _SPECIAL:
        if len(parts) < 2:
            msg = f"unable to determine kind and namespace from url, {path}"
            raise Malformed(msg)
        verb = parts.pop(0)
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1:
        namespace = parts[1]
        if len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]
    asked = Attributes(
        verb,
        parts[0],
        parts[1] if len(parts) > 1 else "",
        group=group,
        namespace=namespace,
        subresource=parts[2] if len(parts) > 2 and verb != "proxy" else "",
        version=version,
    )
    if asked.name:
        return asked
    if verb == "get":
        watch, name = _list_options(query)
        return msgspec.structs.replace(asked, verb="watch" if watch else "list", name=name)
    if verb == "delete":
        return msgspec.structs.replace(asked, verb="deletecollection")
    return asked


def _list_options(query: str) -> tuple[bool, str]:
    """Return (watch, exact name of the field selector). Options that cannot be read count as not given."""
    values = parse_qs(query, keep_blank_values=True)
    watch = "watch" in values and values["watch"][0].lower() not in ("false", "0")
    numbers = [values[option][0] for option in ("limit", "timeoutSeconds") if option in values]
    if not all(number.lstrip("+-").isdecimal() for number in numbers if number):
        return watch, ""
    name: str | None = None
    for term in values.get("fieldSelector", [""])[0].split(","):
        field, equals, value = term.partition("=")
        if term and not equals:
            return watch, ""
        if field == "metadata.name" and name is None:
            name = value.removeprefix("=")
    return watch, "" if name is None or path_segment_faults(name) else name
