"""The typed reader: the shapes that fleets send most, decoded straight into the few fields that matter.

Leaves that are text here may be anything in a document; where the type does not fit, msgspec refuses and the
generic reader takes over. It also takes over where the document may hold dotted field names (`may_be_dotted`), since
those add values that this reader does not see.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from streamdetect.events import sysmon
from streamdetect.events.generic import Fields, apply_sysmon
from streamdetect.events.values import first_present

# The last part of a field name that matters is made of these; a backslash begins an escaped letter.
_DOTTED_NAME = re.compile(rb'\.[A-Za-z0-9_\\]*"\s*:')


class DataStream(msgspec.Struct, gc=False):
    dataset: str | None = None


class EventBlock(msgspec.Struct, gc=False):
    category: Any = None
    dataset: str | None = None
    provider: str | None = None
    module: str | None = None
    code: Any = None


class Os(msgspec.Struct, gc=False):
    family: str | None = None
    type: str | None = None


class Host(msgspec.Struct, gc=False):
    id: str | None = None
    name: str | None = None
    os: Os | None = None


class Agent(msgspec.Struct, gc=False):
    id: str | None = None


class Network(msgspec.Struct, gc=False):
    direction: str | None = None


class Process(msgspec.Struct, gc=False):
    name: str | None = None
    entity_id: str | None = None
    executable: str | None = None
    pid: int | None = None


class Destination(msgspec.Struct, gc=False):
    address: str | None = None
    ip: str | None = None
    port: int | str | None = None
    domain: str | None = None


class User(msgspec.Struct, gc=False):
    name: str | None = None
    domain: str | None = None


class EventData(msgspec.Struct, gc=False, rename="pascal"):
    """Members of a raw record; `ip`, `port` and `hostname` are the destination's."""

    utc_time: str | None = None
    process_guid: str | None = None
    process_id: str | int | None = None
    image: str | None = None
    user: str | None = None
    initiated: str | bool | None = None
    ip: str | None = msgspec.field(default=None, name="DestinationIp")
    port: str | int | None = msgspec.field(default=None, name="DestinationPort")
    hostname: str | None = msgspec.field(default=None, name="DestinationHostname")


class Winlog(msgspec.Struct, gc=False):
    provider_name: str | None = None
    event_id: Any = None
    computer_name: str | None = None
    event_data: EventData | None = None


class Document(msgspec.Struct, gc=False):
    """A document of Elastic Defend, or of Winlogbeat 7 and later; other shapes show by their own names below."""

    timestamp: Any = msgspec.field(default=None, name="@timestamp")
    data_stream: DataStream | None = None
    event: EventBlock | None = None
    host: Host | None = None
    agent: Agent | None = None
    network: Network | None = None
    process: Process | None = None
    destination: Destination | None = None
    user: User | None = None
    winlog: Winlog | None = None
    tags: Any = None
    winlogbeat6: Any = msgspec.field(default=None, name="event_data")
    evtx: Any = msgspec.field(default=None, name="Event")
    flat: Any = msgspec.field(default=None, name="EventID")


def may_be_dotted(raw: bytes) -> bool:
    """Whether a record may hold one of our field names with a dot in it. Wrongly True costs time, never an answer."""
    return _DOTTED_NAME.search(raw) is not None or b"\\u002" in raw


def raw_sysmon(document: Document) -> EventData | None:
    """The event data of a raw Sysmon record, or None where the document is none."""
    winlog = document.winlog
    if winlog is None or winlog.event_data is None:
        return None
    event = document.event
    provider = winlog.provider_name or (event.provider if event else None)
    event_id = winlog.event_id if winlog.event_id is not None or event is None else event.code
    if provider != sysmon.PROVIDER or not sysmon.is_event_3(event_id):
        return None
    data = winlog.event_data
    members = (data.utc_time, data.process_guid, data.image, data.ip, data.port, data.initiated)
    return data if any(member is not None and member != "" for member in members) else None


def glimpse(document: Document) -> tuple[object, object, object]:
    """(direction, port, ip) as they stand in the document, None where missing."""
    data = raw_sysmon(document)
    if data is not None:
        initiated = data.initiated
        direction = None if initiated is None else sysmon.direction(initiated)
        return direction, data.port, data.ip
    network, destination = document.network, document.destination
    direction = None if network is None else network.direction
    if destination is None:
        return direction, None, None
    return direction, destination.port, destination.ip


def fields_of(document: Document) -> Fields:
    """All fields of a typed document."""
    fields = Fields(timestamp=document.timestamp, plain=True)
    event = document.event
    if event is not None:
        fields.category = event.category
        fields.dataset = event.dataset
        fields.sysmon = event.provider == sysmon.PROVIDER or event.module == "sysmon"
    if document.data_stream is not None:
        fields.dataset = first_present(document.data_stream.dataset, fields.dataset)
    host = document.host
    if host is not None:
        fields.host_id = host.id
        fields.host_name = host.name
        if host.os is not None:
            fields.os_family = host.os.family
            fields.os_type = host.os.type
    if document.agent is not None:
        fields.agent_id = document.agent.id
    if document.network is not None:
        fields.direction = document.network.direction
    _read_process(fields, document)
    _read_winlog(fields, document)
    return fields


def _read_winlog(fields: Fields, document: Document) -> None:
    """What only a Windows event log shipper writes, and the pipeline's work where none has run."""
    if document.tags is not None:
        tags = document.tags
        fields.forwarded = "forwarded" in tags if isinstance(tags, list) else tags == "forwarded"
    winlog = document.winlog
    if fields.dataset == sysmon.DATASET or (winlog is not None and winlog.provider_name == sysmon.PROVIDER):
        fields.sysmon = True
    if winlog is not None:
        fields.computer_name = winlog.computer_name
        data = raw_sysmon(document)
        if data is not None:
            apply_sysmon(fields, _as_raw(data))


def _read_process(fields: Fields, document: Document) -> None:
    """The process, its user, and where it went."""
    process = document.process
    if process is not None:
        fields.process_name = process.name
        fields.entity_id = process.entity_id
        fields.executable = process.executable
        fields.pid = process.pid
    destination = document.destination
    if destination is not None:
        fields.address = destination.address
        fields.ip = destination.ip
        fields.port = destination.port
        fields.domain = destination.domain
    user = document.user
    if user is not None:
        fields.user_name = user.name
        fields.user_domain = user.domain


def _as_raw(data: EventData) -> sysmon.RawSysmon:
    members = {
        "UtcTime": data.utc_time,
        "ProcessGuid": data.process_guid,
        "ProcessId": data.process_id,
        "Image": data.image,
        "User": data.user,
        "Initiated": data.initiated,
        "DestinationIp": data.ip,
        "DestinationPort": data.port,
        "DestinationHostname": data.hostname,
    }
    return sysmon.RawSysmon(members)
