"""The JSON of etcd's gateway that is read, and the pieces of it that are written.

64-bit numbers arrive as strings, bytes as base64, and whatever has its zero value is absent.
Source: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/ and rpc.proto.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import Literal

import msgspec

from waypost.store.engine import KeyValue

RANGE = "/v3/kv/range"
TXN = "/v3/kv/txn"
COMPACT = "/v3/kv/compaction"
WATCH = "/v3/watch"
GRANT = "/v3/lease/grant"
KEEP_ALIVE = "/v3/lease/keepalive"
REVOKE = "/v3/lease/revoke"
TIME_TO_LIVE = "/v3/lease/timetolive"
STATUS = "/v3/maintenance/status"


class Header(msgspec.Struct, frozen=True):
    """Where and when an answer was made."""

    cluster_id: int = 0
    member_id: int = 0
    revision: int = 0
    raft_term: int = 0


class WireKeyValue(msgspec.Struct, gc=False):
    """mvccpb.KeyValue."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0

    def ours(self, skip: int = 0) -> KeyValue:
        """Return it as a model record, its key without the first `skip` bytes."""
        return KeyValue(
            self.key[skip:],
            self.value,
            self.create_revision,
            self.mod_revision,
            self.version,
            self.lease,
        )


_NO_HEADER = Header()


class RangeResponse(msgspec.Struct):
    """Of RANGE, and of a range within a transaction."""

    header: Header = _NO_HEADER
    kvs: list[WireKeyValue] = []
    more: bool = False
    count: int = 0


class DeleteRangeResponse(msgspec.Struct):
    """Of a deletion within a transaction."""

    deleted: int = 0


class ResponseOp(msgspec.Struct):
    """The answer to one operation of a transaction; exactly one is set, a put's is not looked at."""

    response_range: RangeResponse | None = None
    response_delete_range: DeleteRangeResponse | None = None
    response_txn: TxnResponse | None = None


class TxnResponse(msgspec.Struct):
    """Of TXN, and of a transaction within a transaction."""

    header: Header = _NO_HEADER
    succeeded: bool = False
    responses: list[ResponseOp] = []


class WireEvent(msgspec.Struct, gc=False):
    """mvccpb.Event."""

    kv: WireKeyValue
    type: Literal["PUT", "DELETE"] = "PUT"


class WatchResponse(msgspec.Struct):
    """One message of a watch."""

    header: Header = _NO_HEADER
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    events: list[WireEvent] = []


class WatchMessage(msgspec.Struct):
    """One line of a watch. Without `result` it is an error."""

    result: WatchResponse | None = None


class HeaderOnly(msgspec.Struct):
    """Any answer of which only the header matters."""

    header: Header = _NO_HEADER


class GrantResponse(msgspec.Struct):
    """Of GRANT."""

    id: int = msgspec.field(name="ID", default=0)
    ttl_s: int = msgspec.field(name="TTL", default=0)


class TimeToLiveResponse(msgspec.Struct):
    """Of TIME_TO_LIVE: the keys under a lease."""

    keys: list[bytes] = []


class KeepAliveResult(msgspec.Struct):
    """What is within a line of KEEP_ALIVE. No TTL: the lease is gone."""

    ttl_s: int = msgspec.field(name="TTL", default=0)


class KeepAliveResponse(msgspec.Struct):
    """The one line of KEEP_ALIVE."""

    result: KeepAliveResult | None = None


class StatusResponse(msgspec.Struct):
    """Of STATUS. `leader` 0: this member knows none."""

    header: Header = _NO_HEADER
    version: str = ""
    db_size: int = msgspec.field(name="dbSize", default=0)
    db_size_in_use: int = msgspec.field(name="dbSizeInUse", default=0)
    leader: int = 0
    raft_index: int = msgspec.field(name="raftIndex", default=0)
    raft_term: int = msgspec.field(name="raftTerm", default=0)
    raft_applied_index: int = msgspec.field(name="raftAppliedIndex", default=0)
    errors: list[str] = []
    is_learner: bool = msgspec.field(name="isLearner", default=False)


