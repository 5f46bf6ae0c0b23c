"""consul-template's helper functions that need nothing but their arguments. The piped value is the last argument."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from waypost.base.errors import Malformed
from waypost.drivers.render import encode, regexp
from waypost.drivers.render.records import (
    HEALTH_SERVICES,
    NODE_SERVICES,
    SNIPPETS,
    KeyPair,
    with_key,
)
from waypost.gotemplate import fmt, strconv
from waypost.gotemplate.errors import FunctionError
from waypost.gotemplate.strconv import quote
from waypost.gotemplate.values import (
    ANY,
    INTEGER,
    LIST,
    MAP,
    STRING,
    STRINGS,
    Channel,
    Function,
    Int64,
    Map,
    NilPointer,
    Slice,
    Uint64,
    from_bytes,
    kind_of,
    sorted_keys,
    strings,
    to_bytes,
    type_of,
    wrap_int64,
    wrap_uint64,
)

KEY_PAIRS: Final = "[]*dependency.KeyPair"
_MAX_TEXT: Final = 64 * 1024 * 1024
_GO_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


# Strings


def _split(separator: str, text: str) -> Slice:
    text = text.strip(_GO_SPACE)
    if not text:
        return strings()
    return strings(text.split(separator) if separator else text)


def _join(separator: str, items: Sequence[str]) -> str:
    return separator.join(items)


def _upper(text: str) -> str:
    if text.isascii():
        return text.upper()
    return "".join(char.upper() if len(char.upper()) == 1 else char for char in text)


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(char.lower()[0] for char in text)


def _is_separator(char: str) -> bool:
    if char.isascii():
        return not (char.isalnum() or char == "_")
    return not (char.isalpha() or char.isdecimal()) and char in _GO_SPACE


def _title(text: str) -> str:
    out = []
    before = " "
    for char in text:
        out.append(_upper(char) if _is_separator(before) else char)
        before = char
    return "".join(out)


def _replace_all(old: str, new: str, text: str) -> str:
    if (text.count(old) * len(new)) > _MAX_TEXT:
        raise FunctionError("result is too long")
    return text.replace(old, new)


def _indent(spaces: int, text: str) -> str:
    if spaces < 0:
        raise FunctionError("strings: negative Repeat count")
    if spaces * (text.count("\n") + 1) > _MAX_TEXT:
        raise FunctionError("result is too long")
    return re.sub("(?m)^(?=[^\n])", " " * spaces, text)


def _trim(cutset: str, text: str) -> str:
    return text.strip(cutset) if cutset else text


def _trim_prefix(prefix: str, text: str) -> str:
    return text.removeprefix(prefix)


def _trim_suffix(suffix: str, text: str) -> str:
    return text.removesuffix(suffix)


def _trim_space(text: str) -> str:
    return text.strip(_GO_SPACE)


def _split_to_map(item_separator: str, pair_separator: str, text: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in _split(item_separator, text):
        key, found, value = item.partition(pair_separator) if pair_separator else (item, "", "")
        if found:
            result[key.strip(_GO_SPACE)] = value.strip(_GO_SPACE)
    return result


# Base64 and digests

_STANDARD: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_URL: Final = _STANDARD[:-2] + "-_"


def _decode64(text: str, *, alphabet: str, name: str) -> str:
    raw = to_bytes(text)
    kept = [(at, byte) for at, byte in enumerate(raw) if byte not in b"\r\n"]
    for place, (at, byte) in enumerate(kept):
        padding = byte == ord("=") and _is_padding(kept, place)
        if not padding and chr(byte) not in alphabet:
            raise FunctionError(f"{name}: illegal base64 data at input byte {at}")
    if len(kept) % 4:
        raise FunctionError(f"{name}: illegal base64 data at input byte {len(raw)}")
    body = bytes(byte for _, byte in kept)
    return from_bytes(base64.b64decode(body.translate(bytes.maketrans(b"-_", b"+/"))))


def _is_padding(kept: Sequence[tuple[int, int]], place: int) -> bool:
    left = len(kept) - place
    rest_is_padding = all(byte == ord("=") for _, byte in kept[place:])
    return len(kept) % 4 == 0 and left <= 2 and rest_is_padding


def _base64_decode(text: str) -> str:
    return _decode64(text, alphabet=_STANDARD, name="base64Decode")


def _base64_encode(text: str) -> str:
    return base64.b64encode(to_bytes(text)).decode()


def _base64_url_decode(text: str) -> str:
    return _decode64(text, alphabet=_URL, name="base64URLDecode")


def _base64_url_encode(text: str) -> str:
    return base64.urlsafe_b64encode(to_bytes(text)).decode()


def _sha256_hex(text: str) -> str:
    return hashlib.sha256(to_bytes(text)).hexdigest()


def _md5_sum(text: str) -> str:
    return hashlib.md5(to_bytes(text), usedforsecurity=False).hexdigest()


def _hmac_sha256_hex(message: str, key: str) -> str:
    return hmac.new(to_bytes(key), to_bytes(message), hashlib.sha256).hexdigest()


# Numbers


def _parsing(
    name: str, go_name: str, parse: Callable[[str], Any], empty: Any
) -> Callable[[str], Any]:
    def call(text: str) -> Any:
        if not text:
            return empty
        try:
            return parse(text)
        except Malformed as exc:
            raise FunctionError(f"{name}: strconv.{go_name}: parsing {quote(text)}: {exc}") from exc

    return call


def _parse_int64(text: str) -> Int64:
    return Int64(strconv.parse_int(text))


def _parse_uint64(text: str) -> Uint64:
    return Uint64(strconv.parse_uint(text))


_NUMERIC: Final = ("int", "uint", "float")


def _truncated(a: int, b: int) -> int:
    whole = abs(a) // abs(b)
    return whole if (a < 0) == (b < 0) else -whole


def _divide_int(a: int, b: int) -> int:
    if b == 0:
        raise FunctionError("runtime error: integer divide by zero")
    return _truncated(a, b)


def _modulo_int(a: int, b: int) -> int:
    return a - b * _divide_int(a, b)


def _divide_float(a: float, b: float) -> float:
    if b:
        return a / b
    if a == 0 or a != a:
        return float("nan")
    negative = (a < 0) != (str(b).startswith("-"))
    return float("-inf") if negative else float("inf")


def _float_result(operation: Callable[[float, float], float], a: float, b: float) -> float:
    try:
        return operation(a, b)
    except OverflowError:
        return float("inf")


def _arithmetic(
    name: str,
    whole: Callable[[int, int], int],
    fraction: Callable[[float, float], float] | None,
) -> Callable[[Any, Any], Any]:
    """Return the function `name b a`, which gives a op b: int64, uint64 (both unsigned) or float64."""

    def call(b: Any, a: Any) -> Any:
        kinds = kind_of(a), kind_of(b)
        for value, kind in zip((a, b), kinds, strict=True):
            if kind not in _NUMERIC or (kind == "float" and fraction is None):
                shown = fmt.sprintf("%q (%T)", [value, value])
                raise FunctionError(f"{name}: unknown type for {shown}")
        if "float" in kinds and fraction is not None:
            return _float_result(fraction, float(a), float(b))
        result = whole(int(a), int(b))
        return wrap_uint64(result) if kinds == ("uint", "uint") else wrap_int64(result)

    return call


def _pick(name: str, choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def call(b: Any, a: Any) -> Any:
        for value in (a, b):
            if kind_of(value) not in _NUMERIC:
                shown = fmt.sprintf("%q (%T)", [value, value])
                raise FunctionError(f"{name}: unknown type for {shown}")
        chosen = choose(a, b)
        kind = kind_of(chosen)
        if kind == "float":
            return float(chosen)
        return wrap_uint64(int(chosen)) if kind == "uint" else wrap_int64(int(chosen))

    return call


def _loop(*bounds: Any) -> Channel:
    if len(bounds) not in (1, 2):
        raise FunctionError(
            f"loop: wrong number of arguments, expected 1 or 2, but got {len(bounds)}"
        )
    numbers = [_loop_bound(bound) for bound in bounds]
    start, stop = (0, numbers[0]) if len(numbers) == 1 else numbers

    def count() -> Iterator[Int64]:
        return map(Int64, range(start, stop))

    return Channel(count(), go_type="<-chan int64")


def _loop_bound(bound: Any) -> int:
    if kind_of(bound) in ("int", "uint"):
        return int(bound)
    if isinstance(bound, str):
        try:
            return strconv.parse_int(bound)
        except Malformed as exc:
            raise FunctionError(f"loop: strconv.ParseInt: parsing {quote(bound)}: {exc}") from exc
    raise FunctionError(f"loop: wrong argument type {type_of(bound)}")


# Membership


def _same(item: Any, wanted: Any) -> bool:
    kind = kind_of(item)
    if kind in ("int", "float"):
        return kind_of(wanted) == kind and bool(item == wanted)
    if kind == "string":
        if wanted is None:
            raise FunctionError("reflect: call of reflect.Value.Type on zero Value")
        return isinstance(wanted, str) and item == wanted
    return False


def _in(collection: Any, value: Any) -> bool:
    if isinstance(collection, (list, tuple)):
        return any(_same(item, value) for item in collection)
    if isinstance(collection, str):
        if value is None:
            raise FunctionError("reflect: call of reflect.Value.Type on zero Value")
        return isinstance(value, str) and value in collection
    return False


def _contains(value: Any, collection: Any) -> bool:
    return _in(collection, value)


def _contains_all(wanted: Sequence[Any], collection: Any) -> bool:
    return all(_in(collection, item) for item in wanted)


def _contains_any(wanted: Sequence[Any], collection: Any) -> bool:
    return any(_in(collection, item) for item in wanted)


def _contains_none(wanted: Sequence[Any], collection: Any) -> bool:
    return not _contains_any(wanted, collection)


def _contains_not_all(wanted: Sequence[Any], collection: Any) -> bool:
    return not _contains_all(wanted, collection)


# Grouping


def _by_key(pairs: Sequence[KeyPair]) -> Map:
    inner_type = "map[string]*dependency.KeyPair"
    missing = NilPointer("*dependency.KeyPair")
    groups = Map(go_type=f"map[string]{inner_type}", zero=Map(go_type=inner_type, zero=missing))
    for pair in pairs:
        top, _, rest = pair.key.partition("/")
        if rest:
            group = groups.setdefault(top, Map(go_type=inner_type, zero=missing))
            group[rest] = with_key(pair, rest)
    return groups


_TAGGED: Final = frozenset((SNIPPETS, HEALTH_SERVICES, NODE_SERVICES))


def _by_tag(services: Any) -> Map:
    groups = Map(go_type=f"map[string]{LIST}", zero=[])
    if services is None:
        return groups
    if type_of(services) not in _TAGGED:
        raise FunctionError(f"byTag: wrong argument type {type_of(services)}")
    for service in services:
        for tag in service.tags:
            groups.setdefault(tag, []).append(service)
    return groups


def _by_port(services: Any) -> Map:
    groups = Map(
        go_type=f"map[int]{HEALTH_SERVICES}", zero=Slice(go_type=HEALTH_SERVICES), key_type="int"
    )
    for service in services:
        groups.setdefault(service.port, Slice(go_type=HEALTH_SERVICES)).append(service)
    return groups


def _by_meta(names: str, services: Sequence[Any]) -> Map:
    groups = Map(go_type=f"map[string]{HEALTH_SERVICES}", zero=Slice(go_type=HEALTH_SERVICES))
    keys = [each.strip() for each in names.split(",")]
    for service in services:
        parts = [_meta_part(service, key) for key in keys]
        groups.setdefault("_".join(parts), Slice(go_type=HEALTH_SERVICES)).append(service)
    return groups


def _meta_part(service: Any, key: str) -> str:
    name, _, kind = key.partition("|")
    value = service.service_meta.get(name, "")
    if not value:
        value = f"_no_{name}_"
    elif kind == "int":
        try:
            value = f"{strconv.parse_int(value):05d}"
        except Malformed as exc:
            raise FunctionError(
                f"byMeta: cannot parse {value} as number : strconv.Atoi: parsing {quote(value)}: {exc}"
            ) from exc
    return re.sub("[^0-9A-Za-z_]", "_", value)


def _explode(pairs: Sequence[KeyPair]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for pair in pairs:
        _plant(tree, pair.key, pair.value, pair.key, name="explode")
    return tree


def _explode_map(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key in sorted_keys(flat):
        _plant(tree, str(key), flat[key], str(key), name="explodeMap")
    return tree


def _plant(tree: dict[str, Any], key: str, value: Any, path: str, *, name: str) -> None:
    while "/" in key:
        top, _, rest = key.partition("/")
        below = tree.setdefault(top, {})
        if not isinstance(below, dict):
            raise FunctionError(
                f"{name}: not a map: {quote(path)}: {quote(top)} already has value {fmt.sprintf('%q', [below])}"
            )
        tree, path, key = below, key, rest
    if key:
        tree[key] = value


def _merge(onto: dict[str, Any], other: Mapping[str, Any], *, override: bool) -> dict[str, Any]:
    result = dict(onto)
    for key, value in other.items():
        mine = result.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            result[key] = _merge(mine, value, override=override)
        elif key not in result or override or mine in ("", None, 0, False):
            result[key] = value
    return result


def _merge_map(onto: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return _merge(onto, other, override=False)


def _merge_map_with_override(onto: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return _merge(onto, other, override=True)


# Formats


def _parse_json(text: str) -> Any:
    return encode.parse_json(text) if text else {}


def _parse_yaml(text: str) -> Any:
    return encode.parse_yaml(text) if text else {}


def _json(name: str, *, pretty: bool, escape_html: bool) -> Callable[[Any], str]:
    writer = encode.JsonWriter(pretty=pretty, escape_html=escape_html)

    def call(value: Any) -> str:
        try:
            return writer.write(value)
        except FunctionError as exc:
            raise FunctionError(f"{name}: {exc}") from exc

    return call


def _regex_match(pattern: str, text: str) -> bool:
    return regexp.compile_re2(pattern).search(text) is not None


def _regex_replace_all(pattern: str, replacement: str, text: str) -> str:
    return regexp.replace_all(regexp.compile_re2(pattern), replacement, text)


class Scratch:
    """Values kept during one evaluation: what the function `scratch` gives."""

    go_type: ClassVar[str] = "*template.Scratch"

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def key(self, name: str) -> bool:
        """Tell whether there is a value."""
        return name in self.values

    def get(self, name: str) -> Any:
        """Return a value, or nil."""
        return self.values.get(name)

    def put(self, name: str, value: Any) -> str:
        """Keep a value."""
        self.values[name] = value
        return ""

    def set_x(self, name: str, value: Any) -> str:
        """Keep a value unless there is one."""
        self.values.setdefault(name, value)
        return ""

    def map_set(self, name: str, key: str, value: Any) -> str:
        """Keep a value in a map."""
        self._map(name)[key] = value
        return ""

    def map_set_x(self, name: str, key: str, value: Any) -> str:
        """Keep a value in a map unless there is one."""
        self._map(name).setdefault(key, value)
        return ""

    def map_values(self, name: str) -> list[Any]:
        """Return the values of a map by key."""
        found = self.values.get(name)
        return [found[key] for key in sorted_keys(found)] if isinstance(found, dict) else []

    def _map(self, name: str) -> dict[str, Any]:
        found = self.values.setdefault(name, {})
        if not isinstance(found, dict):
            raise FunctionError(f"{quote(name)} is not a map")
        return found

    go_methods: ClassVar[Mapping[str, Function]] = {
        name: Function(name, call, params)
        for name, call, params in (
            ("Key", key, (STRING,)),
            ("Get", get, (STRING,)),
            ("Set", put, (STRING, ANY)),
            ("SetX", set_x, (STRING, ANY)),
            ("MapSet", map_set, (STRING, STRING, ANY)),
            ("MapSetX", map_set_x, (STRING, STRING, ANY)),
            ("MapValues", map_values, (STRING,)),
        )
    }


_TEXT: Final = (STRING,)
_TEXT2: Final = (STRING, STRING)
_TEXT3: Final = (STRING, STRING, STRING)
_PAIR: Final = (ANY, ANY)
_SOME: Final = (LIST, ANY)

HELPERS: Final[Mapping[str, Function]] = {
    name: Function(name, call, params, variadic)
    for name, call, params, variadic in (
        ("add", _arithmetic("add", lambda a, b: a + b, lambda a, b: a + b), _PAIR, ""),
        ("subtract", _arithmetic("subtract", lambda a, b: a - b, lambda a, b: a - b), _PAIR, ""),
        ("multiply", _arithmetic("multiply", lambda a, b: a * b, lambda a, b: a * b), _PAIR, ""),
        ("divide", _arithmetic("divide", _divide_int, _divide_float), _PAIR, ""),
        ("modulo", _arithmetic("modulo", _modulo_int, None), _PAIR, ""),
        ("minimum", _pick("minimum", min), _PAIR, ""),
        ("maximum", _pick("maximum", max), _PAIR, ""),
        ("base64Decode", _base64_decode, _TEXT, ""),
        ("base64Encode", _base64_encode, _TEXT, ""),
        ("base64URLDecode", _base64_url_decode, _TEXT, ""),
        ("base64URLEncode", _base64_url_encode, _TEXT, ""),
        ("byKey", _by_key, (KEY_PAIRS,), ""),
        ("byMeta", _by_meta, (STRING, HEALTH_SERVICES), ""),
        ("byPort", _by_port, (HEALTH_SERVICES,), ""),
        ("byTag", _by_tag, (ANY,), ""),
        ("contains", _contains, _PAIR, ""),
        ("containsAll", _contains_all, _SOME, ""),
        ("containsAny", _contains_any, _SOME, ""),
        ("containsNone", _contains_none, _SOME, ""),
        ("containsNotAll", _contains_not_all, _SOME, ""),
        ("explode", _explode, (KEY_PAIRS,), ""),
        ("explodeMap", _explode_map, (MAP,), ""),
        ("hmacSHA256Hex", _hmac_sha256_hex, _TEXT2, ""),
        ("in", _in, _PAIR, ""),
        ("indent", _indent, ("int", STRING), ""),
        ("join", _join, (STRING, STRINGS), ""),
        ("loop", _loop, (), INTEGER),
        ("md5sum", _md5_sum, _TEXT, ""),
        ("mergeMap", _merge_map, (MAP, MAP), ""),
        ("mergeMapWithOverride", _merge_map_with_override, (MAP, MAP), ""),
        (
            "parseBool",
            _parsing("parseBool", "ParseBool", strconv.parse_bool, empty=False),
            _TEXT,
            "",
        ),
        ("parseFloat", _parsing("parseFloat", "ParseFloat", strconv.parse_float, 0.0), _TEXT, ""),
        ("parseInt", _parsing("parseInt", "ParseInt", _parse_int64, Int64(0)), _TEXT, ""),
        ("parseUint", _parsing("parseUint", "ParseUint", _parse_uint64, Uint64(0)), _TEXT, ""),
        ("parseJSON", _parse_json, _TEXT, ""),
        ("parseYAML", _parse_yaml, _TEXT, ""),
        ("regexMatch", _regex_match, _TEXT2, ""),
        ("regexReplaceAll", _regex_replace_all, _TEXT3, ""),
        ("replaceAll", _replace_all, _TEXT3, ""),
        ("sha256Hex", _sha256_hex, _TEXT, ""),
        ("split", _split, _TEXT2, ""),
        ("splitToMap", _split_to_map, _TEXT3, ""),
        ("toJSON", _json("toJSON", pretty=False, escape_html=True), (ANY,), ""),
        ("toJSONPretty", _json("toJSONPretty", pretty=True, escape_html=True), (ANY,), ""),
        ("toUnescapedJSON", _json("toUnescapedJSON", pretty=False, escape_html=False), (ANY,), ""),
        (
            "toUnescapedJSONPretty",
            _json("toUnescapedJSONPretty", pretty=True, escape_html=False),
            (ANY,),
            "",
        ),
        ("toLower", _lower, _TEXT, ""),
        ("toTitle", _title, _TEXT, ""),
        ("toUpper", _upper, _TEXT, ""),
        ("toTOML", encode.to_toml, (ANY,), ""),
        ("toYAML", encode.to_yaml, (ANY,), ""),
        ("trim", _trim, _TEXT2, ""),
        ("trimPrefix", _trim_prefix, _TEXT2, ""),
        ("trimSpace", _trim_space, _TEXT, ""),
        ("trimSuffix", _trim_suffix, _TEXT2, ""),
    )
}
