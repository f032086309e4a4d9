"""Rebuilds the state from Kafka after the checkpoint was lost (`--rebuild`, or a standby with its own directory).

The commit metadata in Kafka gives the published positions P and the last evaluated tick E. All outputs up to there are
published. So:

1. read each partition from where the window of E may start up to P; drop the dead letters and alerts of this pass,
2. evaluate the ticks up to E, and none after,
3. restore the open episodes from the published alerts, not from the records: an episode may have opened long before
the window.

Then the detector has the lost state, and continues with the first record at P.
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
"""How far back the opening tick of an episode is searched: almost two years at 5 minutes."""

MARGIN_MS = 3_600_000
"""How much is read before the window, so that the partition clocks are set when it starts."""


def window_start_ms(settings: Settings, evaluated_ms: int) -> int:
    """The Kafka timestamp of the first records that may contain events of the window at a tick, less `MARGIN_MS`.

    An event is at most `max_future_skew` ahead of its record's timestamp (semantics.md §4).
    """
    return evaluated_ms - settings.time.lookback_ms - settings.time.max_future_skew_ms - MARGIN_MS


def alerts_start_ms(settings: Settings, evaluated_ms: int) -> int:
    """The tick since which every open episode has sent an alert: it sends one every `renotify`."""
    longest = max((rule.renotify_ms for rule in settings.enabled_rules()), default=0)
    return evaluated_ms - longest - 2 * settings.time.interval_ms


class MidPartitionSource:
    """A source that starts in the middle of partitions. Sets a partition's clock to the start before its first record.

    Earlier records had timestamps before the start, and so had their events, except for the skew. Otherwise the first
    record read would set the clock, as the first of a partition does, even with a time far in the future.
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
    """Steps 1 and 2: read the bounded source to its end. Returns False if stopped early.

    Every partition that is not at its end holds the watermark back: the ticks up to E are evaluated in any case.
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


def restore_episodes(detector: Detector, published: Iterable[bytes]) -> int:
    """Step 3: an episode is open if its last alert is not `resolved`. Returns the number of open episodes.

    `published` may be in any order: alerts of a key are ordered by their ticks, since episodes of one key are in
    different partitions of the alert topic. Alerts of other rules, profiles and programs are ignored: their ids do not
    match.
    """
    last: dict[tuple[str, Key], tuple[str, EpisodeState]] = {}
    for body in published:
        found = _episode_of(detector, body)
        if found is not None:
            identity, action, episode = found
            if identity not in last or episode.alerted_ms > last[identity][1].alerted_ms:
                last[identity] = (action, episode)
    open_episodes = {
        identity: episode for identity, (action, episode) in last.items() if action != "resolved"
    }
    unknown = detector.replace_episodes(open_episodes)
    if unknown:
        log.warning(
            "%d keys meet their conditions, but the alerts of their episodes cannot be read back (deleted, rotated "
            "away, or written to standard output): these episodes open again under new ids",
            unknown,
        )
    return len(open_episodes)


def _episode_of(detector: Detector, body: bytes) -> tuple[tuple[str, Key], str, EpisodeState] | None:
    """Rule and key, action, and the episode of an alert; None if the alert does not belong to this detector."""
    try:
        document = json.loads(body)
        fields = document["streamdetect"]
        identity = document["rule"]["uuid"], _key(document)
        action, tick_ms = fields["action"], parse_time_ms(document["@timestamp"])
        wanted_episode, wanted_alert = fields["episode_id"], document["event"]["id"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if fields.get("profile") != detector.settings.profile or identity[0] not in {
        rule.id for rule in detector.rules
    }:
        return None
    opened_ms = _opened_ms(detector.interval_ms, *identity, tick_ms, wanted_episode)
    if opened_ms is None or str(alert_id(episode_id(*identity, opened_ms), action, tick_ms)) != wanted_alert:
        return None
    return identity, action, EpisodeState(opened_ms, tick_ms)


def _key(document: dict[str, Any]) -> Key:
    return Key(
        document["destination"]["address"],
        document["process"]["name"],
        document["streamdetect"].get("sensor"),
    )


def _opened_ms(interval_ms: int, rule_id: str, key: Key, tick_ms: int, wanted: str) -> int | None:
    """The tick at which the episode opened, proved by its id. None for an alert of other settings."""
    for back in range(_LONGEST_EPISODE_TICKS):
        opened_ms = tick_ms - back * interval_ms
        if str(episode_id(rule_id, key, opened_ms)) == wanted:
            return opened_ms
    return None
