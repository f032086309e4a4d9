"""How long the loop stands still for a tick and for a checkpoint as live keys grow, and what all of it takes in memory.

A day of one-event keys is alive; from then on each pane brings 10,000 events of 10,000 old keys, and as many new keys
as expire; a busy pane brings 100,000 events of any keys instead. A tick's stops are its slices, as a live run cuts
it and polls in between. A checkpoint's stops are its cut, and the longest time between two turns of 100 events while
it is saved by the real committer into SQLite: of all keys at first, as after a rebuild, then of what changed in half
an hour. Each size runs in a process of its own, with both cores, as a run has them.
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

from bench_checkpoint import PARTITION, Hears, Loop, committer_of, cut
from bench_memory import (
    LARGE,
    MEDIUM,
    PANE_MS,
    SMALL,
    SPREAD_MS,
    TOUCHED,
    Estate,
    Known,
    Load,
    fill,
    rss_bytes,
)
from common import MONDAY_8_MS, table

from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.config import Settings
from streamdetect.detect import Detector, PartitionProcessor
from streamdetect.model import Partition
from streamdetect.service.gc import collecting_rarely
from streamdetect.sinks.transactional import CommitMetadata

PANES_A_DAY = 288
TICKS, BUSY_TICKS, TICKS_BETWEEN, ORDINARY = 48, 12, 6, 3
EVENTS_A_PANE, BUSY_PANE = 10_000, 100_000
FAST = 200
"""Events for each ms of event time while a checkpoint is on its way: as fast as the loop can be, so ticks are rare."""
GOAL_MS = 50

Json = dict[str, Any]
Pane = Callable[[], Iterator[Known]]


class Traffic:
    """What goes on while a day of keys is alive."""

    def __init__(self, estate: Estate, keys: int) -> None:
        rng = Random(1)
        self._estate, self._keys = estate, keys
        self._old = [estate.event(key, 0) for key in rng.sample(range(keys), min(TOUCHED, keys))]
        self._rng = rng
        self._fresh = iter(range(keys, sys.maxsize))
        self._new_a_pane = keys // PANES_A_DAY
        self.now_ms = MONDAY_8_MS + SPREAD_MS

    def busy_pane(self) -> Iterator[Known]:
        """One pane's events of any keys."""
        begun_ms = self.now_ms
        for number in range(BUSY_PANE):
            self.now_ms = begun_ms + number * PANE_MS // BUSY_PANE
            yield self._estate.event(self._rng.randrange(self._keys), self.now_ms)
        self.now_ms = begun_ms + PANE_MS

    def pane(self) -> Iterator[Known]:
        """One pane's events: old keys, and new ones between them."""
        begun_ms, due = self.now_ms, 0.0
        for number in range(EVENTS_A_PANE):
            self.now_ms = begun_ms + number * PANE_MS // EVENTS_A_PANE
            event = self._old[self._rng.randrange(len(self._old))]
            event.time_ms = self.now_ms
            yield event
            due += self._new_a_pane / EVENTS_A_PANE
            while due >= 1:
                due -= 1
                yield self._estate.event(next(self._fresh), self.now_ms)
        self.now_ms = begun_ms + PANE_MS

    def fast(self) -> Iterator[Known]:
        """Events of old keys without end."""
        while True:
            for number, event in enumerate(self._old):
                self.now_ms += number % FAST == 0
                event.time_ms = self.now_ms
                yield event


def ticks(
    detector: Detector, processor: PartitionProcessor, pane: Pane, count: int
) -> list[tuple[float, float]]:
    """(ms of a whole tick, ms of its longest slice) on the wall, for ticks cut as a live run cuts them."""
    found: list[tuple[float, float]] = []
    evaluated_ms = detector.evaluated_ms
    while len(found) < count:
        for number, event in enumerate(pane()):
            processor.accept(event)
            if number % 100 == 0:
                slices, more = [], True
                while more:
                    begun = time.perf_counter()
                    _, more = detector.step()
                    slices.append((time.perf_counter() - begun) * 1e3)
                if detector.evaluated_ms != evaluated_ms:
                    evaluated_ms = detector.evaluated_ms
                    found.append((sum(slices), max(slices)))
    return found


