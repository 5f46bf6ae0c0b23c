"""The `access` block of the configuration: who is believed, who decides, what is written down.

Keys are the flags of a kube-apiserver with `_` for `-`. Files are read at the start and at each reload; those that hold
secrets only if nobody else may read them.
Source: kube-apiserver command-line reference.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from waypost.access.audit.log import LogSettings
from waypost.access.audit.policy import Policy, default_policy, parse_policy
from waypost.access.authn.remote import Endpoint
from waypost.access.authz.configuration import AuthorizerPlan, parse_configuration, parse_modes
from waypost.access.pki.setup import Layout
from waypost.base.duration import parse_s
from waypost.base.errors import Malformed
from waypost.base.later import later
from waypost.wire import kubeconfig

if TYPE_CHECKING:
    import yaml
else:
    yaml = later("yaml")

_MAX_FILE_BYTES: Final = 16 << 20
_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


class AccessConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every key of the block; the defaults are kube's where they make sense on one machine."""

    anonymous_auth: bool = True
    authorization_mode: str = ""
    """Empty: `Node,RBAC` once there are certificates or any setting that names users; else Consul's open loopback."""
    authorization_config: str = ""
    authorization_policy_file: str = ""
    authorization_webhook_config_file: str = ""
    authorization_webhook_cache_authorized_ttl: str = "5m"
    authorization_webhook_cache_unauthorized_ttl: str = "30s"
    client_ca_file: str = ""
    token_auth_file: str = ""
    basic_auth_file: str = ""
    oidc_issuer_url: str = ""
    oidc_client_id: str = ""
    oidc_username_claim: str = "sub"
    oidc_username_prefix: str | None = None
    oidc_groups_claim: str = ""
    oidc_groups_prefix: str = ""
    oidc_required_claim: tuple[str, ...] = ()
    oidc_signing_algs: str = "RS256"
    oidc_ca_file: str = ""
    authentication_token_webhook_config_file: str = ""
    authentication_token_webhook_version: Literal["v1", "v1beta1"] = "v1"  # noqa: S105
    authentication_token_webhook_cache_ttl: str = "2m"  # noqa: S105
    requestheader_client_ca_file: str = ""
    requestheader_allowed_names: tuple[str, ...] = ()
    requestheader_username_headers: tuple[str, ...] = ("X-Remote-User",)
    requestheader_uid_headers: tuple[str, ...] = ("X-Remote-Uid",)
    requestheader_group_headers: tuple[str, ...] = ("X-Remote-Group",)
    requestheader_extra_headers_prefix: tuple[str, ...] = ("X-Remote-Extra-",)
    service_account_jwks_uri: str = ""
    """https URL at which others find the keys of service-account tokens; empty: at this server's own address."""
    audit_log_path: str = ""
    """Empty: no audit log."""
    audit_policy_file: str = ""
    audit_log_maxage: int = 0
    """Days; 0: kept whatever its age."""
    audit_log_maxbackup: int = 0
    """0: all of them."""
    audit_log_maxsize: int = 100
    """Megabytes after which a new file begins."""
    audit_log_mode: Literal["batch", "blocking"] = "batch"
    audit_log_batch_buffer_size: int = 10_000

    @property
    def names_users(self) -> bool:
        """Whether some setting says how callers prove who they are."""
        return any(
            (
                self.client_ca_file,
                self.token_auth_file,
                self.basic_auth_file,
                self.oidc_issuer_url,
                self.authentication_token_webhook_config_file,
                self.requestheader_client_ca_file,
            )
        )

    @property
    def is_protected(self) -> bool:
        """Whether access control holds even without certificates of our own."""
        return self.names_users or bool(self.authorization_mode or self.authorization_config)


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An audit log: what is written, and where."""

    log: LogSettings
    policy: Policy


# -- authorization -------------------------------------------------------------------------------------------------------


def authorizer_plans(config: AccessConfig) -> tuple[AuthorizerPlan, ...]:
    """Return the members of the chain in order. Raises Malformed naming the key."""
    if config.authorization_config:
        if config.authorization_mode or config.authorization_webhook_config_file:
            msg = "access.authorization_config: cannot be given together with authorization_mode or a webhook's file"
            raise Malformed(msg)
        path = Path(config.authorization_config)
        return parse_configuration(_yaml(read_text(path), name=str(path)))
    try:
        plans = parse_modes(config.authorization_mode or "Node,RBAC")
    except Malformed as exc:
        raise Malformed(f"access.authorization_mode: {exc}") from exc
    modes = {plan.mode for plan in plans}
    for mode, key, given in (
        ("ABAC", "authorization_policy_file", config.authorization_policy_file),
        ("Webhook", "authorization_webhook_config_file", config.authorization_webhook_config_file),
    ):
        if bool(given) != (mode in modes):
            where = "is needed for" if mode in modes else "has no effect without"
            raise Malformed(f"access.{key} {where} authorization mode {mode}")
    return plans


def jwks_uri(config: AccessConfig) -> str:
    """Return where others are told to find the keys, empty for here. Raises Malformed naming the key."""
    found = config.service_account_jwks_uri
    if found and not found.startswith("https://"):
        raise Malformed(f"access.service_account_jwks_uri: {found!r} is no https URL")
    return found


def audit_settings(config: AccessConfig) -> AuditSettings | None:
    """Return the audit log's settings, None when there is none. Raises Malformed naming the key or the file's place."""
    if not config.audit_log_path:
        if config.audit_policy_file:
            raise Malformed("access.audit_policy_file has no effect without audit_log_path")
        return None
    for key in ("audit_log_maxage", "audit_log_maxbackup", "audit_log_maxsize"):
        if getattr(config, key) < 0:
            raise Malformed(f"access.{key}: must not be negative")
    if config.audit_log_batch_buffer_size < 1:
        raise Malformed("access.audit_log_batch_buffer_size: must be at least 1")
    policy = default_policy()
    if config.audit_policy_file:
        path = Path(config.audit_policy_file)
        policy = parse_policy(_yaml(read_text(path), name=str(path)), name=str(path))
    return AuditSettings(
        log=LogSettings(
            path="" if config.audit_log_path == "-" else config.audit_log_path,
            max_size_bytes=config.audit_log_maxsize * 2**20,
            max_age_s=config.audit_log_maxage * 86400.0,
            max_backups=config.audit_log_maxbackup,
            buffer_events=config.audit_log_batch_buffer_size,
            blocks=config.audit_log_mode == "blocking",
        ),
        policy=policy,
    )


# -- files ---------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Return a file's text. Raises Malformed that names it."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise Malformed(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise Malformed(f"{path}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise Malformed(f"{path}: not UTF-8") from exc


def read_secret(path: Path) -> str:
    """Return the text of a file that nobody else may read. Raises Malformed that names the file and the wanted mode."""
    require_private(path)
    return read_text(path)


def require_private(path: Path) -> None:
    """Refuse a secret file that others may read or write. Raises Malformed; a missing file is not looked at."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Malformed(f"{path}: {exc.strerror or exc}") from exc
    if mode & _OTHERS:
        raise Malformed(
            f"{path}: mode {mode:04o} lets others at a secret; wanted is 0600 (or 0640): chmod 600 {path}"
        )


