"""`explain`: the timeline of a key against the oracle at every tick, against alerts, and as printed output."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from product import event, settings_from
from program import call
from rich.console import Console

import oracle
from strategies import DataSet, data_sets
from streamdetect.cli.explain import explanation_text
from streamdetect.config import Settings
from streamdetect.detect import Rule
from streamdetect.detect.alerts import Key, iso
from streamdetect.detect.conditions import NO_EVENTS, Figures, failed_condition
from streamdetect.detect.near_misses import MOST_SEEN, Point, reason_changes
from streamdetect.detect.windows import leaves_ms
from streamdetect.findings.episodes import episodes_of
from streamdetect.findings.timeline import MOST_ROWS, Timeline, changes, table_of
from streamdetect.model import Partition
from streamdetect.report.html import key_page
from streamdetect.report.words import moment
from streamdetect.report.words import number as shown_number
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.inspect.explain import ExplainQuery, Explanation, explain_source
from streamdetect.testing import MemoryAlertSink, MemoryDeadLetterSink, MemorySource

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
TICK_MS = 300_000
HOUR_MS = 3_600_000
SOME = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def source_of(partitions: list[list[Any]]) -> MemorySource:
    """The records of a data set as a bounded source, in small batches."""
    source = MemorySource([Partition(f"file-{number}") for number in range(len(partitions))], 7)
    for number, records in enumerate(partitions):
        raw = [item if isinstance(item, str) else json.dumps(item) for item in records]
        source.add(Partition(f"file-{number}"), *(item.encode() for item in raw))
    return source


def explanation_of(
    partitions: list[list[Any]], config: Settings, address: str | None, process: str
) -> Explanation:
    query = ExplainQuery("null" if address is None else address, process)
    return explain_source(settings=config, source=source_of(partitions), query=query)


def replayed(partitions: list[list[Any]], config: Settings) -> list[bytes]:
    alerts, dead_letters = MemoryAlertSink(), MemoryDeadLetterSink()
    run_replay(
        settings=config, source=source_of(partitions), alert_sink=alerts, dead_letter_sink=dead_letters
    )
    return [alert.body for alert in alerts.alerts]


class Oracle:
    """Figures at any tick, from the events of tests/support/oracle.py."""

    def __init__(self, data: DataSet) -> None:
        self.replay = oracle.Replay(data.settings, "0")
        for records in data.partitions:
            self.replay.read_partition(records)
        clocks = [clock.newest for clock in self.replay.clocks if clock.newest is not None]
        self.interval_ms = data.settings["interval_ms"]
        self.last_ms = oracle.first_tick_after(max(clocks), self.interval_ms)
        self.lookback_ms = data.settings["lookback_ms"]

    def keys(self) -> set[tuple[str | None, str]]:
        """(address, process name) of every key in the data."""
        return {(key.address, key.process) for item in self.replay.events for key in item.keys}

    def figures(self, tick_ms: int, rule: int, key: Key) -> oracle.Figures:
        place = oracle.Key(*key)
        window = [
            item
            for item in self.replay.events
            if rule in item.rules and place in item.keys and oracle.in_window(item, tick_ms, self.lookback_ms)
        ]
        return oracle.figures_of(window)


def capped(figures: oracle.Figures, timeline: Timeline) -> Figures:
    """The oracle's figures, with distinct hosts and processes capped as in a timeline."""
    limits = timeline.rule.limits
    return Figures(
        figures.count,
        figures.first,
        figures.last,
        min(figures.hosts, max(MOST_SEEN, limits.max_hosts) + 1),
        min(figures.entities, max(MOST_SEEN, limits.max_processes) + 1),
    )


