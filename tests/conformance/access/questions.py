"""Recorded questions in the form of reviews of access."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "verb": "verb",
    "apiGroup": "group",
    "apiVersion": "version",
    "resource": "resource",
    "subresource": "subresource",
    "namespace": "namespace",
    "name": "name",
}


def spec_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the `spec` of the SubjectAccessReview that asks a recorded question."""
    request = row["request"]
    spec: dict[str, Any] = {"user": row["user"], "groups": row["groups"]}
    if "path" in request:
        return spec | {"nonResourceAttributes": {"path": request["path"], "verb": request["verb"]}}
    return spec | {
        "resourceAttributes": {
            _NAMES[key]: value for key, value in request.items() if key in _NAMES
        }
    }


def status_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the `status` that was recorded, or follows from the recorded decision."""
    status: dict[str, Any] = {"allowed": row["expect"] == "allow"}
    if row.get("reason"):
        status["reason"] = row["reason"]
    return status
