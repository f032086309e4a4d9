"""The contract of checkpoint stores; damage of the file is always detected."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import settings_from

from oracle import replay, to_line
from strategies import DataSet, data_sets
from streamdetect.checkpoint import Checkpoint, CheckpointStore, Row, Stored
from streamdetect.checkpoint.lock import DirectoryLock
from streamdetect.checkpoint.memory import MemoryStore
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.checkpoint.sqlitefile import FILE, reset
from streamdetect.detect import Detector
from streamdetect.errors import CheckpointError, FencedError, StateError
from streamdetect.events import Decoder, Event
from streamdetect.model import Partition

SETTINGS = {"profile": "strict", "rules": [{"id": "a", "max_hosts": 1}]}
STORES: dict[str, Callable[[Path], CheckpointStore]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(str(folder), SETTINGS),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return STORES[request.param](tmp_path)


def key(address: str | None, name: str = "p1", kind: str = "key") -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "rule": "a", "key": [address, "chrome.exe", None]}
    if kind == "key":
        row |= {"panes": [[1, 2, 3]], "details": [["h1"], [name]], "recent": None, "episode": None}
    return row


def waiting(tick_ms: int) -> dict[str, Any]:
    return {
        "kind": "waiting",
        "rule": "a",
        "key": ["x", "chrome.exe", None],
        "tick_ms": tick_ms,
        "pane_ms": 0,
        "partial": [1, 2, 3, [["h1"], ["p1"]], None, None],
    }


def checkpoint(number: int, **more: Any) -> Checkpoint:
    progress, partitions = {"kind": "progress", "ticks": number}, [{"kind": "partition", "topic": "t"}]
    return Checkpoint(number, progress, partitions, **more)


def loaded(store: CheckpointStore) -> Stored:
    """The whole state as plain JSON data."""
    found = store.load()
    assert found is not None
    found.keys, found.waiting = plain(found.keys), plain(found.waiting)
    return found


def plain(rows: Iterable[Row]) -> list[Row]:
    copied: list[Row] = json.loads(json.dumps(list(rows)))
    return copied


def test_a_new_store_is_empty(store: CheckpointStore) -> None:
    """`load` returns None; that is not an error."""
    assert store.load() is None


def test_changes_add_up(store: CheckpointStore) -> None:
    """Keys are replaced and forgotten, waiting rows added and deleted by tick; the rest is replaced as a whole."""
    store.save(
        checkpoint(1, keys=[key("x"), key(None), key("")], waiting=[waiting(5), waiting(10)], done_ms=None)
    )
    changed = [key("x", "p2"), key("", kind="forgotten")]
    store.save(
        checkpoint(
            2, keys=changed, waiting=[waiting(10), waiting(4)], done_ms=5, pending=[{"a": "é"}, {"b": 1}]
        )
    )
    found = loaded(store)
    assert (found.number, found.progress["ticks"], found.pending) == (2, 2, [{"a": "é"}, {"b": 1}])
    assert sorted(found.keys, key=str) == sorted([key("x", "p2"), key(None)], key=str)
    assert list(found.waiting) == [waiting(10), waiting(10)]
    store.save(checkpoint(3))
    assert loaded(store).pending == []
    assert store.size_bytes() > 0


def test_many_rows_of_all_kinds_in_one_save(store: CheckpointStore) -> None:
    """1,000 keys, each with its own event context; then 333 are replaced, 334 forgotten and 333 unchanged."""
    names = [f"9.9.{index // 250}.{index % 250}" for index in range(1000)]
    store.save(checkpoint(1, keys=[key(name, f"p{name}") for name in names]))
    changes = [key(name, f"q{name}") for name in names[1::3]]
    changes += [key(name, kind="forgotten") for name in names[::3]]
    store.save(checkpoint(2, keys=sorted(changes, key=str), waiting=[waiting(5)] * 100))
    found = loaded(store)
    left = [key(name, f"q{name}") for name in names[1::3]] + [key(name, f"p{name}") for name in names[2::3]]
    assert sorted(found.keys, key=str) == sorted(left, key=str)
    assert list(found.waiting) == [waiting(5)] * 100


def test_rows_come_in_the_order_of_an_import(store: CheckpointStore) -> None:
    """The progress row is first."""
    store.save(checkpoint(1, keys=[key("x")], waiting=[waiting(5)]))
    assert [row["kind"] for row in loaded(store).rows()] == ["progress", "partition", "key", "waiting"]


def test_a_checkpoint_survives_closing(tmp_path: Path) -> None:
    """A second store on the directory loads what the first one saved."""
    first = SqliteStore(str(tmp_path), SETTINGS)
    first.save(checkpoint(1, keys=[key("x")], waiting=[waiting(5)], pending=[{"a": 1}]))
    first.close()
    found = loaded(SqliteStore(str(tmp_path), SETTINGS))
    assert (found.number, list(found.keys), list(found.waiting), found.pending) == (
        1,
        [key("x")],
        [waiting(5)],
        [{"a": 1}],
    )


def test_file_offsets_and_the_id_are_kept(store: CheckpointStore) -> None:
    """Each checkpoint replaces the file offsets; the id of the store stays."""
    store.save(checkpoint(1, file_offsets={"alerts": {"path": "a", "length": 7}}))
    assert loaded(store).file_offsets == {"alerts": {"path": "a", "length": 7}}
    store.save(checkpoint(2))
    assert loaded(store).file_offsets == {}
    assert len(store.state) == 32


def test_only_the_newest_owner_may_save(tmp_path: Path) -> None:
    """A process that was suspended during a takeover fails at its next save, which changes nothing."""
    memory = MemoryStore()
    for older, newer in (
        (memory, memory.opened_again()),
        (SqliteStore(str(tmp_path), SETTINGS), SqliteStore(str(tmp_path), SETTINGS)),
    ):
        older.claim("first")
        older.save(checkpoint(1))
        newer.claim("second")
        with pytest.raises(FencedError, match="taken over"):
            older.save(checkpoint(2))
        assert newer.state == older.state
        assert loaded(newer).number == 1
        newer.save(checkpoint(2))


def test_a_directory_belongs_to_one_consumer_group(tmp_path: Path) -> None:
    """The checkpoint of another consumer group is refused, with the same settings too; read-only access ignores it."""
    store = SqliteStore(str(tmp_path), SETTINGS, "one")
    store.claim("me")
    store.save(checkpoint(1))
    store.close()
    with pytest.raises(CheckpointError, match="group one, not of two"):
        SqliteStore(str(tmp_path), SETTINGS, "two")
    assert loaded(SqliteStore(str(tmp_path), SETTINGS, "one")).number == 1
    assert loaded(SqliteStore(str(tmp_path), None)).number == 1


def test_a_file_that_is_replaced_during_use_is_detected(tmp_path: Path) -> None:
    """A save raises StateError, because the next start would not find the file."""
    store = SqliteStore(str(tmp_path), SETTINGS)
    store.save(checkpoint(1))
    original = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).unlink()
    with pytest.raises(StateError, match="No such file"):
        store.save(checkpoint(2))
    (tmp_path / FILE).write_bytes(original)
    with pytest.raises(StateError, match="replaced by another file"):
        store.save(checkpoint(2))


def test_the_directory_lock_is_exclusive(tmp_path: Path) -> None:
    """The lock is released with its holder."""
    first, second = DirectoryLock(str(tmp_path / "a")), DirectoryLock(str(tmp_path / "a"))
    assert (first.acquire(), second.acquire()) == (True, False)
    first.close()
    assert second.acquire()
    second.close()
    assert not second.acquire()


def test_a_store_is_read_while_it_is_written(tmp_path: Path) -> None:
    """Without settings the store is read-only and accepts any settings; a missing directory raises CheckpointError."""
    store = SqliteStore(str(tmp_path), SETTINGS)
    store.save(checkpoint(1, keys=[key("x")]))
    reader = SqliteStore(str(tmp_path), None)
    store.save(checkpoint(2))
    found = loaded(reader)
    assert (found.number, found.settings, reader.state) == (2, SETTINGS, store.state)
    with pytest.raises(StateError):
        reader.claim("me")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        SqliteStore(str(tmp_path / "none"), None)


def test_the_file_shrinks_after_many_keys_are_forgotten(tmp_path: Path) -> None:
    """20,000 keys of about 300 bytes are saved, then all forgotten."""
    store = SqliteStore(str(tmp_path), SETTINGS)
    names = [f"name-{index}" for index in range(20_000)]
    store.save(checkpoint(1, keys=[key(name, name) for name in names]))
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    large = store.size_bytes()
    store.save(checkpoint(99, keys=[key(name, kind="forgotten") for name in names]))
    store.save(checkpoint(100))
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store.size_bytes() < large / 10


def test_event_contexts_are_shared_and_deleted_when_unused(tmp_path: Path) -> None:
    """1,000 keys share one row; after the last is forgotten, the hundredth checkpoint deletes it."""
    store = SqliteStore(str(tmp_path), SETTINGS)
    names = [f"9.9.{index // 250}.{index % 250}" for index in range(1000)]
    store.save(checkpoint(1, keys=[key(name) for name in names]))
    database = sqlite3.connect(tmp_path / FILE)
    assert database.execute("SELECT count(*) FROM facts").fetchone() == (1,)
    store.save(checkpoint(2, keys=[key(name, kind="forgotten") for name in names]))
    store.save(checkpoint(100))
    assert database.execute("SELECT count(*) FROM facts").fetchone() == (0,)
    store.save(checkpoint(101, keys=[key("x")]))
    assert list(loaded(store).keys) == [key("x")]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    """The message names the setting and the options."""
    SqliteStore(str(tmp_path), SETTINGS).save(checkpoint(1))
    other = SqliteStore(str(tmp_path), {"profile": "strict", "rules": [{"id": "a", "max_hosts": 2}]})
    with pytest.raises(CheckpointError, match=r"rules\.0\.max_hosts.*--reset-state"):
        other.load()


def test_a_newer_format_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    """Neither is overwritten."""
    SqliteStore(str(tmp_path), SETTINGS).save(checkpoint(1))
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("PRAGMA user_version = 2")
    with pytest.raises(CheckpointError, match="format 2"):
        SqliteStore(str(tmp_path), SETTINGS)
    database.execute("PRAGMA application_id = 1")
    with pytest.raises(CheckpointError, match="no checkpoint of streamdetect"):
        SqliteStore(str(tmp_path), SETTINGS)


def filled(folder: Path) -> bytes:
    store = SqliteStore(str(folder), SETTINGS)
    store.save(checkpoint(1, keys=[key(f"10.0.0.{n}", f"p{n}") for n in range(200)], waiting=[waiting(5)]))
    store.close()
    return (folder / FILE).read_bytes()


def load_all(folder: Path) -> Stored | None:
    store = SqliteStore(str(folder), SETTINGS)
    try:
        found = store.load()
        if found is not None:
            found.keys, found.waiting = plain(found.keys), plain(found.waiting)
        return found
    finally:
        store.close()


STORED = {
    "meta": ("name", "body", "crc"),
    "groups": ("body", "crc"),  # an INTEGER PRIMARY KEY is not in the row's header
    "keys": ("grp", "address", "facts", "body", "crc"),
    "waiting": ("tick", "grp", "address", "facts", "body", "crc"),
    "facts": ("id", "body"),
    "pending": ("body", "crc"),
}


@pytest.mark.parametrize("value", ["CAST(x'ff' AS TEXT)", "'a'", "1.5", "x'00'", "-1"])
@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in STORED.items() for column in columns]
)
def test_a_value_of_another_type_is_damage(tmp_path: Path, table: str, column: str, value: str) -> None:
    """One flipped bit in a row's header can turn bytes into a text, even an invalid one."""
    store = SqliteStore(str(tmp_path), SETTINGS)
    store.save(checkpoint(1, keys=[key("10.0.0.1")], waiting=[waiting(5)], pending=[{"a": 1}]))
    store.close()
    database = sqlite3.connect(tmp_path / FILE)
    with database:
        changed = database.execute(f"UPDATE OR IGNORE {table} SET {column} = {value}").rowcount
    database.close()
    assert changed > 0
    with pytest.raises(CheckpointError):
        load_all(tmp_path)


