"""A pre-aggregate: the events of one key in one pane that wait for the same tick (semantics.md §6).

Merges commutatively and associatively. A list, because it is changed for each event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from streamdetect.detect.conditions import Thresholds
from streamdetect.detect.context import sorts_after
from streamdetect.model import AddressKey, ContextTuple

Seen = tuple[tuple[str, int], ...]
"""Hosts or processes with the time each was last seen, in ms."""

# Places of a pre-aggregate: count, first ms, last ms, context of the latest event, {host: last ms} and
# {process: last ms}, both None while all events had the hosts and processes of that context. A timed one
# (`pane_aggregator`) is followed by an array of all event times.
PreAggregate = list[Any]
COUNT, FIRST, LAST, CONTEXT, HOSTS, PROCESSES, TIMES = range(7)

_SPARE_SEEN: Final = 64  # hosts or processes kept beyond twice the limit before a trim


def start(time_ms: int, context: ContextTuple) -> PreAggregate:
    """The pre-aggregate of one event."""
    return [1, time_ms, time_ms, context, None, None]


def add_event(
    pre: PreAggregate, time_ms: int, context: ContextTuple, address_key: AddressKey, thresholds: Thresholds
) -> None:
    """Add one event."""
    pre[COUNT] += 1
    latest: ContextTuple = pre[CONTEXT]
    if context is not latest:
        if pre[HOSTS] is not None or context[:2] != latest[:2]:
            _add_seen(pre, time_ms, context, thresholds)
        if time_ms > pre[LAST] or (time_ms == pre[LAST] and sorts_after(context, latest, address_key)):
            pre[CONTEXT] = context
    elif pre[HOSTS] is not None:
        _add_seen(pre, time_ms, context, thresholds)
    if time_ms > pre[LAST]:
        pre[LAST] = time_ms
    elif time_ms < pre[FIRST]:
        pre[FIRST] = time_ms


def _add_seen(pre: PreAggregate, time_ms: int, context: ContextTuple, thresholds: Thresholds) -> None:
    """Record when each host and process was seen, once they are not the same for all events."""
    if pre[HOSTS] is None:
        latest: ContextTuple = pre[CONTEXT]
        pre[HOSTS] = dict.fromkeys(latest[0], pre[LAST])
        pre[PROCESSES] = dict.fromkeys(latest[1], pre[LAST])
    pre[HOSTS] = _updated(pre[HOSTS], context[0], time_ms, thresholds.max_hosts)
    pre[PROCESSES] = _updated(pre[PROCESSES], context[1], time_ms, thresholds.max_processes)


def _updated(seen: dict[str, int], ids: Iterable[str], time_ms: int, limit: int) -> dict[str, int]:
    for one in ids:
        last_ms = seen.get(one)
        if last_ms is None or time_ms > last_ms:
            seen[one] = time_ms
    # Thousands of hosts may contact a popular destination in one pane; only the newest few decide anything.
    return dict(newest(seen.items(), limit)) if len(seen) > 2 * limit + _SPARE_SEEN else seen


def newest(seen: Iterable[tuple[str, int]], limit: int) -> Seen:
    """The `limit` + 1 most recently seen, newest first."""
    return tuple(sorted(seen, key=lambda item: (-item[1], item[0]))[: limit + 1])


def seen_by(pre: PreAggregate) -> tuple[Seen, Seen]:
    """Hosts and processes with the time each was last seen."""
    if pre[HOSTS] is not None:
        return tuple(pre[HOSTS].items()), tuple(pre[PROCESSES].items())
    return seen_at(pre[CONTEXT], pre[LAST])


def seen_at(context: ContextTuple, time_ms: int) -> tuple[Seen, Seen]:
    """Hosts and processes of one event."""
    return tuple((host, time_ms) for host in context[0]), tuple((process, time_ms) for process in context[1])
