"""The live loop and the replay loop on the fakes of `streamdetect.testing`: manual clocks, no broker, no sleeping."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
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
from streamdetect.errors import SinkError
from streamdetect.model import Batch, Partition
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.live import loop as loop_module
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.service.live.loop import run_live
from streamdetect.service.live.wall_clock import WallClock
from streamdetect.service.summary import Summary
from streamdetect.testing import (
    ManualClock,
    MemoryAlertSink,
    MemoryDeadLetterSink,
    MemoryLock,
    MemorySource,
    MemoryTransactionalSink,
)

MINUTE_MS = 60_000
T0_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
A, B = Partition("events", 0), Partition("events", 1)


class TurnSource(MemorySource):
    """A source that calls the next of `turns` before each poll."""

    def __init__(self, source: MemorySource) -> None:
        self.__dict__ = source.__dict__
        self.turns: list[Callable[[], object]] = []

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        self.turns.pop(0)()
        return super().poll(hold, timeout_ms)


class Live:
    """A live run, driven turn by turn: it calls each of `turns` before a poll, then stops."""

    def __init__(self, source: MemorySource, **changed: Any) -> None:
        self.clock = ManualClock()
        self.wall_ms = T0_MS + 10**9
        self.source = TurnSource(source)
        self.sink = MemoryTransactionalSink()
        self.store = MemoryStore()
        self.local_sinks = LocalSinks()
        rule = {"id": "r", "name": "r", "min_connections_per_hour": 1, "min_duration_hours": 0}
        self.settings = Settings.model_validate({"rules": [rule], **changed})

    def run(self, *turns: Callable[[], object], **more: Any) -> Summary:
        self.source.turns = list(turns)
        return run_live(
            settings=self.settings,
            dependencies=Dependencies(
                source=self.source,
                sink=self.sink,
                lock=MemoryLock(),
                open_store=lambda: self.store,
                reset_store=lambda: None,
                open_window=lambda _, ends: self.source.between(ends),
                local_sinks=self.local_sinks,
            ),
            stop=lambda: not self.source.turns,
            wall_ms=lambda: self.wall_ms,
            clock=self.clock,
            wait=self.clock.move,
            **more,
        )


def ticks(live: Live) -> list[int]:
    return [alert.tick_ms - T0_MS for alert in live.sink.alerts]


def nothing() -> None:
    """A turn without a change."""


def test_an_empty_partition_holds_the_watermark_back_until_it_is_idle() -> None:
    """B never had an event: A's tick is evaluated after idle_timeout of silence, and not before."""
    live = Live(MemorySource([A, B]))
    before: list[list[int]] = []

    def check_and_wait() -> None:
        before.append(ticks(live))
        live.clock.move(0.1)

    summary = live.run(
        lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)),
        lambda: live.clock.move(59.9),
        check_and_wait,
    )
    # A's watermark is 00:08, so the ticks up to 00:05 are evaluated once B is idle.
    assert before == [[]]
    assert ticks(live) == [5 * MINUTE_MS]
    assert summary.counted == 2


def test_a_partition_with_unread_records_is_never_idle() -> None:
    """B has unread records: it holds A's ticks back however much time passes."""
    source = MemorySource([A, B], batch_records=1)
    source.add(A, event(T0_MS), event(T0_MS + 30 * MINUTE_MS))
    source.add(B, *(event(T0_MS + i) for i in range(5)))
    live = Live(source)
    live.run(*[lambda: live.clock.move(600)] * 4)
    assert ticks(live) == []


def test_a_partition_far_ahead_is_held() -> None:
    """A is more than two intervals ahead of B, which still has records: A is not read until B has caught up."""
    source = MemorySource([A, B], batch_records=1)
    source.add(A, event(T0_MS + 11 * MINUTE_MS), event(T0_MS + 12 * MINUTE_MS))
    source.add(B, *(event(T0_MS + minute * MINUTE_MS) for minute in (0, 1, 2, 3)))
    live = Live(source)
    live.run(*[nothing] * 4)
    # Clocks before each poll: none; A 11, B 0 (11 > 0 + 10: A held); A 11, B 1 (not held: 11 = 1 + 10).
    assert source.polls[:3] == [frozenset(), frozenset({A}), frozenset()]


