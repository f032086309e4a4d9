"""Live: Kafka in, alerts out, until told to stop. `starting` is what comes before.

The order of one turn:

1. poll the source; nothing of partitions that are too far ahead,
2. feed each batch: refused records become dead letters,
3. note which partitions are idle (read to their end and silent for `time.idle_timeout`),
4. evaluate the ticks that the watermark lets go, for a while: a large one takes several turns,
5. cut a checkpoint if one is due (`commit`) and no tick is under way: at once when there are alerts, else every
   `checkpoint.interval`.

A stop is noticed before the next poll, so a turn is always finished. Then the checkpoint on its way arrives, a last
one is cut, which takes all that was decided and says that the group is free, and the threads end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Generic, TypeVar

from streamdetect.checkpoint import Checkpoint, Row
from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.model import Alert, DeadLetter, Partition
from streamdetect.service.gc import collecting_rarely
from streamdetect.service.live.commit import Cut
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.listener import RunListener, Running
from streamdetect.service.live.outbox import Outbox, output_rows
from streamdetect.service.live.recovery import FOLLOWS, follows
from streamdetect.service.live.startup import Choice, Startup, StoppedError
from streamdetect.service.live.wall_clock import WallClock
from streamdetect.service.pipeline import Pipeline, clocks_of, too_far_ahead
from streamdetect.service.summary import Summary

log = logging.getLogger(__name__)

Item = TypeVar("Item")

_POLL_MS = 200
_TICKING_SECONDS = 0.02  # how long ticks may keep the loop from polling
_HOLD_INTERVALS = 2  # how far ahead of the slowest partition one may be read
_MUCH_BYTES = 16 * 1024 * 1024  # outputs that wait: cut now
_TOO_MUCH_BYTES = 64 * 1024 * 1024  # read nothing more until a checkpoint has taken them
STOP_SECONDS = 20.0
"""How long a stop waits for Kafka to take what is on its way."""


class IdleTracker:
    """Which partitions are idle: at their end, and nothing heard of for the time-out (semantics.md §4)."""

    def __init__(self, idle_timeout_ms: int, clock: Callable[[], float]) -> None:
        self._timeout_s = idle_timeout_ms / 1000
        self._clock = clock
        self._heard: dict[Partition, float] = {}

    def heard(self, partition: Partition) -> None:
        """A batch came from there just now."""
        self._heard[partition] = self._clock()

    def mark(self, detector: Detector, at_end: frozenset[Partition]) -> None:
        """Set each lane's `idle`. A partition seen for the first time begins its silence now."""
        now = self._clock()
        for partition, processor in detector.processors.items():
            if partition not in at_end:
                # While the broker is away nobody can tell silence from records that cannot come.
                self._heard[partition] = now
            since = self._heard.setdefault(partition, now)
            processor.idle = partition in at_end and now - since >= self._timeout_s


