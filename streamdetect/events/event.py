"""Events of the three readers: typed ECS, typed raw Sysmon, generic.

What a typed event tells is looked up: parts of its document, which are frozen, are a question that a table has
mostly answered before. A question holds all that its answer is made of, so a table cannot remember wrongly.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamdetect.cache import Cache
from streamdetect.events import shapes, sysmon
from streamdetect.events.generic import Fields, apply_sysmon
from streamdetect.events.profile import ProfileReader
from streamdetect.events.typed import (
    DataStream,
    Document,
    EventBlock,
    EventData,
    Os,
    Process,
    User,
    wrote,
)
from streamdetect.events.values import first_present
from streamdetect.model import ContextTuple, EventKind, Flow, Many

_REMEMBERED = 32_768  # answers that a table holds in a generation
_REMEMBERED_INSTANCES = 16_384  # their questions take 1 KB each


class EcsTables:
    """What parts of a typed ECS document mean under one profile."""

    def __init__(self, reading: ProfileReader) -> None:
        self.reading = reading
        self.flows = Cache(self._flow, _REMEMBERED)
        self.kinds = Cache(self._kind, _REMEMBERED)
        self.instances = Cache(self._instance, _REMEMBERED_INSTANCES)

    def _flow(self, question: tuple[str | None, int | str | None, str | None, str | None]) -> Flow:
        return self.reading.flow(*question)

    def _kind(self, question: tuple[str | None, DataStream, EventBlock, Os, str | None]) -> EventKind:
        process_name, stream, event, os, provider = question
        fields = _kind_fields(stream, event, os)
        fields.sysmon |= provider == sysmon.PROVIDER
        return self.reading.kind(fields, process_name)

    def _instance(self, question: tuple[Any, ...]) -> ContextTuple:
        fields = Fields()
        (
            fields.host_id,
            fields.host_name,
            fields.agent_id,
            fields.entity_id,
            fields.pid,
            fields.executable,
            fields.user_name,
            fields.user_domain,
            fields.computer_name,
            tags,
            fields.sysmon,
        ) = question
        fields.forwarded = _forwarded(tags)
        return self.reading.instance(fields)


class EcsEvent(msgspec.Struct, gc=False):
    """An event that came as ECS. See `model.Event`."""

    time_ms: int
    process_name: str | None
    _tables: EcsTables
    _document: Document

    def flow(self) -> Flow:
        document = self._document
        to = document.destination
        return self._tables.flows[document.network.direction, to.port, to.ip, to.address]

    def kind(self) -> EventKind:
        document = self._document
        winlog = document.winlog
        return self._tables.kinds[
            self.process_name,
            document.data_stream,
            document.event,
            document.host.os,
            None if winlog is None else winlog.provider_name,
        ]

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        document = self._document
        host, process, user, winlog = document.host, document.process, document.user, document.winlog
        tables = self._tables
        instance = tables.instances[
            host.id,
            host.name,
            document.agent.id,
            process.entity_id,
            process.pid,
            process.executable,
            user.name,
            user.domain,
            None if winlog is None else winlog.computer_name,
            document.tags,
            kind.sysmon,
        ]
        return tables.reading.context(instance, tables.reading.domain(document.destination.domain), flow)

    def host(self) -> str | None:
        host, winlog = self._document.host, self._document.winlog
        computer_name = None if winlog is None else winlog.computer_name
        return self._tables.reading.leap_host(host.id, host.name, computer_name)

    def shape(self) -> str:
        """Who wrote the record, one of `shapes.SHAPES`."""
        return wrote(self._document)


class RawTables:
    """What parts of a typed raw Sysmon record mean under one profile."""

    def __init__(self, reading: ProfileReader) -> None:
        self.reading = reading
        self.flows = Cache(self._flow, _REMEMBERED)
        self.kinds = Cache(self._kind, _REMEMBERED)
        self.instances = Cache(self._instance, _REMEMBERED_INSTANCES)

    def _flow(self, question: tuple[Any, ...]) -> Flow:
        initiated, port, ip, destination, network = question
        fields = Fields(direction=network.direction, port=destination.port, ip=destination.ip)
        apply_sysmon(fields, _raw(Initiated=initiated, DestinationPort=port, DestinationIp=ip))
        return self.reading.flow(fields.direction, fields.port, fields.ip, destination.address)

    def _kind(self, question: tuple[str | None, DataStream, EventBlock, Os]) -> EventKind:
        process_name, stream, event, os = question
        fields = _kind_fields(stream, event, os)
        apply_sysmon(fields, _raw())
        return self.reading.kind(fields, process_name)

    def _instance(self, question: tuple[Any, ...]) -> ContextTuple:
        fields = Fields()
        (
            fields.host_id,
            fields.host_name,
            fields.agent_id,
            fields.computer_name,
            tags,
            process,
            account,
            guid,
            process_id,
            image,
            user,
        ) = question
        fields.forwarded = _forwarded(tags)
        _read_process(fields, process, account)
        apply_sysmon(fields, _raw(ProcessGuid=guid, ProcessId=process_id, Image=image, User=user))
        return self.reading.instance(fields)


class RawEvent(msgspec.Struct, gc=False):
    """A raw Sysmon record. See `model.Event`."""

    time_ms: int
    process_name: str | None
    _tables: RawTables
    _document: Document
    _data: EventData

    def flow(self) -> Flow:
        data, document = self._data, self._document
        return self._tables.flows[data.initiated, data.port, data.ip, document.destination, document.network]

    def kind(self) -> EventKind:
        document = self._document
        return self._tables.kinds[self.process_name, document.data_stream, document.event, document.host.os]

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:  # noqa: ARG002 - a raw record is always Sysmon's
        document, data = self._document, self._data
        tables = self._tables
        instance = tables.instances[
            document.host.id,
            document.host.name,
            document.agent.id,
            self._computer_name(),
            document.tags,
            document.process,
            document.user,
            data.process_guid,
            data.process_id,
            data.image,
            data.user,
        ]
        domain = sysmon.domain(data.hostname) if data.hostname else document.destination.domain
        return tables.reading.context(instance, tables.reading.domain(domain), flow)

    def host(self) -> str | None:
        host = self._document.host
        return self._tables.reading.leap_host(host.id, host.name, self._computer_name())

    def shape(self) -> str:
        return shapes.RAW_SYSMON

    def _computer_name(self) -> str | None:
        winlog = self._document.winlog
        return None if winlog is None else winlog.computer_name


class GenericEvent(msgspec.Struct, gc=False):
    """An event of any shape. See `model.Event`."""

    time_ms: int
    process_name: str | Many | None
    _reading: ProfileReader
    _fields: Fields

    def flow(self) -> Flow:
        fields = self._fields
        return self._reading.flow(fields.direction, fields.port, fields.ip, fields.address)

    def kind(self) -> EventKind:
        return self._reading.kind(self._fields, self.process_name)

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:  # noqa: ARG002 - its fields know
        reading, fields = self._reading, self._fields
        return reading.context(reading.instance(fields), reading.domain(fields.domain), flow)

    def host(self) -> str | None:
        fields = self._fields
        return self._reading.leap_host(fields.host_id, fields.host_name, fields.computer_name)

    def shape(self) -> str:
        fields = self._fields
        if fields.raw:
            return shapes.RAW_SYSMON
        return shapes.ECS_SYSMON if fields.sysmon else shapes.of_dataset(fields.dataset)


Event = EcsEvent | RawEvent | GenericEvent


def _kind_fields(stream: DataStream, event: EventBlock, os: Os) -> Fields:
    dataset = first_present(stream.dataset, event.dataset)
    return Fields(
        dataset=dataset,
        category=list(event.category) if isinstance(event.category, tuple) else event.category,
        os_family=os.family,
        os_type=os.type,
        sysmon=event.provider == sysmon.PROVIDER or event.module == "sysmon" or dataset == sysmon.DATASET,
    )


def _read_process(fields: Fields, process: Process, user: User) -> None:
    fields.entity_id, fields.pid, fields.executable = process.entity_id, process.pid, process.executable
    fields.user_name, fields.user_domain = user.name, user.domain


def _forwarded(tags: str | tuple[str, ...] | None) -> bool:
    return tags == "forwarded" if isinstance(tags, str) else tags is not None and "forwarded" in tags


def _raw(**members: object) -> sysmon.RawSysmon:
    return sysmon.RawSysmon(members)
