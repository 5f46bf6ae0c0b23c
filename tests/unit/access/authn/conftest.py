"""A small world for authentication: authorities, clients, stored objects."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from waypost.access.pki.issue import Subject, Usage, issue, make_authority
from waypost.access.pki.keys import generate_key
from waypost.model.object import Object

NOW_S = 1_795_407_048.0
YEAR_S = 365 * 86_400.0


class Store:
    """Objects by resource, namespace and name, as the view has them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}

    def object(self, group, resource, namespace, name):
        assert group == ""
        return self.objects.get((resource, namespace, name))

    def put(self, resource, namespace, name, *, uid="", **body):
        metadata = {"name": name, "namespace": namespace, "uid": uid, **body.pop("metadata", {})}
        document = {"metadata": metadata, **body}
        self.objects[resource, namespace, name] = Object(
            group="",
            resource=resource,
            namespace=namespace,
            name=name,
            body=json.dumps(document).encode(),
        )

    def put_secret(self, namespace, name, values, *, kind, **metadata):
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.put("secrets", namespace, name, type=kind, data=data, metadata=metadata)

    def delete(self, resource, namespace, name):
        del self.objects[resource, namespace, name]


@pytest.fixture
def store():
    return Store()


@pytest.fixture(scope="session")
def world():
    """An authority of ours, one of somebody else, one for front proxies, and a way to get client certificates."""
    ca, other, proxies = (
        make_authority(generate_key(), common_name=name, now_s=NOW_S - 86_400)
        for name in ("kubernetes", "kubernetes", "front-proxy-ca")
    )

    def client(
        name="alice",
        *organizations,
        authority=ca,
        usages=(Usage.CLIENT,),
        issued_s=NOW_S,
        validity_s=YEAR_S,
        subject=None,
        key=None,
    ):
        key = key or generate_key()
        found = issue(
            authority,
            key.public_key(),
            subject=subject if subject is not None else Subject(name, organizations).to_x509(),
            usages=usages,
            now_s=issued_s,
            validity_s=validity_s,
        )
        return (found.public_bytes(serialization.Encoding.DER),)

    return SimpleNamespace(
        now_s=NOW_S, ca=ca, other=other, proxies=proxies, client=client, name=x509.Name
    )
