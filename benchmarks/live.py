"""What benchmarks of live runs share: a topic full of records, and whoever reads it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import cast

from common import HOUR_MS, ROUNDS, records
from confluent_kafka import Producer
from environments import PEERS, python_with

from broker import Broker, free_ports
from streamdetect.cli.run import surroundings
from streamdetect.config import KafkaSettings, RuleSettings, Settings
from streamdetect.model import Batch, Partition
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.loop import run_live
from streamdetect.service.status.http import serving
from streamdetect.service.status.stalls import watched
from streamdetect.service.status.state import RunStatus
from streamdetect.sources.kafka_live import KafkaSource

HOSTS = 300
STALLED_SECONDS = 20
PEER_SECONDS = 180
SCRAPE_SECONDS = 1.0
"""Far more often than any Prometheus asks, so that a short run has some of it."""


@dataclass(frozen=True)
class Filled:
    """A topic with records of one shape."""

    bootstrap: str
    topic: str
    shape: str
    count: int
    size_bytes: int
    partitions: int

    def kafka(self, reader: str = "kafka-python") -> dict[str, object]:
        return {"bootstrap_servers": [self.bootstrap], "topics": [self.topic], "reader": reader}

    def title(self) -> str:
        each = self.size_bytes / self.count
        return f"{self.shape}: {self.count:,} records of {each:,.0f} B, lz4, {self.partitions} partitions"


@dataclass(frozen=True)
class Taken:
    """What one run took, from the first poll to the last record, and how many events counted."""

    seconds: float
    cpu_seconds: float
    counted: int | None = None

    @classmethod
    def median(cls, taken: list[Taken]) -> Taken:
        wall, cpu = (median(getattr(one, name) for one in taken) for name in ("seconds", "cpu_seconds"))
        return cls(wall, cpu, taken[0].counted)


class Counting:
    """A source that counts what it hands over, and measures from the first poll until all records are out.

    So connecting and what comes after the last record do not count.
    """

    def __init__(self, inner: KafkaSource, count: int) -> None:
        self._inner = inner
        self._wanted = count
        self.count = 0
        self.seconds = self.cpu_seconds = 0.0
        self._begun: tuple[float, float] | None = None
        self._since = time.monotonic()
        self.partitions, self.at_end, self.close = inner.partitions, inner.at_end, inner.close
        self.begin, self.positions, self.topic_ids = inner.begin, inner.positions, inner.topic_ids
        self.bounds, self.lags = inner.bounds, inner.lags

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        if self._begun is None:
            self._begun = time.perf_counter(), time.process_time()
        batches = self._inner.poll(hold, timeout_ms)
        self.count += sum(map(len, batches))
        self._since = time.monotonic() if batches else self._since
        if time.monotonic() - self._since > STALLED_SECONDS:
            raise SystemExit(
                f"stalled after {self.count:,} of {self._wanted:,} records, held back: {sorted(hold)}"
            )
        return batches

    def ended(self) -> bool:
        """Whether all records are out; asked after each turn."""
        if self.count < self._wanted or self._begun is None:
            return False
        if not self.seconds:
            self.seconds = time.perf_counter() - self._begun[0]
            self.cpu_seconds = time.process_time() - self._begun[1]
        return True


def fill(broker: Broker, shape: str, count: int, partitions: int) -> Filled:
    """Records of an estate that began twenty hours ago, by host, in a new topic."""
    topic = broker.make_topic(partitions=partitions)
    start_ms = (time.time_ns() // 1_000_000 // HOUR_MS - 20) * HOUR_MS
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 1_000_000,
        }
    )
    size_bytes = 0
    for raw in records(count, shape, start_ms, hosts=HOSTS):
        partition = sum(_host(raw).encode()) % partitions
        while True:
            try:
                producer.produce(topic, raw, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
        size_bytes += len(raw)
    producer.flush()
    return Filled(broker.bootstrap, topic, shape, count, size_bytes, partitions)


def _host(raw: bytes) -> str:
    document = json.loads(raw)
    return str(document.get("winlog", {}).get("computer_name") or document["host"]["id"])


def pin_broker(broker: Broker, cores: set[int]) -> None:
    """Every thread that it has, and those they start from now on."""
    assert broker._process is not None  # noqa: SLF001
    for thread in Path(f"/proc/{broker._process.pid}/task").iterdir():  # noqa: SLF001
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def only_poll(filled: Filled, work: Callable[[bytes], object] | None, reader: str = "kafka-python") -> Taken:
    settings = KafkaSettings.model_validate(filled.kafka(reader))
    with closing(Counting(KafkaSource(settings), filled.count)) as source:
        source.begin()
        while not source.ended():
            for batch in source.poll((), 200):
                if work is not None:
                    for value in batch.values:
                        work(value)  # type: ignore[arg-type]
        return Taken(source.seconds, source.cpu_seconds)


def live(filled: Filled, alerts: str, *, watch: bool = False, reader: str = "kafka-python") -> Taken:
    """The whole product: checkpoints on the disk every second, transactions, beats. `reader` is `kafka.reader`.

    With `watch` it also listens to itself and is asked for its metrics every second, as by `run` and a Prometheus.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = Settings.model_validate(
            {
                "kafka": {**filled.kafka(reader), "group_id": f"bench-{uuid.uuid4().hex[:8]}"},
                "alerts": {"topic": alerts},
                "dead_letters": {"sink": "none"},
                "checkpoint": {"path": folder, "interval": "1s"},
                "http": {"port": free_ports(1)[0]},
            }
        )
        around = surroundings(settings, stack)
        source = Counting(cast(KafkaSource, around.source), filled.count)
        listener = stack.enter_context(_watching(settings)) if watch else None
        around = replace(around, source=source)
        summary = run_live(settings=settings, around=around, stop=source.ended, listener=listener)
    if summary.consumed != filled.count or summary.dead_lettered or summary.late:
        raise SystemExit(f"not all records were judged: {summary}")
    return Taken(source.seconds, source.cpu_seconds, summary.counted)