@pytest.mark.parametrize("seed", range(150))
def test_a_flipped_bit_is_detected_or_harmless(tmp_path: Path, seed: int) -> None:
    """A flipped bit raises CheckpointError, or the content is the same because the bit was in unused space."""
    original = filled(tmp_path)
    expected = json.dumps(sorted(map(json.dumps, loaded(SqliteStore(str(tmp_path), SETTINGS)).rows())))
    rng = Random(seed)
    damaged = bytearray(original)
    damaged[rng.randrange(len(original))] ^= 1 << rng.randrange(8)
    (tmp_path / FILE).write_bytes(damaged)
    try:
        found = load_all(tmp_path)
    except (CheckpointError, StateError):
        return
    assert found is not None
    assert json.dumps(sorted(map(json.dumps, found.rows()))) == expected


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    """Truncated anywhere, even to an empty file: it was a checkpoint, so there must be no silent fresh start."""
    original = filled(tmp_path)
    (tmp_path / FILE).write_bytes(original[: int(len(original) * share)])
    with pytest.raises(CheckpointError):
        load_all(tmp_path)


def test_reset_deletes_a_checkpoint_in_any_condition(tmp_path: Path) -> None:
    """The next start is a fresh start."""
    filled(tmp_path)
    (tmp_path / FILE).write_bytes(b"rubbish")
    reset(str(tmp_path))
    assert load_all(tmp_path) is None


