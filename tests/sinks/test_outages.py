"""The Kafka sink when the broker is killed, restarts, hangs or loses responses: each commit happens exactly once."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from random import Random
from typing import Any

import pytest
from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]
from proxy import (
    ADD_OFFSETS_TO_TXN,
    ADD_PARTITIONS_TO_TXN,
    END_TXN,
    OFFSET_FETCH,
    PRODUCE,
    TXN_OFFSET_COMMIT,
    Moment,
    Proxy,
)
from transactional_process import (
    Child,
    alert,
    commit_metadata,
    in_background,
    is_open,
    kafka_settings,
    make_topic,
    numbers,
    patience_for,
    stored,
    visible,
    wait_until,
)

from broker import Broker
from streamdetect.errors import KafkaError
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.sinks import Outputs
from streamdetect.sinks import kafka as kafka_sink
from streamdetect.sinks.kafka import KafkaTransactionalSink
from streamdetect.sinks.transactional import Committed
from streamdetect.sinks.watchdog import HungError, within

RANDOM_SECONDS = float(os.environ.get("STREAMDETECT_OUTAGE_SECONDS", "30"))
"""Duration of the test that kills the broker at random moments."""


class ProxiedKafka:
    """A broker behind a proxy, a consumer group with its own topics, and the sinks that a test opens."""

    def __init__(self, broker: Broker, proxy: Proxy) -> None:
        self.broker, self.proxy = broker, proxy
        self.group = f"group-{uuid.uuid4().hex[:12]}"
        self.alerts = make_topic(broker, max_message_bytes="20000000")
        self.source = Partition(make_topic(broker))
        self._opened: list[KafkaTransactionalSink] = []

    def fenced(self, takeover: str = "3s", **client: Any) -> KafkaTransactionalSink:
        """A sink that has fenced earlier owners. The watchdog's timeout is two thirds of `takeover`."""
        settings = kafka_settings(self.proxy.address, self.group, takeover, **client)
        self._opened.append(KafkaTransactionalSink(settings, self.alerts, self.alerts))
        self._opened[-1].fence([self.source])
        return self._opened[-1]

    def commit(
        self,
        sink: KafkaTransactionalSink,
        number: int,
        patience: Callable[[], bool] = lambda: True,
        epoch: int = 1,
    ) -> None:
        outputs, positions = Outputs([alert(number)]), {self.source: number}
        sink.commit(outputs, positions, commit_metadata(number, epoch=epoch), patience)

    def published(self) -> list[int]:
        return numbers(stored(self.broker, self.alerts))

    def close(self) -> None:
        self.proxy.reset()
        for sink in self._opened:
            sink.close()


@pytest.fixture(scope="module")
def proxied_broker() -> Iterator[tuple[Broker, Proxy]]:
    """A broker whose clients connect through a proxy. It aborts transactions within 100 ms of their timeout."""
    soon = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "100"}
    broker = Broker(properties=soon)
    with Proxy(broker) as proxy, broker:
        yield broker, proxy


@pytest.fixture
def kafka(proxied_broker: tuple[Broker, Proxy]) -> Iterator[ProxiedKafka]:
    with closing(ProxiedKafka(*proxied_broker)) as created:
        yield created


# -- outages at a chosen step


STEPS = {
    "AddPartitions": ADD_PARTITIONS_TO_TXN,
    "Produce": PRODUCE,
    "AddOffsets": ADD_OFFSETS_TO_TXN,
    "OffsetCommit": TXN_OFFSET_COMMIT,
    "EndTxn": END_TXN,
}


