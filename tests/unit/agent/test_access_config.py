from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from waypost.access.audit.policy import Level
from waypost.access.gate import Attributes, ExposureAuthorizer
from waypost.agent.access import AccessControl
from waypost.agent.access_config import (
    AccessConfig,
    audit_settings,
    authorizer_plans,
    endpoint_of,
    read_secret,
)
from waypost.base.clock import SystemClock
from waypost.base.errors import Malformed
from waypost.cli.agent import AgentFlags, overrides
from waypost.cli.flags import parse
from waypost.state.state import State
from waypost.store.open import make_engine
from waypost.surfaces.http.message import Head, Headers, Peer, Rendered, Request, Response

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: "https://hook.example:8443/authorize"}}]
users: [{name: u, user: {token: hidden}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
"""


def control(**fields: Any) -> AccessControl:
    clock = SystemClock()
    view = State(make_engine("memory", clock=clock)).view
    return AccessControl(
        view,
        exposure=ExposureAuthorizer(),
        keys=None,
        clock=clock,
        config=AccessConfig(**fields),
    )


def secret(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def request(*headers: tuple[str, str], address: str = "127.0.0.1") -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    head = Head(method="GET", target=b"/v1/x", headers=Headers(raw))
    return Request(head, body=b"", peer=Peer(listener="http", address=address), arrived_s=0.0)


def test_every_flag_is_a_key_of_the_block_and_the_other_way_round() -> None:
    flags = {
        spec.attribute for spec in AgentFlags.declared.values() if spec.section == "Access Options"
    }
    assert flags == set(AccessConfig.__struct_fields__) - {"audit_log_batch_buffer_size"}


def test_flags_become_keys() -> None:
    flags, _ = parse(
        AgentFlags,
        [
            "-authorization-mode=Node,RBAC",
            "-anonymous-auth=false",
            "-audit-log-maxage",
            "7",
            "-requestheader-allowed-names=a,b",
            "-requestheader-allowed-names=c",
        ],
    )
    assert overrides(flags) == {
        "access": {
            "authorization_mode": "Node,RBAC",
            "anonymous_auth": False,
            "audit_log_maxage": 7,
            "requestheader_allowed_names": ["a", "b", "c"],
        }
    }
    msgspec.convert(overrides(flags)["access"], AccessConfig)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620])
def test_a_secret_that_others_get_at_stops_the_start(tmp_path: Path, mode: int) -> None:
    name = secret(tmp_path, "t,u,1", mode)
    with pytest.raises(Malformed, match=rf"{name}: mode {mode:04o} .*wanted is 0600.*chmod 600"):
        control(token_auth_file=name)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_secret_of_its_own_is_read(tmp_path: Path, mode: int) -> None:
    assert read_secret(Path(secret(tmp_path, "x", mode))) == "x"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"authorization_mode": "Node,Rbac"}, "access.authorization_mode: .*'Rbac' is not known"),
        ({"authorization_mode": "RBAC,RBAC"}, "more than once"),
        ({"authorization_mode": "ABAC"}, "access.authorization_policy_file is needed for"),
        ({"authorization_policy_file": "x"}, "has no effect without authorization mode ABAC"),
        ({"authorization_mode": "Webhook"}, "authorization_webhook_config_file is needed"),
        ({"authorization_config": "x", "authorization_mode": "RBAC"}, "cannot be given together"),
    ],
)
def test_a_wrong_chain_names_the_key(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(Malformed, match=text):
        authorizer_plans(AccessConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"oidc_issuer_url": "https://i"}, "access.oidc_client_id is needed"),
        ({"oidc_issuer_url": "http://i", "oidc_client_id": "c"}, "is no https URL"),
        (
            {"oidc_issuer_url": "https://i", "oidc_client_id": "c", "oidc_required_claim": ("x",)},
            "access.oidc_required_claim: 'x' is not CLAIM=VALUE",
        ),
        ({"token_auth_file": "/nowhere/t"}, "/nowhere/t: No such file"),
        ({"client_ca_file": "/nowhere/ca"}, "/nowhere/ca: No such file"),
        ({"requestheader_client_ca_file": "/nowhere/ca"}, "access.requestheader_client_ca_file"),
        ({"audit_log_path": "x", "audit_log_maxsize": -1}, "audit_log_maxsize: must not be"),
        ({"audit_policy_file": "x"}, "no effect without audit_log_path"),
    ],
)
def test_a_wrong_setting_names_the_key(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(Malformed, match=text):
        control(**fields)


def test_the_audit_log_has_a_policy_without_a_file(tmp_path: Path) -> None:
    found = audit_settings(AccessConfig(audit_log_path="a.log", audit_log_maxage=2))
    assert found is not None
    assert found.log.max_age_s == 2 * 86400
    assert found.policy.rules[-1].level is Level.METADATA
    policy = tmp_path / "p.yaml"
    policy.write_text("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Request\n")
    found = audit_settings(AccessConfig(audit_log_path="-", audit_policy_file=str(policy)))
    assert found is not None
    assert (found.log.path, found.policy.rules[0].level) == ("", Level.REQUEST)
    policy.write_text("a: [b\n")
    with pytest.raises(Malformed, match=r"p.yaml: no valid YAML at line 2"):
        audit_settings(AccessConfig(audit_log_path="-", audit_policy_file=str(policy)))


def test_a_webhook_is_where_its_kubeconfig_says(tmp_path: Path) -> None:
    found = endpoint_of(Path(secret(tmp_path, KUBECONFIG)))
    assert (found.url, found.token) == ("https://hook.example:8443/authorize", "hidden")
    assert "hidden" not in repr(found)
    with pytest.raises(Malformed, match="mode 0644"):
        endpoint_of(Path(secret(tmp_path, KUBECONFIG, 0o644)))
    with pytest.raises(Malformed, match="current-context must exist"):
        endpoint_of(Path(secret(tmp_path, "apiVersion: v1\nkind: Config\n")))


def test_naming_users_ends_the_open_posture(tmp_path: Path) -> None:
    register = Attributes("update", "services", "web")
    before = control()
    found = before.authenticate(request())
    assert not before.is_protected
    assert before.gate.allows(found.actor, register)  # type: ignore[union-attr,arg-type]
    after = control(token_auth_file=secret(tmp_path, "abc,web,1,ops\n"))
    found = after.authenticate(request())
    assert after.is_protected
    assert not after.gate.allows(found.actor, register)  # type: ignore[union-attr,arg-type]
    found = after.authenticate(request(("X-Consul-Token", "abc")))
    assert found.actor.user == "web"  # type: ignore[union-attr]


def test_without_anonymous_callers_there_is_no_short_way() -> None:
    closed = control(authorization_mode="RBAC", anonymous_auth=False)
    found = closed.authenticate(request())
    assert found.actor is None  # type: ignore[union-attr]
    kept = Rendered(Response(body=b"kept"))
    asked = request()
    for one, wanted in ((closed, None), (control(), kept)):
        assert one.fast(lambda _head, _actor: kept, None)(asked.head, asked.peer) is wanted


def test_what_is_opened_by_hand_is_said_at_every_start() -> None:
    said = control(authorization_mode="AlwaysAllow").warnings(
        http_addresses=["127.0.0.1"], ports=(8500, -1)
    )
    assert [line for line in said if "AlwaysAllow" in line]
    said = control().warnings(http_addresses=["0.0.0.0"], ports=(8500, -1))
    assert [line for line in said if "without access control" in line]
    said = control(authorization_mode="RBAC").warnings(
        http_addresses=["10.0.0.1"], ports=(8500, 8501)
    )
    assert [line for line in said if "can be read on the way" in line]
    assert not control().warnings(http_addresses=["127.0.0.1", "::1"], ports=(8500, -1))
