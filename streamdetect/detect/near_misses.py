"""Keys that come close to a rule's thresholds, and what happened to them over time. For reports; no decision uses it.

A key is tracked from the tick on at which it has an eighth of the events that it needs and at most `MOST_SEEN` hosts
and processes; or always, where it was requested by name. Keeps the `most` highest-scoring keys that fired and the
`most` highest-scoring keys that never fired (near misses). No such key is missed: keys are compared by their best
score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from struct import Struct
from typing import Final, NamedTuple

from streamdetect.detect.alerts import Key
from streamdetect.detect.conditions import Closeness, Figures, Limits, Thresholds, closeness, failed_condition
from streamdetect.detect.preaggregate import COUNT, FIRST, TIMES, PreAggregate
from streamdetect.detect.rules import Rule
from streamdetect.detect.windows import WindowState, newest_event_ms, unpack_panes
from streamdetect.model import AddressKey, ContextTuple, EventContext, address_key_of

MOST_SEEN: Final = 9
"""Hosts or processes of a tracked key that are told apart, beyond the limits: a key on two hosts is a near miss."""

_LEAST_SHARE = 8
_REASONS = (None, "expired", "second_host", "second_process", "no_host", "no_process", "duration", "rate")
_POINT = Struct("<qIqqHHb")


class Point(NamedTuple):
    """A key at a tick. `failed` is the first reason of semantics.md §5 why its condition is false, None if true."""

    tick_ms: int
    figures: Figures
    failed: str | None


@dataclass(slots=True)
class TrackedKey:
    """One key of one rule while it was tracked.

    `closest` is the point with the best score, `closeness` and `context` are the closeness and the context of the
    latest event at that tick. `points` has a point for each tick at which the key was evaluated, in order. `panes` is
    {pane start ms: events}, including earlier panes that were in its window when tracking began. `gaps` counts the
    times between successive events since then, in ms rounded to three significant digits.
    """

    rule: Rule
    key: Key
    closest: Point
    closeness: Closeness
    context: EventContext
    points: list[Point] = field(default_factory=list)
    panes: dict[int, int] = field(default_factory=dict)
    gaps: Counter[int] = field(default_factory=Counter)


def least_events(thresholds: Thresholds) -> int:
    """The fewest events in the window with which a key counts as close: an eighth of those needed."""
    return max(1, -(-thresholds.min_events // _LEAST_SHARE))


def reason_changes(points: Iterable[Point]) -> list[Point]:
    """The first point, and each point whose failed condition differs from the one before."""
    return [next(group) for _, group in groupby(points, key=lambda point: point.failed)]


class _Tracking:
    """A tracked key while it grows: points are packed, since there may be thousands for each of hundreds of keys."""

    __slots__ = (
        "_new_times",
        "closeness",
        "closest",
        "context",
        "fired",
        "gaps",
        "key",
        "last_ms",
        "panes",
        "points",
        "rule",
    )

    def __init__(self, rule: Rule, key: Key, state: WindowState) -> None:
        interval_ms = rule.limits.interval_ms
        self.rule = rule
        self.key = key
        self.closest: Point | None = None
        self.closeness = Closeness(0.0, 0.0, 0.0, 0.0)
        self.context: ContextTuple = ()
        self.fired = False
        self.points = bytearray()
        self.panes = {
            pane.first_ms - pane.first_ms % interval_ms: pane.events for pane in unpack_panes(state[0])
        }
        self.gaps: Counter[int] = Counter()
        self.last_ms = newest_event_ms(state[0])
        self._new_times: list[int] = []

    @property
    def score(self) -> float:
        return self.closeness.score

    def add_events(self, pre: PreAggregate) -> None:
        """Add the events of a pane, before the key is evaluated."""
        interval_ms = self.rule.limits.interval_ms
        pane_ms = pre[FIRST] - pre[FIRST] % interval_ms
        self.panes[pane_ms] = self.panes.get(pane_ms, 0) + pre[COUNT]
        if len(pre) > TIMES:
            self._new_times += pre[TIMES]

    def add_point(self, point: Point, context: ContextTuple) -> None:
        figures, failed = point.figures, point.failed
        self.points += _POINT.pack(point.tick_ms, *figures, _REASONS.index(failed))
        now = closeness(figures, self.rule.limits)
        if self.closest is None or (failed is None, now.score) > (self.fired, self.score):
            self.closest, self.closeness, self.context = point, now, context
            self.fired = failed is None
        self._count_gaps()

    def _count_gaps(self) -> None:
        """Count the gaps between events folded for this tick. An event older than the last one has none."""
        for time_ms in sorted(self._new_times):
            if time_ms >= self.last_ms:
                self.gaps[_rounded(time_ms - self.last_ms)] += 1
                self.last_ms = time_ms
        self._new_times.clear()

    def finished(self) -> TrackedKey | None:
        if self.closest is None:
            return None
        points = [
            Point(tick_ms, Figures(*figures), _REASONS[failed])
            for tick_ms, *figures, failed in _POINT.iter_unpack(self.points)
        ]
        panes = dict(sorted(self.panes.items()))
        context = EventContext._make(self.context)
        return TrackedKey(
            self.rule, self.key, self.closest, self.closeness, context, points, panes, self.gaps
        )


class KeyTracker:
    """Tracks keys of one variant. `only` (addresses, process) restricts it to these keys, with any figures."""

    def __init__(self, most: int = 100, only: tuple[frozenset[str | None], str] | None = None) -> None:
        self._most = most
        self._only = only
        self._requested = frozenset(map(address_key_of, () if only is None else only[0]))
        self._tracked: dict[tuple[Rule, Key], _Tracking] = {}

    def least_events(self, limits: Limits) -> int | None:
        """The fewest events in the window with which a key is tracked, None where only requested keys are."""
        return None if self._only is not None else least_events(limits)

    def requested(self, process: str) -> frozenset[AddressKey]:
        """The address keys that are tracked with this process whatever their figures."""
        return self._requested if self._only is not None and self._only[1] == process else frozenset()

    def folded(self, group_rule: Rule, key: Key, pre: PreAggregate) -> None:
        """Events of one pane have been folded into a key's window state, which is evaluated next."""
        tracking = self._tracked.get((group_rule, key))
        if tracking is not None:
            tracking.add_events(pre)

    def evaluated(
        self, group_rule: Rule, rule: Rule, key: Key, state: WindowState, figures: Figures, tick_ms: int
    ) -> None:
        """A key has been evaluated; `rule` is the rule of the variant; `figures` may count beyond its limits."""
        identity = (group_rule, key)
        tracking = self._tracked.get(identity)
        if tracking is None:
            if not self._is_wanted(key, figures):
                return
            tracking = self._tracked[identity] = _Tracking(rule, key, state)
        tracking.add_point(Point(tick_ms, figures, failed_condition(figures, rule.limits)), state[1])

    def _is_wanted(self, key: Key, figures: Figures) -> bool:
        if self._only is not None:
            addresses, process = self._only
            return key.process == process and key.address in addresses
        return figures.hosts <= MOST_SEEN and figures.processes <= MOST_SEEN

    def keep_best(self) -> None:
        """Called after each tick: drop low-scoring keys when there are many, so that memory is bounded."""
        if len(self._tracked) > 4 * self._most:
            kept = [*self._best(fired=True), *self._best(fired=False)]
            self._tracked = {identity: self._tracked[identity] for identity in kept}

    def _best(self, *, fired: bool) -> list[tuple[Rule, Key]]:
        """The highest scores; equal ones by more events, then in the order of their keys."""
        found = [
            (tracking.score, tracking.closest.figures.events if tracking.closest else 0, identity)
            for identity, tracking in self._tracked.items()
            if tracking.fired is fired
        ]
        ordered = sorted(found, key=lambda item: (-item[0], -item[1], item[2][1].order()))
        return [identity for _, _, identity in ordered[: self._most]]

    def near_misses(self, count: int) -> list[TrackedKey]:
        """Keys whose condition was never true, the closest first."""
        return self._finished(self._best(fired=False)[:count])

    def fired(self) -> list[TrackedKey]:
        """Keys whose condition was true at some tick, as far as they were kept."""
        return self._finished(self._best(fired=True))

    def _finished(self, identities: list[tuple[Rule, Key]]) -> list[TrackedKey]:
        tracked = [self._tracked[identity].finished() for identity in identities]
        return [one for one in tracked if one is not None]


def _rounded(gap_ms: int) -> int:
    """Rounded to three significant digits, so that the number of different gaps stays small."""
    unit: int = 10 ** max(0, len(str(gap_ms)) - 3)
    return (gap_ms + unit // 2) // unit * unit
