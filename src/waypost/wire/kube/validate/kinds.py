"""What the objects of each kind must look like, beyond their metadata. RBAC: `access.authz.validate`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any, Final

from waypost.wire.kube.status import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    too_long,
    unsupported,
)
from waypost.wire.kube.validate.names import config_key_faults, label_faults, subdomain_faults
from waypost.wire.kube.values import JsonObject, encode_json, equal, quoted_list

Errors = Iterator[FieldError]

MAX_DATA_BYTES: Final = 1024 * 1024
_MIN_DURATION_S: Final = 600
_MAX_TOKEN_S: Final = 2**32
_NEEDED_DATA: Final = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_ACCOUNT_TYPE: Final = "kubernetes.io/service-account-token"
_ACCOUNT_NAME: Final = "kubernetes.io/service-account.name"
USAGES: Final = (
    "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment",
    "decipher only", "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel",
    "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime",
    "server auth", "signing", "timestamping",
)  # fmt: skip
_OPERATIONS: Final = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")


def _bytes_of(data: dict[str, str]) -> int:
    return sum(len(base64.b64decode(value)) for value in data.values())


def _data_keys(data: dict[str, str], field: str) -> Errors:
    for key in data:
        for fault in config_key_faults(key):
            yield invalid_value(f"{field}[{key}]", key, fault)


def _secret(value: JsonObject) -> Errors:
    data = value.get("data") or {}
    yield from _data_keys(data, "data")
    if _bytes_of(data) > MAX_DATA_BYTES:
        yield too_long("data", limit=MAX_DATA_BYTES)
    kind = value.get("type", "")
    if kind == _ACCOUNT_TYPE:
        annotations = value["metadata"].get("annotations") or {}
        if not annotations.get(_ACCOUNT_NAME):
            yield required(f"metadata.annotations[{_ACCOUNT_NAME}]")
    for key in _NEEDED_DATA.get(kind, ()):
        if key not in data:
            yield required(f"data[{key}]")
    if kind == "kubernetes.io/basic-auth" and not {"username", "password"} & data.keys():
        yield required("data[username]")
        yield required("data[password]")


def _secret_update(live: JsonObject, value: JsonObject) -> Errors:
    old, new = live.get("type", ""), value.get("type", "")
    if new and new != old:
        yield invalid_value("type", new, "field is immutable")
    yield from _frozen_data(live, value, ("data",))


def _config_map(value: JsonObject) -> Errors:
    data, binary = value.get("data") or {}, value.get("binaryData") or {}
    yield from _data_keys(data, "data")
    for key in data:
        if key in binary:
            yield invalid_value(f"data[{key}]", key, "duplicate of key present in binaryData")
    yield from _data_keys(binary, "binaryData")
    size = sum(len(one.encode()) for one in data.values()) + _bytes_of(binary)
    if size > MAX_DATA_BYTES:
        yield too_long("", limit=MAX_DATA_BYTES)


def _config_map_update(live: JsonObject, value: JsonObject) -> Errors:
    yield from _frozen_data(live, value, ("data", "binaryData"))


def _frozen_data(live: JsonObject, value: JsonObject, fields: tuple[str, ...]) -> Errors:
    if not live.get("immutable"):
        return
    text = "field is immutable when `immutable` is set"
    if not value.get("immutable"):
        yield forbidden_field("immutable", text)
    for field in fields:
        if not equal(live.get(field), value.get(field)):
            yield forbidden_field(field, text)


def _lease(value: JsonObject) -> Errors:
    spec = value.get("spec") or {}
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        yield invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    if transitions is not None and transitions < 0:
        yield invalid_value(
            "spec.leaseTransitions", transitions, "must be greater than or equal to 0"
        )


# -- certificates ----------------------------------------------------------------------------------


def _csr(value: JsonObject) -> Errors:
    spec = value.get("spec") or {}
    if not spec.get("request"):
        yield invalid_value("spec.request", "", "PEM block type must be CERTIFICATE REQUEST")
    elif b"-----BEGIN CERTIFICATE REQUEST-----" not in _decoded(spec["request"]):
        yield _unquoted(
            "spec.request", _shown(spec["request"]), "PEM block type must be CERTIFICATE REQUEST"
        )
    usages = spec.get("usages") or []
    if not usages:
        yield required("spec.usages", "usages is required")
    for at, usage in enumerate(usages):
        if usage not in USAGES:
            yield unsupported(f"spec.usages[{at}]", usage, USAGES)
        elif usage in usages[:at]:
            yield duplicate(f"spec.usages[{at}]", usage)
    yield from _signer(spec.get("signerName") or "")
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < _MIN_DURATION_S:
        yield invalid_value(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        )
    yield from csr_condition_errors(value)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _shown(text: str) -> str:
    return "[" + " ".join(str(byte) for byte in _decoded(text)[:64]) + "]"


def _signer(name: str) -> Errors:
    field = "spec.signerName"
    if not name:
        yield required(field)
        return
    domain, slash, path = name.partition("/")
    if not slash or "/" in path:
        yield invalid_value(
            field,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        )
        return
    for fault in subdomain_faults(domain):
        yield invalid_value(
            field,
            domain,
            f'validating label "{domain}": {fault}',
        )
    if "." not in domain:
        yield invalid_value(
            field, domain, "should be a domain with at least two segments separated by dots"
        )
    for fault in subdomain_faults(path):
        yield invalid_value(field, path, f'validating label "{path}": {fault}')


def csr_condition_errors(value: JsonObject) -> Errors:
    """Yield the faults of a request's conditions."""
    field = "status.conditions"
    types: list[str] = []
    for at, one in enumerate((value.get("status") or {}).get("conditions") or ()):
        kind, status = one.get("type") or "", one.get("status") or ""
        here = f"{field}[{at}]"
        if not kind:
            yield required(f"{here}.type")
        if not status:
            yield required(f"{here}.status")
        elif kind in ("Approved", "Denied", "Failed"):
            if status != "True":
                yield unsupported(f"{here}.status", status, ("True",))
        elif status not in ("True", "False", "Unknown"):
            yield unsupported(f"{here}.status", status, ("True", "False", "Unknown"))
        if kind and kind in types:
            yield duplicate(f"{here}.type", kind)
        types.append(kind)
    if "Approved" in types and "Denied" in types:
        at = max(types.index("Approved"), types.index("Denied"))
        yield invalid_value(
            f"{field}[{at}].type",
            types[at],
            "Approved and Denied conditions are mutually exclusive",
        )


