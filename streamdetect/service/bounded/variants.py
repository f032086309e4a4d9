"""Variants grouped by the events that count for them, evaluated together, and the results of each."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

from streamdetect.config import NamedSettings, Settings
from streamdetect.detect.near_misses import KeyTracker
from streamdetect.detect.pane_aggregator import ClockRow, PaneRows, last_tick_ms, watermark_ms
from streamdetect.detect.preaggregate import FIRST
from streamdetect.detect.variants import Variants, most_told_apart
from streamdetect.findings.episodes import Episodes
from streamdetect.model import Alert, Partition
from streamdetect.service.bounded.preaggregation import (
    InputGroup,
    PartialResult,
    RecordCounters,
    positions_by,
)
from streamdetect.service.pipeline import too_far_ahead
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink

_SLACK_INTERVALS = 12
"""How far a partition may be ahead: what waits is aggregated, and workers should not wait for each other."""

_INPUT_SETTINGS = {"processes", "excluded_ports", "datasets", "exceptions"}


class AlertOutput:
    """Writes the alerts of one variant to its sink, if any, and counts them by action."""

    def __init__(self, settings: Settings, sink: AlertSink | None) -> None:
        self.settings = settings
        self._sink = sink
        self.alerts: dict[str, int] = {}

    def write(self, alerts: Sequence[Alert]) -> None:
        """Raises SinkError."""
        for alert in alerts:
            self.alerts[alert.action] = self.alerts.get(alert.action, 0) + 1
        if alerts and self._sink is not None:
            self._sink.write(alerts)


class VariantRun(AlertOutput):
    """The alert output of a named variant, which also collects its episodes."""

    def __init__(self, named: NamedSettings, episodes: Episodes, sink: AlertSink | None = None) -> None:
        super().__init__(named.settings, sink)
        self.named = named
        self.episodes = episodes

    def write(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.episodes.take(alert.body)
        super().write(alerts)


class VariantGroup:
    """The variants of one input group: adds its partial results and writes each variant's alerts to its output."""

    def __init__(
        self, outputs: Sequence[AlertOutput], tracker: KeyTracker | None, *, plain: bool = False
    ) -> None:
        """`plain`: for a replay (`preaggregation.InputGroup`)."""
        variants = [output.settings for output in outputs]
        hosts, processes = most_told_apart(variants, tracking=tracker is not None)
        self.input_group = InputGroup(variants[0], hosts, processes, timed=tracker is not None, plain=plain)
        self.counters = RecordCounters()
        self.first_event_ms: int | None = None
        """Time of the earliest event that counts; only with a tracker."""
        self._outputs = outputs
        self._variants = Variants(variants, tracker)
        self._clocks: dict[Partition, ClockRow] = {}
        self._interval_ms = variants[0].time.interval_ms
        self._lateness_ms = variants[0].time.lateness_ms

    @property
    def clocks(self) -> Sequence[ClockRow]:
        """The clock of each partition."""
        return list(self._clocks.values())

    @property
    def first_tick_ms(self) -> int | None:
        """The first tick whose window includes an event."""
        return self._variants.engines()[0].first_tick_ms

    @property
    def last_tick_ms(self) -> int | None:
        """The last evaluated tick, None before the first tick whose window includes an event."""
        return None if self.first_tick_ms is None else self._variants.evaluated_ms

    @property
    def waiting(self) -> int:
        """Pre-aggregates that wait for their tick."""
        return self._variants.waiting

    @property
    def evictions(self) -> list[int]:
        """How many keys each variant has evicted."""
        return self._variants.evictions()

    def add(self, position: int, result: PartialResult, *, remote: bool) -> None:
        """Add a partial result, in which this input group has this position. `remote`: it is from another process."""
        panes = result.panes[position]
        if remote:
            self._variants.share_contexts(panes)
        self._variants.put(panes)
        if self.input_group.timed:
            self._update_first_event(panes)
        self.counters.add(result.counters[position])
        for row in result.clocks[position]:
            self._clocks[row.partition] = row

    def _update_first_event(self, panes: Sequence[PaneRows]) -> None:
        times_ms = [pre[FIRST] for pane in panes for row in pane.rows for pre in row.pre_aggregates.values()]
        if times_ms:
            first_ms = min(times_ms)
            known_ms = self.first_event_ms
            self.first_event_ms = first_ms if known_ms is None else min(known_ms, first_ms)

    def add_partition(self, partition: Partition) -> None:
        """A partition will be read: it holds the watermark back from the beginning."""
        self._clocks.setdefault(partition, ClockRow(partition, None, ended=False, suspect=False))

    def advance(self) -> None:
        """Evaluate the ticks up to the watermark. Raises SinkError."""
        now_ms = watermark_ms(self.clocks, self._lateness_ms)
        if now_ms is not None:
            self._advance_to(now_ms)

    def finish(self) -> None:
        """Evaluate the remaining ticks at the end of the input. Raises SinkError."""
        last_ms = last_tick_ms(self.clocks, self._interval_ms)
        if last_ms is not None:
            self._advance_to(last_ms)

    def _advance_to(self, time_ms: int) -> None:
        self._variants.advance_to(time_ms)
        for output, alerts in zip(self._outputs, self._variants.take_alerts(), strict=True):
            output.write(alerts)

    def summaries(self, seconds: float) -> list[Summary]:
        """The summary of each variant, as a replay of its own would have it."""
        suspects = sum(row.suspect for row in self.clocks)
        counters = self.counters
        return [
            Summary(
                consumed=counters.consumed,
                counted=counters.counted,
                late=counters.late,
                filtered=counters.filtered(),
                dead_lettered=counters.dead_lettered(),
                alerts=dict(sorted(output.alerts.items())),
                ticks=engine.ticks,
                keys_peak=engine.keys_peak,
                suspect_leaps=suspects,
                evicted=evicted,
                seconds=seconds,
            )
            for output, engine, evicted in zip(
                self._outputs, self._variants.engines(), self.evictions, strict=True
            )
        ]


