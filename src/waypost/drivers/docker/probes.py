"""The checks that `SERVICE_CHECK_…` asks for. Pure.

The first row of Registrator's table that has a value gives the check, in its order: HTTP, HTTPS, CMD, SCRIPT,
TTL, TCP, GRPC; after these our own: ARGS, DOCKER. More checks are numbered: `SERVICE_CHECK_1_TCP=yes`,
`SERVICE_CHECK_1_INTERVAL=2s`. A value that is no good costs that value (or that check), never the instance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from waypost.base.duration import parse_ns
from waypost.base.errors import Malformed
from waypost.drivers.docker.labels import has_control
from waypost.model.catalog import CRITICAL, PASSING, WARNING, Check, CheckDefinition

DEFAULT_INTERVAL_NS: Final = 10 * 10**9
_DURATION_MAX_CHARS: Final = 64
HEALTH_CHECK_PREFIX: Final = "docker-health:"

_NUMBERED = re.compile(r"check_([0-9]{1,4})_(.+)\Z")
_METHOD = re.compile(r"[A-Za-z]{1,20}\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The instance that is checked."""

    node: str
    service_id: str
    service_name: str
    service_tags: tuple[str, ...]
    address: str
    port: int
    exposed_port: int
    container_id: str


Say = Callable[[str], None]


