"""Bytes to events: parity with Elasticsearch, every shape, both readers equal, and no exceptions."""

from __future__ import annotations

import ipaddress
import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import to_line
from paths import CAPTURES, DATA
from strategies import DataSet, data_sets
from streamdetect.config import Settings
from streamdetect.detect import COUNTED, Detector, Rule
from streamdetect.detect.alerts import iso
from streamdetect.detect.networks import Networks
from streamdetect.events import Decoder, Event, Refusal
from streamdetect.events.times import TimeReader
from streamdetect.events.values import parse_address
from streamdetect.model import MANY, EventContext, Partition

CASES = [json.loads(line) for line in (DATA / "esql-cases.jsonl").read_text().splitlines()]
SHAPES = json.loads((DATA / "shapes" / "expected.json").read_text())
LIMIT = 1_048_576


def decode(document: object, profile: str = "strict") -> Event | Refusal:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Decoder(profile, LIMIT).decode(raw)


def event_of(document: object, profile: str = "strict") -> Event:
    event = decode(document, profile)
    assert isinstance(event, Event), event
    return event


def context_of(event: Event) -> EventContext:
    return EventContext._make(event.context(event.flow(), event.kind()))


def read_in_both_profiles(raw: bytes) -> None:
    """Decode a record, and derive everything from an event."""
    for profile in ("strict", "resilient"):
        event = Decoder(profile, LIMIT).decode(raw)
        if isinstance(event, Event):
            event.context(event.flow(), event.kind())
            event.host()


def default_rule(profile: str) -> Rule:
    chosen = Settings.model_validate({"profile": profile})
    return Rule(chosen.rules[0], chosen)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['field']}-{CASES.index(case)}")
def test_strict_reads_as_elasticsearch_did(case: dict[str, Any]) -> None:
    """Counted, grouped, timed or rejected exactly as by a real Elasticsearch 8.19."""
    event = decode(case["document"])
    if case["rejected"]:
        assert isinstance(event, Refusal)
        assert event.reason == "no_time"
        return
    assert isinstance(event, Event)
    flow, kind = event.flow(), event.kind()
    counts = default_rule("strict").filter(flow, kind) is None
    assert counts == case["counts"]
    if counts:
        groups = [[address, kind.process_name] for address in flow.addresses]
        assert sorted(groups, key=str) == sorted(case["groups"], key=str)
        assert iso(event.time_ms) == case["timestamp"]


def records() -> list[tuple[str, int, bytes, dict[str, Any]]]:
    found = []
    for name, expected in SHAPES.items():
        lines = (DATA / "shapes" / name).read_bytes().splitlines()
        assert len(lines) == len(expected), name
        found += [(name, i, line, means) for i, (line, means) in enumerate(zip(lines, expected, strict=True))]
    return found


@pytest.mark.parametrize(("name", "number", "line", "means"), records(), ids=lambda value: str(value)[:24])
def test_every_shape_has_the_expected_meaning(
    name: str, number: int, line: bytes, means: dict[str, Any]
) -> None:
    """The shipped sample of each shape, compared with expectations derived by hand."""
    event = event_of(line, "resilient")
    flow, kind, context = event.flow(), event.kind(), context_of(event)
    found = {
        "time": iso(event.time_ms),
        "sensor": kind.sensor,
        "process_name": kind.process_name,
        "entity_id": context.entity_id,
        "executable": context.executable,
        "direction": flow.direction,
        "destination_ip": flow.ip,
        "destination_port": flow.port,
        "destination_domain": context.domain,
        "host": context.host_id,
        "pid": context.pid,
        "user_name": context.user_name,
        "user_domain": context.user_domain,
        "counts": default_rule("resilient").filter(flow, kind) is None,
    }
    assert {field: found[field] for field in means} == means, (name, number)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captures are not part of the project")
