"""What is the confluent reader's own: errors among records, records kept while a partition is held, its settings.

What both readers owe is in test_kafka_source.py.
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
    """As a configuration file would say it."""
    return KafkaSettings(**{"reader": "confluent", **chosen})


# -- errors among the records


class Scripted:
    """In the place of the package's consumer: gives what it was told to, and remembers where it was sent."""

    def __init__(self) -> None:
        self.coming: list[Message] = []
        self.assigned: list[dict[int, int]] = []
        self.paused: list[int] = []

    def consume(self, count: int, _: float) -> list[Message]:
        given, self.coming = self.coming[:count], self.coming[count:]
        return given

    def assign(self, places: Any) -> None:
        self.assigned.append({place.partition: place.offset for place in places})

    def pause(self, places: Any) -> None:
        self.paused += [place.partition for place in places]

    def resume(self, places: Any) -> None:
        for place in places:
            self.paused.remove(place.partition)


@pytest.fixture
def script() -> Scripted:
    return Scripted()


@pytest.fixture
def records(script: Scripted, monkeypatch: pytest.MonkeyPatch) -> ConfluentFetcher:
    """Two partitions, at offsets 5 and 50."""
    monkeypatch.setattr(confluent, "_consumer", lambda *_: script)
    monkeypatch.setattr(confluent, "_check_reachable", lambda *_: None)
    made = ConfluentFetcher(configured())
    made.assign([ONE, OTHER])
    made.seek(ONE, 5)
    made.seek(OTHER, 50)
    return made


def record(offset: int, partition: int = 0, value: bytes = b"v") -> Message:
    return Message(topic="t", partition=partition, offset=offset, value=value, timestamp=(1, 0))


def event(code: int, offset: int, partition: int = 0) -> Message:
    return Message(topic="t", partition=partition, offset=offset, error=ClientError(code, "said librdkafka"))


def offsets(reader: ConfluentFetcher) -> dict[int, list[int]]:
    return {batch.partition.number: list(batch.offsets) for batch in reader.poll(0)}


STOPS: dict[int, type[Exception]] = {
    confluent_buffer.OUT_OF_RANGE: client_errors.OffsetOutOfRangeError,
    confluent_buffer.TRUNCATED: client_errors.LogTruncationError,
    ClientError._BAD_MSG: client_errors.CorruptRecordError,
    ClientError._BAD_COMPRESSION: client_errors.CorruptRecordError,
    ClientError._NOT_IMPLEMENTED: client_errors.CorruptRecordError,
    ClientError.TOPIC_AUTHORIZATION_FAILED: client_errors.TopicAuthorizationFailedError,
    ClientError.INVALID_MSG: client_errors.CorruptRecordError,
}


@pytest.mark.parametrize("code", STOPS)
def test_a_partition_stops_at_an_error(records: ConfluentFetcher, script: Scripted, code: int) -> None:
    """What is before it is handed out, then it is raised at each poll, and nothing behind it is ever seen."""
    script.coming = [record(5), event(code, 6), record(7), record(50, 1)]
    assert offsets(records) == {0: [5], 1: [50]}
    script.coming = [record(8)]
    for _ in range(2):
        with pytest.raises(STOPS[code]):
            records.poll(0)
    assert records.position(ONE) == 6


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
def test_what_librdkafka_mends_itself(records: ConfluentFetcher, script: Scripted, code: int) -> None:
    """It goes on by itself, and so do we; a topic that has gone is told by the metadata."""
    script.coming = [record(5), event(code, 6), record(6)]
    assert offsets(records) == {0: [5, 6]}


def test_all_that_is_out_of_range_is_told_at_once(records: ConfluentFetcher, script: Scripted) -> None:
    """A seek ends it, and reading goes on there; the other partition is told of again."""
    code = confluent_buffer.OUT_OF_RANGE
    script.coming = [event(code, 5), event(code, 50, 1)]
    with pytest.raises(client_errors.OffsetOutOfRangeError) as told:
        records.poll(0)
    assert told.value.args[0] == {TopicPartition("t", 0): 5, TopicPartition("t", 1): 50}
    records.seek(ONE, 9)
    with pytest.raises(client_errors.OffsetOutOfRangeError) as told:
        records.poll(0)
    assert told.value.args[0] == {TopicPartition("t", 1): 50}
    records.seek(OTHER, None)
    script.coming = [record(9)]
    assert offsets(records) == {0: [9]}
    assert script.assigned[-1] == {0: 9, 1: OFFSET_BEGINNING}


def test_a_beginning_that_is_not_found_is_looked_for_again(
    records: ConfluentFetcher, script: Scripted
) -> None:
    """It is no loss: nobody has told us where the beginning is."""
    records.seek(ONE, None)
    script.coming = [record(50, 1), event(confluent_buffer.OUT_OF_RANGE, -1001)]
    assert offsets(records) == {1: [50]}
    with pytest.raises(client_errors.RetriableError):
        records.poll(0)
    script.coming = [record(7)]
    assert offsets(records) == {0: [7]}
    assert script.assigned == [{0: OFFSET_BEGINNING, 1: 50}, {0: OFFSET_BEGINNING, 1: 51}]


