"""Episodes and near misses for the report: host and process, the arithmetic in words, and the timeline as plots."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from streamdetect.detect.alerts import figures_block, thresholds_block
from streamdetect.detect.near_misses import MOST_SEEN, Point, TrackedKey, reason_changes
from streamdetect.findings.episodes import Episode
from streamdetect.findings.outcome import Outcome
from streamdetect.report.plot_data import Gaps, PaneRows, gaps_of, pane_rows, steps, thinned
from streamdetect.report.plots import Marks, figure_plot, gaps_plot, panes_plot
from streamdetect.report.words import (
    REASONS,
    ConditionText,
    conditions,
    cut,
    destination_text,
    joined,
    moment,
    number,
    share,
    span,
)

_MOST_PANE_ROWS = 200
_LONGEST_REASON = 40
_PLAIN_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot and its caption."""

    plot: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The timeline of a key: plots, exact counts, and changes of its verdict."""

    figures: Sequence[Figure]
    marks: Marks
    panes: PaneRows | None
    verdicts: Pairs


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """An episode. `timeline` is None for those shown only in the table."""

    anchor: str
    episode: Episode
    context_pairs: Pairs
    conditions: Sequence[ConditionText]
    last_conditions: Sequence[ConditionText]
    story: str
    timeline: Timeline | None


@dataclass(frozen=True, slots=True)
class NearView:
    """A near miss, at the tick at which it was closest."""

    address: str
    process: str
    sensor: str | None
    host: str | None
    context_pairs: Pairs
    at: str
    nearness: str
    held: bool
    conditions: Sequence[ConditionText]
    timeline: Timeline | None


def episode_view(episode: Episode, outcome: Outcome, *, plotted: bool) -> EpisodeView:
    tracked = outcome.tracked_keys.get(episode.key)
    timeline = None
    if plotted:
        interval_ms = outcome.settings.time.interval_ms
        opened_ms = episode.first_alert_ms if episode.opened_ms is None else episode.opened_ms
        end_ms = episode.resolved_ms or max(outcome.last_tick_ms or 0, episode.last_alert_ms)
        timeline = _timeline(
            panes=(episode.panes or {}) if tracked is None else tracked.panes,
            points=() if tracked is None else tracked.points,
            gaps=None if tracked is None else gaps_of(tracked.gaps),
            thresholds=episode.thresholds,
            interval_ms=interval_ms,
            between=(opened_ms - outcome.settings.time.lookback_ms, end_ms),
            marks=Marks(episode.opened_ms, episode.resolved_ms),
        )
    return EpisodeView(
        anchor=anchor(episode.id),
        episode=episode,
        context_pairs=_context_pairs(episode),
        conditions=conditions(episode.figures, episode.thresholds),
        last_conditions=conditions(episode.last_figures, episode.thresholds)
        if episode.last_figures != episode.figures
        else (),
        story=_story(episode),
        timeline=timeline,
    )


def _context_pairs(episode: Episode) -> Pairs:
    blocks: Mapping[str, Mapping[str, Any]] = episode.context
    host, user = blocks.get("host", {}), blocks.get("user", {})
    process, destination = blocks.get("process", {}), blocks.get("destination", {})
    found: list[tuple[str, object]] = [
        ("host", episode.host),
        ("host id", host.get("id")),
        ("user", _account(joined(user.get("domain")), joined(user.get("name")))),
        ("process", episode.key.process),
        ("executable", process.get("executable")),
        ("pid", process.get("pid")),
        ("entity id", process.get("entity_id")),
        ("destination", destination_text(episode.key.address)),
        ("address", destination.get("ip")),
        ("port", destination.get("port")),
        ("domain", destination.get("domain")),
        ("sensor", episode.key.sensor),
        ("rule", episode.rule_name),
        ("rule id", episode.key.rule_id),
        ("severity", episode.severity),
        ("episode", episode.id),
    ]
    return [(name, text) for name, value in found if (text := joined(value))]


def _account(domain: str | None, name: str | None) -> str | None:
    return f"{domain}\\{name}" if domain and name else name or domain


def _story(episode: Episode) -> str:
    opened, resolved = episode.opened_ms, episode.resolved_ms
    updates = episode.alerts - (opened is not None) - (resolved is not None)
    text_before = (
        "Its opening alert is not among the alerts" if opened is None else f"Opened at {moment(opened)}"
    )
    text_before += f", updated {_times_of(updates)}, "
    if resolved is None:
        return f"{text_before}open at the end."
    reason = REASONS.get(episode.reason or "", "a reason unknown here")
    after = "" if opened is None else f" after {span(resolved - opened)}"
    return f"{text_before}resolved at {moment(resolved)}{after}: {reason} ({reason_of(episode)})."


def reason_of(episode: Episode) -> str:
    return cut(episode.reason or "no reason given", _LONGEST_REASON)


def _times_of(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{number(count)} times")


def anchor(episode_id: str) -> str:
    """The anchor of an episode: its id if that is a UUID, else a hash, because other text could break the link."""
    if _PLAIN_ID.fullmatch(episode_id):
        return f"e-{episode_id}"
    return f"e-{hashlib.sha256(episode_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def near_view(tracked: TrackedKey, interval_ms: int, *, plotted: bool) -> NearView:
    """A key at its closest; with its whole timeline if `plotted`."""
    point, details = tracked.closest, tracked.context
    timeline = None
    if plotted:
        places = [*tracked.panes, *(one.tick_ms for one in tracked.points), point.tick_ms]
        timeline = _timeline(
            panes=tracked.panes,
            points=tracked.points,
            gaps=gaps_of(tracked.gaps),
            thresholds=thresholds_block(tracked.rule.limits),
            interval_ms=interval_ms,
            between=(min(places), max(places)),
            marks=Marks(),
        )
    found: list[tuple[str, object]] = [
        ("host", details.host_name or details.host_id),
        ("host id", details.host_id),
        ("user", _account(joined(details.user_domain), joined(details.user_name))),
        ("executable", details.executable),
        ("pid", details.pid),
        ("entity id", details.entity_id),
        ("address", details.ip),
        ("port", details.port),
        ("domain", details.domain),
        ("sensor", tracked.key.sensor),
        ("rule", tracked.rule.name),
        ("rule id", tracked.rule.id),
    ]
    return NearView(
        address=destination_text(tracked.key.address),
        process=tracked.key.process,
        sensor=tracked.key.sensor,
        host=joined(details.host_name or details.host_id),
        context_pairs=[(name, text) for name, value in found if (text := joined(value))],
        at=moment(point.tick_ms),
        nearness=f"{100 * share(tracked.closeness.score, 2):.0f} %",
        held=point.failed is None,
        conditions=conditions(figures_block(point.figures), thresholds_block(tracked.rule.limits), MOST_SEEN),
        timeline=timeline,
    )


def _timeline(
    *,
    panes: Mapping[int, int],
    points: Sequence[Point],
    gaps: Gaps | None,
    thresholds: Mapping[str, int],
    interval_ms: int,
    between: tuple[int, int],
    marks: Marks,
) -> Timeline:
    drawn = steps(panes, interval_ms, *between)
    within = [one for one in points if drawn.start_ms <= one.tick_ms <= drawn.end_ms]
    exact = {ms: events for ms, events in panes.items() if drawn.start_ms <= ms < drawn.end_ms}
    found: list[Figure] = []
    if exact:
        caption = f"Events in each {span(drawn.width_ms)}"
        found.append(Figure(panes_plot(drawn, marks, _aloud(caption, list(drawn.counts.values()))), caption))
    if len(within) > 1:
        for caption, threshold, value in (
            ("Connections an hour in the window", thresholds["min_connections_per_hour"], _rate),
            (
                "Hours from the first to the last event in the window",
                thresholds["min_duration_hours"],
                _hours,
            ),
        ):
            line = thinned(within, value)
            dashed = f"{caption}; dashed: at least {number(threshold)}"
            aloud = _aloud(dashed, [height for _, height in line])
            plot = figure_plot(line, threshold, (drawn.start_ms, drawn.end_ms), marks, aloud)
            found.append(Figure(plot, dashed))
    if gaps is not None:
        found.append(_gaps(gaps))
    return Timeline(
        figures=found,
        marks=marks,
        panes=pane_rows(exact, interval_ms, _MOST_PANE_ROWS) if exact else None,
        verdicts=_verdicts(points),
    )


def _rate(point: Point) -> int:
    return point.figures.connections_per_hour


def _hours(point: Point) -> int:
    return point.figures.duration_hours


def _aloud(caption: str, values: Sequence[int]) -> str:
    """The label for screen readers."""
    return f"{caption}. From {number(min(values))} to {number(max(values))}." if values else caption


def _gaps(gaps: Gaps) -> Figure:
    caption = (
        f"Gaps between events, in steps of {span(gaps.width_ms)}; dotted: the median, {span(gaps.median_ms)}. "
        f"{100 * gaps.near_median:.0f} % of {number(gaps.total)} are within 20 % of it"
    )
    aside = [
        f"{number(count)} {word}"
        for count, word in ((gaps.shorter, "shorter"), (gaps.longer, "longer"))
        if count
    ]
    if aside:
        caption += f"; not drawn: {' and '.join(aside)}"
    return Figure(gaps_plot(gaps, caption), f"{caption}.")


def _verdicts(points: Sequence[Point]) -> Pairs:
    """Changes of the verdict: the tick, and the verdict from then on."""
    return [
        (moment(one.tick_ms), "true" if one.failed is None else f"false: {one.failed}")
        for one in reason_changes(points)
    ]
