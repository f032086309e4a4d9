"""Oracle: the slow, direct computation of docs/semantics.md that the fast code is compared with.

Rule of this file: it imports nothing from streamdetect and optimises nothing. It keeps every event, and at every tick
it computes every key's window again from all of them, by the formulas of docs/semantics.md. The only state carried
from one tick to the next is the open episode of a key. Each rule cites its section (§).

    replay(partitions, settings) -> OracleResult

A partition is a list of records in offset order: a dict is a parsed JSON document, a str is a raw line (which need not
be a JSON object), and a tuple (document, record timestamp in ms) is a Kafka record. Settings are flat: see
default_settings.
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
    """The default rule: the hunt of docs/semantics.md."""
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
    """The defaults of docs/reference.md, with durations in milliseconds."""
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


# -------------------------------------------------------------------------------- §1: fields, values and times


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
    """§1: numbers and booleans in a text field are their JSON text."""
    return value if isinstance(value, str) else json.dumps(value)


def keywords(fields: Fields, name: str) -> list[str]:
    """§1: a keyword longer than 1,024 UTF-16 code units is missing, value by value."""
    texts = [as_text(value) for value in fields.get(name, [])]
    return [text for text in texts if len(text.encode("utf-16-le")) // 2 <= 1024]


def only(values: Iterable[Any]) -> Any:
    """The only distinct value; None if there are none or several."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def whole_number(value: Any) -> int | None:
    """§1: a port is a number or the text of one, truncated to a whole number of 64 bits."""
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
    """§1: a valid address. A mapped one becomes IPv4. A zone is dropped from IPv6 and makes others malformed."""
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
    """§1: an entry without a prefix is one address; a mapped network is the IPv4 network."""
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
    """Days in the proleptic calendar, including year 0. Raises ValueError for a date that does not exist."""
    cycles, year_of_cycle = divmod(year, 400)
    return date(year_of_cycle + 400, month, day).toordinal() - 719_163 + (cycles - 1) * 146_097


def iso_ms(text: str, resilient: bool) -> int | None:
    """§1: ISO 8601 as Elasticsearch accepts it; digits beyond milliseconds are truncated."""
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
    """§1: ISO text, or epoch milliseconds as a number or as text of 5 digits or more; a fraction is truncated."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        whole = int(value) if abs(value) < 2**63 else None
    elif found := EPOCH_TEXT.fullmatch(value):
        whole = int(found[1])
    else:
        return iso_ms(value, resilient)
    return whole if whole is not None and -(2**63) <= whole < 2**63 else None


# --------------------------------------------------------------------------------------- raw Sysmon Event ID 3

# provider, event id, prefix of the event data: Winlogbeat >= 8, Winlogbeat 6, NXLog
RAW_SHAPES = (
    ("winlog.provider_name", ("winlog.event_id", "event.code"), "winlog.event_data."),
    ("source_name", ("event_id",), "event_data."),
    ("SourceName", ("EventID",), ""),
)
RAW_IDENTIFYING = ("UtcTime", "ProcessGuid", "Image", "DestinationIp", "DestinationPort", "Initiated")
RAW_MEMBERS = (*RAW_IDENTIFYING, "ProcessId", "User", "DestinationHostname")
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", re.ASCII)


def raw_sysmon(fields: Fields) -> Fields | None:
    """The event data of a raw Sysmon Event ID 3 document; None for any other document."""
    for provider, ids, prefix in RAW_SHAPES:
        event_id = next((fields[name] for name in ids if name in fields), [])
        if SYSMON not in keywords(fields, provider) or "3" not in map(as_text, event_id):
            continue
        data = {name: fields[prefix + name] for name in RAW_MEMBERS if prefix + name in fields}
        if any(member in data for member in RAW_IDENTIFYING):
            return data
    return None


def texts(data: Fields, member: str) -> list[str]:
    return [as_text(value) for value in data[member]]


def is_zero_guid(text: str) -> bool:
    """The all-zero GUID means a missing value."""
    return not text.strip("{}0-") and "0" in text


def overlay(fields: Fields, data: Fields) -> Fields:
    """The fields after the pipeline: event data members that are present override ECS fields."""
    result = fields | {"event.category": ["network"]}
    if "ProcessGuid" in data:
        result["process.entity_id"] = [text for text in texts(data, "ProcessGuid") if not is_zero_guid(text)]
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
        normalised = {"true": "egress", "false": "ingress"}
        result["network.direction"] = [
            normalised[text] for text in texts(data, "Initiated") if text in normalised
        ]
    return result | (user_fields(texts(data, "User")) if "User" in data else {})


def user_fields(users: list[str]) -> Fields:
    """A user is split at the first backslash into domain and name; without one it is a name only."""
    parts = [user.split("\\", 1) for user in users]
    return {
        "user.name": [part[-1] for part in parts],
        "user.domain": [part[0] for part in parts if len(part) == 2],
    }


# ------------------------------------------------------------------------------ §7: a document under a profile


@dataclass(frozen=True)
class Reading:
    """One document under a profile: its fields after the pipeline, and its raw Sysmon event data."""

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
    """UtcTime of raw Sysmon, else @timestamp, which must have exactly one value."""
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
    """§7: whether the host block and the agent of a Sysmon document are the collector's."""
    if not reading.resilient or not is_sysmon(reading):
        return False
    own = {first_label(name) for name in reading.keywords("host.name")}
    computer = {first_label(name) for name in computer_names(reading)}
    return "forwarded" in reading.keywords("tags") or bool(own and computer and not own & computer)


