"""The generic reader: the fields of any JSON object. Slower than the typed reader, and the reference for it.

`"a.b"` and `{"a": {"b": …}}` are the same field, arrays of objects contribute the values of each object, and Sysmon
events are recognised in every shape of docs/events.md.
"""

from __future__ import annotations

import msgspec

from streamdetect.events import sysmon
from streamdetect.events.paths import Finder
from streamdetect.events.values import first_present

JsonObject = dict[str, object]


class Fields(msgspec.Struct, gc=False):
    """The values of the fields that are used, unchanged (scalar, list or None).

    `sysmon` is True for an event of a Sysmon sensor, `raw` for one that no pipeline has processed. `utc_time_ms` is the
    event time of a raw Sysmon record.
    """

    timestamp: object = None
    utc_time_ms: int | None = None
    dataset: object = None
    os_family: object = None
    os_type: object = None
    category: object = None
    direction: object = None
    process_name: object = None
    entity_id: object = None
    executable: object = None
    pid: object = None
    address: object = None
    ip: object = None
    port: object = None
    domain: object = None
    host_id: object = None
    host_name: object = None
    agent_id: object = None
    user_name: object = None
    user_domain: object = None
    computer_name: object = None
    forwarded: bool = False
    sysmon: bool = False
    raw: bool = False


# attribute of Fields -> ECS field
_ECS = {
    "os_family": "host.os.family",
    "os_type": "host.os.type",
    "category": "event.category",
    "direction": "network.direction",
    "process_name": "process.name",
    "entity_id": "process.entity_id",
    "executable": "process.executable",
    "pid": "process.pid",
    "address": "destination.address",
    "ip": "destination.ip",
    "port": "destination.port",
    "domain": "destination.domain",
    "host_id": "host.id",
    "host_name": "host.name",
    "agent_id": "agent.id",
    "user_name": "user.name",
    "user_domain": "user.domain",
}
_ECS_PATHS = {name: tuple(path.split(".")) for name, path in _ECS.items()}


def read(document: JsonObject, *, dotted: bool = True) -> Fields:
    """All fields of a document of any shape. `dotted`: whether field names may contain a dot."""
    find = Finder(document, dotted=dotted)
    timestamp = find(("@timestamp",))
    fields = Fields(timestamp=sysmon.time_written(document) if timestamp is None else timestamp)
    for name, path in _ECS_PATHS.items():
        setattr(fields, name, find(path))
    fields.dataset = first_present(find(("data_stream", "dataset")), find(("event", "dataset")))
    fields.forwarded = "forwarded" in _texts(find(("tags",)))
    fields.computer_name = find(("winlog", "computer_name"))
    fields.sysmon = (
        sysmon.PROVIDER in _texts(find(("winlog", "provider_name")))
        or sysmon.PROVIDER in _texts(find(("event", "provider")))
        or sysmon.DATASET in _texts(fields.dataset)
        or "sysmon" in _texts(find(("event", "module")))
    )
    raw = sysmon.find(document, find)
    if raw is not None:
        apply_sysmon(fields, raw)
        fields.utc_time_ms = raw.utc_time_ms
    return fields


def apply_sysmon(fields: Fields, raw: sysmon.RawSysmon) -> None:
    """Apply the mapping of Elastic's Sysmon pipeline: members that are present replace ECS fields (docs/events.md)."""
    fields.sysmon = fields.raw = True
    fields.category = "network"
    if raw.computer_name is not None:
        fields.computer_name = raw.computer_name
    for name, value in raw.ecs():
        setattr(fields, name, value)


def _texts(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list) else (value,)
