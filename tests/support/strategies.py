"""Hypothesis strategies: small adversarial data sets that produce alerts, to compare the fast code with the oracle.

    @given(data_sets())
    def test_...(data_set):
        partitions, settings = data_set

Hypothesis draws the structure (settings, the scenario of each beacon, the disturbances); a seed and a random.Random
generate the records, so a data set takes milliseconds. A beacon's *scenario* makes its key become true and stop being
true for a known reason. *Disturbances* are inserted into the partitions at boundary cases: exactly at a watermark,
at the far end of the window, just above the allowed jump.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st

from oracle import HOUR_MS, SYSMON, Json, PartitionClock, default_rule, default_settings, time_text

MINUTE_MS = 60_000
BASE_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
ZERO_GUID = "{00000000-0000-0000-0000-000000000000}"


class DataSet(NamedTuple):
    """The arguments of replay() in tests/support/oracle.py."""

    partitions: list[list[Any]]
    settings: Json


# -------------------------------------------------------------------------------------------- synthetic hosts


@dataclass(frozen=True)
class Host:
    """A host under each of its names; without `own_block`, its shipper sends no host id."""

    id: str
    name: str
    computer: str
    agent: str
    user: str
    own_block: bool = True


HOSTS = (
    Host("9a1f-aa01", "WS-001", "WS-001.corp.example", "agent-1", "CORP\\anna"),
    Host("{9A1F-BB02}", "ws-002", "WS-002.corp.example", "agent-2", "CORP\\jörg\\adm", own_block=False),
    Host("9a1f-cc03", "SRV-ÄÖ3", "SRV-ÄÖ3", "agent-3", "NT AUTHORITY\\SYSTEM"),
    Host("9A1F-dd04", "ws-004.corp.example", "ws-004.corp.example", "agent-4", "local"),
)
COLLECTOR = Host("9a1f-ee05", "WEC01", "WEC01.corp.example", "agent-5", "CORP\\wec")

# (address, ip): as Elastic Defend writes them, plus notations of other producers
DESTINATIONS = (
    ("45.83.64.1", "45.83.64.1"),
    ("45.83.64.7", "45.83.64.7"),
    ("2001:db8::7", "2001:DB8:0:0:0:0:0:7"),
    ("C2.Example.net", "9.9.9.9"),
    ("::ffff:8.8.8.8", "::ffff:8.8.8.8"),
)
PROCESSES = ("chrome.exe", "svchost.exe", "firefox.exe")


@dataclass(frozen=True)
class Spec:
    """One record before it is rendered in a shape."""

    time: int
    arrival: int
    shape: str
    address: str
    ip: str
    process: str
    host: Host
    entity: str | None
    pid: int
    variation: str = ""
    with_host: bool = True
    port: int = 443


# ----------------------------------------------------------------------------------------------------- shapes


def nested(members: dict[str, Any]) -> Json:
    """`{"a.b": 1}` becomes `{"a": {"b": 1}}`; members that are None are left out."""
    document: Json = {}
    for path, value in members.items():
        if value is None:
            continue
        *parents, name = path.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return document


def ecs_members(spec: Spec) -> Json:
    """The fields of every ECS document, by dotted name."""
    domain, _, user = spec.host.user.rpartition("\\")
    host = spec.host if spec.with_host else None
    return {
        "@timestamp": time_text(spec.time),
        "event.category": ["network"],
        "host.id": host and host.id,
        "host.name": host and host.name,
        "host.os.family": "windows",
        "host.os.type": "windows",
        "network.direction": "egress",
        "process.name": spec.process,
        "process.entity_id": spec.entity,
        "process.pid": spec.pid,
        "process.executable": f"C:\\Program Files\\{spec.process}",
        "user.name": user,
        "user.domain": domain or None,
        "destination.ip": spec.ip,
        "destination.port": spec.port,
    }


def defend(spec: Spec, rng: Random, profile: str) -> Json:
    members = ecs_members(spec) | {
        "destination.address": spec.address,
        "data_stream.dataset": "endpoint.events.network",
        "event.action": "connection_attempted",
        "agent.id": spec.host.agent if spec.with_host else None,
    }
    return nested(with_variation(members, spec, rng, profile))


def dotted(spec: Spec, rng: Random, profile: str) -> Json:
    """Elastic Defend with dotted names at random depths and objects in arrays."""
    members = ecs_members(spec) | {
        "destination.address": spec.address,
        "event.dataset": "endpoint.events.network",
    }
    members = with_variation(members, spec, rng, profile)
    flat = {name for name in members if rng.random() < 0.5 or name == "@timestamp"}
    document = nested({name: value for name, value in members.items() if name not in flat})
    if isinstance(document.get("process"), dict) and rng.random() < 0.5:
        document["process"] = [{name: value} for name, value in document["process"].items()]
    return document | {name: members[name] for name in flat if members[name] is not None}


def sysmon_ecs(spec: Spec, rng: Random, profile: str) -> Json:
    """Sysmon after the pipeline: without destination.address and without its own host id."""
    members = ecs_members(spec) | {
        "data_stream.dataset": "windows.sysmon_operational",
        "event.provider": SYSMON,
        "event.module": "sysmon" if rng.random() < 0.5 else None,
        "winlog.provider_name": SYSMON if rng.random() < 0.5 else None,
        "winlog.event_id": "3",
        "winlog.computer_name": spec.host.computer if spec.with_host else None,
        "destination.domain": rng.choice((None, "-", "c2.example.net")),
    }
    if profile == "resilient":
        members |= {"host.os.family": None, "host.os.type": None}
    return nested(with_variation(members, spec, rng, profile))


def event_data(spec: Spec, rng: Random) -> Json:
    """Event data as Sysmon writes it: text only, IPv6 uncompressed, empty values dropped."""
    data = {
        "UtcTime": time_text(spec.time)[:-1].replace("T", " "),
        "ProcessGuid": spec.entity or rng.choice((ZERO_GUID, None)),
        "ProcessId": str(spec.pid),
        "Image": f"C:\\Windows\\System32\\{spec.process}",
        "User": spec.host.user,
        "Initiated": "true",
        "DestinationIp": spec.ip,
        "DestinationPort": str(spec.port),
        "DestinationHostname": rng.choice((None, "-", "c2.example.net")),
    }
    return {name: value for name, value in data_with_variation(data, spec, rng).items() if value is not None}


def write_time(spec: Spec, data: Json, rng: Random) -> Any:
    """The log's own timestamp, seconds after UtcTime or wrong; the event's time if UtcTime is missing or unreadable."""
    if "UtcTime" not in data or data["UtcTime"] == "unreadable":
        return time_text(spec.time)
    return rng.choice((time_text(spec.time + rng.randrange(25_000)), time_text(0), None, "yesterday"))


def host_block(spec: Spec, rng: Random, profile: str) -> Json | None:
    """The shipper's host block: the endpoint's own, or the collector's."""
    os = {"family": "windows", "type": "windows"} if profile == "strict" or rng.random() < 0.5 else {}
    if spec.variation == "collected":
        return {"id": COLLECTOR.id, "name": COLLECTOR.name, "os": os}
    if not spec.with_host or not (spec.host.own_block or profile == "strict"):
        return {"os": os}
    return {"id": spec.host.id, "name": spec.host.name, "os": os}


