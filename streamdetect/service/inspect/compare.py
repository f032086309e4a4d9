"""Compares a checkpoint with the state derived from its records, as far as the window of the last tick E matters.

Compared: window states of keys within the window, open episodes, events that wait for later ticks, partition clocks.
Not compared: whether a partition is idle, which only a live run knows. If only the window was read again, also not
compared: the clock of a partition without records in it, and the times of an episode that opened before every window
was complete.

A live run may differ in one respect (semantics.md §4): events of a partition that was idle count from the tick after
those that were evaluated without them. Until that tick they wait in the checkpoint, but already count in the derived
state. Such keys are reported separately: evaluated at the next tick, both states are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from streamdetect.detect import Detector, serde, windows
from streamdetect.detect.alerts import Key, iso
from streamdetect.detect.conditions import Limits
from streamdetect.detect.context import context_text
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.preaggregate import PreAggregate, Seen, newest
from streamdetect.detect.ticks import NEVER
from streamdetect.detect.windows import WindowState
from streamdetect.findings.state_diff import Comparison, Difference
from streamdetect.model import ContextTuple, Partition, address_key_of
from streamdetect.service.inspect.integrity import VerifiedCheckpoint

Identity = tuple[str, Key]
"""A rule's id and a key."""

PendingPaneId = tuple[int, int]
"""A tick and a pane, in ms."""


def partition_text(partition: Partition) -> str:
    return f"{partition.topic}-{partition.number}"


def compare(verified: VerifiedCheckpoint, derived: Detector, complete_ms: int) -> Comparison:
    """`derived` has read all events from `complete_ms` on, and maybe some before; NEVER: all events."""
    return _Comparator(verified, derived, complete_ms).compare()


class _Side:
    """One of the two states: window states, episodes and waiting pre-aggregates by key, and partitions."""

    def __init__(self, detector: Detector) -> None:
        self.states: dict[Identity, WindowState] = {}
        self.episodes: dict[Identity, EpisodeState] = {}
        self.waiting: dict[Identity, dict[PendingPaneId, list[PreAggregate]]] = {}
        self.partitions: dict[Partition, dict[str, Any]] = {}
        for row in detector.export_state():
            if row["kind"] == "partition":
                self.partitions[serde.partition_of(row)] = row
            elif row["kind"] != "progress":
                self._add((row["rule"], Key(*row["key"])), row)

    def _add(self, identity: Identity, row: serde.Row) -> None:
        if row["kind"] == "waiting":
            places = self.waiting.setdefault(identity, {})
            places.setdefault((row["tick_ms"], row["pane_ms"]), []).append(serde.pre_aggregate_of(row))
            return
        self.states[identity] = serde.state_of(row)
        episode = serde.episode_of(row)
        if episode is not None:
            self.episodes[identity] = episode

    def identities(self) -> set[Identity]:
        return {*self.states, *self.waiting}


class _ComparableState(NamedTuple):
    """The part of a window state that affects results, in a canonical form."""

    panes: windows.Panes
    context: ContextTuple
    hosts: Seen
    processes: Seen

    @property
    def events(self) -> int:
        return windows.total(self.panes)


class _KeyState:
    """One key on one side."""

    def __init__(self, side: _Side, identity: Identity, oldest_ms: int, limits: Limits) -> None:
        self._state = side.states.get(identity)
        self._waiting = side.waiting.get(identity, {})
        self._address_key = address_key_of(identity[1].address)
        self._oldest_ms = oldest_ms
        self._limits = limits
        self.episode = side.episodes.get(identity)
        self.now = self._comparable(self._state, oldest_ms)
        self.waiting = {
            place: self._comparable(self._folded(None, pre_aggregates), NEVER)
            for place, pre_aggregates in self._waiting.items()
        }

    @property
    def events(self) -> int:
        """Events in the window."""
        return 0 if self.now is None else self.now.events

    def events_since(self, time_ms: int) -> int:
        """Events in the window, without the events of panes before a time."""
        return 0 if self.now is None else windows.total(windows.trim(self.now.panes, time_ms))

    def at(
        self, next_ms: int, oldest_ms: int
    ) -> tuple[_ComparableState | None, dict[PendingPaneId, _ComparableState | None]]:
        """The state after the tick `next_ms` in a window from `oldest_ms` on, and what then still waits."""
        state, others = self._state, dict(self.waiting)
        for place in sorted(self._waiting):
            if place[0] == next_ms:
                state = self._folded(state, self._waiting[place])
                del others[place]
        return self._comparable(state, oldest_ms), others

    def _folded(self, state: WindowState | None, pre_aggregates: list[PreAggregate]) -> WindowState | None:
        """Fold all pre-aggregates of one pane, which may have been saved at different times, into a window state."""
        for pre in pre_aggregates:
            state = windows.fold(state, pre, self._address_key, self._oldest_ms, self._limits)
        return state

    def _comparable(self, state: WindowState | None, oldest_ms: int) -> _ComparableState | None:
        """The state without what is before the window, None if no event is left."""
        if state is None:
            return None
        panes = windows.trim(state[0], oldest_ms)
        if windows.total(panes) == 0:
            return None
        limits = self._limits.max_hosts, self._limits.max_processes
        hosts, processes = (
            newest((item for item in seen if item[1] >= oldest_ms), limit)
            for seen, limit in zip(windows.seen(state), limits, strict=True)
        )
        return _ComparableState(panes, state[1], hosts, processes)


