"""Webhooks as an operator uses them: configured by kubectl, asked over HTTPS, for objects and for registrations."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from .conftest import denial, free_ports, hook, patch, rule

DISCOVERY = "discovery.waypost.io"
SERVICES = rule(DISCOVERY, "services")
CONFIGMAPS = rule("", "configmaps")


# -- objects -------------------------------------------------------------------------------------------------------------


def test_a_refused_object_is_not_stored_and_the_reason_is_shown(cluster, webhook):
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", CONFIGMAPS))
    webhook.decide = lambda request: denial("no configuration on a Friday")
    done = cluster.run("create", "configmap", "refused", "--from-literal=a=b")
    assert done.returncode == 1
    assert done.stderr == (
        'error: failed to create configmap: admission webhook "guard.example.com" denied the request: '
        "no configuration on a Friday\n"
    )
    assert "NotFound" in cluster.run("get", "configmap", "refused").stderr
    (seen,) = webhook.seen
    assert seen["operation"] == "CREATE"
    assert seen["namespace"] == "default"
    assert seen["name"] == "refused"
    assert seen["resource"] == {"group": "", "version": "v1", "resource": "configmaps"}
    assert seen["userInfo"]["username"] == "kubernetes-admin"
    assert seen["object"]["data"] == {"a": "b"}
    assert seen["object"]["metadata"]["uid"]
    assert seen["oldObject"] is None
    assert seen["dryRun"] is False


def test_a_changed_object_is_stored_as_changed(cluster, webhook):
    cluster.configure("Mutating", "defaults", hook(webhook, "defaults.example.com", CONFIGMAPS))
    webhook.decide = lambda request: (
        patch(
            {"op": "add", "path": "/data/added", "value": "yes"},
            {"op": "add", "path": "/metadata/labels", "value": {"team": "blue"}},
        )
        | {"warnings": ["labelled for you"]}
        if request["operation"] == "CREATE"
        else {"allowed": True}
    )
    done = cluster.run("create", "configmap", "changed", "--from-literal=a=b")
    assert done.returncode == 0, done.stderr
    assert "Warning: labelled for you" in done.stderr
    stored = json.loads(cluster.ok("get", "configmap", "changed", "-o", "json"))
    assert stored["data"] == {"a": "b", "added": "yes"}
    assert stored["metadata"]["labels"] == {"team": "blue"}
    # Set by the server only after the webhooks have spoken.
    assert "uid" not in webhook.seen[0]["object"]["metadata"]
    cluster.ok("delete", "configmap", "changed")
    assert [one["operation"] for one in webhook.seen] == ["CREATE", "DELETE"]
    assert webhook.seen[1]["object"] is None
    assert webhook.seen[1]["oldObject"]["data"] == {"a": "b", "added": "yes"}


def test_patches_and_deletions_are_asked_about(cluster, webhook):
    cluster.ok("create", "configmap", "kept", "--from-literal=a=b")
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", CONFIGMAPS))
    webhook.decide = lambda request: denial("hands off", code=403, reason="Forbidden")
    done = cluster.run("label", "configmap", "kept", "x=y")
    assert 'admission webhook "guard.example.com" denied the request: hands off' in done.stderr
    done = cluster.run("delete", "configmap", "kept")
    assert 'admission webhook "guard.example.com" denied the request: hands off' in done.stderr
    assert [one["operation"] for one in webhook.seen] == ["UPDATE", "DELETE"]
    stored = json.loads(cluster.ok("get", "configmap", "kept", "-o", "json"))
    assert "labels" not in stored["metadata"]
    webhook.forget()
    cluster.ok("delete", "configmap", "kept")


def test_a_dry_run_says_so_and_stores_nothing(cluster, webhook):
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", CONFIGMAPS))
    cluster.ok("create", "configmap", "dry", "--from-literal=a=b", "--dry-run=server")
    assert [one["dryRun"] for one in webhook.seen] == [True]
    assert "NotFound" in cluster.run("get", "configmap", "dry").stderr


def test_selectors_choose_who_is_asked(cluster, webhook):
    guard = hook(
        webhook,
        "guard.example.com",
        CONFIGMAPS,
        namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        objectSelector={"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]},
    )
    cluster.configure("Validating", "guard", guard)
    webhook.decide = lambda request: denial("no")
    cluster.ok("create", "configmap", "elsewhere", "-n", "kube-public")
    cluster.ok("delete", "configmap", "elsewhere", "-n", "kube-public")
    skipped = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "skipped", "labels": {"skip": "me"}},
    }
    cluster.ok("create", "-f", "-", stdin=json.dumps(skipped))
    cluster.ok("delete", "configmap", "skipped")
    assert webhook.seen == []
    assert cluster.run("create", "configmap", "asked").returncode == 1
    assert len(webhook.seen) == 1


def test_a_wrong_configuration_is_refused(cluster, webhook):
    document = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "wrong"},
        "webhooks": [
            hook(webhook, "guard.example.com", CONFIGMAPS, clientConfig={"url": "http://10.0.0.1/"})
        ],
    }
    done = cluster.run("create", "-f", "-", stdin=json.dumps(document))
    assert done.returncode == 1
    assert "https" in done.stderr
    assert "is invalid" in done.stderr
    assert "NotFound" in cluster.run("get", "validatingwebhookconfigurations", "wrong").stderr


# -- registrations -------------------------------------------------------------------------------------------------------


def test_a_refused_registration_is_not_stored_and_the_reason_is_shown(cluster, webhook):
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", SERVICES))
    webhook.decide = lambda request: (
        {"allowed": True}
        if "owner" in request["object"]["metadata"].get("labels", {})
        else denial("say who owns it: metadata owner is missing")
    )
    body = {"Name": "web", "Port": 8080, "Tags": ["a"], "Check": {"TTL": "30s"}}
    status, text = cluster.consul("PUT", "/v1/agent/service/register", body)
    assert status == 403
    assert text == (
        'admission webhook "guard.example.com" denied the request: say who owns it: metadata owner is missing'
    )
    assert cluster.get("/v1/catalog/service/web") == []
    assert "web" not in cluster.get("/v1/agent/services")
    assert cluster.get("/v1/health/checks/web") == []
    (seen,) = webhook.seen
    assert (seen["operation"], seen["name"]) == ("CREATE", "web")
    assert seen["kind"] == {"group": DISCOVERY, "version": "v1", "kind": "Service"}
    assert seen["object"]["spec"] == {
        "service": "web",
        "node": "n1",
        "tags": ["a"],
        "port": 8080,
        "weights": {"passing": 1, "warning": 1},
    }
    status, text = cluster.consul(
        "PUT", "/v1/agent/service/register", body | {"Meta": {"owner": "blue"}}
    )
    assert (status, text) == (200, "")
    assert cluster.get("/v1/catalog/service/web")[0]["ServiceMeta"] == {"owner": "blue"}
    # The same guard for the catalog and for transactions.
    node = {"Node": "ext", "Address": "10.9.9.9", "Service": {"Service": "db", "Port": 1}}
    assert cluster.consul("PUT", "/v1/catalog/register", node)[0] == 403
    assert cluster.get("/v1/catalog/node/ext") is None
    operation = {
        "Service": {
            "Verb": "set",
            "Node": "n1",
            "Service": {"Service": "db", "ID": "db", "Port": 1},
        }
    }
    status, text = cluster.consul("PUT", "/v1/txn", [operation])
    assert status == 403
    assert "say who owns it" in text
    assert cluster.get("/v1/catalog/service/db") == []
    webhook.forget()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/web") == (200, "")
    assert [one["operation"] for one in webhook.seen] == ["DELETE"]


def test_a_registration_is_stored_as_a_webhook_changes_it(cluster, webhook):
    cluster.configure("Mutating", "defaults", hook(webhook, "defaults.example.com", SERVICES))
    webhook.decide = lambda request: (
        patch(
            {"op": "add", "path": "/metadata/labels", "value": {"zone": "a"}},
            {"op": "add", "path": "/spec/tags", "value": ["guarded"]},
        )
        if request["operation"] == "CREATE"
        else {"allowed": True}
    )
    assert (
        cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})[0] == 200
    )
    (stored,) = cluster.get("/v1/catalog/service/web")
    assert (stored["ServiceTags"], stored["ServiceMeta"]) == (["guarded"], {"zone": "a"})
    # A new name would pass by authorization.
    webhook.decide = lambda request: patch(
        {"op": "replace", "path": "/spec/service", "value": "other"}
    )
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "two", "Port": 80})
    assert status == 500
    assert "spec.service must not be changed" in text
    webhook.forget()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/web")[0] == 200


def test_keys_and_checks_are_guarded(cluster, webhook):
    guarded = rule(DISCOVERY, "keys", "checks", operations=("CREATE", "UPDATE", "DELETE"))
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", guarded))
    assert cluster.consul("PUT", "/v1/kv/app/a", b"1") == (200, "true")
    webhook.decide = lambda request: denial(f"{request['resource']['resource']} are frozen")
    status, text = cluster.consul("PUT", "/v1/kv/app/a", b"2")
    assert (status, text) == (
        403,
        'admission webhook "guard.example.com" denied the request: keys are frozen',
    )
    assert cluster.consul("GET", "/v1/kv/app/a?raw")[1] == "1"
    assert cluster.consul("DELETE", "/v1/kv/app?recurse")[0] == 403
    operations = [
        {"KV": {"Verb": "set", "Key": "app/b", "Value": "eA=="}},
        {"KV": {"Verb": "delete-tree", "Key": "app/"}},
    ]
    assert cluster.consul("PUT", "/v1/txn", operations)[0] == 403
    assert cluster.get("/v1/kv/?keys") == ["app/a"]
    check = {"Name": "disk", "TTL": "30s"}
    status, text = cluster.consul("PUT", "/v1/agent/check/register", check)
    assert status == 403
    assert "checks are frozen" in text
    assert "disk" not in cluster.get("/v1/agent/checks")
    webhook.forget()
    assert cluster.consul("DELETE", "/v1/kv/app?recurse") == (200, "true")


# -- webhooks that do not answer -----------------------------------------------------------------------------------------


def test_a_webhook_that_is_down_and_its_failure_policy(cluster, webhook):
    (port,) = free_ports(1)
    dead = {"url": f"https://127.0.0.1:{port}/", "caBundle": webhook.certificates.bundle}
    guard = hook(webhook, "dead.example.com", SERVICES, clientConfig=dead)
    also = hook(webhook, "dead.example.com", rule("", "configmaps", "services"), clientConfig=dead)
    cluster.configure("Validating", "guard", guard, also | {"name": "dead2.example.com"})
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert status == 500
    assert text.startswith(
        f'failed calling webhook "dead.example.com": Post "https://127.0.0.1:{port}/?timeout=10s": '
    )
    assert cluster.get("/v1/catalog/service/web") == []
    done = cluster.run("create", "configmap", "refused")
    assert "Error from server (InternalError)" in done.stderr or "Internal error" in done.stderr
    assert 'failed calling webhook "dead2.example.com"' in done.stderr
    assert "NotFound" in cluster.run("get", "configmap", "refused").stderr
    # What must be repaired stays reachable.
    cluster.configure("Validating", "guard", guard | {"failurePolicy": "Ignore"})
    assert (
        cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})[0] == 200
    )
    assert "webhook dead.example.com is left out" in cluster.log()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/web")[0] == 200


def test_a_webhook_that_is_slow(cluster, webhook):
    slow = hook(webhook, "slow.example.com", SERVICES, timeoutSeconds=1)
    cluster.configure("Validating", "guard", slow)
    webhook.delay_s = 5.0
    start = time.monotonic()
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    took_s = time.monotonic() - start
    assert status == 500
    assert text == (
        f'failed calling webhook "slow.example.com": Post "{webhook.url}?timeout=1s": context deadline exceeded'
    )
    assert 0.9 < took_s < 3
    assert cluster.get("/v1/catalog/service/web") == []


def test_a_webhook_that_answers_nonsense_counts_as_one_that_failed(cluster, webhook):
    cluster.configure("Validating", "guard", hook(webhook, "odd.example.com", SERVICES))
    webhook.decide = lambda request: {"allowed": True, "uid": "another"}
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert status == 500
    assert 'got "another"' in text
    webhook.forget()
    webhook.status = 503
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert status == 500
    assert "the webhook answered 503" in text
    webhook.forget()
    webhook.raw = b"x" * (4 << 20)
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert status == 500
    assert "the webhook answered more than 3145728 bytes" in text
    webhook.raw, webhook.status = b"", 307
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert status == 500
    assert "the webhook answered 307" in text
    assert len(webhook.seen) == 2


def test_a_certificate_that_is_not_of_the_bundle_is_refused(cluster, webhook, tmp_path):
    other = type(webhook.certificates)(tmp_path)
    client = {"url": webhook.url, "caBundle": other.bundle}
    cluster.configure(
        "Validating", "guard", hook(webhook, "guard.example.com", SERVICES, clientConfig=client)
    )
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert status == 500
    assert "certificate" in text
    assert webhook.seen == []


def test_a_service_of_the_catalog_answers(cluster, webhook):
    body = {"Name": "policy", "Address": "127.0.0.1", "Port": webhook.port}
    assert cluster.consul("PUT", "/v1/agent/service/register", body)[0] == 200
    client = {
        "service": {"name": "policy", "namespace": "default", "path": "/review"},
        "caBundle": webhook.certificates.bundle,
    }
    guard = hook(webhook, "guard.example.com", rule(DISCOVERY, "services"), clientConfig=client)
    cluster.configure("Validating", "guard", guard)
    webhook.decide = lambda request: denial("found you")
    status, text = cluster.consul("PUT", "/v1/agent/service/register", {"Name": "web", "Port": 80})
    assert (status, text) == (
        403,
        'admission webhook "guard.example.com" denied the request: found you',
    )
    assert webhook.hosts == ["policy.default.svc"]
    webhook.forget()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/policy")[0] == 200


def test_many_at_once_share_the_connections(cluster, webhook):
    cluster.configure(
        "Validating", "guard", hook(webhook, "guard.example.com", rule(DISCOVERY, "keys"))
    )
    webhook.delay_s = 0.05
    with ThreadPoolExecutor(32) as pool:
        paths = [f"/v1/kv/many/{n}" for n in range(64)]
        answers = list(pool.map(lambda path: cluster.consul("PUT", path, b"x"), paths))
    assert set(answers) == {(200, "true")}
    assert len(webhook.seen) == 64
    webhook.forget()
    assert cluster.consul("DELETE", "/v1/kv/many/?recurse") == (200, "true")


def test_what_is_reserved_is_refused_without_any_webhook(cluster):
    status, text = cluster.consul(
        "PUT", "/v1/agent/service/register", {"Name": "web", "Port": 70000}
    )
    assert status == 403
    assert text == (
        'services.discovery.waypost.io "web" is forbidden: port 70000 is not between 0 and 65535'
    )


# -- what else changes state ---------------------------------------------------------------------------------------------


def test_warnings_reach_the_client_with_deletions_and_refusals(cluster, webhook):
    cluster.ok("create", "configmap", "warned", "--from-literal=a=b")
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", CONFIGMAPS))
    webhook.decide = lambda request: denial("not now") | {"warnings": ["ask blue first"]}
    done = cluster.run("delete", "configmap", "warned")
    assert done.returncode == 1
    assert "Warning: ask blue first" in done.stderr
    assert "denied the request: not now" in done.stderr
    webhook.decide = lambda request: {"allowed": True, "warnings": ["blue will miss it"]}
    done = cluster.run("delete", "configmap", "warned")
    assert done.returncode == 0
    assert "Warning: blue will miss it" in done.stderr
    cluster.ok("create", "configmap", "two", "-n", "kube-public")
    cluster.ok("create", "configmap", "three", "-n", "kube-public")
    done = cluster.run("delete", "configmaps", "--all", "-n", "kube-public")
    assert done.stderr.count("Warning: blue will miss it") >= 1


def test_tokens_are_made_only_if_admitted_and_as_they_are_admitted(cluster, webhook):
    tokens = rule("", "serviceaccounts/token")
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", tokens))
    webhook.decide = lambda request: denial("no tokens today") | {"warnings": ["see the calendar"]}
    done = cluster.run("create", "token", "default")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        'admission webhook "guard.example.com" denied the request: no tokens today' in done.stderr
    )
    assert "Warning: see the calendar" in done.stderr
    (seen,) = webhook.seen
    assert (seen["operation"], seen["namespace"], seen["name"]) == ("CREATE", "default", "default")
    assert seen["kind"] == {
        "group": "authentication.k8s.io",
        "version": "v1",
        "kind": "TokenRequest",
    }
    assert seen["resource"] == {"group": "", "version": "v1", "resource": "serviceaccounts"}
    assert seen["subResource"] == "token"
    assert seen["oldObject"] is None
    assert seen["object"]["spec"]["expirationSeconds"] == 3600
    assert "status" not in seen["object"]
    cluster.unconfigure()
    cluster.configure("Mutating", "defaults", hook(webhook, "defaults.example.com", tokens))
    webhook.decide = lambda request: patch(
        {"op": "replace", "path": "/spec/expirationSeconds", "value": 600},
        {"op": "add", "path": "/spec/audiences", "value": ["vault"]},
    )
    token = cluster.ok("create", "token", "default", "--duration=24h").strip()
    padded = token.split(".")[1] + "=="
    claims = json.loads(base64.urlsafe_b64decode(padded))
    assert claims["aud"] == ["vault"]
    assert claims["exp"] - claims["iat"] == 600
    # What is made of it is checked as what was sent.
    webhook.decide = lambda request: patch(
        {"op": "replace", "path": "/spec/expirationSeconds", "value": 5}
    )
    done = cluster.run("create", "token", "default")
    assert "may not specify a duration less than 10 minutes" in done.stderr


def test_results_maintenance_sessions_and_events_are_guarded(cluster, webhook):
    check = {"Name": "web", "Port": 80, "Check": {"CheckID": "web", "Name": "up", "TTL": "60s"}}
    assert cluster.consul("PUT", "/v1/agent/service/register", check)[0] == 200
    assert cluster.consul("PUT", "/v1/agent/check/pass/web?note=fine") == (200, "")
    created = cluster.consul("PUT", "/v1/session/create", {"Name": "held"})
    session = json.loads(created[1])["ID"]
    guarded = rule(DISCOVERY, "checks", "checks/status", "sessions", "sessions/renewal", "events")
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", guarded))
    webhook.decide = lambda request: denial(
        "/".join(filter(None, (request["resource"]["resource"], request.get("subResource"))))
        + " are frozen"
    )
    writes = [
        ("/v1/agent/check/pass/web?note=other", None, "checks/status"),
        ("/v1/agent/check/warn/web", None, "checks/status"),
        ("/v1/agent/check/fail/web", None, "checks/status"),
        ("/v1/agent/check/update/web", {"Status": "critical", "Output": "x"}, "checks/status"),
        ("/v1/agent/maintenance?enable=true", None, "checks"),
        ("/v1/agent/service/maintenance/web?enable=true", None, "checks"),
        ("/v1/session/create", {"Name": "more"}, "sessions"),
        (f"/v1/session/renew/{session}", None, "sessions/renewal"),
        (f"/v1/session/destroy/{session}", None, "sessions"),
        ("/v1/event/fire/deploy", b"v2", "events"),
    ]
    index = cluster.get("/v1/catalog/nodes")[0]["ModifyIndex"]
    for path, body, resource in writes:
        assert cluster.consul("PUT", path, body) == (
            403,
            f'admission webhook "guard.example.com" denied the request: {resource} are frozen',
        ), path
    found = cluster.get("/v1/agent/checks")
    assert set(found) == {"web"}
    assert (found["web"]["Status"], found["web"]["Output"]) == ("passing", "fine")
    assert [one["Name"] for one in cluster.get("/v1/session/list")] == ["held"]
    assert cluster.get("/v1/event/list") == []
    assert cluster.get("/v1/catalog/nodes")[0]["ModifyIndex"] == index
    webhook.forget()
    for path, body, _ in writes:
        assert cluster.consul("PUT", path, body)[0] == 200, path
    assert len(webhook.seen) == len(writes)
    assert [one["Name"] for one in cluster.get("/v1/event/list")] == ["deploy"]
    webhook.forget()
    assert cluster.consul("PUT", "/v1/agent/maintenance?enable=false")[0] == 200
    assert [(one["operation"], one["name"]) for one in webhook.seen] == [
        ("DELETE", "_node_maintenance")
    ]
    assert cluster.consul("PUT", "/v1/agent/service/deregister/web")[0] == 200


def test_the_agents_own_results_go_the_same_way(cluster, webhook):
    results = rule(DISCOVERY, "checks/status")
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", results))
    webhook.decide = lambda request: denial("stay as you are")
    (port,) = free_ports(1)
    body = {
        "Name": "polled",
        "Check": {"TCP": f"127.0.0.1:{port}", "Interval": "1s", "Status": "passing"},
    }
    assert cluster.consul("PUT", "/v1/agent/service/register", body)[0] == 200
    deadline = time.monotonic() + 20
    while not webhook.seen:
        assert time.monotonic() < deadline, cluster.log()
        time.sleep(0.1)
    assert webhook.seen[0]["userInfo"]["username"] == "system:node:n1"
    assert webhook.seen[0]["object"]["spec"]["status"] == "critical"
    assert cluster.get("/v1/health/checks/polled")[0]["Status"] == "passing"
    webhook.forget()
    while cluster.get("/v1/health/checks/polled")[0]["Status"] != "critical":
        assert time.monotonic() < deadline, cluster.log()
        time.sleep(0.1)
    assert "result of check 'service:polled' could not be stored" in cluster.log()
    cluster.unconfigure()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/polled")[0] == 200


def test_nothing_is_stored_that_was_not_admitted_over_what_came_in_between(cluster, webhook):
    register = "/v1/agent/service/register"
    assert cluster.consul("PUT", register, {"Name": "web", "Meta": {"team": "blue"}})[0] == 200
    cluster.configure("Validating", "guard", hook(webhook, "guard.example.com", SERVICES))
    thinking, go_on = threading.Event(), threading.Event()

    def hold(request):
        if request["object"]["spec"]["port"] == 81 and not thinking.is_set():
            thinking.set()
            return go_on
        return None

    def decide(request):
        # A registration of the red team is not to be overwritten by others.
        before = request["oldObject"]["metadata"]["labels"]["team"]
        after = request["object"]["metadata"]["labels"]["team"]
        return {"allowed": True} if before in ("blue", after) else denial(f"it belongs to {before}")

    webhook.hold, webhook.decide = hold, decide
    with ThreadPoolExecutor(1) as pool:
        green = {"Name": "web", "Port": 81, "Meta": {"team": "green"}}
        first = pool.submit(cluster.consul, "PUT", register, green)
        assert thinking.wait(10)
        red = {"Name": "web", "Port": 82, "Meta": {"team": "red"}}
        assert cluster.consul("PUT", register, red) == (200, "")
        go_on.set()
        status, text = first.result(20)
    assert (status, text) == (
        403,
        'admission webhook "guard.example.com" denied the request: it belongs to red',
    )
    (stored,) = cluster.get("/v1/catalog/service/web")
    assert (stored["ServicePort"], stored["ServiceMeta"]) == (82, {"team": "red"})
    ports = [one["object"]["spec"]["port"] for one in webhook.seen]
    assert ports == [81, 82, 81]
    webhook.forget()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/web")[0] == 200


def test_annotations_of_webhooks_are_in_the_audit_log(cluster, webhook):
    both = hook(webhook, "guard.example.com", SERVICES, rules=[SERVICES, CONFIGMAPS])
    cluster.configure("Validating", "guard", both)
    webhook.decide = lambda request: {
        "allowed": request["name"] != "refused",
        "auditAnnotations": {"checked-by": "blue", "no name": "left out"},
    }
    assert cluster.consul("PUT", "/v1/agent/service/register", {"Name": "noted"})[0] == 200
    assert cluster.consul("PUT", "/v1/agent/service/register", {"Name": "refused"})[0] == 403
    cluster.ok("create", "configmap", "noted")
    cluster.ok("delete", "configmap", "noted")
    deadline = time.monotonic() + 20
    while True:
        events = [json.loads(line) for line in cluster.audit.read_text().splitlines()]
        noted = [
            one for one in events if "guard.example.com/checked-by" in one.get("annotations", {})
        ]
        if len(noted) == 4:
            break
        assert time.monotonic() < deadline, noted
        time.sleep(0.1)
    assert [one["responseStatus"]["code"] for one in noted] == [200, 403, 201, 200]
    for one in noted:
        assert one["annotations"]["guard.example.com/checked-by"] == "blue"
        assert one["annotations"]["authorization.k8s.io/decision"] == "allow"
        assert not any("no name" in key for key in one["annotations"])
    webhook.forget()
    assert cluster.consul("PUT", "/v1/agent/service/deregister/noted")[0] == 200
