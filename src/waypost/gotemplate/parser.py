"""From tokens to parse trees. Source: Go package text/template/parse; the error texts are its own.

Of later Go versions `else with` (1.23) is accepted.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, NoReturn

from waypost.base.errors import Malformed
from waypost.gotemplate import lexer, nodes, strconv
from waypost.gotemplate.errors import ParseError
from waypost.gotemplate.lexer import Lexer, Token

_OPERANDS: Final = frozenset(
    (
        lexer.BOOL,
        lexer.CHAR_CONSTANT,
        lexer.COMPLEX,
        lexer.DOT,
        lexer.FIELD,
        lexer.IDENTIFIER,
        lexer.NUMBER,
        "nil",
        lexer.RAW,
        lexer.STRING,
        lexer.VARIABLE,
        lexer.OPEN,
    )
)
_CONSTANTS: Final = (nodes.Bool, nodes.Dot, nodes.Nil, nodes.Number, nodes.String)
_MAX_NESTING: Final = 150
"""Of parentheses and control structures; Go's own limit for parentheses is far higher, people's need far lower."""


def parse(
    text: str, *, name: str, functions: Container[str], delimiters: tuple[str, str] = ("{{", "}}")
) -> dict[str, nodes.List]:
    """Return the trees of a text by name; `name` is the root's. Raises ParseError."""
    trees: dict[str, nodes.List] = {}
    lex = Lexer(text, left=delimiters[0] or "{{", right=delimiters[1] or "}}")
    root = _Tree(lex, name=name, functions=functions, trees=trees)
    root.parse_root()
    return trees


