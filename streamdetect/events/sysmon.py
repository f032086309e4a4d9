"""Raw Sysmon Event ID 3 in every shape of the shippers (docs/events.md), mapped to ECS as Elastic's pipeline does.

A record is raw Sysmon when its provider is Sysmon, its event id is 3 and its event data has at least one member
that the pipeline would have consumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from streamdetect.events import jsontext
from streamdetect.events.paths import Finder
from streamdetect.events.times import read_utc_time
from streamdetect.events.values import flatten, has_float, is_missing, text_of

PROVIDER = "Microsoft-Windows-Sysmon"
CHANNEL = "Microsoft-Windows-Sysmon/Operational"
DATASET = "windows.sysmon_operational"
MEMBERS = ("UtcTime", "ProcessGuid", "Image", "DestinationIp", "DestinationPort", "Initiated")

_NO_PROCESS = "00000000-0000-0000-0000-000000000000"
_DIRECTIONS = {"true": "egress", "false": "ingress"}


@dataclass(slots=True)
class RawSysmon:
    """Event data of a raw record, and the name of the endpoint."""

    data: Mapping[str, object]
    computer_name: object = None

    @property
    def utc_time_ms(self) -> int | None:
        """The first `UtcTime` that is a time."""
        found = [read_utc_time(text) for text in _texts(self.data.get("UtcTime"))]
        return next((time_ms for time_ms in found if time_ms is not None), None)

    def ecs(self) -> Iterator[tuple[str, object]]:
        """(attribute of Fields, value) for each member that is present; the value is None if malformed."""
        data = self.data
        for member, name, read in _ECS:
            value = data.get(member)
            if type(value) is str:
                if value:
                    yield name, value if read is None else read(value)
            elif value is not None and (texts := _texts(value)):
                yield name, value if read is None else _each(read, texts)


def _texts(value: object) -> list[str]:
    """The values of a member, mostly one. Beats drops empty values, so an empty text is a missing member."""
    if type(value) is str:
        return [value] if value else []
    return [text for text in map(text_of, flatten(value)) if text]


def _each(read: Callable[[str], object], texts: list[str]) -> object:
    """The values read from `texts`: one, a list of several, or None."""
    found = [value for value in map(read, texts) if value is not None]
    return found[0] if len(found) == 1 else found or None


def _entity_id(guid: str) -> str | None:
    """ProcessGuid unchanged; the all-zero GUID means none."""
    return None if guid.strip("{}") == _NO_PROCESS else guid


def _image_name(image: str) -> str | None:
    """The name after the last backslash; `System` and `<unknown process>` have none."""
    return image.rpartition("\\")[2] or None if "\\" in image else None


def _process_id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def direction(initiated: object) -> str | None:
    """`Initiated` is text or a boolean; the direction is never inferred from addresses."""
    return _DIRECTIONS.get(text_of(initiated).lower())


def _user_domain(user: str) -> str | None:
    r"""The first part of `DOMAIN\name`."""
    domain, backslash, _ = user.partition("\\")
    return domain if backslash else None


def _user_name(user: str) -> str:
    domain, backslash, name = user.partition("\\")
    return name if backslash else domain


def domain(hostname: str) -> str | None:
    """DestinationHostname; Sysmon writes `-` for none."""
    return None if hostname == "-" else hostname


# (member, attribute of Fields, function of a text); without a function the value is unchanged.
_ECS: tuple[tuple[str, str, Callable[[str], object] | None], ...] = (
    ("ProcessGuid", "entity_id", _entity_id),
    ("Image", "executable", str),
    ("Image", "process_name", _image_name),
    ("ProcessId", "pid", _process_id),
    ("DestinationIp", "ip", None),
    ("DestinationPort", "port", None),
    ("DestinationHostname", "domain", domain),
    ("Initiated", "direction", direction),
    ("User", "user_domain", _user_domain),
    ("User", "user_name", _user_name),
)


def is_event_3(value: object, otherwise: object = None) -> bool:
    """Whether an event id is 3: a number, a text, or `{"#text": 3}`. `otherwise` is used if it is missing."""
    if value in (3, "3"):
        return True
    if isinstance(value, dict):
        return value.get("#text") in (3, "3")
    return is_missing(value) and otherwise is not None and is_event_3(otherwise)


def find(document: dict[str, object], field: Finder) -> RawSysmon | None:
    """The raw Sysmon record in a document, or None. `field` finds the document's fields."""
    for found in (_winlog(field), _winlogbeat6(document), _evtx(document), _flat(document)):
        if found is not None and any(_texts(found.data.get(member)) for member in MEMBERS):
            return found
    return None


