"""The embedded engine: all partitions, all rules, all keys in one process.

A record's way, in order:

1. its partition's clock takes note of its time (`clocks`),
2. each rule that wants the process name judges it (`rules`),
3. it is added to the inbox of (first tick at which it counts, its pane), under its key (`history.add_event`),
4. when the watermark lets that tick go, the inbox is folded into the keys' histories (`history.fold`),
5. every key that may have changed is looked at (`episodes.look`), alerts are built and put in key order.

The answer is a function of each partition's records in offset order; how partitions were interleaved, batched, or saved
and restored in between does not show (semantics.md §4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

from sortedcontainers import SortedSet  # type: ignore[import-untyped]  # it has no type hints

from streamdetect.config import Settings
from streamdetect.detect import serde, windows
from streamdetect.detect.alerts import Key, build
from streamdetect.detect.episodes import EpisodeState, look
from streamdetect.detect.eviction import evict
from streamdetect.detect.keystate import ChangedKeys, Changes, KeyGroup, PendingPane, part_rows
from streamdetect.detect.partitions import PartitionProcessor
from streamdetect.detect.rules import ProcessRules, Rule
from streamdetect.detect.ticks import NEVER
from streamdetect.detect.windows import PreAggregate, WindowState
from streamdetect.model import AddressKey, Alert, EventKind, Partition, address_key_of

Item = TypeVar("Item")

_SLICE = 500  # keys that are dealt with at once: some milliseconds


class Listener:
    """What the engine reports. Every method does nothing; override what you want to hear."""

    def attached(self, detector: Detector) -> None:
        """The engine whose reports will follow; it may be inspected while one is being made."""

    def late_arrival(self, partition: Partition) -> None:
        """An event of a partition that was idle belongs to ticks already evaluated; it counts from the next one."""

    def evaluated(self, tick_ms: int, keys: int) -> None:
        """A tick at which something was due has been evaluated; `keys` are alive after it."""

    def evicted(self, rule_id: str, keys: int) -> None:
        """`limits.max_keys` was reached and keys were given up (docs/semantics.md, memory)."""


class Detector:
    """Partitions and their events in, alerts out. Not thread-safe."""

    processor_type: type[PartitionProcessor] = PartitionProcessor

    def __init__(self, settings: Settings, listener: Listener | None = None) -> None:
        self.settings = settings
        self.listener = listener or Listener()
        time = settings.time
        self.interval_ms = time.interval_ms
        self.lookback_ms = time.lookback_ms
        self.lateness_ms = time.lateness_ms
        self.max_skew_ms = time.max_future_skew_ms
        self.max_jump_ms = time.max_future_jump_ms
        self.rules = tuple(Rule(rule, settings) for rule in settings.rules if rule.enabled)
        names = sorted({name for rule in self.rules for name in rule.processes})
        self.judges: dict[object, ProcessRules] = {
            name: ProcessRules([rule for rule in self.rules if name in rule.processes]) for name in names
        }
        self.processors: dict[Partition, PartitionProcessor] = {}
        self.evaluated_ms = NEVER
        self.ticks = 0
        self.keys_peak = 0
        self._groups: dict[tuple[Rule, object, str | None], KeyGroup] = {}
        # {tick: {pane: parts}}: events are added to the last part; a saved part is never changed again.
        self._waiting: dict[int, dict[int, list[PendingPane]]] = {}
        self._unsaved: dict[tuple[int, int], PendingPane] = {}
        self._tracking = False
        self._agenda = SortedSet()  # ticks at which something is waiting, due, or may expire
        self._first_tick_ms: int | None = None
        self._tick: Iterator[list[Alert] | None] | None = None

    def processor(self, partition: Partition) -> PartitionProcessor:
        """The lane of a partition, made when it is first asked for."""
        processor = self.processors.get(partition)
        if processor is None:
            processor = self.processors[partition] = self.processor_type(self, partition)
        return processor

    @property
    def keys(self) -> int:
        """Live keys of all rules."""
        return sum(len(group.histories) for group in self._groups.values())

    @property
    def suspect_leaps(self) -> int:
        """Partitions with a run of wild clocks that is not believed yet."""
        return sum(processor.clock.run is not None for processor in self.processors.values())

    @property
    def first_tick_ms(self) -> int | None:
        """The first tick at which an event counts, None before any has come."""
        return self._first_tick_ms

    def groups(self) -> list[KeyGroup]:
        """All groups of keys."""
        return list(self._groups.values())

    def open_episodes(self) -> dict[str, int]:
        """Open episodes by rule id."""
        found = {rule.id: 0 for rule in self.rules}
        for group in self._groups.values():
            found[group.rule.id] += len(group.episodes)
        return found

    def watermark_ms(self) -> int | None:
        """The time up to which all partitions that can hold it back have been read, None while unknown.

        With every partition idle it is the newest of theirs (docs/design.md, decision 7).
        """
        holding = [processor.watermark_ms for processor in self.processors.values() if not processor.idle]
        if not holding:
            return max(
                (w for processor in self.processors.values() if (w := processor.watermark_ms) is not None),
                default=None,
            )
        known = [w for w in holding if w is not None]
        return min(known) if len(known) == len(holding) else None

    def advance(self) -> list[Alert]:
        """Evaluate every tick that the watermark lets go."""
        watermark_ms = self.watermark_ms()
        return [] if watermark_ms is None else self.advance_to(watermark_ms)

    def finish(self) -> list[Alert]:
        """The input has ended: ticks up to the first one greater than the newest partition clock (§4)."""
        newest_ms = max(
            (now for processor in self.processors.values() if (now := processor.clock.now_ms) is not None),
            default=None,
        )
        return [] if newest_ms is None else self.advance_to(newest_ms + self.interval_ms)

    def advance_to(self, watermark_ms: int) -> list[Alert]:
        """Evaluate all ticks up to a watermark, in order; those at which nothing can change are only counted."""
        target_ms = watermark_ms - watermark_ms % self.interval_ms
        alerts: list[Alert] = []
        while self._has_more(target_ms):
            alerts += self._slice()
        self._pass(target_ms)
        return alerts

    @property
    def ticking(self) -> bool:
        """Whether a tick is under way, begun by `step`: the state cannot be saved before it has ended."""
        return self._tick is not None

    def step(self) -> tuple[list[Alert], bool]:
        """Do a slice of what `advance` would do, and tell whether there is more; events may be accepted in between.

        A tick's alerts come with its last slice: they are the same however it is sliced.
        """
        watermark_ms = self.watermark_ms()
        target_ms = NEVER if watermark_ms is None else watermark_ms - watermark_ms % self.interval_ms
        alerts: list[Alert] = []
        if self._has_more(target_ms):
            alerts = self._slice()
        if self._has_more(target_ms):
            return alerts, True
        self._pass(target_ms)
        return alerts, False

    def _has_more(self, target_ms: int) -> bool:
        """Whether a tick is under way, or one up to this is due."""
        return self.ticking or bool(self._agenda and self._agenda[0] <= target_ms)

    def _slice(self) -> list[Alert]:
        """Begin the next tick, or go on with it."""
        if self._tick is None:
            tick_ms = self._agenda.pop(0)
            self._pass(tick_ms)  # what comes while it is under way counts from the next one on
            self._tick = self._evaluate(tick_ms)
        alerts = next(self._tick)
        if alerts is None:
            return []
        self._tick = None
        return alerts

    def _pass(self, tick_ms: int) -> None:
        if tick_ms > self.evaluated_ms:
            self.ticks = self._ticks_to(tick_ms)
            self.evaluated_ms = tick_ms

    def _ticks_to(self, tick_ms: int) -> int:
        """The number of ticks with this one, and all before it, evaluated."""
        if self._first_tick_ms is None:
            return self.ticks
        since_ms = max(self.evaluated_ms, self._first_tick_ms - self.interval_ms)
        return self.ticks + max(0, tick_ms - since_ms) // self.interval_ms

    def group(self, rule: Rule, kind: EventKind) -> KeyGroup:
        """The group of keys that a counting event belongs to."""
        identity = (rule, kind.process_name, kind.sensor)
        group = self._groups.get(identity)
        if group is None:
            group = self._add_group(identity, rule, str(kind.process_name), kind.sensor)
        return group

    def _add_group(
        self, identity: tuple[Rule, object, str | None], rule: Rule, process: str, sensor: str | None
    ) -> KeyGroup:
        group = self._groups[identity] = KeyGroup(rule, process, sensor, self._agenda.add)
        group.changed = {} if self._tracking else None
        return group

    def inbox(self, tick_ms: int, pane_ms: int) -> PendingPane:
        """The inbox of an inclusion tick and a pane."""
        panes = self._waiting.get(tick_ms)
        if panes is None:
            panes = self._waiting[tick_ms] = {}
            self._agenda.add(tick_ms)
            if self._first_tick_ms is None or tick_ms < self._first_tick_ms:
                self._first_tick_ms = tick_ms
        part = self._unsaved.get((tick_ms, pane_ms))
        if part is None:
            part = self._unsaved[tick_ms, pane_ms] = PendingPane()
            panes.setdefault(pane_ms, []).append(part)
        return part

    def track_changes(self) -> None:
        """Note from now on what changes, for `take_changes`. What is there already counts as saved."""
        self._tracking = True
        self._unsaved = {}
        self._let_go()
        for group in self._groups.values():
            group.changed = {}

    def take_changes(self) -> Changes:
        """What has changed since the last call, or since `track_changes`.

        Takes no longer with more keys: dicts change hands. What is in the answer is never changed again, so it may be
        written from another thread.
        """
        keys = {
            group: ChangedKeys(group.changed, dict(group.episodes))
            for group in self._groups.values()
            if group.changed
        }
        for group in keys:
            group.changed = {}
        parts, self._unsaved = self._unsaved, {}
        for part in parts.values():
            part.lent = True
        self._let_go()
        return Changes(
            self._progress_row(), [processor.row() for processor in self.processors.values()], keys, parts
        )

    def _let_go(self) -> None:
        for processor in self.processors.values():
            processor.let_go()

    def _evaluate(self, tick_ms: int) -> Iterator[list[Alert] | None]:
        """One tick: fold what has waited for it, then look at every key that may have changed its mind.

        None after each slice, the alerts at the end.
        """
        changed: dict[KeyGroup, set[AddressKey]] = {}
        inboxes = self._waiting.pop(tick_ms, {})
        for pane_ms in sorted(inboxes):
            self._unsaved.pop((tick_ms, pane_ms), None)
            for part in inboxes.pop(pane_ms):
                for group, partials in part.items():
                    found = changed.setdefault(group, set())
                    for some in _slices(partials.items()) if part.lent else _emptied(partials):
                        found |= self._fold(group, dict(some), tick_ms)
                        yield None
        found_alerts: list[tuple[tuple[object, ...], int, Alert]] = []
        for group in list(self._groups.values()):
            targets = changed.get(group, set()) | group.take_due(tick_ms)
            for gone in _slices(group.take_leaving(tick_ms)):
                group.expire(gone, tick_ms)
                yield None
            for some_targets in _slices(targets):
                for target in some_targets:
                    alert = self._look(group, target, tick_ms)
                    if alert is not None:
                        place = self.rules.index(group.rule)
                        found_alerts.append((group.key(target).order(), place, alert))
                yield None
        found_alerts.sort(key=lambda item: item[:2])
        self.keep_within(tick_ms)
        self.listener.evaluated(tick_ms, self.keys)
        yield [alert for _, _, alert in found_alerts]

    def _fold(
        self, group: KeyGroup, partials: dict[AddressKey, PreAggregate], tick_ms: int
    ) -> set[AddressKey]:
        """Fold an inbox; gives the keys that have enough events to be true, or an open episode."""
        limits = group.rule.limits
        need = limits.need
        oldest_ms = tick_ms - limits.lookback_ms
        histories, episodes, noted = group.histories, group.episodes, group.changed
        changed: set[AddressKey] = set()
        new: list[AddressKey] = []
        for target, partial in partials.items():
            known = histories.get(target)
            history = histories[target] = windows.fold(known, partial, target, oldest_ms, limits)
            if known is None:
                new.append(target)
            if noted is not None:
                noted[target] = history
            if windows.total(history[0]) >= need or (episodes and target in episodes):
                changed.add(target)
        if new:  # partials of one inbox lie in one pane
            group.expect(new, histories[new[0]])
        return changed

    def _look(self, group: KeyGroup, target: AddressKey, tick_ms: int) -> Alert | None:
        found = look(group.histories.get(target), group.episodes.get(target), tick_ms, group.rule.limits)
        group.keep(target, found.history, found.episode)
        if found.again_ms is not None:
            self._watch(group, target, found.again_ms)
        return None if found.action is None else build(group.rule, group.key(target), tick_ms, found)

    def _watch(self, group: KeyGroup, target: AddressKey, again_ms: int) -> None:
        """Look again at a tick, unless an earlier look is planned already: looking too early does no harm."""
        planned_ms = group.watched.get(target)
        if planned_ms is not None and planned_ms <= again_ms:
            return
        group.watched[target] = again_ms
        if again_ms not in group.due:
            group.due[again_ms] = set()
            self._agenda.add(again_ms)
        group.due[again_ms].add(target)

    def keep_within(self, tick_ms: int) -> None:
        """Keep within `limits.max_keys`, after the looks of a tick."""
        self._evict(tick_ms)
        self.keys_peak = max(self.keys_peak, self.keys)

    def _evict(self, tick_ms: int) -> None:
        excess = self.keys - self.settings.limits.max_keys
        if excess <= 0:
            return
        groups = sorted(self._groups.values(), key=lambda group: self.rules.index(group.rule))
        for rule_id, keys in evict(groups, excess, tick_ms, self._agenda).items():
            self.listener.evicted(rule_id, keys)

    def export_state(self) -> Iterator[serde.Row]:
        """The whole state as rows of plain JSON data, one for each partition, inbox entry and key."""
        yield self._progress_row()
        for processor in self.processors.values():
            yield processor.row()
        for tick_ms, panes in self._waiting.items():
            for pane_ms, parts in panes.items():
                for part in parts:
                    yield from part_rows(tick_ms, pane_ms, part)
        for group in self._groups.values():
            for target, history in group.histories.items():
                yield serde.key_row(group.rule.id, group.key(target), history, group.episodes.get(target))

    def _progress_row(self) -> serde.Row:
        return {
            "kind": "progress",
            "evaluated_ms": None if self.evaluated_ms == NEVER else self.evaluated_ms,
            "first_tick_ms": self._first_tick_ms,
            "ticks": self.ticks,
            "keys_peak": self.keys_peak,
        }

    def import_state(self, rows: Iterable[serde.Row]) -> None:
        """Take up an exported state, its `progress` row first. The detector must be new and have the same settings.

        Raises KeyError for a row of a rule that is not enabled here, ValueError for an unknown kind of row.
        """
        for row in rows:
            kind = row["kind"]
            if kind == "progress":
                self._import_progress(row)
            elif kind == "partition":
                serde.restore_partition(row, self.processor(serde.partition_of(row)))
            elif kind == "waiting":
                self._import_waiting(row)
            elif kind == "key":
                self._import_key(row)
            else:
                raise ValueError(f"unknown kind of state: {kind!r}")

    def _import_waiting(self, row: serde.Row) -> None:
        """A key may have several partials in a pane, saved at different times: each goes into a part of its own."""
        group, target = self._group_of(row)
        tick_ms, pane_ms = int(row["tick_ms"]), int(row["pane_ms"])
        self.inbox(tick_ms, pane_ms)
        parts = self._waiting[tick_ms][pane_ms]
        part = next((part for part in parts if target not in part.get(group, ())), None)
        if part is None:
            part = PendingPane()
            parts.insert(0, part)
        part.setdefault(group, {})[target] = serde.partial_of(row)

    def _import_progress(self, row: serde.Row) -> None:
        self.evaluated_ms = NEVER if row["evaluated_ms"] is None else row["evaluated_ms"]
        self.ticks, self.keys_peak = row["ticks"], row["keys_peak"]
        if row["first_tick_ms"] is not None:
            self._first_tick_ms = row["first_tick_ms"]

    def _import_key(self, row: serde.Row) -> None:
        """A key is expected to expire when its newest pane leaves, and looked at as soon as time moves."""
        group, target = self._group_of(row)
        history = group.histories[target] = serde.history_of(row)
        group.expect([target], history)
        episode = serde.episode_of(row)
        if episode is not None:
            group.episodes[target] = episode
        if episode is not None or windows.total(history[0]) >= group.rule.limits.need:
            self._watch(group, target, self.evaluated_ms + self.interval_ms)

    def replace_episodes(self, episodes: Mapping[tuple[str, Key], EpisodeState]) -> int:
        """These are the open ones, by rule id and key, and no others: what was sent knows better than what was read.

        Every key concerned is looked at when time moves. An episode of a key without events is dropped. Gives how many
        were open here and are in `episodes` no more.
        """
        unknown = 0
        next_ms = self.evaluated_ms + self.interval_ms
        for group in self._groups.values():
            wanted = {
                address_key_of(key.address): episode
                for (rule_id, key), episode in episodes.items()
                if rule_id == group.rule.id
                and key == group.key(address_key_of(key.address))
                and address_key_of(key.address) in group.histories
            }
            unknown += len(group.episodes.keys() - wanted.keys())
            for target in group.episodes.keys() | wanted.keys():
                group.keep(target, group.histories.get(target), wanted.get(target))
                self._watch(group, target, next_ms)
        return unknown

    def _group_of(self, row: serde.Row) -> tuple[KeyGroup, AddressKey]:
        rule = next((rule for rule in self.rules if rule.id == row["rule"]), None)
        if rule is None:
            raise KeyError(row["rule"])
        key = Key(*row["key"])
        identity = (rule, key.process, key.sensor)
        group = self._groups.get(identity) or self._add_group(identity, rule, key.process, key.sensor)
        return group, address_key_of(key.address)

    def inspect(self, address: str | None, process: str) -> Iterator[tuple[Rule, Key, WindowState]]:
        """What is remembered of a destination and process: one for each rule and sensor that knows it."""
        target = address_key_of(address)
        for group in self._groups.values():
            if group.process == process and target in group.histories:
                yield group.rule, group.key(target), group.histories[target]


def _emptied(partials: dict[AddressKey, PreAggregate]) -> Iterator[list[tuple[AddressKey, PreAggregate]]]:
    while partials:
        yield [partials.popitem() for _ in range(min(_SLICE, len(partials)))]


def _slices(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, _SLICE)):
        yield some