@pytest.mark.parametrize("moment", ["request", "response"])
def test_an_outage_at_each_step(kafka: ProxiedKafka, moment: Moment) -> None:
    """Whichever request or response of a transaction is the last before an outage, the commit returns when the broker
    is back, and has happened once.
    """
    sink = kafka.fenced()
    kafka.commit(sink, 1)
    for number, step in enumerate(STEPS.values(), start=2):
        kafka.proxy.down_at(step, moment, seconds=1)
        started = time.monotonic()
        kafka.commit(sink, number)
        assert time.monotonic() - started < 15
    last = 1 + len(STEPS)
    assert kafka.published() == list(range(1, last + 1))
    assert kafka.fenced().fetch_committed([kafka.source]) == Committed(
        {kafka.source: last}, commit_metadata(last)
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_lost_connection_at_each_step(kafka: ProxiedKafka, step: str) -> None:
    """The sink recovers from a closed connection to a running broker."""
    sink = kafka.fenced()
    lost: list[int] = []

    def lose_once(key: int) -> bool:
        if key != STEPS[step] or lost:
            return True
        lost.append(key)
        return False

    kafka.proxy.on_response = lose_once
    kafka.commit(sink, 1)
    assert lost
    assert kafka.published() == [1]


def test_a_commit_whose_response_is_lost(kafka: ProxiedKafka) -> None:
    """The commit metadata shows that the transaction was committed, so no record is sent again."""
    sink = kafka.fenced()
    kafka.commit(sink, 1)
    kafka.proxy.requests.clear()
    # In an outage shorter than the watchdog's 2 s the client retries by itself.
    kafka.proxy.down_at(END_TXN, "response", seconds=3)
    kafka.commit(sink, 2)
    assert kafka.proxy.requests[PRODUCE] == 1
    assert kafka.published() == [1, 2]


def test_a_silent_network(kafka: ProxiedKafka) -> None:
    """A network that drops all traffic for a while has the same effect as a broker that was killed."""
    sink = kafka.fenced()
    kafka.commit(sink, 1)
    for number in (2, 3):
        kafka.proxy.passing.clear()
        back = threading.Timer(4.0, kafka.proxy.passing.set)
        back.start()
        kafka.commit(sink, number)
    assert kafka.published() == [1, 2, 3]


def test_a_large_record_over_a_slow_connection(kafka: ProxiedKafka) -> None:
    """The watchdog's timeout grows with the size of the transaction; otherwise it would be restarted for ever."""
    sink = kafka.fenced()
    kafka.proxy.bytes_per_second = 2_000_000
    kafka.proxy.requests.clear()
    record = Record(Partition("source"), 1, 0, None, b"x" * 6_000_000)
    outputs = Outputs(dead_letters=[DeadLetter(record, "too_large", "6 MB")])
    started = time.monotonic()
    sink.commit(outputs, {kafka.source: 1}, commit_metadata(1), patience_for(15))
    assert time.monotonic() - started > 2, "6 MB at 2 MB/s take 3 s, the watchdog alone gives 2 s"
    assert kafka.proxy.requests[PRODUCE] == 1
    assert [len(record.value or b"") for record in stored(kafka.broker, kafka.alerts)] == [6_000_000]


def test_a_transaction_timeout(kafka: ProxiedKafka) -> None:
    """The broker aborts the transaction, which looks like fencing; the sink commits it again, once."""
    sink = kafka.fenced("60s", transaction_timeout_ms=1_000)
    kafka.commit(sink, 1)
    send = sink._send_positions
    held: list[object] = []

    def hold_once(*arguments: Any) -> None:
        send(*arguments)
        if not held:
            held.append(arguments)
            wait_until(lambda: not is_open(kafka.broker, kafka.alerts))

    sink._send_positions = hold_once  # type: ignore[method-assign,assignment]
    kafka.commit(sink, 2)
    assert held
    assert kafka.published() == [1, 2]


def test_offsets_of_many_partitions_are_one_request(kafka: ProxiedKafka) -> None:
    """Offsets of 300 partitions are fetched with one request; one each would take seconds over a slow connection."""
    topic = make_topic(kafka.broker, partitions=300)
    source = [Partition(topic, number) for number in range(300)]
    sink, positions = kafka.fenced(), {partition: partition.number for partition in source}
    sink.commit(Outputs(), positions, commit_metadata(1))
    wait_until(lambda: sink.fetch_committed(source).metadata == commit_metadata(1))
    kafka.proxy.requests.clear()
    assert sink.fetch_committed(source) == Committed(positions, commit_metadata(1))
    assert kafka.proxy.requests[OFFSET_FETCH] == 1


# -- calls that never return


def test_a_hanging_call_of_the_client(kafka: ProxiedKafka) -> None:
    """The reason for the watchdog: a transaction call made during an outage never returns, even when the broker is
    back.
    """
    # The client takes the request from its queue, fails to connect, and forgets the request.
    producer = KafkaProducer(bootstrap_servers=kafka.proxy.address, transactional_id=kafka.group)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(kafka.alerts, b'{"number":1}').get(10)
    kafka.proxy.down()
    threading.Timer(1.0, kafka.proxy.up).start()
    offsets = {TopicPartition(*kafka.source): OffsetAndMetadata(1, "", -1)}
    # On a busy machine the client may detect the outage before the call; then the call does not hang.
    with contextlib.suppress(HungError):
        within(6.0, lambda: producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata("g")))
    kafka_sink.abandon(producer)
    sink = kafka.fenced()
    kafka.proxy.down_at(ADD_OFFSETS_TO_TXN, "request", seconds=1)
    started = time.monotonic()
    kafka.commit(sink, 2)
    assert time.monotonic() - started < 30
    assert kafka.published() == [2]


