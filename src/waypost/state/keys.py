"""Where each record lives in the store's key space, and how it is written there.

    n NUL node                     Node
    s NUL node NUL service id      Service
    c NUL node NUL check id        Check
    k NUL key                      KVEntry
    x NUL session id               Session
    o NUL group/resource NUL namespace NUL name     Object
    _ NUL name                     what waypost keeps for itself
    e NUL …                        of servers on an etcd of the operator's (`cluster.external`); not part of the state

Node names are folded, so a name exists once whatever its case; ids and KV keys are exact. Values are msgpack maps
without default members, so that a newer record can be read by an older program and the other way round. The
revisions of a record are those of its key and are not part of the value.
"""

from __future__ import annotations

import msgspec

from waypost.base.errors import Malformed
from waypost.model.catalog import Check, Node, Service, fold
from waypost.model.kv import KVEntry
from waypost.model.object import Object
from waypost.model.session import Session
from waypost.store.engine import KeyValue, Put

NODE, SERVICE, CHECK, KV, SESSION, OBJECT = b"n\0", b"s\0", b"c\0", b"k\0", b"x\0", b"o\0"
SYSTEM = b"_\0"

Record = Node | Service | Check | KVEntry | Session | Object

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[bytes, msgspec.msgpack.Decoder[Record]] = {
    NODE: msgspec.msgpack.Decoder(Node),
    SERVICE: msgspec.msgpack.Decoder(Service),
    CHECK: msgspec.msgpack.Decoder(Check),
    KV: msgspec.msgpack.Decoder(KVEntry),
    SESSION: msgspec.msgpack.Decoder(Session),
    OBJECT: msgspec.msgpack.Decoder(Object),
}


def _part(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        msg = f"{text!r} contains a NUL character"
        raise Malformed(msg)
    return raw


def node_key(node: str) -> bytes:
    """Return the key of a node."""
    return NODE + _part(fold(node))


def service_key(node: str, service_id: str) -> bytes:
    """Return the key of one instance."""
    return SERVICE + _part(fold(node)) + b"\0" + _part(service_id)


def check_key(node: str, check_id: str) -> bytes:
    """Return the key of one check."""
    return CHECK + _part(fold(node)) + b"\0" + _part(check_id)


def kv_key(key: str) -> bytes:
    """Return the key of one KV entry; the text may hold any character but lone surrogates stand for raw bytes."""
    return KV + key.encode("utf-8", "surrogateescape")


def session_key(session_id: str) -> bytes:
    """Return the key of a session."""
    return SESSION + _part(session_id)


def object_key(group: str, resource: str, namespace: str, name: str) -> bytes:
    """Return the key of an object of the kube-style API."""
    kind = _part(f"{group}/{resource}")
    return OBJECT + kind + b"\0" + _part(namespace) + b"\0" + _part(name)


def system_key(*parts: str) -> bytes:
    """Return the key of something waypost keeps for itself; `View.system` has it under its parts joined by NUL."""
    return SYSTEM + b"\0".join(_part(part) for part in parts)


def span_end(prefix: bytes) -> bytes:
    """Return the first key after all that start with `prefix` (which must not be all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def key_of(record: Record) -> bytes:
    """Return the key under which `record` is stored."""
    match record:
        case Node():
            return node_key(record.node)
        case Service():
            return service_key(record.node, record.id)
        case Check():
            return check_key(record.node, record.check_id)
        case KVEntry():
            return kv_key(record.key)
        case Session():
            return session_key(record.id)
        case Object():
            return object_key(record.group, record.resource, record.namespace, record.name)


def encode(record: Record) -> bytes:
    """Return the stored value of `record`, without its revisions."""
    if record.create_index or record.modify_index:
        record = msgspec.structs.replace(record, create_index=0, modify_index=0)
    return _encoder.encode(record)


def put(record: Record) -> Put:
    """Return the operation that stores `record`."""
    return Put(key=key_of(record), value=encode(record))


def decode(kv: KeyValue) -> Record | None:
    """Return the record of a stored key with its revisions; None for keys outside the tables.

    Raises Malformed when the value is not what the table holds.
    """
    decoder = _decoders.get(kv.key[:2])
    if decoder is None:
        return None
    try:
        record = decoder.decode(kv.value)
    except msgspec.MsgspecError as error:
        msg = f"stored value of key {kv.key!r} cannot be read: {error}"
        raise Malformed(msg) from error
    msgspec.structs.force_setattr(record, "create_index", kv.create_revision)
    msgspec.structs.force_setattr(record, "modify_index", kv.modify_revision)
    return record
