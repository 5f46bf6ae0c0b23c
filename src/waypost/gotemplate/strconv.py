"""Go's text forms of strings and numbers. Source: Go packages strconv and unicode."""

from __future__ import annotations

import re
from typing import Final

from waypost.base.errors import Malformed
from waypost.gotemplate.values import from_bytes, to_bytes


class SyntaxInvalid(Malformed):
    """Go's `strconv.ErrSyntax`."""

    def __init__(self) -> None:
        super().__init__("invalid syntax")


class OutOfRange(Malformed):
    """Go's `strconv.ErrRange`."""

    def __init__(self) -> None:
        super().__init__("value out of range")


_ESCAPES: Final = {
    "a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34,
}  # fmt: skip
_SHOWN: Final = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v"}
_PLAIN: Final = re.compile(r"[ !#-\[\]-~]*")


def is_printable(char: str) -> bool:
    """Tell whether Go's `%q` shows a character as it is."""
    return char.isprintable() and not 0xD800 <= ord(char) <= 0xDFFF


def _escape(char: str, quote: str, *, ascii_only: bool) -> str:
    code = ord(char)
    if char in (quote, "\\"):
        return "\\" + char
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if is_printable(char) and (code < 0x80 or not ascii_only):
        return char
    shown = _SHOWN.get(code)
    if shown is not None:
        return shown
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    if 0xD800 <= code <= 0xDFFF:
        return "\\ufffd"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quote(text: str, *, ascii_only: bool = False) -> str:
    """Return `strconv.Quote`."""
    if _PLAIN.fullmatch(text):
        return f'"{text}"'
    return '"' + "".join(_escape(char, '"', ascii_only=ascii_only) for char in text) + '"'


def quote_rune(code: int, *, ascii_only: bool = False) -> str:
    """Return `strconv.QuoteRune`."""
    if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        code = 0xFFFD
    return "'" + _escape(chr(code), "'", ascii_only=ascii_only) + "'"


def unquote_char(text: str, quote_mark: str) -> tuple[int, bool, str]:
    """Return the first character's code, whether it is a raw byte, and the rest. Raises SyntaxInvalid."""
    if not text:
        raise SyntaxInvalid
    head = text[0]
    if head == quote_mark and quote_mark in "'\"":
        raise SyntaxInvalid
    if head != "\\":
        return ord(head), 0xDC80 <= ord(head) <= 0xDCFF, text[1:]
    if len(text) < 2:
        raise SyntaxInvalid
    kind, rest = text[1], text[2:]
    if kind in _ESCAPES:
        if kind in "'\"" and kind != quote_mark:
            raise SyntaxInvalid
        return _ESCAPES[kind], False, rest
    if kind in "xuU":
        width = {"x": 2, "u": 4, "U": 8}[kind]
        digits = rest[:width]
        if len(digits) < width or not re.fullmatch("[0-9a-fA-F]+", digits):
            raise SyntaxInvalid
        code = int(digits, 16)
        if kind == "x":
            return code, True, rest[width:]
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise SyntaxInvalid
        return code, False, rest[width:]
    if kind in "01234567":
        digits = text[1:4]
        if not re.fullmatch("[0-7]{3}", digits) or int(digits, 8) > 255:
            raise SyntaxInvalid
        return int(digits, 8), True, text[4:]
    raise SyntaxInvalid


def unquote(text: str) -> str:
    """Return the string a Go string literal stands for. Raises SyntaxInvalid."""
    if len(text) < 2 or text[0] != text[-1]:
        raise SyntaxInvalid
    mark, inside = text[0], text[1:-1]
    if mark == "`":
        if "`" in inside:
            raise SyntaxInvalid
        return inside.replace("\r", "")
    if mark != '"' or "\n" in inside:
        raise SyntaxInvalid
    if "\\" not in inside and '"' not in inside:
        return inside
    out = bytearray()
    rest = inside
    while rest:
        plain = re.match(r'[^\\"]+', rest)
        if plain:
            out += to_bytes(plain.group())
            rest = rest[plain.end() :]
            continue
        code, raw, rest = unquote_char(rest, '"')
        out += bytes([code]) if raw else chr(code).encode()
    return from_bytes(bytes(out))


_INT: Final = re.compile(r"([+-]?)(0[xX]_?|0[bB]_?|0[oO]_?|0_?(?=[0-9_]))?([0-9a-fA-F_]+)")
_BASES: Final = {"x": 16, "b": 2, "o": 8}


