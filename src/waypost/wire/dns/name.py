"""Domain names as tuples of labels, and their text.

A name keeps the case it came with; DNS compares names without regard to ASCII case (RFC 4343), which is `fold`.
The root is the empty tuple.
"""

from __future__ import annotations

from typing import Final

from waypost.base.errors import Malformed

Name = tuple[bytes, ...]

ROOT: Final[Name] = ()
MAX_LABEL_BYTES: Final = 63
MAX_NAME_BYTES: Final = 255


def parse_name(text: str) -> Name:
    """Return the labels of a name in text; a final dot is optional. Non-ASCII text goes on the wire as UTF-8.

    Raises Malformed for an empty label, a label over 63 bytes or a name over 255 bytes (RFC 1035 §2.3.4).
    """
    bare = text.removesuffix(".")
    if not bare:
        return ROOT
    labels = tuple(label.encode("utf-8", "surrogateescape") for label in bare.split("."))
    length = 1
    for label in labels:
        if not label:
            msg = f"name {text!r} has an empty label"
            raise Malformed(msg)
        if len(label) > MAX_LABEL_BYTES:
            msg = f"name {text!r} has a label of {len(label)} bytes; {MAX_LABEL_BYTES} is the limit"
            raise Malformed(msg)
        length += 1 + len(label)
    if length > MAX_NAME_BYTES:
        msg = f"name {text!r} has {length} bytes; {MAX_NAME_BYTES} is the limit"
        raise Malformed(msg)
    return labels


def name_text(name: Name) -> str:
    """Return the name in text, with a final dot. For people and for lookups; bytes that are no UTF-8 survive."""
    return ".".join([label.decode("utf-8", "surrogateescape") for label in name]) + "."


def fold(name: Name) -> Name:
    """Return the form under which two names are the same name."""
    return tuple([label.lower() for label in name])


def is_below(name: Name, parent: Name) -> bool:
    """Return whether `name` is `parent` or inside of it. Both folded."""
    return len(name) >= len(parent) and name[len(name) - len(parent) :] == parent
