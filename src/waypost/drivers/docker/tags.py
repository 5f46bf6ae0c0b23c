"""The `-tags` option: a Go template over the whole inspect answer, with Registrator's functions.

The data has the names of the Go client that Registrator is built on (`.ID`, `.Name`, `.Config.Labels`,
`.NetworkSettings.Ports`) and Docker's own as well (`.Id`). Rendering may wait for `httpGet`, so it belongs in
a thread. Source: Registrator's list of template functions.
"""

from __future__ import annotations

import json
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final

from waypost.base.errors import Malformed
from waypost.gotemplate import Function, FunctionError, Limits, Template, TemplateError
from waypost.gotemplate.values import string_map, strings

log = logging.getLogger(__name__)

_LIMITS: Final = Limits(output_chars=64 * 1024, iterations=100_000, depth=100)
_HTTP_TIMEOUT_S: Final = 10.0
_HTTP_MAX_BYTES: Final = 1 << 20
_ALIASES: Final = {"Id": "ID", "HostIp": "HostIP"}


def compile_tags(text: str) -> str | Callable[[Mapping[str, Any]], str]:
    """Return `-tags` as it is, or, if it has template actions, what renders it for one container.

    Raises Malformed for a template that cannot be parsed.
    """
    if "{{" not in text:
        return text
    try:
        template = Template.parse(text, name="tags", functions=FUNCTIONS)
    except TemplateError as exc:
        raise Malformed(f"-tags: {exc}") from exc

    def render(inspected: Mapping[str, Any]) -> str:
        return template.execute(go_data(inspected), limits=_LIMITS)

    return render


def go_data(value: Any, key: str = "") -> Any:
    """Return a decoded inspect answer with Go's types and field names."""
    if isinstance(value, dict):
        if key in ("Labels", "Annotations"):
            return string_map({name: str(text) for name, text in value.items()})
        out = {name: go_data(inner, name) for name, inner in value.items()}
        return out | {_ALIASES[name]: out[name] for name in out.keys() & _ALIASES.keys()}
    if isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            return strings(value)
        return [go_data(item) for item in value]
    if value is None and key == "Labels":
        return string_map({})
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    raise FunctionError(f"wrong type for value; expected []string; got {value!r}")


def _str_slice(text: str, *at: int) -> str:
    start = at[0] if at else 0
    if not 0 <= start <= len(text):
        return text
    if len(at) < 2 or not start <= at[1] <= len(text):
        return text[start:]
    return text[start : at[1]]


def _element(index: int, items: list[str]) -> str:
    if not items:
        return ""
    if index < 0:
        index += len(items)
    return items[min(max(index, 0), len(items) - 1)]


def _s_index(index: int, items: Any) -> str:
    return _element(index, _texts(items))


def _split_index(index: int, separator: str, text: str) -> str:
    return _element(index, text.split(separator) if separator else list(text))


def _m_index(key: str, mapping: Any) -> str:
    if not isinstance(mapping, Mapping):
        raise FunctionError("mIndex: the second argument is no map")
    return str(mapping.get(key, ""))


def _replace(count: int, old: str, new: str, text: str) -> str:
    return text.replace(old, new, count)


def _join(separator: str, items: Any) -> str:
    return separator.join(_texts(items))


def _split(separator: str, text: str) -> Any:
    return strings(text.split(separator) if separator else list(text))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as exc:
        raise FunctionError(f"bad regular expression {text!r}: {exc}") from exc


def _match_first(pattern: str, items: Any) -> str:
    found = _pattern(pattern)
    return next((item for item in _texts(items) if found.search(item)), "")


def _match_all(pattern: str, items: Any) -> Any:
    found = _pattern(pattern)
    return strings([item for item in _texts(items) if found.search(item)])


def _http_get(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        log.error("-tags: httpGet %s: want http:// or https://", url)
        return ""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as got:  # noqa: S310 - checked above
            body: bytes = got.read(_HTTP_MAX_BYTES)
    except (OSError, ValueError, urllib.error.URLError) as exc:
        log.error("-tags: httpGet %s: %s", url, exc)
        return ""
    return body.decode(errors="replace")


def _json_parse(text: Any, path: str) -> Any:
    try:
        value = json.loads(str(text))
        for part in path.split("::"):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (ValueError, LookupError, TypeError, RecursionError) as exc:
        log.error("-tags: jsonParse %s: %s", path, exc)
        return ""
    return value


FUNCTIONS: Final[Mapping[str, Function]] = {
    name: Function(name, call, params, variadic)
    for name, call, params, variadic in (
        ("strSlice", _str_slice, ("string",), "int"),
        ("sIndex", _s_index, ("int", "interface {}"), ""),
        ("splitIndex", _split_index, ("int", "string", "string"), ""),
        ("mIndex", _m_index, ("string", "interface {}"), ""),
        ("toUpper", str.upper, ("string",), ""),
        ("toLower", str.lower, ("string",), ""),
        ("replace", _replace, ("int", "string", "string", "string"), ""),
        ("join", _join, ("string", "interface {}"), ""),
        ("split", _split, ("string", "string"), ""),
        ("matchFirstElement", _match_first, ("string", "interface {}"), ""),
        ("matchAllElements", _match_all, ("string", "interface {}"), ""),
        ("httpGet", _http_get, ("string",), ""),
        ("jsonParse", _json_parse, ("interface {}", "string"), ""),
    )
}
