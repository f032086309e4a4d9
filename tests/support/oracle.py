"""The slow, obvious computation of docs/semantics.md, to compare the fast code with.

Rule of this file: nothing of streamdetect is imported and nothing is clever. Every event is kept; at every
tick every key's window is computed again from all of them, by the formulas of the page. The only state that
lives from one tick to the next is the open episode of a key. Each rule names its paragraph (§).

    replay(partitions, settings) -> OracleResult

A partition is a list of documents in offset order: a dict is a parsed JSON document, a str is a line as it
stands in the file (so that lines that are no JSON object can be given), and a tuple (document,
record timestamp in ms) is a Kafka record. Settings are flat: see default_settings.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias
from uuid import NAMESPACE_URL, UUID, uuid5

Json: TypeAlias = dict[str, Any]
Record: TypeAlias = "Json | str | tuple[Json | str, int]"
Fields: TypeAlias = dict[str, list[Any]]
Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

HOUR_MS = 3_600_000
MINUS_INFINITY = float("-inf")
SYSMON = "Microsoft-Windows-Sysmon"

# --------------------------------------------------------------------------------------------------- settings

# fmt: off
EXCLUDED_NETWORKS = [
    "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.168.0.0/16",
    "192.88.99.0/24", "224.0.0.0/4", "100.64.0.0/10", "192.175.48.0/24", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "::1", "fe80::/10",
    "ff00::/8",
]
# fmt: on


def default_rule(**overrides: Any) -> Json:
    """The one hunt of the page."""
    rule: Json = {
        "id": "ed254a22-e7bb-4a36-9291-196b77762dd8",
        "name": "High count of network connection over extended period by process",
        "enabled": True,
        "severity": 47,
        "processes": ["chrome.exe", "msedge.exe", "iexplore.exe", "firefox.exe", "svchost.exe"],
        "excluded_ports": [53],
        "excluded_networks": list(EXCLUDED_NETWORKS),
        "extra_excluded_networks": [],
        "datasets": ["endpoint.events.network", "windows.sysmon_operational"],
        "min_connections_per_hour": 120,
        "min_duration_hours": 4,
        "max_hosts": 1,
        "max_processes": 1,
        "renotify_ms": 6 * HOUR_MS,
        "exceptions": [],
    }
    return rule | overrides


def default_settings(**overrides: Any) -> Json:
    """The defaults of interface.md, times as whole milliseconds."""
    settings: Json = {
        "profile": "resilient",
        "interval_ms": 300_000,
        "lookback_ms": 24 * HOUR_MS,
        "lateness_ms": 120_000,
        "max_future_skew_ms": 600_000,
        "max_future_jump_ms": HOUR_MS,
        "rules": [default_rule()],
    }
    return settings | overrides


# -------------------------------------------------------------------- §1 fine print: fields, values and times


def flatten(document: Json) -> Fields:
    """§1: `"a.b"` and `{"a": {"b"}}` are the same field; arrays flatten; null is absent."""
    fields: Fields = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, member in value.items():
                walk(member, f"{path}.{name}" if path else name)
        elif isinstance(value, list):
            for member in value:
                walk(member, path)
        elif value is not None:
            fields.setdefault(path, []).append(value)

    walk(document, "")
    return fields


def as_text(value: Any) -> str:
    """§1: numbers and booleans in a keyword field are their JSON text."""
    return value if isinstance(value, str) else json.dumps(value)


def keywords(fields: Fields, name: str) -> list[str]:
    """§1: a keyword longer than 1,024 UTF-16 code units is missing, value by value."""
    texts = [as_text(value) for value in fields.get(name, [])]
    return [text for text in texts if len(text.encode("utf-16-le")) // 2 <= 1024]


def only(values: Iterable[Any]) -> Any:
    """Exactly one distinct value, or None."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def whole_number(value: Any) -> int | None:
    """§1: a port is a number or the text of one, cut to a whole number of 64 bits."""
    text = "" if isinstance(value, bool) else as_text(value)
    if not NUMBER.fullmatch(text):
        return None
    try:
        number = Decimal(text)
    except ArithmeticError:
        return None
    if number.adjusted() > 20:
        return None
    whole = int(number)
    return whole if -(2**63) <= whole < 2**63 else None