range_decoder = msgspec.json.Decoder(RangeResponse, strict=False)
txn_decoder = msgspec.json.Decoder(TxnResponse, strict=False)
watch_decoder = msgspec.json.Decoder(WatchMessage, strict=False)
header_decoder = msgspec.json.Decoder(HeaderOnly, strict=False)
grant_decoder = msgspec.json.Decoder(GrantResponse, strict=False)
keep_alive_decoder = msgspec.json.Decoder(KeepAliveResponse, strict=False)
time_to_live_decoder = msgspec.json.Decoder(TimeToLiveResponse, strict=False)
status_decoder = msgspec.json.Decoder(StatusResponse, strict=False)


def b64(raw: bytes) -> bytes:
    """Return `raw` as it stands in JSON, without quotes."""
    return b2a_base64(raw, newline=False)


def span_json(key: bytes, end: bytes | None) -> bytes:
    """Return the members `key` and `range_end` of a range or deletion, without braces."""
    if end is None:
        return b'"key":"%b"' % b64(key)
    return b'"key":"%b","range_end":"%b"' % (b64(key), b64(end))


def range_json(
    key: bytes,
    end: bytes | None,
    *,
    limit: int = 0,
    revision: int = 0,
    count_only: bool = False,
) -> bytes:
    """Return the body of a RangeRequest. `revision` 0 = now, `limit` 0 = all."""
    more = b',"limit":"%d"' % limit if limit else b""
    if revision:
        more += b',"revision":"%d"' % revision
    if count_only:
        more += b',"count_only":true'
    return b"{%b%b}" % (span_json(key, end), more)


def newest_json(key: bytes, end: bytes) -> bytes:
    """Return the body of a RangeRequest for the key of key <= k < end that was written last."""
    return (
        b'{%b,"limit":"1","sort_order":"DESCEND","sort_target":"MOD","keys_only":true}'
        % span_json(key, end)
    )


def put_json(key: bytes, value: bytes, lease: int = 0) -> bytes:
    """Return a put as an operation of a transaction."""
    if lease:
        return b'{"request_put":{"key":"%b","value":"%b","lease":"%d"}}' % (
            b64(key),
            b64(value),
            lease,
        )
    return b'{"request_put":{"key":"%b","value":"%b"}}' % (b64(key), b64(value))


def delete_json(key: bytes, end: bytes | None) -> bytes:
    """Return a deletion as an operation of a transaction."""
    return b'{"request_delete_range":{%b}}' % span_json(key, end)


def get_json(key: bytes, end: bytes | None) -> bytes:
    """Return a read as an operation of a transaction."""
    return b'{"request_range":{%b}}' % span_json(key, end)


_TARGETS = {
    "modify": b'"target":"MOD","mod_revision":"%d"',
    "create": b'"target":"CREATE","create_revision":"%d"',
    "version": b'"target":"VERSION","version":"%d"',
}
_OPS = {"==": b"EQUAL", "!=": b"NOT_EQUAL", "<": b"LESS", ">": b"GREATER"}


def compare_json(key: bytes, field: str, op: str, want: int | bytes) -> bytes:
    """Return a condition of a transaction. A value compared with a missing key is false in etcd, whatever `op`."""
    if isinstance(want, bytes):
        target = b'"target":"VALUE","value":"%b"' % b64(want)
    else:
        target = _TARGETS[field] % want
    return b'{"key":"%b","result":"%b",%b}' % (b64(key), _OPS[op], target)


def vacant_json(key: bytes, end: bytes | None) -> bytes:
    """Return the condition that no key of the span exists: etcd compares all that do, else one of only zeros."""
    return b'{%b,"result":"EQUAL","target":"CREATE","create_revision":"0"}' % span_json(key, end)


def txn_json(compares: bytes, success: bytes, failure: bytes) -> bytes:
    """Return a TxnRequest of lists that are joined with commas already."""
    return b'{"compare":[%b],"success":[%b],"failure":[%b]}' % (compares, success, failure)
