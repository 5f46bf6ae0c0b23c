"""JSON, YAML and TOML the way consul-template writes and reads them.

Sources: Go's encoding/json (texts of its errors), yaml.v2, BurntSushi/toml.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import yaml

from waypost.gotemplate import strconv
from waypost.gotemplate.errors import FunctionError
from waypost.gotemplate.values import (
    INVALID,
    Map,
    NilPointer,
    Struct,
    kind_of,
    shown_fields,
    sorted_keys,
    type_of,
)

_MAX_DEPTH: Final = 200

# JSON, reading


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, numbers as floats. Raises FunctionError with Go's words."""
    text = re.sub("[\udc80-\udcff]", "\ufffd", text)
    try:
        value = json.loads(
            text, parse_int=_number, parse_float=_number, parse_constant=_no_constant
        )
    except FunctionError:
        raise
    except RecursionError as exc:
        raise FunctionError("exceeded max depth") from exc
    except ValueError as exc:
        _JsonScanner(text).fail()
        raise FunctionError(str(exc)) from exc
    return _without_surrogates(value) if "\\u" in text else value


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise FunctionError(f"json: cannot unmarshal number {text} into Go value of type float64")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


class _JsonScanner:
    """Finds the first wrong character of a text that is no JSON, for Go's error texts."""

    _LITERALS: Final = {"t": "true", "f": "false", "n": "null"}

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self) -> None:
        self._value(0)
        self._blanks()
        if self.at < len(self.text):
            self._wrong("after top-level value")

    def _wrong(self, context: str) -> NoReturn:
        if self.at >= len(self.text):
            raise FunctionError("unexpected end of JSON input")
        char = self.text[self.at]
        shown = {"'": "'\\''", '"': "'\"'"}.get(char) or f"'{strconv.quote(char)[1:-1]}'"
        raise FunctionError(f"invalid character {shown} {context}")

    def _blanks(self) -> None:
        while self._char() in tuple(" \t\r\n"):
            self.at += 1

    def _char(self) -> str:
        return self.text[self.at : self.at + 1]

    def _value(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise FunctionError("exceeded max depth")
        self._blanks()
        char = self._char()
        if char == "{":
            self._object(depth)
        elif char == "[":
            self._array(depth)
        elif char == '"':
            self._string()
        elif char in self._LITERALS and char:
            self._literal(self._LITERALS[char])
        elif char == "-" or (char.isascii() and char.isdigit()):
            self._number()
        else:
            self._wrong("looking for beginning of value")

    def _object(self, depth: int) -> None:
        self.at += 1
        self._blanks()
        if self._char() == "}":
            self.at += 1
            return
        while True:
            self._blanks()
            if self._char() != '"':
                self._wrong("looking for beginning of object key string")
            self._string()
            self._blanks()
            if self._char() != ":":
                self._wrong("after object key")
            self.at += 1
            self._value(depth + 1)
            self._blanks()
            if self._char() == "}":
                self.at += 1
                return
            if self._char() != ",":
                self._wrong("after object key:value pair")
            self.at += 1

    def _array(self, depth: int) -> None:
        self.at += 1
        self._blanks()
        if self._char() == "]":
            self.at += 1
            return
        while True:
            self._value(depth + 1)
            self._blanks()
            if self._char() == "]":
                self.at += 1
                return
            if self._char() != ",":
                self._wrong("after array element")
            self.at += 1

    def _string(self) -> None:
        self.at += 1
        while self._char() != '"':
            char = self._char()
            if not char or char < " ":
                self._wrong("in string literal")
            self.at += 1
            if char != "\\":
                continue
            if self._char() == "u":
                self.at += 1
                for _ in range(4):
                    if not re.fullmatch("[0-9a-fA-F]", self._char()):
                        self._wrong("in \\u hexadecimal character escape")
                    self.at += 1
            elif self._char() and self._char() in '"\\/bfnrt':
                self.at += 1
            else:
                self._wrong("in string escape code")
        self.at += 1

    def _literal(self, word: str) -> None:
        for place, wanted in enumerate(word):
            if self._char() != wanted:
                self._wrong(f"in literal {word} (expecting '{word[place]}')")
            self.at += 1

    def _digits(self, context: str) -> None:
        if not re.fullmatch("[0-9]", self._char()):
            self._wrong(context)
        while re.fullmatch("[0-9]", self._char()):
            self.at += 1

    def _number(self) -> None:
        if self._char() == "-":
            self.at += 1
        if self._char() == "0":
            self.at += 1
        else:
            self._digits("in numeric literal")
        if self._char() == ".":
            self.at += 1
            self._digits("after decimal point in numeric literal")
        if self._char() in ("e", "E"):
            self.at += 1
            if self._char() in ("+", "-"):
                self.at += 1
            self._digits("in exponent of numeric literal")


# JSON, writing

_JSON_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_JSON_SPECIAL: Final = re.compile('["\\\\\x00-\x1f\u2028\u2029\ud800-\udfff]')
_JSON_SPECIAL_HTML: Final = re.compile('["\\\\\x00-\x1f\u2028\u2029\ud800-\udfff<>&]')


def _json_char(match: re.Match[str]) -> str:
    char = match.group()
    if "\ud800" <= char <= "\udfff":
        return "\\ufffd"
    return _JSON_SHORT.get(char) or f"\\u{ord(char):04x}"


def json_float(number: float) -> str:
    """Return a number as JavaScript and Go's JSON write it."""
    special = strconv.special_float(number)
    if special:
        raise FunctionError(f"json: unsupported value: {special}")
    sign = "-" if str(number).startswith("-") else ""
    digits, point = strconv.shortest_digits(abs(number))
    if number != 0 and (abs(number) < 1e-6 or abs(number) >= 1e21):
        return sign + strconv.format_exponent(digits, point, pad=1)
    return sign + strconv.format_fixed(digits, point)


class JsonWriter:
    """Writes Go values as JSON: compact or with two blanks a level, `<` `>` `&` escaped or not."""

    def __init__(self, *, pretty: bool = False, escape_html: bool = True) -> None:
        self.pretty = pretty
        self.special = _JSON_SPECIAL_HTML if escape_html else _JSON_SPECIAL

    def write(self, value: Any, depth: int = 0) -> str:
        """Return the JSON text. Raises FunctionError."""
        if depth > _MAX_DEPTH:
            raise FunctionError("json: unsupported value: encountered a cycle")
        kind = kind_of(value)
        if kind == "string":
            return self._text(value)
        if kind == "bool":
            return "true" if value else "false"
        if kind in ("int", "uint"):
            return str(int(value))
        if kind == "float":
            return json_float(float(value))
        if kind == "slice":
            return self._block("[", "]", [self.write(item, depth + 1) for item in value], depth)
        if kind == "map":
            pairs = ((str(key), value[key]) for key in sorted_keys(value))
            return self._object(pairs, depth)
        if isinstance(value, Struct):
            return self._object(shown_fields(value).items(), depth)
        if value is None or value is INVALID or isinstance(value, NilPointer):
            return "null"
        raise FunctionError(f"json: unsupported type: {type_of(value)}")

    def _object(self, pairs: Iterable[tuple[str, Any]], depth: int) -> str:
        colon = ": " if self.pretty else ":"
        inside = [self._text(key) + colon + self.write(item, depth + 1) for key, item in pairs]
        return self._block("{", "}", inside, depth)

    def _block(self, begin: str, end: str, inside: Sequence[str], depth: int) -> str:
        if not inside or not self.pretty:
            return begin + ",".join(inside) + end
        indent = "\n" + "  " * (depth + 1)
        return begin + indent + ("," + indent).join(inside) + "\n" + "  " * depth + end

    def _text(self, text: str) -> str:
        return '"' + self.special.sub(_json_char, text) + '"'


# YAML

_YAML_WORDS: Final = frozenset(
    (
        "", "~", "<<", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True",
        "TRUE", "n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE", ".nan", ".NaN", ".NAN",
        ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF",
    )
)  # fmt: skip
_YAML_FLOAT: Final = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+][0-9]+)?")
_YAML_BASE60: Final = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_YAML_DATE: Final = re.compile(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}.*)?"
)


