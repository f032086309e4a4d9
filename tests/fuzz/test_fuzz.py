"""A short run of the fuzzer, tests that it detects faults, and regression tests of what fuzzing has found."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from fuzz_checks import (
    MAX_RECORD_BYTES,
    PROFILES,
    Entry,
    FaultError,
    RecordChecker,
    RoundOptions,
    run_round,
    settings,
)
from fuzz_mutations import mutated
from fuzz_seeds import MONDAY_8_MS
from fuzzing import check_records, check_round, fuzz, make_round, options_of, shrink

from paths import ROOT
from streamdetect.detect import COUNTED, Detector
from streamdetect.detect.alerts import iso
from streamdetect.events import Decoder, Event, Refusal, jsontext
from streamdetect.model import Batch, EventContext, Partition
from streamdetect.service.pipeline import Pipeline
from streamdetect.service.summary import Summary

SCRIPT = ROOT / "scripts" / "fuzz.py"


@pytest.mark.parametrize("seed", [11, 12])
def test_invariants_hold_for_every_record(seed: int) -> None:
    """700 mutated and random records, in each profile singly and through two pipelines: every invariant holds."""
    tally, failure = fuzz(700, seed)
    assert failure is None, failure
    assert tally.records == 700
    for counts in tally.verdicts.values():
        assert counts["consumed"] == tally.records + tally.valid
        assert counts["alerts opened"] > 0


def test_live_rounds_and_a_low_key_limit() -> None:
    """Round 0: partitions that go idle and return with late events. Round 4: keys evicted at a limit of 40."""
    for number in (0, 4):
        entries, _ = make_round(11, number, 500)
        for options in options_of(number):
            summary = check_round(entries, options).pipeline.summary()
            assert summary.late_arrivals > 0 if options.live else summary.evicted > 0


def test_the_same_seed_gives_the_same_records() -> None:
    """A round depends only on the seed and its number."""
    assert make_round(5, 2, 200) == make_round(5, 2, 200)
    assert make_round(5, 2, 200) != make_round(6, 2, 200) != make_round(6, 3, 200)


def test_mutations_reach_every_verdict() -> None:
    """Of 2,000 mutated records many are events, and others are refused for every reason."""
    rng = Random(3)
    records = [mutated(rng, MONDAY_8_MS) for _ in range(2_000)]
    found = [Decoder("resilient", MAX_RECORD_BYTES).decode(record) for record in records]
    reasons = {event.reason for event in found if isinstance(event, Refusal)}
    assert reasons == {"not_json", "not_an_object", "too_large", "no_time"}
    assert sum(isinstance(event, Event) for event in found) > 1_000


# -------------------------------------------------------------------------------- the fuzzer detects faults


def small_round() -> tuple[list[Entry], RoundOptions]:
    entries, _ = make_round(11, 1, 300)
    return entries, RoundOptions("resilient")


def test_a_decoder_that_raises_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of 2 KB on which a decoder raises is shrunk to the bytes that cause it."""
    decode = Decoder.decode

    def raising(self: Decoder, raw: bytes | None) -> Event | Refusal:
        if raw is not None and b"egress" in raw:
            raise KeyError("egress")
        return decode(self, raw)

    monkeypatch.setattr(Decoder, "decode", raising)
    _, failure = fuzz(100, 11)
    assert failure is not None
    assert failure.fault.kind == "KeyError in decode"
    assert [entry.value for entry in failure.entries] == [b"egress"]


def test_the_script_prints_the_smallest_record_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault is printed with its kind and the record in hexadecimal."""
    decode = Decoder.decode
    monkeypatch.setattr(
        Decoder, "decode", lambda self, raw: decode(self, raw) if b"chrome" not in (raw or b"") else 1 // 0
    )
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--records", "50", "--seed", "11"])
    assert script().main() == 1
    printed = capsys.readouterr()
    assert "ZeroDivisionError in decode" in printed.err
    assert printed.err.rstrip().endswith(": " + b"chrome".hex())


def test_the_script_prints_its_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a fault it exits with 0."""
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--records", "100"])
    assert script().main() == 0
    assert "100 mutated or random records" in capsys.readouterr().out