def address_of(value: Any) -> Address | None:
    """§1: a valid address; mapped is IPv4; a zone is dropped from IPv6 and makes all else malformed."""
    text, percent, zone = as_text(value).partition("%")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if percent and (not zone or mapped or address.version == 4):
        return None
    return mapped or address


def in_network(address: Address, entry: str) -> bool:
    """§1: an entry without a prefix is that one address; a mapped network is the IPv4 one."""
    network = ipaddress.ip_network(entry, strict=False)
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    if mapped and network.prefixlen >= 96:
        return address in ipaddress.ip_network((int(mapped), network.prefixlen - 96))
    return address in network


TIME = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)"
    r"(?:([T ])(?:(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?"
    r"(?:Z|([+-])(\d\d)(?::?(\d\d))?)?)?)?)?)?",
    re.ASCII,
)
EPOCH_TEXT = re.compile(r"(-?\d{5,19})(\.\d*)?", re.ASCII)


def days_since_epoch(year: int, month: int, day: int) -> int:
    """Days of the proleptic calendar, year 0 too; ValueError if there is no such day."""
    cycles, year_of_cycle = divmod(year, 400)
    return date(year_of_cycle + 400, month, day).toordinal() - 719_163 + (cycles - 1) * 146_097


def iso_ms(text: str, resilient: bool) -> int | None:
    """§1: ISO as Elasticsearch takes it; digits beyond milliseconds are cut (§2)."""
    found = TIME.fullmatch(text)
    if not found:
        return None
    year, month, day, blank, hour, minute, second, digits, sign, zone_h, zone_m = found.groups()
    if not resilient and (blank == " " or len(digits or "") > 9):
        return None
    zone = int(zone_h or 0) * 60 + int(zone_m or 0)
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        return None
    if zone > 18 * 60 or int(zone_m or 0) > 59:
        return None
    try:
        days = days_since_epoch(int(year), int(month or 1), int(day or 1))
    except ValueError:
        return None
    minutes = days * 1440 + int(hour or 0) * 60 + int(minute or 0) - (-zone if sign == "-" else zone)
    return (minutes * 60 + int(second or 0)) * 1000 + int(((digits or "") + "000")[:3])


def time_ms(value: Any, resilient: bool) -> int | None:
    """§1: an ISO text, or epoch milliseconds as a number or as text of 5 digits or more, a fraction cut."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        whole = int(value) if abs(value) < 2**63 else None
    elif found := EPOCH_TEXT.fullmatch(value):
        whole = int(found[1])
    else:
        return iso_ms(value, resilient)
    return whole if whole is not None and -(2**63) <= whole < 2**63 else None


# ------------------------------------------------------------------- Sysmon Event ID 3 raw: events.md's table

# provider, event id, prefix of the event data: Winlogbeat >= 8, Winlogbeat 6, NXLog
RAW_SHAPES = (
    ("winlog.provider_name", ("winlog.event_id", "event.code"), "winlog.event_data."),
    ("source_name", ("event_id",), "event_data."),
    ("SourceName", ("EventID",), ""),
)
RAW_MARKS = ("UtcTime", "ProcessGuid", "Image", "DestinationIp", "DestinationPort", "Initiated")
RAW_MEMBERS = (*RAW_MARKS, "ProcessId", "User", "DestinationHostname")
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", re.ASCII)


def raw_sysmon(fields: Fields) -> Fields | None:
    """The event data of a raw Sysmon Event ID 3; None if the document is not one."""
    for provider, ids, prefix in RAW_SHAPES:
        event_id = next((fields[name] for name in ids if name in fields), [])
        if SYSMON not in keywords(fields, provider) or "3" not in map(as_text, event_id):
            continue
        data = {name: fields[prefix + name] for name in RAW_MEMBERS if prefix + name in fields}
        if any(mark in data for mark in RAW_MARKS):
            return data
    return None


def texts(data: Fields, member: str) -> list[str]:
    return [as_text(value) for value in data[member]]


def no_guid(text: str) -> bool:
    """The all-zero GUID means none."""
    return not text.strip("{}0-") and "0" in text


def overlay(fields: Fields, data: Fields) -> Fields:
    """The pipeline's work: members that are present take precedence over ECS fields."""
    result = fields | {"event.category": ["network"]}
    if "ProcessGuid" in data:
        result["process.entity_id"] = [text for text in texts(data, "ProcessGuid") if not no_guid(text)]
    if "Image" in data:
        images = [text for text in texts(data, "Image") if "\\" in text]
        result["process.executable"] = images
        result["process.name"] = [image.rsplit("\\", 1)[1] for image in images]
    if "ProcessId" in data:
        pids = texts(data, "ProcessId")
        result["process.pid"] = [int(pid) for pid in pids if re.fullmatch(r"\d+", pid, re.ASCII)]
    if "DestinationIp" in data:
        result["destination.ip"] = data["DestinationIp"]
    if "DestinationPort" in data:
        result["destination.port"] = data["DestinationPort"]
    if "DestinationHostname" in data:
        names = texts(data, "DestinationHostname")
        result["destination.domain"] = [name for name in names if name not in ("", "-")]
    if "Initiated" in data:
        ways = {"true": "egress", "false": "ingress"}
        result["network.direction"] = [ways[text] for text in texts(data, "Initiated") if text in ways]
    return result | (user_fields(texts(data, "User")) if "User" in data else {})


