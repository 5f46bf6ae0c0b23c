"""The file that a snapshot is: a gzip'd tar of meta.json, state.bin and SHA256SUMS, as Consul's, with a state of our own.

meta.json has the members that Consul's program prints. state.bin is a line that names the format, then one MessagePack
array a key: [key, value]. Revisions are not part of it: restored keys get new ones.

Source: recorded snapshots of Consul 1.8.7 for the archive; the error texts are those of its HTTP API where it has one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from waypost.base.errors import Malformed

META: Final = "meta.json"
STATE: Final = "state.bin"
SUMS: Final = "SHA256SUMS"
MAGIC: Final = b"waypost snapshot 1\n"
MAX_STATE_BYTES: Final = 4 << 30
"""Larger states are not read, so that a small file cannot fill the memory."""
_MAX_SMALL_BYTES: Final = 1 << 20
_MODE: Final = 0o600
_LEVEL: Final = 6
_END_BYTES: Final = 2 * tarfile.BLOCKSIZE


class Meta(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What is said about a snapshot. `term` is the leader's, `size` that of the state in bytes."""

    version: int = 1
    id: str = msgspec.field(name="ID", default="")
    index: int = 0
    term: int = 0
    size: int = 0


class Archive(msgspec.Struct, frozen=True):
    """A snapshot that was read and is whole. `repr` shows no value."""

    meta: Meta
    state: bytes

    def __repr__(self) -> str:
        return f"Archive({self.meta!r})"


def make_meta(*, index: int, term: int, wall_s: float, size: int) -> Meta:
    """Return the description of a snapshot as of a revision; its id is made as Consul makes it."""
    return Meta(id=f"{term}-{index}-{int(wall_s * 1000)}", index=index, term=term, size=size)


def encode_state(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the state of keys and values."""
    out = bytearray(MAGIC)
    encode = msgspec.msgpack.Encoder().encode_into
    for item in items:
        encode(item, out, -1)
    return bytes(out)


def decode_state(state: bytes) -> dict[bytes, bytes]:
    """Return the values by key. Raises Malformed."""
    if not state.startswith(MAGIC):
        what = "it is one of Consul's" if _looks_like_consuls(state) else "its state is unknown"
        msg = f"failed to read snapshot: not made by waypost ({what})"
        raise Malformed(msg)
    found: dict[bytes, bytes] = {}
    view = memoryview(state)
    at = len(MAGIC)
    while at < len(view):
        key, value, at = _item(view, at)
        found[key] = value
    return found


def _looks_like_consuls(state: bytes) -> bool:
    return state[:11] == b"\x81\xa9LastIndex"


def _item(view: memoryview, at: int) -> tuple[bytes, bytes, int]:
    """Return one [key, value] and where the next begins. MessagePack: fixarray of 2, then two `bin`."""
    if view[at] != 0x92:
        raise Malformed(_BAD_STATE)
    key, at = _bin(view, at + 1)
    value, at = _bin(view, at)
    return key, value, at


def _bin(view: memoryview, at: int) -> tuple[bytes, int]:
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(view[at]) if at < len(view) else None
    if width is None:
        raise Malformed(_BAD_STATE)
    start = at + 1 + width
    size = int.from_bytes(view[at + 1 : start], "big")
    end = start + size
    if end > len(view):
        raise Malformed(_BAD_STATE)
    return bytes(view[start:end]), end


_BAD_STATE: Final = "failed to read snapshot: the state is damaged"


def pack(meta: Meta, state: bytes, *, wall_s: float) -> bytes:
    """Return the file."""
    described = msgspec.json.encode(meta) + b"\n"
    sums = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in ((META, described), (STATE, state))
    )
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in ((META, described), (STATE, state), (SUMS, sums.encode())):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), _MODE, int(wall_s)
            tar.addfile(info, io.BytesIO(data))
        end = plain.tell()
    # Two empty blocks end an archive; Python writes more, which Consul's program takes for damage.
    whole = plain.getbuffer()[: end + _END_BYTES]
    return gzip.compress(whole, compresslevel=_LEVEL, mtime=0)


def unpack(archive: bytes) -> Archive:
    """Return what a file holds, after its checksums were compared. Raises Malformed in Consul's words."""
    if len(archive) < 10:
        msg = "failed to decompress snapshot: " + ("unexpected EOF" if archive else "EOF")
        raise Malformed(msg)
    if archive[:2] != b"\x1f\x8b":
        msg = "failed to decompress snapshot: gzip: invalid header"
        raise Malformed(msg)
    try:
        files = _files(archive)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = "unexpected EOF" if isinstance(error, EOFError) else str(error)
        msg = f"failed to read snapshot: {reason}"
        raise Malformed(msg) from error
    missing = [name for name in (META, STATE, SUMS) if name not in files]
    if missing:
        msg = f"failed to read snapshot: {', '.join(missing)} is missing"
        raise Malformed(msg)
    _check_sums(files)
    try:
        meta = msgspec.json.decode(files[META], type=Meta)
    except msgspec.MsgspecError as error:
        msg = f"failed to read snapshot: {META}: {error}"
        raise Malformed(msg) from error
    return Archive(meta, files[STATE])


def _files(archive: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r|gz") as tar:
        for info in tar:
            limit = MAX_STATE_BYTES if info.name == STATE else _MAX_SMALL_BYTES
            if not info.isreg() or info.name not in (META, STATE, SUMS) or info.name in found:
                msg = f"failed to read snapshot: unexpected file {info.name!r}"
                raise Malformed(msg)
            if info.size > limit:
                msg = f"failed to read snapshot: {info.name} has more than {limit} bytes"
                raise Malformed(msg)
            file = tar.extractfile(info)
            data = file.read() if file is not None else b""
            if len(data) != info.size:
                raise EOFError
            found[info.name] = data
    return found


def _check_sums(files: dict[str, bytes]) -> None:
    wanted = {}
    for line in files[SUMS].decode("ascii", "replace").splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    for name in (META, STATE):
        if wanted.get(name) != hashlib.sha256(files[name]).hexdigest():
            msg = f'failed to read snapshot: hash check failed for "{name}"'
            raise Malformed(msg)
