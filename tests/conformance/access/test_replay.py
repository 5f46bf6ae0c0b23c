"""Every recorded decision once more, through the API of a real agent: policies are created there, questions asked there.

Cases with the same policy share it. Where the answer differs from the recorded one:

| cases | what | why |
|---|---|---|
| A167 | the reason | upstream's order is arbitrary |
| node, what runs on the node | no opinion | no pods run here, so no secret belongs to a node |
| chain, the words of a failure | ours | they name the webhook |
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.access.api import AUTHENTICATION, PLURALS, RBAC, Api, certificate_of
from tests.integration.access.conftest import Protected
from tests.integration.access.peers import Authority, Peer, Sent, kubeconfig

from .policy import DATA, by_id, cases
from .questions import spec_of, status_of
from .test_authorization import ABAC_FILE

TOKENS = """\
token-of-bob,bob,1001
token-of-alice,alice,1002
"""


@pytest.fixture(scope="module")
def agent() -> Iterator[Protected]:
    one = Protected(tokens=TOKENS)
    try:
        one.process.start()
        yield one
    finally:
        one.process.close()


@pytest.fixture(scope="module")
def admin(agent: Protected) -> Iterator[Api]:
    pair = certificate_of(agent.process.data / "admin.conf", agent.folder)
    with Api(agent.https, certificate=pair) as api:
        for name in ("n1", "n2"):
            api.create({"kind": "Namespace", "metadata": {"name": name}})
        yield api


def added(policy: Any) -> list[dict[str, Any]]:
    """Return what a case adds to the default policy, which is there already."""
    if policy == "default":
        return []
    found: list[dict[str, Any]] = policy["add"] if isinstance(policy, dict) else policy
    return found


def by_policy(rows: list[dict[str, Any]]) -> list[Any]:
    """Return the cases with the same policy as one parameter each, named by the first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps(added(row["policy"]), sort_keys=True), []).append(row)
    return [pytest.param(rows, id=rows[0]["id"]) for rows in groups.values()]


def created(admin: Api, documents: list[dict[str, Any]]) -> list[str]:
    # Roles first: who creates a binding is asked about its role.
    ordered = sorted(documents, key=lambda one: one["kind"].endswith("Binding"))
    return [admin.create(one) for one in ordered]


# -- RBAC ----------------------------------------------------------------------------------------------------------------


