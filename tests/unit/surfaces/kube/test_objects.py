"""Objects over HTTP: texts and codes are those recorded from a real API server."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from waypost.access.authn import unix_peer
from waypost.access.authz.bootstrap import default_policy
from waypost.access.gate import Gate
from waypost.domain.catalog import Catalog, Register
from waypost.model.catalog import Service

GROUP = "rbac.authorization.k8s.io"
RBAC = f"/apis/{GROUP}/v1"
ROLES = f"{RBAC}/namespaces/default/roles"
CLUSTER_ROLES = f"{RBAC}/clusterroles"
MAPS = "/api/v1/namespaces/default/configmaps"
JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
READ_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}


def role(name, **more):
    return {"metadata": {"name": name, **more}, "rules": [READ_PODS]}


# -- create ----------------------------------------------------------------------------------------------------------------


async def test_created_object_has_what_the_server_sets(api):
    answer = await api.ask("POST", ROLES, role("r1"), user_agent="probe/1.0")
    assert answer.status == 201
    document = answer.json
    metadata = document["metadata"]
    assert (document["kind"], document["apiVersion"]) == ("Role", f"{GROUP}/v1")
    assert (metadata["name"], metadata["namespace"]) == ("r1", "default")
    assert len(metadata["uid"]) == 36
    assert metadata["creationTimestamp"].endswith("Z")
    (entry,) = metadata["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("probe", "Update")
    assert entry["fieldsV1"] == {"f:rules": {}}
    assert document["rules"] == [READ_PODS]
    assert await api.ok("GET", f"{ROLES}/r1") == document
    assert answer.headers["Cache-Control"] == "no-cache, private"
    assert len(answer.headers["Audit-Id"]) == 36


async def test_rules_without_content_are_null(api):
    await api.ok("POST", CLUSTER_ROLES, {"metadata": {"name": "empty"}})
    found = await api.ok("GET", f"{CLUSTER_ROLES}/empty")
    assert found["rules"] is None


async def test_generated_names_differ(api):
    names = set()
    for _ in range(3):
        made = await api.ok("POST", MAPS, {"metadata": {"generateName": "g-"}})
        names.add(made["metadata"]["name"])
    assert len(names) == 3
    assert all(len(name) == 7 and name.startswith("g-") for name in names)


@pytest.mark.parametrize(
    ("target", "body", "code", "message"),
    [
        (CLUSTER_ROLES, {}, 422, f'ClusterRole.{GROUP} "" is invalid: metadata.name: Required value: name or generateName is required'),
        (CLUSTER_ROLES, role("a/b"), 422, f'ClusterRole.{GROUP} "a/b" is invalid: metadata.name: Invalid value: "a/b": may not contain \'/\''),
        (
            CLUSTER_ROLES,
            {"metadata": {"name": "x"}, "rules": [{}]},
            422,
            f'ClusterRole.{GROUP} "x" is invalid: [rules[0].verbs: Required value: verbs must contain at least one value, '
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group, "
            "rules[0].resources: Required value: resource rules must supply at least one resource]",
        ),
        (CLUSTER_ROLES, role("x", resourceVersion="5"), 500, "resourceVersion should not be set on objects to be created"),
        (ROLES, role("x", namespace="other"), 400, "the namespace of the provided object does not match the namespace sent on the request"),
        (f"{RBAC}/namespaces/nons/roles", role("x"), 404, 'namespaces "nons" not found'),
        (
            f"{CLUSTER_ROLES}?dryRun=yes",
            role("x"),
            422,
            'CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: []string{"yes"}: supported values: "All"',
        ),
        (
            f"{RBAC}/clusterrolebindings",
            {"metadata": {"name": "x"}},
            422,
            f'ClusterRoleBinding.{GROUP} "x" is invalid: [roleRef.kind: Unsupported value: "": supported values: "ClusterRole", '
            "roleRef.name: Required value]",
        ),
    ],
)  # fmt: skip
async def test_create_refused(api, target, body, code, message):
    assert await api.refused("POST", target, body) == (code, message)


async def test_name_taken(api):
    await api.ok("POST", CLUSTER_ROLES, role("t1"))
    assert await api.refused("POST", CLUSTER_ROLES, role("t1")) == (
        409,
        f'clusterroles.{GROUP} "t1" already exists',
    )


async def test_dry_run_stores_nothing(api):
    answer = await api.ask("POST", f"{CLUSTER_ROLES}?dryRun=All", role("A:b c"))
    assert answer.status == 201
    assert "resourceVersion" not in answer.json["metadata"]
    assert (await api.ask("GET", f"{CLUSTER_ROLES}/A:b%20c")).status == 404


async def test_unknown_fields(api):
    body = {"metadata": {"name": "x"}, "rulez": []}
    code, message = await api.refused("POST", f"{CLUSTER_ROLES}?fieldValidation=Strict", body)
    assert (code, message.rpartition("strict decoding error: ")[2]) == (
        400,
        'unknown field "rulez"',
    )
    answer = await api.ask("POST", CLUSTER_ROLES, body)
    assert answer.status == 201
    assert answer.headers["Warning"] == '299 - "unknown field \\"rulez\\""'


async def test_yaml_in_and_out(api):
    body = b"metadata: {name: y}\ndata: {k: v}\n"
    answer = await api.ask(
        "POST", MAPS, body, content_type="application/yaml", accept="application/yaml"
    )
    assert (answer.status, answer.type) == (201, "application/yaml")
    assert "\n  k: v\n" in answer.text


async def test_media_types(api):
    body = b"a=b"
    code, message = await api.refused(
        "POST", MAPS, body, content_type="application/x-www-form-urlencoded"
    )
    assert (code, message.startswith("the body of the request was in an unknown format")) == (
        415,
        True,
    )
    code, _ = await api.refused("GET", f"{CLUSTER_ROLES}/view", accept="text/html")
    assert code == 406
    code, _ = await api.refused("PATCH", f"{CLUSTER_ROLES}/view", b"{}", content_type=JSON)
    assert code == 415


# -- read ------------------------------------------------------------------------------------------------------------------


async def test_lists_carry_no_kind_in_items(api):
    found = await api.ok("GET", CLUSTER_ROLES)
    assert (found["kind"], found["apiVersion"]) == ("ClusterRoleList", f"{GROUP}/v1")
    assert found["metadata"]["resourceVersion"] == str(api.state.view.revision)
    assert all("kind" not in item for item in found["items"])
    names = [item["metadata"]["name"] for item in found["items"]]
    assert names == sorted(names)


async def test_pages_are_of_one_moment(api):
    for name in "abcde":
        await api.ok("POST", MAPS, {"metadata": {"name": name}})
    first = await api.ok("GET", f"{MAPS}?limit=2")
    assert [one["metadata"]["name"] for one in first["items"]] == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    await api.ok("DELETE", f"{MAPS}/d")
    await api.ok("POST", MAPS, {"metadata": {"name": "c2"}})
    await api.ok("PATCH", f"{MAPS}/e", {"data": {"k": "new"}}, content_type=MERGE)
    token = first["metadata"]["continue"]
    second = await api.ok("GET", f"{MAPS}?limit=2&continue={token}")
    assert [one["metadata"]["name"] for one in second["items"]] == ["c", "d"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    last = await api.ok("GET", f"{MAPS}?limit=2&continue={second['metadata']['continue']}")
    assert [(one["metadata"]["name"], one.get("data")) for one in last["items"]] == [("e", None)]
    assert "continue" not in last["metadata"]


async def test_a_page_whose_moment_is_forgotten(api):
    for name in "abc":
        await api.ok("POST", MAPS, {"metadata": {"name": name}})
    first = await api.ok("GET", f"{MAPS}?limit=1")
    await api.ok("DELETE", f"{MAPS}/c")
    api.state.view.history.reset(revision=api.state.view.revision)
    code, message = await api.refused(
        "GET", f"{MAPS}?limit=1&continue={first['metadata']['continue']}"
    )
    assert code == 410
    assert message.startswith("The provided continue parameter is too old")


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ("fieldSelector=foo%3Dbar", 400, '"foo" is not a known field selector: only "metadata.name", "metadata.namespace"'),
        ("labelSelector=a===b", 400, "unable to parse requirement: found '=', expected: identifier"),
        ("limit=x", 400, 'strconv.ParseInt: parsing "x": invalid syntax'),
        ("resourceVersion=999999999", 504, None),
        ("watch=1&resourceVersion=abc", 500, 'resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc": invalid syntax'),
    ],
)  # fmt: skip
async def test_list_refused(api, query, code, message):
    found = await api.refused("GET", f"{CLUSTER_ROLES}?{query}")
    if message is None:
        message = (
            f"Timeout: Too large resource version: 999999999, current: {api.state.view.revision}"
        )
    assert found == (code, message)


async def test_selectors(api):
    await api.ok("POST", MAPS, {"metadata": {"name": "a", "labels": {"app": "x"}}})
    await api.ok("POST", MAPS, {"metadata": {"name": "b", "labels": {"app": "y"}}})
    found = await api.ok("GET", f"{MAPS}?labelSelector=app%20in%20(x,z)")
    assert [one["metadata"]["name"] for one in found["items"]] == ["a"]
    found = await api.ok("GET", "/api/v1/configmaps?fieldSelector=metadata.name%3Db")
    assert [one["metadata"]["name"] for one in found["items"]] == ["b"]


async def test_tables_and_metadata_only(api):
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    table = await api.ok("GET", f"{RBAC}/clusterrolebindings", accept=accept)
    assert table["kind"] == "Table"
    row = next(one for one in table["rows"] if one["cells"][0] == "cluster-admin")
    assert row["cells"][1] == "ClusterRole/cluster-admin"
    assert row["object"]["kind"] == "PartialObjectMetadata"
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    found = await api.ok("GET", CLUSTER_ROLES, accept=accept)
    assert found["kind"] == "PartialObjectMetadataList"
    assert all("rules" not in item for item in found["items"])


async def test_paths(api):
    assert await api.refused("GET", f"{CLUSTER_ROLES}/nope") == (
        404, f'clusterroles.{GROUP} "nope" not found',
    )  # fmt: skip
    gone = (404, "the server could not find the requested resource")
    assert await api.refused("GET", f"{RBAC}/foos") == gone
    assert await api.refused("GET", f"/apis/{GROUP}/v9/clusterroles") == gone
    answer = await api.ask("GET", "/apis/nope.example/v1/foos")
    assert (answer.status, answer.text) == (404, "404 page not found\n")
    not_allowed = (405, "the server does not allow this method on the requested resource")
    assert await api.refused("POST", f"{CLUSTER_ROLES}/view", role("view")) == not_allowed
    assert await api.refused("PUT", CLUSTER_ROLES, role("view")) == not_allowed
    assert (await api.ask("HEAD", f"{CLUSTER_ROLES}/view")).status == 405


# -- update ----------------------------------------------------------------------------------------------------------------


async def test_put_replaces_and_keeps_what_is_the_servers(api):
    made = await api.ok("POST", CLUSTER_ROLES, role("r"))
    new = await api.ok(
        "PUT", f"{CLUSTER_ROLES}/r", {"metadata": {"name": "r", "labels": {"a": "b"}}}
    )
    assert new["metadata"]["uid"] == made["metadata"]["uid"]
    assert new["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    assert int(new["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert new["rules"] is None


async def test_put_that_changes_nothing_writes_nothing(api):
    made = await api.ok("POST", CLUSTER_ROLES, role("r"))
    before = api.state.view.revision
    again = await api.ok("PUT", f"{CLUSTER_ROLES}/r", made)
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert api.state.view.revision == before


async def test_put_conflicts(api):
    made = await api.ok("POST", CLUSTER_ROLES, role("r"))
    await api.ok("PUT", f"{CLUSTER_ROLES}/r", role("r", labels={"a": "b"}))
    assert await api.refused("PUT", f"{CLUSTER_ROLES}/r", made) == (
        409,
        f'Operation cannot be fulfilled on clusterroles.{GROUP} "r": the object has been modified; '
        "please apply your changes to the latest version and try again",
    )
    assert await api.refused("PUT", f"{CLUSTER_ROLES}/other", role("r")) == (
        400, "the name of the object (r) does not match the name on the URL (other)",
    )  # fmt: skip


async def test_put_creates_roles_and_nothing_else(api):
    answer = await api.ask("PUT", f"{CLUSTER_ROLES}/t9", {"metadata": {"name": "t9"}})
    assert answer.status == 201
    assert await api.refused("PUT", f"{MAPS}/t9", {"metadata": {"name": "t9"}}) == (
        404, 'configmaps "t9" not found',
    )  # fmt: skip


async def test_role_of_a_binding_never_changes(api):
    ref = {"apiGroup": GROUP, "kind": "ClusterRole", "name": "view"}
    target = f"{RBAC}/clusterrolebindings"
    await api.ok("POST", target, {"metadata": {"name": "x"}, "roleRef": ref})
    body = {"metadata": {"name": "x"}, "roleRef": ref | {"name": "r2"}}
    code, message = await api.refused("PUT", f"{target}/x", body)
    assert code == 422
    assert message.startswith(
        f'ClusterRoleBinding.{GROUP} "x" is invalid: roleRef: Invalid value: '
    )
    assert message.endswith("cannot change roleRef")


# -- patch -----------------------------------------------------------------------------------------------------------------


async def test_patches(api):
    await api.ok("POST", ROLES, role("r", labels={"a": "1", "b": "2"}))
    here = f"{ROLES}/r"
    found = await api.ok(
        "PATCH", here, {"metadata": {"labels": {"a": None, "c": "3"}}}, content_type=MERGE
    )
    assert found["metadata"]["labels"] == {"b": "2", "c": "3"}
    ops = [{"op": "add", "path": "/rules/0/verbs/-", "value": "list"}]
    found = await api.ok("PATCH", here, ops, content_type="application/json-patch+json")
    assert found["rules"][0]["verbs"] == ["get", "list"]
    found = await api.ok("PATCH", here, {"rules": [READ_PODS]}, content_type=STRATEGIC)
    assert found["rules"] == [READ_PODS]


async def test_patch_refused(api):
    await api.ok("POST", ROLES, role("r"))
    here = f"{ROLES}/r"
    bad = [{"op": "test", "path": "/rules/0/verbs/0", "value": "x"}]
    assert await api.refused("PATCH", here, bad, content_type="application/json-patch+json") == (
        422, "the server rejected our request due to an error in our request",
    )  # fmt: skip
    old = {"metadata": {"resourceVersion": "1"}}
    code, message = await api.refused("PATCH", here, old, content_type=MERGE)
    assert (code, "the object has been modified" in message) == (409, True)
    assert await api.refused("PATCH", here, {"metadata": {"name": "q"}}, content_type=MERGE) == (
        400, "the name of the object (q) does not match the name on the URL (r)",
    )  # fmt: skip
    code, message = await api.refused("PATCH", here, {"metadata": {"uid": "q"}}, content_type=MERGE)
    assert (code, message.endswith("field is immutable")) == (422, True)
    missing = await api.refused("PATCH", f"{CLUSTER_ROLES}/zzz", {}, content_type=MERGE)
    assert missing == (404, f'clusterroles.{GROUP} "zzz" not found')


async def test_server_side_apply(api):
    def config(verbs, **labels):
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": verbs}
        metadata = {"name": "s", "labels": labels}
        return {"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]}

    here = f"{ROLES}/s"
    code, message = await api.refused("PATCH", here, config(["get"]), content_type=APPLY)
    assert (code, message) == (
        422, 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
    )  # fmt: skip
    answer = await api.ask(
        "PATCH", f"{here}?fieldManager=m1", config(["get"], a="1"), content_type=APPLY
    )
    assert answer.status == 201
    assert answer.json["metadata"]["managedFields"][0]["manager"] == "m1"
    second = f"{here}?fieldManager=m2"
    answer = await api.ask("PATCH", second, config(["list"], b="2"), content_type=APPLY)
    assert (answer.status, answer.json["reason"]) == (409, "Conflict")
    assert answer.json["message"] == 'Apply failed with 1 conflict: conflict with "m1": .rules'
    found = await api.ok(
        "PATCH", f"{second}&force=true", config(["list"], b="2"), content_type=APPLY
    )
    assert found["rules"][0]["verbs"] == ["list"]
    assert found["metadata"]["labels"] == {"a": "1", "b": "2"}


# -- delete ----------------------------------------------------------------------------------------------------------------


async def test_delete(api):
    made = await api.ok("POST", CLUSTER_ROLES, role("r"))
    here = f"{CLUSTER_ROLES}/r"
    uid = made["metadata"]["uid"]
    wrong = {"preconditions": {"uid": "x"}}
    assert await api.refused("DELETE", here, wrong) == (
        409,
        f'Operation cannot be fulfilled on ClusterRole.{GROUP} "r": the UID in the precondition (x) does not match '
        f"the UID in record ({uid}). The object might have been deleted and then recreated",
    )
    assert (await api.ok("DELETE", here, {"dryRun": ["All"]}))["status"] == "Success"
    assert await api.ok("DELETE", here, {"propagationPolicy": "Background"}) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": "r", "group": GROUP, "kind": "clusterroles", "uid": uid},
    }
    assert await api.refused("DELETE", here) == (404, f'clusterroles.{GROUP} "r" not found')


async def test_finalizers_hold(api):
    await api.ok("POST", MAPS, {"metadata": {"name": "f", "finalizers": ["example.com/x"]}})
    held = await api.ok("DELETE", f"{MAPS}/f")
    assert held["metadata"]["deletionTimestamp"].endswith("Z")
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    again = await api.ok("DELETE", f"{MAPS}/f")
    assert again["metadata"]["resourceVersion"] == held["metadata"]["resourceVersion"]
    await api.ok("PATCH", f"{MAPS}/f", {"metadata": {"finalizers": None}}, content_type=MERGE)
    assert (await api.ask("GET", f"{MAPS}/f")).status == 404


async def test_delete_collection(api):
    for name, app in (("a", "x"), ("b", "y"), ("c", "x")):
        await api.ok("POST", MAPS, {"metadata": {"name": name, "labels": {"app": app}}})
    gone = await api.ok("DELETE", f"{MAPS}?labelSelector=app%3Dx")
    assert [one["metadata"]["name"] for one in gone["items"]] == ["a", "c"]
    left = await api.ok("GET", MAPS)
    assert [one["metadata"]["name"] for one in left["items"]] == ["b"]


# -- namespaces ------------------------------------------------------------------------------------------------------------


async def test_a_namespace_comes_with_its_account_and_takes_its_content_along(api):
    made = await api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "tmp"}})
    assert (made["spec"], made["status"]) == ({"finalizers": ["kubernetes"]}, {"phase": "Active"})
    assert made["metadata"]["labels"] == {"kubernetes.io/metadata.name": "tmp"}
    await api.ok("GET", "/api/v1/namespaces/tmp/serviceaccounts/default")
    await api.ok("POST", "/api/v1/namespaces/tmp/configmaps", {"metadata": {"name": "inside"}})
    gone = await api.ok("DELETE", "/api/v1/namespaces/tmp")
    assert gone["status"]["phase"] == "Terminating"
    assert (await api.ask("GET", "/api/v1/namespaces/tmp")).status == 404
    found = await api.ok("GET", "/api/v1/configmaps?fieldSelector=metadata.namespace%3Dtmp")
    assert found["items"] == []


async def test_a_namespace_waits_for_finalizers_of_its_content(api):
    await api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "tmp"}})
    maps = "/api/v1/namespaces/tmp/configmaps"
    await api.ok("POST", maps, {"metadata": {"name": "held", "finalizers": ["example.com/x"]}})
    await api.ok("DELETE", "/api/v1/namespaces/tmp")
    assert (await api.ok("GET", "/api/v1/namespaces/tmp"))["status"]["phase"] == "Terminating"
    answer = await api.ask("POST", f"{RBAC}/namespaces/tmp/roles", role("a"))
    assert answer.status == 403
    assert answer.json["message"] == (
        f'roles.{GROUP} "a" is forbidden: unable to create new content in namespace tmp because it is being terminated'
    )
    assert answer.json["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await api.ok("PATCH", f"{maps}/held", {"metadata": {"finalizers": []}}, content_type=MERGE)
    assert (await api.ask("GET", "/api/v1/namespaces/tmp")).status == 404


async def test_some_namespaces_stay(api):
    assert await api.refused("DELETE", "/api/v1/namespaces/default") == (
        403, 'namespaces "default" is forbidden: this namespace may not be deleted',
    )  # fmt: skip
    await api.ok("DELETE", "/api/v1/namespaces/default/serviceaccounts/default")
    await api.ok("GET", "/api/v1/namespaces/default/serviceaccounts/default")


# -- roles -----------------------------------------------------------------------------------------------------------------


async def test_aggregation_follows_in_the_same_revision(api):
    labels = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
    rule = {"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get"]}
    await api.ok(
        "POST", CLUSTER_ROLES, {"metadata": {"name": "w", "labels": labels}, "rules": [rule]}
    )
    made = await api.ok("GET", f"{CLUSTER_ROLES}/w")
    for name in ("view", "edit", "admin"):
        found = await api.ok("GET", f"{CLUSTER_ROLES}/{name}")
        assert rule in found["rules"], name
        assert found["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    await api.ok("DELETE", f"{CLUSTER_ROLES}/w")
    for name in ("view", "edit", "admin"):
        assert rule not in (await api.ok("GET", f"{CLUSTER_ROLES}/{name}"))["rules"], name


async def test_rules_of_an_aggregated_role_cannot_be_written(api):
    before = await api.ok("GET", f"{CLUSTER_ROLES}/view")
    after = await api.ok("PATCH", f"{CLUSTER_ROLES}/view", {"rules": []}, content_type=MERGE)
    assert after["rules"] == before["rules"]


async def test_nobody_grants_more_than_they_hold(api):
    await api.ok("POST", CLUSTER_ROLES, {
        "metadata": {"name": "writer"},
        "rules": [{"apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": ["create"]}],
    })  # fmt: skip
    await api.ok("POST", f"{RBAC}/clusterrolebindings", {
        "metadata": {"name": "writer"},
        "roleRef": {"kind": "ClusterRole", "name": "writer"},
        "subjects": [{"kind": "User", "name": "eve"}],
    })  # fmt: skip
    eve = api.user("eve")
    code, message = await api.refused("POST", ROLES, role("mine"), actor=eve)
    assert (code, message) == (
        403,
        f'roles.{GROUP} "mine" is forbidden: user "eve" (groups=["system:authenticated"]) is attempting to grant RBAC '
        'permissions not currently held:\n{APIGroups:[""], Resources:["pods"], Verbs:["get"]}',
    )
    body = {"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "nosuch"}}
    code, _ = await api.refused("POST", f"{RBAC}/namespaces/default/rolebindings", body, actor=eve)
    assert code == 404
    code, _ = await api.refused("PUT", f"{ROLES}/mine", role("mine"), actor=eve)
    assert code == 403


async def test_default_policy_is_restored(api):
    here = f"{RBAC}/clusterrolebindings/cluster-admin"
    await api.ok("PATCH", here, {"subjects": None}, content_type=MERGE)
    await api.objects.reconcile(default_policy())
    subjects = (await api.ok("GET", here))["subjects"]
    assert [one["name"] for one in subjects] == ["system:masters"]
    before = api.state.view.revision
    await api.objects.reconcile(default_policy())
    assert api.state.view.revision == before


# -- secrets ---------------------------------------------------------------------------------------------------------------


async def test_secret_text_becomes_data(api):
    body = {"metadata": {"name": "s"}, "stringData": {"k": "v"}}
    made = await api.ok("POST", "/api/v1/namespaces/default/secrets", body)
    assert made["type"] == "Opaque"
    assert base64.b64decode(made["data"]["k"]) == b"v"
    assert "stringData" not in made


# -- watch -----------------------------------------------------------------------------------------------------------------


async def test_watch_from_a_version(api):
    first = await api.ok("POST", MAPS, {"metadata": {"name": "a"}})
    version = first["metadata"]["resourceVersion"]
    await api.ok("PATCH", f"{MAPS}/a", {"data": {"k": "v"}}, content_type=MERGE)
    stream = await api.watch(f"{MAPS}?watch=true&resourceVersion={version}")
    assert await api.events(stream, 1) == [("MODIFIED", "a")]
    pending = asyncio.ensure_future(api.events(stream, 2))
    await asyncio.sleep(0)
    await api.ok("POST", MAPS, {"metadata": {"name": "b"}})
    await api.ok(
        "POST", "/api/v1/namespaces/kube-system/configmaps", {"metadata": {"name": "elsewhere"}}
    )
    await api.ok("DELETE", f"{MAPS}/a")
    assert await pending == [("ADDED", "b"), ("DELETED", "a")]
    await stream.aclose()


async def test_watch_from_now_shows_first_what_there_is(api):
    await api.ok("POST", MAPS, {"metadata": {"name": "a"}})
    stream = await api.watch(f"{MAPS}?watch=true")
    assert await api.events(stream, 1) == [("ADDED", "a")]
    await stream.aclose()


async def test_a_watch_list_says_when_it_is_complete(api):
    await api.ok("POST", MAPS, {"metadata": {"name": "a"}})
    query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    stream = await api.watch(f"{MAPS}?{query}&fieldSelector=metadata.name%3Da")
    assert await api.events(stream, 2) == [("ADDED", "a"), ("BOOKMARK", None)]
    await api.ok("DELETE", f"{MAPS}/a")
    assert await api.events(stream, 1) == [("DELETED", "a")]
    await stream.aclose()


async def test_watch_with_a_selector_sees_objects_come_and_go(api):
    stream = await api.watch(f"{MAPS}?watch=true&labelSelector=app%3Dx")
    pending = asyncio.ensure_future(api.events(stream, 3))
    await asyncio.sleep(0)
    await api.ok("POST", MAPS, {"metadata": {"name": "a"}})
    for app in ("x", "x2", None):
        patch = {"metadata": {"labels": {"app": app, "n": "1"}}}
        await api.ok("PATCH", f"{MAPS}/a", patch, content_type=MERGE)
    await api.ok("PATCH", f"{MAPS}/a", {"metadata": {"labels": {"app": "x"}}}, content_type=MERGE)
    assert await pending == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a")]
    await stream.aclose()


async def test_watch_from_a_forgotten_version(api):
    api.state.view.history.reset(revision=api.state.view.revision)
    stream = await api.watch(f"{MAPS}?watch=true&resourceVersion=1")
    assert await api.events(stream, 1) == [("ERROR", 410)]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_watch_ends_after_its_time(api):
    stream = await api.watch(f"{MAPS}?watch=true&timeoutSeconds=1")
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(stream), 5)


async def test_watch_of_tables(api):
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    await api.ok("POST", MAPS, {"metadata": {"name": "a"}})
    await api.ok("POST", MAPS, {"metadata": {"name": "b"}})
    stream = await api.watch(f"{MAPS}?watch=true", accept=accept)
    first, second = [json.loads(await anext(stream))["object"] for _ in range(2)]
    assert [column["name"] for column in first["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert second["columnDefinitions"] is None
    assert second["rows"][0]["cells"][:2] == ["b", 0]
    await stream.aclose()


# -- racing ----------------------------------------------------------------------------------------------------------------


async def test_patches_at_the_same_time_are_all_kept(api):
    await api.ok("POST", MAPS, {"metadata": {"name": "a"}})
    await asyncio.gather(
        *(
            api.ok("PATCH", f"{MAPS}/a", {"data": {f"k{n}": "v"}}, content_type=MERGE)
            for n in range(20)
        )
    )
    assert len((await api.ok("GET", f"{MAPS}/a"))["data"]) == 20


async def test_nothing_is_created_in_a_namespace_that_goes(api):
    await api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "tmp"}})
    maps = "/api/v1/namespaces/tmp/configmaps"
    answers = await asyncio.gather(
        *(api.ask("POST", maps, {"metadata": {"name": f"m{n}"}}) for n in range(5)),
        api.ask("DELETE", "/api/v1/namespaces/tmp"),
        *(api.ask("POST", maps, {"metadata": {"name": f"n{n}"}}) for n in range(5)),
    )
    assert answers[5].status == 200
    assert (await api.ok("GET", "/api/v1/configmaps?fieldSelector=metadata.namespace%3Dtmp"))[
        "items"
    ] == []


async def test_admin_is_who_the_tests_say(api):
    review = {"spec": {"resourceAttributes": {"verb": "*", "group": "*", "resource": "*"}}}
    target = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await api.ok("POST", target, review))["status"] == {"allowed": True}


# -- services of the catalog ---------------------------------------------------------------------------------------------------


async def register(api, service_id, port, *tags):
    service = Service(node="n1", id=service_id, name="web", port=port, tags=tags)
    gate = Gate(api.chain)
    command = Register(node="n1", address="192.0.2.1", service=service)
    await Catalog(api.state, gate, datacenter="dc1").register(unix_peer(0, 0), command)


async def test_services_of_the_catalog_are_shown(api):
    target = "/api/v1/namespaces/default/services"
    assert (await api.ok("GET", target))["items"] == []
    stream = await api.watch(f"{target}?watch=true")
    pending = asyncio.ensure_future(api.events(stream, 2))
    await asyncio.sleep(0)
    await register(api, "a", 8081, "http")
    await asyncio.sleep(0.05)
    await register(api, "b", 8080)
    assert await pending == [("ADDED", "web"), ("MODIFIED", "web")]
    await stream.aclose()
    found = await api.ok("GET", f"{target}/web")
    assert [one["port"] for one in found["spec"]["ports"]] == [8080, 8081]
    assert found["metadata"]["annotations"] == {"discovery.waypost.io/tags": "http"}
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    (row,) = (await api.ok("GET", target, accept=accept))["rows"]
    assert row["cells"][:5] == ["web", "ClusterIP", "None", "<none>", "8080/TCP,8081/TCP"]
    assert (await api.ok("GET", "/api/v1/namespaces/other/services"))["items"] == []
    assert (await api.ask("GET", f"{target}/nosuch")).status == 404
    assert (await api.ask("DELETE", f"{target}/web")).status == 405


async def test_a_watch_of_services_starts_from_now_only(api):
    version = api.state.view.revision
    await register(api, "a", 8081)
    stream = await api.watch(f"/api/v1/services?watch=true&resourceVersion={version}")
    assert await api.events(stream, 1) == [("ERROR", 410)]
    version = api.state.view.revision
    stream = await api.watch(
        f"/api/v1/services?watch=true&resourceVersion={version}&timeoutSeconds=1"
    )
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
