"""Go's `fmt`: printf, print and println over Go values. Mistakes become text such as `%!d(string=x)`, never errors.

Source: Go package fmt, "Printing".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from waypost.gotemplate import strconv
from waypost.gotemplate.values import (
    INVALID,
    Struct,
    from_bytes,
    kind_of,
    shown_fields,
    sorted_keys,
    to_bytes,
    type_of,
)

MAX_WIDTH: Final = 1_000_000
"""Go refuses a greater width or precision."""
_MAX_DEPTH: Final = 100


class _Flags:
    """The flags, width and precision of one verb."""

    __slots__ = ("minus", "plus", "plus_v", "prec", "sharp", "sharp_v", "space", "width", "zero")

    def __init__(self) -> None:
        self.minus = self.plus = self.sharp = self.space = self.zero = False
        self.plus_v = self.sharp_v = False
        self.width: int | None = None
        self.prec: int | None = None

    def pad(self, text: str) -> str:
        """Return the text filled up to the width (counted in characters)."""
        if self.width is None or len(text) >= self.width:
            return text
        if self.minus:
            return text.ljust(self.width)
        return text.rjust(self.width, "0" if self.zero else " ")


def sprint(args: Sequence[Any]) -> str:
    """Return Go's `Sprint`: a blank between neighbours of which neither is a string."""
    out: list[str] = []
    was_string = True
    for position, arg in enumerate(args):
        is_string = isinstance(arg, str)
        if position and not is_string and not was_string:
            out.append(" ")
        out.append(arg if isinstance(arg, str) else show(arg))
        was_string = is_string
    return "".join(out)


def sprintln(args: Sequence[Any]) -> str:
    """Return Go's `Sprintln`."""
    return " ".join(show(arg) for arg in args) + "\n"


def show(value: Any) -> str:
    """Return the `%v` form of a value."""
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    return _value(value, "v", _Flags(), 0)


def sprintf(template: str, args: Sequence[Any]) -> str:
    """Return Go's `Sprintf`."""
    return _Printer(template, args).run()


_PLAIN_RUN: Final = re.compile(r"[^%]+")


class _Printer:
    """One call of printf: walks the format and takes arguments."""

    def __init__(self, template: str, args: Sequence[Any]) -> None:
        self.template = template
        self.args = args
        self.at = 0
        self.next = 0
        self.reordered = False
        self.good_index = True
        self.after_index = False

    def run(self) -> str:
        out: list[str] = []
        end = len(self.template)
        while self.at < end:
            plain = _PLAIN_RUN.match(self.template, self.at)
            if plain:
                out.append(plain.group())
                self.at = plain.end()
                continue
            self.at += 1
            out.append(self._verb())
        if not self.reordered and self.next < len(self.args):
            extra = ", ".join(
                "<nil>" if _is_nil(arg) else f"{type_of(arg)}={show(arg)}"
                for arg in self.args[self.next :]
            )
            out.append(f"%!(EXTRA {extra})")
        return "".join(out)

    def _verb(self) -> str:
        flags = _Flags()
        self.good_index = True
        self.after_index = False
        self._flags(flags)
        self._index()
        out = self._width(flags)
        if self.template[self.at : self.at + 1] == ".":
            self.at += 1
            if self.after_index:
                self.good_index = False
            self._index()
            out += self._precision(flags)
        if not self.after_index:
            self._index()
        if self.at >= len(self.template):
            return out + "%!(NOVERB)"
        verb = self.template[self.at]
        self.at += 1
        if verb == "%":
            return out + "%"
        if not self.good_index:
            return out + f"%!{verb}(BADINDEX)"
        if self.next >= len(self.args):
            return out + f"%!{verb}(MISSING)"
        if verb == "v":
            flags.sharp_v, flags.sharp = flags.sharp, False
            flags.plus_v, flags.plus = flags.plus, False
        elif verb == "w":
            self.next += 1
            return out + _bad(verb, self.args[self.next - 1], _Flags())
        arg = self.args[self.next]
        self.next += 1
        return out + _argument(arg, verb, flags)

    def _flags(self, flags: _Flags) -> None:
        while self.at < len(self.template):
            char = self.template[self.at]
            if char == "#":
                flags.sharp = True
            elif char == "0":
                flags.zero = not flags.minus
            elif char == "+":
                flags.plus = True
            elif char == "-":
                flags.minus, flags.zero = True, False
            elif char == " ":
                flags.space = True
            else:
                return
            self.at += 1

    def _index(self) -> None:
        """Read `[n]`, which selects the next argument."""
        if self.template[self.at : self.at + 1] != "[":
            self.after_index = False
            return
        self.reordered = True
        close = self.template.find("]", self.at)
        if close < 0:
            self.good_index = False
            self.at += 1
            return
        inside = self.template[self.at + 1 : close]
        self.at = close + 1
        if not re.fullmatch("[0-9]{1,7}", inside) or not 1 <= int(inside) <= len(self.args):
            self.good_index = False
            return
        self.next = int(inside) - 1
        self.after_index = True

    def _star(self) -> int | None:
        """Take an argument as width or precision; None if it is no fitting integer."""
        self.at += 1
        if self.next >= len(self.args):
            return None
        arg = self.args[self.next]
        self.next += 1
        self.after_index = False
        if isinstance(arg, bool) or not isinstance(arg, int) or abs(arg) > MAX_WIDTH:
            return None
        return int(arg)

    def _number(self) -> tuple[bool, int | None]:
        match = re.compile("[0-9]+").match(self.template, self.at)
        if match is None:
            return False, None
        self.at = match.end()
        digits = match.group()
        return True, int(digits) if len(digits) < 8 and int(digits) <= MAX_WIDTH else None

    def _width(self, flags: _Flags) -> str:
        if self.template[self.at : self.at + 1] == "*":
            width = self._star()
            if width is None:
                return "%!(BADWIDTH)"
            if width < 0:
                flags.minus, flags.zero, width = True, False, -width
            flags.width = width
            return ""
        found, flags.width = self._number()
        if found and self.after_index:
            self.good_index = False
        return ""

    def _precision(self, flags: _Flags) -> str:
        if self.template[self.at : self.at + 1] == "*":
            precision = self._star()
            if precision is None:
                return "%!(BADPREC)"
            flags.prec = precision if precision >= 0 else None
            return "%!(BADPREC)" if precision < 0 else ""
        found, flags.prec = self._number()
        if not found:
            flags.prec = 0
        return ""


