r"""The Go template language (text/template): pure, without I/O.

template = Template.parse("{{ range . }}{{ . | printf "%03d" }} {{ end }}")
template.execute([1, 2])  # "001 002 "
"""

from waypost.gotemplate.errors import ExecuteError, FunctionError, ParseError, TemplateError
from waypost.gotemplate.template import Limits, Template
from waypost.gotemplate.values import Function

__all__ = [
    "ExecuteError",
    "Function",
    "FunctionError",
    "Limits",
    "ParseError",
    "Template",
    "TemplateError",
]