def winlogbeat8(spec: Spec, rng: Random, profile: str) -> Json:
    data = event_data(spec, rng)
    number = rng.choice(({"winlog.event_id": 3}, {"winlog.event_id": "3"}, {"event.code": "3"}))
    members = {
        "@timestamp": write_time(spec, data, rng),
        "event.provider": SYSMON,
        "winlog.provider_name": SYSMON,
        "winlog.computer_name": spec.host.computer if spec.with_host else None,
        "winlog.event_data": data,
        "agent.id": COLLECTOR.agent if spec.variation == "collected" else spec.host.agent,
        "host": host_block(spec, rng, profile),
        "tags": ["forwarded"] if spec.variation == "forwarded" else None,
    }
    return nested(members | number)


def winlogbeat6(spec: Spec, rng: Random, profile: str) -> Json:
    data = event_data(spec, rng)
    members = {
        "@timestamp": write_time(spec, data, rng),
        "source_name": SYSMON,
        "event_id": 3,
        "computer_name": spec.host.computer if spec.with_host else None,
        "event_data": data,
        "host": host_block(spec, rng, profile) if profile == "strict" else {"name": COLLECTOR.name},
        "user": {"name": "SYSTEM", "domain": "NT AUTHORITY", "identifier": "S-1-5-18"},
    }
    return nested(members)


def nxlog(spec: Spec, rng: Random, _: str) -> Json:
    """Flat, and `host` is a string: there is no host block, so strict never counts one."""
    data = event_data(spec, rng)
    members = {
        "@timestamp": write_time(spec, data, rng),
        "SourceName": SYSMON,
        "EventID": 3,
        "Hostname": spec.host.computer if spec.with_host else None,
        "host": "10.1.2.3",
        "ProcessID": 3168,
        "Severity": "INFO",
    }
    return nested(members) | data


SHAPES: dict[str, Callable[[Spec, Random, str], Json]] = {
    "defend": defend,
    "dotted": dotted,
    "sysmon_ecs": sysmon_ecs,
    "winlogbeat8": winlogbeat8,
    "winlogbeat6": winlogbeat6,
    "nxlog": nxlog,
}

