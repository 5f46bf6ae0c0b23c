"""The PyPI client `kubernetes`, unmodified."""

from __future__ import annotations

import threading

import kubernetes
import pytest

GROUP = "rbac.authorization.k8s.io"


@pytest.fixture(scope="module")
def client(cluster):
    made = kubernetes.config.new_client_from_config(str(cluster.admin))
    yield made
    made.close()


@pytest.fixture
def rbac(client):
    return kubernetes.client.RbacAuthorizationV1Api(client)


def role(name):
    rule = kubernetes.client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["get"])
    metadata = kubernetes.client.V1ObjectMeta(name=name)
    return kubernetes.client.V1Role(metadata=metadata, rules=[rule])


def test_lists(rbac):
    names = [one.metadata.name for one in rbac.list_cluster_role().items]
    assert "cluster-admin" in names


def test_a_role_and_its_binding(rbac, client):
    made = rbac.create_namespaced_role("default", role("py1"))
    assert made.metadata.uid
    subject = kubernetes.client.RbacV1Subject(kind="User", name="bob", api_group=GROUP)
    ref = kubernetes.client.V1RoleRef(api_group=GROUP, kind="Role", name="py1")
    metadata = kubernetes.client.V1ObjectMeta(name="pyb")
    binding = kubernetes.client.V1RoleBinding(metadata=metadata, role_ref=ref, subjects=[subject])
    rbac.create_namespaced_role_binding("default", binding)
    attributes = kubernetes.client.V1ResourceAttributes(
        namespace="default", resource="pods", verb="get"
    )
    spec = kubernetes.client.V1SubjectAccessReviewSpec(user="bob", resource_attributes=attributes)
    review = kubernetes.client.V1SubjectAccessReview(spec=spec)
    found = kubernetes.client.AuthorizationV1Api(client).create_subject_access_review(review).status
    assert (found.allowed, found.reason) == (
        True, 'RBAC: allowed by RoleBinding "pyb/default" of Role "py1" to User "bob"',
    )  # fmt: skip


def test_patches_and_replaces(rbac):
    rbac.create_namespaced_role("default", role("py2"))
    found = rbac.patch_namespaced_role("py2", "default", {"metadata": {"labels": {"a": "b"}}})
    assert found.metadata.labels == {"a": "b"}
    ops = [{"op": "add", "path": "/metadata/labels/c", "value": "d"}]
    assert rbac.patch_namespaced_role("py2", "default", ops).metadata.labels == {"a": "b", "c": "d"}
    found = rbac.read_namespaced_role("py2", "default")
    found.rules[0].verbs = ["list"]
    assert rbac.replace_namespaced_role("py2", "default", found).rules[0].verbs == ["list"]


def test_refusals(rbac):
    with pytest.raises(kubernetes.client.ApiException) as caught:
        rbac.read_cluster_role("nosuch")
    assert (caught.value.status, caught.value.reason) == (404, "Not Found")


def test_reviews(client):
    spec = kubernetes.client.V1SelfSubjectRulesReviewSpec(namespace="default")
    review = kubernetes.client.V1SelfSubjectRulesReview(spec=spec)
    found = kubernetes.client.AuthorizationV1Api(client).create_self_subject_rules_review(review)
    assert found.status.resource_rules
    me = kubernetes.client.AuthenticationV1Api(client).create_self_subject_review({})
    assert me.status.user_info.username == "kubernetes-admin"


def test_a_token_works(client, cluster):
    core = kubernetes.client.CoreV1Api(client)
    request = kubernetes.client.AuthenticationV1TokenRequest(
        spec=kubernetes.client.V1TokenRequestSpec(audiences=[])
    )
    token = core.create_namespaced_service_account_token("default", "default", request).status.token
    settings = kubernetes.client.Configuration(host=cluster.https)
    settings.verify_ssl = True
    settings.ssl_ca_cert = str(cluster.folder / "data" / "pki" / "ca.crt")
    settings.api_key = {"authorization": f"Bearer {token}"}
    with kubernetes.client.ApiClient(settings) as other:
        me = kubernetes.client.AuthenticationV1Api(other).create_self_subject_review({})
    assert me.status.user_info.username == "system:serviceaccount:default:default"


def test_watch(rbac, client):
    core = kubernetes.client.CoreV1Api(client)
    watch = kubernetes.watch.Watch()
    seen = []
    version = core.list_namespaced_config_map("default").metadata.resource_version

    def change():
        metadata = kubernetes.client.V1ObjectMeta(name="w")
        core.create_namespaced_config_map(
            "default", kubernetes.client.V1ConfigMap(metadata=metadata)
        )
        core.delete_namespaced_config_map("w", "default")

    changer = threading.Timer(0.3, change)
    changer.start()
    stream = watch.stream(
        core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=10
    )
    for event in stream:
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            watch.stop()
    changer.join()
    assert seen == [("ADDED", "w"), ("DELETED", "w")]


def test_dynamic_client(client):
    dynamic = kubernetes.dynamic.DynamicClient(client)
    roles = dynamic.resources.get(api_version=f"{GROUP}/v1", kind="ClusterRole")
    assert roles.get(name="view").metadata.name == "view"
    assert kubernetes.client.VersionApi(client).get_code().major == "1"
