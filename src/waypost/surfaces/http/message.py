"""What an HTTP request and an answer are, apart from sockets.

`Head` is everything that the bytes before the body decide. It is immutable in meaning and lazily
parsed, so one `Head` may be shared by all requests whose bytes are equal.
Sources: RFC 9110 and 9112; Go `net/url` for the query, because Consul's clients expect its rules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from http.client import responses as _REASONS  # noqa: N812
from typing import Final
from urllib.parse import unquote_to_bytes
from zlib import MAX_WBITS, compressobj

import msgspec

from waypost.access.authn.records import Authentication
from waypost.base.errors import Malformed
from waypost.wire.http import hidden

GZIP_MIN_BYTES: Final = 1400
"""Bodies above this are compressed for clients that accept it; smaller ones fit one packet anyway."""

_GZIP_LEVEL = 1  # JSON shrinks about as much as at level 6 in a fraction of the time
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)

_PLAIN_HEADERS: Final = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"connection",
        b"content-type",
        b"dnt",
        b"host",
        b"keep-alive",
        b"referer",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-request-id",
    )
)
"""Headers that never change who asks or what is asked. Everything else leaves the fast path."""


_CREDENTIAL_HEADERS: Final = frozenset((b"authorization", b"x-consul-token"))


class Headers:
    """The header fields in the order of arrival; names compare without case, values are latin-1."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.raw: tuple[tuple[bytes, bytes], ...] = tuple((n.lower(), v) for n, v in raw)
        """Pairs of lower-case name and value."""
        self._first: dict[str, str] | None = None

    def get(self, name: str) -> str | None:
        """Return the first value of `name`, or None."""
        first = self._first
        if first is None:
            first = {n.decode("latin-1"): v.decode("latin-1") for n, v in reversed(self.raw)}
            self._first = first
        return first.get(name.lower())

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of `name` in order."""
        wanted = name.lower().encode("latin-1", "replace")
        return tuple(v.decode("latin-1") for n, v in self.raw if n == wanted)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((n.decode("latin-1"), v.decode("latin-1")) for n, v in self.raw)

    def __repr__(self) -> str:  # values may be secrets
        return f"Headers({', '.join(n.decode('latin-1') for n, _ in self.raw)})"


class Query:
    """A parsed query string by the rules of Go's `url.ParseQuery`.

    Pairs are split at `&` and `;`, `a` means `a=`, `+` is a space, order is kept, and a pair with a
    broken escape is left out and named in `error` (`invalid URL escape "%zz"`, first one only).
    """

    __slots__ = ("_values", "error", "pairs")

    def __init__(self, raw: str) -> None:
        pairs: list[tuple[str, str]] = []
        error: str | None = None
        for piece in raw.replace(";", "&").split("&") if raw else ():
            if not piece:
                continue
            key, _, value = piece.partition("=")
            bad = _BAD_ESCAPE.search(piece)
            if bad is not None:
                error = error or f'invalid URL escape "{bad.group()}"'
                continue
            pairs.append((_unescape(key), _unescape(value)))
        self.pairs: tuple[tuple[str, str], ...] = tuple(pairs)
        self.error: str | None = error
        values: dict[str, tuple[str, ...]] = {}
        for key, value in pairs:
            values[key] = (*values.get(key, ()), value)
        self._values = values

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of `name`, or `default`."""
        values = self._values.get(name)
        return values[0] if values else default

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of `name` in order."""
        return self._values.get(name, ())

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def __repr__(self) -> str:  # values may be secrets
        return f"Query({', '.join(self._values)})"


def _unescape(text: str) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    return unquote_to_bytes(text).decode("utf-8", "replace")


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end of a connection, as the kernel and TLS say it."""

    listener: str
    """Name of the endpoint that took the connection, such as `http`, `https` or `unix`."""
    address: str = ""
    """IP address without zone; empty for a unix socket."""
    port: int = 0
    is_unix: bool = False
    pid: int | None = None
    """Process, user and group of the peer of a unix socket (SO_PEERCRED), else None."""
    uid: int | None = None
    gid: int | None = None
    is_tls: bool = False
    certificates_der: tuple[bytes, ...] = ()
    """The client's certificate and the intermediates it sent, leaf first; empty without one. With
    `OpenTls` they are NOT verified: an authenticator must do that before it believes a word of them."""

    @property
    def certificate_der(self) -> bytes | None:
        """The client's own certificate, or None."""
        return self.certificates_der[0] if self.certificates_der else None

    @property
    def is_anonymous(self) -> bool:
        """True when the connection itself proves no identity."""
        return not self.is_unix and not self.certificates_der


