"""`waypost kv`: get, put, delete, export, import."""

from __future__ import annotations

import base64
import binascii
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, Group, flag, unsigned
from waypost.cli.output import write_bytes

if TYPE_CHECKING:
    from waypost.model.kv import KVEntry

SUMMARY = "Read and write the key/value store"

_QUERYING = "Error querying Consul agent"


class GetFlags(DatacenterFlags):
    """Flags of `waypost kv get`."""

    base64: bool = flag(False, "Print values in base64.")
    detailed: bool = flag(False, "Print the key's indexes, flags and session as well.")
    keys: bool = flag(False, "Print the keys that start with the argument, without values.")
    recurse: bool = flag(False, "Print all keys that start with the argument, as key:value.")
    separator: str = flag(
        "/", "With -keys: list keys up to the next separator only; empty lists all."
    )


def _get(settings: GetFlags, args: list[str]) -> int:
    key = _one_key(args, optional=settings.recurse or settings.keys)
    from waypost.client import api

    with connect(settings) as client, worded(_QUERYING):
        if settings.keys:
            found = client.do(api.kv_keys(key, separator=settings.separator))
            sys.stdout.writelines(f"{name}\n" for name in found)
            return 0
        if settings.recurse:
            entries = client.do(api.kv_list(key))
            for number, entry in enumerate(entries):
                if settings.detailed:
                    sys.stdout.write("\n" if number else "")
                    _write_detailed(entry, in_base64=settings.base64)
                else:
                    write_bytes(
                        entry.key.encode() + b":" + _shown(entry, in_base64=settings.base64) + b"\n"
                    )
            return 0
        entry_or_none = client.do(api.kv_get(key))
    if entry_or_none is None:
        raise CommandFailed(f"Error! No key exists at: {key}")
    if settings.detailed:
        _write_detailed(entry_or_none, in_base64=settings.base64)
    else:
        write_bytes(_shown(entry_or_none, in_base64=settings.base64) + b"\n")
    return 0


def _shown(entry: KVEntry, *, in_base64: bool) -> bytes:
    return base64.b64encode(entry.value) if in_base64 else entry.value


def _write_detailed(entry: KVEntry, *, in_base64: bool) -> None:
    facts = {
        "CreateIndex": entry.create_index,
        "Flags": entry.flags,
        "Key": entry.key,
        "LockIndex": entry.lock_index,
        "ModifyIndex": entry.modify_index,
        "Session": entry.session or "-",
    }
    sys.stdout.writelines(f"{name:<17}{value}\n" for name, value in facts.items())
    shown = _shown(entry, in_base64=in_base64)
    write_bytes((b"Value".ljust(17) + shown if shown else b"Value") + b"\n")


class PutFlags(DatacenterFlags):
    """Flags of `waypost kv put`."""

    acquire: bool = flag(False, "Take the lock on the key for -session.")
    base64: bool = flag(False, "The data is base64; store what it stands for.")
    cas: bool = flag(False, "Write only if the key's ModifyIndex is the one of -modify-index.")
    flags: int = flag(
        0, "A number to keep beside the value, of your own meaning.", parse=unsigned, value="uint"
    )
    modify_index: int = flag(0, "The ModifyIndex that -cas expects.", parse=unsigned, value="uint")
    release: bool = flag(False, "Give up the lock on the key held by -session.")
    session: str = flag("", "The session for -acquire and -release.", value="id")


