"""The commit protocol on the fakes of `streamdetect.testing`: crashes at every step and at random, and recovery."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
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
"""How many random data sets are tried with crashes; `make chaos` tries more."""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed save is retried immediately."""
    monkeypatch.setattr(commit, "SAVE_PAUSE_SECONDS", 0.0)


class FlightTracker(RunListener):
    """Forwards reports; `landed` is set while no checkpoint is in flight."""

    def __init__(self, listener: RunListener | None) -> None:
        self._next = listener or RunListener()
        self.landed = Event()
        self.landed.set()

    def step_done(self, step: int, number: int) -> None:
        if step == 1:
            self.landed.clear()
        try:
            self._next.step_done(step, number)
        except BaseException:
            self.landed.set()
            raise
        if step == 5:
            self.landed.set()

    def save_failed(self, error: StateError) -> None:
        self._next.save_failed(error)
        self.landed.set()


class PacedSource(MemorySource):
    """A source that advances the clock: a little before each poll, and past the idle timeout once all is read.

    So partitions are idle only at the very end, and the results do not depend on where a process ends. It waits for the
    checkpoint in flight, so that there are about as many checkpoints as turns.
    """

    clock: ManualClock
    step_seconds: float
    leaps: int
    landed: Event

    def pace(self, clock: ManualClock, step_seconds: float, landed: Event) -> None:
        self.clock, self.step_seconds, self.leaps, self.landed = clock, step_seconds, 0, landed

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        self.landed.wait(0.2)
        if len(self.at_end()) == len(self.partitions()):
            self.clock.move(10_000)
            self.leaps += 1
        self.clock.move(self.step_seconds)
        return super().poll(hold, timeout_ms)


class FakeFile:
    """An alert sink that can be truncated like a file. Its content outlives the process."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, alerts: Collection[Alert]) -> None:
        self._lines += [alert.body.decode() for alert in alerts]

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to release."""

    def offset(self) -> dict[str, Any]:
        return {"length": len(self._lines)}

    def truncate(self, mark: dict[str, Any]) -> None:
        del self._lines[mark["length"] :]


@dataclass
class World:
    """What outlives a process: the records, the transactional sink, the store, a file."""

    settings: Settings
    records: MemorySource
    step_seconds: float = 3.0
    sink: MemoryTransactionalSink = field(default_factory=MemoryTransactionalSink)
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
        """Runs one process to the end of the records or to a crash. Alerts go to the sink and the file."""
        clock, records, tracker = ManualClock(), self.records.opened_again(), FlightTracker(listener)
        source = PacedSource(())
        source.__dict__ |= records.__dict__
        source.pace(clock, self.step_seconds, tracker.landed)
        sink = self.sink.opened_again()
        sink.crash_before, sink.crash_after = crash_before, crash_after
        dependencies = Dependencies(
            source=source,
            sink=sink,
            lock=MemoryLock(),
            open_store=lambda: self.store.opened_again(),  # noqa: PLW0108 - a test replaces it
            reset_store=self.reset,
            open_window=lambda _, ends: self.records.between(ends, self.window_starts),
            local_sinks=LocalSinks(alerts=FakeFile(self.file)),
            published_alerts=lambda _: [alert.body for alert in self.sink.alerts],
            published_dead_letters=lambda _: [
                (*dead_letter.record.partition, dead_letter.record.offset)
                for dead_letter in self.sink.dead_letters
            ],
        )
        run_live(
            settings=self.settings,
            dependencies=dependencies,
            stop=lambda: source.leaps >= 2 or stop(),
            listener=tracker,
            wall_ms=lambda: 1 << 60,
            clock=clock,
            wait=clock.move,
            **more,
        )

    def reset(self) -> None:
        self.store = MemoryStore()

    def result(self) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
        """Alerts in the transactional sink, alerts in the file, sorted dead letters."""
        dead_letters = sorted(
            (*dead_letter.record.partition, dead_letter.record.offset, dead_letter.reason)
            for dead_letter in self.sink.dead_letters
        )
        return self.sink.lines(), self.file, dead_letters


def eager(**changed: Any) -> Settings:
    """Settings that alert immediately and at each tick: many steps to crash at."""
    rule = {"id": "r", "name": "r", "min_connections_per_hour": 1, "min_duration_hours": 0, "renotify": "5m"}
    return Settings.model_validate({"rules": [rule], "checkpoint": {"interval": "5s"}, **changed})


