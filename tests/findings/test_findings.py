"""Episodes from alerts, and the differences between the episodes of two runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from product import event

from streamdetect.config import Settings
from streamdetect.detect.alerts import iso
from streamdetect.findings.diff import Diff, Moved, diff
from streamdetect.findings.episodes import (
    Episode,
    Episodes,
    KeyName,
    NotAnAlertError,
    episodes_of,
    parse_iso_ms,
)
from streamdetect.model import Partition
from streamdetect.service.bounded.replay import run_replay
from streamdetect.testing import MemoryAlertSink, MemoryDeadLetterSink, MemorySource

MINUTE_MS = 60_000
T0_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
RULE = {"id": "r", "name": "Rule", "min_connections_per_hour": 1, "min_duration_hours": 0, "renotify": "30m"}


def replayed(profile: str = "resilient") -> list[bytes]:
    """The alerts of one event a minute from 00:00 to 00:40 with a 1 h lookback; other records advance the clock."""
    beacon = [T0_MS + minute * MINUTE_MS for minute in range(41)]
    clock = [T0_MS + minute * MINUTE_MS for minute in range(0, 150, 10)]
    source = MemorySource([Partition("events", 0)])
    source.add(Partition("events", 0), *(event(at, data_stream={"dataset": DATASET}) for at in beacon))
    source.add(Partition("events", 0), *(event(at, process={"name": "outlook.exe"}) for at in clock))
    sink = MemoryAlertSink()
    run_replay(
        settings=Settings.model_validate({"profile": profile, "time": {"lookback": "1h"}, "rules": [RULE]}),
        source=source,
        alert_sink=sink,
        dead_letter_sink=MemoryDeadLetterSink(),
    )
    return [alert.body for alert in sink.alerts]


DATASET = "endpoint.events.network"
ALERTS = replayed()


def changed(body: bytes, *path: str, to: Any = None) -> bytes:
    """The alert with the value at a path replaced or removed."""
    document = json.loads(body)
    node = document
    for step in path[:-1]:
        node = node[step]
    if to is None:
        del node[path[-1]]
    else:
        node[path[-1]] = to
    return json.dumps(document).encode()


# ------------------------------------------------------------------------------------------------ alerts to episodes


def test_the_alerts_of_an_episode_are_combined() -> None:
    """Opened with 5 events, renotified every 30 min, resolved when the last event (00:40) has left the window."""
    (episode,) = episodes_of(ALERTS, keep_panes=True)
    assert episode.key == KeyName("r", "45.83.64.1", "chrome.exe", "endpoint")
    assert (episode.rule_name, episode.severity, episode.host) == ("Rule", 47, "h1")
    # Alerts at 00:05, 00:35, 01:05, 01:35, 01:45.
    assert (episode.opened_ms, episode.first_alert_ms) == (T0_MS + 5 * MINUTE_MS, T0_MS + 5 * MINUTE_MS)
    assert (episode.resolved_ms, episode.last_alert_ms) == (
        T0_MS + 105 * MINUTE_MS,
        T0_MS + 105 * MINUTE_MS,
    )
    assert (episode.alerts, episode.reason) == (5, "expired")
    # 00:00 to 00:04; the window of 01:35 has 00:35 to 00:40. Both durations round to 0 h.
    assert (episode.figures["count_connections"], episode.figures["duration_hours"]) == (5, 0)
    assert episode.last_figures["count_connections"] == 6
    assert episode.thresholds == {
        "min_connections_per_hour": 1,
        "min_duration_hours": 0,
        "max_hosts": 1,
        "max_processes": 1,
    }
    # 8 full panes of 5 min plus one event: 8 * 5 + 1 = 41.
    panes = {T0_MS + minute * MINUTE_MS: 5 for minute in range(0, 40, 5)} | {T0_MS + 40 * MINUTE_MS: 1}
    assert episode.panes == panes
    assert episode.message == "chrome.exe on h1 contacted 45.83.64.1 for 0 h at 5 connections an hour"


def test_strict_has_no_sensor_and_a_null_key() -> None:
    """A missing destination.address is null in the key; the IP is still in the context."""
    (episode,) = episodes_of(replayed("strict"))
    assert episode.key == KeyName("r", None, "chrome.exe", None)
    assert (episode.panes, episode.alerts) == (None, 5)


def test_alerts_that_start_mid_episode_give_an_unknown_opening() -> None:
    """`updated` does not contain the opening time; the figures are those of the first available alert."""
    (episode,) = episodes_of(ALERTS[1:3])
    assert (episode.opened_ms, episode.first_alert_ms) == (None, T0_MS + 35 * MINUTE_MS)
    # 00:00 to 00:34 at 00:35, 00:05 to 00:40 at 01:05.
    assert (episode.figures["count_connections"], episode.last_figures["count_connections"]) == (35, 36)
    assert (episode.resolved_ms, episode.reason) == (None, None)


def test_a_resolved_alert_alone_is_an_episode() -> None:
    """Its window has no events left."""
    (episode,) = episodes_of(ALERTS[-1:], keep_panes=True)
    assert (episode.opened_ms, episode.resolved_ms) == (None, T0_MS + 105 * MINUTE_MS)
    assert (episode.last_figures["count_connections"], episode.panes, episode.host) == (0, {}, None)


@given(st.lists(st.integers(0, len(ALERTS)), max_size=6))
def test_repeated_alerts_change_nothing(rewinds: list[int]) -> None:
    """At least once: the topic rewinds to an earlier alert any number of times."""
    collected, sent = Episodes(keep_panes=True), 0
    for end in (*rewinds, len(ALERTS)):
        for body in ALERTS[min(sent, end) // 2 : end]:
            collected.take(body)
        sent = max(sent, end)
    assert collected.listed() == episodes_of(ALERTS, keep_panes=True)


def test_a_later_pane_count_replaces_an_earlier_one() -> None:
    """A late event changes the count in a later alert from 5 to 6."""
    later = changed(ALERTS[1], "streamdetect", "pane_counts", to=[[T0_MS, 6]])
    (episode,) = episodes_of([ALERTS[0], later], keep_panes=True)
    assert episode.panes == {T0_MS: 6}


def test_episodes_are_ordered_by_their_first_alert() -> None:
    """Two episodes with interleaved alerts."""
    other = [changed(body, "streamdetect", "episode_id", to="other") for body in ALERTS]
    other = [changed(body, "event", "id", to=f"other {number}") for number, body in enumerate(other)]
    mixed = [body for pair in zip(other, ALERTS, strict=True) for body in pair]
    assert [episode.alerts for episode in episodes_of(mixed)] == [5, 5]
    assert episodes_of(mixed)[0].id == "other"


def test_objects_added_by_a_pipeline_are_dropped() -> None:
    """Elasticsearch pipelines add objects next to the alert's own values; lists of values are kept."""
    enriched = changed(ALERTS[0], "destination", "geo", to={"country_name": "Iceland"})
    enriched = changed(enriched, "host", "name", to=["WS-1", "WS-2"])
    (episode,) = episodes_of([enriched])
    assert episode.context["destination"] == {"address": "45.83.64.1", "ip": "45.83.64.1", "port": 443}
    assert episode.host == "WS-1, WS-2"


