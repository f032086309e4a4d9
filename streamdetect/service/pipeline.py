"""One batch through decoder and detector, with every record accounted for."""

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


class _Ear(Listener):
    """Keeps the engine's reports for the summary, and passes them on."""

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
        if self.keys_evicted == 0:  # the sum is in the summary
            warn_of_eviction(f"{keys} of rule {rule_id}")
        self.keys_evicted += keys
        self._next.evicted(rule_id, keys)


def warn_of_eviction(first: str) -> None:
    """That keys are lost from now on; `first` says how many have gone first."""
    log.warning(
        "limits.max_keys is reached and keys are being given up, first %s; a beacon among them is found later or not "
        "at all. Raise limits.max_keys, or exclude busy networks.",
        first,
    )


class Pipeline:
    """Decoder, detector and the tally between a source and the sinks."""

    def __init__(
        self,
        settings: Settings,
        alert_sink: AlertSink,
        dead_letter_sink: DeadLetterSink,
        listener: Listener | None = None,
        detector: Detector | None = None,
    ) -> None:
        """`detector` may hold state already; from now on its reports come here."""
        self._ear = _Ear(listener or Listener())
        self.detector = detector or Detector(settings)
        self.detector.listener = self._ear
        self._decoder = Decoder(settings.profile, settings.limits.max_record_bytes)
        self._alert_sink = alert_sink
        self._dead_letter_sink = dead_letter_sink
        self._verdicts: dict[str, int] = defaultdict(int)
        self._refused: dict[str, int] = {}
        self._alerts: dict[str, int] = {}
        self.consumed = 0

    def feed(self, batch: Batch, now_ms: int | None = None) -> None:
        """Take all records of a batch. `now_ms` is the wall clock of a live run. Raises SinkError."""
        processor = self.detector.processor(batch.partition)
        decode, accept, verdicts = self._decoder.decode, processor.accept, self._verdicts
        timestamps_ms = batch.timestamps_ms
        refused: list[DeadLetter] = []
        for index, value in enumerate(batch.values):
            event = decode(value)
            if isinstance(event, Refusal):
                refused.append(DeadLetter(batch.record(index), event.reason, event.detail))
                continue
            verdict = accept(event, None if timestamps_ms is None else timestamps_ms[index], now_ms)
            if verdict == FUTURE:
                refused.append(from_the_future(batch, index, event.time_ms, now_ms))
            else:
                verdicts[verdict] += 1
        self.consumed += len(batch)
        self._refuse(refused)

    def advance(self) -> None:
        """Evaluate what the watermarks let go and hand the alerts on. Raises SinkError."""
        self._send(self.detector.advance())

    def step(self) -> bool:
        """Do a slice of what `advance` does; whether there is more. Raises SinkError."""
        alerts, more = self.detector.step()
        self._send(alerts)
        return more

    def advance_to(self, watermark_ms: int) -> None:
        """Evaluate all ticks up to a watermark and hand the alerts on. Raises SinkError."""
        self._send(self.detector.advance_to(watermark_ms))

    def finish(self) -> None:
        """The input has ended. Raises SinkError."""
        self._send(self.detector.finish())

    def flush(self) -> None:
        """Wait until everything handed on so far is safe. Raises SinkError."""
        self._dead_letter_sink.flush()
        self._alert_sink.flush()

    def summary(self) -> Summary:
        """The numbers so far."""
        verdicts = dict(self._verdicts)
        return Summary(
            consumed=self.consumed,
            counted=verdicts.pop(COUNTED, 0),
            late=verdicts.pop(LATE, 0),
            filtered=dict(sorted(verdicts.items())),
            dead_lettered=dict(sorted(self._refused.items())),
            alerts=dict(sorted(self._alerts.items())),
            ticks=self.detector.ticks,
            keys_peak=self.detector.keys_peak,
            suspect_leaps=self.detector.suspect_leaps,
            late_arrivals=self._ear.late_arrivals,
            evicted=self._ear.keys_evicted,
        )

    def _refuse(self, letters: list[DeadLetter]) -> None:
        for letter in letters:
            self._refused[letter.reason] = self._refused.get(letter.reason, 0) + 1
        if letters:
            self._dead_letter_sink.write(letters)

    def _send(self, alerts: list[Alert]) -> None:
        for alert in alerts:
            self._alerts[alert.action] = self._alerts.get(alert.action, 0) + 1
        if alerts:
            self._alert_sink.write(alerts)


def from_the_future(batch: Batch, index: int, time_ms: int, now_ms: int | None) -> DeadLetter:
    """The letter of an event whose time is too far ahead of its record's, or of the wall clock (§4)."""
    record = batch.record(index)
    ahead = [
        f"{time_ms - clock_ms} ms ahead of {whose}"
        for whose, clock_ms in (
            ("its record's timestamp", record.timestamp_ms),
            ("this machine's clock", now_ms),
        )
        if clock_ms is not None and time_ms > clock_ms
    ]
    return DeadLetter(record, FUTURE, f"the event time is {' and '.join(ahead)}; see time.max_future_skew")


def too_far_ahead(
    clocks_ms: Mapping[Partition, int | None], at_end: Collection[Partition], slack_ms: int
) -> set[Partition]:
    """Partitions to hold: more than `slack_ms` ahead of the slowest one that still has records to read.

    Their events would only wait in memory. A partition not heard of yet (None) is the slowest.
    """
    reading = {partition: clock_ms for partition, clock_ms in clocks_ms.items() if partition not in at_end}
    if not reading:
        return set()
    if None in reading.values():
        return {partition for partition, clock_ms in reading.items() if clock_ms is not None}
    slowest_ms = min(clock_ms for clock_ms in reading.values() if clock_ms is not None)
    return {p for p, clock_ms in reading.items() if clock_ms is not None and clock_ms > slowest_ms + slack_ms}


def clocks_of(processors: Mapping[Partition, PartitionProcessor]) -> dict[Partition, int | None]:
    """Where each partition's clock is."""
    return {partition: processor.clock.now_ms for partition, processor in processors.items()}
