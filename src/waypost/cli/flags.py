"""Command-line flags in Go's form, declared once and read as a frozen record.

    class LockSettings(Settings):
        limit: int = flag(1, "How many may hold it at once.", name="n")
        wait_s: float = duration(0.0, "How long to wait for it.", name="timeout")
        tags: tuple[str, ...] = repeated(str, "A tag; may be given several times.", name="tag")

    settings, args = parse(LockSettings, ["-n=2", "--timeout", "5s", "path"])

Consul, Registrator and consul-template take Go flags, and their users' scripts do: `-f v`, `-f=v`, `--f v`,
`--f=v`; booleans as `-f` or `-f=false`, never `-f false`; the first argument that is no flag, or `--`, ends them.
This is our own because no library reads exactly that: argparse takes single-dash long flags, but abbreviates,
mixes flags with arguments, eats negative numbers and words its errors otherwise; click and docopt take
`-detailed` for a bundle of nine short flags. Source: Go's package `flag`; the error texts are its own.

Imports little: every command pays for this module (`waypost version` has 100 ms).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast, dataclass_transform

from waypost.base.errors import Malformed

T = TypeVar("T")

PROGRAM = "waypost"
_WIDTH = 72
_SHOWN_OPTIONS = 20
"""So many options still leave the error above them on the screen."""
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_HELP = frozenset({"h", "help"})
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*)")


class UsageError(Malformed):
    """The command line is wrong. `usage` is what to show below the text; the exit status is 1."""

    code = "usage"

    def __init__(self, text: str, *, usage: str = "", suggestion: str = "") -> None:
        super().__init__(text)
        self.usage = usage
        self.suggestion = suggestion


class HelpRequested(Exception):
    """Not an error: the user asked for help, `text`. The exit status is 0."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text


# Values. Each takes the text of one value and raises Malformed with the reason.


def boolean(text: str) -> bool:
    """Return Go's `strconv.ParseBool`."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Malformed("parse error")


def integer(text: str) -> int:
    """Return a signed 64-bit number in Go's notation: `10`, `-3`, `0x1f`, `0b1`, `017`, `1_000`."""
    return _in_range(_number(text), least=-(2**63), greatest=2**63 - 1)


def unsigned(text: str) -> int:
    """Return an unsigned 64-bit number in Go's notation."""
    if text[:1] in ("+", "-"):
        raise Malformed("parse error")
    return _in_range(_number(text), least=0, greatest=2**64 - 1)


