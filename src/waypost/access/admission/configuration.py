"""Webhooks as the operator configures them: parsed once for each change, in the order in which they are asked.

Source: kube admissionregistration.k8s.io/v1 MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from waypost.access.admission.records import GROUP, Fault
from waypost.access.authz.records import LabelSelector, Requirement
from waypost.base.later import later
from waypost.model.object import Object

if TYPE_CHECKING:
    from cryptography import x509
else:
    x509 = later("cryptography.x509")

log = logging.getLogger(__name__)

MUTATING: Final = "mutatingwebhookconfigurations"
VALIDATING: Final = "validatingwebhookconfigurations"
REVIEW_VERSION: Final = "v1"
MIN_TIMEOUT_S: Final = 1
MAX_TIMEOUT_S: Final = 30
NO_CONDITIONS: Final = "match conditions (CEL expressions) are not supported by this server"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Operations on resources; `*` in a list is everything."""

    operations: frozenset[str]
    groups: frozenset[str]
    versions: frozenset[str]
    resources: frozenset[str]
    """`services`, `services/*`, `*/status`, `*` (no subresources), `*/*` (these as well)."""
    scope: str = "*"
    """`Cluster`, `Namespaced` or `*`."""


class ServiceReference(msgspec.Struct, frozen=True, kw_only=True):
    """A service that answers a webhook."""

    name: str
    namespace: str
    path: str = ""
    port: int = 443

    @property
    def host(self) -> str:
        """The name its certificate must be for."""
        return f"{self.name}.{self.namespace}.svc"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook of one configuration."""

    configuration: str
    name: str
    mutates: bool
    rules: tuple[Rule, ...] = ()
    namespace_selector: LabelSelector = LabelSelector()
    object_selector: LabelSelector = LabelSelector()
    may_fail: bool = False
    """failurePolicy Ignore: what cannot be asked is not asked."""
    timeout_s: float = 10.0
    url: str = ""
    service: ServiceReference | None = None
    ca_pem: bytes = b""
    """Certificates its own is checked against; the system's if empty."""
    dry_run_safe: bool = True
    """Asking it in a dry run changes nothing."""
    reinvoked: bool = False
    """Asked once more when later ones changed the object."""
    problem: str = ""
    """Why it cannot be asked, empty if it can."""


# -- JSON --------------------------------------------------------------------------------------------------------------


class _Expression(msgspec.Struct, frozen=True):
    key: str = ""
    operator: str = ""
    values: tuple[str, ...] | None = None


