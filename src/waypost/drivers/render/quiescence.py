"""When a template that keeps changing may be rendered: pure timing."""

from __future__ import annotations

from waypost.drivers.render.settings import Wait


class Quiescence:
    """The first change starts a timer of `min`; each further one moves it to now + min, at most to first + max."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._deadline = 0.0
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """Return the monotonic time from which the template may be rendered; None without a change."""
        return self._due

    def change(self, now: float) -> None:
        """Note a change."""
        if self._due is None:
            self._deadline = now + self._wait.max_s
        self._due = min(now + self._wait.min_s, self._deadline)

    def clear(self) -> None:
        """Note that the template has been rendered."""
        self._due = None
