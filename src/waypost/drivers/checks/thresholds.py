"""From single results to a status: consecutive successes and failures. Pure.

Source: Consul check definition, `success_before_passing` and `failures_before_critical`; the first result ever
counts at once, so a new instance is known as soon as it was asked.
"""

from __future__ import annotations

import msgspec

from waypost.model.catalog import CRITICAL


class Streak(msgspec.Struct, frozen=True):
    """How often in a row a check went one way. `seen` is False until the first result."""

    seen: bool = False
    successes: int = 0
    failures: int = 0


def judge(
    streak: Streak,
    *,
    shown: str,
    result: str,
    success_before_passing: int,
    failures_before_critical: int,
) -> tuple[Streak, str]:
    """Return the new streak and the status to show, given the one `shown` now and a single `result`.

    A warning counts as a success. A threshold of n means that the n-th further result in a row counts.
    """
    if result == CRITICAL:
        streak_now = Streak(seen=True, failures=streak.failures + 1)
        enough = streak_now.failures > failures_before_critical
    else:
        streak_now = Streak(seen=True, successes=streak.successes + 1)
        enough = streak_now.successes > success_before_passing
    if not streak.seen or enough or result == shown:
        return streak_now, result
    return streak_now, shown
