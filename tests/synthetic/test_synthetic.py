"""Synthetic data: reproducible, in arrival order, as noisy as documented, and without beacons other than the planted.

This file has its own decoder, so that no error in `events/` hides one in `synthetic/`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Any, NamedTuple

import orjson
import pytest
import zstandard

from paths import DATA, ROOT, SAMPLE
from streamdetect.synthetic import SHAPES, Beacon, Scenario, documents, lines, parse_beacon, placements

HOUR_MS = 3_600_000
MORNING_MS = 1_772_409_600_000 + 8 * HOUR_MS  # a Monday, 08:00 UTC
SHAPE_FILES = DATA / "shapes"

# The plan in streamdetect/samples/README.md.
SAMPLE_SCENARIO = Scenario(
    hosts=40,
    hours=24,
    shape="mixed",
    seed=24,
    events_per_host_hour=40,
    beacons=(Beacon(25_000, 5_000), Beacon(25_000, 5_000, processes=2), Beacon(36_000, 7_200)),
)

NAMES = {"chrome.exe", "msedge.exe", "iexplore.exe", "firefox.exe", "svchost.exe"}
# The default hunt's networks; its /29 and /32 networks are within 192.0.0.0/24.
EXCLUDED = [
    ip_network(text)
    for text in (
        "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.31.196.0/24", "192.52.193.0/24", "192.168.0.0/16", "192.88.99.0/24", "224.0.0.0/4",
        "100.64.0.0/10", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "240.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8",
    )
]  # fmt: skip


class CountedRecord(NamedTuple):
    """A record that the default hunt counts."""

    time_ms: int
    key: tuple[str, str, str]
    host: str
    process: str


@cache
def is_excluded(ip: str) -> bool:
    address = ip_address(ip)
    return any(address in network for network in EXCLUDED if network.version == address.version)


def raw_sysmon(document: dict[str, Any]) -> tuple[str, dict[str, Any], str] | None:
    """(event id, event data, computer) of a Sysmon record that no pipeline has processed."""
    winlog, event = document.get("winlog", {}), document.get("Event")
    if "event_data" in winlog:
        return str(winlog["event_id"]), winlog["event_data"], winlog["computer_name"]
    if "event_data" in document:
        return str(document["event_id"]), document["event_data"], document["computer_name"]
    if event:
        found, data = event["System"]["EventID"], event["EventData"]
        found = found["#text"] if isinstance(found, dict) else found
        if "Data" in data:
            data = {item["@Name"]: item.get("#text", "") for item in data["Data"]}
        return str(found), data, event["System"]["Computer"]
    if "EventData" in document:
        return str(document["EventID"]), json.loads(document["EventData"]), document["Computer"]
    if "EventID" in document:
        return str(document["EventID"]), document, document["Hostname"]
    return None


def counted(time_ms: int, document: dict[str, Any]) -> CountedRecord | None:
    raw = raw_sysmon(document)
    if raw:
        code, data, host = raw
        if code != "3" or str(data["Initiated"]).lower() != "true":
            return None
        name, process = data["Image"].rpartition("\\")[2], data["ProcessGuid"]
        ip, port, sensor = data["DestinationIp"], int(data["DestinationPort"]), "sysmon"
    else:
        destination = document.get("destination", {})
        if "network" not in document["event"]["category"] or "ip" not in destination:
            return None
        if document["network"]["direction"] not in ("egress", "outbound"):
            return None
        name, process = document["process"].get("name"), document["process"]["entity_id"]
        ip, port = destination["ip"], destination["port"]
        sensor = "sysmon" if "winlog" in document else "endpoint"
        host = document["winlog"]["computer_name"] if sensor == "sysmon" else document["host"]["id"]
    if name not in NAMES or port == 53 or is_excluded(ip):
        return None
    return CountedRecord(time_ms, (str(ip_address(ip)), name, sensor), host, process)


def shape_of(document: dict[str, Any]) -> str:
    """The shape of a document, by its structure alone."""
    winlog, agent = document.get("winlog"), document.get("agent", {})
    if "Event" in document:
        return "evtx-dump" if "#attributes" in document["Event"] else "python-evtx"
    if "EventData" in document:
        return "azure-eventdata-string"
    if "EventID" in document:
        return "nxlog-flat"
    if "event_data" in document:
        return "winlogbeat6"
    if winlog and "event_data" not in winlog:
        return "sysmon-ecs-forwarded" if "tags" in document else f"ecs from {agent['version'][0]}"
    if winlog:
        shipper = "logstash" if "@version" in document else agent["type"]
        return f"raw from {shipper}" + (" forwarded" if "forwarded" in document.get("tags", ()) else "")
    if isinstance(document["event"]["category"], str):
        return "defend-scalars"
    whole = "ip" in document["host"]
    return (
        f"defend {'whole' if whole else 'small'} {'family' if 'family' in document['host']['os'] else 'type'}"
    )


def keys_meeting_the_hunt(scenario: Scenario) -> Iterator[tuple[str, str, str]]:
    """The keys for which the default hunt is true at any tick, by direct computation."""
    events: defaultdict[tuple[str, str, str], list[CountedRecord]] = defaultdict(list)
    for record in filter(None, (counted(*pair) for pair in documents(scenario))):
        events[record.key].append(record)
    for key, records in events.items():
        if any(
            hunt_is_true(records, tick)
            for tick in range(scenario.start_ms, scenario.end_ms + 300_001, 300_000)
        ):
            yield key


def hunt_is_true(records: list[CountedRecord], tick_ms: int) -> bool:
    window = [record for record in records if tick_ms - 24 * HOUR_MS <= record.time_ms < tick_ms]
    if len(window) < 480:  # 120 an hour x 4 h
        return False
    times = [record.time_ms for record in window]
    hours = (max(times) - min(times) + HOUR_MS // 2) // HOUR_MS
    single = len({record.host for record in window}) == len({record.process for record in window}) == 1
    return single and hours >= 4 and len(window) >= 120 * hours


def calls_of(scenario: Scenario, ip: str) -> list[int]:
    found = [counted(*pair) for pair in documents(scenario)]
    return sorted(record.time_ms for record in found if record and record.key[0] == ip)


# Reproducible


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_bytes(shape: str) -> None:
    """The same scenario twice gives the same bytes; another seed gives other data."""
    scenario = Scenario(hosts=5, hours=1, start_ms=MORNING_MS, shape=shape, beacons=(Beacon(25_000),))
    other = Scenario(hosts=5, hours=1, start_ms=MORNING_MS, shape=shape, beacons=(Beacon(25_000),), seed=2)
    assert list(lines(scenario)) == list(lines(scenario))
    assert list(lines(scenario)) != list(lines(other))


def test_hash_order_does_not_matter() -> None:
    """Two interpreters with different hash seeds give the same bytes."""
    code = (
        "import hashlib; from streamdetect.synthetic import *;"
        "scenario = Scenario(hosts=20, hours=1, beacons=(Beacon(9000),));"
        "print(hashlib.sha256(b''.join(lines(scenario))).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_sample_day_matches_its_scenario() -> None:
    """The shipped day equals the output of its README's scenario, byte for byte, on every Python and machine."""
    shipped = zstandard.ZstdDecompressor().decompress(SAMPLE.read_bytes())
    assert shipped == b"".join(lines(SAMPLE_SCENARIO))


