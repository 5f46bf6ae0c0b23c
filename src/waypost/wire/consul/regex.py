"""Regular expressions as Go's `regexp` (RE2) accepts them, matched in time linear in the text.

Python's own `re` is neither: it knows another syntax and can take exponential time on an expression that a client
sent. This is a parser with Go's error texts, and a matcher that follows all alternatives at once and remembers the
sets of states it has met (a lazily built automaton). It tells whether a text matches; it has no captures.

Sources: RE2 syntax (google/re2/wiki/Syntax); Go `regexp/syntax` for limits and error texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from waypost.base.errors import Malformed

MAX_REPEAT: Final = 1000
MAX_STATES: Final = 5_000
_MAX_CACHED_SETS: Final = 2_000
_MAX_DEPTH: Final = 200
_LAST: Final = 0x10FFFF

Accept = Callable[[str], bool]


class _Node(NamedTuple):
    """One piece of a parsed expression: kind and its parts."""

    kind: str
    parts: tuple[_Node, ...] = ()
    accept: Accept | None = None
    low: int = 0
    high: int = -1
    mark: str = ""


_EMPTY: Final = _Node("empty")


class _Flags(NamedTuple):
    fold: bool = False
    multiline: bool = False
    dot_newline: bool = False


def _error(what: str, where: str) -> Malformed:
    return Malformed(f"error parsing regexp: {what}: `{where}`")


Ranges = tuple[tuple[int, int], ...]
_DIGIT: Final[Ranges] = ((0x30, 0x39),)
_SPACE: Final[Ranges] = ((9, 10), (12, 13), (32, 32))
_WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_PERL: Final[dict[str, Ranges]] = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
_POSIX: Final[dict[str, Ranges]] = {
    "alnum": ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)),
    "alpha": ((0x41, 0x5A), (0x61, 0x7A)),
    "ascii": ((0, 0x7F),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 0x1F), (0x7F, 0x7F)),
    "digit": _DIGIT,
    "graph": ((0x21, 0x7E),),
    "lower": ((0x61, 0x7A),),
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": ((9, 13), (32, 32)),
    "upper": ((0x41, 0x5A),),
    "word": _WORD,
    "xdigit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
}
_CATEGORY: Final = re.compile("C[cfos]?|L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?")
_CONTROL: Final = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}


def _in_ranges(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _ranges(ranges: Ranges, *, fold: bool) -> Accept:
    if not fold:
        return lambda character: _in_ranges(ranges, ord(character))

    def accept(character: str) -> bool:
        forms = (character, character.lower(), character.upper())
        return any(len(form) == 1 and _in_ranges(ranges, ord(form)) for form in forms)

    return accept


def _category(name: str) -> Accept:
    return lambda character: unicodedata.category(character).startswith(name)


def _not(accept: Accept) -> Accept:
    return lambda character: not accept(character)


def _any_of(accepts: Iterable[Accept]) -> Accept:
    kept = tuple(accepts)
    return lambda character: any(accept(character) for accept in kept)


class _Parser:
    """Recursive descent over the RE2 grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._flags = _Flags()
        self._depth = 0

    def parse(self) -> _Node:
        """Return the expression. Raises Malformed in Go's words."""
        node = self._alternatives()
        if self._at < len(self._text):
            raise _error("unexpected )", self._text)
        return node

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _alternatives(self) -> _Node:
        outer = self._flags
        found = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            found.append(self._sequence())
        self._flags = outer
        return found[0] if len(found) == 1 else _Node("either", tuple(found))

    def _sequence(self) -> _Node:
        found: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            atom = self._atom()
            if atom is not None:
                found.append(self._repeated(atom))
        return found[0] if len(found) == 1 else _Node("all", tuple(found))

    def _repeated(self, atom: _Node) -> _Node:
        start = self._at
        repeated = False
        while True:
            begin = self._at
            bounds = self._bounds()
            if bounds is None:
                return atom
            if repeated:
                raise _error("invalid nested repetition operator", self._text[start : self._at])
            if self._peek() == "?":
                self._at += 1
            low, high = bounds
            if max(low, high) > MAX_REPEAT or (high >= 0 and low > high):
                raise _error("invalid repeat count", self._text[begin : self._at])
            braces = self._text[begin] == "{"
            atom = _Node("repeat", (atom,), low=low, high=high, mark="{}" if braces else "")
            if braces and not _within(atom, MAX_REPEAT):
                raise _error("invalid repeat count", self._text[begin : self._at])
            start = begin
            repeated = True

    def _bounds(self) -> tuple[int, int] | None:
        """Consume a repetition operator; `{` that starts none is a plain character."""
        character = self._peek()
        simple = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}
        if character and character in simple:
            self._at += 1
            return simple[character]
        if character != "{":
            return None
        end = self._text.find("}", self._at)
        if end < 0:
            return None
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if not _is_number(low) or (comma and high and not _is_number(high)):
            return None
        self._at = end + 1
        return int(low), int(low) if not comma else int(high) if high else -1

    def _atom(self) -> _Node | None:
        character = self._peek()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character in "*+?":
            raise _error("missing argument to repetition operator", character)
        if character == "{":
            begin = self._at
            if self._bounds() is not None:
                operator = self._text[begin : self._at]
                raise _error("missing argument to repetition operator", operator)
        if character == "\\":
            return self._escape()
        self._at += 1
        if character == ".":
            if self._flags.dot_newline:
                return _Node("character", accept=lambda _: True)
            return _Node("character", accept=lambda c: c != "\n")
        if character == "^":
            return _Node("assert", mark="bol" if self._flags.multiline else "begin")
        if character == "$":
            return _Node("assert", mark="eol" if self._flags.multiline else "end")
        return self._literal(character)

    def _literal(self, character: str) -> _Node:
        code = ord(character)
        return _Node("character", accept=_ranges(((code, code),), fold=self._flags.fold))

    def _group(self) -> _Node | None:
        start = self._at
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _error("expression nests too deeply", self._text)
        self._at += 1
        outer = self._flags
        if self._peek() == "?":
            if self._text.startswith("?P<", self._at):
                self._name(start)
            elif self._switches(start):
                self._depth -= 1
                return None
        node = self._alternatives()
        if self._peek() != ")":
            raise _error("missing closing )", self._text)
        self._at += 1
        self._flags = outer
        self._depth -= 1
        return node

    def _name(self, start: int) -> None:
        end = self._text.find(">", self._at)
        if end < 0:
            raise _error("invalid named capture", self._text[start:])
        name = self._text[self._at + 3 : end]
        if not name or not all(c == "_" or (c.isascii() and c.isalnum()) for c in name):
            raise _error("invalid named capture", self._text[start : end + 1])
        self._at = end + 1

    def _switches(self, start: int) -> bool:
        """Consume `?flags)` (True) or `?flags:` (False)."""
        self._at += 1
        on, seen = True, False
        flags = self._flags
        while True:
            character = self._peek()
            self._at += 1
            if character == "i":
                flags = flags._replace(fold=on)
            elif character == "m":
                flags = flags._replace(multiline=on)
            elif character == "s":
                flags = flags._replace(dot_newline=on)
            elif character == "-" and on:
                on, seen = False, False
                continue
            elif character in (":", ")") and character and (on or seen):
                self._flags = flags
                return character == ")"
            elif character != "U":
                where = self._text[start : self._at]
                raise _error("invalid or unsupported Perl syntax", where)
            seen = True

    def _escape(self) -> _Node:
        start = self._at
        following = self._text[start + 1 : start + 2]
        if not following:
            raise _error("trailing backslash at end of expression", "")
        marks = {"A": "begin", "z": "end", "b": "word", "B": "not word"}
        if following in marks:
            self._at += 2
            return _Node("assert", mark=marks[following])
        if following == "Q":
            end = self._text.find(r"\E", start + 2)
            inner = self._text[start + 2 : end if end >= 0 else len(self._text)]
            self._at = end + 2 if end >= 0 else len(self._text)
            if not inner:
                return _EMPTY
            *first, last = (self._literal(character) for character in inner)
            # A repetition that follows belongs to the last character.
            return _Node("all", (*first, self._repeated(last)))
        accept = self._class_escape()
        if accept is not None:
            return _Node("character", accept=accept)
        return self._literal(chr(self._character()))

    def _class_escape(self) -> Accept | None:
        r"""Consume `\d`, `\pL`, `\P{Lu}` …, if one is here."""
        start = self._at
        if self._peek() != "\\":
            return None
        letter = self._text[start + 1 : start + 2]
        if letter and letter.lower() in _PERL and letter.isascii():
            self._at += 2
            accept = _ranges(_PERL[letter.lower()], fold=False)
            return accept if letter.islower() else _not(accept)
        if letter not in ("p", "P") or not letter:
            return None
        name = self._text[start + 2 : start + 3]
        self._at = start + 3
        if name == "{":
            end = self._text.find("}", start)
            if end < 0:
                raise _error("invalid character class range", self._text[start:])
            name = self._text[start + 3 : end]
            self._at = end + 1
        negate = letter == "P"
        if name.startswith("^"):
            negate, name = not negate, name[1:]
        if name == "Any":
            accept = _ranges(((0, _LAST),), fold=False)
        elif _CATEGORY.fullmatch(name):
            accept = _category(name)
        else:
            raise _error("invalid character class range", self._text[start : self._at])
        return _not(accept) if negate else accept

    def _character(self) -> int:
        """Consume one escaped character and return its code."""
        start = self._at
        character = self._text[start + 1]
        self._at += 2
        if character in _CONTROL:
            return _CONTROL[character]
        if character in "01234567":
            return self._octal(start, character)
        if character == "x":
            return self._hexadecimal(start)
        if not (character.isascii() and character.isalnum()) and ord(character) < 0x80:
            return ord(character)
        raise _error("invalid escape sequence", self._text[start : self._at])

    def _octal(self, start: int, first: str) -> int:
        digits = first
        while len(digits) < 3 and self._peek() and self._peek() in "01234567":
            digits += self._peek()
            self._at += 1
        if first != "0" and len(digits) == 1:
            # A single digit would be a back-reference, which RE2 has not.
            raise _error("invalid escape sequence", self._text[start : self._at])
        return int(digits, 8)

    def _hexadecimal(self, start: int) -> int:
        if self._peek() == "{":
            end = self._text.find("}", self._at)
            digits = self._text[self._at + 1 : end] if end >= 0 else ""
            self._at = end + 1 if end >= 0 else len(self._text)
        else:
            digits = self._text[self._at : self._at + 2]
            self._at += 2
            if len(digits) < 2:
                digits = ""
        try:
            code = int(digits, 16) if digits.isalnum() else -1
        except ValueError:
            code = -1
        if code > _LAST:
            raise _error("invalid escape sequence", self._text[start : self._at].rstrip("}"))
        if code < 0:
            raise _error("invalid escape sequence", self._text[start : self._at])
        return code

    def _class(self) -> _Node:
        start = self._at
        self._at += 1
        negate = self._peek() == "^"
        if negate:
            self._at += 1
        accepts: list[Accept] = []
        first = True
        while first or self._peek() != "]":
            if not self._peek():
                raise _error("missing closing ]", self._text[start:])
            first = False
            accept = self._posix() or self._class_escape()
            if accept is None:
                low, high = self._range(start)
                accept = _ranges(((low, high),), fold=self._flags.fold)
            accepts.append(accept)
        self._at += 1
        accept = _any_of(accepts)
        return _Node("character", accept=_not(accept) if negate else accept)

    def _posix(self) -> Accept | None:
        if not self._text.startswith("[:", self._at):
            return None
        end = self._text.find(":]", self._at + 2)
        if end < 0:
            return None
        name = self._text[self._at + 2 : end]
        negate = name.startswith("^")
        ranges = _POSIX.get(name.removeprefix("^"))
        if ranges is None:
            where = self._text[self._at : end + 2]
            raise _error("invalid character class range", where)
        self._at = end + 2
        accept = _ranges(ranges, fold=self._flags.fold)
        return _not(accept) if negate else accept

    def _range(self, class_start: int) -> tuple[int, int]:
        start = self._at
        low = self._class_character(class_start)
        high = low
        if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
            self._at += 1
            high = self._class_character(class_start)
            if high < low:
                raise _error("invalid character class range", self._text[start : self._at])
        return low, high

    def _class_character(self, class_start: int) -> int:
        character = self._peek()
        if not character:
            raise _error("missing closing ]", self._text[class_start:])
        if character == "\\":
            if not self._text[self._at + 1 : self._at + 2]:
                raise _error("trailing backslash at end of expression", "")
            return self._character()
        self._at += 1
        return ord(character)