@pytest.mark.parametrize(
    "path",
    [
        "@timestamp",
        "event.id",
        "event.severity",
        "message",
        "rule",
        "rule.uuid",
        "rule.name",
        "process.name",
        "destination.address",
        "streamdetect",
        "streamdetect.episode_id",
        "streamdetect.action",
        "streamdetect.figures.hosts",
        "streamdetect.thresholds.max_hosts",
        "streamdetect.pane_counts",
    ],
)
def test_a_missing_field_is_named(path: str) -> None:
    """Every field that an episode is built from; a rejected document leaves no trace."""
    collected = Episodes(keep_panes=True)
    with pytest.raises(
        NotAnAlertError, match=rf"^is not an alert of streamdetect: {path}(\.\w+)? is missing$"
    ):
        collected.take(changed(ALERTS[0], *path.split(".")))
    assert collected == Episodes(keep_panes=True)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\xff{}", "it is not JSON"),
        (b"", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[1]", "it is not an object"),
        ("{}", "streamdetect is missing"),
        (changed(ALERTS[0], "streamdetect", to=1), "streamdetect is no object"),
        (changed(ALERTS[0], "@timestamp", to="today"), "@timestamp is no time"),
        (changed(ALERTS[0], "@timestamp", to=1), "@timestamp is no text"),
        (changed(ALERTS[0], "event", "severity", to=True), "event.severity is not a whole number"),
        (changed(ALERTS[0], "streamdetect", "figures", "hosts", to="1"), "hosts is not a whole number"),
        (
            changed(ALERTS[0], "streamdetect", "action", to="closed"),
            "is neither opened, updated nor resolved",
        ),
        (changed(ALERTS[0], "streamdetect", "pane_counts", to=[[1]]), "is not a list of"),
        (changed(ALERTS[0], "streamdetect", "pane_counts", to=5), "is not a list of"),
    ],
    ids=lambda value: None if isinstance(value, bytes) or len(value) > 99 else value,
)
def test_documents_that_are_not_alerts(body: bytes | str, problem: str) -> None:
    """Each is rejected with the reason."""
    with pytest.raises(NotAnAlertError, match=problem):
        episodes_of([body], keep_panes=True)