def test_where_the_log_and_we_agree(records: ConfluentFetcher, script: Scripted) -> None:
    """As far as the broker can tell."""
    script.coming = [event(confluent_buffer.TRUNCATED, 3), event(confluent_buffer.TRUNCATED, -1001, 1)]
    found = []
    for partition in (ONE, OTHER):
        with pytest.raises(client_errors.LogTruncationError) as told:
            records.poll(0)
        found += told.value.divergent_offsets.values()
        records.seek(partition, 0)
    assert found[0].offset == 3
    assert found[1] is None


def test_the_end_is_passed_in_its_place(records: ConfluentFetcher, script: Scripted) -> None:
    """Offsets 6 to 8 hold markers. Of a held partition nothing is passed, records kept or not."""
    script.coming = [record(5), event(confluent_buffer.END, 9)]
    records.pause([ONE])
    assert records.poll(0) == []
    assert records.position(ONE) == 5
    records.resume([ONE])
    assert offsets(records) == {0: [5]}
    assert records.position(ONE) == 9


def test_unknown_errors_are_logged(
    records: ConfluentFetcher, script: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as those of the group's coordinator, which we do not need."""
    script.coming = [Message(error=ClientError(ClientError.GROUP_AUTHORIZATION_FAILED)), record(5)]
    assert offsets(records) == {0: [5]}
    assert "GROUP_AUTHORIZATION_FAILED" in caplog.text


# -- held partitions


def test_held_records_are_kept_up_to_a_limit(
    records: ConfluentFetcher, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both held: each may keep half of 6 records, and is paused with the fourth; released, all come in order."""
    monkeypatch.setattr(confluent, "MAX_HELD_RECORDS", 6)
    records.pause([ONE, OTHER])
    script.coming = [*map(record, (5, 6, 7)), *(record(offset, 1) for offset in (50, 51, 52, 53))]
    assert records.poll(0) == []
    assert script.paused == [1]
    records.resume([OTHER])
    assert script.paused == []
    script.coming = [record(54, 1)]
    assert offsets(records) == {1: [50, 51, 52, 53]}
    assert offsets(records) == {1: [54]}
    records.resume([ONE])
    assert offsets(records) == {0: [5, 6, 7]}


def test_held_bytes_are_limited(
    records: ConfluentFetcher, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confluent, "MAX_HELD_BYTES", 10)
    records.pause([ONE])
    script.coming = [record(5, value=b"12345678")]
    records.poll(0)
    assert script.paused == []
    script.coming = [record(6, value=b"123")]
    records.poll(0)
    assert script.paused == [0]


def test_an_assignment_goes_on_behind_what_is_kept(records: ConfluentFetcher, script: Scripted) -> None:
    """A new partition moves no other: what was fetched and held is not fetched again, events are."""
    records.pause([ONE])
    script.coming = [record(5), record(6), event(confluent_buffer.END, 7), record(50, 1)]
    assert offsets(records) == {1: [50]}
    third = Partition("t", 2)
    records.assign([ONE, OTHER, third])
    records.seek(third, None)
    assert records.poll(0) == []
    assert script.assigned[-1] == {0: 7, 1: 51, 2: OFFSET_BEGINNING}
    records.resume([ONE])
    assert offsets(records) == {0: [5, 6]}


def test_nothing_is_lost_by_holding(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held and let go at random, paused for every little, assigned anew now and then: each record once, in order."""
    monkeypatch.setattr(confluent, "MAX_HELD_RECORDS", 300)
    monkeypatch.setattr(confluent, "MAX_BATCH", 100)
    topic, rng = broker.make_topic(partitions=3), Random(11)
    packed = {"linger.ms": 20, "batch.size": 10_000}
    # Else records that are sent again, as may happen on a topic just made, come behind later ones.
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap, "log_level": 0, "enable.idempotence": True, **packed}
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


def test_what_librdkafka_gets_of_the_settings() -> None:
    """The same cluster, login and certificates, also where kafka.client says them; nothing that it does not know."""
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


def test_a_token_is_read_anew(tmp_path: Any) -> None:
    """OAUTHBEARER: the file may be rotated while we run."""
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
        told, until = given["oauth_cb"]("")
        assert told == token
        assert until > time.time()
        assert given["sasl.mechanism"] == "OAUTHBEARER"


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had not been installed."""
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "streamdetect.sources.confluent")


@pytest.mark.usefixtures("no_package")
def test_the_package_is_not_installed() -> None:
    """Said before anything is connected, in one line with both ways out."""
    with pytest.raises(ConfigError, match=r"pip install 'streamdetect\[confluent\]', or set") as told:
        KafkaSource(configured(bootstrap_servers=["127.0.0.1:1"], topics=["t"]))
    assert told.value.exit_code == 3
    assert "\n" not in str(told.value)


def test_it_may_be_switched_between_runs() -> None:
    """A checkpoint does not ask who fetched the records."""
    both = [Settings(kafka=KafkaSettings(reader=reader)) for reader in ("kafka-python", "confluent")]
    assert both[0].detection() == both[1].detection()


def test_a_setting_that_librdkafka_refuses(broker: Broker, make_topic: Any) -> None:
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


def test_librdkafka_does_not_reach_what_the_other_does(
    secure_broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start ends, with what librdkafka says and the way out, and without the password."""
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
    ) as told:
        KafkaSource(chosen)
    for secret in (PASSWORD, "wrong-pass-51c2"):
        assert secret not in str(told.value)
        assert secret not in caplog.text
