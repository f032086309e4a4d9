"""Verifies a checkpoint against its records: derives the state from them again, and compares the two states.

1. read each partition up to the offset of the checkpoint: files from their start, Kafka from where the window of the
   last evaluated tick E may start (`rebuild`); evaluate the ticks up to E, and none after,
2. compare (`compare`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from streamdetect.detect import Detector
from streamdetect.detect.ticks import NEVER
from streamdetect.errors import UsageError
from streamdetect.findings.state_diff import Comparison, Difference
from streamdetect.model import Batch, Partition
from streamdetect.service.gc import infrequent_gc
from streamdetect.service.inspect.compare import compare, partition_text
from streamdetect.service.inspect.integrity import VerifiedCheckpoint
from streamdetect.service.live.rebuild import MidPartitionSource, read_window, window_start_ms
from streamdetect.service.pipeline import Pipeline
from streamdetect.sinks.files import NullSink
from streamdetect.sources import Source


def kafka_start_ms(verified: VerifiedCheckpoint) -> int | None:
    """The Kafka timestamp to read from; None for the beginning, if no tick has been evaluated yet."""
    if verified.evaluated_ms is None:
        return None
    return max(0, window_start_ms(verified.settings, verified.evaluated_ms))


class FilePartitions:
    """Files as the partitions of a checkpoint, each read up to the offset of the checkpoint.

    The n-th file is the n-th partition, sorted by topic and number, and its record k the record at offset k.
    """

    def __init__(self, files: Source, offsets: Mapping[Partition, int]) -> None:
        """Raises UsageError if there are not as many files as partitions."""
        given, wanted = files.partitions(), sorted(offsets)
        if len(given) != len(wanted):
            files.close()
            raise UsageError(
                f"the checkpoint has {len(wanted)} partitions, but there are {len(given)} files. Name one file for "
                f"each: {', '.join(map(partition_text, wanted))}."
            )
        self._files = files
        self._ends = offsets
        self._partitions = dict(zip(given, wanted, strict=True))
        self.read = dict.fromkeys(wanted, 0)

    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self.read)

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        held = {*hold, *self.at_end()}
        batches = self._files.poll(
            [given for given, partition in self._partitions.items() if partition in held], timeout_ms
        )
        return [self._truncate(batch) for batch in batches]

    def _truncate(self, batch: Batch) -> Batch:
        partition = self._partitions[batch.partition]
        count = min(len(batch), self._ends[partition] - self.read[partition])
        self.read[partition] += count
        return Batch(partition, batch.values[:count], batch.offsets[:count])

    def at_end(self) -> frozenset[Partition]:
        ended = self._files.at_end()
        return frozenset(
            partition
            for given, partition in self._partitions.items()
            if given in ended or self.read[partition] >= self._ends[partition]
        )

    def close(self) -> None:
        self._files.close()

    def differences(self) -> list[Difference]:
        """Files with fewer records than the run has read."""
        return [
            Difference(partition_text(partition), "records", f"{end:,} were read", f"the file holds {read:,}")
            for (partition, read) in self.read.items()
            if read < (end := self._ends[partition])
        ]


def rederive(
    verified: VerifiedCheckpoint,
    source: Source,
    *,
    start_ms: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Derive the state again from `source` and compare it with the checkpoint (steps 1 and 2 of this module).

    `source` ends at the offsets of the checkpoint. `start_ms` is the Kafka timestamp at which it starts, None if it
    starts with the first record. `progress` is called with the records read so far. Raises what the source raises.
    """
    detector = Detector(verified.settings)
    pipeline = Pipeline(verified.settings, NullSink(), NullSink(), detector=detector)

    def report_progress() -> bool:
        progress(pipeline.consumed)
        return False

    evaluated_ms = NEVER if verified.evaluated_ms is None else verified.evaluated_ms
    with infrequent_gc():
        read_window(
            pipeline,
            source if start_ms is None else MidPartitionSource(source, detector, start_ms),
            evaluated_ms,
            report_progress,
        )
    complete_ms = NEVER if start_ms is None else start_ms + verified.settings.time.max_future_skew_ms
    comparison = compare(verified, detector, complete_ms)
    if isinstance(source, FilePartitions):
        comparison.differences[:0] = source.differences()
    return comparison
