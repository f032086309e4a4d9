"""Pauses of the loop for ticks and checkpoints, and memory, by number of live keys.

The engine holds a day of keys with one event each. Then each pane has 10,000 events of 10,000 old keys, and as many new
keys as expire; a busy pane has 100,000 events of any keys instead. The pauses of a tick are its slices: a live run
polls between them. The pauses of a checkpoint are its cut, and the longest time between two turns of 100 events while
the real committer saves it to SQLite: first all keys, as after a rebuild, then what changed in half an hour. Each size
runs in a process of its own on both cores, as a live run does.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from random import Random
from statistics import median
from typing import Any

from bench_checkpoint import PARTITION, Loop, SaveRecorder, committer_of, cut
from bench_memory import (
    LARGE,
    MEDIUM,
    PANE_MS,
    SMALL,
    SPREAD_MS,
    TOUCHED,
    EventFactory,
    Load,
    PreparedEvent,
    fill,
    rss_bytes,
)
from common import MONDAY_8_MS, table

from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.config import Settings
from streamdetect.detect import Detector, PartitionProcessor
from streamdetect.model import Partition
from streamdetect.service.gc import infrequent_gc
from streamdetect.sinks.transactional import CommitMetadata

PANES_A_DAY = 288
TICKS, BUSY_TICKS, TICKS_BETWEEN, LATER_CHECKPOINTS = 48, 12, 6, 3
EVENTS_A_PANE, BUSY_PANE = 10_000, 100_000
FAST = 200
"""Events for each ms of event time while a checkpoint is in flight. The loop is no faster, so ticks are rare."""
GOAL_MS = 50

Json = dict[str, Any]
Pane = Callable[[], Iterator[PreparedEvent]]


class Traffic:
    """Events while a day of keys is live."""

    def __init__(self, factory: EventFactory, keys: int) -> None:
        rng = Random(1)
        self._factory, self._keys = factory, keys
        self._old = [factory.event(key, 0) for key in rng.sample(range(keys), min(TOUCHED, keys))]
        self._rng = rng
        self._fresh = iter(range(keys, sys.maxsize))
        self._new_a_pane = keys // PANES_A_DAY
        self.now_ms = MONDAY_8_MS + SPREAD_MS

    def busy_pane(self) -> Iterator[PreparedEvent]:
        """The events of one pane, of any keys."""
        start_ms = self.now_ms
        for number in range(BUSY_PANE):
            self.now_ms = start_ms + number * PANE_MS // BUSY_PANE
            yield self._factory.event(self._rng.randrange(self._keys), self.now_ms)
        self.now_ms = start_ms + PANE_MS

    def pane(self) -> Iterator[PreparedEvent]:
        """The events of one pane: of old keys, and of new ones in between."""
        start_ms, new = self.now_ms, 0.0
        for number in range(EVENTS_A_PANE):
            self.now_ms = start_ms + number * PANE_MS // EVENTS_A_PANE
            event = self._old[self._rng.randrange(len(self._old))]
            event.time_ms = self.now_ms
            yield event
            new += self._new_a_pane / EVENTS_A_PANE
            while new >= 1:
                new -= 1
                yield self._factory.event(next(self._fresh), self.now_ms)
        self.now_ms = start_ms + PANE_MS

    def fast(self) -> Iterator[PreparedEvent]:
        """Endless events of old keys."""
        while True:
            for number, event in enumerate(self._old):
                self.now_ms += number % FAST == 0
                event.time_ms = self.now_ms
                yield event


def ticks(
    detector: Detector, processor: PartitionProcessor, pane: Pane, count: int
) -> list[tuple[float, float]]:
    """(ms of a whole tick, ms of its longest slice) in wall clock time, with the slices of a live run."""
    measured: list[tuple[float, float]] = []
    evaluated_ms = detector.evaluated_ms
    while len(measured) < count:
        for number, event in enumerate(pane()):
            processor.accept(event)
            if number % 100 == 0:
                slices, more = [], True
                while more:
                    started = time.perf_counter()
                    _, more = detector.step()
                    slices.append((time.perf_counter() - started) * 1e3)
                if detector.evaluated_ms != evaluated_ms:
                    evaluated_ms = detector.evaluated_ms
                    measured.append((sum(slices), max(slices)))
    return measured


def checkpoints(
    detector: Detector, processor: PartitionProcessor, traffic: Traffic, settings: Settings
) -> list[Json]:
    """Pauses of the first checkpoint, and of others after half an hour of event time each."""
    loop, saves = Loop(detector, processor, traffic.fast()), SaveRecorder()
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(closing(SqliteStore(folder, settings.detection())))
        metadata = CommitMetadata(1, "bench", store.state, 0)
        committer = committer_of(store, metadata, saves)
        stack.enter_context(closing(committer))
        for number in range(1, LATER_CHECKPOINTS + 2):
            started = time.perf_counter()
            taken = cut(detector, number, metadata)
            cut_ms = (time.perf_counter() - started) * 1e3
            committer.submit(taken)
            longest, percentile, _ = loop.run(lambda: committer.busy)
            committer.check()
            figures = {"cut": cut_ms, "longest": longest, "percentile": percentile}
            rows.append({**figures, "save": saves.seconds, "bytes": saves.size_bytes})
            ticks(detector, processor, traffic.pane, TICKS_BETWEEN)
    return rows


def measure(keys: int) -> Json:
    """Measure one size. Call in a process of its own."""
    settings = Settings()
    detector, factory = Detector(settings), EventFactory()
    detector.track_changes()
    processor = detector.processor(Partition(*PARTITION))
    with infrequent_gc():
        fill(detector, processor, factory, Load(keys))
        traffic = Traffic(factory, keys)
        pauses = ticks(detector, processor, traffic.pane, TICKS)
        loop = Loop(detector, processor, traffic.fast())
        until = time.perf_counter() + 5
        without = loop.run(lambda: time.perf_counter() < until)
        rows = checkpoints(detector, processor, traffic, settings)
        resident = rss_bytes()
        busy_pauses = ticks(detector, processor, traffic.busy_pane, BUSY_TICKS)
    return {
        "keys": detector.keys,
        "ticks": pauses,
        "busy ticks": busy_pauses[1:],
        "no checkpoint": without[:2],
        "checkpoints": rows,
        "resident": resident,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_subprocess(keys: int) -> Json:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(keys)], check=True, stdout=subprocess.PIPE, text=True
    )
    measured: Json = json.loads(done.stdout)
    return measured


def show_ticks(results: dict[int, Json], name: str, title: str) -> None:
    table(
        f"{title}; goal: no pause over {GOAL_MS} ms",
        (
            "live keys",
            "tick, median ms",
            "longest ms",
            "slice, median ms",
            "longest ms",
            "resident MB",
            "peak MB",
        ),
        [
            (
                f"{keys:,}",
                f"{median(tick for tick, _ in measured[name]):.1f}",
                f"{max(tick for tick, _ in measured[name]):.1f}",
                f"{median(slice_ for _, slice_ in measured[name]):.1f}",
                f"{max(slice_ for _, slice_ in measured[name]):.1f}",
                f"{measured['resident'] / 1e6:.0f}",
                f"{measured['peak'] / 1e6:.0f}",
            )
            for keys, measured in results.items()
        ],
    )


def show_checkpoints(results: dict[int, Json]) -> None:
    rows: list[tuple[str, ...]] = []
    for keys, measured in results.items():
        longest, percentile = measured["no checkpoint"]
        rows.append((f"{keys:,}", "none", "", f"{longest:.1f}", f"{percentile:.1f}", "", ""))
        first, *others = measured["checkpoints"]
        kinds = [("all keys", [first]), (f"changes of half an hour, worst of {len(others)}", others)]
        for kind, some in kinds:
            worst = {name: max(one[name] for one in some) for name in first}
            figures = [f"{worst[name]:.1f}" for name in ("cut", "longest", "percentile", "save")]
            rows.append((f"{keys:,}", kind, *figures, f"{worst['bytes'] / 1e6:.1f}"))
    table(
        f"pauses of the loop while a checkpoint is in flight; goal: none over {GOAL_MS} ms",
        ("live keys", "checkpoint", "cut ms", "longest pause ms", "99.9 % ms", "save s", "MB on disk"),
        rows,
    )


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    results = {keys: in_subprocess(keys) for keys in (SMALL, MEDIUM, LARGE)}
    show_ticks(
        results,
        "ticks",
        f"ticks of panes with {EVENTS_A_PANE:,} events of old keys, and of as many new keys as expire",
    )
    show_ticks(results, "busy ticks", f"ticks of busy panes, with {BUSY_PANE:,} events of any keys")
    show_checkpoints(results)


if __name__ == "__main__":
    main()
