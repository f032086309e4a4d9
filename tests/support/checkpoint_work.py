"""A detector on partitions in memory that is saved into a SQLite store as `run` saves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.events import Decoder, Event
from streamdetect.model import Alert, Partition
from streamdetect.service.live.outbox import output_rows
from streamdetect.sinks import Outputs
from streamdetect.testing import MemorySource

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
Line = bytes | tuple[bytes, int]
"""A record's value, in Kafka with its timestamp."""


class SavedRun:
    """A detector that reads partitions in memory and saves checkpoints as a run does: only changes after the first."""

    def __init__(self, folder: Path, settings: Settings, records: Sequence[Sequence[Line]]) -> None:
        self.folder = folder
        self.settings = settings
        self.records = records
        self.partitions = [Partition("events", number) for number in range(len(records))]
        self.detector = Detector(settings)
        self.detector.track_changes()
        self.offsets = [0] * len(records)
        self.number = 0
        self.alerts: list[Alert] = []
        self._decoder = Decoder(settings.profile, settings.limits.max_record_bytes)
        self.store = SqliteStore(str(folder), settings.detection())
        for partition in self.partitions:
            self.detector.processor(partition)

    def read(self, number: int, count: int) -> None:
        """Read the next records of a partition."""
        for record in self.records[number][self.offsets[number] : self.offsets[number] + count]:
            value, at = record if isinstance(record, tuple) else (record, None)
            event = self._decoder.decode(value)
            if isinstance(event, Event):
                self.detector.processor(self.partitions[number]).accept(event, at)
            self.offsets[number] += 1

    def left(self, number: int) -> int:
        return len(self.records[number]) - self.offsets[number]

    def read_in_parallel(self, share: float) -> None:
        """Read all partitions at the same pace, up to this share of each."""
        while behind := [n for n, at in enumerate(self.offsets) if at < int(share * len(self.records[n]))]:
            self.read(min(behind, key=lambda n: self.offsets[n] / len(self.records[n])), 20)
            self.advance()

    def idle(self, number: int, idle: bool = True) -> None:
        self.detector.processor(self.partitions[number]).idle = idle

    def advance(self) -> None:
        self.alerts += self.detector.advance()

    def advance_to(self, after_ms: int) -> None:
        """Evaluate up to a time after the start of the day."""
        self.alerts += self.detector.advance_to(START_MS + after_ms)

    def pane_waits(self, pane_ms: int) -> bool:
        return any(
            row["kind"] == "waiting" and row["pane_ms"] == pane_ms for row in self.detector.export_state()
        )

    def save(self, outputs: Outputs | None = None, **file_offsets: Row) -> None:
        self.number += 1
        changes = self.detector.take_changes()
        self.store.save(
            Checkpoint(
                number=self.number,
                progress=changes.progress,
                partitions=[
                    row | {"offset": self.offsets[row["number"]], "topic_id": "an id"}
                    for row in changes.partitions
                ],
                keys=changes.key_rows(),
                waiting=changes.waiting_rows(),
                done_ms=changes.progress["evaluated_ms"],
                pending=output_rows(outputs or Outputs()),
                file_offsets=file_offsets,
            )
        )

    def at_random(self, rng: Random) -> None:
        """Read, evaluate and save in random order up to a random place; partitions read to their end are idle."""
        stop = rng.randrange(sum(map(len, self.records)) + 1)
        while sum(self.offsets) < stop:
            number = rng.choice([n for n in range(len(self.records)) if self.left(n)])
            self.read(number, rng.choice((1, 1, 3, 20)))
            for index in range(len(self.records)):
                self.idle(index, not self.left(index))
            if rng.random() < 0.7 and any(map(self.left, range(len(self.records)))):
                self.advance()
            if rng.random() < 0.05:
                self.save()
        self.save()

    def files(self) -> list[str]:
        """The records as files, one for each partition."""
        paths = []
        for number, records in enumerate(self.records):
            path = self.folder / f"partition-{number}.jsonl"
            path.write_bytes(b"".join(value + b"\n" for value in records if isinstance(value, bytes)))
            paths.append(str(path))
        return paths

    def source(self) -> MemorySource:
        """The records that have been read."""
        source = MemorySource(self.partitions)
        for partition, records in zip(self.partitions, self.records, strict=True):
            source.add(partition, *records)
        return source.between(dict(zip(self.partitions, self.offsets, strict=True)))

    def stored(self) -> Stored:
        stored = self.store.load()
        assert stored is not None
        return stored

    def save_changed(self, change: Callable[[list[Row]], None]) -> None:
        """Save the same state again with a change to its rows, as a bug in a detector would."""
        rows: list[Row] = json.loads(json.dumps(list(self.stored().rows())))
        change(rows)
        kinds = ("partition", "key", "waiting")
        partitions, keys, waiting = ([row for row in rows if row["kind"] == kind] for kind in kinds)
        for table in ("keys", "waiting"):
            self.store._connection.execute(f"DELETE FROM {table}")
        self.number += 1
        self.store.save(Checkpoint(self.number, rows[0], partitions, keys, waiting))