def key_files(layout: Layout) -> tuple[Path, ...]:
    """Return the private keys that the agent reads itself."""
    return (layout.key("ca"), layout.key("apiserver"), layout.key("sa"))


def exposed_files(layout: Layout) -> list[str]:
    """Return what to tell about kubeconfig files of the data directory that others may read."""
    found = []
    for path in sorted(layout.data_dir.glob("*.conf")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & _OTHERS:
            found.append(f"{path}: mode {mode:04o} lets others use its credentials; wanted is 0600")
    return found


def endpoint_of(path: Path, *, timeout_s: float = 30.0) -> Endpoint:
    """Return whom a webhook's kubeconfig file names. Raises Malformed naming the file."""
    text = read_secret(path)
    config = kubeconfig.absolute_paths(
        kubeconfig.parse(text.encode(), name=str(path)), folder=str(path.absolute().parent)
    )
    try:
        _, cluster, user = kubeconfig.flatten(
            kubeconfig.minify(config), lambda name: Path(name).read_bytes()
        ).context()
        token = user.token
        if user.token_file and not token:
            token = read_secret(Path(user.token_file)).strip()
        return Endpoint(
            url=cluster.server,
            ca_pem=kubeconfig.decoded(
                cluster.certificate_authority_data, what="certificate-authority-data"
            ),
            insecure=cluster.insecure_skip_tls_verify,
            server_name=cluster.tls_server_name,
            certificate_pem=kubeconfig.decoded(
                user.client_certificate_data, what="client-certificate-data"
            ),
            key_pem=kubeconfig.decoded(user.client_key_data, what="client-key-data"),
            token=token,
            user=user.username,
            password=user.password,
            timeout_s=timeout_s,
        )
    except (Malformed, OSError) as exc:
        raise Malformed(f"{path}: {exc}") from exc


def _yaml(text: str, *, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Malformed(f"{name}: no valid YAML{where}") from exc


def seconds(key: str, text: str) -> float:
    """Return the seconds of a Go duration. Raises Malformed naming the key."""
    try:
        return parse_s(text)
    except Malformed as exc:
        raise Malformed(f"access.{key}: {exc}") from exc


def pairs(key: str, texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return `NAME=VALUE` texts as pairs. Raises Malformed naming the key."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Malformed(f"access.{key}: {text!r} is not CLAIM=VALUE")
        found.append((name, value))
    return tuple(found)