def authority(address: str, port: int) -> str:
    """Return `address:port`, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def checks(values: Mapping[str, str], target: Target, say: Say) -> tuple[Check, ...]:
    """Return the checks of one instance; `say` is told what had to be ignored and why."""
    groups: dict[int, dict[str, str]] = {}
    for key, value in values.items():
        numbered = _NUMBERED.match(key)
        if numbered is not None:
            groups.setdefault(int(numbered.group(1)), {})[numbered.group(2)] = value
        elif key.startswith("check_"):
            groups.setdefault(-1, {})[key.removeprefix("check_")] = value
    made: list[Check] = []
    for number, group in sorted(groups.items()):
        found = _definition(group, target, say)
        if found is None:
            continue
        kind, definition = found
        suffix = "" if number < 0 else f":{number}"
        status = group.get("initial_status", "") or CRITICAL
        if status not in (PASSING, WARNING, CRITICAL):
            say(f"CHECK_INITIAL_STATUS {status!r} is not passing, warning or critical; ignored")
            status = CRITICAL
        made.append(
            Check(
                node=target.node,
                check_id=f"service:{target.service_id}{suffix}",
                name=f"Service '{target.service_name}' check",
                status=status,
                service_id=target.service_id,
                service_name=target.service_name,
                service_tags=target.service_tags,
                type=kind,
                definition=definition,
                owner="docker",
            )
        )
    return tuple(made)


def _definition(
    group: Mapping[str, str], target: Target, say: Say
) -> tuple[str, CheckDefinition] | None:
    for key, (kind, build) in _ROWS.items():
        if not group.get(key):
            continue
        try:
            definition = build(group[key], group, target)
        except Malformed as exc:
            say(f"CHECK_{key.upper()} ignored: {exc}")
            return None
        return kind, _common(definition, group, say)
    return None


def _common(definition: CheckDefinition, group: Mapping[str, str], say: Say) -> CheckDefinition:
    interval_ns = _duration(group, "interval", say)
    timed = not definition.ttl_ns
    return msgspec.structs.replace(
        definition,
        interval_ns=(interval_ns or DEFAULT_INTERVAL_NS) if timed else 0,
        timeout_ns=_duration(group, "timeout", say) if timed else 0,
        deregister_critical_service_after_ns=_duration(group, "deregister_after", say),
        success_before_passing=_count(group, "success_before_passing", say),
        failures_before_critical=_count(group, "failures_before_critical", say),
    )


def _duration(group: Mapping[str, str], key: str, say: Say) -> int:
    text = group.get(key, "")
    if not text:
        return 0
    try:
        value = _parse_ns(text)
    except Malformed as exc:
        say(f"CHECK_{key.upper()} ignored: {exc}")
        return 0
    if value <= 0:
        say(f"CHECK_{key.upper()} ignored: {text!r} is not more than zero")
        return 0
    return value


def _parse_ns(text: str) -> int:
    if len(text) > _DURATION_MAX_CHARS:
        raise Malformed(f"a duration of {len(text)} characters")
    return parse_ns(text)


def _count(group: Mapping[str, str], key: str, say: Say) -> int:
    text = group.get(key, "")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        say(f"CHECK_{key.upper()} ignored: {text!r} is not a number")
        return 0
    return int(text)


def _url(scheme: str, path: str, target: Target) -> str:
    if has_control(path) or " " in path:
        raise Malformed(f"{path!r} has characters that no URL may have")
    slash = "" if path.startswith("/") else "/"
    return f"{scheme}://{authority(target.address, target.port)}{slash}{path}"


def _http(path: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    return CheckDefinition(
        http=_url("http", path, target),
        method=_method(group.get("http_method", "")),
        header=_header(group.get("header", "")),
        body=group.get("body", ""),
    )


def _https(path: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    return CheckDefinition(
        http=_url("https", path, target),
        method=_method(group.get("https_method", "") or group.get("http_method", "")),
        header=_header(group.get("header", "")),
        body=group.get("body", ""),
        tls_skip_verify=bool(group.get("tls_skip_verify")),
    )


def _method(text: str) -> str:
    if text and not _METHOD.match(text):
        raise Malformed(f"method {text!r}")
    return text.upper()


def _header(text: str) -> dict[str, tuple[str, ...]] | None:
    r"""Return the headers of `Name: value, Name: value` (`\,` is a comma) or of a JSON object."""
    if not text:
        return None
    pairs: list[tuple[str, str]] = []
    if text.lstrip().startswith("{"):
        try:
            given = msgspec.json.decode(text, type=dict[str, str | list[str]])
        except msgspec.MsgspecError as exc:
            raise Malformed(f"header {text!r}: {exc}") from exc
        for name, value in given.items():
            pairs += [(name, one) for one in ([value] if isinstance(value, str) else value)]
    else:
        for item in re.split(r"(?<!\\),", text):
            name, sep, value = item.replace("\\,", ",").partition(":")
            if not sep:
                raise Malformed(f"header {item.strip()!r} is not Name: value")
            pairs.append((name.strip(), value.strip()))
    out: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        if not _HEADER_NAME.match(name) or has_control(value):
            raise Malformed(f"header {name!r} has characters that no header may have")
        out[name] = (*out.get(name, ()), value)
    return out


def _cmd(command: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    # The helper script of the Consul image that Registrator's documentation used.
    return CheckDefinition(
        args=("check-cmd", target.container_id[:12], str(target.exposed_port), command)
    )


def _script(script: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    # Registrator hands the whole line to Consul as one program name, which works for no script with an
    # argument; what was meant is a shell line. Address and port are validated, so nothing breaks out.
    line = script.replace("$SERVICE_IP", target.address).replace("$SERVICE_PORT", str(target.port))
    return CheckDefinition(args=("/bin/sh", "-c", line))


def _args(text: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    return CheckDefinition(args=_argv(text))


def _docker(text: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    args = _argv(text) if text.lstrip().startswith("[") else ("/bin/sh", "-c", text)
    return CheckDefinition(docker_container_id=target.container_id, args=args)


def _argv(text: str) -> tuple[str, ...]:
    try:
        args = msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.MsgspecError as exc:
        raise Malformed(f"want a JSON list such as {json.dumps(['prog', 'arg'])}: {exc}") from exc
    if not args:
        raise Malformed("the list is empty")
    return args


def _ttl(text: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    ttl_ns = _parse_ns(text)
    if ttl_ns <= 0:
        raise Malformed(f"{text!r} is not more than zero")
    return CheckDefinition(ttl_ns=ttl_ns)


def _tcp(text: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    return CheckDefinition(tcp=authority(target.address, target.port))


def _grpc(text: str, group: Mapping[str, str], target: Target) -> CheckDefinition:
    use_tls = bool(group.get("grpc_use_tls"))
    return CheckDefinition(
        grpc=authority(target.address, target.port),
        grpc_use_tls=use_tls,
        tls_skip_verify=use_tls and bool(group.get("tls_skip_verify")),
    )


_Build = Callable[[str, Mapping[str, str], Target], CheckDefinition]
_ROWS: dict[str, tuple[str, _Build]] = {
    "http": ("http", _http),
    "https": ("http", _https),
    "cmd": ("script", _cmd),
    "script": ("script", _script),
    "ttl": ("ttl", _ttl),
    "tcp": ("tcp", _tcp),
    "grpc": ("grpc", _grpc),
    "args": ("script", _args),
    "docker": ("docker", _docker),
}
"""In the order in which they are tried."""
