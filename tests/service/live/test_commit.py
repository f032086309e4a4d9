"""The commit protocol on shipped fakes: crashes at every step, at random, and what a start makes of what it finds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from threading import Event
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import event, settings_from

from oracle import replay, to_line
from strategies import DataSet, data_sets
from streamdetect.checkpoint.memory import MemoryStore
from streamdetect.config import Settings
from streamdetect.errors import CheckpointError, FencedError, StateError
from streamdetect.model import Alert, Batch, Partition
from streamdetect.service.live import commit
from streamdetect.service.live.commit import SAVE_ATTEMPTS
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.leader import HeartbeatMonitor, become_owner
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.service.live.loop import run_live
from streamdetect.sinks.transactional import CommitMetadata, Committed
from streamdetect.testing import (
    Crash,
    CrashingListener,
    ManualClock,
    MemoryLock,
    MemorySource,
    MemoryTransactionalSink,
)

T0_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
MINUTE_MS = 60_000
A, B = Partition("events", 0), Partition("events", 1)
EXAMPLES = int(os.environ.get("STREAMDETECT_EXAMPLES", "20"))
"""Of random data with crashes; `make chaos` takes more."""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed save is tried again at once."""
    monkeypatch.setattr(commit, "SAVE_PAUSE_SECONDS", 0.0)


class Orderly(RunListener):
    """Hands reports on, and knows whether a checkpoint is on its way."""

    def __init__(self, listener: RunListener | None) -> None:
        self._next = listener or RunListener()
        self.arrived = Event()
        self.arrived.set()

    def reached(self, step: int, number: int) -> None:
        if step == 1:
            self.arrived.clear()
        try:
            self._next.reached(step, number)
        except BaseException:
            self.arrived.set()
            raise
        if step == 5:
            self.arrived.set()

    def save_failed(self, error: StateError) -> None:
        self._next.save_failed(error)
        self.arrived.set()


class Paced(MemorySource):
    """A source that moves the clock: a little before each poll, and once over the idle time-out when all was read.

    So partitions are idle only at the very end, and where a life ends does not show in the answer. It waits for a
    checkpoint that is on its way, so that there are about as many as turns.
    """

    clock: ManualClock
    step_seconds: float
    leapt: int
    arrived: Event

    def paced(self, clock: ManualClock, step_seconds: float, arrived: Event) -> None:
        self.clock, self.step_seconds, self.leapt, self.arrived = clock, step_seconds, 0, arrived

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        self.arrived.wait(0.2)
        if len(self.at_end()) == len(self.partitions()):
            self.clock.move(10_000)
            self.leapt += 1
        self.clock.move(self.step_seconds)
        return super().poll(hold, timeout_ms)


class FileLike:
    """An alert sink that can be cut back, as a file can. It outlives the process."""

    def __init__(self, medium: list[str]) -> None:
        self._medium = medium

    def write(self, alerts: Collection[Alert]) -> None:
        self._medium += [alert.body.decode() for alert in alerts]

    def flush(self) -> None:
        """Written is safe here."""

    def close(self) -> None:
        """Nothing to give back."""

    def mark(self) -> dict[str, Any]:
        return {"length": len(self._medium)}

    def cut_back(self, mark: dict[str, Any]) -> None:
        del self._medium[mark["length"] :]


@dataclass
class World:
    """What outlives a process: the records, the ledger, the store, a file."""

    settings: Settings
    records: MemorySource
    step_seconds: float = 3.0
    ledger: MemoryTransactionalSink = field(default_factory=MemoryTransactionalSink)
    store: MemoryStore = field(default_factory=MemoryStore)
    file: list[str] = field(default_factory=list)
    window_starts: dict[Partition, int] = field(default_factory=dict)

    def live(
        self,
        listener: RunListener | None = None,
        crash_before: int | None = None,
        crash_after: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        **more: Any,
    ) -> None:
        """One life of the process, to the end of the records or to a crash. Alerts go to the ledger and the file."""
        clock, again, orderly = ManualClock(), self.records.again(), Orderly(listener)
        source = Paced(())
        source.__dict__ |= again.__dict__
        source.paced(clock, self.step_seconds, orderly.arrived)
        ledger = self.ledger.opened_again()
        ledger.crash_before, ledger.crash_after = crash_before, crash_after
        around = Dependencies(
            source=source,
            ledger=ledger,
            lock=MemoryLock(),
            open_store=lambda: self.store.opened_again(),  # noqa: PLW0108 - a test puts another in its place
            reset_store=self.reset,
            window=lambda _, ends: self.records.between(ends, self.window_starts),
            local=LocalSinks(alerts=FileLike(self.file)),
            sent_alerts=lambda _: [alert.body for alert in self.ledger.alerts],
            sent_letters=lambda _: [
                (*letter.record.partition, letter.record.offset) for letter in self.ledger.letters
            ],
        )
        run_live(
            settings=self.settings,
            around=around,
            stop=lambda: source.leapt >= 2 or stop(),
            listener=orderly,
            wall_ms=lambda: 1 << 60,
            clock=clock,
            wait=clock.move,
            **more,
        )

    def reset(self) -> None:
        self.store = MemoryStore()

    def result(self) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
        """Alerts in the ledger, alerts in the file, dead letters in any order."""
        letters = sorted(
            (*letter.record.partition, letter.record.offset, letter.reason) for letter in self.ledger.letters
        )
        return self.ledger.lines(), self.file, letters


