"""Where the agent is and how to speak to it: from flags and from Consul's environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from waypost.base.errors import Malformed

DEFAULT_ADDRESS = "127.0.0.1:8500"
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to trust the server and what to show it. Paths; empty = not set."""

    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    server_name: str = ""
    verify: bool = True
    ca_pem: str = ""
    """Authorities by themselves, as kubeconfig files hold them."""
    client_pem: bytes = b""
    """Client certificate and key by themselves."""

    def __repr__(self) -> str:
        return f"TlsSettings(ca_file={self.ca_file!r}, client_cert={self.client_cert!r})"


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's address and the credentials for it. Exactly one of `socket_path` and `host` is set."""

    scheme: str = "http"
    host: str = ""
    """As written in the URL, without port: a name, an IPv4 address, or an IPv6 address without brackets."""
    port: int = 0
    socket_path: str = ""
    token: str = ""
    basic_auth: tuple[str, str] | None = None
    datacenter: str = ""
    stale: bool = False
    tls: TlsSettings = TlsSettings()

    def __repr__(self) -> str:
        return f"ClientSettings({self.authority}, token={'***' if self.token else 'none'})"

    @property
    def authority(self) -> str:
        """Return what stands between `//` and the path of a URL (for a socket its escaped path, as Go shows it)."""
        if self.socket_path:
            return quote(self.socket_path, safe="")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What flags say; empty = let the environment decide."""

    kubeconfig: str = ""
    context: str = ""
    address: str = ""
    token: str = ""
    token_file: str = ""
    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    server_name: str = ""
    datacenter: str = ""
    stale: bool = False


_NO_OVERRIDES = Overrides()


def settings_from(
    environment: Mapping[str, str], *, overrides: Overrides = _NO_OVERRIDES
) -> ClientSettings:
    """Return the settings that the flags and `CONSUL_*` variables give.

    A token file wins over a token, as in Consul. A kubeconfig file gives address and credentials when a flag names
    it, or KUBECONFIG does and nothing says where the agent is; a token given besides wins over its credentials.
    Raises Malformed for an address or boolean that cannot be read and for a file that cannot.
    """
    kubeconfig = overrides.kubeconfig
    if not kubeconfig and not (overrides.address or environment.get("CONSUL_HTTP_ADDR")):
        named = environment.get("KUBECONFIG", "").split(":")
        kubeconfig = ":".join(name for name in named if name and Path(name).exists())
    if kubeconfig:
        return _from_kubeconfig(kubeconfig, environment, overrides)

    def pick(override: str, variable: str) -> str:
        return override or environment.get(variable, "")

    secure = _boolean(environment, "CONSUL_HTTP_SSL", default=False)
    scheme, host, port, socket_path = parse_address(
        pick(overrides.address, "CONSUL_HTTP_ADDR") or DEFAULT_ADDRESS,
        default_scheme="https" if secure else "http",
    )
    token = pick(overrides.token, "CONSUL_HTTP_TOKEN")
    token_file = pick(overrides.token_file, "CONSUL_HTTP_TOKEN_FILE")
    if token_file:
        token = _read_token(token_file) or token
    user, colon, password = environment.get("CONSUL_HTTP_AUTH", "").partition(":")
    return ClientSettings(
        scheme=scheme,
        host=host,
        port=port,
        socket_path=socket_path,
        token=token,
        basic_auth=(user, password) if user or colon else None,
        datacenter=overrides.datacenter,
        stale=overrides.stale,
        tls=TlsSettings(
            ca_file=pick(overrides.ca_file, "CONSUL_CACERT"),
            ca_path=pick(overrides.ca_path, "CONSUL_CAPATH"),
            client_cert=pick(overrides.client_cert, "CONSUL_CLIENT_CERT"),
            client_key=pick(overrides.client_key, "CONSUL_CLIENT_KEY"),
            server_name=pick(overrides.server_name, "CONSUL_TLS_SERVER_NAME"),
            verify=_boolean(environment, "CONSUL_HTTP_SSL_VERIFY", default=True),
        ),
    )


def _from_kubeconfig(
    paths: str, environment: Mapping[str, str], overrides: Overrides
) -> ClientSettings:
    from waypost.wire import kubeconfig

    found = []
    for name in paths.split(":"):
        path = Path(name).absolute()
        try:
            data = path.read_bytes()
        except FileNotFoundError as exc:
            raise Malformed(f"{name}: no such file") from exc
        except OSError as exc:
            raise Malformed(f"{name}: {exc.strerror or exc}") from exc
        one = kubeconfig.parse(data, name=name)
        found.append(kubeconfig.absolute_paths(one, folder=str(path.parent)))
    try:
        config = kubeconfig.merge(found)
        # Only the files of the context that is used have to be there.
        config = kubeconfig.minify(config, context=overrides.context)
        config = kubeconfig.flatten(config, lambda file: Path(file).read_bytes())
        _, cluster, user = config.context(overrides.context)
    except Malformed as exc:
        raise Malformed(f"{paths}: {exc}") from exc
    if user.exec or user.auth_provider:
        raise Malformed(f"{paths}: credentials by exec and auth-provider plugins are not supported")
    scheme, host, port, socket_path = parse_address(overrides.address or cluster.server)
    token = overrides.token or environment.get("CONSUL_HTTP_TOKEN", "")
    for file in (overrides.token_file, "" if token else user.token_file):
        token = (_read_token(file) if file else "") or token
    is_other = bool(token)  # who gives a token wants to be that, not the file's user
    certificate = kubeconfig.decoded(user.client_certificate_data, what="client-certificate-data")
    key = kubeconfig.decoded(user.client_key_data, what="client-key-data")
    authorities = kubeconfig.decoded(
        cluster.certificate_authority_data, what="certificate-authority-data"
    )
    return ClientSettings(
        scheme=scheme,
        host=host,
        port=port,
        socket_path=socket_path,
        token=token or user.token,
        basic_auth=(user.username, user.password) if user.username and not is_other else None,
        datacenter=overrides.datacenter,
        stale=overrides.stale,
        tls=TlsSettings(
            ca_file=overrides.ca_file,
            ca_path=overrides.ca_path,
            client_cert=overrides.client_cert,
            client_key=overrides.client_key,
            server_name=overrides.server_name or cluster.tls_server_name,
            verify=not cluster.insecure_skip_tls_verify,
            ca_pem="" if overrides.ca_file else authorities.decode("ascii", "replace"),
            client_pem=b"" if is_other or overrides.client_cert else certificate + b"\n" + key,
        ),
    )


def parse_address(text: str, *, default_scheme: str = "http") -> tuple[str, str, int, str]:
    """Return scheme, host, port and socket path of `host:port`, `http[s]://host:port` or `unix:///path`.

    A missing host means this machine, a missing port the scheme's own. Raises Malformed.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = default_scheme, text
    if scheme == "unix":
        if not rest:
            raise Malformed(f'address "{text}" names no socket')
        return "http", "", 0, rest
    if scheme not in ("http", "https"):
        raise Malformed(f"Unknown protocol scheme: {scheme}")
    rest = rest.rstrip("/")
    if rest.startswith("["):
        host, bracket, port_text = rest[1:].partition("]")
        if not bracket or (port_text and not port_text.startswith(":")):
            raise Malformed(f'address "{text}" is not [IPv6]:port')
        port_text = port_text[1:]
    else:
        host, _, port_text = rest.partition(":")
    if ":" in port_text or "/" in rest or "@" in rest:
        raise Malformed(f'address "{text}" is not host:port, http[s]://host:port or unix:///path')
    if not port_text:
        return scheme, host or "127.0.0.1", 443 if scheme == "https" else 80, ""
    if not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise Malformed(f'address "{text}" has the invalid port "{port_text}"')
    return scheme, host or "127.0.0.1", int(port_text), ""


def _boolean(environment: Mapping[str, str], variable: str, *, default: bool) -> bool:
    text = environment.get(variable, "")
    if not text:
        return default
    if text not in _TRUE | _FALSE:
        raise Malformed(f'{variable}="{text}" is neither true nor false')
    return text in _TRUE


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError as exc:
        raise Malformed(
            f"Error loading token file: open {path}: no such file or directory"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise Malformed(f"Error loading token file {path}: {exc}") from exc
