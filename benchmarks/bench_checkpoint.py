"""What a checkpoint costs: the longest stop of the loop, how long it takes, its size, and the time to restore it.

A million one-event keys, all of them in the first checkpoint (as after a rebuild), then ordinary ones of what
changed since. The real committer and SQLite store, with a ledger in memory. The loop takes 100 events a turn
meanwhile; a stop is the time between two turns. The baseline is the same loop without a checkpoint in the same
process.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from random import Random

from bench_memory import LARGE, SPREAD_MS, Estate, Known
from common import MONDAY_8_MS, table

from streamdetect.checkpoint import Checkpoint
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.config import Settings
from streamdetect.detect import Detector, PartitionProcessor
from streamdetect.model import Partition
from streamdetect.service.gc import collecting_rarely
from streamdetect.service.live.commit import CommitListener, Committer, Cut
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.service.live.loop import Rows
from streamdetect.sinks import Outputs
from streamdetect.sinks.transactional import CommitMetadata
from streamdetect.testing import MemoryTransactionalSink

PARTITION = Partition("events")
TURN = 100
CHANGED = 50_000


class Hears(CommitListener):
    """Notes how long a save took, and what it came to."""

    def __init__(self) -> None:
        self.seconds, self.size_bytes = 0.0, 0

    def saved(self, number: int, seconds: float, size_bytes: int) -> None:
        del number
        self.seconds, self.size_bytes = seconds, size_bytes


class Loop:
    """Turns of events, and the time between them."""

    def __init__(self, detector: Detector, processor: PartitionProcessor, events: Iterator[Known]) -> None:
        self._detector, self._lane, self._events = detector, processor, events

    def run(self, goes_on: Callable[[], bool]) -> tuple[float, float, float]:
        """Longest stop and its 99.9th percentile in ms, events a second."""
        gaps, begun = [], time.perf_counter()
        last = begun
        while goes_on():
            for _ in range(TURN):
                self._lane.accept(next(self._events))
            self._detector.step()
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
        gaps.sort()
        rate = len(gaps) * TURN / (last - begun)
        return gaps[-1] * 1000, gaps[int(len(gaps) * 0.999)] * 1000, rate


def committer_of(store: SqliteStore, note: CommitMetadata, hears: Hears) -> Committer:
    """The real one, with a ledger in memory."""
    ledger = MemoryTransactionalSink()
    ledger.claim([PARTITION])
    return Committer(
        store=store,
        ledger=ledger,
        local=LocalSinks(),
        note=note,
        positions={PARTITION: 0},
        beat_seconds=60,
        listener=hears,
    )


def cut(detector: Detector, number: int, note: CommitMetadata) -> Cut:
    changes = detector.take_changes()
    checkpoint = Checkpoint(
        number,
        changes.progress,
        [row | {"offset": 0, "topic_id": ""} for row in changes.partitions],
        Rows(changes.key_rows),
        Rows(changes.waiting_rows),
        changes.progress["evaluated_ms"],
    )
    return Cut(checkpoint, Outputs(), {PARTITION: 0}, note, changes.let_go)


def events_of(estate: Estate, keys: int, start_ms: int) -> Iterator[Known]:
    """Events of random keys among some, 200,000 to a second: as fast as the loop can be, so that few ticks are due."""
    rng, chosen = Random(1), Random(2).sample(range(keys), CHANGED)
    made = [estate.event(chosen[rng.randrange(CHANGED)], 0) for _ in range(CHANGED)]

    def again_and_again() -> Iterator[Known]:
        number = 0
        while True:
            for event in made:
                event.time_ms = start_ms + number // 200
                number += 1
                yield event

    return again_and_again()


def main() -> None:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else LARGE
    settings = Settings()
    detector, estate = Detector(settings), Estate()
    detector.track_changes()
    processor = detector.processor(PARTITION)
    for number in range(keys):
        processor.accept(estate.event(number, MONDAY_8_MS + number * SPREAD_MS // keys))
        if number % 256 == 0:
            detector.advance()
    detector.advance_to(MONDAY_8_MS + SPREAD_MS)
    loop = Loop(detector, processor, events_of(estate, keys, MONDAY_8_MS + SPREAD_MS))
    rows = []
    with tempfile.TemporaryDirectory() as folder, collecting_rarely():
        until = time.perf_counter() + 5
        rows.append(("none", *loop.run(lambda: time.perf_counter() < until), 0.0, 0))
        hears = Hears()
        store = SqliteStore(folder, settings.detection())
        note = CommitMetadata(1, "bench", store.state, 0)
        committer = committer_of(store, note, hears)
        for number, name in (
            (1, f"all {keys:,} keys"),
            (2, f"{CHANGED:,} keys changed"),
            (3, f"{CHANGED:,} keys changed"),
        ):
            committer.hand_over(cut(detector, number, note))
            measured = loop.run(lambda: committer.busy)
            committer.check()
            rows.append((name, *measured, hears.seconds, hears.size_bytes))
        committer.close()
        store.close()
        del loop, detector, processor, estate
        gc.collect()
        begun = time.perf_counter()
        again = SqliteStore(folder, settings.detection())
        stored = again.load()
        restored = Detector(settings)
        if stored is not None:
            restored.import_state(stored.rows())
        restore_seconds = time.perf_counter() - begun
        if restored.keys != keys:
            raise SystemExit(f"{restored.keys:,} keys are restored, not {keys:,}")
    base = rows[0][3]
    table(
        f"checkpoints of {keys:,} keys, restored in {restore_seconds:.1f} s; ratio: events a second to those without",
        ("checkpoint", "ratio", "longest stop ms", "99.9 % ms", "save s", "MB on disk"),
        [
            (
                name,
                f"{rate / base:.2f}x",
                f"{longest:.1f}",
                f"{usual:.1f}",
                f"{seconds:.1f}",
                f"{size / 1e6:.0f}",
            )
            for name, longest, usual, rate, seconds, size in rows
        ],
    )


if __name__ == "__main__":
    main()
