"""A client of the kube-style API over one kept connection, and certificates to show there."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

RBAC = "/apis/rbac.authorization.k8s.io/v1"
AUTHORIZATION = "/apis/authorization.k8s.io/v1"
AUTHENTICATION = "/apis/authentication.k8s.io/v1"
PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
}


class Reply:
    """Status, header fields (lower case) and body of an answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def message(self) -> str:
        """The message of a Status document, or the text."""
        if self.body.startswith(b"{"):
            return str(self.json.get("message", ""))
        return self.text


class Api:
    """Asks one agent, over HTTPS with or without a certificate, or over HTTP. Kept connections."""

    def __init__(
        self,
        port: int,
        *,
        certificate: Path | None = None,
        token: str = "",
        is_tls: bool = True,
    ) -> None:
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        if is_tls:
            context = ssl._create_unverified_context()
            if certificate is not None:
                context.load_cert_chain(certificate)
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", port, context=context, timeout=30
            )
        else:
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        content_type: str = "application/json",
    ) -> Reply:
        """Send one request; header fields may be repeated when given as pairs."""
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self._connection
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in (*self.headers.items(), *pairs):
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("Content-Type", content_type)
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        try:
            answer = connection.getresponse()
            return Reply(
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- objects ---------------------------------------------------------------------------------------------------

    def create(self, document: Mapping[str, Any]) -> str:
        """Create a role, a binding or a namespace; return its path."""
        kind = document["kind"]
        if kind == "Namespace":
            collection, version = "/api/v1/namespaces", "v1"
        else:
            namespace = document["metadata"].get("namespace")
            below = f"/namespaces/{namespace}" if namespace else ""
            collection = f"{RBAC}{below}/{PLURALS[kind]}"
            version = "rbac.authorization.k8s.io/v1"
        reply = self.ask("POST", collection, {"apiVersion": version, **document})
        assert reply.status == 201, (document, reply.body)
        return f"{collection}/{document['metadata']['name']}"

    def delete(self, path: str) -> None:
        """Delete an object, if it is there."""
        reply = self.ask("DELETE", path)
        assert reply.status in (200, 404), reply.body

    def review(self, kind: str, spec: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """Ask a SubjectAccessReview, or with a namespace in the question its local sibling; return the status."""
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        reply = self.review_as(kind, spec, headers=fields)
        assert reply.status == 201, reply.body
        found: dict[str, Any] = reply.json["status"]
        return found

    def review_as(
        self, kind: str, spec: Mapping[str, Any], *, headers: Iterable[tuple[str, str]]
    ) -> Reply:
        """Ask a review of access and return the whole answer."""
        below = ""
        if kind == "LocalSubjectAccessReview":
            below = f"/namespaces/{spec['resourceAttributes']['namespace']}"
        return self.ask(
            "POST",
            f"{AUTHORIZATION}{below}/{kind.lower()}s",
            {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec},
            headers=headers,
        )


def certificate_of(kubeconfig: Path, folder: Path) -> Path:
    """Write the certificate and key of a kubeconfig file as one PEM file."""
    user = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]
    pair = folder / f"{kubeconfig.stem}.pem"
    pair.write_bytes(
        base64.b64decode(user["client-certificate-data"])
        + b"\n"
        + base64.b64decode(user["client-key-data"])
    )
    pair.chmod(0o600)
    return pair