def user_fields(users: list[str]) -> Fields:
    """A user is cut at the first backslash into domain and name; without one there is only a name."""
    parts = [user.split("\\", 1) for user in users]
    return {
        "user.name": [part[-1] for part in parts],
        "user.domain": [part[0] for part in parts if len(part) == 2],
    }


# ----------------------------------------------------------------------- §7: a document as a profile reads it


@dataclass(frozen=True)
class Reading:
    """One document: its fields (with the pipeline's work done) and how to read them."""

    fields: Fields
    raw: Fields | None
    resilient: bool

    def keywords(self, name: str) -> list[str]:
        return keywords(self.fields, name)


def read(document: Json, profile: str) -> Reading:
    fields = flatten(document)
    raw = raw_sysmon(fields)
    return Reading(overlay(fields, raw) if raw else fields, raw, profile == "resilient")


def event_time(reading: Reading) -> int | None:
    """UtcTime of raw Sysmon, else @timestamp, of which there must be exactly one."""
    for value in (reading.raw or {}).get("UtcTime", []):
        text = as_text(value)
        if reading.resilient or UTC_TIME.fullmatch(text):
            time = iso_ms(text, resilient=True)
            if time is not None:
                return time
    values = reading.fields.get("@timestamp", [])
    return time_ms(values[0], reading.resilient) if len(values) == 1 else None


def datasets(reading: Reading) -> list[str]:
    return reading.keywords("data_stream.dataset") or reading.keywords("event.dataset")


def is_sysmon(reading: Reading) -> bool:
    providers = reading.keywords("winlog.provider_name") + reading.keywords("event.provider")
    return (
        reading.raw is not None
        or SYSMON in providers
        or "windows.sysmon_operational" in datasets(reading)
        or "sysmon" in reading.keywords("event.module")
    )


def computer_names(reading: Reading) -> list[str]:
    names = ("winlog.computer_name", "computer_name", "Hostname")
    return next((found for found in map(reading.keywords, names) if found), [])


def first_label(name: str) -> str:
    return name.partition(".")[0].lower()


def from_collector(reading: Reading) -> bool:
    """§7: the host block and the agent of a Sysmon document may be the collector's."""
    if not reading.resilient or not is_sysmon(reading):
        return False
    own = {first_label(name) for name in reading.keywords("host.name")}
    computer = {first_label(name) for name in computer_names(reading)}
    return "forwarded" in reading.keywords("tags") or bool(own and computer and not own & computer)


def host_ids(reading: Reading) -> list[str]:
    """§7: host.id falls back to the computer name, then agent.id; as they arrived."""
    if not reading.resilient:
        return reading.keywords("host.id")
    if from_collector(reading):
        return computer_names(reading)
    return reading.keywords("host.id") or computer_names(reading) or reading.keywords("agent.id")


def host_names(reading: Reading) -> list[str]:
    if not reading.resilient:
        return reading.keywords("host.name")
    if from_collector(reading):
        return computer_names(reading)
    return reading.keywords("host.name") or computer_names(reading)


def comparable_ids(ids: list[str], resilient: bool) -> frozenset[str]:
    """§7: host ids and entity ids compare without braces and case."""
    return frozenset(text.strip("{}").lower() if resilient else text for text in ids)


