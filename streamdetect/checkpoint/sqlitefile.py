"""The file of the SQLite store: create, open, check and delete it."""

from __future__ import annotations

import os
import sqlite3
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from streamdetect.errors import CheckpointError, StateError

FORMAT: Final = 1
FILE: Final = "state.sqlite3"
APPLICATION: Final = 0x73747264
_WAL_BYTES: Final = 64 * 1024 * 1024
_CACHE_KIB: Final = 32 * 1024

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE groups (id INTEGER PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE keys (grp INTEGER NOT NULL, address BLOB NOT NULL, facts BLOB NOT NULL, body BLOB NOT NULL,
    crc INTEGER NOT NULL, PRIMARY KEY (grp, address)) WITHOUT ROWID;
CREATE TABLE waiting (tick INTEGER NOT NULL, grp INTEGER NOT NULL, address BLOB NOT NULL, facts BLOB NOT NULL,
    body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX waiting_tick ON waiting (tick);
CREATE TABLE facts (id BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE pending (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL);
"""
_OPTIONS: Final = (
    "Restore it from a backup, rebuild it from Kafka with --rebuild, or start over with --reset-state, which "
    "discards the state."
)
_FREE_SPACE: Final = "Free disk space there, or make it writable"


def create_directory(directory: str) -> Path:
    """Create the directory if it is missing."""
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"{directory} cannot be created ({error.strerror}). Choose another checkpoint.path."
        ) from None
    return path


def open_to_write(directory: str) -> sqlite3.Connection:
    """Open the file, creating it if it is missing. Raises CheckpointError for a damaged or foreign file."""
    path = create_directory(directory) / FILE
    if not path.exists():
        _create(path)
    with reading(path):
        connection = _connect(path)
        _check_format(path, connection)
    with saving(path):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def open_to_read(directory: str) -> sqlite3.Connection:
    """Open the file read-only, possibly while a process writes it. Raises CheckpointError."""
    path = Path(directory) / FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no checkpoint: there is no {FILE}. Name the directory of checkpoint.path."
        )
    with reading(path):
        # Reading a write-ahead log creates files next to it. In a read-only directory without a log, avoid that.
        logged = path.with_name(FILE + "-wal").exists()
        frozen = not logged and not os.access(directory, os.W_OK)
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if frozen else ''}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        _check_format(path, connection)
    return connection


def reset(directory: str) -> None:
    """Delete a checkpoint in any condition. Raises StateError if that fails."""
    for suffix in ("", "-wal", "-shm"):
        path = Path(directory) / (FILE + suffix)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{path} cannot be removed ({error.strerror}). Remove it manually.") from None


def meta_row(name: str, value: Any) -> tuple[str, bytes, int]:
    """A row of `meta`."""
    body = orjson.dumps(value)
    return name, body, zlib.crc32(body, zlib.crc32(name.encode()))


def decode_row(name: bytes, body: bytes, crc: int) -> Any:
    """The content of a row. Raises ValueError when the checksum does not match."""
    if zlib.crc32(body, zlib.crc32(name)) != crc:
        raise ValueError("a row's checksum does not match")
    return orjson.loads(body)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise CheckpointError for any error of a read, StateError if the file is locked."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # An error of the sqlite3 module itself has no code: invalid UTF-8 in a damaged row.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StateError(
                f"{path} is locked by another process. Stop that process, or wait until it ends."
            ) from None
        raise CheckpointError(f"{path} cannot be used: {error}. {_OPTIONS}") from None
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}. {_OPTIONS}") from None


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Raise StateError for any error of a write. The last checkpoint is intact then."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StateError(
            f"the state could not be saved to {path}: {why}. {_FREE_SPACE}; the last checkpoint is intact."
        ) from None


def _create(path: Path) -> None:
    """Create the file under another name, then rename it, so that an empty file is always damage."""
    draft = path.with_name(FILE + ".new")
    with saving(path):
        draft.unlink(missing_ok=True)
        connection = _connect(draft)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}; COMMIT;"
            )
            connection.execute("INSERT INTO meta VALUES (?, ?, ?)", meta_row("state", uuid.uuid4().hex))
        finally:
            connection.close()
        draft.replace(path)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise CheckpointError(
            f"{path} is no checkpoint of streamdetect, or a damaged one. If it is another file, choose another "
            f"checkpoint.path. {_OPTIONS}"
        )
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has format {found}; this version reads format {FORMAT}. "
            "Use the version that wrote it, or start over with --reset-state."
        )
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise CheckpointError(f"{path} is damaged: {problem}. {_OPTIONS}")
