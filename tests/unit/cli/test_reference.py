"""The reference in the documentation is the one that the commands give."""

from __future__ import annotations

from pathlib import Path

from waypost.cli.reference import markdown

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == markdown()