def test_within_raises_after_the_timeout() -> None:
    """Returns or raises what the call does, also its own TimeoutError; raises HungError after the timeout."""
    never = threading.Event()

    def fail(error: Exception) -> None:
        raise error

    assert within(5.0, lambda: 7) == 7
    with pytest.raises(TimeoutError, match="mine"):
        within(5.0, lambda: fail(TimeoutError("mine")))
    with pytest.raises(HungError, match=r"no answer in 0\.05 s"):
        within(0.05, never.wait)
    never.set()


def test_fetching_offsets_that_hangs(kafka: ProxiedKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises KafkaError, as for any broker without a response, so that a standby keeps waiting."""
    sink, never = kafka.fenced(), threading.Event()
    monkeypatch.setattr(kafka_sink, "RESPONSE_SECONDS", -1.5)  # plus the watchdog's 2 s
    monkeypatch.setattr(sink._unstable_offsets, "read", lambda *_arguments: never.wait())
    with pytest.raises(KafkaError, match=f"committed offsets of {kafka.group}: no answer in"):
        sink.fetch_committed([kafka.source])
    never.set()


def test_a_hanging_transaction(kafka: ProxiedKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open transaction of another id contains positions of the group, as after brokers have lost track of one:
    `fence` raises an error with the cause and the remedy, and succeeds after the transaction is aborted.
    """
    monkeypatch.setattr(kafka_sink, "RESPONSE_SECONDS", 1.0)
    producer = KafkaProducer(
        bootstrap_servers=kafka.broker.bootstrap, transactional_id=f"{kafka.group}-other"
    )
    producer.init_transactions()
    producer.begin_transaction()
    offsets = {TopicPartition(*kafka.source): OffsetAndMetadata(1, "", -1)}
    producer.send_offsets_to_transaction(offsets, kafka.group)
    with pytest.raises(KafkaError, match=r"does not end, .* kafka-transactions.sh find-hanging"):
        kafka.fenced()
    producer.abort_transaction()
    producer.close()
    kafka.fenced()


def test_an_abandoned_producer_leaves_nothing_behind(
    kafka: ProxiedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer abandoned with records in flight ends its threads during an outage, and its finalizer prints nothing
    to standard error.
    """
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    sink = kafka.fenced()
    kafka.proxy.down_at(PRODUCE, "request", seconds=600)
    with suppress(KafkaError):
        kafka.commit(sink, 1, patience=lambda: False)
    wait_until(lambda: _sender_threads() == 0)
    gc.collect()
    assert unraisable == []


def _sender_threads() -> int:
    return sum(thread.name == "streamdetect-network-thread" for thread in threading.enumerate())


def test_a_process_exits_though_a_call_hangs(kafka: ProxiedKafka) -> None:
    """After main has returned, neither a thread in a hanging call nor a producer with records in flight (kafka-python
    has exit handlers) keeps the process alive.
    """
    child = Child("hung", kafka.proxy.address, kafka.group, kafka.alerts, kafka.source.topic)
    child.await_line("ready")
    kafka.proxy.down_at(ADD_OFFSETS_TO_TXN, "request", seconds=600)
    child.resume()
    child.await_line("main returns")
    assert child.end(seconds=6.0) == 0


# -- patience


@pytest.mark.parametrize("outage", ["down", "silent"])
def test_patience_that_has_run_out(kafka: ProxiedKafka, outage: str) -> None:
    """Raises KafkaError (exit 4): the outputs are saved and will be published at the next start. The next start
    publishes them, whether or not the sink gave up in the middle of a transaction.
    """
    sink = kafka.fenced()
    kafka.commit(sink, 1)
    if outage == "down":
        kafka.proxy.down()
    else:
        kafka.proxy.passing.clear()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(KafkaError, match=r"\. They are saved in the checkpoint and will be") as raised:
            kafka.commit(sink, 2, patience=lambda: False)
        assert raised.value.exit_code == 4
        assert time.monotonic() - started < 15
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 5
    kafka.proxy.reset()
    next_start = kafka.fenced()
    assert next_start.fetch_committed([kafka.source]).metadata == commit_metadata(1)
    kafka.commit(next_start, 2, epoch=2)
    assert kafka.published() == [1, 2]


def test_retries_are_logged_at_intervals(kafka: ProxiedKafka, caplog: pytest.LogCaptureFixture) -> None:
    """One warning with advice while a transaction is retried, not one for each attempt."""
    sink = kafka.fenced()
    kafka.proxy.passing.clear()
    threading.Timer(6.0, kafka.proxy.passing.set).start()
    with caplog.at_level(logging.WARNING, "streamdetect"):
        kafka.commit(sink, 1)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("streamdetect")]
    assert "retrying until it does: no answer in 2 s. The brokers did not confirm in time: check" in message


# -- outages at any moment


class ContinuousCommits:
    """Commits continuously until `finished`, or until the broker has lost a transaction."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.topic, self.source = make_topic(broker, partitions=2), Partition(make_topic(broker))
        settings = kafka_settings(broker.bootstrap, "group", "6s", bootstrap_timeout_ms=3_000)
        self.sink = KafkaTransactionalSink(settings, self.topic, None)
        self.sink.fence([self.source])
        self.done = 0
        self.finished = threading.Event()
        self.broker_lost_one = self.gave_up = False

    def run(self) -> None:
        while not self.finished.is_set():
            number = self.done + 1
            outputs = Outputs([alert(number, "odd" if number % 2 else "even")])
            try:
                self.sink.commit(outputs, {self.source: number}, commit_metadata(number), self._patience)
            except KafkaError:
                assert self.gave_up
                return
            self.done = number

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Wait for the last commit at the end of the block, unless the broker has lost a transaction."""
        try:
            yield
        except BaseException:
            self.gave_up = True
            raise
        finally:
            self.gave_up |= self.broker_lost_one
            self.finished.set()

    def check(self) -> None:
        """Everything committed is visible, once and in order; if the broker lost a transaction, up to that one."""
        if self.broker_lost_one:
            there, last = numbers(visible(self._broker, self.topic)), self.done - 1
        else:
            there, last = numbers(stored(self._broker, self.topic)), self.done
            assert self.sink.fence([self.source]) == Committed({self.source: last}, commit_metadata(last))
        assert sorted(there)[:last] == list(range(1, last + 1))
        for rest in (0, 1):
            own = [number for number in there if number % 2 == rest]
            assert own == sorted(set(own))

    def _patience(self) -> bool:
        return not self.gave_up

    def wait_for_progress(self) -> None:
        """Wait for a commit that started after this call, or for a lost transaction."""
        enough, is_early = self.done + 2, patience_for(15)
        wait_until(
            lambda: self.done >= enough or (not is_early() and self._transaction_was_lost()), seconds=120
        )

    def _transaction_was_lost(self) -> bool:
        """Whether the broker has lost a transaction. Kafka 4.4.0 does so when the partitions of a decided transaction
        have no leader, as right after the restart of a single broker: it takes them for deleted. The transaction then
        stays open for ever.
        """
        before, still_open = self._state(), is_open(self._broker, self.topic)
        is_over = before == self._state() and before[0] == "EMPTY"
        forgot = "these partitions are likely deleted already" in self._broker.log_text()
        self.broker_lost_one = still_open and is_over and forgot
        return self.broker_lost_one

    def _state(self) -> tuple[str, int]:
        transaction = self._broker.admin.describe_transactions(["group"])["group"]
        return transaction.state.name, transaction.producer_epoch


@pytest.mark.timeout(RANDOM_SECONDS + 300)
def test_a_broker_killed_at_random_moments() -> None:
    """The broker is killed repeatedly during continuous commits: none is lost or duplicated, all are in order."""
    random, deadline = Random(20260302), time.monotonic() + RANDOM_SECONDS
    while time.monotonic() < deadline:
        with Broker() as broker:
            commits = ContinuousCommits(broker)
            with in_background(commits.run), commits.ending():
                while time.monotonic() < deadline and not commits.broker_lost_one:
                    time.sleep(random.uniform(0, 0.5))  # the moment of the kill varies
                    broker.kill()
                    time.sleep(random.uniform(0, 2))  # the duration of the outage varies
                    broker.start()
                    commits.wait_for_progress()
            commits.check()
            commits.sink.close()
