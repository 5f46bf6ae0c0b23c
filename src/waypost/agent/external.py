"""An etcd that the operator runs: its configuration, checked, in the words of the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.base.duration import parse_s
from waypost.base.errors import Malformed

if TYPE_CHECKING:
    from waypost.store.etcd import EtcdAuth, EtcdTls

DEFAULT_PREFIX: Final = "/waypost/"
_LEAST_COMPACTION_S: Final = 10.0


class EtcdConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The block `etcd`. Names are those of kube-apiserver's flags without `etcd-`."""

    servers: tuple[str, ...] = ()
    """URLs; with any, the store of this server is there."""
    cafile: str = ""
    """PEM of the authority that etcd's certificates are of; empty = the system's authorities."""
    certfile: str = ""
    keyfile: str = ""
    prefix: str = DEFAULT_PREFIX
    """What all of waypost's keys begin with; each cluster that shares an etcd needs its own."""
    username: str = ""
    password_file: str = ""
    compaction_interval: str = "5m"
    """How often the leader has etcd forget revisions older than that; 0 = never, somebody else does."""


class ExternalEtcd(msgspec.Struct, frozen=True, kw_only=True):
    """Where the store is and how it is opened."""

    servers: tuple[str, ...]
    prefix: bytes
    tls: EtcdTls | None
    auth: EtcdAuth | None
    compaction_s: float
    """0 = never."""
    notes: tuple[str, ...] = ()
    """Things to tell the operator at start."""


def external_etcd(config: EtcdConfig) -> ExternalEtcd | None:
    """Return the checked configuration; None when no servers are named. Raises Malformed that names the key."""
    if not config.servers:
        given = [
            key
            for key in ("cafile", "certfile", "keyfile", "username", "password_file")
            if getattr(config, key)
        ]
        if given:
            msg = f"etcd.{given[0]} is given, but no etcd.servers (-etcd-servers)"
            raise Malformed(msg)
        return None
    urls = tuple(
        dict.fromkeys(
            _url(one.strip()) for text in config.servers for one in text.split(",") if one.strip()
        )
    )
    if not urls:
        msg = "etcd.servers: no URL; expected something like https://10.0.0.1:2379"
        raise Malformed(msg)
    from waypost.store.etcd import EtcdTls

    tls = _tls(config)
    is_secure = [url.startswith("https://") for url in urls]
    if tls is not None and not all(is_secure):
        bare = urls[is_secure.index(False)]
        msg = (
            f"etcd.servers: {bare} does not use TLS, but certificates are given; expected https://"
        )
        raise Malformed(msg)
    notes = tuple(
        f"etcd at {url} is reached without TLS: whoever is on the way reads every secret"
        for url in urls
        if url.startswith("http://") and not _is_here(url)
    )
    return ExternalEtcd(
        servers=urls,
        prefix=_prefix(config.prefix),
        tls=tls or (EtcdTls() if any(is_secure) else None),
        auth=_auth(config),
        compaction_s=_compaction_s(config.compaction_interval),
        notes=notes,
    )


def _url(text: str) -> str:
    # Whoever has no etcd does not pay for the imports.
    from waypost.store.etcd.endpoints import check_url

    try:
        return check_url(text)
    except Malformed as error:
        msg = f"etcd.servers: {error}"
        raise Malformed(msg) from error


def _is_here(url: str) -> bool:
    host = url.partition("://")[2]
    return host.startswith(("127.", "localhost", "[::1]"))


def _file(key: str, text: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        msg = f"etcd.{key}: {path}: {(error.strerror or str(error)).lower()}"
        raise Malformed(msg) from error
    return path


def _tls(config: EtcdConfig) -> EtcdTls | None:
    from waypost.store.etcd import EtcdTls

    if bool(config.certfile) != bool(config.keyfile):
        missing, there = ("keyfile", "certfile") if config.certfile else ("certfile", "keyfile")
        msg = f"etcd.{missing} is needed with etcd.{there}"
        raise Malformed(msg)
    tls = EtcdTls(
        ca_file=_file("cafile", config.cafile),
        certificate_file=_file("certfile", config.certfile),
        key_file=_file("keyfile", config.keyfile),
    )
    return tls if tls != EtcdTls() else None


def _auth(config: EtcdConfig) -> EtcdAuth | None:
    from waypost.store.etcd import EtcdAuth

    given = {"username": bool(config.username), "password_file": bool(config.password_file)}
    if len(set(given.values())) > 1:
        there, missing = sorted(given, key=given.__getitem__, reverse=True)
        msg = f"etcd.{missing} is needed with etcd.{there}"
        raise Malformed(msg)
    if not config.username:
        return None
    return EtcdAuth(
        username=config.username, password_file=_file("password_file", config.password_file)
    )


def _prefix(text: str) -> bytes:
    if not text.strip("/") or "\0" in text:
        msg = f"etcd.prefix: {text!r} is not a prefix for keys; expected something like {DEFAULT_PREFIX}"
        raise Malformed(msg)
    # Or one cluster's prefix could be the beginning of another's.
    return text.encode() if text.endswith("/") else text.encode() + b"/"


def _compaction_s(text: str) -> float:
    try:
        found = parse_s(text)
    except Malformed as error:
        msg = f"etcd.compaction_interval: {error}"
        raise Malformed(msg) from error
    if 0 < found < _LEAST_COMPACTION_S:
        msg = f"etcd.compaction_interval: {text} is too short; at least {_LEAST_COMPACTION_S:g}s, or 0 for never"
        raise Malformed(msg)
    return found


def check_alone(flags: Mapping[str, object]) -> None:
    """Raise Malformed for what cannot be with an etcd of the operator's; `flags`: key → value as configured."""
    for key, why in (
        ("bootstrap_expect", "nobody waits for other servers: they find each other in etcd"),
        ("start_join", "servers find each other in etcd, and client agents have no store"),
        ("retry_join", "servers find each other in etcd, and client agents have no store"),
    ):
        if flags.get(key):
            msg = f"{key} and etcd.servers are mutually exclusive: {why}"
            raise Malformed(msg)
    if flags.get("server") is False:
        msg = "'server = false' and etcd.servers are mutually exclusive: a client agent joins a server and has no store"
        raise Malformed(msg)
