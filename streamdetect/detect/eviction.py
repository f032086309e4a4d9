"""Which keys are evicted beyond `limits.max_keys` (semantics.md §6; reasons: docs/design.md, decision 16).

Order: by the pane of the newest event, oldest first; within a pane by fewest events in the window, then by key, then by
rule. Keys *close* to the thresholds, with at least half of the events they need, are evicted only when all others are
gone. Keys with an open episode are never evicted.

`KeyGroup.expiries` lists keys by the pane of their newest event, except for entries that newer events have made stale.
So panes are visited from the oldest on until enough keys are found. A stale entry is moved. A close key is moved to
`KeyGroup.protected`, where no eviction visits it before the tick at which it may no longer be close.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from operator import itemgetter

from streamdetect.detect import windows
from streamdetect.detect.keystate import KeyGroup
from streamdetect.model import AddressKey, address_of

AddressKeys = list[AddressKey]


def evict(groups: Sequence[KeyGroup], excess: int, tick_ms: int, scheduled: Sequence[int]) -> Counter[str]:
    """Evict `excess` keys, or all without an open episode if there are fewer; returns how many of each rule.

    `groups` are in the order of their rules. `tick_ms` has been evaluated; `scheduled` are all later ticks with work.
    """
    evicted: Counter[str] = Counter()
    wanted = min(excess, sum(len(group.states) - len(group.episodes) for group in groups))
    for close in (False, True):
        for leaves in _in_order(scheduled):
            if wanted == 0:
                return evicted
            taken = _evict_pane(groups, leaves, tick_ms, wanted, close=close)
            evicted += taken
            wanted -= taken.total()
    return evicted


def _in_order(scheduled: Sequence[int]) -> Iterator[int]:
    """The scheduled ticks; more may be added during the iteration."""
    place = 0
    while place < len(scheduled):
        yield (tick_ms := scheduled[place])
        place = bisect_right(scheduled, tick_ms)


def _evict_pane(
    groups: Sequence[KeyGroup], leaves: int, tick_ms: int, wanted: int, *, close: bool
) -> Counter[str]:
    """Evict keys of the pane that leaves at a tick: as many as wanted, or all candidates."""
    concerned = [g for g in groups if leaves in g.expiries or (close and leaves in g.protected)]
    candidates = {group: _candidates(group, leaves, tick_ms, close=close) for group in concerned}
    evicted: Counter[str] = Counter()
    for group, address_keys in _fewest_events(candidates, wanted).items():
        _forget(group, leaves, address_keys)
        evicted[group.rule.id] += len(address_keys)
    return evicted


def _candidates(group: KeyGroup, leaves: int, tick_ms: int, *, close: bool) -> dict[int, AddressKeys]:
    """The keys registered for one pane that may be evicted: {events in the window: keys}.

    Other keys are registered elsewhere: keys with newer events at the tick of their newest pane, and, unless `close`,
    keys close to the thresholds in `protected`. The tick of a protected key is never later than the tick of its own
    pane, so the pass with `close` finds it in time.
    """
    listed = group.expiries.pop(leaves, [])
    if close:
        listed += group.protected.pop(leaves, [])
    limits = group.rule.limits
    oldest_ms, end_ms = tick_ms - limits.lookback_ms, leaves - limits.lookback_ms
    half = (limits.min_events + 1) // 2
    states, episodes = group.states, group.episodes
    candidates: dict[int, AddressKeys] = {}
    kept: AddressKeys = []
    for address_key in listed:
        panes = states[address_key][0]
        events, newest_ms = windows.total_and_newest_ms(panes, oldest_ms)
        if newest_ms >= end_ms:
            group.expect_expiry([address_key], states[address_key])
            continue
        if events >= half and not close:
            until_ms = windows.leaves_ms(windows.start_of_newest_ms(panes, half), limits)
            group.protect(address_key, until_ms)
            continue
        kept.append(address_key)
        if address_key not in episodes:
            candidates.setdefault(events, []).append(address_key)
    if kept:
        group.expiries[leaves] = kept
    return candidates


def _fewest_events(
    candidates: dict[KeyGroup, dict[int, AddressKeys]], wanted: int
) -> dict[KeyGroup, AddressKeys]:
    """The keys with the fewest events; of keys with equally many events, the first in key order."""
    fewest: dict[KeyGroup, AddressKeys] = {}
    for events in sorted({events for by_events in candidates.values() for events in by_events}):
        equal = {group: by_events[events] for group, by_events in candidates.items() if events in by_events}
        if sum(map(len, equal.values())) > wanted:
            equal = _first(equal, wanted)
        for group, address_keys in equal.items():
            fewest.setdefault(group, []).extend(address_keys)
            wanted -= len(address_keys)
        if wanted == 0:
            break
    return fewest


def _first(candidates: dict[KeyGroup, AddressKeys], wanted: int) -> dict[KeyGroup, AddressKeys]:
    """The first `wanted` keys in key order; a key under several rules is taken from the first rule first."""
    groups = list(candidates)
    best = [
        (group.key(address_key).order(), position, address_key)
        for position, group in enumerate(groups)
        for address_key in _first_of_group(candidates[group], wanted)
    ]
    first: dict[KeyGroup, AddressKeys] = {}
    for _, position, address_key in nsmallest(wanted, best, key=itemgetter(0, 1)):
        first.setdefault(groups[position], []).append(address_key)
    return first


def _first_of_group(address_keys: AddressKeys, wanted: int) -> AddressKeys:
    """The first keys of one group by address; null sorts first."""
    return nsmallest(wanted, address_keys, key=lambda key: (key is not None, address_of(key) or ""))


def _forget(group: KeyGroup, leaves: int, address_keys: AddressKeys) -> None:
    """Forget keys, and remove them from the list of their pane."""
    for address_key in address_keys:
        group.forget(address_key)
    forgotten = set(address_keys)
    kept = [key for key in group.expiries.pop(leaves) if key not in forgotten]
    if kept:
        group.expiries[leaves] = kept
