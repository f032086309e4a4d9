"""Why a key alerts, or why not: its figures at a tick beside the thresholds, and how they went on.

Reads what `replay` reads and evaluates it as a backtest does, with the same answers; only the key asked for is
followed. Or looks into a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.config import NamedSettings, Settings
from streamdetect.detect import Detector, Rule, serde
from streamdetect.detect.alerts import Key, iso
from streamdetect.detect.episodes import EpisodeState, Figures
from streamdetect.detect.near_misses import Point, TrackedKey, verdicts
from streamdetect.detect.windows import COUNT, PreAggregate, WindowState, fold
from streamdetect.errors import UsageError
from streamdetect.events.values import parse_address
from streamdetect.findings.outcome import Outcome
from streamdetect.model import address_key_of
from streamdetect.service.bounded.variant_replay import ReplayOptions, run_backtest
from streamdetect.service.inspect.open import check_settings, of_last, settings_of
from streamdetect.service.inspect.timeline import (
    Timeline,
    TimelineTable,
    course_of_states,
    course_of_track,
    timeline,
)
from streamdetect.sources import Source

_ALL = 1_000_000  # keys: one for each rule and sensor that knows the destination and process


@dataclass(frozen=True, slots=True)
class ExplainQuery:
    """A destination and process as an alert gives them; `at_ms` is the moment to look at, None for the last tick."""

    destination: str
    process: str
    at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """One key of one rule: its course, the explanation as text, and its timeline (None where there is none)."""

    course: Timeline
    text: str
    timeline: TimelineTable | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What files tell. `remarks` are said where there is no key, or not all of its course is known.

    `tracks` are those of the keys, each with all points of its course.
    """

    title: str
    keys: Sequence[Explained]
    tracks: Sequence[TrackedKey]
    remarks: Sequence[str]


def explain_source(*, settings: Settings, source: Source, question: ExplainQuery) -> Explanation:
    """The explanation of all keys asked for.

    Raises InputError as a replay does, UsageError for a time behind the last tick.
    """
    address, process = _spelled(question, settings)
    ways = ReplayOptions(near=_ALL, only=(_addresses(address), process))
    outcome = run_backtest(variants=[NamedSettings("base", {}, settings)], source=source, ways=ways)
    if outcome.problem is not None:
        raise outcome.problem
    tracks = sorted((*outcome.near, *outcome.tracks.values()), key=lambda track: track.key.order())
    unknown = _given_up(outcome)
    title = f"{process} to {address}" + " (until limits.max_keys was reached)" * bool(unknown)
    if not tracks:
        return Explanation(title, (), (), [_nothing(outcome, address, process), *unknown])
    last_ms = max(track.points[-1].tick_ms for track in tracks) if unknown else outcome.last_tick_ms or 0
    at_ms = last_ms if question.at_ms is None else _tick_of(question.at_ms, settings)
    if at_ms > last_ms:
        what = "the last tick at which this key is known" if unknown else "the last tick of this input"
        raise UsageError(f"{what} is {iso(last_ms)}. Choose --at at or before it.")
    courses = [course_of_track(track, last_ms) for track in tracks]
    return Explanation(
        title,
        [Explained(course, _explain(course, at_ms), timeline(course, at_ms)) for course in courses],
        [replace(track, points=list(course.points)) for track, course in zip(tracks, courses, strict=True)],
        unknown,
    )


def _nothing(outcome: Outcome, address: str, process: str) -> str:
    summary = outcome.base.summary
    filtered = ", ".join(f"{count} by {reason}" for reason, count in summary["filtered"].items()) or "none"
    return (
        f"No event of {process} to {address} counts for any rule, or none is left in the window at the end.\n"
        f"{summary['counted']} of {summary['consumed']} records count for some key; filtered: {filtered}.\n"
        "Are destination and process spelled as the events have them?"
    )


def _given_up(outcome: Outcome) -> list[str]:
    """A track ends where the engine first gives up keys: what it would tell from there on is not known."""
    evicted = outcome.base.summary["evicted"]
    if not evicted:
        return []
    return [
        f"limits.max_keys was reached and {evicted} keys were given up; from there on this one is not followed any"
        " further. Raise limits.max_keys to see its whole course."
    ]


