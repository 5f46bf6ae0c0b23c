"""An object of the kube-style API: a JSON document under group, resource, namespace and name."""

from __future__ import annotations

import msgspec


class Object(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object as stored: its JSON without `metadata.resourceVersion`, which is its `modify_index`."""

    group: str
    """API group, empty for the core group."""
    resource: str
    """Plural, lower case: `clusterroles`."""
    namespace: str = ""
    """Empty for cluster-scoped resources."""
    name: str
    body: bytes
    create_index: int = 0
    modify_index: int = 0
