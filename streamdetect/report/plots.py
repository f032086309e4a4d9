"""The plots: pygal lays them out, and an allowlist decides what gets into the document.

pygal writes a style sheet, a script, an id and hidden descriptions into every picture. All of it is dropped: the style
sheet of the page (`templates/style.css`) colours the plots, so that a plot is a few kilobytes, follows light and dark
mode, and needs no exception in the page's policy. Labels are numbers and times, except names of variants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from re import sub
from typing import Any
from unicodedata import east_asian_width

import pygal  # type: ignore[import-untyped]  # has no types
from markupsafe import Markup
from pygal.style import Style  # type: ignore[import-untyped]  # has no types

from streamdetect.report.plot_data import (
    FATES,
    Gaps,
    Steps,
    Volumes,
    gaps_between,
    number_marks,
    span_marks,
    time_label,
    time_marks,
)
from streamdetect.report.words import visible

_WIDTH = 480
_HEIGHT = 170
_NARROW = 380
_NAME_LENGTH = 22
_LABEL_SIZE = 12

_ATTRIBUTES = {
    "svg": ("viewBox",),
    "g": ("transform",),
    "rect": ("x", "y", "width", "height"),
    "path": ("d",),
    "text": ("x", "y"),
}
"""Tags and attributes of pygal's pictures that get into the document, besides classes."""

_CLASSES = frozenset({"axis", "guide", "major", "line", "nofill", "background", "x", "y", "bar"})

Numbers = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Marks:
    """Times marked in a plot over time, None if missing."""

    opened_ms: int | None = None
    resolved_ms: int | None = None


@dataclass(frozen=True, slots=True)
class _Series:
    kind: str
    points: Numbers
    fill: bool = False


def panes_plot(panes: Steps, marks: Marks, label: str) -> Markup:
    """Events per step, as a skyline."""
    points: list[tuple[float, float]] = []
    for start_ms, events in sorted(panes.counts.items()):
        column = _column(start_ms, start_ms + panes.width_ms, events)
        if points and points[-1][0] == start_ms:
            points.pop()
            column = column[1:]
        points += column
    highest = max(panes.counts.values(), default=1)
    series = [_Series("area", points, fill=True)]
    return _over_time(series, panes.start_ms, panes.end_ms, highest, marks, label)


def figure_plot(
    points: Numbers, threshold: int, between: tuple[int, int], marks: Marks, label: str
) -> Markup:
    """A figure at each tick as a line, its threshold as a dashed one."""
    start_ms, end_ms = between
    within = [(ms, value) for ms, value in points if start_ms <= ms <= end_ms]
    highest = max([threshold * 1.25, *(value for _, value in within)])
    series = [
        _Series("course", within),
        _Series("limit", [(start_ms, threshold), (end_ms, threshold)]),
    ]
    return _over_time(series, start_ms, end_ms, highest, marks, label)


def gaps_plot(gaps: Gaps, label: str) -> Markup:
    """A histogram of gaps between events; the median is a dotted line."""
    width_ms = gaps.width_ms
    points: list[tuple[float, float]] = []
    for start_ms, count in sorted(gaps.bins.items()):
        points += _column(start_ms, start_ms + width_ms, count)
    first_ms, last_ms = gaps_between(gaps)
    highest = max(gaps.bins.values())
    marks = number_marks(highest, 4)
    places = {float(ms): text for ms, text in span_marks(first_ms, last_ms)}
    series = [
        _Series("bars", points, fill=True),
        _Series("middle", [(gaps.median_ms, 0), (gaps.median_ms, marks[-1])]),
    ]
    return _xy(series, (first_ms, last_ms), marks, places, label)


def bars_plot(names: Sequence[str], values: Sequence[float], label: str) -> Markup:
    """One bar for each name, in order from the top, with its value at its end."""
    chart = pygal.HorizontalBar(
        **_options(width=_NARROW, height=34 + 20 * len(names), spacing=4, print_values=True)
    )
    chart.print_values_position = "top"
    chart.x_labels = list(reversed(fitting([visible(name) for name in names])))
    highest = max(values, default=1)
    chart.y_labels = number_marks(highest, 4)
    chart.range = (0, max(1, highest) * 1.2)
    chart.value_formatter = _count
    chart.add("", list(reversed(values)))
    return _drawn(chart, ("bars",), label)


