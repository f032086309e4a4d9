"""Reading apart from evaluating: lanes and inboxes in one place, histories and episodes in another (semantics.md §6).

Which inbox an event goes to is a matter of its own partition. So several readers, each with partitions of its own, may
gather, and hand over what they have as parts of inboxes: they merge in any order. `variants.Variants` evaluates them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streamdetect.config import Settings
from streamdetect.detect import windows
from streamdetect.detect.engine import Detector
from streamdetect.detect.keystate import KeyGroup, PendingPane
from streamdetect.detect.partitions import FUTURE, PartitionProcessor
from streamdetect.detect.rules import PROCESS_NAME
from streamdetect.detect.windows import PreAggregate
from streamdetect.model import AddressKey, ContextTuple, Event, EventKind, Flow, Partition


class GroupRows(NamedTuple):
    """The partials of one group: the place of its rule among the reader's rules, its process and sensor."""

    rule: int
    process: str
    sensor: str | None
    partials: dict[AddressKey, PreAggregate]


class PaneRows(NamedTuple):
    """What was gathered for one inclusion tick and pane."""

    tick_ms: int
    pane_ms: int
    rows: list[GroupRows]


class ClockRow(NamedTuple):
    """A partition's clock, None before its first event; whether it is at its end; whether it has a suspect leap."""

    partition: Partition
    now_ms: int | None
    ended: bool
    suspect: bool


class TimedPartitionProcessor(PartitionProcessor):
    """A lane that also keeps the time of each event that counts, in ms, as they came: an array of 64-bit integers."""

    __slots__ = ()

    @staticmethod
    def put(
        inbox: PendingPane,
        group: KeyGroup,
        time_ms: int,
        targets: tuple[AddressKey, ...],
        details: ContextTuple,
    ) -> None:
        """As `PartitionProcessor.put`, and the time behind the partial's other places."""
        PartitionProcessor.put(inbox, group, time_ms, targets, details)
        partials = inbox[group]
        for target in targets:
            partial = partials[target]
            if len(partial) > windows.TIMES:
                partial[windows.TIMES].append(time_ms)
            else:
                partial.append(array("q", (time_ms,)))


class PaneAggregator(Detector):
    """Takes events and hands them on; evaluates nothing. With `timed` it keeps the time of each event."""

    def __init__(
        self, settings: Settings, max_hosts: int, max_processes: int, *, timed: bool = False
    ) -> None:
        """`max_hosts` and `max_processes` are the largest of all that will judge what is gathered here."""
        super().__init__(settings)
        if timed:
            self.processor_type = TimedPartitionProcessor
        for rule in self.rules:
            rule.limits = rule.limits.widened(max_hosts, max_processes)

    def take(self) -> list[PaneRows]:
        """Hand over what counts from a tick on that a partition here has passed; of others there may be more later."""
        known = [w for processor in self.processors.values() if (w := processor.watermark_ms) is not None]
        if not known:
            return []
        ended = all(processor.idle for processor in self.processors.values())
        ready = sorted(tick_ms for tick_ms in self._waiting if ended or tick_ms <= max(known))
        if not ready:
            return []
        self._let_go()
        return [
            self._part(tick_ms, pane_ms) for tick_ms in ready for pane_ms in sorted(self._waiting[tick_ms])
        ]

    def _part(self, tick_ms: int, pane_ms: int) -> PaneRows:
        """Take one out; nothing here was saved, so all of it is in one part."""
        panes = self._waiting[tick_ms]
        part = self._unsaved.pop((tick_ms, pane_ms))
        del panes[pane_ms]
        if not panes:
            del self._waiting[tick_ms]
            self._agenda.discard(tick_ms)
        rows = [
            GroupRows(self.rules.index(group.rule), group.process, group.sensor, partials)
            for group, partials in part.items()
        ]
        return PaneRows(tick_ms, pane_ms, rows)

    def clocks(self) -> list[ClockRow]:
        """Where each partition is."""
        return [
            ClockRow(
                processor.partition, processor.clock.now_ms, processor.idle, processor.clock.run is not None
            )
            for processor in self.processors.values()
        ]


class _Remembering:
    """An event that works out once what several readers ask for (`model.Event`)."""

    __slots__ = ("_details", "_event", "_flow", "_kind", "process_name", "time_ms")

    def __init__(self, event: Event) -> None:
        self._event = event
        self.time_ms = event.time_ms
        self.process_name = event.process_name
        self._flow: Flow | None = None
        self._kind: EventKind | None = None
        self._details: ContextTuple | None = None

    def flow(self) -> Flow:
        if self._flow is None:
            self._flow = self._event.flow()
        return self._flow

    def kind(self) -> EventKind:
        if self._kind is None:
            self._kind = self._event.kind()
        return self._kind

    def details(self, flow: Flow, kind: EventKind) -> ContextTuple:
        if self._details is None:
            self._details = self._event.details(flow, kind)
        return self._details

    def host(self) -> str | None:
        return self._event.host()


class SharedClockAggregators:
    """Readers that differ in what counts, but not in time: each partition has one clock for all of them."""

    def __init__(self, readers: Sequence[PaneAggregator]) -> None:
        self._first, *others = readers
        self._others = others
        self._names = frozenset(name for reader in others for name in reader.judges)

    def processor(self, partition: Partition) -> Callable[[Event, int | None], str | list[str]]:
        """Takes the partition's next events; gives the verdict of all readers, or a list where they may differ."""
        first = self._first.processor(partition)
        processors = [reader.processor(partition) for reader in self._others]
        for processor in processors:
            processor.clock = first.clock
        accept, clock, names = first.accept, first.clock, self._names
        judges = [processor.judge for processor in processors]
        if not judges:
            return accept

        def accept_all(event: Event, record_ms: int | None) -> str | list[str]:
            before_ms = clock.now_ms
            event = _Remembering(event)
            verdict = accept(event, record_ms)
            if verdict == FUTURE or (verdict == PROCESS_NAME and event.process_name not in names):
                return verdict
            return [verdict, *[judge(event, before_ms) for judge in judges]]

        return accept_all


def watermark_ms(clocks: Sequence[ClockRow], lateness_ms: int) -> int | None:
    """The time up to which all partitions were read that can hold it back; None while unknown, or when none can."""
    holding = [row.now_ms for row in clocks if not row.ended]
    known = [now_ms for now_ms in holding if now_ms is not None]
    return min(known) - lateness_ms if known and len(known) == len(holding) else None


def last_tick_ms(clocks: Sequence[ClockRow], interval_ms: int) -> int | None:
    """Bounded input has ended: the first tick greater than the newest partition clock (§4)."""
    newest_ms = max((row.now_ms for row in clocks if row.now_ms is not None), default=None)
    return None if newest_ms is None else newest_ms - newest_ms % interval_ms + interval_ms