def _is_nil(arg: Any) -> bool:
    return arg is None or arg is INVALID


def _argument(arg: Any, verb: str, flags: _Flags) -> str:
    if _is_nil(arg):
        if verb in "Tv":
            return flags.pad("<nil>")
        return _bad(verb, arg, flags)
    if verb == "T":
        return _text(type_of(arg), "s", flags)
    if verb == "p":
        return _pointer(arg, verb, flags)
    return _value(arg, verb, flags, 0)


def _bad(verb: str, value: Any, flags: _Flags) -> str:
    if _is_nil(value):
        return f"%!{verb}(<nil>)"
    # Go prints the value inside with the verb's own flags: %.2f of 3 is %!f(int=03).
    return f"%!{verb}({type_of(value)}={_value(value, 'v', flags, 0)})"


def _value(value: Any, verb: str, flags: _Flags, depth: int) -> str:
    kind = kind_of(value)
    if kind == "string":
        return _text(value, verb, flags)
    if kind == "bool":
        return flags.pad("true" if value else "false") if verb in "tv" else _bad(verb, value, flags)
    if kind in ("int", "uint"):
        return _integer(value, verb, flags, unsigned=kind == "uint")
    if kind == "float":
        return _float(value, verb, flags)
    if kind == "complex":
        return _complex(value, verb, flags)
    if depth > _MAX_DEPTH:
        return "..."
    if kind == "slice":
        return _slice(value, verb, flags, depth)
    if kind == "map":
        return _map(value, verb, flags, depth)
    if kind == "struct":
        return _struct(value, verb, flags, depth)
    if kind in ("interface", "invalid"):
        if flags.sharp_v and depth:
            return "interface {}(nil)"
        return flags.pad("<nil>")
    return _pointer(value, verb, flags)


# Strings


def _text(value: str, verb: str, flags: _Flags) -> str:
    text = str(value)
    if verb == "v":
        if flags.sharp_v:
            return flags.pad(strconv.quote(text))
        return flags.pad(_cut(text, flags))
    if verb == "s":
        return flags.pad(_cut(text, flags))
    if verb == "q":
        text = _cut(text, flags)
        if flags.sharp and "`" not in text and all(ch == "\t" or ch >= " " for ch in text):
            return flags.pad(f"`{text}`")
        return flags.pad(strconv.quote(text, ascii_only=flags.plus))
    if verb in "xX":
        return _hex(to_bytes(text), verb, flags)
    return _bad(verb, value, flags)


def _cut(text: str, flags: _Flags) -> str:
    return text if flags.prec is None else text[: flags.prec]


def _hex(raw: bytes, verb: str, flags: _Flags) -> str:
    if flags.prec is not None:
        raw = raw[: flags.prec]
    prefix = "0x" if flags.sharp else ""
    digits = [f"{byte:02x}" for byte in raw]
    if flags.space:
        text = " ".join(prefix + pair for pair in digits)
    else:
        text = prefix + "".join(digits) if digits else ""
    return flags.pad(text.upper() if verb == "X" else text)