def host_ids(reading: Reading) -> list[str]:
    """§7: host.id, else the computer name, else agent.id; as received."""
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
    """§4: host.id, else host.name, else the computer name; a missing host counts as one host."""
    found = reading.keywords("host.id") or reading.keywords("host.name") or computer_names(reading)
    return comparable_ids(found, reading.resilient)


def os_families(reading: Reading) -> list[str]:
    """§7: host.os.family, else host.os.type, else windows if the provider is Sysmon."""
    family = reading.keywords("host.os.family")
    if family or not reading.resilient:
        return family
    return reading.keywords("host.os.type") or (["windows"] if is_sysmon(reading) else [])


def directions(reading: Reading) -> list[str]:
    """§7: outbound is read as egress, inbound as ingress."""
    normalised = {"outbound": "egress", "inbound": "ingress"} if reading.resilient else {}
    return [normalised.get(text, text) for text in reading.keywords("network.direction")]


def process_name(reading: Reading) -> str | None:
    """§7: process names compare without case; the key has the lower-case form."""
    names = reading.keywords("process.name")
    name: str | None = only(text.lower() if reading.resilient else text for text in names)
    return name


def destination_ip(reading: Reading) -> Address | None:
    """§1: malformed addresses are dropped before values are counted; equal addresses are one value."""
    found = map(address_of, reading.fields.get("destination.ip", []))
    address: Address | None = only(address for address in found if address is not None)
    return address


def destination_port(reading: Reading) -> int | None:
    """§1: malformed ports are dropped before values are counted; equal numbers are several values."""
    found = [whole_number(value) for value in reading.fields.get("destination.port", [])]
    ports = [port for port in found if port is not None]
    return ports[0] if len(ports) == 1 else None


def canonical_address(text: str) -> str:
    """§7: an IP as RFC 5952 text, a mapped one as IPv4; a name in lower case."""
    address = address_of(text)
    return text.lower() if address is None else str(address)


def addresses(reading: Reading) -> list[str | None]:
    """§2: each distinct value belongs to a key of its own; none gives the null key. §7: falls back to the IP."""
    found = reading.keywords("destination.address")
    if not reading.resilient:
        return list(set(found)) or [None]
    return list({canonical_address(text) for text in found}) or [str(destination_ip(reading))]


# ------------------------------------------------------------------------------------- §1: which events count


def is_connection(reading: Reading) -> bool:
    """§1: the conditions common to all rules; a missing value fails."""
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
    """§1: an exception matches when all its fields match; a field left out matches everything."""
    destination, process, host = (exception.get(name) for name in ("destination", "process", "host"))
    return (
        (destination is None or matches_destination(reading, destination))
        and (process is None or process_name(reading) == (process.lower() if reading.resilient else process))
        and (host is None or matches_host(reading, host))
    )


def matches_destination(reading: Reading, destination: str) -> bool:
    """A destination is an address as the key has it, or a network that contains the IP."""
    wanted = canonical_address(destination) if reading.resilient else destination
    if wanted in addresses(reading):
        return True
    address = destination_ip(reading)
    try:
        return address is not None and in_network(address, destination)
    except ValueError:
        return False


def matches_host(reading: Reading, host: str) -> bool:
    """A host is an id or a name."""
    ids = comparable_ids(host_ids(reading) + host_names(reading), reading.resilient)
    return bool(comparable_ids([host], reading.resilient) & ids)


# ---------------------------------------------------------------------------------------- context of an event


