"""The client's side of blocking queries, as pure steps.

    poll = Poll()
    while True:
        answer = ask(index=poll.index)          # one HTTP request
        poll, changed = poll.answered(answer.index)

Source: Consul HTTP API, "Blocking queries": an index that goes backwards means start over, and 0 is never sent
after the first answer (it would not block and make a busy loop).
"""

from __future__ import annotations

import random

import msgspec

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 30.0


class Poll(msgspec.Struct, frozen=True):
    """Where one query stands: the index to ask with next, and how often it failed in a row."""

    index: int = 0
    failures: int = 0

    def answered(self, index: int) -> tuple[Poll, bool]:
        """Return the next step, and whether the answer is a new one.

        `index` is the answer's `X-Consul-Index`. After a step backwards the next answer to a plain question counts
        as new, since nothing is known about what changed.
        """
        index = max(index, 1)
        if index < self.index:
            return Poll(), False
        return Poll(index=index), index != self.index

    def failed(self, rng: random.Random) -> tuple[Poll, float]:
        """Return the next step and the seconds to wait before it: doubling, with jitter, at most 30 s."""
        ceiling = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(self.failures, 10))
        step = Poll(index=self.index, failures=self.failures + 1)
        return step, ceiling * rng.uniform(0.5, 1.0)


def event_changed(before: int, after: int) -> bool:
    """Tell whether an event list is a new one: its index is a hash, not a counter, so it only has to differ."""
    return before != after