def clock_host(reading: Reading) -> frozenset[str]:
    """§4: host.id, else host.name, else the computer name; none is one host."""
    found = reading.keywords("host.id") or reading.keywords("host.name") or computer_names(reading)
    return comparable_ids(found, reading.resilient)


def os_families(reading: Reading) -> list[str]:
    """§7: host.os.family falls back to host.os.type, then to the Sysmon provider."""
    family = reading.keywords("host.os.family")
    if family or not reading.resilient:
        return family
    return reading.keywords("host.os.type") or (["windows"] if is_sysmon(reading) else [])


def directions(reading: Reading) -> list[str]:
    """§7: outbound and inbound are read as egress and ingress."""
    ways = {"outbound": "egress", "inbound": "ingress"} if reading.resilient else {}
    return [ways.get(text, text) for text in reading.keywords("network.direction")]


def process_name(reading: Reading) -> str | None:
    """§7: process names compare without case, the key shows them in lower case."""
    names = reading.keywords("process.name")
    name: str | None = only(text.lower() if reading.resilient else text for text in names)
    return name


def destination_ip(reading: Reading) -> Address | None:
    """§1: malformed addresses vanish before values are counted; ips de-duplicate."""
    found = map(address_of, reading.fields.get("destination.ip", []))
    address: Address | None = only(address for address in found if address is not None)
    return address


def destination_port(reading: Reading) -> int | None:
    """§1: malformed ports vanish before values are counted; numbers do not de-duplicate."""
    found = [whole_number(value) for value in reading.fields.get("destination.port", [])]
    ports = [port for port in found if port is not None]
    return ports[0] if len(ports) == 1 else None


def canonical_address(text: str) -> str:
    """§7: an IP as RFC 5952 text, a mapped one as IPv4; a name in lower case."""
    address = address_of(text)
    return text.lower() if address is None else str(address)


def addresses(reading: Reading) -> list[str | None]:
    """§2: each distinct value is a group of its own; none is the null group. §7: it falls back to the ip."""
    found = reading.keywords("destination.address")
    if not reading.resilient:
        return list(set(found)) or [None]
    return list({canonical_address(text) for text in found}) or [str(destination_ip(reading))]


# ------------------------------------------------------------------------------------- §1: which events count


def is_connection(reading: Reading) -> bool:
    """§1: the conditions that are the same for every rule; missing is not true."""
    return (
        only(os_families(reading)) == "windows"
        and only(reading.keywords("event.category")) == "network"
        and only(directions(reading)) == "egress"
        and process_name(reading) is not None
        and destination_port(reading) is not None
        and destination_ip(reading) is not None
    )


def counts(reading: Reading, rule: Json) -> bool:
    """§1: whether the event counts for this rule."""
    if not rule["enabled"] or not is_connection(reading):
        return False
    processes = [name.lower() if reading.resilient else name for name in rule["processes"]]
    networks = rule["excluded_networks"] + rule["extra_excluded_networks"]
    address = destination_ip(reading)
    assert address is not None
    return (
        (not datasets(reading) or only(datasets(reading)) in rule["datasets"])
        and process_name(reading) in processes
        and destination_port(reading) not in rule["excluded_ports"]
        and not any(in_network(address, entry) for entry in networks)
        and not any(is_excepted(reading, exception) for exception in rule["exceptions"])
    )


def is_excepted(reading: Reading, exception: Json) -> bool:
    """§1: an exception matches when every field it has matches; one left out matches all."""
    destination, process, host = (exception.get(name) for name in ("destination", "process", "host"))
    return (
        (destination is None or is_at(reading, destination))
        and (process is None or process_name(reading) == (process.lower() if reading.resilient else process))
        and (host is None or is_from(reading, host))
    )


def is_at(reading: Reading, destination: str) -> bool:
    """A destination is an address as the key shows it, or a network that holds the ip."""
    wanted = canonical_address(destination) if reading.resilient else destination
    if wanted in addresses(reading):
        return True
    address = destination_ip(reading)
    try:
        return address is not None and in_network(address, destination)
    except ValueError:
        return False


def is_from(reading: Reading, host: str) -> bool:
    """A host is named by its id or by its name."""
    ids = comparable_ids(host_ids(reading) + host_names(reading), reading.resilient)
    return bool(comparable_ids([host], reading.resilient) & ids)


# ---------------------------------------------------------------------------------------- details of an event


