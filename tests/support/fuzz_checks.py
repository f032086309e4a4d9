"""What must hold whatever the bytes: of one record, and of a round of records through two pipelines.

One record, in each profile: decoding and judging raise nothing, a refusal has a known reason, the typed reader and the
generic one come to the same, and a record is filtered under a condition that did fail. A round: every record is
accounted for after each batch, refused records are untouched, alerts are JSON with sorted keys, and a pipeline whose
state is exported and imported now and then gives the same alerts and the same summary as one left alone.
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
    """A promise was broken: `kind` is the same for the same fault, whatever the record."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


def raised(where: str, error: Exception) -> NoReturn:
    """The fault of an exception that nobody should have seen."""
    raise FaultError(f"{type(error).__name__} in {where}", str(error)[:200]) from error


def require(holds: bool, kind: str, detail: object = "") -> None:
    if not holds:
        raise FaultError(kind, str(detail)[:500])


@cache
def settings(profile: str, max_keys: int = 2_000_000) -> Settings:
    """Short panes and easy thresholds, so that a round of an hour or two opens, updates and resolves episodes."""
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


class Judge:
    """Checks records one by one, in one profile. Lanes are new for each, so no record depends on another."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.settings = settings(profile)
        self.fast = Decoder(profile, MAX_RECORD_BYTES)
        self.slow = Decoder(profile, MAX_RECORD_BYTES)
        self._detector = Detector(self.settings)

    def check(self, value: bytes | None) -> None:
        """Raises FaultError."""
        try:
            fast = self.fast.decode(value)
            typed = not isinstance(fast, GenericEvent)
            slow = self._slowly(value) if typed else fast
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            raised("decode", error)
        if isinstance(fast, Refusal):
            require(fast.reason in REFUSAL_REASONS and fast.reason != "future_time", "unknown refusal", fast)
            require(bool(fast.detail and fast.detail.encode()), "a refusal without a detail", fast)
        try:
            self._compare(value or b"", fast, slow)
        except FaultError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raised("reading or judging", error)

    def _slowly(self, value: bytes | None) -> Event | Refusal:
        """By the generic reader, where there is something to read."""
        if value is None or len(value) > MAX_RECORD_BYTES:
            return self.slow.decode(value)
        return self.slow._decode_generic(value)

    def _compare(self, value: bytes, fast: Event | Refusal, slow: Event | Refusal) -> None:
        """Both readers come to the same, and so they do when asked again."""
        if isinstance(fast, Refusal) or isinstance(slow, Refusal):
            agree("refusal", *(getattr(one, "reason", None) for one in (fast, slow)))
            return
        flow, kind = slow.flow(), slow.kind()
        verdict = self._lane().accept(fast)
        self._check_reason(verdict, flow, kind)
        if fast is slow:
            slow.context(flow, kind)
            slow.host()
            return
        agree("time", fast.time_ms, slow.time_ms)
        agree("process name", fast.process_name, slow.process_name)
        agree("verdict", verdict == COUNTED, self._lane().accept(slow) == COUNTED)
        agree("flow", fast.flow(), flow)
        agree("kind", fast.kind(), kind)
        agree("details", fast.context(flow, kind), slow.context(flow, kind))
        agree("host", fast.host(), slow.host())
        again = self.fast.decode(value)  # out of what the tables remember now
        assert not isinstance(again, Refusal)
        agree("second reading", (again.flow(), again.kind()), (flow, kind))

    def _check_reason(self, verdict: str, flow: Flow, kind: EventKind) -> None:
        """A record is filtered under one of the conditions that failed."""
        if verdict not in (COUNTED, "exception"):
            failed = failed_conditions(flow, kind, self._detector.rules)
            require(verdict in FILTER_REASONS, "unknown verdict", verdict)
            require(verdict in failed, "the readers differ in why it is filtered", verdict)

    def _lane(self) -> PartitionProcessor:
        return PartitionProcessor(Partition("alone"), self._detector._partitions)


def agree(what: str, fast: object, slow: object) -> None:
    if fast != slow:
        raise FaultError(f"the readers differ in the {what}", f"{fast} {slow}"[:1000])


def failed_conditions(flow: Flow, kind: EventKind, rules: Sequence[Rule]) -> set[str]:
    """Each condition of semantics.md §1 that some rule has and the event does not meet."""
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
    """A record of a round. Entries with the same `batch` in a row are one batch; `save` is before this record."""

    batch: int
    partition: int
    value: bytes | None
    timestamp_ms: int | None
    now_ms: int | None
    save: bool


@dataclass(frozen=True)
class Terms:
    """How a round is run: with record timestamps or without, live (lanes go idle, a wall clock) or as a replay."""

    profile: str
    timestamps: bool = False
    live: bool = False
    max_keys: int = 2_000_000


class Side:
    """A pipeline with sinks that remember; checks what it is fed and what comes out."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.settings = settings(terms.profile, terms.max_keys)
        self.alert_sink, self.dead_letter_sink = MemoryAlertSink(), MemoryDeadLetterSink()
        self.pipeline = Pipeline(self.settings, self.alert_sink, self.dead_letter_sink)
        self.fed = 0
        for number in range(3):
            self.pipeline.detector.processor(Partition("fuzz", number))

    def feed(self, batch: Batch, now_ms: int | None) -> None:
        known = len(self.dead_letter_sink.dead_letters)
        self.pipeline.feed(batch, now_ms)
        self.fed += len(batch)
        self.check_account()
        check_dead_letters(self.dead_letter_sink.dead_letters[known:], batch)

    def check_account(self) -> None:
        """`consumed = counted + filtered + late + dead_lettered` (events.md), and dead letters are what was written."""
        summary = self.pipeline.summary()
        parts = (summary.counted, *summary.filtered.values(), summary.late, *summary.dead_lettered.values())
        require(summary.consumed == self.fed == sum(parts), "the account does not add up", summary)
        written = Counter(dead_letter.reason for dead_letter in self.dead_letter_sink.dead_letters)
        require(dict(written) == summary.dead_lettered, "dead letters were counted and not written", summary)

    def save_and_restore(self) -> None:
        """Go through the exported state, as text, into a new detector."""
        detector = self.pipeline.detector
        rows = [json.loads(json.dumps(row)) for row in detector.export_state()]
        check_rows(rows)
        self.pipeline.detector = Detector(self.settings, detector.listener)
        self.pipeline.detector.import_state(rows)

    def outcome(self) -> dict[str, Any]:
        return self.pipeline.summary().as_dict()


