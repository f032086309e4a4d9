"""Who goes when there are more keys than `limits.max_keys` (semantics.md §6; why: docs/design.md, decision 16).

The longest silent go first, by the pane of their newest event; of one pane those with the fewest events in the window,
then in key order, then in the order of the rules. Keys *near* the thresholds, with at least half of the events they
need, go only when all others are gone; keys with an open episode never.

`KeyGroup.expiries` holds the keys by the pane of their newest event, but for entries that new events have outrun. So panes
are gone through from the oldest on until enough is found. An outrun entry is moved on. A key that is near is put into
`KeyGroup.spared`, where no eviction meets it again before the tick at which it may have ceased to be near.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from operator import itemgetter

from streamdetect.detect import windows
from streamdetect.detect.episodes import leaves_ms
from streamdetect.detect.keystate import KeyGroup
from streamdetect.model import AddressKey, address_of

Targets = list[AddressKey]


def evict(groups: Sequence[KeyGroup], excess: int, tick_ms: int, agenda: Sequence[int]) -> Counter[str]:
    """Give up as many keys, or all that have no open episode; tells how many of each rule.

    `groups` stand in the order of their rules. `tick_ms` has been evaluated, and `agenda` is all that is planned later.
    """
    lost: Counter[str] = Counter()
    wanted = min(excess, sum(len(group.histories) - len(group.episodes) for group in groups))
    for near in (False, True):
        for leaves in _in_order(agenda):
            if wanted == 0:
                return lost
            taken = _thin(groups, leaves, tick_ms, wanted, near=near)
            lost += taken
            wanted -= taken.total()
    return lost


def _in_order(agenda: Sequence[int]) -> Iterator[int]:
    """The ticks of an agenda that may grow meanwhile."""
    place = 0
    while place < len(agenda):
        yield (tick_ms := agenda[place])
        place = bisect_right(agenda, tick_ms)


def _thin(groups: Sequence[KeyGroup], leaves: int, tick_ms: int, wanted: int, *, near: bool) -> Counter[str]:
    """Give up keys of the pane that leaves at a tick: as many as wanted, or all that may go."""
    concerned = [g for g in groups if leaves in g.expiries or (near and leaves in g.spared)]
    found = {group: _settle(group, leaves, tick_ms, near=near) for group in concerned}
    lost: Counter[str] = Counter()
    for group, targets in _fewest(found, wanted).items():
        _forget(group, leaves, targets)
        lost[group.rule.id] += len(targets)
    return lost


def _settle(group: KeyGroup, leaves: int, tick_ms: int, *, near: bool) -> dict[int, Targets]:
    """The keys of a pane that may go, by their events in the window; what does not belong there gets its right place.

    A key that is near stands at a tick no later than that of its own pane, so it is met in time when such ones go too.
    """
    bucket = group.expiries.pop(leaves, [])
    if near:
        bucket += group.spared.pop(leaves, [])
    limits = group.rule.limits
    oldest_ms, end_ms = tick_ms - limits.lookback_ms, leaves - limits.lookback_ms
    half = (limits.need + 1) // 2
    histories, episodes = group.histories, group.episodes
    found: dict[int, Targets] = {}
    stay: Targets = []
    for target in bucket:
        panes = histories[target][0]
        events, newest_ms = windows.standing(panes, oldest_ms)
        if newest_ms >= end_ms:
            group.expect([target], histories[target])
            continue
        if events >= half and not near:
            group.note(group.spared, leaves_ms(windows.begin_ms(panes, half), limits), target)
            continue
        stay.append(target)
        if target not in episodes:
            found.setdefault(events, []).append(target)
    if stay:
        group.expiries[leaves] = stay
    return found


def _fewest(found: dict[KeyGroup, dict[int, Targets]], wanted: int) -> dict[KeyGroup, Targets]:
    """The keys with the fewest events; of those with equally many, the first."""
    fewest: dict[KeyGroup, Targets] = {}
    for events in sorted({events for by_events in found.values() for events in by_events}):
        alike = {group: by_events[events] for group, by_events in found.items() if events in by_events}
        if sum(map(len, alike.values())) > wanted:
            alike = _first(alike, wanted)
        for group, targets in alike.items():
            fewest.setdefault(group, []).extend(targets)
            wanted -= len(targets)
        if wanted == 0:
            break
    return fewest


def _first(alike: dict[KeyGroup, Targets], wanted: int) -> dict[KeyGroup, Targets]:
    """The first so many keys; of the same key under several rules, that of the first rule."""
    groups = list(alike)
    best = [
        (group.key(target).order(), number, target)
        for number, group in enumerate(groups)
        for target in _first_targets(alike[group], wanted)
    ]
    first: dict[KeyGroup, Targets] = {}
    for _, number, target in nsmallest(wanted, best, key=itemgetter(0, 1)):
        first.setdefault(groups[number], []).append(target)
    return first


def _first_targets(targets: Targets, wanted: int) -> Targets:
    """The first of one group, by their addresses; the missing one is before all."""
    return nsmallest(wanted, targets, key=lambda target: (target is not None, address_of(target) or ""))


def _forget(group: KeyGroup, leaves: int, targets: Targets) -> None:
    """Forget keys, and take them out of their pane's entries."""
    for target in targets:
        group.forget(target)
    gone = set(targets)
    stay = [target for target in group.expiries.pop(leaves) if target not in gone]
    if stay:
        group.expiries[leaves] = stay
