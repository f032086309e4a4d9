"""The course of keys that come near to a rule's thresholds: what happened, and when. For people; nothing rests on it.

A key is followed from the tick on at which it has an eighth of the events that it needs and at most `MOST_SEEN` hosts
and processes; or always, where it was asked for by name. Of those that became true, and of those that never did, the
`most` that came nearest are kept: each that belongs to them is known, since it is compared when it is nearest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from struct import Struct
from typing import Final, NamedTuple

from streamdetect.detect import windows
from streamdetect.detect.alerts import Key
from streamdetect.detect.episodes import Figures, objection
from streamdetect.detect.ranking import span_ms
from streamdetect.detect.rules import Limits, Rule
from streamdetect.detect.windows import COUNT, FIRST, PreAggregate, WindowState
from streamdetect.model import AddressKey, ContextTuple, EventContext, address_key_of

MOST_SEEN: Final = 9
"""So many hosts or processes of a key are told apart, beyond what the limits ask for: a key on two hosts is near."""

_LEAST_SHARE = 8
_UNKNOWN_SHARE = 0.1  # of a condition on hosts or processes, where none is known
_REASONS = (None, "expired", "second_host", "second_process", "no_host", "no_process", "duration", "rate")
_POINT = Struct("<qIqqHHb")


class Shares(NamedTuple):
    """How much of each condition a key meets, each from 0 to 1. All four are 1 where the condition is true."""

    rate: float
    span: float
    hosts: float
    processes: float

    @property
    def nearness(self) -> float:
        """From 0 to 1, all four together."""
        return self.rate * self.span * self.hosts * self.processes


class Point(NamedTuple):
    """A key at a tick. `objection` is the first reason of semantics.md §5 for which it is not true, or None."""

    tick_ms: int
    figures: Figures
    objection: str | None


@dataclass(slots=True)
class TrackedKey:
    """One key of one rule while it was followed.

    `panes` is {pane start ms: events}, also of panes before it was followed that were in its window then. `gaps` counts
    the time between an event and the one before, in ms rounded to three significant digits, from the tick on at which
    it was followed. `points` has a point for each tick at which it was looked at, in order. `nearest` is the point at
    which it came nearest, `shares` those of that point, and `details` the latest event's then.
    """

    rule: Rule
    key: Key
    nearest: Point
    shares: Shares
    details: EventContext
    points: list[Point] = field(default_factory=list)
    panes: dict[int, int] = field(default_factory=dict)
    gaps: Counter[int] = field(default_factory=Counter)


def shares(figures: Figures, limits: Limits) -> Shares:
    """How much of each condition these figures meet.

    The rate's is the share of the events that are needed over the span there is, or the shortest one allowed.
    """
    wanted = limits.min_connections_per_hour * max(1, figures.duration_hours, limits.min_duration_hours)
    least_ms = span_ms(limits)
    span = min(1.0, (figures.last_ms - figures.first_ms) / least_ms) if least_ms else 1.0
    return Shares(
        rate=min(1.0, figures.events / wanted),
        span=span,
        hosts=_share(figures.hosts, limits.max_hosts),
        processes=_share(figures.processes, limits.max_processes),
    )


def _share(seen: int, limit: int) -> float:
    return _UNKNOWN_SHARE if seen == 0 else min(1.0, limit / seen)


def verdicts(points: Iterable[Point]) -> list[Point]:
    """The points at which the verdict changed, or the reason for it."""
    return [next(group) for _, group in groupby(points, key=lambda point: point.objection)]


class _Followed:
    """A track while it grows: points are packed, since there may be thousands for each of hundreds of keys."""

    __slots__ = (
        "best",
        "details",
        "gaps",
        "key",
        "last_ms",
        "panes",
        "pending",
        "points",
        "rule",
        "shares",
        "true",
    )

    def __init__(self, rule: Rule, key: Key) -> None:
        self.rule = rule
        self.key = key
        self.best: Point | None = None
        self.shares = Shares(0.0, 0.0, 0.0, 0.0)
        self.details: ContextTuple = ()
        self.true = False
        self.points = bytearray()
        self.panes: dict[int, int] = {}
        self.gaps: Counter[int] = Counter()
        self.pending: list[int] = []
        self.last_ms: int | None = None

    @property
    def nearness(self) -> float:
        return self.shares.nearness

    def add(self, point: Point, found: Shares, details: ContextTuple) -> None:
        figures, reason = point.figures, point.objection
        self.points += _POINT.pack(
            point.tick_ms,
            figures.events,
            figures.first_ms,
            figures.last_ms,
            figures.hosts,
            figures.processes,
            _REASONS.index(reason),
        )
        if self.best is None or (reason is None, found.nearness) > (self.true, self.nearness):
            self.best, self.shares, self.details = point, found, details
            self.true = reason is None
        self._settle()

    def _settle(self) -> None:
        """Count the gaps of the events that were folded for this tick; an event older than the last has none."""
        for time_ms in sorted(self.pending):
            if self.last_ms is not None and time_ms >= self.last_ms:
                self.gaps[_rounded(time_ms - self.last_ms)] += 1
            self.last_ms = time_ms if self.last_ms is None else max(time_ms, self.last_ms)
        self.pending.clear()

    def done(self) -> TrackedKey | None:
        if self.best is None:
            return None
        points = [
            Point(tick_ms, Figures(events, first_ms, last_ms, hosts, processes), _REASONS[reason])
            for tick_ms, events, first_ms, last_ms, hosts, processes, reason in _POINT.iter_unpack(
                self.points
            )
        ]
        panes = dict(sorted(self.panes.items()))
        details = EventContext._make(self.details)
        return TrackedKey(self.rule, self.key, self.best, self.shares, details, points, panes, self.gaps)


class KeyTracker:
    """Follows keys of one variant. `only` (address, process) follows that key alone, whatever it has."""

    def __init__(self, most: int = 100, only: tuple[frozenset[str | None], str] | None = None) -> None:
        self._most = most
        self._only = only
        self._asked_for = frozenset(map(address_key_of, () if only is None else only[0]))
        self._followed: dict[tuple[Rule, Key], _Followed] = {}

    def least_events(self, limits: Limits) -> int | None:
        """The fewest events in the window with which a key is followed; None where that does not matter."""
        return None if self._only is not None else max(1, -(-limits.need // _LEAST_SHARE))

    def asked_for(self, process: str) -> frozenset[AddressKey]:
        """The addresses that are followed with this process whatever they have."""
        return self._asked_for if self._only is not None and self._only[1] == process else frozenset()

    def folded(self, group_rule: Rule, key: Key, partial: PreAggregate) -> None:
        """Events of one pane have been folded into a key's history, before it is looked at."""
        followed = self._followed.get((group_rule, key))
        if followed is None:
            return
        interval_ms = group_rule.limits.interval_ms
        pane_ms = partial[FIRST] - partial[FIRST] % interval_ms
        followed.panes[pane_ms] = followed.panes.get(pane_ms, 0) + partial[COUNT]
        if len(partial) > windows.TIMES:
            followed.pending += partial[windows.TIMES]

    def looked(
        self, group_rule: Rule, rule: Rule, key: Key, history: WindowState, figures: Figures, tick_ms: int
    ) -> None:
        """A key has been looked at; `rule` is that of the variant, and `figures` may count more than its limits."""
        identity = (group_rule, key)
        followed = self._followed.get(identity)
        if followed is None:
            if not self._wants(key, figures):
                return
            followed = self._followed[identity] = _Followed(rule, key)
            self._begin(followed, history, rule.limits.interval_ms)
        point = Point(tick_ms, figures, objection(figures, rule.limits))
        followed.add(point, shares(figures, rule.limits), history[1])

    def _wants(self, key: Key, figures: Figures) -> bool:
        if self._only is not None:
            addresses, process = self._only
            return key.process == process and key.address in addresses
        return figures.hosts <= MOST_SEEN and figures.processes <= MOST_SEEN

    @staticmethod
    def _begin(followed: _Followed, history: WindowState, interval_ms: int) -> None:
        for pane in windows.unpack_panes(history[0]):
            followed.panes[pane.first_ms - pane.first_ms % interval_ms] = pane.events
        followed.last_ms = windows.newest_ms(history[0])

    def keep_best(self) -> None:
        """A tick is over. Let go of keys that are far behind, if there are many: what is kept does not grow."""
        if len(self._followed) > 4 * self._most:
            kept = [*self._best(true=True), *self._best(true=False)]
            self._followed = {identity: self._followed[identity] for identity in kept}

    def _best(self, *, true: bool) -> list[tuple[Rule, Key]]:
        """Those that came nearest; of equally near ones those with more events, then in the order of their keys."""
        found = [
            (followed.nearness, followed.best.figures.events if followed.best else 0, identity)
            for identity, followed in self._followed.items()
            if followed.true is true
        ]
        ordered = sorted(found, key=lambda item: (-item[0], -item[1], item[2][1].order()))
        return [identity for _, _, identity in ordered[: self._most]]

    def near(self, count: int) -> list[TrackedKey]:
        """Keys that were never true, the nearest first."""
        return self._done(self._best(true=False)[:count])

    def true(self) -> list[TrackedKey]:
        """Keys that were true at some tick, as far as they were kept."""
        return self._done(self._best(true=True))

    def _done(self, identities: list[tuple[Rule, Key]]) -> list[TrackedKey]:
        tracks = [self._followed[identity].done() for identity in identities]
        return [track for track in tracks if track is not None]


def _rounded(gap_ms: int) -> int:
    """To three significant digits, so that the number of different gaps stays small."""
    unit: int = 10 ** max(0, len(str(gap_ms)) - 3)
    return (gap_ms + unit // 2) // unit * unit