def script() -> Any:
    """scripts/fuzz.py as a module."""
    spec = importlib.util.spec_from_file_location("fuzz_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_too_many(summary: Callable[[Pipeline], Summary]) -> Callable[[Pipeline], Summary]:
    def changed(self: Pipeline) -> Summary:
        found = summary(self)
        found.counted += found.counted > 1
        return found

    return changed


def without_keys(export: Callable[[Detector], Any]) -> Callable[[Detector], Any]:
    return lambda self: (row for row in export(self) if row["kind"] != "key")


def with_a_blank(record: Callable[[Batch, int], Any]) -> Callable[[Batch, int], Any]:
    def changed(self: Batch, index: int) -> Any:
        found = record(self, index)
        object.__setattr__(found, "value", (found.value or b"") + b" ")
        return found

    return changed


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "kind"),
    [
        (Pipeline, "summary", one_too_many, "the counts do not add up"),
        (Batch, "record", with_a_blank, "a dead letter has changed bytes"),
        (Detector, "export_state", without_keys, "alerts differ after a restore"),
    ],
)
def test_a_fault_in_a_round_is_detected(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrong: Callable[[Any], Any], kind: str
) -> None:
    """A count that is off by one, a changed dead letter, a state without its keys."""
    entries, options = small_round()
    check_round(entries, options)
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    with pytest.raises(FaultError) as found:
        check_round(entries, options)
    assert found.value.kind == kind


def test_a_difference_between_readers_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generic reader that loses the port filters a record that the typed one counts."""
    entries, options = small_round()
    check_records(entries, options)
    parse = jsontext.parse
    monkeypatch.setattr(jsontext, "parse", lambda raw: without_port(parse(raw)))
    with pytest.raises(FaultError, match="the readers differ"):
        check_records(entries, options)


def without_port(document: Any) -> Any:
    if isinstance(document, dict) and isinstance(document.get("destination"), dict):
        document["destination"].pop("port", None)
    return document


def test_shrink_keeps_what_is_required() -> None:
    """The required letters of a text are left, in order."""
    found = shrink(b"what is needed is a needle", lambda text: text.find(b"d") > text.find(b"n") >= 0)
    assert found == b"nd"


# --------------------------------------------------------------------------------------- regressions


def harmless(record: bytes) -> None:
    """All invariants hold for a record, singly and twice in a round."""
    for profile in PROFILES:
        RecordChecker(profile).check(record)
        entries = [Entry(batch, 0, record, None, None, save=batch == 1) for batch in range(2)]
        run_round(entries, RoundOptions(profile))


def counting(timestamp: str = '"2026-03-02T08:00:00Z"', pid: str = "7") -> bytes:
    """A record that counts; the arguments are JSON texts."""
    return (
        f'{{"@timestamp":{timestamp},"event":{{"category":["network"]}},"host":{{"id":"h","os":{{"family":"windows"}}}},'
        f'"network":{{"direction":"egress"}},"process":{{"name":"chrome.exe","entity_id":"e","pid":{pid}}},'
        '"destination":{"ip":"45.83.64.1","port":443}}'
    ).encode()


def azure(**members: str) -> bytes:
    """A record of Azure, whose event data is a JSON text; `members` are JSON texts."""
    data = {
        "UtcTime": '"2026-03-02 08:00:00.000"',
        "Image": '"C:\\\\x\\\\chrome.exe"',
        "ProcessGuid": '"{a}"',
        "DestinationIp": '"45.83.64.1"',
        "DestinationPort": '"443"',
        "Initiated": '"true"',
    } | members
    text = "{" + ",".join(f'"{name}":{value}' for name, value in data.items()) + "}"
    document = {
        "@timestamp": "2026-03-02T08:00:09Z",
        "EventID": 3,
        "Channel": "Microsoft-Windows-Sysmon/Operational",
        "host": {"id": "h1", "os": {"family": "windows"}},
        "EventData": text,
    }
    return json.dumps(document).encode()


@pytest.mark.parametrize("guid", ['"\\ud800"', '"' + "\\ud800" * 600 + '"'])
def test_a_lone_surrogate_in_event_data_is_not_json(guid: str) -> None:
    """Azure's EventData is JSON in a text: a lone surrogate makes it invalid, and does not break an alert."""
    harmless(azure(ProcessGuid='"{b}"'))
    harmless(azure(ProcessGuid=guid))


