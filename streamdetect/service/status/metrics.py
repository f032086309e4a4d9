"""The run status as Prometheus metrics; docs/operations.md lists their names. The door of prometheus-client.

All but the two histograms are read at each scrape, so the series of a partition end when it is no longer read.
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
_PARTITION = ("topic", "partition")

Sample = tuple[tuple[str, ...], float]


class Metrics:
    """The registry of one run. `exposition` may be called from any thread."""

    def __init__(self, status: RunStatus) -> None:
        # Omits the `_created` series of each histogram.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        batch = prometheus_client.Histogram(
            f"{PREFIX}event_processing_seconds",
            "Time to decode and process one batch of records.",
            registry=self._registry,
            buckets=_BATCH_BUCKETS,
        )
        save = prometheus_client.Histogram(
            f"{PREFIX}checkpoint_duration_seconds",
            "Time to write one checkpoint to disk; reading continues meanwhile.",
            registry=self._registry,
            buckets=_SAVE_BUCKETS,
        )
        status.observe_batch, status.observe_save = batch.observe, save.observe
        self._registry.register(_Collector(status))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an Accept header requests, and the content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector:
    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from self._records()
        yield from self._detection()
        yield from self._partitions()
        yield from self._checkpoints()
        yield from self._instance()

    def _records(self) -> Iterator[Metric]:
        snapshot, counters = self._status.snapshot, self._status.counters
        consumed = {} if snapshot is None else dict(snapshot.consumed)
        yield _counter(
            "records_consumed",
            "Records read.",  # as of the summary's moment, so that the verdicts below add up in each scrape
            [(_labels(partition), count) for partition, count in consumed.items()],
            _PARTITION,
        )
        counted, late = (0, 0) if snapshot is None else (snapshot.summary.counted, snapshot.summary.late)
        filtered = {} if snapshot is None else snapshot.summary.filtered
        refused = {} if snapshot is None else snapshot.summary.dead_lettered
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
            "Events of a partition that was idle, for ticks already evaluated; they count from the next tick.",
            [((), counters.late_arrivals)],
        )

    def _detection(self) -> Iterator[Metric]:
        status, snapshot = self._status, self._status.snapshot
        rules = [rule for rule in status.settings.rules if rule.enabled]
        episodes = {} if snapshot is None else snapshot.open_episodes
        yield _gauge(
            "state_keys", "Live keys of all rules.", [((), 0 if snapshot is None else snapshot.keys)]
        )
        yield _gauge("state_keys_limit", "limits.max_keys.", [((), status.settings.limits.max_keys)])
        yield _counter(
            "state_evictions",
            "Keys evicted because limits.max_keys was exceeded.",
            [(("max_keys",), status.counters.evicted)],
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
            "Alerts created, by rule and action; they are published with the next checkpoint.",
            [
                ((rule.id, action), status.counters.alerts[rule.id, action])
                for rule in rules
                for action in ALERT_ACTIONS
            ],
            ("rule", "action"),
        )
        yield _gauge(
            "rule_info",
            "The name of each rule id.",
            [((rule.id, rule.name), 1) for rule in rules],
            ("rule", "name"),
        )
        yield _counter("ticks", "Ticks evaluated.", [((), 0 if snapshot is None else snapshot.summary.ticks)])
        leaps = 0 if snapshot is None else snapshot.summary.suspect_leaps
        yield _gauge(
            "suspect_leaps",
            "Partitions whose newest records are too far ahead and not yet confirmed by others.",
            [((), leaps)],
        )

    def _partitions(self) -> Iterator[Metric]:
        status, snapshot = self._status, self._status.snapshot
        partitions = {} if snapshot is None else snapshot.partitions
        watermark_ms = None if snapshot is None else snapshot.watermark_ms
        yield _gauge(
            "watermark_timestamp_seconds",
            "Event time up to which everything has been read; absent before the first record.",
            [] if watermark_ms is None else [((), watermark_ms / 1000)],
        )
        yield _gauge(
            "consumer_lag_records",
            "Records not yet read.",
            [(_labels(partition), one.lag) for partition, one in partitions.items() if one.lag is not None],
            _PARTITION,
        )
        yield _gauge("partitions_assigned", "Partitions read.", [((), len(partitions))])
        yield _gauge(
            "partitions_stalled",
            "Partitions with unread records that do not arrive.",
            [((), len(status.stalled))],
        )
        saved = {} if status.last_checkpoint is None else status.last_checkpoint.positions
        offsets = {partition: offset for partition, offset in saved.items() if partition in partitions}
        yield _gauge(
            "checkpoint_offset",
            "Offset at which the next start would continue.",
            [(_labels(partition), offset) for partition, offset in offsets.items()],
            _PARTITION,
        )
        yield _gauge(
            "retention_headroom_records",
            "Records between the oldest one in Kafka and the offset at which the next start would continue.",
            [
                (_labels(partition), offset - status.bounds[partition].first)
                for partition, offset in offsets.items()
                if partition in status.bounds
            ],
            _PARTITION,
        )

    def _checkpoints(self) -> Iterator[Metric]:
        status = self._status
        saved = status.last_checkpoint
        yield _gauge(
            "checkpoint_last_success_timestamp_seconds",
            "Time at which the last checkpoint was confirmed; 0 before the first of this process.",
            [((), 0 if saved is None else saved.wall_seconds)],
        )
        yield _gauge(
            "checkpoint_interval_seconds",
            "checkpoint.interval.",
            [((), status.settings.checkpoint.interval_ms / 1000)],
        )
        yield _gauge(
            "checkpoint_size_bytes", "Size of the checkpoint on disk.", [((), status.checkpoint_bytes or 0)]
        )
        yield _counter(
            "checkpoint_failures",
            "Failed attempts to save a checkpoint.",
            [((), status.counters.save_failures)],
        )

    def _instance(self) -> Iterator[Metric]:
        status = self._status
        group = status.settings.kafka.group_id
        yield _gauge(
            "poll_loop_last_tick_timestamp_seconds",
            "Time of the last iteration of the main loop; 0 before the first.",
            [((), status.last_turn_seconds or 0)],
        )
        yield _gauge(
            "work_owned",
            "1 while this instance owns the consumer group, 0 while it connects or is the standby.",
            [((group,), status.owner)],
            ("group_id",),
        )
        yield _gauge("ready", "1 while /readyz answers 200.", [((), status.not_ready_reason() is None)])
        yield _gauge(
            "build_info",
            "Version, Python version and profile in use.",
            [((__version__, platform.python_version(), status.settings.profile), 1)],
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
    """One series per name from the start, so that its first increase is visible to `increase()`."""
    return [((name,), count) for name, count in (dict.fromkeys(known, 0) | found).items()]


def metric_names() -> list[str]:
    """The names of all metrics of streamdetect, as scraped."""
    families = _Collector(RunStatus(Settings())).collect()
    names = [family.name + ("_total" if family.type == "counter" else "") for family in families]
    return sorted([*names, f"{PREFIX}event_processing_seconds", f"{PREFIX}checkpoint_duration_seconds"])
