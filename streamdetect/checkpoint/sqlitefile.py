"""The file of the SQLite store: making it, opening it, finding out what is wrong with it, taking it away."""

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
_WAY_ON: Final = (
    "Restore it from a backup, rebuild it from Kafka with --rebuild, or start over with --reset-state: what the "
    "window held is lost then."
)
_MAKE_ROOM: Final = "Free disk space there, or make it writable"


def made(directory: str) -> Path:
    """The directory, made if it is not there."""
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"{directory} cannot be made ({error.strerror}). Choose checkpoint.path anew."
        ) from None
    return path


def open_to_write(directory: str) -> sqlite3.Connection:
    """The file, made if it is not there. Raises CheckpointError for what is there and is not ours or damaged."""
    path = made(directory) / FILE
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
    """The file as it is, which a running process may be writing. Raises CheckpointError."""
    path = Path(directory) / FILE
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no checkpoint: there is no {FILE}. Name the directory of checkpoint.path."
        )
    with reading(path):
        # A log that is read needs files beside it; where nothing may be made there, it must not be asked for.
        logged = path.with_name(FILE + "-wal").exists()
        frozen = not logged and not os.access(directory, os.W_OK)
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if frozen else ''}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        _check_format(path, connection)
    return connection


def reset(directory: str) -> None:
    """Take a checkpoint away, whatever its condition. Raises StateError if that is not possible."""
    for suffix in ("", "-wal", "-shm"):
        path = Path(directory) / (FILE + suffix)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{path} cannot be removed ({error.strerror}). Remove it by hand.") from None


def meta_row(name: str, value: Any) -> tuple[str, bytes, int]:
    """A row of `meta`."""
    body = orjson.dumps(value)
    return name, body, zlib.crc32(body, zlib.crc32(name.encode()))


def checked(name: bytes, body: bytes, crc: int) -> Any:
    """A row's content. ValueError if it is not what was written."""
    if zlib.crc32(body, zlib.crc32(name)) != crc:
        raise ValueError("a row's checksum does not fit")
    return orjson.loads(body)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with what is there makes a checkpoint unusable."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # Without a code it is the module's own: a damaged row holds a text that is none.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StateError(f"{path} is locked by another process. End that one, or wait for it.") from None
        raise CheckpointError(f"{path} cannot be used: {error}. {_WAY_ON}") from None
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}. {_WAY_ON}") from None


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Whatever goes wrong leaves the last checkpoint as it was."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StateError(
            f"the state could not be saved to {path}: {why}. {_MAKE_ROOM}; the last checkpoint is intact."
        ) from None


def _create(path: Path) -> None:
    """Make the file under another name first: one that is there and empty is damage, not a beginning."""
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
            f"{path} is no checkpoint of streamdetect, or a damaged one. If it is something else, choose another "
            f"checkpoint.path. {_WAY_ON}"
        )
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has format {found}; this version reads format {FORMAT}. "
            "Use the version that wrote it, or start over with --reset-state."
        )
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise CheckpointError(f"{path} is damaged: {problem}. {_WAY_ON}")
