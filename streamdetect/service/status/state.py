"""The status of a live run: written by the run's threads, read by the threads of the HTTP server and the stall monitor.

Every value is either replaced as a whole or a single number, so no reader sees half of a change. The loop takes a
`StatusSnapshot` each second, in time proportional to partitions and key groups, not to keys.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.errors import StateError
from streamdetect.model import Alert, DeadLetter, Partition
from streamdetect.service.live.listener import RunListener, RunningParts, Stage
from streamdetect.service.summary import Summary
from streamdetect.sources import Bounds

log = logging.getLogger(__name__)

ALIVE_SECONDS = 60.0
"""A run without progress for this long is not alive."""

SNAPSHOT_SECONDS = 1.0
REFUSAL_LOG_SECONDS = 60.0
"""At most one log line per refusal reason in this time."""

REFUSAL_HINTS = {
    "not_json": "Check what its producer writes (Logstash: codec => json)",
    "not_an_object": "Each record must be one JSON object; check what its producer writes",
    "too_large": "Raise limits.max_record_bytes if such records are legitimate",
    "no_time": "Its producer must set @timestamp (or Sysmon's UtcTime)",
    "future_time": "Correct the clock of that host",
}


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Offsets and times of one partition, None while unknown."""

    position: int | None
    lag: int | None
    clock_ms: int | None
    watermark_ms: int | None
    idle: bool
    held: bool


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """A run at one moment; `wall_seconds` is the wall clock then."""

    wall_seconds: float
    summary: Summary
    consumed: Mapping[Partition, int]
    partitions: Mapping[Partition, PartitionStatus]
    watermark_ms: int | None
    evaluated_ms: int | None
    keys: int
    open_episodes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LastCheckpoint:
    """The last confirmed checkpoint; `wall_seconds` is the wall clock when it was confirmed."""

    number: int
    wall_seconds: float
    positions: Mapping[Partition, int]


@dataclass(slots=True)
class Counters:
    """Totals of this process, which never decrease."""

    consumed: Counter[Partition] = field(default_factory=Counter)
    alerts: Counter[tuple[str, str]] = field(default_factory=Counter)
    late_arrivals: int = 0
    evicted: int = 0
    save_failures: int = 0


