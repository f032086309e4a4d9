"""Bounded input: read every partition to its end, evaluate, stop (semantics.md §4, "Bounded input")."""

from __future__ import annotations

import time
from collections.abc import Callable

from streamdetect.config import Settings
from streamdetect.detect import Listener
from streamdetect.service.gc import infrequent_gc
from streamdetect.service.pipeline import Pipeline, clocks_of, too_far_ahead
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sources import Source

_POLL_MS = 500


def run_replay(
    *,
    settings: Settings,
    source: Source,
    alert_sink: AlertSink,
    dead_letter_sink: DeadLetterSink,
    progress: Callable[[Summary], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    listener: Listener | None = None,
) -> Summary:
    """Replay a bounded source. `stop` is called before each poll, `progress` after it; `listener` gets the engine's
    reports.

    If stopped early, the final ticks are not evaluated: their results would not be the results of the whole input.
    Raises what the source and the sinks raise.
    """
    started = time.monotonic()
    pipeline = Pipeline(settings, alert_sink, dead_letter_sink, listener)
    detector = pipeline.detector
    stopped = False
    with infrequent_gc():
        while True:
            for partition in source.partitions():
                detector.processor(partition)
            ended = source.at_end()
            for partition in ended:
                detector.processor(partition).idle = True  # it has no more records
            if len(ended) == len(detector.processors):
                break
            stopped = stop()
            if stopped:
                break
            hold = too_far_ahead(clocks_of(detector.processors), ended, settings.time.interval_ms)
            for batch in source.poll(hold, _POLL_MS):
                pipeline.feed(batch)
            pipeline.advance()
            if progress is not None:
                progress(pipeline.summary())
    if not stopped:
        pipeline.finish()
    pipeline.flush()
    summary = pipeline.summary()
    summary.seconds = round(time.monotonic() - started, 3)
    return summary
