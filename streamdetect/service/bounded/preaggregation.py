"""Reading for several variants at once: each record is decoded once and judged once for all that read alike.

A *stem* is what variants have in common that read alike: profile, times, and the conditions on events. A `PreAggregator`
is fed with batches and gives a `PartialResult` now and then: parts of inboxes, clocks, and the tally of what was read since.
Several may work side by side on partitions of their own, in other processes too: harvests are plain data, and merge
in any order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from streamdetect.config import Settings
from streamdetect.detect import COUNTED, FUTURE, LATE
from streamdetect.detect.pane_aggregator import ClockRow, PaneAggregator, PaneRows, SharedClockAggregators
from streamdetect.errors import InputError
from streamdetect.events import Decoder, Refusal
from streamdetect.model import Batch, DeadLetter, Partition
from streamdetect.service.pipeline import from_the_future

HOUR_MS = 3_600_000
_MOST_HOURS = 100_000  # records with invented times must not fill memory
ELSEWHEN: Final = None
"""The hour of records beyond so many different hours and verdicts."""

Hour = int | None
Trait = TypeVar("Trait", str, tuple[str, int])


@dataclass(frozen=True, slots=True)
class InputGroup:
    """What a reader of one stem needs to know. `timed`: it keeps the time of each event that counts.

    `plain`: of the only stem, for a replay: refused records are kept, not only counted, and there are no hours and
    shapes.
    """

    settings: Settings
    max_hosts: int
    max_processes: int
    timed: bool = False
    plain: bool = False


@dataclass(slots=True)
class Tally:
    """Records by what became of them. `hours` is {(hour of event time, verdict): records}; `refused` have no time."""

    consumed: int = 0
    hours: dict[tuple[Hour, str], int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.consumed += other.consumed
        for place, count in other.hours.items():
            if place not in self.hours and len(self.hours) >= _MOST_HOURS:
                place = (ELSEWHEN, place[1])  # noqa: PLW2901 - its hour is given up
            self.hours[place] = self.hours.get(place, 0) + count
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count

    def verdicts(self) -> dict[str, int]:
        """Records by verdict."""
        found: dict[str, int] = {}
        for (_, verdict), count in self.hours.items():
            found[verdict] = found.get(verdict, 0) + count
        return found

    @property
    def counted(self) -> int:
        return self.verdicts().get(COUNTED, 0)

    @property
    def late(self) -> int:
        return self.verdicts().get(LATE, 0)

    def filtered(self) -> dict[str, int]:
        """Records that no rule counts, by reason."""
        others = {COUNTED, LATE, FUTURE}
        return {reason: n for reason, n in sorted(self.verdicts().items()) if reason not in others}

    def dead_lettered(self) -> dict[str, int]:
        """Refused records by reason."""
        future = self.verdicts().get(FUTURE, 0)
        return dict(sorted({**self.refused, **({FUTURE: future} if future else {})}.items()))


@dataclass(slots=True)
class PartialResult:
    """What has been gathered since the last one, stem by stem; and of all records their shapes.

    `letters` are for the first stem, in the order of each partition. `files` says of those that a worker reads itself
    how many bytes of them it has read, `problem` why one of them cannot be read any further.
    """

    parts: list[list[PaneRows]]
    clocks: list[list[ClockRow]]
    tallies: list[Tally]
    shapes: dict[str, int]
    letters: list[DeadLetter] = field(default_factory=list)
    files: dict[Partition, int] = field(default_factory=dict)
    problem: InputError | None = None


class PreAggregator:
    """Decoders and readers of all stems. The first stem is that of the base."""

    def __init__(self, stems: Sequence[InputGroup]) -> None:
        self._readers = [
            PaneAggregator(stem.settings, stem.max_hosts, stem.max_processes, timed=stem.timed)
            for stem in stems
        ]
        self._tallies = [Tally() for _ in stems]
        self._decoders = [
            (Decoder(*known), _panels(stems, numbers, self._readers))
            for known, numbers in _alike(stems, _decoding, range(len(stems))).items()
        ]
        self._shapes: dict[str, int] = {}
        self._plain = stems[0].plain
        self._letters: list[DeadLetter] = []

    def expect(self, partition: Partition) -> None:
        """A partition will be read: until it is, or has ended, it holds time back."""
        for reader in self._readers:
            reader.processor(partition)

    def end(self, partition: Partition) -> None:
        """Nothing more comes from a partition."""
        for reader in self._readers:
            reader.processor(partition).idle = True

    def feed(self, batch: Batch) -> None:
        """Take the next records of a partition."""
        if self._plain:
            self._feed_plainly(batch)
            return
        for place, (decoder, panels) in enumerate(self._decoders):
            self._feed(batch, decoder, panels, base=place == 0)

    def _feed(
        self,
        batch: Batch,
        decoder: Decoder,
        panels: Sequence[tuple[SharedClockAggregators, list[int]]],
        *,
        base: bool,
    ) -> None:
        """One decode for all that share it; the first of them may be the base, whose shapes are noted."""
        decode, timestamps_ms = decoder.decode, batch.timestamps_ms
        accepts = [
            (panel.processor(batch.partition), [self._tallies[number].hours for number in numbers])
            for panel, numbers in panels
        ]
        shapes = self._shapes
        refused: dict[str, int] = {}
        for index, value in enumerate(batch.values):
            event = decode(value)
            if isinstance(event, Refusal):
                refused[event.reason] = refused.get(event.reason, 0) + 1
                continue
            if base:
                shape = event.shape()
                shapes[shape] = shapes.get(shape, 0) + 1
            record_ms = None if timestamps_ms is None else timestamps_ms[index]
            hour = event.time_ms // HOUR_MS
            for accept, tallied in accepts:
                verdicts = accept(event, record_ms)
                _count(tallied, hour, verdicts)
        for _, numbers in panels:
            for number in numbers:
                self._tallies[number].add(Tally(len(batch), {}, refused))

    def _feed_plainly(self, batch: Batch) -> None:
        """The only stem's records: decoded, judged, counted, and nothing else."""
        decoder, ((panel, _),) = self._decoders[0]
        decode, accept, timestamps_ms = decoder.decode, panel.processor(batch.partition), batch.timestamps_ms
        counts: dict[str, int] = defaultdict(int)
        refused: dict[str, int] = defaultdict(int)
        for index, value in enumerate(batch.values):
            event = decode(value)
            if isinstance(event, Refusal):
                refused[event.reason] += 1
                self._letters.append(DeadLetter(batch.record(index), event.reason, event.detail))
                continue
            verdict = accept(event, None if timestamps_ms is None else timestamps_ms[index])
            counts[str(verdict)] += 1
            if verdict == FUTURE:
                self._letters.append(from_the_future(batch, index, event.time_ms, None))
        hours: dict[tuple[Hour, str], int] = {(ELSEWHEN, verdict): count for verdict, count in counts.items()}
        self._tallies[0].add(Tally(len(batch), hours, refused))

    def take(self) -> PartialResult:
        """Hand over everything since the last call."""
        harvest = PartialResult(
            parts=[reader.take() for reader in self._readers],
            clocks=[reader.clocks() for reader in self._readers],
            tallies=self._tallies,
            shapes=self._shapes,
            letters=self._letters,
        )
        self._letters = []
        self._tallies = [Tally() for _ in self._readers]
        self._shapes = {}
        return harvest