@contextlib.contextmanager
def _watching(settings: Settings) -> Iterator[RunListener]:
    """What `cli.run` puts beside the loop, and somebody who asks for the metrics."""
    vitals, done = RunStatus(settings), threading.Event()

    def scrape() -> None:
        while not done.wait(SCRAPE_SECONDS):
            urllib.request.urlopen(f"http://127.0.0.1:{settings.http.port}/metrics", timeout=5).read()

    thread = threading.Thread(target=scrape)
    with serving(settings.http, vitals), watched(vitals):
        thread.start()
        try:
            yield vitals
        finally:
            done.set()
            thread.join()


def peer_rule(shape: str) -> dict[str, object]:
    """What a peer needs to know of the hunt."""
    rule = RuleSettings()
    return {
        "shape": shape,
        "processes": list(rule.processes),
        "excluded_ports": list(rule.excluded_ports),
        "excluded_networks": rule.networks(),
        "datasets": list(rule.datasets),
    }


def peer(name: str, filled: Filled, how: str) -> Taken:
    """Run a peer in its own environment, on the cores of this process."""
    program = [str(python_with(name)), "-P", str(PEERS / f"{name}.py")]
    command = [*program, filled.bootstrap, filled.topic, str(filled.count), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Taken(told["seconds"], told["cpu_seconds"], told.get("counted"))


def in_rounds(tasks: dict[str, Callable[[], Taken]], rounds: int = ROUNDS) -> dict[str, Taken]:
    """Medians. Tasks take turns, so that a busy neighbour slows all of them alike; all must count the same events."""
    taken: dict[str, list[Taken]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            taken[name].append(task())
    counted = {
        f"{name}: {one.counted:,}"
        for name, several in taken.items()
        for one in several
        if one.counted is not None
    }
    if len({text.rpartition(" ")[2] for text in counted}) > 1:
        raise SystemExit(f"they do not count the same events: {', '.join(sorted(counted))}")
    return {name: Taken.median(several) for name, several in taken.items()}
