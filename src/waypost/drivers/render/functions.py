"""consul-template's functions that ask for data, and the table of all functions a template may call.

Each API function names a dependency and looks it up in what has been fetched. Unknown so far: the dependency is
noted as missing and the function gives an empty value, so that one pass finds as many dependencies as it can.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from waypost.base.clock import Clock
from waypost.base.errors import Malformed
from waypost.drivers.render import dependency as ask
from waypost.drivers.render.dependency import Dependency
from waypost.drivers.render.functions_text import HELPERS, Scratch
from waypost.drivers.render.gotime import format_utc
from waypost.drivers.render.records import (
    HEALTH_SERVICES,
    KEY_PAIRS,
    NO_CATALOG_NODE,
    NODES,
    SNIPPETS,
    listed,
)
from waypost.gotemplate.errors import FunctionError
from waypost.gotemplate.strconv import quote
from waypost.gotemplate.values import ANY, STRING, Function, Slice, strings

_PLUGIN_TIMEOUT_S: Final = 30.0


class Context:
    """What one pass over one template sees, and what it turned out to need."""

    def __init__(
        self,
        known: Mapping[Dependency, Any],
        *,
        clock: Clock,
        env: Mapping[str, str],
        execute: Callable[[str, Any], str] | None = None,
    ) -> None:
        """`known` holds what has been fetched; `execute` runs a definition of the same template."""
        self.known = known
        self.clock = clock
        self.env = env
        self.execute = execute
        self.used: dict[Dependency, None] = {}
        self.missing: dict[Dependency, None] = {}
        self._scratch = Scratch()

    def _recall(self, wanted: Dependency) -> Any:
        self.used[wanted] = None
        value = self.known.get(wanted)
        if value is None:
            # A key that does not exist is known, but a template that blocks on it goes on waiting.
            if wanted in self.known and not getattr(wanted, "blocks", False):
                return None
            self.missing[wanted] = None
        return value

    # Data

    def datacenters(self, *ignore: bool) -> Slice:
        """List all datacenters."""
        if len(ignore) > 1:
            raise FunctionError(
                f"datacenters: wrong number of arguments, expected 0 or 1, but got {len(ignore)}"
            )
        wanted = ask.DatacentersDependency(ignore_down=bool(ignore and ignore[0]))
        return strings(self._recall(wanted) or ())

    def file(self, path: str) -> str:
        """Return the content of a file of this machine."""
        return (self._recall(ask.FileDependency(path=path)) or "") if path else ""

    def key(self, text: str) -> str:
        """Return a key's value; the template waits until there is one."""
        return (self._recall(_asked(ask.key, text, blocks=True)) or "") if text else ""

    def key_exists(self, text: str) -> bool:
        """Tell whether a key exists."""
        return bool(self._recall(_asked(ask.key_exists, text))) if text else False

    def key_or_default(self, text: str, default: str) -> str:
        """Return a key's value, or the default if it is missing or empty."""
        if not text:
            return default
        return self._recall(_asked(ask.key, text, blocks=False)) or default

    def _pairs(self, text: str, *, wait_for_some: bool = False) -> tuple[Any, ...]:
        if not text:
            return ()
        wanted = _asked(ask.prefix, text)
        pairs: tuple[Any, ...] = self._recall(wanted) or ()
        if wait_for_some and not pairs:
            self.missing[wanted] = None
        return pairs

    def ls(self, text: str) -> Slice:
        """List the keys directly below a prefix, without folders."""
        return _directly_below(self._pairs(text))

    def safe_ls(self, text: str) -> Slice:
        """List as `ls`; the template waits until there is something."""
        return _directly_below(self._pairs(text, wait_for_some=True))

    def tree(self, text: str) -> Slice:
        """List all keys below a prefix, without folders."""
        return _all_below(self._pairs(text))

    def safe_tree(self, text: str) -> Slice:
        """List as `tree`; the template waits until there is something."""
        return _all_below(self._pairs(text, wait_for_some=True))

    def node(self, *text: str) -> Any:
        """Return a node with its instances; without a name the agent's own."""
        return self._recall(_asked(ask.node, "".join(text))) or NO_CATALOG_NODE

    def nodes(self, *text: str) -> Slice:
        """List the nodes."""
        return listed(NODES, self._recall(_asked(ask.nodes, "".join(text))) or ())

    def service(self, *text: str) -> Slice:
        """List the instances of a service."""
        if not text or not text[0]:
            return listed(HEALTH_SERVICES, ())
        found = self._recall(_asked(ask.service, "|".join(text)))
        return listed(HEALTH_SERVICES, found or ())

    def services(self, *text: str) -> Slice:
        """List all services."""
        return listed(SNIPPETS, self._recall(_asked(ask.services, "".join(text))) or ())

    def secret(self, *text: str) -> Any:
        """Refuse: there is no Vault."""
        for pair in text[1:]:
            if "=" not in pair:
                raise FunctionError(f"not k=v pair {quote(pair)}")
        raise FunctionError("no Vault configured")

    # Surroundings

    def env_value(self, name: str) -> str:
        """Return an environment variable, or nothing."""
        return self.env.get(name, "")

    def env_or_default(self, name: str, default: str) -> str:
        """Return an environment variable; set but empty counts as set."""
        return self.env.get(name, default)

    def must_env(self, name: str) -> str:
        """Return an environment variable that must be set and not empty."""
        value = self.env.get(name, "")
        if not value:
            raise FunctionError(f"environment variable {name} is not set or is empty")
        return value

    def timestamp(self, *layout: str) -> str:
        """Return the time in UTC."""
        if len(layout) > 1:
            raise FunctionError(
                f"timestamp: wrong number of arguments, expected 0 or 1, but got {len(layout)}"
            )
        wall = self.clock.wall()
        if layout == ("unix",):
            return str(int(wall))
        moment = datetime.fromtimestamp(wall, UTC)
        return format_utc(moment, layout[0] if layout else "2006-01-02T15:04:05Z07:00")

    def scratch(self) -> Scratch:
        """Return the place for values of this pass."""
        return self._scratch

    def execute_template(self, name: str, *data: Any) -> str:
        """Return the output of a defined template."""
        if self.execute is None:
            raise FunctionError("executeTemplate cannot be used here")
        if len(data) > 1:
            raise FunctionError(
                f"executeTemplate: wrong number of arguments, expected 1 or 2, but got {len(data) + 1}"
            )
        return self.execute(name, data[0] if data else None)

    def plugin(self, name: str, *args: str) -> str:
        """Run a program without a shell and return its output without white space around."""
        if not name:
            return ""
        argv = [name, *filter(None, (arg.strip() for arg in args))]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PLUGIN_TIMEOUT_S,
                check=False,
                env=dict(self.env),
            )
        except FileNotFoundError as exc:
            reason = f"exec: {quote(name)}: executable file not found in $PATH"
            raise FunctionError(_plugin_failure(name, reason, b"", b"")) from exc
        except subprocess.TimeoutExpired as exc:
            raise FunctionError(f"exec {quote(name)}: did not finish in 30s") from exc
        except (OSError, ValueError) as exc:
            raise FunctionError(_plugin_failure(name, str(exc), b"", b"")) from exc
        if done.returncode:
            code = done.returncode
            reason = f"exit status {code}" if code > 0 else f"signal: {-code}"
            raise FunctionError(_plugin_failure(name, reason, done.stdout, done.stderr))
        return done.stdout.decode("utf-8", "surrogateescape").strip()


