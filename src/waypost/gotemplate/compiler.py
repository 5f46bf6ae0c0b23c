"""Parse trees become Python closures: one for each action and operand, made once and run at each execution.

A closure for a value takes (frame, dot) and returns the value; one for a statement prints into the run and returns
None, or the word of a `break` or `continue` on its way to the range. `frame.node` is the operand visited last: the
one Go's error texts point at. Source: Go package text/template, "exec".

Of later Go versions `range` over an integer (1.24) is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from waypost.gotemplate import nodes
from waypost.gotemplate.runtime import (
    MISSING,
    UNSET,
    Compiled,
    Frame,
    Statement,
    Value,
    count_failure,
    evaluate_field,
    invoke,
    items,
    nothing,
    parameter_types,
    printed,
    validate,
)
from waypost.gotemplate.strconv import quote
from waypost.gotemplate.values import (
    ANY,
    INTEGER,
    INVALID,
    STRING,
    VALUE,
    Function,
    Int64,
    Struct,
    Uint64,
    can_be_nil,
    fields_of,
    truth,
    zero_of,
)


def compile_definition(
    name: str, tree: nodes.List, *, parse_name: str, text: str, functions: Mapping[str, Function]
) -> Compiled:
    """Return a definition as closures."""
    code = Compiled(name, parse_name=parse_name, text=text)
    compiler = _Compiler(functions)
    code.body = compiler.sequence(tree)
    code.slots = compiler.slots
    return code


def calls_itself(trees: Mapping[str, nodes.List]) -> bool:
    """Tell whether any definition can be reached from itself."""
    calls = {name: _called(tree) for name, tree in trees.items()}
    for start, called in calls.items():
        seen: set[str] = set()
        todo = list(called)
        while todo:
            name = todo.pop()
            if name == start:
                return True
            if name not in seen:
                seen.add(name)
                todo.extend(calls.get(name, ()))
    return False


def _called(tree: nodes.List) -> set[str]:
    found: set[str] = set()
    todo: list[nodes.List] = [tree]
    while todo:
        for node in todo.pop().nodes:
            if isinstance(node, nodes.Call):
                found.add(node.name)
            elif isinstance(node, nodes.Branch):
                todo.append(node.body)
                if node.otherwise is not None:
                    todo.append(node.otherwise)
    return found


class _Compiler:
    """Compiles one definition. Variables become places in the frame, found by lexical scope."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self.functions = functions
        self.scopes: list[dict[str, int]] = [{"$": 0}]
        self.slots = 1

    # Variables

    def _declare(self, name: str) -> int:
        slot = self.slots
        self.slots += 1
        self.scopes[-1][name] = slot
        return slot

    def _find(self, name: str) -> int | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    # Statements

    def sequence(self, tree: nodes.List) -> Statement:
        """Compile a list of nodes."""
        parts = [self._statement(node) for node in tree.nodes]
        if not parts:
            return nothing
        if len(parts) == 1:
            return parts[0]
        steps = tuple(parts)

        def run(frame: Frame, dot: Any) -> str | None:
            for step in steps:
                jump = step(frame, dot)
                if jump is not None:
                    return jump
            return None

        return run

    def _scoped(self, tree: nodes.List) -> Statement:
        self.scopes.append({})
        try:
            return self.sequence(tree)
        finally:
            self.scopes.pop()

    def _statement(self, node: nodes.Node) -> Statement:
        if isinstance(node, nodes.Text):
            return _print_text(node.text)
        if isinstance(node, nodes.Action):
            return self._action(node)
        if isinstance(node, nodes.Branch):
            self.scopes.append({})
            try:
                return self._range(node) if node.keyword == "range" else self._if_or_with(node)
            finally:
                self.scopes.pop()
        if isinstance(node, nodes.Call):
            return self._call(node)
        assert isinstance(node, nodes.Jump)
        word = node.keyword
        return lambda _frame, _dot: word

    def _action(self, node: nodes.Action) -> Statement:
        value = self.pipe(node.pipe, keep_nil=True)
        if node.pipe.declared:

            def assign(frame: Frame, dot: Any) -> str | None:
                value(frame, dot)
                return None

            return assign

        def show(frame: Frame, dot: Any) -> str | None:
            result = value(frame, dot)
            run = frame.run
            if type(result) is not str:
                frame.node = node
                result = str(result) if type(result) is int else printed(frame, result, node)
            run.size += len(result)
            if run.size > run.max_chars:
                run.size -= len(result)
                run.write(result)
            run.out.append(result)
            return None

        return show

    def _if_or_with(self, node: nodes.Branch) -> Statement:
        condition = self.pipe(node.pipe, keep_nil=True)
        body = self._scoped(node.body)
        otherwise = self._scoped(node.otherwise) if node.otherwise is not None else nothing

        def choose_if(frame: Frame, dot: Any) -> str | None:
            if truth(condition(frame, dot)):
                return body(frame, dot)
            return otherwise(frame, dot)

        def choose_with(frame: Frame, dot: Any) -> str | None:
            value = condition(frame, dot)
            if truth(value):
                return body(frame, value)
            return otherwise(frame, dot)

        return choose_with if node.keyword == "with" else choose_if

    def _range(self, node: nodes.Branch) -> Statement:
        declared, node.pipe.declared = node.pipe.declared, []
        try:
            source = self.pipe(node.pipe, keep_nil=not declared)
        finally:
            node.pipe.declared = declared
        names = [variable.names[0] for variable in declared]
        slots: list[int | None]
        if node.pipe.assigns:
            slots = [self._find(name) for name in names]
        else:
            slots = [self._declare(name) for name in names]
        # One variable is the element, two are index and element. Go first gives the first of them the whole value.
        undefined = next(
            (name for name, slot in zip(names, slots, strict=True) if slot is None), ""
        )
        element = slots[-1] if slots else None
        index = slots[0] if len(slots) > 1 else None
        body = self._scoped(node.body)
        otherwise = self._scoped(node.otherwise) if node.otherwise is not None else nothing

        def loop(frame: Frame, dot: Any) -> str | None:
            value = source(frame, dot)
            if undefined:
                frame.fail(f"undefined variable: {undefined}")
            run, variables = frame.run, frame.variables
            for slot in slots:
                variables[slot] = value  # type: ignore[index]
            ran = False
            for position, item in items(frame, value):
                ran = True
                run.steps_left -= 1
                if run.steps_left < 0:
                    run.step()
                if index is not None:
                    variables[index] = position
                if element is not None:
                    variables[element] = item
                jump = body(frame, item)
                if jump is not None and jump == "break":
                    return None
            if not ran:
                otherwise(frame, dot)
            return None

        return loop

    def _call(self, node: nodes.Call) -> Statement:
        argument = self.pipe(node.pipe) if node.pipe is not None else None
        name = node.name

        def call(frame: Frame, dot: Any) -> str | None:
            frame.node = node
            run = frame.run
            code = run.templates.get(name)
            if code is None:
                frame.fail(f"template {quote(name)} not defined")
            if frame.depth == run.max_depth:
                frame.fail(f"exceeded maximum template depth ({run.max_depth})")
            run.step()
            data = argument(frame, dot) if argument is not None else INVALID
            try:
                code.body(Frame(run, code, data, frame.depth + 1), data)
            except RecursionError:
                frame.node = node
                frame.fail(f"exceeded maximum template depth ({run.max_depth})")
            return None

        return call

    # Pipelines

    def pipe(self, node: nodes.Pipe, *, keep_nil: bool = False) -> Value:
        """Compile a pipeline; nil interfaces leave it as no value, unless the user of the value cannot tell."""
        value = self._command(node.commands[0], None, within=node)
        for command in node.commands[1:]:
            value = self._command(command, value)
        if not node.declared and keep_nil:
            return value
        if not node.declared:

            def plain(frame: Frame, dot: Any) -> Any:
                result = value(frame, dot)
                return INVALID if result is None else result

            return plain
        places: list[tuple[str, int | None]] = []
        for variable in node.declared:
            name = variable.names[0]
            places.append((name, self._find(name) if node.assigns else self._declare(name)))

        def assign(frame: Frame, dot: Any) -> Any:
            result = value(frame, dot)
            if result is None:
                result = INVALID
            for name, slot in places:
                if slot is None:
                    frame.fail(f"undefined variable: {name}")
                frame.variables[slot] = result
            return result

        return assign

    def _command(
        self, node: nodes.Command, piped: Value | None, *, within: nodes.Pipe | None = None
    ) -> Value:
        first = node.args[0]
        if isinstance(first, nodes.Identifier):
            return self._function(first, node, node.args[1:], piped)
        if isinstance(first, nodes.Field):
            return self._field(first, node.args[1:], piped)
        if isinstance(first, nodes.Variable):
            return self._variable(first, node.args[1:], piped)
        if isinstance(first, nodes.Chain):
            return self._chain(first, node.args[1:], piped)
        if len(node.args) > 1 or piped is not None:
            return _refuse_arguments(
                first, piped, at=within if isinstance(first, nodes.Pipe) else first
            )
        if isinstance(first, nodes.Pipe):
            return self.pipe(first)
        if isinstance(first, nodes.Nil):
            return _always_fail(first, "nil is not a command")
        return self._constant(first)

    def _constant(self, node: nodes.Node) -> Value:
        if isinstance(node, nodes.Dot):

            def dot_value(frame: Frame, dot: Any) -> Any:
                frame.node = node
                return dot

            return dot_value
        constant: Any
        if isinstance(node, (nodes.Bool, nodes.String)):
            constant = node.value
        else:
            assert isinstance(node, nodes.Number)
            failure, constant = _ideal(node)
            if failure:
                return _always_fail(node, failure)

        def value(frame: Frame, _dot: Any) -> Any:
            frame.node = node
            return constant

        return value

    # Operands with fields

    def _field(self, node: nodes.Field, args: Sequence[nodes.Node], piped: Value | None) -> Value:
        return self._fields(node, None, node.names, args, piped, at=node)

    def _variable(
        self, node: nodes.Variable, args: Sequence[nodes.Node], piped: Value | None
    ) -> Value:
        name = node.names[0]
        slot = self._find(name)
        if slot is None:
            return _always_fail(node, f"undefined variable: {name}")
        place = slot

        def value(frame: Frame, _dot: Any) -> Any:
            frame.node = node
            result = frame.variables[place]
            if result is UNSET:
                frame.fail(f"undefined variable: {name}")
            return result

        if len(node.names) > 1:
            return self._fields(node, value, node.names[1:], args, piped, at=node)
        if args or piped is not None:
            return _refuse_arguments(node, piped, at=node)
        return value

    def _chain(self, node: nodes.Chain, args: Sequence[nodes.Node], piped: Value | None) -> Value:
        if isinstance(node.node, nodes.Nil):
            return _always_fail(node, f"indirection through explicit nil in {node}")
        head = (
            self.pipe(node.node)
            if isinstance(node.node, nodes.Pipe)
            else self.argument(node.node, ANY)
        )
        return self._fields(node, head, node.names, args, piped, at=None)

    def _fields(
        self,
        node: nodes.Node,
        head: Value | None,
        names: Sequence[str],
        args: Sequence[nodes.Node],
        piped: Value | None,
        *,
        at: nodes.Node | None,
    ) -> Value:
        arguments = self._loose_arguments(args)
        if not arguments and piped is None and len(names) == 1:
            name = names[0]

            # The common case, short: a field of a struct, found once for each type.
            attributes: dict[type, str] = {}

            def single(frame: Frame, dot: Any) -> Any:
                if at is not None:
                    frame.node = at
                receiver = head(frame, dot) if head is not None else dot
                attribute = attributes.get(type(receiver))
                if attribute is not None:
                    return getattr(receiver, attribute)
                if isinstance(receiver, Struct) and name not in receiver.go_methods:
                    attribute = fields_of(receiver).get(name)
                    if attribute is not None:
                        attributes[type(receiver)] = attribute
                        return getattr(receiver, attribute)
                return evaluate_field(frame, node, name, receiver, (), MISSING)

            return single
        inner, last = tuple(names[:-1]), names[-1]

        def chain(frame: Frame, dot: Any) -> Any:
            final = piped(frame, dot) if piped is not None else MISSING
            if at is not None:
                frame.node = at
            receiver = head(frame, dot) if head is not None else dot
            for name in inner:
                receiver = evaluate_field(frame, node, name, receiver, (), MISSING)
            return evaluate_field(frame, node, last, receiver, arguments, final, dot=dot)

        return chain

    def _loose_arguments(self, args: Sequence[nodes.Node]) -> tuple[tuple[nodes.Node, _Maker], ...]:
        """Prepare arguments whose types only the method found at run time tells."""
        return tuple((arg, _Maker(self, arg)) for arg in args)

    # Functions

    def _function(
        self,
        node: nodes.Identifier,
        whole: nodes.Node,
        args: Sequence[nodes.Node],
        piped: Value | None,
    ) -> Value:
        function = self.functions[node.name]
        name = node.name
        if name in ("and", "or") and function.params == (VALUE,):
            return self._and_or(node, args, piped)
        count = len(args) + (piped is not None)
        wrong = count_failure(name, function, written=len(args), count=count)
        if wrong:

            def refuse(frame: Frame, dot: Any) -> Any:
                if piped is not None:
                    piped(frame, dot)
                frame.node = node
                frame.fail(wrong)

            return refuse
        types = parameter_types(function, count)
        values = tuple(
            self.argument(arg, go_type)
            for arg, go_type in zip(args, types[: len(args)], strict=True)
        )
        final_type = types[-1] if piped is not None else ""
        return _make_call(name, node, whole, values, piped, final_type)

    def _and_or(
        self, node: nodes.Identifier, args: Sequence[nodes.Node], piped: Value | None
    ) -> Value:
        is_or = node.name == "or"
        values = tuple(self.argument(arg, VALUE) for arg in args)
        if not values and piped is None:
            return _always_fail(
                node, f"wrong number of args for {node.name}: want at least 1 got 0"
            )

        def choose(frame: Frame, dot: Any) -> Any:
            final = piped(frame, dot) if piped is not None else MISSING
            frame.node = node
            result: Any = INVALID
            for value in values:
                result = value(frame, dot)
                if truth(result) == is_or:
                    return result
            if final is not MISSING:
                return INVALID if final is None else final
            return result

        return choose

    def argument(self, node: nodes.Node, go_type: str) -> Value:
        """Compile an operand that is passed for a parameter of a type."""
        value = self._operand(node)
        if value is not None:
            if go_type == VALUE:
                return value
            return _checked(value, go_type)
        if isinstance(node, nodes.Nil):
            if can_be_nil(go_type):
                zero = zero_of(go_type)

                def nil(frame: Frame, _dot: Any) -> Any:
                    frame.node = node
                    return zero

                return nil
            return _always_fail(node, f"cannot assign nil to {go_type}")
        return self._literal(node, go_type)

    def _operand(self, node: nodes.Node) -> Value | None:
        if isinstance(node, nodes.Dot):
            return self._constant(node)
        if isinstance(node, nodes.Field):
            return self._field(node, (), None)
        if isinstance(node, nodes.Variable):
            return self._variable(node, (), None)
        if isinstance(node, nodes.Pipe):
            return self.pipe(node)
        if isinstance(node, nodes.Identifier):
            return self._function(node, node, (), None)
        if isinstance(node, nodes.Chain):
            return self._chain(node, (), None)
        return None

    def _literal(self, node: nodes.Node, go_type: str) -> Value:
        if go_type in (ANY, VALUE):
            return self._constant(node)
        constant: Any = None
        wanted = go_type
        if go_type == STRING:
            constant = node.value if isinstance(node, nodes.String) else None
        elif go_type == "bool":
            constant = node.value if isinstance(node, nodes.Bool) else None
        elif go_type in _LITERALS:
            wanted, attribute, make = _LITERALS[go_type]
            number = getattr(node, attribute) if isinstance(node, nodes.Number) else None
            constant = make(number) if number is not None else None
        else:
            return _always_fail(node, f"can't handle {node} for arg of type {go_type}")
        if constant is None:
            return _always_fail(node, f"expected {wanted}; found {node}")

        def value(frame: Frame, _dot: Any) -> Any:
            frame.node = node
            return constant

        return value


