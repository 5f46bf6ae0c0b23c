"""Client certificates for etcd, read again when their files change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import msgspec

from waypost.base.clock import Clock
from waypost.base.errors import Unavailable

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often the files are looked at: three stat calls."""


class EtcdTls(msgspec.Struct, frozen=True, kw_only=True):
    """Files, PEM: whom to trust as etcd (None: the system's authorities), and who we are (None: nobody)."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


Signature = tuple[tuple[int, int, int], ...]


class Credentials:
    """One TLS context. New connections use the files as they were at most LOOK_S ago; those that stand, stand.

    A CA that is taken out of the file stays trusted until the program ends; one that is added is trusted.
    """

    def __init__(self, tls: EtcdTls, clock: Clock) -> None:
        self._tls = tls
        self._clock = clock
        try:
            self._signature = self._sign()
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            msg = f"the certificates for etcd cannot be used: {self._names()}: {error}"
            raise Unavailable(msg) from error
        self._looked_at = clock.now()

    def refresh(self) -> None:
        """Read the files again if they have changed. Files that do not fit together are logged and left alone."""
        now = self._clock.now()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            signature = self._sign()
            if signature == self._signature:
                return
            self._load()  # into a context of its own first: a failure must not spoil the one in use
            if self._tls.ca_file is not None:
                self.context.load_verify_locations(self._tls.ca_file)
            self._show(self.context)
        except (OSError, ssl.SSLError) as error:
            log.warning("certificates for etcd not read again: %s: %s", self._names(), error)
            return
        self._signature = signature
        log.info("certificates for etcd read again: %s", self._names())

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(
            cafile=None if self._tls.ca_file is None else str(self._tls.ca_file)
        )
        self._show(context)
        return context

    def _show(self, context: ssl.SSLContext) -> None:
        if self._tls.certificate_file is not None:
            context.load_cert_chain(self._tls.certificate_file, self._tls.key_file)

    def _sign(self) -> Signature:
        stats = [path.stat() for path in self._files()]
        return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in stats)

    def _files(self) -> list[Path]:
        files = (self._tls.ca_file, self._tls.certificate_file, self._tls.key_file)
        return [path for path in files if path is not None]

    def _names(self) -> str:
        return ", ".join(map(str, self._files()))