def check_rows(rows: list[dict[str, Any]]) -> None:
    """A checkpoint writes rows with orjson, and ticks into columns of 64 bits."""
    try:
        orjson.dumps(rows)
    except TypeError as error:
        raised("writing the state", error)
    for row in rows:
        tick_ms = row.get("tick_ms") or row.get("evaluated_ms") or 0
        require(-_LONG <= tick_ms < _LONG, "a tick of more than 64 bits", row)


def run_round(entries: Sequence[Entry], terms: Terms) -> Side:
    """Feed a round to two pipelines, one of them saved and restored at the marks. Raises FaultError."""
    calm, moved = Side(terms), Side(terms)
    try:
        for _, group in groupby(entries, key=lambda entry: entry.batch):
            _turn(list(group), calm, moved)
        for side in (calm, moved):
            side.pipeline.finish()
            side.check_account()
    except FaultError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        raised("the pipeline", error)
    check_alerts(calm.alert_sink.alerts)
    require(calm.alert_sink.lines() == moved.alert_sink.lines(), "alerts differ after a restore")
    require(
        calm.outcome() == moved.outcome(),
        "the summary differs after a restore",
        (calm.outcome(), moved.outcome()),
    )
    return calm


def _turn(entries: list[Entry], calm: Side, moved: Side) -> None:
    """One batch, then time moves. A partition is idle after some of its batches when live."""
    batch, now_ms = as_batch(entries), entries[0].now_ms
    calm.feed(batch, now_ms)
    for part, save in _parts(entries):
        if save:
            moved.save_and_restore()
        moved.feed(as_batch(part), now_ms)
    for side in (calm, moved):
        if calm.terms.live:
            side.pipeline.detector.processor(batch.partition).idle = entries[0].batch % 4 == 0
        side.pipeline.advance()


def _parts(entries: list[Entry]) -> Iterator[tuple[list[Entry], bool]]:
    """A batch in parts that begin where the state is saved."""
    begin = 0
    for index in range(1, len(entries) + 1):
        if index == len(entries) or entries[index].save:
            yield entries[begin:index], entries[begin].save
            begin = index


def as_batch(entries: list[Entry]) -> Batch:
    """Offsets have gaps; now and then there are keys and headers."""
    first = entries[0]
    timestamps_ms = [entry.timestamp_ms for entry in entries]
    dressed = first.batch % 3 == 0
    return Batch(
        Partition("fuzz", first.partition),
        [entry.value for entry in entries],
        [first.batch * 1000 + 2 * index for index in range(len(entries))],
        None if timestamps_ms.count(None) == len(entries) else timestamps_ms,
        [b"key"] * len(entries) if dressed else None,
        [(("name", b"\xff"),)] * len(entries) if dressed else None,
    )


def check_dead_letters(dead_letters: Sequence[DeadLetter], batch: Batch) -> None:
    """Known reasons, and records as they came: the very same bytes, in order."""
    index = -1
    for dead_letter in dead_letters:
        explained = dead_letter.reason in REFUSAL_REASONS and bool(dead_letter.detail)
        require(explained, "a dead letter without a reason", dead_letter)
        index = next(
            (i for i in range(index + 1, len(batch)) if batch.offsets[i] == dead_letter.record.offset),
            len(batch),
        )
        require(index < len(batch), "a dead letter of no record", dead_letter)
        require(dead_letter.record == batch.record(index), "a dead letter was touched", dead_letter)
        require(
            dead_letter.record.value == batch.values[index], "a dead letter's bytes were touched", dead_letter
        )


def check_alerts(alerts: Sequence[Alert]) -> None:
    """JSON, UTF-8, sorted keys, compact; each id once; the body says what the alert is routed by."""
    for alert in alerts:
        document = json.loads(alert.body.decode(), parse_constant=_no_json)
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        require(text.encode() == alert.body, "an alert's keys are not sorted", text)
        require(document["event"]["id"] == alert.id, "an alert has another id than its body", text)
        require(document["event"]["action"] == alert.action in ALERT_ACTIONS, "an unknown action", text)
    require(len({alert.id for alert in alerts}) == len(alerts), "an alert came twice")


def _no_json(text: str) -> NoReturn:
    raise FaultError("an alert is no JSON", text)
