"""What goes on is logged when it changes and once a minute."""

from __future__ import annotations

import pytest
from tests.unit.cluster.conftest import HandClock

from waypost.cluster.report import Report


def test_said_once_until_it_changes_or_a_minute_is_over(
    caplog: pytest.LogCaptureFixture, clock: HandClock
) -> None:
    caplog.set_level("INFO")
    report = Report(clock=clock)
    for text in ("a", "a", "b", "", "b"):
        report.say("matter", text)
    report.say("another", "b")
    clock.advance(59)
    report.say("matter", "b")
    assert caplog.messages == ["a", "b", "b", "b"]
    clock.advance(1)
    report.say("matter", "b")
    assert len(caplog.messages) == 5
    assert report.said("matter") == "b"
    report.say("matter", "")
    assert report.said("matter") == ""
