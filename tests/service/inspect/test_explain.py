"""`explain`: the course of one key against a slow computation at every tick, against alerts, and as users see it."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from product import event, settings_from
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
from tools import environment

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
TICK_MS = 300_000
HOUR_MS = 3_600_000
SOME = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def source_of(partitions: list[list[Any]]) -> MemorySource:
    """The records of a data set as a bounded source, in small batches."""
    source = MemorySource([Partition(f"file-{number}") for number in range(len(partitions))], 7)
    for number, records in enumerate(partitions):
        raw = [one if isinstance(one, str) else json.dumps(one) for one in records]
        source.add(Partition(f"file-{number}"), *(one.encode() for one in raw))
    return source


def explained(partitions: list[list[Any]], own: Settings, address: str | None, process: str) -> Explanation:
    asked = ExplainQuery("null" if address is None else address, process)
    return explain_source(settings=own, source=source_of(partitions), query=asked)


def replayed(partitions: list[list[Any]], own: Settings) -> list[bytes]:
    alerts, dead_letters = MemoryAlertSink(), MemoryDeadLetterSink()
    run_replay(settings=own, source=source_of(partitions), alert_sink=alerts, dead_letter_sink=dead_letters)
    return [alert.body for alert in alerts.alerts]


class Slow:
    """Every figure at every tick, from the events of tests/oracle.py."""

    def __init__(self, data: DataSet) -> None:
        self.replay = oracle.Replay(data.settings, "0")
        for records in data.partitions:
            self.replay.read_partition(records)
        clocks = [clock.newest for clock in self.replay.clocks if clock.newest is not None]
        self.interval_ms = data.settings["interval_ms"]
        self.last_ms = oracle.first_tick_after(max(clocks), self.interval_ms)
        self.lookback_ms = data.settings["lookback_ms"]

    def keys(self) -> set[tuple[str | None, str]]:
        """What may be asked for."""
        return {(key.address, key.process) for one in self.replay.events for key in one.keys}

    def figures(self, tick_ms: int, rule: int, key: Key) -> oracle.Figures:
        place = oracle.Key(*key)
        window = [
            one
            for one in self.replay.events
            if rule in one.rules and place in one.keys and oracle.in_window(one, tick_ms, self.lookback_ms)
        ]
        return oracle.figures_of(window)


def as_told(slow: oracle.Figures, course: Timeline) -> Figures:
    """The slow figures, with no more hosts and processes than are told apart."""
    limits = course.rule.limits
    return Figures(
        slow.count,
        slow.first,
        slow.last,
        min(slow.hosts, max(MOST_SEEN, limits.max_hosts) + 1),
        min(slow.entities, max(MOST_SEEN, limits.max_processes) + 1),
    )


@SOME
@given(data_sets(), st.integers(0, 99))
def test_a_course_is_right_at_every_tick(data: DataSet, choice: int) -> None:
    """Figures and verdict of a key are those of the slow computation, also between points and behind its last event."""
    slow = Slow(data)
    keys = sorted(slow.keys(), key=repr)
    if not keys:
        return
    address, process = keys[choice % len(keys)]
    own = settings_from(data.settings)
    ids = [rule.id for rule in own.rules]
    found = explained(data.partitions, own, address, process)
    for one in found.keys:
        course = one.timeline
        assert course.last_ms == slow.last_ms
        begin_ms = course.points[0].tick_ms - 3 * slow.interval_ms
        for tick_ms in range(begin_ms, slow.last_ms + 1, slow.interval_ms):
            rule = ids.index(course.rule.id)
            expected = slow.figures(tick_ms, rule, course.key)
            figures = course.figures_at(tick_ms)
            assert figures == as_told(expected, course), iso(tick_ms)
            failed = oracle.failed_condition(expected, data.settings["rules"][rule])
            assert failed_condition(figures, course.rule.limits) == failed
            last = [point for point in course.points if point.tick_ms <= tick_ms]
            assert not last or last[-1].failed == failed


@SOME
@given(data_sets())
def test_a_timeline_tells_the_alerts_of_a_replay(data: DataSet) -> None:
    """For each key that ever alerted: true from each `opened` on, false from each `resolved` on, at no other tick."""
    own = settings_from(data.settings)
    episodes = episodes_of(replayed(data.partitions, own))
    for address, process in {(one.key.address, one.key.process) for one in episodes}:
        found = explained(data.partitions, own, address, process)
        told = {(one.timeline.rule.id, *one.timeline.key): one for one in found.keys}
        mine = [one for one in episodes if (one.key.address, one.key.process) == (address, process)]
        assert {tuple(one.key) for one in mine} <= told.keys()
        for name, one in told.items():
            own_episodes = [episode for episode in mine if tuple(episode.key) == name]
            turns = [point.tick_ms for point in changes(one.timeline.points)]
            if one.timeline.points[0].failed is not None:
                turns = turns[1:]
            expected = [(one.opened_ms, one.resolved_ms) for one in own_episodes]
            assert turns == sorted(ms for pair in expected for ms in pair if ms is not None)
            assert one.table is not None
            check_rows(one.timeline, one.table.rows)
            rows_true = [(row.tick_ms, row.verdict == "true") for row in one.table.rows]
            turned = [tick_ms for (_, before), (tick_ms, now) in pairwise(rows_true) if before != now]
            assert turned == [ms for ms in turns if ms != one.timeline.points[0].tick_ms]
        check_page(found, own)


def check_rows(course: Timeline, rows: Any) -> None:
    """Few, in order, each with its arithmetic and all that fails."""
    limits = course.rule.limits
    assert len(rows) <= MOST_ROWS
    assert [row.tick_ms for row in rows] == sorted({row.tick_ms for row in rows})
    for row in rows:
        figures = row.figures
        assert figures == course.figures_at(row.tick_ms)
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
    """The text of a page, without its tags, in pieces."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.pieces.append(" ".join(data.split()))