def test_an_event_ahead_of_the_wall_clock_is_a_dead_letter_and_moves_no_clock() -> None:
    """An event 10 minutes ahead counts, 1 ms more is refused; only in a live run."""
    source = MemorySource([A])
    source.add(A, event(T0_MS + 10 * MINUTE_MS), event(T0_MS + 10 * MINUTE_MS + 1))
    live = Live(source)
    live.wall_ms = T0_MS
    summary = live.run(nothing)
    assert (summary.counted, summary.dead_lettered) == (1, {"future_time": 1})
    assert [dead_letter.record.offset for dead_letter in live.sink.dead_letters] == [1]
    assert "600001 ms ahead of this machine's clock" in live.sink.dead_letters[0].detail


def test_late_arrivals_of_an_idle_partition_are_counted() -> None:
    """B is idle, then delivers an event of a tick already evaluated: it counts from the next tick on."""
    live = Live(MemorySource([A, B]))
    summary = live.run(
        lambda: live.source.add(A, event(T0_MS), event(T0_MS + 30 * MINUTE_MS)),
        lambda: live.clock.move(60),
        lambda: live.source.add(B, event(T0_MS + MINUTE_MS)),
        lambda: live.source.add(A, event(T0_MS + 45 * MINUTE_MS)),
    )
    assert summary.late_arrivals == 1
    assert summary.consumed == summary.counted == 4


def test_a_failing_sink_ends_the_run() -> None:
    """SinkError is raised unchanged, so that the command ends with its exit code."""
    live = Live(MemorySource([A]))
    live.local_sinks = LocalSinks(alerts=MemoryAlertSink(fail_at=1))
    with pytest.raises(SinkError):
        live.run(lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)), nothing)


def test_a_stop_completes_the_turn_and_publishes_everything() -> None:
    """After a stop each alert and the position after the last record are published, and the group is released."""
    live = Live(MemorySource([A]))
    live.run(lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)))
    assert len(live.sink.alerts) == 1
    assert live.sink.committed.positions == {A: 2}
    metadata = live.sink.committed.metadata
    assert metadata is not None
    assert metadata.released


def filled(data_set: DataSet, batch_records: int) -> MemorySource:
    source = MemorySource([Partition("p", n) for n in range(len(data_set.partitions))], batch_records)
    for number, records in enumerate(data_set.partitions):
        for document, at in records:
            raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
            source.add(Partition("p", number), (raw, at))
    return source


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.sampled_from([1, 7, 10_000]))
def test_the_replay_loop_gives_the_oracles_alerts_in_any_batch_size(
    data_set: DataSet, batch_records: int
) -> None:
    """With any holding and batching the alerts are the oracle's bytes, and the counts add up."""
    expected = replay(data_set.partitions, data_set.settings)
    sink, dead_letter_sink = MemoryAlertSink(), MemoryDeadLetterSink()
    summary = run_replay(
        settings=settings_from(data_set.settings),
        source=filled(data_set, batch_records),
        alert_sink=sink,
        dead_letter_sink=dead_letter_sink,
    )
    assert sink.lines() == [to_line(alert) for alert in expected.alerts]
    refused = sum(summary.dead_lettered.values())
    assert refused == len(dead_letter_sink.dead_letters)
    assert summary.consumed == summary.counted + sum(summary.filtered.values()) + summary.late + refused
    assert (summary.consumed, summary.ticks) == (expected.consumed, expected.ticks)


def test_a_replay_stopped_early_gives_no_final_ticks() -> None:
    """They would differ from those of the whole input."""
    source = MemorySource([A], batch_records=1)
    source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS))
    sink = MemoryAlertSink()
    summary = run_replay(
        settings=Live(source).settings,
        source=source,
        alert_sink=sink,
        dead_letter_sink=MemoryDeadLetterSink(),
        stop=iter([False, True]).__next__,
    )
    assert (summary.consumed, sink.alerts) == (1, [])


