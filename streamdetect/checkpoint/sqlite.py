"""A checkpoint store in one SQLite file, with a write-ahead log and a checksum for every row.

Layout (format 1; `PRAGMA user_version` is the format, `application_id` identifies the program):

    meta     name, body                       state, owner, settings, number, progress, partitions, marks
    groups   id, body                         [rule, process, sensor] of a key group
    keys     grp, address, facts, body        a key's [panes, recent, episode]
    waiting  tick, grp, address, facts, body  a pre-aggregate: [pane, count, first, last, hosts, processes]
    facts    id, body                         event contexts, shared by keys; id is a hash of body
    pending  seq, body                        outputs that are decided and possibly not yet published

Every body has a CRC-32, because SQLite detects a damaged page only where the damage breaks the tree. A checkpoint is
one SQLite transaction; `synchronous` is FULL, because the following commit to Kafka must not be ahead of the disk.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import orjson

from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.checkpoint.rows import check_owner, first_difference, is_done
from streamdetect.checkpoint.sqlitefile import (
    FILE,
    decode_row,
    meta_row,
    open_to_read,
    open_to_write,
    reading,
    saving,
)
from streamdetect.errors import CheckpointError, StateError

_MAX_STORED_CONTEXTS: Final = 200_000
_ROWS_PER_STATEMENT: Final = 256
_PRUNE_EVERY: Final = 100  # checkpoints between two deletions of unused event contexts
_VACUUM_PAGES: Final = 10_000  # returned to the file system at a time: 40 MB

Contexts = dict[bytes, tuple[Any, ...]]
KeyGroupId = tuple[str, str, str | None]


class SqliteStore:
    """A store in `directory`, which is created if missing.

    `settings` are the settings that decide what is detected, as plain data: `load` refuses a checkpoint of other
    settings and names the first that differs. None opens any checkpoint read-only.
    """

    def __init__(self, directory: str, settings: Row | None, consumer_group: str | None = None) -> None:
        """Raises StateError if the directory cannot be used, CheckpointError if it holds a damaged or foreign file or
        the checkpoint of another consumer group.
        """
        self._path = Path(directory) / FILE
        self._settings = settings
        self._consumer_group = consumer_group
        self._owner: str | None = None
        self._stored_contexts: set[bytes] = set()
        self._connection = open_to_read(directory) if settings is None else open_to_write(directory)
        with reading(self._path):
            meta = self._meta()
            self.state = str(meta["state"])
        self._inode = self._path.stat().st_ino
        if consumer_group is not None and meta.get("group", consumer_group) != consumer_group:
            self.close()
            raise CheckpointError(
                f"{self._path} holds the state of the group {meta['group']}, not of {consumer_group}. Give each "
                "group its own checkpoint.path, or start over with --reset-state."
            )

    def claim(self, owner: str) -> None:
        with saving(self._path):
            rows = [meta_row("owner", owner)]
            if self._consumer_group is not None:
                rows.append(meta_row("group", self._consumer_group))
            self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", rows)
        self._owner = owner

    def load(self) -> Stored | None:
        with reading(self._path):
            if self._settings is None and not self._connection.in_transaction:
                self._connection.execute("BEGIN")  # a consistent snapshot while another process saves
            meta = self._meta()
            if "number" not in meta:
                return None
            self._check_settings(meta["settings"])
            pending = [decode_row(b"", *row) for row in self._select("pending", "body, crc", "ORDER BY seq")]
            contexts = dict(self._read_contexts())
            return Stored(
                number=meta["number"],
                progress=meta["progress"],
                partitions=meta["partitions"],
                keys=self._keys(contexts),
                waiting=self._waiting(contexts),
                pending=pending,
                file_offsets=meta["marks"],
                settings=meta["settings"],
            )

    def save(self, checkpoint: Checkpoint) -> None:
        self._check_not_replaced()
        contexts = _ContextWriter(self._connection, self._stored_contexts)
        with saving(self._path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            check_owner(self._path.parent, self._stored_owner(), self._owner)
            groups = self._read_key_groups()
            self._save_keys(checkpoint.keys, groups, contexts)
            if checkpoint.done_ms is not None:
                connection.execute("DELETE FROM waiting WHERE tick <= ?", (checkpoint.done_ms,))
            self._save_waiting(checkpoint.waiting, checkpoint.done_ms, groups, contexts)
            contexts.flush()
            self._save_pending(checkpoint.pending)
            if checkpoint.number % _PRUNE_EVERY == 0:
                self._prune()
            self._save_meta(checkpoint)
        if len(self._stored_contexts) > _MAX_STORED_CONTEXTS or checkpoint.number % _PRUNE_EVERY == 0:
            self._stored_contexts.clear()
            with saving(self._path):
                self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        else:
            self._stored_contexts |= contexts.new

    def size_bytes(self) -> int:
        files = (self._path, self._path.with_name(FILE + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self._connection.close()

    def _check_not_replaced(self) -> None:
        """Raise StateError if the path names another file now: the next start would not find what is saved here."""
        with saving(self._path):
            if self._path.stat().st_ino == self._inode:
                return
        raise StateError(
            f"{self._path} was replaced by another file while in use. Stop the program that does this."
        )

    def _meta(self) -> dict[str, Any]:
        return {
            name: decode_row(str(name).encode(), body, crc)
            for name, body, crc in self._select("meta", "name, body, crc")
        }

    def _stored_owner(self) -> str | None:
        found = self._connection.execute("SELECT body FROM meta WHERE name = 'owner'").fetchone()
        return None if found is None else orjson.loads(found[0])

    def _check_settings(self, stored: Row) -> None:
        if self._settings is None or stored == self._settings:
            return
        name = first_difference(stored, self._settings) or "a setting"
        raise CheckpointError(
            f"{self._path} was made with another value of {name}, which changes what is detected. Set it back, "
            "or start over with --reset-state; `replay` shows what the new settings detect in past records."
        )

    def _select(self, table: str, columns: str, order: str = "") -> Iterator[tuple[Any, ...]]:
        # No `yield from`: it closes the cursor with the generator, possibly after the connection was closed.
        for row in self._connection.execute(f"SELECT {columns} FROM {table} {order}"):  # noqa: S608, UP028 - constant names
            yield row

    def _read_contexts(self) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        for name, body in self._select("facts", "id, body"):
            if _hash(body) != name:
                raise ValueError("a row's checksum does not match")
            yield name, _frozen(orjson.loads(body))

    def _read_key_groups(self) -> dict[KeyGroupId, int]:
        return {
            tuple(decode_row(b"%d" % number, body, crc)): number
            for number, body, crc in self._select("groups", "id, body, crc")
        }

    def _keys(self, contexts: Contexts) -> Iterator[Row]:
        with reading(self._path):
            groups = {number: group for group, number in self._read_key_groups().items()}
            for number, address, context_id, body, crc in self._select(
                "keys", "grp, address, facts, body, crc"
            ):
                panes, recent, episode = decode_row(_checksum_prefix(number, address, context_id), body, crc)
                yield {
                    "kind": "key",
                    **_key_fields(groups[number], address),
                    "panes": panes,
                    "details": contexts[context_id],
                    "recent": recent,
                    "episode": episode,
                }

    def _waiting(self, contexts: Contexts) -> Iterator[Row]:
        with reading(self._path):
            groups = {number: group for group, number in self._read_key_groups().items()}
            columns = "tick, grp, address, facts, body, crc"
            for tick_ms, number, address, context_id, body, crc in self._select("waiting", columns):
                pane_ms, count, first_ms, last_ms, hosts, processes = decode_row(
                    _checksum_prefix(number, address, context_id, tick_ms), body, crc
                )
                yield {
                    "kind": "waiting",
                    **_key_fields(groups[number], address),
                    "tick_ms": tick_ms,
                    "pane_ms": pane_ms,
                    "partial": [count, first_ms, last_ms, contexts[context_id], hosts, processes],
                }

    def _save_keys(
        self, rows: Iterable[Row], groups: dict[KeyGroupId, int], contexts: _ContextWriter
    ) -> None:
        changed = _Batch(self._connection, "INSERT OR REPLACE INTO keys VALUES ", "(?, ?, ?, ?, ?)", ", ")
        forgotten = _Batch(self._connection, "DELETE FROM keys WHERE ", "grp = ? AND address = ?", " OR ")
        for row in rows:
            number, address = self._key_group_number(row, groups), _encoded_address(row["key"][0])
            if row["kind"] == "forgotten":
                forgotten.add((number, address))
                continue
            context_id = contexts.id_of(row["details"])
            body = orjson.dumps((row["panes"], row["recent"], row["episode"]))
            crc = zlib.crc32(body, zlib.crc32(_checksum_prefix(number, address, context_id)))
            changed.add((number, address, context_id, body, crc))
        changed.flush()
        forgotten.flush()

    def _save_waiting(
        self,
        rows: Iterable[Row],
        done_ms: int | None,
        groups: dict[KeyGroupId, int],
        contexts: _ContextWriter,
    ) -> None:
        batch = _Batch(self._connection, "INSERT INTO waiting VALUES ", "(?, ?, ?, ?, ?, ?)", ", ")
        for row in rows:
            tick_ms = row["tick_ms"]
            if is_done(tick_ms, done_ms):
                continue
            number, address = self._key_group_number(row, groups), _encoded_address(row["key"][0])
            count, first_ms, last_ms, details, hosts, processes = row["partial"]
            context_id = contexts.id_of(details)
            body = orjson.dumps((row["pane_ms"], count, first_ms, last_ms, hosts, processes))
            crc = zlib.crc32(body, zlib.crc32(_checksum_prefix(number, address, context_id, tick_ms)))
            batch.add((tick_ms, number, address, context_id, body, crc))
        batch.flush()

    def _key_group_number(self, row: Row, groups: dict[KeyGroupId, int]) -> int:
        """The number of the row's key group. Inserts a new key group."""
        _, process, sensor = row["key"]
        group = (row["rule"], process, sensor)
        number = groups.get(group)
        if number is None:
            number = groups[group] = len(groups) + 1
            body = orjson.dumps(group)
            crc = zlib.crc32(body, zlib.crc32(b"%d" % number))
            self._connection.execute("INSERT INTO groups VALUES (?, ?, ?)", (number, body, crc))
        return number

    def _save_pending(self, rows: Iterable[Row]) -> None:
        self._connection.execute("DELETE FROM pending")
        bodies = map(orjson.dumps, rows)
        self._connection.executemany(
            "INSERT INTO pending (body, crc) VALUES (?, ?)",
            ((body, zlib.crc32(body, zlib.crc32(b""))) for body in bodies),
        )

    def _prune(self) -> None:
        """Delete event contexts that no key and no pre-aggregate refers to."""
        self._connection.execute(
            "DELETE FROM facts WHERE id NOT IN (SELECT facts FROM keys) AND id NOT IN (SELECT facts FROM waiting)"
        )

    def _save_meta(self, checkpoint: Checkpoint) -> None:
        values = {
            "number": checkpoint.number,
            "progress": checkpoint.progress,
            "partitions": list(checkpoint.partitions),
            "marks": dict(checkpoint.file_offsets),
            "settings": self._settings,
        }
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta (name, body, crc) VALUES (?, ?, ?)",
            (meta_row(name, value) for name, value in values.items()),
        )


