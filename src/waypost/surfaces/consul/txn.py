"""/v1/txn. Source: Consul HTTP API, transactions."""

from __future__ import annotations

from typing import Any

import msgspec

from waypost.base.errors import Malformed, TooLarge
from waypost.domain.txn import MAX_OPERATIONS, Outcome, Result, is_read_only
from waypost.model.catalog import Check, Node, Service
from waypost.model.kv import KVEntry
from waypost.surfaces.consul.context import Context
from waypost.surfaces.http.message import Request, Response
from waypost.wire.consul import decode, encode


def too_large(size_bytes: int, max_bytes: int) -> str:
    """Return Consul's text for a transaction that is too large."""
    return (
        f"Request body({size_bytes} bytes) too large, max size: {max_bytes} bytes. "
        "See https://www.consul.io/docs/agent/options.html#txn_max_req_len."
    )


def _result(result: Result) -> dict[str, Any]:
    match result.record:
        case KVEntry() as entry:
            return {"KV": encode.kv_object(entry, with_value=result.shows_value)}
        case Node() as node:
            return {"Node": encode.node_object(node)}
        case Service() as service:
            return {"Service": encode.node_service_object(service, null_tags=True)}
        case Check() as check:
            return {"Check": encode.check_object(check, null_tags=True)}


class FailureObject(msgspec.Struct, frozen=True):
    """Why one operation cannot be."""

    OpIndex: int
    What: str


class TxnObject(msgspec.Struct, frozen=True):
    """An answer: results or errors."""

    Results: list[dict[str, Any]] | None
    Errors: list[FailureObject] | None


class ReadTxnObject(TxnObject, frozen=True):
    """The same of a transaction that only reads."""

    Index: int = 0
    LastContact: int = 0
    KnownLeader: bool = True
    ConsistencyLevel: str = ""


class TxnRoutes:
    """Handler of /v1/txn."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def apply(self, request: Request) -> Response:
        """PUT txn."""
        try:
            operations = decode.transaction(request.body, strict=self._context.settings.strict_json)
        except Malformed as error:
            msg = f"Failed to parse body: {error}"
            raise Malformed(msg) from error
        if len(operations) > MAX_OPERATIONS:
            msg = f"Transaction contains too many operations ({len(operations)} > {MAX_OPERATIONS})"
            raise TooLarge(msg)
        self._context.require_datacenter(request)
        actor = self._context.actor(request)
        outcome = await self._context.domain.transactions.apply(actor, operations)
        return self._respond(request, outcome, reads=is_read_only(operations))

    def _respond(self, request: Request, outcome: Outcome, *, reads: bool) -> Response:
        failures = [FailureObject(f.position, f.text) for f in outcome.failures]
        results = None if failures else [_result(result) for result in outcome.results]
        shape = ReadTxnObject if reads else TxnObject
        headers = self._context.reader.meta(0)[1:] if reads else ()
        return self._context.json(
            request,
            shape(results, failures or None),
            status=409 if failures else 200,
            headers=headers,
        )
