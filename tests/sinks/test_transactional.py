"""Ledgers: one contract, held by Kafka (a real broker) and by the fake; and what records look like in Kafka."""

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


class House(Protocol):
    """One group and its topics; every `open` is what another process would open."""

    source: tuple[Partition, ...]

    def open(self) -> TransactionalSink: ...

    def published(self) -> list[int]:
        """The alerts that are there for everybody, in order."""
        ...


class MemoryHouse:
    """The fake."""

    def __init__(self) -> None:
        self.source: tuple[Partition, ...] = (Partition("a", 0), Partition("a", 1), Partition("b", 0))
        self._first = MemoryTransactionalSink()

    def open(self) -> TransactionalSink:
        return self._first.opened_again()

    def published(self) -> list[int]:
        return [published.tick_ms - alert(0).tick_ms for published in self._first.alerts]


class KafkaHouse:
    """Also used by tests of Kafka alone, with the topics and client settings they need."""

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
        """The dead letters that are there for everybody."""
        return stored(self.broker, self.dead_letters)

    def close(self) -> None:
        for sink in self._opened:
            sink.close()


@pytest.fixture(params=["memory", "kafka"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """Every implementation of a ledger."""
    if request.param == "memory":
        yield MemoryHouse()
        return
    with closing(KafkaHouse(request.getfixturevalue("broker"))) as made:
        yield made


@pytest.fixture
def kafka(broker: Broker) -> Iterator[KafkaHouse]:
    """Kafka alone."""
    with closing(KafkaHouse(broker)) as made:
        yield made


def test_nothing_is_committed_at_first(house: House) -> None:
    """A group that nobody ever owned has no positions and no note, whether one looks or claims."""
    sink = house.open()
    assert sink.fetch_committed(house.source) == Committed({}, None)
    assert sink.fence(house.source) == Committed({}, None)
    assert house.published() == []


def test_all_of_a_commit_is_there_for_others(house: House) -> None:
    """Outputs in their order, positions of several partitions, the note: seen by whoever looks or claims next."""
    owner, other = house.open(), house.open()
    owner.fence(house.source)
    positions = dict(zip(house.source, (3, 5, 7), strict=True))
    owner.commit(Outputs([alert(2), alert(1)]), positions, commit_metadata(1))
    wait_until(lambda: other.fetch_committed(house.source) == Committed(positions, commit_metadata(1)))
    assert other.fence(house.source) == Committed(positions, commit_metadata(1))
    assert house.published() == [2, 1]


def test_a_commit_of_some_partitions_leaves_the_others(house: House) -> None:
    """A beat commits one partition: its note is the newest, and the others keep the positions that they had."""
    owner = house.open()
    owner.fence(house.source)
    positions = dict(zip(house.source, (3, 5, 7), strict=True))
    owner.commit(Outputs(), positions, commit_metadata(1))
    for heartbeat, partition in enumerate(house.source, start=1):
        owner.commit(Outputs(), {partition: positions[partition]}, commit_metadata(1, heartbeat=heartbeat))
    assert house.open().fence(house.source) == Committed(positions, commit_metadata(1, heartbeat=3))


def test_positions_may_go_back(house: House) -> None:
    """A start from anew reads again what was read: the positions are those of the last commit, not the highest."""
    owner = house.open()
    owner.fence(house.source)
    for number, offset in ((1, 900), (2, 0)):
        owner.commit(Outputs(), dict.fromkeys(house.source, offset), commit_metadata(number))
    assert house.open().fence(house.source) == Committed(dict.fromkeys(house.source, 0), commit_metadata(2))


@pytest.mark.parametrize(
    "told",
    [
        CommitMetadata(1, "host-1-ab", "state", 0),
        CommitMetadata(
            2**40, 'räuber\n"quoted" \\ ☃', "", 2**53, heartbeat=10**9, evaluated_ms=0, released=True
        ),
        CommitMetadata(1, "h" * 255, "s" * 255, 1, evaluated_ms=-62_135_596_800_000),
    ],
)
def test_a_note_comes_back_as_it_was(house: House, told: CommitMetadata) -> None:
    """Every field of a note survives, whatever its texts hold and however large its numbers are."""
    owner = house.open()
    owner.fence(house.source)
    owner.commit(Outputs(), {house.source[0]: 1}, told)
    assert house.open().fence(house.source).metadata == told


def test_a_newer_owner_fences_the_older(house: House) -> None:
    """Once another has claimed and said so, every commit of the older fails (exit 6), and nothing of it is seen."""
    older, newer = house.open(), house.open()
    older.fence(house.source)
    older.commit(Outputs([alert(1)]), {house.source[0]: 1}, commit_metadata(1))
    found = newer.fence(house.source)
    assert found == Committed({house.source[0]: 1}, commit_metadata(1))
    newer.commit(Outputs(), found.positions, commit_metadata(1, epoch=2, owner="second"))
    for _ in range(2):
        with pytest.raises(FencedError) as told:
            older.commit(Outputs([alert(2)]), {house.source[0]: 2}, commit_metadata(2))
        assert told.value.exit_code == 6
    newer.commit(Outputs([alert(3)]), {house.source[0]: 3}, commit_metadata(2, epoch=2, owner="second"))
    assert house.published() == [1, 3]
    expected = Committed({house.source[0]: 3}, commit_metadata(2, epoch=2, owner="second"))
    assert house.open().fence(house.source) == expected


def test_the_beat_of_an_older_owner_is_fenced(house: House) -> None:
    """A beat has no outputs, and still the older owner learns by it that another has come."""
    older, newer = house.open(), house.open()
    older.fence(house.source)
    older.commit(Outputs(), {house.source[0]: 1}, commit_metadata(1))
    newer.fence(house.source)
    newer.commit(Outputs(), {house.source[0]: 1}, commit_metadata(1, epoch=2, owner="second"))
    with pytest.raises(FencedError):
        older.commit(Outputs(), {house.source[0]: 1}, commit_metadata(1, heartbeat=1))
    wait_until(
        lambda: older.fetch_committed(house.source).metadata == commit_metadata(1, epoch=2, owner="second")
    )


def test_a_claim_of_our_own_goes_on(house: House) -> None:
    """Whoever claims again is not fenced by itself."""
    owner = house.open()
    for number in (1, 2):
        owner.fence(house.source)
        owner.commit(Outputs([alert(number)]), {house.source[0]: number}, commit_metadata(number))
    assert house.published() == [1, 2]


def test_a_released_note_is_seen_by_the_next(house: House) -> None:
    """The last commit of an owner that ends says so, and the next one goes on from it."""
    first = house.open()
    first.fence(house.source)
    first.commit(Outputs([alert(1)]), {house.source[0]: 1}, replace(commit_metadata(1), released=True))
    first.close()
    second = house.open()
    wait_until(
        lambda: second.fetch_committed(house.source).metadata == replace(commit_metadata(1), released=True)
    )
    assert second.fence(house.source) == Committed(
        {house.source[0]: 1}, replace(commit_metadata(1), released=True)
    )
    second.commit(Outputs([alert(2)]), {house.source[0]: 2}, commit_metadata(2, epoch=2, owner="second"))
    assert house.published() == [1, 2]


# -- fencing in Kafka


def test_between_a_claim_and_its_first_note(kafka: KafkaHouse) -> None:
    """An owner that lives may win the group back as long as the newer has not said who it is. One of them ends,
    and nothing is lost or doubled.
    """
    older, newer = kafka.fenced(), kafka.open()
    older.commit(Outputs([alert(1)]), dict.fromkeys(kafka.source, 1), commit_metadata(1))
    newer.fence(kafka.source)
    older.commit(Outputs([alert(2)]), dict.fromkeys(kafka.source, 2), commit_metadata(2))
    with pytest.raises(FencedError, match="Somebody else has committed"):
        newer.commit(
            Outputs([alert(2)]), dict.fromkeys(kafka.source, 2), commit_metadata(1, epoch=2, owner="second")
        )
    older.commit(Outputs([alert(3)]), dict.fromkeys(kafka.source, 3), commit_metadata(3))
    assert kafka.published() == [1, 2, 3]
    assert kafka.open().fence(kafka.source).metadata == commit_metadata(3)


def test_positions_of_another_program(kafka: KafkaHouse) -> None:
    """Positions without a note of ours are told as positions, and no note."""
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


def test_killed_within_a_transaction(kafka: KafkaHouse) -> None:
    """A process killed when all was sent and nothing committed leaves nothing: not while its transaction is open, when
    a look still answers at once, and not after the next claim, which does not wait for the time-out (60 s).
    """
    source = kafka.source[0]
    standby = kafka.open()
    child = Child("hold", kafka.broker.bootstrap, kafka.group, kafka.alerts, source.topic)
    child.await_line("holding")
    assert is_open(kafka.broker, kafka.alerts)
    begun = time.monotonic()
    assert standby.fetch_committed([source]) == Committed({source: 1}, commit_metadata(1))
    assert time.monotonic() - begun < 2
    child.kill()
    assert numbers(visible(kafka.broker, kafka.alerts)) == [1]
    begun = time.monotonic()
    assert standby.fence([source]) == Committed({source: 1}, commit_metadata(1))
    assert time.monotonic() - begun < 10
    assert kafka.published() == [1]
    standby.commit(Outputs([alert(2), alert(3)]), {source: 3}, commit_metadata(2, epoch=2, owner="second"))
    assert kafka.published() == [1, 2, 3]


def test_killed_at_any_moment(kafka: KafkaHouse) -> None:
    """However far a killed process came, the next claim finds a note, positions and alerts of the same commit."""
    source = kafka.source[0]
    for round_number in range(1, 4):
        kafka.alerts, kafka.group = make_topic(kafka.broker), new_group()
        sink = kafka.open()
        child = Child("stream", kafka.broker.bootstrap, kafka.group, kafka.alerts, source.topic)
        enough = 7 * round_number
        wait_until(lambda: (sink.fetch_committed([source]).metadata or commit_metadata(0)).number >= enough)  # noqa: B023  # waited for here
        child.kill()
        found = sink.fence([source])
        assert found.metadata is not None
        assert found == Committed({source: found.metadata.number}, commit_metadata(found.metadata.number))
        assert kafka.published() == list(range(1, found.metadata.number + 1))


# -- what records look like


def test_alert(kafka: KafkaHouse) -> None:
    """Key: the episode; header: the action; timestamp: the tick; value: the body."""
    kafka.fenced().commit(Outputs([alert(1)]), {kafka.source[0]: 1}, commit_metadata(1))
    (record,) = stored(kafka.broker, kafka.alerts)
    assert (record.key, record.value) == (b"episode", b'{"number":1}')
    assert record.headers == (("streamdetect-action", b"opened"),)
    assert record.timestamp_ms == 1_772_424_000_001


def test_alerts_of_an_episode_stay_in_order(kafka: KafkaHouse) -> None:
    """One partition for each episode, and within it the order of the outputs, also over several commits."""
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


def test_dead_letter(kafka: KafkaHouse) -> None:
    """Value, key and headers untouched, whence and why in further headers."""
    told = dead_letter(b"\xff\x00 {", key=b"\x01", headers=(("kept", b"\xfe"), ("kept", b"")))
    kafka.fenced().commit(Outputs(dead_letters=[told]), {kafka.source[0]: 1}, commit_metadata(1))
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
    # Retention would delete a letter with the record's own, old time before anybody read it.
    assert record.timestamp_ms is not None
    assert record.timestamp_ms > 1_700_000_000_000


def test_a_detail_that_is_no_text(kafka: KafkaHouse) -> None:
    """Half a character in what a letter says (JSON allows one) does not stop the program."""
    told = replace(dead_letter(b"x"), detail="the field \ud800 holds no time")
    kafka.fenced().commit(Outputs(dead_letters=[told]), {kafka.source[0]: 1}, commit_metadata(1))
    (record,) = kafka.refused()
    assert dict(record.headers)["streamdetect.detail"] == rb"the field \ud800 holds no time"


@pytest.mark.parametrize("key", [b"k", None])
def test_tombstones_survive(kafka: KafkaHouse, key: bytes | None) -> None:
    """A null value stays null, also without a key, which the client by itself refuses to send; so does an empty one."""
    told = [dead_letter(None, key=key, timestamp_ms=None), dead_letter(b"", key=key)]
    kafka.fenced().commit(Outputs(dead_letters=told), {kafka.source[0]: 1}, commit_metadata(1))
    records = kafka.refused()
    assert [(record.key, record.value) for record in records] == [(key, None), (key, b"")]
    assert "streamdetect.origin-timestamp" not in dict(records[0].headers)


def test_alerts_and_letters_are_one_transaction(kafka: KafkaHouse) -> None:
    """Both go to their topics in one step; what is somebody else's to write is left to them."""
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


def test_many_letters(kafka: KafkaHouse) -> None:
    """One transaction takes as many records as were decided, in their order."""
    values = [b"%d" % number for number in range(10_000)]
    told = [dead_letter(value) for value in values]
    kafka.fenced().commit(Outputs(dead_letters=told), {kafka.source[0]: 1}, commit_metadata(1))
    assert [record.value for record in kafka.refused()] == values


def test_batches_that_are_too_large_are_split(broker: Broker) -> None:
    """Each record fits, all of them together do not: that is the client's to sort out, and no failure."""
    with closing(KafkaHouse(broker, linger_ms=50)) as kafka:
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
    """The client's own limit of 1 MB is lifted: what is too large is for the topic to say."""
    with closing(KafkaHouse(broker, compression_type=compression)) as kafka:
        kafka.dead_letters = make_topic(broker, max_message_bytes="8000000")
        sink = kafka.fenced()
        sink.commit(
            Outputs(dead_letters=[dead_letter(b"x" * 4_000_000)]), {kafka.source[0]: 1}, commit_metadata(1)
        )
        assert [len(record.value or b"") for record in kafka.refused()] == [4_000_000]


# -- what cannot be written


def test_missing_topic(broker: Broker) -> None:
    """Noticed at the start, with the nearest names; not created by asking."""
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
def test_a_record_that_is_refused(
    broker: Broker, configs: dict[str, Any], client: dict[str, Any], outputs: Outputs, advice: str
) -> None:
    """A SinkError (exit 8) at once, though there is patience left: it names the topic and says what to do. Nothing of
    the transaction is there, neither the records before it nor the note, and closing does not wait.
    """
    with closing(KafkaHouse(broker, **client)) as kafka:
        kafka.alerts = kafka.dead_letters = make_topic(broker, **configs)
        sink = kafka.fenced()
        with pytest.raises(SinkError, match=f"topic {kafka.alerts}: .*{advice}") as told:
            sink.commit(outputs, {kafka.source[0]: 1}, commit_metadata(1), patience_for(WAIT))
        assert told.value.exit_code == 8
        begun = time.monotonic()
        sink.close()
        assert time.monotonic() - begun < 3
        assert kafka.open().fence(kafka.source) == Committed({}, None)
        assert stored(broker, kafka.alerts) == []


@pytest.mark.parametrize("outputs", [Outputs(), Outputs([alert(2)])], ids=["nothing to write", "an alert"])
def test_deleted_topic(broker: Broker, outputs: Outputs) -> None:
    """Noticed by the next commits, with nothing to write too, as a SinkError that names the topic."""
    with closing(KafkaHouse(broker, metadata_max_age_ms=300)) as kafka:
        sink = kafka.fenced()
        sink.commit(Outputs([alert(1)]), {kafka.source[0]: 1}, commit_metadata(1))
        broker.delete_topic(kafka.alerts)
        with pytest.raises(SinkError, match=f"topic {kafka.alerts}: .*create it again"):
            _keep_committing(sink, kafka.source[0], outputs)


def _keep_committing(sink: TransactionalSink, source: Partition, outputs: Outputs) -> None:
    """Until something ends it, or it was too long."""
    patience = patience_for(WAIT)
    number = 1
    while patience():
        number += 1
        sink.commit(outputs, {source: number}, commit_metadata(number), patience)


def test_a_deleted_topic_is_noticed_without_settings(kafka: KafkaHouse) -> None:
    """The client's own 5 minutes until it looks at the topics again are not waited for."""
    sink = kafka.fenced()
    kafka.broker.delete_topic(kafka.dead_letters)
    with pytest.raises(SinkError, match=f"topic {kafka.dead_letters}"):
        _keep_committing(sink, kafka.source[0], Outputs())


def test_a_source_that_was_deleted(kafka: KafkaHouse) -> None:
    """The positions go with the topic, and nobody else has to be blamed for it: exit 4, no talk of another instance."""
    sink = kafka.fenced()
    source = kafka.source[2]
    sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))
    kafka.broker.delete_topic(source.topic)
    with pytest.raises(KafkaError, match=f"positions of the group {kafka.group} are gone") as told:
        _keep_committing(sink, source, Outputs([alert(2)]))
    assert told.value.exit_code == 4


