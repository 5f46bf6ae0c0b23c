"""OpenAPI documents made from the schema: v3 for newer clients, v2 as JSON and protobuf for older ones.

kubectl prints `explain` from them, checks manifests with them (before 1.25) and finds merge keys in them.
Source: Kubernetes API concepts, "OpenAPI"; the protobuf form is gnostic's `openapi.v2.Document`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Final

from waypost.wire.kube.protobuf import bytes_field
from waypost.wire.kube.resources import BUILT_IN, Catalog, Resource, Subresource
from waypost.wire.kube.schema import SCHEMA
from waypost.wire.kube.schema.types import META, Field, Scalar, Shape
from waypost.wire.kube.values import JsonObject, encode_json
from waypost.wire.kube.yaml_body import encode_yaml

V2_PROTOBUF: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""Content-Type of the v2 document in protobuf; one with an `@`, as clients ask for, they cannot parse."""

_SCALARS: Final[dict[Scalar, JsonObject]] = {
    Scalar.STRING: {"type": "string"},
    Scalar.INT32: {"type": "integer", "format": "int32"},
    Scalar.INT64: {"type": "integer", "format": "int64"},
    Scalar.BOOL: {"type": "boolean"},
    Scalar.BYTES: {"type": "string", "format": "byte"},
    Scalar.TIME: {"type": "string", "format": "date-time"},
    Scalar.MICRO_TIME: {"type": "string", "format": "date-time"},
    Scalar.FIELDS: {"type": "object"},
    Scalar.TEXTS: {"type": "array", "items": {"type": "string"}},
}
_GVK: Final = "x-kubernetes-group-version-kind"
_ACTION: Final = "x-kubernetes-action"
_WRITE: Final = (
    ("dryRun", "string", "All: check everything, change nothing."),
    ("fieldManager", "string", "Name of the program that owns the written fields."),
    ("fieldValidation", "string", "What becomes of unknown and repeated fields: Ignore, Warn or Strict."),
)  # fmt: skip
_FORCE: Final = ("force", "boolean", "Apply takes fields over from other managers.")
_LIST: Final = (
    ("limit", "integer", "At most so many objects."),
    ("continue", "string", "Token of the page before."),
    ("labelSelector", "string", "Only objects with these labels."),
    ("fieldSelector", "string", "Only objects with these fields."),
    ("resourceVersion", "string", "Revision to start at."),
    ("timeoutSeconds", "integer", "End a watch after so many seconds."),
    ("watch", "boolean", "Stream changes instead of listing."),
)
_DELETE: Final = (
    _WRITE[0],
    ("gracePeriodSeconds", "integer", "Seconds until the object goes."),
    ("propagationPolicy", "string", "What becomes of dependent objects."),
)
Parameters = Iterable[tuple[str, str, str]]


# -- schemas ---------------------------------------------------------------------------------------


def _kinds(catalog: Catalog) -> dict[str, list[JsonObject]]:
    """Return the group, version and kind of every message that is one."""
    found: dict[str, list[JsonObject]] = {}
    for one in catalog:
        entry = {"group": one.group, "kind": one.kind, "version": one.version}
        found[one.schema] = [entry]
        listed = {"group": one.group, "kind": one.list_kind, "version": one.version}
        if one.stored:
            found[one.schema + "List"] = [listed]
        for sub in one.subresources:
            name = _sub_schema(one, sub)
            group = one.group if sub.group is None else sub.group
            found.setdefault(
                name, [{"group": group, "kind": sub.kind, "version": sub.version or one.version}]
            )
    groups = [("", "v1"), *(gv for gv in catalog.group_versions() if gv[0])]
    found[META + "DeleteOptions"] = [
        {"group": group, "kind": "DeleteOptions", "version": version} for group, version in groups
    ]
    found[META + "Status"] = [{"group": "", "kind": "Status", "version": "v1"}]
    return found


def _sub_schema(resource: Resource, sub: Subresource) -> str:
    if sub.group is None:
        return resource.schema
    area = sub.group.partition(".")[0]
    return f"io.k8s.api.{area}.{sub.version or resource.version}.{sub.kind}"


def _definition(name: str, kinds: dict[str, list[JsonObject]], ref: str) -> JsonObject:
    message = SCHEMA.message(name)
    properties: JsonObject = {}
    if message.is_kind:
        properties |= _type_meta()
    for field in SCHEMA.fields(name).values():
        properties[field.name] = _property(field, ref)
    found: JsonObject = {"description": message.doc, "type": "object", "properties": properties}
    needed = [one.name for one in SCHEMA.fields(name).values() if one.required]
    if needed:
        found["required"] = needed
    if message.atomic:
        found["x-kubernetes-map-type"] = "atomic"
    if name in kinds:
        found[_GVK] = kinds[name]
    return found


def _type_meta() -> JsonObject:
    return {
        "apiVersion": {"description": "Group and version of this kind.", "type": "string"},
        "kind": {"description": "Kind of this object.", "type": "string"},
    }


