"""Transactional sinks: one contract for Kafka (a real broker) and the fake; the records in Kafka; errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import pytest
from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import (  # type: ignore[import-untyped]
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
)
from transactional_process import (
    WAIT,
    Child,
    alert,
    commit_metadata,
    is_open,
    kafka_settings,
    make_topic,
    numbers,
    patience_for,
    stored,
    visible,
    wait_until,
)

from broker import PASSWORD, USER, Broker
from streamdetect.config import KafkaSettings
from streamdetect.errors import FencedError, KafkaError, SinkError
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.sinks import Outputs
from streamdetect.sinks.kafka import KafkaTransactionalSink
from streamdetect.sinks.transactional import CommitMetadata, Committed, TransactionalSink
from streamdetect.testing import MemoryTransactionalSink


def dead_letter(value: bytes | None, **more: Any) -> DeadLetter:
    fields = {"timestamp_ms": 1_000, "key": None, "headers": ()} | more
    record = Record(Partition("source", 3), 42, value=value, **fields)
    return DeadLetter(record, "not_json", "expected a value at byte 0")


def new_group() -> str:
    return f"group-{uuid.uuid4().hex[:12]}"


# -- the contract


class Environment(Protocol):
    """One consumer group and its topics. Each `open` opens the sink as another process would."""

    source: tuple[Partition, ...]

    def open(self) -> TransactionalSink: ...

    def published(self) -> list[int]:
        """The committed alerts, in order."""
        ...


class MemoryEnvironment:
    """The fake sink."""

    def __init__(self) -> None:
        self.source: tuple[Partition, ...] = (Partition("a", 0), Partition("a", 1), Partition("b", 0))
        self._first = MemoryTransactionalSink()

    def open(self) -> TransactionalSink:
        return self._first.opened_again()

    def published(self) -> list[int]:
        return [published.tick_ms - alert(0).tick_ms for published in self._first.alerts]


class KafkaEnvironment:
    """A real broker. Tests of Kafka alone change the topics and client settings."""

    def __init__(self, broker: Broker, **client: Any) -> None:
        self.broker = broker
        self.group = new_group()
        self.alerts, self.dead_letters = make_topic(broker), make_topic(broker)
        one, two = make_topic(broker, partitions=2), make_topic(broker)
        self.source: tuple[Partition, ...] = (Partition(one, 0), Partition(one, 1), Partition(two, 0))
        self._client = client
        self._opened: list[KafkaTransactionalSink] = []

    def open(self) -> KafkaTransactionalSink:
        settings = kafka_settings(self.broker.bootstrap, self.group, **self._client)
        self._opened.append(KafkaTransactionalSink(settings, self.alerts, self.dead_letters))
        return self._opened[-1]

    def fenced(self) -> KafkaTransactionalSink:
        sink = self.open()
        sink.fence(self.source)
        return sink

    def published(self) -> list[int]:
        return numbers(stored(self.broker, self.alerts))

    def refused(self) -> list[Record]:
        """The committed dead letters."""
        return stored(self.broker, self.dead_letters)

    def close(self) -> None:
        for sink in self._opened:
            sink.close()


@pytest.fixture(params=["memory", "kafka"])
def environment(request: pytest.FixtureRequest) -> Iterator[Environment]:
    """Each implementation of a transactional sink."""
    if request.param == "memory":
        yield MemoryEnvironment()
        return
    with closing(KafkaEnvironment(request.getfixturevalue("broker"))) as created:
        yield created


@pytest.fixture
def kafka(broker: Broker) -> Iterator[KafkaEnvironment]:
    """Only Kafka."""
    with closing(KafkaEnvironment(broker)) as created:
        yield created


def test_nothing_is_committed_at_first(environment: Environment) -> None:
    """A consumer group without an owner has no positions and no commit metadata, before and after `fence`."""
    sink = environment.open()
    assert sink.fetch_committed(environment.source) == Committed({}, None)
    assert sink.fence(environment.source) == Committed({}, None)
    assert environment.published() == []


def test_a_commit_is_visible_to_others(environment: Environment) -> None:
    """Outputs in order, positions of several partitions, and the commit metadata are visible to another sink."""
    owner, other = environment.open(), environment.open()
    owner.fence(environment.source)
    positions = dict(zip(environment.source, (3, 5, 7), strict=True))
    owner.commit(Outputs([alert(2), alert(1)]), positions, commit_metadata(1))
    wait_until(lambda: other.fetch_committed(environment.source) == Committed(positions, commit_metadata(1)))
    assert other.fence(environment.source) == Committed(positions, commit_metadata(1))
    assert environment.published() == [2, 1]


def test_a_commit_of_some_partitions_keeps_the_others(environment: Environment) -> None:
    """A heartbeat commits one partition: its commit metadata is the newest; the others keep their positions."""
    owner = environment.open()
    owner.fence(environment.source)
    positions = dict(zip(environment.source, (3, 5, 7), strict=True))
    owner.commit(Outputs(), positions, commit_metadata(1))
    for heartbeat, partition in enumerate(environment.source, start=1):
        owner.commit(Outputs(), {partition: positions[partition]}, commit_metadata(1, heartbeat=heartbeat))
    assert environment.open().fence(environment.source) == Committed(
        positions, commit_metadata(1, heartbeat=3)
    )


def test_positions_may_go_back(environment: Environment) -> None:
    """A fresh start reads records again: the positions are those of the last commit, not the highest."""
    owner = environment.open()
    owner.fence(environment.source)
    for number, offset in ((1, 900), (2, 0)):
        owner.commit(Outputs(), dict.fromkeys(environment.source, offset), commit_metadata(number))
    assert environment.open().fence(environment.source) == Committed(
        dict.fromkeys(environment.source, 0), commit_metadata(2)
    )


@pytest.mark.parametrize(
    "metadata",
    [
        CommitMetadata(1, "host-1-ab", "state", 0),
        CommitMetadata(
            2**40, 'räuber\n"quoted" \\ ☃', "", 2**53, heartbeat=10**9, evaluated_ms=0, released=True
        ),
        CommitMetadata(1, "h" * 255, "s" * 255, 1, evaluated_ms=-62_135_596_800_000),
    ],
)
def test_commit_metadata_round_trip(environment: Environment, metadata: CommitMetadata) -> None:
    """Every field is read back unchanged: any text, any number."""
    owner = environment.open()
    owner.fence(environment.source)
    owner.commit(Outputs(), {environment.source[0]: 1}, metadata)
    assert environment.open().fence(environment.source).metadata == metadata


def test_a_newer_owner_fences_the_older(environment: Environment) -> None:
    """After `fence` and a commit of a newer owner, each commit of the older fails (exit 6) and has no effect."""
    older, newer = environment.open(), environment.open()
    older.fence(environment.source)
    older.commit(Outputs([alert(1)]), {environment.source[0]: 1}, commit_metadata(1))
    committed = newer.fence(environment.source)
    assert committed == Committed({environment.source[0]: 1}, commit_metadata(1))
    newer.commit(Outputs(), committed.positions, commit_metadata(1, epoch=2, owner="second"))
    for _ in range(2):
        with pytest.raises(FencedError) as raised:
            older.commit(Outputs([alert(2)]), {environment.source[0]: 2}, commit_metadata(2))
        assert raised.value.exit_code == 6
    newer.commit(Outputs([alert(3)]), {environment.source[0]: 3}, commit_metadata(2, epoch=2, owner="second"))
    assert environment.published() == [1, 3]
    expected = Committed({environment.source[0]: 3}, commit_metadata(2, epoch=2, owner="second"))
    assert environment.open().fence(environment.source) == expected


def test_the_heartbeat_of_an_older_owner_is_fenced(environment: Environment) -> None:
    """A heartbeat has no outputs, but it also fails after another owner has taken over."""
    older, newer = environment.open(), environment.open()
    older.fence(environment.source)
    older.commit(Outputs(), {environment.source[0]: 1}, commit_metadata(1))
    newer.fence(environment.source)
    newer.commit(Outputs(), {environment.source[0]: 1}, commit_metadata(1, epoch=2, owner="second"))
    with pytest.raises(FencedError):
        older.commit(Outputs(), {environment.source[0]: 1}, commit_metadata(1, heartbeat=1))
    wait_until(
        lambda: (
            older.fetch_committed(environment.source).metadata == commit_metadata(1, epoch=2, owner="second")
        )
    )


def test_an_owner_does_not_fence_itself(environment: Environment) -> None:
    """A second `fence` of the same owner does not fence it."""
    owner = environment.open()
    for number in (1, 2):
        owner.fence(environment.source)
        owner.commit(Outputs([alert(number)]), {environment.source[0]: number}, commit_metadata(number))
    assert environment.published() == [1, 2]


def test_a_release_is_visible_to_the_next_owner(environment: Environment) -> None:
    """The last commit of a clean shutdown is marked as released, and the next owner continues from it."""
    first = environment.open()
    first.fence(environment.source)
    first.commit(Outputs([alert(1)]), {environment.source[0]: 1}, replace(commit_metadata(1), released=True))
    first.close()
    second = environment.open()
    wait_until(
        lambda: (
            second.fetch_committed(environment.source).metadata == replace(commit_metadata(1), released=True)
        )
    )
    assert second.fence(environment.source) == Committed(
        {environment.source[0]: 1}, replace(commit_metadata(1), released=True)
    )
    second.commit(
        Outputs([alert(2)]), {environment.source[0]: 2}, commit_metadata(2, epoch=2, owner="second")
    )
    assert environment.published() == [1, 2]


# -- fencing in Kafka


def test_between_a_fence_and_the_first_commit(kafka: KafkaEnvironment) -> None:
    """A live owner may win the group back until the newer owner has committed. One of them ends; nothing is lost or
    duplicated.
    """
    older, newer = kafka.fenced(), kafka.open()
    older.commit(Outputs([alert(1)]), dict.fromkeys(kafka.source, 1), commit_metadata(1))
    newer.fence(kafka.source)
    older.commit(Outputs([alert(2)]), dict.fromkeys(kafka.source, 2), commit_metadata(2))
    with pytest.raises(FencedError, match="Another program has committed"):
        newer.commit(
            Outputs([alert(2)]), dict.fromkeys(kafka.source, 2), commit_metadata(1, epoch=2, owner="second")
        )
    older.commit(Outputs([alert(3)]), dict.fromkeys(kafka.source, 3), commit_metadata(3))
    assert kafka.published() == [1, 2, 3]
    assert kafka.open().fence(kafka.source).metadata == commit_metadata(3)


def test_positions_of_another_program(kafka: KafkaEnvironment) -> None:
    """Positions with other metadata are returned, without commit metadata."""
    producer = KafkaProducer(bootstrap_servers=kafka.broker.bootstrap, transactional_id=kafka.group)
    producer.init_transactions()
    producer.begin_transaction()
    offsets = {
        TopicPartition(*kafka.source[0]): OffsetAndMetadata(4, "", -1),
        TopicPartition(*kafka.source[1]): OffsetAndMetadata(5, '{"streamdetect":9}', -1),
    }
    producer.send_offsets_to_transaction(offsets, kafka.group)
    producer.commit_transaction()
    producer.close()
    expected = Committed({kafka.source[0]: 4, kafka.source[1]: 5}, None)
    assert kafka.open().fence(kafka.source) == expected


# -- all or nothing


def test_killed_during_a_transaction(kafka: KafkaEnvironment) -> None:
    """A process killed after sending everything, before the commit, leaves nothing visible: neither while its
    transaction is open (`fetch_committed` still answers immediately), nor after the next `fence`, which does not wait
    for the transaction timeout (60 s).
    """
    source = kafka.source[0]
    standby = kafka.open()
    child = Child("hold", kafka.broker.bootstrap, kafka.group, kafka.alerts, source.topic)
    child.await_line("holding")
    assert is_open(kafka.broker, kafka.alerts)
    started = time.monotonic()
    assert standby.fetch_committed([source]) == Committed({source: 1}, commit_metadata(1))
    assert time.monotonic() - started < 2
    child.kill()
    assert numbers(visible(kafka.broker, kafka.alerts)) == [1]
    started = time.monotonic()
    assert standby.fence([source]) == Committed({source: 1}, commit_metadata(1))
    assert time.monotonic() - started < 10
    assert kafka.published() == [1]
    standby.commit(Outputs([alert(2), alert(3)]), {source: 3}, commit_metadata(2, epoch=2, owner="second"))
    assert kafka.published() == [1, 2, 3]


def test_killed_at_any_moment(kafka: KafkaEnvironment) -> None:
    """Wherever a process is killed, the next `fence` finds metadata, positions and alerts of the same commit."""
    source = kafka.source[0]
    for round_number in range(1, 4):
        kafka.alerts, kafka.group = make_topic(kafka.broker), new_group()
        sink = kafka.open()
        child = Child("stream", kafka.broker.bootstrap, kafka.group, kafka.alerts, source.topic)
        enough = 7 * round_number
        wait_until(lambda: (sink.fetch_committed([source]).metadata or commit_metadata(0)).number >= enough)  # noqa: B023  # waited for here
        child.kill()
        committed = sink.fence([source])
        assert committed.metadata is not None
        assert committed == Committed(
            {source: committed.metadata.number}, commit_metadata(committed.metadata.number)
        )
        assert kafka.published() == list(range(1, committed.metadata.number + 1))


# -- records in Kafka


def test_alert_record(kafka: KafkaEnvironment) -> None:
    """The key is the episode, the header the action, the timestamp the tick, the value the body."""
    kafka.fenced().commit(Outputs([alert(1)]), {kafka.source[0]: 1}, commit_metadata(1))
    (record,) = stored(kafka.broker, kafka.alerts)
    assert (record.key, record.value) == (b"episode", b'{"number":1}')
    assert record.headers == (("streamdetect-action", b"opened"),)
    assert record.timestamp_ms == 1_772_424_000_001


def test_alerts_of_an_episode_stay_in_order(kafka: KafkaEnvironment) -> None:
    """All alerts of an episode are in one partition, in the order of the outputs, across commits."""
    kafka.alerts = make_topic(kafka.broker, partitions=4)
    sink = kafka.fenced()
    for number, start in enumerate(range(0, 700, 350), start=1):
        some = [alert(each, f"episode-{each % 7}") for each in range(start, start + 350)]
        sink.commit(Outputs(some), {kafka.source[0]: start}, commit_metadata(number))
    records = stored(kafka.broker, kafka.alerts)
    for episode in range(7):
        own = [record for record in records if record.key == f"episode-{episode}".encode()]
        assert len({record.partition for record in own}) == 1
        assert numbers(own) == list(range(episode, 700, 7))


def test_dead_letter_record(kafka: KafkaEnvironment) -> None:
    """Value, key and headers are unchanged; added headers hold the origin and the reason."""
    sent = dead_letter(b"\xff\x00 {", key=b"\x01", headers=(("kept", b"\xfe"), ("kept", b"")))
    kafka.fenced().commit(Outputs(dead_letters=[sent]), {kafka.source[0]: 1}, commit_metadata(1))
    (record,) = kafka.refused()
    assert (record.key, record.value) == (b"\x01", b"\xff\x00 {")
    assert record.headers == (
        ("kept", b"\xfe"),
        ("kept", b""),
        ("streamdetect.origin-topic", b"source"),
        ("streamdetect.origin-partition", b"3"),
        ("streamdetect.origin-offset", b"42"),
        ("streamdetect.origin-timestamp", b"1000"),
        ("streamdetect.reason", b"not_json"),
        ("streamdetect.detail", b"expected a value at byte 0"),
    )
    # With the old timestamp of the record, retention would delete the dead letter at once.
    assert record.timestamp_ms is not None
    assert record.timestamp_ms > 1_700_000_000_000


def test_a_detail_with_a_lone_surrogate(kafka: KafkaEnvironment) -> None:
    """A lone surrogate in the detail, which JSON allows, is escaped."""
    sent = replace(dead_letter(b"x"), detail="the field \ud800 holds no time")
    kafka.fenced().commit(Outputs(dead_letters=[sent]), {kafka.source[0]: 1}, commit_metadata(1))
    (record,) = kafka.refused()
    assert dict(record.headers)["streamdetect.detail"] == rb"the field \ud800 holds no time"


@pytest.mark.parametrize("key", [b"k", None])
def test_tombstones_survive(kafka: KafkaEnvironment, key: bytes | None) -> None:
    """A null value stays null, also without a key, which the client refuses by default; an empty value stays empty."""
    sent = [dead_letter(None, key=key, timestamp_ms=None), dead_letter(b"", key=key)]
    kafka.fenced().commit(Outputs(dead_letters=sent), {kafka.source[0]: 1}, commit_metadata(1))
    records = kafka.refused()
    assert [(record.key, record.value) for record in records] == [(key, None), (key, b"")]
    assert "streamdetect.origin-timestamp" not in dict(records[0].headers)


def test_alerts_and_dead_letters_are_one_transaction(kafka: KafkaEnvironment) -> None:
    """Both are committed together; outputs whose topic is None are skipped."""
    both = Outputs([alert(1)], [dead_letter(b"x")])
    kafka.fenced().commit(both, {kafka.source[0]: 1}, commit_metadata(1))
    assert (kafka.published(), len(kafka.refused())) == ([1], 1)
    settings = kafka_settings(kafka.broker.bootstrap, kafka.group)
    for number, topics in enumerate(
        ((kafka.alerts, None), (None, kafka.dead_letters), (None, None)), start=2
    ):
        with closing(KafkaTransactionalSink(settings, *topics)) as sink:
            sink.fence(kafka.source)
            sink.commit(both, {kafka.source[0]: number}, commit_metadata(number, epoch=number))
    assert (kafka.published(), len(kafka.refused())) == ([1, 1], 2)


def test_many_dead_letters(kafka: KafkaEnvironment) -> None:
    """One transaction contains 10,000 records, in order."""
    values = [b"%d" % number for number in range(10_000)]
    sent = [dead_letter(value) for value in values]
    kafka.fenced().commit(Outputs(dead_letters=sent), {kafka.source[0]: 1}, commit_metadata(1))
    assert [record.value for record in kafka.refused()] == values


def test_batches_that_are_too_large_are_split(broker: Broker) -> None:
    """When each record fits but the batch does not, the client splits the batch."""
    with closing(KafkaEnvironment(broker, linger_ms=50)) as kafka:
        kafka.dead_letters = make_topic(broker, max_message_bytes="2000")
        values = [b"%d" % number + b"x" * 600 for number in range(20)]
        kafka.fenced().commit(
            Outputs(dead_letters=[dead_letter(value) for value in values]),
            {kafka.source[0]: 1},
            commit_metadata(1),
        )
        assert [record.value for record in kafka.refused()] == values


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_large_records_pass(broker: Broker, compression: str | None) -> None:
    """The client's limit of 1 MB is raised, so that only the topic's limit applies."""
    with closing(KafkaEnvironment(broker, compression_type=compression)) as kafka:
        kafka.dead_letters = make_topic(broker, max_message_bytes="8000000")
        sink = kafka.fenced()
        sink.commit(
            Outputs(dead_letters=[dead_letter(b"x" * 4_000_000)]), {kafka.source[0]: 1}, commit_metadata(1)
        )
        assert [len(record.value or b"") for record in kafka.refused()] == [4_000_000]


# -- refused writes


def test_missing_topic(broker: Broker) -> None:
    """Reported at the start with similar names. The request does not create the topic."""
    make_topic(broker, "streamdetect.alerts")
    with pytest.raises(
        SinkError, match=r"no topic streamdetect.alert to write to \(similar: streamdetect.alerts"
    ):
        KafkaTransactionalSink(kafka_settings(broker.bootstrap, new_group()), "streamdetect.alert", None)
    assert "streamdetect.alert" not in broker.admin.list_topics()


COMPACTED, OLD = {"cleanup_policy": "compact"}, {"message_timestamp_before_max_ms": "1000"}


@pytest.mark.parametrize(
    ("configs", "client", "outputs", "advice"),
    [
        (
            {"max_message_bytes": "2000"},
            {},
            Outputs(dead_letters=[dead_letter(b"fits"), dead_letter(b"x" * 5_000), dead_letter(b"fits too")]),
            "Raise max.message.bytes",
        ),
        (
            {},
            {"max_request_size": 1_000},
            Outputs(dead_letters=[dead_letter(b"first"), dead_letter(b"x" * 5_000), dead_letter(b"third")]),
            "larger than the maximum request size",
        ),
        (
            COMPACTED,
            {"linger_ms": 50},
            Outputs(dead_letters=[dead_letter(b"x", key=b"k"), dead_letter(b"x")]),
            "cleanup.policy",
        ),
        (OLD, {}, Outputs([alert(1)]), "message.timestamp.before.max.ms"),
    ],
    ids=["too large for the topic", "too large for the client", "no key", "too old"],
)
def test_a_refused_record(
    broker: Broker, configs: dict[str, Any], client: dict[str, Any], outputs: Outputs, advice: str
) -> None:
    """Raises SinkError (exit 8) with the topic and advice immediately, without retries. Nothing of the transaction is
    visible, neither records nor commit metadata, and `close` does not wait.
    """
    with closing(KafkaEnvironment(broker, **client)) as kafka:
        kafka.alerts = kafka.dead_letters = make_topic(broker, **configs)
        sink = kafka.fenced()
        with pytest.raises(SinkError, match=f"topic {kafka.alerts}: .*{advice}") as raised:
            sink.commit(outputs, {kafka.source[0]: 1}, commit_metadata(1), patience_for(WAIT))
        assert raised.value.exit_code == 8
        started = time.monotonic()
        sink.close()
        assert time.monotonic() - started < 3
        assert kafka.open().fence(kafka.source) == Committed({}, None)
        assert stored(broker, kafka.alerts) == []


@pytest.mark.parametrize("outputs", [Outputs(), Outputs([alert(2)])], ids=["nothing to write", "an alert"])
def test_deleted_topic(broker: Broker, outputs: Outputs) -> None:
    """One of the next commits raises SinkError with the topic, even without outputs."""
    with closing(KafkaEnvironment(broker, metadata_max_age_ms=300)) as kafka:
        sink = kafka.fenced()
        sink.commit(Outputs([alert(1)]), {kafka.source[0]: 1}, commit_metadata(1))
        broker.delete_topic(kafka.alerts)
        with pytest.raises(SinkError, match=f"topic {kafka.alerts}: .*create it again"):
            _keep_committing(sink, kafka.source[0], outputs)


def _keep_committing(sink: TransactionalSink, source: Partition, outputs: Outputs) -> None:
    """Commit until it raises, or for at most `WAIT` seconds."""
    patience = patience_for(WAIT)
    number = 1
    while patience():
        number += 1
        sink.commit(outputs, {source: number}, commit_metadata(number), patience)


def test_a_deleted_topic_is_detected_with_default_settings(kafka: KafkaEnvironment) -> None:
    """Detection does not wait for the client's default metadata age of 5 minutes."""
    sink = kafka.fenced()
    kafka.broker.delete_topic(kafka.dead_letters)
    with pytest.raises(SinkError, match=f"topic {kafka.dead_letters}"):
        _keep_committing(sink, kafka.source[0], Outputs())