# -------------------------------------------------------------------------------------------------- variations

LONG = "x" * 1025


def time_forms(spec: Spec, rng: Random, profile: str) -> Any:
    """The same millisecond in one of the accepted notations."""
    text = time_text(spec.time)
    forms: list[Any] = [
        text[:-1] + "4999Z",
        text[:-1],
        text.replace(".", ","),
        time_text(spec.time + 2 * HOUR_MS)[:-1] + "+02:00",
        time_text(spec.time - 5 * HOUR_MS)[:-1] + "-0500",
        spec.time,
        str(spec.time),
        f"{spec.time}.9",
        [text],
    ]
    if profile == "resilient":
        forms += [text.replace("T", " "), text[:-1] + "1234567891Z"]
    return rng.choice(forms)


def ip_notations(ip: str) -> list[Any]:
    """The same address in other notations, and malformed ones."""
    zone = f"{ip}%5" if ":" in ip else f"{ip}%1"  # a zone is dropped from IPv6 only
    return [[ip, ip], [ip, "nope"], [ip, "1.1.1.1"], None, zone, [zone, ip]]


def unusable_times(spec: Spec, profile: str) -> list[Any]:
    """Unusable times; in strict, also those that only resilient accepts."""
    text = time_text(spec.time)
    resilient_only = [text.replace("T", " "), text[:-1] + "1234567Z"] if profile == "strict" else []
    return [None, "2026-03-02T24:00:00Z", "", [], text.lower(), True, *resilient_only]


def with_variation(members: Json, spec: Spec, rng: Random, profile: str) -> Json:
    """Applies one variation to an ECS document: values that still count, or no longer do, by §1 and §7."""
    process, host, port, ip = spec.process, spec.host, spec.port, spec.ip
    odd_addresses: list[Any] = [None, [], spec.address.upper(), LONG, ""]
    choices: dict[str, list[Json]] = {
        "category": [
            {"event.category": value}
            for value in ("network", ["network", "network"], [["network"]], ["network", "process"], None)
        ],
        "os": [
            {"host.os.family": None, "host.os.type": "windows"},
            {"host.os.family": None, "host.os.type": "linux"},
            {"host.os.family": ["windows", "linux"]},
            {"host.os.family": None, "host.os.type": None},
        ],
        "direction": [
            {"network.direction": direction} for direction in ("outbound", ["egress", "outbound"], "ingress")
        ],
        "name": [
            {"process.name": value}
            for value in (process.upper(), [process, process], [process, LONG], [process, "cmd.exe"])
        ],
        "port": [
            {"destination.port": value}
            for value in (str(port), f"+{port}.9", [port, "x"], [port, port], 53.9, True, "0x1bb")
        ],
        "ip": [{"destination.ip": value} for value in ip_notations(ip)],
        "dataset": [
            {"data_stream.dataset": None, "event.dataset": None},
            {"data_stream.dataset": "system.security"},
            {"data_stream.dataset": [], "event.dataset": members.get("data_stream.dataset")},
        ],
        "id": [
            {"host.id": value}
            for value in (f"{{{host.id.strip('{}').upper()}}}", [host.id, host.id], LONG, [host.id, LONG])
        ],
        "two_ids": [{"host.id": [host.id, "another"]}],
        "entity": [{"process.entity_id": value} for value in (None, [spec.entity, spec.entity], 17)],
        "two_entities": [{"process.entity_id": [spec.entity or "p", "another"]}],
        "pid": [{"process.pid": value} for value in (None, "x", 7.5)],
        "user": [{"user.name": None}, {"user.name": None, "user.domain": None}],
        "domain": [{"destination.domain": value} for value in ("-", "", "cdn.example")],
        "address": [{"destination.address": value} for value in odd_addresses],
        "two_addresses": [{"destination.address": [spec.address, "second.example", spec.address]}],
        "time": [{"@timestamp": time_forms(spec, rng, profile)}],
        "no_time": [{"@timestamp": value} for value in unusable_times(spec, profile)],
        "forwarded": [{"tags": ["forwarded"]}],
        "agent_only": [{"host.id": None, "winlog.computer_name": None}],
    }
    return members | rng.choice(choices[spec.variation]) if spec.variation in choices else members


