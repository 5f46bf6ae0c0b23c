"""What the template runner is told: templates, timing, commands. Source: consul-template's configuration."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from waypost.base.duration import parse_s
from waypost.base.errors import Malformed

_DRIVE: Final = re.compile("[A-Za-z]")


class Wait(msgspec.Struct, frozen=True):
    """Quiescence: how long to wait for more changes (`min_s`), and for how long at most."""

    min_s: float
    max_s: float

    @classmethod
    def parse(cls, text: str) -> Wait:
        """Return the wait of `min[:max]`; max is four times min by default. Raises Malformed."""
        parts = text.strip().split(":")
        if not text.strip():
            raise Malformed("wait: empty; give a duration such as 5s, or two: 5s:20s")
        if len(parts) > 2:
            raise Malformed(f'wait: "{text}" has more than one ":"')
        low = _duration(parts[0].strip(), "wait")
        return cls._checked(
            low, _duration(parts[1].strip(), "wait") if len(parts) == 2 else 4 * low
        )

    @classmethod
    def of(cls, value: Any, *, place: str) -> Wait:
        """Return the wait of a configuration value: a text, or `{min, max}`. Raises Malformed."""
        if isinstance(value, str):
            try:
                return cls.parse(value)
            except Malformed as exc:
                raise Malformed(f"{place}: {exc}") from exc
        stanza = Stanza(value, place=place)
        low = stanza.duration("min", 0.0)
        high = stanza.duration("max", 4 * low)
        stanza.boolean("enabled", default=True)
        stanza.finish()
        return cls._checked(low, high)

    @classmethod
    def _checked(cls, low: float, high: float) -> Wait:
        if low < 0 or high < 0:
            raise Malformed("wait: a duration must not be negative")
        if high < low:
            raise Malformed("wait: max must not be less than min")
        return cls(low, high)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How failed queries are repeated: waits double from `backoff_s` up to `max_backoff_s` (0 = no cap)."""

    enabled: bool = True
    attempts: int = 12
    """0 = for ever."""
    backoff_s: float = 0.25
    max_backoff_s: float = 60.0

    def delay_s(self, attempt: int) -> float | None:
        """Return how long to wait before the next try after `attempt` failures (from 1); None: give up."""
        if not self.enabled or (self.attempts and attempt > self.attempts):
            return None
        return self.pause_s(attempt)

    def pause_s(self, attempt: int) -> float:
        """Return the wait after `attempt` failures, without giving up."""
        delay = self.backoff_s * 2.0 ** min(attempt - 1, 40)
        return min(delay, self.max_backoff_s) if self.max_backoff_s else delay


class TemplateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One template: where its text is, where its result goes, what is run then."""

    source: str = ""
    contents: str = ""
    """The template's text itself; either this or `source`."""
    destination: str = ""
    command: str = ""
    """Run by `sh -c` after the file has changed."""
    command_timeout_s: float = 30.0
    """0 = started and not waited for."""
    perms: int = 0
    """0 = those of the existing file, else 0644."""
    backup: bool = False
    create_dest_dirs: bool = True
    error_on_missing_key: bool = False
    left_delimiter: str = ""
    right_delimiter: str = ""
    wait: Wait | None = None
    check_command: str = ""
    """Run on the new content before it replaces the file; `%s` stands for its path. A failure keeps the old file."""
    rollback: bool = False
    """Put the old file back when `command` fails."""

    @property
    def shown_source(self) -> str:
        """Return the source as log lines name it."""
        return self.source or "(dynamic)"

    @classmethod
    def parse(cls, text: str) -> TemplateSpec:
        """Return the template of `in:out:cmd`. Raises Malformed.

        A single letter before a colon belongs to the part behind it (a drive); empty parts vanish.
        """
        if not text.strip():
            raise Malformed("template: cannot be blank; give source:destination[:command]")
        parts: list[str] = []
        for part in text.split(":"):
            if parts and _DRIVE.fullmatch(parts[-1]):
                parts[-1] += ":" + part
            else:
                parts.append(part)
        parts = [part for part in parts if part.strip()]
        if not parts:
            raise Malformed(f'template: "{text}" names no source')
        return cls(
            source=parts[0],
            destination=parts[1] if len(parts) > 1 else "",
            command=":".join(parts[2:]),
        )

    @classmethod
    def of(cls, value: Any, *, place: str) -> TemplateSpec:
        """Return the template of a configuration stanza. Raises Malformed naming key and place."""
        stanza = Stanza(value, place=place)
        command = stanza.text("command", "")
        timeout_s = stanza.duration("command_timeout", 30.0)
        inner = stanza.sub("exec")
        if inner is not None:
            command = inner.text("command", command)
            timeout_s = inner.duration("timeout", timeout_s)
            inner.finish()
        wait = stanza.take("wait")
        spec = cls(
            source=stanza.text("source", ""),
            contents=stanza.text("contents", ""),
            destination=stanza.text("destination", ""),
            command=command,
            command_timeout_s=timeout_s,
            perms=stanza.mode("perms"),
            backup=stanza.boolean("backup", default=False),
            create_dest_dirs=stanza.boolean("create_dest_dirs", default=True),
            error_on_missing_key=stanza.boolean("error_on_missing_key", default=False),
            left_delimiter=stanza.text("left_delimiter", ""),
            right_delimiter=stanza.text("right_delimiter", ""),
            wait=Wait.of(wait, place=f"{place}.wait") if wait is not None else None,
            check_command=stanza.text("check_command", ""),
            rollback=stanza.boolean("rollback", default=False),
        )
        stanza.finish()
        return spec


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A child process that is kept running and told about changes."""

    command: str
    kill_signal: int = signal.SIGINT
    kill_timeout_s: float = 30.0
    reload_signal: int = 0
    """0 = restart instead."""
    splay_s: float = 0.0

    @classmethod
    def of(cls, value: Any, *, place: str) -> ExecSpec:
        """Return the child of a configuration stanza. Raises Malformed naming key and place."""
        stanza = Stanza(value, place=place)
        spec = cls(
            command=stanza.text("command", ""),
            kill_signal=stanza.signal("kill_signal", signal.SIGINT),
            kill_timeout_s=stanza.duration("kill_timeout", 30.0),
            reload_signal=stanza.signal("reload_signal", 0),
            splay_s=stanza.duration("splay", 0.0),
        )
        stanza.finish()
        return spec


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the template runner."""

    templates: tuple[TemplateSpec, ...]
    once: bool = False
    dry: bool = False
    wait: Wait | None = None
    retry: Retry = Retry()
    exec: ExecSpec | None = None
    query_wait_s: float = 60.0
    """How long one blocking query may take."""
    command_retry: Retry = Retry(attempts=0, backoff_s=1.0, max_backoff_s=60.0)
    """Of failed commands, checks and writes; a daemon never gives up."""


