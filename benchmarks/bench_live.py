"""The live loop against a loop that only polls and parses, from a real broker."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from contextlib import closing
from statistics import median

import orjson
from bench_replay import NullAlertSink
from common import HOUR_MS, ROUNDS, pin, records, table
from confluent_kafka import Producer

from broker import Broker
from streamdetect.config import KafkaSettings, Settings
from streamdetect.model import Batch, Partition
from streamdetect.service.live import run_live
from streamdetect.sinks.files import NullDeadLetterSink
from streamdetect.sources.kafka import KafkaSource

COUNT = 200_000
PARTITIONS = 3
STALLED_SECONDS = 20


class Counting:
    """A source that counts what it hands over, so that the run can be told to stop after the last record."""

    def __init__(self, inner: KafkaSource) -> None:
        self._inner = inner
        self.count = 0
        self._since = time.monotonic()
        self.partitions, self.at_end, self.close = inner.partitions, inner.at_end, inner.close

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        batches = self._inner.poll(hold, timeout_ms)
        self.count += sum(map(len, batches))
        self._since = time.monotonic() if batches else self._since
        if time.monotonic() - self._since > STALLED_SECONDS:
            raise SystemExit(f"stalled after {self.count:,} of {COUNT:,} records, held back: {sorted(hold)}")
        return batches


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


def only_poll(kafka: KafkaSettings, work: Callable[[bytes], object] | None) -> None:
    with closing(KafkaSource(kafka)) as source:
        count = 0
        while count < COUNT:
            for batch in source.poll((), 200):
                count += len(batch)
                if work is not None:
                    for value in batch.values:
                        work(value)  # type: ignore[arg-type]


def live(kafka: KafkaSettings) -> None:
    settings = Settings(kafka=kafka)
    with closing(Counting(KafkaSource(kafka))) as source:
        summary = run_live(
            settings=settings,
            source=source,
            alert_sink=NullAlertSink(),
            dead_letter_sink=NullDeadLetterSink(),
            stop=lambda: source.count >= COUNT,
        )
    if summary.consumed != COUNT or summary.dead_lettered:
        raise SystemExit(f"not all records were read: {summary}")


def main() -> None:
    with Broker() as broker:  # before pinning: the broker has the other cores
        core = pin()
        others = set(range(os.cpu_count() or 1)) - {core}
        if others:
            os.sched_setaffinity(broker._process.pid, others)  # noqa: SLF001
        topic = broker.make_topic(partitions=PARTITIONS)
        size = produce(broker.bootstrap, topic)
        kafka = kafka_settings(broker.bootstrap, topic)
        tasks: dict[str, Callable[[], None]] = {
            "poll + orjson.loads": lambda: only_poll(kafka, orjson.loads),
            "live": lambda: live(kafka),
            "poll only": lambda: only_poll(kafka, None),
        }
        only_poll(kafka, None)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
        for _ in range(ROUNDS):
            for name, task in tasks.items():
                wall, cpu = time.perf_counter(), time.process_time()
                task()
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
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
