"""TLS whose server asks for a client certificate, takes any, and leaves the judgement to others.

Python's `ssl` breaks the handshake off when a client certificate is expired or of an unknown issuer, and the
client sees only a reset. Here the handshake succeeds, the certificate goes into `Peer`, and whoever
authenticates can answer 401 with the reason. That the client holds the certificate's key is proved by
the handshake itself (RFC 8446 section 4.4.3); nothing else is: **the certificate is not verified here**.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from waypost.base.errors import Malformed
from waypost.base.later import later

if TYPE_CHECKING:
    from OpenSSL import SSL, crypto
else:
    SSL = later("OpenSSL.SSL")
    crypto = later("OpenSSL.crypto")

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""A client that has not finished the handshake by then is dropped."""

_READ_BYTES = 65536
_WRITE_BYTES = 262144
_RECORD_HEADER_BYTES = 5


class OpenTls(msgspec.Struct, frozen=True, kw_only=True):
    """The server's own certificate (PEM, leaf first) and key, and whether clients are asked for theirs.

    The files are read when the endpoint is opened; a bad pair is Malformed with the reason. To exchange them while the
    endpoint is open, give it a `TlsEndpoint`.
    """

    certificate_file: str
    key_file: str
    ask_client: bool = True


def make_context(settings: OpenTls) -> SSL.Context:
    """Return a context for TLS 1.2 and later. Raises Malformed when the files do not fit."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # Resumed sessions would skip the client's certificates; connections are kept alive anyway.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_alpn_select_callback(_choose_protocol)
    for path in (settings.certificate_file, settings.key_file):
        if not Path(path).is_file():
            raise Malformed(f"TLS: {path}: no such file")
    try:
        context.use_certificate_chain_file(settings.certificate_file)
        context.use_privatekey_file(settings.key_file)
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as exc:
        names = f"{settings.certificate_file} and {settings.key_file}"
        raise Malformed(f"TLS: {names}: {_reason(exc)}") from exc
    if settings.ask_client:
        context.set_verify(SSL.VERIFY_PEER, _take_any)
    return context


class TlsEndpoint:
    """The certificate of one or more endpoints, which can be exchanged while they are open.

        tls = TlsEndpoint(OpenTls(certificate_file=…, key_file=…))
        Server(app, [TcpEndpoint("0.0.0.0", 8501, "https", tls), …])
        tls.replace(OpenTls(…))                     # from now on, new handshakes get this one

    Neither listeners nor open connections notice: a connection keeps the certificate of its handshake.
    """

    def __init__(self, settings: OpenTls) -> None:
        self._settings = settings
        self._context: SSL.Context | None = None

    @property
    def context(self) -> SSL.Context:
        """What the next handshake uses; files are read at the first need. Raises Malformed."""
        if self._context is None:
            self._context = make_context(self._settings)
        return self._context

    @property
    def is_open(self) -> bool:
        """Whether somebody listens with it, so that its files were read."""
        return self._context is not None

    def replace(self, settings: OpenTls) -> None:
        """Read the files and use them from now on. Raises Malformed; then nothing changes."""
        self.use(make_context(settings))

    def use(self, context: SSL.Context) -> None:
        """Use what `make_context` returned: for those who change several things, all or none."""
        self._context = context


def _take_any(*_: object) -> bool:
    return True


def _choose_protocol(_: SSL.Connection, offered: list[bytes]) -> Any:
    # The class of the second value has no public name.
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _reason(exc: Exception) -> str:
    try:
        return str(exc.args[0][-1][-1])
    except (IndexError, TypeError):
        return str(exc) or type(exc).__name__


class Handshakes:
    """The connections of an endpoint whose handshake is not done, which the server does not count yet.

    Bounds: `per_address` and `total`; a connection above is dropped, since nothing can be told to it.
    """

    def __init__(self, *, per_address: int = 100, total: int = 2000) -> None:
        self._running: dict[TlsProtocol, str] = {}
        self._counts: Counter[str] = Counter()
        self._per_address = per_address
        self._total = total

    def begin(self, protocol: TlsProtocol, *, address: str) -> bool:
        """Count a connection; return False when it is one too many."""
        if len(self._running) >= self._total or self._counts[address] >= self._per_address:
            return False
        self._running[protocol] = address
        self._counts[address] += 1
        return True

    def end(self, protocol: TlsProtocol) -> None:
        """Uncount a connection, if it was counted."""
        address = self._running.pop(protocol, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def abort(self) -> None:
        """Drop all of them."""
        for protocol in tuple(self._running):
            protocol.raw.abort()


class TlsTransport(asyncio.Transport):
    """What the inner protocol writes to."""

    def __init__(self, protocol: TlsProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        self._protocol.send(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Encrypt and send."""
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        """TLS ends both directions together."""
        return False

    def is_closing(self) -> bool:
        """Return whether nothing more can be sent."""
        return self._protocol.raw.is_closing()

    def close(self) -> None:
        """Say goodbye, send what is left, close."""
        self._protocol.say_goodbye()
        self._protocol.raw.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._protocol.raw.abort()

    def pause_reading(self) -> None:
        """Read no more from the socket; what is decrypted already still arrives."""
        self._protocol.raw.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._protocol.raw.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `client_certificates` (DER, leaf first), or what the socket's transport knows."""
        if name == "client_certificates":
            return self._protocol.client_certificates()
        return self._protocol.raw.get_extra_info(name, default)


