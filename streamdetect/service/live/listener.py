"""What a live run reports while it works. The core reports, others listen (`vitals` does)."""

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
"""Connecting to Kafka; waiting to own the group, which may be as a standby; restoring the state; reading; stopping."""


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of a run that has begun to read. Only the loop's own thread may use them, but for what says it may."""

    detector: Detector
    source: LiveSource
    summary: Callable[[], Summary]


class RunListener(Listener, CommitListener):
    """Every method does nothing; override what you want to hear. All but `CommitListener`'s come from the loop."""

    def entered(self, stage: Stage) -> None:
        """A stage begins; `running` has a method of its own."""

    def running(self, run: Running) -> None:
        """The state is restored, and reading begins."""

    def moved(self) -> None:
        """Somewhere something went on: a turn, a look while standing by, a thousand keys restored."""

    def fed(self, partition: Partition, records: int, seconds: float) -> None:
        """A batch has been decoded and judged."""

    def refused(self, letters: Sequence[DeadLetter]) -> None:
        """Records that become dead letters."""

    def alerted(self, alerts: Sequence[Alert]) -> None:
        """Alerts that were decided; they go out with the next checkpoint."""

    def turned(self, held: Collection[Partition]) -> None:
        """A turn is over, in which nothing was read of the partitions held back."""
