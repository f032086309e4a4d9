"""Delay from producing the record that triggers a tick until its alert is readable.

With a real broker and `streamdetect run`. Each alert needs a key of its own, whose condition becomes true in the pane
before a tick. Once its records are read, one more record is measured: the first whose time moves the watermark of the
last partition past the tick. The wait caused by `time.lateness` is event time and not included. Measured without load,
and under a constant load of records, a quarter of which count for the default rule. An alert is readable when a
consumer with isolation.level read_committed has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import yaml
from common import HOUR_MS, ROOT, records, table
from confluent_kafka import Consumer, Producer, TopicPartition

from broker import Broker, free_ports

ALERTS = 30
PARTITIONS = 3
LOADS = (0, 2_000)
"""Records a second of the load."""
PANE_MS, LATENESS_MS = 300_000, 120_000
PROCESS = "beacon.exe"
EARLIER_CONNECTIONS = 10
"""Connections of each key at least half an hour before its tick: enough for one an hour even at the last tick."""
READ_SECONDS = 0.5
"""Time for `run` to read the records before the measured one, which follows after this and a varying delay."""
TIMEOUT_SECONDS = 60.0


def iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def connection(time_ms: int, address: str) -> bytes:
    """A connection of the process in the additional rule."""
    document = {
        "@timestamp": iso(time_ms),
        "data_stream": {"dataset": "endpoint.events.network"},
        "event": {"category": ["network"]},
        "host": {"id": "host-1", "name": "GOT-WS-0001", "os": {"family": "windows"}},
        "process": {"name": PROCESS, "entity_id": "process-1", "pid": 4711},
        "destination": {"address": address, "ip": address, "port": 443},
        "network": {"direction": "egress"},
    }
    return json.dumps(document).encode()


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of events and alerts."""

    bootstrap: str
    events: str
    alerts: str


class Sender:
    """Sends records immediately (linger.ms 0)."""

    def __init__(self, topics: Topics) -> None:
        self._topic = topics.events
        self._producer = Producer({"bootstrap.servers": topics.bootstrap, "linger.ms": 0})

    def send(self, partition: int, value: bytes) -> None:
        self._producer.produce(self._topic, value, partition=partition)

    def flush(self) -> None:
        self._producer.flush()


class AlertConsumer:
    """Waits until the alert of a destination is readable."""

    def __init__(self, topics: Topics) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": topics.bootstrap,
                "group.id": "bench-delay",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.assign([TopicPartition(topics.alerts, 0, 0)])

    def wait_for(self, address: str) -> float:
        """The time at which its `opened` alert was read, in seconds of `perf_counter`. Raises SystemExit on timeout."""
        until = time.perf_counter() + TIMEOUT_SECONDS
        while time.perf_counter() < until:
            message = self._consumer.poll(0.05)
            now = time.perf_counter()
            value = None if message is None or message.error() else message.value()
            if value is None:
                continue
            alert = json.loads(value)
            if alert["event"]["action"] == "opened" and alert["destination"]["address"] == address:
                return now
        raise SystemExit(f"no alert for {address} in {TIMEOUT_SECONDS:g} s")

    def close(self) -> None:
        self._consumer.close()


class Load(threading.Thread):
    """Sends records at a constant rate to all partitions; all have the event time `now_ms`."""

    def __init__(self, sender: Sender, per_second: int, now_ms: int) -> None:
        super().__init__(daemon=True)
        self._sender, self._per_second = sender, per_second
        self._bodies = [raw[raw.index(b",") :] for raw in records(20_000, "defend")] if per_second else []
        self.now_ms = now_ms
        self.done = threading.Event()
        self.sent = 0

    def run(self) -> None:
        started = time.perf_counter()
        while self._per_second and not self.done.wait(0.01):
            head = f'{{"@timestamp":"{iso(self.now_ms)}"'.encode()
            while self.sent < (time.perf_counter() - started) * self._per_second:
                body = self._bodies[self.sent % len(self._bodies)]
                self._sender.send(self.sent % PARTITIONS, head + body)
                self.sent += 1
            self._sender.flush()


@contextmanager
def running(topics: Topics, folder: Path) -> Iterator[None]:
    """`streamdetect run` with the default rule and one that a single connection after half an hour satisfies."""
    rule = {"min_connections_per_hour": 1, "min_duration_hours": 1}
    settings = {
        "kafka": {"bootstrap_servers": [topics.bootstrap], "topics": [topics.events], "start": "earliest"},
        "rules": [{}, {"id": "quick", "name": "quick", "processes": [PROCESS], **rule}],
        "alerts": {"topic": topics.alerts},
        "dead_letters": {"sink": "none"},
        "checkpoint": {"path": str(folder / "state")},
        "http": {"port": free_ports(1)[0]},
        "log": {"level": "warning"},
    }
    path = folder / "streamdetect.yaml"
    path.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "streamdetect", "--quiet", "run", "--config", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield
        if process.poll() is not None:
            raise SystemExit(f"streamdetect run exited with {process.returncode}")
    finally:
        process.terminate()
        process.wait(60)


def delays(broker: Broker, per_second: int) -> list[float]:
    """Seconds for each alert, without the first, which waits for the start of `run`."""
    topics = Topics(broker.bootstrap, broker.make_topic(partitions=PARTITIONS), broker.make_topic())
    base_ms = (time.time_ns() // 1_000_000 - 8 * HOUR_MS) // PANE_MS * PANE_MS
    tick_ms = base_ms + 45 * 60_000
    addresses = [f"45.9.1.{number}" for number in range(ALERTS + 1)]
    seconds = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(running(topics, folder))
        sender, alerts = Sender(topics), AlertConsumer(topics)
        stack.callback(alerts.close)
        for address in addresses * EARLIER_CONNECTIONS:
            sender.send(0, connection(base_ms, address))
        load = Load(sender, per_second, tick_ms - PANE_MS + LATENESS_MS)
        load.start()
        stack.callback(load.done.set)
        for number, address in enumerate(addresses):
            # The time that triggered the last tick: not late, and triggers nothing.
            load.now_ms = tick_ms - PANE_MS + LATENESS_MS
            sender.send(0, connection(tick_ms - 1, address))
            for partition in range(1, PARTITIONS):
                sender.send(partition, connection(tick_ms + LATENESS_MS, "45.9.2.1"))
            sender.flush()
            time.sleep(READ_SECONDS + number % 10 / 20)
            sent = time.perf_counter()
            sender.send(0, connection(tick_ms + LATENESS_MS, "45.9.2.1"))
            seconds.append(alerts.wait_for(address) - sent)
            sender.flush()
            tick_ms += PANE_MS
    return seconds[1:]


def main() -> None:
    with Broker() as broker:
        measured = {per_second: delays(broker, per_second) for per_second in LOADS}
    table(
        f"seconds from the record that triggers a tick to its alert, {ALERTS} alerts each, {PARTITIONS} partitions",
        ("load, records/s", "median s", "95 %", "longest s", "shortest s"),
        [
            (
                f"{per_second:,}",
                f"{median(seconds):.3f}",
                f"{sorted(seconds)[int(len(seconds) * 0.95)]:.3f}",
                f"{max(seconds):.3f}",
                f"{min(seconds):.3f}",
            )
            for per_second, seconds in measured.items()
        ],
    )


if __name__ == "__main__":
    main()
