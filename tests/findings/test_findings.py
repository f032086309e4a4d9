"""Alerts back to episodes, and what differs between the episodes of two runs."""

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
    """The alerts on an event a minute from 00:00 to 00:40, with an hour's window; other records keep time going."""
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
    """The alert with another value at a path, or without it."""
    document = json.loads(body)
    here = document
    for step in path[:-1]:
        here = here[step]
    if to is None:
        del here[path[-1]]
    else:
        here[path[-1]] = to
    return json.dumps(document).encode()


# ------------------------------------------------------------------------------------------------ alerts to episodes


def test_the_alerts_of_a_run_are_one_episode() -> None:
    """Opened with 5 events, renotified every 30 minutes, gone when the last event (00:40) has left the window."""
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
    # 00:00 to 00:04; at 01:35 the window begins at 00:35: 00:35 to 00:40. Both spans round to no hour.
    assert (episode.figures["count_connections"], episode.figures["duration_hours"]) == (5, 0)
    assert episode.last_figures["count_connections"] == 6
    assert episode.thresholds == {
        "min_connections_per_hour": 1,
        "min_duration_hours": 0,
        "max_hosts": 1,
        "max_processes": 1,
    }
    # 8 full panes of 5 minutes and one event more: 8 * 5 + 1 = 41.
    panes = {T0_MS + minute * MINUTE_MS: 5 for minute in range(0, 40, 5)} | {T0_MS + 40 * MINUTE_MS: 1}
    assert episode.panes == panes
    assert episode.message == "chrome.exe on h1 contacted 45.83.64.1 for 0 h at 5 connections an hour"


def test_strict_has_no_sensor_and_a_null_group() -> None:
    """A missing destination.address is null in the key; the IP is still among the details."""
    (episode,) = episodes_of(replayed("strict"))
    assert episode.key == KeyName("r", None, "chrome.exe", None)
    assert (episode.panes, episode.alerts) == (None, 5)


def test_an_output_that_begins_in_the_middle_gives_an_episode_without_opening() -> None:
    """Nobody can know from `updated` when it opened; the figures are those of the first alert there is."""
    (episode,) = episodes_of(ALERTS[1:3])
    assert (episode.opened_ms, episode.first_alert_ms) == (None, T0_MS + 35 * MINUTE_MS)
    # 00:00 to 00:34 at 00:35, 00:05 to 00:40 at 01:05.
    assert (episode.figures["count_connections"], episode.last_figures["count_connections"]) == (35, 36)
    assert (episode.resolved_ms, episode.reason) == (None, None)


def test_only_the_end_is_an_episode_too() -> None:
    """A `resolved` alone: no event was left in the window."""
    (episode,) = episodes_of(ALERTS[-1:], keep_panes=True)
    assert (episode.opened_ms, episode.resolved_ms) == (None, T0_MS + 105 * MINUTE_MS)
    assert (episode.last_figures["count_connections"], episode.panes, episode.host) == (0, {}, None)