@pytest.mark.parametrize("name", ["nxlog-flat-empire-monologue.jsonl", "winlogbeat6-kafka-empire-opth.jsonl"])
def test_real_captures_decode_to_the_last_record(name: str) -> None:
    """Every record of both captures is a Sysmon network event."""
    lines = (CAPTURES / name).read_bytes().splitlines()
    assert len(lines) in (68, 137)
    for line in lines:
        kind = event_of(line, "resilient").kind()
        assert (kind.sensor, kind.category) == ("sysmon", "network")


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.sampled_from(["strict", "resilient"]))
def test_both_readers_agree(data_set: DataSet, profile: str) -> None:
    """The typed and the generic reader return the same for every document."""
    decoder = Decoder(profile, LIMIT)
    for record in [record for partition in data_set.partitions for record in partition]:
        raw = record.encode() if isinstance(record, str) else json.dumps(record).encode()
        typed = decoder.decode(raw)
        generic = decoder._decode_generic(raw)
        if isinstance(typed, Refusal) or isinstance(generic, Refusal):
            assert typed == generic
            continue
        assert (typed.time_ms, typed.process_name) == (generic.time_ms, generic.process_name)
        assert (typed.flow(), typed.kind()) == (generic.flow(), generic.kind())
        assert context_of(typed) == context_of(generic)
        assert typed.host() == generic.host()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "not_json"),
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"@timestamp": NaN}', "not_json"),
        (b'{"@timestamp": 1, "x": "\xff"}', "not_json"),
        (b'{"@timestamp": 1, "x": "\\ud800"}', "not_json"),
        (b'{"@timestamp": 1e400, "x": "\\ud800"}', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"x":' * 2000 + b"1" + b"}" * 2000, "not_json"),
        (b"[]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"1e400", "not_an_object"),
        (b"{}", "no_time"),
        (b'{"@timestamp": true}', "no_time"),
        (b'{"@timestamp": [1, 2]}', "no_time"),
        (b'{"@timestamp": 1e400}', "no_time"),
        (b'{"@timestamp": {"a": 1}}', "no_time"),
        (b'{"@timestamp": 1}' + b" " * LIMIT, "too_large"),
    ],
    ids=range(18),
)
def test_records_without_an_event_are_refused_with_a_reason(raw: bytes | None, reason: str) -> None:
    """Each refusal has a reason code and a detail, in both profiles."""
    for profile in ("strict", "resilient"):
        refusal = Decoder(profile, LIMIT).decode(raw)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == reason
        assert refusal.detail


def test_the_plain_codec_of_logstash_is_refused_with_a_remedy() -> None:
    """The refusal of a line of Logstash's default codec says how to correct its output."""
    refusal = decode(b"2026-03-02T00:00:00.000Z {name=WS-042} Network connection detected")
    assert isinstance(refusal, Refusal)
    assert "codec => json" in refusal.detail


def test_numbers_in_text_fields_keep_their_text() -> None:
    """A keyword field keeps the JSON text of a number: 1.50 is not 1.5."""
    raw = b'{"@timestamp": 1, "process": {"name": "chrome.exe", "entity_id": 1.50}, "host": {"id": [1e2, true]}}'
    event = event_of(raw)
    context = context_of(event)
    assert context.processes == ("1.50",)
    assert context.hosts == ("1e2", "true")


@pytest.mark.parametrize("depth", [300, 700, 1000, 5000])
@pytest.mark.parametrize(
    "field", ["@timestamp", "process.name", "process.entity_id", "event.category", "destination.port"]
)
def test_deep_nesting_does_not_raise(field: str, depth: int) -> None:
    """Arrays in arrays in a field that is read: an event or a refusal, and the context can be derived."""
    base = '"@timestamp":"2026-03-02T00:00:00Z",' if field != "@timestamp" else ""
    nested = "[" * depth + '"443"' + "]" * depth
    raw = f'{{{base}"process":{{"name":"chrome.exe","pid":1.5}},"x":{nested},"{field}":{nested}}}'.encode()
    read_in_both_profiles(raw)


