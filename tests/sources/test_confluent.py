"""The confluent reader: errors between records, records buffered while a partition is held, its settings.

The contract of both readers is tested in test_kafka.py.
"""

from __future__ import annotations

import logging
import sys
import time
from random import Random
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Message, Producer
from confluent_kafka import KafkaError as ClientError
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from broker import PASSWORD, USER, Broker
from streamdetect.broker.client_settings import client_settings, confluent_settings
from streamdetect.config import KafkaSettings, Settings
from streamdetect.errors import ConfigError, KafkaError
from streamdetect.model import Partition
from streamdetect.sources import confluent, confluent_buffer
from streamdetect.sources.confluent import ConfluentFetcher
from streamdetect.sources.fetcher import CONSUMER_SETTINGS
from streamdetect.sources.kafka_live import KafkaSource
from streamdetect.sources.kafka_range import KafkaRange

WAIT = 20.0
ONE, OTHER = Partition("t", 0), Partition("t", 1)


def configured(**chosen: Any) -> KafkaSettings:
    """Settings as from a configuration file."""
    return KafkaSettings(**{"reader": "confluent", **chosen})


# -- errors between records


class ScriptedConsumer:
    """Replaces the package's consumer: returns given messages, and records assignments and pauses."""

    def __init__(self) -> None:
        self.queue: list[Message] = []
        self.assigned: list[dict[int, int]] = []
        self.paused: list[int] = []

    def consume(self, count: int, _: float) -> list[Message]:
        messages, self.queue = self.queue[:count], self.queue[count:]
        return messages

    def assign(self, assignment: Any) -> None:
        self.assigned.append({one.partition: one.offset for one in assignment})

    def pause(self, partitions: Any) -> None:
        self.paused += [one.partition for one in partitions]

    def resume(self, partitions: Any) -> None:
        for one in partitions:
            self.paused.remove(one.partition)


@pytest.fixture
def script() -> ScriptedConsumer:
    return ScriptedConsumer()


@pytest.fixture
def fetcher(script: ScriptedConsumer, monkeypatch: pytest.MonkeyPatch) -> ConfluentFetcher:
    """Two partitions, at offsets 5 and 50."""
    monkeypatch.setattr(confluent, "_consumer", lambda *_: script)
    monkeypatch.setattr(confluent, "_check_reachable", lambda *_: None)
    created = ConfluentFetcher(configured())
    created.assign([ONE, OTHER])
    created.seek(ONE, 5)
    created.seek(OTHER, 50)
    return created


def record(offset: int, partition: int = 0, value: bytes = b"v") -> Message:
    return Message(topic="t", partition=partition, offset=offset, value=value, timestamp=(1, 0))


def event(code: int, offset: int, partition: int = 0) -> Message:
    return Message(topic="t", partition=partition, offset=offset, error=ClientError(code, "by librdkafka"))


def offsets(fetcher: ConfluentFetcher) -> dict[int, list[int]]:
    return {batch.partition.number: list(batch.offsets) for batch in fetcher.poll(0)}


ERRORS: dict[int, type[Exception]] = {
    confluent_buffer.OUT_OF_RANGE: client_errors.OffsetOutOfRangeError,
    confluent_buffer.TRUNCATED: client_errors.LogTruncationError,
    ClientError._BAD_MSG: client_errors.CorruptRecordError,
    ClientError._BAD_COMPRESSION: client_errors.CorruptRecordError,
    ClientError._NOT_IMPLEMENTED: client_errors.CorruptRecordError,
    ClientError.TOPIC_AUTHORIZATION_FAILED: client_errors.TopicAuthorizationFailedError,
    ClientError.INVALID_MSG: client_errors.CorruptRecordError,
}


