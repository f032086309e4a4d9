"""Several variants of the same rules evaluated over one aggregation: what would have alerted under other thresholds.

Variants of one group have the same profile, times and conditions on events; they differ only in thresholds, renotify
and names. So they share key groups, panes and clocks, with as many hosts and processes told apart as the most
permissive of them needs. At a tick each variant evaluates the changed keys by its own limits, with episodes of its own.

Evictions depend on thresholds. So when `limits.max_keys` is exceeded the variants fork: each continues from the shared
state as a detector of its own. Each gives the alerts of a separate replay, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamdetect.config import Settings
from streamdetect.detect import serde
from streamdetect.detect.alerts import Key
from streamdetect.detect.conditions import Limits
from streamdetect.detect.engine import Detector
from streamdetect.detect.episodes import EpisodeState, evaluate, next_change_ms
from streamdetect.detect.keystate import KeyGroup
from streamdetect.detect.listener import Listener
from streamdetect.detect.near_misses import MOST_SEEN, KeyTracker
from streamdetect.detect.pane_aggregator import PaneRows
from streamdetect.detect.pending import PendingPane
from streamdetect.detect.preaggregate import CONTEXT, PreAggregate
from streamdetect.detect.rules import Rule, enabled_rules
from streamdetect.detect.tick_engine import TickAlerts, TickEngine
from streamdetect.detect.windows import WindowState, measure, total, within
from streamdetect.model import AddressKey, Alert, ContextTuple, address_of

_MOST_SHARED = 262_144  # contexts, as in the decoder


@dataclass(frozen=True, slots=True)
class _PooledLimits(Limits):
    """The most permissive limits of several variants, and the fewest events with which one of them can be true."""

    fewest_events: int

    @property
    def min_events(self) -> int:
        return self.fewest_events


class _EvictionCount(Listener):
    """Counts the keys that a detector evicted."""

    def __init__(self) -> None:
        self.keys = 0

    def evicted(self, rule_id: str, keys: int) -> None:
        del rule_id
        self.keys += keys


class _VariantRule:
    """One rule of one variant; `position` is its place among the variant's rules. Compared by identity."""

    __slots__ = ("limits", "position", "rule", "variant")

    def __init__(self, rule: Rule, variant: int, position: int) -> None:
        self.rule = rule
        self.limits = rule.limits
        self.variant = variant
        self.position = position


def most_told_apart(variants: Sequence[Settings], *, tracking: bool) -> tuple[int, int]:
    """The most hosts and processes of a key that any variant, or the tracker, tells apart."""
    rules = [rule for settings in variants for rule in settings.rules if rule.enabled]
    hosts = max((rule.max_hosts for rule in rules), default=1)
    processes = max((rule.max_processes for rule in rules), default=1)
    return (max(hosts, MOST_SEEN), max(processes, MOST_SEEN)) if tracking else (hosts, processes)


