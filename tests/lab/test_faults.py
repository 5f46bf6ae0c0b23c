"""Each fault once, on three servers under load; `waypost-lab faults -repeat 20` does it again and again."""

from __future__ import annotations

import os

import pytest

from .faults import FAULTS
from .host import fake_clock_library
from .lab import Lab
from .trials import inject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("etcd", "ip"),
    pytest.mark.timeout(240),
]


ALWAYS = ("leader-cut-off",)
"""The others, and all of them many times, are for `waypost-lab faults`: each takes half a minute."""


@pytest.mark.parametrize("name", FAULTS if os.environ.get("WAYPOST_ALL_FAULTS") else ALWAYS)
def test_what_was_acknowledged_stays_and_hosts_that_are_up_go_on(name):
    if name == "clock-jumps" and fake_clock_library() is None:
        pytest.skip("libfaketime is not installed")
    seen = inject(name)
    assert not seen.problems()
    assert seen.acknowledged > 100
    assert seen.operations > 50
    assert not seen.undecided


def test_a_server_that_has_just_started_denies_nothing_that_it_cannot_know():
    with Lab(hosts=3) as lab:
        lab.start_agents()
        for host in lab:
            host.eventually(lambda h=host: h.put("/v1/kv/first", b"x") is True, within_s=60)
        version = lab[0].get("/v1/kv/first")[0]["ModifyIndex"]
        lab[2].agent.kill()
        lab[2].agent.start_again()
        answers = []

        def compared():
            reply = lab[2].http(f"/v1/kv/first?cas={version}", method="PUT", body=b"y")
            answers.append(reply.text.strip())
            return answers[-1] in ("true", "false")

        lab[2].eventually(compared, within_s=30)
        assert answers[-1] == "true", set(answers)
