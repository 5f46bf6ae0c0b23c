"""The parse tree. `str(node)` is the normal form that error texts show. Source: Go package text/template/parse."""

from __future__ import annotations

from dataclasses import dataclass, field

from waypost.gotemplate.strconv import quote


@dataclass(slots=True, eq=False)
class Node:
    """Any node; `pos` is the index in the text of what errors point at."""

    pos: int


@dataclass(slots=True, eq=False)
class Text(Node):
    """Text outside of actions."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True, eq=False)
class List(Node):
    """A sequence of nodes."""

    nodes: list[Node] = field(default_factory=list)

    def __str__(self) -> str:
        return "".join(map(str, self.nodes))

    def is_blank(self) -> bool:
        """Tell whether it consists of white space only."""
        return all(isinstance(node, Text) and not node.text.strip() for node in self.nodes)


@dataclass(slots=True, eq=False)
class Identifier(Node):
    """The name of a function."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True, eq=False)
class Variable(Node):
    """A variable with the fields after it: `$x.A` is ("$x", "A")."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.names)


@dataclass(slots=True, eq=False)
class Dot(Node):
    """The cursor."""

    def __str__(self) -> str:
        return "."


@dataclass(slots=True, eq=False)
class Nil(Node):
    """The untyped nil."""

    def __str__(self) -> str:
        return "nil"


@dataclass(slots=True, eq=False)
class Field(Node):
    """Fields of dot: `.A.B`."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join("." + name for name in self.names)


@dataclass(slots=True, eq=False)
class Bool(Node):
    """`true` or `false`."""

    value: bool

    def __str__(self) -> str:
        return "true" if self.value else "false"


@dataclass(slots=True, eq=False)
class String(Node):
    """A string constant; `source` with its quotes."""

    source: str
    value: str

    def __str__(self) -> str:
        return self.source


@dataclass(slots=True, eq=False)
class Number(Node):
    """A number or character constant, in every type it fits exactly (None where it does not)."""

    source: str
    as_int: int | None = None
    as_uint: int | None = None
    as_float: float | None = None
    as_complex: complex | None = None

    def __str__(self) -> str:
        return self.source


@dataclass(slots=True, eq=False)
class Command(Node):
    """Operands of one stage of a pipeline."""

    args: list[Node] = field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(f"({arg})" if isinstance(arg, Pipe) else str(arg) for arg in self.args)


@dataclass(slots=True, eq=False)
class Pipe(Node):
    """A pipeline with the variables it declares or (`assigns`) sets."""

    declared: list[Variable] = field(default_factory=list)
    assigns: bool = False
    commands: list[Command] = field(default_factory=list)

    def __str__(self) -> str:
        head = ""
        if self.declared:
            head = ", ".join(map(str, self.declared)) + (" = " if self.assigns else " := ")
        return head + " | ".join(map(str, self.commands))


@dataclass(slots=True, eq=False)
class Chain(Node):
    """Fields of a parenthesised pipeline or of a function's result."""

    node: Node
    names: tuple[str, ...]

    def __str__(self) -> str:
        head = f"({self.node})" if isinstance(self.node, Pipe) else str(self.node)
        return head + "".join("." + name for name in self.names)


@dataclass(slots=True, eq=False)
class Action(Node):
    """A pipeline whose value is printed."""

    pipe: Pipe

    def __str__(self) -> str:
        return f"{{{{{self.pipe}}}}}"


@dataclass(slots=True, eq=False)
class Branch(Node):
    """`if`, `with` or `range`."""

    keyword: str
    pipe: Pipe
    body: List
    otherwise: List | None

    def __str__(self) -> str:
        middle = f"{{{{else}}}}{self.otherwise}" if self.otherwise is not None else ""
        return f"{{{{{self.keyword} {self.pipe}}}}}{self.body}{middle}{{{{end}}}}"


@dataclass(slots=True, eq=False)
class Jump(Node):
    """`break` or `continue`."""

    keyword: str

    def __str__(self) -> str:
        return f"{{{{{self.keyword}}}}}"


@dataclass(slots=True, eq=False)
class Call(Node):
    """`template "name" pipeline`."""

    name: str
    pipe: Pipe | None

    def __str__(self) -> str:
        argument = f" {self.pipe}" if self.pipe is not None else ""
        return f"{{{{template {quote(self.name)}{argument}}}}}"


@dataclass(slots=True, eq=False)
class End(Node):
    """`end`; never part of a finished tree."""

    def __str__(self) -> str:
        return "{{end}}"


@dataclass(slots=True, eq=False)
class Else(Node):
    """`else`; `keyword` is the word behind it (`if`, `with`) or empty. Never part of a finished tree."""

    keyword: str

    def __str__(self) -> str:
        return "{{else}}"
