"""Every command that a kubectl user types, in one story: the outputs are those recorded with a real API server."""

from __future__ import annotations

import base64
import json
import re
import socket
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
AGE = re.compile(r"(?<= )\d+s(?= |$)", re.MULTILINE)
UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
RBAC = "rbac.authorization.k8s.io"


def plain(text):
    """Return an output without what differs from run to run."""
    text = UID.sub("UID", TIME.sub("TIME", text))
    text = re.sub(r'resourceVersion: "\d+"', 'resourceVersion: "N"', text)
    return re.sub(r"[ \t]+\n", "\n", AGE.sub("AGE", text))


@pytest.fixture
def old(kubectl):
    """Whether this is the old kubectl."""
    return kubectl.version == "1.20"


class TestStory:
    """The tests build on each other, in this order."""

    # -- questions about the server --------------------------------------------------------------------------------------

    def test_version(self, kubectl):
        assert "Server Version" in kubectl.ok("version")
        assert "gitVersion: v1." in kubectl.ok("version", "-o", "yaml").split("serverVersion")[1]

    def test_api_resources(self, kubectl):
        out = kubectl.ok("api-resources")
        for line in (
            r"namespaces +ns +v1 +false +Namespace",
            r"serviceaccounts +sa +v1 +true +ServiceAccount",
            rf"clusterroles +{RBAC}/v1 +false +ClusterRole",
            r"certificatesigningrequests +csr +certificates.k8s.io/v1 +false +CertificateSigningRequest",
            r"selfsubjectreviews +authentication.k8s.io/v1 +false +SelfSubjectReview",
        ):
            assert re.search(f"^{line}$", out, re.MULTILINE), (line, out)

    def test_api_versions(self, kubectl):
        assert {"v1", f"{RBAC}/v1", "authentication.k8s.io/v1", "authorization.k8s.io/v1"} <= set(
            kubectl.ok("api-versions").split()
        )

    def test_cluster_info(self, kubectl):
        out = re.sub("\x1b\\[[0-9;]*m", "", kubectl.ok("cluster-info"))
        assert re.search(
            rf"^Kubernetes control plane is running at {kubectl.cluster.https}$", out, re.MULTILINE
        )

    def test_config_view(self, kubectl):
        out = kubectl.ok("config", "view")
        assert "certificate-authority-data: DATA+OMITTED" in out
        assert "PRIVATE KEY" not in out

    def test_raw(self, kubectl):
        assert kubectl.ok("get", "--raw", "/healthz") == "ok"
        assert kubectl.ok("get", "--raw", "/readyz") == "ok"

    # -- reading ---------------------------------------------------------------------------------------------------------

    def test_the_article_s_binding(self, kubectl):
        out = plain(kubectl.ok("get", "clusterrolebinding/cluster-admin", "-o", "yaml"))
        out = re.sub(r"  managedFields:\n(  [- ] .*\n)+", "", out)
        assert (
            out
            == f"""\
apiVersion: {RBAC}/v1
kind: ClusterRoleBinding
metadata:
  annotations:
    rbac.authorization.kubernetes.io/autoupdate: "true"
  creationTimestamp: "TIME"
  labels:
    kubernetes.io/bootstrapping: rbac-defaults
  name: cluster-admin
  resourceVersion: "N"
  uid: UID
roleRef:
  apiGroup: {RBAC}
  kind: ClusterRole
  name: cluster-admin
subjects:
- apiGroup: {RBAC}
  kind: Group
  name: system:masters
"""
        )

    def test_managed_fields_are_shown_on_demand(self, kubectl, old):
        if old:
            pytest.skip("1.20 has no such flag")
        out = kubectl.ok(
            "get", "clusterrolebinding/cluster-admin", "-o", "yaml", "--show-managed-fields"
        )
        assert "manager: waypost" in out
        assert "f:subjects: {}" in out

    def test_the_article_s_role(self, kubectl):
        out = kubectl.ok("get", "clusterrole/cluster-admin", "-o", "jsonpath={.rules}")
        assert '"verbs":["*"]' in out.replace(" ", "")

    def test_table(self, kubectl):
        lines = plain(kubectl.ok("get", "clusterroles")).splitlines()
        assert lines[0].split() == ["NAME", "CREATED", "AT"]
        assert "cluster-admin TIME" in {" ".join(line.split()) for line in lines}

    def test_wide_table(self, kubectl):
        lines = plain(kubectl.ok("get", "clusterrolebindings", "-o", "wide")).splitlines()
        assert lines[0].split() == ["NAME", "ROLE", "AGE", "USERS", "GROUPS", "SERVICEACCOUNTS"]
        assert "cluster-admin ClusterRole/cluster-admin AGE system:masters" in {
            " ".join(line.split()) for line in lines
        }

    def test_other_outputs(self, kubectl):
        assert '"kind": "List"' in kubectl.ok("get", "clusterroles", "-o", "json")
        names = kubectl.ok("get", "clusterroles", "-o", "name").split()
        assert f"clusterrole.{RBAC}/cluster-admin" in names
        path = kubectl.ok("get", "clusterroles", "-o", "jsonpath={.items[*].metadata.name}").split()
        assert [f"clusterrole.{RBAC}/{one}" for one in path] == names
        assert kubectl.ok("get", "clusterroles", "--server-print=false").startswith("NAME ")

    def test_chunks(self, kubectl):
        whole = kubectl.ok("get", "clusterroles")
        assert kubectl.ok("get", "clusterroles", "--chunk-size=7") == whole

    def test_selectors(self, kubectl):
        selected = ("-l", "kubernetes.io/bootstrapping=rbac-defaults", "--show-labels")
        out = kubectl.ok("get", "clusterroles", *selected)
        assert "kubernetes.io/bootstrapping=rbac-defaults" in out
        out = plain(kubectl.ok("get", "ns", "--field-selector", "metadata.name=default"))
        assert [line.split() for line in out.splitlines()] == [
            ["NAME", "STATUS", "AGE"],
            ["default", "Active", "AGE"],
        ]

    def test_all_namespaces_and_several_kinds(self, kubectl):
        out = kubectl.ok("get", "sa", "-A")
        assert re.search(r"^kube-system +default ", out, re.MULTILINE)
        out = kubectl.ok("get", "ns,sa,roles,rolebindings")
        assert "namespace/kube-public" in out
        assert "serviceaccount/default" in out

    def test_not_found(self, kubectl):
        status, out, err = kubectl.run("get", "clusterrole", "nosuch")
        assert (status, out, err) == (
            1, "", f'Error from server (NotFound): clusterroles.{RBAC} "nosuch" not found\n',
        )  # fmt: skip

    def test_services_of_the_catalog(self, kubectl):
        body = json.dumps({"Name": "web", "Port": 8081}).encode()
        # The operator's socket needs no credential; the loopback port has lost its rights with `waypost init`.
        with socket.socket(socket.AF_UNIX) as operator:
            operator.connect(str(kubectl.folder / "data" / "waypost.sock"))
            head = f"PUT /v1/agent/service/register HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            operator.sendall(head.encode() + body)
            assert operator.recv(4096).startswith(b"HTTP/1.1 200 ")
        rows = [line.split() for line in kubectl.ok("get", "svc").splitlines()]
        assert rows[0] == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
        assert ["web", "ClusterIP", "None", "<none>", "8081/TCP", "<unknown>"] in rows

    # -- creating --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("command", "created"),
        [
            ("namespace newns", "namespace/newns"),
            ("serviceaccount builder", "serviceaccount/builder"),
            ("role r1 --verb=get,list --resource=pods,secrets", f"role.{RBAC}/r1"),
            (
                "clusterrole cr1 --verb=get --resource=secrets --resource-name=a",
                f"clusterrole.{RBAC}/cr1",
            ),
            ("clusterrole cr2 --verb=get --non-resource-url=/logs/*", f"clusterrole.{RBAC}/cr2"),
            (
                "clusterrole cr3 --aggregation-rule=rbac.example.com/agg=true",
                f"clusterrole.{RBAC}/cr3",
            ),
            (
                "rolebinding b1 --role=r1 --user=alice --group=devs --serviceaccount=default:builder",
                f"rolebinding.{RBAC}/b1",
            ),
            (
                "clusterrolebinding cb1 --clusterrole=cr1 --user=alice",
                f"clusterrolebinding.{RBAC}/cb1",
            ),
            ("secret generic s1 --from-literal=k=v", "secret/s1"),
            ("configmap c1 --from-literal=k=v", "configmap/c1"),
        ],
    )
    def test_create(self, kubectl, command, created):
        if command.startswith(("role ", "clusterrole cr1")):
            command = command.replace("pods,secrets", "configmaps,secrets")
        assert kubectl.ok("create", *command.split()) == f"{created} created\n"

    def test_create_again(self, kubectl):
        status, _, err = kubectl.run("create", "namespace", "newns")
        assert (status, err) == (
            1, 'Error from server (AlreadyExists): namespaces "newns" already exists\n',
        )  # fmt: skip

    def test_create_from_a_file(self, kubectl):
        assert kubectl.ok("create", "-f", "role.yaml") == f"role.{RBAC}/pod-reader created\n"

    def test_generated_name(self, kubectl):
        out = kubectl.ok("create", "-f", "gen.yaml")
        assert re.fullmatch(r"serviceaccount/sa-[bcdfghjklmnpqrstvwxz2456789]{5} created\n", out)

    def test_server_side_dry_run(self, kubectl):
        out = plain(kubectl.ok("create", "-f", "rb.yaml", "--dry-run=server", "-o", "yaml"))
        assert "  name: rb1\n" in out
        assert "  uid: UID\n" in out
        status, _, _ = kubectl.run("get", "rolebinding", "rb1")
        assert status == 1

    def test_unknown_field(self, kubectl):
        status, _, err = kubectl.run("create", "-f", "bad.yaml")
        assert status == 1
        assert 'unknown field "rulez"' in err
        status, _, _ = kubectl.run("get", "clusterrole", "badfield")
        assert status == 1

    def test_token(self, kubectl, old):
        if old:
            pytest.skip("1.20 has no such command")
        token = kubectl.ok("create", "token", "builder", "--duration=1h")
        assert token.count(".") == 2
        who = ("auth", "whoami", f"--token={token}", f"--server={kubectl.cluster.https}")
        out = kubectl.ok(*who, "--insecure-skip-tls-verify", config="/dev/null")
        assert "system:serviceaccount:default:builder" in out
        bound = ("--bound-object-kind=Secret", "--bound-object-name=s1", "--audience=x")
        assert kubectl.ok("create", "token", "builder", *bound).count(".") == 2

    # -- applying --------------------------------------------------------------------------------------------------------

    def test_apply(self, kubectl):
        role = f"role.{RBAC}/pod-reader"
        assert kubectl.ok("apply", "-f", "role.yaml") == f"{role} configured\n"
        assert kubectl.ok("apply", "-f", "role.yaml") == f"{role} unchanged\n"
        assert kubectl.ok("apply", "-f", "role2.yaml") == f"{role} configured\n"
        assert (
            kubectl.ok("get", "role", "pod-reader", "-o", "jsonpath={.rules[0].verbs[2]}")
            == "watch"
        )
        assert kubectl.ok("apply", "-f", "rb.yaml") == f"rolebinding.{RBAC}/rb1 created\n"

    def test_role_of_a_binding_never_changes(self, kubectl):
        status, _, err = kubectl.run("apply", "-f", "rb-changed.yaml")
        assert status == 1
        assert 'The RoleBinding "rb1" is invalid: roleRef: Invalid value: ' in err
        assert err.endswith("cannot change roleRef\n")

    def test_apply_dry_run(self, kubectl):
        out = kubectl.ok("apply", "-f", "role.yaml", "--dry-run=server")
        assert out == f"role.{RBAC}/pod-reader configured (server dry run)\n"
        assert "watch" in kubectl.ok("get", "role", "pod-reader", "-o", "jsonpath={.rules}")

    def test_server_side_apply(self, kubectl):
        status, _, err = kubectl.run("apply", "--server-side", "-f", "role.yaml")
        assert status == 1
        assert (
            'conflict with "kubectl-client-side-apply" using rbac.authorization.k8s.io/v1' in err
            or ('conflict with "kubectl-client-side-apply": .rules' in err)
        )
        out = kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", "role.yaml")
        assert out == f"role.{RBAC}/pod-reader serverside-applied\n"

    def test_diff(self, kubectl):
        status, out, err = kubectl.run("diff", "-f", "role2.yaml")
        assert (status, err.replace("exit status 1\n", "")) == (1, ""), (out, err)
        assert "+  - watch\n" in out

    def test_replace(self, kubectl):
        assert kubectl.ok("replace", "-f", "role.yaml") == f"role.{RBAC}/pod-reader replaced\n"

    def test_edit(self, kubectl):
        editor = {"KUBE_EDITOR": "sed -i s/demo/edited/", "EDITOR": "true"}
        out = kubectl.ok("edit", "role", "pod-reader", env=editor)
        assert out == f"role.{RBAC}/pod-reader edited\n"
        label = kubectl.ok("get", "role", "pod-reader", "-o", "jsonpath={.metadata.labels.app}")
        assert label == "edited"

    # -- patching --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("args", "path", "value"),
        [
            (("-p", '{"metadata":{"labels":{"x":"y"}}}'), ".metadata.labels.x", "y"),
            (
                ("--type=merge", "-p", '{"metadata":{"labels":{"x":"z"}}}'),
                ".metadata.labels.x",
                "z",
            ),
            (
                ("--type=json", "-p", '[{"op":"add","path":"/rules/0/verbs/-","value":"watch"}]'),
                ".rules[0].verbs[2]",
                "watch",
            ),
        ],
    )
    def test_patch(self, kubectl, args, path, value):
        out = kubectl.ok("patch", "role", "pod-reader", *args)
        assert out == f"role.{RBAC}/pod-reader patched\n"
        assert kubectl.ok("get", "role", "pod-reader", "-o", f"jsonpath={{{path}}}") == value

    def test_label_and_annotate(self, kubectl, old):
        role = f"role.{RBAC}/pod-reader"
        assert kubectl.ok("label", "role", "pod-reader", "team=a") == f"{role} labeled\n"
        removed = "labeled" if old else "unlabeled"
        assert kubectl.ok("label", "role", "pod-reader", "team-") == f"{role} {removed}\n"
        out = kubectl.ok("annotate", "role", "pod-reader", "note=hello")
        assert out == f"{role} annotated\n"

    # -- describing ------------------------------------------------------------------------------------------------------

    def test_describe(self, kubectl):
        out = plain(kubectl.ok("describe", "role", "pod-reader"))
        assert out.startswith(
            "Name:         pod-reader\nLabels:       app=edited\n              x=z\nAnnotations:  "
        )
        assert out.endswith(
            "note: hello\nPolicyRule:\n  Resources  Non-Resource URLs  Resource Names  Verbs\n"
            "  ---------  -----------------  --------------  -----\n"
            "  pods       []                 []              [get list watch]\n"
        )  # fmt: skip
        assert "*.*" in kubectl.ok("describe", "clusterrole", "cluster-admin")
        out = plain(kubectl.ok("describe", "clusterrolebinding", "cluster-admin"))
        assert out.endswith(
            "Role:\n  Kind:  ClusterRole\n  Name:  cluster-admin\nSubjects:\n"
            "  Kind   Name            Namespace\n  ----   ----            ---------\n  Group  system:masters\n"
        )
        out = kubectl.ok("describe", "sa", "builder")
        assert re.search(r"^Namespace: +default$", out, re.MULTILINE)

    def test_explain(self, kubectl):
        out = kubectl.ok("explain", "clusterrole")
        assert re.search(r"^KIND: +ClusterRole$", out, re.MULTILINE)
        assert "rules\t<[]PolicyRule>" in out or "rules\t<[]Object>" in out
        assert "verbs <[]string>" in kubectl.ok("explain", "clusterrole.rules.verbs")
        assert "roleRef" in kubectl.ok("explain", "rolebinding", "--recursive")

    # -- who may what ----------------------------------------------------------------------------------------------------

    def test_reconcile(self, kubectl):
        reconciled = [
            f"clusterrole.{RBAC}/rec-role reconciled",
            f"clusterrolebinding.{RBAC}/rec-bind reconciled",
            f"role.{RBAC}/rec-nsrole reconciled",
        ]
        for more in ((), ("--remove-extra-permissions", "--remove-extra-subjects")):
            out = kubectl.ok("auth", "reconcile", "-f", "multi.yaml", *more)
            assert [line for line in out.splitlines() if line.endswith("reconciled")] == reconciled

    @pytest.mark.parametrize(
        "question",
        [
            "get secrets",
            "create deployments.apps -n kube-system",
            "get configmaps/foo",
            "get pods --subresource=log",
            "get /logs/",
            "* *",
            "get widgets",
        ],
    )
    def test_admin_may(self, kubectl, question):
        assert kubectl.ok("auth", "can-i", *question.split()) == "yes\n"

    def test_others_may_not(self, kubectl):
        status, out, _ = kubectl.run(
            "auth", "can-i", "list", "secrets", "--as=bob", "--as-group=devs2"
        )
        assert (status, out.splitlines()[0][:2]) == (1, "no")
        status, out, _ = kubectl.run("auth", "can-i", "get", "secrets", "-q", "--as=bob")
        assert (status, out) == (1, "")

    def test_bindings_count(self, kubectl):
        account = "--as=system:serviceaccount:default:builder"
        for who in (("--as=alice",), ("--as=bob", "--as-group=devs"), (account,)):
            assert kubectl.ok("auth", "can-i", "list", "secrets", *who) == "yes\n"
            status, _, _ = kubectl.run("auth", "can-i", "delete", "secrets", *who)
            assert status == 1

    def test_can_i_list(self, kubectl):
        out = kubectl.ok("auth", "can-i", "--list")
        assert re.search(r"^\*\.\* +\[\] +\[\] +\[\*\]$", out, re.MULTILINE)
        assert "[/openapi/*]" in out

    def test_whoami(self, kubectl, old):
        if old:
            pytest.skip("1.20 has no such command")
        assert plain(kubectl.ok("auth", "whoami")).startswith(
            "ATTRIBUTE                                           VALUE\nUsername                                            kubernetes-admin\n"
        )
        assert kubectl.ok("auth", "whoami", "--as=zed", "--as-group=g1") == (
            "ATTRIBUTE   VALUE\nUsername    zed\nGroups      [g1 system:authenticated]\n"
        )

    def test_refusals(self, kubectl):
        status, _, err = kubectl.run("get", "secrets", "--as=bob")
        assert (status, err) == (
            1,
            'Error from server (Forbidden): secrets is forbidden: User "bob" cannot list resource "secrets" '
            'in API group "" in the namespace "default"\n',
        )
        status, _, err = kubectl.run("get", "--raw", "/healthz/store", "--as=bob")
        assert (status, err) == (
            1, 'Error from server (Forbidden): forbidden: User "bob" cannot get path "/healthz/store"\n',
        )  # fmt: skip

    def test_nobody_gives_away_what_they_do_not_have(self, kubectl):
        kubectl.ok(
            "create", "clusterrole", "rbac-writer", "--verb=create", f"--resource=roles.{RBAC}"
        )
        kubectl.ok(
            "create", "clusterrolebinding", "rbac-writer", "--clusterrole=rbac-writer", "--user=eve"
        )
        status, _, err = kubectl.run(
            "create", "role", "mine", "--verb=delete", "--resource=secrets", "--as=eve"
        )
        assert status == 1
        assert "is attempting to grant RBAC permissions not currently held:" in err
        assert '{APIGroups:[""], Resources:["secrets"], Verbs:["delete"]}' in err

    # -- certificates ----------------------------------------------------------------------------------------------------

    def test_signing_request(self, kubectl):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, "newuser"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "devs"),
            ]
        )
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        )
        pem = request.public_bytes(serialization.Encoding.PEM)
        document = f"""\
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: newuser}}
spec:
  request: {base64.b64encode(pem).decode()}
  signerName: kubernetes.io/kube-apiserver-client
  usages: [client auth]
"""
        name = "certificatesigningrequest.certificates.k8s.io/newuser"
        assert kubectl.ok("create", "-f", "-", stdin=document) == f"{name} created\n"
        row = kubectl.ok("get", "csr").splitlines()[1].split()
        assert (row[2:4], row[-1]) == (
            ["kubernetes.io/kube-apiserver-client", "kubernetes-admin"], "Pending",
        )  # fmt: skip
        assert kubectl.ok("certificate", "approve", "newuser") == f"{name} approved\n"
        assert kubectl.ok("get", "csr").splitlines()[1].split()[-1] == "Approved,Issued"
        status, _, _ = kubectl.run("certificate", "deny", "newuser")
        assert status == 1
        encoded = kubectl.ok("get", "csr", "newuser", "-o", "jsonpath={.status.certificate}")
        (kubectl.folder / "newuser.crt").write_bytes(base64.b64decode(encoded))
        (kubectl.folder / "newuser.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        # The new user is in the group devs, which may list secrets by a binding made above.
        out = kubectl.ok(
            "get", "secrets", f"--server={kubectl.cluster.https}", "--insecure-skip-tls-verify",
            "--client-certificate=newuser.crt", "--client-key=newuser.key", config="/dev/null",
        )  # fmt: skip
        assert "s1" in out

    # -- watching and deleting -------------------------------------------------------------------------------------------

    def test_watch(self, kubectl):
        process = kubectl.start("get", "roles", "-w", "--output-watch-events")
        try:
            seen = [process.stdout.readline() for _ in range(2)]
            deadline = time.monotonic() + 10
            time.sleep(0.5)
            kubectl.ok("create", "role", "w1", "--verb=get", "--resource=secrets")
            kubectl.ok("label", "role", "w1", "a=b")
            kubectl.ok("delete", "role", "w1")
            while not seen[-1].startswith("DELETED"):
                assert time.monotonic() < deadline, seen
                seen.append(process.stdout.readline())
        finally:
            process.kill()
            process.communicate()
        rows = [line.split()[:2] for line in seen if "w1" in line]
        assert rows == [["ADDED", "w1"], ["MODIFIED", "w1"], ["DELETED", "w1"]]

    def test_watch_ends(self, kubectl):
        process = kubectl.start("get", "roles", "--watch-only", "--request-timeout=2s")
        out, err = process.communicate(timeout=20)
        assert "Expired" not in out + err

    def test_wait(self, kubectl, old):
        status, out, err = kubectl.run("wait", "--for=delete", "role/nosuch", "--timeout=3s")
        assert status == (1 if old else 0), (out, err)

    def test_delete(self, kubectl, old):
        out = kubectl.ok("delete", "clusterrole", "cr2", "--dry-run=server")
        assert out == f'clusterrole.{RBAC} "cr2" deleted (server dry run)\n'
        where = "" if old else " from default namespace"
        out = kubectl.ok("delete", "role", "pod-reader")
        assert out == f'role.{RBAC} "pod-reader" deleted{where}\n'
        assert kubectl.ok("delete", "roles", "-l", "app=demo") == "No resources found\n"
        assert kubectl.ok("delete", "roles", "--all") == f'role.{RBAC} "r1" deleted{where}\n'
        out = kubectl.ok("delete", "clusterrole", "cr2", "--cascade=orphan")
        assert out == f'clusterrole.{RBAC} "cr2" deleted\n'

    def test_finalizers_hold_an_object(self, kubectl):
        kubectl.ok("create", "configmap", "held")
        patch = '{"metadata":{"finalizers":["example.com/x"]}}'
        kubectl.ok("patch", "configmap", "held", "--type=merge", "-p", patch)
        process = kubectl.start("delete", "configmap", "held")
        try:
            time.sleep(1.0)
            assert process.poll() is None
            kubectl.ok(
                "patch",
                "configmap",
                "held",
                "--type=merge",
                "-p",
                '{"metadata":{"finalizers":null}}',
            )
            process.communicate(timeout=10)
        finally:
            process.kill()
        assert process.returncode == 0

    def test_delete_namespace(self, kubectl):
        kubectl.ok("create", "secret", "generic", "inside", "-n", "newns")
        assert kubectl.ok("delete", "namespace", "newns") == 'namespace "newns" deleted\n'
        status, _, _ = kubectl.run("get", "secret", "inside", "-n", "newns")
        assert status == 1
        status, _, err = kubectl.run("create", "secret", "generic", "late", "-n", "newns")
        assert (status, 'namespaces "newns" not found' in err) == (1, True), err
        status, _, err = kubectl.run("delete", "namespace", "default")
        assert (status, "this namespace may not be deleted" in err) == (1, True)

    # -- credentials -----------------------------------------------------------------------------------------------------

    def test_bad_token(self, kubectl):
        status, _, err = kubectl.run(
            "get", "ns", f"--server={kubectl.cluster.https}", "--insecure-skip-tls-verify", "--token=bad",
            config="/dev/null",
        )  # fmt: skip
        assert status == 1
        assert "You must be logged in to the server" in err

    def test_nothing_went_wrong_inside(self, kubectl):
        log = (kubectl.folder / "log").read_text()
        assert "Traceback" not in log
        assert "[ERROR]" not in log