@pytest.mark.parametrize("pid", ["1180591620717411303424", "-9223372036854775809"])
def test_a_pid_beyond_64_bits_is_malformed(pid: str) -> None:
    """Elasticsearch stores process.pid as a long; a larger number could not be written to a checkpoint."""
    record = counting(pid=pid)
    harmless(record)
    event = Decoder("strict", MAX_RECORD_BYTES).decode(record)
    assert isinstance(event, Event)
    assert EventContext._make(event.context(event.flow(), event.kind())).pid is None


@pytest.mark.parametrize("time", ["-9223372036854775808", "9223372036854775807"])
def test_a_time_at_the_limit_of_64_bits_leaves_a_state_that_can_be_saved(time: str) -> None:
    """The pane before it and the tick after it must fit into a checkpoint."""
    harmless(counting(timestamp=f'"{time}"'))


@pytest.mark.parametrize("member", ["ProcessGuid", "Image", "User", "ProcessId", "Initiated"])
def test_a_sysmon_member_deep_in_arrays_does_not_raise(member: str) -> None:
    """A member that should be a text, inside 1,020 arrays: close to the nesting limit of JSON."""
    nested = "[" * 1_020 + '"x"' + "]" * 1_020
    data = {"UtcTime": '"2026-03-02 08:00:00.000"', "DestinationIp": '"45.83.64.1"', member: nested}
    members = ",".join(f'"{name}":{value}' for name, value in data.items())
    for block in (
        f'"winlog":{{"provider_name":"Microsoft-Windows-Sysmon","event_id":3,"event_data":{{{members}}}}}',
        f'"source_name":"Microsoft-Windows-Sysmon","event_id":3,"event_data":{{{members}}}',
    ):
        harmless(f'{{"@timestamp":"2026-03-02T08:00:09Z",{block}}}'.encode())


def test_a_dotted_utc_time_is_the_event_time() -> None:
    """Event data under a dotted name, the rest nested: UtcTime is still the event time (docs/events.md)."""
    document = {
        "@timestamp": "2026-03-02T08:00:09Z",
        "process": {"name": "chrome.exe"},
        "winlog": {"provider_name": "Microsoft-Windows-Sysmon", "event_id": 3},
        "winlog.event_data": {"UtcTime": "2026-03-02 08:00:00.000"},
    }
    event = Decoder("resilient", MAX_RECORD_BYTES).decode(json.dumps(document).encode())
    assert isinstance(event, Event)
    assert iso(event.time_ms) == "2026-03-02T08:00:00.000Z"
    harmless(json.dumps(document).encode())


def test_a_dotted_initiated_replaces_the_direction() -> None:
    """Sysmon's members replace ECS fields instead of adding values: a nested ingress does not filter the record."""
    document = {
        "@timestamp": "2026-03-02T08:00:00Z",
        "event": {"code": 3, "provider": "Microsoft-Windows-Sysmon"},
        "host": {"id": "h1", "os": {"family": "windows"}},
        "network": {"direction": "ingress"},
        "process": {"name": "chrome.exe", "entity_id": "e1"},
        "destination": {"ip": "45.83.64.1", "port": 443},
        "winlog": {"event_data.Initiated": "true"},
    }
    event = Decoder("resilient", MAX_RECORD_BYTES).decode(json.dumps(document).encode())
    assert isinstance(event, Event)
    assert Detector(settings("resilient")).processor(Partition("a")).accept(event) == COUNTED
    harmless(json.dumps(document).encode())


def test_a_huge_number_deep_in_arrays_does_not_depend_on_the_stack() -> None:
    """A record that the typed reader accepts is not rejected as JSON when it is read again deeper in the stack."""
    base = counting()[:-1]
    for depth in range(800, 1_030):
        record = base + b',"x.y":' + b"[" * depth + b"1e400" + b"]" * depth + b"}"
        event = Decoder("resilient", MAX_RECORD_BYTES).decode(record)
        if isinstance(event, Event):
            assert Detector(settings("resilient")).processor(Partition("a")).accept(event) == COUNTED
        else:
            assert event.reason == "not_json"


@pytest.mark.parametrize("event_id", ["null", "[]", "{}"])
def test_a_null_event_id_is_a_missing_one(event_id: str) -> None:
    """Null and absent are the same (docs/semantics.md §1): both readers agree on whether TimeGenerated is used."""
    harmless(f'{{"EventID":{event_id},"TimeGenerated":"2026-03-02T08:00:00Z"}}'.encode())
