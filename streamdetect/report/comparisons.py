"""Differences for the report: variants against the base, and the episodes of one run against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamdetect.findings.diff import Diff
from streamdetect.findings.episodes import Episode
from streamdetect.findings.outcome import Outcome, Variant
from streamdetect.report.dataframes import alerts_of, variants, verdicts_of
from streamdetect.report.key_views import Figure, Pairs, reason_of
from streamdetect.report.plots import bars_plot
from streamdetect.report.words import moment, number, shift, visible

MOST_BARS = 60
"""Most variants in a plot; the table has all of them."""

_MOST_ROWS = 1_000
_BETWEEN = " · "


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One difference. `anchor` is the episode's anchor, if the page shows the episode."""

    what: str
    anchor: str | None
    episode: Episode
    detail: str


@dataclass(frozen=True, slots=True)
class DiffView:
    """The differences of one diff, the most important first."""

    rows: Sequence[DiffRow]
    more: int
    counts: Pairs


@dataclass(frozen=True, slots=True)
class VariantView:
    """A row of the table of variants; the differences are None for the base."""

    name: str
    episodes: int
    hosts: int
    alerts_a_day: float
    diff: Diff | None
    kept: str
    listed: DiffView | None


def variant_view(outcome: Outcome, variant: Variant, anchors: Mapping[str, str]) -> VariantView:
    verdicts = verdicts_of(outcome, variant)
    held = sum(verdict.holds is True for verdict in verdicts)
    differs = variant.diff is not None and not variant.diff.empty
    return VariantView(
        name=variant.name,
        episodes=len(variant.episodes),
        hosts=variant.hosts,
        alerts_a_day=_a_day(outcome, variant),
        diff=variant.diff,
        kept=f"{number(held)} of {number(len(verdicts))}" if verdicts else "-",
        listed=diff_view(variant.diff, anchors) if differs and variant.diff is not None else None,
    )


def _a_day(outcome: Outcome, variant: Variant) -> float:
    return round(alerts_of(variant) / outcome.days, 1) if outcome.days else 0.0


def variant_figures(outcome: Outcome) -> list[Figure]:
    """A bar for each variant, as far as bars are readable."""
    everyone = variants(outcome)
    plotted = everyone[:MOST_BARS]
    names, settings = bar_names(plotted)
    suffix = f" by {visible(settings)}" if settings else ""
    if left := len(everyone) - len(plotted):
        suffix += f"; the first {number(len(plotted))} variants, {number(left)} more are only in the table"
    return [
        Figure(bars_plot(names, values, f"{what} for each variant{suffix}"), f"{what}{suffix}")
        for what, values in (
            ("Episodes", [len(variant.episodes) for variant in plotted]),
            ("Hosts", [variant.hosts for variant in plotted]),
            ("Alerts a day", [_a_day(outcome, variant) for variant in plotted]),
        )
    ]


def bar_names(everyone: Sequence[Variant]) -> tuple[list[str], str]:
    """A short name for each variant, and the settings whose values it consists of: those shared by a whole grid.

    Variants of `--vary` are named by all their settings (`a=1 b=2`), the same ones in each; files by their path.
    """
    grid = [one for one in everyone if one.changes and one.name == _called(one)]
    shared = {tuple(one.changes) for one in grid}
    if len(shared) != 1:
        return [one.name for one in everyone], ""
    short = {one.name: _BETWEEN.join(one.changes.values()) for one in grid}
    return [short.get(one.name, one.name) for one in everyone], _BETWEEN.join(shared.pop())


def _called(variant: Variant) -> str:
    return " ".join(f"{name}={value}" for name, value in variant.changes.items())


def diff_view(diff: Diff, anchors: Mapping[str, str]) -> DiffView:
    rows = [
        *(DiffRow("appeared", anchors.get(one.id), one, _life(one)) for one in diff.appeared),
        *(DiffRow("gone", anchors.get(one.id), one, _life(one)) for one in diff.gone),
        *(
            DiffRow(
                "moved",
                anchors.get(one.after.id) or anchors.get(one.before.id),
                one.after,
                f"opens {shift(one.by_ms)}: {_at(one.after.opened_ms)} instead of {_at(one.before.opened_ms)}",
            )
            for one in diff.moved
        ),
        *(
            DiffRow(
                "ended otherwise",
                anchors.get(one.after.id),
                one.after,
                f"now {_end(one.after)}, before {_end(one.before)}",
            )
            for one in diff.ended_otherwise
        ),
    ]
    counts = {
        "appeared": len(diff.appeared),
        "gone": len(diff.gone),
        "moved": len(diff.moved),
        "ended otherwise": len(diff.ended_otherwise),
        "unchanged": len(diff.unchanged),
        "outside the range that both evaluated": diff.outside,
    }
    return DiffView(
        rows=rows[:_MOST_ROWS],
        more=max(0, len(rows) - _MOST_ROWS),
        counts=[(name, number(count)) for name, count in counts.items()],
    )


def _life(episode: Episode) -> str:
    return f"{_at(episode.opened_ms)}, {_end(episode)}"


def _at(ms: int | None) -> str:
    return "an unknown time" if ms is None else moment(ms)


def _end(episode: Episode) -> str:
    if episode.resolved_ms is None:
        return "open at the end"
    return f"resolved {moment(episode.resolved_ms)} ({reason_of(episode)})"
