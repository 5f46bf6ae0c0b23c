"""What goes over the wire between a remote engine and a server: msgpack messages, and frames where they are many.

A body is one message. A streamed answer is a row of frames: the length in 4 bytes, big-endian, then a message.
An error is an HTTP status with the class's code in `X-Waypost-Error` and its text as the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec

from waypost.base import errors
from waypost.base.errors import Malformed, WaypostError
from waypost.store.engine import (
    Batch,
    Compacted,
    Compare,
    Delete,
    EngineStatus,
    Get,
    KeyValue,
    Operation,
    Put,
    Txn,
    TxnResult,
)

PREFIX: Final = "/cluster/v1/store/"
ERROR_HEADER: Final = "X-Waypost-Error"
CONTENT_TYPE: Final = "application/msgpack"
MAX_FRAME_BYTES: Final = 64 * 2**20
"""No sender makes a frame nearly as large; more is taken for garbage."""

T = TypeVar("T")


# -- questions ---------------------------------------------------------------------------------------------------------


class RangeAsk(msgspec.Struct, frozen=True, array_like=True):
    """`Engine.range`; the answer is a stream of RangeStart, Rows …, End."""

    key: bytes
    end: bytes | None = None
    limit: int = 0


class WatchAsk(msgspec.Struct, frozen=True, array_like=True):
    """`Engine.watch`; the answer is a stream of Change, Progress, Failure."""

    after: int


class CompactAsk(msgspec.Struct, frozen=True, array_like=True):
    """`Engine.compact`."""

    before: int


class GrantAsk(msgspec.Struct, frozen=True, array_like=True):
    """`Engine.grant`; the answer is a number."""

    ttl_s: float


class LeaseAsk(msgspec.Struct, frozen=True, array_like=True):
    """`Engine.keep_alive` and `Engine.revoke`; the answer is the seconds left."""

    lease: int


class _Compare(msgspec.Struct, frozen=True, array_like=True):
    key: bytes
    field: str
    op: str
    want: int | bytes


class _Put(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    key: bytes
    value: bytes
    lease: int = 0


class _Delete(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    key: bytes
    end: bytes | None = None


class _Get(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    key: bytes
    end: bytes | None = None


_Operation = _Put | _Delete | _Get


class _Txn(msgspec.Struct, frozen=True, array_like=True):
    when: tuple[_Compare, ...]
    then: tuple[_Operation, ...]
    otherwise: tuple[_Operation, ...]


# -- answers -----------------------------------------------------------------------------------------------------------


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one transaction of several: its result, or the code and text of an error."""

    result: TxnResult | None = None
    code: str = ""
    text: str = ""


class RangeStart(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """The page's revision, whether a limit cut it, and whether the caller is shown KV entries."""

    revision: int
    more: bool
    shows_kv: bool


class Rows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """The next rows."""

    items: tuple[KeyValue, ...]


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Nothing is missing."""


class Change(msgspec.Struct, frozen=True, array_like=True, tag="change"):
    """One revision."""

    batch: Batch


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """Everything up to `revision` has been sent; sent at least once a second.

    `is_confirmed`: the server reached a quorum of the store within the last seconds.
    """

    revision: int
    is_confirmed: bool
    shows_kv: bool


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="failure"):
    """The stream ends because of an error."""

    code: str
    text: str


Message = RangeStart | Rows | End | Change | Progress | Failure

_encoder = msgspec.msgpack.Encoder()
_txns = msgspec.msgpack.Decoder(list[_Txn])
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: object) -> bytes:
    """Return a message as msgpack."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[T]) -> T:
    """Return a message of a kind. Raises Malformed."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Malformed(f"no {kind.__name__}: {exc}") from exc


def decode_status(body: bytes) -> EngineStatus:
    """Return an engine's status. Raises Malformed."""
    return decode(body, EngineStatus)


# -- transactions ------------------------------------------------------------------------------------------------------


def encode_txn(txn: Txn) -> bytes:
    """Return a transaction as a part of a message. Raises Malformed when it holds what no engine can take."""
    try:
        return encode(_wire(txn))
    except (msgspec.MsgspecError, OverflowError, TypeError) as exc:
        raise Malformed(f"the transaction cannot be sent: {exc}") from exc


def join_txns(parts: list[bytes]) -> bytes:
    """Return several encoded transactions as one message."""
    return encode([msgspec.Raw(part) for part in parts])


def decode_txns(body: bytes) -> list[Txn]:
    """Return the transactions of a message; what they mean is for the engine to judge. Raises Malformed."""
    try:
        found = _txns.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Malformed(f"no transactions: {exc}") from exc
    return [_ours(txn) for txn in found]


def decode_outcomes(body: bytes, *, count: int) -> list[Outcome]:
    """Return what became of `count` transactions. Raises Malformed."""
    found = decode(body, list[Outcome])
    if len(found) != count:
        raise Malformed(f"{len(found)} outcomes of {count} transactions")
    return found


def _wire(txn: Txn) -> _Txn:
    return _Txn(
        tuple(_Compare(c.key, c.field, c.op, c.want) for c in txn.when),
        tuple(map(_wire_operation, txn.then)),
        tuple(map(_wire_operation, txn.otherwise)),
    )


def _wire_operation(operation: Operation) -> _Operation:
    match operation:
        case Put(key, value, lease):
            return _Put(key, value, lease)
        case Delete(key, end):
            return _Delete(key, end)
        case Get(key, end):
            return _Get(key, end)


def _ours(txn: _Txn) -> Txn:
    return Txn(
        # Fields and operators are checked by the engine, which says what is wrong with them.
        tuple(Compare(c.key, c.field, c.op, c.want) for c in txn.when),  # type: ignore[arg-type]
        tuple(map(_our_operation, txn.then)),
        tuple(map(_our_operation, txn.otherwise)),
    )


def _our_operation(operation: _Operation) -> Operation:
    match operation:
        case _Put(key, value, lease):
            return Put(key, value, lease)
        case _Delete(key, end):
            return Delete(key, end)
        case _Get(key, end):
            return Get(key, end)


# -- frames ------------------------------------------------------------------------------------------------------------


def frame(message: Message) -> bytes:
    """Return a message with its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Cuts a byte stream into messages, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that are complete. Raises Malformed for what is no frame."""
        self._buffer += data
        at = 0
        buffer = self._buffer
        try:
            while len(buffer) - at >= 4:
                size = int.from_bytes(buffer[at : at + 4], "big")
                if size > MAX_FRAME_BYTES:
                    raise Malformed(f"a frame of {size} bytes")
                if len(buffer) - at - 4 < size:
                    break
                body = bytes(buffer[at + 4 : at + 4 + size])
                at += 4 + size
                try:
                    message = _messages.decode(body)
                except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                    raise Malformed(f"no frame: {exc}") from exc
                yield message
        finally:
            del buffer[:at]


# -- errors ------------------------------------------------------------------------------------------------------------

_CLASSES: Final[dict[str, type[WaypostError]]] = {
    **errors.BY_CODE,
    Compacted.code: Compacted,
}


def error_of(code: str, text: str) -> WaypostError:
    """Return the error that a server meant; one of a code that is not known may have happened at any point."""
    kind = _CLASSES.get(code, errors.Unknown)
    return kind(text)


def is_code(code: str) -> bool:
    """Return whether a code is one of ours."""
    return code in _CLASSES
