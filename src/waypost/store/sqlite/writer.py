"""The thread that owns all writing, and commits what waits as one group."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from waypost.base.errors import Unavailable, WaypostError
from waypost.store.engine import Batch
from waypost.store.sqlite.database import Database, Loaded, commit_failure, reason
from waypost.store.sqlite.group import Answer, Group, Request

log = logging.getLogger(__name__)

GROUP_REQUESTS = 512
"""Requests in one group at most, so that the first of a flood does not wait for the last."""


class Done(msgspec.Struct, frozen=True):
    """A group that was committed, or refused as a whole; answers in the order of the requests."""

    answers: Sequence[Answer]
    batches: Sequence[Batch]
    keys: int
    """Keys in the store now."""
    failing: bool
    """The store could not write."""


class Writer:
    """Takes requests from any thread, commits whatever waits as one transaction, then hands over the answers.

    `deliver` is called in the writer's thread with the tokens that came with the requests. Requests are carried out
    in the order of `submit`; how many may wait is the caller's business.
    """

    def __init__(
        self,
        database: Database,
        loaded: Loaded,
        deliver: Callable[[Sequence[object], Done], None],
    ) -> None:
        self._database = database
        self._db = database.writer
        self._deliver = deliver
        self._revision = loaded.revision
        self._keys = loaded.keys
        self._leases = frozenset(loaded.leases)
        self._queue: queue.SimpleQueue[tuple[Request, object] | None] = queue.SimpleQueue()
        self._refused = 0
        self._log_dirty = True
        # A daemon: were the process to end without close(), what was acknowledged is on disk anyway.
        self._thread = threading.Thread(target=self._run, name="waypost-store", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, request: Request, token: object) -> None:
        """Hand in a validated request; `token` comes back with its answer."""
        self._queue.put((request, token))

    def stop(self) -> None:
        """Finish what was submitted, deliver it, and end the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            try:
                first = self._queue.get(
                    timeout=self._database.settings.idle_s if self._log_dirty else None
                )
            except queue.Empty:
                self._empty_log()
                continue
            taken = []
            while first is not None:
                taken.append(first)
                if len(taken) == GROUP_REQUESTS:
                    break
                try:
                    first = self._queue.get_nowait()
                except queue.Empty:
                    break
            else:
                running = False
            if taken:
                tokens = [token for _, token in taken]
                self._deliver(tokens, self._commit([request for request, _ in taken]))

    def _commit(self, requests: Sequence[Request]) -> Done:
        db = self._db
        group = Group(db, revision=self._revision, leases=self._leases)
        committing = False
        try:
            db.execute("BEGIN IMMEDIATE")
            answers = [group.run(request) for request in requests]
            if group.changed:
                group.finish()
                committing = True
                db.execute("COMMIT")
                self._log_dirty = True
            else:
                db.execute("ROLLBACK")
        except sqlite3.Error as error:
            failure = (
                commit_failure(error, self._database.path)
                if committing
                else Unavailable(reason(error, self._database.path))
            )
            failure.__cause__ = error
            return self._fail(requests, failure)
        except Exception as error:  # the group fails, the thread must not
            log.exception("a group of %d transactions failed", len(requests))
            failure = Unavailable(f"{self._database.path}: {error!r}")
            failure.__cause__ = error
            return self._fail(requests, failure)
        self._revision = group.revision
        self._leases = group.leases
        self._keys += group.keys
        if self._refused and group.changed:
            log.info(
                "%s can be written again, %d transactions were refused",
                self._database.path,
                self._refused,
            )
            self._refused = 0
        return Done(answers, group.batches, self._keys, bool(self._refused))

    def _fail(self, requests: Sequence[Request], failure: WaypostError) -> Done:
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
        # When the log cannot grow, copying it back lets it start over in the space it has.
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        if not self._refused:
            log.error("writes are refused: %s", failure)
        self._refused += len(requests)
        answers: list[Answer] = []
        for _ in requests:
            each = type(failure)(*failure.args)
            each.__cause__ = failure.__cause__
            answers.append(each)
        return Done(answers, (), self._keys, failing=True)

    def _empty_log(self) -> None:
        """Copy the log back and cut it to nothing, unless somebody reads; then next time."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            ((busy, _, _),) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._log_dirty = bool(busy)
        with suppress(sqlite3.Error):
            busy_ms = int(self._database.settings.busy_s * 1000)
            self._db.execute(f"PRAGMA busy_timeout = {busy_ms}")
