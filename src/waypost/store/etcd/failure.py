"""What an answer of etcd that is not a success means for the one who asked.

A write's failure is one of three things, and only the numeric gRPC code in the JSON body says which: the HTTP status
differs between etcd 3.4 and 3.5 for the same failure. Whatever is not known for certain is `unknown`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from waypost.base.errors import NoLeader, Unavailable, Unknown, WaypostError

Outcome = Literal["refused", "not_applied", "unknown"]
"""refused: etcd will never do this, asking again is useless. not_applied: it was not done, another endpoint or a later
time may do it. unknown: it may have been done, may be done later, or never."""

OK, CANCELLED, UNKNOWN_CODE, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 1, 2, 3, 4, 5
ALREADY_EXISTS, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 6, 7, 8, 9
ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = (
    10, 11, 12, 13, 14, 15, 16,
)  # fmt: skip
"""Source: https://grpc.io/docs/guides/status-codes/ ."""

_REFUSED = frozenset(
    {
        INVALID_ARGUMENT,
        NOT_FOUND,
        ALREADY_EXISTS,
        PERMISSION_DENIED,
        RESOURCE_EXHAUSTED,
        FAILED_PRECONDITION,
        OUT_OF_RANGE,
        UNIMPLEMENTED,
        UNAUTHENTICATED,
    }
)
_NOT_APPLIED_TEXTS = (
    # code 14, but said before anything was proposed
    "etcdserver: no leader",
    "etcdserver: rpc not supported for learner",
    # code 8, but a matter of time
    "etcdserver: too many requests",
)


class Failure(Exception):  # it never leaves this package
    """One attempt at one endpoint that did not succeed. `code` is the gRPC code, None when no such answer came."""

    def __init__(
        self, text: str, *, outcome: Outcome, code: int | None = None, endpoint: str = ""
    ) -> None:
        super().__init__(f"{endpoint}: {text}" if endpoint else text)
        self.text = text
        self.outcome: Outcome = outcome
        self.code = code
        self.endpoint = endpoint

    @property
    def compacted(self) -> bool:
        """The revision asked for is no longer kept."""
        return self.code == OUT_OF_RANGE and "compacted" in self.text

    @property
    def too_many_operations(self) -> bool:
        """Over etcd's --max-txn-ops."""
        return self.code == INVALID_ARGUMENT and "too many operations" in self.text

    @property
    def too_large(self) -> bool:
        """Over etcd's --max-request-bytes."""
        return "too large" in self.text or "larger than max" in self.text

    @property
    def no_space(self) -> bool:
        """Over etcd's --quota-backend-bytes."""
        return "database space exceeded" in self.text


def outcome_of(code: int, text: str) -> Outcome:
    """Return what the gRPC `code` of an answer says about the request. Pure."""
    if any(known in text for known in _NOT_APPLIED_TEXTS):
        return "not_applied"
    return "refused" if code in _REFUSED else "unknown"


class _StreamError(msgspec.Struct):
    grpc_code: int = UNKNOWN_CODE
    message: str = ""


class _ErrorBody(msgspec.Struct):
    """3.4 and 3.5 answer {"error": text, "code": n, "message": text}; within a stream `error` is an object."""

    error: str | _StreamError | None = None
    message: str = ""
    code: int | None = None


_decoder = msgspec.json.Decoder(_ErrorBody, strict=False)


def parse_failure(body: bytes, *, status: int, endpoint: str) -> Failure:
    """Return what an error body says. A body that is not etcd's is of unknown outcome."""
    try:
        wire = _decoder.decode(body)
    except msgspec.MsgspecError:
        wire = _ErrorBody()
    if isinstance(wire.error, _StreamError):
        code, text = wire.error.grpc_code, wire.error.message
    elif wire.code is not None:
        code, text = wire.code, wire.message or wire.error or ""
    else:
        shown = body[:80].decode("utf-8", "replace").strip()
        text = f"HTTP status {status} and {shown!r}: this does not look like etcd's JSON gateway"
        return Failure(text, outcome="unknown", endpoint=endpoint)
    return Failure(text, outcome=outcome_of(code, text), code=code, endpoint=endpoint)


def explain(failure: Failure) -> str:
    """Return the failure in words for an operator."""
    if failure.no_space:
        return (
            f"{failure}: etcd's quota is used up and it refuses writes; compact, defragment and disarm the alarm, "
            "or raise --quota-backend-bytes"
        )
    if failure.code in (PERMISSION_DENIED, UNAUTHENTICATED):
        return (
            f"{failure}: etcd's authentication is switched on, and the user is not allowed this; it needs read and write "
            "permission for all keys with waypost's prefix"
        )
    if "user name is empty" in failure.text:
        return (
            f"{failure}: etcd's authentication is switched on; it needs a name and a password (-etcd-username, "
            "-etcd-password-file), because its JSON gateway does not take the name of a client certificate"
        )
    return str(failure)


def not_done(failure: Failure | None, *, at_most_s: float) -> WaypostError:
    """Return the error for something that was certainly not done within its time."""
    reason = "nothing answered" if failure is None else explain(failure)
    if failure is not None and failure.outcome == "refused":
        return Unavailable(f"the store refused: {reason}")
    return NoLeader(
        f"No cluster leader: the store has no leader that answers within {at_most_s:g} s ({reason})"
    )


def maybe_done(failure: Failure | None, *, at_most_s: float) -> Unknown:
    """Return the error for a write that may have been done."""
    reason = "no answer yet" if failure is None else explain(failure)
    return Unknown(
        f"the write was sent, but whether it was applied could not be learned within {at_most_s:g} s ({reason})"
    )
