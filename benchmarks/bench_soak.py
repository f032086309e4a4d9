"""Memory over many windows in which keys appear and expire: all of `run_live`, without a broker.

The source and the transactional sink are in memory. Records are bytes and decoded as in a real run; checkpoints go to
SQLite in a temporary directory, alerts are counted and discarded. The window is two hours, so that its contents are
replaced many times: hosts live an hour, process instances two minutes, most destinations seconds. Event time passes as
fast as records are processed, but no faster than ten minutes for each checkpoint, because the changes between two
checkpoints are in memory. Resident memory and the size of the state files are sampled at the same interval.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

from bench_memory import rss_bytes
from common import HOUR_MS, MONDAY_8_MS, table

from streamdetect.checkpoint import Checkpoint
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.config import Settings
from streamdetect.model import Batch, Partition
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.loop import run_live
from streamdetect.service.summary import Summary
from streamdetect.sinks import Outputs
from streamdetect.sinks.transactional import CommitMetadata
from streamdetect.sources import Bounds
from streamdetect.testing import MemoryLock, MemoryTransactionalSink

LOOKBACK_HOURS = 2
HOURS = 48
EVENTS_AN_HOUR = 60_000
SAMPLE_MS = 600_000
INSTANCE_MS = 120_000
"""Lifetime of a process instance: so short that the caches, which are of bounded size, are full at the end."""
SPEEDUP = 20
"""How much faster than real time the clock is that decides when a checkpoint is due, which is once a second."""
LONG_AFTER_MS = 4_000_000_000_000
PARTITIONS = (Partition("events", 0), Partition("events", 1))
BATCH = 500
NAMES = ("chrome.exe", "msedge.exe", "svchost.exe", "notepad.exe", "teams.exe")
"""Two of five do not count."""
GOAL = 0.03


class Sample(NamedTuple):
    """MB in memory and on disk after some hours of event time."""

    hours: float
    resident: float
    disk: float


class CountingSink(MemoryTransactionalSink):
    """Counts alerts and discards them."""

    committed_alerts = 0

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        metadata: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        super().commit(outputs, positions, metadata, patience)
        self.committed_alerts += len(self.alerts)
        self.alerts.clear()


class CountingStore(SqliteStore):
    """Counts saved checkpoints."""

    saves = 0

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        CountingStore.saves += 1


class Churn:
    """A source that generates records when polled. Most keys expire within the window."""

    def __init__(self, hours: float, state: Path) -> None:
        self._state = state
        self._total = int(hours * EVENTS_AN_HOUR)
        self._sent = dict.fromkeys(PARTITIONS, 0)
        self.samples: list[Sample] = []
        self._sampled_ms = MONDAY_8_MS

    def time_ms(self, number: int) -> int:
        return MONDAY_8_MS + number * HOUR_MS // (EVENTS_AN_HOUR // len(PARTITIONS))

    def ended(self) -> bool:
        return all(sent * len(PARTITIONS) >= self._total for sent in self._sent.values())

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        batches: list[Batch] = []
        newest_ms = self.time_ms(max(self._sent.values()))
        if newest_ms > MONDAY_8_MS + (CountingStore.saves + 1) * SAMPLE_MS:
            time.sleep(min(timeout_ms, 20) / 1000)
            return batches
        for partition, sent in self._sent.items():
            if partition in hold:
                continue
            offsets = range(sent, sent + BATCH)
            values = [self._record(partition, number) for number in offsets]
            batches.append(Batch(partition, values, offsets, [self.time_ms(number) for number in offsets]))
            self._sent[partition] = offsets.stop
        self._sample()
        return batches

    def _record(self, partition: Partition, number: int) -> bytes:
        """Every fiftieth record is of a beacon, which lives for two hours; of the others, three share a destination."""
        time_ms = self.time_ms(number)
        hour, host, name = (
            time_ms // HOUR_MS,
            f"{time_ms // HOUR_MS}-{number % 500}",
            NAMES[number % len(NAMES)],
        )
        process = f"{partition.number}-{time_ms // INSTANCE_MS}-{host}"
        destination = (number // 3 * len(PARTITIONS) + partition.number) & 0xFFFFFF
        address = f"45.{destination >> 16}.{destination >> 8 & 255}.{destination & 255}"
        if number % 50 == 0:
            host = process = f"beacon-{hour // 2}"
            address = f"46.1.{hour // 2 >> 8 & 255}.{hour // 2 & 255}"
        seconds, ms = divmod(time_ms, 1000)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return (
            f'{{"@timestamp":"{stamp}.{ms:03d}Z","data_stream":{{"dataset":"endpoint.events.network"}},'
            f'"event":{{"category":["network"]}},"host":{{"id":"id-{host}","name":"WS-{host}",'
            f'"os":{{"family":"windows"}}}},"process":{{"name":"{name}","entity_id":"{process}",'
            f'"pid":4711,"executable":"C:\\\\Program Files\\\\{name}"}},"user":{{"name":"user-{host}"}},'
            f'"destination":{{"address":"{address}","ip":"{address}","port":443}},"network":{{"direction":"egress"}}}}'
        ).encode()

    def _sample(self) -> None:
        newest_ms = self.time_ms(min(self._sent.values()))
        if newest_ms >= self._sampled_ms + SAMPLE_MS:
            self._sampled_ms = newest_ms
            size = sum(file.stat().st_size for file in self._state.iterdir())
            self.samples.append(Sample((newest_ms - MONDAY_8_MS) / HOUR_MS, rss_bytes() / 1e6, size / 1e6))

    def partitions(self) -> tuple[Partition, ...]:
        return PARTITIONS

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Every partition starts at its beginning."""

    def lags(self) -> dict[Partition, int]:
        return dict.fromkeys(PARTITIONS, 0)

    def bounds(self) -> dict[Partition, Bounds]:
        return {partition: Bounds(0, sent) for partition, sent in self._sent.items()}

    def positions(self) -> dict[Partition, int | None]:
        return dict(self._sent)

    def topic_ids(self) -> dict[str, str]:
        return {partition.topic: "one" for partition in PARTITIONS}

    def at_end(self) -> frozenset[Partition]:
        return frozenset()

    def close(self) -> None:
        """Nothing to release."""