def _put(settings: PutFlags, args: list[str]) -> int:
    key, data = _key_and_data(args)
    if settings.base64:
        data = _unbase64(data, "Error! Cannot base 64 decode data")
    if settings.cas and not settings.modify_index:
        raise CommandFailed("Must specify -modify-index with -cas!")
    if (settings.acquire or settings.release) and not settings.session:
        raise CommandFailed("Error! Missing -session (required with -acquire and -release)")
    if key.startswith("/"):
        raise CommandFailed(
            f"Error! Failed writing data: Invalid key. Key must not begin with a '/': {key}"
        )
    from waypost.client import api

    # One operation a call, as in Consul: compare-and-set, else acquire, else release.
    lock = settings.session if not settings.cas else ""
    call = api.kv_put(
        key,
        data,
        flags=settings.flags,
        cas=settings.modify_index if settings.cas else None,
        acquire=lock if settings.acquire else "",
        release=lock if settings.release and not settings.acquire else "",
    )
    with connect(settings) as client, worded("Error! Failed writing data"):
        done = client.do(call)
    if done:
        print(f"Success! Data written to: {key}")
        return 0
    if settings.cas:
        raise CommandFailed(f"Error! Did not write to {key}: CAS failed")
    if settings.acquire:
        raise CommandFailed("Error! Lock is already held by another session")
    raise CommandFailed("Error! Did not release lock")


def _key_and_data(args: list[str]) -> tuple[str, bytes]:
    if not args:
        raise CommandFailed("Error! Missing KEY argument")
    if len(args) > 2:
        raise CommandFailed(f"Error! Too many arguments (expected 1 or 2, got {len(args)})")
    return args[0], _data(args[1]) if len(args) == 2 else b""


def _data(text: str) -> bytes:
    """Return the data an argument means: `@file`, `-` for standard input, or itself."""
    if text == "-":
        return sys.stdin.buffer.read()
    if not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    path = text[1:]
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise CommandFailed(f"Error! Failed to read file: open {path}: {reason}") from exc


def _unbase64(data: bytes, what: str) -> bytes:
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as exc:
        raise CommandFailed(f"{what}: {exc}") from exc


class DeleteFlags(DatacenterFlags):
    """Flags of `waypost kv delete`."""

    cas: bool = flag(False, "Delete only if the key's ModifyIndex is the one of -modify-index.")
    modify_index: int = flag(0, "The ModifyIndex that -cas expects.", parse=unsigned, value="uint")
    recurse: bool = flag(False, "Delete all keys that start with the argument.")


def _delete(settings: DeleteFlags, args: list[str]) -> int:
    key = _one_key(args, optional=settings.recurse)
    if settings.cas and settings.recurse:
        raise CommandFailed("Cannot specify both -cas and -recurse!")
    if settings.cas and not settings.modify_index:
        raise CommandFailed("Must specify -modify-index with -cas!")
    if settings.modify_index and not settings.cas:
        raise CommandFailed("Cannot specify -modify-index without -cas!")
    from waypost.client import api

    with connect(settings) as client:
        if settings.recurse:
            with worded(f"Error! Did not delete prefix {key}"):
                client.do(api.kv_delete_prefix(key))
            print(f"Success! Deleted keys with prefix: {key}")
            return 0
        cas = settings.modify_index if settings.cas else None
        with worded(f"Error! Did not delete key {key}"):
            done = client.do(api.kv_delete(key, cas=cas))
    if not done:
        raise CommandFailed(f"Error! Did not delete key {key}: CAS failed")
    print(f"Success! Deleted key: {key}")
    return 0


def _one_key(args: list[str], *, optional: bool) -> str:
    if len(args) > 1:
        raise CommandFailed(f"Too many arguments (expected 1, got {len(args)})")
    key = args[0] if args else ""
    if not key and not optional:
        raise CommandFailed("Error! Missing KEY argument")
    # The store has no leading slashes; people who think of files write one.
    return key.removeprefix("/")


def _export(settings: DatacenterFlags, args: list[str]) -> int:
    key = _one_key(args, optional=True)
    from waypost.client import api

    with connect(settings) as client, worded(_QUERYING):
        entries = client.do(api.kv_list(key))
    exported = [
        {
            "key": entry.key,
            "flags": entry.flags,
            "value": base64.b64encode(entry.value).decode("ascii"),
        }
        for entry in entries
    ]
    print(json.dumps(exported, indent="\t", ensure_ascii=False))
    return 0


