"""Variants sorted by what they have in common, and what each of them comes to."""

from __future__ import annotations

import json
from collections.abc import Sequence

from streamdetect.config import NamedSettings, Settings
from streamdetect.detect.near_misses import KeyTracker
from streamdetect.detect.pane_aggregator import ClockRow, PaneRows, last_tick_ms, watermark_ms
from streamdetect.detect.preaggregate import FIRST
from streamdetect.detect.variants import Variants, most_told_apart
from streamdetect.findings.episodes import Episodes
from streamdetect.model import Alert, Partition
from streamdetect.service.bounded.preaggregation import InputGroup, PartialResult, Tally
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink

_READING = {"processes", "excluded_ports", "datasets", "exceptions"}


class AlertOutput:
    """Where alerts go, and how many of each action there were."""

    def __init__(self, settings: Settings, sink: AlertSink | None) -> None:
        self.settings = settings
        self._sink = sink
        self.alerts: dict[str, int] = {}

    def take(self, alerts: Sequence[Alert]) -> None:
        """More alerts. Raises SinkError."""
        for alert in alerts:
            self.alerts[alert.action] = self.alerts.get(alert.action, 0) + 1
        if alerts and self._sink is not None:
            self._sink.write(alerts)


class VariantRun(AlertOutput):
    """One variant while it runs: where its alerts go, and what they come to."""

    def __init__(self, named: NamedSettings, episodes: Episodes, sink: AlertSink | None = None) -> None:
        super().__init__(named.settings, sink)
        self.named = named
        self.episodes = episodes

    def take(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.episodes.take(alert.body)
        super().take(alerts)


class VariantGroup:
    """The variants of one stem: parts come in, each variant's alerts go to where it keeps them."""

    def __init__(
        self, tried: Sequence[AlertOutput], tracks: KeyTracker | None, *, plain: bool = False
    ) -> None:
        """`plain`: for a replay (`gathering.InputGroup`)."""
        variants = [one.settings for one in tried]
        hosts, processes = most_told_apart(variants, tracking=tracks is not None)
        self.stem = InputGroup(variants[0], hosts, processes, timed=tracks is not None, plain=plain)
        self.tally = Tally()
        self.first_ms: int | None = None
        """Time of the earliest event that counts, where tracks are kept."""
        self._tried = tried
        self._variants = Variants(variants, tracks)
        self._clocks: dict[Partition, ClockRow] = {}
        self._interval_ms = variants[0].time.interval_ms
        self._lateness_ms = variants[0].time.lateness_ms

    @property
    def clocks(self) -> Sequence[ClockRow]:
        """Where each partition is."""
        return list(self._clocks.values())

    @property
    def first_tick_ms(self) -> int | None:
        """The first tick at which an event counts."""
        return self._variants.engines()[0].first_tick_ms

    @property
    def last_tick_ms(self) -> int | None:
        """The last tick that was evaluated, None before the first event has come to count."""
        return None if self.first_tick_ms is None else self._variants.evaluated_ms

    @property
    def waiting(self) -> int:
        """Partials that wait for their tick."""
        return self._variants.waiting

    @property
    def evictions(self) -> list[int]:
        """How many keys each variant has given up."""
        return self._variants.evictions()

    def take(self, place: int, harvest: PartialResult, *, copies: bool) -> None:
        """What a worker has gathered; this stem is the `place`-th. `copies`: it comes from another process."""
        parts = harvest.parts[place]
        if copies:
            self._variants.share_contexts(parts)
        self._variants.put(parts)
        if self.stem.timed:
            self._note_first(parts)
        self.tally.add(harvest.tallies[place])
        for row in harvest.clocks[place]:
            self._clocks[row.partition] = row

    def _note_first(self, parts: Sequence[PaneRows]) -> None:
        times_ms = [
            partial[FIRST] for part in parts for row in part.rows for partial in row.pre_aggregates.values()
        ]
        if times_ms:
            self.first_ms = min(times_ms) if self.first_ms is None else min(self.first_ms, *times_ms)

    def expect(self, partition: Partition) -> None:
        """A partition that will be read holds time back from the beginning."""
        self._clocks.setdefault(partition, ClockRow(partition, None, ended=False, suspect=False))

    def advance(self) -> None:
        """Evaluate what the partitions let go. Raises SinkError."""
        now_ms = watermark_ms(self.clocks, self._lateness_ms)
        if now_ms is not None:
            self._advance_to(now_ms)

    def finish(self) -> None:
        """The input has ended. Raises SinkError."""
        last_ms = last_tick_ms(self.clocks, self._interval_ms)
        if last_ms is not None:
            self._advance_to(last_ms)

    def _advance_to(self, time_ms: int) -> None:
        self._variants.advance_to(time_ms)
        for one, alerts in zip(self._tried, self._variants.take_alerts(), strict=True):
            one.take(alerts)

    def summaries(self, seconds: float) -> list[Summary]:
        """The numbers of each variant, as a replay of its own would have them."""
        suspects = sum(row.suspect for row in self.clocks)
        tally = self.tally
        return [
            Summary(
                consumed=tally.consumed,
                counted=tally.counted,
                late=tally.late,
                filtered=tally.filtered(),
                dead_lettered=tally.dead_lettered(),
                alerts=dict(sorted(one.alerts.items())),
                ticks=engine.ticks,
                keys_peak=engine.keys_peak,
                suspect_leaps=suspects,
                evicted=evicted,
                seconds=seconds,
            )
            for one, engine, evicted in zip(
                self._tried, self._variants.engines(), self.evictions, strict=True
            )
        ]


def alike(variants: Sequence[NamedSettings]) -> list[list[int]]:
    """The variants' numbers, those that read alike together: the same records count, at the same ticks.

    The group of the first variant comes first.
    """
    groups: dict[str, list[int]] = {}
    for number, named in enumerate(variants):
        groups.setdefault(_reads(named.settings), []).append(number)
    return list(groups.values())


def _reads(settings: Settings) -> str:
    rules = [
        {"networks": sorted(rule.networks()), **rule.model_dump(mode="json", include=_READING)}
        for rule in settings.enabled_rules()
    ]
    time = settings.time.model_dump(mode="json", exclude={"idle_timeout_ms"})
    limits = [settings.limits.max_keys, settings.limits.max_record_bytes]
    return json.dumps([settings.profile, time, limits, rules], sort_keys=True)