# Numbers

_BASES: Final = {"b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}
_PREFIXES: Final = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}


def _integer(value: int, verb: str, flags: _Flags, *, unsigned: bool) -> str:
    number = int(value)
    if verb == "v":
        if flags.sharp_v and unsigned:
            return _digits(number, "x", flags, prefix="0x")
        return _digits(number, "d", flags)
    if verb == "d":
        return _digits(number, "d", flags)
    if verb in _BASES:
        prefix = "0o" if verb == "O" else _PREFIXES[verb] if flags.sharp else ""
        return _digits(number, _BASES[verb], flags, prefix=prefix)
    if verb == "c":
        return flags.pad(_char(number))
    if verb == "q":
        return flags.pad(strconv.quote_rune(number, ascii_only=flags.plus))
    if verb == "U":
        return _unicode(number, flags)
    return _bad(verb, value, flags)


def _char(code: int) -> str:
    return chr(code) if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else "\ufffd"


def _unicode(number: int, flags: _Flags) -> str:
    text = f"U+{number % 2**64:0{max(4, flags.prec or 0)}X}"
    if flags.sharp and 0 <= number <= 0x10FFFF and strconv.is_printable(_char(number)):
        text += f" '{_char(number)}'"
    zero, flags.zero = flags.zero, False
    text = flags.pad(text)
    flags.zero = zero
    return text


def _digits(number: int, base: str, flags: _Flags, *, prefix: str = "") -> str:
    sign = "-" if number < 0 else "+" if flags.plus else " " if flags.space else ""
    digits = format(abs(number), base)
    if flags.prec is not None:
        if flags.prec == 0 and number == 0:
            return " " * (flags.width or 0)
        digits = digits.rjust(flags.prec, "0")
    elif flags.zero and flags.width is not None and not flags.minus:
        # Go counts the sign, but not the prefix, among the width's zeros.
        digits = digits.rjust(flags.width - len(sign), "0")
    if prefix == "0" and digits.startswith("0"):
        prefix = ""
    text = sign + prefix + digits
    if flags.width is None:
        return text
    return text.ljust(flags.width) if flags.minus else text.rjust(flags.width)


def _float(value: float, verb: str, flags: _Flags) -> str:
    if verb not in "veEfFgGbxX":
        return _bad(verb, value, flags)
    return _pad_number(_float_text(float(value), verb, flags), flags)


def _pad_number(text: str, flags: _Flags) -> str:
    sign, rest = (text[0], text[1:]) if text[:1] in "+-" and text else ("", text)
    if rest in ("Inf", "NaN"):
        body = ("+" if rest == "NaN" and flags.plus else sign) + rest
        if flags.width is None:
            return body
        return body.ljust(flags.width) if flags.minus else body.rjust(flags.width)
    if not sign:
        sign = "+" if flags.plus else " " if flags.space else ""
    if flags.zero and flags.width is not None and not flags.minus:
        return sign + rest.rjust(flags.width - len(sign), "0")
    return flags.pad(sign + rest)


def _float_text(number: float, verb: str, flags: _Flags) -> str:
    special = strconv.special_float(number)
    if special:
        return special
    precision = flags.prec
    sign = "-" if str(number).startswith("-") else ""
    size = abs(number)
    if verb in "fF":
        return f"{number:.{6 if precision is None else precision}f}"
    if verb in "eE":
        return f"{number:.{6 if precision is None else precision}{verb}}"
    if verb in "gGv":
        upper = verb == "G"
        if precision is None:
            text = strconv.format_float(number, upper=upper, limit=21 if flags.sharp_v else 6)
        else:
            text = f"{number:.{max(precision, 1)}{'G' if upper else 'g'}}"
        return _keep_zeros(text, precision) if flags.sharp else text
    if verb == "b":
        mantissa, exponent = _mantissa(size)
        return f"{sign}{mantissa}p{exponent:+d}"
    text = sign + _hex_float(size, precision)
    return text.upper() if verb == "X" else text


def _keep_zeros(text: str, precision: int | None) -> str:
    """Apply the `#` flag: a decimal point and all digits asked for."""
    mantissa, mark, exponent = re.fullmatch(r"(.*?)([eE].*?)?()", text).groups()  # type: ignore[union-attr]
    wanted = 6 if precision is None else max(precision, 1)
    if "." not in mantissa:
        mantissa += "."
    digits = len(re.sub("[^0-9]", "", mantissa).lstrip("0"))
    return str(mantissa) + "0" * max(0, wanted - max(digits, 1)) + (mark or "") + str(exponent)


def _mantissa(size: float) -> tuple[int, int]:
    if size == 0:
        return 0, -1074
    mantissa, exponent = int(size.hex().split("p")[0].replace("0x", "").replace(".", ""), 16), 0
    exponent = int(size.hex().split("p")[1]) - 52
    return mantissa, exponent


def _hex_float(size: float, precision: int | None) -> str:
    head, exponent = size.hex().split("p")
    fraction = head[4:]
    lead = int(head[2])
    if precision is None:
        fraction = fraction.rstrip("0")
    elif precision < len(fraction):
        whole = int(str(lead) + fraction, 16)
        drop = 4 * (len(fraction) - precision)
        half = 1 << (drop - 1)
        kept, rest = whole >> drop, whole & ((1 << drop) - 1)
        if rest > half or (rest == half and kept & 1):
            kept += 1
        digits = f"{kept:0{precision + 1}x}"
        lead, fraction = (
            int(digits[:-precision] if precision else digits, 16),
            digits[len(digits) - precision :] if precision else "",
        )
    else:
        fraction = fraction.ljust(precision, "0")
    power = int(exponent)
    if lead == 2:
        lead, power = 1, power + 1
    return (
        f"0x{lead}{'.' + fraction if fraction else ''}p{'-' if power < 0 else '+'}{abs(power):02d}"
    )


def _complex(value: complex, verb: str, flags: _Flags) -> str:
    if verb not in "veEfFgGbxX":
        return _bad(verb, value, flags)
    real = _float(value.real, verb, flags)
    plus, flags.plus = flags.plus, True
    imaginary = _float(value.imag, verb, flags)
    flags.plus = plus
    return f"({real}{imaginary}i)"


# Composites


def _slice(value: Sequence[Any], verb: str, flags: _Flags, depth: int) -> str:
    go_type = type_of(value)
    if go_type == "[]uint8" and verb in "sqxX":
        return _text(from_bytes(bytes(value)), verb, flags)
    if verb == "p":
        return _pointer(value, verb, flags)
    if flags.sharp_v:
        inside = ", ".join(_value(item, verb, flags, depth + 1) for item in value)
        return f"{go_type}{{{inside}}}"
    return "[" + " ".join(_element(item, verb, flags, depth) for item in value) + "]"


def _element(item: Any, verb: str, flags: _Flags, depth: int) -> str:
    if _is_nil(item):
        if flags.sharp_v:
            return "interface {}(nil)"
        return flags.pad("<nil>") if verb == "v" else f"%!{verb}(<nil>)"
    return _value(item, verb, flags, depth + 1)


def _map(value: dict[Any, Any], verb: str, flags: _Flags, depth: int) -> str:
    pairs = [
        _element(key, verb, flags, depth) + ":" + _element(value[key], verb, flags, depth)
        for key in sorted_keys(value)
    ]
    if flags.sharp_v:
        return f"{type_of(value)}{{{', '.join(pairs)}}}"
    return f"map[{' '.join(pairs)}]"


def _struct(value: Any, verb: str, flags: _Flags, depth: int) -> str:
    if not isinstance(value, Struct):
        return flags.pad(str(value))
    if value.go_pointer and depth > 0:
        return _pointer(value, verb, flags)
    body = struct_body(value, verb, flags, depth)
    return "&" + body if value.go_pointer else body


def struct_body(value: Struct, verb: str, flags: _Flags | None = None, depth: int = 0) -> str:
    """Return the printed fields of a struct: `{v1 v2}`."""
    flags = flags or _Flags()
    parts = []
    for name, item in shown_fields(value).items():
        text = _element(item, verb, flags, depth)
        parts.append(f"{name}:{text}" if flags.plus_v or flags.sharp_v else text)
    if flags.sharp_v:
        return f"{value.go_name}{{{', '.join(parts)}}}"
    return "{" + " ".join(parts) + "}"


def _pointer(value: Any, verb: str, flags: _Flags) -> str:
    kind = kind_of(value)
    if kind == "ptr":
        if verb == "v":
            return f"({type_of(value)})(nil)" if flags.sharp_v else flags.pad("<nil>")
        return f"%!{verb}({type_of(value)}=<nil>)" if verb not in "pxXdob" else flags.pad("0")
    if kind not in ("struct", "slice", "map", "chan", "func"):
        return _bad(verb, value, flags)
    address = f"0xc{id(value) & 0xFFFFFFFFF:09x}"
    if flags.sharp_v:
        return f"({type_of(value)})({address})"
    if verb in "vp":
        return flags.pad(address)
    if verb in "xXdob":
        return _digits(int(address, 16), verb, flags)
    return f"%!{verb}({type_of(value)}={address})"
