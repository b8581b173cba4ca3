"""The file of a store: a connection for each thread, transactions that are whole or nothing, and reads that stream."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sam_jax.engine.schema import StoreError, migrate

FILE = "engine.sqlite"
IMAGES, MODELS = "images", "models"
BUSY_SECONDS = 20.0
BATCH = 256  # rows that a stream holds at once


class Database:
    """An open store. Safe for threads, and beside other processes on the same machine; close it when done.

    What a finished transaction wrote survives a kill of the process and a loss of power. The directory has to lie on a
    local disk: the log that readers and writers share (WAL) does not work over network file systems.
    """

    def __init__(self, directory: str | Path, clock: Callable[[], float] = time.time) -> None:
        """Opens the store of a directory, and brings it to this version.

        Args:
          clock: seconds since 1970; all processes have to agree on it.

        Raises:
          StoreError: there is none, it is of another program, or newer than this code.
        """
        self.directory = Path(directory)
        self._file, self.clock = self.directory / FILE, clock
        if not self._file.is_file():
            raise StoreError(f"{directory} has no {FILE}; make one with: sam-jax engine init {directory}")
        self._local, self._lock = threading.local(), threading.Lock()
        self._open: weakref.WeakSet[_Open] = weakref.WeakSet()
        try:
            migrate(self._connection(), str(self._file))
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"{self._file} is no SQLite file ({error}); restore it from a copy") from error
            raise

    def close(self) -> None:
        """Closes the connections of all threads."""
        with self._lock:
            for opened in list(self._open):
                opened.close()
            self._open.clear()
            self._local = threading.local()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is done inside is done as a whole or not at all; others wait meanwhile. Not to be nested."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """What this thread reads inside is the store as it was at the first read, whatever others write meanwhile."""
        connection = self._connection()
        connection.execute("BEGIN")
        try:
            yield
        finally:
            connection.rollback()

    def select(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query that has few."""
        return self._connection().execute(sql, values).fetchall()

    def select_one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query."""
        row: sqlite3.Row | None = self._connection().execute(sql, values).fetchone()
        return row

    def stream(self, sql: str, *values: Any) -> Iterator[sqlite3.Row]:
        """All rows of a query with `id > ?` as its last condition, by ascending id, `BATCH` in memory at once.

        Each batch is a read of its own, so that a slow consumer does not hold up the writers' log.
        """
        last = 0
        while rows := self.select(f"{sql} AND id > ? ORDER BY id LIMIT {BATCH}", *values, last):
            yield from rows
            last = rows[-1]["id"]

    def setting(self, name: str) -> str:
        """A setting that the store was made with."""
        row = self.select_one("SELECT value FROM settings WHERE name = ?", name)
        if row is None:
            raise StoreError(f"{self._file} has no setting {name!r}; restore it from a copy")
        value: str = row["value"]
        return value

    def _connection(self) -> sqlite3.Connection:
        opened: _Open | None = getattr(self._local, "opened", None)
        if opened is None:
            opened = self._local.opened = _Open(self._file)
            with self._lock:
                self._open.add(opened)
        return opened.connection


class _Open:
    """The connection of one thread; closed when the thread ends, as its thread-local values go then."""

    def __init__(self, file: Path) -> None:
        self.connection = _connect(file)
        self.close = weakref.finalize(self, self.connection.close)


def _connect(file: Path) -> sqlite3.Connection:
    # Other threads only ever close it.
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection
