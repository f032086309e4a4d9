"""Why a key alerts, or why not: its figures at a tick beside the thresholds, and how they changed over time.

Evaluates what `replay` reads as a backtest does, with the same results, and tracks only the requested key. Or reads a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.config import NamedSettings, Settings
from streamdetect.detect import Rule, serde
from streamdetect.detect.alerts import Key, figures_block, iso, thresholds_block
from streamdetect.detect.conditions import Figures
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.near_misses import Point, TrackedKey, reason_changes
from streamdetect.detect.preaggregate import COUNT, PreAggregate
from streamdetect.detect.rules import enabled_rules
from streamdetect.detect.windows import WindowState, fold
from streamdetect.errors import UsageError
from streamdetect.events.values import parse_address
from streamdetect.findings.outcome import Outcome
from streamdetect.findings.timeline import (
    Timeline,
    TimelineTable,
    table_of,
    timeline_of_states,
    timeline_of_tracked,
)
from streamdetect.model import address_key_of
from streamdetect.report.words import conditions
from streamdetect.service.bounded.variant_replay import ReplayOptions, run_backtest
from streamdetect.service.inspect.open import check_settings, read_checkpoint, settings_of
from streamdetect.sources import Source

_ALL = 1_000_000  # keys: one for each rule and sensor with this destination and process
_CHECK_SPELLING = "Check that destination and process are spelled as in the events."


@dataclass(frozen=True, slots=True)
class ExplainQuery:
    """A destination and process as in an alert; `at_ms` is the time to explain, None for the last tick."""

    destination: str
    process: str
    at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """One key of one rule: its timeline, the explanation as text, and the timeline as a table (None if empty)."""

    timeline: Timeline
    text: str
    table: TimelineTable | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation from files. `remarks` say that there is no key, or that a timeline is incomplete.

    `tracked` are the keys themselves, each with all points of its timeline.
    """

    title: str
    keys: Sequence[Explained]
    tracked: Sequence[TrackedKey]
    remarks: Sequence[str]


def explain_source(*, settings: Settings, source: Source, query: ExplainQuery) -> Explanation:
    """Explain all keys that match the query.

    Raises InputError as a replay does, UsageError for a time after the last tick.
    """
    address, process = _as_in_keys(query, settings)
    options = ReplayOptions(near=_ALL, only=(_addresses(address), process))
    outcome = run_backtest(variants=[NamedSettings("base", {}, settings)], source=source, options=options)
    if outcome.problem is not None:
        raise outcome.problem
    found = sorted((*outcome.near, *outcome.tracked_keys.values()), key=lambda tracked: tracked.key.order())
    incomplete = _eviction_remarks(outcome)
    title = f"{process} to {address}" + " (until limits.max_keys was exceeded)" * bool(incomplete)
    if not found:
        return Explanation(title, (), (), [_no_key(outcome, address, process), *incomplete])
    last_ms = (
        max(tracked.points[-1].tick_ms for tracked in found) if incomplete else outcome.last_tick_ms or 0
    )
    at_ms = last_ms if query.at_ms is None else _tick_of(query.at_ms, settings)
    if at_ms > last_ms:
        what = "the last tick at which this key was tracked" if incomplete else "the last tick of this input"
        raise UsageError(f"{what} is {iso(last_ms)}. Choose --at at or before it.")
    timelines = [timeline_of_tracked(tracked, last_ms) for tracked in found]
    return Explanation(
        title,
        [Explained(one, _text(one, at_ms), table_of(one, at_ms)) for one in timelines],
        [replace(tracked, points=list(one.points)) for tracked, one in zip(found, timelines, strict=True)],
        incomplete,
    )


def _no_key(outcome: Outcome, address: str, process: str) -> str:
    summary = outcome.base.summary
    filtered = ", ".join(f"{count} by {reason}" for reason, count in summary["filtered"].items()) or "none"
    return (
        f"No event of {process} to {address} counts for any rule, or none is left in the window at the end.\n"
        f"{summary['counted']} of {summary['consumed']} records count for some key; filtered: {filtered}.\n"
        f"{_CHECK_SPELLING}"
    )