def context_value(values: list[str]) -> str | list[str] | None:
    """As received: one distinct value as text, several as a sorted list, none as None."""
    distinct = sorted(set(values))
    return distinct[0] if len(distinct) == 1 else distinct or None


def without_absent(members: Json) -> Json:
    """Leaves out absent fields and empty objects."""
    return {name: value for name, value in members.items() if value is not None and value != {}}


def pid_of(reading: Reading) -> int | None:
    values = reading.fields.get("process.pid", [])
    pids = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    pid: int | None = only(pids)
    return pid


def event_context(reading: Reading) -> Json:
    """The fields of the latest event that an alert shows besides the key."""
    domains = reading.keywords("destination.domain")
    if reading.resilient:
        domains = [domain for domain in domains if domain not in ("", "-")]
    destination = {
        "ip": str(destination_ip(reading)),
        "port": destination_port(reading),
        "domain": context_value(domains),
    }
    process = {
        "entity_id": context_value(reading.keywords("process.entity_id")),
        "pid": pid_of(reading),
        "executable": context_value(reading.keywords("process.executable")),
    }
    user = {
        "name": context_value(reading.keywords("user.name")),
        "domain": context_value(reading.keywords("user.domain")),
    }
    host = {"id": context_value(host_ids(reading)), "name": context_value(host_names(reading))}
    return without_absent(
        {
            "destination": without_absent(destination),
            "host": without_absent(host),
            "process": without_absent(process),
            "user": without_absent(user),
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
    """An event that counts for at least one rule, with the input of every formula."""

    time: int
    watermark: float  # §4: w_p(e), the partition's watermark before the event
    rules: tuple[int, ...]
    keys: tuple[Key, ...]
    hosts: frozenset[str]
    entities: frozenset[str]
    context: Json


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
        context=event_context(reading),
    )


# --------------------------------------------------------------------------------------------- §4: event time


@dataclass
class PartitionClock:
    """§4: C_p (`newest`) and the run of records too far ahead of it."""

    jump_ms: int
    newest: int | None = None
    run: list[tuple[int, frozenset[str]]] = field(default_factory=list)

    def watermark(self, lateness_ms: int) -> float:
        return MINUS_INFINITY if self.newest is None else self.newest - lateness_ms

    def observe(self, time: int, host: frozenset[str]) -> None:
        """Any record with a usable time moves C_p, except a leap, which is added to the run."""
        if self.newest is None:
            self.newest = time
        elif time <= self.newest + self.jump_ms:
            self.newest = max(self.newest, time)
            self.run = []
        else:
            self.run.append((time, host))
            self.move_if_believed()

    def move_if_believed(self) -> None:
        """A run of two hosts or 100 records sets C_p to its smallest time; then the last record is evaluated again."""
        if len({host for _, host in self.run}) < 2 and len(self.run) < 100:
            return
        last_time, last_host = self.run[-1]
        self.newest = min(time for time, _ in self.run)
        self.run = []
        self.observe(last_time, last_host)


def in_window(event: Event, tick: int, lookback_ms: int) -> bool:
    """§4: T - L <= t < T and w_p(e) < T."""
    return tick - lookback_ms <= event.time < tick and event.watermark < tick


def first_tick_after(time: float, interval_ms: int) -> int:
    return int(time // interval_ms) * interval_ms + interval_ms


def first_including_tick(event: Event, interval_ms: int) -> int:
    """The first T = k * I with t < T and w_p(e) < T."""
    return first_tick_after(max(event.time, event.watermark), interval_ms)


# ------------------------------------------------------------------------------------- §2 and §3: the figures


@dataclass(frozen=True)
class Figures:
    """§2: the aggregates of one key's window, not capped."""

    count: int
    first: int
    last: int
    hosts: int
    entities: int

    def duration_hours(self) -> int:
        """§3: half hours round up."""
        return (self.last - self.first + 1_800_000) // HOUR_MS

    def rate(self) -> int:
        """§3 and design.md 6: the divisor is at least 1."""
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


def failed_condition(figures: Figures, rule: Json) -> str | None:
    """The first failed condition of §3, in the order of §5's reasons; None when all hold."""
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
    """The state carried from one tick to the next."""

    opened: int
    last_alert: int


@dataclass
class OracleResult:
    """The alerts in order, and the counts of the summary."""

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
    """One alert as text: sorted keys, compact, non-ASCII characters unescaped."""
    return compact(alert)


def time_text(ms: int) -> str:
    """ISO with three fraction digits and Z; the year has a sign outside 0000 to 9999."""
    days, rest = divmod(ms, 24 * HOUR_MS)
    cycles, day_of_cycle = divmod(days + 719_162, 146_097)
    day = date.fromordinal(day_of_cycle + 1)
    year = day.year + 400 * cycles
    year_text = f"{year:04d}" if 0 <= year <= 9999 else f"{year:+05d}"
    seconds, fraction = divmod(rest, 1000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{fraction:03d}"
    return f"{year_text}-{day:%m-%d}T{clock}Z"


def episode_uuid(rule: Json, key: Key, opened: int) -> UUID:
    """design.md 11: the UUIDv5 of the episode."""
    text = json.dumps([rule["id"], *key, opened], separators=(",", ":"), ensure_ascii=False)
    return uuid5(uuid5(NAMESPACE_URL, "https://streamdetect/episode"), text)


@dataclass(frozen=True)
class Decision:
    """Everything that one alert document is built from."""

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


def latest_context(window: list[Event]) -> Json:
    """The context of the latest event; of two in the same millisecond, the one that sorts last as JSON text."""
    if not window:
        return {}
    newest = max(window, key=lambda event: (event.time, compact(event.context)))
    return newest.context


def host_in_message(host: Json) -> str:
    name = host.get("name") or host.get("id") or "unknown host"
    return ", ".join(name) if isinstance(name, list) else name


def message(decision: Decision, host: Json) -> str:
    key, figures = decision.key, decision.figures
    address = "unknown destination" if key.address is None else key.address
    subject = f"{key.process} on {host_in_message(host)}"
    if decision.action == "resolved":
        return f"{subject} no longer meets the conditions for {address}: {decision.reason}"
    return f"{subject} contacted {address} for {figures.duration_hours()} h at {figures.rate()} connections an hour"


def event_object(decision: Decision, episode: UUID) -> Json:
    figures, severity = decision.figures, decision.rule["severity"]
    alert_id = uuid5(episode, json.dumps([decision.action, decision.tick], separators=(",", ":")))
    part: Json = {
        "kind": "alert",
        "category": ["network"],
        "type": ["info"],
        "module": "streamdetect",
        "dataset": "streamdetect.alert",
        "action": decision.action,
        "id": str(alert_id),
        "severity": severity,
        "risk_score": severity,
    }
    if decision.window:
        part["start"] = time_text(figures.first)
        part["end"] = time_text(figures.last)
        part["duration"] = (figures.last - figures.first) * 1_000_000
    return part


def figures_object(decision: Decision) -> Json:
    """§5: distinct hosts and processes above the limit are reported as limit + 1."""
    figures, rule = decision.figures, decision.rule
    part = {
        "count_connections": figures.count,
        "duration_hours": figures.duration_hours(),
        "number_of_con_per_hour": figures.rate(),
        "hosts": min(figures.hosts, rule["max_hosts"] + 1),
        "count_unique_pids": min(figures.entities, rule["max_processes"] + 1),
    }
    if decision.window:
        part |= {"first_seen_ms": figures.first, "last_seen_ms": figures.last}
    return part


def pane_counts(decision: Decision) -> list[list[int]]:
    """Panes with events only."""
    interval_ms = decision.settings["interval_ms"]
    counted: dict[int, int] = {}
    for event in decision.window:
        pane = event.time // interval_ms * interval_ms
        counted[pane] = counted.get(pane, 0) + 1
    return [[pane, count] for pane, count in sorted(counted.items())]


def streamdetect_object(decision: Decision, episode: UUID) -> Json:
    settings, tick = decision.settings, decision.tick
    seconds = settings["interval_ms"] / 1000
    limits = ("min_connections_per_hour", "min_duration_hours", "max_hosts", "max_processes")
    part: Json = {
        "episode_id": str(episode),
        "action": decision.action,
        "reason": decision.reason,
        "profile": settings["profile"],
        "version": decision.version,
        "window": {
            "start": time_text(tick - settings["lookback_ms"]),
            "end": time_text(tick),
            "interval_seconds": int(seconds) if seconds == int(seconds) else seconds,
        },
        "figures": figures_object(decision),
        "thresholds": {name: decision.rule[name] for name in limits},
        "pane_counts": pane_counts(decision),
    }
    return part | ({} if decision.key.sensor is None else {"sensor": decision.key.sensor})


THREAT = {
    "framework": "MITRE ATT&CK",
    "tactic": {"id": ["TA0011"], "name": ["Command and Control"]},
    "technique": {"id": ["T1071"], "name": ["Application Layer Protocol"]},
}


def related_object(context: Json) -> Json:
    name = context.get("host", {}).get("name")
    address = context.get("destination", {}).get("ip")
    return without_absent(
        {
            "ip": None if address is None else [address],
            "hosts": None if name is None else name if isinstance(name, list) else [name],
        }
    )


def alert_document(decision: Decision) -> Json:
    """The alert document of docs/reference.md."""
    rule, key = decision.rule, decision.key
    episode = episode_uuid(rule, key, decision.opened)
    context = latest_context(decision.window)
    optional = {"host": context.get("host"), "user": context.get("user"), "related": related_object(context)}
    return without_absent(optional) | {
        "@timestamp": time_text(decision.tick),
        "ecs": {"version": "8.17.0"},
        "event": event_object(decision, episode),
        "message": message(decision, context.get("host", {})),
        "rule": {
            "uuid": rule["id"],
            "name": rule["name"],
            "category": "Command and Control",
            "reference": "https://attack.mitre.org/techniques/T1071/",
        },
        "threat": THREAT,
        "process": {"name": key.process} | context.get("process", {}),
        "destination": {"address": key.address} | context.get("destination", {}),
        "streamdetect": streamdetect_object(decision, episode),
    }


# ------------------------------------------------------------------------------------------------- the replay


class Replay:
    """Reads every record first, then evaluates the ticks."""

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

    def dead_letter(self, reason: str) -> None:
        self.result.dead_lettered[reason] = self.result.dead_lettered.get(reason, 0) + 1

    def read_record(self, clock: PartitionClock, document: Any, timestamp: int | None) -> None:
        if isinstance(document, str):
            try:
                document = json.loads(document)
            except ValueError:
                return self.dead_letter("not_json")
        if not isinstance(document, dict):
            return self.dead_letter("not_an_object")
        reading = read(document, self.settings["profile"])
        time = event_time(reading)
        if time is None:
            return self.dead_letter("no_time")
        if timestamp is not None and time > timestamp + self.settings["max_future_skew_ms"]:
            return self.dead_letter("future_time")
        watermark = clock.watermark(self.settings["lateness_ms"])
        clock.observe(time, clock_host(reading))
        return self.classify(reading, time, watermark)

    def classify(self, reading: Reading, time: int, watermark: float) -> None:
        """design.md 8: the filter comes before the late check. §4: t < w_p(e) - L is late."""
        rules = tuple(index for index, rule in enumerate(self.rules) if counts(reading, rule))
        if not rules:
            self.result.filtered_total += 1
        elif time < watermark - self.settings["lookback_ms"]:
            self.result.late += 1
        else:
            self.result.counted += 1
            self.events.append(make_event(reading, time, watermark, rules))

    # ---- ticks

    def evaluate_ticks(self) -> None:
        """§4: every tick in order, from the first at which any event counts (design.md 9) to the first T greater than
        the newest partition clock. A tick with an empty window and no open episode is only counted.
        """
        interval_ms, lookback_ms = self.settings["interval_ms"], self.settings["lookback_ms"]
        clocks = [clock.newest for clock in self.clocks if clock.newest is not None]
        starts = [first_including_tick(event, interval_ms) for event in self.events]
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
        """§5: the alerts of one tick, in the order of their keys, then of the rules (design.md 10)."""
        lookback_ms = self.settings["lookback_ms"]
        windows: dict[tuple[int, Key], list[Event]] = {place: [] for place in self.episodes}
        for event in self.events:
            if in_window(event, tick, lookback_ms):
                for index in event.rules:
                    for key in event.keys:
                        windows.setdefault((index, key), []).append(event)
        for index, key in sorted(windows, key=lambda place: (place[1].order(), place[0])):
            self.evaluate_key(tick, index, key, windows[index, key])

    def evaluate_key(self, tick: int, index: int, key: Key, window: list[Event]) -> None:
        """§5: opened, updated or resolved."""
        rule = self.rules[index]
        figures = figures_of(window)
        reason = failed_condition(figures, rule)
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
            decision = Decision(
                tick, rule, key, window, figures, episode.opened, action, reason, self.settings, self.version
            )
            self.result.alerts.append(alert_document(decision))


def replay(partitions: list[Any], settings: Json, version: str = "0.1.0") -> OracleResult:
    """The expected result of a replay of these partitions under these settings."""
    run = Replay(settings, version)
    for records in partitions:
        run.read_partition(records)
    run.evaluate_ticks()
    return run.result
