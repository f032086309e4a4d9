"""What a live run reports while it works. `service.status` listens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from streamdetect.detect import Detector, Listener
from streamdetect.model import Alert, DeadLetter, Partition
from streamdetect.service.live.commit import CommitListener
from streamdetect.service.summary import Summary
from streamdetect.sources import LiveSource

Stage = Literal["connecting", "waiting", "restoring", "running", "stopping"]
"""Connecting to Kafka; waiting to own the consumer group, maybe as a standby; restoring state; reading; stopping."""


@dataclass(frozen=True, slots=True)
class RunningParts:
    """The parts of a run that has started reading. Use them only in the loop's thread, except where they say more."""

    detector: Detector
    source: LiveSource
    summary: Callable[[], Summary]


class RunListener(Listener, CommitListener):
    """Every method does nothing; override those of interest. All except `CommitListener`'s run in the loop's thread."""

    def stage_entered(self, stage: Stage) -> None:
        """A stage begins. The stage `running` is reported by `reading_started` instead."""

    def reading_started(self, parts: RunningParts) -> None:
        """The state is restored, and reading begins."""

    def progressed(self) -> None:
        """The run is not stuck: called at each turn, each check of a standby, and each thousand rows restored."""

    def batch_processed(self, partition: Partition, records: int, seconds: float) -> None:
        """A batch has been decoded and passed to the detector."""

    def dead_lettered(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Records have become dead letters; they are published with the next checkpoint."""

    def alerted(self, alerts: Sequence[Alert]) -> None:
        """Alerts were decided; they are published with the next checkpoint."""

    def turn_ended(self, held: Collection[Partition]) -> None:
        """A turn is complete; it read nothing from the partitions in `held`."""
