"""Runs `streamdetect run` in processes that are killed repeatedly, and compares the results with an undisturbed run.

Used by `scripts/run_chaos.py` (`make chaos`) and tests/end_to_end. A sandbox has its own topics and consumer group;
records are written slice by slice, as in live operation. Results are the alerts and dead letters, read committed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from broker import Broker
from streamdetect.config import KafkaSettings
from streamdetect.events import Decoder, Event
from streamdetect.model import Partition, Record
from streamdetect.sources.kafka_range import KafkaRange
from streamdetect.synthetic import Beacon, Scenario, lines
from tools import environment

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
LATENESS_MS = 120_000
WAIT_SECONDS = 120.0
PARTITIONS = 3

Shards = list[list[tuple[bytes, int]]]
"""Records (value, timestamp in ms) by partition."""


def synthetic_shards(seed: int, hours: int = 8, hosts: int = 12) -> Shards:
    """Synthetic data with two beacons and 1 % records that are no events. A late event ends each partition."""
    beacons = (Beacon(20_000, 4_000), Beacon(25_000, 2_000))
    plan = Scenario(hosts=hosts, hours=hours, start_ms=START_MS, beacons=beacons, shape="mixed", seed=seed)
    decoder, rng, newest_ms = Decoder("resilient", 1 << 20), Random(seed), START_MS
    shards: Shards = [[] for _ in range(PARTITIONS)]
    for line in lines(plan):
        event = decoder.decode(line)
        assert isinstance(event, Event)
        newest_ms = max(newest_ms, event.time_ms)
        rng.choice(shards).append((line.rstrip(b"\n"), event.time_ms))
        if rng.random() < 0.01:
            rng.choice(shards).append((b"no event %d" % rng.getrandbits(64), event.time_ms))
    # Moves each partition's watermark past all earlier ticks. No rule counts it, and it is no suspect leap.
    end_ms = newest_ms + 2 * LATENESS_MS
    last_event = json.dumps({"@timestamp": end_ms, "process": {"name": "idle.exe"}}).encode()
    for shard in shards:
        shard.append((last_event, end_ms))
    return shards


def slices(shards: Shards, count: int) -> list[Shards]:
    """Split the records by time into `count` pieces, in unchanged order: a late one stays behind those before it."""
    times = [at for shard in shards for _, at in shard]
    first, last = min(times), max(times)
    pieces: list[Shards] = [[[] for _ in shards] for _ in range(count)]
    for number, shard in enumerate(shards):
        newest = first
        for value, at in shard:
            newest = max(newest, at)
            pieces[(newest - first) * count // (last - first + 1)][number].append((value, at))
    return pieces


@dataclass
class Results:
    """The outputs: alerts in order, and sorted dead letters (partition, offset, reason, and value from Kafka)."""

    alerts: list[bytes]
    dead_letters: list[tuple[str, ...]]

    def difference(self, other: Results) -> str:
        """Describes the difference; empty if there is none."""
        if self == other:
            return ""
        ids = [json.loads(body)["event"]["id"] for body in self.alerts]
        wanted = [json.loads(body)["event"]["id"] for body in other.alerts]
        lost, unexpected = len(set(wanted) - set(ids)), len(set(ids) - set(wanted))
        duplicates = len(ids) - len(set(ids))
        extra = set(self.dead_letters) - set(other.dead_letters)
        missing = set(other.dead_letters) - set(self.dead_letters)
        return (
            f"alerts: {len(ids)}, expected {len(wanted)}, lost {lost}, duplicates {duplicates}, "
            f"unexpected {unexpected}; "
            f"dead letters: {len(self.dead_letters)}, expected {len(other.dead_letters)}, "
            f"unexpected {sorted(extra)}, missing {sorted(missing)}"
        )


@dataclass
class Sandbox:
    """Topics, a consumer group and a folder for one run; `alerts` and `dead_letters` name their sink."""

    broker: Broker
    folder: Path
    alerts: str = "kafka"
    dead_letters: str = "kafka"
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"chaos-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.topic = self.broker.make_topic(f"{self.name}-in", partitions=PARTITIONS, retention_ms="-1")
        self.alert_topic = self.broker.make_topic(f"{self.name}-alerts", retention_ms="-1")
        self.dead_letter_topic = self.broker.make_topic(f"{self.name}-letters", retention_ms="-1")
        self.config = self._configured("state")
        self.written = 0

    def _configured(self, state: str) -> str:
        document = {
            "kafka": {
                "bootstrap_servers": [self.broker.bootstrap],
                "topics": [self.topic],
                "group_id": self.name,
                "takeover_after": "6s",
            },
            "rules": [{"renotify": "10m"}],
            "alerts": {"sink": self.alerts, "topic": self.alert_topic, "path": str(self.folder / "alerts")},
            "dead_letters": {
                "sink": self.dead_letters,
                "topic": self.dead_letter_topic,
                "path": str(self.folder / "letters"),
            },
            "checkpoint": {"path": str(self.folder / state), "interval": "1s"},
            # Events of an idle partition may count from a later tick: only this depends on the wall clock.
            "time": {"idle_timeout": "1d"},
            **self.more,
        }
        path = self.folder / f"{state}.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    def other_directory(self) -> str:
        """A configuration that differs only in the checkpoint directory."""
        return self._configured("other-state")

    def write(self, piece: Shards) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.broker.bootstrap,
                # It may outlive a broker; its messages on stderr would be taken for those of a later test.
                "log_level": 0,
                "enable.idempotence": True,
                "message.max.bytes": 8_000_000,
            }
        )
        for partition, shard in enumerate(piece):
            for value, at in shard:
                producer.produce(self.topic, value, partition=partition, timestamp=at)
                producer.poll(0)
            self.written += len(shard)
        assert producer.flush(WAIT_SECONDS) == 0

    def results(self) -> Results:
        alerts = (
            [record.value or b"" for record in committed(self.broker, self.alert_topic)]
            if self.alerts == "kafka"
            else (self.folder / "alerts").read_bytes().splitlines()
        )
        dead_letters = (
            [_origin(record) for record in committed(self.broker, self.dead_letter_topic)]
            if self.dead_letters == "kafka"
            else [_origin_of_line(line) for line in (self.folder / "letters").read_bytes().splitlines()]
        )
        return Results(alerts, sorted(dead_letters))


def _origin(record: Record) -> tuple[str, ...]:
    fields = {name: value.decode() for name, value in record.headers}
    names = ("origin-partition", "origin-offset", "reason")
    return (*(fields[f"streamdetect.{name}"] for name in names), repr(record.value))


def _origin_of_line(line: bytes) -> tuple[str, ...]:
    fields = json.loads(line)
    return tuple(
        str(fields[f"streamdetect.{name}"]) for name in ("origin-partition", "origin-offset", "reason")
    )


def committed(broker: Broker, topic: str) -> list[Record]:
    """Every committed record of a topic."""
    settings = KafkaSettings.model_validate({"bootstrap_servers": [broker.bootstrap]})
    source = KafkaRange(settings, [topic])
    found: list[Record] = []
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        while len(source.at_end()) < len(source.partitions()):
            assert time.monotonic() < deadline, f"{topic} was not read to its end in time"
            for batch in source.poll((), 200):
                found += [batch.record(index) for index in range(len(batch))]
    finally:
        source.close()
    return found


class RunProcess:
    """`streamdetect run` in a process, with its log in a file."""

    def __init__(
        self,
        sandbox: Sandbox,
        *arguments: str,
        config: str | None = None,
        driver: Sequence[str] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        """`driver` is a script to run instead of the command; `before` runs in the child process before it."""
        self._sandbox = sandbox
        self.log = sandbox.folder / f"run-{uuid.uuid4().hex[:6]}.log"
        config = config or sandbox.config
        command = ["-m", "streamdetect", "run", "--config", config, *arguments]
        program = [*driver, config] if driver else command
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env=environment(),
                preexec_fn=before,  # noqa: PLW1509 - the test has no threads
            )

    def output(self) -> str:
        return self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL and wait for the exit."""
        self.process.kill()
        self.process.wait()

    def wait_for_exit(self, expected: int = 0, seconds: float = WAIT_SECONDS) -> str:
        """Wait for the exit and check its code. Returns the log."""
        code = self.process.wait(seconds)
        output = self.output()
        assert code == expected, f"exit code {code}:\n{output}"
        assert "Traceback" not in output, output
        return output

    def wait_for_log(self, text: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the log contains a text."""
        deadline = time.monotonic() + seconds
        while text not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"not logged: {text!r}:\n{self.output()}"
            time.sleep(0.05)

    def skip_if_the_broker_failed(self) -> None:
        """Kafka 4.4.0 can lose the markers of a committed transaction when it is killed; then all reads stall."""
        if "kafka-transactions.sh find-hanging" in self.output():
            self.kill()
            pytest.skip("the broker has lost the markers of a committed transaction")

    def wait_until_caught_up(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the committed positions of the group are at the end of every partition."""
        deadline = time.monotonic() + seconds
        while positions(self._sandbox) < self._sandbox.written:
            self.skip_if_the_broker_failed()
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"not caught up in {seconds:g} s:\n{self.output()}"
            time.sleep(0.1)

    def finish(self) -> str:
        """Wait until it has read everything, then stop it with SIGTERM. Returns the log."""
        self.wait_for_log("reading ")
        self.wait_until_caught_up()
        self.signal(signal.SIGTERM)
        return self.wait_for_exit()


def positions(sandbox: Sandbox) -> int:
    """How many records are before the committed positions, over all partitions."""
    from streamdetect.broker.groups import ConsumerGroupOffsets  # noqa: PLC0415

    partitions = [Partition(sandbox.topic, number) for number in range(PARTITIONS)]
    settings = KafkaSettings.model_validate(
        {"bootstrap_servers": [sandbox.broker.bootstrap], "group_id": sandbox.name}
    )
    group = ConsumerGroupOffsets(settings, stable=False)
    try:
        return sum(position.offset for position in group.read(partitions, timeout_ms=10_000).values())
    finally:
        group.close()


@contextmanager
def running(sandbox: Sandbox, *arguments: str, config: str | None = None) -> Iterator[RunProcess]:
    """A process that is killed at the end of the block."""
    process = RunProcess(sandbox, *arguments, config=config)
    try:
        yield process
    finally:
        process.kill()


def undisturbed(sandbox: Sandbox, shards: Shards) -> Results:
    """The results of a run without interruption."""
    sandbox.write(shards)
    with running(sandbox) as process:
        process.finish()
    return sandbox.results()


def run_with_random_kills(
    sandbox: Sandbox, shards: Shards, kills: int, rng: Random, on_kill: Any = None
) -> Results:
    """Kill `kills` processes at random moments, each with another slice of the records; then run one to the end."""
    for number, piece in enumerate(slices(shards, kills)):
        sandbox.write(piece)
        with running(sandbox) as process:
            # From the first import until some time after the slice is read.
            seconds = rng.choice([rng.uniform(0.0, 1.5), rng.uniform(1.0, 2.0), rng.uniform(1.5, 4.0)])
            try:
                code = process.process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
            else:
                raise AssertionError(f"exited without a kill, code {code}:\n{process.output()}")
            if on_kill is not None:
                on_kill(number + 1, seconds)
    with running(sandbox) as process:
        process.finish()
    return sandbox.results()
