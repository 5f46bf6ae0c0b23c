"""Access control of a real agent after `waypost init`: kubectl, the command line and plain HTTP clients."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import dns.query
import dns.rcode
import pytest

if TYPE_CHECKING:
    from .conftest import Protected

WEB = {"X-Consul-Token": "token-of-web"}
SECRETS = ("token-of-web", "token-of-ops", "hidden-value", "hidden-secret", "wrong-token")


def apply(agent: Protected, document: dict[str, Any], *, method: str = "POST") -> None:
    """Create (or delete) an RBAC object as root over the unix socket."""
    plural = {"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings"}
    path = f"/apis/rbac.authorization.k8s.io/v1/{plural[document['kind']]}"
    if method == "DELETE":
        path += "/" + document["metadata"]["name"]
        answer = agent.ask(method, path, over="unix")
    else:
        answer = agent.ask(
            method, path, body=document, over="unix", headers={"Content-Type": "application/json"}
        )
    assert answer.status in (200, 201), answer.body


def role(name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": list(rules),
    }


def binding(name: str, *, user: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }


def test_without_a_credential_loopback_may_discover_and_nothing_else(agent: Protected) -> None:
    for target in ("/v1/catalog/services", "/v1/health/service/consul", "/v1/status/leader"):
        assert agent.ask("GET", target).status == 200
    assert agent.ask("PUT", "/v1/kv/a", body=b"x").status == 403
    assert agent.ask("GET", "/v1/kv/a").status == 403
    answer = agent.ask("PUT", "/v1/agent/service/register", body={"Name": "web"})
    assert answer.status == 403
    assert b'User "system:anonymous" cannot update resource "services"' in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Consul-Token": "wrong-token"},
        {"Authorization": "Bearer wrong-token"},
    ],
)
def test_a_wrong_token_is_401_even_for_what_is_open(
    agent: Protected, headers: dict[str, str]
) -> None:
    assert agent.ask("GET", "/v1/catalog/services", headers=headers).status == 401
    assert agent.ask("GET", "/v1/catalog/services?token=wrong-token").status == 401


def test_the_unix_socket_belongs_to_root(agent: Protected) -> None:
    assert agent.ask("PUT", "/v1/kv/of-root", body=b"x", over="unix").status == 200
    said = agent.waypost("auth", "whoami", "-o=json", f"-http-addr=unix://{agent.socket}").stdout
    assert "system:masters" in json.loads(said)["groups"]


def test_three_ways_to_show_a_token(agent: Protected) -> None:
    for headers, query in (
        ({"X-Consul-Token": "token-of-web"}, ""),
        ({"Authorization": "Bearer token-of-web"}, ""),
        ({}, "?token=token-of-web"),
    ):
        answer = agent.ask("GET", f"/v1/waypost/auth/whoami{query}", headers=headers)
        assert (answer.status, answer.json["user"]) == (200, "web-team")
        assert answer.json["groups"] == ["deployers", "system:authenticated"]


def test_admin_conf_is_for_the_command_line_and_for_kubectl(agent: Protected) -> None:
    agent.waypost("kv", "put", agent.admin, "from/admin", "1")
    assert agent.waypost("kv", "get", agent.admin, "from/admin").stdout == "1\n"
    environment = {"KUBECONFIG": str(agent.process.data / "operator.conf")}
    assert agent.waypost("kv", "get", "from/admin", env=environment).stdout == "1\n"
    text = agent.waypost("auth", "explain", agent.admin).stdout
    assert text.startswith("ALLOWED  kubernetes-admin may *")
    assert "in system:masters   (O of the certificate)" in text
    assert len(text.splitlines()) <= 24


@pytest.mark.needs("kubectl")
def test_kubectl_reads_the_policy_with_admin_conf(agent: Protected, tmp_path: Path) -> None:
    done = subprocess.run(
        ["kubectl", "get", "clusterrolebinding/cluster-admin", "-o", "json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "KUBECONFIG": str(agent.process.data / "admin.conf"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["subjects"][0]["name"] == "system:masters"


def test_a_token_registers_only_its_own_service_until_the_binding_goes(agent: Protected) -> None:
    register = "/v1/agent/service/register"
    mine, other = {"Name": "web", "Port": 80}, {"Name": "db", "Port": 5432}
    assert agent.ask("PUT", register, body=mine, headers=WEB).status == 403
    rule = {
        "apiGroups": ["discovery.waypost.io"],
        "resources": ["services"],
        "resourceNames": ["web"],
        "verbs": ["update", "delete"],
    }
    apply(agent, role("web-registrant", rule))
    bound = binding("web-registrant", user="web-team")
    apply(agent, bound)

    assert agent.ask("PUT", register, body=mine, headers=WEB).status == 200
    assert agent.ask("PUT", register, body=other, headers=WEB).status == 403
    assert agent.ask("PUT", "/v1/kv/a", body=b"x", headers=WEB).status == 403

    web = ["-token=token-of-web", f"-http-addr=127.0.0.1:{agent.process.http}"]
    text = agent.waypost("auth", "explain", *web, "update", "services/web").stdout
    assert (
        'ClusterRoleBinding web-registrant → User "web-team" → ClusterRole web-registrant, rule 0'
        in text
    )
    refused = agent.waypost("auth", "explain", *web, "update", "services/db", expect=1).stdout
    assert refused.startswith("REFUSED")
    assert "near" not in refused  # that would show him the policy, which he may not read
    agent.waypost("auth", "can-i", "-q", *web, "update", "services/web")
    agent.waypost("auth", "can-i", "-q", *web, "update", "services/db", expect=1)
    agent.waypost("auth", "can-i", "-q", "-token=wrong-token", *web[1:], "get", "nodes", expect=2)
    table = agent.waypost("auth", "who-can", agent.admin, "update", "services/web").stdout
    assert 'User "web-team"' in table

    apply(agent, bound, method="DELETE")
    assert agent.ask("PUT", register, body=mine, headers=WEB).status == 403
    nearest = agent.waypost(
        "auth", "explain", agent.admin, "-as=web-team", "update", "services/web", expect=1
    ).stdout
    assert "--resource-name=web" in nearest


def test_who_may_not_ask_about_others_is_refused(agent: Protected) -> None:
    body = {"user": "ops", "verb": "get", "resource": "services"}
    assert agent.ask("POST", "/v1/waypost/auth/explain", body=body, headers=WEB).status == 403
    assert agent.ask("POST", "/v1/waypost/auth/who-can", body={}, headers=WEB).status == 403
    assert agent.ask("GET", "/v1/waypost/auth/lint", headers=WEB).status == 403


def test_every_request_that_matters_is_in_the_audit_log_and_no_secret_is(agent: Protected) -> None:
    refused = agent.ask("PUT", "/v1/kv/a?token=token-of-web", body=b"hidden-value")
    event = agent.event(refused.headers["audit-id"])
    assert event["requestURI"] == "/v1/kv/a?token=REDACTED"
    assert event["user"]["username"] == "web-team"
    assert event["responseStatus"]["code"] == 403
    assert event["annotations"]["authorization.k8s.io/decision"] == "forbid"

    done = agent.ask("PUT", "/v1/kv/a", body=b"hidden-value", over="unix")
    event = agent.event(done.headers["audit-id"])
    assert event["annotations"]["authorization.k8s.io/decision"] == "allow"
    assert (event["verb"], event["stage"]) == ("update", "ResponseComplete")

    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"password": "hidden-secret"},
    }
    made = agent.ask(
        "POST",
        "/api/v1/namespaces/default/secrets",
        body=secret,
        over="unix",
        headers={"Content-Type": "application/json"},
    )
    assert made.status == 201, made.body
    event = agent.event(made.headers["audit-id"])
    assert event["objectRef"] == {
        "resource": "secrets",
        "namespace": "default",
        "apiVersion": "v1",
    }

    unknown = agent.ask("GET", "/v1/agent/self", headers={"X-Consul-Token": "wrong-token"})
    event = agent.event(unknown.headers["audit-id"])
    assert (event["user"], event["responseStatus"]["code"]) == ({}, 401)

    text = agent.audit_log.read_text()
    assert not [secret for secret in SECRETS if secret in text]
    assert stat.S_IMODE(agent.audit_log.stat().st_mode) == 0o600
    log = agent.process.log_file.read_text()
    assert not [secret for secret in SECRETS if secret in log]


def test_finding_services_is_not_written_down(agent: Protected) -> None:
    for _ in range(3):
        answer = agent.ask("GET", "/v1/catalog/services")
        assert "audit-id" not in answer.headers


def test_a_past_request_is_explained_by_its_audit_id(agent: Protected) -> None:
    refused = agent.ask("PUT", "/v1/kv/a", body=b"x", headers=WEB)
    audit_id = refused.headers["audit-id"]
    agent.event(audit_id)
    text = agent.waypost("auth", "explain", agent.admin, f"-audit-id={audit_id}", expect=1).stdout
    assert "/v1/kv/a: forbid, status 403" in text
    assert 'User "web-team" cannot update path "/v1/kv/a"' in text


def test_impersonation_names_both(agent: Protected) -> None:
    answer = agent.ask(
        "GET",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/none-of-that",
        over="unix",
        headers={"Impersonate-User": "ops"},
    )
    assert answer.status == 403
    answer = agent.ask(
        "POST",
        "/api/v1/namespaces/default/secrets",
        body={"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}},
        over="unix",
        headers={"Impersonate-User": "ops", "Content-Type": "application/json"},
    )
    assert answer.status == 403
    event = agent.event(answer.headers["audit-id"])
    assert event["user"]["username"] == "unix:0"
    assert event["impersonatedUser"]["username"] == "ops"
    assert event["annotations"]["authorization.k8s.io/decision"] == "forbid"


def test_dns_follows_the_policy_at_once(agent: Protected) -> None:
    def rcode() -> str:
        question = dns.message.make_query("consul.service.consul.", "A")
        answer = dns.query.udp(question, "127.0.0.1", port=agent.process.dns, timeout=5)
        return dns.rcode.to_text(answer.rcode())

    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/waypost:discoverer"
    assert rcode() == "NOERROR"
    discoverer = agent.ask("GET", path, over="unix").json
    discoverer["metadata"] = {"name": "waypost:discoverer"}
    apply(agent, discoverer, method="DELETE")
    try:
        assert rcode() == "REFUSED"
        assert agent.ask("GET", "/v1/catalog/services").status == 403
    finally:
        apply(agent, discoverer)
    assert rcode() == "NOERROR"


def test_without_an_agent_the_data_directory_answers(agent: Protected, tmp_path: Path) -> None:
    data = f"-data-dir={agent.process.data}"
    refused = agent.waypost("auth", "lint", data, expect=2)
    assert "ask the running agent" in refused.stderr
    agent.process.terminate()
    try:
        operator = f"-kubeconfig={agent.process.data / 'operator.conf'}"
        text = agent.waypost("auth", "explain", data, operator, "delete", "nodes").stdout
        assert "ClusterRoleBinding waypost:operators" in text
        assert "in waypost:operators   (O of the certificate)" in text
        agent.waypost("auth", "can-i", "-q", data, "-as=web-team", "delete", "nodes", expect=1)
        assert "waypost:operators" in agent.waypost("auth", "who-can", data, "*", "*").stdout
        empty = agent.waypost("auth", "lint", f"-data-dir={tmp_path}", expect=2)
        assert "there is no store" in empty.stderr
    finally:
        agent.process.start()
