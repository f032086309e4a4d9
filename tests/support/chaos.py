"""Real processes that are killed, again and again, and what must come out of them.

`scripts/run_chaos.py` (`make chaos`) and tests/test_chaos.py run it. A stage is a broker, topics and a group of
their own; records come slice by slice, as live ones do; what the alert and dead-letter topics hold in the end, read
committed, is compared with a run that nobody disturbed.
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


def made_up(seed: int, hours: int = 8, hosts: int = 12) -> Shards:
    """A mixed estate with two beacons; every hundredth record is no event, and a mover of time ends each partition."""
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
    # Moves each partition's watermark past every tick before it, counts for nothing, and is within the believable jump.
    end_ms = newest_ms + 2 * LATENESS_MS
    mover = json.dumps({"@timestamp": end_ms, "process": {"name": "idle.exe"}}).encode()
    for shard in shards:
        shard.append((mover, end_ms))
    return shards


def slices(shards: Shards, count: int) -> list[Shards]:
    """The records in `count` pieces by time; a late one comes with those before it, so that no order changes."""
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
    """What came out: alerts in order, where dead letters came from in any order."""

    alerts: list[bytes]
    dead_letters: list[tuple[str, ...]]

    def difference(self, other: Results) -> str:
        """Empty if they are the same bytes."""
        if self == other:
            return ""
        ids = [json.loads(body)["event"]["id"] for body in self.alerts]
        wanted = [json.loads(body)["event"]["id"] for body in other.alerts]
        lost, others = len(set(wanted) - set(ids)), len(set(ids) - set(wanted))
        doubled = len(ids) - len(set(ids))
        more = set(self.dead_letters) - set(other.dead_letters)
        less = set(other.dead_letters) - set(self.dead_letters)
        return (
            f"alerts: {len(ids)}, expected {len(wanted)}, lost {lost}, doubled {doubled}, others {others}; "
            f"dead letters: {len(self.dead_letters)}, expected {len(other.dead_letters)}, "
            f"too many {sorted(more)}, missing {sorted(less)}"
        )


@dataclass
class Stage:
    """Topics, a group and a folder for one run; `alerts` and `dead_letters` say which sink each goes to."""

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
            # Events of a partition that was idle may count from a later tick: the one thing that depends on time.
            "time": {"idle_timeout": "1d"},
            **self.more,
        }
        path = self.folder / f"{state}.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    def other_directory(self) -> str:
        """A configuration that differs in the checkpoint directory only."""
        return self._configured("other-state")

    def write(self, piece: Shards) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.broker.bootstrap,
                # It may outlive a broker, and what it says on stderr would be taken for what a later test says.
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
    told = {name: value.decode() for name, value in record.headers}
    names = ("origin-partition", "origin-offset", "reason")
    return (*(told[f"streamdetect.{name}"] for name in names), repr(record.value))


def _origin_of_line(line: bytes) -> tuple[str, ...]:
    told = json.loads(line)
    return tuple(
        str(told[f"streamdetect.{name}"]) for name in ("origin-partition", "origin-offset", "reason")
    )


def committed(broker: Broker, topic: str) -> list[Record]:
    """All committed records of a topic."""
    settings = KafkaSettings.model_validate({"bootstrap_servers": [broker.bootstrap]})
    source = KafkaRange(settings, [topic])
    found: list[Record] = []
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        while len(source.at_end()) < len(source.partitions()):
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
            for batch in source.poll((), 200):
                found += [batch.record(index) for index in range(len(batch))]
    finally:
        source.close()
    return found


class Process:
    """A `run` in a process of its own, with its log in a file."""

    def __init__(
        self,
        stage: Stage,
        *arguments: str,
        config: str | None = None,
        driver: Sequence[str] = (),
        before: Callable[[], None] | None = None,
    ) -> None:
        """`driver` is a script to run in place of the command; `before` runs in the child before it."""
        self._stage = stage
        self.log = stage.folder / f"run-{uuid.uuid4().hex[:6]}.log"
        config = config or stage.config
        command = ["-m", "streamdetect", "run", "--config", config, *arguments]
        program = [*driver, config] if driver else command
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env=environment(),
                preexec_fn=before,  # noqa: PLW1509 - the child of a test that has no threads of its own
            )

    def said(self) -> str:
        return self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.process.kill()
        self.process.wait()

    def end(self, expected: int = 0, seconds: float = WAIT_SECONDS) -> str:
        """Wait for the end; what it said."""
        code = self.process.wait(seconds)
        said = self.said()
        assert code == expected, f"exit code {code}:\n{said}"
        assert "Traceback" not in said, said
        return said

    def wait_for(self, text: str, seconds: float = WAIT_SECONDS) -> None:
        """Until the log holds a text."""
        deadline = time.monotonic() + seconds
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.said()}"
            time.sleep(0.05)

    def skip_if_the_broker_failed(self) -> None:
        """Kafka 4.4.0 can lose the markers of a committed transaction when it is killed; then nothing can go on."""
        if "kafka-transactions.sh find-hanging" in self.said():
            self.kill()
            pytest.skip("the broker has lost the markers of a committed transaction")

    def until_done(self, seconds: float = WAIT_SECONDS) -> None:
        """Until the group's committed positions are at the end of every partition."""
        deadline = time.monotonic() + seconds
        while positions(self._stage) < self._stage.written:
            self.skip_if_the_broker_failed()
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"not done in {seconds:g} s:\n{self.said()}"
            time.sleep(0.1)

    def finish(self) -> str:
        """Let it read everything and stop it in order; what it said."""
        self.wait_for("reading ")
        self.until_done()
        self.signal(signal.SIGTERM)
        return self.end()


def positions(stage: Stage) -> int:
    """Records before the committed positions, over all partitions."""
    from streamdetect.broker.groups import ConsumerGroupOffsets  # noqa: PLC0415

    asked = [Partition(stage.topic, number) for number in range(PARTITIONS)]
    settings = KafkaSettings.model_validate(
        {"bootstrap_servers": [stage.broker.bootstrap], "group_id": stage.name}
    )
    group = ConsumerGroupOffsets(settings, stable=False)
    try:
        return sum(position.offset for position in group.read(asked, timeout_ms=10_000).values())
    finally:
        group.close()


@contextmanager
def running(stage: Stage, *arguments: str, config: str | None = None) -> Iterator[Process]:
    """A process that does not outlive a failing test."""
    process = Process(stage, *arguments, config=config)
    try:
        yield process
    finally:
        process.kill()


def undisturbed(stage: Stage, shards: Shards) -> Results:
    """The answer of a run that nobody disturbs."""
    stage.write(shards)
    with running(stage) as process:
        process.finish()
    return stage.results()


def killed_at_random(stage: Stage, shards: Shards, kills: int, rng: Random, tell: Any = None) -> Results:
    """`kills` lives that end at a random moment, each with a further slice of the records; then one to the end."""
    for number, piece in enumerate(slices(shards, kills)):
        stage.write(piece)
        with running(stage) as process:
            # From the first import to a while after all of the slice was read.
            seconds = rng.choice([rng.uniform(0.0, 1.5), rng.uniform(1.0, 2.0), rng.uniform(1.5, 4.0)])
            try:
                code = process.process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
            else:
                raise AssertionError(f"ended by itself with {code}:\n{process.said()}")
            if tell is not None:
                tell(number + 1, seconds)
    with running(stage) as process:
        process.finish()
    return stage.results()
