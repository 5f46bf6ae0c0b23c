"""Nobody without a good credential gets at anything but what is open, whatever is sent; and the agent lives on.

A few seconds with a fixed seed; WAYPOST_FUZZ_SECONDS and WAYPOST_FUZZ_SEED make it longer and another. `-s` shows counts.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from .api import Api, certificate_of
from .conftest import Protected
from .fuzz import MARK, Bodies, Heard, Secrets, Shot, Strangers, fault_of, is_documented, send

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyOpenSSL's own classes

SECONDS = float(os.environ.get("WAYPOST_FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("WAYPOST_FUZZ_SEED", "1"))
STATIC = "mighty-token-0815-abcdefgh"
TOKENS = f"""\
{STATIC},mighty,1001,"system:masters"
token-of-maker,maker,1002
token-of-registrant,registrant,1003
"""
BOOTSTRAP = "fuzzed.0123456789abcdef"
GROUP = "rbac.authorization.k8s.io"


class Place:
    """The agent under fire, and what is in it."""

    def __init__(self) -> None:
        self.agent = Protected(tokens=TOKENS)
        self.agent.process.start()
        self.admin = Api(self.agent.https, certificate=self._pair())
        self.account_token = self._fill()

    def _pair(self) -> Path:
        return certificate_of(self.agent.process.data / "admin.conf", self.agent.folder)

    def _fill(self) -> str:
        admin = self.admin
        assert admin.ask("PUT", "/v1/kv/secret/fuzz", MARK.encode()).status == 200
        admin.create({"kind": "Namespace", "metadata": {"name": "fuzz"}})
        for namespace, name, values, kind in (
            ("default", "fuzz", {"password": MARK}, "Opaque"),
            (
                "kube-system",
                f"bootstrap-token-{BOOTSTRAP[:6]}",
                {
                    "token-id": BOOTSTRAP[:6],
                    "token-secret": BOOTSTRAP[7:],
                    "usage-bootstrap-authentication": "true",
                },
                "bootstrap.kubernetes.io/token",
            ),
        ):
            made = admin.ask(
                "POST",
                f"/api/v1/namespaces/{namespace}/secrets",
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name},
                    "type": kind,
                    "stringData": values,
                },
            )
            assert made.status == 201, made.body
        accounts = "/api/v1/namespaces/kube-system/serviceaccounts"
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mighty"}}
        assert admin.ask("POST", accounts, account).status == 201
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        issued = admin.ask("POST", f"{accounts}/mighty/token", request)
        assert issued.status == 201, issued.body
        # Whoever is taken for one of these may everything, so that it would show.
        admin.create(
            binding(
                "fuzz-mighty",
                "cluster-admin",
                {"kind": "ServiceAccount", "name": "mighty", "namespace": "kube-system"},
                {"apiGroup": GROUP, "kind": "Group", "name": "system:bootstrappers"},
                {"apiGroup": GROUP, "kind": "Group", "name": "system:nodes"},
                {"apiGroup": GROUP, "kind": "Group", "name": "system:serviceaccounts"},
            )
        )
        for name, rules in (
            ("maker", MAKER_RULES),
            ("registrant", REGISTRANT_RULES),
        ):
            admin.create({"kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
            admin.create(binding(name, name, {"apiGroup": GROUP, "kind": "User", "name": name}))
        token: str = issued.json["status"]["token"]
        for one in (STATIC, token, BOOTSTRAP):  # they are good
            with Api(self.agent.https, token=one) as api:
                assert MARK in api.ask("GET", "/v1/kv/secret/fuzz?raw").text
        return token

    def secrets(self) -> Secrets:
        data = self.agent.process.data
        user = yaml.safe_load((data / "admin.conf").read_text())["users"][0]["user"]
        return Secrets(
            static=STATIC,
            account_token=self.account_token,
            bootstrap=BOOTSTRAP,
            public_key_pem=(data / "pki" / "sa.pub").read_bytes(),
            ca=x509.load_pem_x509_certificate((data / "pki" / "ca.crt").read_bytes()),
            ca_key=serialization.load_pem_private_key((data / "pki" / "ca.key").read_bytes(), None),
            admin=x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"])),
            admin_key_pem=base64.b64decode(user["client-key-data"]),
        )

    def fresh_admin(self) -> Api:
        """The kept connection may have been idle for too long."""
        return Api(self.agent.https, certificate=self._pair())

    def send(self, shot: Shot) -> Heard:
        return send(shot, http=self.agent.process.http, https=self.agent.https)

    @property
    def files(self) -> int:
        return len(list(Path(f"/proc/{self.agent.process.pid}/fd").iterdir()))

    @property
    def memory_mb(self) -> float:
        pages = int(Path(f"/proc/{self.agent.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def binding(name: str, role: str, *subjects: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": list(subjects),
    }


MAKER_RULES = [
    {
        "apiGroups": ["", GROUP],
        "resources": [
            "secrets",
            "serviceaccounts",
            "serviceaccounts/token",
            "roles",
            "rolebindings",
        ],
        "verbs": ["create", "update", "patch", "get", "delete"],
    },
    {
        "apiGroups": ["authorization.k8s.io", "authentication.k8s.io"],
        "resources": ["localsubjectaccessreviews", "subjectaccessreviews", "tokenreviews"],
        "verbs": ["create"],
    },
    {
        "apiGroups": ["certificates.k8s.io"],
        "resources": ["certificatesigningrequests"],
        "verbs": ["create"],
    },
]
REGISTRANT_RULES = [
    {
        "apiGroups": ["discovery.waypost.io"],
        "resources": ["services"],
        "resourceNames": ["web"],
        "verbs": ["update", "delete"],
    },
    {"nonResourceURLs": ["/v1/kv/app/*"], "verbs": ["get", "list", "update", "delete"]},
    {
        "apiGroups": ["discovery.waypost.io"],
        "resources": ["sessions", "events"],
        "verbs": ["create"],
    },
]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    one = Place()
    yield one
    one.admin.close()
    one.agent.process.close()


class Run:
    """Threads that fire until the time is over, and what came of it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def note(self, lane: str, status: int, fault: str) -> None:
        with self._lock:
            self.counts[f"{lane} {status}"] += 1
            if fault and len(self.faults) < 20:
                self.faults.append(f"{lane}: {fault}")

    def fire(self, lanes: dict[str, Callable[[random.Random], Callable[[], None]]]) -> None:
        until = time.monotonic() + SECONDS

        def one(lane: str, make: Callable[[random.Random], Callable[[], None]]) -> None:
            rng = random.Random(f"{SEED} {lane}")
            shoot = make(rng)
            while time.monotonic() < until and len(self.faults) < 20:
                try:
                    shoot()
                except Exception as exc:  # noqa: BLE001  (a fault of the fuzzer, or an agent that is gone)
                    self.note(lane, -2, f"{type(exc).__name__}: {exc}")
                    return

        threads = [
            threading.Thread(target=one, args=(lane, make), name=lane)
            for lane, make in lanes.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def lane(
        self, name: str, draw: Callable[[Strangers], Shot]
    ) -> Callable[[random.Random], Callable[[], None]]:
        secrets = self.place.secrets()

        def make(rng: random.Random) -> Callable[[], None]:
            strangers = Strangers(rng, secrets)

            def shoot() -> None:
                shot = draw(strangers)
                if shot.pair is None and shot.method and rng.random() < 0.15:
                    shot = shot._replace(is_tls=True)
                heard = self.place.send(shot)
                fault = fault_of(shot, heard)
                if fault:
                    certificate = b"" if shot.pair is None else shot.pair[0]
                    fault += f"\n    {shot.data[:3000]!r}\n    {certificate.hex()}\n    {heard.data[:1500]!r}"
                self.note(name, heard.status, fault)

            return shoot

        return make

    def report(self) -> str:
        return ", ".join(f"{key}: {count}" for key, count in sorted(self.counts.items()))


def settle(place: Place, *, files: int, memory_mb: float, faults: list[str]) -> None:
    """What must hold after everything: no fault, nothing left open, nothing kept, the agent well."""
    assert not faults, "\n".join(faults)
    assert place.agent.process.alive, place.agent.process.tail()
    deadline = time.monotonic() + 15
    while place.files > files + 5:
        assert time.monotonic() < deadline, f"{place.files} files open, {files} before"
        time.sleep(0.2)
    assert place.memory_mb < memory_mb + 200
    log = place.agent.process.log()
    assert "Traceback" not in log, log[log.index("Traceback") - 2000 :][:6000]
    assert "[ERROR]" not in log, log[log.index("[ERROR]") :][:3000]
    for secret in (MARK, STATIC, place.account_token, BOOTSTRAP):
        assert secret not in log
    for token in (STATIC, place.account_token, BOOTSTRAP):
        with Api(place.agent.https, token=token) as api:
            assert api.ask("GET", "/v1/kv/secret/fuzz?raw").text == MARK


@pytest.mark.timeout(SECONDS + 120)
def test_strangers(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    files, memory_mb = place.files, place.memory_mb
    run = Run(place)
    run.fire(
        {
            "certificates": run.lane("certificates", Strangers.certificate_shot),
            "tokens": run.lane("tokens", Strangers.token_shot),
            "paths": run.lane("paths", Strangers.path_shot),
            "fields": run.lane("fields", Strangers.field_shot),
            "bytes": run.lane("bytes", Strangers.byte_shot),
        }
    )
    with capsys.disabled():
        print(f"\nstrangers, seed {SEED}: {sum(run.counts.values())}; {run.report()}")
        print(f"memory {memory_mb:.0f} → {place.memory_mb:.0f} MB")
    settle(place, files=files, memory_mb=memory_mb, faults=run.faults)
    for lane in ("certificates", "tokens"):
        assert run.counts[f"{lane} 401"] > 0
    assert run.counts["paths 403"] > 0


# -- people with few rights --------------------------------------------------------------------------------------------------

AUTHZ = "/apis/authorization.k8s.io/v1"
AUTHN = "/apis/authentication.k8s.io/v1"
ROLE = {
    "apiVersion": f"{GROUP}/v1",
    "kind": "Role",
    "metadata": {"name": "r", "labels": {"a": "b"}, "annotations": {"c": "d"}},
    "rules": [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"], "verbs": ["get"]}
    ],
}
DOCUMENTS: list[tuple[str, str, Any]] = [
    (
        "POST",
        f"{AUTHZ}/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "verb": "get",
                    "group": "",
                    "resource": "nodes",
                    "namespace": "x",
                    "name": "y",
                }
            },
        },
    ),
    (
        "POST",
        f"{AUTHZ}/selfsubjectrulesreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": "fuzz"},
        },
    ),
    (
        "POST",
        f"{AUTHZ}/subjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": "x",
                "groups": ["g"],
                "uid": "u",
                "extra": {"k": ["v"]},
                "nonResourceAttributes": {"path": "/x", "verb": "get"},
            },
        },
    ),
    (
        "POST",
        f"{AUTHZ}/namespaces/fuzz/localsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "LocalSubjectAccessReview",
            "metadata": {"namespace": "fuzz"},
            "spec": {
                "user": "x",
                "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "fuzz"},
            },
        },
    ),
    (
        "POST",
        f"{AUTHN}/tokenreviews",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": "abc.def.ghi", "audiences": ["a"]},
        },
    ),
    (
        "POST",
        f"{AUTHN}/selfsubjectreviews",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
    ),
    ("POST", f"/apis/{GROUP}/v1/namespaces/fuzz/roles", ROLE),
    ("PUT", f"/apis/{GROUP}/v1/namespaces/fuzz/roles/r", ROLE),
    (
        "PATCH",
        f"/apis/{GROUP}/v1/namespaces/fuzz/roles/r",
        {"rules": [], "metadata": {"labels": None}},
    ),
    (
        "PATCH",
        f"/apis/{GROUP}/v1/namespaces/fuzz/roles/r",
        [{"op": "replace", "path": "/metadata/labels/a", "value": "x"}],
    ),
    (
        "POST",
        f"/apis/{GROUP}/v1/namespaces/fuzz/rolebindings",
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "b"},
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "r"},
            "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "u"}],
        },
    ),
    (
        "POST",
        "/api/v1/namespaces/fuzz/secrets",
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"generateName": "s-"},
            "type": "Opaque",
            "data": {"a": "eA=="},
            "stringData": {"b": "x"},
            "immutable": False,
        },
    ),
    (
        "POST",
        "/api/v1/namespaces/fuzz/serviceaccounts/default/token",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": ["a"],
                "expirationSeconds": 600,
                "boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "s"},
            },
        },
    ),
    (
        "POST",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "c-"},
            "spec": {
                "request": "LS0tLS0=",
                "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"],
                "expirationSeconds": 600,
            },
        },
    ),
    (
        "DELETE",
        f"/apis/{GROUP}/v1/namespaces/fuzz/roles/r",
        {"kind": "DeleteOptions", "apiVersion": "v1"},
    ),
    ("POST", "/v1/waypost/auth/explain", {"verb": "get", "resource": "nodes", "name": "x"}),
]
REGISTRATIONS: list[tuple[str, str, Any]] = [
    (
        "PUT",
        "/v1/agent/service/register",
        {
            "Name": "web",
            "ID": "web",
            "Port": 80,
            "Address": "127.0.0.1",
            "Tags": ["a"],
            "Meta": {"k": "v"},
            "Weights": {"Passing": 1, "Warning": 1},
            "Check": {"CheckID": "c", "TTL": "10s"},
        },
    ),
    (
        "PUT",
        "/v1/catalog/register",
        {
            "Node": "t1",
            "Address": "127.0.0.1",
            "SkipNodeUpdate": True,
            "Service": {"Service": "web", "ID": "web", "Port": 1},
            "Checks": [{"Name": "x", "CheckID": "x", "ServiceID": "web", "Status": "passing"}],
        },
    ),
    ("PUT", "/v1/catalog/deregister", {"Node": "t1", "ServiceID": "web"}),
    ("PUT", "/v1/agent/check/register", {"Name": "c", "TTL": "10s", "ServiceID": "web"}),
    (
        "PUT",
        "/v1/txn",
        [
            {"KV": {"Verb": "set", "Key": "app/a", "Value": "eA=="}},
            {"KV": {"Verb": "get-tree", "Key": "app/"}},
            {"Service": {"Verb": "set", "Node": "t1", "Service": {"ID": "web", "Service": "web"}}},
        ],
    ),
    ("PUT", "/v1/session/create", {"TTL": "10s", "Behavior": "delete", "LockDelay": "1s"}),
    ("PUT", "/v1/kv/app/a?cas=0&flags=1", {"any": "thing"}),
]