def shown(values: list[str]) -> str | list[str] | None:
    """As they arrived: one distinct value as text, several as a sorted list, none left out."""
    distinct = sorted(set(values))
    return distinct[0] if len(distinct) == 1 else distinct or None


def present(members: Json) -> Json:
    """Absent fields and empty objects are left out, never null."""
    return {name: value for name, value in members.items() if value is not None and value != {}}


def pid_of(reading: Reading) -> int | None:
    values = reading.fields.get("process.pid", [])
    pids = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    pid: int | None = only(pids)
    return pid


def details(reading: Reading) -> Json:
    """What an alert shows of its latest event, beyond the key."""
    domains = reading.keywords("destination.domain")
    if reading.resilient:
        domains = [domain for domain in domains if domain not in ("", "-")]
    destination = {
        "ip": str(destination_ip(reading)),
        "port": destination_port(reading),
        "domain": shown(domains),
    }
    process = {
        "entity_id": shown(reading.keywords("process.entity_id")),
        "pid": pid_of(reading),
        "executable": shown(reading.keywords("process.executable")),
    }
    user = {"name": shown(reading.keywords("user.name")), "domain": shown(reading.keywords("user.domain"))}
    host = {"id": shown(host_ids(reading)), "name": shown(host_names(reading))}
    return present(
        {
            "destination": present(destination),
            "host": present(host),
            "process": present(process),
            "user": present(user),
        }
    )


class Key(NamedTuple):
    """§2: address, process name and, in resilient (§7), the sensor."""

    address: str | None
    process: str
    sensor: str | None

    def order(self) -> tuple[Any, ...]:
        """§5: address, then process name, then sensor; null first."""
        return tuple((part is not None, part or "") for part in self)


@dataclass(frozen=True)
class Event:
    """An event that counts for at least one rule, with all that any formula needs."""

    time: int
    watermark: float  # §4: w_p(e), the partition's watermark before the event
    rules: tuple[int, ...]
    keys: tuple[Key, ...]
    hosts: frozenset[str]
    entities: frozenset[str]
    details: Json


def make_event(reading: Reading, time: int, watermark: float, rules: tuple[int, ...]) -> Event:
    process = process_name(reading)
    assert process is not None
    sensor = None if not reading.resilient else "sysmon" if is_sysmon(reading) else "endpoint"
    return Event(
        time=time,
        watermark=watermark,
        rules=rules,
        keys=tuple(Key(address, process, sensor) for address in addresses(reading)),
        hosts=comparable_ids(host_ids(reading), reading.resilient),
        entities=comparable_ids(reading.keywords("process.entity_id"), reading.resilient),
        details=details(reading),
    )


# --------------------------------------------------------------------------------------------- §4: event time


@dataclass
class PartitionClock:
    """§4: C_p, and the run of records too far ahead of it."""

    jump_ms: int
    newest: int | None = None
    run: list[tuple[int, frozenset[str]]] = field(default_factory=list)

    def watermark(self, lateness_ms: int) -> float:
        return MINUS_INFINITY if self.newest is None else self.newest - lateness_ms

    def see(self, time: int, host: frozenset[str]) -> None:
        """Every record with a usable time moves it; a leap waits until it is believed."""
        if self.newest is None:
            self.newest = time
        elif time <= self.newest + self.jump_ms:
            self.newest = max(self.newest, time)
            self.run = []
        else:
            self.run.append((time, host))
            self.believe()

    def believe(self) -> None:
        """Two hosts or 100 records: C_p becomes the run's smallest time, and the last is judged again."""
        if len({host for _, host in self.run}) < 2 and len(self.run) < 100:
            return
        last_time, last_host = self.run[-1]
        self.newest = min(time for time, _ in self.run)
        self.run = []
        self.see(last_time, last_host)


def in_window(event: Event, tick: int, lookback_ms: int) -> bool:
    """§4: T - L <= t < T and w_p(e) < T."""
    return tick - lookback_ms <= event.time < tick and event.watermark < tick


