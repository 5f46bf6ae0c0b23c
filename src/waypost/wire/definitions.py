"""Service and check definitions of configuration files, turned into bodies of the agent's API.

A file's keys are snake_case, the API's are not; the table below is the whole mapping. The API's own spelling is
taken in files too, since people copy definitions from one to the other. Source: Consul service and check
definitions 1.8; the error texts are those of Consul's configuration reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from waypost.base.errors import Malformed
from waypost.wire.config_file import read_file

Definition = dict[str, Any]
_Convert = Callable[[Any, str], Any]

_GO_TYPES: Final = {
    str: "string",
    bool: "bool",
    int: "float64",
    float: "float64",
    list: "[]interface {}",
}


class _Problems:
    """What is wrong with one file; all of it is told at once."""

    def __init__(self) -> None:
        self.unknown_keys: list[str] = []
        self.wrong_types: list[str] = []

    def raise_for(self, name: str) -> None:
        """Raise Malformed if there are any."""
        if self.unknown_keys:
            count = len(self.unknown_keys)
            lines = "".join(f"\t* invalid config key {key}\n" for key in self.unknown_keys)
            plural = "s" if count > 1 else ""
            raise Malformed(f"failed to parse {name}: {count} error{plural} occurred:\n{lines}")
        if self.wrong_types:
            lines = "\n".join(f"* {line}" for line in self.wrong_types)
            raise Malformed(
                f"failed to parse {name}: {len(self.wrong_types)} error(s) decoding:\n\n{lines}"
            )


class _Reader:
    """Converts the definitions of one file, collecting what is wrong."""

    def __init__(self) -> None:
        self.problems = _Problems()

    def text(self, value: Any, where: str) -> Any:
        return self._of(value, where, str, "string")

    def number(self, value: Any, where: str) -> Any:
        if isinstance(value, bool):
            self._wrong(value, where, "int")
        return self._of(value, where, int, "int")

    def truth(self, value: Any, where: str) -> Any:
        return self._of(value, where, bool, "bool")

    def texts(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list):
            self._wrong(value, where, "[]string")
            return []
        return [self.text(item, f"{where}[{place}]") for place, item in enumerate(value)]

    def text_map(self, value: Any, where: str) -> Any:
        return {
            key: self.text(item, f"{where}.{key}")
            for key, item in self._block(value, where).items()
        }

    def header(self, value: Any, where: str) -> Any:
        return {
            key: self.texts(item, f"{where}.{key}")
            for key, item in self._block(value, where).items()
        }

    def addresses(self, value: Any, where: str) -> Any:
        block = self._block(value, where)
        return {key: self.read(item, f"{where}.{key}", _ADDRESS) for key, item in block.items()}

    def weights(self, value: Any, where: str) -> Any:
        return self.read(value, where, _WEIGHTS)

    def check(self, value: Any, where: str) -> Any:
        if isinstance(value, list) and len(value) > 1:
            return self.checks(value, where)
        return self.read(value, where, _CHECK)

    def checks(self, value: Any, where: str) -> Any:
        items = value if isinstance(value, list) else [value]
        return [self.read(item, f"{where}[{place}]", _CHECK) for place, item in enumerate(items)]

    def camel(self, value: Any, where: str) -> Any:
        """Convert a block whose keys are only respelt: `proxy`, `connect`."""
        if isinstance(value, list):
            return [self.camel(item, f"{where}[{place}]") for place, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        return {
            _camel(key): item if key.lower() in ("config", "meta") else self.camel(item, where)
            for key, item in value.items()
        }

    def read(self, value: Any, where: str, keys: Mapping[str, tuple[str, str]]) -> Definition:
        """Return one block in the API's spelling."""
        out: Definition = {}
        for key, item in self._block(value, where).items():
            known = keys.get(key) or keys.get(_folded(key, keys))
            if known is None:
                self.problems.unknown_keys.append(f"{where}.{key}")
                continue
            name, kind = known
            convert: _Convert = getattr(self, kind)
            out[name] = convert(item, f"{where}.{key}")
        return out

    def _block(self, value: Any, where: str) -> dict[str, Any]:
        # HCL writes a block, and reads it as a list of one.
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            return value
        self._wrong(value, where, "map")
        return {}

    def _of(self, value: Any, where: str, kind: type, name: str) -> Any:
        if not isinstance(value, kind):
            self._wrong(value, where, name)
        return value

    def _wrong(self, value: Any, where: str, expected: str) -> None:
        got = _GO_TYPES.get(type(value), "map[string]interface {}")
        line = f"'{where}' expected type '{expected}', got unconvertible type '{got}'"
        if line not in self.problems.wrong_types:
            self.problems.wrong_types.append(line)