def eager(**changed: Any) -> Settings:
    """Alerts at once and each tick: many steps to crash at."""
    rule = {"id": "r", "name": "r", "min_connections_per_hour": 1, "min_duration_hours": 0, "renotify": "5m"}
    return Settings.model_validate({"rules": [rule], "checkpoint": {"interval": "5s"}, **changed})


def small(**changed: Any) -> World:
    """Two partitions, an event a minute for an hour and a half in each, and a record that is no JSON."""
    records = MemorySource([A, B], batch_records=7)
    for partition in (A, B):
        records.add(partition, *(event(T0_MS + minute * MINUTE_MS) for minute in range(90)))
        records.add(partition, b"not json", event(T0_MS + 91 * MINUTE_MS))
    return World(eager(**changed), records)


def undisturbed(world: World) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
    calm = World(world.settings, world.records, world.step_seconds)
    calm.live()
    return calm.result()


# -- crashes


@pytest.mark.parametrize("time", [1, 2, 5])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_crash_in_each_gap(step: int, time: int) -> None:
    """After step 1, 2, 3, 4 or 5, at the first, second and fifth checkpoint: nothing is lost, nothing doubled."""
    world = small()
    expected = undisturbed(world)
    # Ticks from 00:05 to 01:25 have an alert each: the watermark ends at 01:29.
    assert len(expected[0]) == 17
    with pytest.raises(Crash):
        world.live(CrashingListener(step, time))
    world.live()
    assert world.result() == expected


@pytest.mark.parametrize("commit", [1, 2, 3, 6])
@pytest.mark.parametrize("where", ["crash_before", "crash_after"])
def test_a_crash_within_the_transaction(where: str, commit: int) -> None:
    """It was not committed, or it was and nobody heard of it; the first commit is the claim of a new owner."""
    world = small()
    expected = undisturbed(world)
    with pytest.raises(Crash):
        world.live(
            crash_before=commit if where == "crash_before" else None,
            crash_after=commit if where == "crash_after" else None,
        )
    world.live()
    assert world.result() == expected


def as_needed(world: World) -> str:
    """As an operator would choose: rebuild where the state was lost and there is a history."""
    lost = world.store.load() is None and world.ledger.committed.note is not None
    return "rebuild" if lost else "continue"


def world_of(data_set: DataSet, rng: Random) -> World:
    records = MemorySource(
        [Partition("p", number) for number in range(len(data_set.partitions))], rng.randint(1, 40)
    )
    for number, lines in enumerate(data_set.partitions):
        for document, at in lines:
            raw = document if isinstance(document, str) else json.dumps(document)
            records.add(Partition("p", number), (raw.encode(), at))
    return World(settings_from(data_set.settings), records, step_seconds=rng.choice([0.1, 10.0, 40.0]))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_a_rebuild_at_any_moment_gives_the_undisturbed_answer(data_set: DataSet, seed: int) -> None:
    """Random data, a crash anywhere, the directory lost: what Kafka holds in the end is that of a calm run."""
    rng = Random(seed)
    world = world_of(data_set, rng)
    expected = undisturbed(world)
    for _ in range(2):
        try:
            world.live(CrashingListener(rng.randint(1, 5), rng.randint(1, 6)), choice=as_needed(world))
        except Crash:
            world.reset()
    world.live(choice=as_needed(world))
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_any_number_of_crashes_gives_the_undisturbed_answer(data_set: DataSet, seed: int) -> None:
    """Random data, up to 8 lives that end at a random step: the bytes of a run that was never disturbed."""
    rng = Random(seed)
    world = world_of(data_set, rng)
    expected = undisturbed(world)
    for _ in range(8):
        try:
            if rng.random() < 0.3:
                before, after = rng.choice([(rng.randint(1, 6), None), (None, rng.randint(1, 6))])
                world.live(crash_before=before, crash_after=after)
            else:
                world.live(CrashingListener(rng.randint(1, 5), rng.randint(1, 4)))
        except Crash:
            continue
    world.live()
    assert world.result() == expected
    # What a run has sent is what the oracle says, as far as time has come without the end of the input.
    told = [to_line(alert) for alert in replay(data_set.partitions, data_set.settings).alerts]
    assert expected[0] == told[: len(expected[0])]