def volumes_plot(volumes: Volumes, label: str) -> Markup:
    """Records per step by verdict, stacked."""
    chart = pygal.StackedBar(**_options(width=2 * _WIDTH, height=220, spacing=4))
    every = -(-len(volumes.starts_ms) // 8)
    chart.x_labels = [
        time_label(ms, volumes.width_ms if every == 1 else 1) if index % every == 0 else ""
        for index, ms in enumerate(volumes.starts_ms)
    ]
    heights = [sum(parts) for parts in zip(*volumes.by_fate.values(), strict=True)]
    marks = number_marks(max(heights), 4)
    chart.range, chart.y_labels = (0, marks[-1]), marks
    chart.value_formatter = _count
    for name in FATES:
        chart.add("", volumes.by_fate[name])
    return _drawn(chart, FATES, label)


def fitting(names: Sequence[str]) -> list[str]:
    """The part of each name that fits beside a bar: the beginning, the end if beginnings are equal, else a number."""
    heads = [_head(name, _NAME_LENGTH) for name in names]
    alike = Counter(heads)
    ends = [
        one if alike[one] == 1 else _end(name, _NAME_LENGTH) for one, name in zip(heads, names, strict=True)
    ]
    alike = Counter(ends)
    return [
        one if alike[one] == 1 else f"{place}: {_end(name, _NAME_LENGTH - 6)}"
        for place, (one, name) in enumerate(zip(ends, names, strict=True), start=1)
    ]


def _head(name: str, most: int) -> str:
    """The beginning of a name; wide characters (Chinese, Japanese) count as two."""
    width = 0
    for index, character in enumerate(name):
        width += 2 if east_asian_width(character) in ("W", "F") else 1
        if width > most:
            return f"{name[:index]}…"
    return name


def _end(name: str, most: int) -> str:
    return _head(name[::-1], most)[::-1]


def _column(start: float, end: float, height: float) -> list[tuple[float, float]]:
    return [(start, 0), (start, height), (end, height), (end, 0)]


def _over_time(
    series: list[_Series], start_ms: int, end_ms: int, highest: float, marks: Marks, label: str
) -> Markup:
    """Times count from the start: pygal works with floats, which would lose digits of far-off years."""
    heights = number_marks(highest, 4)
    for kind, ms in (("opened", marks.opened_ms), ("resolved", marks.resolved_ms)):
        if ms is not None and start_ms <= ms <= end_ms:
            series.append(_Series(kind, [(ms, 0), (ms, heights[-1])]))
    moved = [
        _Series(one.kind, [(ms - start_ms, value) for ms, value in one.points], one.fill) for one in series
    ]
    places = {float(ms - start_ms): text for ms, text in time_marks(start_ms, end_ms)}
    return _xy(moved, (0, end_ms - start_ms), heights, places, label)


def _xy(
    series: Sequence[_Series],
    between: tuple[float, float],
    heights: Sequence[int],
    places: Mapping[float, str],
    label: str,
) -> Markup:
    drawn = [one for one in series if len(one.points) > 1]
    chart = pygal.XY(**_options(xrange=between, range=(0, heights[-1]), include_x_axis=True))
    chart.x_labels = sorted(places)
    chart.y_labels = list(heights)
    chart.x_value_formatter = lambda place: places.get(place, "")
    chart.value_formatter = _count
    for one in drawn:
        chart.add("", list(one.points), fill=one.fill)
    return _drawn(chart, [one.kind for one in drawn], label)


def _options(**more: Any) -> dict[str, Any]:
    style = Style(label_font_size=_LABEL_SIZE, major_label_font_size=_LABEL_SIZE)
    plain = {
        "js": [],
        "css": [],
        "style": style,
        "no_prefix": True,
        "disable_xml_declaration": True,
        "show_legend": False,
        "show_dots": False,
        "show_x_guides": False,
        "truncate_label": -1,
        "width": _WIDTH,
        "height": _HEIGHT,
        "margin": 6,
        "margin_right": 18,
        "title": None,
    }
    return plain | more


def _count(value: float) -> str:
    return f"{value:,.10g}"


def _drawn(chart: Any, kinds: Sequence[str], label: str) -> Markup:
    root = chart.render_tree()
    inner = "".join(_written(node, kinds) for node in root)
    view = escape(root.get("viewBox"))
    return Markup(  # noqa: S704 - every name is on a list above, every value is escaped
        f'<svg viewBox="{view}" role="img" aria-label="{escape(visible(label))}">{inner}</svg>'
    )


def _written(node: Any, kinds: Sequence[str]) -> str:
    """One element with its content, or nothing if it is not on the allowlist or invisible."""
    name = str(node.tag).rpartition("}")[2] if isinstance(node.tag, str) else ""
    if name not in _ATTRIBUTES:
        return ""
    classes = str(node.get("class", "")).split()
    if "background" in classes or "tooltip" in classes:
        return ""
    if "guides" in classes and not any(child.text for child in node):
        return ""
    inner = escape(node.text or "") if name == "text" else ""
    inner += "".join(_written(child, kinds) for child in node)
    if name in ("g", "text") and not inner:
        return ""
    shown = " ".join(_class(one, kinds) for one in classes if one in _CLASSES or one.startswith("serie-"))
    if name == "g" and not shown and node.get("transform") is None:
        return inner
    attributes = f' class="{shown}"' if shown else ""
    for attribute in _ATTRIBUTES[name]:
        value = node.get(attribute)
        if value is not None:
            attributes += f' {attribute}="{escape(_short(value))}"'
    return f"<{name}{attributes}>{inner}</{name}>"


def _class(name: str, kinds: Sequence[str]) -> str:
    return f"s {kinds[int(name.removeprefix('serie-'))]}" if name.startswith("serie-") else name


def _short(numbers: str) -> str:
    """Rounded to a tenth of a pixel: finer differences are invisible."""
    return sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), numbers)
