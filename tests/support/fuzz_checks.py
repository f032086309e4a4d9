"""Invariants for any bytes: of one record, and of a round of records through two pipelines.

One record, in each profile: decoding and filtering raise nothing, a refusal has a known reason, the typed and the
generic reader agree, and the filter reason is a condition that failed. A round: every record is accounted for after
each batch, dead letters hold the unchanged record, alerts are JSON with sorted keys, and a pipeline whose state is
exported and imported now and then gives the same alerts and the same summary as one that runs through.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple, NoReturn

import orjson

from streamdetect.config import Settings
from streamdetect.detect import COUNTED, Detector, PartitionProcessor, Rule
from streamdetect.detect.rules import FILTER_REASONS
from streamdetect.events import Decoder, Event, Refusal
from streamdetect.events.event import GenericEvent
from streamdetect.model import (
    ALERT_ACTIONS,
    REFUSAL_REASONS,
    Alert,
    Batch,
    DeadLetter,
    EventKind,
    Flow,
    Partition,
)
from streamdetect.service.pipeline import Pipeline
from streamdetect.testing import MemoryAlertSink, MemoryDeadLetterSink

PROFILES = ("strict", "resilient")
MAX_RECORD_BYTES = 20_000
_LONG = 2**63


class FaultError(Exception):
    """An invariant does not hold. `kind` is the same for the same fault, whatever the record."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


def fail_with(where: str, error: Exception) -> NoReturn:
    """Raises the fault of an unexpected exception."""
    raise FaultError(f"{type(error).__name__} in {where}", str(error)[:200]) from error


def require(holds: bool, kind: str, detail: object = "") -> None:
    if not holds:
        raise FaultError(kind, str(detail)[:500])


@cache
def settings(profile: str, max_keys: int = 2_000_000) -> Settings:
    """Short panes and low thresholds, so that a round of an hour or two opens, updates and resolves episodes."""
    rules = [
        {"id": "easy", "min_connections_per_hour": 1, "min_duration_hours": 0, "max_hosts": 100},
        {
            "id": "hunt",
            "min_connections_per_hour": 3,
            "min_duration_hours": 0,
            "processes": ["chrome.exe", "x"],
        },
        {
            "id": "but",
            "min_connections_per_hour": 2,
            "min_duration_hours": 1,
            "renotify": "2m",
            "max_processes": 9,
        },
    ]
    rules[2]["exceptions"] = [
        {"destination": "45.83.64.0/24", "host": "h1"},
        {"destination": "c2.example.net"},
    ]
    return Settings.model_validate(
        {
            "profile": profile,
            "time": {"interval": "1m", "lookback": "40m", "lateness": "30s", "max_future_jump": "20m"},
            "limits": {"max_record_bytes": MAX_RECORD_BYTES, "max_keys": max_keys},
            "rules": rules,
        }
    )


# ------------------------------------------------------------------------------------------------- one record