@pytest.mark.parametrize("rebuild", [False, True], ids=["restore", "rebuild"])
def test_a_stop_at_any_question_is_a_clean_end(rebuild: bool) -> None:
    """While it claims, restores or rebuilds, and in each turn: nothing is lost, and the next start goes on."""
    world = small()
    expected = undisturbed(world)
    half_done(world)
    if rebuild:
        world.reset()
    for patience in (*range(12), 1_000):
        asked = count()
        world.live(
            stop=lambda asked=asked, patience=patience: next(asked) >= patience,  # type: ignore[misc]
            choice="rebuild" if rebuild and world.store.load() is None else "continue",
        )
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


# -- saves that fail


def test_a_save_that_fails_is_tried_again() -> None:
    """A disk that is full for a moment costs nothing."""
    world = small()
    expected = undisturbed(world)
    failed: list[str] = []

    class Hears(RunListener):
        def save_failed(self, error: StateError) -> None:
            failed.append(str(error))

        def reached(self, step: int, number: int) -> None:
            if step == 1 and number == 3:
                store.fail_next = SAVE_ATTEMPTS - 1

    store = world.store
    world.store.opened_again = lambda: store  # type: ignore[method-assign]
    world.live(Hears())
    assert len(failed) == SAVE_ATTEMPTS - 1
    assert world.result() == expected


def test_a_disk_that_stays_full_ends_the_run_and_loses_nothing() -> None:
    """StateError; with room again the next start goes on."""
    world = small()
    expected = undisturbed(world)
    store = world.store

    class Fills(RunListener):
        def reached(self, step: int, number: int) -> None:
            if step == 1 and number == 4:
                store.fail_next = 1_000

    world.store.opened_again = lambda: store  # type: ignore[method-assign]
    with pytest.raises(StateError):
        world.live(Fills())
    store.fail_next = 0
    world.live()
    assert world.result() == expected


# -- what a start finds


def half_done(world: World) -> None:
    with pytest.raises(Crash):
        world.live(CrashingListener(4, 9))


def test_a_lost_directory_is_refused_and_the_choices_are_named() -> None:
    """The group has a history in Kafka, and we have none: no silent fresh start."""
    world = small()
    half_done(world)
    world.reset()
    with pytest.raises(CheckpointError, match=r"--rebuild.*--reset-state"):
        world.live()
    # The next start need not wait to see whether we live.
    note = world.ledger.committed.note
    assert note is not None
    assert note.released
    assert note.number > 0


def test_a_rebuild_sends_nothing_again_and_loses_nothing() -> None:
    """The lost state from the records, the open episodes from the alerts: the undisturbed bytes in Kafka."""
    world = small()
    expected = undisturbed(world)
    half_done(world)
    sent = len(world.ledger.alerts)
    assert 0 < sent < len(expected[0])
    world.reset()
    world.live(choice="rebuild")
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


def test_a_wild_record_where_the_window_begins_does_not_carry_time_away() -> None:
    """A record 20 hours ahead is the first of what is read again: it is judged as one in the middle of a partition."""
    records = MemorySource([A, B], batch_records=7)
    for partition in (A, B):
        minutes = [event(T0_MS + minute * MINUTE_MS) for minute in range(300)]
        minutes.insert(60, event(T0_MS + 21 * 60 * MINUTE_MS))
        records.add(partition, *minutes)
    world = World(eager(time={"lookback": "1h", "interval": "5m"}), records)
    expected = undisturbed(world)
    with pytest.raises(Crash):
        world.live(CrashingListener(4, 30))
    note = world.ledger.committed.note
    # The window of the last tick begins after minute 60, from which on the records are read.
    assert note is not None
    assert (note.evaluated_ms or 0) - 60 * MINUTE_MS > T0_MS + 61 * MINUTE_MS
    world.reset()
    world.window_starts = {A: 60, B: 60}
    world.live(choice="rebuild")
    assert world.result()[0] == expected[0]


