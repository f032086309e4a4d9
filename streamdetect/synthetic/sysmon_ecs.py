"""Sysmon events after Elastic's pipeline: ECS, without destination.address and bytes.

| shape                | specifics                                                                        |
|----------------------|-----------------------------------------------------------------------------------|
| sysmon-ecs           | Elastic Agent on the endpoint                                                     |
| sysmon-ecs-forwarded | Winlogbeat 8 on a collector: the host is a name, and it is the collector's        |
| winlogbeat7-ecs      | Winlogbeat 7.9 and its module: event.code is a number, direction inbound/outbound |
"""

from __future__ import annotations

from typing import Any

from streamdetect.synthetic.hosts import Host
from streamdetect.synthetic.sysmon import CHANNEL, PROVIDER, PROVIDER_GUID, TASKS, Sysmon, SysmonEvent
from streamdetect.synthetic.sysmon_raw import beats_agent, beats_host
from streamdetect.synthetic.times import iso_ms
from streamdetect.synthetic.traffic import Activity

Document = dict[str, Any]

_SHIPPERS = {
    "sysmon-ecs": ("filebeat", "8.15.3"),
    "sysmon-ecs-forwarded": ("winlogbeat", "8.2.0"),
    "winlogbeat7-ecs": ("winlogbeat", "7.9.3"),
}
_DATA_STREAM = {"dataset": "windows.sysmon_operational", "namespace": "default", "type": "logs"}
_ECS_KINDS = {
    1: ("process", ["start"]),
    3: ("network", ["connection", "start", "protocol"]),
    11: ("file", ["creation"]),
    22: ("network", ["connection", "protocol", "info"]),
}


class SysmonEcs:
    """Renders one host's activities."""

    def __init__(self, host: Host) -> None:
        self._sysmon = Sysmon(host)
        self._computer = host.machine.fqdn
        self._agent_installed = host.shape == "sysmon-ecs"
        self._forwarded = host.shape == "sysmon-ecs-forwarded"
        self._old = host.shape == "winlogbeat7-ecs"
        shipper = host.collector if self._forwarded else host.machine
        self._agent = beats_agent(shipper, *_SHIPPERS[host.shape])
        self._host_block = beats_host(shipper, short=self._forwarded)
        self._directions = ("inbound", "outbound") if self._old else ("ingress", "egress")

    def __call__(self, time_ms: int, arrival_ms: int, activity: Activity, noise: float) -> Document:
        event = self._sysmon.event(time_ms, arrival_ms, activity, noise)
        document = self._frame(event)
        data = event.filled
        executable = data["Image"]
        process = {"entity_id": data["ProcessGuid"], "executable": executable, "pid": int(data["ProcessId"])}
        if "\\" in executable:
            process["name"] = executable.rpartition("\\")[2]
        domain, _, name = data["User"].partition("\\")
        document["process"] = process
        document["user"] = {"domain": domain, "id": "S-1-5-18", "name": name}
        if event.id == 3:
            self._connection(document, data)
        elif event.id == 22:
            document["dns"] = {"question": {"name": data["QueryName"]}}
            document["network"] = {"protocol": "dns"}
        elif event.id == 11:
            document["file"] = {"path": data["TargetFilename"]}
        return document

    def _frame(self, event: SysmonEvent) -> Document:
        category, kinds = _ECS_KINDS[event.id]
        code: str | int = event.id if self._old else str(event.id)
        document: Document = {
            "@timestamp": iso_ms(event.time_ms),
            "agent": self._agent,
            "ecs": {"version": "1.5.0" if self._old else "8.0.0"},
            "event": {
                "action": TASKS[event.id],
                "category": [category],
                "code": code,
                "created": iso_ms(event.written_ms),
                "kind": "event",
                "module": "sysmon",
                "provider": PROVIDER,
                "type": kinds,
            },
            "host": self._host_block,
            "log": {"level": "information"},
            "message": event.message,
            "winlog": {
                "api": "wineventlog",
                "channel": CHANNEL,
                "computer_name": self._computer,
                "event_id": code,
                "opcode": "Info",
                "provider_guid": PROVIDER_GUID,
                "provider_name": PROVIDER,
                "record_id": event.record_id,
                "version": 5,
            },
        }
        if self._agent_installed:
            document["data_stream"] = _DATA_STREAM
            document["event"]["dataset"] = _DATA_STREAM["dataset"]
        if self._forwarded:
            document["tags"] = ["forwarded"]
        return document

    def _connection(self, document: Document, data: dict[str, str]) -> None:
        document["network"] = {
            "direction": self._directions[data["Initiated"] == "true"],
            "transport": data["Protocol"],
            "type": "ipv6" if data["DestinationIsIpv6"] == "true" else "ipv4",
        }
        for end, prefix in (("source", "Source"), ("destination", "Destination")):
            side: Document = {"ip": data[prefix + "Ip"], "port": int(data[prefix + "Port"])}
            name = data.get(prefix + "Hostname", "-")
            if name != "-" or self._forwarded:  # early 8.x ships the dash
                side["domain"] = name
            document[end] = side
        addresses = [data["SourceIp"], data["DestinationIp"]]
        document["related"] = {"ip": addresses, "user": [document["user"]["name"]]}
