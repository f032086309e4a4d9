"""The keys of one rule, process name and sensor; inboxes; and what has changed in both since the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from streamdetect.detect import serde, windows
from streamdetect.detect.alerts import Key
from streamdetect.detect.episodes import EpisodeState, leaves_ms
from streamdetect.detect.rules import Rule
from streamdetect.detect.windows import PreAggregate, WindowState
from streamdetect.model import AddressKey, address_of


class PendingPane(dict["KeyGroup", dict[AddressKey, PreAggregate]]):
    """{group: {target: partial}} of one inclusion tick and pane, or a part of it.

    `lent` while somebody else reads it, maybe in another thread. One that is not is emptied while it is folded: what a
    large one holds, given up at once, would stop the loop.
    """

    __slots__ = ("lent",)

    def __init__(self) -> None:
        super().__init__()
        self.lent = False


class ChangedKeys(NamedTuple):
    """Keys after a change: their histories, None where forgotten; and all open episodes of the group."""

    histories: dict[AddressKey, WindowState | None]
    episodes: dict[AddressKey, EpisodeState]


class KeyGroup:
    """The keys of one rule, process name and sensor, and when each is due for a look.

    Every key stands once in `expiries` or `spared`, at a tick no later than the one at which it will be forgotten.
    New events move it on only when that tick, or an eviction, comes to it.
    """

    __slots__ = (
        "changed",
        "due",
        "episodes",
        "expiries",
        "histories",
        "plan",
        "process",
        "rule",
        "sensor",
        "spared",
        "watched",
    )

    def __init__(self, rule: Rule, process: str, sensor: str | None, plan: Callable[[int], None]) -> None:
        self.rule = rule
        self.process = process
        self.sensor = sensor
        self.plan = plan  # asks for a tick to be evaluated
        self.histories: dict[AddressKey, WindowState] = {}
        self.episodes: dict[AddressKey, EpisodeState] = {}
        self.watched: dict[AddressKey, int] = {}
        self.due: dict[int, set[AddressKey]] = {}
        # By the tick at which their newest pane leaves.
        self.expiries: dict[int, list[AddressKey]] = {}
        # What an eviction found near the thresholds, by the tick at which that may end (`eviction`).
        self.spared: dict[int, list[AddressKey]] = {}
        # Keys that changed since the last `take_changes`; None while nobody wants to know.
        self.changed: dict[AddressKey, WindowState | None] | None = None

    def key(self, target: AddressKey) -> Key:
        return Key(address_of(target), self.process, self.sensor)

    def keep(self, target: AddressKey, history: WindowState | None, episode: EpisodeState | None) -> None:
        """A key's state after a look; without a history it is forgotten."""
        if history is None:
            self.forget(target)
            return
        self.histories[target] = history
        if episode is None:
            self.episodes.pop(target, None)
        else:
            self.episodes[target] = episode
        if self.changed is not None:
            self.changed[target] = history

    def forget(self, target: AddressKey) -> None:
        self.histories.pop(target, None)
        self.episodes.pop(target, None)
        self.watched.pop(target, None)
        if self.changed is not None:
            self.changed[target] = None

    def expect(self, targets: Sequence[AddressKey], history: WindowState) -> None:
        """Note when keys will be forgotten if nothing more comes; the newest event of all is in that history's pane."""
        leaves = leaves_ms(windows.newest_ms(history[0]), self.rule.limits)
        self._bucket(self.expiries, leaves).extend(targets)

    def note(self, ticks: dict[int, list[AddressKey]], tick_ms: int, target: AddressKey) -> None:
        """Put a key into `expiries` or `spared`."""
        self._bucket(ticks, tick_ms).append(target)

    def _bucket(self, ticks: dict[int, list[AddressKey]], tick_ms: int) -> list[AddressKey]:
        bucket = ticks.get(tick_ms)
        if bucket is None:
            bucket = ticks[tick_ms] = []
            self.plan(tick_ms)
        return bucket

    def take_leaving(self, tick_ms: int) -> list[AddressKey]:
        """Keys that a tick, or an eviction before it, has planned to let go."""
        return [*self.expiries.pop(tick_ms, ()), *self.spared.pop(tick_ms, ())]

    def expire(self, targets: Iterable[AddressKey], tick_ms: int) -> None:
        """Forget keys whose newest pane has left. A key with an open episode is due for a look and goes there."""
        for target in targets:
            history = self.histories[target]
            if leaves_ms(windows.newest_ms(history[0]), self.rule.limits) > tick_ms:
                self.expect([target], history)
            elif target not in self.episodes:
                self.forget(target)

    def take_due(self, tick_ms: int) -> set[AddressKey]:
        """Keys whose planned look is now; a look that was planned anew for another tick is not one."""
        due = {target for target in self.due.pop(tick_ms, ()) if self.watched.get(target) == tick_ms}
        for target in due:
            del self.watched[target]
        return due


class Changes(NamedTuple):
    """What a checkpoint has to write: rows of progress and partitions, changed keys, and new parts of inboxes.

    Parts of ticks up to `progress["evaluated_ms"]` that were written earlier are obsolete.
    """

    progress: serde.Row
    partitions: list[serde.Row]
    keys: dict[KeyGroup, ChangedKeys]
    parts: dict[tuple[int, int], PendingPane]

    def let_go(self) -> None:
        """It has been written. Free it piece by piece: a million keys given up at once would stop every thread."""
        for changed in self.keys.values():
            while changed.histories:
                changed.histories.popitem()
        for part in self.parts.values():
            part.lent = False

    def key_rows(self) -> Iterator[serde.Row]:
        """A `key` row for each changed key, or a `forgotten` row."""
        for group, changed in self.keys.items():
            for target, history in changed.histories.items():
                key = group.key(target)
                if history is None:
                    yield serde.forgotten_row(group.rule.id, key)
                else:
                    yield serde.key_row(group.rule.id, key, history, changed.episodes.get(target))

    def waiting_rows(self) -> Iterator[serde.Row]:
        """A `waiting` row for each partial of the new parts."""
        for (tick_ms, pane_ms), part in self.parts.items():
            yield from part_rows(tick_ms, pane_ms, part)


def part_rows(tick_ms: int, pane_ms: int, part: PendingPane) -> Iterator[serde.Row]:
    """A `waiting` row for each partial of a part of an inbox."""
    for group, partials in part.items():
        for target, partial in partials.items():
            yield serde.waiting_row(group.rule.id, group.key(target), tick_ms, pane_ms, partial)
