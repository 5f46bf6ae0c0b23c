"""Thresholds: which single results change the status that is shown."""

import pytest

from waypost.drivers.checks.thresholds import Streak, judge

P, W, C = "passing", "warning", "critical"


def shown(results, *, successes=0, failures=0, start=C):
    streak, status, seen = Streak(), start, []
    for result in results:
        streak, status = judge(
            streak,
            shown=status,
            result=result,
            success_before_passing=successes,
            failures_before_critical=failures,
        )
        seen.append(status)
    return seen


@pytest.mark.parametrize(
    ("results", "options", "expected"),
    [
        ([P, C, P], {}, [P, C, P]),
        ([P], {"successes": 3}, [P]),
        ([C], {"failures": 3, "start": P}, [C]),
        ([P, C, C, C, C], {"failures": 2}, [P, P, P, C, C]),
        ([C, P, P, P], {"successes": 2}, [C, C, C, P]),
        ([P, C, C, P, C, C, C], {"failures": 2}, [P, P, P, P, P, P, C]),
        ([P, W, C, W], {"failures": 1}, [P, W, W, W]),
    ],
)
def test_consecutive_results_decide(results, options, expected):
    assert shown(results, **options) == expected
