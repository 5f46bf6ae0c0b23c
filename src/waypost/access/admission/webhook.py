"""Asks webhooks over HTTPS: certificates always verified, answers and connections bounded, every call timed."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from waypost.access.admission.configuration import ServiceReference, Webhook
from waypost.base.errors import Unavailable

if TYPE_CHECKING:
    import aiohttp

MAX_ANSWER_BYTES: Final = 3 * 2**20
_MAX_CONNECTIONS: Final = 64
_MAX_PER_HOST: Final = 16
_MAX_CONTEXTS: Final = 64
_SHOWN_BYTES: Final = 256

Address = tuple[str, int]
"""IP address or host name, and port; port 0 = the reference's."""
Resolve = Callable[[ServiceReference], Sequence[Address]]
"""Returns where the healthy instances of a service are."""


class Caller(Protocol):
    """Carries a question to a webhook."""

    async def call(self, webhook: Webhook, body: bytes) -> bytes:
        """Return what it answers. Raises Unavailable why not."""
        ...


class WebhookClient:
    """Asks over HTTPS and keeps connections. Belongs to one event loop; `close` at the end.

    At most 64 connections, 16 to one host; what is over waits within the webhook's own timeout. The TLS contexts of
    64 certificate bundles are kept; overflow: the one used longest ago goes.
    """

    def __init__(self, resolve: Resolve, *, rng: random.Random) -> None:
        self._resolve = resolve
        self._rng = rng
        self._session: aiohttp.ClientSession | None = None
        self._contexts: OrderedDict[bytes, ssl.SSLContext] = OrderedDict()

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, webhook: Webhook, body: bytes) -> bytes:
        """Return what a webhook answers. Raises Unavailable why not."""
        import aiohttp

        if webhook.problem:
            raise Unavailable(webhook.problem)
        url, host = self._target(webhook)
        where = f'Post "{url}?timeout={webhook.timeout_s:g}s"'
        try:
            async with asyncio.timeout(webhook.timeout_s):
                status, answer = await self._post(webhook, url, host, body)
        except TimeoutError as exc:
            raise Unavailable(f"{where}: context deadline exceeded") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise Unavailable(f"{where}: {_reason(exc)}") from exc
        if status != 200:
            shown = answer[:_SHOWN_BYTES].decode("utf-8", "replace").strip()
            raise Unavailable(
                f"{where}: the webhook answered {status}{': ' if shown else ''}{shown}"
            )
        return answer

    async def _post(
        self, webhook: Webhook, url: str, host: str | None, body: bytes
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if host is not None:
            headers["Host"] = host
        async with self._opened().post(
            url,
            params={"timeout": f"{webhook.timeout_s:g}s"},
            data=body,
            headers=headers,
            ssl=self._context(webhook.ca_pem),
            server_hostname=host,
            allow_redirects=False,
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ValueError(f"the webhook answered more than {MAX_ANSWER_BYTES} bytes")
            return response.status, bytes(answer)

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=_MAX_CONNECTIONS, limit_per_host=_MAX_PER_HOST
                ),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a small answer must not become a giant one
            )
        return self._session

    def _target(self, webhook: Webhook) -> tuple[str, str | None]:
        """Return the URL to ask, and the name its certificate must be for if that is not the URL's."""
        service = webhook.service
        if service is None:
            return webhook.url, None
        found = self._resolve(service)
        if not found:
            raise Unavailable(f"service {service.name!r} has no healthy instance")
        address, port = self._rng.choice(found)
        if ":" in address:
            address = f"[{address}]"
        path = quote("/" + service.path.lstrip("/"), safe="/:@!$&'()*+,;=~-._%")
        return f"https://{address}:{port or service.port}{path}", service.host

    def _context(self, ca_pem: bytes) -> ssl.SSLContext:
        key = hashlib.sha256(ca_pem).digest()
        found = self._contexts.get(key)
        if found is not None:
            self._contexts.move_to_end(key)
            return found
        try:
            context = ssl.create_default_context(cadata=ca_pem.decode() if ca_pem else None)
        except (ssl.SSLError, UnicodeDecodeError) as exc:
            raise ValueError(f"caBundle: unable to load root certificates: {exc}") from exc
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._contexts[key] = context
        while len(self._contexts) > _MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        return context


def _reason(exc: Exception) -> str:
    import aiohttp

    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"tls: failed to verify certificate: {exc.certificate_error}"
    return str(exc) or type(exc).__name__
