"""`waypost lock`: a command that runs only while it holds a lock, or one of N places of a semaphore.

The keys and their contents are those of Consul's own clients, so that both compete for the same locks:
a lock is the key `PREFIX/.lock`, acquired by a session; a semaphore is one key a contender, `PREFIX/SESSION`, and
the list of holders in `PREFIX/.lock`, changed by compare-and-set.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from waypost.cli import child
from waypost.cli.agent_flags import CommandFailed, DatacenterFlags, connect, worded
from waypost.cli.flags import Command, UsageError, duration, flag

if TYPE_CHECKING:
    from waypost.client.transport import Client
    from waypost.model.kv import KVEntry

SUMMARY = "Run a command while holding a lock"

SESSION_TTL: Final = "15s"
_RENEW_EVERY_S: Final = 7.5
_WAIT_S: Final = 15.0
_LOCK_DELAY_RETRY_S: Final = 5.0
_KILL_GRACE_S: Final = 5.0
LOCK_FLAGS: Final = 0x2DDCCBC058A50C18
SEMAPHORE_FLAGS: Final = 0xE0F69A2BAA414DE0
"""Numbers by which Consul's clients know their own locks and semaphores (as observed in the `Flags` of such keys)."""

EXIT_CHILD_FAILED: Final = 2


class LockFlags(DatacenterFlags):
    """Flags of `waypost lock`."""

    child_exit_code: bool = flag(False, "End with status 2 if the command fails.")
    monitor_retry: int = flag(
        3, "How often to ask again, a second apart, when the agent fails while the lock is held."
    )
    limit: int = flag(1, "How many may hold it at once; above 1 it is a semaphore.", name="n")
    name: str = flag("", "Name of the session; made of the command by default.")
    pass_stdin: bool = flag(False, "Give the command this program's standard input.")
    shell: bool = flag(True, "Run the command in a shell ($SHELL, else /bin/sh).")
    timeout_s: float = duration(0.0, "Give up after so long; 0 waits for ever.", name="timeout")
    try_s: float = duration(0.0, "The old name of -timeout.", name="try")
    verbose: bool = flag(False, "Say what happens.")


class Holders(NamedTuple):
    """The contents of a semaphore's `.lock`: the limit, and the sessions that hold a place."""

    limit: int
    sessions: frozenset[str]

    def encoded(self) -> bytes:
        """Return the JSON that is stored."""
        names = dict.fromkeys(sorted(self.sessions), True)
        return json.dumps({"Limit": self.limit, "Holders": names}, separators=(",", ":")).encode()


def decode_holders(entry: KVEntry | None, *, limit: int) -> Holders:
    """Return what `.lock` says. Raises CommandFailed if it is something else, or has another limit."""
    if entry is None or not entry.value:
        return Holders(limit, frozenset())
    if entry.flags != SEMAPHORE_FLAGS:
        raise CommandFailed("Lock acquisition failed: existing key does not match semaphore use")
    try:
        content = json.loads(entry.value)
        found = Holders(int(content["Limit"]), frozenset(content.get("Holders") or {}))
    except (ValueError, TypeError, KeyError) as exc:
        raise CommandFailed(
            f"Lock acquisition failed: {entry.key} holds no semaphore: {exc}"
        ) from exc
    if found.limit != limit:
        text = f"semaphore limit conflict (lock: {found.limit}, local: {limit})"
        raise CommandFailed(f"Lock acquisition failed: {text}")
    return found


def take_place(holders: Holders, *, session: str, alive: frozenset[str]) -> Holders | None:
    """Return the holders with `session` among them, without those that are gone; None if there is no place."""
    kept = holders.sessions & alive
    if session not in kept and len(kept) >= holders.limit:
        return None
    return Holders(holders.limit, kept | {session})


class _Lock:
    """One key, held by our session."""

    def __init__(self, prefix: str, *, session: str) -> None:
        self.path = f"{prefix}/.lock" if prefix else ".lock"
        self.session = session

    def try_acquire(self, client: Client, *, index: int, wait_s: float) -> tuple[bool, int, bool]:
        """Return whether it is held, the index to wait with, and whether a lock delay keeps it from everybody."""
        from waypost.client import api

        entry, index = client.ask(api.kv_get(self.path), index=index, wait_s=wait_s)
        if entry is not None and entry.flags != LOCK_FLAGS and entry.session:
            raise CommandFailed("Lock acquisition failed: existing key does not match lock use")
        if entry is not None and entry.session:
            return entry.session == self.session, index, False
        call = api.kv_put(self.path, b"", flags=LOCK_FLAGS, acquire=self.session)
        if client.do(call):
            return True, index, False
        now = client.do(api.kv_get(self.path))
        return False, index, now is None or not now.session

    def still_held(self, client: Client, *, index: int, wait_s: float) -> tuple[bool, int]:
        from waypost.client import api

        entry, index = client.ask(api.kv_get(self.path), index=index, wait_s=wait_s)
        return entry is not None and entry.session == self.session, index

    def release(self, client: Client) -> None:
        from waypost.client import api

        client.do(api.kv_put(self.path, b"", flags=LOCK_FLAGS, release=self.session))

    def withdraw(self, client: Client) -> None:
        """Leave nothing behind of an attempt that failed: there is nothing."""

    def clean_up(self, client: Client) -> bool:
        from waypost.client import api

        entry = client.do(api.kv_get(self.path))
        if entry is None:
            return True
        if entry.session:
            return False
        return client.do(api.kv_delete(self.path, cas=entry.modify_index))


