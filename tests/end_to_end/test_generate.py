"""`streamdetect generate --topic` against a real broker: the same records as to a file, keyed by host."""

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
OPTIONS = ["--hosts", "6", "--hours", "5.5", "--beacon", "20s,2s"]
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


def all_records(broker: Broker, topic: str) -> list[Any]:
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


def test_topic_and_file_get_the_same_records(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """The same options give the same documents; each record has its event's time as timestamp."""
    topic, path = make_topic(partitions=3, retention_ms="-1"), tmp_path / "day.jsonl"
    result = call(*OPTIONS, "--topic", topic, "--config", config(tmp_path, broker.bootstrap))
    assert result.returncode == 0, result.stderr
    assert call(*OPTIONS, "-o", str(path)).returncode == 0
    found = all_records(broker, topic)
    assert sorted(record.value for record in found) == sorted(path.read_bytes().splitlines())
    assert f"{len(found):,} events of 6 hosts" in result.stderr
    scenario = Scenario(hosts=6, hours=5.5, beacons=(Beacon(20_000, 2_000),))
    assert sorted(record.timestamp for record in found) == sorted(
        time_ms for time_ms, _ in documents(scenario)
    )


def test_a_host_is_in_one_partition(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """The key is the host id from the documents and determines the partition."""
    topic = make_topic(partitions=3, retention_ms="-1")
    result = call(*OPTIONS, "--shape", "defend", "--topic", topic, "-c", config(tmp_path, broker.bootstrap))
    assert result.returncode == 0, result.stderr
    found = all_records(broker, topic)
    places: dict[bytes, set[int]] = {}
    for record in found:
        assert json.loads(record.value)["host"]["id"] == record.key.decode()
        places.setdefault(record.key, set()).add(record.partition)
    assert len(places) == 6
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len({number for partitions in places.values() for number in partitions}) > 1


def test_an_unreachable_broker_is_4(tmp_path: Path) -> None:
    """One line that names the address that does not answer; the same exit code as for run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        path = Path(config(tmp_path, address))
        path.write_text(path.read_text() + "  client: {bootstrap_timeout_ms: 500}\n")
        result = call(*OPTIONS, "--topic", "events", "--config", str(path))
    assert result.returncode == 4, result.stderr
    assert address in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_topic_is_8(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """It is not created, and the error suggests a similar name."""
    topic = make_topic()
    result = call(*OPTIONS, "--topic", f"{topic}x", "--config", config(tmp_path, broker.bootstrap))
    assert result.returncode == 8, result.stderr
    assert f"no topic {topic}x" in result.stderr
    assert f"(similar: {topic}" in result.stderr
    assert f"{topic}x" not in broker.admin.list_topics()


def test_a_rejected_record_is_8(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """With a topic that rejects large records, the error names the topic and the setting."""
    topic = make_topic(max_message_bytes="300")
    result = call(*OPTIONS, "--topic", topic, "--config", config(tmp_path, broker.bootstrap))
    assert result.returncode == 8, result.stderr
    assert topic in result.stderr
    assert "max.message.bytes" in result.stderr


def test_an_interrupt_stops_it_at_once(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """130 without a traceback; records already sent stay."""
    topic = make_topic(retention_ms="-1")
    arguments = ["--hosts", "200", "--hours", "10000", "--topic", topic]
    with subprocess.Popen(
        command(*arguments, "--config", config(tmp_path, broker.bootstrap)), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + WAIT
        consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
        partition = TopicPartition(topic, 0)
        while not consumer.end_offsets([partition])[partition] and time.monotonic() < deadline:
            assert process.poll() is None
        consumer.close()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "arguments", [[], ["-o", "x.jsonl", "--topic", "t"], ["-o", "x.jsonl", "--config", "f"]]
)
def test_exactly_one_destination(arguments: list[str]) -> None:
    """A file or a topic; a configuration only for the topic."""
    result = call(*arguments)
    assert result.returncode == 2
    assert "--topic" in result.stderr