def check_page(found: Explanation, own: Settings) -> None:
    """Every change of verdict, the events of every pane and the arithmetic at the nearest tick stand there."""
    pieces = Counter(Text(key_page(found.title, found.tracked, own.time.interval_ms)).pieces)
    for one, track in zip(found.keys, found.tracked, strict=True):
        for point in reason_changes(one.timeline.points):
            assert pieces[moment(point.tick_ms)]
            assert pieces["true" if point.failed is None else f"false: {point.failed}"]
        for events in track.panes.values():
            assert pieces[shown_number(events)]
        figures = one.timeline.figures_at(track.closest.tick_ms)
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
    """At most 40 rows, however long or nervous a course is.

    They go from its first tick to its last; the latest changes of verdict are among them, and between these every
    so many ticks while there are events.
    """
    own = Settings.model_validate(
        {"rules": [{"name": "a", "min_connections_per_hour": 10, "min_duration_hours": 0}]}
    )
    rule = Rule(own.rules[0], own)
    points: list[Point] = []
    tick_ms = START_MS
    for ticks, events in steps:
        tick_ms += ticks * TICK_MS
        figures = Figures(events, tick_ms - 2, tick_ms - 1, 1, 1) if events else NO_EVENTS
        points.append(Point(tick_ms, figures, failed_condition(figures, rule.limits)))
    course = Timeline(rule, Key("45.83.64.1", "chrome.exe", None), points, {}, tick_ms + more * TICK_MS)
    at_ms = START_MS + at * TICK_MS
    found = table_of(course, at_ms)
    assert found is not None
    check_rows(course, found.rows)
    shown = [row.tick_ms for row in found.rows]
    end_ms = course.last_ms if points[-1].figures.events else points[-1].tick_ms
    assert (shown[0], shown[-1]) == (points[0].tick_ms, end_ms)
    assert found.ticks == (end_ms - shown[0]) // TICK_MS + 1
    assert (at_ms in shown) or not shown[0] <= at_ms <= end_ms
    turns = [point.tick_ms for point in changes(points)]
    assert set(turns[found.left_out :]) <= set(shown)
    assert found.left_out == 0 or len(shown) >= MOST_ROWS * 3 // 4
    width_ms = found.stride * TICK_MS
    for tick_ms, next_ms in pairwise(shown):
        between = range(tick_ms + width_ms - tick_ms % width_ms, next_ms, width_ms)
        assert all(course.figures_at(ms).events == 0 for ms in between[:50])


# -- through the real command


class Outcome(NamedTuple):
    """How a process ended and what it wrote."""

    code: int
    out: str
    err: str