@SOME
@given(data_sets(), st.integers(0, 99))
def test_a_timeline_is_right_at_every_tick(data: DataSet, choice: int) -> None:
    """Figures and verdict equal the oracle's, also between points and after the key's last event."""
    reference = Oracle(data)
    keys = sorted(reference.keys(), key=repr)
    if not keys:
        return
    address, process = keys[choice % len(keys)]
    config = settings_from(data.settings)
    ids = [rule.id for rule in config.rules]
    found = explanation_of(data.partitions, config, address, process)
    for item in found.keys:
        timeline = item.timeline
        assert timeline.last_ms == reference.last_ms
        begin_ms = timeline.points[0].tick_ms - 3 * reference.interval_ms
        for tick_ms in range(begin_ms, reference.last_ms + 1, reference.interval_ms):
            rule = ids.index(timeline.rule.id)
            expected = reference.figures(tick_ms, rule, timeline.key)
            figures = timeline.figures_at(tick_ms)
            assert figures == capped(expected, timeline), iso(tick_ms)
            failed = oracle.failed_condition(expected, data.settings["rules"][rule])
            assert failed_condition(figures, timeline.rule.limits) == failed
            last = [point for point in timeline.points if point.tick_ms <= tick_ms]
            assert not last or last[-1].failed == failed


@SOME
@given(data_sets())
def test_a_timeline_matches_the_alerts_of_a_replay(data: DataSet) -> None:
    """For each key that alerted: true from each `opened`, false from each `resolved`, and no other change."""
    config = settings_from(data.settings)
    episodes = episodes_of(replayed(data.partitions, config))
    for address, process in {(item.key.address, item.key.process) for item in episodes}:
        found = explanation_of(data.partitions, config, address, process)
        timelines = {(item.timeline.rule.id, *item.timeline.key): item for item in found.keys}
        key_episodes = [
            item for item in episodes if (item.key.address, item.key.process) == (address, process)
        ]
        assert {tuple(item.key) for item in key_episodes} <= timelines.keys()
        for name, item in timelines.items():
            own_episodes = [episode for episode in key_episodes if tuple(episode.key) == name]
            change_ticks = [point.tick_ms for point in changes(item.timeline.points)]
            if item.timeline.points[0].failed is not None:
                change_ticks = change_ticks[1:]
            expected = [(item.opened_ms, item.resolved_ms) for item in own_episodes]
            assert change_ticks == sorted(ms for pair in expected for ms in pair if ms is not None)
            assert item.table is not None
            check_rows(item.timeline, item.table.rows)
            rows_true = [(row.tick_ms, row.verdict == "true") for row in item.table.rows]
            row_changes = [tick_ms for (_, before), (tick_ms, now) in pairwise(rows_true) if before != now]
            assert row_changes == [ms for ms in change_ticks if ms != item.timeline.points[0].tick_ms]
        check_page(found, config)


def check_rows(timeline: Timeline, rows: Any) -> None:
    """Not too many, in order, each with its arithmetic and every failed condition."""
    limits = timeline.rule.limits
    assert len(rows) <= MOST_ROWS
    assert [row.tick_ms for row in rows] == sorted({row.tick_ms for row in rows})
    for row in rows:
        figures = row.figures
        assert figures == timeline.figures_at(row.tick_ms)
        rate = figures.events // max(1, figures.duration_hours)
        assert figures.connections_per_hour == rate
        assert (row.verdict == "true") == (failed_condition(figures, limits) is None)
        if not figures.events:
            assert row.verdict == "no event"
            continue
        assert (f"rate {rate} of" in row.verdict) == (rate < limits.min_connections_per_hour)
        assert ("span" in row.verdict) == (figures.duration_hours < limits.min_duration_hours)
        assert ("hosts" in row.verdict) == (not 1 <= figures.hosts <= limits.max_hosts)
        assert ("processes" in row.verdict) == (not 1 <= figures.processes <= limits.max_processes)


