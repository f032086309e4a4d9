"""Aggregation apart from evaluation: partitions and pending panes in one place, window states in another (semantics.md
§6).

The pending pane of an event depends on its own partition only. So several aggregators, each with partitions of its own,
can hand over what they have: pre-aggregates merge in any order. `variants.Variants` evaluates them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streamdetect.config import Settings
from streamdetect.detect.keystate import KeyGroup, KeyGroups
from streamdetect.detect.partitions import FUTURE, PartitionProcessor, Partitions
from streamdetect.detect.pending import PendingPane, PendingPanes
from streamdetect.detect.preaggregate import TIMES, PreAggregate
from streamdetect.detect.rules import PROCESS_NAME, enabled_rules
from streamdetect.model import AddressKey, ContextTuple, Event, EventKind, Flow, Partition


class GroupRows(NamedTuple):
    """The pre-aggregates of one key group: the position of its rule, its process and sensor."""

    rule: int
    process: str
    sensor: str | None
    pre_aggregates: dict[AddressKey, PreAggregate]


class PaneRows(NamedTuple):
    """What was aggregated for one first including tick and pane."""

    tick_ms: int
    pane_ms: int
    rows: list[GroupRows]


class ClockRow(NamedTuple):
    """A partition's clock, None before its first event; whether it has ended; whether it has a suspect leap."""

    partition: Partition
    now_ms: int | None
    ended: bool
    suspect: bool


class TimedPartitionProcessor(PartitionProcessor):
    """Also keeps the time of each event that counts, in ms, in order of arrival: an array of 64-bit integers."""

    __slots__ = ()

    @staticmethod
    def add(
        segment: PendingPane,
        group: KeyGroup,
        time_ms: int,
        address_keys: tuple[AddressKey, ...],
        context: ContextTuple,
    ) -> None:
        """As `PartitionProcessor.add`, with the time appended to the pre-aggregate."""
        PartitionProcessor.add(segment, group, time_ms, address_keys, context)
        by_key = segment[group]
        for address_key in address_keys:
            pre = by_key[address_key]
            if len(pre) > TIMES:
                pre[TIMES].append(time_ms)
            else:
                pre.append(array("q", (time_ms,)))


class PaneAggregator:
    """Takes events and hands over pending panes; evaluates nothing. With `timed` it keeps the time of each event."""

    def __init__(
        self, settings: Settings, max_hosts: int, max_processes: int, *, timed: bool = False
    ) -> None:
        """`max_hosts` and `max_processes` are the largest of all rules that will evaluate the panes."""
        self.rules = enabled_rules(settings)
        for rule in self.rules:
            rule.limits = rule.limits.widened(max_hosts, max_processes)
        self._pending = PendingPanes(settings.time.interval_ms, settings.time.lookback_ms)
        processor_type = TimedPartitionProcessor if timed else PartitionProcessor
        groups = KeyGroups(self.rules)
        self._partitions = Partitions(settings, self.rules, groups, self._pending, processor_type)

    @property
    def process_names(self) -> frozenset[object]:
        """The process names of all rules."""
        return frozenset(self._partitions.process_rules)

    def processor(self, partition: Partition) -> PartitionProcessor:
        """The processor of a partition, created on first use."""
        return self._partitions.processor(partition)

    def take(self) -> list[PaneRows]:
        """Hand over the panes of every tick that a partition here has passed. More may follow for the same ticks."""
        processors = self._partitions.processors.values()
        newest_ms = max((w for one in processors if (w := one.watermark_ms) is not None), default=None)
        if newest_ms is None:
            return []
        ended = all(processor.idle for processor in processors)
        ready = [tick_ms for tick_ms in self._pending.ticks() if ended or tick_ms <= newest_ms]
        if ready:
            self._partitions.close_segments()
        return [
            PaneRows(tick_ms, pane_ms, self._rows(segment))
            for tick_ms in ready
            for pane_ms, segment in self._pending.take(tick_ms)
        ]

    def _rows(self, segment: PendingPane) -> list[GroupRows]:
        return [
            GroupRows(self.rules.index(group.rule), group.process, group.sensor, by_key)
            for group, by_key in segment.items()
        ]

    def clocks(self) -> list[ClockRow]:
        """The clock of each partition."""
        return [
            ClockRow(one.partition, one.clock.now_ms, one.idle, one.clock.run is not None)
            for one in self._partitions.processors.values()
        ]


class _CachedEvent:
    """An event that derives once what several aggregators need (`model.Event`)."""

    __slots__ = ("_context", "_event", "_flow", "_kind", "process_name", "time_ms")

    def __init__(self, event: Event) -> None:
        self._event = event
        self.time_ms = event.time_ms
        self.process_name = event.process_name
        self._flow: Flow | None = None
        self._kind: EventKind | None = None
        self._context: ContextTuple | None = None

    def flow(self) -> Flow:
        if self._flow is None:
            self._flow = self._event.flow()
        return self._flow

    def kind(self) -> EventKind:
        if self._kind is None:
            self._kind = self._event.kind()
        return self._kind

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        if self._context is None:
            self._context = self._event.context(flow, kind)
        return self._context

    def host(self) -> str | None:
        return self._event.host()


class SharedClockAggregators:
    """Aggregators that differ in which events count, but not in time: they share each partition's clock."""

    def __init__(self, aggregators: Sequence[PaneAggregator]) -> None:
        self._first, *others = aggregators
        self._others = others
        self._process_names = frozenset(name for one in others for name in one.process_names)

    def processor(self, partition: Partition) -> Callable[[Event, int | None], str | list[str]]:
        """A function that processes the partition's next event.

        It returns the verdict of all aggregators, or a list of their verdicts where they may differ.
        """
        first = self._first.processor(partition)
        processors = [one.processor(partition) for one in self._others]
        for processor in processors:
            processor.clock = first.clock
        accept, clock, process_names = first.accept, first.clock, self._process_names
        apply_others = [processor.apply_rules for processor in processors]
        if not apply_others:
            return accept

        def accept_all(event: Event, record_ms: int | None) -> str | list[str]:
            before_ms = clock.now_ms
            event = _CachedEvent(event)
            verdict = accept(event, record_ms)
            if verdict == FUTURE or (verdict == PROCESS_NAME and event.process_name not in process_names):
                return verdict
            return [verdict, *[apply_rules(event, before_ms) for apply_rules in apply_others]]

        return accept_all


def watermark_ms(clocks: Sequence[ClockRow], lateness_ms: int) -> int | None:
    """The lowest watermark of the partitions that have not ended; None if one has no event yet, or all have ended."""
    holding = [row.now_ms for row in clocks if not row.ended]
    known = [now_ms for now_ms in holding if now_ms is not None]
    return min(known) - lateness_ms if known and len(known) == len(holding) else None


def last_tick_ms(clocks: Sequence[ClockRow], interval_ms: int) -> int | None:
    """The last tick of bounded input: the first one greater than the newest partition clock (semantics.md §4)."""
    newest_ms = max((row.now_ms for row in clocks if row.now_ms is not None), default=None)
    return None if newest_ms is None else newest_ms - newest_ms % interval_ms + interval_ms