def _count(tallied: Sequence[dict[tuple[Hour, str], int]], hour: int, verdicts: str | list[str]) -> None:
    """One verdict for all of them, or one for each."""
    if isinstance(verdicts, str):
        place = (hour, verdicts)
        for hours in tallied:
            hours[place] = hours.get(place, 0) + 1
    else:
        for hours, verdict in zip(tallied, verdicts, strict=True):
            place = (hour, verdict)
            hours[place] = hours.get(place, 0) + 1


def _panels(
    stems: Sequence[InputGroup], numbers: Sequence[int], readers: Sequence[PaneAggregator]
) -> list[tuple[SharedClockAggregators, list[int]]]:
    """Of these stems, those with the same times under one clock."""
    return [
        (SharedClockAggregators([readers[number] for number in alike]), alike)
        for alike in _alike(stems, _timing, numbers).values()
    ]


def _alike(
    stems: Sequence[InputGroup], trait: Callable[[Settings], Trait], numbers: Sequence[int]
) -> dict[Trait, list[int]]:
    """The stems of these numbers by a trait, in the order in which it first comes."""
    groups: dict[Trait, list[int]] = {}
    for number in numbers:
        groups.setdefault(trait(stems[number].settings), []).append(number)
    return groups


def _decoding(settings: Settings) -> tuple[str, int]:
    return settings.profile, settings.limits.max_record_bytes


def _timing(settings: Settings) -> str:
    return settings.time.model_dump_json()