class Text(HTMLParser):
    """The text of a page, in pieces between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.pieces.append(" ".join(data.split()))


def check_page(found: Explanation, config: Settings) -> None:
    """The page has every change of verdict, the events of every pane and the arithmetic at the closest tick."""
    pieces = Counter(Text(key_page(found.title, found.tracked, config.time.interval_ms)).pieces)
    for item, tracked_key in zip(found.keys, found.tracked, strict=True):
        for point in reason_changes(item.timeline.points):
            assert pieces[moment(point.tick_ms)]
            assert pieces["true" if point.failed is None else f"false: {point.failed}"]
        for events in tracked_key.panes.values():
            assert pieces[shown_number(events)]
        figures = item.timeline.figures_at(tracked_key.closest.tick_ms)
        hours = max(1, figures.duration_hours)
        assert any(
            text.startswith(
                f"{shown_number(figures.events)} connections // {shown_number(hours)} h = "
                f"{shown_number(figures.events // hours)} an hour, at least"
            )
            for text in pieces
        )


POINTS = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 5, 40, 3_000, 10**9]), st.sampled_from([0, 1, 9, 12])),
    min_size=1,
    max_size=300,
)


@settings(max_examples=200, deadline=None)
@given(POINTS, st.integers(0, 5_000), st.integers(-5, 6_000))
@example([(1, count) for count in [9, 12] * 100], 0, 0)
@example([(1, 9), (10**9, 0)] * 30, 0, 0)
def test_a_timeline_fits_on_a_screen(steps: list[tuple[int, int]], more: int, at: int) -> None:
    """At most 40 rows, however long a timeline is or however often it changes.

    They run from the first tick to the last and include the latest changes of verdict; between these, every `stride`
    ticks while there are events.
    """
    config = Settings.model_validate(
        {"rules": [{"name": "a", "min_connections_per_hour": 10, "min_duration_hours": 0}]}
    )
    rule = Rule(config.rules[0], config)
    points: list[Point] = []
    tick_ms = START_MS
    for ticks, events in steps:
        tick_ms += ticks * TICK_MS
        figures = Figures(events, tick_ms - 2, tick_ms - 1, 1, 1) if events else NO_EVENTS
        points.append(Point(tick_ms, figures, failed_condition(figures, rule.limits)))
    timeline = Timeline(rule, Key("45.83.64.1", "chrome.exe", None), points, {}, tick_ms + more * TICK_MS)
    at_ms = START_MS + at * TICK_MS
    found = table_of(timeline, at_ms)
    assert found is not None
    check_rows(timeline, found.rows)
    shown = [row.tick_ms for row in found.rows]
    end_ms = timeline.last_ms if points[-1].figures.events else points[-1].tick_ms
    assert (shown[0], shown[-1]) == (points[0].tick_ms, end_ms)
    assert found.ticks == (end_ms - shown[0]) // TICK_MS + 1
    assert (at_ms in shown) or not shown[0] <= at_ms <= end_ms
    change_ticks = [point.tick_ms for point in changes(points)]
    assert set(change_ticks[found.left_out :]) <= set(shown)
    assert found.left_out == 0 or len(shown) >= MOST_ROWS * 3 // 4
    width_ms = found.stride * TICK_MS
    for tick_ms, next_ms in pairwise(shown):
        between = range(tick_ms + width_ms - tick_ms % width_ms, next_ms, width_ms)
        assert all(timeline.figures_at(ms).events == 0 for ms in between[:50])


# -- through the real command


EXPLAIN = ("explain", "--destination", "45.83.64.1", "--process", "chrome.exe")


@pytest.fixture
def beacon(tmp_path: Path) -> str:
    """Five hours, an event every 20 s: 180 an hour. After four hours, one event is from a second host."""
    records = [event(START_MS + number * 20_000) for number in range(5 * 180)]
    records[4 * 180] = event(START_MS + 4 * HOUR_MS, host={"id": "h2", "os": {"family": "windows"}})
    path = tmp_path / "beacon.jsonl"
    path.write_bytes(b"\n".join(records))
    return str(path)


def test_the_table_of_a_beacon(beacon: str) -> None:
    """Each row has its arithmetic and either `true` or the failed conditions with their distance."""
    result = call(*EXPLAIN, beacon)
    assert (result.code, result.err) == (0, "")
    above, _, table = result.out.partition("\n\nTimeline, ")
    assert "FAILS  2 hosts (allowed: 1)" in above
    # From the tick 00:05 to that of 05:00: 60 ticks in at most 40 rows means every second one, at 10, 20, ... minutes.
    # Those are 30; the first tick and the changes at 03:35 and 04:05 are added.
    assert table.startswith("33 of 60 ticks: every 2 ticks (10 min), and where the verdict changed:\n")
    rows = {line.split()[1]: " ".join(line.split()[2:]) for line in table.splitlines()[2:]}
    assert len(rows) == 33
    # 00:00 to 00:05, every 20 s: 15 events, none of them at 00:05.
    assert rows["00:05"] == "15 0 15 1 1 rate 15 of 120; span 0.0 of 3.5 h"
    # At 03:30 the last event is that of 03:29:40, 20 s short of 4 hours. 630 // 3 = 210.
    assert rows["03:30"] == "630 3 210 1 1 span 3.4 of 3.5 h"
    assert rows["03:35"] == "645 4 161 1 1 true"
    assert rows["04:00"] == "720 4 180 1 1 true"
    assert rows["04:05"] == "735 4 183 2 1 hosts 2 of 1"
    assert rows["05:00"] == "900 5 180 2 1 hosts 2 of 1"


def test_many_hosts_are_counted_up_to_a_limit(tmp_path: Path) -> None:
    """Nine hosts are counted exactly; more are reported as at least ten."""
    path = tmp_path / "many.jsonl"
    for hosts, expected in ((9, "9 hosts (allowed: 1)"), (30, "at least 10 hosts (allowed: 1)")):
        records = [
            event(START_MS + number, host={"id": f"h{number % hosts}", "os": {"family": "windows"}})
            for number in range(60)
        ]
        path.write_bytes(b"\n".join(records))
        text = call(*EXPLAIN, str(path)).out
        assert f"FAILS  {expected}" in text
        assert f"hosts {expected.partition(' hosts')[0]} of 1" in text
        assert (" 10+ " in text) == (hosts == 30)


def test_late_events_are_reported_separately(tmp_path: Path) -> None:
    """An event behind its partition's watermark counts from a later tick; at the earlier one it was too late."""
    path = tmp_path / "late.jsonl"
    minutes = (1, 2, 12, 3)  # at 00:12 the watermark is 00:10, so 00:03 counts from 00:15
    path.write_bytes(b"\n".join(event(START_MS + minute * 60_000) for minute in minutes))
    early = call(*EXPLAIN, "--at", "2026-03-02T00:05:00Z", str(path)).out
    assert "2 connections // 1 h = 2 an hour" in early
    assert "events per pane of 300 s: 00:00=3 (1 of them arrived too late for this tick)" in early
    later = call(*EXPLAIN, "--at", "2026-03-02T00:15:00Z", str(path)).out
    assert "4 connections // 1 h = 4 an hour" in later
    assert "events per pane of 300 s: 00:00=3 00:10=1\n" in later


