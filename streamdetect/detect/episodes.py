"""One key at one tick: figures, condition, episode, and the next timer (semantics.md §3, §5).

Pure functions of the key's window state, its episode and the tick. All times in ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from streamdetect.detect.conditions import NO_EVENTS, Figures, Limits, failed_condition
from streamdetect.detect.windows import WindowState, leaves_ms, measure, oldest_event_ms, seen, total, within


class EpisodeState(NamedTuple):
    """An open episode: the tick at which it opened, and the tick of its latest alert."""

    opened_ms: int
    alerted_ms: int

    def renotify_due_ms(self, tick_ms: int, limits: Limits) -> int:
        """The first tick after `tick_ms` at which an `updated` alert is due."""
        due_ms = self.alerted_ms + limits.renotify_ms
        return max(tick_ms + limits.interval_ms, due_ms + -due_ms % limits.interval_ms)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The outcome for one key at one tick.

    `state` is None when the key expires. `action` is the action of the alert to send, if any. `next_timer_ms` is the
    next tick at which the outcome may change without a new event, None if there is none before the key expires.
    """

    state: WindowState | None
    episode: EpisodeState | None
    figures: Figures
    action: str | None = None
    reason: str | None = None
    opened_ms: int = 0
    next_timer_ms: int | None = None


def evaluate(
    state: WindowState | None, episode: EpisodeState | None, tick_ms: int, limits: Limits
) -> Evaluation:
    """Evaluate one key at a tick whose events have all been folded."""
    oldest_ms = tick_ms - limits.lookback_ms
    state = within(state, oldest_ms)
    figures = NO_EVENTS if state is None else measure(state, oldest_ms, limits)
    reason = failed_condition(figures, limits)
    if reason is not None:
        timer_ms = _next_timer_ms(state, None, tick_ms, limits)
        if episode is None:
            return Evaluation(state, None, figures, next_timer_ms=timer_ms)
        return Evaluation(state, None, figures, "resolved", reason, episode.opened_ms, timer_ms)
    action = None
    if episode is None:
        action, episode = "opened", EpisodeState(tick_ms, tick_ms)
    elif tick_ms - episode.alerted_ms >= limits.renotify_ms:
        action, episode = "updated", EpisodeState(episode.opened_ms, tick_ms)
    timer_ms = _next_timer_ms(state, episode, tick_ms, limits)
    return Evaluation(state, episode, figures, action, None, episode.opened_ms, timer_ms)


def _next_timer_ms(
    state: WindowState | None, episode: EpisodeState | None, tick_ms: int, limits: Limits
) -> int | None:
    """The next tick at which the condition may change, or renotify is due, without a new event.

    With too few events, or no known host or process, only an event can change it. With too many hosts or processes it
    cannot change before the first of the newest ones leaves.
    """
    if state is None or (episode is None and total(state[0]) < limits.min_events):
        return None
    oldest_ms = tick_ms - limits.lookback_ms
    # More than limit + 1 are known where the state was shared with rules that tell more apart.
    blocked = [
        leaves_ms(recent[limit][1], limits)
        for recent, limit in zip(seen(state), (limits.max_hosts, limits.max_processes), strict=True)
        if len(recent) > limit and recent[limit][1] >= oldest_ms
    ]
    if blocked:
        return max(blocked)
    renotify = () if episode is None else (episode.renotify_due_ms(tick_ms, limits),)
    return next_change_ms(state, tick_ms, limits, renotify)


def next_change_ms(state: WindowState, tick_ms: int, limits: Limits, renotify_ms: Iterable[int] = ()) -> int:
    """The first tick after `tick_ms` at which a pane, host or process leaves the window, or a renotify is due."""
    oldest_ms = tick_ms - limits.lookback_ms
    leaving = (
        leaves_ms(last_ms, limits) for recent in seen(state) for _, last_ms in recent if last_ms >= oldest_ms
    )
    return min((leaves_ms(oldest_event_ms(state[0]), limits), *leaving, *renotify_ms))
