"""Who is true now, and who is nearest to it: for people who watch.

Histories, episodes and keys are immutable, and a dict is copied in one go, so another thread than the engine's may ask
while it works. An answer may then mix two ticks, which no decision rests on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest

from streamdetect.detect import windows
from streamdetect.detect.alerts import Key
from streamdetect.detect.engine import Detector
from streamdetect.detect.episodes import EpisodeState, Evaluation, Figures, look, objection
from streamdetect.detect.rules import Limits, Rule
from streamdetect.detect.windows import WindowState
from streamdetect.model import EventContext

_LEAST_SHARE = 8
"""A key with less than this part of the events it needs is not looked at: most keys have one or two."""

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key, its figures in the window of the last tick, and the details of its latest event.

    `objection` is the first reason of semantics.md §5 for which its condition is not true, None where it is. `score` is
    from 0 to 1: the share of the rate that it has, times the share of the span.
    """

    rule: Rule
    key: Key
    figures: Figures
    details: EventContext
    episode: EpisodeState | None
    objection: str | None
    score: float

    @property
    def blocked(self) -> bool:
        """Whether who was seen, and not how much, keeps it from being true."""
        figures, limits = self.figures, self.rule.limits
        return (
            not 1 <= figures.hosts <= limits.max_hosts or not 1 <= figures.processes <= limits.max_processes
        )


def open_now(detector: Detector) -> list[KeyStatus]:
    """Keys with an open episode, the longest open first."""
    found = []
    for group in detector.groups():
        for target, episode in list(group.episodes.items()):
            history = group.histories.get(target)
            if history is not None:
                found.append(
                    _standing(group.rule, group.key(target), history, episode, detector.evaluated_ms)
                )
    present = [standing for standing in found if standing is not None]
    return sorted(present, key=lambda one: (one.episode and one.episode.opened_ms, one.key.order()))


def nearest(detector: Detector, count: int) -> list[KeyStatus]:
    """Keys without an episode that lack the least; those that too many hosts or processes share come last."""
    best = nlargest(
        count,
        _candidates(detector),
        key=lambda one: (not one.blocked, one.score, one.figures.events, one.key.order()),
    )
    return list(best)


def _candidates(detector: Detector) -> Iterator[KeyStatus]:
    for group in detector.groups():
        least = -(-group.rule.limits.need // _LEAST_SHARE)
        histories, episodes, total = group.histories, group.episodes, windows.total
        for target in list(histories):
            history = histories.get(target)
            if history is None or total(history[0]) < least or target in episodes:
                continue
            standing = _standing(group.rule, group.key(target), history, None, detector.evaluated_ms)
            if standing is not None:
                yield standing


def _standing(
    rule: Rule, key: Key, history: WindowState, episode: EpisodeState | None, tick_ms: int
) -> KeyStatus | None:
    found: Evaluation = look(history, episode, tick_ms, rule.limits)
    if found.history is None:
        return None
    return KeyStatus(
        rule=rule,
        key=key,
        figures=found.figures,
        details=EventContext._make(found.history[1]),
        episode=episode,
        objection=objection(found.figures, rule.limits),
        score=score(found.figures, rule.limits),
    )


def score(figures: Figures, limits: Limits) -> float:
    """From 0 to 1: the share of the needed rate, times the share of the shortest span that rounds to the hours."""
    wanted = limits.min_connections_per_hour * max(1, figures.duration_hours)
    span = (figures.last_ms - figures.first_ms) / max(1, span_ms(limits)) if span_ms(limits) else 1.0
    return min(1.0, figures.events / wanted) * min(1.0, span)


def span_ms(limits: Limits) -> int:
    """The shortest time from the first to the last event that counts as `min_duration_hours` (§3); 0 for none."""
    return max(0, limits.min_duration_hours * _HOUR_MS - _HOUR_MS // 2)
