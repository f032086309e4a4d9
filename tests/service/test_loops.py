"""The live loop and the replay loop on shipped fakes: time by hand, no broker, no waiting."""

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
from streamdetect.service.live import loop as live_service
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


class Turned(MemorySource):
    """A source before whose polls something happens: the next of `turns`."""

    def __init__(self, source: MemorySource) -> None:
        self.__dict__ = source.__dict__
        self.turns: list[Callable[[], object]] = []

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        self.turns.pop(0)()
        return super().poll(hold, timeout_ms)


class Live:
    """A live run that is driven turn by turn: each of `turns` is called before a poll, then it stops."""

    def __init__(self, source: MemorySource, **changed: Any) -> None:
        self.clock = ManualClock()
        self.wall_ms = T0_MS + 10**9
        self.source = Turned(source)
        self.ledger = MemoryTransactionalSink()
        self.store = MemoryStore()
        self.local = LocalSinks()
        rule = {"id": "r", "name": "r", "min_connections_per_hour": 1, "min_duration_hours": 0}
        self.settings = Settings.model_validate({"rules": [rule], **changed})

    def run(self, *turns: Callable[[], object], **more: Any) -> Summary:
        self.source.turns = list(turns)
        return run_live(
            settings=self.settings,
            around=Dependencies(
                source=self.source,
                ledger=self.ledger,
                lock=MemoryLock(),
                open_store=lambda: self.store,
                reset_store=lambda: None,
                window=lambda _, ends: self.source.between(ends),
                local=self.local,
            ),
            stop=lambda: not self.source.turns,
            wall_ms=lambda: self.wall_ms,
            clock=self.clock,
            wait=self.clock.move,
            **more,
        )


def ticks(live: Live) -> list[int]:
    return [alert.tick_ms - T0_MS for alert in live.ledger.alerts]


def nothing() -> None:
    """A turn in which nothing new happens."""


def test_an_empty_partition_holds_time_back_until_it_is_idle() -> None:
    """B never had an event: A's tick goes only after idle_timeout of silence, and then at once."""
    live = Live(MemorySource([A, B]))
    before: list[list[int]] = []

    def look_and_wait() -> None:
        before.append(ticks(live))
        live.clock.move(0.1)

    summary = live.run(
        lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)),
        lambda: live.clock.move(59.9),
        look_and_wait,
    )
    # A's watermark is 00:08, so the ticks up to 00:05 are done once B is idle.
    assert before == [[]]
    assert ticks(live) == [5 * MINUTE_MS]
    assert summary.counted == 2


def test_a_partition_with_records_ahead_is_never_idle() -> None:
    """B has unread records: however much time passes, it holds A's ticks back."""
    source = MemorySource([A, B], batch_records=1)
    source.add(A, event(T0_MS), event(T0_MS + 30 * MINUTE_MS))
    source.add(B, *(event(T0_MS + i) for i in range(5)))
    live = Live(source)
    live.run(*[lambda: live.clock.move(600)] * 4)
    assert ticks(live) == []


def test_a_partition_far_ahead_is_held() -> None:
    """A is more than two intervals ahead of B, which still has records: A is not read on until B has caught up."""
    source = MemorySource([A, B], batch_records=1)
    source.add(A, event(T0_MS + 11 * MINUTE_MS), event(T0_MS + 12 * MINUTE_MS))
    source.add(B, *(event(T0_MS + minute * MINUTE_MS) for minute in (0, 1, 2, 3)))
    live = Live(source)
    live.run(*[nothing] * 4)
    # Clocks before each poll: none; A 11, B 0 (11 > 0 + 10: A held); A 11, B 1 (not held: 11 = 1 + 10).
    assert source.polls[:3] == [frozenset(), frozenset({A}), frozenset()]


def test_an_event_ahead_of_the_wall_clock_is_a_dead_letter_and_moves_no_clock() -> None:
    """10 minutes ahead is taken, 1 ms more is refused, live only."""
    source = MemorySource([A])
    source.add(A, event(T0_MS + 10 * MINUTE_MS), event(T0_MS + 10 * MINUTE_MS + 1))
    live = Live(source)
    live.wall_ms = T0_MS
    summary = live.run(nothing)
    assert (summary.counted, summary.dead_lettered) == (1, {"future_time": 1})
    assert [letter.record.offset for letter in live.ledger.letters] == [1]
    assert "600001 ms ahead of this machine's clock" in live.ledger.letters[0].detail


def test_an_idle_partition_that_returns_is_told_as_late_arrivals() -> None:
    """B comes back with an event of a tick already evaluated: it counts from the next tick on."""
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
    """SinkError comes out as it is, for the command to give its exit code."""
    live = Live(MemorySource([A]))
    live.local = LocalSinks(alerts=MemoryAlertSink(fail_at=1))
    with pytest.raises(SinkError):
        live.run(lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)), nothing)


