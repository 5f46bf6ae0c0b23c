"""One pass over a template: its text as far as the data is known, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from waypost.base.clock import Clock
from waypost.drivers.render.dependency import Dependency
from waypost.drivers.render.functions import SIGNATURES, Context, bound
from waypost.gotemplate import ExecuteError, Limits, ParseError, Template, TemplateError
from waypost.gotemplate.template import MissingKey


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one pass. `text` is worth writing only if nothing is `missing`."""

    text: str
    used: tuple[Dependency, ...]
    missing: tuple[Dependency, ...]


class Renderer:
    """A parsed template with consul-template's functions."""

    def __init__(self, template: Template, *, name: str, limits: Limits | None = None) -> None:
        self.name = name
        self._template = template
        self._limits = limits

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        name: str = "(dynamic)",
        delimiters: tuple[str, str] = ("", ""),
        error_on_missing_key: bool = False,
        limits: Limits | None = None,
    ) -> Renderer:
        """Return the renderer of a text; `name` is the file errors name. Raises TemplateError: `NAME: parse: …`."""
        missing_key: MissingKey = "error" if error_on_missing_key else "zero"
        try:
            template = Template.parse(
                text, functions=SIGNATURES, delimiters=delimiters, missing_key=missing_key
            )
        except ParseError as exc:
            raise TemplateError(f"{name}: parse: {exc}") from exc
        return cls(template, name=name, limits=limits)

    def evaluate(
        self, known: Mapping[Dependency, Any], *, clock: Clock, env: Mapping[str, str]
    ) -> Evaluation:
        """Run one pass. Raises TemplateError (`NAME: execute: …`) only if nothing is missing.

        While data is missing an error proves nothing: `index (service "web") 0` fails on the empty first answer
        and is right on the next. consul-template gives up there.
        """
        depth = 0

        def inner(name: str, data: Any) -> str:
            nonlocal depth
            depth += 1
            try:
                return self._template.execute_definition(
                    name, data, functions=functions, limits=self._limits, depth=depth
                )
            finally:
                depth -= 1

        context = Context(known, clock=clock, env=env, execute=inner)
        functions = bound(context)
        try:
            text = self._template.execute(functions=functions, limits=self._limits)
        except ExecuteError as exc:
            if not context.missing:
                raise TemplateError(f"{self.name}: execute: {exc}") from exc
            text = ""
        return Evaluation(text=text, used=tuple(context.used), missing=tuple(context.missing))