def _within(node: _Node, times: int) -> bool:
    """Return whether counted repetitions inside of each other multiply to at most `times`."""
    if node.mark == "{}":
        most = node.high if node.high >= 0 else node.low
        if node.high == 0:
            return True
        if most > times:
            return False
        if most > 0:
            times //= most
    return all(_within(part, times) for part in node.parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or not text.startswith("0"))


class _State:
    """A state of the automaton: `accept` consumes a character; the others are followed at once."""

    __slots__ = ("accept", "mark", "number", "targets")

    def __init__(self, number: int) -> None:
        self.number = number
        self.accept: Accept | None = None
        self.mark = ""
        self.targets: list[_State] = []


class Regex:
    """A compiled expression."""

    def __init__(self, text: str) -> None:
        """Compile `text`. Raises Malformed in Go's words: ``error parsing regexp: missing closing ): `(` ``."""
        self.text = text
        self._states: list[_State] = []
        tree = _Parser(text).parse()
        start, self._final = self._state(), self._state()
        self._connect(tree, start, self._final)
        self._start = start
        self._has_marks = any(state.mark for state in self._states)
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def _state(self) -> _State:
        if len(self._states) >= MAX_STATES:
            raise _error("expression too large", self.text)
        state = _State(len(self._states))
        self._states.append(state)
        return state

    def _connect(self, node: _Node, start: _State, end: _State) -> None:
        match node.kind:
            case "empty":
                start.targets.append(end)
            case "character" | "assert":
                middle = self._state()
                start.targets.append(middle)
                middle.accept, middle.mark = node.accept, node.mark
                middle.targets.append(end)
            case "all":
                for part in node.parts:
                    following = self._state()
                    self._connect(part, start, following)
                    start = following
                start.targets.append(end)
            case "either":
                for part in node.parts:
                    self._connect(part, start, end)
            case "repeat":
                self._connect_repeat(node, start, end)

    def _connect_repeat(self, node: _Node, start: _State, end: _State) -> None:
        part = node.parts[0]
        for _ in range(node.low):
            following = self._state()
            self._connect(part, start, following)
            start = following
        if node.high < 0:
            loop, back = self._state(), self._state()
            start.targets.append(loop)
            self._connect(part, loop, back)
            back.targets.append(loop)
            loop.targets.append(end)
            return
        start.targets.append(end)
        for _ in range(node.high - node.low):
            following = self._state()
            self._connect(part, start, following)
            following.targets.append(end)
            start = following

    def search(self, text: str) -> bool:
        """Return whether `text` matches anywhere."""
        before = ""
        current: frozenset[int] = frozenset()
        for position in range(len(text) + 1):
            after = text[position : position + 1]
            reached = self._follow(current, before, after)
            if self._final.number in reached:
                return True
            if after:
                current = self._step(reached, after)
            before = after
        return False

    def _follow(self, states: frozenset[int], before: str, after: str) -> frozenset[int]:
        """Return all states that can be reached from `states`, or from the start, without a character."""
        key = (states, "" if not self._has_marks else _boundary(before, after))
        known = self._known.get(key)
        if known is not None:
            return known
        reached: set[int] = set()
        waiting = [self._start, *(self._states[number] for number in states)]
        while waiting:
            state = waiting.pop()
            if state.number in reached:
                continue
            if state.mark and not _holds(state.mark, before, after):
                continue
            reached.add(state.number)
            if state.accept is None:
                waiting.extend(state.targets)
        result = frozenset(reached)
        self._remember(key, result)
        return result

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        """Return the states after `character`; each stands behind the one that consumed it."""
        key = (states, "=" + character)
        known = self._known.get(key)
        if known is None:
            after: set[int] = set()
            for number in states:
                state = self._states[number]
                if state.accept is not None and state.accept(character):
                    after.update(target.number for target in state.targets)
            known = frozenset(after)
            self._remember(key, known)
        return known

    def _remember(self, key: tuple[frozenset[int], str], value: frozenset[int]) -> None:
        if len(self._known) >= _MAX_CACHED_SETS:
            self._known.clear()
        self._known[key] = value


def _is_word(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())


def _boundary(before: str, after: str) -> str:
    """Return what of a position matters for assertions, as a short key."""

    def kind(character: str) -> str:
        if character in ("", "\n"):
            return character or "E"
        return "w" if _is_word(character) else "."

    return kind(before) + kind(after)


def _holds(mark: str, before: str, after: str) -> bool:
    match mark:
        case "begin":
            return not before
        case "end":
            return not after
        case "bol":
            return before in ("", "\n")
        case "eol":
            return after in ("", "\n")
    return (_is_word(before) != _is_word(after)) == (mark == "word")


@lru_cache(maxsize=256)
def compile_regex(text: str) -> Regex:
    """Return the compiled expression, from a small cache. Raises Malformed in Go's words."""
    return Regex(text)