def checkpoints(
    detector: Detector, processor: PartitionProcessor, traffic: Traffic, settings: Settings
) -> list[Json]:
    """The first checkpoint, and ordinary ones after half an hour of event time each."""
    loop, hears = Loop(detector, processor, traffic.fast()), Hears()
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(closing(SqliteStore(folder, settings.detection())))
        note = CommitMetadata(1, "bench", store.state, 0)
        committer = committer_of(store, note, hears)
        stack.enter_context(closing(committer))
        for number in range(1, ORDINARY + 2):
            begun = time.perf_counter()
            made = cut(detector, number, note)
            cut_ms = (time.perf_counter() - begun) * 1e3
            committer.hand_over(made)
            longest, usual, _ = loop.run(lambda: committer.busy)
            committer.check()
            figures = {"cut": cut_ms, "longest": longest, "usual": usual}
            rows.append({**figures, "save": hears.seconds, "bytes": hears.size_bytes})
            ticks(detector, processor, traffic.pane, TICKS_BETWEEN)
    return rows


def measure(keys: int) -> Json:
    """One process's work."""
    settings = Settings()
    detector, estate = Detector(settings), Estate()
    detector.track_changes()
    processor = detector.processor(Partition(*PARTITION))
    with collecting_rarely():
        fill(detector, processor, estate, Load(keys))
        traffic = Traffic(estate, keys)
        stops = ticks(detector, processor, traffic.pane, TICKS)
        loop = Loop(detector, processor, traffic.fast())
        until = time.perf_counter() + 5
        alone = loop.run(lambda: time.perf_counter() < until)
        rows = checkpoints(detector, processor, traffic, settings)
        resident = rss_bytes()
        busy_stops = ticks(detector, processor, traffic.busy_pane, BUSY_TICKS)
    return {
        "keys": detector.keys,
        "ticks": stops,
        "busy ticks": busy_stops[1:],
        "alone": alone[:2],
        "checkpoints": rows,
        "resident": resident,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_subprocess(keys: int) -> Json:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(keys)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: Json = json.loads(done.stdout)
    return found


def show_ticks(results: dict[int, Json], name: str, title: str) -> None:
    table(
        f"{title}; goal: no stop over {GOAL_MS} ms",
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
                f"{median(wall for wall, _ in found[name]):.1f}",
                f"{max(wall for wall, _ in found[name]):.1f}",
                f"{median(piece for _, piece in found[name]):.1f}",
                f"{max(piece for _, piece in found[name]):.1f}",
                f"{found['resident'] / 1e6:.0f}",
                f"{found['peak'] / 1e6:.0f}",
            )
            for keys, found in results.items()
        ],
    )


def show_checkpoints(results: dict[int, Json]) -> None:
    rows: list[tuple[str, ...]] = []
    for keys, found in results.items():
        longest, usual = found["alone"]
        rows.append((f"{keys:,}", "none", "", f"{longest:.1f}", f"{usual:.1f}", "", ""))
        first, *others = found["checkpoints"]
        kinds = [("all keys", [first]), (f"of half an hour, worst of {len(others)}", others)]
        for kind, some in kinds:
            worst = {name: max(one[name] for one in some) for name in first}
            figures = [f"{worst[name]:.1f}" for name in ("cut", "longest", "usual", "save")]
            rows.append((f"{keys:,}", kind, *figures, f"{worst['bytes'] / 1e6:.1f}"))
    table(
        f"stops of the loop while a checkpoint is on its way; goal: none over {GOAL_MS} ms",
        ("live keys", "checkpoint", "cut ms", "longest stop ms", "99.9 % ms", "save s", "MB on disk"),
        rows,
    )


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    results = {keys: in_subprocess(keys) for keys in (SMALL, MEDIUM, LARGE)}
    show_ticks(
        results, "ticks", f"ticks of panes with {EVENTS_A_PANE:,} events of old keys and a share of new ones"
    )
    show_ticks(results, "busy ticks", f"ticks of busy panes, with {BUSY_PANE:,} events of any keys")
    show_checkpoints(results)


if __name__ == "__main__":
    main()