def test_lines_are_documents() -> None:
    """A line is its document as JSON, terminated by a line feed."""
    scenario = Scenario(hosts=20, hours=0.25, start_ms=MORNING_MS)
    for line, (_, document) in zip(lines(scenario), documents(scenario), strict=True):
        assert line.endswith(b"}\n")
        assert line.count(b"\n") == 1
        assert orjson.loads(line) == document


# Order, and streaming


@pytest.mark.parametrize("shape", SHAPES)
def test_order_of_arrival(shape: str) -> None:
    """Not sorted, as in a real stream, but never more than 2 minutes behind the newest event time."""
    newest_ms = behind_ms = disorder = 0
    scenario = Scenario(
        hosts=20, hours=4, start_ms=MORNING_MS + 123_457, shape=shape, beacons=(Beacon(5_000),)
    )
    for time_ms, _ in documents(scenario):
        assert scenario.start_ms <= time_ms < scenario.end_ms
        behind_ms = max(behind_ms, newest_ms - time_ms)
        disorder += time_ms < newest_ms
        newest_ms = max(newest_ms, time_ms)
    assert disorder > 100
    assert 10_000 < behind_ms <= 120_000


def test_generation_is_streaming() -> None:
    """A scenario of eleven years yields its first documents without generating the rest."""
    stream = documents(Scenario(hosts=3, hours=100_000))
    assert len([next(stream) for _ in range(100)]) == 100


