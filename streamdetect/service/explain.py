"""Why a key alerts, or why not: its figures at a tick beside the thresholds, and when its verdict changed.

Reads what `replay` reads and evaluates with the same code; only the key asked for is noted down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from streamdetect.config import Settings
from streamdetect.detect import Detector, Listener, Rule
from streamdetect.detect.alerts import Key, iso
from streamdetect.detect.episodes import Look, leaves_ms, look, objection
from streamdetect.detect.history import History, seen, unpack_panes
from streamdetect.detect.rules import Limits
from streamdetect.errors import UsageError
from streamdetect.events.values import parse_address
from streamdetect.service.replay import run_replay
from streamdetect.sinks.files import NullDeadLetterSink
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


class _NoAlerts:
    """An explanation sends nothing."""

    def write(self, alerts: object) -> None:
        """Take alerts, and do nothing with them."""

    def flush(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to give back."""


def explain_source(*, settings: Settings, source: Source, question: Question) -> str:
    """The explanation as text. Raises InputError as a replay does, UsageError for a time before the first tick."""
    resilient = settings.profile == "resilient"
    address, process = question.destination, question.process
    if resilient:
        address, process = parse_address(address) or address.lower(), process.lower()
    tracker = Tracker(address, process)
    summary = run_replay(
        settings=settings,
        source=source,
        alert_sink=_NoAlerts(),
        dead_letter_sink=NullDeadLetterSink(),
        listener=tracker,
    )
    if not tracker.tracks:
        filtered = ", ".join(f"{count} by {reason}" for reason, count in summary.filtered.items()) or "none"
        return (
            f"No event of {process} to {address} counts for any rule, or none is left in the window at the end.\n"
            f"{summary.counted} of {summary.consumed} records count for some key; filtered: {filtered}.\n"
            "Are destination and process spelled as the events have them?"
        )
    interval_ms = settings.time.interval_ms
    last_ms = tracker.last_tick_ms or 0
    at_ms = last_ms if question.at_ms is None else -(-question.at_ms // interval_ms) * interval_ms
    if question.at_ms is not None and at_ms > last_ms:
        raise UsageError(f"the last tick of this input is {iso(last_ms)}. Choose --at at or before it.")
    return "\n\n".join(_explain(track, at_ms, last_ms) for track in tracker.tracks.values())


def explain_checkpoint(*, settings: Settings, path: str, question: Question) -> str:
    """Durable checkpoints do not exist yet, so there is none to look into."""
    del settings, question
    raise UsageError(
        f"{path}: this version keeps no checkpoints. Name the files, and `explain` replays them."
    )


def _explain(track: Track, at_ms: int, last_ms: int) -> str:
    sensor = f" (sensor {track.key.sensor})" if track.key.sensor else ""
    whither = "no address (null)" if track.key.address is None else track.key.address
    lines = [f"{track.key.process} to {whither}{sensor}, rule {track.rule.name} [{track.rule.id}]"]
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
