"""Keys with an open episode, and those closest to the thresholds: for the status page.

Window states, episodes and keys are immutable, and a dict is copied in one operation, so a thread other than the
engine's may call this while the engine works. A result may then mix two ticks; no decision depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest

from streamdetect.detect.alerts import Key
from streamdetect.detect.conditions import Figures, closeness, failed_condition
from streamdetect.detect.engine import Detector
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.keystate import KeyGroup
from streamdetect.detect.near_misses import least_events
from streamdetect.detect.rules import Rule
from streamdetect.detect.windows import WindowState, measure, total, within
from streamdetect.model import AddressKey, EventContext


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key, its figures in the window of the last tick, and the context of its latest event.

    `failed` is the first reason of semantics.md §5 why its condition is false, None where it is true. `score` is its
    closeness to the thresholds, from 0 to 1 (`conditions.closeness`).
    """

    rule: Rule
    key: Key
    figures: Figures
    context: EventContext
    episode: EpisodeState | None
    failed: str | None
    score: float

    @property
    def blocked(self) -> bool:
        """Whether its hosts or processes keep the condition false, however many events there are."""
        limits = self.rule.limits
        return not (limits.hosts_hold(self.figures.hosts) and limits.processes_hold(self.figures.processes))


def open_keys(detector: Detector) -> list[KeyStatus]:
    """Keys with an open episode, the longest open first."""
    found = [
        status
        for group in detector.groups()
        for address_key, episode in list(group.episodes.items())
        if (state := group.states.get(address_key)) is not None
        and (status := _status(group, address_key, state, episode, detector.evaluated_ms)) is not None
    ]
    return sorted(found, key=lambda one: (one.episode and one.episode.opened_ms, one.key.order()))


def closest_keys(detector: Detector, count: int) -> list[KeyStatus]:
    """Keys without an episode, closest to the thresholds first; keys with too many hosts or processes last."""
    return nlargest(
        count,
        _candidates(detector),
        key=lambda one: (not one.blocked, one.score, one.figures.events, one.key.order()),
    )


def _candidates(detector: Detector) -> Iterator[KeyStatus]:
    for group in detector.groups():
        least = least_events(group.rule.limits)
        states, episodes = group.states, group.episodes
        for address_key in list(states):
            state = states.get(address_key)
            if state is None or total(state[0]) < least or address_key in episodes:
                continue
            status = _status(group, address_key, state, None, detector.evaluated_ms)
            if status is not None:
                yield status


def _status(
    group: KeyGroup, address_key: AddressKey, state: WindowState, episode: EpisodeState | None, tick_ms: int
) -> KeyStatus | None:
    limits = group.rule.limits
    oldest_ms = tick_ms - limits.lookback_ms
    current = within(state, oldest_ms)
    if current is None:
        return None
    figures = measure(current, oldest_ms, limits)
    return KeyStatus(
        rule=group.rule,
        key=group.key(address_key),
        figures=figures,
        context=EventContext._make(current[1]),
        episode=episode,
        failed=failed_condition(figures, limits),
        score=closeness(figures, limits).score,
    )