def expected(row: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    wanted = status_of(row)
    if row["id"] == "A167":
        assert 'to Group "system:unauthenticated"' in status["reason"]
        wanted["reason"] = status["reason"]
    elif row["expect"] == "allow" and "reason" not in row:
        wanted["reason"] = status.get("reason", "")
        if wanted["reason"] == "":  # system:masters are allowed before anybody is asked
            del wanted["reason"]
    return wanted


@pytest.mark.parametrize("rows", by_policy(cases("sar")))
def test_subject_access_reviews(admin: Api, rows: list[dict[str, Any]]) -> None:
    made = created(admin, added(rows[0]["policy"]))
    wrong = []
    try:
        for row in rows:
            spec = spec_of(row)
            status = admin.review("SubjectAccessReview", spec)
            wanted = expected(row, status)
            if status != wanted:
                wrong.append((row["id"], row["why"], status, wanted))
            if spec.get("resourceAttributes", {}).get("namespace"):
                local = admin.review("LocalSubjectAccessReview", spec)
                if local != status:
                    wrong.append((row["id"], "LocalSubjectAccessReview", local, status))
            wrong += _asked_as_oneself(admin, row, spec)
    finally:
        for path in made:
            admin.delete(path)
    assert not wrong, "\n".join(map(str, wrong))


def _asked_as_oneself(admin: Api, row: dict[str, Any], spec: dict[str, Any]) -> list[Any]:
    """Ask the same as the impersonated user, who is always authenticated as well."""
    user, groups = spec["user"], spec["groups"]
    if not user or "system:unauthenticated" in groups or user == "system:anonymous":
        return []  # nobody can be that and ask
    if any(not one for one in groups):
        return []
    if user.startswith("system:serviceaccount:") and not groups:
        _, _, namespace, _ = user.split(":")
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
    full = dict.fromkeys((*groups, "system:authenticated"))
    review = {key: value for key, value in spec.items() if key.endswith("Attributes")}
    fields = [("Impersonate-User", user)] + [("Impersonate-Group", one) for one in spec["groups"]]
    reply = admin.review_as("SelfSubjectAccessReview", review, headers=fields)
    assert reply.status == 201, (row["id"], reply.body)
    own = reply.json["status"]
    other = admin.review("SubjectAccessReview", spec | {"groups": list(full)})
    return [] if own == other else [(row["id"], "SelfSubjectAccessReview", own, other)]


# kubectl looks names up in discovery, so that it cannot ask about groups that are not there, nor for letters in upper case.
CAN_I = [
    row
    for row in cases("sar")
    if isinstance(row["policy"], list)
    and row["request"].get("apiGroup") == ""
    and row["user"]
    and "*" not in json.dumps(row["request"])
    and row["request"]["resource"].islower()
]
SAMPLE = CAN_I[:: len(CAN_I) // 12]


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("row", SAMPLE, ids=by_id)
def test_kubectl_can_i(agent: Protected, admin: Api, row: dict[str, Any], tmp_path: Path) -> None:
    request = row["request"]
    made = created(admin, added(row["policy"]))
    resource = request["resource"]
    if request.get("apiGroup"):
        resource += f".{request['apiGroup']}"
    if request.get("name"):
        resource += f"/{request['name']}"
    command = ["kubectl", "auth", "can-i", request["verb"], resource, f"--as={row['user']}"]
    command += [f"--as-group={one}" for one in row["groups"]]
    if request.get("subresource"):
        command.append(f"--subresource={request['subresource']}")
    if request.get("namespace"):
        command.append(f"--namespace={request['namespace']}")
    else:
        command.append("--all-namespaces")
    try:
        done = subprocess.run(
            command,
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
    finally:
        for path in made:
            admin.delete(path)
    is_allowed = row["expect"] == "allow"
    assert done.stdout.split()[:1] == ["yes" if is_allowed else "no"], (command, done)
    assert done.returncode == (0 if is_allowed else 1)


# -- writing roles and bindings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", by_policy(cases("write")))
def test_writes(admin: Api, rows: list[dict[str, Any]]) -> None:
    made = created(admin, added(rows[0]["policy"]))
    wrong = []
    try:
        for row in rows:
            found = _write(admin, row)
            wanted = (row["http"], row.get("message", ""))
            is_same = found == wanted
            if row["id"] == "A388":  # recorded up to the colon
                is_same = found[0] == wanted[0] and found[1].startswith(wanted[1])
            if not is_same:
                wrong.append((row["id"], row["why"], found, wanted))
    finally:
        for path in made:
            admin.delete(path)
    assert not wrong, "\n".join(map(str, wrong))


def _write(admin: Api, row: dict[str, Any]) -> tuple[int, str]:
    existing = created(admin, row.get("existing") or [])
    sent = row["object"]
    meta = sent["metadata"]
    below = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    collection = f"{RBAC}{below}/{PLURALS[sent['kind']]}"
    path = f"{collection}/{meta['name']}"
    document = {"apiVersion": "rbac.authorization.k8s.io/v1", **sent}
    fields = [("Impersonate-User", row["user"])]
    fields += [("Impersonate-Group", one) for one in row["groups"]]
    try:
        match row["op"]:
            case "create":
                reply = admin.ask("POST", collection, document, headers=fields)
            case "update":
                reply = admin.ask("PUT", path, document, headers=fields)
            case "delete":
                reply = admin.ask("DELETE", path, headers=fields)
            case "patch":
                reply = admin.ask(
                    "PATCH",
                    path,
                    row["patch"],
                    headers=fields,
                    content_type="application/merge-patch+json",
                )
    finally:
        for one in (*existing, path):
            admin.delete(one)
    message = reply.message if reply.status >= 400 else ""
    return reply.status, message.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


# -- Node ------------------------------------------------------------------------------------------------------------------


def test_nodes(admin: Api) -> None:
    wrong = []
    for row in cases("node"):
        status = admin.review("SubjectAccessReview", spec_of(row))
        verdict = row.get("expectSince132", row["expect"])
        request = row["request"]
        is_of_a_pod = request.get("resource") in (
            "secrets", "configmaps", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts", "pods",
        )  # fmt: skip
        if is_of_a_pod and verdict == "allow" and request.get("name") and not status["allowed"]:
            # Allowed there because a pod on the node needs it; here none does.
            if "no relationship found between node 'node1' and this object" not in status["reason"]:
                wrong.append((row["id"], row["why"], status))
            continue
        wanted: dict[str, Any] = {"allowed": verdict == "allow"}
        reason = row["reason"]
        if "expectSince132" in row:
            reason = row["whySince132"].split('"')[1] if '"' in row["whySince132"] else None
        if reason is None:
            status.pop("reason", None)
        elif reason:
            wanted["reason"] = reason
        if status != wanted:
            wrong.append((row["id"], row["why"], status, wanted))
    assert not wrong, "\n".join(map(str, wrong))


# -- impersonation -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def everybody_may_see_himself(admin: Api) -> Iterator[None]:
    path = admin.create(
        {
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "whoami"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:basic-user",
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Group",
                    "name": "system:unauthenticated",
                }
            ],
        }
    )
    yield
    admin.delete(path)


@pytest.mark.usefixtures("everybody_may_see_himself")
@pytest.mark.parametrize("row", cases("impersonate"), ids=by_id)
def test_impersonation(agent: Protected, admin: Api, row: dict[str, Any]) -> None:
    fields = [(name, value) for name, values in row["headers"].items() for value in values]
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    target = f"{AUTHENTICATION}/selfsubjectreviews"
    may = row["requesterMayImpersonate"]
    if row["requester"] == "admin":
        reply = admin.ask("POST", target, review, headers=fields)
    else:
        made = [
            admin.create(
                {
                    "kind": "ClusterRole",
                    "metadata": {"name": "impersonator"},
                    "rules": [
                        {
                            "apiGroups": [""],
                            "resources": [resource],
                            "resourceNames": names,
                            "verbs": ["impersonate"],
                        }
                        for one in may
                        for resource, names in one.items()
                    ],
                }
            ),
            admin.create(
                {
                    "kind": "ClusterRoleBinding",
                    "metadata": {"name": "impersonator"},
                    "roleRef": {
                        "apiGroup": "rbac.authorization.k8s.io",
                        "kind": "ClusterRole",
                        "name": "impersonator",
                    },
                    "subjects": [
                        {
                            "apiGroup": "rbac.authorization.k8s.io",
                            "kind": "User",
                            "name": row["requester"],
                        }
                    ],
                }
            ),
        ]
        with Api(agent.https, token=f"token-of-{row['requester']}") as other:
            reply = other.ask("POST", target, review, headers=fields)
        for path in made:
            admin.delete(path)
    match row["expect"]:
        case "allow":
            assert reply.status == 201, reply.body
            found = reply.json["status"]["userInfo"]
            wanted = row.get("effectiveUser")
            if wanted is None:  # nobody was impersonated
                assert found["username"] == "kubernetes-admin"
            else:
                found.pop("extra", None)
                assert found == wanted
        case "deny":
            assert reply.status == 403
            name = "devs" if "Impersonate-Group" in row["headers"] else "bob"
            kind = "groups" if name == "devs" else "users"
            assert reply.message == (
                f'{kind} "{name}" is forbidden: User "alice" cannot impersonate resource "{kind}" '
                'in API group "" at the cluster scope'
            )
        case "error":
            assert reply.status == 400
            assert reply.message == "requested [{Group  g    }] without impersonating a user"


# -- URLs ------------------------------------------------------------------------------------------------------------------

URLS = [json.loads(line) for line in (DATA / "request-attributes.jsonl").read_text().splitlines()]


NOT_AS_RECORDED = {
    "POST /logs/a": (404, "a path that is not served is not found, as in Consul"),
    "FOO /api/v1/namespaces/n1/pods/p": (400, "the HTTP server takes registered methods only"),
    "GET /api//v1/pods": (301, "to the clean path, as in Consul"),
    "GET /apis/apps/v1": (404, "allowed as well; the group is not there"),
    "GET /apis/apps": (404, "allowed as well; the group is not there"),
    "GET /apis/apps/v1/": (404, "allowed as well; the group is not there"),
}


def test_requests_of_somebody_who_may_nothing(agent: Protected) -> None:
    wrong = []
    with Api(agent.https, token="token-of-bob") as bob:
        for row in URLS:
            line = f"{row['method']} {row['path']}"
            reply = bob.ask(row["method"], row["path"])
            status, _ = NOT_AS_RECORDED.get(line, (row["statusAsUnprivileged"], ""))
            if reply.status != status:
                wrong.append((line, reply.status, status, reply.body))
            elif line not in NOT_AS_RECORDED and reply.message != row.get("message", reply.message):
                wrong.append((line, reply.message, row["message"]))
    assert not wrong, "\n".join(map(str, wrong))


# -- other authorizers -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[Api]:
    """Start an agent; ask it as its administrator."""
    one = Protected(*flags, tokens=TOKENS)
    try:
        one.process.start()
        pair = certificate_of(one.process.data / "admin.conf", folder)
        with Api(one.https, certificate=pair) as api:
            yield api
    finally:
        one.process.close()


def test_abac(tmp_path: Path) -> None:
    file = tmp_path / "policy.jsonl"
    file.write_text(ABAC_FILE)
    wrong = []
    with running(tmp_path, "-authorization-mode=ABAC", f"-authorization-policy-file={file}") as api:
        for row in cases("abac"):
            status = api.review("SubjectAccessReview", spec_of(row))
            if status != status_of(row):
                wrong.append((row["id"], row["why"], status))
    assert not wrong, "\n".join(map(str, wrong))


def test_always_deny_before_rbac_and_always_allow(tmp_path: Path) -> None:
    question = {"user": "ann", "resourceAttributes": {"verb": "get", "resource": "secrets"}}
    with running(tmp_path, "-authorization-mode=AlwaysDeny,RBAC") as api:
        status = api.review("SubjectAccessReview", question)
        assert status == {"allowed": False, "reason": "Everything is forbidden."}
    with running(tmp_path, "-authorization-mode=AlwaysAllow") as api:
        assert api.review("SubjectAccessReview", question) == {"allowed": True}


MEMBERS = 2


def test_chains(tmp_path: Path) -> None:
    """Each member of a recorded chain is a webhook that answers as that member did."""
    authority = Authority("hooks")
    now: list[dict[str, Any]] = []

    def answer(sent: Sent) -> tuple[int, Any]:
        at = int(sent.target[2])
        member = now[at] if at < len(now) else {"decision": "no-opinion"}
        verdict, error = member["decision"], member.get("error", "")
        if error and verdict == "no-opinion":
            return 400, {}
        status = {"allowed": verdict == "allow" or (verdict == "deny" and bool(error))}
        if verdict == "deny":
            status["denied"] = True
        status["reason"] = member.get("reason", "")
        status["evaluationError"] = error
        return 200, {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "status": status,
        }

    wrong = []
    with Peer(authority, answer) as peer:
        plan = {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AuthorizationConfiguration",
            "authorizers": [_member(tmp_path, peer, authority, at) for at in range(MEMBERS)],
        }
        file = tmp_path / "authorization.json"
        file.write_text(json.dumps(plan))
        with running(tmp_path, f"-authorization-config={file}") as api:
            for row in cases("chain"):
                members = list(row["authorizers"])
                groups = ["g"]
                if members[0].get("authorizer", "").startswith("system:masters"):
                    groups, members = ["system:masters"], members[1:]
                assert len(members) <= MEMBERS
                now[:] = members
                peer.seen.clear()
                spec = {
                    "user": row["id"],
                    "groups": groups,
                    "resourceAttributes": {"verb": "get", "resource": "secrets", "name": "s"},
                }
                found = api.review("SubjectAccessReview", spec)
                fields = [("Impersonate-User", row["id"]), ("Impersonate-Group", groups[0])]
                wanted = dict(row["sarStatus"])
                for status in (found, wanted):  # a failure is told in our words
                    if "evaluationError" in status:
                        status["evaluationError"] = "…"
                if found != wanted:
                    wrong.append((row["id"], row["why"], found, wanted))
                if groups == ["system:masters"]:
                    assert not peer.seen
                reply = api.ask("GET", "/api/v1/namespaces/none/secrets/s", headers=fields)
                status_code = 404 if row["http"] == 200 else row["http"]
                if reply.status != status_code:
                    wrong.append((row["id"], row["why"], reply.status, reply.body))
    assert not wrong, "\n".join(map(str, wrong))


def _member(folder: Path, peer: Peer, authority: Authority, at: int) -> dict[str, Any]:
    path = folder / f"hook-{at}.conf"
    kubeconfig(path, url=f"{peer.url}/h{at}", authority=authority)
    return {
        "type": "Webhook",
        "name": f"hook-{at}",
        "webhook": {
            "timeout": "5s",
            "subjectAccessReviewVersion": "v1",
            "matchConditionSubjectAccessReviewVersion": "v1",
            "failurePolicy": "NoOpinion",
            "cacheAuthorizedRequests": False,
            "cacheUnauthorizedRequests": False,
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": str(path)},
        },
    }
