"""A backtest: a replay that evaluates many variants in one pass, and tracks keys that come close to the thresholds.

One thread reads and evaluates; decoding and pre-aggregation happen in this process, or in workers where there are
several partitions (`workers`). Each variant gives the same bytes as a separate replay with its settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from streamdetect.config import NamedSettings
from streamdetect.detect.near_misses import KeyTracker
from streamdetect.errors import InputError, StreamdetectError
from streamdetect.findings.diff import diff
from streamdetect.findings.episodes import Episodes, KeyName
from streamdetect.findings.outcome import InputSummary, Outcome, Variant, Volume
from streamdetect.model import Partition
from streamdetect.service.bounded.preaggregation import HOUR_MS, Hour, InputGroup, PartialResult
from streamdetect.service.bounded.scheduler import read_and_evaluate
from streamdetect.service.bounded.variants import Evaluation, VariantGroup, VariantRun, positions_by_input
from streamdetect.service.bounded.workers import Pool, WorkerLostError, create_pool
from streamdetect.service.gc import infrequent_gc
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink
from streamdetect.sources import Source


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to run a backtest. `jobs`: worker processes, 1 for none. `near`: how many near misses to keep.

    `only` (addresses, process) tracks these keys alone, with any figures. `create_pool` creates the workers.
    """

    jobs: int = 1
    near: int = 20
    only: tuple[frozenset[str | None], str] | None = None
    create_pool: Callable[[Sequence[InputGroup], int], Pool] = create_pool


def run_backtest(
    *,
    variants: Sequence[NamedSettings],
    source: Source,
    sinks: Mapping[str, AlertSink] | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    options: ReplayOptions | None = None,
) -> Outcome:
    """Evaluate all variants over a bounded source; the first is the base, with which the others are compared.

    `sinks` receive the alerts of the variants of these names. `progress` is called with the records so far, `stop`
    before each poll. If stopped early, or if the input cannot be read to its end (`Outcome.problem`), the final ticks
    are not evaluated. Raises what else the source and the sinks raise.
    """
    options = options or ReplayOptions()
    tracker = KeyTracker(max(100, options.near), options.only)
    evaluation = _BacktestEvaluation(variants, sinks or {}, tracker)
    started = time.monotonic()
    pool = options.create_pool(evaluation.input_groups, options.jobs)
    problem: StreamdetectError | None = None
    try:
        with infrequent_gc():
            stopped = read_and_evaluate(pool, evaluation, source, progress, stop)
    except InputError as error:
        # What was read before is a result too; the caller gets both.
        evaluation.add(pool.drain(), remote=pool.remote)
        stopped, problem = True, error
    except WorkerLostError as error:
        stopped, problem = True, error
    finally:
        pool.close()
    seconds = round(time.monotonic() - started, 3)
    outcome = evaluation.outcome(source.partitions(), tracker, options.near, seconds, stopped=stopped)
    if problem is not None:
        outcome.problem = problem
        outcome.remarks.append(f"The run ended before the end of the input: {problem}")
    return outcome


class _BacktestEvaluation(Evaluation):
    """The evaluation of all variants; also counts the shapes of records."""

    def __init__(
        self, variants: Sequence[NamedSettings], sinks: Mapping[str, AlertSink], tracker: KeyTracker
    ) -> None:
        self._runs = [
            VariantRun(named, Episodes(keep_panes=position == 0), sinks.get(named.name))
            for position, named in enumerate(variants)
        ]
        self._positions = positions_by_input(variants)
        groups = [
            VariantGroup([self._runs[position] for position in positions], tracker if number == 0 else None)
            for number, positions in enumerate(self._positions)
        ]
        super().__init__(groups, max(named.settings.time.interval_ms for named in variants))
        self._shapes: dict[str, int] = {}

    def add_result(self, result: PartialResult, *, remote: bool) -> None:
        super().add_result(result, remote=remote)
        for shape, count in result.shapes.items():
            self._shapes[shape] = self._shapes.get(shape, 0) + count

    def outcome(
        self, inputs: Sequence[Partition], tracker: KeyTracker, near: int, seconds: float, *, stopped: bool
    ) -> Outcome:
        """The outcome, with each variant compared with the base."""
        base, *others = self._variants(seconds)
        for variant in others:
            variant.diff = diff(base.episodes, variant.episodes)
        group = self.groups[0]
        return Outcome(
            settings=base.settings,
            reading=InputSummary(
                inputs=tuple(partition_name(partition) for partition in inputs),
                first_ms=group.first_event_ms,
                last_ms=max((row.now_ms for row in group.clocks if row.now_ms is not None), default=None),
                shapes=dict(sorted(self._shapes.items())),
                volumes=_volumes(group.counters.by_hour),
            ),
            base=base,
            variants=others,
            near=tracker.near_misses(near),
            tracked_keys={KeyName(tracked.rule.id, *tracked.key): tracked for tracked in tracker.fired()},
            first_tick_ms=group.first_tick_ms,
            last_tick_ms=group.last_tick_ms,
            seconds=seconds,
            stopped=stopped,
            near_limit=near,
        )

    def _variants(self, seconds: float) -> list[Variant]:
        """The results of the variants, in the order in which they were given."""
        summaries: dict[int, Summary] = {}
        for positions, group in zip(self._positions, self.groups, strict=True):
            summaries |= zip(positions, group.summaries(seconds), strict=True)
        return [
            Variant(
                name=run.named.name,
                changes=run.named.changes,
                settings=run.named.settings,
                summary=summaries[position].as_dict(),
                episodes=run.episodes.listed(),
            )
            for position, run in enumerate(self._runs)
        ]


def _volumes(by_hour: Mapping[tuple[Hour, str], int]) -> list[Volume]:
    """Hour by hour, without records that have no hour."""
    found: dict[int, dict[str, int]] = {}
    for (hour, verdict), count in by_hour.items():
        if hour is not None:
            found.setdefault(hour, {})[verdict] = count
    return [Volume(hour * HOUR_MS, dict(sorted(found[hour].items()))) for hour in sorted(found)]


def partition_name(partition: Partition) -> str:
    """A file's path; a topic with its partition."""
    return f"{partition.topic}[{partition.number}]" if partition.number else partition.topic