class _Batch:
    """Executes many rows of one table per statement: `head`, then `row` for each, joined with `between`.

    Each statement releases the GIL to the main loop and waits for it again, so one row per statement would take many
    times as long.
    """

    def __init__(self, connection: sqlite3.Connection, head: str, row: str, between: str) -> None:
        self._connection = connection
        self._head = head
        self._row = row
        self._between = between
        self._values: list[Any] = []
        self._rows = 0

    def add(self, row: tuple[Any, ...]) -> None:
        self._values += row
        self._rows += 1
        if self._rows == _ROWS_PER_STATEMENT:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._connection.execute(self._head + self._between.join([self._row] * self._rows), self._values)
        self._values, self._rows = [], 0


class _ContextWriter:
    """Inserts the event contexts of a save that are not known to be stored. `new` are the ids of those inserted."""

    def __init__(self, connection: sqlite3.Connection, known: AbstractSet[bytes]) -> None:
        self.new: set[bytes] = set()
        self._known = known
        self._batch = _Batch(connection, "INSERT OR IGNORE INTO facts (id, body) VALUES ", "(?, ?)", ", ")

    def id_of(self, details: Any) -> bytes:
        """The id by which a row refers to an event context, which is stored after `flush()`."""
        body = orjson.dumps(details)
        context_id = _hash(body)
        if context_id not in self._known and context_id not in self.new:
            self.new.add(context_id)
            self._batch.add((context_id, body))
        return context_id

    def flush(self) -> None:
        self._batch.flush()


def _checksum_prefix(number: int, address: bytes, context_id: bytes, tick_ms: int = 0) -> bytes:
    """The other columns that a body's checksum covers."""
    return b"%d %d %b %b" % (number, tick_ms, context_id, address)


def _encoded_address(address: str | None) -> bytes:
    """An empty value for a missing address, which differs from an empty address."""
    return b"" if address is None else b"=" + address.encode()


def _key_fields(group: KeyGroupId, address: bytes) -> Row:
    rule, process, sensor = group
    return {"rule": rule, "key": [address[1:].decode() if address else None, process, sensor]}


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _frozen(values: list[Any]) -> tuple[Any, ...]:
    """Immutable, so that all keys can share one object."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)
