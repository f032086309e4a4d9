"""Several variants of the same rules judged over one aggregation: what would have alerted under other thresholds.

Variants that read alike (same profile, times, and conditions on events) differ in thresholds, renotify and names only.
So their keys, panes and clocks are the same, and are kept once, with as many hosts and processes as the most patient of
them needs. At a tick each variant judges the keys that may have changed by its own limits, with episodes of its own.

An eviction is not alike: which keys go depends on thresholds. So when `limits.max_keys` is reached the variants part,
and each goes on as an engine of its own, from the same state. Each gives the alerts of a separate replay, byte for
byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamdetect.config import Settings
from streamdetect.detect import serde, windows
from streamdetect.detect.alerts import Key, build
from streamdetect.detect.engine import Detector, Listener
from streamdetect.detect.episodes import EpisodeState, Figures, leaves_ms, look, measure, within
from streamdetect.detect.keystate import KeyGroup, PendingPane
from streamdetect.detect.near_misses import MOST_SEEN, KeyTracker
from streamdetect.detect.preaggregate import PaneRows
from streamdetect.detect.rules import Limits, Rule
from streamdetect.detect.windows import DETAILS, PreAggregate, WindowState
from streamdetect.model import AddressKey, Alert, ContextTuple, address_of

_MOST_SHARED = 262_144  # as in the decoder

Found = tuple[tuple[object, ...], int, Alert]


@dataclass(frozen=True, slots=True)
class _Pooled(Limits):
    """The most patient limits of several, and the fewest events with which one of them can be true."""

    fewest: int

    @property
    def need(self) -> int:
        return self.fewest


class _Lost(Listener):
    """Counts the keys that an engine gave up."""

    def __init__(self) -> None:
        self.keys = 0

    def evicted(self, rule_id: str, keys: int) -> None:
        del rule_id
        self.keys += keys


class _Judge:
    """One rule of one variant: its limits and its open episodes. `place` is its place among the variant's rules."""

    __slots__ = ("limits", "place", "rule", "variant")

    def __init__(self, rule: Rule, variant: int, place: int) -> None:
        self.rule = rule
        self.limits = rule.limits
        self.variant = variant
        self.place = place

    def is_true(self, figures: Figures, hours: int, rate: int) -> bool:
        """The condition of §3, for figures that may count more hosts and processes than this judge's limits."""
        limits = self.limits
        return (
            rate >= limits.min_connections_per_hour
            and hours >= limits.min_duration_hours
            and 1 <= figures.hosts <= limits.max_hosts
            and 1 <= figures.processes <= limits.max_processes
        )


def widest(variants: Sequence[Settings], *, tracking: bool) -> tuple[int, int]:
    """The most hosts and processes that somebody has to tell apart."""
    rules = [rule for settings in variants for rule in settings.rules if rule.enabled]
    hosts = max((rule.max_hosts for rule in rules), default=1)
    processes = max((rule.max_processes for rule in rules), default=1)
    return (max(hosts, MOST_SEEN), max(processes, MOST_SEEN)) if tracking else (hosts, processes)


