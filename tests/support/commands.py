"""Real commands as processes of their own, and records written to and read from a real broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all

from broker import Broker
from tools import environment

WAIT = 60.0
"""Seconds that a test waits for something that should come within a few, on a busy machine too."""


MakeTopic = Callable[..., str]
Waits = Callable[[], bool]


class Message(NamedTuple):
    """What a producer writes, or a consumer finds."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None


class Outcome(NamedTuple):
    """How a process ended and what it wrote."""

    code: int
    out: bytes
    err: str

    def error(self) -> str:
        """The one line of an expected error."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        assert line.startswith("streamdetect: error: "), line
        return line


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "streamdetect", *arguments]


def call(*arguments: str) -> Outcome:
    """Run a command to its end."""
    done = subprocess.run(
        command(*arguments), capture_output=True, check=False, timeout=WAIT, env=environment()
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


class Live:
    """`streamdetect run` while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def wait_for(self, done: Waits) -> None:
        """Until something has happened; an early end of the process or of the time fails with what it said."""
        deadline = time.monotonic() + WAIT
        while not done():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"not within {WAIT:g} s:\n{self._log.read_text()}"
            time.sleep(0.05)

    def stop(self, how: signal.Signals) -> str:
        """Stop by a signal, which must be a clean end; what it said on standard error."""
        self._process.send_signal(how)
        code, said = self._process.wait(WAIT), self._log.read_text()
        assert code == 0, said
        assert " ERROR " not in said
        assert "Traceback" not in said
        return said


@contextmanager
def live(folder: Path, config: str, *arguments: str) -> Iterator[Live]:
    """Start `run`; if the test fails, the process does not outlive it."""
    log = folder / "run.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command("run", "--config", config, *arguments),
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=environment(),
        )
    try:
        yield Live(process, log)
    finally:
        process.kill()
        process.wait()


def written(folder: Path, document: Mapping[str, Any]) -> str:
    """A configuration file."""
    path = folder / "streamdetect.yaml"
    path.write_text(yaml.safe_dump(dict(document)))
    return str(path)


def configured(folder: Path, broker: Broker, *topics: str, **sections: Mapping[str, Any]) -> str:
    """A configuration file for the shared broker, with a group and a checkpoint of its own.

    Partitions are idle after a second, and checkpoints come each second: tests write, then wait.
    """
    group = f"{folder.name}-{uuid.uuid4().hex[:8]}"
    kafka = {"bootstrap_servers": [broker.bootstrap], "topics": [*topics], "group_id": group}
    state = {"path": str(folder / "state"), "interval": "1s"}
    return written(folder, {"kafka": kafka, "time": {"idle_timeout": "1s"}, "checkpoint": state, **sections})


def produce(
    broker: Broker, topic: str, shards: Sequence[Sequence[Message]], compression: str = "none"
) -> None:
    """Write each shard into the partition of its number."""
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "log_level": 0,
            "compression.type": compression,
            # Else records that are sent again, as may happen on a topic just made, come behind later ones.
            "enable.idempotence": True,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for partition, shard in enumerate(shards):
        for message in shard:
            producer.produce(
                topic,
                message.value,
                message.key,
                partition=partition,
                headers=list(message.headers),
                timestamp=message.timestamp_ms or 0,  # 0: now
            )
    assert producer.flush(WAIT) == 0


@contextmanager
def reading(broker: Broker, topic: str) -> Iterator[Callable[[], list[Message]]]:
    """A function that gives what a topic of one partition holds so far."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    where = TopicPartition(topic, 0)
    consumer.assign([where])
    found: list[Message] = []

    def so_far() -> list[Message]:
        found.extend(
            Message(record.value, record.key, tuple(record.headers), record.timestamp)
            for record in consumer.poll(timeout_ms=100).get(where, ())
        )
        return found

    try:
        yield so_far
    finally:
        consumer.close()