def test_a_turn_is_finished_before_a_stop_and_everything_is_safe() -> None:
    """After a stop each alert is published, with the position after the last record, and the group is free."""
    live = Live(MemorySource([A]))
    live.run(lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)))
    assert len(live.ledger.alerts) == 1
    assert live.ledger.committed.positions == {A: 2}
    note = live.ledger.committed.note
    assert note is not None
    assert note.released


def filled(data_set: DataSet, batch_records: int) -> MemorySource:
    source = MemorySource([Partition("p", n) for n in range(len(data_set.partitions))], batch_records)
    for number, records in enumerate(data_set.partitions):
        for document, at in records:
            raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
            source.add(Partition("p", number), (raw, at))
    return source


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.sampled_from([1, 7, 10_000]))
def test_the_replay_loop_gives_the_oracles_answer_in_any_batch_size(
    data_set: DataSet, batch_records: int
) -> None:
    """Holding back, batches and all: the alerts are the oracle's bytes, and the accounting identity holds."""
    expected = replay(data_set.partitions, data_set.settings)
    sink, letters = MemoryAlertSink(), MemoryDeadLetterSink()
    summary = run_replay(
        settings=settings_from(data_set.settings),
        source=filled(data_set, batch_records),
        alert_sink=sink,
        dead_letter_sink=letters,
    )
    assert sink.lines() == [to_line(alert) for alert in expected.alerts]
    refused = sum(summary.dead_lettered.values())
    assert refused == len(letters.letters)
    assert summary.consumed == summary.counted + sum(summary.filtered.values()) + summary.late + refused
    assert (summary.consumed, summary.ticks) == (expected.consumed, expected.ticks)


def test_a_replay_stopped_early_gives_no_final_ticks() -> None:
    """Its answer would not be that of the whole input."""
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


def test_a_clock_that_is_set_back_makes_no_event_one_of_the_future(caplog: pytest.LogCaptureFixture) -> None:
    """An hour back in mid-run: events of now are 60 minutes ahead of the machine's clock, and are taken as before."""
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
    """Events accepted before prove what time it is at least: the newest clock, less the skew that was allowed."""
    live = Live(MemorySource([A]))
    live.wall_ms = T0_MS
    live.run(lambda: live.source.add(A, event(T0_MS + 5 * MINUTE_MS)))
    live.wall_ms = T0_MS - 1_000 * MINUTE_MS
    # Known: 00:05 less 10 minutes is 23:55; 10 minutes ahead of that is 00:05, and 1 ms more is refused.
    live.ledger, before = live.ledger.opened_again(), live.source.positions()
    again = live.run(
        lambda: live.source.add(A, event(T0_MS + 5 * MINUTE_MS), event(T0_MS + 5 * MINUTE_MS + 1))
    )
    assert before == {A: 1}
    assert (again.counted, again.dead_lettered) == (1, {"future_time": 1})


def test_the_wall_clock_never_goes_back_and_follows_leaps_ahead() -> None:
    """By the monotonic clock when the machine's goes back, by the machine's when it goes ahead."""
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


def test_poison_at_every_position_of_a_batch_costs_nobody_else() -> None:
    """Batches of 6 with one broken record: the five around it count, whatever it is and wherever it stands."""
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
            assert [letter.record.offset for letter in live.ledger.letters] == [position]


def test_too_many_results_on_their_way_stop_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint takes its time, no more is read than memory should hold."""
    monkeypatch.setattr(live_service, "_TOO_MUCH_BYTES", 1_000)
    live, gate = Live(MemorySource([A], batch_records=1)), Event()

    class Slow(RunListener):
        def reached(self, step: int, number: int) -> None:
            if step == 2 and number > 1:
                gate.wait(30)

    live.source.add(A, *[b"x" * 600] * 10)
    monkeypatch.setattr(live_service, "_MUCH_BYTES", 1)
    live.run(*[nothing] * 8, gate.set, nothing, listener=Slow())
    # The first letter is cut at once and waits at the gate; the second is over 1,000 bytes (600 and 500 for the rest).
    assert [bool(held) for held in live.source.polls][:8] == [False, False, *[True] * 6]


def test_an_outage_is_no_silence() -> None:
    """Silence counts from when the broker said again that there is no more: B is not idle right after an outage."""
    live = Live(MemorySource([A, B]))
    away: list[bool] = []
    seen = live.source.at_end
    live.source.at_end = lambda: frozenset() if away else seen()  # type: ignore[method-assign]
    live.run(
        lambda: live.source.add(A, event(T0_MS), event(T0_MS + 10 * MINUTE_MS)),
        lambda: away.append(True),
        lambda: live.clock.move(600),
        away.clear,
        lambda: live.clock.move(59),
    )
    assert ticks(live) == []
