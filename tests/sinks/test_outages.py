"""The ledger while the broker dies, comes back, falls silent or loses its answers: every commit takes place, once."""

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
    beside,
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

from broker import Broker
from streamdetect.errors import KafkaError
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.sinks import Outputs
from streamdetect.sinks import kafka as kafka_sink
from streamdetect.sinks.kafka import KafkaTransactionalSink
from streamdetect.sinks.transactional import Committed
from streamdetect.sinks.watchdog import HungError, within

RANDOM_SECONDS = float(os.environ.get("STREAMDETECT_OUTAGE_SECONDS", "30"))
"""How long the broker is killed at random moments; more for a night."""


class Scene:
    """A broker behind a proxy, a group with topics of its own, and the ledgers that a test opens."""

    def __init__(self, broker: Broker, proxy: Proxy) -> None:
        self.broker, self.proxy = broker, proxy
        self.group = f"group-{uuid.uuid4().hex[:12]}"
        self.alerts = make_topic(broker, max_message_bytes="20000000")
        self.source = Partition(make_topic(broker))
        self._opened: list[KafkaTransactionalSink] = []

    def fenced(self, takeover: str = "3s", **client: Any) -> KafkaTransactionalSink:
        """The watchdog waits two thirds of `takeover`."""
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
        self.proxy.calm()
        for sink in self._opened:
            sink.close()


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[Broker, Proxy]]:
    """A broker whose clients come through a proxy. It ends transactions that run out of time soon."""
    soon = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "100"}
    broker = Broker(properties=soon)
    with Proxy(broker) as proxy, broker:
        yield broker, proxy


@pytest.fixture
def scene(proxied: tuple[Broker, Proxy]) -> Iterator[Scene]:
    with closing(Scene(*proxied)) as made:
        yield made


# -- outages at a chosen step


STEPS = {
    "AddPartitions": ADD_PARTITIONS_TO_TXN,
    "Produce": PRODUCE,
    "AddOffsets": ADD_OFFSETS_TO_TXN,
    "OffsetCommit": TXN_OFFSET_COMMIT,
    "EndTxn": END_TXN,
}