class Head:
    """Method, target and headers of a request.

    `target` is the request target as it came, `raw_path` its path with escapes, `path` the decoded
    path. Reading `path` raises Malformed when an escape is broken or the bytes are not UTF-8.
    """

    __slots__ = (
        "_credential",
        "_gzip",
        "_path",
        "_plain",
        "_query",
        "_simple",
        "headers",
        "is_http_1_0",
        "keep_alive",
        "match",
        "method",
        "raw_path",
        "raw_query",
        "target",
    )

    def __init__(
        self,
        *,
        method: str,
        target: bytes,
        headers: Headers,
        keep_alive: bool = True,
        is_http_1_0: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.is_http_1_0 = is_http_1_0
        self.match: object | None = None
        """Free for the router: what it found for this head, so equal requests are matched once."""
        text = target.decode("latin-1")
        if not text.startswith("/") and "://" in text:  # absolute form, RFC 9112 section 3.2.2
            text = "/" + text.partition("://")[2].partition("/")[2]
        text = text.partition("#")[0]
        self.raw_path, _, self.raw_query = text.partition("?")
        self._path: str | None = None
        self._query: Query | None = None
        self._gzip: bool | None = None
        self._plain: bool | None = None
        self._simple: bool | None = None
        self._credential: bytes | None = None

    @property
    def path(self) -> str:
        """The decoded path. Raises Malformed."""
        path = self._path
        if path is None:
            path = _decode_path(self.raw_path)
            self._path = path
        return path

    @property
    def query(self) -> Query:
        """The query string, parsed at the first use."""
        query = self._query
        if query is None:
            query = Query(self.raw_query.encode("latin-1").decode("utf-8", "replace"))
            self._query = query
        return query

    @property
    def accepts_gzip(self) -> bool:
        """True when the client takes a gzip answer."""
        gzip = self._gzip
        if gzip is None:
            gzip = any(_takes_gzip(v) for v in self.headers.all("accept-encoding"))
            self._gzip = gzip
        return gzip

    @property
    def is_plain(self) -> bool:
        """True for a GET that only its target and `Accept` tell apart from other anonymous GETs.

        No credential, cookie, impersonation, cache control or unknown header and no `token`
        parameter. An answer cache keyed by `target` may serve such a request (with `accepts_gzip`
        choosing the form), as long as the route does not negotiate by `Accept`.
        """
        plain = self._plain
        if plain is None:
            plain = self.is_simple and not self.credential
            self._plain = plain
        return plain

    @property
    def is_simple(self) -> bool:
        """True for what is plain but for a credential in `Authorization` or `X-Consul-Token`.

        An answer cache keyed by who asks and by `target` may serve it.
        """
        simple = self._simple
        if simple is None:
            simple = (
                self.method == "GET"
                and all(
                    n in _PLAIN_HEADERS or n in _CREDENTIAL_HEADERS for n, _ in self.headers.raw
                )
                and "token" not in self.raw_query.lower()
                and "%" not in self.raw_query
            )
            self._simple = simple
        return simple

    @property
    def credential(self) -> bytes | None:
        """A digest that stands for the credentials in the headers; empty without one, None when the query may have one."""
        found = self._credential
        if found is None:
            if "token" in self.raw_query.lower() or "%" in self.raw_query:
                return None
            shown = [self.headers.get("authorization"), self.headers.get("x-consul-token")]
            found = b""
            if shown != [None, None]:
                found = hashlib.sha256(repr(shown).encode("utf-8", "surrogatepass")).digest()
            self._credential = found
        return found

    def loggable(self) -> str:
        """Return `GET /v1/kv/a?token=<hidden>`: one line without secrets or control characters."""
        path, mark, query = self.target.decode("latin-1").partition("?")
        shown = hidden(query, is_secret=lambda name: name.lower() == "token", shown="<hidden>")
        target = f"{path}{mark}{shown}"
        return f"{self.method} {target if target.isprintable() else ascii(target)}"


def _decode_path(raw: str) -> str:
    if raw.isascii() and "%" not in raw:
        return raw
    bad = _BAD_ESCAPE.search(raw)
    if bad is not None:
        raise Malformed(f'invalid URL escape "{bad.group()}" in the path')
    try:
        return unquote_to_bytes(raw.encode("latin-1")).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Malformed("the path is not UTF-8") from exc


def _takes_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() in ("gzip", "*"):
            quality = parameters.replace(" ", "")
            return not (quality.startswith("q=") and not quality[2:].strip("0."))
    return False


class Request:
    """One request as a handler sees it.

    `rest` is what follows a prefix route's prefix, decoded (`a/b` for `/v1/kv/a/b`). A handler that
    waits for something to happen sets `may_interrupt`, so that a stopping server need not wait.
    """

    __slots__ = (
        "arrived_s",
        "audit_id",
        "body",
        "head",
        "identity",
        "may_interrupt",
        "peer",
        "rest",
    )

    def __init__(self, head: Head, *, body: bytes, peer: Peer, arrived_s: float) -> None:
        self.head = head
        self.body = body
        self.peer = peer
        self.arrived_s = arrived_s
        """Monotonic seconds at which the request was complete."""
        self.rest = ""
        self.may_interrupt = False
        self.identity: Authentication | None = None
        """Who sends it, once a `Guard` has authenticated the request; None where nobody does."""
        self.audit_id = ""
        """Under which id the audit log has it; empty for what is not written there."""

    @property
    def method(self) -> str:
        """`GET`, `PUT` …, as sent."""
        return self.head.method

    @property
    def target(self) -> bytes:
        """The request target as it came, with query."""
        return self.head.target

    @property
    def path(self) -> str:
        """The decoded path. Raises Malformed."""
        return self.head.path

    @property
    def raw_path(self) -> str:
        """The path with its escapes."""
        return self.head.raw_path

    @property
    def query(self) -> Query:
        """The query string."""
        return self.head.query

    @property
    def headers(self) -> Headers:
        """The header fields."""
        return self.head.headers


class Response(msgspec.Struct, frozen=True):
    """An answer: a whole body, or a stream of chunks.

    `headers` are added after `Content-Type`; Date, Content-Length, Transfer-Encoding, Connection,
    Vary and Content-Encoding are the server's. `stream` wins over `body`; it is closed when the
    client goes away, and an error in it breaks the connection, because the status is already sent.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    stream: AsyncIterator[bytes] | None = None
    vary: bool = True
    """Send `Vary: Accept-Encoding` and compress when it pays."""
    close: bool = False
    """Close the connection after this answer."""


def text_response(status: int, text: str, *, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return `text` as `text/plain; charset=utf-8`, without a trailing newline."""
    return Response(
        status=status,
        body=text.encode("utf-8", "replace"),
        content_type="text/plain; charset=utf-8" if text else "",
        headers=headers,
    )


class Rendered:
    """A finished answer without a stream, shareable by any number of requests.

    `tail(gzip=…)` is everything after the Date header; the compressed form is made at the first need.
    Immutable apart from that, so a cache and many waiters can hold the same object.
    """

    __slots__ = ("_body_at", "_gzip", "_lines", "_plain", "close", "status")

    def __init__(self, response: Response) -> None:
        if response.stream is not None:
            raise ValueError("a stream cannot be rendered")
        self.status = response.status
        self.close = response.close
        self._lines = head_lines(response)
        self._plain = self._finish(response.body)
        self._body_at = len(self._plain) - len(response.body)
        pays = response.vary and len(response.body) > GZIP_MIN_BYTES
        self._gzip: bytes | None = None if pays else self._plain

    def tail(self, *, gzip: bool) -> bytes:
        """Return the headers after Date, the empty line and the body."""
        if not gzip:
            return self._plain
        tail = self._gzip
        if tail is None:
            packer = compressobj(_GZIP_LEVEL, wbits=MAX_WBITS | 16)
            packed = packer.compress(memoryview(self._plain)[self._body_at :]) + packer.flush()
            self._lines += "Content-Encoding: gzip\r\n"
            tail = self._finish(packed)
            self._gzip = tail
        return tail

    def head(self, *, gzip: bool) -> bytes:
        """Return what `tail` returns without the body, for HEAD."""
        tail = self.tail(gzip=gzip)
        return tail[: tail.index(b"\r\n\r\n") + 4]

    @property
    def size_bytes(self) -> int:
        """Memory held by the plain form."""
        return len(self._plain)

    @property
    def body(self) -> bytes:
        """The plain body."""
        return self._plain[self._body_at :]

    def with_header(self, name: str, value: str) -> Rendered:
        """Return a copy with one more header."""
        lines = [line.split(": ", 1) for line in self._lines.splitlines()]
        headers = [(key, text) for key, text in lines if key not in ("Vary", "Content-Encoding")]
        return Rendered(
            Response(
                status=self.status,
                body=self.body,
                headers=(*headers, (name, value)),
                vary=any(key == "Vary" for key, _ in lines),
                close=self.close,
            )
        )

    def _finish(self, body: bytes) -> bytes:
        lines = self._lines
        if self.status not in (204, 304):
            lines += f"Content-Length: {len(body)}\r\n"
        if self.close:
            lines += "Connection: close\r\n"
        return lines.encode("utf-8", "replace") + b"\r\n" + body


def head_lines(response: Response) -> str:
    """Return the answer's own header lines, each ended by CRLF. Raises ValueError for a line break."""
    lines = f"Content-Type: {response.content_type}\r\n" if response.content_type else ""
    for name, value in response.headers:
        lines += f"{name}: {value}\r\n"
    if response.vary:
        lines += "Vary: Accept-Encoding\r\n"
    count = len(response.headers) + bool(response.content_type) + response.vary
    if lines.count("\n") != count or lines.count("\r") != count:
        raise ValueError("a response header holds a line break")
    return lines


def status_line(status: int) -> str:
    """Return `HTTP/1.1 200 OK` with its CRLF."""
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"


Answer = Response | Rendered
Handler = Callable[[Request], Answer | Awaitable[Answer]]
"""Answers a request. A value is written at once; an awaitable gets a task of the connection, which is
cancelled when the client goes away. Errors of `waypost.base.errors` become answers, see `status`."""
Fast = Callable[[Head, Peer], Rendered | None]
"""Looked at before anything of a body-less request is parsed; None means: take the usual way."""
