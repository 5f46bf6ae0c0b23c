"""The one tree of errors, split by what the caller can do about it.

    WaypostError
    ├── Malformed          the input is wrong: correct it (HTTP 400)
    ├── Unauthenticated    a credential was shown and is not good (401)
    ├── Forbidden          known, but not allowed (403)
    ├── NotFound           no such thing (404)
    ├── Conflict           somebody else was faster, or the state forbids it (409)
    ├── TooLarge           over a configured limit (413)
    ├── Rejected           understood, but refused with a reason (500 in Consul's API)
    └── Unavailable        try again later (500/503)
        ├── NoLeader       the store cannot confirm or accept anything now
        └── Unknown        the outcome of a write is not known

Every class has a stable `code`; the text is what a person reads. Surfaces translate classes to their
own status codes in one table each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final


class WaypostError(Exception):
    """Root of everything waypost raises on purpose."""

    code: ClassVar[str] = "internal"


class Malformed(WaypostError):
    """The input cannot be understood; the text says what is wrong and where."""

    code = "malformed"


class Unauthenticated(WaypostError):
    """A credential was presented and is not valid."""

    code = "unauthenticated"


class Forbidden(WaypostError):
    """The actor is known and may not do this."""

    code = "forbidden"


class NotFound(WaypostError):
    """The named thing does not exist."""

    code = "not_found"


class Conflict(WaypostError):
    """The state is not what the caller assumed."""

    code = "conflict"


class TooLarge(WaypostError):
    """Over a configured limit of size or number."""

    code = "too_large"


class Rejected(WaypostError):
    """Well-formed, but refused; the text is the reason (Consul answers 500)."""

    code = "rejected"


class Unavailable(WaypostError):
    """Nothing was changed; trying again later may succeed."""

    code = "unavailable"


class NoLeader(Unavailable):
    """The store has no quorum or is closed."""

    code = "no_leader"


class Unknown(Unavailable):
    """The write may or may not have been applied."""

    code = "unknown"


BY_CODE: Final[Mapping[str, type[WaypostError]]] = {
    kind.code: kind
    for kind in (
        Malformed,
        Unauthenticated,
        Forbidden,
        NotFound,
        Conflict,
        TooLarge,
        Rejected,
        Unavailable,
        NoLeader,
        Unknown,
    )
}
"""Errors that one machine tells another by their code, so that the same is raised there."""
