"""The grammar of Consul's filter expressions: text → tree, with Consul's error texts.

The parser is a PEG: alternatives are tried in order, and what could have followed at the furthest position reached is
what the error names. Results are remembered per position, so that nested parentheses cost linear time.

Source: behaviour of Consul 1.8.7, `?filter=`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, TypeVar

import msgspec

from waypost.base.errors import Malformed

MAX_LENGTH: Final = 16_384
_MAX_DEPTH: Final = 40

T = TypeVar("T")

Operator = Literal[
    "Equal",
    "Not Equal",
    "In",
    "Not In",
    "Is Empty",
    "Is Not Empty",
    "Matches",
    "Not Matches",
]


class Match(msgspec.Struct, frozen=True):
    """One comparison. `value` is None for the emptiness operators."""

    selector: tuple[str, ...]
    operator: Operator
    value: str | None = None

    @property
    def name(self) -> str:
        """The selector as error texts show it."""
        return ".".join(self.selector)


class Not(msgspec.Struct, frozen=True):
    """Negation."""

    operand: Expression


class And(msgspec.Struct, frozen=True):
    """All of them."""

    operands: tuple[Expression, ...]


class Or(msgspec.Struct, frozen=True):
    """Any of them."""

    operands: tuple[Expression, ...]


Expression = Match | Not | And | Or

_BLANK: Final = r"[ \t\r\n]"
_IDENTIFIER_REST: Final = re.compile(r"[a-zA-Z0-9_]*")
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_DIGITS: Final = re.compile(r"[0-9]*")


def parse(text: str) -> Expression:
    """Parse a filter expression. Raises Malformed with Consul's text."""
    if len(text) > MAX_LENGTH:
        msg = f"expression of {len(text)} characters, at most {MAX_LENGTH} are allowed"
        raise Malformed(msg)
    return _Parser(text).parse()


