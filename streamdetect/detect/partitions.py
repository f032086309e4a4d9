"""Input of one partition: its clock, the verdict on each event, and the pending pane it goes to (semantics.md §4)."""

from __future__ import annotations

from typing import Final

from streamdetect.config import Settings
from streamdetect.detect import preaggregate, serde
from streamdetect.detect.clocks import PartitionClock
from streamdetect.detect.keystate import KeyGroup, KeyGroups
from streamdetect.detect.listener import Listener
from streamdetect.detect.pending import PendingPane, PendingPanes
from streamdetect.detect.rules import PROCESS_NAME, ProcessRules, Rule
from streamdetect.detect.ticks import NEVER
from streamdetect.model import AddressKey, ContextTuple, Event, Partition

# Verdicts on a record. Any other verdict is the reason why it is filtered (`rules.FILTER_REASONS`).
COUNTED: Final = "counted"
LATE: Final = "late"
FUTURE: Final = "future_time"


class PartitionProcessor:
    """Processes the events of one partition, in offset order.

    An `idle` partition does not hold the watermark back: silent live, or read to its end.
    """

    __slots__ = (
        "_groups",
        "_high_ms",
        "_lateness_ms",
        "_lookback_ms",
        "_low_ms",
        "_partitions",
        "_pending",
        "_rules",
        "_segment",
        "_skew_ms",
        "clock",
        "idle",
        "partition",
    )

    def __init__(self, partition: Partition, partitions: Partitions) -> None:
        time = partitions.settings.time
        self._partitions = partitions
        self._rules = partitions.process_rules
        self._groups = partitions.groups
        self._pending = partitions.pending
        self._skew_ms = time.max_future_skew_ms
        self._lateness_ms = time.lateness_ms
        self._lookback_ms = time.lookback_ms
        self.partition = partition
        self.clock = PartitionClock(time.max_future_jump_ms)
        self.idle = False
        self.close_segment()

    def close_segment(self) -> None:
        """Add no more events to the segment in use."""
        # The segment that the last event went to, and its pane: the next event nearly always goes there too.
        self._segment = PendingPane()
        self._low_ms = self._high_ms = NEVER

    @property
    def watermark_ms(self) -> int | None:
        """w_p, None before the first event."""
        now_ms = self.clock.now_ms
        return None if now_ms is None else now_ms - self._lateness_ms

    def accept(self, event: Event, record_ms: int | None = None, now_ms: int | None = None) -> str:
        """Process the partition's next event and return the verdict on it.

        `record_ms` is the record's own timestamp where it has one, `now_ms` the wall clock of a live run. An event too
        far ahead of either is FUTURE: refused, and moves no clock (semantics.md §4).
        """
        time_ms = event.time_ms
        skew_ms = self._skew_ms
        if record_ms is not None and time_ms > record_ms + skew_ms:
            return FUTURE
        if now_ms is not None and time_ms > now_ms + skew_ms:
            return FUTURE
        clock = self.clock
        before_ms = clock.now_ms
        # Any other time does not change the clock.
        if before_ms is None or time_ms > before_ms or clock.run is not None:
            clock.observe(time_ms, event.host)
        rules = self._rules.get(event.process_name)
        return PROCESS_NAME if rules is None else self._apply(event, rules, before_ms)

    def apply_rules(self, event: Event, before_ms: int | None) -> str:
        """The verdict on an event that the clock, then at `before_ms`, has observed already."""
        rules = self._rules.get(event.process_name)
        return PROCESS_NAME if rules is None else self._apply(event, rules, before_ms)

    def _apply(self, event: Event, rules: ProcessRules, before_ms: int | None) -> str:
        """Filter the event, or count it for each rule that matches."""
        flow = event.flow()
        reason = rules.of_flow[flow]
        if reason is not None:
            return reason
        kind = event.kind()
        reason = rules.of_kind[kind]
        if reason is not None:
            return reason
        context = event.context(flow, kind)
        matching = rules.matching(flow, kind, context)
        if isinstance(matching, str):
            return matching
        time_ms = event.time_ms
        watermark_ms = NEVER if before_ms is None else before_ms - self._lateness_ms
        if time_ms < watermark_ms - self._lookback_ms:
            return LATE
        segment = self._segment_for(time_ms, watermark_ms)
        for rule in matching:
            self.add(segment, self._groups.of(rule, kind), time_ms, flow.address_keys, context)
        return COUNTED

    def _segment_for(self, time_ms: int, watermark_ms: int) -> PendingPane:
        """The open segment of the event's first including tick and pane."""
        high_ms, pending = self._high_ms, self._pending
        if self._low_ms <= time_ms < high_ms and watermark_ms < high_ms > pending.evaluated_ms:
            return self._segment
        if pending.is_late_arrival(time_ms, watermark_ms):
            self._partitions.listener.late_arrival(self.partition)
        place = pending.place(time_ms, watermark_ms)
        if place is None:
            return PendingPane()  # counted, and in no window
        segment = pending.segment(place)
        tick_ms, pane_ms = place
        if tick_ms == pane_ms + pending.interval_ms:
            self._segment, self._low_ms, self._high_ms = segment, pane_ms, tick_ms
        return segment

    @staticmethod
    def add(
        segment: PendingPane,
        group: KeyGroup,
        time_ms: int,
        address_keys: tuple[AddressKey, ...],
        context: ContextTuple,
    ) -> None:
        """Add an event to a segment, once for each of its keys."""
        by_key = segment.get(group)
        if by_key is None:
            by_key = segment[group] = {}
        for address_key in address_keys:
            pre = by_key.get(address_key)
            if pre is None:
                by_key[address_key] = preaggregate.start(time_ms, context)
            else:
                preaggregate.add_event(pre, time_ms, context, address_key, group.rule.limits)


