"""One key at one tick: figures, condition, episode, and when to look again (semantics.md §3, §5).

Pure functions of the key's history, its episode and the tick. All times in ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from streamdetect.detect import windows
from streamdetect.detect.rules import Limits
from streamdetect.detect.windows import WindowState

_HOUR_MS = 3_600_000
_HALF_HOUR_MS = 1_800_000


class EpisodeState(NamedTuple):
    """A run of ticks at which a key's condition is true."""

    opened_ms: int
    alerted_ms: int


class Figures(NamedTuple):
    """A window's aggregates. Distinct figures above the limit are the limit + 1 ("at least")."""

    events: int
    first_ms: int
    last_ms: int
    hosts: int
    processes: int

    @property
    def duration_hours(self) -> int:
        """ES|QL's TO_INT rounds half up, so 4 hours begin at 3 h 30 min (§3)."""
        return (self.last_ms - self.first_ms + _HALF_HOUR_MS) // _HOUR_MS

    @property
    def connections_per_hour(self) -> int:
        """The divisor is at least 1: decision 6 in docs/design.md."""
        return self.events // max(1, self.duration_hours)


NO_EVENTS = Figures(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a look at a key found.

    `history` is None when the key is forgotten. `action` is that of the alert to send, if any, and `again_ms` the next
    tick at which something may change without a new event, if any before the key expires.
    """

    history: WindowState | None
    episode: EpisodeState | None
    figures: Figures
    action: str | None = None
    reason: str | None = None
    opened_ms: int = 0
    again_ms: int | None = None


def look(
    history: WindowState | None, episode: EpisodeState | None, tick_ms: int, limits: Limits
) -> Evaluation:
    """Evaluate one key at a tick whose events have all been folded."""
    oldest_ms = tick_ms - limits.lookback_ms
    history = within(history, oldest_ms)
    figures = NO_EVENTS if history is None else measure(history, oldest_ms, limits)
    reason = objection(figures, limits)
    if reason is not None:
        if episode is not None:
            return Evaluation(
                history,
                None,
                figures,
                "resolved",
                reason,
                episode.opened_ms,
                _again(history, None, tick_ms, limits),
            )
        return Evaluation(history, None, figures, again_ms=_again(history, None, tick_ms, limits))
    action = None
    if episode is None:
        action, episode = "opened", EpisodeState(tick_ms, tick_ms)
    elif tick_ms - episode.alerted_ms >= limits.renotify_ms:
        action, episode = "updated", EpisodeState(episode.opened_ms, tick_ms)
    again_ms = _again(history, episode, tick_ms, limits)
    return Evaluation(history, episode, figures, action, None, episode.opened_ms, again_ms)


def within(history: WindowState | None, oldest_ms: int) -> WindowState | None:
    """The history without panes before the window; None when nothing is left."""
    if history is None:
        return None
    panes, details, recent = history
    if windows.newest_ms(panes) < oldest_ms:
        return None
    trimmed = windows.trim(panes, oldest_ms)
    return history if trimmed is panes else (trimmed, details, recent)


def measure(history: WindowState, oldest_ms: int, limits: Limits) -> Figures:
    """The aggregates of a history whose panes are all in the window (§2)."""
    panes = history[0]
    hosts, processes = windows.seen(history)
    return Figures(
        events=windows.total(panes),
        first_ms=windows.oldest_ms(panes),
        last_ms=windows.newest_ms(panes),
        hosts=_distinct(hosts, oldest_ms, limits.max_hosts),
        processes=_distinct(processes, oldest_ms, limits.max_processes),
    )


def _distinct(seen: windows.Seen, oldest_ms: int, limit: int) -> int:
    return min(sum(last_ms >= oldest_ms for _, last_ms in seen), limit + 1)


def objection(figures: Figures, limits: Limits) -> str | None:
    """The first reason for which the condition is not true, in the order of §5; None where it is."""
    if figures.events == 0:
        return "expired"
    if figures.hosts > limits.max_hosts:
        return "second_host"
    if figures.processes > limits.max_processes:
        return "second_process"
    if figures.hosts == 0:
        return "no_host"
    if figures.processes == 0:
        return "no_process"
    if figures.duration_hours < limits.min_duration_hours:
        return "duration"
    if figures.connections_per_hour < limits.min_connections_per_hour:
        return "rate"
    return None


def leaves_ms(time_ms: int, limits: Limits) -> int:
    """The first tick whose window no longer holds an event of this time."""
    return time_ms - time_ms % limits.interval_ms + limits.interval_ms + limits.lookback_ms


def _again(
    history: WindowState | None, episode: EpisodeState | None, tick_ms: int, limits: Limits
) -> int | None:
    """The next tick at which the condition may change, or renotify is due, though no event comes.

    Too few events, or nobody known: only an event can change that. Too many hosts or processes: not before the
    first of the newest ones leaves. Else: when the oldest pane or anybody seen leaves.
    """
    if history is None:
        return None
    panes = history[0]
    if episode is None and windows.total(panes) < limits.need:
        return None
    oldest_ms = tick_ms - limits.lookback_ms
    hosts, processes = windows.seen(history)
    blocked = [
        min(leaves_ms(last_ms, limits) for _, last_ms in seen)
        for seen, limit in ((hosts, limits.max_hosts), (processes, limits.max_processes))
        if len(seen) > limit and seen[limit][1] >= oldest_ms
    ]
    if blocked:
        return max(blocked)
    moments = [leaves_ms(windows.oldest_ms(panes), limits)]
    moments += [
        leaves_ms(last_ms, limits)
        for seen in (hosts, processes)
        for _, last_ms in seen
        if last_ms >= oldest_ms
    ]
    if episode is not None:
        due_ms = episode.alerted_ms + limits.renotify_ms
        moments.append(max(tick_ms + limits.interval_ms, due_ms + -due_ms % limits.interval_ms))
    return min(moments)
