# SPDX-License-Identifier: Apache-2.0
"""The SQLite file of a catalogue: tables, model, transactions and errors.

Use an open file only in the thread that opened it. One writer and any number of readers may have it open. It uses
SQLite's rollback journal, not a WAL, so that a finished catalogue is one file, which can be copied or mounted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from search_gateway.catalog.base import (
    BUILD_COMMAND,
    CatalogDamagedError,
    CatalogError,
    CatalogOutdatedError,
    CatalogTimeoutError,
    check_model,
)

SCHEMA_VERSION = 2

_APPLICATION_ID = 0x43617074  # "Capt" in the file's header: no other SQLite file has it

_READER_WAIT_SECONDS = 10.0
_WRITER_WAIT_SECONDS = 30.0

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # The two blobs are last, so that reading the other columns does not read their pages.
    """CREATE TABLE products (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        url TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        embedding BLOB NOT NULL,
        thumbnail BLOB NOT NULL
    )""",
    # Finds new embeddings and all ids without reading the rows, which are large.
    "CREATE INDEX products_by_revision ON products (revision)",
    """CREATE VIRTUAL TABLE titles USING fts5(
        words, tokenize = 'porter unicode61 remove_diacritics 2'
    )""",
)
# A table of its own, made by the first product that has attributes: older files and programs do without.
_ATTRIBUTES = """CREATE TABLE IF NOT EXISTS attributes (
    id INTEGER PRIMARY KEY REFERENCES products (id),
    price REAL,
    is_available INTEGER,
    category TEXT NOT NULL
)"""


class FileStamp(NamedTuple):
    """Shows whether a file was replaced or changed."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int  # changes with the permissions, too

    @classmethod
    def of(cls, path: Path) -> FileStamp | None:
        """Return the stamp of a file; None if there is no such file."""
        try:
            status = path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def file(self) -> tuple[int, int]:
        """Device and inode."""
        return self.device, self.inode


