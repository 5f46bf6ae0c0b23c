"""Reading JSON the way Go's encoding/json does, with its words for what is wrong.

Clients of Consul parse and show these texts. What Go accepts is accepted: anything after the first value is ignored,
bytes that are not UTF-8 become U+FFFD, a duplicate key's last value counts. Source: encoding/json, `scanner.go`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn, Self

import msgspec

from waypost.base.errors import Malformed

_MAX_DEPTH: Final = 1000
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(r"[0-9]*")
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Number(float):
    """A number with a fraction or an exponent; `literal` is how it was written."""

    literal: str

    def __new__(cls, literal: str) -> Self:
        """Parse `literal`."""
        self = super().__new__(cls, literal)
        self.literal = literal
        return self


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=Number)


def parse(body: bytes) -> Any:
    """Return the first JSON value of `body` as plain Python values; fractions are `Number`.

    Raises Malformed with Go's text: `EOF`, `unexpected EOF`, `invalid character 'b' looking for …`.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parse_slowly(body)


def _parse_slowly(body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    end = _Scanner(text).value_end()
    value = json.loads(text[:end], parse_float=Number, strict=False)
    return _without_surrogates(value) if "\\u" in text else value


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        if _LONE_SURROGATE.search(value):
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    return value


def quote_character(character: str) -> str:
    """Return a character as Go's scanner shows it in an error, between single quotes."""
    if character == "'":
        return r"'\''"
    if character == '"':
        return "'\"'"
    return "'" + quote(character)[1:-1] + "'"


_ESCAPES: Final = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    "\\": r"\\",
    '"': r"\"",
}


def quote(text: str) -> str:
    """Return `text` between double quotes as Go's strconv.Quote writes it."""
    out = []
    for character in text:
        code = ord(character)
        if character in _ESCAPES:
            out.append(_ESCAPES[character])
        elif character.isprintable():
            out.append(character)
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


class _Scanner:
    """Finds the end of the first value, or says what is wrong where Go would notice it first."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def value_end(self) -> int:
        """Return the offset after the first value."""
        self._skip_space()
        if self._at == len(self._text):
            msg = "EOF"
            raise Malformed(msg)
        open_: list[str] = []
        self._begin_value(open_)
        while open_:
            if open_[-1] == "{":
                self._after_member(open_)
            else:
                self._after_element(open_)
        return self._at

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _peek(self) -> str:
        if self._at >= len(self._text):
            msg = "unexpected EOF"
            raise Malformed(msg)
        return self._text[self._at]

    def _fail(self, context: str) -> NoReturn:
        # Go scans bytes: of a character outside ASCII it shows the first byte, as if that were Latin-1.
        character = self._peek()
        first = chr(character.encode("utf-8", "replace")[0]) if ord(character) > 0x7F else character
        msg = f"invalid character {quote_character(first)} {context}"
        raise Malformed(msg)

    def _begin_value(self, open_: list[str]) -> None:
        """Scan a scalar, or enter objects and arrays up to their first scalar."""
        while True:
            self._skip_space()
            character = self._peek()
            if character == "{":
                self._at += 1
                self._skip_space()
                if self._peek() == "}":
                    self._at += 1
                    return
                self._push(open_, "{")
                self._key()
            elif character == "[":
                self._at += 1
                self._skip_space()
                if self._peek() == "]":
                    self._at += 1
                    return
                self._push(open_, "[")
            else:
                self._scalar(character)
                return

    @staticmethod
    def _push(open_: list[str], kind: str) -> None:
        if len(open_) >= _MAX_DEPTH:
            msg = "exceeded max depth"
            raise Malformed(msg)
        open_.append(kind)

    def _key(self) -> None:
        self._skip_space()
        if self._peek() != '"':
            self._fail("looking for beginning of object key string")
        self._string()
        self._skip_space()
        if self._peek() != ":":
            self._fail("after object key")
        self._at += 1

    def _after_member(self, open_: list[str]) -> None:
        self._skip_space()
        character = self._peek()
        if character == ",":
            self._at += 1
            self._key()
            self._begin_value(open_)
        elif character == "}":
            self._at += 1
            open_.pop()
        else:
            self._fail("after object key:value pair")

    def _after_element(self, open_: list[str]) -> None:
        self._skip_space()
        character = self._peek()
        if character == ",":
            self._at += 1
            self._begin_value(open_)
        elif character == "]":
            self._at += 1
            open_.pop()
        else:
            self._fail("after array element")

    def _scalar(self, character: str) -> None:
        if character == '"':
            self._string()
        elif character == "-" or (character.isascii() and character.isdigit()):
            self._number()
        elif character in ("t", "f", "n"):
            self._literal({"t": "true", "f": "false", "n": "null"}[character])
        else:
            self._fail("looking for beginning of value")

    def _literal(self, word: str) -> None:
        for expected in word:
            if self._peek() != expected:
                self._fail(f"in literal {word} (expecting {quote_character(expected)})")
            self._at += 1

    def _string(self) -> None:
        self._at += 1
        while True:
            match = _PLAIN.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            character = self._peek()
            if character == '"':
                self._at += 1
                return
            if character != "\\":
                self._fail("in string literal")
            self._at += 1
            escape = self._peek()
            if escape == "u":
                self._at += 1
                for _ in range(4):
                    if self._peek() not in _HEX:
                        self._fail(r"in \u hexadecimal character escape")
                    self._at += 1
            elif escape in 'bfnrt\\/"':
                self._at += 1
            else:
                self._fail("in string escape code")

    def _digits(self) -> int:
        match = _DIGITS.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return match.end() - match.start()

    def _number(self) -> None:
        if self._text[self._at] == "-":
            self._at += 1
            if not ("0" <= self._peek() <= "9"):
                self._fail("in numeric literal")
        if self._text[self._at] == "0":
            self._at += 1
        else:
            self._digits()
        if self._text[self._at : self._at + 1] == ".":
            self._at += 1
            if not self._digits():
                self._fail("after decimal point in numeric literal")
        if self._text[self._at : self._at + 1] in ("e", "E"):
            self._at += 1
            if self._peek() in "+-":
                self._at += 1
            if not self._digits():
                self._fail("in exponent of numeric literal")