def _means_other(text: str) -> bool:
    """Tell whether yaml.v2 would read a plain text as something else than a string."""
    if text in _YAML_WORDS or _YAML_BASE60.fullmatch(text) or _YAML_DATE.fullmatch(text):
        return True
    plain = text.replace("_", "")
    if not plain or plain[0] not in "+-.0123456789":
        return False
    if _YAML_FLOAT.fullmatch(plain):
        return True
    digits = plain.lstrip("+-")
    try:
        strconv.parse_int(plain, base=0)
    except strconv.OutOfRange:
        return True
    except strconv.SyntaxInvalid:
        return re.fullmatch("0b[01]+", digits) is not None
    return True


_YAML_STR: Final = "tag:yaml.org,2002:str"


class _YamlDumper(yaml.SafeDumper):
    """yaml.v2's choices: floats with float32 digits, literal blocks for lines, double quotes where needed.

    Every scalar is text to the dumper; the representers alone decide what is quoted.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode:
            return _YAML_STR
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def _yaml_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style: str | None = None
    if _means_other(text):
        style = '"'
    elif "\n" in text:
        style = "|"
    return dumper.represent_scalar(_YAML_STR, str(text), style=style)


def _float32(number: float) -> str:
    special = strconv.special_float(number)
    if special:
        return {"NaN": ".nan", "+Inf": ".inf", "-Inf": "-.inf"}[special]
    # yaml.v2 of that time prints with 32-bit precision: the shortest digits that give the same float32 back.
    try:
        narrow = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return ".inf" if number > 0 else "-.inf"
    if narrow == 0:
        return "-0" if str(number).startswith("-") else "0"
    for digits in range(9):
        text = f"{narrow:.{digits}e}"
        if struct.unpack("f", struct.pack("f", float(text)))[0] == narrow:
            break
    mantissa, _, exponent = text.partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    plain = mantissa.lstrip("-").replace(".", "").rstrip("0") or "0"
    point = int(exponent) + 1
    if point - 1 < -4 or point - 1 >= 6:
        return sign + strconv.format_exponent(plain, point)
    return sign + strconv.format_fixed(plain, point)


def _yaml_float(dumper: yaml.SafeDumper, number: float) -> yaml.Node:
    return dumper.represent_scalar(_YAML_STR, _float32(number))


def _yaml_plain(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    text = (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )
    return dumper.represent_scalar(_YAML_STR, text)


_YamlDumper.add_representer(str, _yaml_text)
_YamlDumper.add_representer(float, _yaml_float)
for _plain_type in (bool, int, type(None)):
    _YamlDumper.add_representer(_plain_type, _yaml_plain)


def _plain(value: Any, depth: int = 0) -> Any:
    """Return plain lists, dicts and scalars, maps in yaml.v2's order of keys."""
    if depth > _MAX_DEPTH:
        raise FunctionError("yaml: nested too deep")
    kind = kind_of(value)
    if kind == "slice":
        return [_plain(item, depth + 1) for item in value]
    if kind == "map":
        return {_plain(key): _plain(value[key], depth + 1) for key in sorted(value, key=_natural)}
    if isinstance(value, Struct):
        return {name.lower(): _plain(item, depth + 1) for name, item in shown_fields(value).items()}
    if kind == "bool":
        return bool(value)
    if kind in ("int", "uint"):
        return int(value)
    if kind in ("float", "string"):
        return value
    if kind in ("interface", "invalid", "ptr"):
        return None
    raise FunctionError(f"cannot marshal type: {type_of(value)}")


