"""Seed records: every shape of the generator, the samples of the repository, and hand-made edge cases."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import zstandard

from paths import DATA, SAMPLE
from streamdetect.synthetic import Beacon, Scenario, lines

MONDAY_8_MS = 1_772_409_600_000 + 8 * 3_600_000


@cache
def seeds() -> tuple[bytes, ...]:
    """All seed records, always in the same order."""
    return (*_generated(), *_samples(), *edges())


def _generated() -> Iterator[bytes]:
    """Half a busy hour of each shape, with a beacon on every host, so that all sub-shapes contain events that count."""
    for shape, hosts in (("defend", 4), ("sysmon-raw", 8), ("sysmon-ecs", 8), ("mixed", 40)):
        plan = Scenario(
            hosts=hosts,
            hours=0.5,
            start_ms=MONDAY_8_MS,
            beacons=(Beacon(5_000, 1_000, hosts=hosts),),
            seed=7,
            shape=shape,
            events_per_host_hour=1200 // hosts,
        )
        yield from (line.rstrip(b"\n") for line in lines(plan))


def _samples() -> Iterator[bytes]:
    for path in sorted((DATA / "shapes").glob("*.jsonl")):
        yield from path.read_bytes().splitlines()
    for line in (DATA / "esql-cases.jsonl").read_bytes().splitlines():
        yield as_json(json.loads(line)["document"])
    with SAMPLE.open("rb") as compressed, zstandard.ZstdDecompressor().stream_reader(compressed) as plain:
        yield from (line.rstrip(b"\n") for line in islice(io.BufferedReader(plain), 200))


def edges() -> Iterator[bytes]:
    """Documents that count, with nested and dotted names, and edge cases of JSON."""
    defend = {
        "@timestamp": "2026-03-02T08:00:00.000Z",
        "event.category": "network",
        "host.id": "h1",
        "host.os.family": "windows",
        "network.direction": "egress",
        "process.name": "chrome.exe",
        "process.entity_id": "e1",
        "destination.ip": "45.83.64.1",
        "destination.port": 443,
        "destination.address": "c2.example.net",
    }
    raw = {
        "@timestamp": "2026-03-02T08:00:09.000Z",
        "host.os.family": "windows",
        "winlog.provider_name": "Microsoft-Windows-Sysmon",
        "winlog.event_id": 3,
        "winlog.computer_name": "ws-1.corp.example",
    } | {f"winlog.event_data.{name}": value for name, value in event_data("2026-03-02 08:00:00.000").items()}
    for members in (defend, raw):
        for depth in range(4):
            yield as_json(_nested(members, depth))
            yield as_json({name: [[value]] for name, value in _nested(members, depth).items()})
    yield from (b"", b" ", b"null", b"[]", b"{}", b'""', b"1e400", b"-0", b"\xef\xbb\xbf{}", b"[" * 2000)
    yield b"2026-03-02T08:00:00.000Z {name=ws-1} Network connection detected"


def event_data(utc_time: str) -> dict[str, str]:
    """The event data of Sysmon for a connection that counts."""
    return {
        "UtcTime": utc_time,
        "ProcessGuid": "{aa-1}",
        "ProcessId": "12",
        "Image": "C:\\x\\chrome.exe",
        "User": "CORP\\anna",
        "Initiated": "true",
        "DestinationIp": "45.83.64.1",
        "DestinationPort": "443",
        "DestinationHostname": "c2.example.net",
    }


def as_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _nested(members: dict[str, Any], depth: int) -> dict[str, Any]:
    """The document with dotted names nested up to `depth` levels: 0 nests none, 3 all."""
    document: dict[str, Any] = {}
    for path, value in members.items():
        container = document
        *parents, name = path.split(".", depth)
        for parent in parents:
            container = container.setdefault(parent, {})
        container[name] = value
    return document
