"""YAML bodies as JSON values: plain types only, repeated keys noticed, aliases that explode refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from waypost.base.errors import Malformed
from waypost.base.later import later
from waypost.wire.kube.values import MAX_DEPTH, DuplicateKeys, JsonObject, check_depth

if TYPE_CHECKING:
    import yaml
else:
    yaml = later("yaml")

MAX_NODES: Final = 1_000_000
"""Aliases may not blow a document up beyond this many values."""

_INTEGER, _FLOAT, _BOOL, _NULL, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null", "merge")
)


def decode_yaml(body: bytes) -> Any:
    """Return the one YAML document in `body` as a JSON value; raises Malformed.

    Dates stay texts; an object with repeated keys comes as `DuplicateKeys`.
    """
    try:
        node = yaml.compose(body.decode("utf-8", "replace"), Loader=yaml.SafeLoader)
        value = None if node is None else _Builder().build(node, depth=0)
    except yaml.YAMLError as exc:
        raise Malformed(f"error converting YAML to JSON: yaml: {_one_line(exc)}") from exc
    except (RecursionError, ValueError, OverflowError) as exc:
        raise Malformed(f"error converting YAML to JSON: yaml: {type(exc).__name__}") from exc
    check_depth(value)
    return value


def _one_line(exc: yaml.YAMLError) -> str:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark is not None:
        return f"line {exc.problem_mark.line + 1}: {exc.problem or exc.context}"
    return " ".join(str(exc).split())


class _Builder:
    """Makes values of nodes and counts them."""

    def __init__(self) -> None:
        self.left = MAX_NODES
        self.scalars = yaml.SafeLoader("")

    def build(self, node: yaml.Node, *, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Malformed(
                "error converting YAML to JSON: yaml: document contains excessive aliasing"
            )
        if depth > MAX_DEPTH:
            raise Malformed("exceeded max depth")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(one, depth=depth + 1) for one in node.value]
        return self._scalar(node) if isinstance(node, yaml.ScalarNode) else None

    def _mapping(self, node: yaml.MappingNode, depth: int) -> JsonObject:
        merged: JsonObject = {}
        pairs: list[tuple[str, Any]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                below = self.build(value_node, depth=depth + 1)
                for one in below if isinstance(below, list) else [below]:
                    if not isinstance(one, dict):
                        raise Malformed(
                            "error converting YAML to JSON: yaml: map merge requires map or sequence of maps as the value"
                        )
                    merged = one | merged
                continue
            pairs.append((self._key(key_node), self.build(value_node, depth=depth + 1)))
        seen: set[str] = set()
        again = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        if again:
            return DuplicateKeys([*merged.items(), *pairs], tuple(dict.fromkeys(again)))
        return merged | dict(pairs)

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise Malformed("error converting YAML to JSON: yaml: invalid map key")
        value = self._scalar(node)
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        return "null" if value is None else str(value)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return self.scalars.construct_yaml_bool(node)
        if node.tag == _INTEGER:
            return self.scalars.construct_yaml_int(node)
        if node.tag == _FLOAT:
            found = float(self.scalars.construct_yaml_float(node))
            if found != found or found in (float("inf"), float("-inf")):
                raise Malformed("error converting YAML to JSON: yaml: unsupported value")
            return found
        return text


def encode_yaml(value: Any) -> bytes:
    """Return a JSON value as YAML with sorted keys, as the original writes it."""
    text = yaml.safe_dump(value, default_flow_style=False, sort_keys=True, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")