def small(**changed: Any) -> World:
    """Two partitions, each with one event a minute for 90 minutes and a record that is not JSON."""
    records = MemorySource([A, B], batch_records=7)
    for partition in (A, B):
        records.add(partition, *(event(T0_MS + minute * MINUTE_MS) for minute in range(90)))
        records.add(partition, b"not json", event(T0_MS + 91 * MINUTE_MS))
    return World(eager(**changed), records)


def undisturbed(world: World) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
    """The result of a run without a crash over the same records."""
    fresh = World(world.settings, world.records, world.step_seconds)
    fresh.live()
    return fresh.result()


# -- crashes


def test_the_body_of_the_protocol_has_the_steps_of_its_docstring() -> None:
    """The comments in `commit.py` repeat the five steps word for word."""

    def steps(text: str) -> list[str]:
        return [" ".join(step.split()) for step in re.findall(r"(?ms)^\d\. .+?(?=^\d\. |^$)", text)]

    comments = re.findall(r"^ +# ?(?=\d\. |  )(.*)$", Path(commit.__file__).read_text(), re.MULTILINE)
    documented = steps(commit.__doc__ or "")
    assert len(documented) == 5
    assert steps("\n".join([*comments, ""])) == documented


@pytest.mark.parametrize("occurrence", [1, 2, 5])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_crash_in_each_gap(step: int, occurrence: int) -> None:
    """After step 1, 2, 3, 4 or 5 of the first, second and fifth checkpoint: nothing is lost or duplicated."""
    world = small()
    expected = undisturbed(world)
    # Each tick from 00:05 to 01:25 has an alert; the last watermark is 01:29.
    assert len(expected[0]) == 17
    with pytest.raises(Crash):
        world.live(CrashingListener(step, occurrence))
    world.live()
    assert world.result() == expected


@pytest.mark.parametrize("number", [1, 2, 3, 6])
@pytest.mark.parametrize("where", ["crash_before", "crash_after"])
def test_a_crash_during_the_transaction(where: str, number: int) -> None:
    """The process dies just before or after the commit; the first commit only announces the new owner."""
    world = small()
    expected = undisturbed(world)
    with pytest.raises(Crash):
        world.live(
            crash_before=number if where == "crash_before" else None,
            crash_after=number if where == "crash_after" else None,
        )
    world.live()
    assert world.result() == expected


def operators_choice(world: World) -> str:
    """Rebuild if the state was lost and the consumer group has commit metadata, else continue."""
    lost = world.store.load() is None and world.sink.committed.metadata is not None
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
def test_a_rebuild_at_any_moment_gives_the_undisturbed_result(data_set: DataSet, seed: int) -> None:
    """Random data, a crash at any step, the directory lost: Kafka holds the same as after an undisturbed run."""
    rng = Random(seed)
    world = world_of(data_set, rng)
    expected = undisturbed(world)
    for _ in range(2):
        try:
            world.live(CrashingListener(rng.randint(1, 5), rng.randint(1, 6)), choice=operators_choice(world))
        except Crash:
            world.reset()
    world.live(choice=operators_choice(world))
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_any_number_of_crashes_gives_the_undisturbed_result(data_set: DataSet, seed: int) -> None:
    """Random data, up to 8 processes that crash at a random step: the same bytes as an undisturbed run."""
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
    # A live run publishes the oracle's alerts, except those that need the end of the input.
    oracle_alerts = [to_line(alert) for alert in replay(data_set.partitions, data_set.settings).alerts]
    assert expected[0] == oracle_alerts[: len(expected[0])]


@pytest.mark.parametrize("rebuild", [False, True], ids=["restore", "rebuild"])
def test_a_stop_at_any_check_is_a_clean_end(rebuild: bool) -> None:
    """A stop during the claim, restore or rebuild, or in any turn: nothing is lost, and the next start continues."""
    world = small()
    expected = undisturbed(world)
    crash_midway(world)
    if rebuild:
        world.reset()
    for checks in (*range(12), 1_000):
        done = count()
        world.live(
            stop=lambda done=done, checks=checks: next(done) >= checks,  # type: ignore[misc]
            choice="rebuild" if rebuild and world.store.load() is None else "continue",
        )
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


