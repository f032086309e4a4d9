"""The commands in child processes against a real broker: Kafka input gives the same results as files."""

from __future__ import annotations

import base64
import datetime as dt
import json
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from broker import PASSWORD, USER, Broker
from commands import (
    WAIT,
    MakeTopic,
    Message,
    call,
    live,
    produce,
    reading_topic,
    write_config,
    write_run_config,
)
from paths import CAPTURES, ROOT
from streamdetect.events import Decoder, Event
from streamdetect.synthetic import Beacon, Scenario, lines

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z; in the past, because live rejects events ahead of the wall clock
INTERVAL_MS, LATENESS_MS = 5 * 60_000, 2 * 60_000

EVERY_TICK = ("--set", "rules.0.renotify=5m")
"""An alert at every tick of an open episode: many to compare, and one at the last tick, whichever it is."""

CONFIGS = ROOT / "configs"


# -- a synthetic day


@dataclass(frozen=True)
class Day:
    """A day in three partitions: as messages, as files, and the output of a replay of the files."""

    shards: list[list[Message]]
    files: list[str]
    newest_ms: int
    alerts: bytes
    summary: dict[str, Any]

    @property
    def last_tick_ms(self) -> int:
        """The last tick of the replay: the first after the newest partition clock."""
        return self.newest_ms // INTERVAL_MS * INTERVAL_MS + INTERVAL_MS

    def alerts_until(self, time_ms: int) -> bytes:
        """Alerts of ticks up to a time."""
        return b"".join(line for line in self.alerts.splitlines(keepends=True) if _tick_ms(line) <= time_ms)


def _tick_ms(alert: bytes) -> int:
    """The alert's @timestamp."""
    return round(dt.datetime.fromisoformat(json.loads(alert)["@timestamp"]).timestamp() * 1000)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """Eight hours of fifteen hosts in all shapes, distributed at random over three partitions."""
    scenario = Scenario(hosts=15, hours=8, start_ms=START_MS, beacons=(Beacon(25_000, 5_000),), shape="mixed")
    decoder, rng, newest_ms = Decoder("resilient", 1 << 20), Random(7), 0
    shards: list[list[Message]] = [[], [], []]
    for line in lines(scenario):
        event = decoder.decode(line)
        assert isinstance(event, Event)
        newest_ms = max(newest_ms, event.time_ms)
        rng.choice(shards).append(Message(line.rstrip(b"\n"), timestamp_ms=event.time_ms))
    folder = tmp_path_factory.mktemp("day")
    files = []
    for number, shard in enumerate(shards):
        path = folder / f"partition-{number}.jsonl"
        path.write_bytes(b"".join((message.value or b"") + b"\n" for message in shard))
        files.append(str(path))
    summary = folder / "summary.json"
    result = call("replay", *EVERY_TICK, "--summary-json", str(summary), *files)
    assert result.code == 0, result.err
    return Day(shards, files, newest_ms, result.out, counts(summary))


def counts(path: Path) -> dict[str, Any]:
    """A summary without `seconds`, which differs between runs."""
    summary: dict[str, Any] = json.loads(path.read_text())
    assert summary.pop("seconds") > 0
    return summary


def test_the_day_has_alerts_to_compare(day: Day) -> None:
    """The beacon has an alert at every tick up to the last one, and every record is consumed."""
    actions = [json.loads(line)["event"]["action"] for line in day.alerts.splitlines()]
    assert actions[0] == "opened"
    assert set(actions[1:]) == {"updated"}
    assert len(actions) > 20
    assert _tick_ms(day.alerts.splitlines()[-1]) == day.last_tick_ms
    assert day.summary["consumed"] == sum(map(len, day.shards))


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_replay_of_kafka_equals_replay_of_files(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path, day: Day, compression: str
) -> None:
    """The same records give the same bytes and counts with every compression."""
    topic = make_topic(partitions=3, retention_ms="-1")
    produce(broker, topic, day.shards, compression)
    summary = tmp_path / "summary.json"
    config = write_run_config(tmp_path, broker, topic)
    result = call("replay", "--config", config, *EVERY_TICK, "--from-kafka", "--summary-json", str(summary))
    assert result.code == 0, result.err
    assert result.out == day.alerts
    assert counts(summary) == day.summary


