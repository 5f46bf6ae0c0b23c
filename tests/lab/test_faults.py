"""Each fault once, on three servers under load; `waypost-lab faults -repeat 20` does it again and again."""

from __future__ import annotations

import pytest

from .faults import FAULTS, inject, told
from .host import fake_clock_library

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("etcd", "ip"),
    pytest.mark.timeout(240),
]


@pytest.mark.parametrize("name", FAULTS)
def test_what_was_acknowledged_stays_and_hosts_that_are_up_go_on(name):
    if name == "clock-jumps" and fake_clock_library() is None:
        pytest.skip("libfaketime is not installed")
    seen = inject(name)
    assert not seen.problems(), told(seen)
    assert seen.acknowledged > 100
    assert seen.operations > 50
    assert not seen.undecided
