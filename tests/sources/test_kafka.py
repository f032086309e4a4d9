"""The Kafka sources against a real broker: every record once and in order, and a clear error for everything else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Producer as ConfluentProducer
from kafka import KafkaProducer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from kafka.errors import LogTruncationError  # type: ignore[import-untyped]
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from broker import MECHANISMS, PASSWORD, USER, Broker
from streamdetect.broker.causes import Attempt, most_probable_cause
from streamdetect.broker.similar_names import similar_names
from streamdetect.config import KafkaSettings
from streamdetect.errors import ConfigError, KafkaError, LostOffsetsError
from streamdetect.model import Batch, Partition
from streamdetect.sources import Source, confluent
from streamdetect.sources.kafka_live import KafkaSource
from streamdetect.sources.kafka_range import KafkaRange

WAIT = 20.0
"""Seconds that a test waits for something that should happen at once."""

MakeTopic = Callable[..., str]
Configure = Callable[..., KafkaSettings]


@pytest.fixture
def producer(broker: Broker) -> Iterator[KafkaProducer]:
    """A new one for each test: a producer that has written to a topic loops once that topic is deleted."""
    created = KafkaProducer(bootstrap_servers=broker.bootstrap)
    yield created
    created.close()


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    """`opened(KafkaSource(...), positions)` begins a source and closes it after the test."""
    sources: list[Any] = []

    def begin(source: Any, *positions: Any) -> Any:
        sources.append(source)
        if isinstance(source, KafkaSource):
            source.begin(*positions)
        return source

    yield begin
    for source in sources:
        source.close()


@pytest.fixture(params=["kafka-python", "confluent"])
def reader(request: pytest.FixtureRequest) -> str:
    """One contract, every reader: a test that uses this, `settings` or `secure` runs with each."""
    return str(request.param)


@pytest.fixture
def settings(reader: str) -> Configure:
    """`settings(broker, *topics, **more)` for a reader."""

    def configure(broker: Broker, *topics: str, **more: Any) -> KafkaSettings:
        client = {"metadata_max_age_ms": 300, "bootstrap_timeout_ms": 10_000, **more.pop("client", {})}
        servers = [broker.bootstrap]
        return configured(bootstrap_servers=servers, topics=topics, client=client, reader=reader, **more)

    return configure


def configured(**chosen: Any) -> KafkaSettings:
    """Settings as from a configuration file: lists where the settings hold tuples."""
    return KafkaSettings(**chosen)


def produce(producer: Any, topic: str, values: Collection[str], partition: int = 0, **more: Any) -> None:
    for value in values:
        producer.send(topic, value.encode(), partition=partition, **more)
    producer.flush()


def read(
    source: Source, count: int, hold: Collection[Partition] = (), into: list[Batch] | None = None
) -> list[Batch]:
    """Poll until `count` records have arrived; `into` also holds those that arrived before an error."""
    batches = [] if into is None else into
    deadline = time.monotonic() + WAIT
    while sum(map(len, batches)) < count:
        assert time.monotonic() < deadline, f"only {values(batches)} in {WAIT:g} s"
        batches += source.poll(hold, 200)
    return batches


def read_out(source: Source) -> list[Batch]:
    """Poll until every partition has ended."""
    batches: list[Batch] = []
    deadline = time.monotonic() + WAIT
    while source.at_end() != set(source.partitions()):
        assert time.monotonic() < deadline, f"not at the end after {WAIT:g} s; {values(batches)}"
        batches += source.poll((), 200)
    return batches


def poll_until(source: Source, done: Callable[[], bool], hold: Collection[Partition] = ()) -> None:
    """Poll, expecting no records, until a condition holds."""
    deadline = time.monotonic() + WAIT
    while not done():
        assert time.monotonic() < deadline
        assert source.poll(hold, 50) == []


def values(batches: list[Batch]) -> list[str]:
    return [(value or b"").decode() for batch in batches for value in batch.values]


def numbers(start: int, stop: int) -> list[str]:
    return [str(number) for number in range(start, stop)]


# -- reading


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_every_compression_of_two_producers(
    broker: Broker,
    make_topic: MakeTopic,
    opened: Any,
    compression: str | None,
    client: str,
    settings: Configure,
) -> None:
    """Values, keys, headers, timestamps and offsets arrive as written, with every compression."""
    topic = make_topic()
    texts = [f"record {number} " + "x" * 200 for number in range(50)]
    if client == "confluent":
        other = ConfluentProducer(
            {
                "bootstrap.servers": broker.bootstrap,
                "compression.type": compression or "none",
                "linger.ms": 50,
                "log_level": 0,
            }
        )
        for number, text in enumerate(texts):
            other.produce(
                topic, text.encode(), key=b"k%d" % number, headers=[("h", b"v")], timestamp=1000 + number
            )
        other.flush(WAIT)
    else:
        with KafkaProducer(
            bootstrap_servers=broker.bootstrap, compression_type=compression, linger_ms=50
        ) as own:
            for number, text in enumerate(texts):
                own.send(
                    topic,
                    text.encode(),
                    key=b"k%d" % number,
                    headers=[("h", b"v")],
                    timestamp_ms=1000 + number,
                )
    batches = read(opened(KafkaSource(settings(broker, topic))), 50)
    records = [batch.record(index) for batch in batches for index in range(len(batch))]
    assert [record.value for record in records] == [text.encode() for text in texts]
    assert [record.offset for record in records] == list(range(50))
    assert [record.key for record in records] == [b"k%d" % number for number in range(50)]
    assert [record.timestamp_ms for record in records] == list(range(1000, 1050))
    assert {record.headers for record in records} == {(("h", b"v"),)}
    assert {record.partition for record in records} == {Partition(topic, 0)}


def test_missing_values_keys_and_headers_are_none(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """A tombstone stays None; a column without any value is None as a whole."""
    topic = make_topic()
    producer.send(topic, b"alone", partition=0).get(WAIT)
    source = opened(KafkaSource(settings(broker, topic)))
    (first,) = read(source, 1)
    assert (first.keys, first.headers) == (None, None)
    producer.send(topic, None, key=b"k", partition=0).get(WAIT)
    (second,) = read(source, 1)
    assert (second.values, second.keys) == ([None], [b"k"])
    other = ConfluentProducer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    other.produce(topic, None, headers=[("empty", None), ("full", b"x")])
    other.flush(WAIT)
    (third,) = read(source, 1)
    assert (third.values, third.keys) == ([None], None)
    assert third.headers == [(("empty", b""), ("full", b"x"))]


def test_start_latest(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """Only records after the start are read."""
    topic = make_topic()
    produce(producer, topic, numbers(0, 5))
    source = opened(KafkaSource(settings(broker, topic, start="latest")))
    produce(producer, topic, numbers(5, 8))
    assert values(read(source, 3)) == numbers(5, 8)


def test_start_at_a_time(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """Starts at the first record at or after the time; without one, at the end."""
    topic = make_topic(partitions=2)
    for second in range(5):
        produce(producer, topic, [f"at {second} s"], timestamp_ms=second * 1000)
    produce(producer, topic, ["too early"], partition=1, timestamp_ms=0)
    source = opened(KafkaSource(settings(broker, topic, start="1970-01-01T00:00:02.500Z")))
    produce(producer, topic, ["late"], partition=1, timestamp_ms=1)
    assert sorted(values(read(source, 3))) == ["at 3 s", "at 4 s", "late"]


def test_positions_of_a_checkpoint_override_start(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """A partition continues at its position; one without a position in the checkpoint starts at its beginning."""
    topic = make_topic(partitions=2)
    produce(producer, topic, numbers(0, 5))
    produce(producer, topic, ["unknown"], partition=1)
    source = opened(KafkaSource(settings(broker, topic, start="latest")), {Partition(topic, 0): 3})
    assert sorted(values(read(source, 3))) == ["3", "4", "unknown"]


def test_hold(broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure) -> None:
    """No records of a held partition, and all of them when it is released."""
    topic = make_topic(partitions=2)
    produce(producer, topic, numbers(0, 10), partition=0)
    produce(producer, topic, numbers(10, 20), partition=1)
    source = opened(KafkaSource(settings(broker, topic)))
    held = [Partition(topic, 1)]
    batches = read(source, 10, hold=held)
    batches += source.poll(held, 100)
    assert values(batches) == numbers(0, 10)
    assert values(read(source, 10)) == numbers(10, 20)


# -- transactions and ends


def transactional_producer(broker: Broker, topic: str) -> KafkaProducer:
    """A producer that is ready for its first transaction. The caller closes it."""
    writer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"writer-{topic}")
    writer.init_transactions()
    return writer


def aborted_and_committed(broker: Broker, topic: str) -> None:
    """Ten offsets: 0-2 committed, 3 a marker, 4-6 aborted, 7 a marker, 8 committed, 9 a marker."""
    writer = transactional_producer(broker, topic)
    for texts, commit in ((["a", "b", "c"], True), (["X", "Y", "Z"], False), (["d"], True)):
        writer.begin_transaction()
        produce(writer, topic, texts)
        if commit:
            writer.commit_transaction()
        else:
            writer.abort_transaction()
    writer.close()


def test_aborted_records_are_not_read(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    """Only committed records, with their own offsets; a live source is at its end after the last marker."""
    topic = make_topic()
    aborted_and_committed(broker, topic)
    source = opened(KafkaSource(settings(broker, topic)))
    batches = read_out(source)
    assert values(batches) == ["a", "b", "c", "d"]
    assert [offset for batch in batches for offset in batch.offsets] == [0, 1, 2, 8]


def test_range_ends_after_markers(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    """The range ends although the last offsets hold no record."""
    topic = make_topic(partitions=2)
    aborted_and_committed(broker, topic)
    source = opened(KafkaRange(settings(broker), [topic]))
    assert values(read_out(source)) == ["a", "b", "c", "d"]
    assert source.poll((), 0) == []


def test_range_whose_last_offset_is_a_marker_when_more_records_arrive(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    """Records that arrive before the marker was passed lie after the end: the whole batch is dropped."""
    topic = make_topic()
    with closing(transactional_producer(broker, topic)) as writer:
        writer.begin_transaction()
        produce(writer, topic, ["a"])
        writer.commit_transaction()
        source = opened(KafkaRange(settings(broker), [topic]))
        assert values(read(source, 1)) == ["a"]
        writer.begin_transaction()
        produce(writer, topic, ["b"])
        writer.commit_transaction()
    assert read_out(source) == []
    assert source.progress() == (2, 2)


def test_range_of_nothing_but_aborted_records(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    topic = make_topic()
    writer = transactional_producer(broker, topic)
    writer.begin_transaction()
    produce(writer, topic, ["X"])
    writer.abort_transaction()
    writer.close()
    assert read_out(opened(KafkaRange(settings(broker), [topic]))) == []


def test_range_ends_before_an_open_transaction(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    """`latest` is the end of the committed records; a live source is not at its end while a transaction is open."""
    topic = make_topic()
    writer = transactional_producer(broker, topic)
    writer.begin_transaction()
    produce(writer, topic, ["a"])
    writer.commit_transaction()
    writer.begin_transaction()
    produce(writer, topic, ["open"])
    assert values(read_out(opened(KafkaRange(settings(broker), [topic])))) == ["a"]
    live = opened(KafkaSource(settings(broker, topic)))
    assert values(read(live, 1)) == ["a"]
    live.poll((), 600)
    assert live.at_end() == frozenset()
    writer.commit_transaction()
    assert values(read(live, 1)) == ["open"]
    poll_until(live, lambda: live.at_end() == {Partition(topic, 0)})
    writer.close()


def test_range_between_times(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """From 2 s to before 5 s; later records do not count, and an empty partition has ended."""
    topic = make_topic(partitions=2)
    for second in range(8):
        produce(producer, topic, [str(second)], timestamp_ms=second * 1000)
    source = opened(KafkaRange(settings(broker), [topic], start=2_000, end=5_000))
    assert source.at_end() == {Partition(topic, 1)}
    assert source.progress() == (0, 3)
    assert values(read_out(source)) == ["2", "3", "4"]
    assert source.progress() == (3, 3)
    assert read_out(opened(KafkaRange(settings(broker), [topic], start=8_000))) == []
    assert values(read_out(opened(KafkaRange(settings(broker), [topic], start=6_000)))) == ["6", "7"]


def test_range_end_is_fixed_at_the_start(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """Records that arrive while it reads are left out; held partitions are not read."""
    topic = make_topic(partitions=2)
    produce(producer, topic, numbers(0, 5))
    produce(producer, topic, numbers(5, 10), partition=1)
    source = opened(KafkaRange(settings(broker, topic)))
    produce(producer, topic, ["later"])
    assert values(read(source, 5, hold=[Partition(topic, 1)])) == numbers(0, 5)
    assert source.at_end() == {Partition(topic, 0)}
    assert values(read_out(source)) == numbers(5, 10)


def test_at_end_depends_on_the_broker(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """A partition is at its end once all is read, and no longer when more records exist, held or not."""
    topic = make_topic(partitions=2)
    produce(producer, topic, numbers(0, 5))
    later = [0.0]
    source = opened(KafkaSource(settings(broker, topic), clock=lambda: time.monotonic() + later[0]))
    assert source.at_end() == frozenset()
    assert values(read_out(source)) == numbers(0, 5)
    held = [Partition(topic, 0)]
    source.poll(held, 0)
    produce(producer, topic, ["more"])
    later[0] += 60.0
    poll_until(source, lambda: source.at_end() == {Partition(topic, 1)}, hold=held)
    assert values(read(source, 1)) == ["more"]


# -- new and deleted topics


def test_new_partition_while_running(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """It is read from its beginning even when the source started at the end; the old partition is not affected."""
    topic = make_topic()
    produce(producer, topic, ["before"])
    source = opened(KafkaSource(settings(broker, topic, start="latest")))
    broker.add_partitions(topic, 2)
    with KafkaProducer(bootstrap_servers=broker.bootstrap) as fresh:
        produce(fresh, topic, ["first"], partition=1)
        produce(fresh, topic, ["after"])
    assert sorted(values(read(source, 2))) == ["after", "first"]
    assert source.partitions() == (Partition(topic, 0), Partition(topic, 1))


def test_pattern(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """The whole name must match; a new topic is read from its beginning; excluded topics are never read."""
    prefix = make_topic()
    for name in ("-a", "-b", "-b-not", "-out"):
        produce(producer, make_topic(f"{prefix}{name}"), [name])
    wanted = settings(broker, topic_pattern=f"{prefix}-([a-c]|out)", start="latest")
    source = opened(KafkaSource(wanted, exclude=[f"{prefix}-out"]))
    assert source.partitions() == (Partition(f"{prefix}-a"), Partition(f"{prefix}-b"))
    produce(producer, make_topic(f"{prefix}-c"), ["new topic"])
    produce(producer, f"{prefix}-a", ["old topic"])
    assert sorted(values(read(source, 2))) == ["new topic", "old topic"]
    assert source.partitions() == tuple(Partition(f"{prefix}-{letter}") for letter in "abc")


def test_missing_topic(broker: Broker, make_topic: MakeTopic, settings: Configure, reader: str) -> None:
    """The error names it with similar names; requesting it does not create it."""
    topic = make_topic(f"endpoint-events-{reader}")
    with pytest.raises(KafkaError, match=r"no topic endpont-events \(similar: endpoint-events"):
        KafkaSource(settings(broker, topic, "endpont-events"))
    with pytest.raises(KafkaError, match=r"No topic matches kafka.topic_pattern 'nothing-\.\*'"):
        KafkaSource(settings(broker, topic_pattern="nothing-.*"))
    with pytest.raises(KafkaError, match="endpont-events"):
        KafkaRange(settings(broker), ["endpont-events"])
    with pytest.raises(ConfigError, match="both empty"):
        KafkaSource(settings(broker))
    assert "endpont-events" not in broker.admin.list_topics()


@pytest.mark.parametrize("kind", [KafkaSource, KafkaRange])
def test_deleted_topic(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, kind: Any, settings: Configure
) -> None:
    """The client does not report it; the source does."""
    topic = make_topic()
    produce(producer, topic, ["a"])
    source = opened(kind(settings(broker, topic)))
    read(source, 1)
    broker.delete_topic(topic)
    with pytest.raises(KafkaError, match=f"Topic {topic} was deleted while it was read"):
        poll_until(source, lambda: False)


def test_deleted_topic_of_a_pattern(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    topic = make_topic()
    source = opened(KafkaSource(settings(broker, topic_pattern=f"{topic}.*")))
    broker.delete_topic(topic)
    with pytest.raises(KafkaError, match=f"Topic {topic} was deleted while it was read"):
        poll_until(source, lambda: False)


def test_recreated_topic(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """Offsets of the old topic mean nothing in the new one, so reading does not continue with them."""
    topic = make_topic()
    produce(producer, topic, numbers(0, 3))
    source = opened(KafkaSource(settings(broker, topic, client={"metadata_max_age_ms": 3_000})))
    read(source, 3)
    broker.delete_topic(topic)
    make_topic(topic)
    with pytest.raises((KafkaError, LostOffsetsError), match=f"({topic}.*deleted|recreated.*{topic})"):
        poll_until(source, lambda: False)


# -- deleted and damaged records


def expired_position(broker: Broker, topic: str, producer: Any) -> dict[Partition, int]:
    """Deletes offsets 0-4; returns checkpoint positions that continue at 2."""
    produce(producer, topic, numbers(0, 10))
    broker.admin.delete_records({TopicPartition(topic, 0): 5})
    return {Partition(topic, 0): 2}


@pytest.mark.parametrize("kind", ["fail", "earliest", "latest"])
def test_lost_offsets(
    broker: Broker,
    make_topic: MakeTopic,
    producer: Any,
    opened: Any,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    settings: Configure,
) -> None:
    """Retention passed the position: the source stops, or skips with a warning, never silently."""
    topic = make_topic()
    positions = expired_position(broker, topic, producer)
    source = opened(KafkaSource(settings(broker, topic, on_lost_offsets=kind)), positions)
    if kind == "fail":
        with pytest.raises(
            LostOffsetsError,
            match=f"{topic} partition 0 should continue at offset 2, the first available offset is 5",
        ) as raised:
            poll_until(source, lambda: False)
        assert raised.value.exit_code == 7
        return
    if kind == "latest":
        poll_until(source, lambda: "records lost" in caplog.text)
    produce(producer, topic, ["new"])
    expected = [*numbers(5, 10), "new"] if kind == "earliest" else ["new"]
    assert values(read(source, len(expected))) == expected
    assert f"kafka.on_lost_offsets is {kind}" in caplog.text


def test_position_beyond_the_end(
    broker: Broker, make_topic: MakeTopic, producer: Any, opened: Any, settings: Configure
) -> None:
    """A checkpoint from before the topic was recreated: its offsets belong to another log."""
    topic = make_topic()
    produce(producer, topic, numbers(0, 3))
    positions = {Partition(topic, 0): 100}
    with pytest.raises(
        LostOffsetsError, match=r"should continue at offset 100, the first available offset is 0"
    ):
        poll_until(opened(KafkaSource(settings(broker, topic)), positions), lambda: False)
    source = opened(KafkaSource(settings(broker, topic, on_lost_offsets="earliest")), positions)
    assert values(read(source, 3)) == numbers(0, 3)


@pytest.mark.parametrize("kind", ["fail", "earliest"])
def test_truncated_log(
    broker: Broker,
    make_topic: MakeTopic,
    producer: Any,
    opened: Any,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    settings: Configure,
) -> None:
    """After an unclean election the log may be shorter than what was read; records after that point are unread.

    A single broker has no elections, so the client's error is simulated. kafka-python may raise it in `position` first;
    librdkafka's errors are tested in test_confluent.py.
    """
    topic = make_topic()
    produce(producer, topic, numbers(0, 10))
    source = opened(KafkaSource(settings(broker, topic, on_lost_offsets=kind)))
    read(source, 10)
    truncated = LogTruncationError({TopicPartition(topic, 0): OffsetAndMetadata(7, "", 0)})

    def raises_it(*_: object, **__: object) -> None:
        raise truncated

    with monkeypatch.context() as patch:
        patch.setattr(source._consumer._fetcher, "position", raises_it)
        patch.setattr(source._consumer, "_end_positions", {})
        assert source.at_end() == frozenset()
    if kind == "fail":
        with pytest.raises(
            LostOffsetsError, match=r"should continue at offset 10, the first available offset is 7"
        ):
            source.poll((), 0)
    else:
        assert values(read(source, 3)) == numbers(7, 10)


def flip_a_byte(broker: Broker, topic: str, inside: bytes) -> None:
    """Damage a stored record; the broker reads the file again for each fetch, without checking it."""
    path = broker.segment(topic)
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(inside))
        file.write(b"#")


@pytest.mark.parametrize("kind", [KafkaSource, KafkaRange])
def test_corrupt_record(
    broker: Broker,
    make_topic: MakeTopic,
    producer: Any,
    opened: Any,
    kind: Any,
    caplog: pytest.LogCaptureFixture,
    settings: Configure,
) -> None:
    """All records before the damage are returned, then an error names topic, partition and offset; it does not hang."""
    topic, other = make_topic(), make_topic()
    for text in ("first", "second", "damaged", "fourth"):
        producer.send(topic, text.encode(), partition=0).get(WAIT)
    produce(producer, other, numbers(0, 20))
    flip_a_byte(broker, topic, b"damaged")
    source = opened(kind(settings(broker, topic, other)))
    batches: list[Batch] = []
    with pytest.raises(KafkaError, match=f"Topic {topic} partition 0 cannot be read at offset 2"):
        read(source, 1_000, into=batches)
    assert [text for text in values(batches) if not text.isdigit()] == ["first", "second"]
    assert "retrying with a new connection" in caplog.text


def test_a_transient_error_loses_nothing(
    broker: Broker,
    make_topic: MakeTopic,
    producer: Any,
    opened: Any,
    monkeypatch: pytest.MonkeyPatch,
    settings: Configure,
) -> None:
    """An error that does not occur again: no record is lost or duplicated."""
    monkeypatch.setattr(confluent, "MAX_BATCH", 30)
    topic = make_topic(partitions=2)
    produce(producer, topic, numbers(0, 100))
    produce(producer, topic, numbers(100, 200), partition=1)
    source = opened(KafkaSource(settings(broker, topic, client={"max_poll_records": 30})))
    batches = read(source, 60)
    polls: list[int] = []

    def fails_once(*_: object, **__: object) -> None:
        polls.append(1)
        raise ValueError("a flipped bit")

    monkeypatch.setattr(source._consumer._fetcher, "poll", fails_once)
    held = [Partition(topic, 1)]
    batches += source.poll(held, 200)
    assert len(polls) == 1
    batches += read(source, 200 - sum(map(len, batches)))
    assert sorted(map(int, values(batches))) == list(range(200))


# -- outages


def test_broker_killed_in_mid_stream(opened: Any, settings: Configure) -> None:
    """After kill -9 and a restart every acknowledged record is read once and in order, and the source never raises.

    While the broker is down no partition is at its end, because its end is not known.
    """
    with Broker() as own:
        topic = own.make_topic()
        acknowledged: list[int] = []
        stop = threading.Event()
        writer = ConfluentProducer(
            {
                "bootstrap.servers": own.bootstrap,
                "log_level": 0,
                "enable.idempotence": True,
                "reconnect.backoff.max.ms": 200,
            }
        )

        def on_delivery(error: object, _: object) -> None:
            if error is None:
                acknowledged.append(1)

        def write() -> None:
            number = 0
            while not stop.is_set():
                writer.produce(topic, str(number).encode(), on_delivery=on_delivery)
                number += 1
                writer.poll(0.002)
            writer.flush(WAIT)

        later = [0.0]
        source = opened(KafkaSource(settings(own, topic), clock=lambda: time.monotonic() + later[0]))
        thread = threading.Thread(target=write)
        thread.start()
        batches = read(source, 300)
        own.kill()
        later[0] += 60.0
        while more := source.poll((), 100):
            batches += more
        assert source.at_end() == frozenset()
        own.start()
        batches += read(source, 300)
        stop.set()
        thread.join()
        batches += read(source, len(acknowledged) - sum(map(len, batches)))
        found = list(map(int, values(batches)))
        assert found == list(range(len(acknowledged)))
        later[0] += 60.0
        poll_until(source, lambda: source.at_end() == {Partition(topic, 0)})


# -- connecting to the broker


def secured_by(broker: Broker, listener: str, **more: Any) -> KafkaSettings:
    protocol = listener if listener.startswith("SASL") else "SSL"
    chosen: dict[str, Any] = {
        "security_protocol": protocol,
        "client": {"bootstrap_timeout_ms": 1_500},
        **more,
    }
    if chosen["security_protocol"].endswith("SSL"):
        assert broker.certificates is not None
        chosen.setdefault("ca_file", broker.certificates.ca)
    if chosen["security_protocol"].startswith("SASL"):
        chosen = {"username": USER, "password": PASSWORD, "sasl_mechanism": "SCRAM-SHA-512", **chosen}
    host = chosen.pop("host", "127.0.0.1")
    return configured(bootstrap_servers=[broker.address(listener, host)], topics=["secured"], **chosen)


@pytest.fixture
def secure(reader: str) -> Configure:
    """`secure(broker, listener, **more)` for a reader."""
    return partial(secured_by, reader=reader)


@pytest.fixture(scope="module")
def secured(secure_broker: Broker) -> Broker:
    """The secure broker, with one record in the topic `secured`."""
    secure_broker.make_topic("secured")
    with KafkaProducer(bootstrap_servers=secure_broker.bootstrap) as producer:
        produce(producer, "secured", ["safe"])
    return secure_broker


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_every_login(secured: Broker, opened: Any, listener: str, mechanism: str, secure: Configure) -> None:
    source = opened(KafkaSource(secure(secured, listener, sasl_mechanism=mechanism)))
    assert values(read(source, 1)) == ["safe"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tls(secured: Broker, opened: Any, host: str, secure: Configure) -> None:
    assert values(read(opened(KafkaSource(secure(secured, "SSL", host=host))), 1)) == ["safe"]


def test_client_certificate(secured: Broker, opened: Any, secure: Configure) -> None:
    assert secured.certificates is not None
    files = {"cert_file": secured.certificates.client_cert, "key_file": secured.certificates.client_key}
    assert values(read(opened(KafkaSource(secure(secured, "MTLS", **files))), 1)) == ["safe"]


def test_password_file(secured: Broker, opened: Any, tmp_path: Any, secure: Configure) -> None:
    """A newline at its end is not part of the password."""
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    file = {"password": None, "password_file": str(tmp_path / "secret")}
    assert values(read(opened(KafkaSource(secure(secured, "SASL_SSL", **file))), 1)) == ["safe"]


WRONG = "wrong-pass-77ab1c"
PLAIN = {"security_protocol": "PLAINTEXT"}
FAILURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "password PLAIN": ("SASL_SSL", {"password": WRONG, "sasl_mechanism": "PLAIN"}, "user name or password"),
    "password SCRAM-256": (
        "SASL_PLAINTEXT",
        {"password": WRONG, "sasl_mechanism": "SCRAM-SHA-256"},
        "user name or password",
    ),
    "password SCRAM-512": ("SASL_SSL", {"password": WRONG}, "user name or password"),
    "user": ("SASL_SSL", {"username": "nobody"}, "user name or password"),
    "unknown CA": ("SSL", {"ca_file": "other_ca"}, "not signed by an authority in .*other-ca.pem"),
    "expired": ("EXPIRED", {}, "certificate has expired"),
    "host name": ("ELSEWHERE", {}, "for another host name than 127.0.0.1"),
    "no client certificate": ("MTLS", {}, "Set kafka.cert_file and kafka.key_file"),
    "plaintext to TLS": ("SSL", PLAIN, "speaks TLS. Set kafka.security_protocol to SSL"),
    "plaintext to SASL": (
        "SASL_PLAINTEXT",
        PLAIN,
        "requires a SASL login. Set kafka.security_protocol to SASL_PLAINTEXT",
    ),
    "plaintext to SASL_SSL": ("SASL_SSL", PLAIN, "speaks TLS"),
    "TLS to plaintext": ("PLAINTEXT", {}, "does not speak TLS. Set kafka.security_protocol to PLAINTEXT"),
    "TLS to SASL_SSL": ("SASL_SSL", {"security_protocol": "SSL"}, "Set kafka.security_protocol to SASL_SSL"),
    "login to TLS": ("SSL", {"security_protocol": "SASL_SSL"}, "does not use SASL login.* to SSL"),
    "controller": ("CONTROLLER", PLAIN, "belongs to a controller"),
    "advertised": ("LOST", PLAIN, r"the brokers it advertises \(127.0.0.1:1\) do not.*advertised.listeners"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_why_the_broker_cannot_be_reached(
    secured: Broker, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In bounded time the error says what was tried and what is wrong; no password is logged, even at DEBUG."""
    listener, more, expected = FAILURES[case]
    if more.get("ca_file") == "other_ca":
        assert secured.certificates is not None
        more = {"ca_file": secured.certificates.other_ca}
    caplog.set_level(logging.DEBUG)
    started = time.monotonic()
    with pytest.raises(KafkaError, match=expected) as raised:
        KafkaSource(secured_by(secured, listener, **more))
    assert time.monotonic() - started < 1.5 + 1.5 + 2
    assert raised.value.exit_code == 4
    assert f"Kafka cannot be used at {secured.address(listener)}" in str(raised.value)
    for secret in (PASSWORD, WRONG):
        assert secret not in str(raised.value)
        assert secret not in caplog.text