@pytest.mark.timeout(SECONDS + 120)
def test_bodies(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    files, memory_mb = place.files, place.memory_mb
    run = Run(place)

    def lane(
        name: str, token: str, documents: list[tuple[str, str, Any]]
    ) -> Callable[[random.Random], Callable[[], None]]:
        def make(rng: random.Random) -> Callable[[], None]:
            bodies = Bodies(rng)

            def shoot() -> None:
                method, target, document = rng.choice(documents)
                value = bodies.bend(document) if rng.random() < 0.9 else document
                body, content_type = bodies.encoded(value)
                if method == "PATCH" and content_type == "application/json":
                    form = "json-patch" if isinstance(document, list) else "merge-patch"
                    content_type = f"application/{form}+json"
                fields = [(b"Authorization", b"Bearer " + token.encode())]
                if content_type:
                    fields.append((b"Content-Type", content_type.encode()))
                if rng.random() < 0.2:
                    fields.append((b"Accept", b"application/vnd.kubernetes.protobuf"))
                lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: localhost"]
                lines += [key + b": " + text for key, text in fields]
                lines += [b"Content-Length: %d" % len(body), b"Connection: close", b"", b""]
                shot = Shot(b"\r\n".join(lines) + body, method, target, is_tls=rng.random() < 0.1)
                heard = place.send(shot)
                fault = ""
                if heard.status == 0 and len(body) < 60_000:
                    fault = "no answer"
                elif (
                    heard.status >= 500
                    and not (
                        is_documented(heard.data)
                        or (name == "registrations" and b"text/plain" in heard.data)
                    )
                ):  # Consul says 500 of much that is wrong with a body; a fault of ours is in the log
                    fault = f"status {heard.status}"
                elif heard.status == 401:
                    fault = "not believed"
                elif MARK.encode() in heard.data:
                    fault = "a secret"
                if fault:
                    fault += f"\n    {shot.data[:1500]!r}\n    {heard.data[:1500]!r}"
                run.note(name, heard.status, fault)

            return shoot

        return make

    run.fire(
        {
            "objects": lane("objects", "token-of-maker", DOCUMENTS),
            "registrations": lane("registrations", "token-of-registrant", REGISTRATIONS),
        }
    )
    with capsys.disabled():
        print(f"\nbodies, seed {SEED}: {sum(run.counts.values())}; {run.report()}")
        print(f"memory {memory_mb:.0f} → {place.memory_mb:.0f} MB")
    settle(place, files=files, memory_mb=memory_mb, faults=run.faults)
    assert run.counts["objects 201"] > 0
    assert run.counts["registrations 200"] > 0
    # Nobody got further than the rights go.
    with place.fresh_admin() as admin:
        services = set(admin.ask("GET", "/v1/catalog/services").json)
        assert services <= {"consul", "web"}
        keys = admin.ask("GET", "/v1/kv/?keys").json
        assert not [one for one in keys if not one.startswith("app/") and one != "secret/fuzz"]
        nodes = {one["Node"] for one in admin.ask("GET", "/v1/catalog/nodes").json}
        assert nodes == {"t1"}
        for plural in ("clusterroles", "clusterrolebindings"):
            found = admin.ask("GET", f"/apis/{GROUP}/v1/{plural}").json["items"]
            own = [
                one["metadata"]["name"]
                for one in found
                if not one["metadata"].get("labels", {}).get("kubernetes.io/bootstrapping")
            ]
            assert sorted(own) == (
                ["maker", "registrant"]
                if plural == "clusterroles"
                else ["fuzz-mighty", "maker", "registrant"]
            )
        listed = admin.ask("GET", "/api/v1/secrets").json["items"]
        outside = [
            one["metadata"]["name"] for one in listed if one["metadata"]["namespace"] != "fuzz"
        ]
        assert sorted(outside) == [f"bootstrap-token-{BOOTSTRAP[:6]}", "fuzz"], json.dumps(outside)
