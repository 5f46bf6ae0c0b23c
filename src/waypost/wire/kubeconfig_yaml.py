"""YAML as kubeconfig files have it: read without timestamps, written as Go's library does."""

from __future__ import annotations

from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """YAML without timestamps, which kubeconfig files have none of: `2026-01-02` stays text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Dumper(yaml.SafeDumper):
    """YAML as Go's library writes it: no anchors, double quotes, literal blocks for several lines."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: the same value twice is written twice."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    tag = "tag:yaml.org,2002:str"
    if "\n" in value:
        return dumper.represent_scalar(tag, value, style="|")
    plain = yaml.SafeLoader("").resolve(yaml.ScalarNode, value, (True, False)) == tag  # type: ignore[no-untyped-call]
    # One-letter booleans of YAML 1.1, which Go's library quotes.
    needs_quotes = not plain or value in ("y", "Y", "n", "N", "")
    return dumper.represent_scalar(tag, value, style='"' if needs_quotes else None)


Dumper.add_representer(str, _text)