def _eviction_remarks(outcome: Outcome) -> list[str]:
    """Keys are tracked until the first eviction: later points are unknown."""
    evicted = outcome.base.summary["evicted"]
    if not evicted:
        return []
    return [
        f"limits.max_keys was exceeded and {evicted} keys were evicted; this key is not tracked after the first"
        " eviction. Raise limits.max_keys to see its whole timeline."
    ]


def explain_checkpoint(*, store: CheckpointStore, settings: Settings | None, query: ExplainQuery) -> str:
    """Explain keys of a checkpoint at its last evaluated tick or a later one, as if no more events arrived.

    `settings` None: those the checkpoint was made with. Raises CheckpointError for a damaged checkpoint or one made
    with other settings, UsageError for a time before the last evaluated tick: that window is gone.
    """
    return read_checkpoint(store, lambda stored: _explain_stored(stored, settings, query))


def _explain_stored(stored: Stored, settings: Settings | None, query: ExplainQuery) -> str:
    if settings is None:
        settings = settings_of(stored)
    else:
        check_settings(stored, settings)
    evaluated_ms = stored.progress["evaluated_ms"]
    at_ms = evaluated_ms if query.at_ms is None else _tick_of(query.at_ms, settings)
    if at_ms is not None and evaluated_ms is not None and at_ms < evaluated_ms:
        raise UsageError(
            f"this checkpoint has evaluated the ticks up to {iso(evaluated_ms)} and holds no earlier window. Choose "
            "--at at or after it, or explain the files."
        )
    head = f"Checkpoint {stored.number} has evaluated " + (
        "no tick yet." if evaluated_ms is None else f"the ticks up to {iso(evaluated_ms)}."
    )
    if at_ms != evaluated_ms and at_ms is not None:
        head += f" At {iso(at_ms)}, with the events that wait for ticks up to it and no later ones:"
    keys = _stored_keys(stored, settings, query)
    if not keys:
        empty = f"No event of {query.process} to {query.destination} is in its window, and none waits."
        return f"{head}\n{empty}\n{_CHECK_SPELLING}"
    texts = [keys[identity].explain(evaluated_ms, at_ms) for identity in sorted(keys, key=_order)]
    return "\n\n".join([head, *texts])


def _order(identity: tuple[str, Key]) -> tuple[object, ...]:
    rule_id, key = identity
    return key.order(), rule_id


@dataclass(slots=True)
class _StoredKey:
    """One key of one rule in a checkpoint. `waiting` are its pre-aggregates by tick."""

    rule: Rule
    key: Key
    state: WindowState | None = None
    episode: EpisodeState | None = None
    waiting: dict[int, list[PreAggregate]] = field(default_factory=dict)

    def explain(self, evaluated_ms: int | None, at_ms: int | None) -> str:
        """The explanation at a tick, with the events that wait for ticks up to it."""
        if at_ms is None:
            return "\n".join([_title(self.rule, self.key), *self._rest(at_ms)])
        timeline = timeline_of_states(self.rule, self.key, list(self._states(evaluated_ms, at_ms)), at_ms)
        return "\n".join([_text(timeline, at_ms), *self._rest(at_ms)])

    def _states(self, evaluated_ms: int | None, at_ms: int) -> Iterator[tuple[int, WindowState]]:
        """Its window state at the evaluated tick, and at each later one for which events wait."""
        state, limits = self.state, self.rule.limits
        if state is not None and evaluated_ms is not None:
            yield evaluated_ms, state
        for tick_ms in sorted(tick_ms for tick_ms in self.waiting if tick_ms <= at_ms):
            for pre in self.waiting[tick_ms]:
                address_key = address_key_of(self.key.address)
                state = fold(state, pre, address_key, tick_ms - limits.lookback_ms, limits)
            if state is not None:
                yield tick_ms, state

    def _rest(self, at_ms: int | None) -> list[str]:
        lines = ["  in the checkpoint: no open episode"]
        if self.episode is not None:
            opened, alerted = iso(self.episode.opened_ms), iso(self.episode.alerted_ms)
            lines = [f"  in the checkpoint: an episode open since {opened}, last alert {alerted}"]
        later = {
            tick_ms: sum(pre[COUNT] for pre in waiting)
            for tick_ms, waiting in sorted(self.waiting.items())
            if at_ms is None or tick_ms > at_ms
        }
        ticks = ", ".join(f"{iso(tick_ms)}={count}" for tick_ms, count in later.items())
        lines.append(f"  events that wait for later ticks: {sum(later.values())}{ticks and f' ({ticks})'}")
        return lines


