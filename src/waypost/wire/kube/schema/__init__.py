"""Schemas of every kind this API knows."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema import (
    admission,
    certificates,
    coordination,
    core,
    meta,
    rbac,
    reviews,
)
from waypost.wire.kube.schema.types import Field, Message, Scalar, Schema, Shape

SCHEMA: Final = Schema(
    (
        *meta.MESSAGES,
        *core.MESSAGES,
        *rbac.MESSAGES,
        *reviews.AUTHENTICATION,
        *reviews.AUTHORIZATION,
        *certificates.MESSAGES,
        *coordination.MESSAGES,
        *admission.MESSAGES,
    )
)
"""Every message."""

__all__ = ["SCHEMA", "Field", "Message", "Scalar", "Schema", "Shape"]
