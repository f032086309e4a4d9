"""Live: Kafka in, alerts out, until told to stop.

The order of one turn, and of stopping:

1. poll the source; nothing of partitions that are too far ahead,
2. feed each batch: refused records go to the dead-letter sink,
3. note which partitions are idle (read to their end and silent for `time.idle_timeout`),
4. evaluate the ticks that the watermark lets go; alerts go to the alert sink,
5. wait until both sinks have everything safe.

A stop is noticed before the next poll, so a turn is always finished. Until checkpoints exist, a run begins where
`kafka.start` says and forgets its state when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.model import Partition
from streamdetect.service.collecting import collecting_rarely
from streamdetect.service.pipeline import Pipeline, too_far_ahead
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sources import Source

_POLL_MS = 200
_HOLD_INTERVALS = 2  # how far ahead of the slowest partition one may be read


class Silence:
    """Which partitions are idle: at their end, and nothing heard of for the time-out (semantics.md §4)."""

    def __init__(self, idle_timeout_ms: int, clock: Callable[[], float]) -> None:
        self._timeout_s = idle_timeout_ms / 1000
        self._clock = clock
        self._heard: dict[Partition, float] = {}

    def heard(self, partition: Partition) -> None:
        """A batch came from there just now."""
        self._heard[partition] = self._clock()

    def mark(self, detector: Detector, at_end: frozenset[Partition]) -> None:
        """Set each lane's `idle`. A partition seen for the first time begins its silence now."""
        now = self._clock()
        for partition, lane in detector.lanes.items():
            since = self._heard.setdefault(partition, now)
            lane.idle = partition in at_end and now - since >= self._timeout_s


def run_live(
    *,
    settings: Settings,
    source: Source,
    alert_sink: AlertSink,
    dead_letter_sink: DeadLetterSink,
    stop: Callable[[], bool],
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Run until `stop()` is true. Raises what the source and the sinks raise.

    `wall_ms` is asked only to refuse events from the future, `clock` only for idleness.
    """
    started = clock()
    pipeline = Pipeline(settings, alert_sink, dead_letter_sink)
    detector = pipeline.detector
    silence = Silence(settings.time.idle_timeout_ms, clock)
    slack_ms = _HOLD_INTERVALS * settings.time.interval_ms
    with collecting_rarely():
        while not stop():
            for partition in source.partitions():
                detector.lane(partition)
            batches = source.poll(too_far_ahead(detector.lanes, source.at_end(), slack_ms), _POLL_MS)
            for batch in batches:
                silence.heard(batch.partition)
                pipeline.feed(batch, wall_ms())
            silence.mark(detector, source.at_end())
            pipeline.advance()
            pipeline.flush()
    pipeline.flush()
    summary = pipeline.summary()
    summary.seconds = round(clock() - started, 3)
    return summary
