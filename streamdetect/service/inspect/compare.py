"""A checkpoint beside what its records give: where they differ, as far as the window of the last tick E decides.

Compared are the histories of keys within the window, open episodes, events that wait for later ticks, and the
clocks of partitions. Not compared: whether a partition is idle, which only a live run knows. Where only the window
was read again: the clock of a partition that has been silent since, and when an episode opened, or was last told
of, that opened before every window was whole.

A live run may differ in one thing (semantics.md §4): events of a partition that was idle count from the tick after
those that were evaluated without them. Until that tick comes they wait in the checkpoint, and count already in what
was read again. Such keys are told apart: taken at the next tick, both are the same.
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
from streamdetect.model import ContextTuple, Partition, address_key_of
from streamdetect.service.inspect.describe import VerifiedCheckpoint
from streamdetect.service.inspect.differences import Comparison, Difference

Identity = tuple[str, Key]
"""A rule's id and a key."""

Place = tuple[int, int]
"""A tick and a pane, in ms."""


def partition_text(partition: Partition) -> str:
    return f"{partition.topic}-{partition.number}"


def compare(examined: VerifiedCheckpoint, derived: Detector, whole_ms: int) -> Comparison:
    """`derived` has read all events from `whole_ms` on, and perhaps some before; NEVER means all there were."""
    return _Comparing(examined, derived, whole_ms).done()


class _Side:
    """One of the two states, taken apart: keys, what waits for each, clocks."""

    def __init__(self, detector: Detector) -> None:
        self.histories: dict[Identity, WindowState] = {}
        self.episodes: dict[Identity, EpisodeState] = {}
        self.waiting: dict[Identity, dict[Place, list[PreAggregate]]] = {}
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
        self.histories[identity] = serde.state_of(row)
        episode = serde.episode_of(row)
        if episode is not None:
            self.episodes[identity] = episode

    def identities(self) -> set[Identity]:
        return {*self.histories, *self.waiting}


class _Normal(NamedTuple):
    """What of a history decides anything, in a form in which equals are equal."""

    panes: windows.Panes
    context: ContextTuple
    hosts: Seen
    processes: Seen

    @property
    def events(self) -> int:
        return windows.total(self.panes)


class _View:
    """One key on one side, as it is compared."""

    def __init__(self, side: _Side, identity: Identity, oldest_ms: int, limits: Limits) -> None:
        self._history = side.histories.get(identity)
        self._waiting = side.waiting.get(identity, {})
        self._target = address_key_of(identity[1].address)
        self._oldest_ms = oldest_ms
        self._limits = limits
        self.episode = side.episodes.get(identity)
        self.now = self._normal(self._history, oldest_ms)
        self.waiting = {
            place: self._normal(self._folded(None, partials), NEVER)
            for place, partials in self._waiting.items()
        }

    @property
    def events(self) -> int:
        """In the window."""
        return 0 if self.now is None else self.now.events

    def events_since(self, time_ms: int) -> int:
        """In the window, without panes before a time."""
        return 0 if self.now is None else windows.total(windows.trim(self.now.panes, time_ms))

    def at(self, next_ms: int, oldest_ms: int) -> tuple[_Normal | None, dict[Place, _Normal | None]]:
        """With what waits for this tick taken, in a window that begins there; and what waits for others."""
        history, others = self._history, dict(self.waiting)
        for place in sorted(self._waiting):
            if place[0] == next_ms:
                history = self._folded(history, self._waiting[place])
                del others[place]
        return self._normal(history, oldest_ms), others

    def _folded(self, history: WindowState | None, partials: list[PreAggregate]) -> WindowState | None:
        """Parts of one pane that were saved at different times are one."""
        for partial in partials:
            history = windows.fold(history, partial, self._target, self._oldest_ms, self._limits)
        return history

    def _normal(self, history: WindowState | None, oldest_ms: int) -> _Normal | None:
        """Without what lies before the window; None where nothing is left."""
        if history is None:
            return None
        panes = windows.trim(history[0], oldest_ms)
        if windows.total(panes) == 0:
            return None
        most = self._limits.max_hosts, self._limits.max_processes
        hosts, processes = (
            newest((item for item in seen if item[1] >= oldest_ms), limit)
            for seen, limit in zip(windows.seen(history), most, strict=True)
        )
        return _Normal(panes, history[1], hosts, processes)


