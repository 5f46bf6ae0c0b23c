"""Many datagrams by one system call: recvmmsg and sendmmsg, which Python's socket module does not have.

    batch = Batch(32, family=socket.AF_INET)
    found = batch.receive(fd)
    for index, (host, query) in enumerate(found):
        batch.put(index, reply_to(query))
    batch.send(fd, 0, len(found))

A reply is written over its query: address and ancillary data are in place, and go back as they came.
Source: recvmmsg(2), sendmmsg(2), cmsg(3), ip(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import Final

SLOT_BYTES: Final = 4096
"""A query is never longer; what is gets cut and is then malformed. A longer reply has to be sent by itself."""
_ANCILLARY_BYTES: Final = 64
IP_PKTINFO: Final = 8
"""Linux; the socket module of Python 3.11 does not have it."""

Address = tuple[str, int] | tuple[str, int, int, int]
"""What `socket.sendto` takes."""
Ancillary = tuple[int, int, bytes]


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """`struct msghdr`."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = (("header", _Header), ("bytes", ctypes.c_uint32))


_libc: Final = ctypes.CDLL(None, use_errno=True)
_recvmmsg: Final = _libc.recvmmsg
_recvmmsg.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_void_p,
)
_sendmmsg: Final = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

_MESSAGE_BYTES: Final = ctypes.sizeof(_Message)
_VECTOR_BYTES: Final = ctypes.sizeof(_Vector)
_CONTROL_HEAD: Final = struct.Struct("@nii")  # struct cmsghdr: length with the header, level, type


class Batch:
    """Room for `count` datagrams of one socket; with `ancillary` also for where each arrived."""

    def __init__(self, count: int, *, family: int, ancillary: bool = False) -> None:
        self._count = count
        self._family = family
        is_v4 = family == socket.AF_INET
        self._name_bytes = 16 if is_v4 else 28  # sockaddr_in, sockaddr_in6
        self._host_at, self._host_bytes = (4, 4) if is_v4 else (8, 16)
        self._control_bytes = _ANCILLARY_BYTES if ancillary else 0
        self._data = ctypes.create_string_buffer(count * SLOT_BYTES)
        self._names = ctypes.create_string_buffer(count * self._name_bytes)
        self._controls = ctypes.create_string_buffer(count * _ANCILLARY_BYTES)
        self._vectors = (_Vector * count)()
        self._messages = (_Message * count)()
        for index in range(count):
            vector, message = self._vectors[index], self._messages[index].header
            vector.base = ctypes.addressof(self._data) + index * SLOT_BYTES
            vector.size = SLOT_BYTES
            message.name = ctypes.addressof(self._names) + index * self._name_bytes
            message.name_bytes = self._name_bytes
            message.vectors = ctypes.addressof(vector)
            message.vector_count = 1
            if ancillary:
                message.control = ctypes.addressof(self._controls) + index * _ANCILLARY_BYTES
                message.control_bytes = _ANCILLARY_BYTES
        self._at = ctypes.addressof(self._messages)
        self._view = memoryview(self._data).cast("B")
        self._name_view = memoryview(self._names).cast("B")
        self._control_view = memoryview(self._controls).cast("B")
        self._message_view = memoryview(self._messages).cast("B")
        self._vector_view = memoryview(self._vectors).cast("B")
        self._sizes = self._vector_view.cast("L")
        self._lengths = self._message_view.cast("I")[
            _Message.bytes.offset // 4 :: _MESSAGE_BYTES // 4
        ]
        self._fresh_messages = bytes(self._message_view)
        self._fresh_vectors = bytes(self._vector_view)
        self._slots = [
            (name + self._host_at, name + self._host_at + self._host_bytes, slot)
            for name, slot in zip(
                range(0, count * self._name_bytes, self._name_bytes),
                range(0, count * SLOT_BYTES, SLOT_BYTES),
                strict=True,
            )
        ]
        self._used = 0

    def receive(self, fd: int) -> list[tuple[bytes, bytes]]:
        """Take what has arrived, without waiting: packed IP address of the sender, and datagram. Raises OSError."""
        used = self._used
        if used:
            # Both calls write into the headers.
            end = used * _MESSAGE_BYTES
            self._message_view[:end] = self._fresh_messages[:end]
            end = used * _VECTOR_BYTES
            self._vector_view[:end] = self._fresh_vectors[:end]
            self._used = 0
        found: int = _recvmmsg(fd, self._at, self._count, socket.MSG_DONTWAIT, None)
        if found < 0:
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                return []
            raise OSError(number, os.strerror(number))
        self._used = found
        view, names = self._view, bytes(self._name_view[: found * self._name_bytes])
        return [
            (names[host:end], bytes(view[at : at + size]))
            for (host, end, at), size in zip(
                self._slots, self._lengths[:found].tolist(), strict=False
            )
        ]

    def put(self, index: int, reply: bytes) -> None:
        """Set the reply, at most `SLOT_BYTES` long, in place of what was received."""
        at, size = index * SLOT_BYTES, len(reply)
        self._view[at : at + size] = reply
        self._sizes[2 * index + 1] = size

    def send(self, fd: int, first: int, end: int) -> int:
        """Send the replies `first` to before `end` where their queries came from; return how many were lost."""
        if self._control_bytes and self._family == socket.AF_INET:
            for index in range(first, end):
                # struct in_pktinfo {int ifindex; in_addr spec_dst; in_addr addr}: by any interface, from spec_dst.
                at = index * _ANCILLARY_BYTES + _CONTROL_HEAD.size
                self._control_view[at : at + 4] = b"\0\0\0\0"
        lost = 0
        while first < end:
            sent: int = _sendmmsg(
                fd, self._at + first * _MESSAGE_BYTES, end - first, socket.MSG_DONTWAIT
            )
            if sent > 0:
                first += sent
            elif ctypes.get_errno() == errno.EAGAIN:
                return lost + end - first
            else:
                lost += 1  # this one cannot be sent; the next may
                first += 1
        return lost

    def sender(self, index: int) -> Address:
        """Return the sender for `socket.sendto`, which also takes what is too long for here, or comes later."""
        name = bytes(self._name_view[index * self._name_bytes :][: self._name_bytes])
        port = int.from_bytes(name[2:4], "big")
        at = self._host_at
        host = socket.inet_ntop(self._family, name[at : at + self._host_bytes])
        if self._family == socket.AF_INET:
            return host, port
        flow, scope = struct.unpack_from("!I", name, 4)[0], struct.unpack_from("@I", name, 24)[0]
        return host, port, flow, scope

    def ancillary(self, index: int) -> list[Ancillary]:
        """Return what sends a reply from where its query arrived, for `socket.sendmsg`."""
        left = self._messages[index].header.control_bytes if self._control_bytes else 0
        if left < _CONTROL_HEAD.size:
            return []
        at = index * _ANCILLARY_BYTES
        size, level, kind = _CONTROL_HEAD.unpack_from(self._control_view, at)
        found = bytes(self._control_view[at + _CONTROL_HEAD.size : at + size])
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            found = bytes(4) + found[4:]
        return [(level, kind, found)]