class Evaluation:
    """Evaluates partial results for all variant groups of a run (`scheduler`). The base is in the first group."""

    def __init__(self, groups: Sequence[VariantGroup], interval_ms: int) -> None:
        """`interval_ms` is the longest of all variants."""
        self.groups = groups
        self.partitions: set[Partition] = set()
        self._slack_ms = _SLACK_INTERVALS * interval_ms

    @property
    def input_groups(self) -> list[InputGroup]:
        return [group.input_group for group in self.groups]

    @property
    def consumed(self) -> int:
        """Records read so far."""
        return self.groups[0].counters.consumed

    @property
    def waiting(self) -> int:
        """Pre-aggregates that wait for their tick."""
        return sum(group.waiting for group in self.groups)

    def add_partition(self, partition: Partition) -> bool:
        """Add a partition that will be read; returns False if it was added before."""
        if partition in self.partitions:
            return False
        self.partitions.add(partition)
        for group in self.groups:
            group.add_partition(partition)
        return True

    def too_far_ahead(self, ended: Collection[Partition]) -> set[Partition]:
        """Partitions to hold for now."""
        clocks_ms = {row.partition: row.now_ms for row in self.groups[0].clocks}
        return too_far_ahead(clocks_ms, ended, self._slack_ms)

    def add(self, results: Iterable[PartialResult], *, remote: bool) -> None:
        """Add partial results, then evaluate up to the watermark. Raises SinkError."""
        for result in results:
            self.add_result(result, remote=remote)
        self.advance()

    def add_result(self, result: PartialResult, *, remote: bool) -> None:
        """Add one partial result."""
        for position, group in enumerate(self.groups):
            group.add(position, result, remote=remote)

    def advance(self) -> None:
        """Evaluate up to the watermark. Raises SinkError."""
        for group in self.groups:
            group.advance()

    def finish(self) -> None:
        """Evaluate the remaining ticks at the end of the input. Raises SinkError."""
        for group in self.groups:
            group.finish()


def positions_by_input(variants: Sequence[NamedSettings]) -> list[list[int]]:
    """Positions of the variants, grouped by input: the same records count, at the same ticks.

    The group of the first variant comes first.
    """
    return list(positions_by(_input_identity, [named.settings for named in variants]).values())


def _input_identity(settings: Settings) -> str:
    rules = [
        {"networks": sorted(rule.networks()), **rule.model_dump(mode="json", include=_INPUT_SETTINGS)}
        for rule in settings.enabled_rules()
    ]
    time = settings.time.model_dump(mode="json", exclude={"idle_timeout_ms"})
    limits = [settings.limits.max_keys, settings.limits.max_record_bytes]
    return json.dumps([settings.profile, time, limits, rules], sort_keys=True)
