"""Pending panes: pre-aggregates that wait for the first tick that includes them (semantics.md §4, §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streamdetect.detect import serde
from streamdetect.detect.keystate import KeyGroup
from streamdetect.detect.preaggregate import PreAggregate
from streamdetect.detect.ticks import NEVER, first_including_tick
from streamdetect.model import AddressKey

Place = tuple[int, int]
"""First including tick and pane start, in ms."""


class PendingPane(dict[KeyGroup, dict[AddressKey, PreAggregate]]):
    """{key group: {address key: pre-aggregate}} of one first including tick and pane, or a segment of it.

    `lent` is True while a checkpoint thread may still read it. Otherwise it is drained in slices while it is folded,
    because freeing a large dict at once would stall the main loop.
    """

    __slots__ = ("lent",)

    def __init__(self, *, lent: bool = False) -> None:
        super().__init__()
        self.lent = lent


class PendingPanes:
    """All pending panes, in segments: events go to the open segment; a closed one is never changed again.

    Ticks up to `evaluated_ms` are past: an event counts from a later one on.
    """

    def __init__(
        self, interval_ms: int, lookback_ms: int, schedule: Callable[[int], None] = lambda _: None
    ) -> None:
        """`schedule` is called with each tick that gets its first pane."""
        self.interval_ms = interval_ms
        self.lookback_ms = lookback_ms
        self.evaluated_ms = NEVER
        self.first_tick_ms: int | None = None
        """The first tick at which any event counts, None before there is one."""
        self._schedule = schedule
        self._ticks: dict[int, dict[int, list[PendingPane]]] = {}
        self._open: dict[Place, PendingPane] = {}

    def place(self, time_ms: int, watermark_ms: int) -> Place | None:
        """Where an event belongs that arrived at this watermark, None if no later window includes it."""
        return first_including_tick(
            time_ms, watermark_ms, self.evaluated_ms, self.interval_ms, self.lookback_ms
        )

    def is_late_arrival(self, time_ms: int, watermark_ms: int) -> bool:
        """Whether the first tick that includes the event has been evaluated already."""
        return max(time_ms, watermark_ms) < self.evaluated_ms

    def segment(self, place: Place) -> PendingPane:
        """The open segment of a pending pane, created on first use."""
        segment = self._open.get(place)
        if segment is None:
            segment = self._open[place] = PendingPane()
            self._segments(place).append(segment)
        return segment

    def add(self, place: Place, segment: PendingPane) -> None:
        """Add a closed segment."""
        self._segments(place).append(segment)

    def _segments(self, place: Place) -> list[PendingPane]:
        tick_ms, pane_ms = place
        panes = self._ticks.get(tick_ms)
        if panes is None:
            panes = self._ticks[tick_ms] = {}
            self._schedule(tick_ms)
            if self.first_tick_ms is None or tick_ms < self.first_tick_ms:
                self.first_tick_ms = tick_ms
        return panes.setdefault(pane_ms, [])

    def restore(self, place: Place, group: KeyGroup, address_key: AddressKey, pre: PreAggregate) -> None:
        """Add one restored pre-aggregate. Several of one key, from several checkpoints, go to segments of their own."""
        segments = self._segments(place)
        segment = next((one for one in segments if address_key not in one.get(group, ())), None)
        if segment is None:
            segment = PendingPane()
            segments.insert(0, segment)
        segment.setdefault(group, {})[address_key] = pre

    def ticks(self) -> list[int]:
        """Ticks with pending panes, in order."""
        return sorted(self._ticks)

    def take(self, tick_ms: int) -> Iterator[tuple[int, PendingPane]]:
        """Remove the panes of a tick: (pane start, segment), in the order of panes."""
        panes = self._ticks.pop(tick_ms, {})
        for pane_ms in sorted(panes):
            self._open.pop((tick_ms, pane_ms), None)
            for segment in panes.pop(pane_ms):
                yield pane_ms, segment

    def close_segments(self) -> dict[Place, PendingPane]:
        """Close all open segments and lend them to the caller."""
        closed, self._open = self._open, {}
        for segment in closed.values():
            segment.lent = True
        return closed

    def clear(self) -> None:
        self._ticks.clear()
        self._open.clear()

    @property
    def pre_aggregates(self) -> int:
        """How many pre-aggregates wait."""
        return sum(
            len(by_key)
            for panes in self._ticks.values()
            for segments in panes.values()
            for segment in segments
            for by_key in segment.values()
        )

    def rows(self) -> Iterator[serde.Row]:
        """A `waiting` row for each pre-aggregate."""
        for tick_ms, panes in self._ticks.items():
            for pane_ms, segments in panes.items():
                for segment in segments:
                    yield from segment_rows((tick_ms, pane_ms), segment)


def segment_rows(place: Place, segment: PendingPane) -> Iterator[serde.Row]:
    """A `waiting` row for each pre-aggregate of a segment."""
    for group, by_key in segment.items():
        for address_key, pre in by_key.items():
            yield serde.waiting_row(group.rule.id, group.key(address_key), *place, pre)
