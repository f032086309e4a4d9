"""The page as plain values, section by section. Everything is decided here; the templates only arrange it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamdetect.config import RuleSettings, Settings
from streamdetect.findings.episodes import Episode
from streamdetect.findings.outcome import Outcome
from streamdetect.report.comparisons import DiffView, VariantView, diff_view, variant_figures, variant_view
from streamdetect.report.dataframes import alerts_of, result_of, variants, verdicts_of
from streamdetect.report.key_views import (
    EpisodeView,
    Figure,
    NearView,
    Pairs,
    anchor,
    episode_view,
    near_view,
)
from streamdetect.report.plot_data import FATES, Volumes, volumes_of
from streamdetect.report.plots import volumes_plot
from streamdetect.report.words import joined, moment, number, span

MOST_PLOTTED = 50
MOST_NEAR_PLOTTED = 10
_MOST_ROWS = 1_000
_MOST_LISTED = 50


@dataclass(frozen=True, slots=True)
class ReadView:
    """The input, and the verdicts on its records."""

    inputs: Sequence[str]
    more_inputs: int
    records: Sequence[tuple[str, str, int]]
    numbers: Pairs
    shapes: Sequence[tuple[str, int]]
    volumes: Figure | None
    volume_rows: Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True, slots=True)
class PageView:
    """The whole page. `cards` are the main figures."""

    title: str
    range: str | None
    outcome: Outcome
    cards: Pairs
    variants: Sequence[VariantView]
    variant_figures: Sequence[Figure]
    expectations: Sequence[tuple[str, str, str, str]]
    diff: DiffView | None
    episodes: Sequence[EpisodeView]
    more_episodes: int
    several_rules: bool
    near: Sequence[NearView]
    read: ReadView
    settings: Pairs
    rules: Sequence[tuple[RuleSettings, Pairs]]


def page_view(outcome: Outcome) -> PageView:
    """The content of the page."""
    ordered = sorted(outcome.base.episodes, key=_opening)
    anchors = {episode.id: anchor(episode.id) for episode in ordered[:_MOST_ROWS]}
    reading = outcome.reading
    between = None
    if reading.first_ms is not None and reading.last_ms is not None:
        between = f"{moment(reading.first_ms)} to {moment(reading.last_ms)}"
    return PageView(
        title="Backtest" if between is None else f"Backtest, {between}",
        range=between,
        outcome=outcome,
        cards=_cards(outcome),
        variants=[variant_view(outcome, variant, anchors) for variant in variants(outcome)],
        variant_figures=variant_figures(outcome) if outcome.variants else (),
        expectations=[
            (verdict.name, verdict.kind.replace("_", " "), result_of(verdict), verdict.detail)
            for verdict in verdicts_of(outcome, outcome.base)
        ],
        diff=None if outcome.diff is None else diff_view(outcome.diff, anchors),
        episodes=[
            episode_view(episode, outcome, plotted=index < MOST_PLOTTED)
            for index, episode in enumerate(ordered[:_MOST_ROWS])
        ],
        more_episodes=max(0, len(ordered) - _MOST_ROWS),
        several_rules=len({episode.key.rule_id for episode in ordered}) > 1,
        near=[
            near_view(tracked, outcome.settings.time.interval_ms, plotted=index < MOST_NEAR_PLOTTED)
            for index, tracked in enumerate(outcome.near)
        ],
        read=_read(outcome),
        settings=_times(outcome.settings),
        rules=[(rule, _rule(rule)) for rule in outcome.settings.rules],
    )


def _opening(episode: Episode) -> tuple[object, ...]:
    return episode.opened_ms or episode.first_alert_ms, episode.key.order(), episode.id


def _cards(outcome: Outcome) -> Pairs:
    base = outcome.base
    alerts = alerts_of(base)
    cards = [
        ("episodes", number(len(base.episodes))),
        ("hosts", number(base.hosts)),
        ("alerts", number(alerts)),
        ("alerts a day", "-" if not outcome.days else number(round(alerts / outcome.days, 1))),
        ("open at the end", number(sum(episode.resolved_ms is None for episode in base.episodes))),
        ("records read", number(base.summary.get("consumed", 0))),
        ("days evaluated", number(round(outcome.days, 1))),
    ]
    verdicts = verdicts_of(outcome, base)
    if verdicts:
        held = sum(verdict.holds is True for verdict in verdicts)
        cards.append(("expectations held", f"{number(held)} of {number(len(verdicts))}"))
    return cards


def _read(outcome: Outcome) -> ReadView:
    reading, summary = outcome.reading, outcome.base.summary
    inputs = list(reading.inputs)
    volumes = volumes_of(reading.volumes, _between(outcome))
    return ReadView(
        inputs=inputs[:_MOST_LISTED],
        more_inputs=max(0, len(inputs) - _MOST_LISTED),
        records=[
            ("counted for a rule", "", summary.get("counted", 0)),
            *(
                ("filtered by", reason, count)
                for reason, count in sorted(summary.get("filtered", {}).items())
            ),
            ("too late", "", summary.get("late", 0)),
            *(
                ("refused, dead letter:", reason, count)
                for reason, count in sorted(summary.get("dead_lettered", {}).items())
            ),
        ],
        numbers=[
            ("records read", number(summary.get("consumed", 0))),
            ("ticks", number(summary.get("ticks", 0))),
            ("most keys in memory", number(summary.get("keys_peak", 0))),
            ("keys evicted", number(summary.get("evicted", 0))),
            ("clock leaps not believed at the end", number(summary.get("suspect_leaps", 0))),
        ],
        shapes=sorted(reading.shapes.items()),
        volumes=None if volumes is None else _volumes(volumes),
        volume_rows=[]
        if volumes is None
        else [
            (moment(ms), [volumes.by_fate[name][index] for name in FATES])
            for index, ms in enumerate(volumes.starts_ms)
        ],
    )


def _between(outcome: Outcome) -> tuple[int, int] | None:
    """From the first window to the last tick: a few wrong clocks must not compress the plot."""
    if outcome.first_tick_ms is None or outcome.last_tick_ms is None:
        return None
    return outcome.first_tick_ms - outcome.settings.time.lookback_ms, outcome.last_tick_ms


def _volumes(volumes: Volumes) -> Figure:
    caption = f"Records in each {span(volumes.width_ms)} of event time: {', '.join(FATES)}"
    if volumes.outside:
        caption += f". {number(volumes.outside)} with times outside this range are not drawn"
    return Figure(volumes_plot(volumes, caption), f"{caption}.")


def _times(settings: Settings) -> Pairs:
    """Profile and time. Other settings may contain secrets or names of machines and are not read here."""
    shown = settings.time.model_dump(mode="json", by_alias=True)
    return [("profile", settings.profile), *((f"time.{name}", str(value)) for name, value in shown.items())]


def _rule(rule: RuleSettings) -> Pairs:
    shown = rule.model_dump(mode="json", by_alias=True, exclude={"name"})
    found = []
    for name, value in shown.items():
        if name == "exceptions":
            value = [  # noqa: PLW2901 - one that matches by several fields is one text
                " and ".join(f"{part} {wanted}" for part, wanted in one.items() if wanted is not None)
                for one in value
            ]
        text = joined(value if not isinstance(value, bool) else "yes" if value else "no")
        found.append((name, text or "none"))
    return found