@given(st.lists(st.integers(0, len(ALERTS)), max_size=6))
def test_alerts_sent_again_change_nothing(rewinds: list[int]) -> None:
    """At-least-once: the topic goes back to an earlier alert any number of times."""
    gathered, sent = Episodes(keep_panes=True), 0
    for goes_on_until in (*rewinds, len(ALERTS)):
        for body in ALERTS[min(sent, goes_on_until) // 2 : goes_on_until]:
            gathered.take(body)
        sent = max(sent, goes_on_until)
    assert gathered.listed() == episodes_of(ALERTS, keep_panes=True)


def test_a_later_count_of_a_pane_wins() -> None:
    """A late event is in the counts of a later alert: 5 becomes 6."""
    later = changed(ALERTS[1], "streamdetect", "pane_counts", to=[[T0_MS, 6]])
    (episode,) = episodes_of([ALERTS[0], later], keep_panes=True)
    assert episode.panes == {T0_MS: 6}


def test_episodes_are_listed_by_their_first_alert() -> None:
    """Two episodes whose alerts are mixed."""
    other = [changed(body, "streamdetect", "episode_id", to="other") for body in ALERTS]
    other = [changed(body, "event", "id", to=f"other {number}") for number, body in enumerate(other)]
    mixed = [body for pair in zip(other, ALERTS, strict=True) for body in pair]
    assert [episode.alerts for episode in episodes_of(mixed)] == [5, 5]
    assert episodes_of(mixed)[0].id == "other"


def test_what_a_pipeline_adds_is_not_kept() -> None:
    """Elasticsearch puts objects beside the alert's own values; several values of one field stay."""
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
def test_what_is_missing_is_named(path: str) -> None:
    """Everything that an episode is made of; a refused document leaves no trace."""
    gathered = Episodes(keep_panes=True)
    with pytest.raises(
        NotAnAlertError, match=rf"^is not an alert of streamdetect: {path}(\.\w+)? is missing$"
    ):
        gathered.take(changed(ALERTS[0], *path.split(".")))
    assert gathered == Episodes(keep_panes=True)


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
def test_documents_that_are_no_alert(body: bytes | str, problem: str) -> None:
    """Each is refused with what is wrong about it."""
    with pytest.raises(NotAnAlertError, match=problem):
        episodes_of([body], keep_panes=True)


@given(st.integers(-(2**63), 2**63 - 1))
@example(-62_135_596_800_001)  # the last millisecond of year 0, which datetime does not know
@example(253_402_300_800_000)  # the first one of year 10000
def test_times_come_back(ms: int) -> None:
    """Every time that 64 bits of milliseconds can tell, some 292 million years around now."""
    assert parse_iso_ms(iso(ms)) == ms


@pytest.mark.parametrize("text", ["", "now", "2026-13-01T00:00:00Z", "+10000-02-30T00:00:00Z", "٢٠٢٦-03-02"])
def test_texts_that_are_no_time(text: str) -> None:
    """A year with a sign is held to the calendar like any other."""
    with pytest.raises(ValueError, match="is not a time"):
        parse_iso_ms(text)


# ------------------------------------------------------------------------------------------------ two runs compared

TICK_MS = 5 * MINUTE_MS
KEYS = (KeyName("r", None, "a.exe", None), KeyName("r", "192.0.2.1", "a.exe", None))
Places = dict[tuple[KeyName, int], tuple[bool, int | None]]
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


def run_of(places: Places) -> list[Episode]:
    return [episode(key, tick, resolved, opened=opened) for (key, tick), (opened, resolved) in places.items()]


runs = st.dictionaries(
    st.tuples(st.sampled_from(KEYS), st.integers(0, 20)),
    st.tuples(st.integers(0, 4).map(bool), st.sampled_from([None, 30, 40])),
    max_size=16,
).map(run_of)


def ids(episodes: Iterable[Episode]) -> list[str]:
    return [each.id for each in episodes]


def pairs(moved: Iterable[Moved]) -> set[tuple[str, str]]:
    return {(pair.before.id, pair.after.id) for pair in moved}


def slowly_moved(before: Sequence[Episode], after: Sequence[Episode]) -> Iterator[Moved]:
    """Of all pairs, take the nearest whose two are both still there, again and again."""
    both = {each.id for each in before} & {each.id for each in after}
    one_side = [each for each in before if each.opened_ms is not None and each.id not in both]
    other_side = [each for each in after if each.opened_ms is not None and each.id not in both]
    left = [Moved(one, other) for one in one_side for other in other_side if one.key == other.key]
    while left:
        nearest = min(left, key=lambda pair: (abs(pair.by_ms), earlier_ms(pair)))
        yield nearest
        left = [
            pair for pair in left if pair.before is not nearest.before and pair.after is not nearest.after
        ]


def earlier_ms(pair: Moved) -> int:
    return min(pair.before.opened_ms or 0, pair.after.opened_ms or 0)


@given(runs, runs)
def test_pairs_are_those_of_the_slow_search(before: list[Episode], after: list[Episode]) -> None:
    """The oracle compares every pair."""
    assert pairs(diff(before, after).moved) == pairs(slowly_moved(before, after))


@given(runs, runs, st.none() | st.tuples(st.integers(0, 10), st.integers(8, 20)))
def test_every_episode_is_in_one_place(
    before: list[Episode], after: list[Episode], ticks: tuple[int, int] | None
) -> None:
    """Both sides are divided without rest, whatever was evaluated."""
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
def test_the_other_way_round_it_is_the_same_difference(before: list[Episode], after: list[Episode]) -> None:
    """What appeared is gone, what moved moved back."""
    there, back = diff(before, after), diff(after, before)
    assert (ids(there.appeared), ids(there.gone)) == (ids(back.gone), ids(back.appeared))
    assert pairs(there.moved) == {(after_id, before_id) for before_id, after_id in pairs(back.moved)}
    assert pairs(there.ended_otherwise) == pairs(back.ended_otherwise)
    assert set(ids(there.unchanged)) == set(ids(back.unchanged))


@given(runs, st.randoms(use_true_random=False))
def test_a_run_does_not_differ_from_itself(run: list[Episode], rng: Random) -> None:
    """In any order; what is unchanged is listed by opening, then key."""
    found = diff(run, rng.sample(run, len(run)))
    assert found.empty
    assert sorted(ids(found.unchanged)) == sorted(ids(run))
    opened = [each for each in found.unchanged if each.opened_ms is not None]
    assert opened == sorted(opened, key=lambda each: (each.opened_ms, each.key.order()))


@given(runs, runs, st.randoms(use_true_random=False))
def test_the_order_of_the_episodes_makes_no_difference(
    before: list[Episode], after: list[Episode], rng: Random
) -> None:
    """Two runs may have sent their alerts in different orders."""
    shuffled = diff(rng.sample(before, len(before)), rng.sample(after, len(after)))
    assert shuffled == diff(before, after)


def test_the_nearest_openings_are_paired_first() -> None:
    """Of 0, 10 against 8, 30: 10 and 8 are 2 apart; then 0 and 30 are left, 30 ticks apart."""
    key = KEYS[1]
    before, after = [episode(key, 0), episode(key, 10)], [episode(key, 8), episode(key, 30)]
    found = diff(before, after)
    assert [pair.by_ms // TICK_MS for pair in found.moved] == [8 - 10, 30 - 0]
    assert not found.empty


def test_of_two_as_near_the_earlier_is_paired() -> None:
    """10 lies 5 ticks from 5 and from 15."""
    found = diff([episode(KEYS[1], 5), episode(KEYS[1], 15)], [episode(KEYS[1], 10)])
    assert pairs(found.moved) == {(episode(KEYS[1], 5).id, episode(KEYS[1], 10).id)}
    assert ids(found.gone) == [episode(KEYS[1], 15).id]


def test_other_keys_are_no_pair() -> None:
    """The same tick, another address: one is gone, the other appeared."""
    found = diff([episode(KEYS[0], 5)], [episode(KEYS[1], 5)])
    assert (len(found.gone), len(found.appeared), found.moved) == (1, 1, ())


def test_the_same_episode_may_end_otherwise() -> None:
    """Later, or for another reason, or not at all."""
    short, long = episode(KEYS[0], 5, resolved=9), episode(KEYS[0], 5, resolved=12)
    for other in (long, episode(KEYS[0], 5), replace(short, reason="rate")):
        found = diff([short], [other])
        assert found == Diff(unchanged=(other,), ended_otherwise=(Moved(short, other),))
        assert not found.empty


def test_what_the_other_run_did_not_evaluate_is_not_gone() -> None:
    """Ticks 10 to 20: openings at 9 and 21 are outside, those at 10 and 20 are gone; one cut off is outside, too."""
    before = [episode(KEYS[0], tick) for tick in (9, 10, 20, 21)]
    cut_off = episode(KEYS[1], 1, opened=False)
    found = diff([*before, cut_off], [], evaluated=(10 * TICK_MS, 20 * TICK_MS))
    assert (ids(found.gone), found.outside) == (ids(before[1:3]), 3)


def test_a_live_run_that_went_on_for_longer_does_not_differ() -> None:
    """It resolved at tick 25 what was open at the last tick of the other run, 20; but 19 is a difference."""
    open_still = episode(KEYS[0], 12)
    evaluated = (10 * TICK_MS, 20 * TICK_MS)
    assert diff([episode(KEYS[0], 12, resolved=25)], [open_still], evaluated=evaluated).empty
    assert not diff([episode(KEYS[0], 12, resolved=19)], [open_still], evaluated=evaluated).empty
    assert not diff([episode(KEYS[0], 12, resolved=25)], [open_still]).empty


def test_a_key_that_flaps_for_a_month_is_paired_at_once() -> None:
    """4,320 episodes on each side, one tick apart: every pair would be 18 million comparisons."""
    before = [episode(KEYS[0], 2 * turn) for turn in range(4_320)]
    after = [episode(KEYS[0], 2 * turn + 1) for turn in range(4_320)]
    found = diff(before, after)
    assert {pair.by_ms for pair in found.moved} == {TICK_MS}
    assert (len(found.moved), found.gone, found.appeared) == (4_320, (), ())