def nested(kinds: str, depth: int) -> str:
    """Nested arrays and objects, repeating the sequence `kinds`."""
    levels = (kinds * depth)[:depth]
    opening = "".join('{"":' if kind == "{" else "[" for kind in levels)
    return opening + "1" + "".join("}" if kind == "{" else "]" for kind in reversed(levels))


@pytest.mark.parametrize("spare", [0, 700, 5_000])
@pytest.mark.parametrize("kinds", ["[", "{", "[{", "[[[[[[{"])
def test_the_nesting_limit_is_1024_for_every_reader(kinds: str, spare: int) -> None:
    """The document is the first level. The typed reader would accept more levels, which must not matter."""
    for depth, is_json in ((1_023, True), (1_024, False)):
        raw = f'{{"@timestamp":1,"process":{{"name":"a"}},"x":{nested(kinds, depth)},"y":"{"z" * spare}"}}'
        assert isinstance(decode_with_deep_stack(raw.encode()), Event) == is_json


def decode_with_deep_stack(raw: bytes) -> Event | Refusal:
    """Decode with a higher recursion limit, which up to Python 3.11 is also msgspec's nesting limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5_000)
    try:
        return decode(raw)
    finally:
        sys.setrecursionlimit(limit)


def test_objects_in_nested_arrays_are_found() -> None:
    """The fields of an object inside 900 arrays are found."""
    raw = b'{"@timestamp":1,"destination":' + b"[" * 900 + b'{"port":443}' + b"]" * 900 + b"}"
    assert event_of(raw).flow().port == 443


def test_integers_of_thousands_of_digits_are_json() -> None:
    """Accepted although Python does not convert them: malformed as a port, missing as a keyword, ignored elsewhere."""
    digits = b"9" * 5000
    raw = (
        b'{"@timestamp":1,"process":{"name":"chrome.exe"},"destination":{"port":[443,'
        + digits
        + b']},"x":'
        + digits
        + b"}"
    )
    assert event_of(raw).flow().port == 443


@pytest.mark.parametrize("number", ["-9223372036854775809", "9223372036854775808", "1" + "0" * 400, "-1e400"])
def test_a_port_beyond_64_bits_is_malformed(number: str) -> None:
    """Also one that a double rounds into 64 bits: it is dropped, and 443 is the only value."""
    for port in (f"[443,{number}]", number):
        raw = f'{{"@timestamp":1,"destination":{{"port":{port}}}}}'.encode()
        assert event_of(raw).flow().port == (443 if "443" in port else None)


def test_a_number_that_is_too_long_for_a_keyword_is_missing() -> None:
    """1,026 characters of JSON text are missing; as a double it would be 1.0, and a second value."""
    raw = b'{"@timestamp":1,"event":{"category":["network",0.' + b"9" * 1_024 + b"]}}"
    assert event_of(raw).kind().category == "network"


def test_utf16_is_not_json() -> None:
    """A record is UTF-8; no reader detects encodings."""
    refusal = decode('{"@timestamp": 1, "x": 1e400}'.encode("utf-16"))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "not_json"


@pytest.mark.parametrize("first", [[], [None], None, "x" * 1025])
def test_an_empty_dataset_falls_back(first: object) -> None:
    """data_stream.dataset without a value is missing, so event.dataset is used (docs/semantics.md §1)."""
    document = {"@timestamp": 1, "data_stream": {"dataset": first}, "event": {"dataset": "other"}}
    assert event_of(document).kind().dataset == "other"


@pytest.mark.parametrize(
    "more",
    [
        {
            "data_stream.dataset": "endpoint.events.network",
            "event": {"category": ["network"], "dataset": "x"},
        },
        {"host": {"id": "h", "os": {"type": "x"}}, "host.os.family": "windows"},
        {"network": {"direction": "e" * 1025}, "network.direction": "egress"},
    ],
)
def test_a_fallback_does_not_hide_a_dotted_first_choice(more: dict[str, Any]) -> None:
    """A field that the typed reader does not see may still make the event count."""
    document = {
        "@timestamp": 1,
        "event": {"category": ["network"]},
        "host": {"id": "h", "os": {"family": "windows"}},
        "network": {"direction": "egress"},
        "process": {"name": "chrome.exe", "entity_id": "e"},
        "destination": {"ip": "45.83.64.1", "port": 443},
    }
    processor = Detector(Settings()).processor(Partition("a"))
    assert processor.accept(event_of(document | more, "resilient")) == COUNTED


def test_an_empty_image_is_missing() -> None:
    """Beats drops empty values, so the ECS name is used."""
    document = {
        "@timestamp": 1,
        "process": {"name": "chrome.exe"},
        "winlog": {
            "provider_name": "Microsoft-Windows-Sysmon",
            "event_id": 3,
            "event_data": {"Image": "", "UtcTime": "2026-03-02 00:00:00.000"},
        },
    }
    assert event_of(document).process_name == "chrome.exe"


def test_members_of_event_data_may_be_arrays() -> None:
    """Null and empty values are dropped, nested arrays are flattened, every value counts; objects are not values."""
    data = {
        "UtcTime": ["-", ["1970-01-01 00:00:01.000"]],
        "Image": ["C:\\x\\chrome.exe", None, ""],
        "ProcessGuid": ["{b}", ["{a}"], "{00000000-0000-0000-0000-000000000000}"],
        "ProcessId": [{"a": 1}],
        "Initiated": [True],
    }
    winlog = {"provider_name": "Microsoft-Windows-Sysmon", "event_id": 3, "event_data": data}
    event = event_of({"@timestamp": 0, "process": {"pid": 7}, "winlog": winlog}, "resilient")
    context = context_of(event)
    assert (event.time_ms, event.process_name) == (1_000, "chrome.exe")
    assert (context.executable, context.pid) == ("C:\\x\\chrome.exe", 7)
    assert (context.processes, context.entity_id) == (("a", "b"), ("{a}", "{b}"))
    assert event.flow().direction == "egress"


@pytest.mark.parametrize(
    ("data", "entity_id"),
    [('{"ProcessGuid":1.50}', "1.50"), ('{"ProcessGuid":"\\ud800"}', None), ('{"ProcessGuid":NaN}', None)],
)
def test_json_inside_a_text_is_read_like_json(data: str, entity_id: str | None) -> None:
    """Azure's EventData: numbers keep their text, and invalid JSON has no members."""
    channel = "Microsoft-Windows-Sysmon/Operational"
    event = event_of({"@timestamp": 1, "EventID": 3, "Channel": channel, "EventData": data})
    assert context_of(event).entity_id == entity_id


