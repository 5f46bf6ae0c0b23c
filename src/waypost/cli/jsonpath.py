r"""kubectl's JSONPath templates: `{.clusters[0].cluster.server}{"\n"}`, `[*]`, `[?(@.name=="x")]`, `{range}…{end}`.

The part of the language that scripts use; anything else is refused, never guessed. Source: kubectl "JSONPath Support".
"""

from __future__ import annotations

import json
import operator
import re
from typing import Any, Final

from waypost.base.errors import Malformed

_STEP: Final = re.compile(
    r"""
    \.(?P<every>\*)
  | \.\.(?P<deep>(?:[^.\[\]{}'"\\\s()]|\\.)+)
  | \.(?P<name>(?:[^.\[\]{}'"\\\s()*]|\\.)+)
  | \['(?P<quoted>[^']*)'\]
  | \["(?P<double>[^"]*)"\]
  | \[(?P<all>\*)\]
  | \[\?\(\s*@(?P<path>[^=!<>]+?)\s*(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>.+?)\s*\)\]
  | \[\?\(\s*@(?P<has>[^=!<>()]+?)\s*\)\]
  | \[(?P<slice>-?\d*(?::-?\d*){0,2})\]
    """,
    re.VERBOSE,
)
_OPERATORS: Final = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MAX_DEPTH: Final = 20


def evaluate(template: str, values: Any) -> str:
    """Return what a template gives for `values`. Raises Malformed: `error parsing jsonpath …`."""
    if not template:
        raise Malformed("template format specified but no template given")
    try:
        text, rest = _block(_split(template), values, depth=0)
    except _Unreadable as exc:
        raise Malformed(f"error parsing jsonpath {template}, {exc}") from exc
    if rest:
        raise Malformed(f"error parsing jsonpath {template}, end without range")
    return text


class _Unreadable(Exception):
    pass


def _split(template: str) -> list[tuple[bool, str]]:
    """Return the pieces: (is an expression, its text)."""
    if "{" not in template:
        template = "{" + template + "}"
    pieces: list[tuple[bool, str]] = []
    at = 0
    while at < len(template):
        start = template.find("{", at)
        if start < 0:
            pieces.append((False, template[at:]))
            break
        if start > at:
            pieces.append((False, template[at:start]))
        found = re.compile(r"""\{((?:[^{}"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')*)\}""").match(
            template, start
        )
        if found is None:
            raise _Unreadable("unclosed action")
        pieces.append((True, found[1].strip()))
        at = found.end()
    return pieces


def _block(
    pieces: list[tuple[bool, str]], values: Any, *, depth: int
) -> tuple[str, list[tuple[bool, str]]]:
    """Return the text up to the `end` of this block, and the pieces from there."""
    if depth > _MAX_DEPTH:
        raise _Unreadable("ranges are nested too deep")
    out: list[str] = []
    while pieces:
        is_expression, text = pieces[0]
        pieces = pieces[1:]
        if not is_expression:
            out.append(text)
        elif text == "end":
            return "".join(out), [(True, "end"), *pieces]
        elif text.startswith("range"):
            items = _find(text[len("range") :].strip(), values)
            rest = _block(pieces, None, depth=depth + 1)[1]
            if not rest:
                raise _Unreadable("unterminated range")
            out += [_block(pieces, one, depth=depth + 1)[0] for one in items]
            pieces = rest[1:]
        elif text[:1] in "\"'" and text:
            out.append(_literal(text))
        else:
            out.append(" ".join(map(_shown, _find(text, values))))
    return "".join(out), []


def _literal(text: str) -> str:
    quote = text[0]
    if len(text) < 2 or text[-1] != quote:
        raise _Unreadable("unterminated quoted string")
    inner = text[1:-1]
    if quote == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{inner}"'))
    except ValueError as exc:
        raise _Unreadable(f"unreadable text {text}") from exc


def _find(path: str, values: Any) -> list[Any]:
    path = path.removeprefix("$")
    if path and path[0] not in ".[@":
        path = "." + path
    path = path.removeprefix("@")
    if path == ".":
        return [values]
    found = [values]
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise _Unreadable(f"unrecognized character in action: {path[at:]}")
        found = [one for value in found for one in _step(step, value)]
        at = step.end()
    return found


def _step(step: re.Match[str], value: Any) -> list[Any]:
    kind = step.lastgroup if step["op"] is None else "op"
    if kind in ("name", "quoted", "double"):
        name = step[kind] if kind != "name" else re.sub(r"\\(.)", r"\1", step["name"])
        return [value[name]] if isinstance(value, dict) and name in value else []
    if kind in ("every", "all"):
        return _children(value)
    if kind == "deep":
        return _descend(re.sub(r"\\(.)", r"\1", step["deep"]), value)
    if kind == "op":
        return [one for one in _children(value) if _holds(step, one)]
    if kind == "has":
        return [one for one in _children(value) if _find(step["has"], one)]
    return _sliced(step["slice"], value)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value[key] for key in sorted(value)]
    return list(value) if isinstance(value, list) else []


def _descend(name: str, value: Any) -> list[Any]:
    here = [value[name]] if isinstance(value, dict) and name in value else []
    return here + [one for child in _children(value) for one in _descend(name, child)]


def _holds(step: re.Match[str], value: Any) -> bool:
    text = step["value"]
    try:
        wanted = _literal(text) if text[0] in "\"'" else json.loads(text)
    except ValueError as exc:
        raise _Unreadable(f"unreadable value {text}") from exc
    compare = _OPERATORS[step["op"]]
    try:
        return any(compare(one, wanted) for one in _find(step["path"], value))
    except TypeError:
        return False


def _sliced(text: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        return []
    if not text:
        raise _Unreadable("empty index")
    numbers = [int(one) if one and one != "-" else None for one in text.split(":")]
    if ":" in text:
        if numbers[2:] == [0]:
            raise _Unreadable("the step of a slice cannot be 0")
        return value[slice(*numbers)]
    index = numbers[0]
    if index is None or not -len(value) <= index < len(value):
        raise _Unreadable(f"array index out of bounds: index {text}, length {len(value)}")
    return [value[index]]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
