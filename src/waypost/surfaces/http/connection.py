"""One HTTP/1.1 connection: bytes in, requests one after the other, bytes out in the same order.

A request whose handler answers at once is answered within `data_received`; otherwise the connection
owns one task. Requests that arrive meanwhile, or while the client takes no answers, wait in a queue
(bound: what is read in one go plus `PIPELINE_MAX`; beyond that reading pauses). Sources: RFC 9110, 9112.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

import httptools

from waypost.base.errors import WaypostError
from waypost.surfaces.http.endpoint import Endpoint
from waypost.surfaces.http.message import (
    Answer,
    Fast,
    Head,
    Headers,
    Peer,
    Rendered,
    Request,
    Response,
    head_lines,
    text_response,
)

if TYPE_CHECKING:
    from waypost.surfaces.http.server import Server

log = logging.getLogger(__name__)

PIPELINE_MAX: Final = 16
"""Waiting requests of one connection after which no more is read from it."""

HALF_CLOSE_GRACE_S: Final = 0.5
"""After the client's end of stream a running handler gets this long to answer.

A client that only shut down its sending side still reads; one that is gone looks the same.
"""


class Phase(Enum):
    """What is being read."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    LINGER = 3
    """Nothing more is understood; what comes is thrown away until the client closes."""


class Connection(asyncio.Protocol):
    """The protocol of one accepted connection; made by `Server`."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_completed",
        "_continue_due",
        "_drained",
        "_fed_bytes",
        "_half_closed",
        "_head",
        "_is_large",
        "_limit",
        "_loop",
        "_parser",
        "_queue",
        "_raw_headers",
        "_request",
        "_target",
        "_task",
        "_transport",
        "_writable",
        "endpoint",
        "peer",
        "phase",
        "server",
        "since_s",
        "stalled_s",
    )

    def __init__(
        self, server: Server, *, endpoint: Endpoint, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.server = server
        self.endpoint = endpoint
        self.phase = Phase.IDLE
        self.since_s = server.tick_s
        """The server's `tick_s` at the last step forward in reading or answering."""
        self.stalled_s: float | None = None
        """Its `tick_s` since when the client takes no more bytes."""
        self.peer = Peer(listener="")
        self._loop = loop
        self._transport = cast("asyncio.Transport", None)
        self._parser: httptools.HttpRequestParser | None = None
        self._queue: deque[Request | Response] | None = None
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._writable = True
        self._drained: asyncio.Future[None] | None = None
        self._half_closed = False
        self._is_large = False
        self._head: Head | None = None
        self._completed = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] | None = None
        self._body_bytes = 0
        self._fed_bytes = 0
        self._limit = 0
        self._continue_due = False

    # -- transport ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it with an answer."""
        self._transport = cast("asyncio.Transport", transport)
        if self.server.stopping:  # accepted by the kernel before the listener was closed
            self._transport.abort()
            return
        refusal = self.server.admit(self, self._transport)
        if refusal is not None:
            self._fail(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was running for the client."""
        self.server.forget(self)
        self.phase = Phase.LINGER
        self._queue = None
        self._body = None
        if self._task is not None:
            self._task.cancel()
        if self._is_large:
            self._is_large = False
            self.server.release_large()

    def eof_received(self) -> bool:
        """Let a running handler answer a client that may still read."""
        if self._task is None or self.peer.is_tls:
            return False
        self._half_closed = True
        self._loop.call_later(HALF_CLOSE_GRACE_S, self._transport.abort)
        return True

    def pause_writing(self) -> None:
        """The client is slow: streams wait."""
        self._writable = False
        self.stalled_s = self.server.tick_s

    def resume_writing(self) -> None:
        """The client caught up."""
        self._writable = True
        self.stalled_s = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._next()

    # -- reading -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Answer a known request at once; parse anything else."""
        phase = self.phase
        server = self.server
        if phase is not Phase.HEAD:  # the time for a head counts from its first byte
            self.since_s = server.tick_s
        if phase is Phase.IDLE and self._task is None and self._writable:
            head = server.memo.get(data)
            if head is not None:
                if server.fast is not None and self._answer_fast(head, server.fast):
                    return
                self._begin(Request(head, body=b"", peer=self.peer, arrived_s=server.clock.now()))
                return
        elif phase is Phase.LINGER:
            return
        self._feed(data)

    def _answer_fast(self, head: Head, fast: Fast) -> bool:
        try:
            ready = fast(head, self.peer)
        except Exception:
            log.exception("%s: the fast answer failed", head.loggable())
            return False
        if ready is None:
            return False
        self._transport.write(
            self.server.opening(ready.status) + ready.tail(gzip=head.accepts_gzip)
        )
        if ready.close:
            self._close()
        return True

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        was_idle = self.phase is Phase.IDLE
        self._completed = 0
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # such a request is answered as an ordinary one, and is the last of its connection
        except httptools.HttpParserError as exc:
            self._refuse_input(exc)
            return
        phase = self.phase
        if phase is Phase.IDLE:
            head = self._head
            if was_idle and self._completed == 1 and head is not None and _is_memorable(data, head):
                self.server.memo.put(data, head)
        elif phase is not Phase.LINGER:
            self._fed_bytes += len(data)
            self._check_progress()

    def _check_progress(self) -> None:
        limits = self.server.limits
        if self.phase is Phase.HEAD:
            if self._fed_bytes > limits.head_bytes:
                self._fail(_HEAD_TOO_LARGE)
        elif self._fed_bytes > limits.head_bytes + 8 * max(self._body_bytes, 1024):
            # chunk extensions and trailers, that no handler will ever see
            self._fail(_BAD_REQUEST)

    def _refuse_input(self, exc: Exception) -> None:
        if self.phase is Phase.LINGER:
            return
        if isinstance(exc, httptools.HttpParserCallbackError):  # a fault of ours
            log.error("reading a request from %s failed", self.peer.address, exc_info=exc)
            self._fail(_FAULT)
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("bad request from %s: %s", self.peer.address, exc)
        self._fail(_BAD_REQUEST)

    # -- what httptools calls ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request starts."""
        if self.phase is not Phase.LINGER:
            self._reset()
            self.phase = Phase.HEAD
            self.since_s = self.server.tick_s

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer."""
        if self.phase is Phase.HEAD:  # else a trailer
            self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check what the headers decide, before the body."""
        if self.phase is Phase.LINGER:
            return
        parser = self._parser
        assert parser is not None
        headers = Headers(self._raw_headers)
        size = len(self._target) + sum(len(n) + len(v) + 4 for n, v in headers.raw)
        head = Head(
            method=parser.get_method().decode("latin-1"),
            target=self._target,
            headers=headers,
            keep_alive=parser.should_keep_alive() and not parser.should_upgrade(),
            is_http_1_0=parser.get_http_version() == "1.0",
        )
        self._head = head
        self._fed_bytes = 0
        self.phase = Phase.BODY
        hosts = len(headers.all("host"))
        if size > self.server.limits.head_bytes:
            self._fail(_HEAD_TOO_LARGE)
        elif hosts != 1 and not (hosts == 0 and head.is_http_1_0):
            self._fail(_BAD_HOST if hosts else _NO_HOST)
        elif headers.get("transfer-encoding") is not None:
            self._expect_body(head, declared=None)
        elif (length := headers.get("content-length")) is not None and length.strip("0"):
            self._expect_body(head, declared=int(length))

    def _expect_body(self, head: Head, *, declared: int | None) -> None:
        limit = self.server.app.limit(head)
        self._limit = limit.max_bytes
        self._body = []
        if declared is not None and declared > limit.max_bytes:
            self._fail(_last(413, limit.too_large(declared, limit.max_bytes)))
        elif declared is not None and not self._has_room(declared):
            self._fail(_BUSY)
        elif (head.headers.get("expect") or "").lower() == "100-continue" and not head.is_http_1_0:
            if self._task is None:
                self._transport.write(_CONTINUE)
            else:
                self._continue_due = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self.phase is not Phase.BODY:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limit:
            assert self._head is not None
            limit = self.server.app.limit(self._head)
            self._fail(_last(413, limit.too_large(self._body_bytes, limit.max_bytes)))
        elif not self._has_room(self._body_bytes):
            self._fail(_BUSY)
        elif self._body is not None:
            self._body.append(body)

    def _has_room(self, size_bytes: int) -> bool:
        """Tell whether a body of this size may be held; from then on until everything is answered it counts as large."""
        if size_bytes > self.server.limits.large_body_bytes and not self._is_large:
            self._is_large = self.server.take_large()
            return self._is_large
        return True

    def _let_large_go(self) -> None:
        if (
            self._is_large
            and self._task is None
            and not self._queue
            and self.phase is not Phase.BODY
        ):
            self._is_large = False
            self.server.release_large()

    def on_message_complete(self) -> None:
        """The request is complete: answer it, or let it wait for its turn."""
        if self.phase is Phase.LINGER:
            return
        assert self._head is not None
        self._completed += 1
        body = b"".join(self._body) if self._body else b""
        self._body = None
        self.phase = Phase.IDLE
        server = self.server
        request = Request(self._head, body=body, peer=self.peer, arrived_s=server.clock.now())
        if self._task is None and self._writable:
            self._begin(request)
            self._let_large_go()
        else:
            self._enqueue(request)

    # -- answering ---------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        answer: Answer | Awaitable[Answer]
        try:
            answer = self.server.app.answer(request)
        except Exception as exc:  # noqa: BLE001 - the one place where a handler's failure ends
            answer = self._failure(request, exc)
        if type(answer) is Rendered or (type(answer) is Response and answer.stream is None):
            self._send(request, answer)
        else:
            self._request = request
            self._task = self._loop.create_task(self._run(request, answer))

    def _enqueue(self, item: Request | Response) -> None:
        queue = self._queue
        if queue is None:
            queue = self._queue = deque()
        queue.append(item)
        if len(queue) == PIPELINE_MAX:
            self._transport.pause_reading()

    def _next(self) -> None:
        queue = self._queue
        while queue and self._task is None and self._writable and not self._transport.is_closing():
            item = queue.popleft()
            if len(queue) == PIPELINE_MAX - 1:
                self._transport.resume_reading()
            if isinstance(item, Response):
                self._send_last(item)
            else:
                self._begin(item)
        if self._continue_due and self._task is None and not self._transport.is_closing():
            self._continue_due = False
            self._transport.write(_CONTINUE)
        self._let_large_go()

    async def _run(self, request: Request, pending: Answer | Awaitable[Answer]) -> None:
        try:
            if isinstance(pending, (Response, Rendered)):
                answer = pending
            else:
                answer = await pending
            if isinstance(answer, Response) and answer.stream is not None:
                request.may_interrupt = True
                await self._send_stream(request, answer)
            else:
                self._send(request, answer)
        except asyncio.CancelledError:
            if self.server.stopping and not self._transport.is_closing():
                self._send(request, self.server.interrupted(request))
            raise
        except Exception as exc:  # noqa: BLE001 - the one place where a handler's failure ends
            self._send(request, self._failure(request, exc))
        finally:
            self._task = self._request = None
            self.since_s = self.server.tick_s
        self._next()

    def _failure(self, request: Request, error: Exception) -> Response:
        if isinstance(error, WaypostError):
            try:
                return self.server.app.failed(request, error)
            except Exception as exc:  # noqa: BLE001 - told apart from the handler's failure below
                error = exc
        log.error("%s failed", request.head.loggable(), exc_info=error)
        return _INTERNAL

    def _send(self, request: Request, answer: Answer) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        head = request.head
        if type(answer) is Response:
            try:
                answer = Rendered(answer)
            except ValueError:
                log.exception("%s: the answer cannot be sent", head.loggable())
                answer = Rendered(_INTERNAL)
        assert isinstance(answer, Rendered)
        gzip = head.accepts_gzip
        tail = answer.head(gzip=gzip) if head.method == "HEAD" else answer.tail(gzip=gzip)
        keep = self._keeps(head) and not answer.close
        opening = self.server.opening(answer.status)
        if not keep and not answer.close:
            opening += b"Connection: close\r\n"
        elif keep and head.is_http_1_0:
            opening += b"Connection: keep-alive\r\n"
        if len(tail) > _JOIN_MAX_BYTES:
            transport.writelines((opening, tail))
        else:
            transport.write(opening + tail)
        if log.isEnabledFor(logging.DEBUG):
            self._log_answer(request, answer.status)
        if not keep:
            self._close()

    async def _send_stream(self, request: Request, response: Response) -> None:
        stream = response.stream
        assert stream is not None
        head = request.head
        transport = self._transport
        chunked = not head.is_http_1_0
        keep = chunked and self._keeps(head) and not response.close
        try:
            lines = head_lines(response)
            lines += "Transfer-Encoding: chunked\r\n" if chunked else ""
            lines += "" if keep else "Connection: close\r\n"
            transport.write(self.server.opening(response.status) + lines.encode() + b"\r\n")
            if head.method != "HEAD":
                await self._copy(request, stream, chunked=chunked)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        self._log_answer(request, response.status)
        if not keep:
            self._close()

    async def _copy(self, request: Request, stream: AsyncIterator[bytes], *, chunked: bool) -> None:
        transport = self._transport
        try:
            async for chunk in stream:
                if chunk:
                    transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                if not self._writable:
                    self._drained = self._loop.create_future()
                    await self._drained
        except asyncio.CancelledError:
            if self.server.stopping and not transport.is_closing():
                transport.write(b"0\r\n\r\n" if chunked else b"")
                transport.close()
            raise
        except Exception:
            if not transport.is_closing():
                log.exception("%s: the stream broke off", request.head.loggable())
                transport.abort()  # without the last chunk, so that the client sees it, too
            return
        if chunked:
            transport.write(b"0\r\n\r\n")

    def _keeps(self, head: Head) -> bool:
        is_last = self.server.stopping or (self._half_closed and not self._queue)
        return head.keep_alive and not is_last

    def _log_answer(self, request: Request, status: int) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "%s %s: %d in %.3f ms",
                self.peer.address or self.peer.listener,
                request.head.loggable(),
                status,
                (self.server.clock.now() - request.arrived_s) * 1e3,
            )

    # -- ending --------------------------------------------------------------------------------------

    def _fail(self, response: Response) -> None:
        """Answer input that cannot be understood or taken, after what is still owed, and close."""
        self.phase = Phase.LINGER
        self._body = None
        self._let_large_go()
        if self._task is None and not self._queue:
            self._send_last(response)
        else:
            self._enqueue(response)

    def _send_last(self, response: Response) -> None:
        self._transport.write(
            self.server.opening(response.status) + Rendered(response).tail(gzip=False)
        )
        self.phase = Phase.LINGER
        self.since_s = self.server.tick_s
        # Closing with unread input resets the connection, and the client may lose the answer.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _close(self) -> None:
        self.phase = Phase.LINGER
        if self._queue:
            self._queue.clear()
        self._transport.close()

    def sweep(self, now_s: float) -> None:
        """Enforce the time limits; called about once a second with the server's `tick_s`."""
        limits = self.server.limits
        age_s = now_s - self.since_s
        if self.stalled_s is not None and now_s - self.stalled_s > limits.write_s:
            log.info("%s takes no more bytes, closing", self.peer.address or self.peer.listener)
            self._transport.abort()
        elif self.phase is Phase.LINGER:
            if self._task is None and not self._queue and age_s > limits.linger_s:
                self._transport.abort()
        elif self.phase is Phase.HEAD:
            if age_s > limits.head_s:
                self._fail(_TIMEOUT)
        elif self.phase is Phase.BODY:
            if age_s > limits.body_s:
                self._fail(_TIMEOUT)
        elif self._task is None and age_s > limits.idle_s:
            self._transport.close()

    def stop(self, *, now: bool) -> asyncio.Task[None] | None:
        """Close when idle; cancel the handler when it may be interrupted or `now`; return what still runs."""
        task = self._task
        if task is None:
            self._close()
        elif now or (self._request is not None and self._request.may_interrupt):
            task.cancel()
        return task

    def abort(self) -> None:
        """Drop the connection without another byte."""
        self._transport.abort()


def _is_memorable(data: bytes, head: Head) -> bool:
    return (
        head.keep_alive
        and head.method in ("GET", "HEAD")
        and data.find(b"\r\n\r\n") == len(data) - 4
        and head.headers.get("content-length") is None
    )


def _last(status: int, text: str) -> Response:
    response = text_response(status, text)
    return Response(
        status=status,
        body=response.body,
        content_type=response.content_type,
        vary=False,
        close=True,
    )


_JOIN_MAX_BYTES: Final = 65536
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_REQUEST: Final = _last(400, "400 Bad Request")
_NO_HOST: Final = _last(400, "400 Bad Request: missing required Host header")
_BAD_HOST: Final = _last(400, "400 Bad Request: too many Host headers")
_HEAD_TOO_LARGE: Final = _last(431, "431 Request Header Fields Too Large")
_BUSY: Final = _last(503, "too many large requests at once, try again later")
_TIMEOUT: Final = _last(408, "408 Request Timeout")
_INTERNAL: Final = text_response(500, "internal error, see the agent's log")
_FAULT: Final = _last(500, "internal error, see the agent's log")