def _plugin_failure(name: str, reason: str, out: bytes, err: bytes) -> str:
    shown_out, shown_err = (raw.decode("utf-8", "replace") for raw in (out, err))
    return f"exec {quote(name)}: {reason}\n\nstdout:\n\n{shown_out}\n\nstderr:\n\n{shown_err}"


def _asked(parse: Callable[..., Any], text: str, **options: Any) -> Any:
    try:
        return parse(text, **options)
    except Malformed as exc:
        raise FunctionError(str(exc)) from exc


def _directly_below(pairs: tuple[Any, ...]) -> Slice:
    return listed(KEY_PAIRS, (pair for pair in pairs if pair.key and "/" not in pair.key))


def _all_below(pairs: tuple[Any, ...]) -> Slice:
    return listed(KEY_PAIRS, (pair for pair in pairs if pair.key.rpartition("/")[2]))


_TABLE: Final = (
    ("datacenters", Context.datacenters, (), "bool"),
    ("env", Context.env_value, (STRING,), ""),
    ("envOrDefault", Context.env_or_default, (STRING, STRING), ""),
    ("executeTemplate", Context.execute_template, (STRING,), ANY),
    ("file", Context.file, (STRING,), ""),
    ("key", Context.key, (STRING,), ""),
    ("keyExists", Context.key_exists, (STRING,), ""),
    ("keyOrDefault", Context.key_or_default, (STRING, STRING), ""),
    ("ls", Context.ls, (STRING,), ""),
    ("mustEnv", Context.must_env, (STRING,), ""),
    ("node", Context.node, (), STRING),
    ("nodes", Context.nodes, (), STRING),
    ("plugin", Context.plugin, (STRING,), STRING),
    ("safeLs", Context.safe_ls, (STRING,), ""),
    ("safeTree", Context.safe_tree, (STRING,), ""),
    ("scratch", Context.scratch, (), ""),
    ("secret", Context.secret, (), STRING),
    ("secrets", Context.secret, (STRING,), ""),
    ("service", Context.service, (), STRING),
    ("services", Context.services, (), STRING),
    ("timestamp", Context.timestamp, (), STRING),
    ("tree", Context.tree, (STRING,), ""),
)

SIGNATURES: Final[Mapping[str, Function]] = {
    **HELPERS,
    **{name: Function(name, call, params, variadic) for name, call, params, variadic in _TABLE},
}
"""All functions by name, for parsing; those that ask for data are bound to a pass by `bound`."""


def bound(context: Context) -> dict[str, Function]:
    """Return the functions that ask for data, bound to one pass."""
    return {
        name: Function(name, call.__get__(context), params, variadic)
        for name, call, params, variadic in _TABLE
    }
