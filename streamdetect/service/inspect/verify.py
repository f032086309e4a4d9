"""Whether a checkpoint is what its records give: they are read and evaluated again, and the two states compared.

1. read each partition up to the offset of the checkpoint: files from their beginning, Kafka from where the window of
   the last evaluated tick E may begin (`rebuild`), and evaluate the ticks up to E, and none beyond,
2. compare (`comparing`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from streamdetect.detect import Detector
from streamdetect.detect.ticks import NEVER
from streamdetect.errors import UsageError
from streamdetect.model import Batch, Partition
from streamdetect.service.gc import collecting_rarely
from streamdetect.service.inspect.compare import compare, partition_text
from streamdetect.service.inspect.describe import VerifiedCheckpoint
from streamdetect.service.inspect.differences import Comparison, Difference
from streamdetect.service.live.rebuild import Continued, read_window, window_start_ms
from streamdetect.service.pipeline import Pipeline
from streamdetect.sinks.files import NullSink
from streamdetect.sources import Source


def kafka_start_ms(examined: VerifiedCheckpoint) -> int | None:
    """The Kafka timestamp to read from; None for the beginning, where no tick was evaluated yet."""
    if examined.evaluated_ms is None:
        return None
    return max(0, window_start_ms(examined.settings, examined.evaluated_ms))


class FilePartitions:
    """Files in the place of a checkpoint's partitions, each up to the offset that was reached there.

    The n-th file is the n-th partition, sorted by topic and number, and its record k the record at offset k.
    """

    def __init__(self, files: Source, offsets: Mapping[Partition, int]) -> None:
        """UsageError where there are not as many files as partitions."""
        given, wanted = files.partitions(), sorted(offsets)
        if len(given) != len(wanted):
            files.close()
            raise UsageError(
                f"the checkpoint has {len(wanted)} partitions and there are {len(given)} files. Name one file for "
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
        return [self._cut(batch) for batch in batches]

    def _cut(self, batch: Batch) -> Batch:
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
        """Files that are shorter than what was read."""
        return [
            Difference(partition_text(partition), "records", f"{end:,} were read", f"the file holds {read:,}")
            for (partition, read) in self.read.items()
            if read < (end := self._ends[partition])
        ]


def rederive(
    examined: VerifiedCheckpoint,
    source: Source,
    *,
    start_ms: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Both steps. `start_ms` is the Kafka timestamp that `source` begins at, None for the beginning of everything.

    `source` ends where the checkpoint does. `progress` is told how many records were read. Raises what the source
    raises.
    """
    detector = Detector(examined.settings)
    pipeline = Pipeline(examined.settings, NullSink(), NullSink(), detector=detector)

    def told() -> bool:
        progress(pipeline.consumed)
        return False

    evaluated_ms = NEVER if examined.evaluated_ms is None else examined.evaluated_ms
    with collecting_rarely():
        read_window(
            pipeline,
            source if start_ms is None else Continued(source, detector, start_ms),
            evaluated_ms,
            told,
        )
    whole_ms = NEVER if start_ms is None else start_ms + examined.settings.time.max_future_skew_ms
    comparison = compare(examined, detector, whole_ms)
    if isinstance(source, FilePartitions):
        comparison.differences[:0] = source.differences()
    return comparison
