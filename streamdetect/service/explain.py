"""Why a key alerts, or why not: its figures at a tick beside the thresholds, and when its verdict changed.

Reads what `replay` reads and evaluates with the same code; only the key asked for is noted down. Or looks into a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.config import Settings
from streamdetect.detect import Detector, Listener, Rule, saved
from streamdetect.detect.alerts import Key, iso
from streamdetect.detect.episodes import Episode, Look, leaves_ms, look, objection
from streamdetect.detect.history import COUNT, History, Partial, fold, seen, unpack_panes
from streamdetect.detect.rules import Limits
from streamdetect.errors import UsageError
from streamdetect.events.values import parse_address
from streamdetect.service.replay import run_replay
from streamdetect.service.stored import check_settings, of_last, settings_of
from streamdetect.sinks.files import NullSink
from streamdetect.sources import Source


@dataclass(frozen=True, slots=True)
class Question:
    """A destination and process as an alert gives them; `at_ms` is the moment to look at, None for the last tick."""

    destination: str
    process: str
    at_ms: int | None = None


@dataclass(slots=True)
class Track:
    """One key of one rule: its history after each tick at which it changed."""

    rule: Rule
    key: Key
    states: list[tuple[int, History]] = field(default_factory=list)


class Tracker(Listener):
    """Notes the histories of the keys asked for, after each evaluated tick."""

    def __init__(self, address: str, process: str) -> None:
        self.detector: Detector | None = None
        self.tracks: dict[tuple[str, Key], Track] = {}
        self.last_tick_ms: int | None = None
        self._address = address
        self._process = process

    def attached(self, detector: Detector) -> None:
        self.detector = detector

    def evaluated(self, tick_ms: int, keys: int) -> None:
        del keys
        self.last_tick_ms = tick_ms
        if self.detector is None:
            return
        for rule, key, history in self._found(self.detector):
            track = self.tracks.setdefault((rule.id, key), Track(rule, key))
            if not track.states or track.states[-1][1] is not history:
                track.states.append((tick_ms, history))

    def _found(self, detector: Detector) -> Iterator[tuple[Rule, Key, History]]:
        """The destination's keys; `null` is also the key of events without a destination.address (§2)."""
        yield from detector.inspect(self._address, self._process)
        if self._address == "null":
            yield from detector.inspect(None, self._process)


def explain_source(*, settings: Settings, source: Source, question: Question) -> str:
    """The explanation as text. Raises InputError as a replay does, UsageError for a time before the first tick."""
    address, process = _spelled(question, settings)
    tracker = Tracker(address, process)
    summary = run_replay(
        settings=settings,
        source=source,
        alert_sink=NullSink(),
        dead_letter_sink=NullSink(),
        listener=tracker,
    )
    if not tracker.tracks:
        filtered = ", ".join(f"{count} by {reason}" for reason, count in summary.filtered.items()) or "none"
        return (
            f"No event of {process} to {address} counts for any rule, or none is left in the window at the end.\n"
            f"{summary.counted} of {summary.consumed} records count for some key; filtered: {filtered}.\n"
            "Are destination and process spelled as the events have them?"
        )
    last_ms = tracker.last_tick_ms or 0
    at_ms = last_ms if question.at_ms is None else _tick_of(question.at_ms, settings)
    if question.at_ms is not None and at_ms > last_ms:
        raise UsageError(f"the last tick of this input is {iso(last_ms)}. Choose --at at or before it.")
    return "\n\n".join(_explain(track, at_ms, last_ms) for track in tracker.tracks.values())


def explain_checkpoint(*, store: CheckpointStore, settings: Settings | None, question: Question) -> str:
    """The explanation out of a checkpoint, at its last evaluated tick or a later one, as if no more events came.

    Raises CheckpointError for one that is damaged, or was made with other `settings` (None: with which it was made),
    UsageError for a time before that tick: what the window held then is gone.
    """
    return of_last(store, lambda stored: _explain_stored(stored, settings, question))


def _explain_stored(stored: Stored, settings: Settings | None, question: Question) -> str:
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

    track: Track
    history: History | None = None
    episode: Episode | None = None
    waiting: dict[int, list[Partial]] = field(default_factory=dict)

    def explain(self, evaluated_ms: int | None, at_ms: int | None) -> str:
        """At a tick, with the events that wait for ticks up to it."""
        track, history = self.track, self.history
        if history is not None and evaluated_ms is not None:
            track.states.append((evaluated_ms, history))
        for tick_ms in sorted(self.waiting):
            if at_ms is None or tick_ms > at_ms:
                break
            oldest_ms = tick_ms - track.rule.limits.lookback_ms
            for partial in self.waiting[tick_ms]:
                history = fold(history, partial, track.key.address, oldest_ms, track.rule.limits)
            if history is not None:
                track.states.append((tick_ms, history))
        lines = [_title(track)] if at_ms is None else [_explain(track, at_ms, at_ms)]
        return "\n".join([*lines, *self._rest(at_ms)])

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


