"""Elastic Defend's documents: ECS, written by a native client, without ingest processors.

| shape            | specifics                                                                          |
|------------------|-------------------------------------------------------------------------------------|
| defend-8.12      | event.action is a scalar; a connection's start and its end are two records          |
| defend-8.18      | one record with both actions in an array; a host of id, name and os, often no family |
| defend-8.18-full | one record with both actions in an array; the whole host                            |
| defend-scalars   | older still: scalars where the others have arrays                                   |
"""

from __future__ import annotations

from typing import Any

from streamdetect.synthetic.hosts import Host
from streamdetect.synthetic.internet import Peer
from streamdetect.synthetic.programs import Process
from streamdetect.synthetic.times import iso_100ns
from streamdetect.synthetic.traffic import CONNECTION, END, FILE, LOOKUP, WHOLE, Activity

Document = dict[str, Any]

_VERSIONS = {
    "defend-8.12": "8.12.2",
    "defend-8.18": "8.18.1",
    "defend-8.18-full": "8.18.0",
    "defend-scalars": "7.17.9",
}
_STREAMS = {
    name: {"dataset": f"endpoint.events.{name}", "namespace": "default", "type": "logs"}
    for name in ("network", "process", "file")
}
_ECS = {"version": "8.10.0"}


class Defend:
    """Renders one host's activities. Constant parts are built once and shared."""

    def __init__(self, host: Host) -> None:
        self._machine = host.machine
        self._scalars = host.shape == "defend-scalars"
        self._sequence = 1000 + host.index
        self._id_prefix = host.machine.ephemeral_id.replace("-", "")[:16]
        version = _VERSIONS[host.shape]
        self._agent = {"id": host.machine.agent_id, "type": "endpoint", "version": version}
        self._elastic = {"agent": {"id": host.machine.agent_id}}
        self._host = _small_host(host) if host.shape == "defend-8.18" else _whole_host(host, self._scalars)

    def __call__(self, time_ms: int, _arrival_ms: int, activity: Activity, noise: float) -> Document:
        stamp = iso_100ns(time_ms, int(noise * 10_000))
        if activity.kind == CONNECTION:
            document = self._connection(stamp, activity, noise)
        elif activity.kind == LOOKUP:
            document = self._lookup(stamp, activity)
        elif activity.kind == FILE:
            document = self._file(stamp, activity)
        else:
            document = self._document(stamp, "process", "start", ["start"], activity)
        return document

    def _document(
        self, stamp: str, category: str, action: str | list[str], kinds: list[str], activity: Activity
    ) -> Document:
        self._sequence += 1
        return {
            "@timestamp": stamp,
            "agent": self._agent,
            "data_stream": _STREAMS[category],
            "ecs": _ECS,
            "elastic": self._elastic,
            "event": {
                "action": action,
                "category": category if self._scalars else [category],
                "created": stamp,
                "dataset": f"endpoint.events.{category}",
                "id": f"{self._id_prefix}++{self._sequence:06x}",
                "kind": "event",
                "module": "endpoint",
                "sequence": self._sequence,
                "type": kinds[0] if self._scalars else kinds,
            },
            "host": self._host,
            "message": f"Endpoint {category} event",
            "process": _process(activity.process),
            "user": _user(activity.process),
        }

    def _connection(self, stamp: str, activity: Activity, noise: float) -> Document:
        peer, phase = activity.peer, activity.phase
        assert peer is not None
        begun = "connection_accepted" if activity.ingress else "connection_attempted"
        ended = "disconnect_received"
        if phase == WHOLE:
            document = self._document(stamp, "network", [begun, ended], ["start", "end"], activity)
        elif phase == END:
            document = self._document(stamp, "network", ended, ["end"], activity)
        else:
            document = self._document(stamp, "network", begun, ["start"], activity)
        own, other = self._own_end(activity, peer), _other_end(peer)
        if phase:  # the size is known only once a connection has ended
            own = {**own, "bytes": 400 + int(noise * 9000)}
            other = {**other, "bytes": 900 + int(noise * noise * 400_000)}
        document["source"], document["destination"] = (other, own) if activity.ingress else (own, other)
        document["network"] = {
            "direction": "ingress" if activity.ingress else "egress",
            "transport": peer.transport,
            "type": "ipv6" if peer.v6 else "ipv4",
        }
        return document

    def _own_end(self, activity: Activity, peer: Peer) -> Document:
        ip = own_ip(self._machine.ip, self._machine.ip6, self._machine.link_local, peer)
        return {"address": ip, "ip": ip, "port": activity.port}

    def _lookup(self, stamp: str, activity: Activity) -> Document:
        """A DNS lookup: the same data stream, without a destination address."""
        kinds = ["connection", "protocol", "info"]
        document = self._document(stamp, "network", "lookup_requested", kinds, activity)
        document["message"] = f"DNS query is completed for the name {activity.text}, type 1"
        document["dns"] = {"question": {"name": activity.text, "type": "A"}}
        document["destination"] = {"port": 53}
        document["network"] = {"protocol": "dns", "transport": "udp"}
        return document

    def _file(self, stamp: str, activity: Activity) -> Document:
        document = self._document(stamp, "file", "creation", ["creation"], activity)
        name = activity.text.rpartition("\\")[2]
        document["file"] = {"extension": "tmp", "name": name, "path": activity.text, "size": len(name) * 311}
        return document


def own_ip(ip: str, ip6: str, link_local: str, peer: Peer) -> str:
    """The host's own address for connections with a peer."""
    if not peer.v6:
        return "127.0.0.1" if peer.ip == "127.0.0.1" else ip
    return ip6 if peer.country else link_local


def _other_end(peer: Peer) -> Document:
    if peer.block is None:
        peer.block = {"address": peer.ip, "ip": peer.ip, "port": peer.port}
        if peer.country:
            peer.block["geo"] = {"country_iso_code": peer.country}
    return peer.block


def _process(process: Process) -> Document:
    if process.block is None:
        program = process.program
        signature = {"exists": True, "status": "trusted", "subject_name": program.signer, "trusted": True}
        process.block = {
            "entity_id": process.entity_id,
            "executable": program.executable,
            "name": program.name,
            "parent": {"pid": process.parent_pid},
            "pid": process.pid,
        }
        if program.signer:
            process.block["code_signature"] = signature
            process.block["hash"] = {"md5": process.md5}
    return process.block


def _user(process: Process) -> Document:
    account = process.account
    return {"domain": account.domain, "id": account.sid, "name": account.name}


def _small_host(host: Host) -> Document:
    """The reduced host block of 8.18; the os of every other host has a type but no family."""
    machine = host.machine
    system = {"name": "Windows", "type": "windows", "version": machine.build}
    if host.index % 2:
        system["family"] = "windows"
    return {"id": machine.id, "name": machine.name.lower(), "os": system}


def _whole_host(host: Host, scalars: bool) -> Document:
    machine = host.machine
    addresses = [machine.ip, machine.link_local]
    return {
        "id": machine.id,
        "ip": machine.ip if scalars else addresses,
        "mac": machine.mac if scalars else [machine.mac],
        "name": machine.name,
        "os": {
            "family": "windows",
            "name": machine.variant,
            "type": "windows",
            "version": machine.build,
        },
    }