# -- reviews ---------------------------------------------------------------------------------------


def token_request_errors(value: JsonObject) -> Errors:
    """Yield the faults of a TokenRequest with defaults."""
    seconds = (value.get("spec") or {}).get("expirationSeconds")
    field = "spec.expirationSeconds"
    if seconds is None:
        return
    if seconds < _MIN_DURATION_S:
        yield invalid_value(field, seconds, "may not specify a duration less than 10 minutes")
    if seconds > _MAX_TOKEN_S:
        yield invalid_value(field, seconds, "may not specify a duration larger than 2^32 seconds")


def _one_attribute(spec: JsonObject) -> Errors:
    on_resource, on_path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if on_resource is not None and on_path is not None:
        yield invalid_value(
            "spec.nonResourceAttributes",
            _Shown(on_path),
            "cannot be specified in combination with resourceAttributes",
        )
    if on_resource is None and on_path is None:
        yield _unquoted(
            "spec.resourceAttributes",
            "null",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )


def _unquoted(field: str, shown: str, detail: str) -> FieldError:
    return FieldError(field, "FieldValueInvalid", f"Invalid value: {shown}: {detail}")


class _Shown:
    """Shows an object as newer servers print values in errors."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        return encode_json(self.value).decode()


def _self_review(value: JsonObject) -> Errors:
    yield from _one_attribute(value.get("spec") or {})


def _subject_review(value: JsonObject) -> Errors:
    spec = value.get("spec") or {}
    yield from _one_attribute(spec)
    if not spec.get("user") and not spec.get("groups"):
        yield invalid_value("spec.user", "", "at least one of user or group must be specified")


def _local_review(value: JsonObject) -> Errors:
    spec = value.get("spec") or {}
    yield from _subject_review(value)
    namespace = (value.get("metadata") or {}).get("namespace", "")
    asked = (spec.get("resourceAttributes") or {}).get("namespace", "")
    if spec.get("resourceAttributes") is not None and asked != namespace:
        yield invalid_value(
            "spec.resourceAttributes.namespace", asked, "must match metadata.namespace"
        )
    if spec.get("nonResourceAttributes") is not None:
        yield invalid_value(
            "spec.nonResourceAttributes",
            _Shown(spec["nonResourceAttributes"]),
            "disallowed on this kind of request",
        )


# -- webhooks --------------------------------------------------------------------------------------


def _webhooks(value: JsonObject) -> Errors:
    names: set[str] = set()
    for at, one in enumerate(value.get("webhooks") or ()):
        field = f"webhooks[{at}]"
        name = one.get("name") or ""
        yield from _webhook_name(name, f"{field}.name")
        if name in names:
            yield duplicate(f"{field}.name", name)
        names.add(name)
        for part, rule in enumerate(one.get("rules") or ()):
            yield from _webhook_rule(rule, f"{field}.rules[{part}]")
        yield from _webhook_choices(one, field)
        yield from _webhook_client(one.get("clientConfig") or {}, f"{field}.clientConfig")


def _webhook_name(name: str, field: str) -> Errors:
    if not name:
        yield required(field)
        return
    for fault in subdomain_faults(name):
        yield invalid_value(field, name, fault)
    if len(name.split(".")) < 3:
        yield invalid_value(
            field, name, "should be a domain with at least three segments separated by dots"
        )


def _webhook_choices(one: JsonObject, field: str) -> Errors:
    for key, allowed in (
        ("failurePolicy", ("Fail", "Ignore")),
        ("matchPolicy", ("Equivalent", "Exact")),
        ("reinvocationPolicy", ("IfNeeded", "Never")),
    ):
        found = one.get(key)
        if found is not None and found not in allowed:
            yield unsupported(f"{field}.{key}", found, allowed)
    side = one.get("sideEffects")
    if side is None:
        yield required(f"{field}.sideEffects", "must specify one of None, NoneOnDryRun")
    elif side not in ("None", "NoneOnDryRun"):
        yield unsupported(f"{field}.sideEffects", side, ("None", "NoneOnDryRun"))
    seconds = one.get("timeoutSeconds")
    if seconds is not None and not 1 <= seconds <= 30:
        yield invalid_value(
            f"{field}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds"
        )
    versions = one.get("admissionReviewVersions") or []
    if not versions:
        yield required(f"{field}.admissionReviewVersions", "must specify one of v1, v1beta1")
    elif "v1" not in versions:
        text = "must include at least one of v1, v1beta1"
        yield _unquoted(f"{field}.admissionReviewVersions", quoted_list(versions), text)


def _webhook_rule(rule: JsonObject, field: str) -> Errors:
    for key in ("apiGroups", "apiVersions", "resources"):
        found = rule.get(key) or []
        if not found:
            yield required(f"{field}.{key}")
        elif key != "resources" and "*" in found and len(found) > 1:
            yield _unquoted(
                f"{field}.{key}",
                quoted_list(found),
                "if '*' is present, must not specify other API groups"
                if key == "apiGroups"
                else "if '*' is present, must not specify other API versions",
            )
    operations = rule.get("operations") or []
    if not operations:
        yield required(f"{field}.operations")
    for at, one in enumerate(operations):
        if one not in _OPERATIONS:
            yield unsupported(f"{field}.operations[{at}]", one, _OPERATIONS)
    scope = rule.get("scope")
    if scope is not None and scope not in ("*", "Cluster", "Namespaced"):
        yield unsupported(f"{field}.scope", scope, ("*", "Cluster", "Namespaced"))


def _webhook_client(client: JsonObject, field: str) -> Errors:
    url, service = client.get("url"), client.get("service")
    if (url is None) == (service is None):
        yield required(field, "exactly one of url or service is required")
    if url is not None:
        if not url.startswith("https://"):
            scheme = url.partition("://")[0] if "://" in url else ""
            yield invalid_value(
                f"{field}.url",
                scheme,
                "'https' is the only allowed URL scheme; desired format: https://host[/path]",
            )
        elif not url.removeprefix("https://").partition("/")[0]:
            yield invalid_value(
                f"{field}.url", "", "host must be specified; desired format: https://host[/path]"
            )
    if service is not None:
        for key in ("namespace", "name"):
            if not service.get(key):
                yield required(f"{field}.service.{key}", f"service {key} is required")
            else:
                for fault in label_faults(service[key]):
                    yield invalid_value(f"{field}.service.{key}", service[key], fault)
        port = service.get("port", 443)
        if not 1 <= port <= 65535:
            yield invalid_value(
                f"{field}.service.port",
                port,
                "port is not valid: must be between 1 and 65535, inclusive",
            )


ON_WRITE: Final[dict[str, Callable[[JsonObject], Errors]]] = {
    "Secret": _secret,
    "ConfigMap": _config_map,
    "Lease": _lease,
    "CertificateSigningRequest": _csr,
    "MutatingWebhookConfiguration": _webhooks,
    "ValidatingWebhookConfiguration": _webhooks,
    "SelfSubjectAccessReview": _self_review,
    "SubjectAccessReview": _subject_review,
    "LocalSubjectAccessReview": _local_review,
}
"""Rules for every write, by kind."""

ON_UPDATE: Final[dict[str, Callable[[JsonObject, JsonObject], Errors]]] = {
    "Secret": _secret_update,
    "ConfigMap": _config_map_update,
}
"""Rules that compare with what is stored, by kind."""