# -- saves that fail


def test_a_failed_save_is_retried() -> None:
    """A disk that is full for a moment loses nothing."""
    world = small()
    expected = undisturbed(world)
    failed: list[str] = []

    class FailsSaves(RunListener):
        def save_failed(self, error: StateError) -> None:
            failed.append(str(error))

        def step_done(self, step: int, number: int) -> None:
            if step == 1 and number == 3:
                store.fail_next = SAVE_ATTEMPTS - 1

    store = world.store
    world.store.opened_again = lambda: store  # type: ignore[method-assign]
    world.live(FailsSaves())
    assert len(failed) == SAVE_ATTEMPTS - 1
    assert world.result() == expected


def test_a_disk_that_stays_full_ends_the_run_and_loses_nothing() -> None:
    """The run ends with StateError; with free disk space the next start continues."""
    world = small()
    expected = undisturbed(world)
    store = world.store

    class FillsDisk(RunListener):
        def step_done(self, step: int, number: int) -> None:
            if step == 1 and number == 4:
                store.fail_next = 1_000

    world.store.opened_again = lambda: store  # type: ignore[method-assign]
    with pytest.raises(StateError):
        world.live(FillsDisk())
    store.fail_next = 0
    world.live()
    assert world.result() == expected


# -- recovery


def crash_midway(world: World) -> None:
    """Runs a process that crashes after step 4 of checkpoint 9."""
    with pytest.raises(Crash):
        world.live(CrashingListener(4, 9))


def test_a_lost_directory_is_an_error_that_names_the_choices() -> None:
    """The consumer group has commit metadata, and the store is empty: no silent fresh start."""
    world = small()
    crash_midway(world)
    world.reset()
    with pytest.raises(CheckpointError, match=r"--rebuild.*--reset-state"):
        world.live()
    # The group is released, so the next start does not wait for a heartbeat.
    metadata = world.sink.committed.metadata
    assert metadata is not None
    assert metadata.released
    assert metadata.number > 0


def test_a_rebuild_neither_loses_nor_duplicates() -> None:
    """State from the records, open episodes from the published alerts: Kafka holds the undisturbed bytes."""
    world = small()
    expected = undisturbed(world)
    crash_midway(world)
    published = len(world.sink.alerts)
    assert 0 < published < len(expected[0])
    world.reset()
    world.live(choice="rebuild")
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


def test_a_rebuild_whose_first_record_is_far_in_the_future() -> None:
    """The first record read again is 20 hours ahead: it is handled as one in the middle of a partition."""
    records = MemorySource([A, B], batch_records=7)
    for partition in (A, B):
        minutes = [event(T0_MS + minute * MINUTE_MS) for minute in range(300)]
        minutes.insert(60, event(T0_MS + 21 * 60 * MINUTE_MS))
        records.add(partition, *minutes)
    world = World(eager(time={"lookback": "1h", "interval": "5m"}), records)
    expected = undisturbed(world)
    with pytest.raises(Crash):
        world.live(CrashingListener(4, 30))
    metadata = world.sink.committed.metadata
    # The window of the last tick starts after minute 60, where the records read again start.
    assert metadata is not None
    assert (metadata.evaluated_ms or 0) - 60 * MINUTE_MS > T0_MS + 61 * MINUTE_MS
    world.reset()
    world.window_starts = {A: 60, B: 60}
    world.live(choice="rebuild")
    assert world.result()[0] == expected[0]


def test_a_crash_during_a_rebuild_is_recovered() -> None:
    """Between the first save of the new state and its commit: the checkpoint names its predecessor."""
    world = small()
    expected = undisturbed(world)
    crash_midway(world)
    world.reset()
    with pytest.raises(Crash):
        world.live(CrashingListener(2), choice="rebuild")
    world.live()
    assert world.result()[0] == expected[0]


