"""Schemas of every kind this API knows."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema import core, meta, others, rbac, reviews
from waypost.wire.kube.schema.types import Field, Message, Scalar, Schema, Shape

SCHEMA: Final = Schema(
    (
        *meta.MESSAGES,
        *core.MESSAGES,
        *rbac.MESSAGES,
        *reviews.AUTHENTICATION,
        *reviews.AUTHORIZATION,
        *others.CERTIFICATES,
        *others.COORDINATION,
        *others.ADMISSION,
    )
)
"""Every message."""

__all__ = ["SCHEMA", "Field", "Message", "Scalar", "Schema", "Shape"]