@pytest.mark.parametrize("code", ERRORS)
def test_a_partition_stops_at_an_error(
    fetcher: ConfluentFetcher, script: ScriptedConsumer, code: int
) -> None:
    """Records before it are returned, then it is raised at each poll; no record after it is returned."""
    script.queue = [record(5), event(code, 6), record(7), record(50, 1)]
    assert offsets(fetcher) == {0: [5], 1: [50]}
    script.queue = [record(8)]
    for _ in range(2):
        with pytest.raises(ERRORS[code]):
            fetcher.poll(0)
    assert fetcher.position(ONE) == 6


@pytest.mark.parametrize(
    "code",
    [
        ClientError.UNKNOWN_TOPIC_OR_PART,
        ClientError._UNKNOWN_PARTITION,
        ClientError._UNKNOWN_TOPIC,
        ClientError._TIMED_OUT,
        ClientError._TRANSPORT,
        ClientError.NOT_LEADER_FOR_PARTITION,
    ],
)
def test_errors_that_librdkafka_retries(
    fetcher: ConfluentFetcher, script: ScriptedConsumer, code: int
) -> None:
    """Reading continues; a deleted topic is found in the metadata."""
    script.queue = [record(5), event(code, 6), record(6)]
    assert offsets(fetcher) == {0: [5, 6]}


def test_offsets_out_of_range_are_reported_together(
    fetcher: ConfluentFetcher, script: ScriptedConsumer
) -> None:
    """After a seek a partition continues there; the other partition is reported again."""
    code = confluent_buffer.OUT_OF_RANGE
    script.queue = [event(code, 5), event(code, 50, 1)]
    with pytest.raises(client_errors.OffsetOutOfRangeError) as raised:
        fetcher.poll(0)
    assert raised.value.args[0] == {TopicPartition("t", 0): 5, TopicPartition("t", 1): 50}
    fetcher.seek(ONE, 9)
    with pytest.raises(client_errors.OffsetOutOfRangeError) as raised:
        fetcher.poll(0)
    assert raised.value.args[0] == {TopicPartition("t", 1): 50}
    fetcher.seek(OTHER, None)
    script.queue = [record(9)]
    assert offsets(fetcher) == {0: [9]}
    assert script.assigned[-1] == {0: 9, 1: OFFSET_BEGINNING}


def test_a_beginning_that_is_not_resolved_is_queried_again(
    fetcher: ConfluentFetcher, script: ScriptedConsumer
) -> None:
    """No record is lost: the beginning is not known yet."""
    fetcher.seek(ONE, None)
    script.queue = [record(50, 1), event(confluent_buffer.OUT_OF_RANGE, -1001)]
    assert offsets(fetcher) == {1: [50]}
    with pytest.raises(client_errors.RetriableError):
        fetcher.poll(0)
    script.queue = [record(7)]
    assert offsets(fetcher) == {0: [7]}
    assert script.assigned == [{0: OFFSET_BEGINNING, 1: 50}, {0: OFFSET_BEGINNING, 1: 51}]


def test_truncation_reports_the_unchanged_offset(fetcher: ConfluentFetcher, script: ScriptedConsumer) -> None:
    """None where the broker does not know it."""
    script.queue = [event(confluent_buffer.TRUNCATED, 3), event(confluent_buffer.TRUNCATED, -1001, 1)]
    found = []
    for partition in (ONE, OTHER):
        with pytest.raises(client_errors.LogTruncationError) as raised:
            fetcher.poll(0)
        found += raised.value.divergent_offsets.values()
        fetcher.seek(partition, 0)
    assert found[0].offset == 3
    assert found[1] is None


def test_an_end_event_advances_the_position_in_order(
    fetcher: ConfluentFetcher, script: ScriptedConsumer
) -> None:
    """Offsets 6 to 8 hold markers. The position of a held partition does not advance, with or without records."""
    script.queue = [record(5), event(confluent_buffer.END, 9)]
    fetcher.pause([ONE])
    assert fetcher.poll(0) == []
    assert fetcher.position(ONE) == 5
    fetcher.resume([ONE])
    assert offsets(fetcher) == {0: [5]}
    assert fetcher.position(ONE) == 9