class _Tree:
    """The parser of one definition. Definitions inside a text share its lexer, not the look-ahead."""

    def __init__(
        self,
        lex: Lexer,
        *,
        name: str,
        functions: Container[str],
        trees: dict[str, nodes.List],
        parse_name: str | None = None,
        nesting: int = 0,
    ) -> None:
        self.lex = lex
        self.name = name
        self.parse_name = name if parse_name is None else parse_name
        self.functions = functions
        self.trees = trees
        self.variables = ["$"]
        self.ahead: list[Token] = []
        self.line = 1
        self.action_line = 0
        self.range_depth = 0
        self.nesting = nesting

    # Look-ahead. `line` is the line of the token read last, which error texts name.

    def _next(self) -> Token:
        if self.ahead:
            return self.ahead.pop()
        token = self.lex.next()
        self.line = token.line
        return token

    def _back(self, *tokens: Token) -> None:
        """Give tokens back, in the order they were read."""
        self.ahead.extend(reversed(tokens))

    def _peek(self) -> Token:
        token = self._next()
        self.ahead.append(token)
        return token

    def _next_word(self) -> Token:
        token = self._next()
        while token.kind == lexer.SPACE:
            token = self._next()
        return token

    def _peek_word(self) -> Token:
        token = self._next_word()
        self.ahead.append(token)
        return token

    # Errors

    def _error(self, message: str) -> ParseError:
        return ParseError(f"template: {self.parse_name}:{self.line}: {message}")

    def _fail(self, message: str) -> NoReturn:
        raise self._error(message)

    def _unexpected(self, token: Token, context: str) -> NoReturn:
        if token.kind == lexer.ERROR:
            extra = ""
            if self.action_line not in (0, token.line):
                extra = f" in action started at {self.parse_name}:{self.action_line}"
                if token.text.endswith(" action"):
                    extra = extra.removeprefix(" in action")
            self._fail(f"{token}{extra}")
        self._fail(f"unexpected {token} in {context}")

    def _expect(self, kind: str, context: str) -> Token:
        token = self._next_word()
        if token.kind != kind:
            self._unexpected(token, context)
        return token

    def _deeper(self) -> None:
        self.nesting += 1
        if self.nesting > _MAX_NESTING:
            self._fail(f"nested more than {_MAX_NESTING} levels deep")

    # Definitions

    def parse_root(self) -> None:
        """Parse the whole text."""
        root = nodes.List(self._peek().pos)
        while self._peek().kind != lexer.EOF:
            if self._peek().kind == lexer.LEFT:
                delimiter = self._next()
                word = self._next_word()
                if word.kind == "define":
                    self._inner(name="").parse_definition()
                    continue
                self._back(delimiter, word)
            node = self._text_or_action()
            if isinstance(node, (nodes.End, nodes.Else)):
                self._fail(f"unexpected {node}")
            root.nodes.append(node)
        self._add(root)

    def _inner(self, *, name: str) -> _Tree:
        inner = _Tree(
            self.lex,
            name=name,
            functions=self.functions,
            trees=self.trees,
            parse_name=self.parse_name,
            nesting=self.nesting,
        )
        inner.line = self.line
        return inner

    def parse_definition(self) -> None:
        """Parse what follows the word `define`."""
        context = "define clause"
        self.name = self._quoted_name(self._next_word(), context)
        self._expect(lexer.RIGHT, context)
        self.parse_body(context)

    def parse_body(self, context: str) -> None:
        """Parse up to the `end` of a definition and keep it."""
        root, end = self._item_list()
        if not isinstance(end, nodes.End):
            self._fail(f"unexpected {end} in {context}")
        self._add(root)

    def _add(self, root: nodes.List) -> None:
        known = self.trees.get(self.name)
        if known is None or known.is_blank():
            self.trees[self.name] = root
        elif not root.is_blank():
            self._fail(f"template: multiple definition of template {strconv.quote(self.name)}")

    def _quoted_name(self, token: Token, context: str) -> str:
        if token.kind not in (lexer.STRING, lexer.RAW):
            self._unexpected(token, context)
        return self._unquote(token)

    def _unquote(self, token: Token) -> str:
        try:
            return strconv.unquote(token.text)
        except Malformed as exc:
            raise self._error(str(exc)) from exc

    # Lists and actions

    def _item_list(self) -> tuple[nodes.List, nodes.End | nodes.Else]:
        self._deeper()
        result = nodes.List(self._peek_word().pos)
        while self._peek_word().kind != lexer.EOF:
            node = self._text_or_action()
            if isinstance(node, (nodes.End, nodes.Else)):
                self.nesting -= 1
                return result, node
            result.nodes.append(node)
        raise self._error("unexpected EOF")

    def _text_or_action(self) -> nodes.Node:
        token = self._next_word()
        if token.kind == lexer.TEXT:
            return nodes.Text(token.pos, token.text)
        if token.kind != lexer.LEFT:
            self._unexpected(token, "input")
        self.action_line = token.line
        node = self._action()
        self.action_line = 0
        return node

    def _action(self) -> nodes.Node:
        token = self._next_word()
        kind = token.kind
        if kind in ("if", "with", "range"):
            return self._control(kind)
        if kind in ("break", "continue"):
            return self._jump(token)
        if kind == "end":
            return nodes.End(self._expect(lexer.RIGHT, "end").pos)
        if kind == "else":
            return self._else()
        if kind == "block":
            return self._block()
        if kind == "template":
            return self._template()
        self._back(token)
        return nodes.Action(token.pos, self._pipeline("command", lexer.RIGHT))

    def _jump(self, token: Token) -> nodes.Node:
        after = self._next_word()
        if after.kind != lexer.RIGHT:
            self._unexpected(after, f"{{{{{token.kind}}}}}")
        if self.range_depth == 0:
            self._fail(f"{{{{{token.kind}}}}} outside {{{{range}}}}")
        return nodes.Jump(token.pos, token.kind)

    def _else(self) -> nodes.Node:
        ahead = self._peek_word()
        if ahead.kind in ("if", "with"):
            return nodes.Else(ahead.pos, ahead.kind)
        return nodes.Else(self._expect(lexer.RIGHT, "else").pos, "")

    def _control(self, keyword: str) -> nodes.Node:
        scope = len(self.variables)
        pipe = self._pipeline(keyword, lexer.RIGHT)
        if keyword == "range":
            self.range_depth += 1
        body, end = self._item_list()
        if keyword == "range":
            self.range_depth -= 1
        otherwise: nodes.List | None = None
        if isinstance(end, nodes.Else):
            if end.keyword and end.keyword == keyword:
                # `else if X` is `else` with an `if X` inside that shares the one `end`.
                self._next_word()
                otherwise = nodes.List(end.pos, [self._control(end.keyword)])
            else:
                if end.keyword:
                    context = "input" if end.keyword == "if" else "else"
                    self._unexpected(self._next_word(), context)
                otherwise, end = self._item_list()
                if not isinstance(end, nodes.End):
                    self._fail(f"expected end; found {end}")
        del self.variables[scope:]
        return nodes.Branch(pipe.pos, keyword, pipe, body, otherwise)

    def _block(self) -> nodes.Node:
        context = "block clause"
        token = self._next_word()
        name = self._quoted_name(token, context)
        pipe = self._pipeline(context, lexer.RIGHT)
        self._inner(name=name).parse_body(context)
        return nodes.Call(token.pos, name, pipe)

    def _template(self) -> nodes.Node:
        context = "template clause"
        token = self._next_word()
        name = self._quoted_name(token, context)
        after = self._next_word()
        pipe: nodes.Pipe | None = None
        if after.kind != lexer.RIGHT:
            self._back(after)
            pipe = self._pipeline(context, lexer.RIGHT)
        return nodes.Call(token.pos, name, pipe)

    # Pipelines

    def _pipeline(self, context: str, end: str) -> nodes.Pipe:
        self._deeper()
        pipe = nodes.Pipe(self._peek_word().pos)
        self._declarations(pipe, context)
        while True:
            token = self._next_word()
            if token.kind == end:
                break
            if token.kind not in _OPERANDS:
                self._unexpected(token, context)
            self._back(token)
            pipe.commands.append(self._command())
        if not pipe.commands:
            self._fail(f"missing value for {context}")
        for stage, command in enumerate(pipe.commands[1:], 2):
            if isinstance(command.args[0], _CONSTANTS):
                self._fail(f"non executable command in pipeline stage {stage}")
        self.nesting -= 1
        return pipe

    def _declarations(self, pipe: nodes.Pipe, context: str) -> None:
        while self._peek_word().kind == lexer.VARIABLE:
            name = self._next_word()
            after = self._next()
            self._back(after)
            word = self._peek_word()
            if word.kind in (lexer.ASSIGN, lexer.DECLARE):
                self._next_word()
                pipe.assigns = word.kind == lexer.ASSIGN
                self._declare(pipe, name)
                return
            if word.kind == lexer.CHAR and word.text == ",":
                self._next_word()
                self._declare(pipe, name)
                if context == "range" and len(pipe.declared) < 2:
                    if self._peek_word().kind in (lexer.VARIABLE, lexer.RIGHT, lexer.CLOSE):
                        continue
                    self._fail("range can only initialize variables")
                self._fail(f"too many declarations in {context}")
            if after.kind == lexer.SPACE:
                self.ahead.append(after)
            self.ahead.append(name)
            return

    def _declare(self, pipe: nodes.Pipe, token: Token) -> None:
        pipe.declared.append(nodes.Variable(token.pos, (token.text,)))
        self.variables.append(token.text)

    def _command(self) -> nodes.Command:
        command = nodes.Command(self._peek_word().pos)
        while True:
            self._peek_word()
            operand = self._operand()
            if operand is not None:
                command.args.append(operand)
            token = self._next()
            if token.kind == lexer.SPACE:
                continue
            if token.kind in (lexer.RIGHT, lexer.CLOSE):
                self._back(token)
            elif token.kind != lexer.PIPE:
                self._unexpected(token, "operand")
            break
        if not command.args:
            self._fail("empty command")
        return command

    def _operand(self) -> nodes.Node | None:
        node = self._term()
        if node is None or self._peek().kind != lexer.FIELD:
            return node
        pos = self._peek().pos
        names: list[str] = []
        while self._peek().kind == lexer.FIELD:
            names.append(self._next().text[1:])
        if isinstance(node, nodes.Field):
            return nodes.Field(pos, (*node.names, *names))
        if isinstance(node, nodes.Variable):
            return nodes.Variable(pos, (*node.names, *names))
        if isinstance(node, (nodes.Bool, nodes.String, nodes.Number, nodes.Nil, nodes.Dot)):
            self._fail(f"unexpected . after term {strconv.quote(str(node))}")
        return nodes.Chain(pos, node, tuple(names))

    def _term(self) -> nodes.Node | None:
        token = self._next_word()
        kind = token.kind
        if kind == lexer.IDENTIFIER:
            if token.text not in self.functions:
                self._fail(f"function {strconv.quote(token.text)} not defined")
            return nodes.Identifier(token.pos, token.text)
        if kind == lexer.DOT:
            return nodes.Dot(token.pos)
        if kind == "nil":
            return nodes.Nil(token.pos)
        if kind == lexer.VARIABLE:
            if token.text not in self.variables:
                self._fail(f"undefined variable {strconv.quote(token.text)}")
            return nodes.Variable(token.pos, (token.text,))
        if kind == lexer.FIELD:
            return nodes.Field(token.pos, (token.text[1:],))
        if kind == lexer.BOOL:
            return nodes.Bool(token.pos, token.text == "true")
        if kind in (lexer.CHAR_CONSTANT, lexer.COMPLEX, lexer.NUMBER):
            try:
                return number(token)
            except Malformed as exc:
                self._fail(str(exc))
        if kind == lexer.OPEN:
            return self._pipeline("parenthesized pipeline", lexer.CLOSE)
        if kind in (lexer.STRING, lexer.RAW):
            return nodes.String(token.pos, token.text, self._unquote(token))
        self._back(token)
        return None


