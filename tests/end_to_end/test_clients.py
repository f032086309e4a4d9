"""Third-party programs at both ends, with the shipped files: rsyslog writes, kcat reads, Elasticsearch stores."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from search_server import SearchServer, started

from broker import PASSWORD, USER, Broker
from commands import WAIT, live, reading_topic, write_run_config
from paths import ROOT
from streamdetect.synthetic import Beacon, Scenario, lines
from tools import need

RSYSLOG = ROOT / "configs" / "rsyslog" / "to-kafka.conf"
KCAT = ROOT / "configs" / "kcat" / "read-alerts.conf"
TEMPLATE = ROOT / "configs" / "elastic" / "index-template.json"
STREAM = "logs-streamdetect.alert-default"

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z; in the past, because live rejects events ahead of the wall clock


class Alert(NamedTuple):
    """A record as kcat prints it."""

    key: str
    headers: str
    timestamp_ms: int
    value: bytes

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.value)
        return found


def substituted(path: Path, folder: Path, **changes: str) -> str:
    """A copy of a shipped file with texts replaced; each one must occur in the file."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{path.name} has no {old}"
        text = text.replace(old, new)
    copy = folder / path.name
    copy.write_text(text, encoding="utf-8")
    return str(copy)


@contextmanager
def rsyslog(folder: Path, address: str, topic: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run rsyslog with the shipped configuration, adapted to this broker, topic and folder."""
    spool = folder / "spool"
    spool.mkdir()
    changes = {
        "localhost:9092": address,
        'topic="endpoint.events"': f'topic="{topic}"',
        "/var/log/endpoint-events/*.jsonl": f"{folder}/events.jsonl",
        "/var/spool/rsyslog": str(spool),
    }
    config = substituted(RSYSLOG, folder, **changes, **more)
    with (folder / "rsyslog.log").open("wb") as log:
        command = ["rsyslogd", "-n", "-f", config, "-i", str(folder / "rsyslog.pid")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kcat(folder: Path, broker: Broker, *arguments: str, data: bytes | None = None) -> bytes:
    """Run kcat with the shipped configuration; returns its output."""
    config = substituted(KCAT, folder, **{"localhost:9092": broker.bootstrap})
    return call_kcat(config, *arguments, data=data)


def call_kcat(config: str, *arguments: str, data: bytes | None = None) -> bytes:
    command = ["kcat", "-F", config, *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=WAIT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def read_alerts(folder: Path, broker: Broker, topic: str) -> list[Alert]:
    """All records of a topic: key, headers, timestamp and value, separated by bytes that do not occur in JSON."""
    out = kcat(folder, broker, "-C", "-t", topic, "-o", "beginning", "-e", "-f", "%k\x1f%h\x1f%T\x1f%s\x1e")
    rows = [row.split(b"\x1f") for row in out.split(b"\x1e")[:-1]]
    return [Alert(key.decode(), headers.decode(), int(at), value) for key, headers, at, value in rows]


def wait_until(done: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not done():
        assert time.monotonic() < deadline, f"not within {WAIT:g} s: {log.read_text()}"


@pytest.fixture(scope="module")
def day() -> list[bytes]:
    """Eight hours of eight hosts with one beacon."""
    scenario = Scenario(hosts=8, hours=8, start_ms=START_MS, beacons=(Beacon(25_000, 5_000),), shape="defend")
    return list(lines(scenario))


@pytest.fixture(scope="module")
def server() -> Iterator[SearchServer]:
    yield from started()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, broker: Broker, day: list[bytes]) -> tuple[str, str]:
    """The topic that rsyslog has filled, and the topic of the alerts that `run` wrote."""
    need("rsyslogd", "kcat")
    folder = tmp_path_factory.mktemp("shipped")
    events, alerts = broker.make_topic(partitions=3, retention_ms="-1"), broker.make_topic(retention_ms="-1")
    (folder / "events.jsonl").write_bytes(b"".join(day))
    config = write_run_config(folder, broker, events, alerts={"topic": alerts}, dead_letters={"sink": "none"})
    with rsyslog(folder, broker.bootstrap, events) as process:
        wait_until(lambda: total(broker, events) >= len(day), folder / "rsyslog.log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
    with live(folder, config) as running, reading_topic(broker, alerts) as messages_so_far:
        running.wait_for(lambda: len(messages_so_far()) >= 1)
        running.stop(signal.SIGTERM)
    return events, alerts


def total(broker: Broker, topic: str, partitions: int = 3) -> int:
    """Records in a topic from which nothing was deleted."""
    partitions_of_topic = [TopicPartition(topic, number) for number in range(partitions)]
    with closing(KafkaConsumer(bootstrap_servers=broker.bootstrap)) as consumer:
        return sum(consumer.end_offsets(partitions_of_topic).values())


def test_rsyslog_writes_each_line_unchanged(
    shipped: tuple[str, str], tmp_path: Path, broker: Broker, day: list[bytes]
) -> None:
    """Every line arrives once, byte for byte, keyed by its host; every host is in one partition."""
    out = kcat(tmp_path, broker, "-C", "-t", shipped[0], "-o", "beginning", "-e", "-f", "%p\x1f%k\x1f%s\x1e")
    rows = [row.split(b"\x1f") for row in out.split(b"\x1e")[:-1]]
    assert sorted(value for _, _, value in rows) == sorted(line.rstrip(b"\n") for line in day)
    assert all(key.decode() == json.loads(value)["host"]["id"] for _, key, value in rows)
    partition_of = {key: partition for partition, key, _ in rows}
    assert [row for row in rows if partition_of[row[1]] != row[0]] == []
    assert len(set(partition_of.values())) > 1


def test_kcat_reads_the_alerts(shipped: tuple[str, str], tmp_path: Path, broker: Broker) -> None:
    """Key, header and timestamp are as documented, read by a third-party client."""
    found = read_alerts(tmp_path, broker, shipped[1])
    assert found[0].document["event"]["action"] == "opened"
    for alert in found:
        assert alert.key == alert.document["streamdetect"]["episode_id"]
        assert alert.headers == f"streamdetect-action={alert.document['event']['action']}"
        ends = alert.document["streamdetect"]["window"]["end"]
        assert alert.document["@timestamp"] == ends
        assert alert.timestamp_ms % 300_000 == 0


def test_resent_alerts_do_not_create_duplicates(
    shipped: tuple[str, str],
    tmp_path: Path,
    broker: Broker,
    make_topic: Callable[..., str],
    server: SearchServer,
) -> None:
    """Kcat writes the same bytes three times; Elasticsearch stores each alert once and answers the rest with 409."""
    first, copy_topic = read_alerts(tmp_path, broker, shipped[1]), make_topic()
    for alert in first * 3:
        kcat(tmp_path, broker, "-P", "-t", copy_topic, "-k", alert.key, "-D", "\x1e", data=alert.value)
    sent = read_alerts(tmp_path, broker, copy_topic)
    assert [alert.value for alert in sent] == [alert.value for alert in first * 3]
    template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    assert server.call("PUT", "/_index_template/streamdetect-alerts", template)[0] == 200
    statuses = [status for alert in sent for status in create(server, alert.document)]
    assert statuses == [201] * len(first) + [409] * 2 * len(first)
    assert server.call("GET", f"/{STREAM}/_count")[1]["count"] == len(first)


def create(server: SearchServer, document: dict[str, Any]) -> list[int]:
    """The request of both shipped pipelines: op create with event.id as document id."""
    action = {"create": {"_index": STREAM, "_id": document["event"]["id"]}}
    status, response = server.call("POST", "/_bulk?refresh=true", [action, document])
    assert status == 200
    return [item["create"]["status"] for item in response["items"]]


def test_records_of_an_aborted_transaction_are_not_read(
    tmp_path: Path, broker: Broker, make_topic: Callable[..., str]
) -> None:
    """The shipped configuration reads committed records only; without that option, aborted ones are visible."""
    need("kcat")
    topic = make_topic()
    producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0, "transactional.id": topic})
    producer.init_transactions(WAIT)
    for value, end in ((b"aborted", producer.abort_transaction), (b"sent", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value)
        assert producer.flush(WAIT) == 0
        end(WAIT)
    assert [alert.value for alert in read_alerts(tmp_path, broker, topic)] == [b"sent"]
    dirty = ("-X", "isolation.level=read_uncommitted")
    out = kcat(tmp_path, broker, *dirty, "-C", "-t", topic, "-o", "beginning", "-e", "-f", "%s\n")
    assert out == b"aborted\nsent\n"


def login(broker: Broker, user: str) -> dict[str, str]:
    """Replacements for the logins in the shipped files."""
    assert broker.certificates is not None
    replacements = {
        user: USER,
        "password=...": f"password={PASSWORD}",
        "/etc/kafka-ca.pem": broker.certificates.ca,
    }
    # Debian 12's librdkafka 2.0 fails at SCRAM with Kafka 4.4: see docs/elastic.md.
    return replacements | {"SCRAM-SHA-512": "PLAIN"}


def test_the_commented_tls_and_login_lines(tmp_path: Path, secure_broker: Broker, day: list[bytes]) -> None:
    """Uncommented, they work: rsyslog writes and kcat reads over SASL_SSL."""
    need("rsyslogd", "kcat")
    topic, address = secure_broker.make_topic(), secure_broker.address("SASL_SSL", "localhost")
    (tmp_path / "events.jsonl").write_bytes(b"".join(day[:100]))
    writing = {"# , ": ", "} | login(secure_broker, "streamdetect-writer")
    with rsyslog(tmp_path, address, topic, **writing):
        wait_until(lambda: total(secure_broker, topic, 1) >= 100, tmp_path / "rsyslog.log")
    uncommented = {f"# {name}": name for name in ("security.protocol", "sasl.", "ssl.ca")}
    reading_as = {"localhost:9092": address} | uncommented | login(secure_broker, "streamdetect-reader")
    config = substituted(KCAT, tmp_path, **reading_as)
    out = call_kcat(config, "-C", "-t", topic, "-o", "beginning", "-e", "-f", "%s\n")
    assert out == b"".join(day[:100])
