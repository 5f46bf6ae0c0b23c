"""URLs beyond those that were recorded."""

from __future__ import annotations

import pytest

from waypost.access.authz.attributes import request_attributes
from waypost.access.authz.text import aggregate, forbidden
from waypost.access.gate import Attributes
from waypost.base.quoting import quoted

LIST = "/api/v1/namespaces/n1/pods"


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/", Attributes("get", path="/", group="")),
        ("GET", "", Attributes("get", path="/", group="")),
        ("PUT", "/v1/kv/app/x?raw", Attributes("put", path="/v1/kv/app/x", group="")),
        ("GET", "//api/v1/pods", Attributes("list", "pods", group="", version="v1")),
        ("GET", "/api/v1/nodes/..", Attributes("get", "nodes", "..", group="", version="v1")),
        ("GET", f"{LIST}/p?watch=true", Attributes("get", "pods", "p", group="", namespace="n1", version="v1")),
        ("GET", f"{LIST}?watch=FALSE", Attributes("list", "pods", group="", namespace="n1", version="v1")),
        ("GET", f"{LIST}?watch=", Attributes("watch", "pods", group="", namespace="n1", version="v1")),
        ("GET", f"{LIST}?watch=0&fieldSelector=metadata.name=a,metadata.name=b", Attributes("list", "pods", "a", group="", namespace="n1", version="v1")),
        ("GET", f"{LIST}?fieldSelector=metadata.name=a%2Fb", Attributes("list", "pods", group="", namespace="n1", version="v1")),
        ("GET", f"{LIST}?fieldSelector=metadata.name=a,junk", Attributes("list", "pods", group="", namespace="n1", version="v1")),
        ("GET", f"{LIST}?limit=x&fieldSelector=metadata.name=a", Attributes("list", "pods", group="", namespace="n1", version="v1")),
        ("GET", "/apis/g.io/v1/watch/namespaces/n1/things/t/sub", Attributes("watch", "things", "t", group="g.io", namespace="n1", subresource="sub", version="v1")),
        ("POST", "/api/v1/proxy/namespaces/n1/pods/p/a/b", Attributes("proxy", "pods", "p", group="", namespace="n1", version="v1")),
        ("PATCH", "/api/v1/namespaces/n1/status", Attributes("patch", "namespaces", "n1", group="", namespace="n1", subresource="status", version="v1")),
        ("DELETE", "/api/v1/namespaces", Attributes("deletecollection", "namespaces", group="", version="v1")),
    ],
)  # fmt: skip
def test_attributes(method: str, target: str, expected: Attributes):
    assert request_attributes(method, target) == expected


def test_texts_are_quoted_as_go_does():
    assert quoted('a"\\\n\x01\x7fé\u200b\U000e0001') == '"a\\"\\\\\\n\\x01\\x7fé\\u200b\\U000e0001"'
    asked = Attributes("get", "pods", 'a"b', group="", subresource="log", namespace="n")
    assert forbidden("u", asked, "because") == (
        'pods "a\\"b" is forbidden: User "u" cannot get resource "pods/log" in API group "" '
        'in the namespace "n": because'
    )
    assert aggregate(["a", "b", "a"]) == "[a, b]"
    assert aggregate(["a", "a"]) == "a"
