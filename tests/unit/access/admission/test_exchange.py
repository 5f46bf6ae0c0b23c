from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.access.actor import Actor
from waypost.access.admission.exchange import (
    MAX_WARNINGS,
    Status,
    denial,
    patched,
    question,
    read_answer,
)
from waypost.access.admission.records import Review
from waypost.base.errors import Malformed


def answer(**response):
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    ).encode()


def encoded(value):
    return base64.b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "did not answer with an AdmissionReview"),
        (b"[]", "did not answer with an AdmissionReview"),
        (b"\xff", "did not answer with an AdmissionReview"),
        (b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}',
         "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, "
         "got admission.k8s.io/v1beta1, Kind=AdmissionReview"),
        (b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}', "response is missing"),
        (answer(allowed=True), 'expected response.uid="u", got ""'),
        (answer(uid="x", allowed=True), 'expected response.uid="u", got "x"'),
        (answer(uid="u", allowed=True, patch="e30="), "response.patch but not response.patchType"),
        (answer(uid="u", allowed=True, patchType="JSONPatch"), "patchType but not response.patch"),
        (answer(uid="u", allowed=True, patch="e30=", patchType="Merge"),
         'invalid response.patchType of "Merge"'),
        (answer(uid="u", allowed=True, patch="%", patchType="JSONPatch"), "is not base64"),
        (answer(uid="u", allowed=True, patch="e30=", patchType="JSONPatch"), "decoding patch"),
        (answer(uid="u", allowed="yes"), "did not answer with an AdmissionReview"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_used(body, text):
    with pytest.raises(Malformed) as refused:
        read_answer(body, uid="u", mutates=True)
    assert text in str(refused.value)


def test_an_answer():
    patch = [{"op": "add", "path": "/a", "value": 1}]
    body = answer(
        uid="u",
        allowed=True,
        patchType="JSONPatch",
        patch=encoded(patch),
        warnings=["a", "", "x" * 300],
        auditAnnotations={"k": "v", "a/b": "no name", "-": "neither", "x" * 64: "too long"},
    )
    found = read_answer(body, uid="u", mutates=True)
    assert found.allowed
    assert found.warnings == ("a", "x" * 256)
    assert found.annotations == {"k": "v"}
    assert patched({"b": 2}, found.patch) == {"b": 2, "a": 1}
    # Who only validates changes nothing.
    assert read_answer(body, uid="u", mutates=False).patch == ()


def test_warnings_are_bounded():
    body = answer(uid="u", allowed=True, warnings=["w"] * 1000)
    assert len(read_answer(body, uid="u", mutates=False).warnings) == MAX_WARNINGS


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (Status(), "without explanation", 400),
        (Status(message="no"), ": no", 400),
        (Status(reason="Forbidden"), ": Forbidden", 400),
        (Status(message="no", reason="Forbidden", code=403), ": no", 403),
        (Status(message="no", code=200), ": no", 400),
        (Status(message="no", code=418), ": no", 418),
        (Status(message="no", code=99999), ": no", 400),
    ],
)
def test_denials(status, text, code):
    found = denial("w", status)
    assert str(found).startswith('admission webhook "w" denied the request')
    assert str(found).endswith(text)
    assert found.http_status == code


def test_a_patch_must_leave_an_object():
    body = answer(
        uid="u",
        allowed=True,
        patchType="JSONPatch",
        patch=encoded([{"op": "replace", "path": "", "value": 1}]),
    )
    with pytest.raises(Malformed, match="leaves no object"):
        patched({}, read_answer(body, uid="u", mutates=True).patch)


def test_who_asks_is_told_in_full():
    actor = Actor(user="a", uid="1", groups=("g",), extra={"k": ("v", "w")})
    review = Review(
        operation="UPDATE", group="g", version="v1", kind="K", resource="ks", subresource="status"
    )
    request = json.loads(question(actor, review, uid="u"))["request"]
    assert request["userInfo"] == {
        "username": "a",
        "uid": "1",
        "groups": ["g"],
        "extra": {"k": ["v", "w"]},
    }
    assert (request["subResource"], request["requestSubResource"]) == ("status", "status")
    assert "name" not in request


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)
NAMES = ("uid", "allowed", "status", "patch", "patchType", "warnings", "auditAnnotations")


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_nothing_but_malformed_is_raised(response):
    with contextlib.suppress(Malformed):
        read_answer(answer(**{"uid": "u"} | response), uid="u", mutates=True)


@given(st.binary(max_size=64))
def test_nothing_but_malformed_is_raised_for_any_bytes(body):
    with pytest.raises(Malformed):
        read_answer(body, uid="u", mutates=True)