# Noise


@pytest.mark.parametrize("shape", SHAPES)
def test_share_of_filtered_records(shape: str) -> None:
    """Over a day, the default hunt filters about 80 % of the background."""
    scenario = Scenario(hosts=20, hours=24, shape=shape, events_per_host_hour=60)
    found = [counted(*pair) for pair in documents(scenario)]
    assert 0.75 < found.count(None) / len(found) < 0.85
    # 20 hosts x 24 h x 60 an hour = 28,800
    assert len(found) == pytest.approx(28_800, rel=0.1)


def test_every_shape_appears_in_mixed() -> None:
    """Twenty hosts write every shape; each host writes one."""
    by_shape: defaultdict[str, int] = defaultdict(int)
    for _, document in documents(Scenario(hosts=20, hours=2, start_ms=MORNING_MS)):
        by_shape[shape_of(document)] += 1
    assert set(by_shape) == {
        "defend whole family", "defend small family", "defend small type", "defend-scalars",
        "ecs from 7", "ecs from 8", "sysmon-ecs-forwarded",
        "raw from winlogbeat", "raw from winlogbeat forwarded", "raw from filebeat", "raw from logstash",
        "winlogbeat6", "nxlog-flat", "evtx-dump", "python-evtx", "azure-eventdata-string",
    }  # fmt: skip
    assert min(by_shape.values()) > 50


def test_defend_documents_have_a_realistic_size() -> None:
    """About 1.5 KB, with scalar and array actions, 7-digit timestamps, and DNS lookups without an address."""
    scenario = Scenario(hosts=10, hours=2, start_ms=MORNING_MS, shape="defend")
    found = [document for _, document in documents(scenario)]
    sizes = [len(orjson.dumps(document)) for document in found]
    assert 1300 < sum(sizes) / len(sizes) < 1600
    assert {type(document["event"]["action"]) for document in found} == {str, list}
    assert {len(document["@timestamp"]) for document in found} == {len("2026-03-02T08:00:00.1234567Z")}
    lookups = [document for document in found if "dns" in document]
    assert lookups
    assert not any("ip" in document["destination"] for document in lookups)


