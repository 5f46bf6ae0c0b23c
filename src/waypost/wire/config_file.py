"""Configuration files: JSON or HCL text to plain values, and the habits of HCL smoothed out.

HCL here is version 1, the one of Consul's and consul-template's files. A block that may stand several times comes out
as one object or a list of them; `blocks` makes a list of either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from waypost.base.errors import Malformed


def parse_text(text: str, *, name: str, is_json: bool) -> dict[str, Any]:
    """Return the values of one file. Raises Malformed: `failed to parse NAME: …` with the place where it can be told."""
    if is_json or text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            msg = f"failed to parse {name}: line {error.lineno}, column {error.colno}: {error.msg}"
            raise Malformed(msg) from error
    else:
        try:
            value = _parse_hcl(text)
        except ValueError as error:
            msg = f"failed to parse {name}: {error}"
            raise Malformed(msg) from error
    if not isinstance(value, dict):
        msg = f"failed to parse {name}: the file must hold an object, not {type(value).__name__}"
        raise Malformed(msg)
    return value


def _parse_hcl(text: str) -> Any:
    # Most agents never read HCL, and its grammar takes time to load.
    from hcl.parser import HclParser

    class Parser(HclParser):  # type: ignore[misc]
        """The library's grammar with a plain rule for repeated keys.

        The library merges the second of two equal blocks into the first when they hold objects themselves
        (two `service` blocks with a `check` each became one); here a repeated block always makes a list.
        """

        def objectlist_flat(
            self,
            items: list[tuple[str, Any]],
            replace: bool,  # noqa: FBT001
        ) -> dict[str, Any]:
            flat: dict[str, Any] = {}
            repeated: set[str] = set()
            for key, value in items:
                if key not in flat or not isinstance(value, dict):
                    flat[key] = value
                elif key in repeated:
                    flat[key].append(value)
                else:
                    flat[key] = [flat[key], value]
                    repeated.add(key)
            return flat

    return Parser().parse(text)


def read_file(path: Path, *, form: str = "") -> dict[str, Any]:
    """Return the values of a `.json` or `.hcl` file; `form` (`json`, `hcl`) overrides the ending.

    Raises Malformed in Consul's words when the file is missing or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        msg = f"config: Open failed on {path}. open {path}: {reason}"
        raise Malformed(msg) from error
    except UnicodeDecodeError as error:
        msg = f"failed to parse {path}: not UTF-8 text at byte {error.start}"
        raise Malformed(msg) from error
    return parse_text(text, name=str(path), is_json=(form or path.suffix.lstrip(".")) == "json")


def blocks(value: Any, *, where: str) -> list[dict[str, Any]]:
    """Return a block that may stand several times as a list. Raises Malformed naming `where`."""
    found = value if isinstance(value, list) else [value]
    for item in found:
        if not isinstance(item, dict):
            msg = f"{where}: expected a block, got {item!r}"
            raise Malformed(msg)
    return found