def test_the_table_on_a_terminal() -> None:
    """Drawn with lines, within the terminal's width."""
    config = Settings()
    records = [json.loads(event(START_MS + number * 20_000)) for number in range(5 * 180)]
    found = explanation_of([records], config, "45.83.64.1", "chrome.exe")
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    text = explanation_text(found, config.time.interval_ms, console)
    assert "what fails" in text
    assert "│ 2026-03-02 03:35 │    645 │     4 │  161 │     1 │     1 │ true " in text
    assert max(len(line) for line in text.partition("Timeline")[2].splitlines()) <= 80


def test_the_report_is_written(beacon: str, tmp_path: Path) -> None:
    """One page with the plots and the same numbers; the text output is unchanged, also for standard input."""
    path = tmp_path / "key.html"
    result = call(*EXPLAIN, "--report", str(path), beacon)
    assert result == call(*EXPLAIN, beacon)
    page = path.read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 4  # panes, connections an hour, hours, time from event to event
    pieces = Text(page).pieces
    assert "chrome.exe to 45.83.64.1" in pieces
    # All true ticks are equally close, so the first of them is shown.
    assert any("645 connections // 4 h = 161 an hour, at least 120" in piece for piece in pieces)
    for tick, verdict in (("03:35", "true"), ("04:05", "false: second_host")):
        assert f"2026-03-02 {tick}" in pieces
        assert verdict in pieces
    second_page = tmp_path / "again.html"
    assert call(*EXPLAIN, "--report", str(second_page), "-", stdin=Path(beacon).read_bytes()) == result
    assert second_page.read_text() == page