def test_a_deleted_source_topic(kafka: KafkaEnvironment) -> None:
    """The committed offsets are lost with the topic: exit 4, and the message does not blame another instance."""
    sink = kafka.fenced()
    source = kafka.source[2]
    sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))
    kafka.broker.delete_topic(source.topic)
    with pytest.raises(KafkaError, match=f"offsets of the group {kafka.group} are gone") as raised:
        _keep_committing(sink, source, Outputs([alert(2)]))
    assert raised.value.exit_code == 4


def test_heartbeats_lost_with_a_topic(kafka: KafkaEnvironment) -> None:
    """The last heartbeats were committed for a deleted partition: the checkpoint's metadata still counts as its own."""
    sink = kafka.fenced()
    gone = kafka.source[2]
    sink.commit(Outputs([alert(1)]), dict.fromkeys(kafka.source, 1), commit_metadata(1))
    sink.commit(Outputs(), {gone: 1}, commit_metadata(1, heartbeat=1))
    kafka.broker.delete_topic(gone.topic)
    wait_until(lambda: gone not in sink.fetch_committed(kafka.source).positions)
    sink._drop_producer()  # as after any failure
    sink.commit(Outputs([alert(2)]), dict.fromkeys(kafka.source[:2], 2), commit_metadata(2))
    assert kafka.published() == [1, 2]


