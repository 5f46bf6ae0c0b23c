r"""RE2's regular expressions on Python's engine. Source: RE2 syntax, Go package regexp.

Python's engine backtracks, so what RE2 leaves out for its linear time is refused here as well: look-around,
back-references, possessive and atomic groups. Classes such as `\d` are ASCII, as in RE2.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from waypost.gotemplate.errors import FunctionError

_POSIX: Final = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": "\\x00-\\x7F", "blank": "\\t ", "cntrl": "\\x00-\\x1F\\x7F",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~",
    "space": "\\t\\n\\v\\f\\r ", "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_UNICODE: Final = {"L": "^\\W\\d_", "N": "\\d", "Nd": "\\d"}
_KEPT_ESCAPES: Final = frozenset("dDwWsSbBAafnrtv")
_FLAGS: Final = re.compile(r"\(\?([imsU]*)(-[imsU]+)?([:)])")
_NAME: Final = re.compile(r"\(\?P<([A-Za-z0-9_]+)>")


class _Translator:
    """One pass over a pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.out: list[str] = []
        self.multiline = [False]
        self.repeatable = False

    def fail(self, what: str, part: str) -> FunctionError:
        return FunctionError(f"error parsing regexp: {what}: `{part}`")

    def run(self) -> str:
        pattern = self.pattern
        while self.at < len(pattern):
            char = pattern[self.at]
            if char == "\\":
                self._escape()
            elif char == "[":
                self._class()
            elif char == "(":
                self._open()
            elif char == ")":
                if len(self.multiline) == 1:
                    raise self.fail("unexpected )", pattern)
                self.multiline.pop()
                self._add(")")
            elif char in "*+?" or (char == "{" and re.match(r"\{\d+(,\d*)?\}", pattern[self.at :])):
                self._repeat()
            elif char == "$":
                self._add("$" if self.multiline[-1] else "\\Z", repeatable=False)
            elif char in "^|":
                self._add(char, repeatable=False)
            elif char == "{":
                self._add("\\{")
            else:
                self._add(char)
        if len(self.multiline) > 1:
            raise self.fail("missing closing )", pattern)
        return "".join(self.out)

    def _add(self, text: str, *, width: int = 1, repeatable: bool = True) -> None:
        self.out.append(text)
        self.at += width
        self.repeatable = repeatable

    def _repeat(self) -> None:
        rest = self.pattern[self.at :]
        match = re.match(r"([*+?]|\{(\d+)(?:(,)(\d*))?\})(\?)?", rest)
        assert match is not None
        if not self.repeatable and (
            not self.out or self.out[-1] in ("|", "(") or self.out[-1].startswith("(?")
        ):
            raise self.fail("missing argument to repetition operator", match.group(1))
        low, high = match.group(2), match.group(4)
        if low is not None and (
            int(low) > 1000 or (high and (int(high) > 1000 or int(high) < int(low)))
        ):
            raise self.fail("invalid repeat count", match.group(1))
        after = re.match(r"[*+?]|\{\d+(,\d*)?\}", rest[match.end() :])
        if after:
            raise self.fail("invalid nested repetition operator", match.group() + after.group())
        self._add(match.group(), width=match.end(), repeatable=False)

    def _open(self) -> None:
        rest = self.pattern[self.at :]
        named = _NAME.match(rest)
        flags = _FLAGS.match(rest)
        if named:
            self.multiline.append(self.multiline[-1])
            self._add(named.group(), width=named.end(), repeatable=False)
        elif flags:
            self._flags(flags)
        elif rest.startswith("(?"):
            if rest.startswith("(?P"):
                raise self.fail("invalid named capture", rest)
            end = 4 if rest.startswith("(?<") and rest[3:4] in "=!" else 3
            raise self.fail("invalid or unsupported Perl syntax", rest[:end])
        else:
            self.multiline.append(self.multiline[-1])
            self._add("(", repeatable=False)

    def _flags(self, match: re.Match[str]) -> None:
        on, off, end = match.group(1), (match.group(2) or "").lstrip("-"), match.group(3)
        if "U" in on + off:
            raise self.fail("invalid or unsupported Perl syntax", match.group())
        multiline = ("m" in on) or (self.multiline[-1] and "m" not in off)
        set_on = "".join(flag for flag in on if flag in "ims")
        set_off = "".join(flag for flag in off if flag in "ims")
        head = f"(?{set_on}{'-' + set_off if set_off else ''}:"
        if end == ":":
            self.multiline.append(multiline)
            self._add(head, width=match.end(), repeatable=False)
            return
        # Flags for the rest of the group: RE2 takes them anywhere, Python only at the very beginning.
        rest, depth = self.pattern[self.at + match.end() :], 0
        close = len(rest)
        position = 0
        while position < len(rest):
            char = rest[position]
            if char == "\\":
                position += 1
            elif char == "(":
                depth += 1
            elif char == ")":
                depth -= 1
                if depth < 0:
                    close = position
                    break
            position += 1
        inner = _Translator(rest[:close])
        inner.multiline = [multiline]
        self.out.append(head + inner.run() + ")")
        self.at += match.end() + close
        self.repeatable = False

    def _escape(self) -> None:
        rest = self.pattern[self.at :]
        if len(rest) < 2:
            raise FunctionError("error parsing regexp: trailing backslash at end of expression: ``")
        kind = rest[1]
        if kind == "Q":
            end = rest.find("\\E")
            inside = rest[2:] if end < 0 else rest[2:end]
            self._add(re.escape(inside), width=len(rest) if end < 0 else end + 2)
            return
        if kind == "z":
            self._add("\\Z", width=2, repeatable=False)
            return
        text, width = self._char_escape(rest)
        self._add(text, width=width, repeatable=kind not in "AbB")

    def _char_escape(self, rest: str) -> tuple[str, int]:
        kind = rest[1]
        if kind in "pP":
            match = re.match(r"\\[pP](?:([A-Z])|\{(\^?\w+)\})", rest)
            name = (match.group(1) or match.group(2)) if match else ""
            if match is None or name not in _UNICODE:
                raise self.fail(
                    "invalid character class range", rest[: match.end() if match else 2]
                )
            inside = _UNICODE[name]
            if kind == "P":
                inside = inside[1:] if inside.startswith("^") else "^" + inside
            return f"(?u:[{inside}])", match.end()
        if kind == "x":
            match = re.match(r"\\x(?:([0-9a-fA-F]{2})|\{([0-9a-fA-F]{1,6})\})", rest)
            if match is None:
                raise self.fail("invalid escape sequence", rest[:2])
            code = int(match.group(1) or match.group(2), 16)
            if code > 0x10FFFF:
                raise self.fail("invalid escape sequence", match.group())
            return re.escape(chr(code)), match.end()
        if kind == "0" or (kind in "1234567" and re.match(r"\\[1-7][0-7]{2}", rest)):
            match = re.match(r"\\[0-7]{1,3}", rest)
            assert match is not None
            return re.escape(chr(int(match.group()[1:], 8))), match.end()
        if kind in _KEPT_ESCAPES or not kind.isalnum():
            return ("\\" + kind if kind in _KEPT_ESCAPES else re.escape(kind)), 2
        raise self.fail("invalid escape sequence", rest[:2])

    def _class(self) -> None:
        rest = self.pattern[self.at :]
        position = 2 if rest.startswith("[^") else 1
        out = [rest[:position]]
        first = True
        while first or rest[position : position + 1] != "]":
            if position >= len(rest):
                raise self.fail("missing closing ]", rest)
            first = False
            posix = re.match(r"\[:(\^?)(\w+):\]", rest[position:])
            if posix:
                if posix.group(2) not in _POSIX or posix.group(1):
                    raise self.fail("invalid character class range", posix.group())
                out.append(_POSIX[posix.group(2)])
                position += posix.end()
            elif rest[position] == "\\":
                if position + 1 >= len(rest):
                    raise self.fail("missing closing ]", rest)
                text, width = self._char_escape(rest[position:])
                if text.startswith("(?u:["):
                    raise self.fail(
                        "invalid character class range", rest[position : position + width]
                    )
                out.append(text)
                position += width
            else:
                char = rest[position]
                out.append("\\" + char if char in "[&~|" else char)
                position += 1
        self._add("".join(out) + "]", width=position + 1)