def test_no_password_in_the_log_of_a_login(
    secured: Broker, opened: Any, caplog: pytest.LogCaptureFixture, secure: Configure
) -> None:
    """With PLAIN the client would log it: at level DEBUG it logs every byte it sends."""
    caplog.set_level(logging.DEBUG)
    read(opened(KafkaSource(secure(secured, "SASL_SSL", sasl_mechanism="PLAIN"))), 1)
    assert "SaslAuthenticateRequest" in caplog.text
    assert PASSWORD not in caplog.text


def test_no_listener_at_the_address(caplog: pytest.LogCaptureFixture) -> None:
    """Bounded by kafka.client.bootstrap_timeout_ms, and reported once: the client's own log is not propagated."""
    started = time.monotonic()
    with pytest.raises(
        KafkaError, match=r"127.0.0.1:1 \(PLAINTEXT, tried for 0.7 s\). Nothing listens at that address"
    ):
        KafkaSource(
            configured(bootstrap_servers=["127.0.0.1:1"], topics=["t"], client={"bootstrap_timeout_ms": 700})
        )
    assert time.monotonic() - started < 3
    assert "ECONNREFUSED" not in caplog.text
    assert logging.getLogger("kafka").propagate


def test_failed_starts_leave_no_threads_behind(broker: Broker, settings: Configure) -> None:
    """A program that retries for hours must not accumulate threads."""
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(KafkaError):
            KafkaSource(settings(broker, "no-such-topic"))
        with pytest.raises(KafkaError):
            KafkaSource(
                configured(
                    bootstrap_servers=["127.0.0.1:1"], topics=["t"], client={"bootstrap_timeout_ms": 50}
                )
            )
    deadline = time.monotonic() + WAIT
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("DNS lookup failed for kafka.example, gaierror(-2)", "cannot be resolved"),
        ("Connection failed: 113 EHOSTUNREACH", "no route to the host"),
        ("", "There was no answer"),
        ("Broker version identified as 4.3\nRequest timed out after 200 ms", "There was no answer"),
    ],
)
def test_causes_that_need_a_broken_network(log: str, expected: str) -> None:
    attempt = Attempt(("kafka.example:9092",), "SSL", None, None, None, 15.0)
    assert expected in most_probable_cause(attempt, log.splitlines())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"client": {"fetch_max_wait": 1}},
            "kafka.client.fetch_max_wait is not a setting.*fetch_max_wait_ms",
        ),
        ({"client": {"retry_backoff_ms": "x", "selector": 1}}, "The Kafka client rejects its settings"),
        (
            {"security_protocol": "SSL", "ca_file": "/nowhere/ca.pem"},
            "kafka.ca_file: /nowhere/ca.pem cannot be used",
        ),
    ],
)
def test_invalid_settings(more: dict[str, Any], expected: str) -> None:
    """A configuration error at once, where the client would retry forever."""
    with pytest.raises(ConfigError, match=expected):
        KafkaSource(configured(bootstrap_servers=["127.0.0.1:1"], topics=["t"], **more))


