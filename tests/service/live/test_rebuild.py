"""Rebuilding open episodes from published alerts, in whatever order the alert topic's partitions return them."""

from __future__ import annotations

import json
from random import Random
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import Run, event, run, settings_from

from strategies import DataSet, data_sets
from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.model import Partition
from streamdetect.service.live.rebuild import restore_episodes

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z


def rows_of(detector: Detector) -> list[Any]:
    return sorted(json.dumps(row, sort_keys=True) for row in detector.export_state())


def without_episodes(original: Detector, chosen: Settings) -> Detector:
    """A detector with the same state, whose episodes are lost."""
    rows = [row | {"episode": None} if row["kind"] == "key" else row for row in original.export_state()]
    detector = Detector(chosen)
    detector.import_state(rows)
    return detector


def in_partitions(lines: list[str], partitions: int, rng: Random) -> list[bytes]:
    """The alerts as a topic returns them: in order within a partition, which an episode's id decides."""
    topic: list[list[str]] = [[] for _ in range(partitions)]
    for line in lines:
        topic[crc32(json.loads(line)["streamdetect"]["episode_id"].encode()) % partitions].append(line)
    read: list[bytes] = []
    while any(topic):
        partition = rng.choice([one for one in topic if one])
        read += [partition.pop(0).encode() for _ in range(rng.randint(1, len(partition)))]
    return read


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(), st.integers(1, 8), st.integers(0, 2**32))
def test_any_order_of_partitions_restores_the_open_episodes(
    data_set: DataSet, partitions: int, seed: int
) -> None:
    """Several episodes a key, several rules: the restored state equals the original one, row by row."""
    original = run(data_set.partitions, data_set.settings)
    rebuilt = without_episodes(original.detector, original.settings)
    found = restore_episodes(rebuilt, in_partitions(original.lines, partitions, Random(seed)))
    assert found == sum(original.detector.open_episodes().values())
    assert rows_of(rebuilt) == rows_of(original.detector)


def two_episodes() -> Run:
    """One rule of 2 an hour over an hour: an episode of two hours, a pause of three, and a second one, still open."""
    plain = {
        "profile": "resilient",
        "interval_ms": 5 * MINUTE_MS,
        "lookback_ms": 2 * HOUR_MS,
        "lateness_ms": 0,
        "max_future_skew_ms": HOUR_MS,
        "max_future_jump_ms": 24 * HOUR_MS,
        "rules": [
            {
                "id": "rule",
                "min_connections_per_hour": 2,
                "min_duration_hours": 1,
                "renotify_ms": 6 * HOUR_MS,
            }
        ],
    }
    product = Run(settings_from(plain))
    for start_ms in (START_MS, START_MS + 5 * HOUR_MS):
        for minutes in range(0, 121, 10):
            product.processor(0).accept(
                product.decoder.decode(event(start_ms + minutes * MINUTE_MS))  # type: ignore[arg-type]  # an event
            )
            product.advance()
    product.finish()
    return product


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "newest first"])
def test_a_resolved_alert_that_is_read_last_does_not_hide_the_open_episode(reverse: bool) -> None:
    """The first episode's `resolved` is older than the second one's `opened`, whichever is read first."""
    original = two_episodes()
    actions = [json.loads(line)["event"]["action"] for line in original.lines]
    assert actions == ["opened", "resolved", "opened"]
    rebuilt = without_episodes(original.detector, original.settings)
    bodies = [line.encode() for line in original.lines]
    assert restore_episodes(rebuilt, reversed(bodies) if reverse else bodies) == 1
    assert rows_of(rebuilt) == rows_of(original.detector)
    assert rebuilt.processor(Partition("file-0")).clock.now_ms == START_MS + 7 * HOUR_MS
