"""How commands print: tables, JSON and raw bytes. No colour, no borders: the output is for scripts as well."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from waypost.cli.flags import UsageError

FORMATS = ("pretty", "json")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as left-aligned columns, two blanks between; the last column is not padded.

    Widths are counted in characters, as Consul's are.
    """
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """Print indented JSON; text stays as it is, without escapes."""
    import json

    print(json.dumps(value, indent=4, ensure_ascii=False))


def write_bytes(data: bytes) -> None:
    """Write a value to standard output as it is; values need not be text."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def is_json(format: str) -> bool:  # noqa: A002
    """Tell what a `-format` flag says. Raises UsageError for an unknown format."""
    if format not in FORMATS:
        raise UsageError(f"Unknown format: {format}")
    return format == "json"