def data_with_variation(data: Json, spec: Spec, rng: Random) -> Json:
    """The same for Sysmon event data."""
    choices: dict[str, list[Json]] = {
        "direction": [{"Initiated": "false"}, {"Initiated": None}, {"Initiated": True}],
        "name": [{"Image": "System"}, {"Image": f"D:\\{spec.process.upper()}"}, {"Image": None}],
        "port": [{"DestinationPort": value} for value in (spec.port, "53", "x", None)],
        "ip": [{"DestinationIp": value} for value in ("10.0.0.1", "nope", None)],
        "entity": [{"ProcessGuid": ZERO_GUID}, {"ProcessGuid": str(spec.entity).upper()}],
        "pid": [{"ProcessId": value} for value in (spec.pid, "x", None)],
        "user": [{"User": value} for value in ("lonely", "A\\B\\C", None)],
        "time": [{"UtcTime": "unreadable"}, {"UtcTime": None}],
    }
    return data | rng.choice(choices[spec.variation]) if spec.variation in choices else data


# fmt: off
VARIATIONS = (
    "category", "os", "direction", "name", "port", "ip", "dataset", "id", "two_ids", "entity",
    "two_entities", "pid", "user", "domain", "address", "two_addresses", "time", "no_time",
    "collected", "forwarded", "agent_only",
)
# variations for every record of a beacon: it still counts in at least one profile
HARMLESS_VARIATIONS = (
    "os", "direction", "name", "ip", "dataset", "id", "address", "two_addresses",
    "time", "domain", "user", "pid", "collected", "forwarded", "agent_only",
)
# fmt: on

# --------------------------------------------------------------------------------------------------- settings

# interval and lookback in minutes
SPANS = (
    (1, 30),
    (2, 60),
    (5, 60),
    (5, 120),
    (10, 180),
    (10, 300),
    (15, 240),
    (30, 240),
    (30, 480),
    (60, 240),
)


@dataclass(frozen=True)
class Plan:
    """What Hypothesis draws; the seed determines the rest."""

    seed: int
    settings: Json
    partitions: int
    scenarios: list[str]
    disturbances: list[str]
    variation_rate: float
    quiet: bool
    ties: bool
    timestamps: bool
    tail: float
    rng: Random = field(compare=False, repr=False, default_factory=Random)  # build() starts it from the seed

    @property
    def lookback_ms(self) -> int:
        return int(self.settings["lookback_ms"])

    @property
    def interval_ms(self) -> int:
        return int(self.settings["interval_ms"])


def exceptions() -> st.SearchStrategy[list[Json]]:
    """By address, network, process and host, alone and combined."""
    names = [address for address, _ in DESTINATIONS] * 2 + [
        "C2.Example.net",
        "c2.example.NET",
        "45.83.64.0/30",
        "2001:db8::/32",
    ]
    destination = st.sampled_from(names)
    process = st.sampled_from(PROCESSES)
    host = st.sampled_from([text for host in HOSTS for text in (host.id, host.name, host.computer)])
    one = st.one_of(
        st.fixed_dictionaries({"destination": destination}),
        st.fixed_dictionaries({"process": process}),
        st.fixed_dictionaries({"host": host}),
        st.fixed_dictionaries({"destination": destination, "process": process}),
        st.fixed_dictionaries({"destination": destination, "host": host}),
    )
    return st.lists(one, max_size=4)


