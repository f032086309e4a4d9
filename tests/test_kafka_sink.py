"""Kafka as a sink, against a real broker: what was flushed is there once, and what was not is a SinkError."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker import PASSWORD, USER, Broker
from streamdetect.config import KafkaSettings
from streamdetect.errors import KafkaError, SinkError
from streamdetect.model import Alert, DeadLetter, Partition, Record
from streamdetect.sinks.kafka import MAX_UNCHECKED, KafkaAlertSink, KafkaDeadLetterSink, Outbox
from streamdetect.sources.kafka import KafkaRange

WAIT = 20.0
QUICK = {"delivery_timeout_ms": 2_000, "request_timeout_ms": 1_000}
"""Settings of a producer that gives up soon."""

MakeTopic = Callable[..., str]


@pytest.fixture
def outboxes() -> Iterator[Callable[..., Outbox]]:
    """`outboxes(broker, client_setting=...)`: closed again after the test, whatever became of them."""
    made: list[Outbox] = []

    def make(broker: Broker, **client: Any) -> Outbox:
        made.append(Outbox(settings(broker, **client)))
        return made[-1]

    yield make
    for outbox in made:
        try:
            outbox.close()
        except SinkError:
            continue


def configured(**chosen: Any) -> KafkaSettings:
    """As a configuration file would say it: lists where the settings hold tuples."""
    return KafkaSettings(**chosen)


def settings(broker: Broker, **client: Any) -> KafkaSettings:
    return configured(bootstrap_servers=[broker.bootstrap], client={"bootstrap_timeout_ms": 10_000, **client})


def alert(number: int, episode: str = "episode") -> Alert:
    body = b'{"number":%d}' % number
    return Alert(f"id-{number}", episode, "rule", "opened", tick_ms=1_772_424_000_000 + number, body=body)


def letter(value: bytes | None, **more: Any) -> DeadLetter:
    fields = {"timestamp_ms": 1_000, "key": None, "headers": ()} | more
    record = Record(Partition("source", 3), 42, value=value, **fields)
    return DeadLetter(record, "not_json", "expected a value at byte 0")


def stored(broker: Broker, topic: str) -> list[Record]:
    """All committed records of a topic."""
    source = KafkaRange(settings(broker), [topic])
    records: list[Record] = []
    deadline = time.monotonic() + WAIT
    while source.at_end() != set(source.partitions()):
        assert time.monotonic() < deadline
        for batch in source.poll((), 200):
            records += [batch.record(index) for index in range(len(batch))]
    source.close()
    return records


def keep_writing(sink: KafkaAlertSink, alerts: list[Alert]) -> None:
    """Write and flush, for something that should end it soon."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        sink.write(alerts)
        sink.flush()