@pytest.mark.parametrize("lost", [True, False])
def test_a_rebuild_without_commit_metadata_is_refused_and_deletes_nothing(lost: bool) -> None:
    """The group's offsets were deleted, or its name is mistyped: never a silent fresh start."""
    world = small()
    expected = undisturbed(world)
    crash_midway(world)
    world.sink._shared["committed"] = Committed()
    if lost:
        world.reset()
    kept = world.store.load()
    with pytest.raises(CheckpointError, match=r"needs the commit metadata.*--reset-state"):
        world.live(choice="rebuild")
    assert (world.store.load() is None) is lost
    if kept is not None:
        world.live()
        assert world.result()[0] == expected[0]


def test_a_checkpoint_far_ahead_of_the_commit_metadata_is_refused() -> None:
    """The directory was used with another cluster: the outputs in between are not in Kafka."""
    world = small()
    crash_midway(world)
    committed = world.sink.committed
    assert committed.metadata is not None
    older = replace(committed.metadata, number=committed.metadata.number - 2)
    world.sink._shared["committed"] = Committed(committed.positions, older)
    with pytest.raises(CheckpointError, match="missing from Kafka"):
        world.live()


def test_the_slower_of_two_standbys_stands_by_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another instance commits between the claim and the first commit: the run stands by again and does not end."""
    world = small()
    expected = undisturbed(world)
    real_commit = MemoryTransactionalSink.commit
    fenced: list[bool] = []

    def fenced_once(sink: MemoryTransactionalSink, *rest: Any) -> None:
        if not fenced:
            fenced.append(True)
            raise FencedError("another instance was faster")
        real_commit(sink, *rest)

    monkeypatch.setattr(MemoryTransactionalSink, "commit", fenced_once)
    world.live()
    assert fenced
    assert world.result() == expected


def test_a_rebuild_logs_episodes_whose_alerts_cannot_be_read_back(caplog: pytest.LogCaptureFixture) -> None:
    """The alerts were rotated away or went to standard output: the episodes open again, and the log says how many."""
    world = small()
    crash_midway(world)
    world.sink.alerts.clear()
    world.reset()
    world.live(choice="rebuild")
    assert "1 keys meet their conditions, but the alerts" in caplog.text


def test_a_reset_is_a_fresh_start() -> None:
    """Alerts are published again under the same ids."""
    world = small()
    world.live()
    once = [alert.id for alert in world.sink.alerts]
    world.live(choice="reset")
    assert [alert.id for alert in world.sink.alerts] == once * 2
    world.live()
    assert len(world.sink.alerts) == 2 * len(once)


def test_an_old_copy_of_the_directory_is_refused() -> None:
    """Its checkpoint is older than the last published one."""
    world = small()
    crash_midway(world)
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
    """Another state of the group was published since."""
    world = small()
    crash_midway(world)
    first = world.store
    world.reset()
    world.live(choice="rebuild")
    world.store = first
    with pytest.raises(CheckpointError, match="another checkpoint directory was used since"):
        world.live()


def test_positions_of_another_program_are_refused() -> None:
    """Another program commits for the group, or its offsets were set by hand."""
    world = small()
    world.sink._shared["committed"] = Committed({A: 5})
    with pytest.raises(CheckpointError, match="another program"):
        world.live()


@pytest.mark.parametrize("step", [3, 4])
def test_lost_commit_metadata_is_replaced_by_reading_the_sinks(step: int) -> None:
    """The group's offsets have expired: the alert topic shows whether the last checkpoint was published."""
    world = small()
    expected = undisturbed(world)
    with pytest.raises(Crash):
        world.live(CrashingListener(step, 9))
    world.sink._shared["committed"] = Committed()
    world.live()
    assert world.result()[0] == expected[0]
    assert world.result()[2] == expected[2]


def test_a_topic_that_is_no_longer_read_does_not_hold_the_watermark_back() -> None:
    """Its partition is dropped; its events stay counted."""
    world = small()
    crash_midway(world)
    fewer = MemorySource([A], batch_records=7)
    fewer._records = {A: world.records._records[A]}
    world.records = fewer
    before = len(world.sink.alerts)
    world.live()
    assert len(world.sink.alerts) > before


# -- ownership