def test_live_equals_replay_up_to_the_watermark(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path, day: Day
) -> None:
    """With all partitions idle, the watermark is the newest one; one more record advances it to the replay's end."""
    topic = make_topic(partitions=3, retention_ms="-1")
    produce(broker, topic, day.shards, "lz4")
    path = tmp_path / "alerts.jsonl"
    config = write_run_config(
        tmp_path,
        broker,
        topic,
        alerts={"sink": "file", "path": str(path)},
        dead_letters={"sink": "none"},
    )
    expected = day.alerts_until(day.newest_ms - LATENESS_MS)
    assert len(expected) < len(day.alerts)
    with live(tmp_path, config, *EVERY_TICK) as running:
        running.wait_for(lambda: path.exists() and path.stat().st_size >= len(expected))
        assert path.read_bytes() == expected
        # A record that no rule counts advances its partition's watermark to the last tick of the replay.
        document = {"@timestamp": day.last_tick_ms + LATENESS_MS, "process": {"name": "idle.exe"}}
        produce(broker, topic, [[Message(json.dumps(document).encode())]])
        running.wait_for(lambda: path.stat().st_size >= len(day.alerts))
        log = running.stop(signal.SIGTERM)
    assert path.read_bytes() == day.alerts
    assert f"{day.summary['consumed'] + 1:,} records" in log


def test_both_kafka_readers_give_the_same_bytes(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path, day: Day
) -> None:
    """`run` with kafka.reader confluent and kafka-python in turn gives the alerts of a replay of the files."""
    topic = make_topic(partitions=3, retention_ms="-1")
    path = tmp_path / "alerts.jsonl"
    path.touch()
    alerts, dead_letters = {"sink": "file", "path": str(path)}, {"sink": "none"}
    config = write_run_config(tmp_path, broker, topic, alerts=alerts, dead_letters=dead_letters)
    expected = day.alerts_until(day.newest_ms - LATENESS_MS)
    sent, turns = 0.0, (("confluent", 0.6), ("kafka-python", 0.8), ("confluent", 1.0))
    for reader, share in turns:
        parts = [shard[int(len(shard) * sent) : int(len(shard) * share)] for shard in day.shards]
        produce(broker, topic, parts, "lz4")
        enough = len(expected) if share == 1 else path.stat().st_size + 1
        with live(tmp_path, config, *EVERY_TICK, "--set", f"kafka.reader={reader}") as running:
            running.wait_for(partial(_has_grown, path, enough))
            running.stop(signal.SIGTERM)
        assert expected.startswith(path.read_bytes())
        sent = share
    assert path.read_bytes() == expected


def _has_grown(path: Path, size: int) -> bool:
    return path.stat().st_size >= size


def test_live_alerts_in_kafka(broker: Broker, make_topic: MakeTopic, tmp_path: Path, day: Day) -> None:
    """Each alert is a record with the same bytes, the episode as key, the action as header, the tick as timestamp."""
    topic, target = make_topic(partitions=3, retention_ms="-1"), make_topic(retention_ms="-1")
    produce(broker, topic, day.shards, "zstd")
    config = write_run_config(
        tmp_path, broker, topic, alerts={"topic": target}, dead_letters={"sink": "none"}
    )
    expected = day.alerts_until(day.newest_ms - LATENESS_MS).splitlines()
    with live(tmp_path, config, *EVERY_TICK) as running, reading_topic(broker, target) as messages_so_far:
        running.wait_for(lambda: len(messages_so_far()) >= len(expected))
        running.stop(signal.SIGTERM)
        found = messages_so_far()
    assert [message.value for message in found] == expected
    for message in found:
        alert = json.loads(message.value or b"")
        assert message.key == alert["streamdetect"]["episode_id"].encode()
        assert message.headers == (("streamdetect-action", alert["event"]["action"].encode()),)
        assert message.timestamp_ms == _tick_ms(message.value or b"")


