"""Keyed state: window states, open episodes and timers by key group, and what has changed since the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from streamdetect.detect import serde
from streamdetect.detect.alerts import Key
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.rules import Rule
from streamdetect.detect.windows import WindowState, leaves_ms, newest_event_ms
from streamdetect.model import AddressKey, EventKind, address_key_of, address_of


class ChangedKeys(NamedTuple):
    """Changed keys of a group: window states, None where forgotten; and all open episodes of the group."""

    states: dict[AddressKey, WindowState | None]
    episodes: dict[AddressKey, EpisodeState]


class KeyGroup:
    """The keys of one rule, process name and sensor.

    Every key is registered once, in `expiries` or `protected`, at a tick no later than its expiry. New events move the
    key to a later tick only when that tick, or an eviction, reaches it.
    """

    __slots__ = (
        "_schedule",
        "_timers_by_tick",
        "changed",
        "episodes",
        "expiries",
        "process",
        "protected",
        "rule",
        "sensor",
        "states",
        "timers",
    )

    def __init__(self, rule: Rule, process: str, sensor: str | None, schedule: Callable[[int], None]) -> None:
        """`schedule` is called with each tick at which something is to be done."""
        self.rule = rule
        self.process = process
        self.sensor = sensor
        self.states: dict[AddressKey, WindowState] = {}
        self.episodes: dict[AddressKey, EpisodeState] = {}
        self.timers: dict[AddressKey, int] = {}
        # Keys by the tick at which their newest pane leaves.
        self.expiries: dict[int, list[AddressKey]] = {}
        # Keys that an eviction found close to the thresholds, by the tick at which that may end (`eviction`).
        self.protected: dict[int, list[AddressKey]] = {}
        # Keys that changed since the last checkpoint; None while changes are not tracked.
        self.changed: dict[AddressKey, WindowState | None] | None = None
        self._schedule = schedule
        self._timers_by_tick: dict[int, set[AddressKey]] = {}

    def key(self, address_key: AddressKey) -> Key:
        return Key(address_of(address_key), self.process, self.sensor)

    def put(self, address_key: AddressKey, state: WindowState | None, episode: EpisodeState | None) -> None:
        """Set a key's state after an evaluation; without a window state it is forgotten."""
        if state is None:
            self.forget(address_key)
            return
        self.states[address_key] = state
        if episode is None:
            self.episodes.pop(address_key, None)
        else:
            self.episodes[address_key] = episode
        if self.changed is not None:
            self.changed[address_key] = state

    def forget(self, address_key: AddressKey) -> None:
        self.states.pop(address_key, None)
        self.episodes.pop(address_key, None)
        self.timers.pop(address_key, None)
        if self.changed is not None:
            self.changed[address_key] = None

    def set_timer(self, address_key: AddressKey, tick_ms: int) -> None:
        """Evaluate the key at a tick, unless an earlier timer is set: an evaluation too early changes nothing."""
        earlier_ms = self.timers.get(address_key)
        if earlier_ms is not None and earlier_ms <= tick_ms:
            return
        self.timers[address_key] = tick_ms
        keys = self._timers_by_tick.get(tick_ms)
        if keys is None:
            keys = self._timers_by_tick[tick_ms] = set()
            self._schedule(tick_ms)
        keys.add(address_key)

    def take_timers(self, tick_ms: int) -> set[AddressKey]:
        """Keys whose timer fires now. A timer that was moved since does not."""
        keys = {key for key in self._timers_by_tick.pop(tick_ms, ()) if self.timers.get(key) == tick_ms}
        for key in keys:
            del self.timers[key]
        return keys

    def expect_expiry(self, address_keys: Sequence[AddressKey], state: WindowState) -> None:
        """Register keys with this state for expiry at the tick at which its newest pane leaves the window."""
        leaves = leaves_ms(newest_event_ms(state[0]), self.rule.limits)
        self._listed_at(self.expiries, leaves).extend(address_keys)

    def protect(self, address_key: AddressKey, tick_ms: int) -> None:
        """Protect a key from eviction up to a tick."""
        self._listed_at(self.protected, tick_ms).append(address_key)

    def _listed_at(self, ticks: dict[int, list[AddressKey]], tick_ms: int) -> list[AddressKey]:
        keys = ticks.get(tick_ms)
        if keys is None:
            keys = ticks[tick_ms] = []
            self._schedule(tick_ms)
        return keys

    def take_expiring(self, tick_ms: int) -> list[AddressKey]:
        """Remove and return the keys registered at a tick."""
        return [*self.expiries.pop(tick_ms, ()), *self.protected.pop(tick_ms, ())]

    def expire(self, address_keys: Iterable[AddressKey], tick_ms: int) -> None:
        """Forget keys whose newest pane has left. A key with an open episode has a timer, and is evaluated instead."""
        for address_key in address_keys:
            state = self.states[address_key]
            if leaves_ms(newest_event_ms(state[0]), self.rule.limits) > tick_ms:
                self.expect_expiry([address_key], state)
            elif address_key not in self.episodes:
                self.forget(address_key)

    def rows(self) -> Iterator[serde.Row]:
        """A `key` row for each key."""
        for address_key, state in self.states.items():
            yield serde.key_row(self.rule.id, self.key(address_key), state, self.episodes.get(address_key))


class KeyGroups:
    """All key groups, created on first use."""

    def __init__(self, rules: Sequence[Rule], schedule: Callable[[int], None] = lambda _: None) -> None:
        self._rules = {rule.id: rule for rule in rules}
        self._schedule = schedule
        self._groups: dict[tuple[Rule, object, str | None], KeyGroup] = {}
        self._tracking = False

    def __iter__(self) -> Iterator[KeyGroup]:
        """A snapshot: groups may be added while it is iterated."""
        return iter(list(self._groups.values()))

    @property
    def keys(self) -> int:
        """Live keys of all groups."""
        return sum(len(group.states) for group in self._groups.values())

    def of(self, rule: Rule, kind: EventKind) -> KeyGroup:
        """The group of the keys of an event that counts."""
        group = self._groups.get((rule, kind.process_name, kind.sensor))
        return group or self.get(rule, str(kind.process_name), kind.sensor)

    def get(self, rule: Rule, process: str, sensor: str | None) -> KeyGroup:
        identity = (rule, process, sensor)
        group = self._groups.get(identity)
        if group is None:
            group = self._groups[identity] = KeyGroup(rule, process, sensor, self._schedule)
            group.changed = {} if self._tracking else None
        return group

    def of_row(self, row: serde.Row) -> tuple[KeyGroup, AddressKey]:
        """The group and address key of a row. Raises KeyError for a rule that is not enabled."""
        key = Key(*row["key"])
        return self.get(self._rules[row["rule"]], key.process, key.sensor), address_key_of(key.address)

    def track_changes(self) -> None:
        """Track changes from now on."""
        self._tracking = True
        for group in self._groups.values():
            group.changed = {}

    def take_changes(self) -> dict[KeyGroup, ChangedKeys]:
        """The keys changed since the last call. Dicts are swapped: the time is independent of the number of keys."""
        changes: dict[KeyGroup, ChangedKeys] = {}
        for group in self._groups.values():
            if group.changed:
                changes[group] = ChangedKeys(group.changed, dict(group.episodes))
                group.changed = {}
        return changes

    def clear(self) -> None:
        self._groups.clear()