def _remembered(stored: Stored, settings: Settings, question: Question) -> dict[tuple[str, Key], _Remembered]:
    """The destination's keys; `null` is also the key of events without a destination.address (§2)."""
    address, process = _spelled(question, settings)
    addresses = {address, None} if address == "null" else {address}
    rules = {rule.id: rule for rule in Detector(settings).rules}
    found: dict[tuple[str, Key], _Remembered] = {}

    def known(row: Row) -> _Remembered | None:
        key = Key(*row["key"])
        if key.process != process or key.address not in addresses:
            return None
        return found.setdefault((row["rule"], key), _Remembered(Track(rules[row["rule"]], key)))

    for row in stored.keys:
        one = known(row)
        if one is not None:
            one.history, one.episode = saved.history_of(row), saved.episode_of(row)
    for row in stored.waiting:
        one = known(row)
        if one is not None:
            one.waiting.setdefault(row["tick_ms"], []).append(saved.partial_of(row))
    return found


def _spelled(question: Question, settings: Settings) -> tuple[str, str]:
    """Destination and process as keys have them."""
    address, process = question.destination, question.process
    if settings.profile == "resilient":
        return parse_address(address) or address.lower(), process.lower()
    return address, process


def _tick_of(time_ms: int, settings: Settings) -> int:
    """The first tick at or after a time."""
    interval_ms = settings.time.interval_ms
    return -(-time_ms // interval_ms) * interval_ms


def _title(track: Track) -> str:
    sensor = f" (sensor {track.key.sensor})" if track.key.sensor else ""
    whither = "no address (null)" if track.key.address is None else track.key.address
    return f"{track.key.process} to {whither}{sensor}, rule {track.rule.name} [{track.rule.id}]"


def _explain(track: Track, at_ms: int, last_ms: int) -> str:
    lines = [_title(track)]
    history = next((state for tick_ms, state in reversed(track.states) if tick_ms <= at_ms), None)
    found = look(history, None, at_ms, track.rule.limits)
    lines.append(
        f"  window {iso(at_ms - track.rule.limits.lookback_ms)} to {iso(at_ms)}, evaluated at {iso(at_ms)}"
    )
    lines += _conditions(track.rule, found)
    lines += _panes(track.rule, found)
    lines.append("  verdicts over time:")
    lines += _verdicts(track, last_ms)
    return "\n".join(lines)


def _conditions(rule: Rule, found: Look) -> list[str]:
    figures, limits = found.figures, rule.limits
    if not figures.events:
        return ["  no event in this window"]
    rate, hours = figures.connections_per_hour, figures.duration_hours
    span_s = (figures.last_ms - figures.first_ms) / 1000
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
        (1 <= figures.hosts <= limits.max_hosts, f"{figures.hosts} hosts, 1 to {limits.max_hosts}"),
        (
            1 <= figures.processes <= limits.max_processes,
            f"{figures.processes} processes, 1 to {limits.max_processes}",
        ),
    ]
    return [f"  {'holds' if holds else 'FAILS'}  {text}" for holds, text in checks]


def _panes(rule: Rule, found: Look) -> list[str]:
    if found.history is None:
        return []
    interval_ms = rule.limits.interval_ms
    panes = list(unpack_panes(found.history[0]))
    counts = " ".join(
        f"{iso(pane.first_ms - pane.first_ms % interval_ms)[11:16]}={pane.events}" for pane in panes
    )
    return [f"  events per pane of {interval_ms // 1000} s: {counts}"]


def _verdicts(track: Track, last_ms: int) -> list[str]:
    """One line for each change of the verdict, at whatever tick it was."""
    if not track.states:
        return []
    limits = track.rule.limits
    lines: list[str] = []
    before: str | None = None
    states = [*track.states, (last_ms + limits.interval_ms, track.states[-1][1])]
    for (from_ms, history), (to_ms, _) in pairwise(states):
        tick_ms: int | None = from_ms
        while tick_ms is not None and tick_ms < to_ms:
            verdict = _verdict(history, tick_ms, track.rule)
            if verdict != before:
                lines.append(f"    {iso(tick_ms)}  {verdict}")
                before = verdict
            tick_ms = _next_change(history, tick_ms, limits)
    return lines


def _next_change(history: History, tick_ms: int, limits: Limits) -> int | None:
    """The next tick at which an event, host or process leaves the window, None when none is left in it."""
    hosts, processes = seen(history)
    times = [pane.first_ms for pane in unpack_panes(history[0])]
    times += [last_ms for _, last_ms in (*hosts, *processes)]
    return min((left for time_ms in times if (left := leaves_ms(time_ms, limits)) > tick_ms), default=None)


def _verdict(history: History, tick_ms: int, rule: Rule) -> str:
    found = look(history, None, tick_ms, rule.limits)
    if found.action == "opened":
        return "true: the condition holds"
    return f"false: {objection(found.figures, rule.limits)}"
