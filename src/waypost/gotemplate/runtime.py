"""What runs when a template is executed: frames, limits, fields, arguments and their types.

`Frame.node` is the operand visited last: the one Go's error texts point at. Source: Go package text/template, "exec".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol

from waypost.gotemplate import fmt, nodes
from waypost.gotemplate.errors import ExecuteError, FunctionError, LimitExceeded
from waypost.gotemplate.strconv import quote
from waypost.gotemplate.values import (
    ANY,
    INTEGER,
    INVALID,
    STRING,
    VALUE,
    Channel,
    Function,
    Invalid,
    Map,
    NilPointer,
    SizedInt,
    Struct,
    can_be_nil,
    fields_of,
    kind_of,
    sorted_keys,
    type_of,
    underlying_of,
    zero_of,
)

Value = Callable[["Frame", Any], Any]
Statement = Callable[["Frame", Any], "str | None"]


class Maker(Protocol):
    """An argument whose type only the method found at run time tells."""

    def of(self, go_type: str) -> Value:
        """Return the argument for a parameter of a type."""
        ...


MISSING: Final = object()
"""No piped value (nil may well be piped)."""
UNSET: Final = object()


class Run:
    """One execution: where the text goes and what is left of the limits."""

    __slots__ = (
        "functions",
        "max_chars",
        "max_depth",
        "out",
        "size",
        "steps_left",
        "strict",
        "templates",
    )

    def __init__(
        self,
        templates: Mapping[str, Compiled],
        functions: Mapping[str, Function],
        *,
        strict: bool,
        limits: tuple[int, int, int],
    ) -> None:
        self.templates = templates
        self.functions = functions
        self.strict = strict
        self.max_chars, self.steps_left, self.max_depth = limits
        self.out: list[str] = []
        self.size = 0

    def write(self, text: str) -> None:
        """Append to the output. Raises LimitExceeded."""
        self.size += len(text)
        if self.size > self.max_chars:
            raise LimitExceeded(f"output is longer than {self.max_chars} characters")
        self.out.append(text)

    def step(self) -> None:
        """Count one turn of a loop or one call of a template. Raises LimitExceeded."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise LimitExceeded("too many iterations")


class Frame:
    """One call of one template: its variables and the node visited last."""

    __slots__ = ("code", "depth", "node", "run", "variables")

    def __init__(self, run: Run, code: Compiled, data: Any, depth: int) -> None:
        self.run = run
        self.code = code
        self.depth = depth
        self.node: nodes.Node | None = None
        self.variables: list[Any] = [UNSET] * code.slots
        self.variables[0] = data

    def fail(self, message: str) -> NoReturn:
        """Raise ExecuteError with the place."""
        raise self.error(message)

    def error(self, message: str) -> ExecuteError:
        """Return the error with the place."""
        if self.node is None:
            return ExecuteError(f"template: {self.code.parse_name}: {message}")
        line, column = self.code.place(self.node.pos)
        return ExecuteError(
            f"template: {self.code.parse_name}:{line}:{column}: executing {quote(self.code.name)} "
            f"at <{self.node}>: {message}"
        )


class Compiled:
    """One definition, ready to run."""

    __slots__ = ("body", "name", "parse_name", "slots", "text")

    def __init__(self, name: str, *, parse_name: str, text: str) -> None:
        self.name = name
        self.parse_name = parse_name
        self.text = text
        self.slots = 1
        self.body: Statement = nothing

    def place(self, pos: int) -> tuple[int, int]:
        """Return the line (from 1) and the byte offset in the line (from 0)."""
        begin = self.text.rfind("\n", 0, pos) + 1
        column = len(self.text[begin:pos].encode("utf-8", "surrogateescape"))
        return 1 + self.text.count("\n", 0, pos), column


def nothing(_frame: Frame, _dot: Any) -> str | None:
    """Print nothing."""
    return None


def printed(frame: Frame, value: Any, node: nodes.Action) -> str:
    """Return the text of a value at the top of an action. Raises ExecuteError for channels and functions."""
    if value is INVALID or value is None or isinstance(value, NilPointer):
        return "<nil>" if isinstance(value, NilPointer) else "<no value>"
    if isinstance(value, Struct):
        return fmt.struct_body(value, "v")
    if isinstance(value, (Channel, Function)):
        frame.fail(f"can't print {node} of type {type_of(value)}")
    return fmt.show(value)


def items(frame: Frame, value: Any) -> Any:
    """Return pairs (index or key, element)."""
    kind = kind_of(value)
    if kind == "slice":
        return enumerate(value)
    if kind == "map":
        return [(key, value[key]) for key in sorted_keys(value)]
    if kind == "chan":
        return enumerate(value.items)
    if kind in ("invalid", "interface"):
        return ()
    if kind in ("int", "uint"):
        numbers = range(int(value))
        if isinstance(value, SizedInt):
            made = type(value)
            return ((made(number), made(number)) for number in numbers)
        return zip(numbers, numbers, strict=True)
    text = fmt.struct_body(value, "v") if isinstance(value, Struct) else fmt.show(value)
    raise frame.error(f"range can't iterate over {text}")