class Variants(Detector):
    """Takes parts of inboxes, evaluates ticks, gives each variant's alerts. Not thread-safe.

    `variants` must read alike. `tracks`, if any, follows the keys of the first of them.
    """

    def __init__(self, variants: Sequence[Settings], tracks: KeyTracker | None = None) -> None:
        super().__init__(variants[0])
        self._variants = variants
        self._tracks = tracks
        self._forks: list[Detector] = []
        self._lost = [_Lost() for _ in variants]
        self._alerts: list[list[Alert]] = [[] for _ in variants]
        self._found: list[list[Found]] = [[] for _ in variants]
        self._open: dict[tuple[KeyGroup, AddressKey], dict[_Judge, EpisodeState]] = {}
        self._shared: dict[ContextTuple, ContextTuple] = {}
        self._judges: dict[Rule, list[_Judge]] = {rule: [] for rule in self.rules}
        for number, settings in enumerate(variants):
            own = [Rule(rule, settings) for rule in settings.rules if rule.enabled]
            for place, (rule, one) in enumerate(zip(self.rules, own, strict=True)):
                self._judges[rule].append(_Judge(one, number, place))
        for rule, judges in self._judges.items():
            rule.limits = self._pool(rule, [judge.limits for judge in judges])

    def _pool(self, rule: Rule, limits: Sequence[Limits]) -> _Pooled:
        hosts, processes = widest(self._variants, tracking=self._tracks is not None)
        fewest = [one.need for one in limits]
        least = None if self._tracks is None else self._tracks.least_events(limits[0])
        if least is not None:
            fewest.append(least)
        return _Pooled(
            interval_ms=rule.limits.interval_ms,
            lookback_ms=rule.limits.lookback_ms,
            min_connections_per_hour=min(one.min_connections_per_hour for one in limits),
            min_duration_hours=min(one.min_duration_hours for one in limits),
            max_hosts=hosts,
            max_processes=processes,
            renotify_ms=min(one.renotify_ms for one in limits),
            fewest=min(fewest),
        )

    # -- what comes in

    def put(self, parts: Sequence[PaneRows]) -> None:
        """Take parts that a reader has gathered, of ticks that are still to come."""
        if self._forks:
            for fork in self._forks:
                _import(fork, parts)
            return
        for tick_ms, pane_ms, rows in parts:
            self.inbox(tick_ms, pane_ms)
            inbox = PendingPane()
            inbox.lent = True  # other variants may take the same partials
            for rule, process, sensor, partials in rows:
                inbox[self._group(self.rules[rule], process, sensor)] = partials
            self._waiting[tick_ms][pane_ms].append(inbox)

    @property
    def waiting(self) -> int:
        """Partials that wait for their tick."""
        engines: list[Detector] = list(self._forks) or [self]
        return sum(
            len(partials)
            for engine in engines
            for panes in engine._waiting.values()  # noqa: SLF001 - its own kind
            for parts in panes.values()
            for part in parts
            for partials in part.values()
        )

    def share_details(self, parts: Sequence[PaneRows]) -> None:
        """Details that come from another process are copies: keep one of each, as the decoder does."""
        shared = self._shared
        if len(shared) > _MOST_SHARED:
            shared.clear()
        for _, _, rows in parts:
            for row in rows:
                for partial in row.partials.values():
                    partial[DETAILS] = shared.setdefault(partial[DETAILS], partial[DETAILS])

    def _group(self, rule: Rule, process: str, sensor: str | None) -> KeyGroup:
        identity = (rule, process, sensor)
        return self._groups.get(identity) or self._add_group(identity, rule, process, sensor)

    # -- what goes out

    def advance_to(self, watermark_ms: int) -> list[Alert]:
        """Evaluate all ticks up to a watermark. The alerts are to be had from `take_alerts`; here are none."""
        if not self._forks:
            super().advance_to(watermark_ms)
        for number, fork in enumerate(self._forks):
            self._alerts[number] += fork.advance_to(watermark_ms)
        return []

    def take_alerts(self) -> list[list[Alert]]:
        """The alerts of each variant since the last call."""
        taken, self._alerts = self._alerts, [[] for _ in self._variants]
        return taken

    def engines(self) -> list[Detector]:
        """Who holds the numbers of each variant (ticks, keys): this one for all, until they part."""
        return self._forks or [self] * len(self._variants)

    def evictions(self) -> list[int]:
        """How many keys each variant has given up."""
        return [lost.keys for lost in self._lost]

    # -- one tick

    def _evaluate(self, tick_ms: int) -> Iterator[list[Alert] | None]:
        yield from (None for alerts in super()._evaluate(tick_ms) if alerts is None)
        for number, found in enumerate(self._found):
            found.sort(key=lambda item: item[:2])
            self._alerts[number] += [alert for _, _, alert in found]
            found.clear()
        if self._tracks is not None:
            self._tracks.keep_best()
        yield []

    def _fold(
        self, group: KeyGroup, partials: dict[AddressKey, PreAggregate], tick_ms: int
    ) -> set[AddressKey]:
        changed = super()._fold(group, partials, tick_ms)
        if self._tracks is not None:
            changed |= partials.keys() & self._tracks.asked_for(group.process)
            for target in changed:
                self._tracks.folded(group.rule, group.key(target), partials[target])
        return changed

    def _look(self, group: KeyGroup, target: AddressKey, tick_ms: int) -> Alert | None:
        """Every judge's look. The alerts are kept by variant; here is none."""
        limits = group.rule.limits
        oldest_ms = tick_ms - limits.lookback_ms
        history = within(group.histories.get(target), oldest_ms)
        place = (group, target)
        judging: list[_Judge] = list(self._open.get(place, ()))
        if history is not None:
            figures = measure(history, oldest_ms, limits)
            hours, rate = figures.duration_hours, figures.connections_per_hour
            judges = self._judges[group.rule]
            judging += [one for one in judges if one not in judging and one.is_true(figures, hours, rate)]
            if self._tracks is not None:
                rule = judges[0].rule
                self._tracks.looked(group.rule, rule, group.key(target), history, figures, tick_ms)
        for judge in judging:
            self._judge(judge, place, history, tick_ms)
        still_open = self._open.get(place, {})
        group.keep(target, history, next(iter(still_open.values()), None))
        followed = self._tracks is not None and target in self._tracks.asked_for(group.process)
        again_ms = _again(history, still_open, tick_ms, limits, followed=followed)
        if again_ms is not None:
            self._watch(group, target, again_ms)
        return None

    def _judge(
        self, judge: _Judge, place: tuple[KeyGroup, AddressKey], history: WindowState | None, tick_ms: int
    ) -> None:
        episodes = self._open.get(place, {})
        found = look(history, episodes.get(judge), tick_ms, judge.limits)
        if found.episode is not None:
            self._open.setdefault(place, {})[judge] = found.episode
        elif episodes.pop(judge, None) is not None and not episodes:
            del self._open[place]
        if found.action is not None:
            group, target = place
            alert = build(judge.rule, group.key(target), tick_ms, found)
            self._found[judge.variant].append((group.key(target).order(), judge.place, alert))

    # -- too many keys

    def _evict(self, tick_ms: int) -> None:
        """Part, if keys have to go: each variant's engine goes on from here, and chooses its own."""
        if self.keys <= self.settings.limits.max_keys:
            return
        self._forks = [self._fork(number, tick_ms) for number in range(len(self._variants))]
        self._groups.clear()
        self._waiting.clear()
        self._unsaved.clear()
        self._agenda.clear()
        self._open.clear()

    def _fork(self, number: int, tick_ms: int) -> Detector:
        fork = Detector(self._variants[number], self._lost[number])
        fork.import_state(self._rows(number, fork, tick_ms))
        fork.keep_within(tick_ms)
        return fork

    def _rows(self, number: int, fork: Detector, tick_ms: int) -> Iterator[serde.Row]:
        """The state as this variant's engine would have it after the looks of a tick."""
        ids = {rule.id: own.id for rule, own in zip(self.rules, fork.rules, strict=True)}
        own_episodes = {
            (judge.rule.id, tuple(group.key(target))): episode
            for (group, target), episodes in self._open.items()
            for judge, episode in episodes.items()
            if judge.variant == number
        }
        for row in self.export_state():
            if row["kind"] == "progress":
                yield row | {"evaluated_ms": tick_ms, "ticks": self._ticks_to(tick_ms)}
                continue
            row["rule"] = ids[row["rule"]]
            if row["kind"] == "key":
                row["episode"] = own_episodes.get((row["rule"], tuple(row["key"])))
            yield row