def _duration(text: str, place: str) -> float:
    try:
        return parse_s(text)
    except Malformed as exc:
        raise Malformed(f"{place}: {exc}") from exc


def parse_signal(text: str) -> int:
    """Return the number of a signal's name (`SIGHUP`, `HUP`); nothing is 0. Raises Malformed."""
    if not text:
        return 0
    name = text.upper()
    name = name if name.startswith("SIG") else "SIG" + name
    try:
        return int(signal.Signals[name])
    except KeyError as exc:
        raise Malformed(f'unknown signal "{text}"') from exc


class Stanza:
    """One block of a configuration file: values are taken with their types, `finish` refuses what is left."""

    def __init__(self, value: Any, *, place: str) -> None:
        # HCL gives a block as a list of one, JSON as an object.
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if not isinstance(value, Mapping):
            raise Malformed(f"{place}: expected a block, got {_kind(value)}")
        self.place = place
        self._left = dict(value)

    def take(self, key: str) -> Any:
        """Return a value as it is, or None."""
        return self._left.pop(key, None)

    def _typed(self, key: str, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise Malformed(f"{self.place}.{key}: expected {wanted}, got {_kind(value)}")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self._typed(key, (str,), "a text")
        return default if value is None else str(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return a boolean; the texts "true" and "false" are taken too."""
        value = self._typed(key, (bool, str), "true or false")
        if isinstance(value, str):
            if value not in ("true", "false", "1", "0"):
                raise Malformed(f'{self.place}.{key}: expected true or false, got "{value}"')
            return value in ("true", "1")
        return default if value is None else bool(value)

    def integer(self, key: str, default: int) -> int:
        """Return an integer; a text of digits is taken too."""
        value = self._typed(key, (int, str), "a number")
        if isinstance(value, str):
            if not re.fullmatch("-?[0-9]{1,18}", value):
                raise Malformed(f'{self.place}.{key}: expected a number, got "{value}"')
            return int(value)
        return default if value is None else int(value)

    def duration(self, key: str, default: float) -> float:
        """Return the seconds of a duration text; a bare number is nanoseconds."""
        value = self._typed(key, (str, int, float), "a duration")
        if value is None:
            return default
        if isinstance(value, str):
            return _duration(value, f"{self.place}.{key}")
        return float(value) / 1e9

    def mode(self, key: str) -> int:
        """Return file permissions: "0600", or a number whose digits are octal."""
        value = self._typed(key, (str, int), "permissions such as 0644")
        if value is None:
            return 0
        digits = str(value) if isinstance(value, str) else f"{value}"
        if not re.fullmatch("(0o?)?[0-7]{1,4}", digits):
            raise Malformed(
                f'{self.place}.{key}: expected permissions such as "0644", got "{value}"'
            )
        return int(digits.removeprefix("0o"), 8)

    def signal(self, key: str, default: int) -> int:
        """Return a signal's number."""
        value = self._typed(key, (str,), "a signal such as SIGHUP")
        if value is None:
            return default
        try:
            return parse_signal(value)
        except Malformed as exc:
            raise Malformed(f"{self.place}.{key}: {exc}") from exc

    def sub(self, key: str) -> Stanza | None:
        """Return a block inside, or None."""
        value = self.take(key)
        return Stanza(value, place=f"{self.place}.{key}") if value is not None else None

    def blocks(self, key: str) -> Iterable[Any]:
        """Return the values of a block that may be repeated."""
        value = self.take(key)
        if value is None:
            return ()
        return value if isinstance(value, (list, tuple)) else (value,)

    def finish(self) -> None:
        """Raise Malformed if a key is left that nobody asked for."""
        if self._left:
            unknown = ", ".join(sorted(map(str, self._left)))
            raise Malformed(f"{self.place}: unknown key: {unknown}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, Mapping):
        return "a block"
    return "a list" if isinstance(value, (list, tuple)) else type(value).__name__