@given(st.integers(-(2**63), 2**63 - 1))
@example(-62_135_596_800_001)  # the last millisecond of year 0, which datetime does not know
@example(253_402_300_800_000)  # the first one of year 10000
def test_times_round_trip(ms: int) -> None:
    """Every time in 64 bits of milliseconds, some 292 million years around 1970."""
    assert parse_iso_ms(iso(ms)) == ms


@pytest.mark.parametrize("text", ["", "now", "2026-13-01T00:00:00Z", "+10000-02-30T00:00:00Z", "٢٠٢٦-03-02"])
def test_texts_that_are_not_times(text: str) -> None:
    """A year with a sign must be a valid date like any other."""
    with pytest.raises(ValueError, match="is not a time"):
        parse_iso_ms(text)


# ------------------------------------------------------------------------------------------------ two runs compared

TICK_MS = 5 * MINUTE_MS
KEYS = (KeyName("r", None, "a.exe", None), KeyName("r", "192.0.2.1", "a.exe", None))
RunSpec = dict[tuple[KeyName, int], tuple[bool, int | None]]
"""(Key, opening tick) of each episode: whether its `opened` alert is there, and the tick at which it was resolved."""


def episode(key: KeyName, tick: int, resolved: int | None = None, *, opened: bool = True) -> Episode:
    """An episode with the id that every run gives it."""
    return Episode(
        id=f"{key} {tick}",
        key=key,
        rule_name="Rule",
        severity=47,
        opened_ms=tick * TICK_MS if opened else None,
        first_alert_ms=tick * TICK_MS if opened else (tick + 72) * TICK_MS,
        last_alert_ms=(tick if resolved is None else resolved) * TICK_MS,
        thresholds={},
        figures={},
        last_figures={},
        context={},
        message="",
        resolved_ms=None if resolved is None else resolved * TICK_MS,
        reason=None if resolved is None else "expired",
    )


def run_of(spec: RunSpec) -> list[Episode]:
    return [episode(key, tick, resolved, opened=opened) for (key, tick), (opened, resolved) in spec.items()]


runs = st.dictionaries(
    st.tuples(st.sampled_from(KEYS), st.integers(0, 20)),
    st.tuples(st.integers(0, 4).map(bool), st.sampled_from([None, 30, 40])),
    max_size=16,
).map(run_of)


def ids(episodes: Iterable[Episode]) -> list[str]:
    return [item.id for item in episodes]


def pairs(moved: Iterable[Moved]) -> set[tuple[str, str]]:
    return {(pair.before.id, pair.after.id) for pair in moved}


def closest_pairs(before: Sequence[Episode], after: Sequence[Episode]) -> Iterator[Moved]:
    """Oracle: of all pairs, repeatedly take the closest one whose episodes are both unpaired."""
    both = {item.id for item in before} & {item.id for item in after}
    one_side = [item for item in before if item.opened_ms is not None and item.id not in both]
    other_side = [item for item in after if item.opened_ms is not None and item.id not in both]
    remaining = [Moved(one, other) for one in one_side for other in other_side if one.key == other.key]
    while remaining:
        closest = min(remaining, key=lambda pair: (abs(pair.by_ms), earlier_ms(pair)))
        yield closest
        remaining = [
            pair
            for pair in remaining
            if pair.before is not closest.before and pair.after is not closest.after
        ]


def earlier_ms(pair: Moved) -> int:
    return min(pair.before.opened_ms or 0, pair.after.opened_ms or 0)


@given(runs, runs)
def test_pairs_equal_the_oracle(before: list[Episode], after: list[Episode]) -> None:
    """The oracle compares every pair."""
    assert pairs(diff(before, after).moved) == pairs(closest_pairs(before, after))


@given(runs, runs, st.none() | st.tuples(st.integers(0, 10), st.integers(8, 20)))
def test_every_episode_is_in_exactly_one_list(
    before: list[Episode], after: list[Episode], ticks: tuple[int, int] | None
) -> None:
    """Both sides are fully partitioned, for any evaluated range."""
    evaluated = None if ticks is None else (ticks[0] * TICK_MS, ticks[1] * TICK_MS)
    found = diff(before, after, evaluated=evaluated)
    of_after = [*found.appeared, *(pair.after for pair in found.moved), *found.unchanged]
    assert sorted(ids(of_after)) == sorted(ids(after))
    of_before = ids([*found.gone, *(pair.before for pair in found.moved), *found.unchanged])
    assert len(of_before) + found.outside == len(before)
    assert len(set(of_before)) == len(of_before)
    assert set(of_before) <= set(ids(before))
    assert pairs(found.ended_otherwise) <= {(name, name) for name in ids(found.unchanged)}
    assert evaluated is not None or found.outside == 0