@lru_cache(maxsize=256)
def compile_re2(pattern: str) -> re.Pattern[str]:
    """Return an RE2 pattern for Python's engine. Raises FunctionError with Go's words."""
    translated = _Translator(pattern).run()
    try:
        return re.compile(translated, re.ASCII)
    except (re.error, OverflowError, RecursionError) as exc:
        text = str(exc)
        if text.startswith("bad character range"):
            part = text.split(" at ")[0].removeprefix("bad character range ")
            raise FunctionError(
                f"error parsing regexp: invalid character class range: `{part}`"
            ) from exc
        raise FunctionError(f"error parsing regexp: {text}: `{pattern}`") from exc


_REFERENCE: Final = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")


def replace_all(pattern: re.Pattern[str], replacement: str, text: str) -> str:
    """Return Go's ReplaceAllString: `$1x` is the group named "1x", `${1}x` is group 1 and an x."""

    def expand(match: re.Match[str]) -> str:
        def group(reference: re.Match[str]) -> str:
            name = reference.group(1) or reference.group(2)
            if name is None:
                return "$"
            if name.isdecimal():
                number = int(name) if len(name) < 6 else 99999
                return (match.group(number) or "") if number <= pattern.groups else ""
            return (match.group(name) or "") if name in pattern.groupindex else ""

        return _REFERENCE.sub(group, replacement)

    out: list[str] = []
    end = 0
    last_end = -1
    for match in pattern.finditer(text):
        if match.start() == match.end() == last_end:
            continue  # Go has no empty match right behind a match
        out.append(text[end : match.start()])
        out.append(expand(match))
        end = last_end = match.end()
    return "".join(out) + text[end:]
