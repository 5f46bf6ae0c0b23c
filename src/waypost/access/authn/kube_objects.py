"""The few fields of stored secrets and service accounts that authentication reads."""

from __future__ import annotations

import base64
import binascii
import datetime as dt

import msgspec

from waypost.access.authn.records import Objects


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Part of ObjectMeta."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class KubeObject(msgspec.Struct, frozen=True):
    """Any object: what is needed to tell whether it still is the same one."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)

    def is_deleted_since(self, before_s: float) -> bool:
        """Tell whether the object was marked as deleted before `before_s` (seconds since the Unix epoch)."""
        stamp = self.metadata.deletion_timestamp
        if stamp is None:
            return False
        deleted_s = time_s(stamp)
        return deleted_s is None or deleted_s < before_s


class Secret(KubeObject, frozen=True):
    """A secret. Its `repr` shows no values."""

    type: str = ""
    data: dict[str, str] | None = None

    def value(self, key: str) -> str:
        """Return the decoded text under `key`; "" if there is none or it is no base64 of UTF-8."""
        try:
            return base64.b64decode((self.data or {}).get(key, ""), validate=True).decode()
        except (binascii.Error, ValueError):
            return ""

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name})"


_OBJECT = msgspec.json.Decoder(KubeObject)
_SECRET = msgspec.json.Decoder(Secret)


def find_object(objects: Objects, resource: str, namespace: str, name: str) -> KubeObject | None:
    """Return an object of the core group, or None; one that cannot be read counts as absent."""
    found = objects.object("", resource, namespace, name)
    if found is None:
        return None
    try:
        return _OBJECT.decode(found.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def find_secret(objects: Objects, namespace: str, name: str) -> Secret | None:
    """Return a secret, or None; one that cannot be read counts as absent."""
    found = objects.object("", "secrets", namespace, name)
    if found is None:
        return None
    try:
        return _SECRET.decode(found.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def time_s(stamp: str) -> float | None:
    """Return the seconds since the Unix epoch of an RFC 3339 time, or None if it is none."""
    try:
        moment = dt.datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None