def _list_definition(name: str, kinds: dict[str, list[JsonObject]], ref: str) -> JsonObject:
    item = name.removesuffix("List")
    return {
        "description": f"A list of {item.rpartition('.')[2]} objects.",
        "type": "object",
        "required": ["items"],
        "properties": _type_meta()
        | {
            "items": {"description": "The objects.", "type": "array", "items": _ref(item, ref)},
            "metadata": {"description": "Bookkeeping of the list."} | _ref(META + "ListMeta", ref),
        },
        _GVK: kinds[name],
    }


def _ref(name: str, ref: str) -> JsonObject:
    # v3 clients look for descriptions beside the reference, which only allOf permits there.
    found = {"$ref": ref + name}
    return {"default": {}, "allOf": [found]} if ref == _V3_REF else found


def _property(field: Field, ref: str) -> JsonObject:
    one = dict(_SCALARS[field.of]) if isinstance(field.of, Scalar) else _ref(field.of, ref)
    if field.shape is Shape.ONE:
        found = {"description": field.doc} | one
    elif field.shape is Shape.MAP:
        found = {"description": field.doc, "type": "object", "additionalProperties": one}
    else:
        found = {"description": field.doc, "type": "array", "items": one}
        found["x-kubernetes-list-type"] = field.list_type
        if field.map_keys and field.list_type == "map":
            found["x-kubernetes-list-map-keys"] = list(field.map_keys)
        if field.merge_key:
            found["x-kubernetes-patch-merge-key"] = field.merge_key
        if field.merge:
            found["x-kubernetes-patch-strategy"] = "merge"
    if field.enum:
        found["enum"] = list(field.enum)
    if field.default is not None:
        found["default"] = field.default
    return found


def _definitions(resources: Iterable[Resource], catalog: Catalog, ref: str) -> JsonObject:
    kinds = _kinds(catalog)
    roots = {META + "DeleteOptions", META + "Status", META + "ListMeta"}
    lists = set()
    for one in resources:
        roots.add(one.schema)
        roots |= {_sub_schema(one, sub) for sub in one.subresources}
        if one.stored:
            lists.add(one.schema + "List")
    found = {name: _definition(name, kinds, ref) for name in SCHEMA.reachable(roots)}
    found |= {name: _list_definition(name, kinds, ref) for name in lists}
    return dict(sorted(found.items()))


# -- paths -----------------------------------------------------------------------------------------


def _paths(resources: Iterable[Resource], *, version: int) -> JsonObject:
    paths: JsonObject = {}
    for one in resources:
        namespace = "{namespace}" if one.namespaced else ""
        collection = one.list_path(namespace=namespace)
        paths[collection] = _operations(
            one, version, {"get": "list", "post": "create", "delete": "deletecollection"}
        )
        if one.stored and one.namespaced:
            paths[one.list_path()] = _operations(
                one, version, {"get": "list"}, suffix="ForAllNamespaces"
            )
        if "get" in one.verbs:
            paths[collection + "/{name}"] = _operations(
                one, version, {"get": "get", "put": "update", "patch": "patch", "delete": "delete"}
            )
        for sub in one.subresources:
            verbs = {"get": "get", "post": "create", "put": "update", "patch": "patch"}
            paths[f"{collection}/{{name}}/{sub.name}"] = _operations(one, version, verbs, sub=sub)
    return {path: found for path, found in sorted(paths.items()) if found}


def _operations(
    resource: Resource,
    version: int,
    verbs: dict[str, str],
    *,
    sub: Subresource | None = None,
    suffix: str = "",
) -> JsonObject:
    allowed = resource.verbs if sub is None else sub.verbs
    return {
        method: _operation(resource, sub, method, verb, version, suffix)
        for method, verb in verbs.items()
        if verb in allowed
    }


_PARAMETERS: Final[dict[str, Parameters]] = {
    "get": (),
    "list": _LIST,
    "create": _WRITE,
    "update": _WRITE,
    "patch": (*_WRITE, _FORCE),
    "delete": _DELETE,
    "deletecollection": (*_DELETE, *_LIST[:4]),
}


def _operation(
    resource: Resource, sub: Subresource | None, method: str, verb: str, version: int, suffix: str
) -> JsonObject:
    kind = resource.kind if sub is None else sub.kind
    group = resource.group if sub is None or sub.group is None else sub.group
    area = resource.group.partition(".")[0].capitalize() or "Core"
    scope = "Namespaced" if resource.namespaced and not suffix else ""
    tail = "" if sub is None else sub.name.capitalize()
    action = {"create": "post", "update": "put"}.get(verb, verb)
    return {
        "operationId": f"{verb}{area}{resource.version.capitalize()}{scope}{resource.kind}{tail}{suffix}",
        "parameters": [_parameter(*one, version) for one in _PARAMETERS[verb]],
        "responses": {"200": {"description": "OK"}},
        _ACTION: action,
        _GVK: {"group": group, "version": (sub.version if sub else None) or resource.version, "kind": kind},
    }  # fmt: skip