@pytest.mark.parametrize("moment", ["request", "answer"])
def test_an_outage_at_each_step(scene: Scene, moment: Moment) -> None:
    """Whichever request or answer of a transaction is the last before an outage, the commit returns when the broker is
    back, and took place once.
    """
    sink = scene.fenced()
    scene.commit(sink, 1)
    for number, step in enumerate(STEPS.values(), start=2):
        scene.proxy.down_at(step, moment, seconds=1)
        begun = time.monotonic()
        scene.commit(sink, number)
        assert time.monotonic() - begun < 15
    last = 1 + len(STEPS)
    assert scene.published() == list(range(1, last + 1))
    assert scene.fenced().fetch_committed([scene.source]) == Committed(
        {scene.source: last}, commit_metadata(last)
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_lost_connection_at_each_step(scene: Scene, step: str) -> None:
    """A connection that breaks, with the broker still there, costs a moment."""
    sink = scene.fenced()
    lost: list[int] = []

    def lose_once(key: int) -> bool:
        if key != STEPS[step] or lost:
            return True
        lost.append(key)
        return False

    scene.proxy.on_answer = lose_once
    scene.commit(sink, 1)
    assert lost
    assert scene.published() == [1]


def test_a_commit_whose_answer_is_lost(scene: Scene) -> None:
    """Committed, and the broker gone before it could say so: found out by the note, and not a record is sent again."""
    sink = scene.fenced()
    scene.commit(sink, 1)
    scene.proxy.seen.clear()
    # For less than the watchdog's 2 s the client asks again itself.
    scene.proxy.down_at(END_TXN, "answer", seconds=3)
    scene.commit(sink, 2)
    assert scene.proxy.seen[PRODUCE] == 1
    assert scene.published() == [1, 2]


def test_silence(scene: Scene) -> None:
    """A network that swallows everything for a while, connections and all, is survived like a broker that died."""
    sink = scene.fenced()
    scene.commit(sink, 1)
    for number in (2, 3):
        scene.proxy.passing.clear()
        back = threading.Timer(4.0, scene.proxy.passing.set)
        back.start()
        scene.commit(sink, number)
    assert scene.published() == [1, 2, 3]


def test_a_large_record_on_a_slow_line(scene: Scene) -> None:
    """What needs longer than the watchdog's time gets it, by its size: else it would be begun again for ever."""
    sink = scene.fenced()
    scene.proxy.bytes_per_second = 2_000_000
    scene.proxy.seen.clear()
    record = Record(Partition("source"), 1, 0, None, b"x" * 6_000_000)
    outputs = Outputs(dead_letters=[DeadLetter(record, "too_large", "6 MB")])
    begun = time.monotonic()
    sink.commit(outputs, {scene.source: 1}, commit_metadata(1), patience_for(15))
    assert time.monotonic() - begun > 2, "6 MB at 2 MB/s take 3 s, the watchdog alone gives 2 s"
    assert scene.proxy.seen[PRODUCE] == 1
    assert [len(record.value or b"") for record in stored(scene.broker, scene.alerts)] == [6_000_000]


def test_a_transaction_that_runs_out_of_time(scene: Scene) -> None:
    """The broker ends a transaction that takes too long, which looks like fencing; it is committed again, once."""
    sink = scene.fenced("60s", transaction_timeout_ms=1_000)
    scene.commit(sink, 1)
    send = sink._send_positions
    held: list[object] = []

    def hold_once(*arguments: Any) -> None:
        send(*arguments)
        if not held:
            held.append(arguments)
            wait_until(lambda: not is_open(scene.broker, scene.alerts))

    sink._send_positions = hold_once  # type: ignore[method-assign,assignment]
    scene.commit(sink, 2)
    assert held
    assert scene.published() == [1, 2]


def test_many_partitions_are_one_question(scene: Scene) -> None:
    """A look at 300 partitions asks once: one by one would be seconds on a long line."""
    topic = make_topic(scene.broker, partitions=300)
    source = [Partition(topic, number) for number in range(300)]
    sink, positions = scene.fenced(), {partition: partition.number for partition in source}
    sink.commit(Outputs(), positions, commit_metadata(1))
    wait_until(lambda: sink.fetch_committed(source).metadata == commit_metadata(1))
    scene.proxy.seen.clear()
    assert sink.fetch_committed(source) == Committed(positions, commit_metadata(1))
    assert scene.proxy.seen[OFFSET_FETCH] == 1


# -- calls that never return


def test_the_hang_of_the_client(scene: Scene) -> None:
    """The reason for the watchdog: a call of a transaction that is made while the broker is away never returns, though
    the broker is back long since.
    """
    # The client takes the request from its queue, fails to connect, and forgets the request.
    producer = KafkaProducer(bootstrap_servers=scene.proxy.address, transactional_id=scene.group)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(scene.alerts, b'{"number":1}').get(10)
    scene.proxy.down()
    threading.Timer(1.0, scene.proxy.up).start()
    offsets = {TopicPartition(*scene.source): OffsetAndMetadata(1, "", -1)}
    # On a busy machine the client may notice the loss before the call; then it does not hang this time.
    with contextlib.suppress(HungError):
        within(6.0, lambda: producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata("g")))
    kafka_sink.abandon(producer)
    sink = scene.fenced()
    scene.proxy.down_at(ADD_OFFSETS_TO_TXN, "request", seconds=1)
    begun = time.monotonic()
    scene.commit(sink, 2)
    assert time.monotonic() - begun < 30
    assert scene.published() == [2]


def test_within_gives_up_on_a_call_that_does_not_return() -> None:
    """What returns or raises in time is passed on, a time-out of its own too; the rest is HungError."""
    never = threading.Event()

    def fail(error: Exception) -> None:
        raise error

    assert within(5.0, lambda: 7) == 7
    with pytest.raises(TimeoutError, match="mine"):
        within(5.0, lambda: fail(TimeoutError("mine")))
    with pytest.raises(HungError, match=r"no answer in 0\.05 s"):
        within(0.05, never.wait)
    never.set()