def number(token: Token) -> nodes.Number:
    """Return the constant of a number or character token. Raises Malformed."""
    text = token.text
    node = nodes.Number(token.pos, text)
    if token.kind == lexer.CHAR_CONSTANT:
        code, _, tail = strconv.unquote_char(text[1:], "'")
        if tail != "'":
            raise Malformed(f"malformed character constant: {text}")
        node.as_int = node.as_uint = code
        node.as_float = float(code)
        return node
    if token.kind == lexer.COMPLEX or text.endswith("i"):
        return _complex(node, text, pair=token.kind == lexer.COMPLEX)
    try:
        node.as_uint = strconv.parse_uint(text, base=0)
    except Malformed:
        node.as_uint = None
    try:
        node.as_int = strconv.parse_int(text, base=0)
        if node.as_int == 0:
            node.as_uint = 0
    except Malformed:
        node.as_int = None
    whole = node.as_int if node.as_int is not None else node.as_uint
    if whole is not None:
        node.as_float = float(whole)
        return node
    try:
        value = strconv.parse_float(text, underscores=True)
    except Malformed:
        raise Malformed(f"illegal number syntax: {strconv.quote(text)}") from None
    if not any(mark in text for mark in ".eEpP"):
        raise Malformed(f"integer overflow: {strconv.quote(text)}")
    _fill(node, value)
    return node


def _fill(node: nodes.Number, value: float) -> None:
    node.as_float = value
    if value == int(value):
        if -(2**63) <= value < 2**63:
            node.as_int = int(value)
        if 0 <= value < 2**64:
            node.as_uint = int(value)


def _complex(node: nodes.Number, text: str, *, pair: bool) -> nodes.Number:
    body = text[:-1]
    split = 0
    if pair:
        split = max(
            at for at in range(1, len(body)) if body[at] in "+-" and body[at - 1] not in "eEpP"
        )
    try:
        real = strconv.parse_float(body[:split], underscores=True) if pair else 0.0
        imaginary = strconv.parse_float(body[split:], underscores=True)
    except Malformed:
        raise Malformed(f"illegal number syntax: {strconv.quote(text)}") from None
    node.as_complex = complex(real, imaginary)
    if imaginary == 0:
        _fill(node, real)
    return node
