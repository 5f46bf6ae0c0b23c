"""Acting as somebody else: which rights it takes, and whom one becomes."""

from __future__ import annotations

import pytest

from waypost.access.actor import AUTHENTICATED, UNAUTHENTICATED, Actor
from waypost.access.authn.impersonation import impersonation, is_impersonation_field
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed

ALICE = Actor(user="alice", groups=("g",), address="192.0.2.1", origin="static token")
AUTHENTICATION = "authentication.k8s.io"


def core(resource, name, **more):
    return Attributes("impersonate", resource, name, group="", version="v1", **more)


def authentication(resource, name, **more):
    return Attributes("impersonate", resource, name, group=AUTHENTICATION, version="v1", **more)


@pytest.mark.parametrize(
    ("fields", "groups", "attributes"),
    [
        ([("Impersonate-User", "bob")], (AUTHENTICATED,), [core("users", "bob")]),
        (
            [("impersonate-user", "bob"), ("Impersonate-Group", "a"), ("Impersonate-Group", "b")],
            ("a", "b", AUTHENTICATED),
            [core("users", "bob"), core("groups", "a"), core("groups", "b")],
        ),
        (
            [("Impersonate-User", "system:serviceaccount:default:foo")],
            ("system:serviceaccounts", "system:serviceaccounts:default", AUTHENTICATED),
            [core("serviceaccounts", "foo", namespace="default")],
        ),
        (
            [
                ("Impersonate-User", "system:serviceaccount:default:foo"),
                ("Impersonate-Group", "a"),
            ],
            ("a", AUTHENTICATED),
            [core("serviceaccounts", "foo", namespace="default"), core("groups", "a")],
        ),
        (
            [("Impersonate-User", "system:serviceaccount:Default:foo")],
            (AUTHENTICATED,),
            [core("users", "system:serviceaccount:Default:foo")],
        ),
        (
            [("Impersonate-User", "system:anonymous")],
            (UNAUTHENTICATED,),
            [core("users", "system:anonymous")],
        ),
        (
            [("Impersonate-User", "bob"), ("Impersonate-Group", UNAUTHENTICATED)],
            (UNAUTHENTICATED,),
            [core("users", "bob"), core("groups", UNAUTHENTICATED)],
        ),
        (
            [("Impersonate-User", "bob"), ("Impersonate-Uid", "u-1")],
            (AUTHENTICATED,),
            [core("users", "bob"), authentication("uids", "u-1")],
        ),
        (
            [
                ("Impersonate-User", "bob"),
                ("Impersonate-Extra-Scopes", "view"),
                ("Impersonate-Extra-scopes", "edit"),
            ],
            (AUTHENTICATED,),
            [
                core("users", "bob"),
                authentication("userextras", "view", subresource="scopes"),
                authentication("userextras", "edit", subresource="scopes"),
            ],
        ),
    ],
)
def test_rights_and_result(fields, groups, attributes):
    found = impersonation([*fields, ("Host", "x")], requester=ALICE)
    assert found.actor.user == fields[0][1]
    assert found.actor.groups == groups
    assert list(found.attributes) == attributes
    assert found.actor.address == "192.0.2.1"
    assert found.actor.origin == "impersonated by alice (static token)"


def test_extra_values_and_uid_go_along():
    fields = [
        ("Impersonate-User", "bob"),
        ("Impersonate-Uid", "u"),
        ("Impersonate-Extra-Acme.com%2FProject", "p"),
    ]
    actor = impersonation(fields, requester=ALICE).actor
    assert (actor.uid, actor.extra) == ("u", {"acme.com/project": ("p",)})


def test_nothing_asked_for():
    assert impersonation([("Host", "x"), ("Impersonated", "y")], requester=ALICE) is None


@pytest.mark.parametrize(
    ("fields", "wishes"),
    [
        ([("Impersonate-Group", "g")], "{Group  g    }"),
        ([("Impersonate-Uid", "u")], "{UID  u  authentication.k8s.io/v1  }"),
        (
            [("Impersonate-Group", "g"), ("Impersonate-Extra-K", "v")],
            "{Group  g    } {UserExtra  v  authentication.k8s.io/v1  k}",
        ),
        ([("Impersonate-User", ""), ("Impersonate-Group", "g")], "{Group  g    }"),
    ],
)
def test_without_a_user(fields, wishes):
    with pytest.raises(Malformed) as raised:
        impersonation(fields, requester=ALICE)
    assert str(raised.value) == f"requested [{wishes}] without impersonating a user"


def test_the_fields():
    assert is_impersonation_field("Impersonate-Extra-x")
    assert is_impersonation_field("IMPERSONATE-USER")
    assert not is_impersonation_field("Impersonate")
