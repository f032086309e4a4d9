"""Decoding and pre-aggregation for several variants at once: each record is decoded once per profile and checked once
per input group.

An *input group* is the part of the settings that decides which events count: profile, times and the conditions on
events. A `PreAggregator` is fed batches and hands over a `PartialResult` on request: panes of pre-aggregates, clocks
and counters since the last one. Partial results are plain data and merge in any order, so several pre-aggregators can
work in parallel, in other processes too, each on partitions of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from streamdetect.config import Settings
from streamdetect.detect import COUNTED, FUTURE, LATE
from streamdetect.detect.pane_aggregator import ClockRow, PaneAggregator, PaneRows, SharedClockAggregators
from streamdetect.errors import InputError
from streamdetect.events import Decoder, Refusal
from streamdetect.model import Batch, DeadLetter, Partition
from streamdetect.service.pipeline import future_dead_letter

HOUR_MS = 3_600_000
_MOST_HOURS = 100_000  # bounds memory when records have random times
NO_HOUR: Final = None
"""The hour of records that came after `_MOST_HOURS` different pairs of hour and verdict."""

Hour = int | None
Trait = TypeVar("Trait", str, tuple[str, int])


@dataclass(frozen=True, slots=True)
class InputGroup:
    """What a worker needs to pre-aggregate for one input group. `timed`: keep the time of each event that counts.

    `plain`, for a replay, which has one group: keep refused records as dead letters; do not count hours and shapes.
    """

    settings: Settings
    max_hosts: int
    max_processes: int
    timed: bool = False
    plain: bool = False


@dataclass(slots=True)
class RecordCounters:
    """Records by verdict. `by_hour` is {(hour of event time, verdict): records}; `refused` records have no time."""

    consumed: int = 0
    by_hour: dict[tuple[Hour, str], int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, other: RecordCounters) -> None:
        self.consumed += other.consumed
        for place, count in other.by_hour.items():
            if place not in self.by_hour and len(self.by_hour) >= _MOST_HOURS:
                place = (NO_HOUR, place[1])  # noqa: PLW2901 - drops its hour
            self.by_hour[place] = self.by_hour.get(place, 0) + count
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count

    def by_verdict(self) -> dict[str, int]:
        """Records by verdict, of all hours."""
        counts: dict[str, int] = {}
        for (_, verdict), count in self.by_hour.items():
            counts[verdict] = counts.get(verdict, 0) + count
        return counts

    @property
    def counted(self) -> int:
        return self.by_verdict().get(COUNTED, 0)

    @property
    def late(self) -> int:
        return self.by_verdict().get(LATE, 0)

    def filtered(self) -> dict[str, int]:
        """Records that count for no rule, by filter reason."""
        others = {COUNTED, LATE, FUTURE}
        return {reason: n for reason, n in sorted(self.by_verdict().items()) if reason not in others}

    def dead_lettered(self) -> dict[str, int]:
        """Refused records by reason."""
        future = self.by_verdict().get(FUTURE, 0)
        return dict(sorted({**self.refused, **({FUTURE: future} if future else {})}.items()))


@dataclass(slots=True)
class PartialResult:
    """What a pre-aggregator produced since its last result: one item per input group; `shapes` over all records.

    `dead_letters` are the dead letters of the first group, in the order of each partition. `file_bytes` is how much of
    each file that the worker reads itself it has read, `error` why one of them cannot be read any further.
    """

    panes: list[list[PaneRows]]
    clocks: list[list[ClockRow]]
    counters: list[RecordCounters]
    shapes: dict[str, int]
    dead_letters: list[DeadLetter] = field(default_factory=list)
    file_bytes: dict[Partition, int] = field(default_factory=dict)
    error: InputError | None = None


class PreAggregator:
    """Decoders and pane aggregators of all input groups. The first group is the group of the base."""

    def __init__(self, input_groups: Sequence[InputGroup]) -> None:
        self._aggregators = [
            PaneAggregator(one.settings, one.max_hosts, one.max_processes, timed=one.timed)
            for one in input_groups
        ]
        self._counters = [RecordCounters() for _ in input_groups]
        settings = [one.settings for one in input_groups]
        self._decoders = [
            (
                Decoder(*decoding),
                [
                    (
                        SharedClockAggregators([self._aggregators[position] for position in same_clock]),
                        same_clock,
                    )
                    for same_clock in positions_by(_timing, settings, same_decoder).values()
                ],
            )
            for decoding, same_decoder in positions_by(_decoding, settings).items()
        ]
        self._shapes: dict[str, int] = {}
        self._plain = input_groups[0].plain
        self._dead_letters: list[DeadLetter] = []

    def add_partition(self, partition: Partition) -> None:
        """A partition will be read: it holds the watermark back until it has events or has ended."""
        for aggregator in self._aggregators:
            aggregator.processor(partition)

    def end_partition(self, partition: Partition) -> None:
        """A partition has no more records."""
        for aggregator in self._aggregators:
            aggregator.processor(partition).idle = True

    def feed(self, batch: Batch) -> None:
        """Decode and pre-aggregate the next records of a partition."""
        if self._plain:
            self._feed_plain(batch)
            return
        for position, (decoder, shared_clocks) in enumerate(self._decoders):
            self._feed(batch, decoder, shared_clocks, count_shapes=position == 0)

    def _feed(
        self,
        batch: Batch,
        decoder: Decoder,
        shared_clocks: Sequence[tuple[SharedClockAggregators, list[int]]],
        *,
        count_shapes: bool,
    ) -> None:
        """Decode each record once for all groups that use this decoder."""
        decode, timestamps_ms = decoder.decode, batch.timestamps_ms
        accepts = [
            (
                aggregators.processor(batch.partition),
                [self._counters[position].by_hour for position in positions],
            )
            for aggregators, positions in shared_clocks
        ]
        shapes = self._shapes
        refused: dict[str, int] = {}
        for index, value in enumerate(batch.values):
            event = decode(value)
            if isinstance(event, Refusal):
                refused[event.reason] = refused.get(event.reason, 0) + 1
                continue
            if count_shapes:
                shape = event.shape()
                shapes[shape] = shapes.get(shape, 0) + 1
            record_ms = None if timestamps_ms is None else timestamps_ms[index]
            hour = event.time_ms // HOUR_MS
            for accept, counters in accepts:
                verdicts = accept(event, record_ms)
                _count(counters, hour, verdicts)
        for _, positions in shared_clocks:
            for position in positions:
                self._counters[position].add(RecordCounters(len(batch), {}, refused))

    def _feed_plain(self, batch: Batch) -> None:
        """The records of a replay's only group: no hours, no shapes, but dead letters."""
        decoder, ((aggregators, _),) = self._decoders[0]
        decode, accept = decoder.decode, aggregators.processor(batch.partition)
        timestamps_ms = batch.timestamps_ms
        counts: dict[str, int] = defaultdict(int)
        refused: dict[str, int] = defaultdict(int)
        for index, value in enumerate(batch.values):
            event = decode(value)
            if isinstance(event, Refusal):
                refused[event.reason] += 1
                self._dead_letters.append(DeadLetter(batch.record(index), event.reason, event.detail))
                continue
            verdict = accept(event, None if timestamps_ms is None else timestamps_ms[index])
            counts[str(verdict)] += 1
            if verdict == FUTURE:
                self._dead_letters.append(future_dead_letter(batch, index, event.time_ms, None))
        by_hour: dict[tuple[Hour, str], int] = {
            (NO_HOUR, verdict): count for verdict, count in counts.items()
        }
        self._counters[0].add(RecordCounters(len(batch), by_hour, refused))

    def take_result(self) -> PartialResult:
        """Hand over everything since the last call."""
        result = PartialResult(
            panes=[aggregator.take() for aggregator in self._aggregators],
            clocks=[aggregator.clocks() for aggregator in self._aggregators],
            counters=self._counters,
            shapes=self._shapes,
            dead_letters=self._dead_letters,
        )
        self._dead_letters = []
        self._counters = [RecordCounters() for _ in self._aggregators]
        self._shapes = {}
        return result


def _count(counters: Sequence[dict[tuple[Hour, str], int]], hour: int, verdicts: str | list[str]) -> None:
    """Count one verdict for all counters, or one for each."""
    if isinstance(verdicts, str):
        place = (hour, verdicts)
        for by_hour in counters:
            by_hour[place] = by_hour.get(place, 0) + 1
    else:
        for by_hour, verdict in zip(counters, verdicts, strict=True):
            place = (hour, verdict)
            by_hour[place] = by_hour.get(place, 0) + 1


def positions_by(
    trait: Callable[[Settings], Trait], settings: Sequence[Settings], positions: Iterable[int] | None = None
) -> dict[Trait, list[int]]:
    """Positions (by default all) of the settings by a trait, in the order in which each trait first occurs."""
    found: dict[Trait, list[int]] = {}
    for position in range(len(settings)) if positions is None else positions:
        found.setdefault(trait(settings[position]), []).append(position)
    return found


def _decoding(settings: Settings) -> tuple[str, int]:
    return settings.profile, settings.limits.max_record_bytes


def _timing(settings: Settings) -> str:
    return settings.time.model_dump_json()
