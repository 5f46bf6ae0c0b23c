"""kubeconfig files: read, merge, change, redact and write them as kubectl does. No I/O but in what the caller passes.

Fields that kubectl does not know are lost when a file is written, as with kubectl; `extensions`, `exec` and
`auth-provider` are kept as they are. Source: client-go `tools/clientcmd/api/v1`; kubectl 1.37's output.
"""

from __future__ import annotations

import base64
import binascii
import math
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec

from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    import yaml

    from waypost.wire import kubeconfig_yaml as dialect
else:
    yaml = later("yaml")
    dialect = later("waypost.wire.kubeconfig_yaml")

OMITTED: Final = "DATA+OMITTED"
REDACTED: Final = "REDACTED"
MAX_BYTES: Final = 4 << 20
_MAX_VALUES: Final = 200_000

ReadFile = Callable[[str], bytes]


class Cluster(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """How to reach a cluster. `…_data` are base64 of PEM."""

    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: list[Any] | None = None


class User(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """Credentials. Its `repr` shows none of them."""

    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    as_user: str = msgspec.field(default="", name="as")
    as_uid: str = ""
    as_groups: list[str] | None = None
    as_user_extra: dict[str, list[str]] | None = None
    username: str = ""
    password: str = ""
    auth_provider: dict[str, Any] | None = None
    exec: dict[str, Any] | None = None
    extensions: list[Any] | None = None

    def __repr__(self) -> str:
        return "User(***)"


class Context(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """A cluster, a user and a namespace under one name."""

    cluster: str = ""
    user: str = ""
    namespace: str = ""
    extensions: list[Any] | None = None


Entry = TypeVar("Entry", Cluster, User, Context)


class Kubeconfig(msgspec.Struct, frozen=True, kw_only=True):
    """One file, or several merged. Entries are sorted by name."""

    clusters: dict[str, Cluster] = {}
    users: dict[str, User] = {}
    contexts: dict[str, Context] = {}
    current_context: str = ""
    preferences: dict[str, Any] = {}
    extensions: list[Any] = []

    def context(self, name: str = "") -> tuple[Context, Cluster, User]:
        """Return a context (the current one by default) with its cluster and user. Raises Malformed."""
        wanted = name or self.current_context
        if wanted not in self.contexts:
            raise Malformed(
                f'context "{wanted}" does not exist' if wanted else "current-context is not set"
            )
        context = self.contexts[wanted]
        if context.cluster not in self.clusters:
            raise Malformed(f'cluster "{context.cluster}" of the context "{wanted}" does not exist')
        if context.user not in self.users:
            raise Malformed(f'user "{context.user}" of the context "{wanted}" does not exist')
        return context, self.clusters[context.cluster], self.users[context.user]


# -- reading -----------------------------------------------------------------------------------------------------------


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str = ""
    cluster: Cluster | None = None


class _NamedUser(msgspec.Struct, frozen=True):
    name: str = ""
    user: User | None = None


class _NamedContext(msgspec.Struct, frozen=True):
    name: str = ""
    context: Context | None = None


class _File(msgspec.Struct, frozen=True):
    api_version: str = msgspec.field(default="", name="apiVersion")
    kind: str = ""
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None
    current_context: str | None = msgspec.field(default="", name="current-context")
    preferences: dict[str, Any] | None = None
    extensions: list[Any] | None = None


def parse(data: bytes, *, name: str) -> Kubeconfig:
    """Return what a file says (YAML or JSON; an empty one is an empty configuration).

    Raises Malformed: `error loading config file "NAME": …` with the place where it can be told.
    """
    intro = f'error loading config file "{name}"'
    if len(data) > MAX_BYTES:
        raise Malformed(f"{intro}: larger than {MAX_BYTES} bytes")
    try:
        values = yaml.load(data, dialect.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        # The library's own text quotes the line, which may hold a secret.
        mark = getattr(exc, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Malformed(f"{intro}: no valid YAML{where}") from None
    if values is None:
        return Kubeconfig()
    try:
        file = msgspec.convert(_without_nulls(values, [_MAX_VALUES]), _File)
    except msgspec.ValidationError as exc:
        raise Malformed(f"{intro}: {exc}") from exc
    except (RecursionError, TypeError, ValueError):
        raise Malformed(f"{intro}: values that no kubeconfig has") from None
    if file.kind not in ("", "Config") or file.api_version not in ("", "v1"):
        raise Malformed(
            f'{intro}: kind "{file.kind}" of version "{file.api_version}" is no kubeconfig'
        )
    return Kubeconfig(
        clusters=_first_of((one.name, one.cluster or Cluster()) for one in file.clusters or ()),
        users=_first_of((one.name, one.user or User()) for one in file.users or ()),
        contexts=_first_of((one.name, one.context or Context()) for one in file.contexts or ()),
        current_context=file.current_context or "",
        preferences=file.preferences or {},
        extensions=file.extensions or [],
    )


def _without_nulls(value: Any, budget: list[int]) -> Any:
    # In kubeconfig files `field: null` (and `field:`) is the same as no field. The budget is against aliases of
    # aliases, which are small as text and huge as values.
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError("too many values")
    if isinstance(value, dict):
        return {
            _without_nulls(key, budget): _without_nulls(one, budget)
            for key, one in value.items()
            if one is not None
        }
    if isinstance(value, list):
        return [_without_nulls(one, budget) for one in value]
    if isinstance(value, str):
        value.encode()  # half a surrogate pair is no text
    return value


def _first_of(pairs: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, entry in pairs:
        found.setdefault(name, entry)
    return dict(sorted(found.items()))


def merge(configs: Sequence[Kubeconfig]) -> Kubeconfig:
    """Return several files as one: the first definition of a name wins, as does the first current context."""
    return Kubeconfig(
        clusters=_first_of(pair for one in configs for pair in one.clusters.items()),
        users=_first_of(pair for one in configs for pair in one.users.items()),
        contexts=_first_of(pair for one in configs for pair in one.contexts.items()),
        current_context=next((one.current_context for one in configs if one.current_context), ""),
        preferences=next((one.preferences for one in configs if one.preferences), {}),
        extensions=next((one.extensions for one in configs if one.extensions), []),
    )


# -- paths inside ------------------------------------------------------------------------------------------------------


def with_paths(config: Kubeconfig, change: Callable[[str], str]) -> Kubeconfig:
    """Return the configuration with `change` applied to every path in it (certificates, keys, token files)."""

    def path(text: str) -> str:
        return change(text) if text else text

    return msgspec.structs.replace(
        config,
        clusters={
            name: msgspec.structs.replace(
                one, certificate_authority=path(one.certificate_authority)
            )
            for name, one in config.clusters.items()
        },
        users={
            name: msgspec.structs.replace(
                one,
                client_certificate=path(one.client_certificate),
                client_key=path(one.client_key),
                token_file=path(one.token_file),
            )
            for name, one in config.users.items()
        },
    )


def absolute_paths(config: Kubeconfig, *, folder: str) -> Kubeconfig:
    """Return the configuration with relative paths made absolute; they are relative to the file's folder."""
    return with_paths(config, lambda path: posixpath.normpath(posixpath.join(folder, path)))


def relative_paths(config: Kubeconfig, *, folder: str) -> Kubeconfig:
    """Return the configuration with the paths below `folder` made relative to it; others stay absolute."""

    def change(path: str) -> str:
        if not path.startswith("/"):
            return path
        relative = posixpath.relpath(path, folder)
        return path if relative.startswith("..") else relative

    return with_paths(config, change)


def flatten(config: Kubeconfig, read: ReadFile) -> Kubeconfig:
    """Return the configuration with the content of files in place of their paths. `read` may raise OSError.

    Raises Malformed for a file that cannot be read. Token files stay what they are, as with kubectl.
    """

    def data(path: str, inline: str) -> str:
        if not path or inline:
            return inline
        try:
            return base64.b64encode(read(path)).decode()
        except OSError as exc:
            raise Malformed(f"{path}: {exc.strerror or exc}") from exc

    return msgspec.structs.replace(
        config,
        clusters={
            name: msgspec.structs.replace(
                one,
                certificate_authority="",
                certificate_authority_data=data(
                    one.certificate_authority, one.certificate_authority_data
                ),
            )
            for name, one in config.clusters.items()
        },
        users={
            name: msgspec.structs.replace(
                one,
                client_certificate="",
                client_certificate_data=data(one.client_certificate, one.client_certificate_data),
                client_key="",
                client_key_data=data(one.client_key, one.client_key_data),
            )
            for name, one in config.users.items()
        },
    )


def minify(config: Kubeconfig, *, context: str = "") -> Kubeconfig:
    """Return only what one context (the current one by default) needs. Raises Malformed in kubectl's words."""
    wanted = context or config.current_context
    if not wanted:
        raise Malformed("current-context must exist in order to minify")
    if wanted not in config.contexts:
        raise Malformed(f"cannot locate context {wanted}")
    chosen = config.contexts[wanted]
    return msgspec.structs.replace(
        config,
        clusters={k: v for k, v in config.clusters.items() if k == chosen.cluster},
        users={k: v for k, v in config.users.items() if k == chosen.user},
        contexts={wanted: chosen},
        current_context=wanted,
    )


# -- redaction ---------------------------------------------------------------------------------------------------------


def redact(config: Kubeconfig) -> Kubeconfig:
    """Return the configuration as it may be shown: certificate and key data omitted, tokens and passwords redacted.

    Beyond kubectl, which prints it, the password inside a proxy's or server's URL is redacted as well.
    """
    return msgspec.structs.replace(
        config,
        clusters={
            name: msgspec.structs.replace(
                one,
                certificate_authority_data=one.certificate_authority_data and OMITTED,
                proxy_url=_without_password(one.proxy_url),
                server=_without_password(one.server),
            )
            for name, one in config.clusters.items()
        },
        users={
            name: msgspec.structs.replace(
                one,
                client_certificate_data=one.client_certificate_data and OMITTED,
                client_key_data=one.client_key_data and OMITTED,
                token=one.token and REDACTED,
                password=one.password and REDACTED,
                auth_provider=_redacted_provider(one.auth_provider),
            )
            for name, one in config.users.items()
        },
    )


_PROVIDER_SECRETS: Final = ("token", "secret", "password")


def _redacted_provider(provider: dict[str, Any] | None) -> dict[str, Any] | None:
    values = provider.get("config") if provider else None
    if provider is None or not isinstance(values, dict):
        return provider
    shown = {
        key: REDACTED if any(word in str(key).lower() for word in _PROVIDER_SECRETS) else value
        for key, value in values.items()
    }
    return {**provider, "config": shown}


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return url
    if not password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}:{REDACTED}@{host}"))


# -- writing -----------------------------------------------------------------------------------------------------------


def to_values(config: Kubeconfig) -> dict[str, Any]:
    """Return the file's values in the order of kubectl's JSON."""
    values: dict[str, Any] = {"kind": "Config", "apiVersion": "v1"}
    if config.preferences:
        values["preferences"] = config.preferences
    values["clusters"] = [
        {"name": name, "cluster": {"server": one.server, **msgspec.to_builtins(one)}}
        for name, one in sorted(config.clusters.items())
    ] or None
    values["users"] = [
        {"name": name, "user": _user_values(one)} for name, one in sorted(config.users.items())
    ] or None
    values["contexts"] = [
        {
            "name": name,
            "context": {"cluster": one.cluster, "user": one.user, **msgspec.to_builtins(one)},
        }
        for name, one in sorted(config.contexts.items())
    ] or None
    values["current-context"] = config.current_context
    if config.extensions:
        values["extensions"] = config.extensions
    return values


_EXEC_ORDER: Final = ("command", "args", "env", "apiVersion", "installHint", "provideClusterInfo")


def _user_values(user: User) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(user)
    if user.exec is not None:
        # kubectl writes these two even when nobody set them.
        given = {"provideClusterInfo": False, **user.exec}
        given.setdefault("env", None)
        given.setdefault("args", None)
        known = {key: given[key] for key in _EXEC_ORDER if key in given}
        values["exec"] = known | {k: v for k, v in given.items() if k not in known}
    return values


def to_yaml(config: Kubeconfig) -> str:
    """Return the file's text: keys sorted, as kubectl writes and prints it."""
    text: str = yaml.dump(
        to_values(config),
        Dumper=dialect.Dumper,
        default_flow_style=False,
        sort_keys=True,
        allow_unicode=True,
        width=math.inf,
    )
    return text


def decoded(data: str, *, what: str) -> bytes:
    """Return the bytes of a `…-data` field. Raises Malformed with `what` for what is no base64."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Malformed(f"{what} is not valid base64") from exc


def single(
    *,
    server: str,
    ca_pem: bytes,
    user_name: str,
    user: User,
    cluster_name: str = "kubernetes",
) -> Kubeconfig:
    """Return the configuration of one user of one cluster, named as kubeadm names them: `USER@CLUSTER`."""
    context = f"{user_name}@{cluster_name}"
    return Kubeconfig(
        clusters={
            cluster_name: Cluster(
                server=server, certificate_authority_data=base64.b64encode(ca_pem).decode()
            )
        },
        users={user_name: user},
        contexts={context: Context(cluster=cluster_name, user=user_name)},
        current_context=context,
    )


def user_with_certificate(certificate_pem: bytes, key_pem: bytes) -> User:
    """Return the credentials of a client certificate and its key."""
    return User(
        client_certificate_data=base64.b64encode(certificate_pem).decode(),
        client_key_data=base64.b64encode(key_pem).decode(),
    )
