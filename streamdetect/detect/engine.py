"""The embedded engine: all partitions, all rules, all keys in one process.

The path of a record, in order:

1. its partition's clock observes its time (`clocks`),
2. each rule for its process name filters it or counts it (`rules`),
3. it is added to a pre-aggregate of its key, in the pending pane of (first including tick, pane) (`partitions`),
4. when the watermark passes that tick, the pre-aggregate is folded into the key's window state (`tick_engine`),
5. every key that can have changed is evaluated (`episodes`), and alerts are built in key order.

The result is a function of each partition's records in offset order. It does not depend on how partitions were
interleaved or batched, or on when state was saved and restored (semantics.md §4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from streamdetect.config import Settings
from streamdetect.detect import serde
from streamdetect.detect.alerts import Key
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.keystate import KeyGroup
from streamdetect.detect.listener import Listener
from streamdetect.detect.partitions import PartitionProcessor, Partitions
from streamdetect.detect.rules import enabled_rules
from streamdetect.detect.snapshot import Changes
from streamdetect.detect.tick_engine import RuleEvaluator, TickEngine
from streamdetect.model import Alert, Partition, address_key_of


class Detector:
    """Partitions and their events in, alerts out. Not thread-safe."""

    def __init__(self, settings: Settings, listener: Listener | None = None) -> None:
        self.settings = settings
        self.interval_ms = settings.time.interval_ms
        self.rules = enabled_rules(settings)
        self._engine = TickEngine(settings, self.rules, RuleEvaluator(self.rules))
        self._partitions = Partitions(settings, self.rules, self._engine.groups, self._engine.pending)
        self.listener = listener or Listener()

    @property
    def listener(self) -> Listener:
        """Receives this engine's reports."""
        return self._engine.listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._engine.listener = self._partitions.listener = listener

    def processor(self, partition: Partition) -> PartitionProcessor:
        """The processor of a partition, created on first use."""
        return self._partitions.processor(partition)

    @property
    def processors(self) -> Mapping[Partition, PartitionProcessor]:
        """All processors created so far."""
        return self._partitions.processors

    @property
    def evaluated_ms(self) -> int:
        """The last evaluated tick, `ticks.NEVER` before the first."""
        return self._engine.evaluated_ms

    @property
    def ticks(self) -> int:
        """Evaluated ticks, from the first at which any event counts."""
        return self._engine.ticks

    @property
    def keys(self) -> int:
        """Live keys of all rules."""
        return self._engine.groups.keys

    @property
    def keys_peak(self) -> int:
        """The most live keys after any tick."""
        return self._engine.keys_peak

    @property
    def suspect_leaps(self) -> int:
        """Partitions with a leap of the clock that is not believed yet."""
        return self._partitions.suspect_leaps

    @property
    def first_tick_ms(self) -> int | None:
        """The first tick at which an event counts, None before there is one."""
        return self._engine.first_tick_ms

    @property
    def waiting(self) -> int:
        """Pre-aggregates that wait for their tick."""
        return self._engine.waiting

    def groups(self) -> list[KeyGroup]:
        """All key groups."""
        return list(self._engine.groups)

    def open_episodes(self) -> dict[str, int]:
        """Open episodes by rule id."""
        counts = {rule.id: 0 for rule in self.rules}
        for group in self._engine.groups:
            counts[group.rule.id] += len(group.episodes)
        return counts

    def watermark_ms(self) -> int | None:
        """The lowest watermark of the partitions that are not idle, None while one of them has none.

        With every partition idle it is the newest of theirs (docs/design.md, decision 7).
        """
        return self._partitions.watermark_ms()

    def advance(self) -> list[Alert]:
        """Evaluate every tick that the watermark has passed."""
        watermark_ms = self.watermark_ms()
        return [] if watermark_ms is None else self.advance_to(watermark_ms)

    def finish(self) -> list[Alert]:
        """The input has ended: evaluate ticks up to the first one greater than the newest partition clock (semantics.md
        §4).
        """
        newest_ms = self._partitions.newest_ms
        return [] if newest_ms is None else self.advance_to(newest_ms + self.interval_ms)

    def advance_to(self, watermark_ms: int) -> list[Alert]:
        """Evaluate all ticks up to a watermark, in order."""
        return self._engine.advance_to(watermark_ms)

    @property
    def ticking(self) -> bool:
        """Whether a tick begun by `step` is in progress: the state cannot be saved before it ends."""
        return self._engine.ticking

    def step(self) -> tuple[list[Alert], bool]:
        """Run one slice of what `advance` does, and return whether there is more. Events may be accepted in between.

        A tick's alerts are returned with its last slice: they are the same however it is sliced.
        """
        return self._engine.step(self.watermark_ms())

    def limit_keys(self, tick_ms: int) -> None:
        """Keep within `limits.max_keys` after a tick, for a state that was imported."""
        self._engine.limit_keys(tick_ms)

    def track_changes(self) -> None:
        """Track changes from now on, for `take_changes`. The present state counts as saved."""
        self._engine.groups.track_changes()
        self._engine.pending.close_segments()
        self._partitions.close_segments()

    def take_changes(self) -> Changes:
        """What has changed since the last call, or since `track_changes`.

        The time does not depend on the number of keys: dicts are swapped. The engine never changes what it returned, so
        another thread may write it.
        """
        keys = self._engine.groups.take_changes()
        segments = self._engine.pending.close_segments()
        self._partitions.close_segments()
        return Changes(self._engine.progress_row(), self._partitions.rows(), keys, segments)

    def export_state(self) -> Iterator[serde.Row]:
        """The whole state as rows of plain JSON data, one for each partition, pre-aggregate and key."""
        yield self._engine.progress_row()
        yield from self._partitions.rows()
        yield from self._engine.rows()

    def import_state(self, rows: Iterable[serde.Row]) -> None:
        """Restore an exported state, its `progress` row first. The detector must be new and have the same settings.

        Raises KeyError for a row of a rule that is not enabled here, ValueError for an unknown kind of row.
        """
        for row in rows:
            kind = row["kind"]
            if kind == "progress":
                self._engine.restore_progress(row)
            elif kind == "partition":
                self._partitions.restore(row)
            elif kind == "waiting":
                self._engine.restore_waiting(row)
            elif kind == "key":
                self._engine.restore_key(row)
            else:
                raise ValueError(f"unknown kind of state: {kind!r}")

    def replace_episodes(self, episodes: Mapping[tuple[str, Key], EpisodeState]) -> int:
        """Make these the open episodes, by rule id and key, and no others: those read from published alerts.

        Every key concerned is evaluated at the next tick. An episode of a key without events is dropped. Returns how
        many open episodes are not in `episodes`.
        """
        unknown = 0
        for group in self._engine.groups:
            wanted = {
                address_key_of(key.address): episode
                for (rule_id, key), episode in episodes.items()
                if rule_id == group.rule.id and (key.process, key.sensor) == (group.process, group.sensor)
            }
            wanted = {key: episode for key, episode in wanted.items() if key in group.states}
            unknown += len(group.episodes.keys() - wanted.keys())
            for address_key in group.episodes.keys() | wanted.keys():
                group.put(address_key, group.states.get(address_key), wanted.get(address_key))
                group.set_timer(address_key, self.evaluated_ms + self.interval_ms)
        return unknown
