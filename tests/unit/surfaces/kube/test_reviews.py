"""Reviews, tokens and documents over HTTP."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest

GROUP = "rbac.authorization.k8s.io"
ACCESS = "/apis/authorization.k8s.io/v1"
TOKENS = "/apis/authentication.k8s.io/v1"
ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"
GET_PODS = {"namespace": "default", "verb": "get", "resource": "pods"}


# -- access ----------------------------------------------------------------------------------------------------------------


async def test_self_access(api):
    target = f"{ACCESS}/selfsubjectaccessreviews"
    review = {"spec": {"resourceAttributes": GET_PODS}}
    answer = await api.ask("POST", target, review)
    assert (answer.status, answer.json["status"]) == (201, {"allowed": True})
    assert answer.json["spec"] == review["spec"]
    found = await api.ok("POST", target, review, actor=api.user("bob"))
    assert found["status"] == {"allowed": False}


async def test_access_of_others_names_the_grant(api):
    await api.ok("POST", f"/apis/{GROUP}/v1/clusterrolebindings", {
        "metadata": {"name": "b"},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "bob"}],
    })  # fmt: skip
    review = {"spec": {"user": "bob", "resourceAttributes": GET_PODS}}
    found = await api.ok("POST", f"{ACCESS}/subjectaccessreviews", review)
    reason = 'RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "view" to User "bob"'
    assert found["status"] == {"allowed": True, "reason": reason}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"user": "u"}, 'spec.resourceAttributes: Invalid value: "null": exactly one of nonResourceAttributes or resourceAttributes must be specified'),
        ({"resourceAttributes": GET_PODS}, 'spec.user: Invalid value: "": at least one of user or group must be specified'),
        (
            {"user": "u", "resourceAttributes": GET_PODS, "nonResourceAttributes": {"path": "/", "verb": "get"}},
            'spec.nonResourceAttributes: Invalid value: authorization.NonResourceAttributes{Path:"/", Verb:"get"}: '
            "cannot be specified in combination with resourceAttributes",
        ),
    ],
)  # fmt: skip
async def test_access_refused(api, spec, message):
    found = await api.refused("POST", f"{ACCESS}/subjectaccessreviews", {"spec": spec})
    assert found == (422, f'.authorization.k8s.io "" is invalid: {message}')


async def test_local_access(api):
    target = f"{ACCESS}/namespaces/default/localsubjectaccessreviews"
    spec = {"user": "u", "resourceAttributes": GET_PODS}
    metadata = {"namespace": "default"}
    found = await api.ok("POST", target, {"metadata": metadata, "spec": spec})
    assert found["status"] == {"allowed": False}
    other = {"user": "u", "resourceAttributes": GET_PODS | {"namespace": "other"}}
    code, message = await api.refused("POST", target, {"metadata": metadata, "spec": other})
    assert (code, message.endswith('"other": must match metadata.namespace')) == (422, True)
    none = {"user": "u", "resourceAttributes": {"verb": "get", "resource": "pods"}}
    assert await api.refused("POST", target, {"metadata": metadata, "spec": none}) == (
        400, "spec.resourceAttributes.namespace must match namespace: default",
    )  # fmt: skip


async def test_rules(api):
    target = f"{ACCESS}/selfsubjectrulesreviews"
    found = await api.ok("POST", target, {"spec": {"namespace": "default"}}, actor=api.user("bob"))
    rules = found["status"]["resourceRules"]
    assert {"selfsubjectaccessreviews", "selfsubjectrulesreviews"} <= {
        one for rule in rules for one in rule["resources"]
    }
    assert await api.refused("POST", target, {"spec": {}}) == (400, "no namespace on request")


async def test_who_am_i(api):
    found = await api.ok("POST", f"{TOKENS}/selfsubjectreviews", {}, actor=api.user("bob", "g"))
    assert found["status"] == {
        "userInfo": {"username": "bob", "groups": ["g", "system:authenticated"]}
    }


# -- tokens ----------------------------------------------------------------------------------------------------------------


async def test_a_token_is_made_and_recognised(api):
    answer = await api.ask("POST", f"{ACCOUNT}/token", {"spec": {"expirationSeconds": 600}})
    assert answer.status == 201
    made = answer.json
    assert made["spec"]["audiences"] == ["https://kubernetes.default.svc"]
    assert made["metadata"]["name"] == "default"
    review = {"spec": {"token": made["status"]["token"]}}
    found = (await api.ok("POST", f"{TOKENS}/tokenreviews", review))["status"]
    assert found["authenticated"] is True
    assert found["user"]["username"] == "system:serviceaccount:default:default"
    assert found["user"]["groups"][-1] == "system:authenticated"
    await api.ok("DELETE", ACCOUNT)
    found = (await api.ok("POST", f"{TOKENS}/tokenreviews", review))["status"]
    assert found["user"] == {}
    assert found["error"].startswith("[invalid bearer token, ")


@pytest.mark.parametrize(
    ("account", "spec", "code", "message"),
    [
        (
            "default",
            {"expirationSeconds": 60},
            422,
            "may not specify a duration less than 10 minutes",
        ),
        ("nosuch", {}, 404, 'serviceaccounts "nosuch" not found'),
        (
            "default",
            {"boundObjectRef": {"kind": "Deployment", "apiVersion": "apps/v1", "name": "x"}},
            400,
            "cannot bind token to object of type apps/v1, Kind=Deployment",
        ),
        (
            "default",
            {"boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "nosuch"}},
            404,
            'secrets "nosuch" not found',
        ),
    ],
)
async def test_token_refused(api, account, spec, code, message):
    target = f"/api/v1/namespaces/default/serviceaccounts/{account}/token"
    found = await api.refused("POST", target, {"spec": spec})
    assert (found[0], found[1].endswith(message)) == (code, True), found


async def test_a_token_dies_with_its_secret(api):
    secrets = "/api/v1/namespaces/default/secrets"
    await api.ok("POST", secrets, {"metadata": {"name": "s"}})
    ref = {"kind": "Secret", "apiVersion": "v1", "name": "s"}
    made = await api.ok("POST", f"{ACCOUNT}/token", {"spec": {"boundObjectRef": ref}})
    review = {"spec": {"token": made["status"]["token"]}}
    assert (await api.ok("POST", f"{TOKENS}/tokenreviews", review))["status"]["authenticated"]
    await api.ok("DELETE", f"{secrets}/s")
    found = (await api.ok("POST", f"{TOKENS}/tokenreviews", review))["status"]
    assert "authenticated" not in found


async def test_a_token_secret_is_filled_and_goes_with_its_account(api):
    secrets = "/api/v1/namespaces/default/secrets"
    kind = "kubernetes.io/service-account-token"
    code, message = await api.refused("POST", secrets, {"metadata": {"name": "m2"}, "type": kind})
    assert (code, message) == (
        422,
        'Secret "m2" is invalid: metadata.annotations[kubernetes.io/service-account.name]: Required value',
    )
    annotations = {"kubernetes.io/service-account.name": "default"}
    body = {"metadata": {"name": "manual", "annotations": annotations}, "type": kind}
    made = await api.ok("POST", secrets, body)
    account = await api.ok("GET", ACCOUNT)
    uid = account["metadata"]["uid"]
    assert made["metadata"]["annotations"]["kubernetes.io/service-account.uid"] == uid
    token = base64.b64decode(made["data"]["token"]).decode()
    review = {"spec": {"token": token}}
    found = (await api.ok("POST", f"{TOKENS}/tokenreviews", review))["status"]
    assert found["user"]["username"] == "system:serviceaccount:default:default"
    await api.ok("DELETE", ACCOUNT)
    assert (await api.ask("GET", f"{secrets}/manual")).status == 404
    found = (await api.ok("POST", f"{TOKENS}/tokenreviews", review))["status"]
    assert "authenticated" not in found


async def test_no_token_no_review(api):
    assert await api.refused("POST", f"{TOKENS}/tokenreviews", {"spec": {}}) == (
        400, "token is required for TokenReview in authentication",
    )  # fmt: skip


# -- who may ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/api/v1/secrets", 'secrets is forbidden: User "bob" cannot list resource "secrets" in API group "" at the cluster scope'),
        (
            "/api/v1/namespaces/n1/secrets/x",
            'secrets "x" is forbidden: User "bob" cannot get resource "secrets" in API group "" in the namespace "n1"',
        ),
        (
            f"/apis/{GROUP}/v1/foos",
            f'foos.{GROUP} is forbidden: User "bob" cannot list resource "foos" in API group "{GROUP}" at the cluster scope',
        ),
        ("/metrics", None),
        ("/api/v1x", 'forbidden: User "bob" cannot get path "/api/v1x"'),
    ],
)  # fmt: skip
async def test_refused_before_anything_is_looked_up(api, target, message):
    if message is None:
        return  # the agent's own path, not of this surface
    if target == "/api/v1x":
        found = await api.ask("GET", target, actor=api.user("bob"))
        assert found.status == 404  # authenticated users may discover
        return
    assert await api.refused("GET", target, actor=api.user("bob")) == (403, message)


async def test_without_identity(api):
    request = api.request("GET", "/api")
    request.identity = None
    response = await api.answer(request)
    assert response.status == 401
    assert json.loads(response.body) == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "Unauthorized", "reason": "Unauthorized", "code": 401,
    }  # fmt: skip


async def test_impersonation(api):
    headers = {"impersonate_user": "zed", "impersonate_group": "g1"}
    found = await api.ok("POST", f"{TOKENS}/selfsubjectreviews", {}, **headers)
    assert found["status"]["userInfo"] == {
        "username": "zed",
        "groups": ["g1", "system:authenticated"],
    }
    target = f"/apis/{GROUP}/v1/clusterroles/x"
    assert await api.refused("GET", target, actor=api.user("alice"), impersonate_user="bob") == (
        403, 'users "bob" is forbidden: User "alice" cannot impersonate resource "users" in API group "" at the cluster scope',
    )  # fmt: skip
    code, _ = await api.refused("GET", target, impersonate_group="g")
    assert code == 400


# -- documents -------------------------------------------------------------------------------------------------------------


async def test_discovery_in_both_forms(api):
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    answer = await api.ask("GET", "/apis?timeout=32s", accept=f"{aggregated},application/json")
    assert answer.type == aggregated
    assert answer.json["kind"] == "APIGroupDiscoveryList"
    answer = await api.ask("GET", "/apis", accept="application/json, */*")
    assert (answer.type, answer.json["kind"]) == ("application/json", "APIGroupList")
    assert answer.headers["Vary"] == "Accept"
    core = await api.ok("GET", "/api", host="evil.example:1")
    assert core["versions"] == ["v1"]
    assert core["serverAddressByClientCIDRs"] == [
        {"clientCIDR": "0.0.0.0/0", "serverAddress": "192.0.2.1:8501"}
    ]
    assert (await api.ok("GET", "/api/v1"))["kind"] == "APIResourceList"
    assert (await api.ok("GET", f"/apis/{GROUP}"))["kind"] == "APIGroup"
    assert (await api.ok("GET", f"/apis/{GROUP}/v1/"))["groupVersion"] == f"{GROUP}/v1"
    assert (await api.ask("GET", f"/apis/{GROUP}/v9")).status == 404


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/healthz/ping", "/livez/ping"])
async def test_health(api, path):
    answer = await api.ask("GET", path, actor=api.user("bob", "system:monitoring"))
    assert (answer.status, answer.text, answer.type) == (200, "ok", "text/plain; charset=utf-8")


async def test_version(api):
    for path in ("/version", "/version/", "/version?timeout=32s"):
        assert (await api.ok("GET", path))["major"] == "1"


async def test_openapi(api):
    index = await api.ok("GET", "/openapi/v3")
    for name, entry in index["paths"].items():
        document = await api.ok("GET", entry["serverRelativeURL"])
        assert document["openapi"].startswith("3."), name
    swagger = await api.ok("GET", "/openapi/v2")
    assert swagger["swagger"] == "2.0"
    answer = await api.answer(
        api.request(
            "GET",
            "/openapi/v2",
            accept="application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        )
    )
    assert answer.content_type.startswith("application/")
    assert "@" not in answer.content_type
    assert answer.body[:5] == b"\x0a\x032.0"


async def test_others_can_verify_tokens(api):
    path = "/.well-known/openid-configuration"
    account = api.user("system:serviceaccount:default:default", "system:serviceaccounts")
    # Whatever the client says this server's name is: who is sent elsewhere would believe another's keys.
    found = await api.ok("GET", path, actor=account, host="evil.example:1")
    assert found["issuer"] == "https://kubernetes.default.svc"
    assert found["jwks_uri"] == "https://192.0.2.1:8501/openid/v1/jwks"
    answer = await api.ask("GET", "/openid/v1/jwks", actor=account)
    assert answer.type == "application/jwk-set+json"
    assert [one["use"] for one in answer.json["keys"]] == ["sig"]
    code, _ = await api.refused("GET", "/openid/v1/jwks", accept="application/json")
    assert code == 406
    code, _ = await api.refused("GET", path, actor=api.user("bob"))
    assert code == 403


async def test_what_authentication_warns_of_reaches_the_client(api):
    request = api.request("GET", "/version")
    request.identity = msgspec.structs.replace(request.identity, warning="extra space")
    response = await api.answer(request)
    assert ("Warning", '299 - "extra space"') in response.headers
