"""One partition's way into the engine: its clock, its verdicts, and the inbox an event goes to (semantics.md §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streamdetect.detect import serde, windows
from streamdetect.detect.clocks import PartitionClock
from streamdetect.detect.keystate import KeyGroup, PendingPane
from streamdetect.detect.rules import PROCESS_NAME, ProcessRules
from streamdetect.detect.ticks import NEVER, inclusion
from streamdetect.model import AddressKey, ContextTuple, Event, Partition

if TYPE_CHECKING:
    from streamdetect.detect.engine import Detector

# Verdicts on a record. Any other verdict is the reason why it is filtered (`rules.FILTER_REASONS`).
COUNTED: Final = "counted"
LATE: Final = "late"
FUTURE: Final = "future_time"


class PartitionProcessor:
    """One partition's way into the engine. `idle` lanes do not hold time back: silent live, or read to their end."""

    __slots__ = (
        "_engine",
        "_high_ms",
        "_inbox",
        "_judges",
        "_low_ms",
        "_skew_ms",
        "clock",
        "idle",
        "partition",
    )

    def __init__(self, engine: Detector, partition: Partition) -> None:
        self._engine = engine
        self._judges = engine.judges
        self._skew_ms = engine.max_skew_ms
        self.partition = partition
        self.clock = PartitionClock(engine.max_jump_ms)
        self.idle = False
        self.let_go()

    def let_go(self) -> None:
        """The inbox at hand takes no more events."""
        # The inbox that the last event went to, and its pane: the next event nearly always goes there too.
        self._inbox = PendingPane()
        self._low_ms = self._high_ms = NEVER

    def row(self) -> serde.Row:
        return serde.partition_row(self.partition, self.clock, self.idle)

    @property
    def watermark_ms(self) -> int | None:
        """w_p, None before the first event."""
        now_ms = self.clock.now_ms
        return None if now_ms is None else now_ms - self._engine.lateness_ms

    def accept(self, event: Event, record_ms: int | None = None, now_ms: int | None = None) -> str:
        """Take the partition's next event; gives the verdict on it.

        `record_ms` is the record's own timestamp where it has one, `now_ms` the wall clock of a live run; an event
        too far ahead of either is FUTURE: refused, and moves no clock (§4).
        """
        time_ms = event.time_ms
        skew_ms = self._skew_ms
        if record_ms is not None and time_ms > record_ms + skew_ms:
            return FUTURE
        if now_ms is not None and time_ms > now_ms + skew_ms:
            return FUTURE
        clock = self.clock
        before_ms = clock.now_ms
        # else the clock has nothing to note
        if before_ms is None or time_ms > before_ms or clock.run is not None:
            clock.observe(time_ms, event.host)
        judges = self._judges.get(event.process_name)
        return PROCESS_NAME if judges is None else self._judge(event, judges, before_ms)

    def judge(self, event: Event, before_ms: int | None) -> str:
        """The verdict on an event that moved the partition's clock, which stood at `before_ms` before."""
        judges = self._judges.get(event.process_name)
        return PROCESS_NAME if judges is None else self._judge(event, judges, before_ms)

    def _judge(self, event: Event, judges: ProcessRules, before_ms: int | None) -> str:
        """Count the event for each rule that wants it."""
        flow = event.flow()
        objection = judges.of_flow[flow]
        if objection is not None:
            return objection
        kind = event.kind()
        objection = judges.of_kind[kind]
        if objection is not None:
            return objection
        details = event.details(flow, kind)
        counting = judges.counting(flow, kind, details)
        if isinstance(counting, str):
            return counting
        engine = self._engine
        time_ms = event.time_ms
        watermark_ms = NEVER if before_ms is None else before_ms - engine.lateness_ms
        if time_ms < watermark_ms - engine.lookback_ms:
            return LATE
        inbox = self._inbox_for(time_ms, watermark_ms)
        for rule in counting:
            self.put(inbox, engine.group(rule, kind), time_ms, flow.targets, details)
        return COUNTED

    def _inbox_for(self, time_ms: int, watermark_ms: int) -> PendingPane:
        """The inbox of the event's inclusion tick and pane."""
        engine = self._engine
        high_ms = self._high_ms
        if self._low_ms <= time_ms < high_ms and watermark_ms < high_ms > engine.evaluated_ms:
            return self._inbox
        evaluated_ms, interval_ms = engine.evaluated_ms, engine.interval_ms
        if max(time_ms, watermark_ms) < evaluated_ms:  # its own tick is gone
            engine.listener.late_arrival(self.partition)
        place = inclusion(time_ms, watermark_ms, evaluated_ms, interval_ms, engine.lookback_ms)
        if place is None:
            return PendingPane()
        tick_ms, pane_ms = place
        inbox = engine.inbox(tick_ms, pane_ms)
        if tick_ms == pane_ms + interval_ms:
            self._inbox, self._low_ms, self._high_ms = inbox, pane_ms, tick_ms
        return inbox

    @staticmethod
    def put(
        inbox: PendingPane,
        group: KeyGroup,
        time_ms: int,
        targets: tuple[AddressKey, ...],
        details: ContextTuple,
    ) -> None:
        """Add an event to an inbox, once for each key it falls into."""
        partials = inbox.get(group)
        if partials is None:
            partials = inbox[group] = {}
        for target in targets:
            partial = partials.get(target)
            if partial is None:
                partials[target] = windows.start_partial(time_ms, details)
            else:
                windows.add_event(partial, time_ms, details, target, group.rule.limits)