def test_a_look_that_does_not_return(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a KafkaError like every other silence: a standby waits on, and does not end with a bug."""
    sink, never = scene.fenced(), threading.Event()
    monkeypatch.setattr(kafka_sink, "ANSWER_SECONDS", -1.5)  # and the watchdog's 2 s
    monkeypatch.setattr(sink._unstable_offsets, "read", lambda *_arguments: never.wait())
    with pytest.raises(KafkaError, match=f"what the group {scene.group} has committed: no answer in"):
        sink.fetch_committed([scene.source])
    never.set()


def test_a_transaction_that_nobody_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of the group in an open transaction of another id, such as brokers leave behind that forgot to
    write its end: the claim says what it is and what to do, and goes well once that is done.
    """
    monkeypatch.setattr(kafka_sink, "ANSWER_SECONDS", 1.0)
    producer = KafkaProducer(
        bootstrap_servers=scene.broker.bootstrap, transactional_id=f"{scene.group}-other"
    )
    producer.init_transactions()
    producer.begin_transaction()
    offsets = {TopicPartition(*scene.source): OffsetAndMetadata(1, "", -1)}
    producer.send_offsets_to_transaction(offsets, scene.group)
    with pytest.raises(KafkaError, match=r"does not end, .* kafka-transactions.sh find-hanging"):
        scene.fenced()
    producer.abort_transaction()
    producer.close()
    scene.fenced()


def test_nothing_is_left_behind(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer given up with records on their way ends its threads though the broker is away, and when its memory is
    taken back it says nothing on standard error.
    """
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    sink = scene.fenced()
    scene.proxy.down_at(PRODUCE, "request", seconds=600)
    with suppress(KafkaError):
        scene.commit(sink, 1, patience=lambda: False)
    wait_until(lambda: _sender_threads() == 0)
    gc.collect()
    assert told == []


def _sender_threads() -> int:
    return sum(thread.name == "streamdetect-network-thread" for thread in threading.enumerate())


def test_a_process_ends_though_a_call_hangs(scene: Scene) -> None:
    """When main has returned, neither a thread in a call that never returns nor a producer with records on their way
    (kafka-python has exit handlers) keeps the process alive.
    """
    child = Child("hung", scene.proxy.address, scene.group, scene.alerts, scene.source.topic)
    child.await_line("ready")
    scene.proxy.down_at(ADD_OFFSETS_TO_TXN, "request", seconds=600)
    child.go_on()
    child.await_line("main returns")
    assert child.end(seconds=6.0) == 0


# -- patience


@pytest.mark.parametrize("outage", ["down", "silent"])
def test_patience_that_has_run_out(scene: Scene, outage: str) -> None:
    """A stop does not wait for ever: a KafkaError (exit 4) says that it is saved and goes out at the next start, as it
    does, whether or not the ledger gave up in the middle.
    """
    sink = scene.fenced()
    scene.commit(sink, 1)
    if outage == "down":
        scene.proxy.down()
    else:
        scene.proxy.passing.clear()
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(KafkaError, match=r"\. It is saved in the checkpoint, and goes out") as told:
            scene.commit(sink, 2, patience=lambda: False)
        assert told.value.exit_code == 4
        assert time.monotonic() - begun < 15
    begun = time.monotonic()
    sink.close()
    assert time.monotonic() - begun < 5
    scene.proxy.calm()
    next_start = scene.fenced()
    assert next_start.fetch_committed([scene.source]).metadata == commit_metadata(1)
    scene.commit(next_start, 2, epoch=2)
    assert scene.published() == [1, 2]


def test_waiting_is_told_now_and_then(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """One warning when a transaction is not taken, with what to look at; not one for each attempt."""
    sink = scene.fenced()
    scene.proxy.passing.clear()
    threading.Timer(6.0, scene.proxy.passing.set).start()
    with caplog.at_level(logging.WARNING, "streamdetect"):
        scene.commit(sink, 1)
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("streamdetect")]
    assert "retrying until it does: no answer in 2 s. The brokers did not confirm in time: check" in told


# -- outages at any moment


class Unbroken:
    """Commits one after the other, until told to stop, or until the broker has lost one."""

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
        """At the end of the block the last commit arrives, unless there is no hope for it."""
        try:
            yield
        except BaseException:
            self.gave_up = True
            raise
        finally:
            self.gave_up |= self.broker_lost_one
            self.finished.set()

    def check(self) -> None:
        """All that was committed is there, once and in order. If the broker lost one, up to that one."""
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

    def go_on(self) -> None:
        """Wait for a commit that began after this call, or for the end."""
        enough, is_early = self.done + 2, patience_for(15)
        wait_until(lambda: self.done >= enough or (not is_early() and self._hangs()), seconds=120)

    def _hangs(self) -> bool:
        """Kafka 4.4.0 forgets a decided transaction if its partitions have no leader at that moment, as right after the
        restart of a broker that is alone: it takes them for deleted. It is decided then, and open for ever.
        """
        before, still_open = self._state(), is_open(self._broker, self.topic)
        is_over = before == self._state() and before[0] == "EMPTY"
        forgot = "these partitions are likely deleted already" in self._broker.log_text()
        self.broker_lost_one = still_open and is_over and forgot
        return self.broker_lost_one

    def _state(self) -> tuple[str, int]:
        told = self._broker.admin.describe_transactions(["group"])["group"]
        return told.state.name, told.producer_epoch


@pytest.mark.timeout(RANDOM_SECONDS + 300)
def test_a_broker_killed_at_random_moments() -> None:
    """Killed again and again while one commit follows the other: none is lost, none doubled, all are in order."""
    random, deadline = Random(20260302), time.monotonic() + RANDOM_SECONDS
    while time.monotonic() < deadline:
        with Broker() as broker:
            commits = Unbroken(broker)
            with beside(commits.run), commits.ending():
                while time.monotonic() < deadline and not commits.broker_lost_one:
                    time.sleep(random.uniform(0, 0.5))  # the moment is what is varied
                    broker.kill()
                    time.sleep(random.uniform(0, 2))  # so is how long it is away
                    broker.start()
                    commits.go_on()
            commits.check()
            commits.sink.close()
