"""Raw Sysmon Event ID 3 in every shape that shippers make of it (events.md), brought to ECS as Elastic's pipeline does.

A record is raw Sysmon when its provider is Sysmon, its event id is 3 and its event data holds at least one member
that the pipeline would have consumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from streamdetect.events.lookup import Finder
from streamdetect.events.times import read_utc_time

PROVIDER = "Microsoft-Windows-Sysmon"
CHANNEL = "Microsoft-Windows-Sysmon/Operational"
DATASET = "windows.sysmon_operational"
MEMBERS = ("UtcTime", "ProcessGuid", "Image", "DestinationIp", "DestinationPort", "Initiated")

_NO_PROCESS = "00000000-0000-0000-0000-000000000000"
_DIRECTIONS = {"true": "egress", "false": "ingress"}


@dataclass(slots=True)
class RawSysmon:
    """Event data of a raw record, and the endpoint's name."""

    data: Mapping[str, object]
    computer_name: object = None

    @property
    def utc_time_ms(self) -> int | None:
        return read_utc_time(self.data.get("UtcTime"))

    def ecs(self) -> Iterator[tuple[str, object]]:
        """(attribute of Fields, value) for each member that is present; an unreadable one gives None."""
        data = self.data
        if _present(data.get("ProcessGuid")):
            yield "entity_id", entity_id(data["ProcessGuid"])
        if _present(data.get("Image")):
            executable, name = image(data["Image"])
            yield "executable", executable
            yield "process_name", name
        if _present(data.get("ProcessId")):
            yield "pid", process_id(data["ProcessId"])
        if _present(data.get("DestinationIp")):
            yield "ip", data["DestinationIp"]
        if _present(data.get("DestinationPort")):
            yield "port", data["DestinationPort"]
        if _present(data.get("DestinationHostname")):
            hostname = data["DestinationHostname"]
            yield "domain", None if hostname == "-" else hostname
        if _present(data.get("Initiated")):
            yield "direction", direction(data["Initiated"])
        if _present(data.get("User")):
            domain, user = account(data["User"])
            yield "user_domain", domain
            yield "user_name", user


def _present(value: object) -> bool:
    """Beats drops empty values: an empty text is a missing member."""
    return value is not None and value != ""


def entity_id(guid: object) -> str | None:
    """ProcessGuid as it arrived; the all-zero GUID means none."""
    text = str(guid)
    return None if text.strip("{}") == _NO_PROCESS else text


def image(path: object) -> tuple[str | None, str | None]:
    """(executable, name) of an Image; `System` and `<unknown process>` have no backslash, so no name."""
    text = str(path)
    if "\\" not in text:
        return text, None
    return text, text.rsplit("\\", 1)[1] or None


def process_id(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def direction(initiated: object) -> str | None:
    """`Initiated` is text or a boolean; the direction is never inferred from addresses."""
    return _DIRECTIONS.get(str(initiated).lower())


def account(user: object) -> tuple[str | None, str]:
    r"""(domain, name) of `DOMAIN\\name`."""
    domain, backslash, name = str(user).partition("\\")
    return (domain, name) if backslash else (None, domain)


def is_event_3(value: object) -> bool:
    """Event id 3 as a number, as text, or wrapped as `{"#text": 3}`."""
    if isinstance(value, dict):
        value = value.get("#text")
    return not isinstance(value, bool) and value in (3, "3")


def find(document: dict[str, object], field: Finder) -> RawSysmon | None:
    """The raw Sysmon record in a document, or None where there is none. `field` finds the document's fields."""
    for found in (_winlog(field), _winlogbeat6(document), _evtx(document), _flat(document)):
        if found is not None and any(_present(found.data.get(member)) for member in MEMBERS):
            return found
    return None


def _winlog(field: Finder) -> RawSysmon | None:
    """Winlogbeat 7 and later without its module, Elastic Agent, and both through Logstash."""
    provider = field(("winlog", "provider_name")) or field(("event", "provider"))
    event_id = field(("winlog", "event_id"))
    if event_id is None:
        event_id = field(("event", "code"))
    if provider != PROVIDER or not is_event_3(event_id):
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
    """evtx-to-JSON tools: Event.System and Event.EventData, attributes under one of several marks."""
    event = document.get("Event")
    if not isinstance(event, dict):
        return None
    system = event.get("System")
    if not isinstance(system, dict) or not is_event_3(system.get("EventID")):
        return None
    if _attribute(system, "Provider", "Name") != PROVIDER and system.get("Channel") != CHANNEL:
        return None
    return RawSysmon(_event_data(event.get("EventData")), system.get("Computer"))


def written(document: dict[str, object]) -> object:
    """When a record of a shape without @timestamp was written, whatever its event id; None where it does not say."""
    event = document.get("Event")
    if isinstance(event, dict) and isinstance(event.get("System"), dict):
        return _attribute(event["System"], "TimeCreated", "SystemTime")
    if "EventID" in document:
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
    """NXLog (members at the top level) and Azure (`EventData` a JSON text)."""
    if not is_event_3(document.get("EventID")):
        return None
    names = [
        document.get(key) for key in ("SourceName", "ProviderName", "EventSourceName", "Source", "Provider")
    ]
    if PROVIDER not in names and document.get("Channel") != CHANNEL:
        return None
    data = _event_data(document.get("EventData")) if "EventData" in document else document
    computer = document.get("Hostname") or document.get("Computer")
    return RawSysmon(data, computer)


def _event_data(value: object) -> Mapping[str, object]:
    """Event data as an object, as a JSON text, or as a list of named `Data` elements."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
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
            named[str(name)] = item.get("#text", item.get("Value"))
    return named