def _scan_int(text: str, *, base: int) -> int:
    if base != 0:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise SyntaxInvalid
        # Python refuses to convert very long digit strings; none of them fits.
        if len(text) > 400:
            raise OutOfRange
        return int(text, base)
    match = _INT.fullmatch(text)
    if match is None:
        raise SyntaxInvalid
    sign, prefix, digits = match.groups()
    radix = 10 if not prefix else _BASES.get(prefix[1:2].lower(), 8)
    if "__" in text or text.endswith("_") or (digits.startswith("_")):
        raise SyntaxInvalid
    if len(digits) > 400:
        raise OutOfRange
    try:
        number = int(digits.replace("_", ""), radix)
    except ValueError as exc:
        raise SyntaxInvalid from exc
    return -number if sign == "-" else number


def parse_int(text: str, *, base: int = 10) -> int:
    """Return `strconv.ParseInt(text, base, 64)`. Raises SyntaxInvalid, OutOfRange."""
    number = _scan_int(text, base=base)
    if not -(2**63) <= number < 2**63:
        raise OutOfRange
    return number


def parse_uint(text: str, *, base: int = 10) -> int:
    """Return `strconv.ParseUint(text, base, 64)`. Raises SyntaxInvalid, OutOfRange."""
    if text[:1] in ("+", "-"):
        raise SyntaxInvalid
    number = _scan_int(text, base=base)
    if number >= 2**64:
        raise OutOfRange
    return number


_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HEX_FLOAT: Final = re.compile(
    r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+"
)
_SPECIAL: Final = re.compile(r"(?i)([+-]?inf(inity)?|nan)")


def parse_float(text: str, *, underscores: bool = False) -> float:
    """Return `strconv.ParseFloat(text, 64)`. Raises SyntaxInvalid, OutOfRange."""
    if "_" in text:
        bare = re.sub("[pP].*", "", text)
        hexadecimal = re.match(r"[+-]?0[xX]", text) is not None
        if not (hexadecimal or underscores) or "__" in bare:
            raise SyntaxInvalid
        text = text.replace("_", "")
    if _SPECIAL.fullmatch(text):
        return float(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
    elif _HEX_FLOAT.fullmatch(text):
        try:
            number = float.fromhex(text)
        except OverflowError as exc:
            raise OutOfRange from exc
    else:
        raise SyntaxInvalid
    if number in (float("inf"), float("-inf")):
        raise OutOfRange
    return number


_BOOLS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


def parse_bool(text: str) -> bool:
    """Return `strconv.ParseBool`. Raises SyntaxInvalid."""
    if text not in _BOOLS:
        raise SyntaxInvalid
    return _BOOLS[text]


def shortest_digits(number: float) -> tuple[str, int]:
    """Return the shortest digits that give the positive finite number back, and the decimal point's place.

    (`"15"`, 2) is 15; (`"15"`, 0) is 0.15. Zero is (`"0"`, 1).
    """
    mantissa, _, exponent = repr(float(number)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    if fraction == "0":
        fraction = ""
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    return (digits, point) if digits else ("0", 1)


def special_float(number: float) -> str:
    """Return `NaN`, `+Inf` or `-Inf`, or nothing for a finite number."""
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "+Inf" if number > 0 else "-Inf"
    return ""


def format_exponent(digits: str, point: int, *, pad: int = 2, mark: str = "e") -> str:
    """Return digits in exponent form."""
    exponent = point - 1
    if digits == "0":
        exponent = 0
    sign = "-" if exponent < 0 else "+"
    rest = "." + digits[1:] if len(digits) > 1 else ""
    return f"{digits[0]}{rest}{mark}{sign}{abs(exponent):0{pad}d}"


def format_fixed(digits: str, point: int) -> str:
    """Return digits in plain decimal form."""
    if point <= 0:
        return "0." + "0" * -point + digits
    if point >= len(digits):
        return digits + "0" * (point - len(digits))
    return f"{digits[:point]}.{digits[point:]}"


def format_float(number: float, *, upper: bool = False, limit: int = 6) -> str:
    """Return the shortest `%g` form, exponents from `limit` digits up: 1e+06, 123456.7, 1e-05."""
    special = special_float(number)
    if special:
        return special
    sign = "-" if str(number).startswith("-") else ""
    digits, point = shortest_digits(abs(number))
    if number != 0 and (point - 1 < -4 or point - 1 >= max(limit, 0)):
        return sign + format_exponent(digits, point, mark="E" if upper else "e")
    return sign + format_fixed(digits, point)