class _Comparator:
    """Compares all keys and partitions of both sides."""

    def __init__(self, verified: VerifiedCheckpoint, derived: Detector, complete_ms: int) -> None:
        time = verified.settings.time
        evaluated_ms = verified.evaluated_ms
        self._stored, self._derived = _Side(verified.detector), _Side(derived)
        self._limits = {rule.id: rule.limits for rule in derived.rules}
        self._interval_ms = time.interval_ms
        self._evaluated_ms = NEVER if evaluated_ms is None else evaluated_ms
        self._oldest_ms = NEVER if evaluated_ms is None else evaluated_ms - time.lookback_ms
        self._complete_ms = complete_ms
        # The opening tick of an episode is certain only if the window of the tick before it was complete, too.
        self._certain_ms = (
            NEVER if complete_ms == NEVER else complete_ms + time.lookback_ms + time.interval_ms
        )
        peak = max(verified.keys_peak, derived.keys_peak)
        self._comparison = Comparison(evicting=peak >= verified.settings.limits.max_keys)
        self._next_ms = self._evaluated_ms + time.interval_ms
        self._next_oldest_ms = self._oldest_ms + time.interval_ms
        self._keys: list[Difference] = []
        # Keys that differ only in the pane that leaves the window next. If its events came late, no later window
        # includes them, so nothing waits.
        self._leaving: list[tuple[Identity, _KeyState, _KeyState]] = []

    def compare(self) -> Comparison:
        """Clocks first: a wrong clock makes everything else wrong."""
        for partition, row in sorted(self._stored.partitions.items()):
            self._comparison.partitions += 1
            self._compare_clock(partition, row)
        for identity in self._stored.identities() | self._derived.identities():
            self._compare_key(identity)
        late = bool(self._comparison.late)
        for identity, ours, theirs in self._leaving:
            if late:
                self._comparison.late.append(self._late_difference(_key_text(identity), ours, theirs))
            else:
                self._compare_events(identity, ours, theirs)
        self._comparison.differences += sorted(self._keys)
        self._comparison.late.sort()
        return self._comparison

    def _compare_key(self, identity: Identity) -> None:
        self._comparison.keys += 1
        if self._is_identical(identity):
            return
        limits = self._limits[identity[0]]
        stored, derived = (
            _KeyState(side, identity, self._oldest_ms, limits) for side in (self._stored, self._derived)
        )
        self._comparison.events += stored.events + sum(
            comparable.events for comparable in stored.waiting.values() if comparable
        )
        where = _key_text(identity)
        if (stored.now, stored.waiting) == (derived.now, derived.waiting):
            self._compare_episodes(where, stored.episode, derived.episode)
        elif self._is_late(stored, derived):
            if stored.events_since(self._next_oldest_ms) < derived.events_since(self._next_oldest_ms):
                self._comparison.late.append(self._late_difference(where, stored, derived))
            else:
                self._leaving.append((identity, stored, derived))
        else:
            self._compare_events(identity, stored, derived)
            self._compare_episodes(where, stored.episode, derived.episode)

    def _is_identical(self, identity: Identity) -> bool:
        """Fast path for almost all keys: the same on both sides, and nothing waits."""
        stored, derived = self._stored, self._derived
        state = stored.states.get(identity)
        if state is None or identity in stored.waiting or identity in derived.waiting:
            return False
        if state != derived.states.get(identity):
            return False
        if stored.episodes.get(identity) != derived.episodes.get(identity):
            return False
        self._comparison.events += windows.total(windows.trim(state[0], self._oldest_ms))
        return True

    def _is_late(self, stored: _KeyState, derived: _KeyState) -> bool:
        """Whether the checkpoint only lags one tick behind: after the next tick both sides are the same."""
        if stored.events >= derived.events:
            return False
        ours, theirs = (view.at(self._next_ms, self._next_oldest_ms) for view in (stored, derived))
        return ours == theirs

    def _late_difference(self, where: str, stored: _KeyState, derived: _KeyState) -> Difference:
        return Difference(
            where,
            f"{derived.events - stored.events:,} events",
            f"counted from {iso(self._next_ms)} on",
            f"counted at {iso(self._evaluated_ms)}",
        )

    def _compare_events(self, identity: Identity, stored: _KeyState, derived: _KeyState) -> None:
        pairs = {"": (stored.now, derived.now)}
        for tick_ms, pane_ms in sorted({*stored.waiting, *derived.waiting}):
            place = tick_ms, pane_ms
            name = f"waiting for {iso(tick_ms)} in the pane {iso(pane_ms)}, "
            pairs[name] = stored.waiting.get(place), derived.waiting.get(place)
        for name, (one, other) in pairs.items():
            if one != other:
                what, ours, theirs = _aspect(one, other, identity[1].address, self._interval_ms)
                self._keys.append(Difference(_key_text(identity), f"{name}{what}", ours, theirs))

    def _compare_episodes(
        self, where: str, stored: EpisodeState | None, derived: EpisodeState | None
    ) -> None:
        """Times of an episode before the first certain opening tick are not compared, only that it is open."""
        if stored is not None and derived is not None:
            certain_ms = self._certain_ms
            if max(stored.opened_ms, certain_ms) == max(derived.opened_ms, certain_ms) and (
                min(stored.opened_ms, derived.opened_ms) < certain_ms or stored == derived
            ):
                return
        elif stored is None and derived is None:
            return
        self._keys.append(Difference(where, "episode", _episode_text(stored), _episode_text(derived)))

    def _compare_clock(self, partition: Partition, stored: dict[str, Any]) -> None:
        derived = self._derived.partitions.get(partition)
        where = partition_text(partition)
        if derived is None:
            self._comparison.differences.append(Difference(where, "partition", "present", "absent"))
            return
        if stored["clock_ms"] is not None and stored["clock_ms"] < self._complete_ms:
            return  # it was set by a record before those that were read again
        ours, theirs = ((row["clock_ms"], row["run"]) for row in (stored, derived))
        if ours != theirs:
            self._comparison.differences.append(
                Difference(where, "clock", _clock_text(*ours), _clock_text(*theirs))
            )