class _Semaphore:
    """One of `limit` places below a prefix, held by our session."""

    def __init__(self, prefix: str, *, session: str, limit: int) -> None:
        self.prefix = f"{prefix}/"
        self.path = f"{prefix}/.lock"
        self.session = session
        self.limit = limit
        self._contending = False

    def try_acquire(self, client: Client, *, index: int, wait_s: float) -> tuple[bool, int, bool]:
        from waypost.client import api

        if not self._contending:
            call = api.kv_put(
                self.prefix + self.session, b"", flags=SEMAPHORE_FLAGS, acquire=self.session
            )
            if not client.do(call):
                raise CommandFailed("Lock acquisition failed: failed to make contender entry")
            self._contending = True
        holders, entry, alive, index = self._look(client, index=index, wait_s=wait_s)
        wanted = take_place(holders, session=self.session, alive=alive)
        if wanted is None:
            return False, index, False
        done = self._swap(client, wanted, entry)
        # Lost the race: look again at once.
        return done, index if done else 0, False

    def still_held(self, client: Client, *, index: int, wait_s: float) -> tuple[bool, int]:
        holders, _, alive, index = self._look(client, index=index, wait_s=wait_s)
        return self.session in holders.sessions & alive, index

    def release(self, client: Client) -> None:
        from waypost.client import api

        while True:
            holders, entry, _, _ = self._look(client, index=0, wait_s=0)
            if self.session not in holders.sessions:
                break
            left = Holders(holders.limit, holders.sessions - {self.session})
            if self._swap(client, left, entry):
                break
        client.do(api.kv_delete(self.prefix + self.session))

    def withdraw(self, client: Client) -> None:
        """Leave nothing behind of an attempt that failed: the contender's key goes."""
        self.release(client)

    def clean_up(self, client: Client) -> bool:
        from waypost.client import api

        holders, entry, alive, _ = self._look(client, index=0, wait_s=0)
        if entry is None:
            return True
        if holders.sessions & alive:
            return False
        return client.do(api.kv_delete(self.path, cas=entry.modify_index))

    def _look(
        self, client: Client, *, index: int, wait_s: float
    ) -> tuple[Holders, KVEntry | None, frozenset[str], int]:
        from waypost.client import api

        entries, index = client.ask(api.kv_list(self.prefix), index=index, wait_s=wait_s)
        entry = next((found for found in entries if found.key == self.path), None)
        alive = frozenset(
            found.session for found in entries if found.session and found is not entry
        )
        return decode_holders(entry, limit=self.limit), entry, alive, index

    def _swap(self, client: Client, holders: Holders, entry: KVEntry | None) -> bool:
        from waypost.client import api

        expected = entry.modify_index if entry is not None else 0
        value = holders.encoded()
        return client.do(api.kv_put(self.path, value, flags=SEMAPHORE_FLAGS, cas=expected))


class _Watchdog:
    """Keeps the session and looks whether the lock is still ours, in two threads that `stop` ends and joins."""

    def __init__(self, settings: LockFlags, held: _Lock | _Semaphore) -> None:
        self._settings = settings
        self._held = held
        self._stopped = threading.Event()
        self.lost = threading.Event()
        # Daemons, because a thread inside a blocking query cannot be woken; `stop` waits for the other one.
        self._renewer = threading.Thread(target=self._renew, name="lock.renew", daemon=True)
        self._monitor = threading.Thread(target=self._look, name="lock.monitor", daemon=True)

    def keep_session(self) -> None:
        self._renewer.start()

    def watch_lock(self) -> None:
        self._monitor.start()

    def stop(self) -> None:
        self._stopped.set()
        self._renewer.join()

    def _renew(self) -> None:
        from waypost.base.errors import WaypostError
        from waypost.client import api

        with connect(self._settings) as client:
            while not self._stopped.wait(_RENEW_EVERY_S):
                try:
                    if not client.do(api.session_renew(self._held.session)):
                        self.lost.set()
                        return
                except WaypostError:
                    continue  # the session lives on for its TTL; the monitor decides about a lost agent

    def _look(self) -> None:
        from waypost.base.errors import WaypostError

        failures, index = 0, 0
        with connect(self._settings) as client:
            while not self._stopped.is_set():
                try:
                    held, index = self._held.still_held(client, index=index, wait_s=_WAIT_S)
                except WaypostError:
                    failures, index = failures + 1, 0
                    if failures > self._settings.monitor_retry:
                        self.lost.set()
                        return
                    time.sleep(1.0)
                    continue
                failures = 0
                if not held:
                    self.lost.set()
                    return


