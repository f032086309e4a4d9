"""Window state of one key: panes, the context of the latest event, and the hosts and processes seen (semantics.md §2,
§6).

An immutable tuple `(panes, context, recent)`:

* `panes`: the time of the only event in ms, which is all that most keys have; else packed bytes: a u32 with the events
  in all panes, then for each pane with events, oldest first, 16 bytes: i64 first event time in ms, u32 last minus first
  in ms, u32 count.
* `context`: of the latest event (`model.ContextTuple`).
* `recent`: None while every event so far had the hosts and processes of `context`; else
  `((host, last seen ms), …), ((process, last seen ms), …)`, newest first, at most one more than the limit: fewer than
  that within the window are all there are, and one more proves "too many" (semantics.md §6).

Plain tuples and bytes, so that the garbage collector ignores them and a checkpoint thread can read them without a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from streamdetect.detect.conditions import Figures, Limits, Thresholds
from streamdetect.detect.context import sorts_after
from streamdetect.detect.preaggregate import (
    CONTEXT,
    COUNT,
    FIRST,
    HOSTS,
    LAST,
    PreAggregate,
    Seen,
    newest,
    seen_at,
    seen_by,
)
from streamdetect.model import AddressKey, ContextTuple

Recent = tuple[Seen, Seen]
Panes = int | bytes
WindowState = tuple[Panes, ContextTuple, Recent | None]

_TOTAL = Struct("<I")
_PANE = Struct("<qII")
_HEAD = _TOTAL.size
_WIDTH = _PANE.size
_ONE = Struct("<IqII")


class Pane(NamedTuple):
    """Events of one pane: first and last time in ms, and how many."""

    first_ms: int
    last_ms: int
    events: int


def fold(
    state: WindowState | None,
    pre: PreAggregate,
    address_key: AddressKey,
    oldest_ms: int,
    limits: Limits,
) -> WindowState:
    """The window state with a pre-aggregate of one pane added; panes before `oldest_ms` are dropped."""
    count, first_ms, last_ms = pre[COUNT], pre[FIRST], pre[LAST]
    context: ContextTuple = pre[CONTEXT]
    if state is None:
        recent = None if pre[HOSTS] is None else _merged_recent(None, pre, limits)
        return _pane(first_ms, last_ms, count), context, recent
    panes, latest, recent = state
    if recent is not None or pre[HOSTS] is not None or (context is not latest and context[:2] != latest[:2]):
        recent = _merged_recent(state, pre, limits)
    latest_ms = newest_event_ms(panes)
    if last_ms < latest_ms or (last_ms == latest_ms and not sorts_after(context, latest, address_key)):
        context = latest
    return _add_pane(panes, first_ms, last_ms, count, oldest_ms, limits), context, recent


def _merged_recent(state: WindowState | None, pre: PreAggregate, thresholds: Thresholds) -> Recent:
    hosts, processes = seen_by(pre)
    if state is not None:
        earlier_hosts, earlier_processes = seen(state)
        hosts = _merge(earlier_hosts, hosts)
        processes = _merge(earlier_processes, processes)
    return newest(hosts, thresholds.max_hosts), newest(processes, thresholds.max_processes)


def _merge(one: Seen, other: Seen) -> Seen:
    merged = dict(one)
    for name, last_ms in other:
        if merged.get(name, last_ms) <= last_ms:
            merged[name] = last_ms
    return tuple(merged.items())


def seen(state: WindowState) -> Recent:
    """Hosts and processes with the time each was last seen."""
    panes, context, recent = state
    return seen_at(context, newest_event_ms(panes)) if recent is None else recent


def within(state: WindowState | None, oldest_ms: int) -> WindowState | None:
    """The state without panes before `oldest_ms`, a pane boundary; None when none is left."""
    if state is None:
        return None
    panes, context, recent = state
    if newest_event_ms(panes) < oldest_ms:
        return None
    trimmed = trim(panes, oldest_ms)
    return state if trimmed is panes else (trimmed, context, recent)


def measure(state: WindowState, oldest_ms: int, thresholds: Thresholds) -> Figures:
    """The aggregates of a state whose panes are all in the window (semantics.md §2)."""
    panes = state[0]
    hosts, processes = seen(state)
    return Figures(
        events=total(panes),
        first_ms=oldest_event_ms(panes),
        last_ms=newest_event_ms(panes),
        hosts=_distinct(hosts, oldest_ms, thresholds.max_hosts),
        processes=_distinct(processes, oldest_ms, thresholds.max_processes),
    )


def _distinct(seen: Seen, oldest_ms: int, limit: int) -> int:
    return min(sum(last_ms >= oldest_ms for _, last_ms in seen), limit + 1)


def leaves_ms(time_ms: int, limits: Limits) -> int:
    """The first tick whose window no longer holds an event of this time."""
    return time_ms - time_ms % limits.interval_ms + limits.interval_ms + limits.lookback_ms


def _pane(first_ms: int, last_ms: int, count: int) -> Panes:
    if count == 1 and first_ms == last_ms:
        # A copy of minimal size: an int that results from an addition keeps the space its sum might have needed, 48
        # bytes instead of 32.
        return first_ms | 0
    return _ONE.pack(count, first_ms, last_ms - first_ms, count)


def _packed(panes: Panes) -> bytes:
    return _ONE.pack(1, panes, 0, 1) if isinstance(panes, int) else panes


def _add_pane(panes: Panes, first_ms: int, last_ms: int, count: int, oldest_ms: int, limits: Limits) -> Panes:
    """Panes with one added. Usually it is newer than all others."""
    panes = trim(panes, oldest_ms)
    if not panes:
        return _pane(first_ms, last_ms, count)
    packed = _packed(panes)
    interval_ms = limits.interval_ms
    if _PANE.unpack_from(packed, len(packed) - _WIDTH)[0] // interval_ms >= first_ms // interval_ms:
        pane = Pane(first_ms, last_ms, count)
        return pack_panes(_insert(list(unpack_panes(packed)), pane, first_ms // interval_ms, limits))
    total = _TOTAL.unpack_from(packed)[0] + count
    return _TOTAL.pack(total) + packed[_HEAD:] + _PANE.pack(first_ms, last_ms - first_ms, count)


def _insert(panes: list[Pane], pane: Pane, index: int, limits: Limits) -> list[Pane]:
    """Merge a late pane into its place."""
    for place, other in enumerate(panes):
        other_index = other.first_ms // limits.interval_ms
        if other_index == index:
            first_ms, last_ms = min(other.first_ms, pane.first_ms), max(other.last_ms, pane.last_ms)
            return [*panes[:place], Pane(first_ms, last_ms, other.events + pane.events), *panes[place + 1 :]]
        if other_index > index:
            return [*panes[:place], pane, *panes[place:]]
    return [*panes, pane]


def trim(panes: Panes, oldest_ms: int) -> Panes:
    """Panes without those before `oldest_ms`, a pane boundary; the same object where there are none."""
    if isinstance(panes, int):
        return panes if panes >= oldest_ms else b""
    place, end, dropped = _HEAD, len(panes), 0
    while place < end:
        first_ms, _, count = _PANE.unpack_from(panes, place)
        if first_ms >= oldest_ms:
            break
        dropped += count
        place += _WIDTH
    if place == _HEAD:
        return panes
    if place >= end:
        return b""
    left = _TOTAL.unpack_from(panes)[0] - dropped
    return _PANE.unpack_from(panes, place)[0] if left == 1 else _TOTAL.pack(left) + panes[place:]


def pack_panes(panes: Iterable[Pane]) -> Panes:
    panes = list(panes)
    if len(panes) == 1:
        return _pane(*panes[0])
    body = b"".join(_PANE.pack(pane.first_ms, pane.last_ms - pane.first_ms, pane.events) for pane in panes)
    return _TOTAL.pack(sum(pane.events for pane in panes)) + body if panes else b""


def unpack_panes(panes: Panes) -> Iterator[Pane]:
    for first_ms, span_ms, count in _PANE.iter_unpack(_packed(panes)[_HEAD:]):
        yield Pane(first_ms, first_ms + span_ms, count)


def total(panes: Panes) -> int:
    """Events in all panes."""
    if isinstance(panes, int):
        return 1
    count: int = _TOTAL.unpack_from(panes)[0] if panes else 0
    return count


def total_and_newest_ms(panes: Panes, oldest_ms: int) -> tuple[int, int]:
    """Events in panes from `oldest_ms`, a pane boundary, on, and the time of the last event.

    At least one event must be in these panes.
    """
    if isinstance(panes, int):  # most keys have one event, and it is in the window
        return 1, panes
    return total(trim(panes, oldest_ms)), newest_event_ms(panes)


def start_of_newest_ms(panes: Panes, events: int) -> int:
    """First event time of the fewest newest panes that together hold `events` events. All panes must hold as many."""
    packed = _packed(panes)
    place, first_ms = len(packed), 0
    while events > 0:
        place -= _WIDTH
        first_ms, _, count = _PANE.unpack_from(packed, place)
        events -= count
    return first_ms


def oldest_event_ms(panes: Panes) -> int:
    """Time of the first event. There must be one."""
    if isinstance(panes, int):
        return panes
    first_ms: int = _PANE.unpack_from(panes, _HEAD)[0]
    return first_ms


def newest_event_ms(panes: Panes) -> int:
    """Time of the last event. There must be one."""
    if isinstance(panes, int):
        return panes
    first_ms, span_ms, _ = _PANE.unpack_from(panes, len(panes) - _WIDTH)
    last_ms: int = first_ms + span_ms
    return last_ms