def run_live(  # noqa: PLR0913 - all that it depends on
    *,
    settings: Settings,
    around: Dependencies,
    stop: Callable[[], bool],
    choice: Choice = "continue",
    listener: RunListener | None = None,
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Summary:
    """Run until `stop()` is true. Raises what the source, the ledger, the store and the sinks raise.

    `wall_ms` is asked only to refuse events from the future; `clock` for idleness and the time between checkpoints;
    `wait` is how a standby passes the time.
    """
    started = clock()
    listener = listener or RunListener()

    def asked() -> bool:
        listener.moved()
        return stop()

    with ExitStack() as stack:
        try:
            start = Startup(
                settings=settings,
                around=around,
                choice=choice,
                stop=asked,
                clock=clock,
                wait=wait,
                listener=listener,
                stack=stack,
            )
        except StoppedError:
            return Summary(seconds=round(clock() - started, 3))
        run = _Run(settings, around, start, clock, wall_ms, listener)
        with collecting_rarely():
            run.until(asked)
        listener.entered("stopping")
        run.finish()
        summary = run.summary()
    summary.seconds = round(clock() - started, 3)
    return summary


class _Run:
    """The turns, and the cuts between them."""

    def __init__(
        self,
        settings: Settings,
        around: Dependencies,
        start: Startup,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
        listener: RunListener,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._around = around
        self._source = around.source
        self._committer = start.committer
        self._state = start.store.state
        self._found = start.found
        self._number = start.number
        self._clock = clock
        self._collector = Outbox()
        sinks = _Into(self._take_alerts), _Into(self._take_letters)
        self._pipeline = Pipeline(settings, *sinks, listener, start.detector)
        self._detector = start.detector
        self._silence = IdleTracker(settings.time.idle_timeout_ms, clock)
        self._now_ms = WallClock(_certainly_past_ms(start.detector, settings), wall_ms, clock)
        self._last_cut = clock()
        self._more = False

    def until(self, stop: Callable[[], bool]) -> None:
        if self._number == 0:
            # So that a start at `latest` is where it was, whatever happens next.
            self._cut()
            while self._committer.still_busy(1.0) and not stop():
                pass
        log.info("reading %d partitions", len(self._source.partitions()))
        self._listener.running(Running(self._detector, self._source, self._pipeline.summary))
        while not stop():
            self._turn()

    def _turn(self) -> None:
        for partition in self._source.partitions():
            self._detector.processor(partition)
        held = self._to_hold()
        for batch in self._source.poll(held, 0 if self._more else _POLL_MS):
            self._silence.heard(batch.partition)
            begun = self._clock()
            self._pipeline.feed(batch, self._now_ms())
            self._listener.fed(batch.partition, len(batch), self._clock() - begun)
        self._silence.mark(self._detector, self._source.at_end())
        self._more = self._evaluate()
        self._committer.check()
        if not self._detector.ticking and not self._committer.busy and self._is_due():
            self._cut()
        self._listener.turned(held)

    def _evaluate(self) -> bool:
        """Go on with the ticks that are due, for a while; whether there is more to do."""
        until = self._clock() + _TICKING_SECONDS
        more = self._pipeline.step()
        while more and self._clock() < until:
            more = self._pipeline.step()
        return more

    def _take_alerts(self, alerts: Sequence[Alert]) -> None:
        self._listener.alerted(alerts)
        self._collector.write_alerts(alerts)

    def _take_letters(self, letters: Sequence[DeadLetter]) -> None:
        self._listener.refused(letters)
        self._collector.write_letters(letters)

    def _to_hold(self) -> set[Partition]:
        if self._collector.size_bytes > _TOO_MUCH_BYTES:
            return set(self._source.partitions())
        slack_ms = _HOLD_INTERVALS * self._settings.time.interval_ms
        return too_far_ahead(clocks_of(self._detector.processors), self._source.at_end(), slack_ms)

    def _is_due(self) -> bool:
        return (
            self._collector.alerts > 0
            or self._collector.size_bytes > _MUCH_BYTES
            or self._clock() - self._last_cut >= self._settings.checkpoint.interval_ms / 1000
        )

    def _cut(self, *, released: bool = False) -> None:
        """Step 1 of the commit protocol."""
        self._last_cut = self._clock()
        self._number += 1
        positions = self._source.positions()
        for partition in positions:
            self._detector.processor(partition)
        changes = self._detector.take_changes()
        outputs = self._collector.take()
        ids = self._source.topic_ids()
        checkpoint = Checkpoint(
            number=self._number,
            progress=changes.progress,
            partitions=[
                row
                | {
                    "offset": positions.get(Partition(row["topic"], row["number"])),
                    "topic_id": ids.get(row["topic"], ""),
                }
                for row in changes.partitions
            ],
            keys=Rows(changes.key_rows),
            waiting=Rows(changes.waiting_rows),
            done_ms=changes.progress["evaluated_ms"],
            pending=Rows(lambda: iter(output_rows(outputs))),
            marks=self._around.local.marks() | ({FOLLOWS: follows(self._found)} if self._number == 1 else {}),
        )
        note = replace(
            self._committer.note,
            state=self._state,
            number=self._number,
            beat=0,
            evaluated_ms=changes.progress["evaluated_ms"],
            released=released,
        )
        # A partition whose beginning was not looked up yet has nothing behind it.
        told = {partition: offset or 0 for partition, offset in positions.items()}
        self._committer.hand_over(Cut(checkpoint, outputs, told, note, changes.release))

    def finish(self) -> None:
        """The order of stopping: see above."""
        while self._detector.ticking:
            self._pipeline.step()
        self._committer.wait(STOP_SECONDS)
        self._cut(released=True)
        self._committer.wait(STOP_SECONDS)

    def summary(self) -> Summary:
        return self._pipeline.summary()


def _certainly_past_ms(detector: Detector, settings: Settings) -> int | None:
    """An event was accepted only if it was not further ahead of the wall clock than the skew."""
    clocks = [
        now for processor in detector.processors.values() if (now := processor.clock.now_ms) is not None
    ]
    return max(clocks) - settings.time.max_future_skew_ms if clocks else None


class Rows(Iterable[Row]):
    """Rows that can be iterated again, should a save have failed. Nothing is made before."""

    def __init__(self, make: Callable[[], Iterator[Row]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Row]:
        return self._make()


class _Into(Generic[Item]):
    """A method as a sink of the pipeline."""

    def __init__(self, take: Callable[[Sequence[Item]], None]) -> None:
        self.write = take

    def flush(self) -> None:
        """Safe once a checkpoint has it."""

    def close(self) -> None:
        """Nothing to give back."""
