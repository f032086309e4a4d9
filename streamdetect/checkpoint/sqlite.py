"""The contract in one SQLite file in a directory: write-ahead log, every row under a checksum.

Layout (format 1; `PRAGMA user_version` is the format, `application_id` says that the file is ours):

    meta     name, body                       state, owner, settings, number, progress, partitions, marks
    groups   id, body                         [rule, process, sensor] of keys
    keys     grp, address, facts, body        a key's [panes, recent, episode]
    waiting  tick, grp, address, facts, body  a key's part of an inbox: [pane, count, first, last, hosts, processes]
    facts    id, body                         the details that keys share; id is a hash of body
    pending  seq, body                        decided, not yet known to be published

Every body has a CRC-32 beside it, since SQLite notices a damaged page only where it breaks the tree. A checkpoint is
one SQLite transaction; `synchronous` is FULL, because what Kafka is told afterwards must not be ahead of the disk.
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
from streamdetect.checkpoint.rows import check_owner, is_done
from streamdetect.checkpoint.sqlitefile import (
    FILE,
    checked,
    meta_row,
    open_to_read,
    open_to_write,
    reading,
    saving,
)
from streamdetect.errors import CheckpointError, StateError

_KNOWN_FACTS: Final = 200_000
_ROWS_A_STATEMENT: Final = 256
_PRUNE_EVERY: Final = 100  # checkpoints between two searches for facts that no key shares any more
_VACUUM_PAGES: Final = 10_000  # given back to the file system at a time: 40 MB

Contexts = dict[bytes, tuple[Any, ...]]
KeyGroupId = tuple[str, str, str | None]


class SqliteStore:
    """A store in `directory`, made if it is not there.

    `settings` are those that decide what is detected, as plain data: a checkpoint of other settings is refused, by
    the name of the first that differs. None looks into what is there, whatever it was made with, and writes nothing.
    """

    def __init__(self, directory: str, settings: Row | None, group: str | None = None) -> None:
        """Raises StateError if the directory cannot be used, CheckpointError if what is in it is not ours.

        `group` is whose work is kept here: a checkpoint of another one is not ours.
        """
        self._path = Path(directory) / FILE
        self._settings = settings
        self._group_id = group
        self._owner: str | None = None
        self._known_facts: set[bytes] = set()
        self._connection = open_to_read(directory) if settings is None else open_to_write(directory)
        with reading(self._path):
            meta = self._meta()
            self.state = str(meta["state"])
        self._inode = self._path.stat().st_ino
        if group is not None and meta.get("group", group) != group:
            self.close()
            raise CheckpointError(
                f"{self._path} holds the state of the group {meta['group']}, not of {group}. Give each group a "
                "checkpoint.path of its own, or start over with --reset-state."
            )

    def claim(self, owner: str) -> None:
        with saving(self._path):
            rows = [meta_row("owner", owner)]
            if self._group_id is not None:
                rows.append(meta_row("group", self._group_id))
            self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", rows)
        self._owner = owner

    def load(self) -> Stored | None:
        with reading(self._path):
            if self._settings is None and not self._connection.in_transaction:
                self._connection.execute("BEGIN")  # one checkpoint, though another process may save the next
            meta = self._meta()
            if "number" not in meta:
                return None
            self._check_settings(meta["settings"])
            pending = [checked(b"", *row) for row in self._all("pending", "body, crc", "ORDER BY seq")]
            facts = dict(self._facts())
            return Stored(
                number=meta["number"],
                progress=meta["progress"],
                partitions=meta["partitions"],
                keys=self._keys(facts),
                waiting=self._waiting(facts),
                pending=pending,
                file_offsets=meta["marks"],
                settings=meta["settings"],
            )

    def save(self, checkpoint: Checkpoint) -> None:
        self._check_place()
        facts = _NewContexts(self._connection, self._known_facts)
        with saving(self._path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            check_owner(self._path.parent, self._claimed_by(), self._owner)
            groups = self._read_groups()
            self._save_keys(checkpoint.keys, groups, facts)
            if checkpoint.done_ms is not None:
                connection.execute("DELETE FROM waiting WHERE tick <= ?", (checkpoint.done_ms,))
            self._save_waiting(checkpoint.waiting, checkpoint.done_ms, groups, facts)
            facts.flush()
            self._save_pending(checkpoint.pending)
            if checkpoint.number % _PRUNE_EVERY == 0:
                self._prune()
            self._save_meta(checkpoint)
        if len(self._known_facts) > _KNOWN_FACTS or checkpoint.number % _PRUNE_EVERY == 0:
            self._known_facts.clear()
            with saving(self._path):
                self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        else:
            self._known_facts |= facts.new

    def size_bytes(self) -> int:
        files = (self._path, self._path.with_name(FILE + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self._connection.close()

    def _check_place(self) -> None:
        """What is saved into a file that was taken away would be found by nobody."""
        with saving(self._path):
            if self._path.stat().st_ino == self._inode:
                return
        raise StateError(f"{self._path} was replaced by another file while we use it. End what does that.")

    def _meta(self) -> dict[str, Any]:
        return {
            name: checked(str(name).encode(), body, crc)
            for name, body, crc in self._all("meta", "name, body, crc")
        }

    def _claimed_by(self) -> str | None:
        found = self._connection.execute("SELECT body FROM meta WHERE name = 'owner'").fetchone()
        return None if found is None else orjson.loads(found[0])

    def _check_settings(self, stored: Row) -> None:
        if self._settings is None or stored == self._settings:
            return
        name = _first_difference(stored, self._settings) or "a setting"
        raise CheckpointError(
            f"{self._path} was made with another value of {name}, which changes what is detected. Set it back, "
            "or start over with --reset-state; replay shows what the new settings make of the past."
        )

    def _all(self, table: str, columns: str, order: str = "") -> Iterator[tuple[Any, ...]]:
        # No `yield from`: it would close the cursor when the generator is given up, maybe after the connection.
        for row in self._connection.execute(f"SELECT {columns} FROM {table} {order}"):  # noqa: S608, UP028 - names of our own
            yield row

    def _facts(self) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        for name, body in self._all("facts", "id, body"):
            if _fact_id(body) != name:
                raise ValueError("a row's checksum does not fit")
            yield name, _tuple(orjson.loads(body))

    def _read_groups(self) -> dict[KeyGroupId, int]:
        return {
            tuple(checked(b"%d" % number, body, crc)): number
            for number, body, crc in self._all("groups", "id, body, crc")
        }

    def _keys(self, facts: Contexts) -> Iterator[Row]:
        with reading(self._path):
            groups = {number: group for group, number in self._read_groups().items()}
            for number, address, fact, body, crc in self._all("keys", "grp, address, facts, body, crc"):
                panes, recent, episode = checked(_about(number, address, fact), body, crc)
                yield {
                    "kind": "key",
                    **_named(groups[number], address),
                    "panes": panes,
                    "details": facts[fact],
                    "recent": recent,
                    "episode": episode,
                }

    def _waiting(self, facts: Contexts) -> Iterator[Row]:
        with reading(self._path):
            groups = {number: group for group, number in self._read_groups().items()}
            columns = "tick, grp, address, facts, body, crc"
            for tick_ms, number, address, fact, body, crc in self._all("waiting", columns):
                pane_ms, count, first_ms, last_ms, hosts, processes = checked(
                    _about(number, address, fact, tick_ms), body, crc
                )
                yield {
                    "kind": "waiting",
                    **_named(groups[number], address),
                    "tick_ms": tick_ms,
                    "pane_ms": pane_ms,
                    "partial": [count, first_ms, last_ms, facts[fact], hosts, processes],
                }

    def _save_keys(self, rows: Iterable[Row], groups: dict[KeyGroupId, int], facts: _NewContexts) -> None:
        kept = _Batch(self._connection, "INSERT OR REPLACE INTO keys VALUES ", "(?, ?, ?, ?, ?)", ", ")
        gone = _Batch(self._connection, "DELETE FROM keys WHERE ", "grp = ? AND address = ?", " OR ")
        for row in rows:
            number, address = self._group(row, groups), _address(row["key"][0])
            if row["kind"] == "forgotten":
                gone.add((number, address))
                continue
            fact = facts.name(row["details"])
            body = orjson.dumps((row["panes"], row["recent"], row["episode"]))
            crc = zlib.crc32(body, zlib.crc32(_about(number, address, fact)))
            kept.add((number, address, fact, body, crc))
        kept.flush()
        gone.flush()

    def _save_waiting(
        self, rows: Iterable[Row], done_ms: int | None, groups: dict[KeyGroupId, int], facts: _NewContexts
    ) -> None:
        batch = _Batch(self._connection, "INSERT INTO waiting VALUES ", "(?, ?, ?, ?, ?, ?)", ", ")
        for row in rows:
            tick_ms = row["tick_ms"]
            if is_done(tick_ms, done_ms):
                continue
            number, address = self._group(row, groups), _address(row["key"][0])
            count, first_ms, last_ms, details, hosts, processes = row["partial"]
            fact = facts.name(details)
            body = orjson.dumps((row["pane_ms"], count, first_ms, last_ms, hosts, processes))
            crc = zlib.crc32(body, zlib.crc32(_about(number, address, fact, tick_ms)))
            batch.add((tick_ms, number, address, fact, body, crc))
        batch.flush()

    def _group(self, row: Row, groups: dict[KeyGroupId, int]) -> int:
        """The number of a row's group, which is written if it is new."""
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
        """Drop facts that neither a key nor an inbox shares any more."""
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
    """Rows for one table, many to a statement: `head`, then `row` for each, with `between` between them.

    Each statement gives the interpreter away to the loop and has to wait for it again, so a row alone costs many times
    its own time.
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
        if self._rows == _ROWS_A_STATEMENT:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._connection.execute(self._head + self._between.join([self._row] * self._rows), self._values)
        self._values, self._rows = [], 0


class _NewContexts:
    """The facts that a save finds and that are not known to be in the file: `new`, by their names."""

    def __init__(self, connection: sqlite3.Connection, known: AbstractSet[bytes]) -> None:
        self.new: set[bytes] = set()
        self._known = known
        self._batch = _Batch(connection, "INSERT OR IGNORE INTO facts (id, body) VALUES ", "(?, ?)", ", ")

    def name(self, details: Any) -> bytes:
        """By which a row refers to them; they are in the file after `flush()`."""
        body = orjson.dumps(details)
        name = _fact_id(body)
        if name not in self._known and name not in self.new:
            self.new.add(name)
            self._batch.add((name, body))
        return name

    def flush(self) -> None:
        self._batch.flush()


def _about(number: int, address: bytes, fact: bytes, tick_ms: int = 0) -> bytes:
    """What a body's checksum covers besides."""
    return b"%d %d %b %b" % (number, tick_ms, fact, address)


def _address(address: str | None) -> bytes:
    """Nothing for a missing one, which is not the same as an empty text."""
    return b"" if address is None else b"=" + address.encode()


def _named(group: KeyGroupId, address: bytes) -> Row:
    rule, process, sensor = group
    return {"rule": rule, "key": [address[1:].decode() if address else None, process, sensor]}


def _fact_id(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    """Immutable, so that one object can serve all keys that share it."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


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
