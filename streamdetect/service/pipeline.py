"""Passes batches through decoder and detector, and counts the outcome of every record."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping

from streamdetect.config import Settings
from streamdetect.detect import COUNTED, FUTURE, LATE, Detector, Listener, PartitionProcessor
from streamdetect.events import Decoder, Refusal
from streamdetect.model import Alert, Batch, DeadLetter, Partition
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink

log = logging.getLogger(__name__)


class _CountingListener(Listener):
    """Counts the engine's reports for the summary, and forwards them."""

    def __init__(self, listener: Listener) -> None:
        self._next = listener
        self.late_arrivals = 0
        self.keys_evicted = 0

    def late_arrival(self, partition: Partition) -> None:
        self.late_arrivals += 1
        self._next.late_arrival(partition)

    def evaluated(self, tick_ms: int, keys: int) -> None:
        self._next.evaluated(tick_ms, keys)

    def evicted(self, rule_id: str, keys: int) -> None:
        if self.keys_evicted == 0:  # warn once; the summary has the total
            warn_about_eviction(f"{keys} keys of rule {rule_id}")
        self.keys_evicted += keys
        self._next.evicted(rule_id, keys)


def warn_about_eviction(first: str) -> None:
    """Log that keys are evicted from now on; `first` describes the first eviction."""
    log.warning(
        "limits.max_keys is reached, so keys are evicted (first: %s). A beacon among them is found later or not at "
        "all. Raise limits.max_keys, or exclude busy networks.",
        first,
    )


class Pipeline:
    """Decoder, detector and counters between a source and the sinks."""

    def __init__(
        self,
        settings: Settings,
        alert_sink: AlertSink,
        dead_letter_sink: DeadLetterSink,
        listener: Listener | None = None,
        detector: Detector | None = None,
    ) -> None:
        """`detector` may have state already; its listener is replaced."""
        self._counts = _CountingListener(listener or Listener())
        self.detector = detector or Detector(settings)
        self.detector.listener = self._counts
        self._decoder = Decoder(settings.profile, settings.limits.max_record_bytes)
        self._alert_sink = alert_sink
        self._dead_letter_sink = dead_letter_sink
        self._verdicts: dict[str, int] = defaultdict(int)
        self._dead_lettered: dict[str, int] = {}
        self._alerts: dict[str, int] = {}
        self.consumed = 0

    def feed(self, batch: Batch, now_ms: int | None = None) -> None:
        """Process all records of a batch. `now_ms` is the wall clock of a live run. Raises SinkError."""
        processor = self.detector.processor(batch.partition)
        decode, accept, verdicts = self._decoder.decode, processor.accept, self._verdicts
        timestamps_ms = batch.timestamps_ms
        dead_letters: list[DeadLetter] = []
        for index, value in enumerate(batch.values):
            event = decode(value)
            if isinstance(event, Refusal):
                dead_letters.append(DeadLetter(batch.record(index), event.reason, event.detail))
                continue
            verdict = accept(event, None if timestamps_ms is None else timestamps_ms[index], now_ms)
            if verdict == FUTURE:
                dead_letters.append(future_dead_letter(batch, index, event.time_ms, now_ms))
            else:
                verdicts[verdict] += 1
        self.consumed += len(batch)
        self._send_dead_letters(dead_letters)

    def advance(self) -> None:
        """Evaluate the ticks that the watermark has passed and write the alerts. Raises SinkError."""
        self._send_alerts(self.detector.advance())

    def step(self) -> bool:
        """Do a slice of `advance`. Returns whether there is more to do. Raises SinkError."""
        alerts, more = self.detector.step()
        self._send_alerts(alerts)
        return more

    def advance_to(self, watermark_ms: int) -> None:
        """Evaluate all ticks up to a watermark and write the alerts. Raises SinkError."""
        self._send_alerts(self.detector.advance_to(watermark_ms))

    def finish(self) -> None:
        """Evaluate the ticks that remain at the end of the input and write the alerts. Raises SinkError."""
        self._send_alerts(self.detector.finish())

    def flush(self) -> None:
        """Flush both sinks. Raises SinkError."""
        self._dead_letter_sink.flush()
        self._alert_sink.flush()

    def summary(self) -> Summary:
        """The counts so far."""
        verdicts = dict(self._verdicts)
        return Summary(
            consumed=self.consumed,
            counted=verdicts.pop(COUNTED, 0),
            late=verdicts.pop(LATE, 0),
            filtered=dict(sorted(verdicts.items())),
            dead_lettered=dict(sorted(self._dead_lettered.items())),
            alerts=dict(sorted(self._alerts.items())),
            ticks=self.detector.ticks,
            keys_peak=self.detector.keys_peak,
            suspect_leaps=self.detector.suspect_leaps,
            late_arrivals=self._counts.late_arrivals,
            evicted=self._counts.keys_evicted,
        )

    def _send_dead_letters(self, dead_letters: list[DeadLetter]) -> None:
        for dead_letter in dead_letters:
            self._dead_lettered[dead_letter.reason] = self._dead_lettered.get(dead_letter.reason, 0) + 1
        if dead_letters:
            self._dead_letter_sink.write(dead_letters)

    def _send_alerts(self, alerts: list[Alert]) -> None:
        for alert in alerts:
            self._alerts[alert.action] = self._alerts.get(alert.action, 0) + 1
        if alerts:
            self._alert_sink.write(alerts)


def future_dead_letter(batch: Batch, index: int, time_ms: int, now_ms: int | None) -> DeadLetter:
    """Dead letter of an event too far ahead of its record's timestamp, or of the wall clock (semantics.md §4)."""
    record = batch.record(index)
    ahead = [
        f"{time_ms - clock_ms} ms ahead of {clock}"
        for clock, clock_ms in (
            ("its record's timestamp", record.timestamp_ms),
            ("this machine's clock", now_ms),
        )
        if clock_ms is not None and time_ms > clock_ms
    ]
    return DeadLetter(record, FUTURE, f"the event time is {' and '.join(ahead)}; see time.max_future_skew")


def too_far_ahead(
    clocks_ms: Mapping[Partition, int | None], at_end: Collection[Partition], slack_ms: int
) -> set[Partition]:
    """The partitions to hold: those more than `slack_ms` ahead of the slowest that still has records to read.

    Their events would only occupy memory. A partition without a clock yet (None) is the slowest.
    """
    reading = {partition: clock_ms for partition, clock_ms in clocks_ms.items() if partition not in at_end}
    if not reading:
        return set()
    if None in reading.values():
        return {partition for partition, clock_ms in reading.items() if clock_ms is not None}
    slowest_ms = min(clock_ms for clock_ms in reading.values() if clock_ms is not None)
    return {p for p, clock_ms in reading.items() if clock_ms is not None and clock_ms > slowest_ms + slack_ms}


def clocks_of(processors: Mapping[Partition, PartitionProcessor]) -> dict[Partition, int | None]:
    """The clock of each partition."""
    return {partition: processor.clock.now_ms for partition, processor in processors.items()}
