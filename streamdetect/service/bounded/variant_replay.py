"""A replay that asks what would have been: many variants in one pass, and what came near.

One thread reads bytes and evaluates; decoding and gathering is done here, or by workers where there are several
partitions (`pool`). What each variant gives is what a separate replay with its settings would give, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamdetect.config import NamedSettings
from streamdetect.detect.near_misses import KeyTracker
from streamdetect.errors import InputError, StreamdetectError
from streamdetect.findings.diff import diff
from streamdetect.findings.episodes import Episodes, KeyName
from streamdetect.findings.outcome import InputSummary, Outcome, Variant, Volume
from streamdetect.model import Partition
from streamdetect.service.bounded.preaggregation import HOUR_MS, Hour, InputGroup, PartialResult
from streamdetect.service.bounded.scheduler import SLACK_INTERVALS, read_with
from streamdetect.service.bounded.variants import VariantGroup, VariantRun, alike
from streamdetect.service.bounded.workers import Pool, WorkerLostError, pool_for
from streamdetect.service.gc import collecting_rarely
from streamdetect.service.pipeline import too_far_ahead
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink
from streamdetect.sources import Source


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a backtest is run. `jobs`: worker processes, 1 for none. `near`: how many keys that came near are kept.

    `only` follows the keys of these addresses and this process alone, whatever they have. `pool` makes the readers.
    """

    jobs: int = 1
    near: int = 20
    only: tuple[frozenset[str | None], str] | None = None
    pool: Callable[[Sequence[InputGroup], int], Pool] = pool_for


def run_backtest(
    *,
    variants: Sequence[NamedSettings],
    source: Source,
    sinks: Mapping[str, AlertSink] | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    ways: ReplayOptions | None = None,
) -> Outcome:
    """Evaluate all variants over a bounded source; the first of them is the base that the others are compared with.

    `sinks` take the alerts of the variants of these names. `progress` is told the records so far, `stop` asked before
    each poll. Stopped early, or when the input breaks off (`Outcome.problem`), the final ticks are not evaluated.
    Raises what else the source and the sinks raise.
    """
    ways = ways or ReplayOptions()
    tracks = KeyTracker(max(100, ways.near), ways.only)
    run = _Run(variants, sinks or {}, tracks)
    started = time.monotonic()
    pool = ways.pool(run.stems, ways.jobs)
    problem: StreamdetectError | None = None
    try:
        with collecting_rarely():
            stopped = read_with(pool, run, source, progress, stop)
    except InputError as error:
        # What was read before is an answer, too; whoever asked must hear of both.
        run.take(pool.finish(), copies=pool.copies)
        stopped, problem = True, error
    except WorkerLostError as error:
        stopped, problem = True, error
    finally:
        pool.close()
    seconds = round(time.monotonic() - started, 3)
    outcome = run.outcome(source.partitions(), tracks, ways.near, seconds, stopped=stopped)
    if problem is not None:
        outcome.problem = problem
        outcome.remarks.append(f"It broke off: {problem}")
    return outcome


class _Run:
    """All branches, and what was read for them."""

    def __init__(
        self, variants: Sequence[NamedSettings], sinks: Mapping[str, AlertSink], tracks: KeyTracker
    ) -> None:
        self._tried = [
            VariantRun(named, Episodes(keep_panes=number == 0), sinks.get(named.name))
            for number, named in enumerate(variants)
        ]
        self._groups = alike(variants)
        self._branches = [
            VariantGroup([self._tried[number] for number in numbers], tracks if place == 0 else None)
            for place, numbers in enumerate(self._groups)
        ]
        self.expected: set[Partition] = set()
        self._shapes: dict[str, int] = {}
        self._slack_ms = SLACK_INTERVALS * max(named.settings.time.interval_ms for named in variants)

    @property
    def stems(self) -> list[InputGroup]:
        return [branch.stem for branch in self._branches]

    @property
    def consumed(self) -> int:
        return self._branches[0].tally.consumed

    @property
    def waiting(self) -> int:
        """Partials that wait for their tick."""
        return sum(branch.waiting for branch in self._branches)

    def expect(self, partition: Partition) -> bool:
        """Whether the partition is a new one."""
        if partition in self.expected:
            return False
        self.expected.add(partition)
        for branch in self._branches:
            branch.expect(partition)
        return True

    def too_far_ahead(self, ended: Collection[Partition]) -> set[Partition]:
        """Partitions to hold for a while."""
        clocks_ms = {row.partition: row.now_ms for row in self._branches[0].clocks}
        return too_far_ahead(clocks_ms, ended, self._slack_ms)

    def take(self, harvests: Iterable[PartialResult], *, copies: bool) -> None:
        """What was gathered; then evaluate what can be. Raises SinkError."""
        for harvest in harvests:
            for place, branch in enumerate(self._branches):
                branch.take(place, harvest, copies=copies)
            for shape, count in harvest.shapes.items():
                self._shapes[shape] = self._shapes.get(shape, 0) + count
        for branch in self._branches:
            branch.advance()

    def finish(self) -> None:
        """The input has ended. Raises SinkError."""
        for branch in self._branches:
            branch.finish()

    def outcome(
        self, inputs: Sequence[Partition], tracks: KeyTracker, near: int, seconds: float, *, stopped: bool
    ) -> Outcome:
        """What it all comes to."""
        base, *others = self._variants(seconds)
        for variant in others:
            variant.diff = diff(base.episodes, variant.episodes)
        branch = self._branches[0]
        return Outcome(
            settings=base.settings,
            reading=InputSummary(
                inputs=tuple(partition_name(partition) for partition in inputs),
                first_ms=branch.first_ms,
                last_ms=max((row.now_ms for row in branch.clocks if row.now_ms is not None), default=None),
                shapes=dict(sorted(self._shapes.items())),
                volumes=_volumes(branch.tally.hours),
            ),
            base=base,
            variants=others,
            near=tracks.near_misses(near),
            tracks={KeyName(track.rule.id, *track.key): track for track in tracks.fired()},
            first_tick_ms=branch.first_tick_ms,
            last_tick_ms=branch.last_tick_ms,
            seconds=seconds,
            stopped=stopped,
            asked_near=near,
        )

    def _variants(self, seconds: float) -> list[Variant]:
        """In the order in which they were given."""
        summaries: dict[int, Summary] = {}
        for numbers, branch in zip(self._groups, self._branches, strict=True):
            summaries |= zip(numbers, branch.summaries(seconds), strict=True)
        return [
            Variant(
                name=tried.named.name,
                changes=tried.named.changes,
                settings=tried.named.settings,
                summary=summaries[number].as_dict(),
                episodes=tried.episodes.listed(),
            )
            for number, tried in enumerate(self._tried)
        ]


def _volumes(hours: Mapping[tuple[Hour, str], int]) -> list[Volume]:
    """Hour by hour; records whose hour was given up are left out."""
    found: dict[int, dict[str, int]] = {}
    for (hour, verdict), count in hours.items():
        if hour is not None:
            found.setdefault(hour, {})[verdict] = count
    return [Volume(hour * HOUR_MS, dict(sorted(found[hour].items()))) for hour in sorted(found)]


def partition_name(partition: Partition) -> str:
    """A file's path; a topic with its partition."""
    return f"{partition.topic}[{partition.number}]" if partition.number else partition.topic