# -- real captures


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captures are not part of the project")
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("winlogbeat6-kafka-empire-opth.jsonl", "empire-winlogbeat6.yaml"),
        ("nxlog-flat-empire-monologue.jsonl", "empire-nxlog.yaml"),
    ],
)
def test_captures_of_an_empire_agent(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path, name: str, config: str
) -> None:
    """The shipped configurations detect the agent in its capture; the default rules do not."""
    topic = make_topic()
    capture = CAPTURES / name
    produce(broker, topic, [[Message(line) for line in capture.read_bytes().splitlines()]])
    kafka = ("--from-kafka", "--topic", topic, "--set", f"kafka.bootstrap_servers=[{broker.bootstrap}]")
    result = call("replay", "--config", str(CONFIGS / config), *kafka)
    assert result.code == 0, result.err
    alerts = [json.loads(line) for line in result.out.splitlines()]
    assert {alert["process"]["name"] for alert in alerts} == {"powershell.exe"}
    assert result.out == call("replay", "--config", str(CONFIGS / config), str(capture)).out
    summary = tmp_path / "summary.json"
    silent = call("replay", *kafka, "--summary-json", str(summary))
    assert (silent.code, silent.out) == (0, b"")
    default_counts = counts(summary)
    assert default_counts["consumed"] == len(capture.read_bytes().splitlines())
    assert default_counts["dead_lettered"] == {}


def test_a_backtest_of_kafka_equals_one_of_files(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path
) -> None:
    """With one worker and several; it also compares with the alerts topic."""
    topic, alerts = make_topic(partitions=3, retention_ms="-1"), make_topic(retention_ms="-1")
    kafka = {"bootstrap_servers": [broker.bootstrap], "topics": [topic]}
    config = write_config(tmp_path, {"kafka": kafka, "alerts": {"topic": alerts}})
    path = str(tmp_path / "day.jsonl")
    generate = ("-q", "generate", "--hosts", "10", "--hours", "7", "--beacon", "25s,20%", "--shape", "defend")
    assert call(*generate, "-o", path).code == 0
    assert call(*generate, "--config", config, "--topic", topic).code == 0
    arguments = ("-q", "backtest", "--config", config, "--vary", "min_connections_per_hour=60,120")
    of_files = call(*arguments, path)
    assert of_files.code == 0, of_files.err
    for jobs in ("1", "3"):
        result = call(*arguments, "--from-kafka", "--jobs", jobs)
        assert (result.code, result.out) == (0, of_files.out), result.err
    sent = call("-q", "replay", "--config", config, path).out.splitlines()
    produce(broker, alerts, [[Message(body) for body in sent]])
    result = call(*arguments, "--from-kafka", "--against-topic", alerts)
    assert result.code == 0, result.err
    assert f"Against {alerts}: 1 unchanged, no difference".encode() in result.out


# -- authentication


@pytest.fixture(scope="module")
def secured_topic(secure_broker: Broker, day: Day) -> str:
    topic = secure_broker.make_topic(partitions=3, retention_ms="-1")
    produce(secure_broker, topic, day.shards, "lz4")
    return topic


def secured_settings(secure_broker: Broker, listener: str, topic: str, **more: str) -> dict[str, Any]:
    assert secure_broker.certificates is not None
    kafka = {
        "bootstrap_servers": [secure_broker.address(listener)],
        "topics": [topic],
        "ca_file": secure_broker.certificates.ca,
        "client": {"bootstrap_timeout_ms": 10_000},
    }
    return {"kafka": {**kafka, **more}}


def scram(password: str) -> dict[str, str]:
    return {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "username": USER,
        "password": password,
    }


def test_replay_over_scram_and_tls(
    secure_broker: Broker, secured_topic: str, tmp_path: Path, day: Day
) -> None:
    """A password over TLS, from the configuration file."""
    config = write_config(
        tmp_path, secured_settings(secure_broker, "SASL_SSL", secured_topic, **scram(PASSWORD))
    )
    result = call("replay", "--config", config, *EVERY_TICK, "--from-kafka")
    assert result.code == 0, result.err
    assert result.out == day.alerts
    assert PASSWORD not in result.err


def test_replay_over_mutual_tls(secure_broker: Broker, secured_topic: str, tmp_path: Path, day: Day) -> None:
    """A client certificate from the configuration file."""
    assert secure_broker.certificates is not None
    tls = {
        "security_protocol": "SSL",
        "cert_file": secure_broker.certificates.client_cert,
        "key_file": secure_broker.certificates.client_key,
    }
    config = write_config(tmp_path, secured_settings(secure_broker, "MTLS", secured_topic, **tls))
    result = call("replay", "--config", config, *EVERY_TICK, "--from-kafka")
    assert result.code == 0, result.err
    assert result.out == day.alerts


