"""Tokens of a template. Source: Go package text/template/parse, "lex"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from waypost.gotemplate.strconv import is_printable, quote

EOF: Final = "eof"
ERROR: Final = "error"
TEXT: Final = "text"
LEFT: Final = "left delimiter"
RIGHT: Final = "right delimiter"
SPACE: Final = "space"
ASSIGN: Final = "="
DECLARE: Final = ":="
PIPE: Final = "|"
STRING: Final = "string"
RAW: Final = "raw string"
CHAR_CONSTANT: Final = "char"
NUMBER: Final = "number"
COMPLEX: Final = "complex"
VARIABLE: Final = "variable"
FIELD: Final = "field"
IDENTIFIER: Final = "identifier"
BOOL: Final = "bool"
OPEN: Final = "("
CLOSE: Final = ")"
CHAR: Final = "character"
DOT: Final = "."
KEYWORDS: Final = frozenset(
    (
        "block",
        "break",
        "continue",
        "define",
        "else",
        "end",
        "if",
        "nil",
        "range",
        "template",
        "with",
    )
)
"""The kind of a keyword's token is the word."""

_SPACES: Final = " \t\r\n"
_ENDS_OPERAND: Final = frozenset(_SPACES + ".,|:)(=")


class Token(NamedTuple):
    """One token; `line` counts from 1, `pos` is the index of its first character."""

    kind: str
    pos: int
    text: str
    line: int

    def __str__(self) -> str:
        if self.kind == EOF:
            return "EOF"
        if self.kind == ERROR:
            return self.text
        if self.kind in KEYWORDS or self.kind == DOT:
            return f"<{self.text}>"
        if len(self.text.encode("utf-8", "surrogateescape")) > 10:
            return quote(self.text[:10]) + "..."
        return quote(self.text)


def _unicode(char: str) -> str:
    if not char:
        return "U+FFFFFFFFFFFFFFFF"
    shown = f" '{char}'" if is_printable(char) else ""
    return f"U+{ord(char):04X}{shown}"


def _is_word(char: str) -> bool:
    return char == "_" or char.isalpha() or char.isdecimal()


