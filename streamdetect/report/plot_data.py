"""The timeline of one key prepared for plots: panes, rates and gaps in as many steps as a plot can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from streamdetect.detect.near_misses import Point
from streamdetect.findings.outcome import Volume
from streamdetect.report.dataframes import fate
from streamdetect.report.words import exact, moment

_MOST_STEPS = 600
_MOST_POINTS = 240
_MOST_BINS = 80
_MOST_VOLUMES = 72
_MOST_SPANS = 5
_NEAR_MEDIAN = 0.2
_FINE_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000
_ROW_PANES = 12
FATES = ("counted", "filtered", "late", "refused")

# Widths of steps and distances of marks on a time axis, in round units.
_STEPS_MS = (
    *(seconds * 1_000 for seconds in (1, 2, 5, 10, 15, 30)),
    *(minutes * 60_000 for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * _HOUR_MS for hours in (1, 2, 3, 6, 12)),
    *(days * _DAY_MS for days in (1, 2, 7, 14, 28, 91, 182, 364)),
)


@dataclass(frozen=True, slots=True)
class Steps:
    """Events per step of `width_ms` from `start_ms` to `end_ms`; steps without events are not in `counts`."""

    start_ms: int
    end_ms: int
    width_ms: int
    counts: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps between successive events. `bins` are those from about the 1st to the 99th percentile.

    `near_median` is the share within 20 % of the median. `shorter` and `longer` are not in the bins.
    """

    total: int
    median_ms: float
    near_median: float
    width_ms: int
    bins: Mapping[int, int]
    shorter: int
    longer: int


@dataclass(frozen=True, slots=True)
class PaneRows:
    """Exact pane counts, twelve in a row; `rows` are the start of each with its counts (None: no event)."""

    offsets_ms: Sequence[int]
    rows: Sequence[tuple[int, Sequence[int | None]]]
    more: int


@dataclass(frozen=True, slots=True)
class Volumes:
    """Records by verdict, in steps. `outside` counts records with far-off times, which are not drawn."""

    width_ms: int
    starts_ms: Sequence[int]
    by_fate: Mapping[str, Sequence[int]]
    outside: int


