"""What a key remembers: panes, the latest event's details, and who was seen (semantics.md §2, §6).

A *partial* is what one inbox holds of a key in one pane: a small mutable list. A *history* is a key's past,
an immutable tuple `(panes, details, recent)`:

* `panes`: a single event's time in ms, which is what most keys are; else packed bytes: a u32 with the events in all
  panes, then per pane with events, oldest first, 16 bytes: i64 first event time in ms, u32 last minus first in ms, u32
  count.
* `details`: of the latest event (`model.ContextTuple`).
* `recent`: None while every event so far had just the hosts and processes of `details`; else
  `((host, last seen ms), …), ((process, last seen ms), …)`, newest first, one more than the limit at most: that many
  within the window are all known, and one more proves "too many" (§6).

Both merge commutatively and associatively. Plain tuples and bytes, because the garbage collector leaves those alone
and a checkpoint may read them beside the loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, NamedTuple

from streamdetect.detect.rules import Limits
from streamdetect.model import AddressKey, ContextTuple, ContextValue, EventContext, address_of

Seen = tuple[tuple[str, int], ...]
Recent = tuple[Seen, Seen]
Panes = int | bytes
WindowState = tuple[Panes, ContextTuple, Recent | None]

# A partial's places: count, first ms, last ms, details of the latest, {host: last ms} and {process: last ms} or None
# while all its events had the hosts and processes of `details`. A timed one (`readers`) has its events' times behind.
PreAggregate = list[Any]
COUNT, FIRST, LAST, DETAILS, HOSTS, PROCESSES, TIMES = range(7)

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


def start_partial(time_ms: int, details: ContextTuple) -> PreAggregate:
    return [1, time_ms, time_ms, details, None, None]


def add_event(
    partial: PreAggregate, time_ms: int, details: ContextTuple, target: AddressKey, limits: Limits
) -> None:
    """Add one event to a partial."""
    partial[COUNT] += 1
    known: ContextTuple = partial[DETAILS]
    if details is not known:
        if partial[HOSTS] is not None or details[:2] != known[:2]:
            _spread(partial, time_ms, details, limits)
        if time_ms > partial[LAST] or (time_ms == partial[LAST] and sorts_after(details, known, target)):
            partial[DETAILS] = details
    elif partial[HOSTS] is not None:
        _spread(partial, time_ms, details, limits)
    if time_ms > partial[LAST]:
        partial[LAST] = time_ms
    elif time_ms < partial[FIRST]:
        partial[FIRST] = time_ms


def _spread(partial: PreAggregate, time_ms: int, details: ContextTuple, limits: Limits) -> None:
    """Note when each host and process was seen: they are not the same for all events any more."""
    if partial[HOSTS] is None:
        known: ContextTuple = partial[DETAILS]
        partial[HOSTS] = dict.fromkeys(known[0], partial[LAST])
        partial[PROCESSES] = dict.fromkeys(known[1], partial[LAST])
    partial[HOSTS] = _note(partial[HOSTS], details[0], time_ms, limits.max_hosts)
    partial[PROCESSES] = _note(partial[PROCESSES], details[1], time_ms, limits.max_processes)


def _note(seen: dict[str, int], names: Iterable[str], time_ms: int, limit: int) -> dict[str, int]:
    for name in names:
        last_ms = seen.get(name)
        if last_ms is None or time_ms > last_ms:
            seen[name] = time_ms
    # A popular destination is seen from thousands of hosts in a pane; only the newest few decide anything.
    return dict(newest(seen.items(), limit)) if len(seen) > 2 * limit + 64 else seen


def newest(seen: Iterable[tuple[str, int]], limit: int) -> Seen:
    """The `limit` + 1 most recently seen, newest first."""
    return tuple(sorted(seen, key=lambda item: (-item[1], item[0]))[: limit + 1])


def fold(
    history: WindowState | None, partial: PreAggregate, target: AddressKey, oldest_ms: int, limits: Limits
) -> WindowState:
    """A key's history with a partial of one pane added; panes before `oldest_ms` are let go."""
    count, first_ms, last_ms = partial[COUNT], partial[FIRST], partial[LAST]
    details: ContextTuple = partial[DETAILS]
    if history is None:
        recent = None if partial[HOSTS] is None else _merged_recent(None, partial, limits)
        return _pane(first_ms, last_ms, count), details, recent
    panes, known, recent = history
    if (
        recent is not None
        or partial[HOSTS] is not None
        or (details is not known and details[:2] != known[:2])
    ):
        recent = _merged_recent(history, partial, limits)
    known_last_ms = newest_ms(panes)
    if last_ms < known_last_ms or (last_ms == known_last_ms and not sorts_after(details, known, target)):
        details = known
    return _add_pane(panes, first_ms, last_ms, count, oldest_ms, limits), details, recent


def _merged_recent(history: WindowState | None, partial: PreAggregate, limits: Limits) -> Recent:
    hosts, processes = _partial_seen(partial)
    if history is not None:
        known_hosts, known_processes = seen(history)
        hosts = _merge(known_hosts, hosts)
        processes = _merge(known_processes, processes)
    return newest(hosts, limits.max_hosts), newest(processes, limits.max_processes)


