"""The typed reader: the most frequent shapes, decoded directly into the few fields that are used.

Where a value does not have the type declared here, msgspec raises and the generic reader is used. The same holds for
fields under a dotted name (`"host.os": {"family": …}`) and for other Sysmon shapes: each of those names is declared
here with a type that accepts only null. So a document that decodes has no used field elsewhere.

All types are frozen, because parts of documents are cache keys (`event.py`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamdetect.events import shapes, sysmon


class DataStream(msgspec.Struct, frozen=True, gc=False):
    dataset: str | None = None


class EventBlock(msgspec.Struct, frozen=True, gc=False):
    category: str | tuple[str, ...] | None = None
    code: str | int | None = None
    dataset: str | None = None
    module: str | None = None
    provider: str | None = None


class Os(msgspec.Struct, frozen=True, gc=False):
    family: str | None = None
    type: str | None = None


class Host(msgspec.Struct, frozen=True, gc=False):
    id: str | None = None
    name: str | None = None
    os: Os = Os()
    dotted_family: None = msgspec.field(default=None, name="os.family")
    dotted_type: None = msgspec.field(default=None, name="os.type")


class Agent(msgspec.Struct, frozen=True, gc=False):
    id: str | None = None


class Network(msgspec.Struct, frozen=True, gc=False):
    direction: str | None = None


class Process(msgspec.Struct, frozen=True, gc=False):
    entity_id: str | None = None
    executable: str | None = None
    name: str | None = None
    pid: int | None = None


class Destination(msgspec.Struct, frozen=True, gc=False):
    address: str | None = None
    ip: str | None = None
    port: int | str | None = None
    domain: str | None = None


class User(msgspec.Struct, frozen=True, gc=False):
    name: str | None = None
    domain: str | None = None


class EventData(msgspec.Struct, frozen=True, gc=False, rename="pascal"):
    """Members of a raw record; `ip`, `port` and `hostname` are of the destination."""

    utc_time: str | None = None
    process_guid: str | None = None
    process_id: str | int | None = None
    image: str | None = None
    user: str | None = None
    initiated: str | bool | None = None
    ip: str | None = msgspec.field(default=None, name="DestinationIp")
    hostname: str | None = msgspec.field(default=None, name="DestinationHostname")
    port: str | int | None = msgspec.field(default=None, name="DestinationPort")


class Winlog(msgspec.Struct, frozen=True, gc=False):
    computer_name: str | None = None
    event_data: EventData | None = None
    event_id: str | int | None = None
    provider_name: str | None = None
    dotted_utc_time: None = msgspec.field(default=None, name="event_data.UtcTime")
    dotted_guid: None = msgspec.field(default=None, name="event_data.ProcessGuid")
    dotted_process_id: None = msgspec.field(default=None, name="event_data.ProcessId")
    dotted_image: None = msgspec.field(default=None, name="event_data.Image")
    dotted_user: None = msgspec.field(default=None, name="event_data.User")
    dotted_initiated: None = msgspec.field(default=None, name="event_data.Initiated")
    dotted_ip: None = msgspec.field(default=None, name="event_data.DestinationIp")
    dotted_port: None = msgspec.field(default=None, name="event_data.DestinationPort")
    dotted_hostname: None = msgspec.field(default=None, name="event_data.DestinationHostname")


class Document(msgspec.Struct, frozen=True, gc=False):
    """A document of Elastic Defend, or of Winlogbeat 7 and later. Decoding is fastest with fields in this order."""

    timestamp: Any = msgspec.field(default=None, name="@timestamp")
    agent: Agent = Agent()
    data_stream: DataStream = DataStream()
    event: EventBlock = EventBlock()
    host: Host = Host()
    process: Process = Process()
    user: User = User()
    destination: Destination = Destination()
    network: Network = Network()
    winlog: Winlog | None = None
    tags: str | tuple[str, ...] | None = None


_OTHER_SYSMON = ("event_data", "Event", "EventID")
_DOTTED = (
    "agent.id",
    "data_stream.dataset",
    *(f"destination.{name}" for name in ("address", "ip", "port", "domain")),
    *(f"event.{name}" for name in ("category", "code", "dataset", "module", "provider")),
    *(f"host.{name}" for name in ("id", "name", "os", "os.family", "os.type")),
    "network.direction",
    *(f"process.{name}" for name in ("entity_id", "executable", "name", "pid")),
    *(f"user.{name}" for name in ("name", "domain")),
    *(f"winlog.{name}" for name in ("computer_name", "event_data", "event_id", "provider_name")),
    *(f"winlog.event_data.{name}" for name in (*sysmon.MEMBERS, "ProcessId", "User", "DestinationHostname")),
)

DOCUMENT: type[Document] = msgspec.defstruct(  # type: ignore[assignment]  # the base is not known statically
    "Document",
    [
        (f"not_{number}", type(None), msgspec.field(default=None, name=name))
        for number, name in enumerate((*_OTHER_SYSMON, *_DOTTED))
    ],
    bases=(Document,),
    frozen=True,
    gc=False,
)
"""The decoded type: a Document with null under all other names."""


def raw_sysmon(document: Document) -> EventData | None:
    """The event data of a raw Sysmon record, or None if the document is not one."""
    winlog = document.winlog
    if winlog is None or winlog.event_data is None:
        return None
    event = document.event
    provider = winlog.provider_name or event.provider
    if provider != sysmon.PROVIDER or not sysmon.is_event_3(winlog.event_id, event.code):
        return None
    data = winlog.event_data
    if data.utc_time or data.process_guid or data.image or data.ip:  # an empty member is missing
        return data
    return None if data.port in (None, "") and data.initiated in (None, "") else data


def shape_of(document: Document) -> str:
    """The shape (`shapes.SHAPES`) of a document that is not raw Sysmon."""
    event = document.event
    if event.provider == sysmon.PROVIDER or event.module == "sysmon":
        return shapes.ECS_SYSMON
    return shapes.of_dataset(document.data_stream.dataset or event.dataset)
