"""Flags and configuration files of `waypost template`: consul-template's, made into the records of the runner.

Command line beats files, later files beat earlier ones, templates of all of them are kept, those of files first.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from waypost.base.errors import Malformed
from waypost.cli.flags import Settings, flag, repeated
from waypost.drivers.render.consul_source import ConsulSettings
from waypost.drivers.render.settings import (
    ExecSpec,
    Retry,
    RunnerSettings,
    Stanza,
    TemplateSpec,
    Wait,
)
from waypost.wire.config_file import parse_text

LOG_LEVELS: Final = ("trace", "debug", "info", "warn", "err")


class FlagFailure(Malformed):
    """A flag's value is wrong; the exit status is 13."""


class ConfigFailure(Malformed):
    """A configuration file is wrong; the exit status is 15."""


class _Unused(Settings):
    """Flags that consul-template has and that mean nothing here: Vault, its own transport, shared rendering."""

    section = "Accepted and ignored"

    dedup: bool = flag(False, "Several runners sharing the work; rendering is cheap here.")
    syslog: bool = flag(False, "Log to syslog; standard error goes where the supervisor wants.")
    syslog_facility: str = flag("LOCAL0", "Facility of -syslog.")
    vault_addr: str = flag("", "There is no Vault.")
    vault_token: str = flag("", "There is no Vault.")
    vault_grace: str = flag("", "There is no Vault.")
    vault_renew_token: bool = flag(True, "There is no Vault.")
    vault_unwrap_token: bool = flag(False, "There is no Vault.")
    vault_retry: bool = flag(True, "There is no Vault.")
    vault_retry_attempts: int = flag(12, "There is no Vault.")
    vault_retry_backoff: str = flag("", "There is no Vault.")
    vault_retry_max_backoff: str = flag("", "There is no Vault.")
    vault_ssl: bool = flag(True, "There is no Vault.")
    vault_ssl_verify: bool = flag(True, "There is no Vault.")
    vault_ssl_cert: str = flag("", "There is no Vault.")
    vault_ssl_key: str = flag("", "There is no Vault.")
    vault_ssl_ca_cert: str = flag("", "There is no Vault.")
    vault_ssl_ca_path: str = flag("", "There is no Vault.")
    vault_ssl_server_name: str = flag("", "There is no Vault.")
    consul_transport_dial_keep_alive: str = flag("", "Left to the client.")
    consul_transport_dial_timeout: str = flag("", "Left to the client.")
    consul_transport_disable_keep_alives: bool = flag(False, "Left to the client.")
    consul_transport_max_idle_conns_per_host: int = flag(0, "Left to the client.")
    consul_transport_tls_handshake_timeout: str = flag("", "Left to the client.")


class TemplateFlags(_Unused):
    """Flags of `waypost template`."""

    section = "Command Options"

    template: tuple[str, ...] = repeated(
        str, "source:destination[:command]; may be given several times.", value="spec"
    )
    config: tuple[str, ...] = repeated(
        str, "A configuration file or a directory of them (HCL or JSON).", value="path"
    )
    once: bool = flag(False, "Render everything once, run the commands, and end.")
    dry: bool = flag(False, "Print instead of writing; run no commands.")
    exec: str = flag("", "A command to keep running and to tell about changes.")
    exec_kill_signal: str = flag("", "The signal that ends the command (SIGINT).")
    exec_kill_timeout: str = flag("", "How long it may take to end (30s).")
    exec_reload_signal: str = flag(
        "", "The signal that tells it about changes; without one it is restarted."
    )
    exec_splay: str = flag("", "A random wait of at most this before it is told.")
    kill_signal: str = flag(
        "", "The signal that ends waypost itself (SIGINT); SIGTERM always does."
    )
    reload_signal: str = flag("", "The signal to read the configuration again (SIGHUP).")
    log_level: str = flag("", "trace, debug, info, warn or err.")
    max_stale: str = flag("", "How old an answer of a follower may be (2s).")
    pid_file: str = flag("", "Where to write the process id.")
    wait: str = flag("", "min[:max]: wait for more changes before rendering.")
    retry: str = flag("", "Old name of -consul-retry-backoff.")
    consul_addr: str = flag("", "Address of the Consul API (127.0.0.1:8500).")
    consul_auth: str = flag("", "user[:password] of HTTP basic authentication.")
    consul_token: str = flag("", "ACL token.")
    consul_retry: bool = flag(True, "Repeat failed queries.")
    consul_retry_attempts: int = flag(12, "How often; 0 = for ever.")
    consul_retry_backoff: str = flag("", "The first wait (250ms); it doubles.")
    consul_retry_max_backoff: str = flag("", "The longest wait (1m); 0 = no cap.")
    consul_ssl: bool = flag(False, "Use TLS.")
    consul_ssl_verify: bool = flag(True, "Verify the server's certificate.")
    consul_ssl_cert: str = flag("", "File of our certificate.")
    consul_ssl_key: str = flag("", "File of our key.")
    consul_ssl_ca_cert: str = flag("", "File of the authority's certificate.")
    consul_ssl_ca_path: str = flag("", "Directory of authorities' certificates.")
    consul_ssl_server_name: str = flag("", "Name in the server's certificate.")
    v: bool = flag(False, "Print the version.")
    version: bool = flag(False, "Print the version.")


