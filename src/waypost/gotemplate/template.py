"""A template: parsed and compiled once, executed as often as needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

import msgspec

from waypost.gotemplate.builtins import BUILTINS
from waypost.gotemplate.compiler import calls_itself, compile_definition
from waypost.gotemplate.errors import ExecuteError, FunctionError, LimitExceeded, ParseError
from waypost.gotemplate.parser import parse
from waypost.gotemplate.runtime import Compiled, Frame, Run
from waypost.gotemplate.strconv import quote
from waypost.gotemplate.values import INVALID, Function

MissingKey = Literal["zero", "error"]

_FRAMES_A_CALL: Final = 8
_MAX_INNER: Final = 50
"""How deep `execute_inner` may nest: each level takes a piece of the C stack."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one execution may use, so that a bad template cannot take the process down."""

    output_chars: int = 64 * 1024 * 1024
    """Length of the output, and of any one function's result."""
    iterations: int = 1_000_000
    """Turns of all ranges and calls of templates together: about a second of work."""
    depth: int = 100_000
    """Templates calling templates; Go's own limit."""


class Template:
    """A Go template and everything it defines.

    The functions given at `parse` fix names and parameter types; `execute` may be given others of the same
    signatures, bound to the data of that execution.
    """

    def __init__(
        self,
        name: str,
        definitions: Mapping[str, Compiled],
        functions: Mapping[str, Function],
        *,
        missing_key: MissingKey,
        recursive: bool,
    ) -> None:
        self.name = name
        self.definitions = definitions
        self._functions = functions
        self._strict = missing_key == "error"
        self._recursive = recursive

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        name: str = "",
        functions: Mapping[str, Function] | None = None,
        delimiters: tuple[str, str] = ("{{", "}}"),
        missing_key: MissingKey = "zero",
    ) -> Template:
        """Return the template of a text. Raises ParseError (`template: NAME:LINE: MESSAGE`).

        `missing_key` tells what a map gives for a key it has not: its element's zero value, or an error.
        """
        known = {**BUILTINS, **(functions or {})}
        try:
            trees = parse(text, name=name, functions=known, delimiters=delimiters)
            definitions = {
                inner: compile_definition(inner, tree, parse_name=name, text=text, functions=known)
                for inner, tree in trees.items()
            }
            recursive = calls_itself(trees)
        except RecursionError:
            raise ParseError(f"template: {name}:1: nested too deep") from None
        return cls(name, definitions, known, missing_key=missing_key, recursive=recursive)

    def execute(
        self,
        data: Any = INVALID,
        *,
        functions: Mapping[str, Function] | None = None,
        limits: Limits | None = None,
    ) -> str:
        """Return the output for the data. Raises ExecuteError with Go's text."""
        return self.execute_definition(self.name, data, functions=functions, limits=limits)

    def execute_definition(
        self,
        name: str,
        data: Any = INVALID,
        *,
        functions: Mapping[str, Function] | None = None,
        limits: Limits | None = None,
        depth: int = 0,
    ) -> str:
        """Return the output of one definition; `depth` counts executions inside of executions."""
        code = self.definitions.get(name)
        if code is None:
            raise ExecuteError(
                f"template: no template {quote(name)} associated with template {quote(self.name)}"
            )
        if depth > _MAX_INNER:
            raise FunctionError(f"templates execute each other more than {_MAX_INNER} deep")
        limits = limits or Limits()
        known = {**self._functions, **functions} if functions else self._functions
        run = Run(
            self.definitions,
            known,
            strict=self._strict,
            limits=(limits.output_chars, limits.iterations, limits.depth),
        )
        value = INVALID if data is None else data
        frame = Frame(run, code, value, 0)
        try:
            with _room_for_recursion(limits.depth if self._recursive else 0):
                code.body(frame, value)
        except LimitExceeded as exc:
            raise frame.error(str(exc)) from exc
        except RecursionError as exc:
            raise frame.error("expression nested too deep") from exc
        return "".join(run.out)


@contextmanager
def _room_for_recursion(depth: int) -> Iterator[None]:
    """Let templates that call themselves go as deep as Go's may: Python frames, no C stack."""
    before = sys.getrecursionlimit()
    wanted = before + depth * _FRAMES_A_CALL
    if depth:
        sys.setrecursionlimit(wanted)
    try:
        yield
    finally:
        if depth:
            sys.setrecursionlimit(before)
