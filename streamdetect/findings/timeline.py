"""Timeline of one key: its figures at every tick, and the rows of a table that shows them.

Nothing changes between two points: `figures_at` is exact at every tick up to the last evaluated one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

from streamdetect.detect.alerts import Key
from streamdetect.detect.conditions import NO_EVENTS, Figures, Limits, failed_condition
from streamdetect.detect.near_misses import MOST_SEEN, Point, TrackedKey, reason_changes
from streamdetect.detect.rules import Rule
from streamdetect.detect.windows import WindowState, leaves_ms, measure, seen, unpack_panes, within

MOST_ROWS = 40
"""Most rows of a table, so that it fits on a screen."""

# Ticks from row to row, in steps that people count in with the usual 5 minutes: up to a day, then whole days.
_STRIDES = (1, 2, 3, 6, 12, 24, 36, 72, 144)
_DAY = 288
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Timeline:
    """One key of one rule. `points` are in order, `panes` is {pane start ms: events} of all its events.

    `last_ms` is the last evaluated tick. Up to `told_apart` hosts and processes were counted; one more means "at
    least".
    """

    rule: Rule
    key: Key
    points: Sequence[Point]
    panes: dict[int, int]
    last_ms: int
    told_apart: int = 0

    def figures_at(self, tick_ms: int) -> Figures:
        """The figures of the window at a tick."""
        earlier = (point.figures for point in reversed(self.points) if point.tick_ms <= tick_ms)
        return next(earlier, NO_EVENTS)

    def count_text(self, count: int, limit: int) -> str:
        """A number of hosts or processes, with "at least" beyond those told apart."""
        most = max(limit, self.told_apart)
        return f"at least {count}" if count > most else str(count)


class TimelineRow(NamedTuple):
    """A key at a tick: its figures, and every condition that failed, by how much; or `true`."""

    tick_ms: int
    figures: Figures
    verdict: str


@dataclass(frozen=True, slots=True)
class TimelineTable:
    """Rows of one timeline: every `stride`-th tick, and those at which the verdict changed.

    `ticks` is the number of ticks from the first row to the last. `left_out` earlier changes did not fit.
    """

    rows: Sequence[TimelineRow]
    stride: int
    ticks: int
    left_out: int


def timeline_of_tracked(tracked: TrackedKey, last_ms: int) -> Timeline:
    """The timeline of a tracked key. A key is not evaluated once its window is empty: that point is added here."""
    limits = tracked.rule.limits
    points: list[Point] = []
    next_ticks = _next_ticks(tracked.points, last_ms + limits.interval_ms)
    for point, next_ms in zip(tracked.points, next_ticks, strict=True):
        points.append(point)
        left_ms = leaves_ms(point.figures.last_ms, limits)
        if left_ms < next_ms:
            points.append(Point(left_ms, NO_EVENTS, failed_condition(NO_EVENTS, limits)))
    return Timeline(tracked.rule, tracked.key, points, tracked.panes, last_ms, MOST_SEEN)


def _next_ticks(points: Sequence[Point], end_ms: int) -> list[int]:
    """The tick of the point after each."""
    return [*(point.tick_ms for point in points[1:]), end_ms]


def timeline_of_states(
    rule: Rule, key: Key, states: Sequence[tuple[int, WindowState]], last_ms: int
) -> Timeline:
    """Build the timeline of a key up to `last_ms`.

    `states` are its window states in order, each as (first tick at which it is valid, state).
    """
    if not states:
        return Timeline(rule, key, (), {}, last_ms)
    limits = rule.limits
    points: list[Point] = []
    for (from_ms, state), (to_ms, _) in pairwise([*states, (last_ms + limits.interval_ms, states[-1][1])]):
        tick_ms: int | None = from_ms
        while tick_ms is not None and tick_ms < to_ms:
            oldest_ms = tick_ms - limits.lookback_ms
            current = within(state, oldest_ms)
            figures = NO_EVENTS if current is None else measure(current, oldest_ms, limits)
            points.append(Point(tick_ms, figures, failed_condition(figures, limits)))
            tick_ms = _next_change(state, tick_ms, limits)
    panes = {
        pane.first_ms - pane.first_ms % limits.interval_ms: pane.events
        for pane in unpack_panes(states[-1][1][0])
    }
    return Timeline(rule, key, points, panes, last_ms)


def _next_change(state: WindowState, tick_ms: int, limits: Limits) -> int | None:
    """The next tick at which a pane, host or process leaves the window, None when none is left in it."""
    hosts, processes = seen(state)
    times = [pane.first_ms for pane in unpack_panes(state[0])]
    times += [last_ms for _, last_ms in (*hosts, *processes)]
    return min((left for time_ms in times if (left := leaves_ms(time_ms, limits)) > tick_ms), default=None)


def changes(points: Iterable[Point]) -> list[Point]:
    """The first point, and each at which the condition became true or false."""
    return [next(group) for _, group in groupby(points, key=lambda point: point.failed is None)]


def table_of(timeline: Timeline, at_ms: int, most: int = MOST_ROWS) -> TimelineTable | None:
    """The timeline in at most `most` rows, None if it has no points. `at_ms` has a row if the timeline covers it."""
    points = timeline.points
    if not points:
        return None
    interval_ms = timeline.rule.limits.interval_ms
    first_ms = points[0].tick_ms
    last_ms = timeline.last_ms if points[-1].figures.events else points[-1].tick_ms
    changed, left_out = _changed(points, most)
    ticks = {first_ms, last_ms, *(point.tick_ms for point in changed)}
    if first_ms <= at_ms <= last_ms:
        ticks.add(at_ms)
    spans = _spans_with_events(points, last_ms)
    stride = next(one for one in _strides() if _count(spans, one * interval_ms) <= most - len(ticks))
    ticks |= _multiples(spans, stride * interval_ms)
    rows = [_row(timeline, tick_ms) for tick_ms in sorted(ticks)]
    return TimelineTable(rows, stride, (last_ms - first_ms) // interval_ms + 1, left_out)


def _changed(points: Sequence[Point], most: int) -> tuple[list[Point], int]:
    """Changes of the failed condition, or only of true and false if there are too many; the latest ones that fit."""
    found = reason_changes(points)
    if len(found) > most // 2:
        found = changes(points)
    left_out = max(0, len(found) - most * 3 // 4)
    return found[left_out:], left_out


def _strides() -> Iterable[int]:
    yield from _STRIDES
    days = 1
    while True:
        yield _DAY * days
        days *= 2


def _spans_with_events(points: Sequence[Point], last_ms: int) -> list[tuple[int, int]]:
    """[start, end) of each span of ticks with events in the window; the rest of a timeline shows nothing."""
    found: list[tuple[int, int]] = []
    lasting = zip(points, _next_ticks(points, last_ms), strict=True)
    for has_events, group in groupby(lasting, key=lambda pair: pair[0].figures.events > 0):
        pairs = list(group)
        if has_events:
            found.append((pairs[0][0].tick_ms, pairs[-1][1]))
    return found


def _count(spans: Iterable[tuple[int, int]], width_ms: int) -> int:
    """How many multiples of a width are in the spans."""
    return sum(-(-end_ms // width_ms) - -(-start_ms // width_ms) for start_ms, end_ms in spans)


def _multiples(spans: Iterable[tuple[int, int]], width_ms: int) -> set[int]:
    return {
        tick_ms
        for start_ms, end_ms in spans
        for tick_ms in range(start_ms + -start_ms % width_ms, end_ms, width_ms)
    }


def _row(timeline: Timeline, tick_ms: int) -> TimelineRow:
    figures = timeline.figures_at(tick_ms)
    return TimelineRow(tick_ms, figures, "; ".join(_failures(timeline, figures)) or "true")


def _failures(timeline: Timeline, figures: Figures) -> list[str]:
    """Every condition of semantics.md §3 that fails."""
    limits = timeline.rule.limits
    if not figures.events:
        return ["no event"]
    texts = {
        "rate": f"rate {figures.connections_per_hour} of {limits.min_connections_per_hour}",
        "duration": f"span {_hours(figures.span_ms)} of {_hours(limits.min_span_ms)} h",
        "hosts": f"hosts {timeline.count_text(figures.hosts, limits.max_hosts)} of {limits.max_hosts}",
        "processes": f"processes {timeline.count_text(figures.processes, limits.max_processes)}"
        f" of {limits.max_processes}",
    }
    return [texts[condition.name] for condition in limits.check(figures) if not condition.holds]


def _hours(ms: int) -> str:
    """With one digit, rounded down: a span that is too short must not look long enough."""
    return f"{ms // (_HOUR_MS // 10) / 10:.1f}"