def _import(fork: Detector, parts: Sequence[PaneRows]) -> None:
    """Parts into an engine that takes only rows of state."""
    for tick_ms, pane_ms, rows in parts:
        fork.import_state(
            serde.waiting_row(
                fork.rules[row.rule].id,
                Key(address_of(target), row.process, row.sensor),
                tick_ms,
                pane_ms,
                partial,
            )
            for row in rows
            for target, partial in row.partials.items()
        )


def _again(
    history: WindowState | None,
    episodes: dict[_Judge, EpisodeState],
    tick_ms: int,
    limits: Limits,
    *,
    followed: bool,
) -> int | None:
    """The next tick at which a judge's verdict may change, or its renotify is due, though no event comes.

    At least the ticks that `episodes.look` would name for one of them; looking too early does no harm.
    """
    if history is None:
        return None
    if not episodes and not followed and windows.total(history[0]) < limits.need:
        return None
    oldest_ms = tick_ms - limits.lookback_ms
    moments = [leaves_ms(windows.oldest_ms(history[0]), limits)]
    moments += [
        leaves_ms(last_ms, limits)
        for seen in windows.seen(history)
        for _, last_ms in seen
        if last_ms >= oldest_ms
    ]
    for judge, episode in episodes.items():
        due_ms = episode.alerted_ms + judge.limits.renotify_ms
        moments.append(max(tick_ms + limits.interval_ms, due_ms + -due_ms % limits.interval_ms))
    return min(moments)
