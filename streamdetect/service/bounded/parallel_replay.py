"""A replay whose partitions are decoded by workers, on several cores. Same results as `replay`, byte for byte."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from streamdetect.config import Settings
from streamdetect.service.bounded.preaggregation import InputGroup, PartialResult
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.bounded.scheduler import read_and_evaluate
from streamdetect.service.bounded.variants import AlertOutput, Evaluation, VariantGroup
from streamdetect.service.bounded.workers import Pool, create_pool
from streamdetect.service.gc import infrequent_gc
from streamdetect.service.pipeline import warn_about_eviction
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sources import Source

_WORTH_WORKERS: Final = 24_000_000
"""Bytes on disk from which on worker processes are faster in spite of the time that they take to start."""


def jobs_for(requested: int | None, source: Source, size: int | None) -> int:
    """How many worker processes to use: at most one per partition, and only one job for small input.

    `requested` None: one per core where the input is large enough. `size` is the size of the input in bytes, if known.
    """
    partitions = len(source.partitions())
    if requested is not None:
        return min(requested, partitions)
    if size is not None and size < _WORTH_WORKERS:
        return 1
    return min(len(os.sched_getaffinity(0)), partitions)


def replay(  # noqa: PLR0913 - what a replay is, and how
    *,
    settings: Settings,
    source: Source,
    alert_sink: AlertSink,
    dead_letter_sink: DeadLetterSink,
    jobs: int,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    create_pool: Callable[[list[InputGroup], int], Pool] = create_pool,
) -> Summary:
    """Replay a bounded source with this many workers; without workers for one job.

    `progress` is called with the records so far, `stop` before each poll. If stopped early, the final ticks are not
    evaluated. Dead letters are in the order of each partition. Raises what the source and the sinks raise, and
    WorkerLostError.
    """
    if jobs <= 1:
        return run_replay(
            settings=settings,
            source=source,
            alert_sink=alert_sink,
            dead_letter_sink=dead_letter_sink,
            progress=None if progress is None else lambda so_far: progress(so_far.consumed),
            stop=stop,
        )
    started = time.monotonic()
    evaluation = _ReplayEvaluation(settings, alert_sink, dead_letter_sink)
    pool = create_pool(evaluation.input_groups, jobs)
    try:
        with infrequent_gc():
            read_and_evaluate(pool, evaluation, source, progress, stop)
    finally:
        pool.close()
    dead_letter_sink.flush()
    alert_sink.flush()
    (summary,) = evaluation.groups[0].summaries(round(time.monotonic() - started, 3))
    return summary


class _ReplayEvaluation(Evaluation):
    """The evaluation of a single variant, with dead letters and a warning at the first eviction."""

    def __init__(self, settings: Settings, alert_sink: AlertSink, dead_letter_sink: DeadLetterSink) -> None:
        group = VariantGroup([AlertOutput(settings, alert_sink)], None, plain=True)
        super().__init__([group], settings.time.interval_ms)
        self._dead_letter_sink = dead_letter_sink
        self._warned = False

    def add_result(self, result: PartialResult, *, remote: bool) -> None:
        super().add_result(result, remote=remote)
        if result.dead_letters:
            self._dead_letter_sink.write(result.dead_letters)

    def advance(self) -> None:
        super().advance()
        self._warn_of_eviction()

    def finish(self) -> None:
        super().finish()
        self._warn_of_eviction()

    def _warn_of_eviction(self) -> None:
        (evicted,) = self.groups[0].evictions
        if evicted and not self._warned:
            self._warned = True
            warn_about_eviction(f"{evicted} keys")
