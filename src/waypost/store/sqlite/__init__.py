"""The durable engine of a single machine."""

from waypost.store.sqlite.database import SqliteSettings
from waypost.store.sqlite.engine import SqliteEngine

__all__ = ["SqliteEngine", "SqliteSettings"]