def _stored_keys(
    stored: Stored, settings: Settings, query: ExplainQuery
) -> dict[tuple[str, Key], _StoredKey]:
    """The keys of a checkpoint that match a query."""
    address, process = _as_in_keys(query, settings)
    addresses = _addresses(address)
    rules = {rule.id: rule for rule in enabled_rules(settings)}
    keys: dict[tuple[str, Key], _StoredKey] = {}

    def matching(rows: Iterator[Row]) -> Iterator[tuple[_StoredKey, Row]]:
        for row in rows:
            rule_id, key = row["rule"], Key(*row["key"])
            if key.process == process and key.address in addresses:
                yield keys.setdefault((rule_id, key), _StoredKey(rules[rule_id], key)), row

    for one, row in matching(iter(stored.keys)):
        one.state, one.episode = serde.state_of(row), serde.episode_of(row)
    for one, row in matching(iter(stored.waiting)):
        one.waiting.setdefault(row["tick_ms"], []).append(serde.pre_aggregate_of(row))
    return keys


def _as_in_keys(query: ExplainQuery, settings: Settings) -> tuple[str, str]:
    """Destination and process in the form that keys have under the profile."""
    address, process = query.destination, query.process
    if settings.profile == "resilient":
        return parse_address(address) or address.lower(), process.lower()
    return address, process


def _addresses(address: str) -> frozenset[str | None]:
    """The addresses of matching keys; `null` also matches events without a destination.address (semantics.md §2)."""
    return frozenset({address, None} if address == "null" else {address})


def _tick_of(time_ms: int, settings: Settings) -> int:
    """The first tick at or after a time."""
    interval_ms = settings.time.interval_ms
    return -(-time_ms // interval_ms) * interval_ms


def _title(rule: Rule, key: Key) -> str:
    sensor = f" (sensor {key.sensor})" if key.sensor else ""
    address = "no address (null)" if key.address is None else key.address
    return f"{key.process} to {address}{sensor}, rule {rule.name} [{rule.id}]"


def _text(timeline: Timeline, at_ms: int) -> str:
    figures = timeline.figures_at(at_ms)
    since_ms = at_ms - timeline.rule.limits.lookback_ms
    lines = [
        _title(timeline.rule, timeline.key),
        f"  window {iso(since_ms)} to {iso(at_ms)}, evaluated at {iso(at_ms)}",
        *_conditions(timeline, figures),
        *_panes(timeline, figures, since_ms, at_ms),
        "  verdicts over time:",
        *(f"    {iso(point.tick_ms)}  {_verdict(point)}" for point in reason_changes(timeline.points)),
    ]
    return "\n".join(lines)


def _conditions(timeline: Timeline, figures: Figures) -> list[str]:
    if not figures.events:
        return ["  no event in this window"]
    thresholds = thresholds_block(timeline.rule.limits)
    found = conditions(figures_block(figures), thresholds, timeline.told_apart)
    return [f"  {'holds' if one.holds else 'FAILS'}  {one.sentence}" for one in found]


def _panes(timeline: Timeline, figures: Figures, since_ms: int, at_ms: int) -> list[str]:
    """The panes of the window. They include events that arrived too late for this tick (semantics.md §4), whose number
    is given.
    """
    if not figures.events:
        return []
    within = {ms: events for ms, events in sorted(timeline.panes.items()) if since_ms <= ms < at_ms}
    counts = " ".join(f"{iso(ms)[11:16]}={events}" for ms, events in within.items())
    late = sum(within.values()) - figures.events
    late_text = f" ({late} of them arrived too late for this tick)" if late else ""
    return [f"  events per pane of {timeline.rule.limits.interval_ms // 1000} s: {counts}{late_text}"]


def _verdict(point: Point) -> str:
    return "true: the condition holds" if point.failed is None else f"false: {point.failed}"