class Lexer:
    """The tokens of one text, made when asked for. After an error only the error comes again."""

    def __init__(self, text: str, *, left: str = "{{", right: str = "}}") -> None:
        self.text = text
        self.left = left
        self.right = right
        self._tokens = self._run()
        self._last = Token(EOF, len(text), "", 1)
        self._pos = 0
        self._start = 0
        self._line = 1
        self._start_line = 1
        self._parens = 0
        self._failed = False

    def next(self) -> Token:
        """Return the next token; at the end, EOF or the error again and again."""
        self._last = next(self._tokens, self._last)
        return self._last

    def _emit(self, kind: str) -> Token:
        token = Token(kind, self._start, self.text[self._start : self._pos], self._start_line)
        self._line += token.text.count("\n")
        self._start, self._start_line = self._pos, self._line
        return token

    def _skip(self) -> None:
        self._line += self.text.count("\n", self._start, self._pos)
        self._start, self._start_line = self._pos, self._line

    def _error(self, message: str) -> Token:
        self._failed = True
        return Token(ERROR, self._start, message, self._start_line)

    def _peek(self) -> str:
        return self.text[self._pos : self._pos + 1]

    def _accept(self, chars: str) -> bool:
        char = self._peek()
        if char and char in chars:
            self._pos += 1
            return True
        return False

    def _accept_run(self, chars: str) -> None:
        while self._accept(chars):
            pass

    def _run(self) -> Iterator[Token]:
        text, left = self.text, self.left
        while not self._failed:
            at = text.find(left, self._pos)
            if at < 0:
                self._pos = len(text)
                if self._pos > self._start:
                    yield self._emit(TEXT)
                yield self._emit(EOF)
                return
            after = at + len(left)
            trims = self._is_left_trim(after)
            self._pos = len(text[self._start : at].rstrip(_SPACES)) + self._start if trims else at
            if self._pos > self._start:
                yield self._emit(TEXT)
            self._pos = at
            self._skip()
            marker = 2 if trims else 0
            if text.startswith("/*", after + marker):
                self._pos = after + marker
                self._skip()
                failure = self._comment()
                if failure is not None:
                    yield failure
                continue
            self._pos = after
            yield self._emit(LEFT)
            self._pos += marker
            self._skip()
            self._parens = 0
            yield from self._inside()

    def _is_left_trim(self, at: int) -> bool:
        return self.text[at : at + 1] == "-" and self.text[at + 1 : at + 2] in tuple(_SPACES)

    def _is_right_trim(self, at: int) -> bool:
        return (
            self.text[at : at + 1] in tuple(_SPACES)
            and self.text[at + 1 : at + 2] == "-"
            and self.text.startswith(self.right, at + 2)
        )

    def _trim_after(self) -> None:
        while self._peek() in tuple(_SPACES):
            self._pos += 1
        self._skip()

    def _comment(self) -> Token | None:
        close = self.text.find("*/", self._pos + 2)
        if close < 0:
            return self._error("unclosed comment")
        self._pos = close + 2
        trims = self._is_right_trim(self._pos)
        if not trims and not self.text.startswith(self.right, self._pos):
            return self._error("comment ends before closing delimiter")
        self._pos += len(self.right) + (2 if trims else 0)
        self._skip()
        if trims:
            self._trim_after()
        return None

    def _inside(self) -> Iterator[Token]:
        """Yield the tokens up to and including the right delimiter."""
        while not self._failed:
            trims = self._is_right_trim(self._pos)
            if trims or self.text.startswith(self.right, self._pos):
                if self._parens:
                    yield self._error("unclosed left paren")
                    return
                if trims:
                    self._pos += 2
                    self._skip()
                self._pos += len(self.right)
                yield self._emit(RIGHT)
                if trims:
                    self._trim_after()
                return
            yield self._token()

    def _token(self) -> Token:
        char = self._peek()
        self._pos += 1
        if not char:
            self._pos -= 1
            return self._error("unclosed action")
        if char in _SPACES:
            return self._space()
        if char in '"`':
            return self._string(char)
        if char == "'":
            return self._char()
        if char == "$":
            return self._field(VARIABLE)
        if char == ".":
            follows = self._peek()
            if follows and not "0" <= follows <= "9":
                return self._field(FIELD)
        if char in ".+-" or "0" <= char <= "9":
            self._pos -= 1
            return self._number()
        if _is_word(char):
            return self._word()
        return self._punctuation(char)

    def _punctuation(self, char: str) -> Token:
        if char == "=":
            return self._emit(ASSIGN)
        if char == ":":
            if not self._accept("="):
                return self._error("expected :=")
            return self._emit(DECLARE)
        if char == "|":
            return self._emit(PIPE)
        if char == "(":
            self._parens += 1
            return self._emit(OPEN)
        if char == ")":
            self._parens -= 1
            if self._parens < 0:  # the parser refuses the token itself
                self._parens = 0
            return self._emit(CLOSE)
        if char.isascii() and char.isprintable():
            return self._emit(CHAR)
        return self._error(f"unrecognized character in action: {_unicode(char)}")

    def _space(self) -> Token:
        while self._peek() in tuple(_SPACES):
            self._pos += 1
        if self._is_right_trim(self._pos - 1) and self._pos - 1 > self._start:
            self._pos -= 1  # the last blank belongs to the trim marker
        return self._emit(SPACE)

    def _ends_operand(self) -> bool:
        char = self._peek()
        return not char or char in _ENDS_OPERAND or char == self.right[0]

    def _field(self, kind: str) -> Token:
        if self._ends_operand():
            return self._emit(VARIABLE if kind == VARIABLE else DOT)
        while _is_word(self._peek()):
            self._pos += 1
        if not self._ends_operand():
            return self._error(f"bad character {_unicode(self._peek())}")
        return self._emit(kind)

    def _word(self) -> Token:
        while _is_word(self._peek()):
            self._pos += 1
        word = self.text[self._start : self._pos]
        if not self._ends_operand():
            return self._error(f"bad character {_unicode(self._peek())}")
        if word in KEYWORDS:
            return self._emit(word)
        return self._emit(BOOL if word in ("true", "false") else IDENTIFIER)

    def _string(self, mark: str) -> Token:
        if mark == "`":
            close = self.text.find("`", self._pos)
            if close < 0:
                return self._error("unterminated raw quoted string")
            self._pos = close + 1
            return self._emit(RAW)
        if not self._quoted(mark):
            return self._error("unterminated quoted string")
        return self._emit(STRING)

    def _char(self) -> Token:
        if not self._quoted("'"):
            return self._error("unterminated character constant")
        return self._emit(CHAR_CONSTANT)

    def _quoted(self, mark: str) -> bool:
        while True:
            char = self._peek()
            self._pos += 1
            if char == "\\":
                char = self._peek()
                self._pos += 1
                if char and char != "\n":
                    continue
            if not char or char == "\n":
                return False
            if char == mark:
                return True

    def _number(self) -> Token:
        if not self._scan_number():
            return self._bad_number()
        if self._peek() in ("+", "-"):
            if not self._scan_number() or self.text[self._pos - 1] != "i":
                return self._bad_number()
            return self._emit(COMPLEX)
        return self._emit(NUMBER)

    def _bad_number(self) -> Token:
        return self._error(f"bad number syntax: {quote(self.text[self._start : self._pos])}")

    def _scan_number(self) -> bool:
        self._accept("+-")
        digits = "0123456789_"
        exponent = "eE"
        if self._accept("0"):
            if self._accept("xX"):
                digits, exponent = "0123456789abcdefABCDEF_", "pP"
            elif self._accept("oO"):
                digits, exponent = "01234567_", ""
            elif self._accept("bB"):
                digits, exponent = "01_", ""
        self._accept_run(digits)
        if self._accept("."):
            self._accept_run(digits)
        if exponent and self._accept(exponent):
            self._accept("+-")
            self._accept_run("0123456789_")
        self._accept("i")
        if _is_word(self._peek()):
            self._pos += 1
            return False
        return True