class _Parser:
    """Every rule returns what it parsed, or None after which the position is to be taken back by the caller."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._furthest = 0
        self._expected: set[str] = set()
        self._errors: list[str] = []
        self._known: dict[tuple[str, int], tuple[object, int]] = {}
        self._depth = 0

    def parse(self) -> Expression:
        """Parse the whole text."""
        self._blanks()
        found = self._or()
        if found is not None:
            self._blanks()
            if self._at < len(self._text):
                self._expect("EOF")
                found = None
        if self._errors:
            raise Malformed("\n".join(self._errors))
        if found is None:
            raise Malformed(f"{self._place(self._furthest)}: no match found, {self._wanted()}")
        return found

    # -- failures ------------------------------------------------------------------------------------------------------

    def _expect(self, what: str) -> None:
        """Note that `what` could have stood here."""
        if self._at > self._furthest:
            self._furthest = self._at
            self._expected = set()
        if self._at == self._furthest:
            self._expected.add(what)

    def _wanted(self) -> str:
        wanted = sorted(self._expected - {"EOF"})
        if "EOF" in self._expected:
            wanted.append("EOF")
        if len(wanted) < 2:
            return f"expected: {''.join(wanted)}"
        return f"expected: {', '.join(wanted[:-1])} or {wanted[-1]}"

    def _place(self, position: int) -> str:
        """Return line, column and byte offset as Consul shows them."""
        before = self._text[:position]
        line = before.count("\n") + 1
        column = position - (before.rfind("\n") + 1) + 1
        return f"{line}:{column} ({len(before.encode('utf-8', 'replace'))})"

    def _fail(self, rule: str, what: str, position: int | None = None) -> None:
        place = self._place(self._at if position is None else position)
        text = f'{place}: rule "{rule}": {what}'
        if text not in self._errors:
            self._errors.append(text)

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _blanks(self) -> bool:
        match = _BLANKS.match(self._text, self._at)
        assert match is not None
        found = match.end() > self._at
        self._at = match.end()
        self._expect(_BLANK)
        return found

    def _word(self, word: str) -> bool:
        if self._text.startswith(word, self._at):
            self._at += len(word)
            return True
        self._expect('"' + word.replace('"', '\\"') + '"')
        return False

    def _words(self, *words: str) -> bool:
        """Parse words, each with blanks before it."""
        return all(self._blanks() and self._word(word) for word in words)

    def _character(self, wanted: str, shown: str) -> str | None:
        character = self._text[self._at : self._at + 1]
        if character and character in wanted:
            self._at += 1
            return character
        self._expect(shown)
        return None

    def _remembered(self, rule: str, parse: Callable[[], T]) -> T:
        """Run a rule once per position."""
        key = (rule, self._at)
        if key not in self._known:
            found = parse()
            self._known[key] = (found, self._at)
        result, self._at = self._known[key]
        return result  # type: ignore[return-value]

    # -- logic ---------------------------------------------------------------------------------------------------------

    def _or(self) -> Expression | None:
        return self._remembered("or", self._parse_or)

    def _parse_or(self) -> Expression | None:
        operands = self._chain("or", self._and)
        return operands[0] if len(operands) == 1 else Or(operands) if operands else None

    def _chain(self, word: str, parse: Callable[[], Expression | None]) -> tuple[Expression, ...]:
        """Parse operands with `word` between them, as many as there are."""
        operands: list[Expression] = []
        end = self._at
        operand = parse()
        while operand is not None:
            operands.append(operand)
            end = self._at
            if not (self._words(word) and self._blanks()):
                break
            operand = parse()
        self._at = end
        return tuple(operands)

    def _and(self) -> Expression | None:
        return self._remembered("and", self._parse_and)

    def _parse_and(self) -> Expression | None:
        operands = self._chain("and", self._not)
        return operands[0] if len(operands) == 1 else And(operands) if operands else None

    def _not(self) -> Expression | None:
        return self._remembered("not", self._parse_not)

    def _parse_not(self) -> Expression | None:
        # Every `not` that is followed by something else than an operator; the last may have been a selector after all.
        starts = [self._at]
        while self._word("not") and self._blanks():
            starts.append(self._at)
        while starts:
            self._at = starts.pop()
            operand = self._group()
            if operand is not None:
                return Not(operand) if len(starts) % 2 else operand
        return None

    def _group(self) -> Expression | None:
        start = self._at
        opened = self._word("(")
        if opened:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                msg = "expression nests too deeply"
                raise Malformed(msg)
            self._blanks()
            inner = self._or()
            self._depth -= 1
            if inner is not None:
                self._blanks()
                if self._word(")"):
                    return inner
                unclosed = self._at
                self._at = start
                self._fail("grouping", "Unmatched parentheses", unclosed)
                return None
        self._at = start
        return self._match()

    # -- comparisons ---------------------------------------------------------------------------------------------------

    def _match(self) -> Match | None:
        start = self._at
        found = self._selector_first()
        if found is not None:
            return found
        self._at = start
        return self._value_first()

    def _selector_first(self) -> Match | None:
        selector = self._selector()
        if selector is None:
            return None
        after = self._at
        for operator, words, is_sign in _SELECTOR_OPERATORS:
            self._at = after
            if is_sign:
                self._blanks()
                if not self._word(words[0]):
                    continue
                self._blanks()
            elif not (self._words(*words) and self._blanks()):
                continue
            value = self._value()
            if value is not None:
                return Match(selector, operator, value)
        for operator, words in _EMPTY_OPERATORS:
            self._at = after
            if self._words(*words):
                return Match(selector, operator)
        return None

    def _value_first(self) -> Match | None:
        value = self._value()
        if value is None:
            return None
        after = self._at
        for operator, words in _VALUE_OPERATORS:
            self._at = after
            if self._words(*words) and self._blanks():
                selector = self._selector()
                if selector is not None:
                    return Match(selector, operator, value)
                self._fail("match", "Invalid selector")
                return None
        return None

    def _selector(self) -> tuple[str, ...] | None:
        return self._remembered("selector", self._parse_selector)

    def _parse_selector(self) -> tuple[str, ...] | None:
        first = self._identifier()
        if first is None:
            return None
        found = [first]
        while True:
            end = self._at
            following = self._identifier() if self._word(".") else self._index()
            if following is None:
                self._at = end
                return tuple(found)
            found.append(following)

    def _identifier(self) -> str | None:
        start = self._at
        if self._character(_LETTERS, "[a-zA-Z]") is None:
            return None
        match = _IDENTIFIER_REST.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        self._expect("[a-zA-Z0-9_]")
        return self._text[start : self._at]

    def _index(self) -> str | None:
        if not self._word("["):
            return None
        self._blanks()
        start = self._at
        text = self._string()
        if text is None:
            self._at = start
            self._fail("index", "Invalid index")
            return None
        self._blanks()
        if self._word("]"):
            return text
        self._fail("index", "Unclosed index expression")
        return None

    # -- values --------------------------------------------------------------------------------------------------------

    def _value(self) -> str | None:
        return self._remembered("value", self._parse_value)

    def _parse_value(self) -> str | None:
        selector = self._selector()
        if selector is not None:
            return ".".join(selector)
        start = self._at
        number = self._number()
        if number is not None:
            return number
        self._at = start
        return self._string()

    def _number(self) -> str | None:
        start = self._at
        self._word("-")
        if not self._word("0"):
            if self._character("123456789", "[1-9]") is None:
                return None
            self._more_digits()
        end = self._at
        if self._word("."):
            if self._character("0123456789", "[0-9]") is None:
                self._at = end
            else:
                self._more_digits()
        end = self._at
        if self._blanks() or end == len(self._text) or self._closes(end):
            self._at = end
            return self._text[start:end]
        self._at = end
        self._fail("number", "Invalid number literal")
        return None

    def _closes(self, position: int) -> bool:
        self._at = position
        self._expect("EOF")
        return self._word(")")

    def _more_digits(self) -> None:
        match = _DIGITS.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        self._expect("[0-9]")

    def _string(self) -> str | None:
        start = self._at
        if not (self._word("`") or self._word('"')):
            return None
        quote = self._text[start]
        end = self._text.find(quote, self._at)
        if end < 0:
            self._at = len(self._text)
            self._fail("string", "Unterminated string literal")
            return None
        inner = self._text[self._at : end]
        self._at = end + 1
        if quote == "`":
            return inner.replace("\r", "")
        unquoted = _unquote(inner)
        if unquoted is None:
            self._fail("string", "invalid syntax", start)
            return ""
        return unquoted


_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SELECTOR_OPERATORS: Final[tuple[tuple[Operator, tuple[str, ...], bool], ...]] = (
    ("Equal", ("==",), True),
    ("Not Equal", ("!=",), True),
    ("In", ("contains",), False),
    ("Not In", ("not", "contains"), False),
    ("Matches", ("matches",), False),
    ("Not Matches", ("not", "matches"), False),
)
_EMPTY_OPERATORS: Final[tuple[tuple[Operator, tuple[str, ...]], ...]] = (
    ("Is Empty", ("is", "empty")),
    ("Is Not Empty", ("is", "not", "empty")),
)
_VALUE_OPERATORS: Final[tuple[tuple[Operator, tuple[str, ...]], ...]] = (
    ("In", ("in",)),
    ("Not In", ("not", "in")),
)

_ESCAPE: Final = re.compile(
    r"\\(?:([abfnrtv\\\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))"
)
_SIMPLE: Final = dict(zip('abfnrtv\\"', '\a\b\f\n\r\t\v\\"', strict=True))


def _unquote(inner: str) -> str | None:
    """Return what Go's strconv.Unquote makes of the text between double quotes, None when it refuses."""
    if "\n" in inner:
        return None
    out = bytearray()
    at = 0
    while at < len(inner):
        if inner[at] != "\\":
            out += inner[at].encode("utf-8", "replace")
            at += 1
            continue
        match = _ESCAPE.match(inner, at)
        if match is None:
            return None
        simple, byte, short, long, octal = match.groups()
        if simple:
            out += _SIMPLE[simple].encode()
        elif byte or octal:
            code = int(byte, 16) if byte else int(octal, 8)
            if code > 0xFF:
                return None
            out.append(code)
        else:
            code = int(short or long, 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                return None
            out += chr(code).encode()
        at = match.end()
    return out.decode("utf-8", "replace")