class Election:
    """`become_owner` with fakes: each wait advances the clock and calls `on_wait`."""

    def __init__(self, metadata: CommitMetadata | None, *, free: bool = True) -> None:
        self.clock = ManualClock()
        self.sink = MemoryTransactionalSink()
        self.sink._shared["committed"] = Committed({A: 1}, metadata)
        self.lock = MemoryLock()
        if not free:
            MemoryLock(self.lock).acquire()
        self.waits = 0
        self.on_wait: Callable[[], object] = lambda: None
        self.stopped = False

    def run(self, *, refuse_reason: str | None = None, state: str = "mine") -> Any:
        def wait(seconds: float) -> None:
            self.waits += 1
            assert self.waits < 100
            self.clock.move(seconds)
            self.on_wait()

        return become_owner(
            sink=self.sink,
            lock=self.lock,
            own_state=lambda: state,
            partitions=[A],
            refuse_reason=refuse_reason,
            takeover_seconds=15,
            stop=lambda: self.stopped,
            clock=self.clock,
            wait=wait,
        )

    def heartbeat(self) -> None:
        committed = self.sink.committed
        assert committed.metadata is not None
        beats = committed.metadata.heartbeat + 1
        metadata = CommitMetadata(1, "other", committed.metadata.state, 5, heartbeat=beats)
        self.sink._shared["committed"] = Committed(committed.positions, metadata)


@pytest.mark.parametrize(
    "metadata",
    [None, CommitMetadata(1, "other", "theirs", 5, released=True), CommitMetadata(1, "other", "mine", 5)],
)
def test_no_wait_for_an_owner_that_has_certainly_exited(metadata: CommitMetadata | None) -> None:
    """There was no owner, it has released the group, or it used this directory, whose lock is free."""
    election = Election(metadata)
    ownership = election.run()
    assert (election.waits, ownership.saw_live_owner, ownership.committed.metadata) == (0, False, metadata)


def test_a_dead_owner_of_another_directory_is_waited_for() -> None:
    """15 seconds without a heartbeat, in steps of 1.5: then the owner counts as dead, and was never seen alive."""
    election = Election(CommitMetadata(1, "other", "theirs", 5))
    assert election.run().saw_live_owner is False
    assert election.waits == 10


def test_a_standby_takes_over_when_the_heartbeats_end() -> None:
    """20 heartbeats, then silence for 15 seconds."""
    election = Election(CommitMetadata(1, "other", "theirs", 5))
    election.on_wait = lambda: election.heartbeat() if election.waits <= 20 else None
    assert election.run().saw_live_owner is True
    assert election.waits == 30


def test_a_second_instance_ends_if_it_must_not_stand_by() -> None:
    """FencedError as soon as it has seen a heartbeat of the other."""
    election = Election(CommitMetadata(1, "other", "theirs", 5))
    election.on_wait = election.heartbeat
    with pytest.raises(FencedError, match="second_instance"):
        election.run(refuse_reason="kafka.second_instance is refuse")
    assert election.waits == 1


def test_a_process_that_holds_the_lock_but_sends_no_heartbeat_is_replaced() -> None:
    """It is suspended: its lock proves nothing, its missing heartbeats count."""
    election = Election(CommitMetadata(1, "other", "mine", 5), free=False)
    assert election.run() is not None
    assert election.waits == 10


def test_a_standby_can_be_stopped() -> None:
    """Returns None, and claims nothing."""
    election = Election(CommitMetadata(1, "other", "theirs", 5))

    def stop() -> None:
        election.stopped = True

    election.on_wait = stop
    assert election.run() is None
    assert election.sink._shared["owner"] is None


def test_an_outage_does_not_count_as_silence() -> None:
    """Time during which Kafka does not answer is not measured."""
    clock = ManualClock()
    monitor, metadata = HeartbeatMonitor(clock), CommitMetadata(1, "other", "theirs", 5)
    assert monitor.observe(metadata) == 0
    clock.move(100)
    monitor.restart()
    clock.move(5)
    assert monitor.observe(metadata) == 5
    assert not monitor.saw_live_owner


def test_commit_metadata_round_trips_and_other_text_is_none() -> None:
    """Metadata that another program commits is not parsed."""
    metadata = CommitMetadata(7, "host-1-abc", "state", 12, 3, T0_MS, released=True)
    assert CommitMetadata.parse(metadata.text()) == metadata
    assert len(metadata.text()) < 400
    for text in ("", "x", "[]", "null", "{}", '{"streamdetect":2}', '{"streamdetect":1,"a":1}'):
        assert CommitMetadata.parse(text) is None