def test_a_crash_within_a_rebuild_can_be_continued() -> None:
    """Between the first save of the new state and its note: the checkpoint knows what it follows."""
    world = small()
    expected = undisturbed(world)
    half_done(world)
    world.reset()
    with pytest.raises(Crash):
        world.live(CrashingListener(2), choice="rebuild")
    world.live()
    assert world.result()[0] == expected[0]


@pytest.mark.parametrize("lost", [True, False])
def test_a_rebuild_without_a_note_is_refused_and_throws_nothing_away(lost: bool) -> None:
    """The group's offsets were deleted, or its name is mistyped: never a fresh start under another name."""
    world = small()
    expected = undisturbed(world)
    half_done(world)
    world.ledger._shared["committed"] = Committed()
    if lost:
        world.reset()
    kept = world.store.load()
    with pytest.raises(CheckpointError, match=r"needs the note.*--reset-state"):
        world.live(choice="rebuild")
    assert (world.store.load() is None) is lost
    if kept is not None:
        world.live()
        assert world.result()[0] == expected[0]


def test_a_checkpoint_far_ahead_of_its_note_is_refused() -> None:
    """The directory was used with something else since: what was decided in between is nowhere."""
    world = small()
    half_done(world)
    committed = world.ledger.committed
    assert committed.note is not None
    older = replace(committed.note, number=committed.note.number - 2)
    world.ledger._shared["committed"] = Committed(committed.positions, older)
    with pytest.raises(CheckpointError, match="not in Kafka"):
        world.live()


