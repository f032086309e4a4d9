"""`streamdetect generate --topic` against a real broker: the records of the file, keyed by host."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all

from broker import Broker
from streamdetect.synthetic import Beacon, Scenario, documents
from tools import environment

MakeTopic = Callable[..., str]
PLAN = ["--hosts", "6", "--hours", "5.5", "--beacon", "20s,2s"]
WAIT = 60.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "streamdetect", "generate", *arguments]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=WAIT, env=environment()
    )


def config(folder: Path, bootstrap: str) -> str:
    path = folder / "streamdetect.yaml"
    path.write_text(yaml.safe_dump({"kafka": {"bootstrap_servers": [bootstrap]}}))
    return str(path)


def everything(broker: Broker, topic: str) -> list[Any]:
    """All records of a topic, partition by partition."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    try:
        places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        ends = consumer.end_offsets(places)
        consumer.assign(places)
        found: list[Any] = []
        deadline = time.monotonic() + WAIT
        while len(found) < sum(ends.values()) and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=200).values():
                found += records
        return found
    finally:
        consumer.close()


def test_the_topic_holds_what_the_file_holds(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """The same options give the same documents; each has its event's time."""
    topic, path = make_topic(partitions=3, retention_ms="-1"), tmp_path / "day.jsonl"
    told = call(*PLAN, "--topic", topic, "--config", config(tmp_path, broker.bootstrap))
    assert told.returncode == 0, told.stderr
    assert call(*PLAN, "-o", str(path)).returncode == 0
    found = everything(broker, topic)
    assert sorted(record.value for record in found) == sorted(path.read_bytes().splitlines())
    assert f"{len(found):,} events of 6 hosts" in told.stderr
    plan = Scenario(hosts=6, hours=5.5, beacons=(Beacon(20_000, 2_000),))
    assert sorted(record.timestamp for record in found) == sorted(time_ms for time_ms, _ in documents(plan))


def test_a_host_is_in_one_partition(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """The key is the host's id, as its own documents say, and decides the partition."""
    topic = make_topic(partitions=3, retention_ms="-1")
    told = call(*PLAN, "--shape", "defend", "--topic", topic, "-c", config(tmp_path, broker.bootstrap))
    assert told.returncode == 0, told.stderr
    found = everything(broker, topic)
    places: dict[bytes, set[int]] = {}
    for record in found:
        assert json.loads(record.value)["host"]["id"] == record.key.decode()
        places.setdefault(record.key, set()).add(record.partition)
    assert len(places) == 6
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len({number for partitions in places.values() for number in partitions}) > 1


def test_no_broker_is_exit_4(tmp_path: Path) -> None:
    """An address where nobody listens: one line that names it, the code of run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        path = Path(config(tmp_path, address))
        path.write_text(path.read_text() + "  client: {bootstrap_timeout_ms: 500}\n")
        told = call(*PLAN, "--topic", "events", "--config", str(path))
    assert told.returncode == 4, told.stderr
    assert address in told.stderr
    assert "Traceback" not in told.stderr


def test_a_missing_topic_is_exit_8(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """It is not created, and a name that is nearly right is offered."""
    topic = make_topic()
    told = call(*PLAN, "--topic", f"{topic}x", "--config", config(tmp_path, broker.bootstrap))
    assert told.returncode == 8, told.stderr
    assert f"no topic {topic}x" in told.stderr
    assert f"there is {topic}" in told.stderr
    assert f"{topic}x" not in broker.admin.list_topics()


def test_a_refused_record_is_exit_8(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """A topic that takes no large records: the error names the topic and its setting."""
    topic = make_topic(max_message_bytes="300")
    told = call(*PLAN, "--topic", topic, "--config", config(tmp_path, broker.bootstrap))
    assert told.returncode == 8, told.stderr
    assert topic in told.stderr
    assert "max.message.bytes" in told.stderr


def test_interrupted_it_stops_at_once(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """130, no traceback; what was sent before may stay."""
    topic = make_topic(retention_ms="-1")
    arguments = ["--hosts", "200", "--hours", "10000", "--topic", topic]
    with subprocess.Popen(
        command(*arguments, "--config", config(tmp_path, broker.bootstrap)), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + WAIT
        consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
        where = TopicPartition(topic, 0)
        while not consumer.end_offsets([where])[where] and time.monotonic() < deadline:
            assert process.poll() is None
        consumer.close()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments", [[], ["-o", "x.jsonl", "--topic", "t"], ["-o", "x.jsonl", "--config", "f"]]
)
def test_one_place_for_the_events(arguments: list[str]) -> None:
    """A file or a topic, and a configuration only for the topic."""
    told = call(*arguments)
    assert told.returncode == 2
    assert "--topic" in told.stderr