class _Selector(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[_Expression, ...] | None = None


class _Rule(msgspec.Struct, frozen=True, rename="camel"):
    operations: tuple[str, ...] | None = None
    api_groups: tuple[str, ...] | None = None
    api_versions: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    scope: str | None = None


class _Service(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    path: str | None = None
    port: int | None = None


class _Client(msgspec.Struct, frozen=True, rename="camel"):
    url: str | None = None
    service: _Service | None = None
    ca_bundle: str | None = None


class _Webhook(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    client_config: _Client = _Client()
    rules: tuple[_Rule, ...] | None = None
    failure_policy: str | None = None
    match_policy: str | None = None
    namespace_selector: _Selector | None = None
    object_selector: _Selector | None = None
    side_effects: str | None = None
    timeout_seconds: int | None = None
    admission_review_versions: tuple[str, ...] | None = None
    reinvocation_policy: str | None = None
    match_conditions: tuple[dict[str, Any], ...] | None = None


class _Configuration(msgspec.Struct, frozen=True):
    webhooks: tuple[_Webhook, ...] | None = None


_DECODER: Final = msgspec.json.Decoder(_Configuration)
_EVERYTHING: Final = Rule(
    operations=frozenset("*"), groups=frozenset("*"), versions=frozenset("*"),
    resources=frozenset(("*/*",)),
)  # fmt: skip


def parse_configuration(found: Object, *, mutates: bool) -> tuple[Webhook, ...]:
    """Return the webhooks of a stored configuration.

    One that cannot be read becomes a webhook that is asked about everything and never answers: what was meant to be
    guarded stays guarded until somebody repairs it (configurations themselves are never reviewed).
    """
    try:
        read = _DECODER.decode(found.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        log.error("%s %s cannot be read: %s", found.resource, found.name, exc)
        return (
            Webhook(
                configuration=found.name,
                name=found.name,
                mutates=mutates,
                rules=(_EVERYTHING,),
                problem=f"its configuration cannot be read: {exc}",
            ),
        )
    return tuple(_webhook(found.name, one, mutates=mutates) for one in read.webhooks or ())


def _webhook(configuration: str, one: _Webhook, *, mutates: bool) -> Webhook:
    problems = [fault.message for fault in _faults(one)]
    service = one.client_config.service
    try:
        ca_pem = base64.b64decode(one.client_config.ca_bundle or "", validate=True)
    except (binascii.Error, ValueError):
        ca_pem = b""  # named by _faults
    return Webhook(
        configuration=configuration,
        name=one.name,
        mutates=mutates,
        rules=tuple(map(_rule, one.rules or ())),
        namespace_selector=_selector(one.namespace_selector),
        object_selector=_selector(one.object_selector),
        may_fail=one.failure_policy == "Ignore",
        timeout_s=float(min(max(one.timeout_seconds or 10, MIN_TIMEOUT_S), MAX_TIMEOUT_S)),
        url=one.client_config.url or "",
        service=None
        if service is None
        else ServiceReference(
            name=service.name,
            namespace=service.namespace,
            path=service.path or "",
            port=service.port or 443,
        ),
        ca_pem=ca_pem,
        dry_run_safe=one.side_effects in ("None", "NoneOnDryRun"),
        reinvoked=one.reinvocation_policy == "IfNeeded",
        problem="; ".join(problems),
    )


def _rule(one: _Rule) -> Rule:
    return Rule(
        operations=frozenset(one.operations or ()),
        groups=frozenset(one.api_groups or ()),
        versions=frozenset(one.api_versions or ()),
        resources=frozenset(one.resources or ()),
        scope=one.scope or "*",
    )


def _selector(one: _Selector | None) -> LabelSelector:
    if one is None:
        return LabelSelector()
    return LabelSelector(
        match_labels=one.match_labels or {},
        match_expressions=tuple(
            Requirement(key=e.key, operator=e.operator, values=e.values or ())
            for e in one.match_expressions or ()
        ),
    )


# -- faults ------------------------------------------------------------------------------------------------------------


def configuration_faults(document: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return what is wrong with a configuration that somebody wants to store: the parts this server relies on."""
    try:
        read = msgspec.convert(document, _Configuration)
    except msgspec.ValidationError as exc:
        return (Fault("webhooks", "FieldValueInvalid", f"Invalid value: {exc}"),)
    found: list[Fault] = []
    names: set[str] = set()
    for n, one in enumerate(read.webhooks or ()):
        if one.name in names:
            found.append(
                Fault(f"[{n}].name", "FieldValueDuplicate", f'Duplicate value: "{one.name}"')
            )
        names.add(one.name)
        found += [
            msgspec.structs.replace(fault, field=f"[{n}].{fault.field}") for fault in _faults(one)
        ]
    return tuple(msgspec.structs.replace(one, field="webhooks" + one.field) for one in found)


def _faults(one: _Webhook) -> Iterable[Fault]:
    yield from _client_faults(one.client_config)
    timeout_s = one.timeout_seconds
    if timeout_s is not None and not MIN_TIMEOUT_S <= timeout_s <= MAX_TIMEOUT_S:
        yield _invalid(
            "timeoutSeconds", timeout_s, "the timeout value must be between 1 and 30 seconds"
        )
    if REVIEW_VERSION not in (one.admission_review_versions or ()):
        yield _invalid(
            "admissionReviewVersions",
            list(one.admission_review_versions or ()),
            f"must include at least one of {REVIEW_VERSION}",
        )
    if one.match_conditions:
        yield Fault("matchConditions", "FieldValueForbidden", f"Forbidden: {NO_CONDITIONS}")


def _client_faults(client: _Client) -> Iterable[Fault]:
    if (client.url is None) == (client.service is None):
        yield Fault(
            "clientConfig",
            "FieldValueRequired",
            "Required value: exactly one of url or service is required",
        )
    if client.url is not None:
        problem = _url_problem(client.url)
        if problem:
            yield _invalid("clientConfig.url", f'"{client.url}"', problem)
    if client.service is not None and not client.service.name:
        yield Fault(
            "clientConfig.service.name",
            "FieldValueRequired",
            "Required value: service name is required",
        )
    if client.ca_bundle:
        try:
            x509.load_pem_x509_certificates(base64.b64decode(client.ca_bundle, validate=True))
        except ValueError as exc:
            yield _invalid(
                "clientConfig.caBundle", "<bytes>", f"unable to load root certificates: {exc}"
            )


def _url_problem(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as exc:
        return f"url must be a valid URL: {exc}; desired format: https://host[/path]"
    if parts.scheme != "https":
        return "'https' is the only allowed URL scheme; desired format: https://host[/path]"
    if not host:
        return "host must be specified; desired format: https://host[/path]"
    if parts.username or parts.password:
        return "user information is not permitted in the URL"
    if parts.fragment:
        return "fragments are not permitted in the URL"
    return "query parameters are not permitted in the URL" if parts.query else ""


def _invalid(field: str, value: object, detail: str) -> Fault:
    return Fault(field, "FieldValueInvalid", f"Invalid value: {value}: {detail}")


# -- the webhooks of now -----------------------------------------------------------------------------------------------


class Objects(Protocol):
    """What is read of the view."""

    def object(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        """Return one object."""
        ...

    def object_table(self, group: str, resource: str) -> Mapping[tuple[str, str], Object]:
        """Return the objects of a resource."""
        ...


class Webhooks:
    """The webhooks of one kind of configuration, as of now."""

    def __init__(self, objects: Objects, resource: str) -> None:
        self._objects = objects
        self._resource = resource
        self._mutates = resource == MUTATING
        self._known: dict[str, tuple[Object, tuple[Webhook, ...]]] = {}
        self._all: tuple[Webhook, ...] = ()

    def now(self) -> tuple[Webhook, ...]:
        """Return all webhooks: configurations by name, and in each their own order."""
        table = self._objects.object_table(GROUP, self._resource)
        if not table:
            return ()
        known = self._known
        # Stored records are frozen and replaced when they change, so the same record is the same configuration.
        if len(table) != len(known) or any(
            known.get(key[1], _NONE)[0] is not one for key, one in table.items()
        ):
            self._known = {
                name: known[name]
                if name in known and known[name][0] is one
                else (one, parse_configuration(one, mutates=self._mutates))
                for (_, name), one in sorted(table.items())
            }
            self._all = tuple(hook for _, hooks in self._known.values() for hook in hooks)
        return self._all


_NONE: Final[tuple[Object | None, tuple[Webhook, ...]]] = (None, ())
