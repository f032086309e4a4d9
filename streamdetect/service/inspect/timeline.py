"""The course of one key: its figures from the tick on at which they were so, and those of its ticks that a table shows.

Between two points nothing changes: `figures_at` is exact at every tick up to the last one that was evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

from streamdetect.detect.alerts import Key
from streamdetect.detect.episodes import NO_EVENTS, Figures, leaves_ms, look, objection
from streamdetect.detect.near_misses import MOST_SEEN, Point, TrackedKey, verdicts
from streamdetect.detect.ranking import span_ms
from streamdetect.detect.rules import Limits, Rule
from streamdetect.detect.windows import WindowState, seen, unpack_panes

MOST_ROWS = 40
"""Most rows of a timeline, so that it fits on a screen."""

# How many ticks there may be from row to row, as people count with the usual 5 minutes: up to a day, then days.
_STRIDES = (1, 2, 3, 6, 12, 24, 36, 72, 144)
_DAY = 288
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Timeline:
    """One key of one rule. `points` are in order, `panes` is {pane start ms: events} of all its events.

    `last_ms` is the last tick that was evaluated. Up to `told_apart` hosts and processes were counted, one more says
    "at least".
    """

    rule: Rule
    key: Key
    points: Sequence[Point]
    panes: dict[int, int]
    last_ms: int
    told_apart: int = 0

    def figures_at(self, tick_ms: int) -> Figures:
        """The figures of the window at a tick."""
        known = (point.figures for point in reversed(self.points) if point.tick_ms <= tick_ms)
        return next(known, NO_EVENTS)

    def counted(self, count: int, limit: int) -> str:
        """A number of hosts or processes, as sure as it is."""
        most = max(limit, self.told_apart)
        return f"at least {count}" if count > most else str(count)


class TimelineRow(NamedTuple):
    """A key at a tick: what its window held, and every condition that failed, by how much; or `true`."""

    tick_ms: int
    figures: Figures
    verdict: str


@dataclass(frozen=True, slots=True)
class TimelineTable:
    """Rows of one course: every `stride`-th tick, and those at which the verdict changed.

    `ticks` is how many there are from the first row to the last. `left_out` are earlier changes that found no room.
    """

    rows: Sequence[TimelineRow]
    stride: int
    ticks: int
    left_out: int


def course_of_track(track: TrackedKey, last_ms: int) -> Timeline:
    """Nobody looks at a key that has no event left in its window, so a track does not tell when that was."""
    limits = track.rule.limits
    points: list[Point] = []
    for point, next_ms in zip(track.points, _nexts(track.points, last_ms + limits.interval_ms), strict=True):
        points.append(point)
        left_ms = leaves_ms(point.figures.last_ms, limits)
        if left_ms < next_ms:
            points.append(Point(left_ms, NO_EVENTS, objection(NO_EVENTS, limits)))
    return Timeline(track.rule, track.key, points, track.panes, last_ms, MOST_SEEN)


def _nexts(points: Sequence[Point], end_ms: int) -> list[int]:
    """The tick of the point behind each."""
    return [*(point.tick_ms for point in points[1:]), end_ms]


def course_of_states(
    rule: Rule, key: Key, states: Sequence[tuple[int, WindowState]], last_ms: int
) -> Timeline:
    """From histories, each with the tick from which on it was that, up to a last tick."""
    if not states:
        return Timeline(rule, key, (), {}, last_ms)
    limits = rule.limits
    points: list[Point] = []
    for (from_ms, history), (to_ms, _) in pairwise([*states, (last_ms + limits.interval_ms, states[-1][1])]):
        tick_ms: int | None = from_ms
        while tick_ms is not None and tick_ms < to_ms:
            figures = look(history, None, tick_ms, limits).figures
            points.append(Point(tick_ms, figures, objection(figures, limits)))
            tick_ms = _next_change(history, tick_ms, limits)
    panes = {
        pane.first_ms - pane.first_ms % limits.interval_ms: pane.events
        for pane in unpack_panes(states[-1][1][0])
    }
    return Timeline(rule, key, points, panes, last_ms)


def _next_change(history: WindowState, tick_ms: int, limits: Limits) -> int | None:
    """The next tick at which an event, host or process leaves the window, None when none is left in it."""
    hosts, processes = seen(history)
    times = [pane.first_ms for pane in unpack_panes(history[0])]
    times += [last_ms for _, last_ms in (*hosts, *processes)]
    return min((left for time_ms in times if (left := leaves_ms(time_ms, limits)) > tick_ms), default=None)


def changes(points: Iterable[Point]) -> list[Point]:
    """The points at which the verdict changed between true and false. The first one is one."""
    return [next(group) for _, group in groupby(points, key=lambda point: point.objection is None)]


def timeline(course: Timeline, at_ms: int, most: int = MOST_ROWS) -> TimelineTable | None:
    """The course in at most so many rows; None where there is none. `at_ms` has a row if it lies in the course."""
    points = course.points
    if not points:
        return None
    interval_ms = course.rule.limits.interval_ms
    first_ms = points[0].tick_ms
    last_ms = course.last_ms if points[-1].figures.events else points[-1].tick_ms
    changed, left_out = _changed(points, most)
    ticks = {first_ms, last_ms, *(point.tick_ms for point in changed)}
    if first_ms <= at_ms <= last_ms:
        ticks.add(at_ms)
    stretches = _stretches(points, last_ms)
    stride = next(one for one in _strides() if _count(stretches, one * interval_ms) <= most - len(ticks))
    ticks |= _regular(stretches, stride * interval_ms)
    rows = [_row(course, tick_ms) for tick_ms in sorted(ticks)]
    return TimelineTable(rows, stride, (last_ms - first_ms) // interval_ms + 1, left_out)


def _changed(points: Sequence[Point], most: int) -> tuple[list[Point], int]:
    """Changes of verdict, and of the reason too while they leave room for the course; the latest, if too many."""
    found = verdicts(points)
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


def _stretches(points: Sequence[Point], last_ms: int) -> list[tuple[int, int]]:
    """From when to before when there were events in the window: the rest of a course shows nothing."""
    found: list[tuple[int, int]] = []
    lasting = zip(points, _nexts(points, last_ms), strict=True)
    for has_events, group in groupby(lasting, key=lambda pair: pair[0].figures.events > 0):
        pairs = list(group)
        if has_events:
            found.append((pairs[0][0].tick_ms, pairs[-1][1]))
    return found


def _count(stretches: Iterable[tuple[int, int]], width_ms: int) -> int:
    """How many multiples of a width lie in there."""
    return sum(-(-end_ms // width_ms) - -(-begin_ms // width_ms) for begin_ms, end_ms in stretches)


def _regular(stretches: Iterable[tuple[int, int]], width_ms: int) -> set[int]:
    return {
        tick_ms
        for begin_ms, end_ms in stretches
        for tick_ms in range(begin_ms + -begin_ms % width_ms, end_ms, width_ms)
    }


def _row(course: Timeline, tick_ms: int) -> TimelineRow:
    figures = course.figures_at(tick_ms)
    return TimelineRow(tick_ms, figures, "; ".join(_failures(course, figures)) or "true")


def _failures(course: Timeline, figures: Figures) -> list[str]:
    """Every condition of semantics.md §3 that fails."""
    limits = course.rule.limits
    if not figures.events:
        return ["no event"]
    found: list[str] = []
    if figures.connections_per_hour < limits.min_connections_per_hour:
        found.append(f"rate {figures.connections_per_hour} of {limits.min_connections_per_hour}")
    if figures.duration_hours < limits.min_duration_hours:
        found.append(f"span {_hours(figures.last_ms - figures.first_ms)} of {_hours(span_ms(limits))} h")
    for name, count, limit in (
        ("hosts", figures.hosts, limits.max_hosts),
        ("processes", figures.processes, limits.max_processes),
    ):
        if not 1 <= count <= limit:
            found.append(f"{name} {course.counted(count, limit)} of {limit}")
    return found


def _hours(ms: int) -> str:
    """With one digit, cut: what is too short must not look long enough."""
    return f"{ms // (_HOUR_MS // 10) / 10:.1f}"