def test_the_slower_of_two_standbys_stands_by_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody was quicker between our claim and our first note: that is no reason to end."""
    world = small()
    expected = undisturbed(world)
    commit_once = MemoryTransactionalSink.commit
    lost: list[bool] = []

    def quicker(ledger: MemoryTransactionalSink, *rest: Any) -> None:
        if not lost:
            lost.append(True)
            raise FencedError("another instance was quicker")
        commit_once(ledger, *rest)

    monkeypatch.setattr(MemoryTransactionalSink, "commit", quicker)
    world.live()
    assert lost
    assert world.result() == expected


def test_a_rebuild_tells_of_episodes_that_nobody_can_read_back(caplog: pytest.LogCaptureFixture) -> None:
    """The alerts were rotated away or went to standard output: they open again, and the log says how many."""
    world = small()
    half_done(world)
    world.ledger.alerts.clear()
    world.reset()
    world.live(choice="rebuild")
    assert "1 keys meet their conditions, but no alert" in caplog.text


def test_a_reset_begins_anew() -> None:
    """Alerts come again, under the same ids."""
    world = small()
    world.live()
    once = [alert.id for alert in world.ledger.alerts]
    world.live(choice="reset")
    assert [alert.id for alert in world.ledger.alerts] == once * 2
    world.live()
    assert len(world.ledger.alerts) == 2 * len(once)


def test_an_old_copy_of_the_directory_is_refused() -> None:
    """Its checkpoint is older than what was published."""
    world = small()
    half_done(world)
    old = MemoryStore()
    old._medium.__init__()  # type: ignore[misc]
    found = world.store._medium
    for name in found.__slots__:
        setattr(old._medium, name, getattr(found, name))
    old._medium.keys, old._medium.waiting = dict(found.keys), list(found.waiting)
    world.live()
    world.store = old
    with pytest.raises(CheckpointError, match="old copy"):
        world.live()


def test_another_directory_of_the_same_group_is_refused() -> None:
    """Somebody has gone on with another state since."""
    world = small()
    half_done(world)
    first = world.store
    world.reset()
    world.live(choice="rebuild")
    world.store = first
    with pytest.raises(CheckpointError, match="another state has gone on"):
        world.live()


def test_positions_of_another_program_are_refused() -> None:
    """A group that somebody else commits for, or whose offsets were moved by hand."""
    world = small()
    world.ledger._shared["committed"] = Committed({A: 5})
    with pytest.raises(CheckpointError, match="another program"):
        world.live()


@pytest.mark.parametrize("step", [3, 4])
def test_a_lost_note_asks_the_topics_what_was_sent(step: int) -> None:
    """The offsets of a group expire: whether the last checkpoint was published, the alerts topic tells."""
    world = small()
    expected = undisturbed(world)
    with pytest.raises(Crash):
        world.live(CrashingListener(step, 9))
    world.ledger._shared["committed"] = Committed()
    world.live()
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


def test_a_topic_that_is_read_no_more_does_not_hold_time_back() -> None:
    """Its partition is forgotten; what it sent stays counted."""
    world = small()
    half_done(world)
    fewer = MemorySource([A], batch_records=7)
    fewer._records = {A: world.records._records[A]}
    world.records = fewer
    before = len(world.ledger.alerts)
    world.live()
    assert len(world.ledger.alerts) > before


# -- one owner


class Desk:
    """`become_owner` with fakes: each wait moves the clock, and does what a test wants."""

    def __init__(self, note: CommitMetadata | None, *, free: bool = True) -> None:
        self.clock = ManualClock()
        self.ledger = MemoryTransactionalSink()
        self.ledger._shared["committed"] = Committed({A: 1}, note)
        self.lock = MemoryLock()
        if not free:
            MemoryLock(self.lock).acquire()
        self.waits = 0
        self.on_wait: Callable[[], object] = lambda: None
        self.stopped = False

    def ask(self, *, refuse: str | None = None, state: str = "mine") -> Any:
        def wait(seconds: float) -> None:
            self.waits += 1
            assert self.waits < 100
            self.clock.move(seconds)
            self.on_wait()

        return become_owner(
            ledger=self.ledger,
            lock=self.lock,
            own_state=lambda: state,
            partitions=[A],
            refuse=refuse,
            takeover_seconds=15,
            stop=lambda: self.stopped,
            clock=self.clock,
            wait=wait,
        )

    def beat(self) -> None:
        committed = self.ledger.committed
        assert committed.note is not None
        beats = committed.note.beat + 1
        note = CommitMetadata(1, "other", committed.note.state, 5, beat=beats)
        self.ledger._shared["committed"] = Committed(committed.positions, note)


@pytest.mark.parametrize(
    "note",
    [None, CommitMetadata(1, "other", "theirs", 5, released=True), CommitMetadata(1, "other", "mine", 5)],
)
def test_nobody_is_waited_for_who_is_certainly_gone(note: CommitMetadata | None) -> None:
    """Nobody ever was, the last one ended in order, or it was a process on our own directory, whose lock we have."""
    desk = Desk(note)
    claim = desk.ask()
    assert (desk.waits, claim.stood_by, claim.committed.note) == (0, False, note)


def test_a_dead_owner_elsewhere_is_waited_for() -> None:
    """15 seconds without a change of its note, in steps of 1.5: then it is gone, and was never seen alive."""
    desk = Desk(CommitMetadata(1, "other", "theirs", 5))
    assert desk.ask().stood_by is False
    assert desk.waits == 10


def test_a_standby_takes_over_when_the_beats_end() -> None:
    """20 beats, then silence for 15 seconds."""
    desk = Desk(CommitMetadata(1, "other", "theirs", 5))
    desk.on_wait = lambda: desk.beat() if desk.waits <= 20 else None
    assert desk.ask().stood_by is True
    assert desk.waits == 30


def test_a_second_instance_refuses_if_told_so() -> None:
    """As soon as it has seen the other alive."""
    desk = Desk(CommitMetadata(1, "other", "theirs", 5))
    desk.on_wait = desk.beat
    with pytest.raises(FencedError, match="second_instance"):
        desk.ask(refuse="kafka.second_instance is refuse")
    assert desk.waits == 1


def test_a_process_that_holds_the_directory_but_is_silent_is_overruled() -> None:
    """It was stopped in the middle: its lock says nothing, its silence does."""
    desk = Desk(CommitMetadata(1, "other", "mine", 5), free=False)
    assert desk.ask() is not None
    assert desk.waits == 10


def test_a_standby_can_be_stopped() -> None:
    """None, and nothing was claimed."""
    desk = Desk(CommitMetadata(1, "other", "theirs", 5))

    def stop() -> None:
        desk.stopped = True

    desk.on_wait = stop
    assert desk.ask() is None
    assert desk.ledger._shared["owner"] is None


def test_an_outage_makes_nobody_dead() -> None:
    """While Kafka does not answer, silence is not counted."""
    clock = ManualClock()
    watch, note = HeartbeatMonitor(clock), CommitMetadata(1, "other", "theirs", 5)
    assert watch.saw(note) == 0
    clock.move(100)
    watch.saw_nothing()
    clock.move(5)
    assert watch.saw(note) == 5
    assert not watch.seen_alive


def test_a_note_round_trips_and_others_are_none() -> None:
    """What another program commits is no note."""
    note = CommitMetadata(7, "host-1-abc", "state", 12, 3, T0_MS, released=True)
    assert CommitMetadata.parse(note.text()) == note
    assert len(note.text()) < 400
    for text in ("", "x", "[]", "null", "{}", '{"streamdetect":2}', '{"streamdetect":1,"a":1}'):
        assert CommitMetadata.parse(text) is None