def test_unknown_errors_are_logged(
    fetcher: ConfluentFetcher, script: ScriptedConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as those of the group coordinator, which is not used."""
    script.queue = [Message(error=ClientError(ClientError.GROUP_AUTHORIZATION_FAILED)), record(5)]
    assert offsets(fetcher) == {0: [5]}
    assert "GROUP_AUTHORIZATION_FAILED" in caplog.text


# -- held partitions


def test_held_records_are_buffered_up_to_a_limit(
    fetcher: ConfluentFetcher, script: ScriptedConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both held: each may buffer half of 6 records and is paused with the fourth; released, all arrive in order."""
    monkeypatch.setattr(confluent, "MAX_HELD_RECORDS", 6)
    fetcher.pause([ONE, OTHER])
    script.queue = [*map(record, (5, 6, 7)), *(record(offset, 1) for offset in (50, 51, 52, 53))]
    assert fetcher.poll(0) == []
    assert script.paused == [1]
    fetcher.resume([OTHER])
    assert script.paused == []
    script.queue = [record(54, 1)]
    assert offsets(fetcher) == {1: [50, 51, 52, 53]}
    assert offsets(fetcher) == {1: [54]}
    fetcher.resume([ONE])
    assert offsets(fetcher) == {0: [5, 6, 7]}


def test_held_bytes_are_limited(
    fetcher: ConfluentFetcher, script: ScriptedConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confluent, "MAX_HELD_BYTES", 10)
    fetcher.pause([ONE])
    script.queue = [record(5, value=b"12345678")]
    fetcher.poll(0)
    assert script.paused == []
    script.queue = [record(6, value=b"123")]
    fetcher.poll(0)
    assert script.paused == [0]


def test_an_assignment_continues_after_buffered_records(
    fetcher: ConfluentFetcher, script: ScriptedConsumer
) -> None:
    """A new partition moves no other: buffered records of a held partition are not fetched again, events are."""
    fetcher.pause([ONE])
    script.queue = [record(5), record(6), event(confluent_buffer.END, 7), record(50, 1)]
    assert offsets(fetcher) == {1: [50]}
    third = Partition("t", 2)
    fetcher.assign([ONE, OTHER, third])
    fetcher.seek(third, None)
    assert fetcher.poll(0) == []
    assert script.assigned[-1] == {0: 7, 1: 51, 2: OFFSET_BEGINNING}
    fetcher.resume([ONE])
    assert offsets(fetcher) == {0: [5, 6]}


def test_holding_loses_no_record(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held and released at random, paused often, reassigned now and then: each record once, in order."""
    monkeypatch.setattr(confluent, "MAX_HELD_RECORDS", 300)
    monkeypatch.setattr(confluent, "MAX_BATCH", 100)
    topic, rng = broker.make_topic(partitions=3), Random(11)
    batching = {"linger.ms": 20, "batch.size": 10_000}
    # Without idempotence, records that are resent (as may happen on a new topic) would follow later ones.
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap, "log_level": 0, "enable.idempotence": True, **batching}
    )
    for number in range(9_000):
        producer.produce(topic, b"%d" % number, partition=number % 3)
    assert producer.flush(WAIT) == 0
    chosen = configured(bootstrap_servers=[broker.bootstrap], client={"max_partition_fetch_bytes": 20_000})
    source = KafkaRange(chosen, [topic])
    seen: dict[Partition, list[int]] = {partition: [] for partition in source.partitions()}
    deadline = time.monotonic() + 3 * WAIT
    while source.at_end() != seen.keys():
        assert time.monotonic() < deadline, {one.number: len(found) for one, found in seen.items()}
        if rng.random() < 0.05:
            source._consumer._fetcher.assign(list(seen))
        for batch in source.poll({one for one in seen if rng.random() < 0.5}, 20):
            seen[batch.partition] += [int(value or b"") for value in batch.values]
    source.close()
    assert seen == {one: list(range(one.number, 9_000, 3)) for one in seen}


# -- settings


def test_settings_translated_for_librdkafka() -> None:
    """The same cluster, login and certificates, also from kafka.client; no setting that librdkafka does not have."""
    chosen = configured(
        bootstrap_servers=["a:1", "b:2"],
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        username=USER,
        password=PASSWORD,
        client={"ssl_check_hostname": False, "fetch_max_wait_ms": 50, "linger_ms": 5, "ssl_password": "key"},
    )
    given = confluent_settings(
        chosen, client_settings(KafkaConsumer.DEFAULT_CONFIG, chosen, CONSUMER_SETTINGS)
    )
    assert given.pop("ssl.ca.location")
    assert given == {
        "bootstrap.servers": "a:1,b:2",
        "client.id": "streamdetect",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "fetch.wait.max.ms": 50,
        "fetch.max.bytes": 16 * 1024 * 1024,
        "max.partition.fetch.bytes": 4 * 1024 * 1024,
        "receive.message.max.bytes": 100_000_000,
        "topic.metadata.refresh.interval.ms": 5_000,
        "reconnect.backoff.max.ms": 1_000,
        "security.protocol": "SASL_SSL",
        "ssl.endpoint.identification.algorithm": "none",
        "ssl.key.password": "key",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": USER,
        "sasl.password": PASSWORD,
    }


def test_a_token_is_read_again(tmp_path: Any) -> None:
    """OAUTHBEARER: the file may be rotated while the program runs."""
    file = tmp_path / "token"
    chosen = configured(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="OAUTHBEARER",
        username="u",
        password_file=str(file),
    )
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        given = confluent_settings(chosen, client_settings(KafkaConsumer.DEFAULT_CONFIG, chosen, {}))
        value, expires = given["oauth_cb"]("")
        assert value == token
        assert expires > time.time()
        assert given["sasl.mechanism"] == "OAUTHBEARER"


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the package seem not installed."""
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "streamdetect.sources.confluent")


@pytest.mark.usefixtures("no_package")
def test_missing_package() -> None:
    """Reported before any connection, in one line with both remedies."""
    with pytest.raises(ConfigError, match=r"pip install 'streamdetect\[confluent\]', or set") as raised:
        KafkaSource(configured(bootstrap_servers=["127.0.0.1:1"], topics=["t"]))
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)