class RecordChecker:
    """Checks single records in one profile. Each gets a new partition processor, so no record depends on another."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.settings = settings(profile)
        self.decoder = Decoder(profile, MAX_RECORD_BYTES)
        self._generic_decoder = Decoder(profile, MAX_RECORD_BYTES)
        self._detector = Detector(self.settings)

    def check(self, value: bytes | None) -> None:
        """Raises FaultError."""
        try:
            decoded = self.decoder.decode(value)
            by_typed = not isinstance(decoded, GenericEvent)
            generic = self._decode_generic(value) if by_typed else decoded
        except Exception as error:  # noqa: BLE001 - any exception is a fault
            fail_with("decode", error)
        if isinstance(decoded, Refusal):
            known = decoded.reason in REFUSAL_REASONS and decoded.reason != "future_time"
            require(known, "unknown refusal", decoded)
            require(bool(decoded.detail and decoded.detail.encode()), "a refusal without a detail", decoded)
        try:
            self._compare(value or b"", decoded, generic)
        except FaultError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception is a fault
            fail_with("reading or filtering", error)

    def _decode_generic(self, value: bytes | None) -> Event | Refusal:
        """By the generic reader, unless the record is empty or too large."""
        if value is None or len(value) > MAX_RECORD_BYTES:
            return self._generic_decoder.decode(value)
        return self._generic_decoder._decode_generic(value)

    def _compare(self, value: bytes, typed: Event | Refusal, generic: Event | Refusal) -> None:
        """Both readers agree, also on a second decoding, which uses cached values."""
        if isinstance(typed, Refusal) or isinstance(generic, Refusal):
            agree("refusal", *(getattr(one, "reason", None) for one in (typed, generic)))
            return
        flow, kind = generic.flow(), generic.kind()
        verdict = self._processor().accept(typed)
        self._check_reason(verdict, flow, kind)
        if typed is generic:
            generic.context(flow, kind)
            generic.host()
            return
        agree("time", typed.time_ms, generic.time_ms)
        agree("process name", typed.process_name, generic.process_name)
        agree("verdict", verdict == COUNTED, self._processor().accept(generic) == COUNTED)
        agree("flow", typed.flow(), flow)
        agree("kind", typed.kind(), kind)
        agree("context", typed.context(flow, kind), generic.context(flow, kind))
        agree("host", typed.host(), generic.host())
        again = self.decoder.decode(value)
        assert not isinstance(again, Refusal)
        agree("second decoding", (again.flow(), again.kind()), (flow, kind))

    def _check_reason(self, verdict: str, flow: Flow, kind: EventKind) -> None:
        """The filter reason is one of the conditions that failed."""
        if verdict not in (COUNTED, "exception"):
            failed = failed_conditions(flow, kind, self._detector.rules)
            require(verdict in FILTER_REASONS, "unknown verdict", verdict)
            require(verdict in failed, "the filter reason is not a failed condition", verdict)

    def _processor(self) -> PartitionProcessor:
        return PartitionProcessor(Partition("alone"), self._detector._partitions)


def agree(what: str, typed: object, generic: object) -> None:
    if typed != generic:
        raise FaultError(f"the readers differ in the {what}", f"{typed} {generic}"[:1000])


def failed_conditions(flow: Flow, kind: EventKind, rules: Sequence[Rule]) -> set[str]:
    """The conditions of docs/semantics.md §1 that the event does not meet for some rule."""
    failed: set[str] = set()
    for rule in rules:
        checks = {
            "process.name": kind.process_name in rule.processes,
            "network.direction": flow.direction == "egress",
            "event.category": kind.category == "network",
            "host.os.family": kind.os_family == "windows",
            "data_stream.dataset": kind.dataset is None or kind.dataset in rule._datasets,
            "destination.port": isinstance(flow.port, int) and flow.port not in rule._ports,
            "destination.ip": isinstance(flow.ip, str) and flow.ip not in rule._networks,
        }
        failed |= {field for field, holds in checks.items() if not holds}
    return failed


# ---------------------------------------------------------------------------------------------------- a round


class Entry(NamedTuple):
    """A record of a round. Consecutive entries with equal `batch` form a batch; `save`: restart before the record."""

    batch: int
    partition: int
    value: bytes | None
    timestamp_ms: int | None
    now_ms: int | None
    save: bool


@dataclass(frozen=True)
class RoundOptions:
    """How a round is run: with or without record timestamps, live (idle partitions, a wall clock) or as a replay."""

    profile: str
    timestamps: bool = False
    live: bool = False
    max_keys: int = 2_000_000


class CheckedPipeline:
    """A pipeline with sinks in memory; checks the counts and dead letters of each batch."""

    def __init__(self, options: RoundOptions) -> None:
        self.options = options
        self.settings = settings(options.profile, options.max_keys)
        self.alert_sink, self.dead_letter_sink = MemoryAlertSink(), MemoryDeadLetterSink()
        self.pipeline = Pipeline(self.settings, self.alert_sink, self.dead_letter_sink)
        self.fed = 0
        for number in range(3):
            self.pipeline.detector.processor(Partition("fuzz", number))

    def feed(self, batch: Batch, now_ms: int | None) -> None:
        known = len(self.dead_letter_sink.dead_letters)
        self.pipeline.feed(batch, now_ms)
        self.fed += len(batch)
        self.check_counts()
        check_dead_letters(self.dead_letter_sink.dead_letters[known:], batch)

    def check_counts(self) -> None:
        """`consumed = counted + filtered + late + dead_lettered`, and all counted dead letters were written."""
        summary = self.pipeline.summary()
        counts = (summary.counted, *summary.filtered.values(), summary.late, *summary.dead_lettered.values())
        require(summary.consumed == self.fed == sum(counts), "the counts do not add up", summary)
        written = Counter(dead_letter.reason for dead_letter in self.dead_letter_sink.dead_letters)
        require(dict(written) == summary.dead_lettered, "dead letters were counted but not written", summary)

    def save_and_restore(self) -> None:
        """Export the state as JSON text and import it into a new detector."""
        detector = self.pipeline.detector
        rows = [json.loads(json.dumps(row)) for row in detector.export_state()]
        check_rows(rows)
        self.pipeline.detector = Detector(self.settings, detector.listener)
        self.pipeline.detector.import_state(rows)

    def outcome(self) -> dict[str, Any]:
        return self.pipeline.summary().as_dict()


def check_rows(rows: list[dict[str, Any]]) -> None:
    """A checkpoint serialises rows with orjson, and ticks in columns of 64 bits."""
    try:
        orjson.dumps(rows)
    except TypeError as error:
        fail_with("writing the state", error)
    for row in rows:
        tick_ms = row.get("tick_ms") or row.get("evaluated_ms") or 0
        require(-_LONG <= tick_ms < _LONG, "a tick of more than 64 bits", row)


def run_round(entries: Sequence[Entry], options: RoundOptions) -> CheckedPipeline:
    """Feed a round to two pipelines, one of them saved and restored where `save` is set. Raises FaultError."""
    through, restarted = CheckedPipeline(options), CheckedPipeline(options)
    try:
        for _, group in groupby(entries, key=lambda entry: entry.batch):
            _feed_both(list(group), through, restarted)
        for one in (through, restarted):
            one.pipeline.finish()
            one.check_counts()
    except FaultError:
        raise
    except Exception as error:  # noqa: BLE001 - any exception is a fault
        fail_with("the pipeline", error)
    check_alerts(through.alert_sink.alerts)
    require(through.alert_sink.lines() == restarted.alert_sink.lines(), "alerts differ after a restore")
    require(
        through.outcome() == restarted.outcome(),
        "the summary differs after a restore",
        (through.outcome(), restarted.outcome()),
    )
    return through


def _feed_both(entries: list[Entry], through: CheckedPipeline, restarted: CheckedPipeline) -> None:
    """Feed one batch, then advance time. Live, a partition is idle after some of its batches."""
    batch, now_ms = as_batch(entries), entries[0].now_ms
    through.feed(batch, now_ms)
    for run, save in _runs(entries):
        if save:
            restarted.save_and_restore()
        restarted.feed(as_batch(run), now_ms)
    for one in (through, restarted):
        if through.options.live:
            one.pipeline.detector.processor(batch.partition).idle = entries[0].batch % 4 == 0
        one.pipeline.advance()


def _runs(entries: list[Entry]) -> Iterator[tuple[list[Entry], bool]]:
    """The batch, split where the state is saved."""
    start = 0
    for index in range(1, len(entries) + 1):
        if index == len(entries) or entries[index].save:
            yield entries[start:index], entries[start].save
            start = index


def as_batch(entries: list[Entry]) -> Batch:
    """A batch with gaps between offsets; every third has keys and headers."""
    first = entries[0]
    timestamps_ms = [entry.timestamp_ms for entry in entries]
    has_extras = first.batch % 3 == 0
    return Batch(
        Partition("fuzz", first.partition),
        [entry.value for entry in entries],
        [first.batch * 1000 + 2 * index for index in range(len(entries))],
        None if timestamps_ms.count(None) == len(entries) else timestamps_ms,
        [b"key"] * len(entries) if has_extras else None,
        [(("name", b"\xff"),)] * len(entries) if has_extras else None,
    )


def check_dead_letters(dead_letters: Sequence[DeadLetter], batch: Batch) -> None:
    """Known reasons, and unchanged records in order."""
    index = -1
    for dead_letter in dead_letters:
        explained = dead_letter.reason in REFUSAL_REASONS and bool(dead_letter.detail)
        require(explained, "a dead letter without a reason", dead_letter)
        index = next(
            (i for i in range(index + 1, len(batch)) if batch.offsets[i] == dead_letter.record.offset),
            len(batch),
        )
        require(index < len(batch), "a dead letter of no record", dead_letter)
        require(dead_letter.record == batch.record(index), "a dead letter has a changed record", dead_letter)
        require(
            dead_letter.record.value == batch.values[index], "a dead letter has changed bytes", dead_letter
        )


def check_alerts(alerts: Sequence[Alert]) -> None:
    """JSON, UTF-8, sorted keys, compact; each id once; routing fields equal to the body."""
    for alert in alerts:
        document = json.loads(alert.body.decode(), parse_constant=_reject_constant)
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        require(text.encode() == alert.body, "an alert's keys are not sorted", text)
        require(document["event"]["id"] == alert.id, "an alert and its body have different ids", text)
        require(document["event"]["action"] == alert.action in ALERT_ACTIONS, "an unknown action", text)
    require(len({alert.id for alert in alerts}) == len(alerts), "duplicate alert")


def _reject_constant(text: str) -> NoReturn:
    raise FaultError("an alert is not JSON", text)