def _partial_seen(partial: PreAggregate) -> tuple[Seen, Seen]:
    if partial[HOSTS] is not None:
        return tuple(partial[HOSTS].items()), tuple(partial[PROCESSES].items())
    details: ContextTuple = partial[DETAILS]
    last_ms: int = partial[LAST]
    return tuple((host, last_ms) for host in details[0]), tuple((p, last_ms) for p in details[1])


def _merge(one: Seen, other: Seen) -> Seen:
    merged = dict(one)
    for name, last_ms in other:
        if merged.get(name, last_ms) <= last_ms:
            merged[name] = last_ms
    return tuple(merged.items())


def seen(history: WindowState) -> Recent:
    """Hosts and processes with the time each was last seen."""
    panes, details, recent = history
    if recent is not None:
        return recent
    last_ms = newest_ms(panes)
    return tuple((host, last_ms) for host in details[0]), tuple((p, last_ms) for p in details[1])


def _pane(first_ms: int, last_ms: int, count: int) -> Panes:
    if count == 1 and first_ms == last_ms:
        # A copy in the room it needs: a number that was added up keeps the room that its sum might have needed, 48
        # bytes in place of 32.
        return first_ms | 0
    return _ONE.pack(count, first_ms, last_ms - first_ms, count)


def _packed(panes: Panes) -> bytes:
    return _ONE.pack(1, panes, 0, 1) if isinstance(panes, int) else panes


def _add_pane(panes: Panes, first_ms: int, last_ms: int, count: int, oldest_ms: int, limits: Limits) -> Panes:
    """Panes with one more; the usual case is one that is newer than all."""
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
    for place, known in enumerate(panes):
        known_index = known.first_ms // limits.interval_ms
        if known_index == index:
            first_ms, last_ms = min(known.first_ms, pane.first_ms), max(known.last_ms, pane.last_ms)
            return [*panes[:place], Pane(first_ms, last_ms, known.events + pane.events), *panes[place + 1 :]]
        if known_index > index:
            return [*panes[:place], pane, *panes[place:]]
    return [*panes, pane]


def trim(panes: Panes, oldest_ms: int) -> Panes:
    """Panes without those that lie before `oldest_ms`, a pane's edge; the same object where none do."""
    if isinstance(panes, int):
        return panes if panes >= oldest_ms else b""
    place, end, gone = _HEAD, len(panes), 0
    while place < end:
        first_ms, _, count = _PANE.unpack_from(panes, place)
        if first_ms >= oldest_ms:
            break
        gone += count
        place += _WIDTH
    if place == _HEAD:
        return panes
    if place >= end:
        return b""
    left = _TOTAL.unpack_from(panes)[0] - gone
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


def standing(panes: Panes, oldest_ms: int) -> tuple[int, int]:
    """Events in panes that do not lie before `oldest_ms`, a pane's edge, and the time of the last event.

    There must be one in these panes.
    """
    if isinstance(panes, int):  # most keys are one event, and it is in the window
        return 1, panes
    return total(trim(panes, oldest_ms)), newest_ms(panes)


def begin_ms(panes: Panes, events: int) -> int:
    """Time of the first event of the newest panes that hold so many events together; all panes must hold them."""
    packed = _packed(panes)
    place, first_ms = len(packed), 0
    while events > 0:
        place -= _WIDTH
        first_ms, _, count = _PANE.unpack_from(packed, place)
        events -= count
    return first_ms


def oldest_ms(panes: Panes) -> int:
    """Time of the first event; there must be one."""
    if isinstance(panes, int):
        return panes
    first_ms: int = _PANE.unpack_from(panes, _HEAD)[0]
    return first_ms


def newest_ms(panes: Panes) -> int:
    """Time of the last event; there must be one."""
    if isinstance(panes, int):
        return panes
    first_ms, span_ms, _ = _PANE.unpack_from(panes, len(panes) - _WIDTH)
    last_ms: int = first_ms + span_ms
    return last_ms


def sorts_after(details: ContextTuple, other: ContextTuple, target: AddressKey) -> bool:
    """Of two events in the same millisecond, the one whose details sort last as JSON text is the latest (§5)."""
    address = address_of(target)
    return details_text(details, address) > details_text(other, address)


def details_text(details: ContextTuple, address: str | None) -> str:
    return json.dumps(
        shown_details(details, address), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )


def shown_details(details: ContextTuple, address: str | None) -> dict[str, dict[str, object]]:
    """What an alert shows of an event, by ECS block; missing values and empty blocks are left out."""
    shown = EventContext._make(details)
    blocks: dict[str, dict[str, ContextValue | int]] = {
        "host": {"id": shown.host_id, "name": shown.host_name},
        "process": {"entity_id": shown.entity_id, "pid": shown.pid, "executable": shown.executable},
        "user": {"name": shown.user_name, "domain": shown.user_domain},
        "destination": {
            "ip": address if shown.ip is None else shown.ip,
            "port": shown.port,
            "domain": shown.domain,
        },
    }
    present: dict[str, dict[str, object]] = {}
    for name, block in blocks.items():
        values: dict[str, object] = {key: value for key, value in block.items() if value is not None}
        if values:
            present[name] = values
    return present
