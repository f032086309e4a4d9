"""Evaluates ticks in order: pending panes and timers in, alerts out (semantics.md §4, §5).

At a tick, in slices that let the caller do other work in between:

1. each pending pane of the tick is folded into the window states of its keys,
2. keys that no longer have an event in the window expire,
3. every key that can have changed is evaluated: one with new events, or whose timer fires,
4. keys beyond `limits.max_keys` are evicted.

Ticks without pending panes and timers are only counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from sortedcontainers import SortedSet  # type: ignore[import-untyped]  # it has no type hints

from streamdetect.config import Settings
from streamdetect.detect import serde
from streamdetect.detect.alerts import Key, build
from streamdetect.detect.episodes import Evaluation, evaluate
from streamdetect.detect.eviction import evict
from streamdetect.detect.keystate import KeyGroup, KeyGroups
from streamdetect.detect.listener import Listener
from streamdetect.detect.pending import PendingPanes
from streamdetect.detect.preaggregate import PreAggregate
from streamdetect.detect.rules import Rule
from streamdetect.detect.ticks import NEVER
from streamdetect.detect.windows import fold, total
from streamdetect.model import AddressKey, Alert

Item = TypeVar("Item")

_SLICE_KEYS = 500  # keys per slice: a few milliseconds


class TickAlerts:
    """The alerts of one tick, sorted by key and then by the position of their rule."""

    def __init__(self) -> None:
        self._alerts: list[tuple[tuple[object, ...], int, Alert]] = []

    def add(self, rule: Rule, position: int, key: Key, tick_ms: int, outcome: Evaluation) -> None:
        """Build the alert that an evaluation asks for."""
        self._alerts.append((key.order(), position, build(rule, key, tick_ms, outcome)))

    def take(self) -> list[Alert]:
        alerts = [alert for _, _, alert in sorted(self._alerts, key=lambda item: item[:2])]
        self._alerts.clear()
        return alerts


class KeyEvaluator(Protocol):
    """What is done with the keys of a tick."""

    def folded(
        self, group: KeyGroup, pre_aggregates: dict[AddressKey, PreAggregate], candidates: set[AddressKey]
    ) -> None:
        """Called after pre-aggregates were folded; may add keys to `candidates`, those to evaluate."""

    def evaluate(self, group: KeyGroup, address_key: AddressKey, tick_ms: int) -> None:
        """Evaluate one key, store its new state, set its timer, keep its alerts."""

    def take_alerts(self) -> list[Alert]:
        """The alerts of the tick that ends now, in order."""


class RuleEvaluator:
    """Evaluates each key by its own rule."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._positions = {rule: position for position, rule in enumerate(rules)}
        self._alerts = TickAlerts()
        self.take_alerts = self._alerts.take

    def folded(
        self, group: KeyGroup, pre_aggregates: dict[AddressKey, PreAggregate], candidates: set[AddressKey]
    ) -> None:
        """Nothing more is to be evaluated."""

    def evaluate(self, group: KeyGroup, address_key: AddressKey, tick_ms: int) -> None:
        rule, state, episode = group.rule, group.states.get(address_key), group.episodes.get(address_key)
        outcome = evaluate(state, episode, tick_ms, rule.limits)
        group.put(address_key, outcome.state, outcome.episode)
        if outcome.next_timer_ms is not None:
            group.set_timer(address_key, outcome.next_timer_ms)
        if outcome.action is not None:
            self._alerts.add(rule, self._positions[rule], group.key(address_key), tick_ms, outcome)