def test_settings_that_the_brokers_refuse(broker: Broker) -> None:
    """A transaction timeout above the brokers' limit is reported by `fence`, with the name of the setting."""
    with (
        closing(KafkaEnvironment(broker, transaction_timeout_ms=3_600_000)) as kafka,
        pytest.raises(KafkaError, match=r"Lower kafka\.client\.transaction_timeout_ms"),
    ):
        kafka.fenced()


# -- authentication and permissions


def test_an_unreachable_broker() -> None:
    """Raises KafkaError with the cause."""
    settings = kafka_settings("127.0.0.1:1", "group", bootstrap_timeout_ms=500)
    with pytest.raises(KafkaError, match="Nothing listens at that address"):
        KafkaTransactionalSink(settings, None, None)


def secure_settings(broker: Broker, listener: str, group: str, password: str = PASSWORD) -> KafkaSettings:
    assert broker.certificates is not None
    chosen: dict[str, Any] = {
        "bootstrap_servers": [broker.address(listener)],
        "security_protocol": listener,
        "sasl_mechanism": "SCRAM-SHA-512",
        "username": USER,
        "password": password,
        "ca_file": broker.certificates.ca,
        "group_id": group,
        "client": {"bootstrap_timeout_ms": 1_500},
    }
    return KafkaSettings(**chosen)


