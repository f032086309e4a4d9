"""The state anew from Kafka, for a checkpoint that was lost (`--rebuild`, or a standby with a directory of its own).

The note in Kafka says what was published: the positions P, and the last tick E that was evaluated. Everything that
could be decided up to there has been sent. So:

1. read each partition from where the window of E may begin up to P; refused records and alerts of this are dropped,
2. evaluate the ticks up to E, and none beyond,
3. take the open episodes from the alerts that were sent, not from what was read: an episode may have opened long
before.

After that the detector is where the lost one was, and goes on with the first record at P.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from streamdetect.config import Settings, parse_time_ms
from streamdetect.detect import Detector
from streamdetect.detect.alerts import Key, alert_id, episode_id
from streamdetect.detect.episodes import EpisodeState
from streamdetect.model import Batch, Partition
from streamdetect.service.pipeline import Pipeline, clocks_of, too_far_ahead
from streamdetect.sources import Source

log = logging.getLogger(__name__)

_POLL_MS = 500
_LONGEST_EPISODE_TICKS = 200_000
"""How far back the opening of an episode is looked for: almost two years of 5 minutes."""

MARGIN_MS = 3_600_000
"""What is read before the window, so that the partition clocks are set when it begins."""


def window_start_ms(settings: Settings, evaluated_ms: int) -> int:
    """The Kafka timestamp from which on events of the window at a tick may lie in the log.

    An event is at most `max_future_skew` ahead of its record's timestamp (semantics.md §4), so it is not before this.
    """
    return evaluated_ms - settings.time.lookback_ms - settings.time.max_future_skew_ms - MARGIN_MS


def alerts_start_ms(settings: Settings, evaluated_ms: int) -> int:
    """The tick from which on every episode that is open has sent an alert: each `renotify` there is one."""
    longest = max((rule.renotify_ms for rule in settings.enabled_rules()), default=0)
    return evaluated_ms - longest - 2 * settings.time.interval_ms


class Continued:
    """Records from the middle of partitions: before the first of a partition, its clock is set to where they begin.

    Whatever came earlier had timestamps before that time, and so had its events, but for the skew. Without it a wild
    record that happens to be the first would set the clock, as the first of a partition does.
    """

    def __init__(self, source: Source, detector: Detector, start_ms: int) -> None:
        self._source = source
        self._detector = detector
        self._start_ms = start_ms

    def partitions(self) -> tuple[Partition, ...]:
        return self._source.partitions()

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        batches = self._source.poll(hold, timeout_ms)
        for batch in batches:
            clock = self._detector.processor(batch.partition).clock
            if clock.now_ms is None and batch.offsets[0] > 0:
                clock.now_ms = self._start_ms
        return batches

    def at_end(self) -> frozenset[Partition]:
        return self._source.at_end()

    def close(self) -> None:
        self._source.close()


def read_window(
    pipeline: Pipeline, source: Source, evaluated_ms: int | None, stop: Callable[[], bool]
) -> bool:
    """Steps 1 and 2: read the bounded source to its end; False if stopped early.

    Idle or not, every partition holds time back here: the ticks up to E come in the end anyway.
    """
    detector = pipeline.detector
    slack_ms = detector.interval_ms
    while True:
        for partition in source.partitions():
            detector.processor(partition)
        ended = source.at_end()
        for partition in ended:
            detector.processor(partition).idle = True
        if len(ended) == len(detector.processors):
            break
        if stop():
            return False
        for batch in source.poll(too_far_ahead(clocks_of(detector.processors), ended, slack_ms), _POLL_MS):
            pipeline.feed(batch)
        _advance(pipeline, detector.watermark_ms(), evaluated_ms)
    _advance(pipeline, detector.watermark_ms() if evaluated_ms is None else evaluated_ms, evaluated_ms)
    for processor in detector.processors.values():
        processor.idle = False
    return True


def _advance(pipeline: Pipeline, watermark_ms: int | None, evaluated_ms: int | None) -> None:
    if watermark_ms is not None:
        pipeline.advance_to(watermark_ms if evaluated_ms is None else min(watermark_ms, evaluated_ms))


def take_up_episodes(detector: Detector, sent: Iterable[bytes]) -> int:
    """Step 3: open episodes are those whose last alert is not `resolved`; how many.

    `sent` are alerts in the order in which they were sent. Those of other rules, profiles and programs are left
    alone: their ids do not fit.
    """
    last: dict[tuple[str, Key], tuple[str, EpisodeState]] = {}
    for body in sent:
        found = _episode_of(detector, body)
        if found is not None:
            identity, action, episode = found
            last[identity] = (action, episode)
    open_now = {identity: episode for identity, (action, episode) in last.items() if action != "resolved"}
    unknown = detector.replace_episodes(open_now)
    if unknown:
        log.warning(
            "%d keys meet their conditions, but no alert of their episodes can be read back (deleted, rotated away, or "
            "written to standard output): they will be opened again, under new episode ids",
            unknown,
        )
    return len(open_now)


def _episode_of(detector: Detector, body: bytes) -> tuple[tuple[str, Key], str, EpisodeState] | None:
    try:
        document = json.loads(body)
        ours = document["streamdetect"]
        identity = document["rule"]["uuid"], _key(document)
        action, tick_ms = ours["action"], parse_time_ms(document["@timestamp"])
        wanted = ours["episode_id"], document["event"]["id"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if ours.get("profile") != detector.settings.profile or identity[0] not in {
        rule.id for rule in detector.rules
    }:
        return None
    opened_ms = _opened_ms(detector.interval_ms, *identity, tick_ms, wanted[0])
    if opened_ms is None or str(alert_id(episode_id(*identity, opened_ms), action, tick_ms)) != wanted[1]:
        return None
    return identity, action, EpisodeState(opened_ms, tick_ms)


def _key(document: dict[str, Any]) -> Key:
    return Key(
        document["destination"]["address"],
        document["process"]["name"],
        document["streamdetect"].get("sensor"),
    )


def _opened_ms(interval_ms: int, rule_id: str, key: Key, tick_ms: int, wanted: str) -> int | None:
    """The tick at which the episode opened: its id proves it. An alert of other settings has none."""
    for back in range(_LONGEST_EPISODE_TICKS):
        opened_ms = tick_ms - back * interval_ms
        if str(episode_id(rule_id, key, opened_ms)) == wanted:
            return opened_ms
    return None
