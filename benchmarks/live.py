"""Shared by the benchmarks of live runs: a topic full of records, and its consumers."""

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
from streamdetect.cli.run import open_dependencies
from streamdetect.config import KafkaSettings, RuleSettings, Settings
from streamdetect.model import Batch, Partition
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.loop import run_live
from streamdetect.service.status.http import status_server
from streamdetect.service.status.stalls import stall_monitor
from streamdetect.service.status.state import RunStatus
from streamdetect.sources.kafka_live import KafkaSource

HOSTS = 300
STALLED_SECONDS = 20
PEER_SECONDS = 180
SCRAPE_SECONDS = 1.0
"""Far more often than Prometheus scrapes, so that a short run has several scrapes."""


@dataclass(frozen=True)
class FilledTopic:
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
class Measurement:
    """Time of one run from the first poll to the last record, and how many events counted."""

    seconds: float
    cpu_seconds: float
    counted: int | None = None

    @classmethod
    def median(cls, several: list[Measurement]) -> Measurement:
        wall, cpu = (median(getattr(one, name) for one in several) for name in ("seconds", "cpu_seconds"))
        return cls(wall, cpu, several[0].counted)


class MeasuredSource:
    """A source that counts its records, and measures from the first poll until all records are read.

    So neither connecting nor the work after the last record is included.
    """

    def __init__(self, inner: KafkaSource, count: int) -> None:
        self._inner = inner
        self._expected = count
        self.count = 0
        self.seconds = self.cpu_seconds = 0.0
        self._started: tuple[float, float] | None = None
        self._last_batch = time.monotonic()
        self.partitions, self.at_end, self.close = inner.partitions, inner.at_end, inner.close
        self.begin, self.positions, self.topic_ids = inner.begin, inner.positions, inner.topic_ids
        self.bounds, self.lags = inner.bounds, inner.lags

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        if self._started is None:
            self._started = time.perf_counter(), time.process_time()
        batches = self._inner.poll(hold, timeout_ms)
        self.count += sum(map(len, batches))
        self._last_batch = time.monotonic() if batches else self._last_batch
        if time.monotonic() - self._last_batch > STALLED_SECONDS:
            raise SystemExit(
                f"stalled after {self.count:,} of {self._expected:,} records; held partitions: {sorted(hold)}"
            )
        return batches

    def ended(self) -> bool:
        """Whether all records are read; called after each turn."""
        if self.count < self._expected or self._started is None:
            return False
        if not self.seconds:
            self.seconds = time.perf_counter() - self._started[0]
            self.cpu_seconds = time.process_time() - self._started[1]
        return True


def fill_topic(broker: Broker, shape: str, count: int, partitions: int) -> FilledTopic:
    """A new topic with synthetic data that starts twenty hours ago, partitioned by host."""
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
    return FilledTopic(broker.bootstrap, topic, shape, count, size_bytes, partitions)


def _host(raw: bytes) -> str:
    document = json.loads(raw)
    return str(document.get("winlog", {}).get("computer_name") or document["host"]["id"])


def pin_broker(broker: Broker, cores: set[int]) -> None:
    """Pin every thread of the broker, and those they start from now on."""
    assert broker._process is not None  # noqa: SLF001
    for thread in Path(f"/proc/{broker._process.pid}/task").iterdir():  # noqa: SLF001
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def only_poll(
    topic: FilledTopic, work: Callable[[bytes], object] | None, reader: str = "kafka-python"
) -> Measurement:
    settings = KafkaSettings.model_validate(topic.kafka(reader))
    with closing(MeasuredSource(KafkaSource(settings), topic.count)) as source:
        source.begin()
        while not source.ended():
            for batch in source.poll((), 200):
                if work is not None:
                    for value in batch.values:
                        work(value)  # type: ignore[arg-type]
        return Measurement(source.seconds, source.cpu_seconds)


def live(
    topic: FilledTopic, alerts: str, *, monitored: bool = False, reader: str = "kafka-python"
) -> Measurement:
    """A complete live run: checkpoints on disk every second, transactions, heartbeats. `reader` is `kafka.reader`.

    `monitored`: with run status, stall monitor and HTTP server as in `run`, and a scrape every second.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = Settings.model_validate(
            {
                "kafka": {**topic.kafka(reader), "group_id": f"bench-{uuid.uuid4().hex[:8]}"},
                "alerts": {"topic": alerts},
                "dead_letters": {"sink": "none"},
                "checkpoint": {"path": folder, "interval": "1s"},
                "http": {"port": free_ports(1)[0]},
            }
        )
        dependencies = open_dependencies(settings, stack)
        source = MeasuredSource(cast(KafkaSource, dependencies.source), topic.count)
        listener = stack.enter_context(_monitored(settings)) if monitored else None
        dependencies = replace(dependencies, source=source)
        summary = run_live(settings=settings, dependencies=dependencies, stop=source.ended, listener=listener)
    if summary.consumed != topic.count or summary.dead_lettered or summary.late:
        raise SystemExit(f"not all records were counted or filtered: {summary}")
    return Measurement(source.seconds, source.cpu_seconds, summary.counted)


@contextlib.contextmanager
def _monitored(settings: Settings) -> Iterator[RunListener]:
    """The listeners that `cli.run` uses, and a thread that scrapes the metrics."""
    status, done = RunStatus(settings), threading.Event()

    def scrape() -> None:
        while not done.wait(SCRAPE_SECONDS):
            urllib.request.urlopen(f"http://127.0.0.1:{settings.http.port}/metrics", timeout=5).read()

    thread = threading.Thread(target=scrape)
    with status_server(settings.http, status), stall_monitor(status):
        thread.start()
        try:
            yield status
        finally:
            done.set()
            thread.join()


def peer_rule(shape: str) -> dict[str, object]:
    """The rule, in the form that peers take."""
    rule = RuleSettings()
    return {
        "shape": shape,
        "processes": list(rule.processes),
        "excluded_ports": list(rule.excluded_ports),
        "excluded_networks": rule.networks(),
        "datasets": list(rule.datasets),
    }


def peer(name: str, topic: FilledTopic, mode_or_rule: str) -> Measurement:
    """Run a peer in its own environment, on the cores of this process."""
    program = [str(python_with(name)), "-P", str(PEERS / f"{name}.py")]
    command = [*program, topic.bootstrap, topic.topic, str(topic.count), mode_or_rule]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"{name} exited with {done.returncode}:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    return Measurement(result["seconds"], result["cpu_seconds"], result.get("counted"))


def measure_in_turns(
    tasks: dict[str, Callable[[], Measurement]], rounds: int = ROUNDS
) -> dict[str, Measurement]:
    """The median of each task. Tasks run in turn, so that other load on the machine affects all of them alike.

    Raises SystemExit unless all count the same events.
    """
    results: dict[str, list[Measurement]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            results[name].append(task())
    counted = {
        f"{name}: {one.counted:,}"
        for name, several in results.items()
        for one in several
        if one.counted is not None
    }
    if len({text.rpartition(" ")[2] for text in counted}) > 1:
        raise SystemExit(f"tasks do not count the same events: {', '.join(sorted(counted))}")
    return {name: Measurement.median(several) for name, several in results.items()}