def explain_checkpoint(*, store: CheckpointStore, settings: Settings | None, question: ExplainQuery) -> str:
    """The explanation out of a checkpoint, at its last evaluated tick or a later one, as if no more events came.

    Raises CheckpointError for one that is damaged, or was made with other `settings` (None: with which it was made),
    UsageError for a time before that tick: what the window held then is gone.
    """
    return of_last(store, lambda stored: _explain_stored(stored, settings, question))


def _explain_stored(stored: Stored, settings: Settings | None, question: ExplainQuery) -> str:
    if settings is None:
        settings = settings_of(stored)
    else:
        check_settings(stored, settings)
    evaluated_ms = stored.progress["evaluated_ms"]
    at_ms = evaluated_ms if question.at_ms is None else _tick_of(question.at_ms, settings)
    if at_ms is not None and evaluated_ms is not None and at_ms < evaluated_ms:
        raise UsageError(
            f"this checkpoint has evaluated the ticks up to {iso(evaluated_ms)} and holds no earlier window. Choose "
            "--at at or after it, or explain the files."
        )
    head = f"Checkpoint {stored.number} has evaluated " + (
        "no tick yet." if evaluated_ms is None else f"the ticks up to {iso(evaluated_ms)}."
    )
    if at_ms != evaluated_ms and at_ms is not None:
        head += f" At {iso(at_ms)}, with the events that wait for ticks up to it, as if no more came:"
    remembered = _remembered(stored, settings, question)
    if not remembered:
        told = f"No event of {question.process} to {question.destination} is in its window, and none waits."
        return f"{head}\n{told}\nAre destination and process spelled as the events have them?"
    texts = [known.explain(evaluated_ms, at_ms) for _, known in sorted(remembered.items(), key=_by_key)]
    return "\n\n".join([head, *texts])


def _by_key(item: tuple[tuple[str, Key], _Remembered]) -> tuple[object, ...]:
    (rule_id, key), _ = item
    return key.order(), rule_id


@dataclass(slots=True)
class _Remembered:
    """What a checkpoint holds of one key of one rule. `waiting` are its parts of inboxes by tick."""

    rule: Rule
    key: Key
    history: WindowState | None = None
    episode: EpisodeState | None = None
    waiting: dict[int, list[PreAggregate]] = field(default_factory=dict)

    def explain(self, evaluated_ms: int | None, at_ms: int | None) -> str:
        """At a tick, with the events that wait for ticks up to it."""
        if at_ms is None:
            return "\n".join([_title(self.rule, self.key), *self._rest(at_ms)])
        course = course_of_states(self.rule, self.key, list(self._states(evaluated_ms, at_ms)), at_ms)
        return "\n".join([_explain(course, at_ms), *self._rest(at_ms)])

    def _states(self, evaluated_ms: int | None, at_ms: int) -> Iterator[tuple[int, WindowState]]:
        """Its history at the evaluated tick, and at each later one for which events wait."""
        history = self.history
        if history is not None and evaluated_ms is not None:
            yield evaluated_ms, history
        for tick_ms in sorted(tick_ms for tick_ms in self.waiting if tick_ms <= at_ms):
            oldest_ms = tick_ms - self.rule.limits.lookback_ms
            for partial in self.waiting[tick_ms]:
                history = fold(
                    history, partial, address_key_of(self.key.address), oldest_ms, self.rule.limits
                )
            if history is not None:
                yield tick_ms, history

    def _rest(self, at_ms: int | None) -> list[str]:
        lines = ["  in the checkpoint: no open episode"]
        if self.episode is not None:
            opened, alerted = iso(self.episode.opened_ms), iso(self.episode.alerted_ms)
            lines = [f"  in the checkpoint: an episode open since {opened}, last alert {alerted}"]
        counts = {
            tick_ms: sum(partial[COUNT] for partial in parts) for tick_ms, parts in self.waiting.items()
        }
        later = {tick_ms: count for tick_ms, count in counts.items() if at_ms is None or tick_ms > at_ms}
        ticks = ", ".join(f"{iso(tick_ms)}={count}" for tick_ms, count in sorted(later.items()))
        lines.append(f"  events that wait for later ticks: {sum(later.values())}{ticks and f' ({ticks})'}")
        return lines


