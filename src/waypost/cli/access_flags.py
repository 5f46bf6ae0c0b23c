"""The agent's flags for access control, named as those of a kube-apiserver; each is a key of the `access` block."""

from __future__ import annotations

from waypost.cli.flags import Settings, flag, repeated


class AccessFlags(Settings):
    """Who is believed, who decides, what is written down."""

    section = "Access Options"

    anonymous_auth: bool = flag(
        True, "Take requests without a credential as those of system:anonymous; false: 401."
    )
    authorization_mode: str = flag(
        "",
        "Authorizers in order: Node, RBAC, ABAC, Webhook, AlwaysAllow, AlwaysDeny. Default Node,RBAC once there "
        "are certificates or a setting that names users; before that, this machine may do everything.",
        value="list",
    )
    authorization_config: str = flag(
        "", "AuthorizationConfiguration file, in place of -authorization-mode.", value="file"
    )
    authorization_policy_file: str = flag(
        "", "ABAC policy, one JSON object a line; for mode ABAC.", value="file"
    )
    authorization_webhook_config_file: str = flag(
        "", "Kubeconfig file that says where the webhook of mode Webhook is.", value="file"
    )
    authorization_webhook_cache_authorized_ttl: str = flag(
        "", "How long the webhook's yes holds. Default 5m.", value="duration"
    )
    authorization_webhook_cache_unauthorized_ttl: str = flag(
        "", "How long its no holds. Default 30s.", value="duration"
    )
    client_ca_file: str = flag(
        "", "Authorities of client certificates besides the agent's own.", value="file"
    )
    token_auth_file: str = flag(
        "", 'CSV of tokens: token,user,uid,"group1,group2". Mode 0600.', value="file"
    )
    basic_auth_file: str = flag(
        "", 'CSV of passwords: password,user,uid,"group1,group2". Mode 0600.', value="file"
    )
    oidc_issuer_url: str = flag("", "https URL of an OpenID Connect issuer.", value="url")
    oidc_client_id: str = flag("", "Audience that its tokens must have.", value="id")
    oidc_username_claim: str = flag("", "Claim of the user's name. Default sub.", value="claim")
    oidc_username_prefix: str = flag(
        "", "What stands before names; - for nothing. Default ISSUER#, but nothing for email."
    )
    oidc_groups_claim: str = flag("", "Claim of the groups.", value="claim")
    oidc_groups_prefix: str = flag("", "What stands before groups.")
    oidc_required_claim: tuple[str, ...] = repeated(
        str, "CLAIM=VALUE that a token must have; may be given several times."
    )
    oidc_signing_algs: str = flag("", "Algorithms of signatures. Default RS256.", value="list")
    oidc_ca_file: str = flag("", "Authorities of the issuer's own certificate.", value="file")
    authentication_token_webhook_config_file: str = flag(
        "", "Kubeconfig file that says which webhook knows tokens.", value="file"
    )
    authentication_token_webhook_version: str = flag("", "v1 or v1beta1. Default v1.")
    authentication_token_webhook_cache_ttl: str = flag(
        "", "How long its answer holds. Default 2m.", value="duration"
    )
    requestheader_client_ca_file: str = flag(
        "", "Authorities of front proxies, which name the user in headers.", value="file"
    )
    requestheader_allowed_names: tuple[str, ...] = repeated(
        str, "Common names of front proxies; without one, all of that authority."
    )
    requestheader_username_headers: tuple[str, ...] = repeated(
        str, "Header of the user. Default X-Remote-User."
    )
    requestheader_uid_headers: tuple[str, ...] = repeated(
        str, "Header of the uid. Default X-Remote-Uid."
    )
    requestheader_group_headers: tuple[str, ...] = repeated(
        str, "Header of groups. Default X-Remote-Group."
    )
    requestheader_extra_headers_prefix: tuple[str, ...] = repeated(
        str, "Beginning of headers with more. Default X-Remote-Extra-."
    )
    service_account_jwks_uri: str = flag(
        "",
        "https URL where others find the keys of service-account tokens. Default: this agent's own address.",
        value="url",
    )
    audit_log_path: str = flag(
        "", "File for the audit log, - for standard output. Default: none.", value="file"
    )
    audit_policy_file: str = flag(
        "",
        "audit.k8s.io/v1 Policy: what is written. Default: everything but discovery, at level Metadata.",
        value="file",
    )
    audit_log_maxage: int = flag(0, "Days that old files are kept; 0: any age.", value="days")
    audit_log_maxbackup: int = flag(0, "How many old files are kept; 0: all.")
    audit_log_maxsize: int = flag(
        100, "Megabytes after which a new file begins; 0: never.", value="megabytes"
    )
    audit_log_mode: str = flag(
        "", "batch: never wait for the disk; blocking: answer only what is written. Default batch."
    )


LISTS = tuple(name for name, spec in AccessFlags.declared.items() if spec.repeat)
"""Flags whose values may be separated by commas, as kube-apiserver's."""


def access_values(given: frozenset[str], flags: AccessFlags) -> dict[str, object]:
    """Return the keys of the `access` block that stood on the command line."""
    values: dict[str, object] = {}
    for name in given & AccessFlags.declared.keys():
        attribute = AccessFlags.declared[name].attribute
        value = getattr(flags, attribute)
        if name in LISTS:
            value = [piece.strip() for text in value for piece in text.split(",") if piece.strip()]
        values[attribute] = value
    return values