def test_login(secure_broker: Broker) -> None:
    """Writes over TLS with a password, with the same settings as for reading."""
    topic, source = make_topic(secure_broker), Partition(make_topic(secure_broker))
    with closing(
        KafkaTransactionalSink(secure_settings(secure_broker, "SASL_SSL", "login"), topic, None)
    ) as sink:
        sink.fence([source])
        sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))
    assert numbers(stored(secure_broker, topic)) == [1]
    with pytest.raises(KafkaError, match="user name or password"):
        KafkaTransactionalSink(
            secure_settings(secure_broker, "SASL_SSL", "login", "wrong-pass-77ab1c"), topic, None
        )


TOPIC, GROUP, TRANSACTIONAL_ID = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
READ, WRITE, DESCRIBE = ACLOperation.READ, ACLOperation.WRITE, ACLOperation.DESCRIBE


@pytest.fixture(scope="module")
def strict_broker() -> Iterator[Broker]:
    """A broker that enforces ACLs for its user; anonymous clients may do everything."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with Broker(secure=True, properties=properties) as started:
        yield started


def grant(broker: Broker, kind: Any, name: str, *operations: Any) -> None:
    pattern = ResourcePattern(kind, name)
    allow = ACLPermissionType.ALLOW
    broker.admin.create_acls([ACL(f"User:{USER}", "*", each, allow, pattern) for each in operations])


@pytest.mark.parametrize(
    ("missing", "failing", "kind", "advice"),
    [
        (None, "nothing", None, ""),
        ("topic", "open", SinkError, "grant the configured user DESCRIBE on it"),
        ("topic WRITE", "commit", SinkError, "Grant the configured user WRITE and DESCRIBE on the topic"),
        ("group", "fetch_committed", KafkaError, "Grant the configured user READ on the group"),
        ("group READ", "commit", KafkaError, "Grant the configured user READ on the group"),
        ("id", "fence", KafkaError, "Grant the configured user WRITE and DESCRIBE on the transactional id"),
        ("source", "fetch_committed", KafkaError, "Grant the configured user READ on"),
        ("source READ", "commit", KafkaError, "Grant the configured user READ on the topics"),
    ],
    ids=str,
)
def test_a_missing_permission(
    strict_broker: Broker,
    missing: str | None,
    failing: str,
    kind: type[KafkaError | SinkError] | None,
    advice: str,
) -> None:
    """The first step that needs it raises, with the permission to grant: exit 8 for an output topic, else 4."""
    alerts, source, group = make_topic(strict_broker), Partition(make_topic(strict_broker)), new_group()
    rights = {
        "topic": (TOPIC, alerts, {DESCRIBE, WRITE}),
        "source": (TOPIC, source.topic, {DESCRIBE, READ}),
        "group": (GROUP, group, {DESCRIBE, READ}),
        "id": (TRANSACTIONAL_ID, group, {DESCRIBE, WRITE}),
    }
    which, _, operation = (missing or "").partition(" ")
    for name, (resource, pattern, operations) in rights.items():
        left = operations if name != which else operations - {ACLOperation[operation]} if operation else set()
        if left:
            grant(strict_broker, resource, pattern, *left)
    reached: list[str] = []
    raised = _steps(secure_settings(strict_broker, "SASL_PLAINTEXT", group), alerts, source, reached)
    assert reached[-1] == failing
    if kind is not None:
        assert isinstance(raised, kind)
        assert raised.exit_code == kind.exit_code
        assert advice in str(raised)


def _steps(
    settings: KafkaSettings, alerts: str, source: Partition, reached: list[str]
) -> KafkaError | SinkError | None:
    """Run the steps of a start until one fails; return its error."""
    try:
        reached.append("open")
        with closing(KafkaTransactionalSink(settings, alerts, None)) as sink:
            reached.append("fetch_committed")
            sink.fetch_committed([source])
            reached.append("fence")
            sink.fence([source])
            reached.append("commit")
            sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))
            reached.append("nothing")
    except (KafkaError, SinkError) as error:
        return error
    return None