def call(*arguments: str, stdin: bytes = b"") -> Outcome:
    """Run the program as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "streamdetect", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
        env=environment(),
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


ASK = ("explain", "--destination", "45.83.64.1", "--process", "chrome.exe")


@pytest.fixture
def beacon(tmp_path: Path) -> str:
    """Five hours, an event every 20 s: 180 an hour. A second host joins for one event after four hours."""
    records = [event(START_MS + number * 20_000) for number in range(5 * 180)]
    records[4 * 180] = event(START_MS + 4 * HOUR_MS, host={"id": "h2", "os": {"family": "windows"}})
    path = tmp_path / "beacon.jsonl"
    path.write_bytes(b"\n".join(records))
    return str(path)


def test_the_table_of_a_beacon(beacon: str) -> None:
    """Each row with its arithmetic: what fails, by how much, and true while nothing does."""
    told = call(*ASK, beacon)
    assert (told.code, told.err) == (0, "")
    above, _, table = told.out.partition("\n\nTimeline, ")
    assert "FAILS  2 hosts (allowed: 1)" in above
    # From the tick 00:05 to that of 05:00: 60 ticks in at most 40 rows is every second one, at 10, 20, ... minutes:
    # 30 of them, with the first one, and the changes at 03:35 and 04:05.
    assert table.startswith("33 of 60 ticks: every 2 ticks (10 min), and where the verdict changed:\n")
    rows = {line.split()[1]: " ".join(line.split()[2:]) for line in table.splitlines()[2:]}
    assert len(rows) == 33
    # 00:00 to 00:05, every 20 s: 15 events, none of them at 00:05.
    assert rows["00:05"] == "15 0 15 1 1 rate 15 of 120; span 0.0 of 3.5 h"
    # At 03:30 the last event is that of 03:29:40: 20 s too few for 4 hours. 630 // 3 = 210.
    assert rows["03:30"] == "630 3 210 1 1 span 3.4 of 3.5 h"
    assert rows["03:35"] == "645 4 161 1 1 true"
    assert rows["04:00"] == "720 4 180 1 1 true"
    assert rows["04:05"] == "735 4 183 2 1 hosts 2 of 1"
    assert rows["05:00"] == "900 5 180 2 1 hosts 2 of 1"


def test_many_hosts_are_counted_as_far_as_they_are_told_apart(tmp_path: Path) -> None:
    """Nine are a number; of more it is known that they are at least ten."""
    path = tmp_path / "many.jsonl"
    for hosts, told in ((9, "9 hosts (allowed: 1)"), (30, "at least 10 hosts (allowed: 1)")):
        records = [
            event(START_MS + number, host={"id": f"h{number % hosts}", "os": {"family": "windows"}})
            for number in range(60)
        ]
        path.write_bytes(b"\n".join(records))
        text = call(*ASK, str(path)).out
        assert f"FAILS  {told}" in text
        assert f"hosts {told.partition(' hosts')[0]} of 1" in text
        assert (" 10+ " in text) == (hosts == 30)


def test_late_events_are_told_apart(tmp_path: Path) -> None:
    """An event that its partition had passed counts from a later tick on: at the earlier one it came too late."""
    path = tmp_path / "late.jsonl"
    minutes = (1, 2, 12, 3)  # at 00:12 the watermark is 00:10, so 00:03 counts from 00:15 on
    path.write_bytes(b"\n".join(event(START_MS + minute * 60_000) for minute in minutes))
    early = call(*ASK, "--at", "2026-03-02T00:05:00Z", str(path)).out
    assert "2 connections // 1 h = 2 an hour" in early
    assert "events per pane of 300 s: 00:00=3 (1 of them arrived too late for this tick)" in early
    later = call(*ASK, "--at", "2026-03-02T00:15:00Z", str(path)).out
    assert "4 connections // 1 h = 4 an hour" in later
    assert "events per pane of 300 s: 00:00=3 00:10=1\n" in later


def test_the_table_is_drawn_on_a_terminal() -> None:
    """With lines where there is a terminal, in its width, and never more rows than fit."""
    own = Settings()
    records = [json.loads(event(START_MS + number * 20_000)) for number in range(5 * 180)]
    found = explained([records], own, "45.83.64.1", "chrome.exe")
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    text = explanation_text(found, own.time.interval_ms, console)
    assert "what fails" in text
    assert "│ 2026-03-02 03:35 │    645 │     4 │  161 │     1 │     1 │ true " in text
    assert max(len(line) for line in text.partition("Timeline")[2].splitlines()) <= 80


def test_the_report_is_written(beacon: str, tmp_path: Path) -> None:
    """One page with the plots and the same numbers; the text stays the same, also for standard input."""
    path = tmp_path / "key.html"
    told = call(*ASK, "--report", str(path), beacon)
    assert told == call(*ASK, beacon)
    page = path.read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 4  # panes, connections an hour, hours, time from event to event
    pieces = Text(page).pieces
    assert "chrome.exe to 45.83.64.1" in pieces
    # All true ticks are equally near, so the first of them is shown.
    assert any("645 connections // 4 h = 161 an hour, at least 120" in piece for piece in pieces)
    for tick, verdict in (("03:35", "true"), ("04:05", "false: second_host")):
        assert f"2026-03-02 {tick}" in pieces
        assert verdict in pieces
    again = tmp_path / "again.html"
    assert call(*ASK, "--report", str(again), "-", stdin=Path(beacon).read_bytes()) == told
    assert again.read_text() == page


def test_a_report_of_nothing(beacon: str, tmp_path: Path) -> None:
    """An unknown key is told as that, on the page too."""
    path = tmp_path / "key.html"
    told = call(
        "explain", "--destination", "192.0.2.77", "--process", "chrome.exe", "--report", str(path), beacon
    )
    assert (told.code, told.err) == (0, "")
    assert "Timeline" not in told.out
    assert "No key was tracked." in Text(path.read_text()).pieces


def test_wrong_usage(beacon: str, tmp_path: Path) -> None:
    """A checkpoint has no course to draw, and an input is never overwritten."""
    told = call(*ASK, "--checkpoint", str(tmp_path), "--report", str(tmp_path / "key.html"))
    assert (told.code, told.out) == (2, "")
    assert "--report needs PATHs" in told.err
    before = Path(beacon).read_bytes()
    told = call(*ASK, "--report", beacon, beacon)
    assert (told.code, told.out) == (2, "")
    assert "is an input and would be overwritten" in told.err
    assert Path(beacon).read_bytes() == before


@pytest.mark.parametrize("path", ["none/key.html", "/dev/full"])
def test_a_report_that_cannot_be_written_is_8(beacon: str, tmp_path: Path, path: str) -> None:
    """As for every other output."""
    where = str(tmp_path / path)  # an absolute path stays that
    told = call(*ASK, "--report", where, beacon)
    assert (told.code, told.out) == (8, "")
    assert where in told.err
    assert "Traceback" not in told.err


def test_keys_that_were_given_up_are_not_invented(tmp_path: Path) -> None:
    """Where limits.max_keys is reached nobody follows the key further: that is told, and nothing else about later."""
    others = [
        event(START_MS + 2 * TICK_MS + number, destination={"ip": f"9.9.9.{number}", "port": 443})
        for number in range(20)
    ]
    path = tmp_path / "many.jsonl"
    path.write_bytes(b"\n".join([event(START_MS), *others, event(START_MS + 4 * TICK_MS)]))
    page = tmp_path / "key.html"
    told = call(*ASK, "--set", "limits.max_keys=3", "--report", str(page), str(path))
    assert told.code == 0
    assert "limits.max_keys was exceeded" in page.read_text()
    assert "limits.max_keys was exceeded and " in told.out
    assert "evaluated at 2026-03-02T00:05:00.000Z" in told.out
    late = call(*ASK, "--set", "limits.max_keys=3", "--at", "2026-03-02T00:25:00Z", str(path))
    assert late.code == 2
    assert "the last tick at which this key was tracked is 2026-03-02T00:05:00.000Z" in late.err


def test_an_hour_of_silence_is_no_gap_in_the_course() -> None:
    """A key that expires and comes back: false when its last event leaves, at exactly that tick."""
    own = Settings.model_validate({"time": {"lookback": "10m"}, "rules": [{"name": "a"}]})
    records = [json.loads(event(START_MS + minute * 60_000)) for minute in (1, 61)]
    (one,) = explained([records], own, "45.83.64.1", "chrome.exe").keys
    first_ms = START_MS + 60_000
    assert [(point.tick_ms, point.figures.events) for point in one.timeline.points] == [
        (START_MS + TICK_MS, 1),
        (leaves_ms(first_ms, one.timeline.rule.limits), 0),
        (START_MS + HOUR_MS + TICK_MS, 1),
    ]


def test_input_that_breaks_off_is_told(tmp_path: Path) -> None:
    """A file that cannot be read to its end explains nothing: exit code 10, as a replay of it gives."""
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b"{}\n" * 100_000)[:-20])
    told = call(*ASK, str(broken))
    assert told.code == 10
    assert told.out == ""