def test_a_host_that_is_a_text_is_not_a_host_name() -> None:
    """NXLog through Logstash: `host` is the receiver; the endpoint, whose clock made the time, is `Hostname`."""
    document = {
        "EventID": 3,
        "SourceName": "Microsoft-Windows-Sysmon",
        "UtcTime": "2026-03-02 00:00:00.000",
        "Image": "C:\\x\\chrome.exe",
        "Hostname": "ws-1",
        "host": "10.1.2.3",
    }
    assert [event_of(document, profile).host() for profile in ("strict", "resilient")] == ["ws-1", "ws-1"]


def test_dotted_and_nested_values_add_up() -> None:
    """A field given nested and dotted has both values, although the typed reader sees only one."""
    document = {"@timestamp": 1, "process": {"name": "chrome.exe"}, "process.name": "evil.exe"}
    assert event_of(document).kind().process_name is MANY


@pytest.mark.parametrize(
    ("text", "strict_ms", "resilient_ms"),
    [
        ("1970-01-01T00:00:01.0009Z", 1000, 1000),
        ("1970-01-01 00:00:01Z", None, 1000),
        ("1970-01-01T00:00:01.1234567891Z", None, 1123),
        ("1970-01-01T00:00:01,5", 1500, 1500),
        ("1970-01-01T01:00+01", 0, 0),
        ("1970-01-01T00:30:00-00:30", 3_600_000, 3_600_000),  # 30 min local + 30 min offset
        ("1970", 0, 0),
        ("10000", 10_000, 10_000),
        ("9999", 253_370_764_800_000, 253_370_764_800_000),  # four digits are a year
        ("0000-01-01T00:00:00Z", -62_167_219_200_000, -62_167_219_200_000),
        ("1970-02-30T00:00:00Z", None, None),
        ("1970-01-01T00:00:00.Z", None, None),
        ("1970-01-01T00:00:0\u0661.000Z", None, None),
        ("99999999999999999999", None, None),
        # 292 million years of 365.2425 days are 9,214,629,984 x 10^9 ms; 64 bits hold 9,223,372,036 x 10^9 ms
        ("9214629984000000000", 9_214_629_984_000_000_000, 9_214_629_984_000_000_000),
        ("-9214629984000000000", -9_214_629_984_000_000_000, -9_214_629_984_000_000_000),
        ("9214629984000000001", None, None),
        ("-9214629984000000001", None, None),
        ("9223372036854775807", None, None),
    ],
)
def test_times(text: str, strict_ms: int | None, resilient_ms: int | None) -> None:
    """Edge cases of the date format, twice each: the second reading uses the cache."""
    for resilient, expected in ((False, strict_ms), (True, resilient_ms)):
        reader = TimeReader(resilient=resilient)
        assert [reader.read(text), reader.read(text)] == [expected, expected]
        assert reader.read([text]) == expected