class TickEngine:
    """Keyed state of all rules, and the ticks that change it. Not thread-safe."""

    def __init__(
        self,
        settings: Settings,
        rules: Sequence[Rule],
        evaluator: KeyEvaluator,
        *,
        evict: Callable[[int], None] | None = None,
    ) -> None:
        """`evict` replaces the eviction of keys after a tick; it is called with the tick when there are too many."""
        self.listener = Listener()
        self.ticks = 0
        self.keys_peak = 0
        self.max_keys = settings.limits.max_keys
        self._scheduled = SortedSet()  # ticks with pending panes, timers or expiries
        self.groups = KeyGroups(rules, self._scheduled.add)
        self.pending = PendingPanes(settings.time.interval_ms, settings.time.lookback_ms, self._scheduled.add)
        self._rules = rules
        self._evaluator = evaluator
        self._evict = evict or self.evict
        self._slices: Iterator[list[Alert] | None] | None = None

    @property
    def evaluated_ms(self) -> int:
        """The last evaluated tick, NEVER before the first."""
        return self.pending.evaluated_ms

    @property
    def ticking(self) -> bool:
        """Whether a tick begun by `step` is in progress: the state cannot be saved before it ends."""
        return self._slices is not None

    def advance_to(self, watermark_ms: int) -> list[Alert]:
        """Evaluate all ticks up to a watermark, in order."""
        last_ms = self._last_tick_ms(watermark_ms)
        alerts: list[Alert] = []
        while self._has_more(last_ms):
            alerts += self._run_slice()
        self._pass(last_ms)
        return alerts

    def step(self, watermark_ms: int | None) -> tuple[list[Alert], bool]:
        """Run one slice of what `advance_to` does, and return whether there is more.

        A tick's alerts are returned with its last slice: they are the same however it is sliced.
        """
        last_ms = NEVER if watermark_ms is None else self._last_tick_ms(watermark_ms)
        alerts = self._run_slice() if self._has_more(last_ms) else []
        if self._has_more(last_ms):
            return alerts, True
        self._pass(last_ms)
        return alerts, False

    def _last_tick_ms(self, watermark_ms: int) -> int:
        return watermark_ms - watermark_ms % self.pending.interval_ms

    def _has_more(self, last_ms: int) -> bool:
        return self.ticking or bool(self._scheduled and self._scheduled[0] <= last_ms)

    def _run_slice(self) -> list[Alert]:
        """Begin the next scheduled tick, or continue the one in progress."""
        if self._slices is None:
            tick_ms = self._scheduled.pop(0)
            self._pass(tick_ms)  # events that arrive during the tick count from the next one on
            self._slices = self._evaluate(tick_ms)
        alerts = next(self._slices)
        if alerts is None:
            return []
        self._slices = None
        return alerts

    def _pass(self, tick_ms: int) -> None:
        if tick_ms > self.evaluated_ms:
            interval_ms = self.pending.interval_ms
            if self.first_tick_ms is not None:
                since_ms = max(self.evaluated_ms, self.first_tick_ms - interval_ms)
                self.ticks += max(0, tick_ms - since_ms) // interval_ms
            self.pending.evaluated_ms = tick_ms

    def _evaluate(self, tick_ms: int) -> Iterator[list[Alert] | None]:
        """One tick: None after each slice, the alerts at the end."""
        changed: dict[KeyGroup, set[AddressKey]] = {}
        for _, segment in self.pending.take(tick_ms):
            for group, by_key in segment.items():
                keys = changed.setdefault(group, set())
                for some in _slices(by_key.items()) if segment.lent else _drained(by_key):
                    keys |= self._fold(group, dict(some), tick_ms)
                    yield None
        for group in self.groups:
            keys = changed.get(group, set()) | group.take_timers(tick_ms)
            for expiring in _slices(group.take_expiring(tick_ms)):
                group.expire(expiring, tick_ms)
                yield None
            for some_keys in _slices(keys):
                for address_key in some_keys:
                    self._evaluator.evaluate(group, address_key, tick_ms)
                yield None
        alerts = self._evaluator.take_alerts()
        self.limit_keys(tick_ms)
        self.listener.evaluated(tick_ms, self.groups.keys)
        yield alerts

    def _fold(
        self, group: KeyGroup, pre_aggregates: dict[AddressKey, PreAggregate], tick_ms: int
    ) -> set[AddressKey]:
        """Fold pre-aggregates; returns the keys with enough events to be true, or with an open episode."""
        limits = group.rule.limits
        min_events = limits.min_events
        oldest_ms = tick_ms - limits.lookback_ms
        states, episodes, tracked = group.states, group.episodes, group.changed
        candidates: set[AddressKey] = set()
        new: list[AddressKey] = []
        for address_key, pre in pre_aggregates.items():
            before = states.get(address_key)
            state = states[address_key] = fold(before, pre, address_key, oldest_ms, limits)
            if before is None:
                new.append(address_key)
            if tracked is not None:
                tracked[address_key] = state
            if total(state[0]) >= min_events or (episodes and address_key in episodes):
                candidates.add(address_key)
        if new:  # all pre-aggregates of a segment are of one pane
            group.expect_expiry(new, states[new[0]])
        self._evaluator.folded(group, pre_aggregates, candidates)
        return candidates

    def limit_keys(self, tick_ms: int) -> None:
        """Keep within `limits.max_keys` after a tick."""
        if self.groups.keys > self.max_keys:
            self._evict(tick_ms)
        self.keys_peak = max(self.keys_peak, self.groups.keys)

    def evict(self, tick_ms: int) -> None:
        """Evict the keys beyond `limits.max_keys`, after a tick."""
        groups = sorted(self.groups, key=lambda group: self._rules.index(group.rule))
        excess = self.groups.keys - self.max_keys
        for rule_id, keys in evict(groups, excess, tick_ms, self._scheduled).items():
            self.listener.evicted(rule_id, keys)

    @property
    def first_tick_ms(self) -> int | None:
        """The first tick at which an event counts, None before there is one."""
        return self.pending.first_tick_ms

    @property
    def waiting(self) -> int:
        """Pre-aggregates that wait for their tick."""
        return self.pending.pre_aggregates

    def progress_row(self) -> serde.Row:
        return serde.progress_row(self.evaluated_ms, self.first_tick_ms, self.ticks, self.keys_peak)

    def rows(self) -> Iterator[serde.Row]:
        """A row for each pre-aggregate and key."""
        yield from self.pending.rows()
        for group in self.groups:
            yield from group.rows()

    def restore_progress(self, row: serde.Row) -> None:
        self.pending.evaluated_ms = NEVER if row["evaluated_ms"] is None else row["evaluated_ms"]
        self.ticks, self.keys_peak = row["ticks"], row["keys_peak"]
        if row["first_tick_ms"] is not None:
            self.pending.first_tick_ms = row["first_tick_ms"]

    def restore_waiting(self, row: serde.Row) -> None:
        group, address_key = self.groups.of_row(row)
        place = int(row["tick_ms"]), int(row["pane_ms"])
        self.pending.restore(place, group, address_key, serde.pre_aggregate_of(row))

    def restore_key(self, row: serde.Row) -> None:
        """Restore a key, its expiry, and a timer at the next tick if it can be true or has an open episode."""
        group, address_key = self.groups.of_row(row)
        state = group.states[address_key] = serde.state_of(row)
        group.expect_expiry([address_key], state)
        episode = serde.episode_of(row)
        if episode is not None:
            group.episodes[address_key] = episode
        if episode is not None or total(state[0]) >= group.rule.limits.min_events:
            group.set_timer(address_key, self.evaluated_ms + self.pending.interval_ms)

    def clear(self) -> None:
        """Drop all keyed state."""
        self.groups.clear()
        self.pending.clear()
        self._scheduled.clear()


def _drained(by_key: dict[AddressKey, PreAggregate]) -> Iterator[list[tuple[AddressKey, PreAggregate]]]:
    """Slices of a dict that is emptied on the way."""
    while by_key:
        yield [by_key.popitem() for _ in range(min(_SLICE_KEYS, len(by_key)))]


def _slices(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, _SLICE_KEYS)):
        yield some