def _number(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise Malformed("parse error")
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xXoObB"
    try:
        number = int(digits, 8 if octal else 0)
    except ValueError as exc:
        raise Malformed("parse error") from exc
    return -number if text.startswith("-") else number


def _in_range(number: int, *, least: int, greatest: int) -> int:
    if not least <= number <= greatest:
        raise Malformed("value out of range")
    return number


def duration_s(text: str) -> float:
    """Return the seconds of a Go duration such as `1m30s`."""
    from waypost.base.duration import parse_s

    try:
        return parse_s(text)
    except Malformed as exc:
        raise Malformed(f'parse error (a duration such as "30s" or "1h30m": {exc})') from exc


def key_value(text: str) -> tuple[str, str]:
    """Return the two sides of `key=value`; the value may hold further `=`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise Malformed(f'Missing "=" value in argument: {text}')
    return key, value


# Declarations.


class FlagSpec(NamedTuple):
    """One declared flag. `name` without dashes; `value` is the word for its value in the help, "" for booleans."""

    name: str
    attribute: str
    default: Any
    parse: Callable[[str], Any]
    help: str
    value: str
    repeat: bool
    section: str

    @property
    def is_boolean(self) -> bool:
        """Tell whether the flag may stand without a value."""
        return self.parse is boolean


class _Declared(NamedTuple):
    name: str
    default: Any
    parse: Callable[[str], Any]
    help: str
    value: str
    repeat: bool


def flag(
    default: T,
    help: str,  # noqa: A002  (what argparse and click call it)
    *,
    name: str = "",
    value: str = "",
    parse: Callable[[str], T] | None = None,
) -> T:
    """Declare a flag that is given at most once (the last one wins).

    `name` is the flag without dashes; by default the attribute with `_` turned to `-`. `parse` makes the value of
    its text; by default it follows from the type of `default`: bool, int or str.
    """
    reader: Callable[[str], Any]
    if parse is not None:
        reader = parse
        value = value or "value"
    elif isinstance(default, bool):
        reader = boolean
    elif isinstance(default, int):
        reader, value = integer, value or "int"
    elif isinstance(default, str):
        reader, value = str, value or "string"
    else:
        raise TypeError(f"flag {name or help!r}: give `parse` for a {type(default).__name__}")
    # The declaration stands where the value will be; `Settings` puts the value there.
    return cast("T", _Declared(name, default, reader, help, value, repeat=False))


def duration(
    default: float,
    help: str,  # noqa: A002
    *,
    name: str,
) -> float:
    """Declare a flag that takes a Go duration and gives seconds."""
    return cast("float", _Declared(name, default, duration_s, help, "duration", repeat=False))


def repeated(
    parse: Callable[[str], T],
    help: str,  # noqa: A002
    *,
    name: str = "",
    value: str = "value",
    default: tuple[T, ...] = (),
) -> tuple[T, ...]:
    """Declare a flag that may be given several times; its values are kept in order."""
    return cast("tuple[T, ...]", _Declared(name, default, parse, help, value, repeat=True))


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(flag, duration, repeated)
)
class Settings:
    """What a command line said: one attribute a declared flag, frozen. Subclass it and declare flags.

    `section`, if a class gives one, is the heading of its own flags in the help. `given` holds the names of those flags that
    stood on the command line, for commands that merge flags with a file.
    """

    section: ClassVar[str] = "Command Options"
    declared: ClassVar[Mapping[str, FlagSpec]] = {}

    given: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        section = vars(cls).get("section", Settings.section)
        specs: dict[str, FlagSpec] = {}
        for attribute, declared in list(vars(cls).items()):
            if not isinstance(declared, _Declared):
                continue
            name = declared.name or attribute.replace("_", "-")
            specs[name] = FlagSpec(
                name,
                attribute,
                declared.default,
                declared.parse,
                declared.help,
                declared.value,
                declared.repeat,
                section,
            )
            setattr(cls, attribute, declared.default)
        # A class's own flags come first in the help, and replace inherited ones of the same name.
        cls.declared = specs | {
            name: spec for name, spec in cls.declared.items() if name not in specs
        }

    def __init__(self, **values: Any) -> None:
        known = {spec.attribute for spec in self.declared.values()} | {"given"}
        for attribute, value in values.items():
            if attribute not in known:
                raise TypeError(f"{type(self).__name__} has no flag {attribute!r}")
            object.__setattr__(self, attribute, value)

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __repr__(self) -> str:
        shown = (
            f"{attribute}={'***' if 'token' in attribute and value else repr(value)}"
            for attribute, value in sorted(vars(self).items())
        )
        return f"{type(self).__name__}({', '.join(shown)})"


S = TypeVar("S", bound=Settings)


def parse(settings: type[S], argv: Sequence[str]) -> tuple[S, list[str]]:
    """Return the settings and the arguments after the flags.

    Raises UsageError (without usage) in Go's words, HelpRequested for `-h`, `-help`, `--help`.
    """
    values: dict[str, Any] = {}
    given: set[str] = set()
    rest = list(argv)
    while rest:
        word = rest[0]
        if len(word) < 2 or not word.startswith("-"):
            break
        del rest[0]
        if word == "--":
            break
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}")
        spec = settings.declared.get(name)
        if spec is None:
            if name in _HELP:
                raise HelpRequested
            raise _unknown(name, settings)
        if not equals:
            if spec.is_boolean:
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise UsageError(f"flag needs an argument: -{name}")
        value = _read(spec, text)
        given.add(name)
        values[spec.attribute] = (*values.get(spec.attribute, ()), value) if spec.repeat else value
    return settings(**values, given=frozenset(given)), rest


def _read(spec: FlagSpec, text: str) -> Any:
    try:
        return spec.parse(text)
    except Malformed as exc:
        kind = f'boolean value "{text}" for' if spec.is_boolean else f'value "{text}" for flag'
        raise UsageError(f"invalid {kind} -{spec.name}: {exc}") from exc


def _unknown(name: str, settings: type[Settings]) -> UsageError:
    from difflib import get_close_matches

    near = get_close_matches(name, settings.declared, n=1, cutoff=0.7)
    return UsageError(
        f"flag provided but not defined: -{name}",
        suggestion=f"Did you mean -{near[0]}?" if near else "",
    )


def options_help(settings: type[Settings], *, only: str = "") -> str:
    """Return the options of every section (or only of one), a heading each, in the order of declaration."""
    sections: dict[str, list[FlagSpec]] = {}
    for spec in settings.declared.values():
        sections.setdefault(spec.section, []).append(spec)
    out: list[str] = []
    for section, specs in sections.items():
        if only and section != only:
            continue
        out.append(section)
        for spec in sorted(specs, key=lambda spec: spec.name):
            word = f"=<{spec.value}>" if not spec.is_boolean else ""
            out.append(f"  -{spec.name}{word}\n{_wrap(spec.help)}")
    return "\n\n".join(out)


def _wrap(text: str) -> str:
    from textwrap import fill

    return fill(
        text,
        width=_WIDTH,
        initial_indent="     ",
        subsequent_indent="     ",
        break_on_hyphens=False,
        break_long_words=False,
    )


class Command(Generic[S]):
    """One command: how it is called, what it is for, its flags, and what it does.

    `usage` is the call without the program's name (`kv get [options] KEY`); `about` is the text below it, its
    lines as they shall stand. `action` gets the settings and arguments and returns the exit status.
    """

    def __init__(
        self, usage: str, about: str, *, settings: type[S], action: Callable[[S, list[str]], int]
    ) -> None:
        self.usage = usage
        self.about = about
        self.settings = settings
        self.action = action

    def run(self, argv: Sequence[str]) -> int:
        """Parse and act. Raises UsageError (with the usage), HelpRequested (with the help), and what `action` does."""
        try:
            settings, args = parse(self.settings, argv)
            return self.action(settings, args)
        except UsageError as exc:
            if not exc.usage:
                exc.usage = self.short_help()
            raise
        except HelpRequested as exc:
            raise HelpRequested(exc.text or self.help()) from None

    def help(self) -> str:
        """Return the whole help, ending in a line break."""
        parts = [f"Usage: {PROGRAM} {self.usage}", _indent(self.about), options_help(self.settings)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def short_help(self) -> str:
        """Return what stands below an error: the usage and the command's own options, unless they would hide it."""
        name = self.usage.split(" [", 1)[0].split(" <", 1)[0]
        own = sum(spec.section == Settings.section for spec in self.settings.declared.values())
        parts = [
            f"Usage: {PROGRAM} {self.usage}",
            options_help(self.settings, only=Settings.section) if own <= _SHOWN_OPTIONS else "",
            f'Run "{PROGRAM} {name} -h" for the whole help.',
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


class Group:
    """A command that only has subcommands: name → (summary, command or group)."""

    def __init__(
        self, usage: str, about: str, *, commands: Mapping[str, tuple[str, Command[Any] | Group]]
    ) -> None:
        self.usage = usage
        self.about = about
        self.commands = commands

    def run(self, argv: Sequence[str]) -> int:
        """Run the subcommand. Alone, or for an unknown one: the help to standard error, status 1 (as Consul)."""
        first = argv[0] if argv else ""
        if first.lstrip("-") in _HELP and first.startswith("-"):
            raise HelpRequested(self.help())
        found = self.commands.get(first)
        if found is None:
            text = f'unknown subcommand: "{first}"' if first else ""
            raise UsageError(text, usage=self.help())
        return found[1].run(argv[1:])

    def help(self) -> str:
        """Return the whole help, ending in a line break."""
        width = max(map(len, self.commands))
        lines = [
            f"    {name:<{width}}    {self.commands[name][0]}" for name in sorted(self.commands)
        ]
        parts = [
            f"Usage: {PROGRAM} {self.usage}",
            _indent(self.about),
            "\n".join(["Subcommands:", *lines]),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.strip("\n").split("\n"))