class Partitions:
    """All partitions: their processors, clocks and common watermark."""

    def __init__(
        self,
        settings: Settings,
        rules: tuple[Rule, ...],
        groups: KeyGroups,
        pending: PendingPanes,
        processor_type: type[PartitionProcessor] = PartitionProcessor,
    ) -> None:
        self.settings = settings
        self.groups = groups
        self.pending = pending
        self.listener = Listener()
        names = sorted({name for rule in rules for name in rule.processes})
        self.process_rules: dict[object, ProcessRules] = {
            name: ProcessRules([rule for rule in rules if name in rule.processes]) for name in names
        }
        self.processors: dict[Partition, PartitionProcessor] = {}
        self._processor_type = processor_type

    def processor(self, partition: Partition) -> PartitionProcessor:
        """The processor of a partition, created on first use."""
        processor = self.processors.get(partition)
        if processor is None:
            processor = self.processors[partition] = self._processor_type(partition, self)
        return processor

    @property
    def newest_ms(self) -> int | None:
        """The newest partition clock, None before the first event."""
        clocks = [processor.clock.now_ms for processor in self.processors.values()]
        return max((now_ms for now_ms in clocks if now_ms is not None), default=None)

    @property
    def suspect_leaps(self) -> int:
        """Partitions with a leap of the clock that is not believed yet."""
        return sum(processor.clock.run is not None for processor in self.processors.values())

    def watermark_ms(self) -> int | None:
        """The common watermark, None while unknown: `Detector.watermark_ms` says more."""
        processors = self.processors.values()
        holding = [processor.watermark_ms for processor in processors if not processor.idle]
        if not holding:
            return max((w for one in processors if (w := one.watermark_ms) is not None), default=None)
        known = [watermark_ms for watermark_ms in holding if watermark_ms is not None]
        return min(known) if len(known) == len(holding) else None

    def close_segments(self) -> None:
        for processor in self.processors.values():
            processor.close_segment()

    def rows(self) -> list[serde.Row]:
        """A `partition` row for each partition."""
        return [serde.partition_row(one.partition, one.clock, one.idle) for one in self.processors.values()]

    def restore(self, row: serde.Row) -> None:
        processor = self.processor(serde.partition_of(row))
        serde.restore_clock(row, processor.clock)
        processor.idle = row["idle"]
