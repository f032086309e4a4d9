"""The contract in one SQLite file in a directory: write-ahead log, every row under a checksum.

Layout (format 1; `PRAGMA user_version` is the format, `application_id` says that the file is ours):

    meta     name, body                 progress, partitions, settings, number
    keys     name, facts, body          a key's history and episode; name is [rule, address, process, sensor]
    waiting  tick, facts, body          a key's part of an inbox
    facts    id, body                   the details that keys share; id is a hash of body
    pending  seq, body                  decided, not yet known to be published

Every body has a CRC-32 beside it, since SQLite notices a damaged page only where it breaks the tree. A checkpoint is
one SQLite transaction; `synchronous` is FULL, because what Kafka is told afterwards must not be ahead of the disk.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.checkpoint.memory import is_done, key_name
from streamdetect.errors import CheckpointError, StateError

FORMAT: Final = 1
FILE: Final = "state.sqlite3"
_APPLICATION: Final = 0x73747264
_KNOWN_FACTS: Final = 200_000
_PRUNE_EVERY: Final = 100  # checkpoints between two searches for facts that no key shares any more

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE keys (name TEXT PRIMARY KEY, facts BLOB NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE waiting (tick INTEGER NOT NULL, facts BLOB NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX waiting_tick ON waiting (tick);
CREATE TABLE facts (id BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE pending (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL);
"""
_WAY_ON: Final = (
    "Restore it from a backup, or start over with --reset-state: what the window held is lost then."
)
_MAKE_ROOM: Final = "Free disk space there, or make it writable"


