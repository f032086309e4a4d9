"""The typed reader: the shapes that fleets send most, decoded straight into the few fields that matter.

Leaves that are text here may be anything in a document; where the type does not fit, msgspec refuses and the
generic reader takes over. It also takes over before a document is counted that may hold dotted field names
(`may_be_dotted`), since those add values that this reader does not see.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from streamdetect.events import shapes, sysmon
from streamdetect.events.generic import Fields, apply_sysmon
from streamdetect.events.values import first_present

# The last part of a field name that matters is made of these; a backslash begins an escaped letter.
_DOTTED_NAME = re.compile(rb'\.[A-Za-z0-9_\\]*"\s*:')


class DataStream(msgspec.Struct, gc=False):
    dataset: str | None = None


class EventBlock(msgspec.Struct, gc=False):
    category: str | list[str] | None = None
    code: Any = None
    dataset: str | None = None
    module: str | None = None
    provider: str | None = None


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
    entity_id: str | None = None
    executable: str | None = None
    name: str | None = None
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
    hostname: str | None = msgspec.field(default=None, name="DestinationHostname")
    port: str | int | None = msgspec.field(default=None, name="DestinationPort")


class Winlog(msgspec.Struct, gc=False):
    """A None field is a name under which nothing but null is taken: what else stands there is not read here."""

    computer_name: str | None = None
    event_data: EventData | None = None
    event_id: Any = None
    provider_name: str | None = None
    dotted_utc_time: None = msgspec.field(default=None, name="event_data.UtcTime")
    dotted_guid: None = msgspec.field(default=None, name="event_data.ProcessGuid")
    dotted_image: None = msgspec.field(default=None, name="event_data.Image")
    dotted_initiated: None = msgspec.field(default=None, name="event_data.Initiated")
    dotted_ip: None = msgspec.field(default=None, name="event_data.DestinationIp")
    dotted_port: None = msgspec.field(default=None, name="event_data.DestinationPort")


class Document(msgspec.Struct, gc=False):
    """A document of Elastic Defend, or of Winlogbeat 7 and later; the nearer to their order of names, the faster.

    None fields are as in `Winlog`: other shapes of Sysmon show by a name of their own, or have its members under dotted
    names. What is dotted elsewhere only adds values to a field; a member of Sysmon takes the place of an ECS field.
    """

    timestamp: Any = msgspec.field(default=None, name="@timestamp")
    agent: Agent | None = None
    data_stream: DataStream | None = None
    event: EventBlock | None = None
    host: Host | None = None
    process: Process | None = None
    user: User | None = None
    destination: Destination | None = None
    network: Network | None = None
    winlog: Winlog | None = None
    tags: Any = None
    winlogbeat6: None = msgspec.field(default=None, name="event_data")
    evtx: None = msgspec.field(default=None, name="Event")
    flat: None = msgspec.field(default=None, name="EventID")
    dotted_provider: None = msgspec.field(default=None, name="winlog.provider_name")
    dotted_event_id: None = msgspec.field(default=None, name="winlog.event_id")
    dotted_event_data: None = msgspec.field(default=None, name="winlog.event_data")
    dotted_utc_time: None = msgspec.field(default=None, name="winlog.event_data.UtcTime")
    dotted_guid: None = msgspec.field(default=None, name="winlog.event_data.ProcessGuid")
    dotted_image: None = msgspec.field(default=None, name="winlog.event_data.Image")
    dotted_initiated: None = msgspec.field(default=None, name="winlog.event_data.Initiated")
    dotted_ip: None = msgspec.field(default=None, name="winlog.event_data.DestinationIp")
    dotted_port: None = msgspec.field(default=None, name="winlog.event_data.DestinationPort")
    dotted_event_provider: None = msgspec.field(default=None, name="event.provider")
    dotted_event_code: None = msgspec.field(default=None, name="event.code")


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
    if provider != sysmon.PROVIDER or not sysmon.is_event_3(winlog.event_id, event.code if event else None):
        return None
    data = winlog.event_data
    if data.utc_time or data.process_guid or data.image or data.ip:  # an empty member is a missing one
        return data
    return None if data.port in (None, "") and data.initiated in (None, "") else data


def wrote(document: Document, data: EventData | None) -> str:
    """Which of `shapes.SHAPES` a typed document is of; `data` is `raw_sysmon(document)`."""
    if data is not None:
        return shapes.RAW_SYSMON
    event, stream = document.event, document.data_stream
    dataset = None if stream is None else stream.dataset
    if event is not None:
        if event.provider == sysmon.PROVIDER or event.module == "sysmon":
            return shapes.ECS_SYSMON
        dataset = dataset or event.dataset
    return shapes.of_dataset(dataset)


def glimpse(document: Document, data: EventData | None) -> tuple[object, object, object]:
    """(direction, port, ip) as they stand in the document, None where missing; `data` is `raw_sysmon(document)`."""
    if data is not None:
        initiated = data.initiated
        direction = None if initiated is None else sysmon.direction(initiated)
        return direction, data.port, data.ip
    network, destination = document.network, document.destination
    direction = None if network is None else network.direction
    if destination is None:
        return direction, None, None
    return direction, destination.port, destination.ip


def fields_of(document: Document, data: EventData | None) -> Fields:
    """All fields of a typed document; `data` is `raw_sysmon(document)`."""
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
    if data is not None:
        apply_sysmon(fields, _as_raw(data))
    return fields


def _read_winlog(fields: Fields, document: Document) -> None:
    """What only a Windows event log shipper writes."""
    if document.tags is not None:
        tags = document.tags
        fields.forwarded = "forwarded" in tags if isinstance(tags, list) else tags == "forwarded"
    winlog = document.winlog
    if fields.dataset == sysmon.DATASET or (winlog is not None and winlog.provider_name == sysmon.PROVIDER):
        fields.sysmon = True
    if winlog is not None:
        fields.computer_name = winlog.computer_name


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