class _Comparing:
    """All keys and partitions of both sides."""

    def __init__(self, examined: VerifiedCheckpoint, derived: Detector, whole_ms: int) -> None:
        time = examined.settings.time
        evaluated_ms = examined.evaluated_ms
        self._stored, self._derived = _Side(examined.detector), _Side(derived)
        self._limits = {rule.id: rule.limits for rule in derived.rules}
        self._interval_ms = time.interval_ms
        self._evaluated_ms = NEVER if evaluated_ms is None else evaluated_ms
        self._oldest_ms = NEVER if evaluated_ms is None else evaluated_ms - time.lookback_ms
        self._whole_ms = whole_ms
        # An episode opens for certain where the window of the tick before was whole, too.
        self._certain_ms = NEVER if whole_ms == NEVER else whole_ms + time.lookback_ms + time.interval_ms
        peak = max(examined.keys_peak, derived.keys_peak)
        self._found = Comparison(evicting=peak >= examined.settings.limits.max_keys)
        self._next_ms = self._evaluated_ms + time.interval_ms
        self._next_oldest_ms = self._oldest_ms + time.interval_ms
        self._keys: list[Difference] = []
        # Events of the pane that leaves: if they came late, they count nowhere any more, so nothing of them waits.
        self._leaving: list[tuple[Identity, _View, _View]] = []

    def done(self) -> Comparison:
        """Clocks first: a wrong one makes all the rest wrong."""
        for partition, row in sorted(self._stored.partitions.items()):
            self._found.partitions += 1
            self._compare_clock(partition, row)
        for identity in self._stored.identities() | self._derived.identities():
            self._compare_key(identity)
        late = bool(self._found.late)
        for identity, ours, theirs in self._leaving:
            if late:
                self._found.late.append(self._late(_key_text(identity), ours, theirs))
            else:
                self._compare_events(identity, ours, theirs)
        self._found.differences += sorted(self._keys)
        self._found.late.sort()
        return self._found

    def _compare_key(self, identity: Identity) -> None:
        self._found.keys += 1
        if self._is_plainly_equal(identity):
            return
        limits = self._limits[identity[0]]
        stored, derived = (
            _View(side, identity, self._oldest_ms, limits) for side in (self._stored, self._derived)
        )
        self._found.events += stored.events + sum(
            normal.events for normal in stored.waiting.values() if normal
        )
        where = _key_text(identity)
        if (stored.now, stored.waiting) == (derived.now, derived.waiting):
            self._compare_episodes(where, stored.episode, derived.episode)
        elif self._is_late(stored, derived):
            if stored.events_since(self._next_oldest_ms) < derived.events_since(self._next_oldest_ms):
                self._found.late.append(self._late(where, stored, derived))
            else:
                self._leaving.append((identity, stored, derived))
        else:
            self._compare_events(identity, stored, derived)
            self._compare_episodes(where, stored.episode, derived.episode)

    def _is_plainly_equal(self, identity: Identity) -> bool:
        """The same on both sides, and nothing waits: so are nearly all keys, and this is quick."""
        stored, derived = self._stored, self._derived
        history = stored.histories.get(identity)
        if history is None or identity in stored.waiting or identity in derived.waiting:
            return False
        if history != derived.histories.get(identity):
            return False
        if stored.episodes.get(identity) != derived.episodes.get(identity):
            return False
        self._found.events += windows.total(windows.trim(history[0], self._oldest_ms))
        return True

    def _is_late(self, stored: _View, derived: _View) -> bool:
        """Whether the checkpoint only lags behind by a tick."""
        if stored.events >= derived.events:
            return False
        ours, theirs = (view.at(self._next_ms, self._next_oldest_ms) for view in (stored, derived))
        return ours == theirs

    def _late(self, where: str, stored: _View, derived: _View) -> Difference:
        return Difference(
            where,
            f"{derived.events - stored.events:,} events",
            f"they count from {iso(self._next_ms)} on",
            f"they count at {iso(self._evaluated_ms)}",
        )

    def _compare_events(self, identity: Identity, stored: _View, derived: _View) -> None:
        pairs = {"": (stored.now, derived.now)}
        for tick_ms, pane_ms in sorted({*stored.waiting, *derived.waiting}):
            place = tick_ms, pane_ms
            name = f"waiting for {iso(tick_ms)} from the pane {iso(pane_ms)}, "
            pairs[name] = stored.waiting.get(place), derived.waiting.get(place)
        for name, (one, other) in pairs.items():
            if one != other:
                what, ours, theirs = _aspect(one, other, identity[1].address, self._interval_ms)
                self._keys.append(Difference(_key_text(identity), f"{name}{what}", ours, theirs))

    def _compare_episodes(
        self, where: str, stored: EpisodeState | None, derived: EpisodeState | None
    ) -> None:
        """Before all windows were whole, only that the episode is open is known."""
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
            self._found.differences.append(Difference(where, "partition", "it is read", "it is not there"))
            return
        if stored["clock_ms"] is not None and stored["clock_ms"] < self._whole_ms:
            return  # it was set before all that was read again
        ours, theirs = ((row["clock_ms"], row["run"]) for row in (stored, derived))
        if ours != theirs:
            self._found.differences.append(
                Difference(where, "clock", _clock_text(*ours), _clock_text(*theirs))
            )


def _aspect(
    stored: _Normal | None, derived: _Normal | None, address: str | None, interval_ms: int
) -> tuple[str, str, str]:
    """The first thing that is not the same in two histories: its name, and how it is on each side."""
    if stored is None or derived is None:
        return "events", _events_text(stored), _events_text(derived)
    if stored.panes != derived.panes:
        ours, theirs = (_by_pane(normal.panes, interval_ms) for normal in (stored, derived))
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


def _events_text(normal: _Normal | None) -> str:
    return "none" if normal is None else f"{normal.events:,}"


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