def test_a_clock_that_is_set_back_refuses_no_event(caplog: pytest.LogCaptureFixture) -> None:
    """Set back an hour during the run: current events are 60 minutes ahead of the machine's clock, and still count."""
    live = Live(MemorySource([A]))
    live.wall_ms = T0_MS

    def set_back() -> None:
        live.wall_ms -= 60 * MINUTE_MS
        live.clock.move(60)
        live.source.add(A, event(T0_MS + MINUTE_MS))

    summary = live.run(lambda: live.source.add(A, event(T0_MS)), set_back, nothing)
    assert (summary.counted, summary.dead_lettered) == (2, {})
    assert "was set back" in caplog.text


def test_a_clock_that_was_set_back_while_the_run_was_down() -> None:
    """Accepted events give a lower bound of the time: the newest partition clock less the allowed skew."""
    live = Live(MemorySource([A]))
    live.wall_ms = T0_MS
    live.run(lambda: live.source.add(A, event(T0_MS + 5 * MINUTE_MS)))
    live.wall_ms = T0_MS - 1_000 * MINUTE_MS
    # At least 00:05 less 10 minutes, 23:55; 10 minutes ahead of that is 00:05, and 1 ms more is refused.
    live.sink, before = live.sink.opened_again(), live.source.positions()
    again = live.run(
        lambda: live.source.add(A, event(T0_MS + 5 * MINUTE_MS), event(T0_MS + 5 * MINUTE_MS + 1))
    )
    assert before == {A: 1}
    assert (again.counted, again.dead_lettered) == (1, {"future_time": 1})


def test_the_wall_clock_never_goes_back_and_follows_jumps_forward() -> None:
    """It follows the monotonic clock when the machine's clock goes back, and the machine's when that jumps forward."""
    clock, wall = ManualClock(), [1_000_000]
    now = WallClock(None, lambda: wall[0], clock)
    assert now() == 1_000_000
    clock.move(2)
    assert now() == 1_002_000
    wall[0] = 5_000_000
    assert now() == 5_000_000
    wall[0] = 0
    clock.move(1)
    assert now() == 5_001_000


def test_a_poison_record_at_every_position_of_a_batch_affects_no_other() -> None:
    """Batches of 6 with one broken record: the other five count, whatever it is and wherever it is."""
    poison = [
        b"",
        None,
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"@timestamp": {}}',
        b"[1]",
        b'{"a":' * 5_000,
        b"[" * 90_000,
    ]
    for kind in poison:
        for position in range(6):
            live = Live(MemorySource([A], batch_records=6))
            records: list[bytes | None] = [event(T0_MS + number) for number in range(5)]
            records.insert(position, kind)
            live.source.add(A, *records)
            summary = live.run(nothing)
            assert (summary.consumed, summary.counted) == (6, 5)
            assert [dead_letter.record.offset for dead_letter in live.sink.dead_letters] == [position]


def test_too_many_pending_outputs_pause_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint is slow, reading pauses when the pending outputs reach the limit."""
    monkeypatch.setattr(loop_module, "_HOLD_BYTES", 1_000)
    live, gate = Live(MemorySource([A], batch_records=1)), Event()

    class Slow(RunListener):
        def step_done(self, step: int, number: int) -> None:
            if step == 2 and number > 1:
                gate.wait(30)

    live.source.add(A, *[b"x" * 600] * 10)
    monkeypatch.setattr(loop_module, "_CUT_BYTES", 1)
    live.run(*[nothing] * 8, gate.set, nothing, listener=Slow())
    # The first dead letter is cut immediately and blocks after step 2; the second exceeds 1,000 bytes (600 plus 500).
    assert [bool(held) for held in live.source.polls][:8] == [False, False, *[True] * 6]


def test_an_outage_does_not_make_a_partition_idle() -> None:
    """The idle timeout starts when the broker confirms the end again: B is not idle right after an outage."""
    live = Live(MemorySource([A, B]))
    away: list[bool] = []
    real_at_end = live.source.at_end
    live.source.at_end = lambda: frozenset() if away else real_at_end()  # type: ignore[method-assign]
    live.run(
        lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)),
        lambda: away.append(True),
        lambda: live.clock.move(600),
        away.clear,
        lambda: live.clock.move(59),
    )
    assert ticks(live) == []