def _natural(key: Any) -> tuple[Any, ...]:
    """Digits inside keys are compared as numbers; letters come after everything else."""
    if not isinstance(key, str):
        return (0, key)
    parts: list[Any] = []
    for digits, char in re.findall(r"([0-9]+)|([^0-9])", key):
        parts.append(
            (1, int(digits[:400]), "") if digits else (2 if char.isalpha() else 0, 0, char)
        )
    return (1, parts)


def to_yaml(value: Any) -> str:
    """Return yaml.v2's text without white space around. Raises FunctionError."""
    try:
        text = yaml.dump(
            _plain(value),
            Dumper=_YamlDumper,
            default_flow_style=False,
            sort_keys=False,
            allow_unicode=True,
        )
    except (yaml.YAMLError, TypeError, ValueError, OverflowError) as exc:
        raise FunctionError(f"toYAML: {exc}") from exc
    text = text.strip()
    return str(text.removesuffix("\n...").rstrip())


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises FunctionError."""
    try:
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise FunctionError(f"parseYAML: yaml: {' '.join(str(exc).split())}") from exc
    return _typed_keys(value)


class _YamlLoader(yaml.SafeLoader):
    """Without time stamps: they stay text."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _typed_keys(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed_keys(item) for item in value]
    if isinstance(value, dict):
        items = {key: _typed_keys(item) for key, item in value.items()}
        if all(isinstance(key, str) for key in items):
            return items
        return Map(items, go_type="map[interface {}]interface {}", key_type="interface {}")
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