def steps(panes: Mapping[int, int], interval_ms: int, start_ms: int, end_ms: int) -> Steps:
    """The panes from `start_ms` to `end_ms`, merged into steps if there are too many to see."""
    start_ms -= start_ms % interval_ms
    end_ms = max(end_ms + -end_ms % interval_ms, start_ms + interval_ms)
    width_ms = interval_ms * -(-(end_ms - start_ms) // (interval_ms * _MOST_STEPS))
    counts: Counter[int] = Counter()
    for pane_ms, events in panes.items():
        if start_ms <= pane_ms < end_ms:
            counts[pane_ms - (pane_ms - start_ms) % width_ms] += events
    return Steps(start_ms, end_ms, width_ms, counts)


def thinned(points: Sequence[Point], value: Callable[[Point], int]) -> list[tuple[int, int]]:
    """(tick, value) of at most about two in each step: the lowest and the highest, so that no crossing of the threshold
    is lost.
    """
    size = -(-len(points) // _MOST_POINTS)
    if size <= 2:
        return [(point.tick_ms, value(point)) for point in points]
    kept: list[Point] = []
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        ends = {id(one): one for one in (min(part, key=value), max(part, key=value))}
        kept += sorted(ends.values(), key=lambda one: one.tick_ms)
    return [(point.tick_ms, value(point)) for point in kept]


def gaps_of(counts: Mapping[int, int]) -> Gaps | None:
    """The distribution of gaps; None if there are none."""
    ordered = sorted((gap_ms, count) for gap_ms, count in counts.items() if count > 0)
    total = sum(count for _, count in ordered)
    if not total:
        return None
    median_ms = (_at(ordered, (total - 1) // 2) + _at(ordered, total // 2)) / 2
    low_ms, high_ms = _at(ordered, total // 100), _at(ordered, total - 1 - total // 100)
    width_ms = _nice(max(1, -(-(high_ms - low_ms) // _MOST_BINS), round(median_ms / 200)))
    first_ms = low_ms - low_ms % width_ms
    bins: Counter[int] = Counter()
    for gap_ms, count in ordered:
        if first_ms <= gap_ms <= high_ms:
            bins[gap_ms - gap_ms % width_ms] += count
    near = sum(count for gap_ms, count in ordered if abs(gap_ms - median_ms) <= _NEAR_MEDIAN * median_ms)
    return Gaps(
        total=total,
        median_ms=median_ms,
        near_median=near / total,
        width_ms=width_ms,
        bins=bins,
        shorter=sum(count for gap_ms, count in ordered if gap_ms < first_ms),
        longer=sum(count for gap_ms, count in ordered if gap_ms > high_ms),
    )


def gaps_between(gaps: Gaps) -> tuple[int, int]:
    """The ends of an axis for gaps: around the bins, and at least as wide as the range near the median."""
    near_ms = ceil(_NEAR_MEDIAN * gaps.median_ms)
    first_ms = min(min(gaps.bins) - 2 * gaps.width_ms, int(gaps.median_ms) - near_ms)
    last_ms = max(max(gaps.bins) + 3 * gaps.width_ms, ceil(gaps.median_ms) + near_ms)
    return max(0, first_ms), last_ms


def span_marks(first_ms: int, last_ms: int) -> list[tuple[int, str]]:
    """Marks on an axis of spans, with distinct labels: 1, 2, 5 below a second, round units of time above."""
    range_ms = last_ms - first_ms
    finest = next((one for one in _FINE_MS if one * _MOST_SPANS >= range_ms), None)
    step_ms = _step(range_ms, _MOST_SPANS) if finest is None else finest
    return [(ms, exact(ms)) for ms in range(first_ms + -first_ms % step_ms, last_ms + 1, step_ms)]


def _at(ordered: Sequence[tuple[int, int]], rank: int) -> int:
    """The gap at a rank; rank 0 is the shortest."""
    for gap_ms, count in ordered:
        if rank < count:
            return gap_ms
        rank -= count
    return ordered[-1][0]


def _nice(least: int) -> int:
    """The next of 1, 2, 5, 10, 20 and so on."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if factor * size >= least:
                return factor * size
        size *= 10


def pane_rows(panes: Mapping[int, int], interval_ms: int, most: int) -> PaneRows:
    """The panes with events, row by row, without empty rows."""
    row_ms = interval_ms * _ROW_PANES
    rows: dict[int, list[int | None]] = {}
    for pane_ms, events in sorted(panes.items()):
        place_ms = pane_ms % row_ms
        cells = rows.setdefault(pane_ms - place_ms, [None] * _ROW_PANES)
        cells[place_ms // interval_ms] = events
    shown = list(rows.items())[:most]
    return PaneRows([index * interval_ms for index in range(_ROW_PANES)], shown, len(rows) - len(shown))


def volumes_of(volumes: Sequence[Volume], between: tuple[int, int] | None = None) -> Volumes | None:
    """Hours merged into as few steps as are readable; None if no record had a time.

    `between` is the relevant range: records outside are counted but not drawn, unless all of them are outside.
    """
    hours: dict[int, Counter[str]] = {}
    for volume in volumes:
        found = hours.setdefault(volume.start_ms, Counter())
        for verdict, records in volume.by_verdict.items():
            found[fate(verdict)] += records
    if not hours:
        return None
    within = {ms: hours[ms] for ms in hours if between is None or between[0] - _HOUR_MS < ms <= between[1]}
    first_ms, last_ms = _most_of(within or hours)
    width_ms = _step(last_ms - first_ms + _HOUR_MS, _MOST_VOLUMES, least_ms=_HOUR_MS)
    begin_ms, first_ms = first_ms, first_ms - first_ms % width_ms
    starts = list(range(first_ms, last_ms + 1, width_ms))
    by_fate = {name: [0] * len(starts) for name in FATES}
    outside = 0
    for start_ms, counts in hours.items():
        if begin_ms <= start_ms <= last_ms:
            for name, records in counts.items():
                by_fate[name][(start_ms - first_ms) // width_ms] += records
        else:
            outside += counts.total()
    return Volumes(width_ms, starts, by_fate, outside)


def _most_of(hours: Mapping[int, Counter[str]]) -> tuple[int, int]:
    """First and last hour to draw. One wrong clock must not compress everything else into a single bar."""
    ordered = sorted((start_ms, counts.total()) for start_ms, counts in hours.items())
    first_ms, last_ms = ordered[0][0], ordered[-1][0]
    if last_ms - first_ms > 92 * _DAY_MS:
        total = sum(records for _, records in ordered)
        aside = total // 200
        most_ms = _at(ordered, aside), _at(ordered, max(0, total - 1 - aside))
        if (
            2 * (most_ms[1] - most_ms[0]) < last_ms - first_ms
        ):  # otherwise a long history without wrong clocks
            return most_ms
    return first_ms, last_ms


def _step(range_ms: int, most: int, *, least_ms: int = 1) -> int:
    """The smallest round width that divides a range into at most `most` steps."""
    for step_ms in _STEPS_MS:
        if step_ms >= least_ms and step_ms * most >= range_ms:
            return step_ms
    return _STEPS_MS[-1] * -(-range_ms // (_STEPS_MS[-1] * most))


def time_marks(start_ms: int, end_ms: int, most: int = 6) -> list[tuple[int, str]]:
    """Marks on a time axis with labels: the hour, and the date at the start of a day."""
    step_ms = _step(end_ms - start_ms, most)
    first_ms = start_ms + -start_ms % step_ms
    return [(ms, time_label(ms, step_ms)) for ms in range(first_ms, end_ms + 1, step_ms)]


def time_label(ms: int, step_ms: int) -> str:
    date, clock = moment(ms).split(" ")
    year_month_day = date.rsplit("-", 2)
    if step_ms >= 28 * _DAY_MS:
        return "-".join(year_month_day[:2])
    return "-".join(year_month_day[1:]) if ms % _DAY_MS == 0 or step_ms >= _DAY_MS else clock


def number_marks(highest: float, most: int = 5) -> list[int]:
    """Whole numbers from 0 to at least `highest`, evenly spread."""
    top = max(1, ceil(highest))
    step = _nice(-(-top // most))
    return list(range(0, top + -top % step + 1, step))