class TlsProtocol(asyncio.Protocol):
    """Decrypts for `inner`, which sees a connection once the handshake is done."""

    def __init__(
        self,
        context: SSL.Context,
        *,
        inner: asyncio.Protocol,
        handshakes: Handshakes,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.raw = cast("asyncio.Transport", None)
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()
        self._inner = inner
        self._handshakes = handshakes
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False
        self._is_aligned = True
        """Every read so far ended where a record ended, so that nothing is left undecrypted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake's clock."""
        self.raw = cast("asyncio.Transport", transport)
        address = str((self.raw.get_extra_info("peername") or ("",))[0])
        if self._handshakes.begin(self, address=address):
            self._timer = self._loop.call_later(HANDSHAKE_S, self.raw.abort)
        else:
            log.debug("TLS: too many unfinished handshakes, dropping one of %s", address)
            self.raw.abort()

    def data_received(self, data: bytes) -> None:
        """Go on with the handshake, or decrypt."""
        self._connection.bio_write(data)
        self._is_aligned = self._is_aligned and _ends_with_a_record(data)
        if self._is_open or self._shake_hands():
            self._receive(is_single=self._is_aligned and _record_end(data, 0) == len(data))

    def eof_received(self) -> bool:
        """End with the client."""
        return False

    def pause_writing(self) -> None:
        """Pass the back-pressure on."""
        if self._is_open:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass the relief on."""
        if self._is_open:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the inner protocol, if it ever knew of the connection."""
        self._end_handshake()
        if self._is_open:
            self._is_open = False
            self._inner.connection_lost(exc)

    def send(self, data: bytes) -> None:
        """Encrypt `data` and hand it to the socket."""
        if not data or self.raw.is_closing():
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._connection.send(rest) :]
        except SSL.Error as exc:  # the peer broke the session off
            log.debug("TLS: sending failed: %s", _reason(exc))
            self.raw.abort()
            return
        self._flush()

    def say_goodbye(self) -> None:
        """Send close_notify."""
        if self.raw.is_closing():
            return
        try:
            self._connection.shutdown()
        except SSL.Error as exc:
            log.debug("TLS: closing failed: %s", _reason(exc))
        self._flush()

    def client_certificates(self) -> tuple[bytes, ...]:
        """Return the client's certificates in DER, leaf first."""
        leaf = self._connection.get_peer_certificate()
        if leaf is None:
            return ()
        found = [_der(leaf)]
        for certificate in self._connection.get_peer_cert_chain() or ():
            der = _der(certificate)
            if der not in found:
                found.append(der)
        return tuple(found)

    def _shake_hands(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error as exc:
            address = self.raw.get_extra_info("peername")
            log.debug("TLS handshake with %s failed: %s", address, _reason(exc))
            self._flush()  # the alert tells the client why
            self.raw.close()
            return False
        self._end_handshake()
        self._flush()
        self._is_open = True
        self._inner.connection_made(TlsTransport(self))
        return True

    def _end_handshake(self) -> None:
        self._handshakes.end(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _receive(self, *, is_single: bool) -> None:
        """Decrypt what is there; for a single whole record without trying, in vain, for a second."""
        while not self.raw.is_closing():
            try:
                data = self._connection.recv(_READ_BYTES)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self.raw.close()
                break
            except SSL.Error as exc:
                log.debug("TLS: receiving failed: %s", _reason(exc))
                self._flush()
                self.raw.close()
                break
            self._inner.data_received(data)
            if is_single:
                break

    def _flush(self) -> None:
        size = _WRITE_BYTES
        while size == _WRITE_BYTES and not self.raw.is_closing():
            try:
                data = self._connection.bio_read(_WRITE_BYTES)
            except SSL.WantReadError:
                break
            size = len(data)
            self.raw.write(data)


def _record_end(data: bytes, start: int) -> int:
    """Return where the record at `start` ends (RFC 8446 section 5.1), perhaps behind `data`."""
    length = int.from_bytes(data[start + 3 : start + _RECORD_HEADER_BYTES], "big")
    return start + _RECORD_HEADER_BYTES + length


def _ends_with_a_record(data: bytes) -> bool:
    at = 0
    while at < len(data):
        at = _record_end(data, at)
    return at == len(data)


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