_PATHS: Final[Mapping[str, tuple[str, ...]]] = {
    "once": ("once",),
    "dry": ("dry",),
    "exec": ("exec", "command"),
    "exec-kill-signal": ("exec", "kill_signal"),
    "exec-kill-timeout": ("exec", "kill_timeout"),
    "exec-reload-signal": ("exec", "reload_signal"),
    "exec-splay": ("exec", "splay"),
    "kill-signal": ("kill_signal",),
    "reload-signal": ("reload_signal",),
    "log-level": ("log_level",),
    "max-stale": ("max_stale",),
    "pid-file": ("pid_file",),
    "wait": ("wait",),
    "retry": ("consul", "retry", "backoff"),
    "consul-addr": ("consul", "address"),
    "consul-token": ("consul", "token"),
    "consul-retry": ("consul", "retry", "enabled"),
    "consul-retry-attempts": ("consul", "retry", "attempts"),
    "consul-retry-backoff": ("consul", "retry", "backoff"),
    "consul-retry-max-backoff": ("consul", "retry", "max_backoff"),
    "consul-ssl": ("consul", "ssl", "enabled"),
    "consul-ssl-verify": ("consul", "ssl", "verify"),
    "consul-ssl-cert": ("consul", "ssl", "cert"),
    "consul-ssl-key": ("consul", "ssl", "key"),
    "consul-ssl-ca-cert": ("consul", "ssl", "ca_cert"),
    "consul-ssl-ca-path": ("consul", "ssl", "ca_path"),
    "consul-ssl-server-name": ("consul", "ssl", "server_name"),
}
"""Where a flag's value stands in a configuration file."""
_IGNORED_KEYS: Final = ("vault", "deduplicate", "syslog")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one start of the program was told."""

    runner: RunnerSettings
    consul: ConsulSettings
    log_level: str
    pid_file: str
    kill_signal: int
    reload_signal: int
    ignored: tuple[str, ...] = ()
    """Parts of the configuration that have no effect."""


def plan(flags: TemplateFlags, *, env: Mapping[str, str]) -> Plan:
    """Return the plan of a command line. Raises FlagFailure, ConfigFailure."""
    merged: dict[str, Any] = {}
    templates: list[TemplateSpec] = []
    for path in flags.config:
        for file in _files(Path(path)):
            options = _read(file)
            try:
                templates += read_options(options, env={}).runner.templates
            except Malformed as exc:
                raise ConfigFailure(f"{file}: {exc}") from exc
            options.pop("template", None)
            _merge(merged, options)
    try:
        templates += [TemplateSpec.parse(text) for text in flags.template]
        _merge(merged, _flag_options(flags))
        made = read_options(merged, env=env)
    except Malformed as exc:
        raise FlagFailure(str(exc)) from exc
    if made.log_level not in LOG_LEVELS:
        raise ConfigFailure(
            f'log_level: invalid log level "{made.log_level}"; it must be one of {", ".join(LOG_LEVELS)}'
        )
    runner = msgspec.structs.replace(made.runner, templates=tuple(templates))
    return msgspec.structs.replace(made, runner=runner)


def _flag_options(flags: TemplateFlags) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in flags.given:
        path = _PATHS.get(name)
        if path is not None:
            value = getattr(flags, flags.declared[name].attribute)
            below: Any = value
            for key in reversed(path):
                below = {key: below}
            _merge(options, below)
    if flags.consul_auth:
        user, _, password = flags.consul_auth.partition(":")
        _merge(options, {"consul": {"auth": {"username": user, "password": password}}})
    return options


def _merge(onto: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        # HCL may give a block as a list of one.
        plain = value[0] if isinstance(value, list) and len(value) == 1 else value
        mine = onto.get(key)
        if isinstance(plain, dict) and isinstance(mine, dict):
            _merge(mine, plain)
        else:
            onto[key] = dict(plain) if isinstance(plain, dict) else plain


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
    if not path.exists():
        raise ConfigFailure(f"missing file/folder: {path}")
    return [path]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigFailure(f"config: could not read {path}: {exc}") from exc
    try:
        return parse_text(text, name=str(path), is_json=path.suffix == ".json")
    except Malformed as exc:
        raise ConfigFailure(str(exc)) from exc


def read_options(options: Mapping[str, Any], *, env: Mapping[str, str]) -> Plan:
    """Return the plan of configuration values. Raises Malformed naming the key."""
    root = Stanza(options, place="config")
    templates = tuple(
        TemplateSpec.of(block, place=f"template {number}")
        for number, block in enumerate(root.blocks("template"), 1)
    )
    wait = root.take("wait")
    child = root.take("exec")
    exec_spec = ExecSpec.of(child, place="exec") if child is not None else None
    max_stale_s = root.duration("max_stale", 2.0)
    retry, consul = _consul(root.sub("consul"), max_stale_s=max_stale_s, env=env)
    level = env.get("CT_LOG") or env.get("CONSUL_TEMPLATE_LOG") or "warn"
    made = Plan(
        runner=RunnerSettings(
            templates=templates,
            once=root.boolean("once", default=False),
            dry=root.boolean("dry", default=False),
            wait=Wait.of(wait, place="wait") if wait is not None else None,
            retry=retry,
            exec=exec_spec if exec_spec is not None and exec_spec.command else None,
        ),
        consul=consul,
        log_level=root.text("log_level", level).lower(),
        pid_file=root.text("pid_file", ""),
        kill_signal=root.signal("kill_signal", signal.SIGINT),
        reload_signal=root.signal("reload_signal", signal.SIGHUP),
        ignored=tuple(key for key in _IGNORED_KEYS if root.take(key) is not None),
    )
    root.finish()
    return made


def _consul(
    stanza: Stanza | None, *, max_stale_s: float, env: Mapping[str, str]
) -> tuple[Retry, ConsulSettings]:
    stanza = stanza or Stanza({}, place="consul")
    retry = stanza.sub("retry") or Stanza({}, place="consul.retry")
    made = Retry(
        enabled=retry.boolean("enabled", default=True),
        attempts=retry.integer("attempts", 12),
        backoff_s=retry.duration("backoff", 0.25),
        max_backoff_s=retry.duration("max_backoff", 60.0),
    )
    retry.finish()
    auth = stanza.sub("auth")
    pair = None
    if auth is not None:
        pair = (auth.text("username", ""), auth.text("password", ""))
        if not auth.boolean("enabled", default=True):
            pair = None
        auth.finish()
    tls_block = stanza.sub("ssl")
    tls = tls_block or Stanza({}, place="consul.ssl")
    settings = ConsulSettings(
        address=stanza.text("address", env.get("CONSUL_HTTP_ADDR") or "127.0.0.1:8500"),
        token=stanza.text("token", env.get("CONSUL_TOKEN") or env.get("CONSUL_HTTP_TOKEN") or ""),
        auth=pair,
        max_stale_s=max_stale_s,
        tls=tls.boolean("enabled", default=tls_block is not None),
        tls_verify=tls.boolean("verify", default=True),
        tls_cert=tls.text("cert", ""),
        tls_key=tls.text("key", ""),
        tls_ca_cert=tls.text("ca_cert", ""),
        tls_ca_path=tls.text("ca_path", ""),
        tls_server_name=tls.text("server_name", ""),
    )
    tls.finish()
    stanza.take("transport")
    stanza.finish()
    return made, settings