def test_beats_that_went_with_a_topic(kafka: KafkaHouse) -> None:
    """The last beats lay on a partition that is gone: what is left of the checkpoint's note is still our own."""
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
    """A transaction's time-out above the brokers' limit is told at the claim, with the setting's name."""
    with (
        closing(KafkaHouse(broker, transaction_timeout_ms=3_600_000)) as kafka,
        pytest.raises(KafkaError, match=r"Lower kafka\.client\.transaction_timeout_ms"),
    ):
        kafka.fenced()


# -- logging in, and rights


def test_nobody_listens() -> None:
    """A broker that is not there is a KafkaError that says so."""
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
    """The same settings as for reading reach the broker for writing, over TLS and with a password."""
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
    """A broker that lets its user do only what was granted; whoever comes without a login may do everything."""
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
        ("topic", "open", SinkError, "grant our user DESCRIBE on it"),
        ("topic WRITE", "commit", SinkError, "Grant the configured user WRITE and DESCRIBE on the topic"),
        ("group", "look", KafkaError, "Grant the configured user READ on the group"),
        ("group READ", "commit", KafkaError, "Grant the configured user READ on the group"),
        ("id", "claim", KafkaError, "Grant the configured user WRITE and DESCRIBE on the transactional id"),
        ("source", "look", KafkaError, "Grant the configured user READ on"),
        ("source READ", "commit", KafkaError, "Grant the configured user READ on the topics"),
    ],
    ids=str,
)
def test_a_right_that_is_missing(
    strict_broker: Broker,
    missing: str | None,
    failing: str,
    kind: type[KafkaError | SinkError] | None,
    advice: str,
) -> None:
    """Told by the first step that needs it, at once, with the right to grant: 8 for a topic to write to, else 4."""
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
    told = _steps(secure_settings(strict_broker, "SASL_PLAINTEXT", group), alerts, source, reached)
    assert reached[-1] == failing
    if kind is not None:
        assert isinstance(told, kind)
        assert told.exit_code == kind.exit_code
        assert advice in str(told)


def _steps(
    settings: KafkaSettings, alerts: str, source: Partition, reached: list[str]
) -> KafkaError | SinkError | None:
    """The steps of a start, one after the other, until one fails."""
    try:
        reached.append("open")
        with closing(KafkaTransactionalSink(settings, alerts, None)) as sink:
            reached.append("look")
            sink.fetch_committed([source])
            reached.append("claim")
            sink.fence([source])
            reached.append("commit")
            sink.commit(Outputs([alert(1)]), {source: 1}, commit_metadata(1))
            reached.append("nothing")
    except (KafkaError, SinkError) as error:
        return error
    return None
