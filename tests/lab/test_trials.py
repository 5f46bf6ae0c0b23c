"""What is told of many runs: the table, and the file from which a series goes on."""

from __future__ import annotations

import msgspec
import pytest

from . import trials
from .load import Seen
from .place import LabError
from .trials import Run, read, run, spread, table, told


def made(number, seen=None, failure="", fault="leader-killed", program="waypost"):
    return Run(
        fault=fault, number=number, program=program, flags=[], began="2026-01-01T00:00:00Z", took_s=10.0,
        seen=seen, failure=failure,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], "–"),
        ([2.0], "2.00 / 2.00 / 2.00 / 2.00"),
        ([4, 1, 3, 2], "1.00 / 2.00 / 4.00 / 4.00"),
        (list(range(1, 21)), "1.00 / 10.00 / 18.00 / 20.00"),
        ([0.0] * 19 + [9.0], "0.00 / 0.00 / 0.00 / 9.00"),
    ],
)
def test_spread_names_values_that_were_seen(values, wanted):
    assert spread(values) == wanted


def test_the_table_counts_what_must_not_be():
    lines = table(
        [
            made(1, Seen(acknowledged=5, gap_s=1.5, gone_after_s=6.0, stale_reads=3, operations=7)),
            made(2, Seen(acknowledged=6, lost=["a"], left_over=["b"], differs=["c"], lookups=2)),
            made(3, failure="no host answered"),
            made(
                1, Seen(failed_lookups=["d"], lookups=1, not_linearizable=["k"]), program="consul"
            ),
        ]
    ).splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    head, _, mine, _, _, its = cells
    row = dict(zip(head, mine, strict=True))
    assert (row["runs"], row["bad"], row["writes"], row["lost"]) == ("3", "2", "11", "1")
    assert (row["answers"], row["failed"], row["stale left"]) == ("5", "0", "2")
    assert row["no write for, s"] == "0.00 / 0.00 / 1.50 / 1.50"
    assert row["instances gone after, s"] == "6.00 / 6.00 / 6.00 / 6.00"
    other = dict(zip(head, its, strict=True))
    assert (other["failed"], other["not atomic"], other["bad"]) == ("1", "1", "1")
    assert "no host answered" in told(made(3, failure="no host answered"))
    assert "PROBLEMS: lost 1: a" in told(made(2, Seen(lost=["a"])))


def test_a_series_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    out = tmp_path / "runs"
    asked = []

    def attempt(self, name, *, seed=1):
        asked.append((name, seed))
        if seed == 2 and len(asked) < 4:
            raise LabError("this one cannot be done")
        if seed == 3 and len(asked) < 4:
            raise KeyboardInterrupt
        return Seen(acknowledged=1)

    monkeypatch.setattr(trials.Bench, "inject", attempt)
    with pytest.raises(KeyboardInterrupt):
        run(repeat=3, only=["leader-killed"], out=out)
    assert "| leader-killed | 2 " in capsys.readouterr().out, "the table of what there is"
    assert [(one.number, one.failure) for one in read(out)] == [
        (1, ""),
        (2, "this one cannot be done"),
    ]
    # What failed stays on record: it is not tried until it succeeds.
    assert run(repeat=3, only=["leader-killed"], out=out) == 1
    assert asked == [("leader-killed", number) for number in (1, 2, 3, 3)]
    assert len(read(out)) == 3


def test_a_file_that_is_not_one_of_runs_is_refused(tmp_path):
    out = tmp_path / "runs"
    out.write_bytes(msgspec.json.encode(made(1)) + b"\nnonsense\n")
    with pytest.raises(LabError, match="runs"):
        read(out)