class _VariantEvaluator:
    """Evaluates each key once for every variant (`tick_engine.KeyEvaluator`)."""

    def __init__(
        self, variants: Sequence[Settings], rules: Sequence[Rule], tracker: KeyTracker | None
    ) -> None:
        self.alerts: list[list[Alert]] = [[] for _ in variants]
        self.open: dict[tuple[KeyGroup, AddressKey], dict[_VariantRule, EpisodeState]] = {}
        self._tick_alerts = [TickAlerts() for _ in variants]
        self._tracker = tracker
        self._variant_rules: dict[Rule, list[_VariantRule]] = {rule: [] for rule in rules}
        for number, settings in enumerate(variants):
            for position, (rule, own) in enumerate(zip(rules, enabled_rules(settings), strict=True)):
                self._variant_rules[rule].append(_VariantRule(own, number, position))
        hosts, processes = most_told_apart(variants, tracking=tracker is not None)
        for rule, variant_rules in self._variant_rules.items():
            rule.limits = self._pooled([one.limits for one in variant_rules], hosts, processes)

    def _pooled(self, limits: Sequence[Limits], max_hosts: int, max_processes: int) -> _PooledLimits:
        fewest = [one.min_events for one in limits]
        tracked = None if self._tracker is None else self._tracker.least_events(limits[0])
        if tracked is not None:
            fewest.append(tracked)
        return _PooledLimits(
            interval_ms=limits[0].interval_ms,
            lookback_ms=limits[0].lookback_ms,
            min_connections_per_hour=min(one.min_connections_per_hour for one in limits),
            min_duration_hours=min(one.min_duration_hours for one in limits),
            max_hosts=max_hosts,
            max_processes=max_processes,
            renotify_ms=min(one.renotify_ms for one in limits),
            fewest_events=min(fewest),
        )

    def folded(
        self, group: KeyGroup, pre_aggregates: dict[AddressKey, PreAggregate], candidates: set[AddressKey]
    ) -> None:
        if self._tracker is not None:
            candidates |= pre_aggregates.keys() & self._tracker.requested(group.process)
            for address_key in candidates:
                self._tracker.folded(group.rule, group.key(address_key), pre_aggregates[address_key])

    def evaluate(self, group: KeyGroup, address_key: AddressKey, tick_ms: int) -> None:
        limits = group.rule.limits
        oldest_ms = tick_ms - limits.lookback_ms
        state = within(group.states.get(address_key), oldest_ms)
        place = (group, address_key)
        concerned = list(self.open.get(place, ()))
        if state is not None:
            figures = measure(state, oldest_ms, limits)
            hours, rate = figures.duration_hours, figures.connections_per_hour
            variant_rules = self._variant_rules[group.rule]
            concerned += [
                one
                for one in variant_rules
                if one not in concerned and one.limits.hold(rate, hours, figures.hosts, figures.processes)
            ]
            if self._tracker is not None:
                rule = variant_rules[0].rule
                self._tracker.evaluated(group.rule, rule, group.key(address_key), state, figures, tick_ms)
        for one in concerned:
            self._evaluate_variant(one, place, state, tick_ms)
        episodes = self.open.get(place, {})
        group.put(address_key, state, next(iter(episodes.values()), None))
        requested = self._tracker is not None and address_key in self._tracker.requested(group.process)
        if state is not None and (episodes or requested or total(state[0]) >= limits.min_events):
            due = [episode.renotify_due_ms(tick_ms, one.limits) for one, episode in episodes.items()]
            group.set_timer(address_key, next_change_ms(state, tick_ms, limits, due))

    def _evaluate_variant(
        self, one: _VariantRule, place: tuple[KeyGroup, AddressKey], state: WindowState | None, tick_ms: int
    ) -> None:
        episodes = self.open.get(place, {})
        outcome = evaluate(state, episodes.get(one), tick_ms, one.limits)
        if outcome.episode is not None:
            self.open.setdefault(place, {})[one] = outcome.episode
        elif episodes.pop(one, None) is not None and not episodes:
            del self.open[place]
        if outcome.action is not None:
            group, address_key = place
            key = group.key(address_key)
            self._tick_alerts[one.variant].add(one.rule, one.position, key, tick_ms, outcome)

    def take_alerts(self) -> list[Alert]:
        """Append the tick's alerts to the alerts of their variants; none are returned."""
        for alerts, tick_alerts in zip(self.alerts, self._tick_alerts, strict=True):
            alerts.extend(tick_alerts.take())
        if self._tracker is not None:
            self._tracker.keep_best()
        return []