def lock_file(path: Path, *, is_exclusive: bool) -> int:
    """Lock a file among the builds of catalogues; returns a descriptor. Close it after all connections to the file.

    A file must not be replaced while a build changes it: the journal of that build would belong to the new file.

    Args:
        path: of an existing file.
        is_exclusive: whether no other build may have it.

    Raises:
        CatalogError: another build has it, or it was replaced meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        is_same = os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:  # it is locked or gone
        is_same = False
    if not is_same:
        os.close(descriptor)
        raise CatalogError(f"another build is changing {path}: run the same command again when it has ended")
    return descriptor


def check_file(path: Path, is_cancelled: Callable[[], bool]) -> None:
    """Check all pages of a catalogue, without a lock.

    Args:
        path: of the file.
        is_cancelled: called repeatedly; whether to stop.

    Raises:
        CatalogDamagedError: it is damaged.
        CatalogTimeoutError: cancelled.
    """
    before = FileStamp.of(path)
    with _translated(path):
        # A lock would make a build wait, and a waiting build keeps all readers out.
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(connection):
            connection.set_progress_handler(is_cancelled, 100_000)
            try:
                [(found,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT:
                    raise
                found = str(error)
    # A file that a build is writing cannot be checked without a lock.
    is_written = before != FileStamp.of(path) or path.with_name(f"{path.name}-journal").exists()
    if found != "ok" and not is_written:
        raise CatalogDamagedError(f"{path} is damaged ({found.splitlines()[-1]}): build it again")


class CatalogDatabase:
    """An open catalogue file."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._path = path

    @classmethod
    def open_for_reading(cls, path: Path, *, model_fingerprint: str | None) -> CatalogDatabase:
        """Open a file to read it.

        Args:
            path: of the file.
            model_fingerprint: the model in use; None reads a catalogue of any model and version.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogError: no such file, or not a catalogue.
        """
        if not path.exists():
            raise CatalogError(f"{path} does not exist: build it with `{BUILD_COMMAND}`")
        # Not SQLite's read-only mode, which cannot roll back the unfinished transaction of a killed build
        # and refuses the file. SQLite opens a write-protected file read-only by itself.
        with _opened(path, "rw", _READER_WAIT_SECONDS) as file:
            file.connection.execute("PRAGMA query_only = ON")
            if not file._is_catalogue():
                raise CatalogError(f"{path} is empty: build it with `{BUILD_COMMAND}`")
            if model_fingerprint is not None:
                file._check(model_fingerprint)
            return file

    @classmethod
    def open_for_writing(
        cls, path: Path, *, photos_folder: Path, model_fingerprint: str, model_name: str
    ) -> CatalogDatabase:
        """Open a file to change it; creates a missing one.

        Raises:
            CatalogOutdatedError: its embeddings are of another model, or it is of another version.
            CatalogError: the file cannot be written, or is not a catalogue.
        """
        with _opened(path, "rwc", _WRITER_WAIT_SECONDS) as file:
            # Enough for a batch: a transaction that exceeds the cache locks out readers early.
            file.connection.execute("PRAGMA cache_size = -32000")  # KiB
            with file._transaction("IMMEDIATE"):
                if not file._is_catalogue():
                    file._create(model_fingerprint, model_name)
                file._check(model_fingerprint)
                file.set_meta("photos_folder", str(photos_folder.resolve()))
                if not file.meta("catalogue_id"):
                    file.set_meta("catalogue_id", uuid.uuid4().hex)
            return file

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Run the block as a transaction.

        Raises:
            CatalogError: the file cannot be written.
        """
        with self._translated(), self._transaction("IMMEDIATE"):
            yield

    @contextmanager
    def reading(self, timeout_seconds: float = _READER_WAIT_SECONDS) -> Iterator[None]:
        """Run the block on one state of the file, with a time limit.

        Raises:
            CatalogTimeoutError: the statements took longer than `timeout_seconds`.
            CatalogError: the file cannot be read.
        """
        deadline = time.monotonic() + timeout_seconds
        wait_ms = max(0, round(timeout_seconds * 1000))
        with self._translated():
            self.connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
            # Called every 10,000 instructions of SQLite's virtual machine, about once a millisecond.
            self.connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            try:
                with self._transaction("DEFERRED"):
                    yield
            finally:
                self.connection.set_progress_handler(None, 0)

    def integer(self, statement: str) -> int:
        """Return the one number that a statement yields."""
        return int(self.connection.execute(statement).fetchone()[0])

    @property
    def has_attributes(self) -> bool:
        """Whether any product was ever stored with attributes."""
        return bool(self.integer("SELECT count(*) FROM sqlite_schema WHERE name = 'attributes'"))

    def create_attributes(self) -> None:
        """Create the table of attributes if it is missing."""
        self.connection.execute(_ATTRIBUTES)

    def meta(self, key: str, default: str = "") -> str:
        """Return a value of the table `meta`."""
        row = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Store a value in the table `meta`."""
        self.connection.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) "
            "DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
            (key, value),
        )

    def _is_catalogue(self) -> bool:
        """Return True for a catalogue and False for an empty file; any other file is a CatalogError."""
        if self.integer("PRAGMA application_id") == _APPLICATION_ID:
            return True
        if self.integer("SELECT count(*) FROM sqlite_schema"):
            raise CatalogError(f"{self._path} is an SQLite file but not a catalogue")
        return False

    def _create(self, model_fingerprint: str, model_name: str) -> None:
        self.connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        for statement in _SCHEMA:
            self.connection.execute(statement)
        self.set_meta("schema_version", str(SCHEMA_VERSION))
        self.set_meta("model_fingerprint", model_fingerprint)
        self.set_meta("model_name", model_name)

    def _check(self, model_fingerprint: str) -> None:
        version = self.meta("schema_version")
        if version != str(SCHEMA_VERSION):
            raise CatalogOutdatedError(
                f"{self._path} has version {version}, but this program reads version {SCHEMA_VERSION}: "
                f"build it again with `{BUILD_COMMAND}`"
            )
        check_model(str(self._path), self.meta("model_fingerprint"), self.meta("model_name"), model_fingerprint)

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        self.connection.execute(f"BEGIN {kind}")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # After some errors, such as a full disk, SQLite has already rolled back.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with _translated(self._path):
            yield


@contextmanager
def _opened(path: Path, mode: str, wait_seconds: float) -> Iterator[CatalogDatabase]:
    """Open a file; it stays open unless the block fails."""
    if path.is_dir():
        raise CatalogError(f"{path} is a folder, not a catalogue: name its file")
    with _translated(path):
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=wait_seconds)
        try:
            # A file that is cut short while it is mapped into memory would end the process.
            connection.execute("PRAGMA mmap_size = 0")
            yield CatalogDatabase(path, connection)
        except BaseException:
            connection.close()
            raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate SQLite's errors into CatalogErrors."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a closed store or the wrong thread: a bug
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_INTERRUPT:
            raise CatalogTimeoutError(f"{path} did not answer in time") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CatalogTimeoutError(f"{path} is locked by another program: try again") from error
        if code == sqlite3.SQLITE_NOTADB:
            raise CatalogError(f"{path} is not an SQLite file, so it is not a catalogue") from error
        if code == sqlite3.SQLITE_CORRUPT:
            raise CatalogDamagedError(f"{path} is damaged: delete it and build it again") from error
        raise CatalogError(f"{path} cannot be used: {error}") from error