def test_a_failed_save_changes_nothing(tmp_path: Path) -> None:
    """When the file system refuses, save raises StateError and the last checkpoint is intact."""
    store = SqliteStore(str(tmp_path), SETTINGS)
    store.save(checkpoint(1, keys=[key("x")]))
    store._connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StateError, match="full"):
        store.save(checkpoint(2, keys=[key(f"{n}", f"p{n}") for n in range(5_000)]))
    found = loaded(store)
    assert (found.number, list(found.keys)) == (1, [key("x")])


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs Linux")  # noqa: PTH110
def test_a_directory_that_cannot_be_created() -> None:
    """Raises StateError with the path."""
    with pytest.raises(StateError, match="/proc/self"):
        SqliteStore("/proc/self/nowhere", SETTINGS)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.integers(0, 2**32), st.sampled_from(sorted(STORES)))
def test_a_detector_continues_from_each_store(
    tmp_path_factory: pytest.TempPathFactory, data_set: DataSet, seed: int, kind: str
) -> None:
    """Saves to a store and restores from it at random records: the alerts are the oracle's, byte for byte."""
    rng, chosen = Random(seed), settings_from(data_set.settings)
    store = STORES[kind](tmp_path_factory.mktemp("state"))
    decoder, detector = Decoder(chosen.profile, 1 << 20), Detector(chosen)
    detector.track_changes()
    lines: list[str] = []
    partitions = [Partition("p", number) for number in range(len(data_set.partitions))]
    for partition in partitions:
        detector.processor(partition)
    number = 0
    ahead = [list(records) for records in data_set.partitions]
    while any(ahead):
        index = rng.choice([index for index, records in enumerate(ahead) if records])
        document, at = ahead[index].pop(0)
        event = decoder.decode(
            document.encode() if isinstance(document, str) else json.dumps(document).encode()
        )
        if isinstance(event, Event):
            detector.processor(partitions[index]).accept(event, at)
        for partition, records in zip(partitions, ahead, strict=True):
            detector.processor(partition).idle = not records
        if any(ahead):
            lines += [alert.body.decode() for alert in detector.advance()]
        if rng.random() < 0.05:
            number += 1
            changes = detector.take_changes()
            done_ms = changes.progress["evaluated_ms"]
            rows = (changes.progress, changes.partitions, changes.key_rows(), changes.waiting_rows())
            store.save(Checkpoint(number, *rows, done_ms=done_ms))
            if rng.random() < 0.5:
                detector = Detector(chosen)
                detector.import_state(loaded(store).rows())
                detector.track_changes()
    lines += [alert.body.decode() for alert in detector.finish()]
    store.close()
    expected = replay(data_set.partitions, data_set.settings)
    assert lines == [to_line(alert) for alert in expected.alerts]
