"""What a live run knows of itself: written by the run's threads, read by the HTTP server's.

Whatever is read is either replaced as a whole or a single number, so no reader sees half of a change. The loop takes a
`StatusSnapshot` each second; it costs as much as there are partitions and groups, not keys.
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
from streamdetect.service.live.listener import RunListener, Running, Stage
from streamdetect.service.summary import Summary
from streamdetect.sources import Bounds

log = logging.getLogger(__name__)

ALIVE_SECONDS = 60.0
"""A run in which nothing moved for so long is not alive."""

PICTURE_SECONDS = 1.0
REFUSED_SECONDS = 60.0
"""How often the log tells about refused records of one reason."""

WHAT_TO_DO = {
    "not_json": "Look at what its producer writes (Logstash: codec => json)",
    "not_an_object": "Each record must be one JSON object; look at what its producer writes",
    "too_large": "Raise limits.max_record_bytes if such records are real",
    "no_time": "Its producer must set @timestamp (or Sysmon's UtcTime)",
    "future_time": "Set the clock of that host right",
}


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Offsets and times of one partition; None where not known yet."""

    position: int | None
    lag: int | None
    clock_ms: int | None
    watermark_ms: int | None
    idle: bool
    held: bool


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """A run at one moment."""

    taken: float
    summary: Summary
    partitions: Mapping[Partition, PartitionStatus]
    watermark_ms: int | None
    evaluated_ms: int | None
    keys: int
    open_episodes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LastCheckpoint:
    """The last checkpoint that was confirmed; `at` is the wall clock in seconds."""

    number: int
    at: float
    positions: Mapping[Partition, int]


@dataclass(slots=True)
class Counters:
    """What only grows."""

    consumed: Counter[Partition] = field(default_factory=Counter)
    alerts: Counter[tuple[str, str]] = field(default_factory=Counter)
    late_arrivals: int = 0
    evicted: int = 0
    failures: int = 0


class RunStatus(RunListener):
    """Listens to a run. `observe_batch` and `observe_save` are told seconds, for whoever keeps histograms."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.stage: Stage = "connecting"
        self.picture: StatusSnapshot | None = None
        self.bounds: Mapping[Partition, Bounds] = {}
        self.stalled: frozenset[Partition] = frozenset()
        self.saved_last: LastCheckpoint | None = None
        self.size_bytes: int | None = None
        self.turned_at: float | None = None
        self.tallies = Counters()
        self.run: Running | None = None
        self.observe_batch: Callable[[float], None] = _unheard
        self.observe_save: Callable[[float], None] = _unheard
        self._clock = clock
        self._wall = wall
        self._moved = clock()
        self._held: Collection[Partition] = ()
        self._next_picture = float("-inf")
        self._refused: Counter[str] = Counter()
        self._told: dict[str, float] = {}

    # -- for readers

    @property
    def owner(self) -> bool:
        """Whether this instance does the group's work."""
        return self.stage in ("restoring", "running", "stopping")

    def still_seconds(self) -> float:
        """For how long nothing has moved."""
        return self._clock() - self._moved

    @property
    def alive(self) -> bool:
        """The loop moved lately, whatever the brokers do."""
        return self.still_seconds() < ALIVE_SECONDS

    def unready(self) -> str | None:
        """Why no work is done, None while it is."""
        if not self.alive:
            return f"nothing has moved for {self.still_seconds():.0f} s"
        if self.stage == "waiting":
            return "waiting to own the group; another instance may be at work"
        if self.stage != "running":
            return self.stage
        if self.picture is None or not self.picture.partitions:
            return "no partitions assigned"
        if self.stalled:
            return f"no records arrive from {names(self.stalled)}, though there are some"
        return None

    @property
    def detector(self) -> Detector | None:
        """For `detect.survey` only, which may look from another thread."""
        return None if self.run is None else self.run.detector

    # -- told by the loop

    def entered(self, stage: Stage) -> None:
        self.stage = stage
        self.moved()

    def running(self, run: Running) -> None:
        self.run = run
        self._take_picture()
        self.entered("running")

    def moved(self) -> None:
        self._moved = self._clock()

    def fed(self, partition: Partition, records: int, seconds: float) -> None:
        self.tallies.consumed[partition] += records
        self.observe_batch(seconds)

    def refused(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._refused[letter.reason] += 1
            self._tell(letter)

    def _tell(self, letter: DeadLetter) -> None:
        """One line a minute for each reason, however many records there are."""
        now, reason = self._clock(), letter.reason
        if now - self._told.get(reason, float("-inf")) < REFUSED_SECONDS:
            return
        self._told[reason] = now
        record = letter.record
        log.warning(
            "refused as %s: %d more, this one at %s partition %d offset %d: %s. %s; see dead_letters and "
            "docs/operations.md",
            reason,
            self._refused.pop(reason),
            *record.partition,
            record.offset,
            letter.detail,
            WHAT_TO_DO[reason],
        )

    def alerted(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.tallies.alerts[alert.rule_id, alert.action] += 1

    def late_arrival(self, partition: Partition) -> None:
        del partition
        self.tallies.late_arrivals += 1

    def evicted(self, rule_id: str, keys: int) -> None:
        del rule_id
        self.tallies.evicted += keys

    def turned(self, held: Collection[Partition]) -> None:
        self.turned_at = self._wall()
        self._held = held
        if self._clock() >= self._next_picture:
            self._take_picture()

    def _take_picture(self) -> None:
        if self.run is None:
            return
        self._next_picture = self._clock() + PICTURE_SECONDS
        detector, source = self.run.detector, self.run.source
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
        summary = self.run.summary()
        self.picture = StatusSnapshot(
            taken=self._wall(),
            summary=summary,
            partitions=partitions,
            watermark_ms=detector.watermark_ms(),
            evaluated_ms=detector.evaluated_ms if detector.ticks else None,
            keys=detector.keys,
            open_episodes=detector.open_episodes(),
        )

    def _lag(self, partition: Partition, position: int | None, lag: int | None) -> int | None:
        """What the client last heard of, or what the brokers were asked: in an outage the client says 0."""
        bounds = self.bounds.get(partition)
        if bounds is None or position is None:
            return lag
        return max(lag or 0, bounds.end - position)

    # -- told by the thread of the commit protocol

    def saved(self, number: int, seconds: float, size_bytes: int) -> None:
        del number
        self.size_bytes = size_bytes
        self.observe_save(seconds)

    def save_failed(self, error: StateError) -> None:
        del error
        self.tallies.failures += 1

    def confirmed(self, number: int, positions: Mapping[Partition, int]) -> None:
        self.saved_last = LastCheckpoint(number, self._wall(), dict(positions))


def names(partitions: Collection[Partition]) -> str:
    """At most five, as text."""
    some = ", ".join(
        f"{partition.topic} partition {partition.number}" for partition in sorted(partitions)[:5]
    )
    return some if len(partitions) <= 5 else f"{some} and {len(partitions) - 5} more"


def _unheard(seconds: float) -> None:
    """Nobody keeps a histogram."""