def first_tick_after(time: float, interval_ms: int) -> int:
    return int(time // interval_ms) * interval_ms + interval_ms


def inclusion_tick(event: Event, interval_ms: int) -> int:
    """The first T = k * I with t < T and w_p(e) < T."""
    return first_tick_after(max(event.time, event.watermark), interval_ms)


# ------------------------------------------------------------------------------------- §2 and §3: the figures


@dataclass(frozen=True)
class Figures:
    """§2: the aggregates of one key's window, before any limit."""

    count: int
    first: int
    last: int
    hosts: int
    entities: int

    def duration_hours(self) -> int:
        """§3: half hours round up."""
        return (self.last - self.first + 1_800_000) // HOUR_MS

    def rate(self) -> int:
        """§3, with design.md 6: the divisor is at least 1."""
        return self.count // max(1, self.duration_hours())


def figures_of(window: list[Event]) -> Figures:
    """§2: the aggregates of one key's window."""
    return Figures(
        count=len(window),
        first=min((event.time for event in window), default=0),
        last=max((event.time for event in window), default=0),
        hosts=len({host for event in window for host in event.hosts}),
        entities=len({entity for event in window for entity in event.entities}),
    )


def why_not(figures: Figures, rule: Json) -> str | None:
    """§3 as a list of what is missing, in the order of §5's reasons; None when the condition is true."""
    failures = {
        "expired": figures.count == 0,
        "second_host": figures.hosts > rule["max_hosts"],
        "second_process": figures.entities > rule["max_processes"],
        "no_host": figures.hosts < 1,
        "no_process": figures.entities < 1,
        "duration": figures.duration_hours() < rule["min_duration_hours"],
        "rate": figures.rate() < rule["min_connections_per_hour"],
    }
    return next((reason for reason, failed in failures.items() if failed), None)


# ------------------------------------------------------------------------------------ §5: episodes and alerts


@dataclass
class Episode:
    """What lives from one tick to the next."""

    opened: int
    last_alert: int


@dataclass
class OracleResult:
    """The alerts in their order, and the summary."""

    alerts: list[Json] = field(default_factory=list)
    consumed: int = 0
    counted: int = 0
    filtered_total: int = 0
    late: int = 0
    dead_lettered: dict[str, int] = field(default_factory=dict)
    ticks: int = 0
    suspect_leaps: int = 0


def compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def to_line(alert: Json) -> str:
    """One alert as text: keys sorted, compact, other scripts kept."""
    return compact(alert)


def time_text(ms: int) -> str:
    """ISO with three digits and Z; a signed year outside 0000 to 9999."""
    days, rest = divmod(ms, 24 * HOUR_MS)
    cycles, day_of_cycle = divmod(days + 719_162, 146_097)
    day = date.fromordinal(day_of_cycle + 1)
    year = day.year + 400 * cycles
    year_text = f"{year:04d}" if 0 <= year <= 9999 else f"{year:+05d}"
    seconds, fraction = divmod(rest, 1000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{fraction:03d}"
    return f"{year_text}-{day:%m-%d}T{clock}Z"


def episode_uuid(rule: Json, key: Key, opened: int) -> UUID:
    """design.md 11."""
    text = json.dumps([rule["id"], *key, opened], separators=(",", ":"), ensure_ascii=False)
    return uuid5(uuid5(NAMESPACE_URL, "https://streamdetect/episode"), text)


@dataclass(frozen=True)
class Finding:
    """All that one alert document is made of."""

    tick: int
    rule: Json
    key: Key
    window: list[Event]
    figures: Figures
    opened: int
    action: str
    reason: str | None
    settings: Json
    version: str


def latest_details(window: list[Event]) -> Json:
    """The latest event's; of two in the same millisecond, those that sort last as JSON text."""
    if not window:
        return {}
    newest = max(window, key=lambda event: (event.time, compact(event.details)))
    return newest.details


def host_in_message(host: Json) -> str:
    shown_as = host.get("name") or host.get("id") or "unknown host"
    return ", ".join(shown_as) if isinstance(shown_as, list) else shown_as


def message(finding: Finding, host: Json) -> str:
    key, figures = finding.key, finding.figures
    address = "unknown destination" if key.address is None else key.address
    who = f"{key.process} on {host_in_message(host)}"
    if finding.action == "resolved":
        return f"{who} no longer meets the conditions for {address}: {finding.reason}"
    return (
        f"{who} contacted {address} for {figures.duration_hours()} h at {figures.rate()} connections an hour"
    )


def event_part(finding: Finding, episode: UUID) -> Json:
    figures, severity = finding.figures, finding.rule["severity"]
    alert_id = uuid5(episode, json.dumps([finding.action, finding.tick], separators=(",", ":")))
    part: Json = {
        "kind": "alert",
        "category": ["network"],
        "type": ["info"],
        "module": "streamdetect",
        "dataset": "streamdetect.alert",
        "action": finding.action,
        "id": str(alert_id),
        "severity": severity,
        "risk_score": severity,
    }
    if finding.window:
        part["start"] = time_text(figures.first)
        part["end"] = time_text(figures.last)
        part["duration"] = (figures.last - figures.first) * 1_000_000
    return part


def figures_part(finding: Finding) -> Json:
    """§5: distinct figures above the limit are given as limit + 1."""
    figures, rule = finding.figures, finding.rule
    part = {
        "count_connections": figures.count,
        "duration_hours": figures.duration_hours(),
        "number_of_con_per_hour": figures.rate(),
        "hosts": min(figures.hosts, rule["max_hosts"] + 1),
        "count_unique_pids": min(figures.entities, rule["max_processes"] + 1),
    }
    if finding.window:
        part |= {"first_seen_ms": figures.first, "last_seen_ms": figures.last}
    return part


def pane_counts(finding: Finding) -> list[list[int]]:
    """Only panes with events."""
    interval_ms = finding.settings["interval_ms"]
    counted: dict[int, int] = {}
    for event in finding.window:
        pane = event.time // interval_ms * interval_ms
        counted[pane] = counted.get(pane, 0) + 1
    return [[pane, count] for pane, count in sorted(counted.items())]


def own_part(finding: Finding, episode: UUID) -> Json:
    settings, tick = finding.settings, finding.tick
    seconds = settings["interval_ms"] / 1000
    limits = ("min_connections_per_hour", "min_duration_hours", "max_hosts", "max_processes")
    part: Json = {
        "episode_id": str(episode),
        "action": finding.action,
        "reason": finding.reason,
        "profile": settings["profile"],
        "version": finding.version,
        "window": {
            "start": time_text(tick - settings["lookback_ms"]),
            "end": time_text(tick),
            "interval_seconds": int(seconds) if seconds == int(seconds) else seconds,
        },
        "figures": figures_part(finding),
        "thresholds": {name: finding.rule[name] for name in limits},
        "pane_counts": pane_counts(finding),
    }
    return part | ({} if finding.key.sensor is None else {"sensor": finding.key.sensor})


THREAT = {
    "framework": "MITRE ATT&CK",
    "tactic": {"id": ["TA0011"], "name": ["Command and Control"]},
    "technique": {"id": ["T1071"], "name": ["Application Layer Protocol"]},
}


def related_part(seen: Json) -> Json:
    name = seen.get("host", {}).get("name")
    address = seen.get("destination", {}).get("ip")
    return present(
        {
            "ip": None if address is None else [address],
            "hosts": None if name is None else name if isinstance(name, list) else [name],
        }
    )


def alert_document(finding: Finding) -> Json:
    """The whole document of interface.md."""
    rule, key = finding.rule, finding.key
    episode = episode_uuid(rule, key, finding.opened)
    seen = latest_details(finding.window)
    optional = {"host": seen.get("host"), "user": seen.get("user"), "related": related_part(seen)}
    return present(optional) | {
        "@timestamp": time_text(finding.tick),
        "ecs": {"version": "8.17.0"},
        "event": event_part(finding, episode),
        "message": message(finding, seen.get("host", {})),
        "rule": {
            "uuid": rule["id"],
            "name": rule["name"],
            "category": "Command and Control",
            "reference": "https://attack.mitre.org/techniques/T1071/",
        },
        "threat": THREAT,
        "process": {"name": key.process} | seen.get("process", {}),
        "destination": {"address": key.address} | seen.get("destination", {}),
        "streamdetect": own_part(finding, episode),
    }


# ------------------------------------------------------------------------------------------------- the replay


class Replay:
    """Reads every record first, then walks the ticks."""

    def __init__(self, settings: Json, version: str) -> None:
        self.settings = settings
        self.version = version
        self.rules: list[Json] = settings["rules"]
        self.result = OracleResult()
        self.events: list[Event] = []
        self.clocks: list[PartitionClock] = []
        self.episodes: dict[tuple[int, Key], Episode] = {}

    # ---- reading

    def read_partition(self, records: list[Any]) -> None:
        clock = PartitionClock(self.settings["max_future_jump_ms"])
        self.clocks.append(clock)
        for record in records:
            document, timestamp = record if isinstance(record, tuple) else (record, None)
            self.result.consumed += 1
            self.read_record(clock, document, timestamp)
        self.result.suspect_leaps += bool(clock.run)

    def refuse(self, reason: str) -> None:
        self.result.dead_lettered[reason] = self.result.dead_lettered.get(reason, 0) + 1

    def read_record(self, clock: PartitionClock, document: Any, timestamp: int | None) -> None:
        if isinstance(document, str):
            try:
                document = json.loads(document)
            except ValueError:
                return self.refuse("not_json")
        if not isinstance(document, dict):
            return self.refuse("not_an_object")
        reading = read(document, self.settings["profile"])
        time = event_time(reading)
        if time is None:
            return self.refuse("no_time")
        if timestamp is not None and time > timestamp + self.settings["max_future_skew_ms"]:
            return self.refuse("future_time")
        watermark = clock.watermark(self.settings["lateness_ms"])
        clock.see(time, clock_host(reading))
        return self.sort_event(reading, time, watermark)

    def sort_event(self, reading: Reading, time: int, watermark: float) -> None:
        """design.md 8: filtered before late. §4: t < w_p(e) - L is late."""
        rules = tuple(index for index, rule in enumerate(self.rules) if counts(reading, rule))
        if not rules:
            self.result.filtered_total += 1
        elif time < watermark - self.settings["lookback_ms"]:
            self.result.late += 1
        else:
            self.result.counted += 1
            self.events.append(make_event(reading, time, watermark, rules))

    # ---- ticks

    def walk_ticks(self) -> None:
        """§4: every tick in order, from the first at which any event counts (design.md 9) to the first T
        greater than the newest partition clock. Ticks with an empty window and no open episode only count.
        """
        interval_ms, lookback_ms = self.settings["interval_ms"], self.settings["lookback_ms"]
        clocks = [clock.newest for clock in self.clocks if clock.newest is not None]
        starts = [inclusion_tick(event, interval_ms) for event in self.events]
        starts = [
            tick
            for tick, event in zip(starts, self.events, strict=True)
            if in_window(event, tick, lookback_ms)
        ]
        if not starts:
            return
        tick, last = min(starts), first_tick_after(max(clocks), interval_ms)
        self.result.ticks = max(0, (last - tick) // interval_ms + 1)
        while tick <= last:
            self.evaluate(tick)
            if self.episodes or any(in_window(event, tick, lookback_ms) for event in self.events):
                tick += interval_ms
            else:
                tick = min((start for start in starts if start > tick), default=last + 1)

    def evaluate(self, tick: int) -> None:
        """§5: the alerts of one tick in the order of their keys, then of the rules (design.md 10)."""
        lookback_ms = self.settings["lookback_ms"]
        windows: dict[tuple[int, Key], list[Event]] = {place: [] for place in self.episodes}
        for event in self.events:
            if in_window(event, tick, lookback_ms):
                for index in event.rules:
                    for key in event.keys:
                        windows.setdefault((index, key), []).append(event)
        for index, key in sorted(windows, key=lambda place: (place[1].order(), place[0])):
            self.judge(tick, index, key, windows[index, key])

    def judge(self, tick: int, index: int, key: Key, window: list[Event]) -> None:
        """§5: opened, updated or resolved."""
        rule = self.rules[index]
        figures = figures_of(window)
        reason = why_not(figures, rule)
        episode = self.episodes.get((index, key))
        action = None
        if reason is None and episode is None:
            action = "opened"
            episode = self.episodes[index, key] = Episode(opened=tick, last_alert=tick)
        elif reason is None and episode is not None and tick - episode.last_alert >= rule["renotify_ms"]:
            action = "updated"
            episode.last_alert = tick
        elif reason is not None and episode is not None:
            action = "resolved"
            del self.episodes[index, key]
        if action is not None and episode is not None:
            finding = Finding(
                tick, rule, key, window, figures, episode.opened, action, reason, self.settings, self.version
            )
            self.result.alerts.append(alert_document(finding))


def replay(partitions: list[Any], settings: Json, version: str = "0.1.0") -> OracleResult:
    """What a replay of these partitions under these settings must give."""
    run = Replay(settings, version)
    for records in partitions:
        run.read_partition(records)
    run.walk_ticks()
    return run.result
