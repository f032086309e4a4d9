"""The live loop against a loop that only polls and parses, from a real broker."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import replace
from statistics import median
from typing import cast

import orjson
from common import HOUR_MS, ROUNDS, pin, records, table
from confluent_kafka import Producer

from broker import Broker
from streamdetect.cli.run import surroundings
from streamdetect.config import KafkaSettings, Settings
from streamdetect.model import Batch, Partition
from streamdetect.service.live import run_live
from streamdetect.sources.kafka import KafkaSource

COUNT = 200_000
PARTITIONS = 3
STALLED_SECONDS = 20


class Counting:
    """A source that counts what it hands over, and measures from the first poll until all records are out.

    So connecting and what comes after the last record do not count.
    """

    def __init__(self, inner: KafkaSource) -> None:
        self._inner = inner
        self.count = 0
        self.seconds = self.cpu_seconds = 0.0
        self._begun: tuple[float, float] | None = None
        self._since = time.monotonic()
        self.partitions, self.at_end, self.close = inner.partitions, inner.at_end, inner.close
        self.begin, self.positions, self.topic_ids = inner.begin, inner.positions, inner.topic_ids

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        if self._begun is None:
            self._begun = time.perf_counter(), time.process_time()
        batches = self._inner.poll(hold, timeout_ms)
        self.count += sum(map(len, batches))
        self._since = time.monotonic() if batches else self._since
        if time.monotonic() - self._since > STALLED_SECONDS:
            raise SystemExit(f"stalled after {self.count:,} of {COUNT:,} records, held back: {sorted(hold)}")
        return batches

    def ended(self) -> bool:
        """Whether all records are out; asked after each turn."""
        if self.count < COUNT or self._begun is None:
            return False
        self.seconds = time.perf_counter() - self._begun[0]
        self.cpu_seconds = time.process_time() - self._begun[1]
        return True


def produce(bootstrap: str, topic: str) -> int:
    """Records of an estate that ended just now, by host; gives their bytes."""
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 20) * HOUR_MS
    producer = Producer(
        {"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 50, "batch.size": 1_000_000}
    )
    size = 0
    for raw in records(COUNT, "defend", start_ms, hosts=300):
        partition = sum(json.loads(raw)["host"]["id"].encode()) % PARTITIONS
        while True:
            try:
                producer.produce(topic, raw, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
        size += len(raw)
    producer.flush()
    return size


def kafka_settings(bootstrap: str, topic: str) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": [bootstrap], "topics": [topic]})


def only_poll(kafka: KafkaSettings, work: Callable[[bytes], object] | None) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    with closing(Counting(KafkaSource(kafka))) as source:
        source.begin()
        while not source.ended():
            for batch in source.poll((), 200):
                if work is not None:
                    for value in batch.values:
                        work(value)  # type: ignore[arg-type]
        return source.seconds, source.cpu_seconds


def live(kafka: KafkaSettings, alerts: str) -> tuple[float, float]:
    """The whole product: checkpoints on the disk every second, transactions, beats."""
    group = f"bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = Settings.model_validate(
            {
                "kafka": {
                    "bootstrap_servers": list(kafka.bootstrap_servers),
                    "topics": list(kafka.topics),
                    "group_id": group,
                },
                "alerts": {"topic": alerts},
                "dead_letters": {"sink": "none"},
                "checkpoint": {"path": folder, "interval": "1s"},
            }
        )
        around = surroundings(settings, stack)
        source = Counting(cast(KafkaSource, around.source))
        summary = run_live(settings=settings, around=replace(around, source=source), stop=source.ended)
    if summary.consumed != COUNT or summary.dead_lettered:
        raise SystemExit(f"not all records were read: {summary}")
    return source.seconds, source.cpu_seconds


def main() -> None:
    with Broker() as broker:  # before pinning: the broker has the other cores
        core = pin()
        others = set(range(os.cpu_count() or 1)) - {core}
        if others:
            os.sched_setaffinity(broker._process.pid, others)  # noqa: SLF001
        topic, alerts = broker.make_topic(partitions=PARTITIONS), broker.make_topic()
        size = produce(broker.bootstrap, topic)
        kafka = kafka_settings(broker.bootstrap, topic)
        tasks: dict[str, Callable[[], tuple[float, float]]] = {
            "poll + orjson.loads": lambda: only_poll(kafka, orjson.loads),
            "live": lambda: live(kafka, alerts),
            "poll only": lambda: only_poll(kafka, None),
        }
        only_poll(kafka, None)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
        for _ in range(ROUNDS):
            for name, task in tasks.items():
                taken[name].append(task())
    walls = {name: median(wall for wall, _ in both) for name, both in taken.items()}
    cpus = {name: median(cpu for _, cpu in both) for name, both in taken.items()}
    base = "poll + orjson.loads"
    table(
        f"{COUNT:,} records of {size / COUNT:,.0f} B, lz4, {PARTITIONS} partitions, reader on core {core}",
        ("", "ratio", "CPU ratio", "records/s", "s", "CPU s"),
        [
            (
                name,
                f"{walls[base] / walls[name]:.2f}x",
                f"{cpus[base] / cpus[name]:.2f}x",
                f"{COUNT / walls[name]:,.0f}",
                f"{walls[name]:.2f}",
                f"{cpus[name]:.2f}",
            )
            for name in tasks
        ],
    )


if __name__ == "__main__":
    main()
