"""The live Kafka source: all partitions of the topics, including partitions that appear while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from streamdetect.errors import LostOffsetsError
from streamdetect.model import Batch, Partition
from streamdetect.sources import Bounds
from streamdetect.sources.consumer import PartitionConsumer
from streamdetect.sources.fetcher import BEGINNING
from streamdetect.sources.followed_topics import FollowedTopics, recreated
from streamdetect.sources.offsets import log_point

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

CONFIRM_SECONDS, TRUST_SECONDS = 1.0, 5.0
"""How often the end of a partition is queried, and how long an answer is valid."""


class KafkaSource:
    """Live: all partitions of the topics, and partitions that appear while it runs. Reads nothing before `begin`.

    One instance reads all partitions by manual assignment. Where to begin, and what to do when records no longer
    exist, is decided by settings, never by a default of the client. A topic pattern never matches topics in `exclude`,
    such as those this program writes to.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        exclude: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._confirmed_at: dict[Partition, float] = {}
        self._queried_at = float("-inf")
        self._consumer = PartitionConsumer(settings, clock)
        try:
            self._followed = FollowedTopics(self._consumer.catalogue, settings, settings.topics, exclude)
        except BaseException:
            self._consumer.close()
            raise

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Start at `positions` (of a checkpoint); a partition without one, or with None, starts at its beginning.

        Without positions every partition starts at `kafka.start`. `topic_ids` are the ids of the topics at the time of
        the positions: a topic with another id was deleted and recreated, and `kafka.on_lost_offsets` decides.
        """
        self._followed.new_partitions(self._consumer.catalogue)
        partitions = self._followed.partitions
        if positions is None:
            self._consumer.add(self._starts(partitions))
            return
        starts = {partition: positions.get(partition, BEGINNING) for partition in partitions}
        self._consumer.add(starts | self._starts_in_recreated(starts, topic_ids or {}))

    def _starts(self, partitions: Collection[Partition]) -> dict[Partition, int | None]:
        start = log_point(self._settings.start)
        if start == "earliest":
            # Not resolved here: retention may delete the record before it is read.
            return dict.fromkeys(partitions, BEGINNING)
        return dict(self._consumer.offsets.at(partitions, start))

    def _starts_in_recreated(
        self, starts: Mapping[Partition, int | None], topic_ids: Mapping[str, str]
    ) -> dict[Partition, int | None]:
        """Where to start in topics that were recreated."""
        now = self._followed.topic_ids()
        names = {name for name, topic_id in topic_ids.items() if now.get(name, topic_id) != topic_id}
        lost = [
            partition
            for partition in starts
            if partition.topic in names and starts[partition] is not BEGINNING
        ]
        if not lost:
            return {}
        policy = self._settings.on_lost_offsets
        if policy == "fail":
            raise LostOffsetsError(recreated(sorted(names)))
        log.warning(
            "topics recreated since the checkpoint: %s; reading them from the %s offset on",
            sorted(names),
            policy,
        )
        if policy == "latest":
            return dict(self._consumer.offsets.at(lost, "latest"))
        return dict.fromkeys(lost, BEGINNING)

    def positions(self) -> dict[Partition, int | None]:
        """The offset at which each partition continues, None for its beginning."""
        return self._consumer.positions()

    def lags(self) -> dict[Partition, int]:
        return self._consumer.lags()

    def bounds(self) -> dict[Partition, Bounds]:
        return self._consumer.bounds()

    def topic_ids(self) -> dict[str, str]:
        """The id of each topic. It changes when the topic is deleted and recreated."""
        return self._followed.topic_ids()

    def partitions(self) -> tuple[Partition, ...]:
        return self._followed.partitions

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        new = self._followed.new_partitions(self._consumer.catalogue)
        if new:
            log.info(
                "new partitions: %s", ", ".join(f"{partition.topic}-{partition.number}" for partition in new)
            )
            self._consumer.add(dict.fromkeys(new, BEGINNING))
        self._consumer.hold(hold)
        return self._consumer.poll(timeout_ms)

    def at_end(self) -> frozenset[Partition]:
        """Partitions read to the end that the broker has confirmed within TRUST_SECONDS.

        The last end known to the client is not enough: while a broker is down every partition would seem read to
        its end, time would advance without them, and their records would arrive late.
        """
        caught_up, now = self._consumer.caught_up(), self._clock()
        due = [
            one for one in caught_up if now - self._confirmed_at.get(one, float("-inf")) >= CONFIRM_SECONDS
        ]
        if due and now - self._queried_at >= CONFIRM_SECONDS / 4:
            ends = self._consumer.offsets.ends(due, timeout_ms=1_000)
            self._queried_at = self._clock()
            self._confirmed_at |= {one: now for one, end in ends.items() if caught_up[one] >= end}
        return frozenset(
            one for one in caught_up if now - self._confirmed_at.get(one, float("-inf")) <= TRUST_SECONDS
        )

    def close(self) -> None:
        self._consumer.close()