def test_the_reader_may_be_changed_between_runs() -> None:
    """A checkpoint does not depend on the reader."""
    both = [Settings(kafka=KafkaSettings(reader=reader)) for reader in ("kafka-python", "confluent")]
    assert both[0].detection() == both[1].detection()


def test_a_setting_that_librdkafka_rejects(broker: Broker, make_topic: Any) -> None:
    topic = make_topic()
    chosen = configured(
        bootstrap_servers=[broker.bootstrap],
        topics=[topic],
        client={"max_partition_fetch_bytes": 2_000_000_000},
    )
    with pytest.raises(
        ConfigError, match=r"confluent-kafka rejects its settings.*value 2000000000 is outside"
    ):
        KafkaSource(chosen)


def test_librdkafka_cannot_connect_while_kafka_python_can(
    secure_broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start fails with librdkafka's error and a remedy, without the password."""
    caplog.set_level(logging.DEBUG)
    wrong = {"sasl.password": "wrong-pass-51c2"}
    monkeypatch.setattr(confluent, "confluent_settings", lambda *given: confluent_settings(*given) | wrong)
    chosen = configured(
        bootstrap_servers=[secure_broker.address("SASL_PLAINTEXT")],
        topics=["t"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        username=USER,
        password=PASSWORD,
        client={"bootstrap_timeout_ms": 1_500},
    )
    with pytest.raises(
        KafkaError, match=r"(?i)authentication failed.*Set kafka.reader to kafka-python"
    ) as raised:
        KafkaSource(chosen)
    for secret in (PASSWORD, "wrong-pass-51c2"):
        assert secret not in str(raised.value)
        assert secret not in caplog.text
