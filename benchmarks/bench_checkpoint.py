"""Cost of a checkpoint: the longest pause of the loop, duration, size, and the time to restore it.

A million keys with one event each. The first checkpoint contains all of them (as after a rebuild), the others what has
changed since. Uses the real committer and SQLite store, with a transactional sink in memory. Meanwhile the loop
processes 100 events a turn; a pause is the time between two turns. The baseline is the same loop in the same process
without a checkpoint.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from random import Random

from bench_memory import LARGE, SPREAD_MS, EventFactory, PreparedEvent
from common import MONDAY_8_MS, table

from streamdetect.checkpoint import Checkpoint
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.config import Settings
from streamdetect.detect import Detector, PartitionProcessor
from streamdetect.model import Partition
from streamdetect.service.gc import infrequent_gc
from streamdetect.service.live.commit import CommitListener, Committer, Cut
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.service.live.loop import Rows
from streamdetect.sinks import Outputs
from streamdetect.sinks.transactional import CommitMetadata
from streamdetect.testing import MemoryTransactionalSink

PARTITION = Partition("events")
TURN = 100
CHANGED = 50_000


class SaveRecorder(CommitListener):
    """Records the duration and the size of the last save."""

    def __init__(self) -> None:
        self.seconds, self.size_bytes = 0.0, 0

    def saved(self, number: int, seconds: float, size_bytes: int) -> None:
        del number
        self.seconds, self.size_bytes = seconds, size_bytes


class Loop:
    """Runs turns of events and measures the pauses between them."""

    def __init__(
        self, detector: Detector, processor: PartitionProcessor, events: Iterator[PreparedEvent]
    ) -> None:
        self._detector, self._processor, self._events = detector, processor, events

    def run(self, should_continue: Callable[[], bool]) -> tuple[float, float, float]:
        """The longest pause and the 99.9th percentile in ms, and events a second."""
        pauses, started = [], time.perf_counter()
        last = started
        while should_continue():
            for _ in range(TURN):
                self._processor.accept(next(self._events))
            self._detector.step()
            now = time.perf_counter()
            pauses.append(now - last)
            last = now
        pauses.sort()
        rate = len(pauses) * TURN / (last - started)
        return pauses[-1] * 1000, pauses[int(len(pauses) * 0.999)] * 1000, rate


def committer_of(store: SqliteStore, metadata: CommitMetadata, saves: SaveRecorder) -> Committer:
    """The real committer, with a transactional sink in memory."""
    sink = MemoryTransactionalSink()
    sink.fence([PARTITION])
    return Committer(
        store=store,
        sink=sink,
        local_sinks=LocalSinks(),
        metadata=metadata,
        positions={PARTITION: 0},
        heartbeat_seconds=60,
        listener=saves,
    )


def cut(detector: Detector, number: int, metadata: CommitMetadata) -> Cut:
    changes = detector.take_changes()
    checkpoint = Checkpoint(
        number,
        changes.progress,
        [row | {"offset": 0, "topic_id": ""} for row in changes.partitions],
        Rows(changes.key_rows),
        Rows(changes.waiting_rows),
        changes.progress["evaluated_ms"],
    )
    return Cut(checkpoint, Outputs(), {PARTITION: 0}, metadata, changes.release)


def events_of(factory: EventFactory, keys: int, start_ms: int) -> Iterator[PreparedEvent]:
    """Endless events of `CHANGED` random keys, 200,000 for each second of event time.

    The loop is no faster than that, so event time passes no faster than real time, and few ticks are evaluated.
    """
    rng, chosen = Random(1), Random(2).sample(range(keys), CHANGED)
    prepared = [factory.event(chosen[rng.randrange(CHANGED)], 0) for _ in range(CHANGED)]

    def endless() -> Iterator[PreparedEvent]:
        number = 0
        while True:
            for event in prepared:
                event.time_ms = start_ms + number // 200
                number += 1
                yield event

    return endless()


def main() -> None:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else LARGE
    settings = Settings()
    detector, factory = Detector(settings), EventFactory()
    detector.track_changes()
    processor = detector.processor(PARTITION)
    for number in range(keys):
        processor.accept(factory.event(number, MONDAY_8_MS + number * SPREAD_MS // keys))
        if number % 256 == 0:
            detector.advance()
    detector.advance_to(MONDAY_8_MS + SPREAD_MS)
    loop = Loop(detector, processor, events_of(factory, keys, MONDAY_8_MS + SPREAD_MS))
    rows = []
    with tempfile.TemporaryDirectory() as folder, infrequent_gc():
        until = time.perf_counter() + 5
        rows.append(("none", *loop.run(lambda: time.perf_counter() < until), 0.0, 0))
        saves = SaveRecorder()
        store = SqliteStore(folder, settings.detection())
        metadata = CommitMetadata(1, "bench", store.state, 0)
        committer = committer_of(store, metadata, saves)
        for number, name in (
            (1, f"all {keys:,} keys"),
            (2, f"{CHANGED:,} keys changed"),
            (3, f"{CHANGED:,} keys changed"),
        ):
            committer.submit(cut(detector, number, metadata))
            measured = loop.run(lambda: committer.busy)
            committer.check()
            rows.append((name, *measured, saves.seconds, saves.size_bytes))
        committer.close()
        store.close()
        del loop, detector, processor, factory
        gc.collect()
        started = time.perf_counter()
        reopened = SqliteStore(folder, settings.detection())
        stored = reopened.load()
        restored = Detector(settings)
        if stored is not None:
            restored.import_state(stored.rows())
        restore_seconds = time.perf_counter() - started
        if restored.keys != keys:
            raise SystemExit(f"restored {restored.keys:,} keys instead of {keys:,}")
    base = rows[0][3]
    table(
        f"checkpoints of {keys:,} keys, restored in {restore_seconds:.1f} s; ratio: events/s to the first row",
        ("checkpoint", "ratio", "longest pause ms", "99.9 % ms", "save s", "MB on disk"),
        [
            (
                name,
                f"{rate / base:.2f}x",
                f"{longest:.1f}",
                f"{percentile:.1f}",
                f"{seconds:.1f}",
                f"{size / 1e6:.0f}",
            )
            for name, longest, percentile, rate, seconds, size in rows
        ],
    )


if __name__ == "__main__":
    main()
