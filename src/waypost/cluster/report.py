"""What goes on, for the log: said when it changes and once a minute, however often it is looked at."""

from __future__ import annotations

import logging
from typing import Final

from waypost.base.clock import Clock

log = logging.getLogger(__name__)

_AGAIN_S: Final = 60.0


class Report:
    """Remembers what was said last about each matter."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, tuple[str, float]] = {}

    def say(self, key: str, text: str, *, level: int = logging.INFO) -> None:
        """Log `text` about the matter `key` unless that was said within the last minute; empty: the matter is over."""
        before, at_s = self._said.get(key, ("", float("-inf")))
        now_s = self._clock.now()
        if not text:
            self._said.pop(key, None)
        elif text != before or now_s - at_s >= _AGAIN_S:
            log.log(level, "%s", text)
            self._said[key] = (text, now_s)

    def said(self, key: str) -> str:
        """Return what is the matter; empty when it is over, or never was."""
        return self._said.get(key, ("", 0.0))[0]