def count_failure(name: str, function: Function, *, written: int, count: int) -> str:
    """Return what is wrong with the number of arguments, or nothing."""
    fixed = len(function.params)
    if function.variadic:
        if count < fixed:
            return f"wrong number of args for {name}: want at least {fixed} got {written}"
    elif count != fixed:
        return f"wrong number of args for {name}: want {fixed} got {count}"
    return ""


def parameter_types(function: Function, count: int) -> list[str]:
    """Return the parameter types of that many arguments."""
    extra = max(0, count - len(function.params))
    return [*function.params, *([function.variadic] * extra)][:count]


def invoke(
    frame: Frame, whole: nodes.Node, name: str, function: Function, args: Sequence[Any]
) -> Any:
    """Call a function; whatever goes wrong inside becomes `error calling NAME: …`."""
    try:
        result = function.call(*args)
    except (FunctionError, ExecuteError) as exc:
        frame.node = whole
        raise frame.error(f"error calling {name}: {exc}") from exc
    except (LimitExceeded, RecursionError):
        raise
    except Exception as exc:  # what Go calls a panic inside a function
        frame.node = whole
        raise frame.error(f"error calling {name}: {exc or type(exc).__name__}") from exc
    if type(result) is str and len(result) > frame.run.max_chars:
        raise LimitExceeded(f"result of {name} is longer than {frame.run.max_chars} characters")
    return result


def validate(frame: Frame, value: Any, go_type: str) -> Any:
    """Return the value as a parameter of a type takes it."""
    if value is INVALID or value is None:
        if go_type == ANY:
            return None
        if go_type == VALUE:
            return value
        if value is INVALID or not can_be_nil(go_type):
            if can_be_nil(go_type):
                return zero_of(go_type)
            if value is None:
                frame.fail(f"wrong type for value; expected {go_type}; got {ANY}")
            frame.fail(f"invalid value; expected {go_type}")
        return zero_of(go_type)
    if go_type in (ANY, VALUE):
        return value
    actual = type_of(value)
    if actual == go_type or underlying_of(value) == go_type:
        return value
    if actual == "*" + go_type:
        return value
    if go_type == INTEGER:
        if kind_of(value) in ("int", "uint", "string"):
            return value
        go_type = "int64"
    raise frame.error(f"wrong type for value; expected {go_type}; got {actual}")


def evaluate_field(
    frame: Frame,
    node: nodes.Node,
    name: str,
    receiver: Any,
    args: tuple[tuple[nodes.Node, Maker], ...],
    final: Any,
    *,
    dot: Any = INVALID,
) -> Any:
    """Return a method's result, a struct's field or a map's entry. Raises ExecuteError."""
    if isinstance(receiver, Invalid):
        if frame.run.strict:
            frame.fail(f"nil data; no entry for key {quote(name)}")
        return INVALID
    if receiver is None:
        frame.fail(f"nil pointer evaluating {ANY}.{name}")
    has_args = bool(args) or final is not MISSING
    if isinstance(receiver, dict):
        return _map_entry(frame, name, receiver, has_args=has_args)
    if isinstance(receiver, Struct):
        method = receiver.go_methods.get(name)
        if method is not None:
            return _call_method(frame, node, name, method, receiver, args, final, dot)
        attribute = fields_of(receiver).get(name)
        if attribute is not None:
            if has_args:
                frame.fail(f"{name} has arguments but cannot be invoked as function")
            return getattr(receiver, attribute)
    else:
        method = getattr(receiver, "go_methods", {}).get(name)
        if method is not None:
            return _call_method(frame, node, name, method, receiver, args, final, dot)
    if isinstance(receiver, NilPointer) and name in receiver.fields:
        frame.fail(f"nil pointer evaluating {receiver.go_type}.{name}")
    raise frame.error(f"can't evaluate field {name} in type {type_of(receiver)}")


def _map_entry(frame: Frame, name: str, receiver: dict[Any, Any], *, has_args: bool) -> Any:
    if isinstance(receiver, Map) and receiver.key_type not in (STRING, ANY):
        frame.fail(f"can't evaluate field {name} in type {type_of(receiver)}")
    if has_args:
        frame.fail(f"{name} is not a method but has arguments")
    found = receiver.get(name, MISSING)
    if found is not MISSING:
        return found
    if frame.run.strict:
        frame.fail(f"map has no entry for key {quote(name)}")
    return receiver.zero if isinstance(receiver, Map) else None


def _call_method(
    frame: Frame,
    node: nodes.Node,
    name: str,
    method: Function,
    receiver: Any,
    args: tuple[tuple[nodes.Node, Maker], ...],
    final: Any,
    dot: Any,
) -> Any:
    count = len(args) + (final is not MISSING)
    wrong = count_failure(name, method, written=len(args), count=count)
    if wrong:
        frame.fail(wrong)
    types = parameter_types(method, count)
    values = [
        maker.of(go_type)(frame, dot)
        for (_, maker), go_type in zip(args, types[: len(args)], strict=True)
    ]
    if final is not MISSING:
        values.append(validate(frame, INVALID if final is None else final, types[-1]))
    return invoke(frame, node, name, method, [receiver, *values])