def test_the_format_of_sysmon_times_is_not_accepted_elsewhere_in_strict() -> None:
    """A UtcTime has a blank; a later @timestamp of the same minute with a blank is still refused in strict."""
    reader = TimeReader(resilient=False)
    assert reader.read_utc("2026-03-02 00:00:01.000") == 1_772_409_601_000
    assert reader.read("2026-03-02 00:00:01.000Z") is None
    assert reader.read_utc("2026-03-02 00:00:60.000") is None
    assert reader.read_utc("2026-03-02 00:00:0a.000") is None
    assert reader.read_utc("2026-02-30 00:00:00.000") is None


def test_cached_minutes_do_not_skip_validation() -> None:
    """Malformed seconds, digits or zones are refused although the minute is cached."""
    reader = TimeReader(resilient=False)
    assert reader.read("2026-03-02T00:00:01.000Z") == 1_772_409_601_000
    for bad in ("60.000Z", "5.0000Z", "01.00aZ", "01.1234567890Z", "01 000Z", "01.000z"):
        assert reader.read("2026-03-02T00:00:" + bad) is None
    assert reader.read("2026-03-02T00:00:01Z") == 1_772_409_601_000
    assert reader.read("2026-03-02T00:00:01.5Z") == 1_772_409_601_500
    assert reader.read("2026-03-02T00:00:01.05Z") == 1_772_409_601_050


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(CASES), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_raise(noise: bytes, case: dict[str, Any], place: int, byte: int) -> None:
    """Random bytes, and documents with one changed byte, are events or refusals, and events can be read."""
    changed = bytearray(to_line(case["document"]).encode())
    changed[place % len(changed)] = byte
    for raw in (noise, bytes(changed), bytes(changed[:place])):
        read_in_both_profiles(raw)


@given(
    st.from_regex(r"[0-9]{0,4}(\.[0-9]{0,4}){2,4}[ %\u0661x]?", fullmatch=True)
    | st.ip_addresses(v=4).map(str)
)
def test_ipv4_addresses_are_those_that_python_accepts(text: str) -> None:
    """Canonical unchanged, or malformed: leading zeros, too many digits or octets, blanks, other digits."""
    try:
        expected = str(ipaddress.IPv4Address(text))
    except ValueError:
        expected = None
    assert parse_address(text) == expected
    if expected is not None:
        assert (expected in Networks(["45.0.0.0/8"])) == expected.startswith("45.")
