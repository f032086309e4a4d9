"""Reads bounded input through a worker pool: assigns reading to workers, and evaluates their results.

Where workers are processes they read files themselves, so that the bytes need not be sent to them; everything else is
polled here and submitted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from streamdetect.model import Partition
from streamdetect.service.bounded.preaggregation import PartialResult
from streamdetect.service.bounded.variants import Evaluation
from streamdetect.service.bounded.workers import AddPartition, EndPartition, Pool, ReadFile
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource

_POLL_MS = 500
_MOST_WAITING = 500_000
"""Pre-aggregates (some 250 bytes each) that may wait for their tick before partitions that are ahead are held."""


def read_and_evaluate(
    pool: Pool,
    evaluation: Evaluation,
    source: Source,
    progress: Callable[[int], None] | None,
    stop: Callable[[], bool],
) -> bool:
    """Read and evaluate the whole source; returns True if stopped before its end.

    Raises InputError, WorkerLostError, SinkError.
    """
    files = _WorkerFiles(pool, source)
    ended: set[Partition] = set()
    while True:
        for partition in source.partitions():
            if evaluation.add_partition(partition):
                pool.submit(AddPartition(partition))
        for partition in source.at_end() - ended:
            if partition not in files.partitions:
                pool.submit(EndPartition(partition))
            ended.add(partition)
        if len(ended) == len(evaluation.partitions) or stop():
            break
        if not _submit_reads(pool, evaluation, source, files, ended):
            pool.wait()
        evaluation.add(files.track_progress(pool.results()), remote=pool.remote)
        files.check()
        if progress is not None:
            progress(evaluation.consumed)
    evaluation.add(files.track_progress(pool.drain()), remote=pool.remote)
    files.check()
    stopped = len(ended) < len(evaluation.partitions)
    if not stopped:
        evaluation.finish()
    return stopped


def _submit_reads(
    pool: Pool, evaluation: Evaluation, source: Source, files: _WorkerFiles, ended: set[Partition]
) -> bool:
    """Submit the next reads and batches; returns False if there were none."""
    busy = pool.busy_partitions()
    # Files of successive days are read in parallel as far as memory allows.
    held = (
        busy if pool.remote and evaluation.waiting < _MOST_WAITING else busy | evaluation.too_far_ahead(ended)
    )
    submitted = files.submit_reads(held | ended)
    if not evaluation.partitions - ended - files.partitions - busy:
        return submitted
    batches = source.poll(held, 0 if submitted else _POLL_MS)
    for batch in batches:
        pool.submit(batch)
    return submitted or bool(batches)


class _WorkerFiles:
    """The files that worker processes read themselves; none for an in-process pool."""

    def __init__(self, pool: Pool, source: Source) -> None:
        self._pool = pool
        self._source = source if pool.remote and isinstance(source, FileSource) else None
        self.partitions: frozenset[Partition] = frozenset(self._source.delegate() if self._source else ())
        self._error: Exception | None = None

    def submit_reads(self, excluded: Collection[Partition]) -> bool:
        """Submit a read of each file that is not excluded; returns False if there were none."""
        wanted = sorted(self.partitions.difference(excluded))
        if self._source is not None:
            for partition in wanted:
                self._pool.submit(ReadFile(partition, self._source.max_record_bytes))
        return bool(wanted)

    def track_progress(self, results: Iterable[PartialResult]) -> Iterable[PartialResult]:
        """Pass results through, reporting the progress of files to the source."""
        for result in results:
            ended = {row.partition for row in result.clocks[0] if row.ended}
            for partition, size in result.file_bytes.items():
                if self._source is not None:
                    self._source.report_read(partition, size, ended=partition in ended)
            self._error = self._error or result.error
            yield result

    def check(self) -> None:
        """Raises InputError for an unreadable file; call it after all results before it have been evaluated."""
        if self._error is not None:
            raise self._error
