"""Run real commands in child processes; write records to and read them from a real broker."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from program import command

from broker import Broker
from tools import environment

WAIT = 60.0
"""Upper limit in seconds for waits that should take a few, also on a busy machine."""


MakeTopic = Callable[..., str]
StopCondition = Callable[[], bool]


class Message(NamedTuple):
    """A record to produce, or one that was consumed."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None


class Outcome(NamedTuple):
    """Exit code and output of a process."""

    code: int
    out: bytes
    err: str

    def error(self) -> str:
        """The single line of an expected error."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        assert line.startswith("streamdetect: error: "), line
        return line


def call(*arguments: str) -> Outcome:
    """Run a command to its end."""
    done = subprocess.run(
        command(*arguments), capture_output=True, check=False, timeout=WAIT, env=environment()
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


class Live:
    """A running `streamdetect run`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def wait_for(self, done: StopCondition) -> None:
        """Wait until `done()`; fails with the log if the process exits or the time is up."""
        deadline = time.monotonic() + WAIT
        while not done():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"not within {WAIT:g} s:\n{self._log.read_text()}"
            time.sleep(0.05)

    def stop(self, stop_signal: signal.Signals) -> str:
        """Stop by a signal, which must give exit code 0 and no error; returns the log."""
        self._process.send_signal(stop_signal)
        code, log = self._process.wait(WAIT), self._log.read_text()
        assert code == 0, log
        assert " ERROR " not in log
        assert "Traceback" not in log
        return log


@contextmanager
def live(folder: Path, config: str, *arguments: str) -> Iterator[Live]:
    """Start `run`; kill it at the end of the block."""
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


def write_config(folder: Path, document: Mapping[str, Any]) -> str:
    """Write a configuration file; returns its path."""
    path = folder / "streamdetect.yaml"
    path.write_text(yaml.safe_dump(dict(document)))
    return str(path)


def write_run_config(folder: Path, broker: Broker, *topics: str, **sections: Mapping[str, Any]) -> str:
    """Write a configuration file for the shared broker, with its own consumer group and checkpoint.

    Partitions become idle after 1 s and checkpoints are taken every second, because tests write and then wait.
    """
    group = f"{folder.name}-{uuid.uuid4().hex[:8]}"
    kafka = {"bootstrap_servers": [broker.bootstrap], "topics": [*topics], "group_id": group}
    state = {"path": str(folder / "state"), "interval": "1s"}
    return write_config(
        folder, {"kafka": kafka, "time": {"idle_timeout": "1s"}, "checkpoint": state, **sections}
    )


def produce(
    broker: Broker, topic: str, shards: Sequence[Sequence[Message]], compression: str = "none"
) -> None:
    """Write each shard into the partition with its index."""
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "log_level": 0,
            "compression.type": compression,
            # Otherwise retried records, possible on a new topic, would arrive after later ones.
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
def reading_topic(broker: Broker, topic: str) -> Iterator[Callable[[], list[Message]]]:
    """A function that returns what a topic with one partition contains so far."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    found: list[Message] = []

    def messages_so_far() -> list[Message]:
        found.extend(
            Message(record.value, record.key, tuple(record.headers), record.timestamp)
            for record in consumer.poll(timeout_ms=100).get(partition, ())
        )
        return found

    try:
        yield messages_so_far
    finally:
        consumer.close()
