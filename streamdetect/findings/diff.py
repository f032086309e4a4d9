"""Differences between the episodes of two runs: matched by id, else by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from streamdetect.findings.episodes import Episode, KeyName


@dataclass(frozen=True, slots=True)
class Moved:
    """An episode of the same key that opened at another tick."""

    before: Episode
    after: Episode

    @property
    def by_ms(self) -> int:
        """How much later it opens now; negative if earlier."""
        assert self.before.opened_ms is not None  # noqa: S101 - those without one are matched by their ids alone
        assert self.after.opened_ms is not None  # noqa: S101 - as above
        return self.after.opened_ms - self.before.opened_ms


@dataclass(frozen=True, slots=True)
class Diff:
    """`before` against `after`. Each episode is in one place; `unchanged` holds the episodes of `after`.

    An unchanged episode has the same id; `ended_otherwise` are unchanged episodes that were resolved at another tick,
    for another reason, or not at all. `outside` counts episodes of `before` whose opening tick `after` did not
    evaluate. All are ordered by opening tick, then by key; pairs by the tick of `after`.
    """

    appeared: Sequence[Episode] = ()
    gone: Sequence[Episode] = ()
    moved: Sequence[Moved] = ()
    unchanged: Sequence[Episode] = ()
    ended_otherwise: Sequence[Moved] = ()
    outside: int = 0

    @property
    def empty(self) -> bool:
        return not (self.appeared or self.gone or self.moved or self.ended_otherwise)


class _Place(NamedTuple):
    """An episode among the opening ticks of its key; `side` is 0 for before, 1 for after."""

    opened_ms: int
    side: int
    episode: Episode


def diff(
    before: Sequence[Episode], after: Sequence[Episode], *, evaluated: tuple[int, int] | None = None
) -> Diff:
    """Compare the episodes of two runs. Each side has an id at most once.

    `evaluated` are the first and last tick of the run of `after`; the run of `before` may be longer. Episodes that
    `before` opened at other ticks, or at an unknown tick, are `outside`. An episode that was open at the last tick and
    resolved later has not `ended_otherwise`.
    """
    known = {episode.id: episode for episode in before}
    same = [Moved(known[episode.id], episode) for episode in after if episode.id in known]
    same_ids = {pair.after.id for pair in same}
    unmatched = [episode for episode in before if episode.id not in same_ids]
    comparable = [episode for episode in unmatched if _was_evaluated(episode, evaluated)]
    new = [episode for episode in after if episode.id not in same_ids]
    moved = list(_moved(comparable, new))
    moved_ids = {pair.before.id for pair in moved} | {pair.after.id for pair in moved}
    return Diff(
        appeared=_in_order(episode for episode in new if episode.id not in moved_ids),
        gone=_in_order(episode for episode in comparable if episode.id not in moved_ids),
        moved=_pairs_in_order(moved),
        unchanged=_in_order(pair.after for pair in same),
        ended_otherwise=_pairs_in_order(pair for pair in same if _ended_otherwise(pair, evaluated)),
        outside=len(unmatched) - len(comparable),
    )


def _was_evaluated(episode: Episode, evaluated: tuple[int, int] | None) -> bool:
    if evaluated is None:
        return True
    return episode.opened_ms is not None and evaluated[0] <= episode.opened_ms <= evaluated[1]


def _ended_otherwise(pair: Moved, evaluated: tuple[int, int] | None) -> bool:
    before, after = pair.before, pair.after
    if evaluated is not None and after.resolved_ms is None and (before.resolved_ms or 0) > evaluated[1]:
        return False
    return (before.resolved_ms, before.reason) != (after.resolved_ms, after.reason)


def _moved(before: Sequence[Episode], after: Sequence[Episode]) -> Iterator[Moved]:
    """Pairs of the same key, the closest opening ticks first, of equally close ones the earlier."""
    lines: defaultdict[KeyName, list[_Place]] = defaultdict(list)
    for side, episodes in enumerate((before, after)):
        for episode in episodes:
            if episode.opened_ms is not None:
                lines[episode.key].append(_Place(episode.opened_ms, side, episode))
    for line in lines.values():
        yield from _closest_first(sorted(line, key=lambda place: place[:2]))


def _closest_first(line: Sequence[_Place]) -> Iterator[Moved]:
    """The closest two of different sides are neighbours in the order of ticks, so only neighbours are compared.

    Comparing all pairs would be millions for a key with an episode at every other tick of a month.
    """
    count = len(line)
    left, right = list(range(-1, count - 1)), list(range(1, count + 1))
    near = [
        _distance(line, place, place + 1) for place in range(count - 1) if _differ(line, place, place + 1)
    ]
    heapify(near)
    paired: set[int] = set()
    while near:
        _, _, one, other = heappop(near)
        if one in paired or other in paired:
            continue
        paired |= {one, other}
        first, second = sorted((line[one], line[other]), key=lambda place: place.side)
        yield Moved(first.episode, second.episode)
        outer_left, outer_right = left[one], right[other]
        if outer_left >= 0:
            right[outer_left] = outer_right
        if outer_right < count:
            left[outer_right] = outer_left
        if outer_left >= 0 and outer_right < count and _differ(line, outer_left, outer_right):
            heappush(near, _distance(line, outer_left, outer_right))


def _distance(line: Sequence[_Place], one: int, other: int) -> tuple[int, int, int, int]:
    return line[other].opened_ms - line[one].opened_ms, line[one].opened_ms, one, other


def _differ(line: Sequence[_Place], one: int, other: int) -> bool:
    return line[one].side != line[other].side


def _in_order(episodes: Iterable[Episode]) -> tuple[Episode, ...]:
    return tuple(sorted(episodes, key=_order))


def _pairs_in_order(pairs: Iterable[Moved]) -> tuple[Moved, ...]:
    return tuple(sorted(pairs, key=lambda pair: _order(pair.after)))


def _order(episode: Episode) -> tuple[object, ...]:
    """By opening tick (by the first alert if it is unknown), then by key."""
    opened_ms = episode.first_alert_ms if episode.opened_ms is None else episode.opened_ms
    return (opened_ms, *episode.key.order(), episode.id)
