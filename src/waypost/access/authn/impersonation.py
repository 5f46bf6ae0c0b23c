"""Acting as somebody else: `Impersonate-User`, `-Group`, `-Uid`, `-Extra-KEY`.

What is here is pure: from a request's header fields to what the requester must be allowed to do, and to whom they
become when they are. The caller asks the authorizer for each of the attributes. Source: kube "User impersonation".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from waypost.access.actor import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, Actor
from waypost.access.authn.certificate import extra_fields
from waypost.access.authn.service_account import USER_PREFIX, groups_of
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed

VERB: Final = "impersonate"
AUTHENTICATION_GROUP: Final = "authentication.k8s.io"
_USER: Final = "impersonate-user"
_GROUP: Final = "impersonate-group"
_UID: Final = "impersonate-uid"
_EXTRA: Final = "impersonate-extra-"
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_ACCOUNT: Final = re.compile(
    rf"{USER_PREFIX}({_LABEL}):((?=.{{1,253}}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*)"
)


class Impersonation(msgspec.Struct, frozen=True, kw_only=True):
    """A wish to act as `actor`. Every one of `attributes` must be allowed to the requester, in this order."""

    actor: Actor
    attributes: tuple[Attributes, ...]


def is_impersonation_field(name: str) -> bool:
    """Tell whether a header field belongs here; such fields go no further than this."""
    lower = name.lower()
    return lower in (_USER, _GROUP, _UID) or lower.startswith(_EXTRA)


def impersonation(fields: Iterable[tuple[str, str]], *, requester: Actor) -> Impersonation | None:
    """Return what the header fields of a request ask for, or None if nothing.

    Raises Malformed (400) for groups, a uid or extra values without a user.
    """
    given = [(name.lower(), value) for name, value in fields if is_impersonation_field(name)]
    user = next((value for name, value in given if name == _USER), "")
    groups = tuple(value for name, value in given if name == _GROUP)
    uid = next((value for name, value in given if name == _UID), "")
    extra = extra_fields(((name, (value,)) for name, value in given), prefixes=(_EXTRA,))
    if not user:
        if groups or extra or uid:
            raise Malformed(_without_user(groups, extra, uid))
        return None
    account = _ACCOUNT.fullmatch(user)
    attributes = [
        Attributes(
            VERB, "serviceaccounts", account[2], group="", namespace=account[1], version="v1"
        )
        if account
        else Attributes(VERB, "users", user, group="", version="v1")
    ]
    attributes += [Attributes(VERB, "groups", one, group="", version="v1") for one in groups]
    attributes += [
        Attributes(
            VERB, "userextras", one, group=AUTHENTICATION_GROUP, subresource=key, version="v1"
        )
        for key, values in extra.items()
        for one in values
    ]
    if uid:
        attributes.append(Attributes(VERB, "uids", uid, group=AUTHENTICATION_GROUP, version="v1"))
    becomes = groups
    if account and not groups:
        becomes = groups_of(account[1])
    return Impersonation(
        actor=Actor(
            user=user,
            groups=_completed(user, becomes),
            uid=uid,
            extra=extra,
            address=requester.address,
            origin=f"impersonated by {requester.user} ({requester.origin})",
        ),
        attributes=tuple(attributes),
    )


def _completed(user: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    if user == ANONYMOUS:
        return groups if UNAUTHENTICATED in groups else (*groups, UNAUTHENTICATED)
    if AUTHENTICATED in groups or UNAUTHENTICATED in groups:
        return groups
    return (*groups, AUTHENTICATED)


def _without_user(groups: tuple[str, ...], extra: dict[str, tuple[str, ...]], uid: str) -> str:
    # The form of kube's message: object references as Go prints them, empty fields included.
    wishes = [f"{{Group  {one}    }}" for one in groups]
    wishes += [
        f"{{UserExtra  {one}  {AUTHENTICATION_GROUP}/v1  {key}}}"
        for key, values in extra.items()
        for one in values
    ]
    if uid:
        wishes.append(f"{{UID  {uid}  {AUTHENTICATION_GROUP}/v1  }}")
    return f"requested [{' '.join(wishes)}] without impersonating a user"
