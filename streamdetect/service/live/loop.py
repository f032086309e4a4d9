"""The loop of a live run: reads Kafka and publishes alerts until stopped. `startup` precedes it.

The order of one turn:

1. poll the source, except the partitions that are too far ahead,
2. feed each batch to the pipeline: refused records become dead letters,
3. update which partitions are idle (read to their end, and silent for `time.idle_timeout`),
4. evaluate the ticks that the watermark has passed, within a time limit: a large tick takes several turns,
5. if a checkpoint is due (`commit`) and no tick is in progress, cut one: immediately when there are alerts, else every
   `checkpoint.interval`.

A stop takes effect before the next poll, so a turn is always completed. Shutdown: wait for the checkpoint in flight,
write a final one that contains all pending outputs and marks the consumer group as released, stop the threads.
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
from streamdetect.service.gc import infrequent_gc
from streamdetect.service.live.commit import Cut
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.listener import RunListener, RunningParts
from streamdetect.service.live.outbox import Outbox, output_rows
from streamdetect.service.live.recovery import PREDECESSOR, predecessor_of
from streamdetect.service.live.startup import Choice, Startup, StoppedError
from streamdetect.service.live.wall_clock import WallClock
from streamdetect.service.pipeline import Pipeline, clocks_of, too_far_ahead
from streamdetect.service.summary import Summary

log = logging.getLogger(__name__)

Item = TypeVar("Item")

_POLL_MS = 200
_TICK_SECONDS = 0.02  # how long ticks may delay the next poll
_HOLD_INTERVALS = 2  # how far ahead of the slowest partition another may be read
_CUT_BYTES = 16 * 1024 * 1024  # pending outputs of this size: cut a checkpoint now
_HOLD_BYTES = 64 * 1024 * 1024  # pending outputs of this size: read nothing until a checkpoint contains them
STOP_SECONDS = 20.0
"""How long a stop waits until Kafka accepts the checkpoint in flight, and then the final one."""


class IdleTracker:
    """Which partitions are idle: at their end, and without a batch for the timeout (semantics.md §4)."""

    def __init__(self, idle_timeout_ms: int, clock: Callable[[], float]) -> None:
        self._timeout_s = idle_timeout_ms / 1000
        self._clock = clock
        self._active_at: dict[Partition, float] = {}

    def batch_read(self, partition: Partition) -> None:
        """A batch of the partition was read just now."""
        self._active_at[partition] = self._clock()

    def update(self, detector: Detector, at_end: frozenset[Partition]) -> None:
        """Set `idle` of each partition processor. The timeout of a new partition starts now."""
        now = self._clock()
        for partition, processor in detector.processors.items():
            if partition not in at_end:
                # During an outage a silent partition cannot be told from one whose records do not arrive.
                self._active_at[partition] = now
            since = self._active_at.setdefault(partition, now)
            processor.idle = partition in at_end and now - since >= self._timeout_s


def run_live(  # noqa: PLR0913 - its dependencies
    *,
    settings: Settings,
    dependencies: Dependencies,
    stop: Callable[[], bool],
    choice: Choice = "continue",
    listener: RunListener | None = None,
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Summary:
    """Run until `stop()` is true. Raises the errors of the source, the store and the sinks.

    `wall_ms` is used only to refuse events from the future, `clock` for idle partitions and the time between
    checkpoints, `wait` between the checks of a standby.
    """
    started = clock()
    listener = listener or RunListener()

    def stop_requested() -> bool:
        listener.progressed()
        return stop()

    with ExitStack() as stack:
        try:
            start = Startup(
                settings=settings,
                dependencies=dependencies,
                choice=choice,
                stop=stop_requested,
                clock=clock,
                wait=wait,
                listener=listener,
                stack=stack,
            )
        except StoppedError:
            return Summary(seconds=round(clock() - started, 3))
        run = _Run(settings, dependencies, start, clock, wall_ms, listener)
        with infrequent_gc():
            run.until(stop_requested)
        listener.stage_entered("stopping")
        run.finish()
        summary = run.summary()
    summary.seconds = round(clock() - started, 3)
    return summary


class _Run:
    """The turns of the loop, and the cuts between them."""

    def __init__(
        self,
        settings: Settings,
        dependencies: Dependencies,
        start: Startup,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
        listener: RunListener,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._local_sinks = dependencies.local_sinks
        self._source = dependencies.source
        self._committer = start.committer
        self._state = start.store.state
        self._previous_metadata = start.previous_metadata
        self._number = start.number
        self._clock = clock
        self._outbox = Outbox()
        sinks = _CallbackSink(self._add_alerts), _CallbackSink(self._add_dead_letters)
        self._pipeline = Pipeline(settings, *sinks, listener, start.detector)
        self._detector = start.detector
        self._idle = IdleTracker(settings.time.idle_timeout_ms, clock)
        self._now_ms = WallClock(_certainly_past_ms(start.detector, settings), wall_ms, clock)
        self._last_cut = clock()
        self._ticks_left = False

    def until(self, stop: Callable[[], bool]) -> None:
        if self._number == 0:
            # Saves the position of a start at `latest` before anything can fail.
            self._cut()
            while self._committer.busy_after(1.0) and not stop():
                pass
        log.info("reading %d partitions", len(self._source.partitions()))
        self._listener.reading_started(RunningParts(self._detector, self._source, self._pipeline.summary))
        while not stop():
            self._turn()

    def _turn(self) -> None:
        for partition in self._source.partitions():
            self._detector.processor(partition)
        held = self._to_hold()
        for batch in self._source.poll(held, 0 if self._ticks_left else _POLL_MS):
            self._idle.batch_read(batch.partition)
            started = self._clock()
            self._pipeline.feed(batch, self._now_ms())
            self._listener.batch_processed(batch.partition, len(batch), self._clock() - started)
        self._idle.update(self._detector, self._source.at_end())
        self._ticks_left = self._evaluate()
        self._committer.check()
        if not self._detector.ticking and not self._committer.busy and self._is_due():
            self._cut()
        self._listener.turn_ended(held)

    def _evaluate(self) -> bool:
        """Evaluate due ticks within the time limit. Returns whether there is more to evaluate."""
        until = self._clock() + _TICK_SECONDS
        more = self._pipeline.step()
        while more and self._clock() < until:
            more = self._pipeline.step()
        return more

    def _add_alerts(self, alerts: Sequence[Alert]) -> None:
        self._listener.alerted(alerts)
        self._outbox.write_alerts(alerts)

    def _add_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        self._listener.dead_lettered(dead_letters)
        self._outbox.write_dead_letters(dead_letters)

    def _to_hold(self) -> set[Partition]:
        if self._outbox.size_bytes > _HOLD_BYTES:
            return set(self._source.partitions())
        slack_ms = _HOLD_INTERVALS * self._settings.time.interval_ms
        return too_far_ahead(clocks_of(self._detector.processors), self._source.at_end(), slack_ms)

    def _is_due(self) -> bool:
        return (
            self._outbox.alerts > 0
            or self._outbox.size_bytes > _CUT_BYTES
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
        outputs = self._outbox.drain()
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
            file_offsets=self._file_offsets(),
        )
        metadata = replace(
            self._committer.metadata,
            state=self._state,
            number=self._number,
            heartbeat=0,
            evaluated_ms=changes.progress["evaluated_ms"],
            released=released,
        )
        # A partition whose first offset is not known yet: nothing of it has been read.
        committed = {partition: offset or 0 for partition, offset in positions.items()}
        self._committer.submit(Cut(checkpoint, outputs, committed, metadata, changes.release))

    def _file_offsets(self) -> dict[str, Row]:
        predecessor = {PREDECESSOR: predecessor_of(self._previous_metadata)} if self._number == 1 else {}
        return self._local_sinks.file_offsets() | predecessor

    def finish(self) -> None:
        """Shut down in the order that the module's docstring gives."""
        while self._detector.ticking:
            self._pipeline.step()
        self._committer.wait(STOP_SECONDS)
        self._cut(released=True)
        self._committer.wait(STOP_SECONDS)

    def summary(self) -> Summary:
        return self._pipeline.summary()


def _certainly_past_ms(detector: Detector, settings: Settings) -> int | None:
    """A time that has passed: an accepted event was not further ahead of the wall clock than the skew."""
    clocks = [
        now for processor in detector.processors.values() if (now := processor.clock.now_ms) is not None
    ]
    return max(clocks) - settings.time.max_future_skew_ms if clocks else None


class Rows(Iterable[Row]):
    """Rows that can be iterated again after a failed save. They are made during the iteration."""

    def __init__(self, make: Callable[[], Iterator[Row]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Row]:
        return self._make()


class _CallbackSink(Generic[Item]):
    """A sink of the pipeline that calls a function."""

    def __init__(self, write: Callable[[Sequence[Item]], None]) -> None:
        self.write = write

    def flush(self) -> None:
        """Nothing to do: outputs are safe when a checkpoint contains them."""

    def close(self) -> None:
        """Nothing to release."""