_LITERALS: Final[Mapping[str, tuple[str, str, Callable[[Any], Any]]]] = {
    "int": ("integer", "as_int", int),
    INTEGER: ("integer", "as_int", Int64),
    "int64": ("integer", "as_int", Int64),
    "uint64": ("unsigned integer", "as_uint", Uint64),
    "float64": ("float", "as_float", float),
    "complex128": ("complex", "as_complex", complex),
}


class _Maker:
    """Compiles an argument for the type that is only known at run time, and remembers it."""

    __slots__ = ("compiler", "made", "node", "scopes")

    def __init__(self, compiler: _Compiler, node: nodes.Node) -> None:
        self.compiler = compiler
        self.node = node
        self.scopes = [dict(scope) for scope in compiler.scopes]
        self.made: dict[str, Value] = {}

    def of(self, go_type: str) -> Value:
        if go_type not in self.made:
            compiler = _Compiler(self.compiler.functions)
            compiler.scopes, compiler.slots = self.scopes, self.compiler.slots
            self.made[go_type] = compiler.argument(self.node, go_type)
        return self.made[go_type]


def _print_text(text: str) -> Statement:
    length = len(text)

    def show(frame: Frame, _dot: Any) -> str | None:
        run = frame.run
        run.size += length
        if run.size > run.max_chars:
            run.size -= length
            run.write(text)
        run.out.append(text)
        return None

    return show


