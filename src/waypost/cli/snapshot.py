"""`waypost snapshot`: save, restore, inspect."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from waypost.base.errors import Malformed, WaypostError
from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, Group, Settings, UsageError, flag
from waypost.cli.output import is_json, print_json

if TYPE_CHECKING:
    from waypost.store.engine import Engine
    from waypost.wire.snapshot import Meta

SUMMARY = "Save, restore and inspect snapshots of everything that is stored"

T = TypeVar("T")


class StoreFlags(DatacenterFlags):
    """Flags of commands that ask an agent, or open the store of one that does not run."""

    data_dir: str = flag(
        "",
        "Use the store in this data directory, without an agent: for a machine with a store of its own whose agent "
        "does not run.",
        value="dir",
    )


def _file(args: list[str]) -> Path:
    if not args:
        raise UsageError("Missing FILE argument")
    if len(args) > 1:
        raise UsageError(f"Too many arguments (expected 1, got {len(args)})")
    return Path(args[0])


def _save(settings: StoreFlags, args: list[str]) -> int:
    path = _file(args)
    from waypost.wire.snapshot import unpack

    if settings.data_dir:
        archive = _offline(settings.data_dir, _read)
    else:
        from waypost.client.api import snapshot_save

        with connect(settings) as client, worded("Error saving snapshot"):
            archive = client.do(snapshot_save())
    try:
        meta = unpack(archive).meta
    except Malformed as exc:
        raise CommandFailed(f"Error verifying snapshot: {exc}") from exc
    _write(path, archive)
    print(f"Saved and verified snapshot to index {meta.index}")
    return 0


def _restore(settings: StoreFlags, args: list[str]) -> int:
    archive = _read_file(_file(args))
    if settings.data_dir:
        _offline(settings.data_dir, _replace_by(archive))
    else:
        from waypost.client.api import snapshot_restore

        with connect(settings) as client, worded("Error restoring snapshot"):
            client.do(snapshot_restore(archive))
    print("Restored snapshot")
    return 0


class InspectFlags(Settings):
    """Flags of `waypost snapshot inspect`."""

    format: str = flag("pretty", "Output format {pretty|json}")


def _inspect(settings: InspectFlags, args: list[str]) -> int:
    as_json = is_json(settings.format)
    archive = _read_file(_file(args))
    from waypost.wire.snapshot import unpack

    try:
        meta = unpack(archive).meta
    except Malformed as exc:
        raise CommandFailed(f"Error reading snapshot: {exc}") from exc
    facts = _facts(meta)
    if as_json:
        print_json({"Meta": facts})
        return 0
    for name, value in facts.items():
        print(f"{name:<13}{value}")
    return 0


def _facts(meta: Meta) -> dict[str, str | int]:
    return {
        "ID": meta.id,
        "Size": meta.size,
        "Index": meta.index,
        "Term": meta.term,
        "Version": meta.version,
    }


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CommandFailed(f"Error opening snapshot file: {path}: {exc.strerror or exc}") from exc


def _write(path: Path, archive: bytes) -> None:
    """Write the file whole or not at all, for its owner only: it holds every secret. Raises CommandFailed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(archive)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise CommandFailed(f"Error writing snapshot file: {path}: {exc.strerror or exc}") from exc


# Without an agent.


async def _read(engine: Engine) -> bytes:
    from waypost.cluster.snapshots import read_snapshot

    return (await read_snapshot(engine, term=1, wall_s=time.time()))[1]


def _replace_by(archive: bytes) -> Callable[[Engine], Awaitable[int]]:
    async def restore(engine: Engine) -> int:
        from waypost.cluster.snapshots import write_snapshot

        return await write_snapshot(engine, archive, wall_s=time.time())

    return restore


def _offline(data_dir: str, use: Callable[[Engine], Awaitable[T]]) -> T:
    """Return what `use` makes of the store of a data directory. Raises CommandFailed."""
    from waypost.base.clock import SystemClock
    from waypost.store.open import make_engine

    folder = Path(data_dir)
    if (folder / "cluster" / "cluster.json").exists():
        raise CommandFailed(
            f"{folder} belongs to a member of a cluster: its store is the cluster's, ask an agent"
        )
    if not folder.is_dir():
        raise CommandFailed(f"{folder}: no such directory")

    async def run() -> T:
        engine = make_engine(f"sqlite:{folder}/store", clock=SystemClock())
        await engine.open()
        try:
            return await use(engine)
        finally:
            await engine.close()

    try:
        return asyncio.run(run())
    except WaypostError as exc:
        raise CommandFailed(str(exc)) from exc


COMMAND = Group(
    "snapshot <subcommand> [options]",
    "Saves everything that is stored into one file, and puts it back. The file holds every secret: keep it as such.",
    commands={
        "save": (
            "Save a snapshot",
            Command(
                "snapshot save [options] FILE",
                "Saves everything as of one moment: nodes, services, checks, keys, sessions, roles, secrets.",
                settings=StoreFlags,
                action=_save,
            ),
        ),
        "restore": (
            "Replace everything by a snapshot",
            Command(
                "snapshot restore [options] FILE",
                "Replaces everything that is stored by what the file holds. Agents that run register their own services\n"
                "again. Indexes go on from the present one.",
                settings=StoreFlags,
                action=_restore,
            ),
        ),
        "inspect": (
            "Show what a snapshot is",
            Command(
                "snapshot inspect [options] FILE",
                "Checks a file and shows its id, size, index, term and version.",
                settings=InspectFlags,
                action=_inspect,
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