_WEIGHTS: Final = {"passing": ("Passing", "number"), "warning": ("Warning", "number")}
_ADDRESS: Final = {"address": ("Address", "text"), "port": ("Port", "number")}
_CHECK: Final = {
    "id": ("CheckID", "text"),
    "check_id": ("CheckID", "text"),
    "name": ("Name", "text"),
    "notes": ("Notes", "text"),
    "status": ("Status", "text"),
    "http": ("HTTP", "text"),
    "method": ("Method", "text"),
    "header": ("Header", "header"),
    "body": ("Body", "text"),
    "tls_skip_verify": ("TLSSkipVerify", "truth"),
    "tcp": ("TCP", "text"),
    "grpc": ("GRPC", "text"),
    "grpc_use_tls": ("GRPCUseTLS", "truth"),
    "args": ("Args", "texts"),
    "script_args": ("Args", "texts"),
    "shell": ("Shell", "text"),
    "docker_container_id": ("DockerContainerID", "text"),
    "ttl": ("TTL", "text"),
    "alias_node": ("AliasNode", "text"),
    "alias_service": ("AliasService", "text"),
    "interval": ("Interval", "text"),
    "timeout": ("Timeout", "text"),
    "success_before_passing": ("SuccessBeforePassing", "number"),
    "failures_before_critical": ("FailuresBeforeCritical", "number"),
    "deregister_critical_service_after": ("DeregisterCriticalServiceAfter", "text"),
    "output_max_size": ("OutputMaxSize", "number"),
}
_NODE_CHECK: Final = {
    **_CHECK,
    "id": ("ID", "text"),
    "service_id": ("ServiceID", "text"),
    "token": ("Token", "text"),
}
"""A check outside of a service: there the API calls the id `ID`."""
_SERVICE: Final = {
    "id": ("ID", "text"),
    "name": ("Name", "text"),
    "tags": ("Tags", "texts"),
    "address": ("Address", "text"),
    "port": ("Port", "number"),
    "meta": ("Meta", "text_map"),
    "tagged_addresses": ("TaggedAddresses", "addresses"),
    "weights": ("Weights", "weights"),
    "enable_tag_override": ("EnableTagOverride", "truth"),
    "token": ("Token", "text"),
    "kind": ("Kind", "text"),
    "connect": ("Connect", "camel"),
    "proxy": ("Proxy", "camel"),
    "check": ("Check", "check"),
    "checks": ("Checks", "checks"),
}
_WORDS: Final = {
    "id": "ID",
    "http": "HTTP",
    "tcp": "TCP",
    "grpc": "GRPC",
    "ttl": "TTL",
    "tls": "TLS",
}


def _folded(key: str, keys: Mapping[str, tuple[str, str]]) -> str:
    """Return the table's key that is spelt like the API's `key` (`EnableTagOverride`), or ""."""
    flat = key.replace("_", "").lower()
    return next((known for known in keys if known.replace("_", "") == flat), "")


def _camel(key: str) -> str:
    if "_" not in key and not key.islower():
        return key
    return "".join(_WORDS.get(word, word[:1].upper() + word[1:]) for word in key.split("_"))


def definitions(values: Mapping[str, Any], *, name: str) -> list[Definition]:
    """Return the API bodies of the services that a file's values define, those of `services` first.

    Keys of the file that are no services are left alone: a file may be a whole agent configuration. Raises
    Malformed that names the file and every wrong key, or every wrong type.
    """
    reader = _Reader()
    found: list[Definition] = []
    for wanted in ("services", "service"):
        for key, value in values.items():
            if key.lower() != wanted:
                continue
            blocks = value if isinstance(value, list) else [value]
            for place, block in enumerate(blocks):
                where = f"{wanted}[{place}]" if wanted == "services" or len(blocks) > 1 else wanted
                body = reader.read(block, where, _SERVICE)
                check = body.get("Check")
                if isinstance(check, list):
                    body["Checks"] = [*body.get("Checks", []), *body.pop("Check")]
                found.append(body)
    reader.problems.raise_for(name)
    return found


def check_definitions(values: Mapping[str, Any], *, name: str) -> list[Definition]:
    """Return the API bodies of the checks that a file's values define outside of services. Raises Malformed."""
    reader = _Reader()
    found: list[Definition] = []
    for wanted in ("checks", "check"):
        for key, value in values.items():
            if key.lower() != wanted:
                continue
            blocks = value if isinstance(value, list) else [value]
            for place, block in enumerate(blocks):
                where = f"{wanted}[{place}]" if wanted == "checks" or len(blocks) > 1 else wanted
                found.append(reader.read(block, where, _NODE_CHECK))
    reader.problems.raise_for(name)
    return found


def read_definitions(path: Path) -> Iterator[tuple[Path, list[Definition]]]:
    """Yield each file with the services it defines: `path` itself, or a directory's `*.json` and `*.hcl` by name.

    A file with another ending yields nothing (Consul skips it). Raises Malformed.
    """
    if path.is_dir():
        for inside in sorted(path.iterdir()):
            if inside.is_file() and inside.suffix in (".json", ".hcl"):
                yield inside, definitions(read_file(inside), name=str(inside))
    else:
        values = read_file(path) if path.suffix in (".json", ".hcl") or not path.exists() else None
        yield path, definitions(values, name=str(path)) if values is not None else []