class SqliteStore:
    """A store in `directory`, made if it is not there.

    `settings` are those that decide what is detected, as plain data: a checkpoint of other settings is refused, by
    the name of the first that differs.
    """

    def __init__(self, directory: str, settings: Row) -> None:
        """Raises StateError if the directory cannot be used, CheckpointError if what is in it is not ours."""
        self._path = Path(directory) / FILE
        self._settings = settings
        self._known_facts: set[bytes] = set()
        self._number: int | None = None
        with _saving(self._path):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StateError(
                    f"{directory} cannot be made ({error.strerror}). Choose checkpoint.path anew."
                ) from None
        self._connection = self._open()

    def load(self) -> Stored | None:
        with _reading(self._path):
            meta = {
                name: _checked(name.encode(), body, crc)
                for name, body, crc in self._all("meta", "name, body, crc")
            }
            if "number" not in meta:
                return None
            self._check_settings(meta["settings"])
            facts = dict(self._facts())
            self._number = meta["number"]
            return Stored(
                number=meta["number"],
                progress=meta["progress"],
                partitions=meta["partitions"],
                keys=[
                    _row(body, crc, key, facts) for key, body, crc in self._all("keys", "facts, body, crc")
                ],
                waiting=[
                    _row(body, crc, key, facts) for key, body, crc in self._all("waiting", "facts, body, crc")
                ],
                pending=[
                    _checked(b"", body, crc)
                    for body, crc in self._all("pending", "body, crc", "ORDER BY seq")
                ],
            )

    def save(self, checkpoint: Checkpoint) -> None:
        new_facts: set[bytes] = set()
        with _saving(self._path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._save_keys(checkpoint.keys, new_facts)
            if checkpoint.done_ms is not None:
                connection.execute("DELETE FROM waiting WHERE tick <= ?", (checkpoint.done_ms,))
            self._save_waiting(checkpoint.waiting, checkpoint.done_ms, new_facts)
            connection.execute("DELETE FROM pending")
            bodies = map(orjson.dumps, checkpoint.pending)
            connection.executemany(
                "INSERT INTO pending (body, crc) VALUES (?, ?)", ((b, zlib.crc32(b)) for b in bodies)
            )
            if checkpoint.number % _PRUNE_EVERY == 0:
                self._prune()
            self._save_meta(checkpoint)
        if len(self._known_facts) > _KNOWN_FACTS or checkpoint.number % _PRUNE_EVERY == 0:
            self._known_facts.clear()
        else:
            self._known_facts |= new_facts

    def size_bytes(self) -> int:
        files = (self._path, self._path.with_name(FILE + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._create()
        with _reading(self._path):
            connection = _connect(self._path)
            self._check_format(connection)
        with _saving(self._path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _create(self) -> None:
        """Make the file under another name first: one that is there and empty is damage, not a beginning."""
        draft = self._path.with_name(FILE + ".new")
        with _saving(self._path):
            try:
                draft.unlink(missing_ok=True)
                connection = _connect(draft)
                connection.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION};"
                    f" PRAGMA user_version = {FORMAT}; COMMIT;"
                )
                connection.close()
                draft.replace(self._path)
            except OSError as error:
                raise StateError(f"{self._path} cannot be made ({error.strerror}). {_MAKE_ROOM}") from None

    def _check_format(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            raise CheckpointError(
                f"{self._path} is no checkpoint of streamdetect. Choose another checkpoint.path."
            )
        if found != FORMAT:
            raise CheckpointError(
                f"{self._path} has format {found}; this version reads format {FORMAT}. "
                "Use the version that wrote it, or start over with --reset-state."
            )
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise CheckpointError(f"{self._path} is damaged: {problem}. {_WAY_ON}")

    def _check_settings(self, stored: Row) -> None:
        if stored == self._settings:
            return
        name = _first_difference(stored, self._settings) or "a setting"
        raise CheckpointError(
            f"{self._path} was made with another value of {name}, which changes what is detected. Set it back, "
            "or start over with --reset-state; replay shows what the new settings make of the past."
        )

    def _all(self, table: str, columns: str, order: str = "") -> Iterator[tuple[Any, ...]]:
        yield from self._connection.execute(f"SELECT {columns} FROM {table} {order}")  # noqa: S608 - names of our own

    def _facts(self) -> Iterator[tuple[bytes, list[Any]]]:
        for name, body in self._all("facts", "id, body"):
            if _fact_id(body) != name:
                raise ValueError("a row's checksum does not fit")
            yield name, orjson.loads(body)

    def _save_keys(self, rows: Iterable[Row], new_facts: set[bytes]) -> None:
        connection = self._connection
        for row in rows:
            name = key_name(row)
            if row["kind"] == "forgotten":
                connection.execute("DELETE FROM keys WHERE name = ?", (name,))
                continue
            fact = self._save_fact(row.pop("details"), new_facts)
            body = orjson.dumps(row)
            connection.execute(
                "INSERT OR REPLACE INTO keys (name, facts, body, crc) VALUES (?, ?, ?, ?)",
                (name, fact, body, zlib.crc32(body, zlib.crc32(fact))),
            )

    def _save_waiting(self, rows: Iterable[Row], done_ms: int | None, new_facts: set[bytes]) -> None:
        for row in rows:
            if is_done(row["tick_ms"], done_ms):
                continue
            fact = self._save_fact(row["partial"][3], new_facts)
            row["partial"][3] = None
            body = orjson.dumps(row)
            self._connection.execute(
                "INSERT INTO waiting (tick, facts, body, crc) VALUES (?, ?, ?, ?)",
                (row["tick_ms"], fact, body, zlib.crc32(body, zlib.crc32(fact))),
            )

    def _save_fact(self, details: list[Any], new_facts: set[bytes]) -> bytes:
        body = orjson.dumps(details)
        name = _fact_id(body)
        if name not in self._known_facts and name not in new_facts:
            self._connection.execute("INSERT OR IGNORE INTO facts (id, body) VALUES (?, ?)", (name, body))
            new_facts.add(name)
        return name

    def _prune(self) -> None:
        """Drop facts that neither a key nor an inbox shares any more."""
        self._connection.execute(
            "DELETE FROM facts WHERE id NOT IN (SELECT facts FROM keys) AND id NOT IN (SELECT facts FROM waiting)"
        )

    def _save_meta(self, checkpoint: Checkpoint) -> None:
        values = {
            "number": checkpoint.number,
            "progress": checkpoint.progress,
            "partitions": list(checkpoint.partitions),
            "settings": self._settings,
        }
        for name, value in values.items():
            body = orjson.dumps(value)
            self._connection.execute(
                "INSERT OR REPLACE INTO meta (name, body, crc) VALUES (?, ?, ?)",
                (name, body, zlib.crc32(body, zlib.crc32(name.encode()))),
            )


def reset(directory: str) -> None:
    """Take a checkpoint away, whatever its condition. Raises StateError if that is not possible."""
    for suffix in ("", "-wal", "-shm"):
        path = Path(directory) / (FILE + suffix)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{path} cannot be removed ({error.strerror}). Remove it by hand.") from None


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _fact_id(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _checked(name: bytes, body: bytes, crc: int) -> Any:
    if zlib.crc32(body, zlib.crc32(name)) != crc:
        raise ValueError("a row's checksum does not fit")
    return orjson.loads(body)


def _row(body: bytes, crc: int, fact: bytes, facts: dict[bytes, list[Any]]) -> Row:
    """A row with its facts back in place."""
    row: Row = _checked(fact, body, crc)
    if row["kind"] == "key":
        row["details"] = facts[fact]
    else:
        row["partial"][3] = facts[fact]
    return row


def _first_difference(stored: Any, wanted: Any, path: str = "") -> str | None:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted({*stored, *wanted}):
            found = _first_difference(stored.get(name), wanted.get(name), f"{path}.{name}" if path else name)
            if found is not None:
                return found
        return None
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for index, (one, other) in enumerate(zip(stored, wanted, strict=True)):
            found = _first_difference(one, other, f"{path}.{index}")
            if found is not None:
                return found
        return None
    return None if stored == wanted else path


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with what is there makes a checkpoint unusable."""
    try:
        yield
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}. {_WAY_ON}") from None


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StateError(
            f"the state could not be saved to {path}: {error}. {_MAKE_ROOM}; the last checkpoint is intact."
        ) from None
