"""A call to the API as a value: what to ask and how to read the answer, without any I/O.

`api` makes calls, `transport.Client` and `transport.AsyncClient` carry them out, so both share every rule.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from urllib.parse import quote, quote_plus

import msgspec

from waypost.client.errors import UnexpectedResponse, UnreadableResponse
from waypost.client.settings import ClientSettings

T = TypeVar("T")

_PATH_SAFE = "/$&+,:;=@~"
"""Go's `url.URL.EscapedPath` leaves these in a path as they are; error texts show the URL."""


class Response(msgspec.Struct, frozen=True):
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def index(self) -> int:
        """Return `X-Consul-Index`, 0 if there is none."""
        text = self.headers.get("x-consul-index", "")
        return int(text) if text.isascii() and text.isdigit() else 0


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request. `path` is unescaped; `decode` is called for the statuses in `expect` only."""

    method: str
    path: str
    decode: Callable[[Response], T]
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    expect: tuple[int, ...] = (200,)
    in_datacenter: bool = True
    """Whether the settings' datacenter and consistency go with it; calls of the agent itself have neither."""

    def read(self, response: Response) -> T:
        """Return the result. Raises UnexpectedResponse, UnreadableResponse."""
        if response.status not in self.expect:
            text = response.body.decode("utf-8", "replace")
            raise UnexpectedResponse(status=response.status, body=text)
        return self.decode(response)


def target(
    call: Call[Any], settings: ClientSettings, *, index: int = 0, wait_s: float = 0.0
) -> str:
    """Return the request target: escaped path and query, parameters in the order of their names (as Go's)."""
    query = list(call.query)
    if call.in_datacenter:
        if settings.datacenter:
            query.append(("dc", settings.datacenter))
        if settings.stale and call.method == "GET":
            query.append(("stale", ""))
    if index:
        query.append(("index", str(index)))
        if wait_s:
            query.append(("wait", f"{int(wait_s * 1000)}ms"))
    query.sort(key=lambda pair: pair[0])
    text = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in query)
    path = quote(call.path, safe=_PATH_SAFE)
    return f"{path}?{text}" if text else path


def url(target: str, settings: ClientSettings) -> str:
    """Return the URL as error texts show it."""
    return f"{settings.scheme}://{settings.authority}{target}"


def headers(call: Call[Any], settings: ClientSettings) -> dict[str, str]:
    """Return the request's own headers: credentials and the body's type."""
    out = {"User-Agent": "waypost"}
    if settings.token:
        out["X-Consul-Token"] = settings.token
    if settings.basic_auth is not None:
        pair = ":".join(settings.basic_auth).encode()
        out["Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
    if call.body is not None:
        out["Content-Type"] = "application/json"
    return out


def json_of(kind: type[T]) -> Callable[[Response], T]:
    """Return a decoder of a JSON body; `null` reads as an empty list or object."""

    def decode(response: Response) -> T:
        body = response.body
        if body.strip() == b"null":
            body = b"[]" if str(kind).startswith("list") else b"{}"
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as exc:
            raise UnreadableResponse(f"the agent's answer cannot be read: {exc}") from exc

    return decode


def nothing(_response: Response) -> None:
    """Decode an answer whose body says nothing."""
    return
