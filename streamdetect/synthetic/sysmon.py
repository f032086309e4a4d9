"""Sysmon events as Sysmon writes them: an event id, its data as text, and the rendered message.

`sysmon_raw` and `sysmon_ecs` wrap them as shippers do.
"""

from __future__ import annotations

from typing import NamedTuple

from streamdetect.synthetic.defend import own_ip
from streamdetect.synthetic.hosts import Host
from streamdetect.synthetic.internet import Peer, long_form
from streamdetect.synthetic.times import utc_time
from streamdetect.synthetic.traffic import CONNECTION, FILE, LOOKUP, Activity

PROVIDER = "Microsoft-Windows-Sysmon"
PROVIDER_GUID = "{5770385f-c22a-43e0-bf4c-06f5698ffbd9}"
CHANNEL = "Microsoft-Windows-Sysmon/Operational"

TASKS = {
    1: "Process Create (rule: ProcessCreate)",
    3: "Network connection detected (rule: NetworkConnect)",
    11: "File created (rule: FileCreate)",
    22: "Dns query (rule: DnsQuery)",
}
_PORT_NAMES = {53: "domain", 80: "http", 88: "kerberos", 135: "epmap", 389: "ldap", 443: "https"}


class SysmonEvent(NamedTuple):
    """`data` in Sysmon's order; old versions leave unknown values empty instead of writing "-"."""

    id: int
    time_ms: int
    written_ms: int  # time of the event log
    record_id: int
    data: dict[str, str]

    @property
    def message(self) -> str:
        title = TASKS[self.id].partition(" (")[0]
        return f"{title}:\n" + "\n".join([f"{name}: {value}" for name, value in self.data.items()])

    @property
    def filled(self) -> dict[str, str]:
        """The data as Beats ships it: without empty values."""
        return {name: value for name, value in self.data.items() if value}


class Sysmon:
    """The sensor of one host, which numbers its records."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._record_id = 40_000 + 977 * host.index
        self._unknown = "" if host.old_sysmon else "-"

    def event(self, time_ms: int, arrival_ms: int, activity: Activity, noise: float) -> SysmonEvent:
        self._record_id += 1
        written_ms = time_ms + min((arrival_ms - time_ms) * 4 // 5, 25_000)
        if activity.kind == CONNECTION:
            data = self._connection(time_ms, activity, noise)
            return SysmonEvent(3, time_ms, written_ms, self._record_id, data)
        head = {"RuleName": self._unknown, "UtcTime": utc_time(time_ms), **_who(activity)}
        if activity.kind == LOOKUP:
            found = f"::ffff:10.20.4.{int(noise * 200) + 20};"
            head |= {"QueryName": activity.text, "QueryStatus": "0", "QueryResults": found}
            return SysmonEvent(22, time_ms, written_ms, self._record_id, head)
        if activity.kind == FILE:
            head |= {"TargetFilename": activity.text, "CreationUtcTime": utc_time(time_ms)}
            return SysmonEvent(11, time_ms, written_ms, self._record_id, head)
        process = activity.process
        head |= {
            "CommandLine": process.program.executable,
            "CurrentDirectory": "C:\\Windows\\system32\\",
            "IntegrityLevel": "Medium",
            "Hashes": f"MD5={process.md5.upper()}",
            "ParentProcessGuid": process.parent_guid,
            "ParentProcessId": str(process.parent_pid),
            "ParentImage": process.program.parent,
        }
        return SysmonEvent(1, time_ms, written_ms, self._record_id, head)

    def _connection(self, time_ms: int, activity: Activity, noise: float) -> dict[str, str]:
        peer = activity.peer
        assert peer is not None
        unknown = self._unknown
        family = "true" if peer.v6 else "false"
        own = (self._own_ip(peer), self._host.machine.fqdn, activity.port)
        other = (peer.long_ip, peer.domain if peer.domain and noise < 0.8 else unknown, peer.port)
        source, destination = (other, own) if activity.ingress else (own, other)
        return {
            "RuleName": unknown,
            "UtcTime": utc_time(time_ms),
            **_who(activity),
            "Protocol": peer.transport,
            "Initiated": "false" if activity.ingress else "true",
            "SourceIsIpv6": family,
            "SourceIp": source[0],
            "SourceHostname": source[1],
            "SourcePort": str(source[2]),
            "SourcePortName": _PORT_NAMES.get(source[2], unknown),
            "DestinationIsIpv6": family,
            "DestinationIp": destination[0],
            "DestinationHostname": destination[1],
            "DestinationPort": str(destination[2]),
            "DestinationPortName": _PORT_NAMES.get(destination[2], unknown),
        }

    def _own_ip(self, peer: Peer) -> str:
        machine = self._host.machine
        return long_form(own_ip(machine.ip, machine.ip6, machine.link_local, peer))


def _who(activity: Activity) -> dict[str, str]:
    process = activity.process
    return {
        "ProcessGuid": process.guid,
        "ProcessId": str(process.pid),
        "Image": process.program.executable,
        "User": f"{process.account.domain}\\{process.account.name}",
    }
