"""HTTPS calls of authenticators: a token webhook, the keys of an OIDC issuer."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.base.errors import Malformed, Unavailable

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 1 << 20
_RETRIES: Final = 5
_FIRST_DELAY_S: Final = 0.5
_FACTOR: Final = 1.5
_JITTER: Final = 0.2


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where to call and how to be believed there. `repr` shows no secret."""

    url: str
    ca_pem: bytes = b""
    """Authorities to trust; empty: the system's."""
    insecure: bool = False
    server_name: str = ""
    certificate_pem: bytes = b""
    key_pem: bytes = b""
    token: str = ""
    user: str = ""
    password: str = ""
    timeout_s: float = 30.0

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r})"


class HttpsCaller:
    """Calls one endpoint. The connection is kept until `close`; nothing is called after that. One event loop only."""

    def __init__(self, endpoint: Endpoint, *, rng: random.Random) -> None:
        if not endpoint.url.startswith(("https://", "http://")):
            raise Malformed(f"{endpoint.url!r} is no http or https URL")
        self._endpoint = endpoint
        self._rng = rng
        self._tls = tls_context(endpoint) if endpoint.url.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def get(self) -> bytes:
        """Return what the endpoint answers. Raises Unavailable."""
        return await self._call("GET", None)

    async def post(self, body: bytes) -> bytes:
        """Return the answer to a JSON body. Raises Unavailable after up to 5 attempts (429, 5xx, no connection)."""
        return await self._call("POST", body)

    async def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(self, method: str, body: bytes | None) -> bytes:
        delay_s = _FIRST_DELAY_S
        for attempt in range(1, _RETRIES + 1):
            try:
                return await self._once(method, body)
            except _Again as exc:
                if attempt == _RETRIES:
                    raise Unavailable(f"{self._endpoint.url}: {exc}") from exc
                log.warning("%s: %s; trying again in %.1fs", self._endpoint.url, exc, delay_s)
            await asyncio.sleep(delay_s * (1 + self._rng.random() * _JITTER))
            delay_s *= _FACTOR
        raise AssertionError("the loop returns or raises")

    async def _once(self, method: str, body: bytes | None) -> bytes:
        import aiohttp

        endpoint = self._endpoint
        if self._is_closed:
            raise Unavailable(f"{endpoint.url} is not called any more")
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if endpoint.token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        elif endpoint.user:
            headers["Authorization"] = aiohttp.BasicAuth(endpoint.user, endpoint.password).encode()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=endpoint.timeout_s), trust_env=False
            )
        try:
            async with self._session.request(
                method,
                endpoint.url,
                # How long an answer is waited for, as a kube-apiserver tells its webhooks.
                params=None if body is None else {"timeout": f"{endpoint.timeout_s:g}s"},
                data=body,
                headers=headers,
                ssl=self._tls if self._tls is not None else True,
                server_hostname=(endpoint.server_name or None) if self._tls else None,
                allow_redirects=False,
            ) as answer:
                content = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while len(content) <= MAX_ANSWER_BYTES and not answer.content.at_eof():
                    content += await answer.content.read(MAX_ANSWER_BYTES + 1 - len(content))
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _Again(str(exc) or type(exc).__name__) from exc
        if status == 429 or status >= 500:
            raise _Again(f"status {status}")
        if not 200 <= status < 300:
            raise Unavailable(f"{endpoint.url}: status {status}")
        if len(content) > MAX_ANSWER_BYTES:
            raise Unavailable(f"{endpoint.url}: the answer is larger than {MAX_ANSWER_BYTES} bytes")
        return content


class _Again(Exception):
    """A failure that may pass."""


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """Return the context for HTTPS to an endpoint. Raises Malformed for certificates that cannot be used."""
    try:
        context = ssl.create_default_context(
            cadata=endpoint.ca_pem.decode("ascii") if endpoint.ca_pem else None
        )
        if endpoint.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if endpoint.certificate_pem:
            # The standard library loads key pairs only from files; this one is gone at once.
            with tempfile.TemporaryDirectory(prefix="waypost-") as folder:
                pair = Path(folder) / "pair.pem"
                pair.touch(mode=0o600)
                pair.write_bytes(endpoint.certificate_pem + b"\n" + endpoint.key_pem)
                context.load_cert_chain(pair)
    except (ssl.SSLError, ValueError) as exc:
        raise Malformed(f"{endpoint.url}: certificate or key cannot be used: {exc}") from exc
    return context