def _import(settings: DatacenterFlags, args: list[str]) -> int:
    if not args:
        raise CommandFailed("Error! Missing DATA argument")
    if len(args) > 1:
        raise CommandFailed(f"Error! Too many arguments (expected 1, got {len(args)})")
    entries = _parse_export(_data(args[0]))
    from waypost.client import api

    with connect(settings) as client:
        for key, flags, text in entries:
            value = _unbase64(text.encode(), f"Error base 64 decoding value for key {key}")
            with worded(f"Error! Failed writing data for key {key}"):
                client.do(api.kv_put(key, value, flags=flags))
            print(f"Imported: {key}")
    return 0


def _parse_export(data: bytes) -> list[tuple[str, int, str]]:
    """Return key, flags and base64 value of each entry of an export. Raises CommandFailed."""
    try:
        entries = json.loads(data)
    except ValueError as exc:
        raise CommandFailed(f"Cannot unmarshal data: {exc}") from exc
    if not isinstance(entries, list):
        raise CommandFailed(
            "Cannot unmarshal data: expected a list of objects with key, flags and value"
        )
    return [_parse_entry(entry, number=number) for number, entry in enumerate(entries)]


def _parse_entry(entry: Any, *, number: int) -> tuple[str, int, str]:
    fields = {str(k).lower(): v for k, v in entry.items()} if isinstance(entry, dict) else {}
    key, flags, value = fields.get("key"), fields.get("flags", 0), fields.get("value", "")
    valid = isinstance(key, str) and key and isinstance(value, str) and isinstance(flags, int)
    if not valid or isinstance(flags, bool) or not 0 <= flags < 2**64:
        raise CommandFailed(
            f"Cannot unmarshal data: entry {number} is not an object with a key (text), flags (uint64) and value (base64)"
        )
    return str(key), flags, str(value)


COMMAND = Group(
    "kv <subcommand> [options] [args]",
    "Reads and writes the key/value store.\n\n"
    "    $ waypost kv put redis/config/connections 5\n"
    "    $ waypost kv get redis/config/connections\n"
    "    $ waypost kv get -recurse redis/\n"
    "    $ waypost kv delete redis/config/connections",
    commands={
        "get": (
            "Read one key, or all with a prefix",
            Command(
                "kv get [options] [KEY_OR_PREFIX]",
                "Prints the value of a key and a line break. Exit status 1 if there is no such key.\n\n"
                "With -recurse or -keys the argument is a prefix, and may be left out for all keys.",
                settings=GetFlags,
                action=_get,
            ),
        ),
        "put": (
            "Write one key",
            Command(
                "kv put [options] KEY [DATA]",
                "Writes a key. DATA is the value itself, @file for what a file holds, - for standard input;\n"
                "without it the value is empty.\n\n"
                "    $ waypost kv put config/redis/maxconns 5\n"
                "    $ waypost kv put config/license @license.lic\n"
                "    $ waypost kv put -cas -modify-index=844 config/redis/maxconns 6",
                settings=PutFlags,
                action=_put,
            ),
        ),
        "delete": (
            "Delete one key, or all with a prefix",
            Command(
                "kv delete [options] KEY_OR_PREFIX",
                "Deletes a key; it is no error if there is none. With -recurse, all keys with the prefix.",
                settings=DeleteFlags,
                action=_delete,
            ),
        ),
        "export": (
            "Print all keys with a prefix as JSON",
            Command(
                "kv export [options] [PREFIX]",
                'Prints all keys with the prefix as JSON, in the form that "waypost kv import" (and Consul\'s) reads.',
                settings=DatacenterFlags,
                action=_export,
            ),
        ),
        "import": (
            "Write the keys of an export",
            Command(
                "kv import [options] DATA",
                'Writes all keys of what "kv export" printed. DATA is the JSON itself, @file, or - for standard input.',
                settings=DatacenterFlags,
                action=_import,
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
