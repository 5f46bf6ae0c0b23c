"""/v1/kv. Source: Consul HTTP API, KV store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final
from urllib.parse import quote_plus

from waypost.access.gate import Attributes
from waypost.base.errors import Malformed, Rejected
from waypost.domain.kv import PutKey
from waypost.domain.session import require_uuid
from waypost.model.kv import KVEntry
from waypost.surfaces.consul.context import Context
from waypost.surfaces.consul.reading import MISSING, Body, Question, parse_unsigned
from waypost.surfaces.http.message import Answer, Query, Request, Response
from waypost.wire.consul import encode

_RAW_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "sandbox"),
)


def too_large(size_bytes: int, max_bytes: int) -> str:
    """Return Consul's text for a value that is too large."""
    return (
        f"Request body({size_bytes} bytes) too large, max size: {max_bytes} bytes. "
        "See https://www.consul.io/docs/agent/options.html#kv_max_value_size."
    )


def list_keys(entries: Sequence[KVEntry], *, prefix: str, separator: str) -> list[str]:
    """Return the keys; with a separator only up to its first place behind the prefix, each once."""
    if not separator:
        return [entry.key for entry in entries]
    found: dict[str, None] = {}
    for entry in entries:
        at = entry.key.find(separator, len(prefix))
        found[entry.key if at < 0 else entry.key[: at + len(separator)]] = None
    return list(found)


def _require_single(query: Query, *flags: str) -> None:
    """Refuse two of `flags` at once, naming the whole query in Go's order and spelling."""
    if sum(flag in query for flag in flags) < 2:
        return
    names = sorted({name for name, _ in query.pairs})
    pairs = [(name, value) for name in names for value in query.all(name)]
    shown = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in pairs)
    msg = f"Conflicting flags: {shown}"
    raise Malformed(msg)


def _number(query: Query, name: str) -> int | None:
    """Return a number of the query; a bad one is a 500 in Consul. Raises Rejected."""
    if name not in query:
        return None
    try:
        return parse_unsigned(query.get(name))
    except Malformed as error:
        raise Rejected(str(error)) from None


class KVRoutes:
    """Handlers of /v1/kv."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kv = context.domain.kv

    def get(self, request: Request) -> Answer | Awaitable[Answer]:
        """GET KEY, ?recurse, ?keys, ?raw."""
        key, query = request.rest, request.query
        actor = self._context.actor(request)
        question: Question[Any]
        if "keys" in query:
            question = self._keys(key, query)
        elif "recurse" in query:
            question = Question(
                topics=(("prefix", key),),
                read=lambda actor: self._kv.below(actor, key),
                encode=lambda found: [encode.kv_object(e) for e in found] if found else MISSING,
                asked=Attributes("list", path="/v1/kv/" + key),
                shows_consistency=False,
                meta_on_error=False,
            )
        elif not key:
            msg = "Missing key name"
            raise Malformed(msg)
        else:
            question = Question(
                topics=(("kv", key),),
                read=lambda actor: self._kv.get(actor, key),
                encode=_raw if "raw" in query else _entry,
                asked=Attributes("get", path="/v1/kv/" + key),
                shows_consistency=False,
                meta_on_error=False,
            )
        return self._context.reader.answer(request, actor, question)

    def _keys(self, prefix: str, query: Query) -> Question[Any]:
        # The second spelling is an old mistake of Consul that clients still send.
        separator = query.get("separator") or query.get("seperator")

        def shape(found: Sequence[KVEntry]) -> list[str] | Body:
            keys = list_keys(found, prefix=prefix, separator=separator)
            return keys if keys or not prefix else MISSING

        return Question(
            topics=(("prefix", prefix),),
            read=lambda actor: self._kv.below(actor, prefix),
            encode=shape,
            asked=Attributes("list", path="/v1/kv/" + prefix),
            shows_consistency=False,
            meta_on_error=False,
        )

    async def put(self, request: Request) -> Response:
        """PUT KEY."""
        key, query = request.rest, request.query
        if not key:
            msg = "Missing key name"
            raise Malformed(msg)
        _require_single(query, "cas", "acquire", "release")
        flags = _number(query, "flags")
        cas = _number(query, "cas")
        acquire, release = query.get("acquire"), query.get("release")
        self._context.require_datacenter(request)
        if ("acquire" in query and not acquire) or ("release" in query and not release):
            msg = "missing session"
            raise Rejected(msg)
        if acquire:
            require_uuid(acquire)
        command = PutKey(
            key=key,
            value=request.body,
            flags=flags or 0,
            cas=cas,
            acquire=acquire,
            release=release,
        )
        done = await self._kv.put(self._context.actor(request), command)
        return self._context.json(request, done)

    async def delete(self, request: Request) -> Response:
        """DELETE KEY, ?recurse."""
        key, query = request.rest, request.query
        recurse = "recurse" in query
        if not key and not recurse:
            msg = "Missing key name"
            raise Malformed(msg)
        _require_single(query, "recurse", "cas")
        cas = _number(query, "cas")
        self._context.require_datacenter(request)
        actor = self._context.actor(request)
        if recurse:
            done = await self._kv.delete_below(actor, key)
        else:
            done = await self._kv.delete(actor, key, cas=cas)
        return self._context.json(request, done)


def _entry(entry: KVEntry | None) -> list[encode.KVObject] | Body:
    return MISSING if entry is None else [encode.kv_object(entry)]


def _raw(entry: KVEntry | None) -> Body:
    if entry is None:
        return MISSING
    return Body(data=entry.value, content_type="text/plain", headers=_RAW_HEADERS)