def test_alert(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Key: the episode; header: the action; timestamp: the tick; value: the body."""
    topic = make_topic(partitions=3)
    sink = KafkaAlertSink(outboxes(broker), topic)
    sink.write([alert(1)])
    sink.flush()
    (record,) = stored(broker, topic)
    assert (record.key, record.value) == (b"episode", b'{"number":1}')
    assert record.headers == (("streamdetect-action", b"opened"),)
    assert record.timestamp_ms == 1_772_424_000_001


def test_alerts_of_an_episode_stay_in_order(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """One partition for each episode, and the order of writing within it."""
    topic = make_topic(partitions=4)
    sink = KafkaAlertSink(outboxes(broker), topic)
    sink.write([alert(number, f"episode-{number % 7}") for number in range(700)])
    sink.close()
    records = stored(broker, topic)
    for episode in range(7):
        own = [record for record in records if record.key == f"episode-{episode}".encode()]
        assert len({record.partition for record in own}) == 1
        expected = [b'{"number":%d}' % number for number in range(episode, 700, 7)]
        assert [record.value for record in own] == expected


def test_dead_letter(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Value, key and headers untouched, whence and why in further headers."""
    topic = make_topic()
    sink = KafkaDeadLetterSink(outboxes(broker), topic)
    sink.write([letter(b"\xff\x00 {", key=b"\x01", headers=(("kept", b"\xfe"), ("kept", b"")))])
    sink.flush()
    (record,) = stored(broker, topic)
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


@pytest.mark.parametrize("key", [b"k", None])
def test_tombstones_survive(broker: Broker, make_topic: MakeTopic, outboxes: Any, key: bytes | None) -> None:
    """A null value stays null, also without a key, which the client by itself refuses to send; so does an
    empty one.
    """
    topic = make_topic()
    sink = KafkaDeadLetterSink(outboxes(broker), topic)
    sink.write([letter(None, key=key, timestamp_ms=None), letter(b"", key=key)])
    sink.flush()
    records = stored(broker, topic)
    assert [(record.key, record.value) for record in records] == [(key, None), (key, b"")]
    assert "streamdetect.origin-timestamp" not in dict(records[0].headers)


def test_more_than_is_remembered(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Between two flushes any number can be written; memory holds only what has not arrived."""
    topic = make_topic()
    outbox = outboxes(broker, linger_ms=5)
    sink = KafkaDeadLetterSink(outbox, topic)
    count = MAX_UNCHECKED + 5_000
    for start in range(0, count, 500):
        sink.write([letter(b"%d" % number) for number in range(start, start + 500)])
    sink.flush()
    assert [record.value for record in stored(broker, topic)] == [b"%d" % number for number in range(count)]


def test_one_outbox_for_both(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Both sinks may share a producer; each may flush and close it."""
    alerts, letters = make_topic(), make_topic()
    outbox = outboxes(broker, compression_type="lz4")
    first, second = KafkaAlertSink(outbox, alerts), KafkaDeadLetterSink(outbox, letters)
    first.write([alert(1)])
    second.write([letter(b"x")])
    for sink in (first, second):
        sink.flush()
        sink.close()
        sink.close()
    assert [len(stored(broker, topic)) for topic in (alerts, letters)] == [1, 1]


# -- failures


def test_missing_topic(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Noticed at the start, with the nearest names; not created by asking."""
    make_topic("streamdetect.alerts")
    with pytest.raises(
        SinkError, match=r"no topic streamdetect.alert to write to \(there is streamdetect.alerts"
    ):
        KafkaAlertSink(outboxes(broker), "streamdetect.alert")
    assert "streamdetect.alert" not in broker.admin.list_topics()


def test_too_large_for_the_topic(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """The flush fails and says what to do; from then on every call says the same, and closing does not
    hang.
    """
    topic = make_topic(max_message_bytes="2000")
    sink = KafkaDeadLetterSink(outboxes(broker), topic)
    sink.write([letter(b"fits"), letter(b"x" * 5_000), letter(b"fits too")])
    with pytest.raises(SinkError, match=f"topic {topic}: .*Raise max.message.bytes") as told:
        sink.flush()
    assert told.value.exit_code == 8
    with pytest.raises(SinkError, match=r"max\.message\.bytes"):
        sink.write([letter(b"more")])
    with pytest.raises(SinkError, match=r"max\.message\.bytes"):
        sink.flush()
    begun = time.monotonic()
    sink.close()
    assert time.monotonic() - begun < 5


def test_batches_that_are_too_large_are_split(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Each record fits, all of them together do not: that is the client's to sort out, and no failure."""
    topic = make_topic(max_message_bytes="2000")
    sink = KafkaDeadLetterSink(outboxes(broker, linger_ms=50), topic)
    values = [b"%d" % number + b"x" * 600 for number in range(20)]
    sink.write([letter(value) for value in values])
    sink.flush()
    assert [record.value for record in stored(broker, topic)] == values


def test_too_large_for_the_client(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """The client raises from `send` itself, and nothing is written after it."""
    topic = make_topic()
    sink = KafkaDeadLetterSink(outboxes(broker, max_request_size=1_000), topic)
    with pytest.raises(SinkError, match=f"topic {topic}: .*larger than the maximum request size"):
        sink.write([letter(b"first"), letter(b"x" * 5_000), letter(b"third")])
    sink.close()
    assert [record.value for record in stored(broker, topic)] in ([], [b"first"])


def test_large_records_pass(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """The client's own limit of 1 MB is lifted: what is too large is for the topic to say."""
    topic = make_topic(max_message_bytes="8000000")
    sink = KafkaDeadLetterSink(outboxes(broker), topic)
    sink.write([letter(b"x" * 4_000_000)])
    sink.flush()
    assert [len(record.value or b"") for record in stored(broker, topic)] == [4_000_000]


def test_deleted_topic(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Bounded by the delivery time-out, and the error names the topic."""
    topic = make_topic()
    sink = KafkaAlertSink(outboxes(broker, **QUICK, max_block_ms=1_000), topic)
    sink.write([alert(1)])
    sink.flush()
    broker.delete_topic(topic)
    begun = time.monotonic()
    with pytest.raises(SinkError, match=f"topic {topic}"):
        keep_writing(sink, [alert(2)])
    assert time.monotonic() - begun < 12


def test_deleted_topic_with_nothing_to_write(broker: Broker, make_topic: MakeTopic, outboxes: Any) -> None:
    """Noticed by flushing, not only by the next alert."""
    topic = make_topic()
    sink = KafkaAlertSink(outboxes(broker, metadata_max_age_ms=300), topic)
    sink.flush()
    broker.delete_topic(topic)
    with pytest.raises(SinkError, match=f"topic {topic}: .*create it again"):
        keep_writing(sink, [])


def test_outage() -> None:
    """A broker that comes back in time costs nothing; one that does not is a SinkError within bounded
    time.
    """
    with Broker() as own:
        topic = own.make_topic()
        patient = KafkaAlertSink(Outbox(settings(own, reconnect_backoff_max_ms=200)), topic)
        patient.write([alert(number) for number in range(100)])
        own.kill()
        patient.write([alert(number) for number in range(100, 200)])
        own.start()
        patient.flush()
        patient.close()
        expected = [b'{"number":%d}' % number for number in range(200)]
        assert [record.value for record in stored(own, topic)] == expected
        hasty = KafkaAlertSink(Outbox(settings(own, **QUICK)), topic)
        own.kill()
        hasty.write([alert(1)])
        begun = time.monotonic()
        with pytest.raises(SinkError, match=f"topic {topic}"):
            hasty.flush()
        hasty.close()
        assert time.monotonic() - begun < 12


def test_nobody_listens() -> None:
    with pytest.raises(KafkaError, match="Nothing listens there"):
        Outbox(configured(bootstrap_servers=["127.0.0.1:1"], client={"bootstrap_timeout_ms": 500}))


def test_login(secure_broker: Broker) -> None:
    """The same settings as for reading reach the broker for writing."""
    assert secure_broker.certificates is not None
    topic = secure_broker.make_topic()
    chosen: dict[str, Any] = {
        "bootstrap_servers": [secure_broker.address("SASL_SSL")],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "username": USER,
        "ca_file": secure_broker.certificates.ca,
        "client": {"bootstrap_timeout_ms": 1_500},
    }
    sink = KafkaAlertSink(Outbox(configured(**chosen, password=PASSWORD)), topic)
    sink.write([alert(1)])
    sink.close()
    assert len(stored(secure_broker, topic)) == 1
    with pytest.raises(KafkaError, match="user name or password"):
        Outbox(configured(**chosen, password="wrong-pass-77ab1c"))