# TOML

_TOML_ESCAPES: Final = {"\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_TOML_BARE: Final = re.compile("[A-Za-z0-9_-]+")


def to_toml(value: Any) -> str:
    """Return BurntSushi's text of a map without white space around. Raises FunctionError."""
    if kind_of(value) != "map":
        raise FunctionError("toTOML: toml: top-level values must be Go maps or structs")
    writer = _TomlWriter()
    writer.table(value, ())
    return "".join(writer.out).strip()


class _TomlWriter:
    def __init__(self) -> None:
        self.out: list[str] = []

    def table(self, value: dict[str, Any], path: tuple[str, ...]) -> None:
        """Write plain keys first, then tables, each by name."""
        if len(path) > _MAX_DEPTH:
            raise FunctionError("toTOML: toml: nested too deep")
        keys = sorted(str(key) for key in value)
        tables = [key for key in keys if _toml_kind(value[key]) in ("table", "tables")]
        indent = "  " * (len(path) - 1 + (1 if path else 0))
        for key in keys:
            if key not in tables and value[key] is not None:
                self.out.append(f"{indent}{_toml_key(key)} = {_toml_value(value[key])}\n")
        for key in tables:
            self._sub(value[key], (*path, key))

    def _sub(self, value: Any, path: tuple[str, ...]) -> None:
        name = ".".join(map(_toml_key, path))
        indent = "  " * (len(path) - 1)
        if isinstance(value, dict):
            if len(path) == 1 and self.out:
                self.out.append("\n")
            self.out.append(f"{indent}[{name}]\n")
            self.table(value, path)
            return
        for item in value:
            if self.out:
                self.out.append("\n")
            self.out.append(f"{indent}[[{name}]]\n")
            self.table(item, path)


def _toml_kind(value: Any) -> str:
    kind = kind_of(value)
    if kind == "map":
        return "table"
    if kind == "slice":
        return "tables" if value and all(kind_of(item) == "map" for item in value) else "array"
    return "integer" if kind == "uint" else "integer" if kind == "int" else kind


def _toml_key(key: str) -> str:
    return key if _TOML_BARE.fullmatch(key) else _toml_text(key)


def _toml_text(text: str) -> str:
    out = []
    for char in text:
        escaped = _TOML_ESCAPES.get(char)
        out.append(escaped or (f"\\u{ord(char):04X}" if char < " " or char == "\x7f" else char))
    return '"' + "".join(out) + '"'


def _toml_value(value: Any) -> str:
    kind = _toml_kind(value)
    if kind == "string":
        return _toml_text(value)
    if kind == "bool":
        return "true" if value else "false"
    if kind == "integer":
        return str(int(value))
    if kind == "float":
        special = strconv.special_float(value)
        if special:
            return {"NaN": "nan", "+Inf": "+inf", "-Inf": "-inf"}[special]
        sign = "-" if str(value).startswith("-") else ""
        text = sign + strconv.format_fixed(*strconv.shortest_digits(abs(value)))
        return text if "." in text else text + ".0"
    if kind == "array":
        return _toml_array(value)
    raise FunctionError(f"toTOML: toml: unsupported type: {type_of(value)}")


def _toml_array(items: Sequence[Any]) -> str:
    kinds = {_toml_kind(item) for item in items}
    if "interface" in kinds:
        raise FunctionError("toTOML: toml: cannot encode array with nil element")
    if len(kinds) > 1:
        raise FunctionError("toTOML: toml: cannot encode array with mixed element types")
    return f"[{', '.join(map(_toml_value, items))}]"
