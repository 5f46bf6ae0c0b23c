"""Which of etcd's endpoints to ask next. Pure but for the clock that is passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from waypost.base.clock import Clock
from waypost.base.errors import Malformed

REST_S = 2.0
"""How long an endpoint that failed is left alone while another one can be asked."""


class Endpoints:
    """Base URLs in order of preference, the machine's own first. The list may change while it is in use."""

    def __init__(self, source: Sequence[str] | Callable[[], Sequence[str]], clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._failed_at: dict[str, float] = {}

    def all(self) -> tuple[str, ...]:
        """Return the URLs, without a slash at the end."""
        urls = self._source() if callable(self._source) else self._source
        return tuple(url.rstrip("/") for url in urls)

    def pick(self, *, but: str = "") -> str | None:
        """Return the first that does not rest, else the one that has rested longest; None when there is none at all.

        `but` is avoided when there is another choice.
        """
        urls = self.all()
        if len(urls) > 1:
            urls = tuple(url for url in urls if url != but)
        now = self._clock.now()
        for url in urls:
            if now - self._failed_at.get(url, -REST_S) >= REST_S:
                return url
        return min(urls, key=lambda url: self._failed_at[url], default=None)

    def rested(self) -> bool:
        """Return whether there is one that does not rest: asking again at once makes sense."""
        now = self._clock.now()
        return any(now - self._failed_at.get(url, -REST_S) >= REST_S for url in self.all())

    def failed(self, url: str) -> None:
        """Let an endpoint rest."""
        self._failed_at[url] = self._clock.now()

    def works(self, url: str) -> None:
        """Forget that it ever failed."""
        self._failed_at.pop(url, None)


def check_url(url: str) -> str:
    """Return an endpoint's URL. Raises Malformed."""
    scheme, separator, rest = url.partition("://")
    host = rest.rstrip("/")
    if scheme not in ("http", "https") or not separator or not host or set(host) & set("/?# @"):
        msg = f"etcd endpoint {url!r}: expected something like https://10.0.0.1:2379"
        raise Malformed(msg)
    return f"{scheme}://{host}"