def test_ca_file_without_a_certificate(tmp_path: Any) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    chosen = {"security_protocol": "SSL", "ca_file": str(tmp_path / "ca.pem")}
    with pytest.raises(ConfigError, match=r"kafka.ca_file: .*ca.pem cannot be used"):
        KafkaSource(configured(bootstrap_servers=["127.0.0.1:1"], topics=["t"], **chosen))


def test_settings_of_the_other_client_are_left_out(
    broker: Broker, make_topic: MakeTopic, opened: Any, settings: Configure
) -> None:
    """kafka.client is for consumers and producers; a setting that only producers have is no error for a consumer."""
    client = {"linger_ms": 5, "max_poll_records": 1}
    topic = make_topic()
    assert opened(KafkaSource(settings(broker, topic, client=client))).partitions() == (Partition(topic, 0),)


def test_similar_names() -> None:
    assert similar_names("endpont", ["endpoint", "other"]) == " (similar: endpoint)"
    assert similar_names("zzz", ["endpoint"]) == ""


def test_a_partition_held_in_the_middle_of_a_batch_continues(
    broker: Broker, opened: Any, settings: Configure
) -> None:
    """A is held after its first batch, B is read to its end, then A must continue: kafka-python parks A's records."""
    topic = broker.make_topic(partitions=2)
    producer = ConfluentProducer(
        {"bootstrap.servers": broker.bootstrap, "log_level": 0, "linger.ms": 100, "enable.idempotence": True}
    )
    for index in range(100_000):
        producer.produce(topic, b"%06d" % index, partition=index % 2)
        producer.poll(0)
    assert producer.flush(30) == 0
    source = opened(KafkaRange(settings(broker, topic), [topic], "earliest", "latest"))
    one, other = Partition(topic, 0), Partition(topic, 1)
    seen: dict[Partition, list[bytes]] = {one: [], other: []}
    deadline = time.monotonic() + WAIT
    held = other
    while source.at_end() != {one, other}:
        assert time.monotonic() < deadline, {
            partition.number: len(found) for partition, found in seen.items()
        }
        for batch in source.poll({held}, 100):
            seen[batch.partition] += [bytes(value or b"") for value in batch.values]
        if held == other and seen[one] and not seen[other]:
            held = one
        elif other in source.at_end():
            held = other
    assert seen == {
        partition: [b"%06d" % index for index in range(partition.number, 100_000, 2)]
        for partition in (one, other)
    }