def _lock(settings: LockFlags, args: list[str]) -> int:
    _check(settings, args)
    prefix, command = args[0].strip("/"), args[1:]
    from waypost.client import api

    with connect(settings) as client:
        with worded("Error querying Consul agent"):
            client.do(api.agent_self())
        name = settings.name or f"Consul lock for '{' '.join(command)}' at '{args[0]}'"
        with worded("Lock setup failed"):
            session = client.do(api.session_create(name=name, ttl=SESSION_TTL))
        held: _Lock | _Semaphore
        if settings.limit == 1:
            held = _Lock(prefix, session=session)
            _say(settings, f"Setting up lock at path: {held.path}")
        else:
            held = _Semaphore(prefix, session=session, limit=settings.limit)
            _say(settings, f"Setting up semaphore (limit {settings.limit}) at prefix: {prefix}")
        watchdog = _Watchdog(settings, held)
        watchdog.keep_session()
        try:
            return _hold(settings, client, held, watchdog, command)
        finally:
            watchdog.stop()
            with worded("Lock release failed"):
                client.do(api.session_destroy(session))


def _hold(
    settings: LockFlags,
    client: Client,
    held: _Lock | _Semaphore,
    watchdog: _Watchdog,
    command: list[str],
) -> int:
    _say(settings, "Attempting lock acquisition")
    with worded("Lock acquisition failed"):
        acquired = _acquire(client, held, limit_s=settings.timeout_s or settings.try_s)
    if not acquired:
        with worded("Lock release failed"):
            held.withdraw(client)
        raise CommandFailed("Shutdown triggered or timeout during lock acquisition")
    watchdog.watch_lock()
    try:
        status = _run(settings, command, watchdog)
    finally:
        _say(settings, "Child terminated, releasing lock")
        with worded("Lock release failed"):
            held.release(client)
        with worded("Lock cleanup failed"):
            cleaned = held.clean_up(client)
        _say(settings, "Cleanup succeeded" if cleaned else "Cleanup aborted, lock in use")
    return status


def _check(settings: LockFlags, args: Sequence[str]) -> None:
    if settings.limit <= 0:
        raise CommandFailed("Lock holder limit must be positive")
    if len(args) < 2:
        raise UsageError("Key prefix and child command must be specified")
    if settings.timeout_s < 0 or settings.try_s < 0:
        raise CommandFailed("Timeout must be positive")
    if settings.monitor_retry < 0:
        raise CommandFailed("Number for 'monitor-retry' must be >= 0")


def _acquire(client: Client, held: _Lock | _Semaphore, *, limit_s: float) -> bool:
    """Wait until it is held; False after `limit_s` seconds (0 = for ever)."""
    deadline = time.monotonic() + limit_s if limit_s else None
    index = 0
    while True:
        left_s = deadline - time.monotonic() if deadline is not None else _WAIT_S
        if left_s <= 0 and index:
            return False
        done, index, delayed = held.try_acquire(
            client, index=index, wait_s=max(0.01, min(left_s, _WAIT_S))
        )
        if done:
            return True
        if delayed:
            # Nobody holds it: a lock delay is running, which no index tells the end of.
            time.sleep(min(_LOCK_DELAY_RETRY_S, max(left_s, 0.01)))
            index = 0 if deadline is None or deadline > time.monotonic() else index


def _run(settings: LockFlags, command: list[str], watchdog: _Watchdog) -> int:
    _say(settings, "Starting handler")
    sys.stdout.flush()
    stdin = None if settings.pass_stdin else subprocess.DEVNULL
    try:
        process = child.start(
            command, shell=settings.shell, env={"CONSUL_LOCK_HELD": "true"}, stdin=stdin
        )
    except CommandFailed as exc:
        print(exc, file=sys.stderr)
        return EXIT_CHILD_FAILED if settings.child_exit_code else 0
    try:
        while True:
            try:
                status = process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                if watchdog.lost.is_set():
                    _end(process)
                    raise CommandFailed("Lock lost, the command was ended") from None
    except KeyboardInterrupt:
        _end(process)
        raise
    problem = child.outcome(status)
    if not problem:
        return 0
    print(f"Error running handler: {problem}", file=sys.stderr)
    return EXIT_CHILD_FAILED if settings.child_exit_code else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command: SIGTERM, and SIGKILL 5 s later."""
    process.terminate()
    try:
        process.wait(_KILL_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _say(settings: LockFlags, text: str) -> None:
    if settings.verbose:
        print(text, flush=True)


COMMAND = Command(
    "lock [options] prefix child...",
    "Takes the lock at a prefix of the key/value store, runs a command, and gives the lock back. If the lock is\n"
    "lost, the command gets SIGTERM, and SIGKILL 5 seconds later.\n\n"
    "With -n above 1, so many may hold it at once. Locks are shared with Consul's own clients.\n\n"
    "    $ waypost lock service/backup ./backup.sh",
    settings=LockFlags,
    action=_lock,
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