def test_a_report_of_nothing(beacon: str, tmp_path: Path) -> None:
    """The page, too, reports an unknown key."""
    path = tmp_path / "key.html"
    result = call(
        "explain", "--destination", "192.0.2.77", "--process", "chrome.exe", "--report", str(path), beacon
    )
    assert (result.code, result.err) == (0, "")
    assert "Timeline" not in result.out
    assert "No key was tracked." in Text(path.read_text()).pieces


def test_usage_errors(beacon: str, tmp_path: Path) -> None:
    """A checkpoint has no timeline to plot, and an input is never overwritten."""
    result = call(*EXPLAIN, "--checkpoint", str(tmp_path), "--report", str(tmp_path / "key.html"))
    assert (result.code, result.out) == (2, "")
    assert "--report needs PATHs" in result.err
    before = Path(beacon).read_bytes()
    result = call(*EXPLAIN, "--report", beacon, beacon)
    assert (result.code, result.out) == (2, "")
    assert "is an input and would be overwritten" in result.err
    assert Path(beacon).read_bytes() == before


@pytest.mark.parametrize("path", ["none/key.html", "/dev/full"])
def test_a_report_that_cannot_be_written_is_8(beacon: str, tmp_path: Path, path: str) -> None:
    """As for every other output."""
    path_text = str(tmp_path / path)  # an absolute path replaces tmp_path
    result = call(*EXPLAIN, "--report", path_text, beacon)
    assert (result.code, result.out) == (8, "")
    assert path_text in result.err
    assert "Traceback" not in result.err


def test_a_timeline_ends_where_the_key_was_evicted(tmp_path: Path) -> None:
    """After limits.max_keys evicts a key, its later state is unknown: the output says so and shows nothing later."""
    others = [
        event(START_MS + 2 * TICK_MS + number, destination={"ip": f"9.9.9.{number}", "port": 443})
        for number in range(20)
    ]
    path = tmp_path / "many.jsonl"
    path.write_bytes(b"\n".join([event(START_MS), *others, event(START_MS + 4 * TICK_MS)]))
    page = tmp_path / "key.html"
    result = call(*EXPLAIN, "--set", "limits.max_keys=3", "--report", str(page), str(path))
    assert result.code == 0
    assert "limits.max_keys was exceeded" in page.read_text()
    assert "limits.max_keys was exceeded and " in result.out
    assert "evaluated at 2026-03-02T00:05:00.000Z" in result.out
    late = call(*EXPLAIN, "--set", "limits.max_keys=3", "--at", "2026-03-02T00:25:00Z", str(path))
    assert late.code == 2
    assert "the last tick at which this key was tracked is 2026-03-02T00:05:00.000Z" in late.err


def test_a_timeline_covers_an_hour_of_silence() -> None:
    """A key that expires and returns: false from exactly the tick at which its last event leaves."""
    config = Settings.model_validate({"time": {"lookback": "10m"}, "rules": [{"name": "a"}]})
    records = [json.loads(event(START_MS + minute * 60_000)) for minute in (1, 61)]
    (item,) = explanation_of([records], config, "45.83.64.1", "chrome.exe").keys
    first_ms = START_MS + 60_000
    assert [(point.tick_ms, point.figures.events) for point in item.timeline.points] == [
        (START_MS + TICK_MS, 1),
        (leaves_ms(first_ms, item.timeline.rule.limits), 0),
        (START_MS + HOUR_MS + TICK_MS, 1),
    ]


def test_truncated_input_is_10(tmp_path: Path) -> None:
    """No explanation of an incomplete file; the same exit code as for replay."""
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b"{}\n" * 100_000)[:-20])
    result = call(*EXPLAIN, str(broken))
    assert result.code == 10
    assert result.out == ""
