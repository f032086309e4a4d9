"""Raw Sysmon events, before any pipeline: each shipper's own wrapping of the same data."""

from __future__ import annotations

from typing import Any

import orjson

from streamdetect.synthetic.hosts import Host, Machine
from streamdetect.synthetic.sysmon import CHANNEL, PROVIDER, PROVIDER_GUID, TASKS, Sysmon, SysmonEvent
from streamdetect.synthetic.times import iso_100ns, iso_ms, local_time
from streamdetect.synthetic.traffic import Activity

Document = dict[str, Any]

_XMLNS = "http://schemas.microsoft.com/win/2004/08/events/event"
_DATA_STREAM = {"dataset": "windows.sysmon_operational", "namespace": "default", "type": "logs"}
_SYSMON_USER = {"domain": "NT AUTHORITY", "identifier": "S-1-5-18", "name": "SYSTEM", "type": "User"}
_NUMBERS = frozenset(("ProcessId", "ParentProcessId", "SourcePort", "DestinationPort"))
_GUIDS = frozenset(("ProcessGuid", "ParentProcessGuid"))
_TRUTHS = {"true": True, "false": False}


def beats_host(machine: Machine, short: bool = False) -> Document:
    """The block of add_host_metadata; `short` is the block of a forwarded event."""
    if short:
        return {"name": machine.name}
    return {
        "architecture": "x86_64",
        "hostname": machine.name,
        "id": machine.id,
        "ip": [machine.link_local, machine.ip],
        "mac": [machine.mac],
        "name": machine.name.lower(),
        "os": {
            "build": machine.build.rpartition(".")[0].rpartition("0.")[2],
            "family": "windows",
            "kernel": machine.build,
            "name": machine.variant,
            "platform": "windows",
            "type": "windows",
            "version": "10.0",
        },
    }


def beats_agent(machine: Machine, kind: str, version: str) -> Document:
    return {
        "ephemeral_id": machine.ephemeral_id,
        "id": machine.agent_id,
        "name": machine.name,
        "type": kind,
        "version": version,
    }


class _Raw:
    """Base of all wrappings: the host, and its sensor."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._computer = host.machine.fqdn
        self._sysmon = Sysmon(host)

    def __call__(self, time_ms: int, arrival_ms: int, activity: Activity, noise: float) -> Document:
        return self.wrap(self._sysmon.event(time_ms, arrival_ms, activity, noise), noise)

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        raise NotImplementedError


class Winlogbeat8(_Raw):
    """Winlogbeat >= 8.0, on the endpoint itself or (`forwarded`) on a Windows event collector."""

    def __init__(self, host: Host, forwarded: bool = False) -> None:
        super().__init__(host)
        shipper = host.collector if forwarded else host.machine
        self._agent = beats_agent(shipper, "winlogbeat", "8.13.4")
        # Half of the collectors add their own host block to the events of other machines.
        self._host_block = beats_host(shipper, short=forwarded and host.index % 2 == 0)
        self._forwarded = forwarded

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        document = {
            "@timestamp": iso_ms(event.written_ms),
            "@metadata": {"beat": "winlogbeat", "type": "_doc", "version": "8.13.4"},
            "agent": self._agent,
            "ecs": {"version": "8.0.0"},
            "event": {
                "action": TASKS[event.id],
                "code": str(event.id),
                "created": iso_ms(event.written_ms + 700),
                "kind": "event",
                "provider": PROVIDER,
            },
            "host": self._host_block,
            "log": {"level": "information"},
            "message": event.message,
            "winlog": {
                "api": "wineventlog",
                "channel": CHANNEL,
                "computer_name": self._computer,
                "event_data": event.filled,
                "event_id": str(event.id),
                "opcode": "Info",
                "process": {"pid": 3168, "thread": {"id": 4100 + int(noise * 300) * 4}},
                "provider_guid": PROVIDER_GUID,
                "provider_name": PROVIDER,
                "record_id": event.record_id,
                "task": TASKS[event.id],
                "user": _SYSMON_USER,
                "version": 5,
            },
        }
        if self._forwarded:
            document["tags"] = ["forwarded"]
        return document


class Forwarded8(Winlogbeat8):
    def __init__(self, host: Host) -> None:
        super().__init__(host, forwarded=True)


class AgentRaw(Winlogbeat8):
    """Elastic Agent's Windows integration with its Kafka output."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._agent = beats_agent(host.machine, "filebeat", "8.15.3")
        self._elastic_agent = {"id": host.machine.agent_id, "snapshot": False, "version": "8.15.3"}

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        document = super().wrap(event, noise)
        document["@metadata"] = {"beat": "filebeat", "type": "_doc", "version": "8.15.3"}
        document["data_stream"] = _DATA_STREAM
        document["elastic_agent"] = self._elastic_agent
        document["event"]["dataset"] = _DATA_STREAM["dataset"]
        document["input"] = {"type": "winlog"}
        return document


class LogstashRaw(Winlogbeat8):
    """Winlogbeat 8 through Logstash with `codec => json`."""

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        document = super().wrap(event, noise)
        del document["@metadata"]
        document["@version"] = "1"
        document["event"]["original"] = document["message"]
        document["tags"] = ["beats_input_codec_plain_applied"]
        return document


