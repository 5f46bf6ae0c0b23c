"""Names, label keys and label values: what is wrong with one, in the original's words.

Source: RFC 1123; Kubernetes documentation, "Object names and IDs"; recorded answers of kube-apiserver.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = _LABEL + r"(\." + _LABEL + ")*"
_QUALIFIED: Final = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_CONFIG_KEY: Final = "[-._a-zA-Z0-9]+"
_ENDS: Final = "and must start and end with an alphanumeric character"

SUBDOMAIN_TEXT: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    f"{_ENDS} (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
LABEL_TEXT: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    f"{_ENDS} (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_NAME_TEXT: Final = (
    f"must consist of alphanumeric characters, '-', '_' or '.', {_ENDS} "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_VALUE_TEXT: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    f"{_ENDS} (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'({_QUALIFIED})?')"
)
_KEY_TEXT: Final = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
    f"'KEY_NAME',  or 'key-name', regex used for validation is '{_CONFIG_KEY}')"
)
_LABEL_RE: Final = re.compile(_LABEL)
_SUBDOMAIN_RE: Final = re.compile(_SUBDOMAIN)
_QUALIFIED_RE: Final = re.compile(_QUALIFIED)
_CONFIG_KEY_RE: Final = re.compile(_CONFIG_KEY)
MAX_LABEL: Final = 63
MAX_SUBDOMAIN: Final = 253

Check = Callable[[str], Iterator[str]]
"""Yields what is wrong with a name."""


def path_segment_faults(name: str) -> Iterator[str]:
    """Yield what keeps `name` from being a part of a path."""
    if name in (".", ".."):
        yield f"may not be '{name}'"
        return
    for char in "/%":
        if char in name:
            yield f"may not contain '{char}'"


def path_prefix_faults(prefix: str) -> Iterator[str]:
    """Yield what keeps `prefix` from being the beginning of a part of a path."""
    for char in "/%":
        if char in prefix:
            yield f"may not contain '{char}'"


def subdomain_faults(name: str) -> Iterator[str]:
    """Yield what keeps `name` from being an RFC 1123 subdomain."""
    if len(name.encode()) > MAX_SUBDOMAIN:
        yield f"must be no more than {MAX_SUBDOMAIN} characters"
    if not _SUBDOMAIN_RE.fullmatch(name):
        yield SUBDOMAIN_TEXT


def label_faults(name: str) -> Iterator[str]:
    """Yield what keeps `name` from being an RFC 1123 label."""
    if len(name.encode()) > MAX_LABEL:
        yield f"must be no more than {MAX_LABEL} characters"
    if not _LABEL_RE.fullmatch(name):
        yield LABEL_TEXT


def qualified_name_faults(key: str) -> Iterator[str]:
    """Yield what keeps `key` from being `NAME` or `PREFIX/NAME`, as keys of labels are."""
    prefix, slash, name = key.partition("/")
    if "/" in name:
        yield (
            f"a qualified name {_NAME_TEXT} with an optional DNS subdomain prefix and '/' "
            "(e.g. 'example.com/MyName')"
        )
        return
    if not slash:
        name = key
    elif not prefix:
        yield "prefix part must be non-empty"
    else:
        yield from (f"prefix part {fault}" for fault in subdomain_faults(prefix))
    if not name:
        yield "name part must be non-empty"
    elif len(name.encode()) > MAX_LABEL:
        yield f"name part must be no more than {MAX_LABEL} characters"
    if not _QUALIFIED_RE.fullmatch(name):
        yield f"name part {_NAME_TEXT}"


def label_value_faults(value: str) -> Iterator[str]:
    """Yield what keeps `value` from being the value of a label."""
    if len(value.encode()) > MAX_LABEL:
        yield f"must be no more than {MAX_LABEL} characters"
    if value and not _QUALIFIED_RE.fullmatch(value):
        yield _VALUE_TEXT


def config_key_faults(key: str) -> Iterator[str]:
    """Yield what keeps `key` from being a key of a secret's or config map's data."""
    if len(key.encode()) > MAX_SUBDOMAIN:
        yield f"must be no more than {MAX_SUBDOMAIN} characters"
    if not _CONFIG_KEY_RE.fullmatch(key):
        yield _KEY_TEXT
    elif key == ".":
        yield "must not be '.'"
    elif key == "..":
        yield "must not be '..'"
    elif key.startswith(".."):
        yield "must not start with '..'"