def _parameter(name: str, kind: str, doc: str, version: int) -> JsonObject:
    found: JsonObject = {"name": name, "in": "query", "description": doc}
    typed: JsonObject = {"type": kind, "uniqueItems": True}
    return found | ({"schema": typed} if version == 3 else typed)


# -- documents -------------------------------------------------------------------------------------

_V3_REF: Final = "#/components/schemas/"
_V2_REF: Final = "#/definitions/"


def v3_document(
    group: str, version: str, *, catalog: Catalog = BUILT_IN, server_version: str
) -> JsonObject | None:
    """Return `/openapi/v3/api/v1` or `/openapi/v3/apis/GROUP/VERSION`; None if it is not served."""
    resources = catalog.of_group_version(group, version)
    if not resources:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": _paths(resources, version=3),
        "components": {"schemas": _definitions(resources, catalog, _V3_REF)},
    }


def v3_index(*, catalog: Catalog = BUILT_IN, version: str) -> JsonObject:
    """Return `/openapi/v3`; the hash in a URL changes with its document, which may be cached for ever."""
    paths = {}
    for group, group_version in catalog.group_versions():
        path = f"apis/{group}/{group_version}" if group else f"api/{group_version}"
        document = v3_document(group, group_version, catalog=catalog, server_version=version)
        digest = hashlib.sha256(encode_json(document)).hexdigest()[:32].upper()
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


def v2_document(*, catalog: Catalog = BUILT_IN, server_version: str) -> JsonObject:
    """Return `/openapi/v2` as swagger 2.0."""
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": _paths(catalog, version=2),
        "definitions": _definitions(catalog, catalog, _V2_REF),
    }


# -- v2 in protobuf --------------------------------------------------------------------------------

_METHODS: Final = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}


def v2_protobuf(document: JsonObject) -> bytes:
    """Return `v2_document` in protobuf (`V2_PROTOBUF`)."""
    info = _text(1, document["info"]["title"]) + _text(2, document["info"]["version"])
    paths = b"".join(
        bytes_field(2, _text(1, path) + bytes_field(2, _path_item(item)))
        for path, item in document["paths"].items()
    )
    definitions = b"".join(
        bytes_field(1, _text(1, name) + bytes_field(2, _schema(one)))
        for name, one in document["definitions"].items()
    )
    return (
        _text(1, document["swagger"])
        + bytes_field(2, info)
        + bytes_field(8, paths)
        + bytes_field(9, definitions)
    )


def _text(number: int, text: str) -> bytes:
    return bytes_field(number, text.encode())


def _extensions(number: int, value: JsonObject) -> bytes:
    return b"".join(
        bytes_field(number, _text(1, key) + bytes_field(2, bytes_field(2, _yaml(encode_json(one)))))
        for key, one in value.items()
        if key.startswith("x-")
    )


@functools.lru_cache(maxsize=256)
def _yaml(encoded: bytes) -> bytes:
    # The same few kinds come again and again, and the YAML writer is slow.
    return encode_yaml(json.loads(encoded)).removesuffix(b"...\n")


def _path_item(item: JsonObject) -> bytes:
    return b"".join(
        bytes_field(_METHODS[method], _v2_operation(one)) for method, one in item.items()
    )


def _v2_operation(one: JsonObject) -> bytes:
    out = _text(5, one["operationId"])
    for parameter in one["parameters"]:
        query = (
            _text(2, "query")
            + _text(3, parameter["description"])
            + _text(4, parameter["name"])
            + _text(6, parameter["type"])
        )
        out += bytes_field(8, bytes_field(1, bytes_field(2, bytes_field(3, query))))
    for code, response in one["responses"].items():
        inner = bytes_field(1, _text(1, response["description"]))
        out += bytes_field(9, bytes_field(1, _text(1, code) + bytes_field(2, inner)))
    return out + _extensions(13, one)


def _schema(one: JsonObject) -> bytes:
    out = b""
    if "$ref" in one:
        out += _text(1, one["$ref"])
    if "format" in one:
        out += _text(2, one["format"])
    if "description" in one:
        out += _text(4, one["description"])
    for name in one.get("required", ()):
        out += _text(19, name)
    if "additionalProperties" in one:
        out += bytes_field(21, bytes_field(1, _schema(one["additionalProperties"])))
    if "type" in one:
        out += bytes_field(22, _text(1, one["type"]))
    if "items" in one:
        out += bytes_field(23, bytes_field(1, _schema(one["items"])))
    if "properties" in one:
        named = (
            bytes_field(1, _text(1, name) + bytes_field(2, _schema(below)))
            for name, below in one["properties"].items()
        )
        out += bytes_field(25, b"".join(named))
    return out + _extensions(31, one)
