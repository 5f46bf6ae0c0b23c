"""How machines call each other: HTTPS with the certificate that proves most, errors carried as what they are.

Two ways. Among members, every call is verified both ways against the cluster's authorities (`PeerClient.call`). A machine
without an authority makes *first contact*: nothing is verified by the handshake, so the answer comes with the server's
certificate, and the caller looks at its fingerprint. With a shared key (`-encrypt`) the messages of first contact carry a
MAC over both machines' fingerprints, so that nobody in between can take part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.base import errors
from waypost.cluster.messages import CONTENT_TYPE
from waypost.cluster.settings import split_address
from waypost.cluster.trust import Trust, check_mac, fingerprint_of, mac, server_name

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

ERROR_FIELD: Final = "X-Waypost-Error"
"""Header of an answer that is an error: its code in `base.errors`; the body is the text."""
MAC_FIELD: Final = "X-Waypost-Mac"
CALL_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 16 << 20
_MAX_HEAD_BYTES: Final = 65536
_CHUNK_BYTES: Final = 65536


class OtherAuthority(errors.Unauthenticated):
    """The machine shows a certificate of another authority than this cluster's."""

    code = "other_authority"


class FirstAnswer(msgspec.Struct, frozen=True):
    """What a machine that is not verified said, and what it showed."""

    body: bytes
    certificate_der: bytes
    fingerprint: str


def request_parts(path: str, *, client: str, server: str, body: bytes) -> tuple[bytes, ...]:
    """Return what the MAC of a request is over; `client` and `server` are fingerprints."""
    return (b"request", path.encode(), client.encode(), server.encode(), body)


def answer_parts(request_mac: str, body: bytes) -> tuple[bytes, ...]:
    """Return what the MAC of an answer is over."""
    return (b"answer", request_mac.encode(), body)


def raise_error(status: int, code: str, text: str, *, who: str) -> None:
    """Raise the error that an answer carries, if it does."""
    if status < 300:
        return
    kind = errors.BY_CODE.get(code, errors.Unavailable)
    raise kind(text or f"{who} answered {status}")


def import_http_client() -> None:
    """Import aiohttp, which takes half a second, while nobody waits for an answer yet."""
    import aiohttp

    del aiohttp


class PeerClient:
    """Calls other machines of the cluster. Safe for any number of calls at once; `close` at the end."""

    def __init__(self, trust: Trust, *, datacenter: str, secret: bytes | None = None) -> None:
        self._trust = trust
        self._server_name = server_name(datacenter)
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None
        self._first: ssl.SSLContext | None = None

    async def call(
        self, address: str, path: str, message: bytes, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> bytes:
        """POST `message` to a server of the cluster (`HOST:PORT`) and return the answer's body.

        Raises what the server raised, OtherAuthority for a server of another cluster, Unavailable (also when the
        outcome is not known: callers' messages are idempotent).
        """
        async with self.stream(address, path, message, timeout_s=timeout_s) as chunks:
            body = bytearray()
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise errors.TooLarge(
                        f"{address}: an answer of more than {MAX_ANSWER_BYTES} bytes"
                    )
            return bytes(body)

    @asynccontextmanager
    async def stream(
        self,
        address: str,
        path: str,
        message: bytes | AsyncIterator[bytes],
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """POST `message`; the body of the answer comes in pieces as the server sends them. Raises as `call`.

        `timeout_s` is for the whole call; None waits for ever once connected (a stream that may be silent needs a
        watchdog of its own).
        """
        import aiohttp
        from yarl import URL

        session = self._open_session()
        try:
            async with session.post(
                URL(f"https://{address}{path}", encoded=True),
                data=message,
                headers={"Content-Type": CONTENT_TYPE, **(headers or {})},
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CALL_TIMEOUT_S),
                server_hostname=self._server_name,
                allow_redirects=False,
            ) as answer:
                if answer.status >= 300:
                    text = (await answer.content.read(_CHUNK_BYTES)).decode("utf-8", "replace")
                    raise_error(
                        answer.status, answer.headers.get(ERROR_FIELD, ""), text, who=address
                    )
                yield answer.content.iter_any()
        except aiohttp.ClientConnectorCertificateError as exc:
            raise OtherAuthority(
                f"{address} does not show a certificate of this cluster: {exc.certificate_error}"
            ) from exc
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise errors.Unavailable(f"{address}: {_reason(exc)}") from exc

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._trust.members_only(), limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    async def first_contact(
        self,
        address: str,
        path: str,
        message: bytes,
        *,
        fingerprint: str = "",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> FirstAnswer:
        """POST `message` to a machine that cannot be verified; nothing is sent unless it has the `fingerprint`, if given.

        Raises what the machine raised, Unauthenticated for another fingerprint or MAC, Unavailable.
        """
        if self._first is None:
            self._first = self._trust.first_contact()
        host, port = split_address(address, port=0)
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._first, server_hostname=self._server_name
                )
                try:
                    return await self._exchange(
                        reader, writer, address, path, message, fingerprint=fingerprint
                    )
                finally:
                    writer.close()
                    with contextlib.suppress(OSError, ssl.SSLError):
                        await writer.wait_closed()
        except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError) as exc:
            raise errors.Unavailable(f"{address}: {_reason(exc)}") from exc
        except (ValueError, asyncio.LimitOverrunError) as exc:
            raise errors.Unavailable(f"{address}: not an answer of HTTP") from exc

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: str,
        path: str,
        message: bytes,
        *,
        fingerprint: str,
    ) -> FirstAnswer:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        shown = fingerprint_of(der) if der else ""
        if fingerprint and shown != fingerprint:
            raise errors.Unauthenticated(
                f"{address} is not the machine it was before (its key is {shown})"
            )
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {address}",
            f"Content-Type: {CONTENT_TYPE}",
            f"Content-Length: {len(message)}",
            "Connection: close",
        ]
        request_mac = ""
        if self._secret is not None:
            parts = request_parts(path, client=self._trust.fingerprint, server=shown, body=message)
            request_mac = mac(self._secret, parts)
            lines.append(f"{MAC_FIELD}: {request_mac}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + message)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        size = int(fields.get("content-length", "0"))
        if size > MAX_ANSWER_BYTES:
            raise errors.TooLarge(f"{address}: an answer of {size} bytes")
        body = await reader.readexactly(size)
        if status >= 300:
            code = fields.get(ERROR_FIELD.lower(), "")
            raise_error(status, code, body.decode("utf-8", "replace"), who=address)
        if self._secret is not None:
            check_mac(
                self._secret,
                answer_parts(request_mac, body),
                fields.get(MAC_FIELD.lower(), ""),
                who=address,
            )
        return FirstAnswer(body, der or b"", shown)

    async def renewed(self) -> None:
        """Use the certificates that are on disk now."""
        self._first = None
        session, self._session = self._session, None
        if session is not None:
            # Calls under way fail and are made again by who made them.
            await session.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.renewed()


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {(exc.reason or str(exc)).lower().replace('_', ' ')}"
    cause = getattr(exc, "os_error", None)
    if isinstance(cause, OSError):
        exc = cause
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return " ".join(str(exc).split()) or type(exc).__name__
