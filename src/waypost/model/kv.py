"""The key/value store's record."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_VALUE_BYTES: Final = 512 * 1024
"""Consul's default `kv_max_value_size`."""


class KVEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key with its value. `flags` is an opaque uint64 of the writer."""

    key: str
    value: bytes = b""
    flags: int = 0
    lock_index: int = 0
    session: str = ""
    create_index: int = 0
    modify_index: int = 0
