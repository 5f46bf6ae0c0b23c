"""JSON Merge Patch. Source: RFC 7386."""

from __future__ import annotations

from typing import Any

from waypost.wire.kube.values import copied


def merged(value: Any, patch: Any) -> Any:
    """Return `value` with `patch` merged in: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copied(patch)
    result = dict(value) if isinstance(value, dict) else {}
    for key, one in patch.items():
        if one is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), one)
    return result
