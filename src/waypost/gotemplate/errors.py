"""What can go wrong with a template: it cannot be read, or it cannot be executed."""

from __future__ import annotations

from waypost.base.errors import Malformed


class TemplateError(Malformed):
    """A template is wrong, or does not fit its data. The text is the one Go's text/template prints."""

    code = "template"


class ParseError(TemplateError):
    """The text is no template: `template: NAME:LINE: MESSAGE`."""

    code = "template_parse"


class ExecuteError(TemplateError):
    """Execution stopped: `template: NAME:LINE:COL: executing "DEF" at <CONTEXT>: MESSAGE`."""

    code = "template_execute"


class FunctionError(Exception):
    """Raised by a template function; the engine turns it into `error calling NAME: TEXT` with the place."""


class LimitExceeded(Exception):
    """A template asked for more than it may have; the engine turns it into an ExecuteError with the place."""