@pytest.mark.parametrize("arguments", [("run",), ("replay", "--from-kafka", "-vv")])
def test_a_wrong_password_is_4_and_not_shown(
    secure_broker: Broker, secured_topic: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """The message names the user and the setting to check; the password is not even in the debug log."""
    wrong = "wrong-horse-5c77"
    document = secured_settings(secure_broker, "SASL_SSL", secured_topic, **scram(wrong))
    document |= {"alerts": {"sink": "stdout"}, "dead_letters": {"sink": "none"}}
    document["kafka"]["client"]["bootstrap_timeout_ms"] = 4_000
    result = call(*arguments, "--config", write_config(tmp_path, document))
    assert (result.code, result.out) == (4, b"")
    assert wrong not in result.err
    assert base64.b64encode(wrong.encode()).decode() not in result.err
    assert "Traceback" not in result.err
    assert f"user {USER!r}" in result.err.splitlines()[-1]
    assert "kafka.password" in result.err.splitlines()[-1]


# -- failures


@pytest.mark.parametrize("arguments", [("run",), ("replay", "--from-kafka")])
def test_unreachable_broker_is_4(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """One line with the address that does not answer."""
    kafka = {
        "bootstrap_servers": ["127.0.0.1:1"],
        "topics": ["events"],
        "client": {"bootstrap_timeout_ms": 2_000},
    }
    config = write_config(tmp_path, {"kafka": kafka})
    result = call(*arguments, "--config", config)
    assert (result.code, result.out) == (4, b"")
    assert "127.0.0.1:1" in result.error()


@pytest.mark.parametrize("arguments", [("run",), ("replay", "--from-kafka")])
def test_missing_topic_is_4(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """One line with the name and the closest existing topic."""
    topic = make_topic()
    config = write_run_config(
        tmp_path, broker, f"{topic}s", alerts={"sink": "stdout"}, dead_letters={"sink": "none"}
    )
    result = call(*arguments, "--config", config)
    assert (result.code, result.out) == (4, b"")
    assert f"{topic}s" in result.error()
    assert topic in result.error().replace(f"{topic}s", "")


def test_missing_alert_topic_is_8(broker: Broker, make_topic: MakeTopic, tmp_path: Path) -> None:
    """Reported at startup, not when the first alert is sent."""
    missing = f"{make_topic()}-alerts"
    result = call(
        "run", "--config", write_run_config(tmp_path, broker, make_topic(), alerts={"topic": missing})
    )
    assert result.code == 8
    assert missing in result.error()


PLAIN_TEXT = b"2026-03-02T04:35:00.000Z {name=WS-036} {not what was sent}"
TOMORROW = json.dumps({"@timestamp": round(time.time() * 1000) + 86_400_000}).encode()
DEAD_LETTER_CASES = {
    "plain": (Message(PLAIN_TEXT, b"host-1", (("agent", b"logstash"),)), "not_json", "codec => json"),
    "plain without key": (Message(PLAIN_TEXT, timestamp_ms=START_MS), "not_json", "codec => json"),
    "tombstone": (Message(None, b"host-2"), "not_json", "tombstone"),
    "bytes": (Message(b"\xff\x00\xfe", b"\xff"), "not_json", ""),
    "array": (Message(b"[1]"), "not_an_object", "array"),
    "no time": (Message(b'{"process":{"name":"chrome.exe"}}'), "no_time", "@timestamp"),
    "tomorrow": (Message(TOMORROW), "future_time", "max_future_skew"),
    "large": (Message(b" " * 200_000), "too_large", "max_record_bytes"),
}
SMALL = ("--set", "limits.max_record_bytes=100000")


@pytest.fixture
def dead_letter_topic(broker: Broker, make_topic: MakeTopic) -> str:
    """A topic with one record per dead-letter case and a valid one at the end."""
    topic = make_topic(retention_ms="-1")
    good = Message(json.dumps({"@timestamp": START_MS}).encode())
    produce(broker, topic, [[*(message for message, _, _ in DEAD_LETTER_CASES.values()), good]])
    return topic


def test_replay_counts_dead_letters(broker: Broker, dead_letter_topic: str, tmp_path: Path) -> None:
    """Dead letters are not an error: exit code 0 and a count per reason."""
    summary = tmp_path / "summary.json"
    config = write_run_config(tmp_path, broker, dead_letter_topic)
    result = call("replay", "--config", config, *SMALL, "--from-kafka", "--summary-json", str(summary))
    assert (result.code, result.out) == (0, b"")
    found = counts(summary)
    assert found["dead_lettered"] == {
        "future_time": 1,
        "no_time": 1,
        "not_an_object": 1,
        "not_json": 4,
        "too_large": 1,
    }
    assert found["consumed"] == len(DEAD_LETTER_CASES) + 1


def test_live_dead_letters_in_kafka(
    broker: Broker, make_topic: MakeTopic, dead_letter_topic: str, tmp_path: Path
) -> None:
    """Value, key and headers are unchanged; added headers give origin and reason. SIGINT is a clean stop."""
    target = make_topic()
    config = write_run_config(
        tmp_path, broker, dead_letter_topic, alerts={"sink": "stdout"}, dead_letters={"topic": target}
    )
    with live(tmp_path, config, *SMALL) as running, reading_topic(broker, target) as messages_so_far:
        running.wait_for(lambda: len(messages_so_far()) >= len(DEAD_LETTER_CASES))
        running.stop(signal.SIGINT)
        found = messages_so_far()
    with reading_topic(broker, dead_letter_topic) as source:
        sent: list[Message] = []
        deadline = time.monotonic() + WAIT
        while len(sent) <= len(DEAD_LETTER_CASES):
            assert time.monotonic() < deadline
            sent = source()
    assert len(found) == len(DEAD_LETTER_CASES)
    for offset, (message, (original, reason, detail)) in enumerate(
        zip(found, DEAD_LETTER_CASES.values(), strict=True)
    ):
        original_headers = len(original.headers)
        assert (message.value, message.key, message.headers[:original_headers]) == (
            original.value,
            original.key,
            original.headers,
        )
        added = dict(message.headers[original_headers:])
        assert detail in added.pop("streamdetect.detail").decode()
        assert added == {
            "streamdetect.origin-topic": dead_letter_topic.encode(),
            "streamdetect.origin-partition": b"0",
            "streamdetect.origin-offset": str(offset).encode(),
            "streamdetect.origin-timestamp": str(sent[offset].timestamp_ms).encode(),
            "streamdetect.reason": reason.encode(),
        }


def test_live_dead_letters_in_a_file(broker: Broker, dead_letter_topic: str, tmp_path: Path) -> None:
    """The same as JSON lines, with bytes in base64."""
    path = tmp_path / "dead.jsonl"
    config = write_run_config(
        tmp_path,
        broker,
        dead_letter_topic,
        alerts={"sink": "stdout"},
        dead_letters={"sink": "file", "path": str(path)},
    )
    with live(tmp_path, config, *SMALL) as running:
        running.wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= len(DEAD_LETTER_CASES))
        running.stop(signal.SIGINT)
    dead_letters = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(dead_letters) == len(DEAD_LETTER_CASES)
    for offset, (dead_letter, (original, reason, detail)) in enumerate(
        zip(dead_letters, DEAD_LETTER_CASES.values(), strict=True)
    ):
        assert (dead_letter["streamdetect.origin-topic"], dead_letter["streamdetect.origin-offset"]) == (
            dead_letter_topic,
            offset,
        )
        assert dead_letter["streamdetect.reason"] == reason
        assert detail in dead_letter["streamdetect.detail"]
        assert _bytes(dead_letter["value"]) == original.value
        assert _bytes(dead_letter["key"]) == original.key
        assert [(name, _bytes(value)) for name, value in dead_letter["headers"]] == list(original.headers)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_live_stops_while_idle(
    broker: Broker, make_topic: MakeTopic, tmp_path: Path, stop_signal: signal.Signals
) -> None:
    """A run on an empty topic keeps running and stops at a signal."""
    alerts = tmp_path / "alerts.jsonl"
    sinks: dict[str, Any] = {
        "alerts": {"sink": "file", "path": str(alerts)},
        "dead_letters": {"sink": "none"},
    }
    with live(tmp_path, write_run_config(tmp_path, broker, make_topic(), **sinks)) as running:
        running.wait_for(alerts.exists)
        assert running.stop(stop_signal).startswith("0 records in ")
    assert alerts.read_bytes() == b""