class Winlogbeat6(_Raw):
    """Winlogbeat 6 on a collector: event fields at the top level, and the collector as the host."""

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        collector = self._host.collector.name
        return {
            "@timestamp": iso_ms(event.written_ms),
            "@metadata": {"beat": "winlogbeat", "topic": "winlogbeat", "type": "doc", "version": "6.8.23"},
            "beat": {"hostname": collector, "name": collector, "version": "6.8.23"},
            "computer_name": self._computer,
            "event_data": event.filled,
            "event_id": event.id,
            "host": {"name": collector},
            "level": "Information",
            "log_name": CHANNEL,
            "message": event.message,
            "opcode": "Info",
            "process_id": 3168,
            "provider_guid": PROVIDER_GUID,
            "record_number": str(event.record_id),
            "source_name": PROVIDER,
            "task": TASKS[event.id],
            "thread_id": 4100 + int(noise * 300) * 4,
            "type": "wineventlog",
            "user": _SYSMON_USER,
            "version": 5,
        }


class NxlogFlat(_Raw):
    """NXLog through Logstash: all fields at the top level, `host` is the relay as a string, EventTime is local time."""

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        local = local_time(event.written_ms, self._host.utc_offset_hours)
        return {
            "@timestamp": iso_ms(event.written_ms + 900),
            "@version": "1",
            **event.filled,
            "AccountName": "SYSTEM",
            "AccountType": "User",
            "Channel": CHANNEL,
            "Domain": "NT AUTHORITY",
            "EventID": event.id,
            "EventReceivedTime": local,
            "EventTime": local,
            "EventType": "INFO",
            "ExecutionProcessID": 3168,
            "Hostname": self._computer,
            "Keywords": -9223372036854775808,
            "Message": event.message.replace("\n", "\r\n"),
            "OpcodeValue": 0,
            "ProviderGuid": PROVIDER_GUID.upper(),
            "RecordNumber": event.record_id,
            "Severity": "INFO",
            "SeverityValue": 2,
            "SourceModuleName": "eventlog",
            "SourceModuleType": "im_msvistalog",
            "SourceName": PROVIDER,
            "Task": event.id,
            "ThreadID": 4100 + int(noise * 300) * 4,
            "UserID": "S-1-5-18",
            "Version": 5,
            "host": f"{self._host.collector.name.lower()}.relay.example",
            "port": 49_719,
        }


class EvtxDump(_Raw):
    """evtx_dump's JSON: attributes under `#attributes`, typed values, GUIDs without braces."""

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        return {
            "Event": {
                "#attributes": {"xmlns": _XMLNS},
                "System": {
                    "Provider": {"#attributes": {"Name": PROVIDER, "Guid": PROVIDER_GUID[1:-1].upper()}},
                    "EventID": event.id if noise < 0.9 else {"#text": event.id},
                    "Version": 5,
                    "Level": 4,
                    "Task": event.id,
                    "Opcode": 0,
                    "Keywords": "0x8000000000000000",
                    "TimeCreated": {"#attributes": {"SystemTime": iso_100ns(event.written_ms, 0)[:-2] + "Z"}},
                    "EventRecordID": event.record_id,
                    "Correlation": None,
                    "Execution": {
                        "#attributes": {"ProcessID": 3168, "ThreadID": 4100 + int(noise * 300) * 4}
                    },
                    "Channel": CHANNEL,
                    "Computer": self._computer,
                    "Security": {"#attributes": {"UserID": "S-1-5-18"}},
                },
                "EventData": {name: _typed(name, value) for name, value in event.data.items()},
            }
        }


def _typed(name: str, value: str) -> str | int | bool:
    if name in _NUMBERS:
        return int(value)
    if name in _GUIDS:
        return value[1:-1].upper()
    return _TRUTHS.get(value, value)


class PythonEvtx(_Raw):
    """python-evtx's XML through an XML-to-dict converter: attributes with `@`, data as a list."""

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        data: list[Document] = [
            {"@Name": name, **({"#text": value} if value else {})} for name, value in event.data.items()
        ]
        return {
            "Event": {
                "@xmlns": _XMLNS,
                "System": {
                    "Provider": {"@Name": PROVIDER, "@Guid": PROVIDER_GUID},
                    "EventID": {"@Qualifiers": "", "#text": str(event.id)},
                    "Version": "5",
                    "Level": "4",
                    "Task": str(event.id),
                    "Opcode": "0",
                    "Keywords": "0x8000000000000000",
                    "TimeCreated": {"@SystemTime": iso_100ns(event.written_ms, 0)[:-2].replace("T", " ")},
                    "EventRecordID": str(event.record_id),
                    "Correlation": {"@ActivityID": "", "@RelatedActivityID": ""},
                    "Execution": {"@ProcessID": "3168", "@ThreadID": str(4100 + int(noise * 300) * 4)},
                    "Channel": CHANNEL,
                    "Computer": self._computer,
                    "Security": {"@UserID": "S-1-5-18"},
                },
                "EventData": {"Data": data},
            }
        }


class AzureString(_Raw):
    """Azure Monitor's WindowsEvent record: EventData is a JSON string."""

    def wrap(self, event: SysmonEvent, noise: float) -> Document:
        return {
            "TenantId": self._host.collector.id,
            "TimeGenerated": iso_ms(event.written_ms),
            "Provider": PROVIDER,
            "Channel": CHANNEL,
            "Computer": self._computer,
            "Task": event.id,
            "EventLevel": 4,
            "EventLevelName": "Information",
            "EventData": orjson.dumps(event.data).decode(),
            "EventID": event.id,
            "EventRecordId": str(event.record_id),
            "SystemProcessId": 3168,
            "SystemThreadId": 4100 + int(noise * 300) * 4,
            "Type": "WindowsEvent",
        }
