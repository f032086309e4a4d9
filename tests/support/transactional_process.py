"""Helpers of the tests of transactional sinks; as a program, a process with a sink that a test kills.

`python transactional_process.py stream|hold|hung ADDRESS GROUP ALERTS SOURCE`: see the functions of these names.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]  # it has no types

from broker import Broker
from streamdetect.config import KafkaSettings
from streamdetect.errors import KafkaError
from streamdetect.model import Alert, Partition, Record
from streamdetect.sinks import Outputs
from streamdetect.sinks.kafka import KafkaTransactionalSink
from streamdetect.sinks.transactional import CommitMetadata
from streamdetect.sources.kafka_range import KafkaRange

WAIT = 30.0


def kafka_settings(address: str, group: str, takeover: str = "6s", **client: Any) -> KafkaSettings:
    chosen: dict[str, Any] = {
        "bootstrap_servers": [address],
        "group_id": group,
        "takeover_after": takeover,
        "client": {"bootstrap_timeout_ms": 10_000, **client},
    }
    return KafkaSettings(**chosen)


def alert(number: int, episode: str = "episode") -> Alert:
    body = b'{"number":%d}' % number
    return Alert(f"id-{number}", episode, "rule", "opened", tick_ms=1_772_424_000_000 + number, body=body)


def commit_metadata(number: int, epoch: int = 1, owner: str = "first", heartbeat: int = 0) -> CommitMetadata:
    return CommitMetadata(epoch, owner, "state", number, heartbeat)


def wait_until(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


def patience_for(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Run `work` in a thread during the block; its exception is raised at the end of the block."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised again below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


# -- visible records of topics


def make_topic(broker: Broker, name: str | None = None, partitions: int = 1, **configs: str) -> str:
    """Retention is off, because the timestamps of alerts are old ticks."""
    return broker.make_topic(name, partitions, **{"retention_ms": "-1", **configs})


def visible(broker: Broker, topic: str) -> list[Record]:
    """The records of a topic that a `read_committed` consumer sees now."""
    with closing(KafkaRange(kafka_settings(broker.bootstrap, "reader"), [topic])) as source:
        records: list[Record] = []
        deadline = time.monotonic() + WAIT
        while source.at_end() != set(source.partitions()):
            assert time.monotonic() < deadline
            for batch in source.poll((), 200):
                records += [batch.record(index) for index in range(len(batch))]
    return records


def stored(broker: Broker, topic: str) -> list[Record]:
    """The committed records of a topic, after waiting until no transaction is open there: a commit returns before its
    last marker is written.
    """
    wait_until(lambda: not is_open(broker, topic))
    return visible(broker, topic)


def is_open(broker: Broker, topic: str) -> bool:
    """Whether a transaction is open in the topic."""
    levels = ("read_uncommitted", "read_committed")
    ends = [_ends(broker, topic, level) for level in levels]
    return ends[0] != ends[1]


def _ends(broker: Broker, topic: str, level: str) -> dict[Any, int]:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, isolation_level=level, group_id=None)
    with closing(consumer):
        where = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        ends: dict[Any, int] = consumer.end_offsets(where)
        return ends


def numbers(records: list[Record]) -> list[int]:
    """The number of each `alert(number)`."""
    return [json.loads(record.value or b"")["number"] for record in records]


# -- child processes


class Child:
    """A process that runs one of the functions below."""

    def __init__(self, what: str, address: str, group: str, alerts: str, source: str) -> None:
        command = [sys.executable, str(Path(__file__)), what, address, group, alerts, source]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def await_line(self, line: str) -> None:
        assert line in iter(self._next_line, "")

    def _next_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def resume(self) -> None:
        """Let `hung` continue."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._close()

    def end(self, seconds: float) -> int:
        """Wait for the exit and return the exit code. Kills the process after `seconds`."""
        try:
            return self._process.wait(seconds)
        finally:
            self.kill()

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def stream(sink: KafkaTransactionalSink, source: Partition) -> None:
    """Commit alert N, position N and metadata N in a loop, as fast as possible."""
    for number in itertools.count(1):
        sink.commit(Outputs([alert(number)]), {source: number}, commit_metadata(number))


def hold(sink: KafkaTransactionalSink, source: Partition) -> None:
    """Block in the second transaction, after everything except the commit."""
    sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))

    def stand_still(_producer: object) -> None:
        print("holding", flush=True)  # noqa: T201  # the parent waits for it
        threading.Event().wait()

    KafkaProducer.commit_transaction = stand_still
    # Only the parent's kill ends this: disable the watchdog.
    sink._hang_seconds = 600.0
    sink.commit(Outputs([alert(2), alert(3)]), {source: 3}, commit_metadata(2))


def hung(sink: KafkaTransactionalSink, source: Partition) -> None:
    """End with a thread in a hanging call of the client, and another producer that is not closed."""
    sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))
    other = KafkaProducer(bootstrap_servers=sink._settings.bootstrap_servers)
    print("ready", flush=True)  # noqa: T201  # the parent waits for it
    sys.stdin.readline()
    other.send(source.topic, b"never arrives")
    try:
        sink.commit(Outputs([alert(2)]), {source: 2}, commit_metadata(2), patience=lambda: False)
    except KafkaError as error:
        left = [thread.name for thread in threading.enumerate() if thread.name == "streamdetect-kafka-call"]
        print(f"{len(left)} left, {error}", flush=True)  # noqa: T201  # shown when the test fails
    print("main returns", flush=True)  # noqa: T201  # the parent waits for it


def _main(what: str, address: str, group: str, alerts: str, source: str) -> None:
    sink = KafkaTransactionalSink(kafka_settings(address, group, "3s"), alerts, None)
    sink.fence([Partition(source)])
    {"stream": stream, "hold": hold, "hung": hung}[what](sink, Partition(source))


if __name__ == "__main__":
    _main(*sys.argv[1:])
