"""Static tokens and basic passwords from CSV files, read at the start and at each reload.

    token,user,uid[,"group1,group2"]            password,user,uid[,"group1,group2"]

The rules of the format are those of Go's `encoding/csv` (RFC 4180, quotes only around whole fields), of the columns
those of kube's `--token-auth-file` and `--basic-auth-file`. Files hold secrets, so messages name lines, never values.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Mapping

import msgspec

from waypost.access.authn.records import (
    Accepted,
    Credentials,
    Identity,
    Rejected,
    Skipped,
    Verdict,
)
from waypost.base.errors import Malformed

log = logging.getLogger(__name__)

_MIN_COLUMNS = 3


def read_records(text: str, *, name: str) -> list[tuple[int, list[str]]]:
    """Return line number and fields of each record. Raises Malformed with the line and what is wrong there."""
    records: list[tuple[int, list[str]]] = []
    text = text.replace("\r\n", "\n")
    at, line, end = 0, 1, len(text)
    while at < end:
        if text[at] == "\n":
            at, line = at + 1, line + 1
            continue
        start, fields = line, []
        while True:
            field, at, line = _field(text, at, line, name=name)
            fields.append(field)
            if at >= end or text[at] == "\n":
                break
            at += 1  # the comma
        records.append((start, fields))
    return records


def _field(text: str, at: int, line: int, *, name: str) -> tuple[str, int, int]:
    if text[at : at + 1] != '"':
        stop = at
        while stop < len(text) and text[stop] not in ",\n":
            if text[stop] == '"':
                raise Malformed(f'{name}: line {line}: bare " in a field that is not quoted')
            stop += 1
        return text[at:stop], stop, line
    parts, at, start = [], at + 1, line
    while True:
        stop = text.find('"', at)
        if stop < 0:
            raise Malformed(f'{name}: line {start}: the closing " is missing')
        parts.append(text[at:stop])
        if text[stop + 1 : stop + 2] == '"':
            parts.append('"')
            at = stop + 2
            continue
        at = stop + 1
        break
    if at < len(text) and text[at] not in ",\n":
        raise Malformed(f'{name}: line {line}: text after the closing "')
    value = "".join(parts)
    return value, at, line + value.count("\n")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class _Entry(msgspec.Struct, frozen=True):
    digest: bytes
    identity: Identity
    line: int

    def __repr__(self) -> str:  # a digest of a weak password is nearly the password
        return f"_Entry(user={self.identity.user!r}, line={self.line})"


def _entry(fields: list[str], line: int) -> _Entry:
    groups = tuple(fields[3].split(",")) if len(fields) > _MIN_COLUMNS and fields[3] else ()
    return _Entry(_digest(fields[0]), Identity(user=fields[1], uid=fields[2], groups=groups), line)


def _check_columns(fields: list[str], *, kind: str, first: str, name: str) -> None:
    if len(fields) < _MIN_COLUMNS:
        msg = (
            f"{kind} file '{name}' must have at least 3 columns ({first}, user name, user uid), "
            f"found {len(fields)}"
        )
        raise Malformed(msg)


class StaticTokens:
    """Tokens of a file as it was when it was read."""

    name = "static token"

    def __init__(self, entries: Mapping[bytes, _Entry], *, file: str) -> None:
        self._entries = entries
        self._file = file

    @classmethod
    def parse(cls, text: str, *, name: str) -> StaticTokens:
        """Return the tokens of a file's text. Raises Malformed; empty and repeated tokens are warned of (last wins)."""
        entries: dict[bytes, _Entry] = {}
        for line, fields in read_records(text, name=name):
            _check_columns(fields, kind="token", first="token", name=name)
            if not fields[0]:
                log.warning("token file %s: line %d has an empty token and is ignored", name, line)
                continue
            entry = _entry(fields, line)
            if entry.digest in entries:
                log.warning("token file %s: line %d repeats a token; the last one wins", name, line)
            entries[entry.digest] = entry
        return cls(entries, file=name)

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict:
        """Return whose token it is. The comparison takes the same time wherever a wrong token differs."""
        del audiences, now_s  # static tokens have neither an audience nor an end
        # The digest finds the entry, so the time depends on SHA-256 of what was sent, which nobody can steer.
        digest = _digest(token)
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            return Skipped("not a token of the file")
        return Accepted(
            identity=entry.identity, detail=f"{self._file}, line {entry.line}", is_steady=True
        )


class BasicPasswords:
    """Users and passwords of a file."""

    name = "basic"

    def __init__(self, entries: Mapping[str, _Entry], *, file: str) -> None:
        self._entries = entries
        self._file = file

    @classmethod
    def parse(cls, text: str, *, name: str) -> BasicPasswords:
        """Return the users of a file's text. Raises Malformed; a repeated user is warned of (last wins)."""
        entries: dict[str, _Entry] = {}
        for line, fields in read_records(text, name=name):
            _check_columns(fields, kind="password", first="password", name=name)
            entry = _entry(fields, line)
            if entry.identity.user in entries:
                log.warning(
                    "password file %s: line %d repeats the user %r; the last one wins",
                    name,
                    line,
                    entry.identity.user,
                )
            entries[entry.identity.user] = entry
        return cls(entries, file=name)

    def authenticate(self, credentials: Credentials, *, now_s: float) -> Verdict:
        """Return the verdict on `Authorization: Basic …`; a header that cannot be decoded counts as none."""
        del now_s
        found = basic_credentials(credentials.authorization)
        if found is None:
            return Skipped("no basic credentials")
        user, password = found
        entry = self._entries.get(user)
        # An unknown user costs as much as a wrong password.
        expected = entry.digest if entry is not None else _digest("")
        matches = hmac.compare_digest(expected, _digest(password))
        if entry is None or not matches:
            why = "wrong password" if entry is not None else "no such user in the file"
            return Rejected(error="invalid username/password combination", detail=why)
        return Accepted(
            identity=entry.identity, detail=f"{self._file}, line {entry.line}", is_steady=True
        )


def basic_credentials(authorization: str) -> tuple[str, str] | None:
    """Return user and password of an `Authorization` value, or None. Source: RFC 7617, Go's `Request.BasicAuth`."""
    if authorization[:6].lower() != "basic ":
        return None
    try:
        text = base64.b64decode(authorization[6:], validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if colon else None