@st.composite
def rules(draw: st.DrawFn, lookback_ms: int) -> list[Json]:
    """One to three rules; the first counts everything, the others differ in thresholds and exceptions."""
    longest = min(3, (lookback_ms + 1_799_999) // HOUR_MS)
    found = []
    for number in range(draw(st.sampled_from((1, 1, 2, 2, 3)))):
        rule = default_rule(
            id=f"rule-{number}",
            name=f"Rule {number}",
            enabled=number == 0 or draw(st.integers(0, 5)) > 0,
            severity=draw(st.sampled_from((21, 47, 73, 99))),
            min_connections_per_hour=draw(st.integers(1, 8)),
            min_duration_hours=draw(st.sampled_from(range(longest + 1))),
            max_hosts=draw(st.sampled_from((1, 1, 1, 2))),
            max_processes=draw(st.sampled_from((1, 1, 1, 2))),
            renotify_ms=draw(st.sampled_from((1, 5, 20, 60, 90, 360))) * MINUTE_MS,
            exceptions=draw(exceptions()) if number or draw(st.integers(0, 5)) == 0 else [],
        )
        if number and draw(st.booleans()):
            rule["processes"] = [draw(st.sampled_from(PROCESSES)), "CMD.exe"]
        if number and draw(st.integers(0, 3)) == 0:
            rule["extra_excluded_networks"] = ["9.9.9.9", "2001:db8::/64"]
        found.append(rule)
    return found


@st.composite
def settings_of(draw: st.DrawFn) -> Json:
    interval, lookback = draw(st.sampled_from(SPANS))
    return default_settings(
        profile=draw(st.sampled_from(("resilient", "strict"))),
        interval_ms=interval * MINUTE_MS,
        lookback_ms=lookback * MINUTE_MS,
        lateness_ms=draw(st.sampled_from((0, 1, 30_000, 120_000, 600_000))),
        max_future_jump_ms=draw(st.sampled_from((10, 30, 60, 60, 240))) * MINUTE_MS,
        rules=draw(rules(lookback * MINUTE_MS)),
    )


SCENARIOS = (
    "steady",
    "steady",
    "burst",
    "second_host",
    "second_process",
    "lose_host",
    "lose_process",
    "thin",
    "cluster",
    "boundary",
    "boundary",
    "notations",
)
DISTURBANCES = (
    "late",
    "late",
    "boundary",
    "boundary",
    "wild",
    "wild_run",
    "limit",
    "two_hosts",
    "hundred",
    "garbage",
)


@st.composite
def plans(draw: st.DrawFn, timestamps: bool) -> Plan:
    return Plan(
        seed=draw(st.integers(0, 2**32 - 1)),
        settings=draw(settings_of()),
        partitions=draw(st.integers(1, 4)),
        scenarios=draw(st.lists(st.sampled_from(SCENARIOS), min_size=1, max_size=3)),
        disturbances=draw(st.lists(st.sampled_from(DISTURBANCES), max_size=5)),
        variation_rate=draw(st.sampled_from((0.0, 0.03, 0.1, 0.3))),
        quiet=draw(st.integers(0, 5)) == 0,
        ties=draw(st.booleans()),
        timestamps=timestamps,
        tail=draw(st.sampled_from((0.0, 0.5, 1.2, 1.2, 1.2))),
    )


# ---------------------------------------------------------------------------------------------------- beacons


@dataclass(frozen=True)
class Beacon:
    """The key, host and rate of a beacon, and the rule whose thresholds it is built around."""

    spec: Spec
    rule: Json
    start: int
    per_hour: float
    length: int


def choose_beacon(plan: Plan, first: Json) -> Beacon:
    """A key, a host and a rate that is mostly slightly above the threshold."""
    rng = plan.rng
    address, ip = rng.choice(DESTINATIONS[:3] if rng.random() < 0.4 else DESTINATIONS)
    shapes = list(SHAPES)
    weights = (6, 3, 2, 3, 2, 2) if plan.settings["profile"] == "resilient" else (8, 3, 2, 3, 1, 0)
    spec = Spec(
        time=0,
        arrival=0,
        shape=rng.choices(shapes, weights)[0],
        address=address,
        ip=ip,
        process=rng.choice(PROCESSES),
        host=rng.choice(HOSTS),
        entity=rng.choice(("{5D-AB01}", "bm9uZQ==", "{5d-ab01}")),
        pid=rng.choice((4, 4711)),
        variation=rng.choice(HARMLESS_VARIATIONS) if rng.random() < 0.3 else "",
    )
    if spec.variation in ("collected", "forwarded"):
        spec = replace(spec, shape=rng.choice(("winlogbeat8", "sysmon_ecs")))
    needed = first["min_duration_hours"] * HOUR_MS
    length = int(max(needed, plan.lookback_ms // 2) * rng.uniform(0.9, 2.2))
    start = BASE_MS + rng.randrange(0, plan.lookback_ms) // 1000 * rng.choice((1, 1000))
    per_hour = first["min_connections_per_hour"] * rng.uniform(1.05, 1.9)
    return Beacon(spec, first, start, per_hour, length)


def steady(start: int, length: int, per_hour: float, rng: Random) -> list[int]:
    """One time per period, with 20 % jitter."""
    period = max(HOUR_MS / per_hour, length / 120)
    count = max(2, int(length / period) + 1)
    return [int(start + index * period + rng.uniform(-0.1, 0.1) * period) for index in range(count)]


def beacon_times(scenario: str, beacon: Beacon, plan: Plan) -> list[int]:
    rng, rule, start, length = plan.rng, beacon.rule, beacon.start, beacon.length
    enough = rule["min_connections_per_hour"] * max(1, rule["min_duration_hours"]) + rng.randrange(2)
    hours = max(1, rule["min_duration_hours"])
    if scenario == "burst":
        wide = rng.choice((1, plan.interval_ms, 2 * plan.interval_ms))
        return sorted(start + rng.randrange(wide) for _ in range(enough))
    if scenario == "cluster":
        late = start + min(hours * HOUR_MS, plan.lookback_ms - plan.interval_ms)
        return [start, *sorted(late + rng.randrange(20 * MINUTE_MS) for _ in range(enough))]
    if scenario == "boundary":
        span = hours * HOUR_MS - 1_800_000 + rng.choice((-1, 0, 1))
        inner = sorted(start + rng.randrange(span + 1) for _ in range(enough - 2))
        return [start, *inner, start + span]
    if scenario == "thin":
        return steady(start, length // 2, beacon.per_hour, rng) + steady(
            start + length // 2, length, beacon.per_hour / 3, rng
        )
    if scenario.startswith("lose"):
        length = max(length, plan.lookback_ms * 7 // 4)
    return steady(start, length, beacon.per_hour, rng)


def beacon_specs(scenario: str, beacon: Beacon, plan: Plan) -> list[Spec]:
    """The beacon's records, changed as its scenario says."""
    rng = plan.rng
    specs = [record_at(beacon.spec, time, plan) for time in beacon_times(scenario, beacon, plan)]
    cut = len(specs) * 2 // 5
    if scenario == "lose_host":
        shape = "defend" if plan.settings["profile"] == "resilient" else beacon.spec.shape
        specs = [
            replace(spec, shape=shape, with_host=index < cut, variation="")
            for index, spec in enumerate(specs)
        ]
    if scenario == "lose_process":
        specs = [replace(spec, entity=spec.entity if i < cut else None) for i, spec in enumerate(specs)]
    if scenario in ("second_host", "second_process"):
        specs += [
            second_source(scenario, spec, rng) for spec in rng.choices(specs[cut:], k=rng.randint(1, 4))
        ]
    if scenario == "notations":
        specs = [other_notation(spec, rng) for spec in specs]
    if plan.ties:
        specs += [twin(spec, rng) for spec in rng.choices(specs, k=2)] + [twin(specs[-1], rng)]
    return specs


def record_at(spec: Spec, time: int, plan: Plan) -> Spec:
    """The record at a time, arriving slightly later; sometimes on a tick, or with another shape or variation."""
    rng = plan.rng
    if rng.random() < 0.05:
        ahead = rng.choice((0, plan.settings["lateness_ms"]))  # the record, or its watermark
        time = time // plan.interval_ms * plan.interval_ms + ahead + rng.choice((-1, 0, 1))
    shape = rng.choice(list(SHAPES)) if rng.random() < plan.variation_rate / 4 else spec.shape
    variation = rng.choice(VARIATIONS) if rng.random() < plan.variation_rate else spec.variation
    return replace(spec, time=time, arrival=time + rng.randrange(90_000), shape=shape, variation=variation)


def second_source(scenario: str, spec: Spec, rng: Random) -> Spec:
    """A second host or process at about the same time."""
    time = spec.time + rng.choice((0, 0, 1, 60_000))
    if scenario == "second_process":
        return replace(spec, time=time, arrival=time, entity=rng.choice(("{5d-cd02}", "{5D-EF03}")), pid=99)
    host = rng.choice([host for host in HOSTS if host != spec.host])
    return replace(spec, time=time, arrival=time, host=host)


def other_notation(spec: Spec, rng: Random) -> Spec:
    """The same ids with or without braces, in either case: in resilient, still one host and one process."""

    def in_notation(text: str) -> str:
        bare = text.strip("{}")
        return rng.choice((text, bare, f"{{{bare.upper()}}}", bare.lower()))

    host = replace(spec.host, id=in_notation(spec.host.id))
    return replace(spec, host=host, entity=spec.entity and in_notation(spec.entity))


def twin(spec: Spec, rng: Random) -> Spec:
    """The same millisecond with different context."""
    changes: list[dict[str, Any]] = [{"pid": 5}, {"port": 8443}, {"port": 80, "pid": 12}, {}]
    return replace(spec, arrival=spec.arrival + rng.randrange(60_000), **rng.choice(changes))


# ----------------------------------------------------------------------------------------- background records

NOISE: tuple[dict[str, Any], ...] = (
    {"process": "outlook.exe"},
    {"ip": "10.1.2.3", "address": "10.1.2.3"},
    {"port": 53},
    {"variation": "direction"},
    {"address": "185.1.1.9", "ip": "185.1.1.9"},
    {"variation": "no_time"},
)


def noise(plan: Plan, first: int, last: int) -> list[Spec]:
    """Records that advance every partition's clock; in a quiet data set, only a few.

    The last one ends the data set, sometimes exactly at a tick.
    """
    rng = plan.rng
    gap = min(plan.settings["max_future_jump_ms"] * 0.8, plan.lookback_ms / 3)
    count = 2 if plan.quiet else min(60, int((last - first) / gap) + 2)
    places = range(count * plan.partitions)
    times = [first + (last - first) * (index // plan.partitions) // count for index in places]
    specs = [noise_at(time + rng.randrange(60_000), rng) for time in times]
    end = last // plan.interval_ms * plan.interval_ms + plan.interval_ms
    return [*specs, noise_at(end if rng.random() < 0.4 else last, rng)]


def noise_at(time: int, rng: Random) -> Spec:
    address, ip = rng.choice(DESTINATIONS)
    spec = Spec(time, time, "defend", address, ip, "chrome.exe", rng.choice(HOSTS), "noise", 1)
    if rng.random() < 0.3:
        return replace(spec, shape=rng.choice(list(SHAPES)), variation=rng.choice(VARIATIONS))
    return replace(spec, **rng.choice(NOISE))


def spread(plan: Plan, specs: list[Spec], noise_specs: list[Spec]) -> list[list[Spec]]:
    """Each beacon record goes to a random partition, or all of a host to one (`by_host`); noise goes round robin."""
    partitions: list[list[Spec]] = [[] for _ in range(plan.partitions)]
    by_host = plan.rng.random() < 0.3
    for spec in specs:
        chosen = HOSTS.index(spec.host) if by_host and spec.host in HOSTS else plan.rng.randrange(99)
        partitions[chosen % plan.partitions].append(spec)
    for index, spec in enumerate(noise_specs):
        partitions[index % plan.partitions].append(spec)
    return [sorted(partition, key=lambda spec: spec.arrival) for partition in partitions]


# ----------------------------------------------------------------------------------------------- disturbances


def late_records(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """A record at various distances behind the watermark."""
    behind = plan.rng.choice((0.01, 0.3, 0.9, 1.0, 1.1, 3.0)) * plan.lookback_ms
    return [replace(model, time=newest - int(behind) - plan.rng.randrange(60_000))]


def boundary_records(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """Exactly at t = w - L, at w, at a tick, or 1 ms off; or a clock that puts w exactly on a tick."""
    rng, interval_ms, lateness_ms = plan.rng, plan.interval_ms, plan.settings["lateness_ms"]
    watermark = newest - lateness_ms
    tick = newest // interval_ms * interval_ms
    on_tick = tick + lateness_ms if tick + lateness_ms > newest else tick + interval_ms + lateness_ms
    places = (watermark - plan.lookback_ms, watermark, tick, tick - plan.lookback_ms)
    nudge = rng.choice((-1, 0, 0, 1))
    if rng.random() < 0.6:
        behind = replace(model, time=on_tick - lateness_ms - rng.choice((0, 1, 1, interval_ms // 2)))
        return [replace(model, time=on_tick + nudge), behind, twin(behind, rng)]
    return [replace(model, time=rng.choice(places) + nudge)]


def wild_records(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """One time far ahead, once."""
    ahead = plan.settings["max_future_jump_ms"] + plan.rng.choice((1, 60_000, plan.lookback_ms * 4))
    return [replace(model, time=newest + ahead, variation="")]


def limit_records(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """Exactly at the allowed jump: it moves the clock."""
    return [replace(model, time=newest + plan.settings["max_future_jump_ms"])]


def wild_run(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """One host far ahead several times: never believed."""
    ahead = plan.settings["max_future_jump_ms"] + 1 + plan.rng.randrange(plan.lookback_ms)
    return [
        replace(model, time=newest + ahead + index, variation="") for index in range(plan.rng.randint(2, 6))
    ]


def two_hosts(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """Two hosts ahead in a row: believed, and the second record is evaluated again."""
    rng = plan.rng
    jump_ms = int(plan.settings["max_future_jump_ms"])
    ahead = newest + jump_ms + rng.choice((1, 60_000, plan.lookback_ms // 2))
    other = next(host for host in HOSTS if host != model.host)
    further = ahead + rng.choice((0, 1, jump_ms, jump_ms + 1, -60_000))
    shape = rng.choice(("defend", "defend", "winlogbeat6"))  # winlogbeat6: both behind one collector
    first = replace(model, time=ahead, variation="", shape=shape, with_host=True)
    run = [first, replace(first, time=max(further, newest + jump_ms + 1), host=other)]
    return [run[0], replace(first, time=newest), run[1]] if rng.random() < 0.2 else run


def hundred(plan: Plan, newest: int, model: Spec) -> list[Spec]:
    """One host ahead 99, 100 or 101 times in a row."""
    ahead = newest + plan.settings["max_future_jump_ms"] + 1 + plan.rng.randrange(plan.lookback_ms // 2)
    count = plan.rng.choice((99, 100, 100, 101))
    specs = [
        replace(model, time=ahead + 1000 * index, variation="", shape="defend") for index in range(count)
    ]
    plan.rng.shuffle(specs)
    return specs


INJECTIONS: dict[str, Callable[[Plan, int, Spec], list[Spec]]] = {
    "late": late_records,
    "boundary": boundary_records,
    "wild": wild_records,
    "wild_run": wild_run,
    "limit": limit_records,
    "two_hosts": two_hosts,
    "hundred": hundred,
}


def with_disturbances(plan: Plan, partition: list[Spec], disturbances: list[str]) -> list[Spec]:
    """Inserts each disturbance at a random place, with times relative to the partition's clock at that place."""
    rng = plan.rng
    places = (
        {rng.randrange(len(partition)): disturbance for disturbance in disturbances * 2} if partition else {}
    )
    models = [spec for spec in partition if spec.entity != "noise"] or partition
    clock = PartitionClock(plan.settings["max_future_jump_ms"])
    result: list[Spec] = []
    for index, spec in enumerate(partition):
        added = [spec]
        if index in places and clock.newest is not None:
            added += INJECTIONS[places[index]](plan, clock.newest, rng.choice(models))
        arrivals = (max(record.arrival, spec.arrival) for record in added)
        result += [
            replace(observed_by(clock, record), arrival=arrival)
            for record, arrival in zip(added, arrivals, strict=True)
        ]
    return result


def observed_by(clock: PartitionClock, spec: Spec) -> Spec:
    """Moves the clock. A record in a run has one host id: semantics.md does not define the host of two ids."""
    if spec.variation != "no_time":
        clock.observe(spec.time, frozenset((spec.host.id,)))
    return replace(spec, variation="") if clock.run and spec.variation == "two_ids" else spec


GARBAGE: tuple[Any, ...] = ("{not json", "[1, 2]", '"text"', "12", {}, {"@timestamp": None})


def as_record(plan: Plan, spec: Spec) -> Any:
    document = SHAPES[spec.shape](spec, plan.rng, plan.settings["profile"])
    skew_ms = plan.settings["max_future_skew_ms"]
    if not plan.timestamps:
        return document
    nudge = plan.rng.choice((0, 0, 0, 0, -1, 1)) if spec.time >= spec.arrival else 0
    return document, max(spec.arrival, spec.time - skew_ms) + nudge


# ---------------------------------------------------------------------------------------------- the data sets


def without_ambiguous_addresses(plan: Plan, spec: Spec) -> Spec:
    """With a destination exception, an event has one address: a match of several addresses is not specified."""
    excepted = any(
        "destination" in exception for rule in plan.settings["rules"] for exception in rule["exceptions"]
    )
    return replace(spec, variation="") if excepted and spec.variation == "two_addresses" else spec


def all_beacons(plan: Plan) -> list[Spec]:
    """The records of every scenario; some scenarios share key and host with the one before."""
    specs: list[Spec] = []
    beacon = choose_beacon(plan, plan.settings["rules"][0])
    for scenario in plan.scenarios:
        if plan.rng.random() < 0.7:
            beacon = choose_beacon(plan, plan.rng.choice(plan.settings["rules"]))
        specs += beacon_specs(scenario, beacon, plan)
    return specs


def add_garbage(plan: Plan, partitions: list[list[Any]]) -> None:
    for _ in range(3):
        records, line = plan.rng.choice(partitions), plan.rng.choice(GARBAGE)
        place = plan.rng.randrange(len(records) + 1)
        records.insert(place, (line, BASE_MS) if plan.timestamps else line)


def build(plan: Plan) -> DataSet:
    """The data set of a plan; deterministic."""
    plan = replace(plan, rng=Random(plan.seed))
    specs = all_beacons(plan)
    begin = min(spec.time for spec in specs)
    end = max(spec.time for spec in specs) + int(plan.tail * plan.lookback_ms)
    streams = spread(plan, specs, noise(plan, begin, end))
    injected = [disturbance for disturbance in plan.disturbances if disturbance in INJECTIONS]
    most_disturbed = plan.rng.randrange(plan.partitions)
    partitions: list[list[Any]] = []
    for number, stream in enumerate(streams):
        disturbed = with_disturbances(plan, stream, injected if number == most_disturbed else injected[:1])
        partitions.append([as_record(plan, without_ambiguous_addresses(plan, spec)) for spec in disturbed])
    if "garbage" in plan.disturbances:
        add_garbage(plan, partitions)
    return DataSet(partitions, plan.settings)


def data_sets(timestamps: bool = False) -> st.SearchStrategy[DataSet]:
    """Data sets as read from files; with timestamps, as read from Kafka: (document, record timestamp)."""
    return plans(timestamps).map(build)


def as_config(settings: Json) -> Json:
    """The same settings as the YAML document of docs/reference.md."""
    times = ("interval", "lookback", "lateness", "max_future_skew", "max_future_jump")
    return {
        "profile": settings["profile"],
        "time": {name: f"{settings[name + '_ms']}ms" for name in times},
        "rules": [
            {name: value for name, value in rule.items() if name != "renotify_ms"}
            | {"renotify": f"{rule['renotify_ms']}ms"}
            for rule in settings["rules"]
        ],
    }


def as_lines(records: list[Any]) -> list[str]:
    """A partition without timestamps as lines of a file."""
    return [
        record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records
    ]