@given(runs, runs)
def test_swapping_the_runs_mirrors_the_diff(before: list[Episode], after: list[Episode]) -> None:
    """Appeared and gone are swapped, and moves are reversed."""
    forward, backward = diff(before, after), diff(after, before)
    assert (ids(forward.appeared), ids(forward.gone)) == (ids(backward.gone), ids(backward.appeared))
    assert pairs(forward.moved) == {(after_id, before_id) for before_id, after_id in pairs(backward.moved)}
    assert pairs(forward.ended_otherwise) == pairs(backward.ended_otherwise)
    assert set(ids(forward.unchanged)) == set(ids(backward.unchanged))


@given(runs, st.randoms(use_true_random=False))
def test_a_run_does_not_differ_from_itself(run: list[Episode], rng: Random) -> None:
    """In any order; unchanged episodes are listed by opening, then key."""
    found = diff(run, rng.sample(run, len(run)))
    assert found.empty
    assert sorted(ids(found.unchanged)) == sorted(ids(run))
    opened = [item for item in found.unchanged if item.opened_ms is not None]
    assert opened == sorted(opened, key=lambda item: (item.opened_ms, item.key.order()))


@given(runs, runs, st.randoms(use_true_random=False))
def test_the_order_of_the_episodes_does_not_matter(
    before: list[Episode], after: list[Episode], rng: Random
) -> None:
    """Two runs may send their alerts in different orders."""
    shuffled = diff(rng.sample(before, len(before)), rng.sample(after, len(after)))
    assert shuffled == diff(before, after)


def test_the_closest_openings_are_paired_first() -> None:
    """Of 0, 10 and 8, 30: 10 and 8 are 2 apart; then 0 and 30 remain, 30 ticks apart."""
    key = KEYS[1]
    before, after = [episode(key, 0), episode(key, 10)], [episode(key, 8), episode(key, 30)]
    found = diff(before, after)
    assert [pair.by_ms // TICK_MS for pair in found.moved] == [8 - 10, 30 - 0]
    assert not found.empty


def test_a_tie_pairs_the_earlier_opening() -> None:
    """10 is 5 ticks from both 5 and 15."""
    found = diff([episode(KEYS[1], 5), episode(KEYS[1], 15)], [episode(KEYS[1], 10)])
    assert pairs(found.moved) == {(episode(KEYS[1], 5).id, episode(KEYS[1], 10).id)}
    assert ids(found.gone) == [episode(KEYS[1], 15).id]


def test_different_keys_are_not_paired() -> None:
    """The same tick with another address: one gone, one appeared."""
    found = diff([episode(KEYS[0], 5)], [episode(KEYS[1], 5)])
    assert (len(found.gone), len(found.appeared), found.moved) == (1, 1, ())


def test_an_unchanged_episode_can_end_differently() -> None:
    """Later, for another reason, or not at all."""
    short, long = episode(KEYS[0], 5, resolved=9), episode(KEYS[0], 5, resolved=12)
    for other in (long, episode(KEYS[0], 5), replace(short, reason="rate")):
        found = diff([short], [other])
        assert found == Diff(unchanged=(other,), ended_otherwise=(Moved(short, other),))
        assert not found.empty


def test_episodes_outside_the_evaluated_range_are_not_gone() -> None:
    """Ticks 10 to 20: openings at 9 and 21 are outside, 10 and 20 gone; one without its opening is outside too."""
    before = [episode(KEYS[0], tick) for tick in (9, 10, 20, 21)]
    unopened = episode(KEYS[1], 1, opened=False)
    found = diff([*before, unopened], [], evaluated=(10 * TICK_MS, 20 * TICK_MS))
    assert (ids(found.gone), found.outside) == (ids(before[1:3]), 3)


def test_a_longer_live_run_does_not_differ() -> None:
    """It resolved at tick 25 what was open at the other run's last tick, 20; resolving at 19 is a difference."""
    still_open = episode(KEYS[0], 12)
    evaluated = (10 * TICK_MS, 20 * TICK_MS)
    assert diff([episode(KEYS[0], 12, resolved=25)], [still_open], evaluated=evaluated).empty
    assert not diff([episode(KEYS[0], 12, resolved=19)], [still_open], evaluated=evaluated).empty
    assert not diff([episode(KEYS[0], 12, resolved=25)], [still_open]).empty


def test_a_flapping_key_is_paired_quickly() -> None:
    """4,320 episodes per side, one tick apart; comparing every pair would take 18 million comparisons."""
    before = [episode(KEYS[0], 2 * number) for number in range(4_320)]
    after = [episode(KEYS[0], 2 * number + 1) for number in range(4_320)]
    found = diff(before, after)
    assert {pair.by_ms for pair in found.moved} == {TICK_MS}
    assert (len(found.moved), found.gone, found.appeared) == (4_320, (), ())