def run(hours: float) -> tuple[Churn, Summary, int]:
    """The source with its samples, the summary, and the number of committed alerts."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_validate(
            {
                "time": {"lookback": f"{LOOKBACK_HOURS}h"},
                "rules": [{"min_duration_hours": 1}],
                "checkpoint": {"path": folder, "interval": "1s"},
            }
        )
        sink = CountingSink()
        with closing(Churn(hours, Path(folder))) as source:
            dependencies = Dependencies(
                source=source,
                sink=sink,
                lock=MemoryLock(),
                open_store=lambda: CountingStore(folder, settings.detection()),
                reset_store=lambda: None,
                open_window=lambda _start_ms, _ends: source,
            )
            summary = run_live(
                settings=settings,
                dependencies=dependencies,
                stop=source.ended,
                clock=lambda: SPEEDUP * time.monotonic(),
                wall_ms=lambda: LONG_AFTER_MS + int(SPEEDUP * time.monotonic() * 1000),
            )
    return source, summary, sink.committed_alerts


def during(samples: list[Sample], begin: float, end: float) -> Sample:
    """The medians of the samples between two hours."""
    selected = [one for one in samples if begin < one.hours <= end]
    return Sample(end, median(one.resident for one in selected), median(one.disk for one in selected))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hours", type=float, default=HOURS, help="event time; at least 8")
    hours = max(options.parse_args().hours, 4.0 * LOOKBACK_HOURS)
    started = time.monotonic()
    source, summary, alerts = run(hours)
    samples, window = source.samples, LOOKBACK_HOURS
    every = max(1, round(hours / window / 12))
    ends = [window * number for number in range(1, int(hours // window) + 1)]
    shown = [during(samples, end - window, end) for end in ends]
    table(
        f"{hours:g} h of event time in {time.monotonic() - started:.0f} s, {summary.consumed:,} records, at most "
        f"{summary.keys_peak:,} keys, {alerts} alerts; medians of each window of {window} h",
        ("hours", "resident MB", "state on disk MB"),
        [(f"{one.hours:g}", f"{one.resident:.1f}", f"{one.disk:.1f}") for one in shown[::every]],
    )
    third, late, last = shown[2], shown[len(shown) * 3 // 4 - 1], shown[-1]
    steady = [one for one in samples if one.hours > 2 * window]
    slope = linear_regression([one.hours for one in steady], [one.resident for one in steady]).slope
    table(
        f"resident memory; goal: within {GOAL:.0%} over the last quarter, when all caches are full",
        (
            "third window MB",
            "end MB",
            "change",
            "in the last quarter",
            "max of samples MB",
            "peak MB",
            "slope MB/h",
        ),
        [
            (
                f"{third.resident:.1f}",
                f"{last.resident:.1f}",
                f"{last.resident / third.resident - 1:+.1%}",
                f"{last.resident / late.resident - 1:+.1%}",
                f"{max(one.resident for one in samples):.1f}",
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:.1f}",
                f"{slope:+.3f}",
            )
        ],
    )


if __name__ == "__main__":
    main()