def _aspect(
    stored: _ComparableState | None, derived: _ComparableState | None, address: str | None, interval_ms: int
) -> tuple[str, str, str]:
    """The first aspect in which two states differ: its name, and its text on each side."""
    if stored is None or derived is None:
        return "events", _events_text(stored), _events_text(derived)
    if stored.panes != derived.panes:
        ours, theirs = (_by_pane(comparable.panes, interval_ms) for comparable in (stored, derived))
        changed = [at for at in sorted({*ours, *theirs}) if ours.get(at) != theirs.get(at)]
        more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
        at, none = changed[0], "no events"
        return f"events of the pane {iso(at)}{more}", ours.get(at, none), theirs.get(at, none)
    if stored.context != derived.context:
        return (
            "latest event",
            context_text(stored.context, address),
            context_text(derived.context, address),
        )
    if stored.hosts != derived.hosts:
        return "hosts", _seen_text(stored.hosts), _seen_text(derived.hosts)
    return "processes", _seen_text(stored.processes), _seen_text(derived.processes)


def _by_pane(panes: windows.Panes, interval_ms: int) -> dict[int, str]:
    return {
        pane.first_ms
        - pane.first_ms % interval_ms: f"{pane.events:,} from {iso(pane.first_ms)} to {iso(pane.last_ms)}"
        for pane in windows.unpack_panes(panes)
    }


def _events_text(comparable: _ComparableState | None) -> str:
    return "none" if comparable is None else f"{comparable.events:,}"


def _seen_text(seen: Seen) -> str:
    return ", ".join(f"{name} at {iso(last_ms)}" for name, last_ms in seen) or "none"


def _episode_text(episode: EpisodeState | None) -> str:
    if episode is None:
        return "none is open"
    return f"open since {iso(episode.opened_ms)}, last alert {iso(episode.alerted_ms)}"


def _clock_text(clock_ms: int | None, run: list[Any] | None) -> str:
    text = "none" if clock_ms is None else iso(clock_ms)
    return text if run is None else f"{text} and {run[0]} records too far ahead, from {iso(run[1])} on"


def _key_text(identity: Identity) -> str:
    rule_id, key = identity
    sensor = f" (sensor {key.sensor})" if key.sensor else ""
    return f"{key.process} to {'no address' if key.address is None else key.address}{sensor}, rule {rule_id}"
