"""Modules that are loaded when something of them is used for the first time.

For large libraries that an agent may never need: without access control nobody reads a certificate or a token.

    if TYPE_CHECKING:
        from cryptography import x509
    else:
        x509 = later("cryptography.x509")

Nothing of such a module may be used while the own module is being loaded: no base class, no constant, no alias.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


def later(name: str) -> ModuleType:
    """Return what stands for the module `name`. An import error comes with its first use."""
    return _Later(name)
