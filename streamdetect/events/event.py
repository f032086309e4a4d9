"""Events of the three readers: typed ECS, typed raw Sysmon, generic.

flow, kind and instance are memoised per frozen sub-document. The cache key contains every input of the derivation, so
a cached value is never wrong.
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
    shape_of,
)
from streamdetect.events.values import first_present
from streamdetect.model import ContextTuple, EventKind, Flow, Many

_CACHE_SIZE = 32_768  # entries of a generation
_INSTANCE_CACHE_SIZE = 16_384  # its keys take 1 KB each


class EcsCaches:
    """Cached flow, kind and instance of typed ECS documents under one profile."""

    def __init__(self, reader: ProfileReader) -> None:
        self.reader = reader
        self.flows = Cache(self._flow, _CACHE_SIZE)
        self.kinds = Cache(self._kind, _CACHE_SIZE)
        self.instances = Cache(self._instance, _INSTANCE_CACHE_SIZE)

    def _flow(self, key: tuple[str | None, int | str | None, str | None, str | None]) -> Flow:
        return self.reader.flow(*key)

    def _kind(self, key: tuple[str | None, DataStream, EventBlock, Os, str | None]) -> EventKind:
        process_name, stream, event, os, provider = key
        fields = _kind_fields(stream, event, os)
        fields.sysmon |= provider == sysmon.PROVIDER
        return self.reader.kind(fields, process_name)

    def _instance(self, key: tuple[Any, ...]) -> ContextTuple:
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
        ) = key
        fields.forwarded = _forwarded(tags)
        return self.reader.instance(fields)


class EcsEvent(msgspec.Struct, gc=False):
    """A typed ECS event. See `model.Event`."""

    time_ms: int
    process_name: str | None
    _caches: EcsCaches
    _document: Document

    def flow(self) -> Flow:
        document = self._document
        destination = document.destination
        return self._caches.flows[
            document.network.direction, destination.port, destination.ip, destination.address
        ]

    def kind(self) -> EventKind:
        document = self._document
        winlog = document.winlog
        return self._caches.kinds[
            self.process_name,
            document.data_stream,
            document.event,
            document.host.os,
            None if winlog is None else winlog.provider_name,
        ]

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        document = self._document
        host, process, user, winlog = document.host, document.process, document.user, document.winlog
        caches = self._caches
        instance = caches.instances[
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
        return caches.reader.context(instance, caches.reader.domain(document.destination.domain), flow)

    def host(self) -> str | None:
        host, winlog = self._document.host, self._document.winlog
        computer_name = None if winlog is None else winlog.computer_name
        return self._caches.reader.clock_host(host.id, host.name, computer_name)

    def shape(self) -> str:
        """The shape of the record, one of `shapes.SHAPES`."""
        return shape_of(self._document)


class RawCaches:
    """Cached flow, kind and instance of typed raw Sysmon records under one profile."""

    def __init__(self, reader: ProfileReader) -> None:
        self.reader = reader
        self.flows = Cache(self._flow, _CACHE_SIZE)
        self.kinds = Cache(self._kind, _CACHE_SIZE)
        self.instances = Cache(self._instance, _INSTANCE_CACHE_SIZE)

    def _flow(self, key: tuple[Any, ...]) -> Flow:
        initiated, port, ip, destination, network = key
        fields = Fields(direction=network.direction, port=destination.port, ip=destination.ip)
        apply_sysmon(fields, _raw_sysmon(Initiated=initiated, DestinationPort=port, DestinationIp=ip))
        return self.reader.flow(fields.direction, fields.port, fields.ip, destination.address)

    def _kind(self, key: tuple[str | None, DataStream, EventBlock, Os]) -> EventKind:
        process_name, stream, event, os = key
        fields = _kind_fields(stream, event, os)
        apply_sysmon(fields, _raw_sysmon())
        return self.reader.kind(fields, process_name)

    def _instance(self, key: tuple[Any, ...]) -> ContextTuple:
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
        ) = key
        fields.forwarded = _forwarded(tags)
        _read_process(fields, process, account)
        apply_sysmon(fields, _raw_sysmon(ProcessGuid=guid, ProcessId=process_id, Image=image, User=user))
        return self.reader.instance(fields)


class RawEvent(msgspec.Struct, gc=False):
    """A typed raw Sysmon event. See `model.Event`."""

    time_ms: int
    process_name: str | None
    _caches: RawCaches
    _document: Document
    _data: EventData

    def flow(self) -> Flow:
        data, document = self._data, self._document
        return self._caches.flows[data.initiated, data.port, data.ip, document.destination, document.network]

    def kind(self) -> EventKind:
        document = self._document
        return self._caches.kinds[self.process_name, document.data_stream, document.event, document.host.os]

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:  # noqa: ARG002 - a raw record is always of Sysmon
        document, data = self._document, self._data
        caches = self._caches
        instance = caches.instances[
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
        return caches.reader.context(instance, caches.reader.domain(domain), flow)

    def host(self) -> str | None:
        host = self._document.host
        return self._caches.reader.clock_host(host.id, host.name, self._computer_name())

    def shape(self) -> str:
        return shapes.RAW_SYSMON

    def _computer_name(self) -> str | None:
        winlog = self._document.winlog
        return None if winlog is None else winlog.computer_name


class GenericEvent(msgspec.Struct, gc=False):
    """An event of any shape. See `model.Event`."""

    time_ms: int
    process_name: str | Many | None
    _reader: ProfileReader
    _fields: Fields

    def flow(self) -> Flow:
        fields = self._fields
        return self._reader.flow(fields.direction, fields.port, fields.ip, fields.address)

    def kind(self) -> EventKind:
        return self._reader.kind(self._fields, self.process_name)

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:  # noqa: ARG002 - `_fields` has it
        reader, fields = self._reader, self._fields
        return reader.context(reader.instance(fields), reader.domain(fields.domain), flow)

    def host(self) -> str | None:
        fields = self._fields
        return self._reader.clock_host(fields.host_id, fields.host_name, fields.computer_name)

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


def _raw_sysmon(**members: object) -> sysmon.RawSysmon:
    return sysmon.RawSysmon(members)
