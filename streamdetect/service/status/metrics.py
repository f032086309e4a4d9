"""A run's vitals as Prometheus metrics: the names are in docs/operations.md. The door of prometheus-client.

Everything but the two histograms is read when somebody scrapes, so a partition that is gone takes its series along.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from streamdetect import __version__
from streamdetect.config import Settings
from streamdetect.detect.rules import FILTER_REASONS
from streamdetect.model import ALERT_ACTIONS, REFUSAL_REASONS, Partition
from streamdetect.service.status.state import RunStatus

PREFIX = "streamdetect_"
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SAVE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WHERE = ("topic", "partition")

Sample = tuple[tuple[str, ...], float]


class Metrics:
    """One registry for one run. `exposition` may be called from any thread."""

    def __init__(self, vitals: RunStatus) -> None:
        # Series beside each histogram that hold when it was made: nobody looks at them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        batch = prometheus_client.Histogram(
            f"{PREFIX}event_processing_seconds",
            "Time to decode and judge one batch of records.",
            registry=self._registry,
            buckets=_BATCH_BUCKETS,
        )
        save = prometheus_client.Histogram(
            f"{PREFIX}checkpoint_duration_seconds",
            "Time to write one checkpoint to the disk; the loop goes on meanwhile.",
            registry=self._registry,
            buckets=_SAVE_BUCKETS,
        )
        vitals.observe_batch, vitals.observe_save = batch.observe, save.observe
        self._registry.register(_Collector(vitals))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector:
    def __init__(self, vitals: RunStatus) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Metric]:
        yield from self._records()
        yield from self._detection()
        yield from self._partitions()
        yield from self._checkpoints()
        yield from self._instance()

    def _records(self) -> Iterator[Metric]:
        picture, tallies = self._vitals.picture, self._vitals.tallies
        here = [] if picture is None else list(picture.partitions)
        yield _counter(
            "records_consumed",
            "Records read.",
            [(_labels(partition), tallies.consumed[partition]) for partition in here],
            _WHERE,
        )
        counted, late = (0, 0) if picture is None else (picture.summary.counted, picture.summary.late)
        filtered = {} if picture is None else picture.summary.filtered
        refused = {} if picture is None else picture.summary.dead_lettered
        yield _counter("records_counted", "Records that count for a rule.", [((), counted)])
        yield _counter(
            "records_filtered",
            "Records that count for no rule, by the condition that failed.",
            _by_name(FILTER_REASONS, filtered),
            ("reason",),
        )
        yield _counter("records_late", "Records too late for any window.", [((), late)])
        yield _counter(
            "dead_letters",
            "Records refused, by reason.",
            _by_name(REFUSAL_REASONS, refused),
            ("reason",),
        )
        yield _counter(
            "late_arrivals",
            "Events of a partition that was idle, for ticks already evaluated; they count from the next one.",
            [((), tallies.late_arrivals)],
        )

    def _detection(self) -> Iterator[Metric]:
        vitals, picture = self._vitals, self._vitals.picture
        rules = [rule for rule in vitals.settings.rules if rule.enabled]
        episodes = {} if picture is None else picture.open_episodes
        yield _gauge("state_keys", "Live keys of all rules.", [((), 0 if picture is None else picture.keys)])
        yield _gauge("state_keys_limit", "limits.max_keys.", [((), vitals.settings.limits.max_keys)])
        yield _counter(
            "state_evictions",
            "Keys given up because of limits.max_keys.",
            [(("max_keys",), vitals.tallies.evicted)],
            ("reason",),
        )
        yield _gauge(
            "open_episodes",
            "Open episodes, by rule.",
            [((rule.id,), episodes.get(rule.id, 0)) for rule in rules],
            ("rule",),
        )
        yield _counter(
            "alerts",
            "Alerts decided, by rule and action; they go out with the next checkpoint.",
            [
                ((rule.id, action), vitals.tallies.alerts[rule.id, action])
                for rule in rules
                for action in ALERT_ACTIONS
            ],
            ("rule", "action"),
        )
        yield _gauge(
            "rule_info",
            "The rules by id and name.",
            [((rule.id, rule.name), 1) for rule in rules],
            ("rule", "name"),
        )
        yield _counter("ticks", "Ticks evaluated.", [((), 0 if picture is None else picture.summary.ticks)])
        leaps = 0 if picture is None else picture.summary.suspect_leaps
        yield _gauge(
            "suspect_leaps", "Partitions whose clock wants to leap and is not believed yet.", [((), leaps)]
        )

    def _partitions(self) -> Iterator[Metric]:
        vitals, picture = self._vitals, self._vitals.picture
        partitions = {} if picture is None else picture.partitions
        watermark_ms = None if picture is None else picture.watermark_ms
        yield _gauge(
            "watermark_timestamp_seconds",
            "Event time up to which everything has been read; none before the first records.",
            [] if watermark_ms is None else [((), watermark_ms / 1000)],
        )
        yield _gauge(
            "consumer_lag_records",
            "Records between where a partition is read and its end.",
            [(_labels(where), one.lag) for where, one in partitions.items() if one.lag is not None],
            _WHERE,
        )
        yield _gauge("partitions_assigned", "Partitions read.", [((), len(partitions))])
        yield _gauge(
            "partitions_stalled", "Partitions with records that do not arrive.", [((), len(vitals.stalled))]
        )
        saved = {} if vitals.saved_last is None else vitals.saved_last.positions
        offsets = {where: at for where, at in saved.items() if where in partitions}
        yield _gauge(
            "checkpoint_offset",
            "Where the next start would go on.",
            [(_labels(where), at) for where, at in offsets.items()],
            _WHERE,
        )
        yield _gauge(
            "retention_headroom_records",
            "Records between the oldest that Kafka still has and where the next start would go on.",
            [
                (_labels(where), at - vitals.bounds[where].first)
                for where, at in offsets.items()
                if where in vitals.bounds
            ],
            _WHERE,
        )

    def _checkpoints(self) -> Iterator[Metric]:
        vitals = self._vitals
        saved = vitals.saved_last
        yield _gauge(
            "checkpoint_last_success_timestamp_seconds",
            "When the last checkpoint was confirmed; 0 before the first of this process.",
            [((), 0 if saved is None else saved.at)],
        )
        yield _gauge(
            "checkpoint_interval_seconds",
            "checkpoint.interval.",
            [((), vitals.settings.checkpoint.interval_ms / 1000)],
        )
        yield _gauge(
            "checkpoint_size_bytes", "Size of the checkpoint on disk.", [((), vitals.size_bytes or 0)]
        )
        yield _counter(
            "checkpoint_failures", "Checkpoints that could not be saved.", [((), vitals.tallies.failures)]
        )

    def _instance(self) -> Iterator[Metric]:
        vitals = self._vitals
        group = vitals.settings.kafka.group_id
        yield _gauge(
            "poll_loop_last_tick_timestamp_seconds",
            "When the loop last went round; 0 before the first time.",
            [((), vitals.turned_at or 0)],
        )
        yield _gauge(
            "work_owned",
            "1 while this instance does the group's work, 0 while it starts or stands by.",
            [((group,), vitals.owner)],
            ("group_id",),
        )
        yield _gauge("ready", "1 while /readyz says so.", [((), vitals.unready() is None)])
        yield _gauge(
            "build_info",
            "Version of the program and what it runs on.",
            [((__version__, platform.python_version(), vitals.settings.profile), 1)],
            ("version", "python", "profile"),
        )


def _gauge(name: str, text: str, samples: Iterable[Sample], labels: tuple[str, ...] = ()) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), samples)


def _counter(name: str, text: str, samples: Iterable[Sample], labels: tuple[str, ...] = ()) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[Sample]) -> Metric:
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _labels(partition: Partition) -> tuple[str, ...]:
    return partition.topic, str(partition.number)


def _by_name(known: Iterable[str], found: dict[str, int]) -> list[Sample]:
    """A series from the start for every name, so that the first increase is seen."""
    return [((name,), count) for name, count in (dict.fromkeys(known, 0) | found).items()]


def metric_names() -> list[str]:
    """Every metric of ours, as scraped."""
    families = _Collector(RunStatus(Settings())).collect()
    names = [family.name + ("_total" if family.type == "counter" else "") for family in families]
    return sorted([*names, f"{PREFIX}event_processing_seconds", f"{PREFIX}checkpoint_duration_seconds"])
