"""From producing the record that lets a tick go to the alert being readable, with a real broker and `streamdetect run`.

Each alert needs a key of its own whose condition has come true in the pane before a tick. Once that is read, the
clock is stopped for one record: the first whose time takes the last partition's watermark past the tick. What
`time.lateness` adds by design is event time, and no part of this. Without load, and with a steady one of records of
which a quarter count under the default rule. Readable is what a consumer with isolation.level read_committed has got.
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
"""Records a second beside."""
PANE_MS, LATENESS_MS = 300_000, 120_000
PROCESS = "beacon.exe"
AT_FIRST = 10
"""Connections of each key half an hour and more before: enough for one an hour on average at the last of the ticks."""
READ_SECONDS = 0.5
"""How long what goes before has to be read; the record that counts comes somewhere after."""
LONGEST_SECONDS = 60.0


def iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def contact(time_ms: int, address: str) -> bytes:
    """A connection of the process that a rule of ours wants."""
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
    """Where events go in and alerts come out."""

    bootstrap: str
    events: str
    alerts: str


class Sender:
    """Records at once, without lingering."""

    def __init__(self, topics: Topics) -> None:
        self._topic = topics.events
        self._producer = Producer({"bootstrap.servers": topics.bootstrap, "linger.ms": 0})

    def send(self, partition: int, value: bytes) -> None:
        self._producer.produce(self._topic, value, partition=partition)

    def flush(self) -> None:
        self._producer.flush()


class Reader:
    """Notes when the alert of each destination could be read."""

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
        """When its `opened` came, in seconds of `perf_counter`."""
        until = time.perf_counter() + LONGEST_SECONDS
        while time.perf_counter() < until:
            message = self._consumer.poll(0.05)
            now = time.perf_counter()
            value = None if message is None or message.error() else message.value()
            if value is None:
                continue
            alert = json.loads(value)
            if alert["event"]["action"] == "opened" and alert["destination"]["address"] == address:
                return now
        raise SystemExit(f"no alert for {address} in {LONGEST_SECONDS:g} s")

    def close(self) -> None:
        self._consumer.close()


class Load(threading.Thread):
    """So many records a second in all partitions, all of the time that `now_ms` says."""

    def __init__(self, sender: Sender, a_second: int, now_ms: int) -> None:
        super().__init__(daemon=True)
        self._sender, self._a_second = sender, a_second
        self._bodies = [raw[raw.index(b",") :] for raw in records(20_000, "defend")] if a_second else []
        self.now_ms = now_ms
        self.done = threading.Event()
        self.sent = 0

    def run(self) -> None:
        begun = time.perf_counter()
        while self._a_second and not self.done.wait(0.01):
            head = f'{{"@timestamp":"{iso(self.now_ms)}"'.encode()
            while self.sent < (time.perf_counter() - begun) * self._a_second:
                body = self._bodies[self.sent % len(self._bodies)]
                self._sender.send(self.sent % PARTITIONS, head + body)
                self.sent += 1
            self._sender.flush()


@contextmanager
def running(topics: Topics, folder: Path) -> Iterator[None]:
    """The command, with the hunt and a rule that one more connection after half an hour fulfils."""
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
            raise SystemExit(f"streamdetect run ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait(60)


def delays(broker: Broker, a_second: int) -> list[float]:
    """Seconds of each alert; the first, which waits for the start, is left out."""
    topics = Topics(broker.bootstrap, broker.make_topic(partitions=PARTITIONS), broker.make_topic())
    base_ms = (time.time_ns() // 1_000_000 - 8 * HOUR_MS) // PANE_MS * PANE_MS
    tick_ms = base_ms + 45 * 60_000
    addresses = [f"45.9.1.{number}" for number in range(ALERTS + 1)]
    taken = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(running(topics, folder))
        sender, reader = Sender(topics), Reader(topics)
        stack.callback(reader.close)
        for address in addresses * AT_FIRST:
            sender.send(0, contact(base_ms, address))
        load = Load(sender, a_second, tick_ms - PANE_MS + LATENESS_MS)
        load.start()
        stack.callback(load.done.set)
        for number, address in enumerate(addresses):
            load.now_ms = (
                tick_ms - PANE_MS + LATENESS_MS
            )  # the last tick's trigger: neither late nor a trigger
            sender.send(0, contact(tick_ms - 1, address))
            for partition in range(1, PARTITIONS):
                sender.send(partition, contact(tick_ms + LATENESS_MS, "45.9.2.1"))
            sender.flush()
            time.sleep(READ_SECONDS + number % 10 / 20)
            begun = time.perf_counter()
            sender.send(0, contact(tick_ms + LATENESS_MS, "45.9.2.1"))
            taken.append(reader.wait_for(address) - begun)
            sender.flush()
            tick_ms += PANE_MS
    return taken[1:]


def main() -> None:
    with Broker() as broker:
        found = {a_second: delays(broker, a_second) for a_second in LOADS}
    table(
        f"seconds from a tick's last record to its alert, {ALERTS} alerts each, {PARTITIONS} partitions",
        ("records/s beside", "median s", "95 %", "longest s", "shortest s"),
        [
            (
                f"{a_second:,}",
                f"{median(seconds):.3f}",
                f"{sorted(seconds)[int(len(seconds) * 0.95)]:.3f}",
                f"{max(seconds):.3f}",
                f"{min(seconds):.3f}",
            )
            for a_second, seconds in found.items()
        ],
    )


if __name__ == "__main__":
    main()