def test_popular_destinations_are_shared() -> None:
    """Nearly all hosts contact the most popular destination; most destinations have one or two hosts."""
    hosts: defaultdict[str, set[str]] = defaultdict(set)
    scenario = Scenario(hosts=30, hours=24, shape="defend")
    for record in filter(None, (counted(*pair) for pair in documents(scenario))):
        hosts[record.key[0]].add(record.host)
    amounts = sorted(map(len, hosts.values()))
    assert amounts[-1] >= 28
    assert amounts[len(amounts) // 2] <= 3


# Beacons


@pytest.mark.parametrize("shape", SHAPES)
def test_beacons_are_as_specified(shape: str) -> None:
    """From hour 1: one record per call, every gap within period +- jitter, one host and one process."""
    scenario = Scenario(
        hosts=6, hours=8, shape=shape, beacons=(Beacon(25_000, 5_000),), events_per_host_hour=5
    )
    (placement,) = placements(scenario)
    times = calls_of(scenario, placement.destination.ip)
    assert scenario.start_ms + HOUR_MS <= placement.first_ms < scenario.start_ms + HOUR_MS + 25_000
    # Call k is at first + 25 k s + 0 to 5 s, before 7 h = 25,200 s have passed; first is 0 to 25 s after the start. So
    # 25 k + 5 < 25,200 - (0 to 25): k stays below 1007.8 - (0 to 1). That is 1,007 or 1,008 calls.
    assert len(times) == placement.calls
    assert placement.calls in (1007, 1008)
    gaps = [after - before for before, after in pairwise(times)]
    assert all(20_000 <= gap <= 30_000 for gap in gaps)
    assert min(gaps) < 22_000
    assert max(gaps) > 28_000
    assert times[-1] < scenario.end_ms


def test_a_short_scenario_beacons_from_its_start() -> None:
    """Under 6 hours there is no quiet hour: 1 h / 10 s = 360 calls, the first less than 10 s after the start."""
    scenario = Scenario(hosts=2, hours=1, beacons=(Beacon(10_000),), events_per_host_hour=0)
    assert len(list(documents(scenario))) == placements(scenario)[0].calls in (359, 360)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_planted_beacons_meet_the_default_hunt(shape: str, seed: int) -> None:
    """25 s is 144 calls an hour, enough; 36 s is 100, too few; two processes or two hosts exceed the limit."""
    beacons = (
        Beacon(25_000, 5_000),
        Beacon(10_000, 9_000),
        Beacon(36_000, 7_200),
        Beacon(10_000, 0, processes=2),
        Beacon(10_000, 0, hosts=2),
    )
    scenario = Scenario(hosts=12, hours=10, start_ms=MORNING_MS, shape=shape, seed=seed, beacons=beacons)
    wanted = {placement.destination.ip for placement in placements(scenario)[:2]}
    assert {ip for ip, _, _ in keys_meeting_the_hunt(scenario)} == wanted


@pytest.mark.parametrize("shape", ["defend", "sysmon-ecs"])
def test_a_single_busy_host_does_not_meet_the_hunt(shape: str) -> None:
    """One host with 3,000 events an hour, whose destinations no other host contacts."""
    scenario = Scenario(hosts=1, hours=9, start_ms=MORNING_MS, shape=shape, events_per_host_hour=3000)
    assert set(keys_meeting_the_hunt(scenario)) == set()


def test_the_sample_day_has_one_beacon_that_is_detected() -> None:
    """Of the three that are planted, only the first meets the hunt: a browser recorded by Elastic Defend."""
    planted = placements(SAMPLE_SCENARIO)
    assert list(keys_meeting_the_hunt(SAMPLE_SCENARIO)) == [
        (planted[0].destination.ip, "chrome.exe", "endpoint")
    ]


# Arguments


@pytest.mark.parametrize(
    ("text", "period_ms", "jitter_ms"),
    [
        ("30s,20%", 30_000, 6_000),
        ("30s,5s", 30_000, 5_000),
        ("500ms, 0%", 500, 0),
        ("5m,0s", 300_000, 0),
        ("2h,30m", 7_200_000, 1_800_000),
        ("1d,99%", 86_400_000, 85_536_000),
    ],
)
def test_parse_beacon(text: str, period_ms: int, jitter_ms: int) -> None:
    assert parse_beacon(text) == Beacon(period_ms, jitter_ms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30s", "PERIOD,JITTER"),
        ("", "PERIOD,JITTER"),
        ("30,20%", "period .* must be a duration"),
        ("-30s,20%", "period .* must be a duration"),
        ("30s,20", "jitter .* must be a duration .*, or a share like 20%"),
        ("30s,5s,1", "jitter .* must be a duration"),
        ("30s,30s", "jitter must be shorter than its period"),
        ("30s,100%", "jitter must be shorter than its period"),
        ("0s,0%", "period must be at least 1 ms"),
        ("٣s,0%", "period .* must be a duration"),
    ],
)
def test_parse_beacon_errors(text: str, message: str) -> None:
    """The message names the invalid part and the expected form."""
    with pytest.raises(ValueError, match=message):
        parse_beacon(text)


@pytest.mark.parametrize(
    "change",
    [
        {"hosts": 0},
        {"hours": 0},
        {"hours": float("nan")},
        {"shape": "ecs"},
        {"events_per_host_hour": -1},
        {"hosts": 2, "beacons": (Beacon(1000, hosts=3),)},
    ],
)
def test_scenario_errors(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"host|hours|shape|events"):
        Scenario(**change)


# The shipped shapes


def test_shapes_have_an_expectation_for_each_record() -> None:
    """Decoding is tested with the decoder; this checks that files and expectations match."""
    expected = json.loads((SHAPE_FILES / "expected.json").read_text())
    assert set(expected) == {path.name for path in SHAPE_FILES.glob("*.jsonl")}
    for name, entries in expected.items():
        records = [orjson.loads(line) for line in (SHAPE_FILES / name).read_bytes().splitlines()]
        assert 3 <= len(records) <= 10
        assert len(entries) == len(records)
        for entry in entries:
            assert datetime.fromisoformat(entry["time"]).tzinfo is UTC
            assert isinstance(entry["counts"], bool)