def _winlog(field: Finder) -> RawSysmon | None:
    """Winlogbeat 7 and later without its module, Elastic Agent, and both through Logstash."""
    provider = field(("winlog", "provider_name")) or field(("event", "provider"))
    if provider != PROVIDER or not is_event_3(field(("winlog", "event_id")), field(("event", "code"))):
        return None
    names = (*MEMBERS, "ProcessId", "User", "DestinationHostname")
    data = {name: field(("winlog", "event_data", name)) for name in names}
    return RawSysmon(data, field(("winlog", "computer_name")))


def _winlogbeat6(document: dict[str, object]) -> RawSysmon | None:
    data = document.get("event_data")
    if document.get("source_name") != PROVIDER or not is_event_3(document.get("event_id")):
        return None
    return RawSysmon(data, document.get("computer_name")) if isinstance(data, dict) else None


def _evtx(document: dict[str, object]) -> RawSysmon | None:
    """evtx-to-JSON tools: Event.System and Event.EventData, attributes in one of several notations."""
    event = document.get("Event")
    if not isinstance(event, dict):
        return None
    system = event.get("System")
    if not isinstance(system, dict) or not is_event_3(system.get("EventID")):
        return None
    if _attribute(system, "Provider", "Name") != PROVIDER and system.get("Channel") != CHANNEL:
        return None
    return RawSysmon(_event_data(event.get("EventData")), system.get("Computer"))


def time_written(document: dict[str, object]) -> object:
    """The time at which a record of a shape without @timestamp was written, for any event id; None if it has none."""
    event = document.get("Event")
    if isinstance(event, dict) and isinstance(event.get("System"), dict):
        return _attribute(event["System"], "TimeCreated", "SystemTime")
    if not is_missing(document.get("EventID")):
        return document.get("TimeGenerated") or document.get("TimeCreated") or document.get("time")
    return None


def _attribute(system: dict[str, object], element: str, name: str) -> object:
    """An XML attribute as evtx tools write it: `@Name`, `#attributes`, or a sibling `Provider_attributes`."""
    for holder in (system.get(element), system.get(element + "_attributes")):
        if isinstance(holder, dict):
            inner = holder.get("#attributes")
            attributes = inner if isinstance(inner, dict) else holder
            for key in (name, "@" + name):
                if key in attributes:
                    return attributes[key]
    return None


def _flat(document: dict[str, object]) -> RawSysmon | None:
    """NXLog (members at the top level) and Azure (`EventData` is a JSON text)."""
    if not is_event_3(document.get("EventID")):
        return None
    names = [
        document.get(key) for key in ("SourceName", "ProviderName", "EventSourceName", "Source", "Provider")
    ]
    if PROVIDER not in names and document.get("Channel") != CHANNEL:
        return None
    data = document.get("EventData")
    data = document if is_missing(data) else _event_data(data)
    computer = document.get("Hostname") or document.get("Computer")
    return RawSysmon(data, computer)


def _event_data(value: object) -> Mapping[str, object]:
    """Event data as an object, as a JSON text, or as a list of named `Data` elements."""
    if not isinstance(value, str):
        return _members(value)
    raw = value.encode()
    try:
        members = _members(jsontext.parse(raw))
        return _members(jsontext.parse_exactly(raw)) if has_float(members.values()) else members
    except jsontext.NotJsonError:
        return {}


def _members(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        return {}
    items = value.get("Data")
    if not isinstance(items, list):
        return value
    named: dict[str, object] = {}
    for item in items:
        if isinstance(item, dict):
            name = item.get("@Name") or item.get("Name")
            inner = item.get("#attributes")
            if name is None and isinstance(inner, dict):
                name = inner.get("Name")
            if isinstance(name, str):
                named[name] = item.get("#text", item.get("Value"))
    return named