class Variants:
    """Takes pre-aggregated panes, evaluates ticks, and collects each variant's alerts. Not thread-safe.

    `variants` must read the same events (see above). `tracker`, if any, tracks keys under the first of them.
    """

    def __init__(self, variants: Sequence[Settings], tracker: KeyTracker | None = None) -> None:
        self._variants = variants
        self._rules = enabled_rules(variants[0])
        self._evaluator = _VariantEvaluator(variants, self._rules, tracker)
        self._engine = TickEngine(variants[0], self._rules, self._evaluator, evict=self._fork_all)
        self._forks: list[Detector] = []
        self._evicted = [_EvictionCount() for _ in variants]
        self._shared: dict[ContextTuple, ContextTuple] = {}

    def put(self, panes: Sequence[PaneRows]) -> None:
        """Take the panes that an aggregator has handed over, of ticks that are not evaluated yet."""
        if self._forks:
            for fork in self._forks:
                _import(fork, panes)
            return
        for tick_ms, pane_ms, rows in panes:
            segment = PendingPane(lent=True)  # other variants may take the same pre-aggregates
            for rule, process, sensor, pre_aggregates in rows:
                segment[self._engine.groups.get(self._rules[rule], process, sensor)] = pre_aggregates
            self._engine.pending.add((tick_ms, pane_ms), segment)

    @property
    def waiting(self) -> int:
        """Pre-aggregates that wait for their tick."""
        engines: Sequence[Detector | TickEngine] = self._forks or [self._engine]
        return sum(engine.waiting for engine in engines)

    def share_contexts(self, panes: Sequence[PaneRows]) -> None:
        """Contexts from another process are copies: keep one of each, as the decoder does."""
        shared = self._shared
        if len(shared) > _MOST_SHARED:
            shared.clear()
        for _, _, rows in panes:
            for row in rows:
                for pre in row.pre_aggregates.values():
                    pre[CONTEXT] = shared.setdefault(pre[CONTEXT], pre[CONTEXT])

    @property
    def evaluated_ms(self) -> int:
        """The last evaluated tick."""
        return self._engine.evaluated_ms

    def advance_to(self, watermark_ms: int) -> None:
        """Evaluate all ticks up to a watermark. `take_alerts` returns the alerts."""
        if not self._forks:
            self._engine.advance_to(watermark_ms)
        for alerts, fork in zip(self._evaluator.alerts, self._forks, strict=False):
            alerts.extend(fork.advance_to(watermark_ms))

    def take_alerts(self) -> list[list[Alert]]:
        """The alerts of each variant since the last call."""
        taken, self._evaluator.alerts = self._evaluator.alerts, [[] for _ in self._variants]
        return taken

    def engines(self) -> Sequence[Detector | TickEngine]:
        """The engine of each variant, for its ticks and keys: the same one for all until they fork."""
        return self._forks or [self._engine] * len(self._variants)

    def evictions(self) -> list[int]:
        """How many keys each variant has evicted."""
        return [count.keys for count in self._evicted]

    def _fork_all(self, tick_ms: int) -> None:
        """Continue as one detector for each variant, each of which chooses the keys it evicts."""
        self._forks = [self._fork(number, tick_ms) for number in range(len(self._variants))]
        self._engine.clear()
        self._evaluator.open.clear()

    def _fork(self, number: int, tick_ms: int) -> Detector:
        fork = Detector(self._variants[number], self._evicted[number])
        fork.import_state(self._rows(number, fork))
        fork.limit_keys(tick_ms)
        return fork

    def _rows(self, number: int, fork: Detector) -> Iterator[serde.Row]:
        """The state as this variant's detector would have it, after the evaluations of a tick."""
        ids = {rule.id: own.id for rule, own in zip(self._rules, fork.rules, strict=True)}
        episodes = {
            (one.rule.id, tuple(group.key(address_key))): episode
            for (group, address_key), by_rule in self._evaluator.open.items()
            for one, episode in by_rule.items()
            if one.variant == number
        }
        yield self._engine.progress_row()
        for row in self._engine.rows():
            row["rule"] = ids[row["rule"]]
            if row["kind"] == "key":
                row["episode"] = episodes.get((row["rule"], tuple(row["key"])))
            yield row


def _import(fork: Detector, panes: Sequence[PaneRows]) -> None:
    """Import panes into a detector, as rows of state."""
    for tick_ms, pane_ms, rows in panes:
        fork.import_state(
            serde.waiting_row(
                fork.rules[row.rule].id,
                Key(address_of(address_key), row.process, row.sensor),
                tick_ms,
                pane_ms,
                pre,
            )
            for row in rows
            for address_key, pre in row.pre_aggregates.items()
        )