def _remembered(
    stored: Stored, settings: Settings, question: ExplainQuery
) -> dict[tuple[str, Key], _Remembered]:
    address, process = _spelled(question, settings)
    addresses = _addresses(address)
    rules = {rule.id: rule for rule in Detector(settings).rules}
    found: dict[tuple[str, Key], _Remembered] = {}

    def known(row: Row) -> _Remembered | None:
        key = Key(*row["key"])
        if key.process != process or key.address not in addresses:
            return None
        return found.setdefault((row["rule"], key), _Remembered(rules[row["rule"]], key))

    for row in stored.keys:
        one = known(row)
        if one is not None:
            one.history, one.episode = serde.history_of(row), serde.episode_of(row)
    for row in stored.waiting:
        one = known(row)
        if one is not None:
            one.waiting.setdefault(row["tick_ms"], []).append(serde.partial_of(row))
    return found


def _spelled(question: ExplainQuery, settings: Settings) -> tuple[str, str]:
    """Destination and process as keys have them."""
    address, process = question.destination, question.process
    if settings.profile == "resilient":
        return parse_address(address) or address.lower(), process.lower()
    return address, process


def _addresses(address: str) -> frozenset[str | None]:
    """Those of the keys asked for; `null` is also the key of events without a destination.address (§2)."""
    return frozenset({address, None} if address == "null" else {address})


def _tick_of(time_ms: int, settings: Settings) -> int:
    """The first tick at or after a time."""
    interval_ms = settings.time.interval_ms
    return -(-time_ms // interval_ms) * interval_ms


def _title(rule: Rule, key: Key) -> str:
    sensor = f" (sensor {key.sensor})" if key.sensor else ""
    whither = "no address (null)" if key.address is None else key.address
    return f"{key.process} to {whither}{sensor}, rule {rule.name} [{rule.id}]"


def _explain(course: Timeline, at_ms: int) -> str:
    figures = course.figures_at(at_ms)
    since_ms = at_ms - course.rule.limits.lookback_ms
    lines = [
        _title(course.rule, course.key),
        f"  window {iso(since_ms)} to {iso(at_ms)}, evaluated at {iso(at_ms)}",
        *_conditions(course, figures),
        *_panes(course, figures, since_ms, at_ms),
        "  verdicts over time:",
        *(f"    {iso(point.tick_ms)}  {_verdict(point)}" for point in verdicts(course.points)),
    ]
    return "\n".join(lines)


def _conditions(course: Timeline, figures: Figures) -> list[str]:
    limits = course.rule.limits
    if not figures.events:
        return ["  no event in this window"]
    rate, hours = figures.connections_per_hour, figures.duration_hours
    span_s = (figures.last_ms - figures.first_ms) / 1000
    hosts = course.counted(figures.hosts, limits.max_hosts)
    processes = course.counted(figures.processes, limits.max_processes)
    checks = [
        (
            rate >= limits.min_connections_per_hour,
            f"{figures.events} connections // {max(1, hours)} h = {rate} an hour,"
            f" at least {limits.min_connections_per_hour}",
        ),
        (
            hours >= limits.min_duration_hours,
            f"{iso(figures.first_ms)} to {iso(figures.last_ms)} is {span_s:.3f} s, rounded {hours} h,"
            f" at least {limits.min_duration_hours}",
        ),
        (1 <= figures.hosts <= limits.max_hosts, f"{hosts} hosts, 1 to {limits.max_hosts}"),
        (
            1 <= figures.processes <= limits.max_processes,
            f"{processes} processes, 1 to {limits.max_processes}",
        ),
    ]
    return [f"  {'holds' if holds else 'FAILS'}  {text}" for holds, text in checks]


def _panes(course: Timeline, figures: Figures, since_ms: int, at_ms: int) -> list[str]:
    """Those of the window. Events that arrived too late for this tick are among them (§4): how many, is told."""
    if not figures.events:
        return []
    within = {ms: events for ms, events in sorted(course.panes.items()) if since_ms <= ms < at_ms}
    counts = " ".join(f"{iso(ms)[11:16]}={events}" for ms, events in within.items())
    late = sum(within.values()) - figures.events
    told = f" ({late} of them came too late for this tick)" if late else ""
    return [f"  events per pane of {course.rule.limits.interval_ms // 1000} s: {counts}{told}"]


def _verdict(point: Point) -> str:
    return "true: the condition holds" if point.objection is None else f"false: {point.objection}"
