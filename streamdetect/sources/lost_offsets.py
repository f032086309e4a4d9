"""Where to continue when the records at a position no longer exist, as `kafka.on_lost_offsets` says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamdetect.errors import LostOffsetsError
from streamdetect.model import Partition
from streamdetect.sources.fetcher import partition_of
from streamdetect.sources.offsets import BrokerOffsets

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)


class LostOffsetsPolicy:
    """Applies `kafka.on_lost_offsets` to positions that the broker rejects.

    Both methods return the offsets to seek to, empty if the brokers do not answer in time, and raise LostOffsetsError
    under `fail`. Each gap is logged as a warning.
    """

    def __init__(self, settings: KafkaSettings, offsets: BrokerOffsets) -> None:
        self._policy = settings.on_lost_offsets
        self._offsets = offsets

    def after_out_of_range(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        """For positions that retention has passed, or that lie after the end of a log that became shorter."""
        first = self._offsets.beginnings(positions)
        return self._targets(positions, first) if first else {}

    def after_truncation(self, error: Any, positions: Mapping[Partition, int | None]) -> dict[Partition, int]:
        """For a LogTruncationError: the log lost records that were read already (an unclean leader election).

        Reading continues at the offset up to which the log is unchanged, where the broker knows it.
        """
        diverged = {partition_of(key): entry for key, entry in error.divergent_offsets.items()}
        first = self._offsets.beginnings(diverged)
        if not first:
            return {}
        unchanged = {partition: entry.offset for partition, entry in diverged.items() if entry is not None}
        return self._targets({one: positions[one] or 0 for one in diverged}, first | unchanged)

    def _targets(self, lost: Mapping[Partition, int], first: Mapping[Partition, int]) -> dict[Partition, int]:
        """`first` are the offsets at which reading can continue."""
        if self._policy == "fail":
            gaps = "; ".join(_gap(partition, offset, first[partition]) for partition, offset in lost.items())
            raise LostOffsetsError(
                f"The records to continue from no longer exist: {gaps}. Kafka deleted them (retention), or the "
                "topic was recreated. To continue without them, set kafka.on_lost_offsets to earliest or latest; "
                "to prevent it, raise the topic's retention."
            )
        targets = first if self._policy == "earliest" else self._offsets.ends(lost)
        found = {partition: targets[partition] for partition in lost.keys() & targets.keys()}
        for partition, target in found.items():
            gap = _gap(partition, lost[partition], first[partition])
            log.warning(
                "records lost: %s. kafka.on_lost_offsets is %s: continuing at %d", gap, self._policy, target
            )
        return found


def _gap(partition: Partition, offset: int, first: int) -> str:
    where = f"{partition.topic} partition {partition.number}"
    return f"{where} should continue at offset {offset}, the first available offset is {first}"
