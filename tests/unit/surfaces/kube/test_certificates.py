"""Certificate signing requests: who decides, who signs, what is decided unasked."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from waypost.access.pki.issue import make_authority
from waypost.access.pki.keys import generate_key
from waypost.access.pki.signer import sign
from waypost.domain.object_kinds import signing_request

HERE = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
CLIENT = "kubernetes.io/kube-apiserver-client"
NODE_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"


def request(name, *, user="newuser", groups=("devs",), signer=CLIENT, usages=("client auth",)):
    """Return a signing request as a document."""
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, one) for one in groups]
    names.append(x509.NameAttribute(NameOID.COMMON_NAME, user))
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    spec = {"request": base64.b64encode(pem).decode(), "signerName": signer, "usages": list(usages)}
    return {"metadata": {"name": name}, "spec": spec}


@pytest.fixture
def signing(api):
    """The API with an authority that signs."""
    key = generate_key()
    now_s = api.clock.wall()
    authority = make_authority(key, common_name="test", now_s=now_s)
    api.objects.sign = lambda one: (
        sign(signing_request(one["spec"]), authority, now_s=now_s)
        if one["spec"]["signerName"] in (CLIENT, NODE_CLIENT)
        else None
    )
    return api


async def decide(api, name, kind, **more):
    found = await api.ok("GET", f"{HERE}/{name}")
    found.setdefault("status", {})["conditions"] = [{"type": kind, "status": "True", "reason": "r"}]
    return await api.ask("PUT", f"{HERE}/{name}/approval", found, **more)


def conditions(document):
    return [one["type"] for one in document.get("status", {}).get("conditions", [])]


async def test_the_requester_is_who_asks(signing):
    body = request("r")
    body["spec"] |= {"username": "root", "groups": ["system:masters"]}
    made = await signing.ok("POST", HERE, body)
    assert made["spec"]["username"] == "kubernetes-admin"
    assert made["spec"]["groups"] == ["system:masters", "system:authenticated"]


async def test_approved_and_signed(signing):
    await signing.ok("POST", HERE, request("r"))
    assert (await decide(signing, "r", "Approved")).status == 200
    found = await signing.ok("GET", f"{HERE}/r")
    assert conditions(found) == ["Approved"]
    pem = base64.b64decode(found["status"]["certificate"])
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=newuser,O=devs"


async def test_what_must_not_be_signed_fails(signing):
    await signing.ok("POST", HERE, request("r", usages=("server auth",)))
    await decide(signing, "r", "Approved")
    found = await signing.ok("GET", f"{HERE}/r")
    assert sorted(conditions(found)) == ["Approved", "Failed"]
    assert "certificate" not in found["status"]


async def test_denied_is_not_signed(signing):
    await signing.ok("POST", HERE, request("r"))
    await decide(signing, "r", "Denied")
    found = await signing.ok("GET", f"{HERE}/r")
    assert conditions(found) == ["Denied"]
    assert "certificate" not in found["status"]


async def test_nobody_asks_for_masters(signing):
    code, message = await signing.refused("POST", HERE, request("r", groups=("system:masters",)))
    assert code == 403
    assert message.endswith(f"use of {CLIENT} signer with system:masters group is not allowed")


async def test_approving_needs_the_right_on_the_signer(signing):
    rules = [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["get"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
    ]  # fmt: skip
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    await signing.ok("POST", f"{rbac}/clusterroles", {"metadata": {"name": "a"}, "rules": rules})
    await signing.ok("POST", f"{rbac}/clusterrolebindings", {
        "metadata": {"name": "a"},
        "roleRef": {"kind": "ClusterRole", "name": "a"},
        "subjects": [{"kind": "User", "name": "ann"}],
    })  # fmt: skip
    await signing.ok("POST", HERE, request("r"))
    answer = await decide(signing, "r", "Approved", actor=signing.user("ann"))
    assert answer.status == 403
    assert answer.json["message"] == (
        'certificatesigningrequests.certificates.k8s.io "r" is forbidden: '
        f'user not permitted to approve requests with signerName "{CLIENT}"'
    )


async def test_a_plain_update_decides_nothing(signing):
    await signing.ok("POST", HERE, request("r"))
    found = await signing.ok("GET", f"{HERE}/r")
    found["status"] = {
        "conditions": [{"type": "Approved", "status": "True"}],
        "certificate": "eA==",
    }
    found["spec"]["username"] = "other"
    after = await signing.ok("PUT", f"{HERE}/r", found)
    assert conditions(after) == []
    assert after["spec"]["username"] == "kubernetes-admin"


async def test_a_node_gets_its_first_certificate_unasked(signing):
    rbac = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    group = "system:bootstrappers:test"
    for role in (
        "system:node-bootstrapper",
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
    ):
        await signing.ok("POST", rbac, {
            "metadata": {"name": f"test-{role.rpartition(':')[2]}"},
            "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "Group", "name": group}],
        })  # fmt: skip
    joiner = signing.user("system:bootstrap:abcdef", group)
    usages = ("digital signature", "client auth")
    node = {
        "user": "system:node:n2",
        "groups": ("system:nodes",),
        "signer": NODE_CLIENT,
        "usages": usages,
    }
    await signing.ok("POST", HERE, request("good", **node), actor=joiner)
    found = await signing.ok("GET", f"{HERE}/good")
    assert conditions(found) == ["Approved"]
    assert found["status"]["certificate"]
    unnamed = request("", **node)
    unnamed["metadata"] = {"generateName": "csr-"}
    made = await signing.ok("POST", HERE, unnamed, actor=joiner)
    found = await signing.ok("GET", f"{HERE}/{made['metadata']['name']}")
    assert conditions(found) == ["Approved"]
    # Somebody who may ask, but not have it unasked, waits for an operator.
    await signing.ok("POST", HERE, request("other", **node | {"groups": ("devs",)}), actor=joiner)
    assert conditions(await signing.ok("GET", f"{HERE}/other")) == []