def _ideal(node: nodes.Number) -> tuple[str, Any]:
    """Return the failure, or the value of a number where no type is asked for."""
    text = node.source
    if node.as_complex is not None:
        return "", node.as_complex
    is_hex = text.lstrip("+-")[:2].lower() == "0x" and not any(char in text for char in "pP")
    if (
        node.as_float is not None
        and not is_hex
        and not text.startswith("'")
        and any(mark in text for mark in ".eEpP")
    ):
        return "", node.as_float
    if node.as_int is not None:
        return "", node.as_int
    if node.as_uint is not None:
        return f"{text} overflows int", None
    return "", INVALID


def _always_fail(node: nodes.Node, message: str) -> Value:
    def fail(frame: Frame, _dot: Any) -> Any:
        frame.node = node
        frame.fail(message)

    return fail


def _refuse_arguments(first: nodes.Node, piped: Value | None, *, at: nodes.Node | None) -> Value:
    def refuse(frame: Frame, dot: Any) -> Any:
        if piped is not None:
            piped(frame, dot)
        if at is not None:
            frame.node = at
        frame.fail(f"can't give argument to non-function {first}")

    return refuse


def _make_call(
    name: str,
    node: nodes.Identifier,
    whole: nodes.Node,
    values: tuple[Value, ...],
    piped: Value | None,
    final_type: str,
) -> Value:
    def call(frame: Frame, dot: Any) -> Any:
        if piped is not None:
            final = piped(frame, dot)
            if final is None:
                final = INVALID
            frame.node = node
            args = [value(frame, dot) for value in values]
            args.append(final if final_type == VALUE else validate(frame, final, final_type))
        else:
            frame.node = node
            args = [value(frame, dot) for value in values]
        return invoke(frame, whole, name, frame.run.functions[name], args)

    return call


def _checked(value: Value, go_type: str) -> Value:
    if go_type == ANY:

        def any_value(frame: Frame, dot: Any) -> Any:
            result = value(frame, dot)
            return None if result is INVALID else result

        return any_value
    if go_type == STRING:

        def text(frame: Frame, dot: Any) -> Any:
            result = value(frame, dot)
            return result if type(result) is str else validate(frame, result, STRING)

        return text

    def checked(frame: Frame, dot: Any) -> Any:
        return validate(frame, value(frame, dot), go_type)

    return checked