class RunStatus(RunListener):
    """Listens to a run. `observe_batch` and `observe_save` are called with seconds; `metrics` sets them."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.stage: Stage = "connecting"
        self.snapshot: StatusSnapshot | None = None
        self.bounds: Mapping[Partition, Bounds] = {}
        self.stalled: frozenset[Partition] = frozenset()
        self.last_checkpoint: LastCheckpoint | None = None
        self.checkpoint_bytes: int | None = None
        self.last_turn_seconds: float | None = None
        """The wall clock at the end of the loop's last turn."""
        self.counters = Counters()
        self.parts: RunningParts | None = None
        self.observe_batch: Callable[[float], None] = _discard
        self.observe_save: Callable[[float], None] = _discard
        self._clock = clock
        self._wall = wall
        self._last_progress = clock()
        self._held: Collection[Partition] = ()
        self._next_snapshot = float("-inf")
        self._refused: Counter[str] = Counter()  # since the last log line of each reason
        self._last_logged: dict[str, float] = {}

    # -- for readers, in any thread

    @property
    def owner(self) -> bool:
        """Whether this instance owns the consumer group and processes its records."""
        return self.stage in ("restoring", "running", "stopping")

    def seconds_without_progress(self) -> float:
        """Seconds since the run last made progress."""
        return self._clock() - self._last_progress

    @property
    def alive(self) -> bool:
        """Whether the run made progress recently; an outage of the brokers alone does not make it False."""
        return self.seconds_without_progress() < ALIVE_SECONDS

    def not_alive_reason(self) -> str | None:
        """None while the run is alive."""
        return None if self.alive else f"no progress for {self.seconds_without_progress():.0f} s"

    def not_ready_reason(self) -> str | None:
        """Why this instance does not process records, None while it does."""
        if not self.alive:
            return self.not_alive_reason()
        if self.stage == "waiting":
            return "waiting to own the consumer group; another instance may own it"
        if self.stage != "running":
            return self.stage
        if self.snapshot is None or not self.snapshot.partitions:
            return "no partitions assigned"
        if self.stalled:
            return f"no records arrive from {partition_names(self.stalled)}, although there are unread ones"
        return None

    @property
    def detector(self) -> Detector | None:
        """For `findings.ranking` only, which may read it from another thread."""
        return None if self.parts is None else self.parts.detector

    # -- called in the loop's thread

    def stage_entered(self, stage: Stage) -> None:
        self.stage = stage
        self.progressed()

    def reading_started(self, parts: RunningParts) -> None:
        self.parts = parts
        self._take_snapshot()
        self.stage_entered("running")

    def progressed(self) -> None:
        self._last_progress = self._clock()

    def batch_processed(self, partition: Partition, records: int, seconds: float) -> None:
        self.counters.consumed[partition] += records
        self.observe_batch(seconds)

    def dead_lettered(self, dead_letters: Sequence[DeadLetter]) -> None:
        for dead_letter in dead_letters:
            self._refused[dead_letter.reason] += 1
            self._log_refusal(dead_letter)

    def _log_refusal(self, dead_letter: DeadLetter) -> None:
        """Log one line a minute for each reason, however many records are refused."""
        now, reason = self._clock(), dead_letter.reason
        if now - self._last_logged.get(reason, float("-inf")) < REFUSAL_LOG_SECONDS:
            return
        self._last_logged[reason] = now
        record = dead_letter.record
        log.warning(
            "refused as %s: %d more, the latest at %s partition %d offset %d: %s. %s; see dead_letters and "
            "docs/operations.md",
            reason,
            self._refused.pop(reason),
            *record.partition,
            record.offset,
            dead_letter.detail,
            REFUSAL_HINTS[reason],
        )

    def alerted(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.counters.alerts[alert.rule_id, alert.action] += 1

    def late_arrival(self, partition: Partition) -> None:
        del partition
        self.counters.late_arrivals += 1

    def evicted(self, rule_id: str, keys: int) -> None:
        del rule_id
        self.counters.evicted += keys

    def turn_ended(self, held: Collection[Partition]) -> None:
        self.last_turn_seconds = self._wall()
        self._held = held
        if self._clock() >= self._next_snapshot:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        if self.parts is None:
            return
        self._next_snapshot = self._clock() + SNAPSHOT_SECONDS
        detector, source = self.parts.detector, self.parts.source
        lags, positions = source.lags(), source.positions()
        partitions = {
            partition: PartitionStatus(
                position=positions.get(partition),
                lag=self._lag(partition, positions.get(partition), lags.get(partition)),
                clock_ms=processor.clock.now_ms,
                watermark_ms=processor.watermark_ms,
                idle=processor.idle,
                held=partition in self._held,
            )
            for partition in source.partitions()
            if (processor := detector.processors.get(partition)) is not None
        }
        self.snapshot = StatusSnapshot(
            wall_seconds=self._wall(),
            summary=self.parts.summary(),
            consumed={partition: self.counters.consumed[partition] for partition in partitions},
            partitions=partitions,
            watermark_ms=detector.watermark_ms(),
            evaluated_ms=detector.evaluated_ms if detector.ticks else None,
            keys=detector.keys,
            open_episodes=detector.open_episodes(),
        )

    def _lag(self, partition: Partition, position: int | None, lag: int | None) -> int | None:
        """The larger of the client's lag and that from `bounds`: in an outage the client says 0."""
        bounds = self.bounds.get(partition)
        if bounds is None or position is None:
            return lag
        return max(lag or 0, bounds.end - position)

    # -- called in the thread of the commit protocol

    def saved(self, number: int, seconds: float, size_bytes: int) -> None:
        del number
        self.checkpoint_bytes = size_bytes
        self.observe_save(seconds)

    def save_failed(self, error: StateError) -> None:
        del error
        self.counters.save_failures += 1

    def confirmed(self, number: int, positions: Mapping[Partition, int]) -> None:
        self.last_checkpoint = LastCheckpoint(number, self._wall(), dict(positions))


def partition_names(partitions: Collection[Partition]) -> str:
    """Text with the names of at most five partitions."""
    some = ", ".join(
        f"{partition.topic} partition {partition.number}" for partition in sorted(partitions)[:5]
    )
    return some if len(partitions) <= 5 else f"{some} and {len(partitions) - 5} more"


def _discard(seconds: float) -> None:
    """Used where no histogram is kept."""
