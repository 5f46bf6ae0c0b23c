"""What HTTP says about fields and targets. Source: RFC 9110 section 7.6.1, WHATWG URL (query parameters)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_plus

HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Fields about one connection, in lower case: whoever passes a message on leaves them out."""

_PARAMETER: Final = re.compile(r"([^&;=]*)=([^&;]*)")


def hidden(query: str, *, is_secret: Callable[[str], bool], shown: str) -> str:
    """Return a query in which `shown` stands for the values of secret parameters; all else stays as it was written.

    `is_secret` is asked with the name as a server reads it: `%74oken` is `token`.
    """

    def put(found: re.Match[str]) -> str:
        name = found[1]
        # A name that is no text at all may be anything.
        read = unquote_plus(name, errors="replace") if "%" in name or "+" in name else name
        return f"{name}={shown}" if "\ufffd" in read or is_secret(read) else found[0]

    return _PARAMETER.sub(put, query)
