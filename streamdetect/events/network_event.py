"""An event that is not decoded from bytes, for programs that embed the detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamdetect.events.generic import Fields
from streamdetect.events.profile import ProfileReader
from streamdetect.model import ContextTuple, EventKind, Flow, Many

_READERS = {"resilient": ProfileReader(resilient=True), "strict": ProfileReader(resilient=False)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEvent:
    """One network connection event, as `PartitionProcessor.accept` takes it (`model.Event`).

    `time_ms` is in milliseconds since the epoch, UTC. Names, ids and addresses compare as the values of a decoded
    record under `profile` do (docs/semantics.md §7). `destination_address` is the address of the key: by default the IP
    in `resilient`, none in `strict`.
    """

    time_ms: int
    process: str
    process_entity_id: str
    host_id: str
    destination_ip: str
    destination_port: int
    destination_address: str | None = None
    destination_domain: str | None = None
    host_name: str | None = None
    pid: int | None = None
    executable: str | None = None
    user_name: str | None = None
    user_domain: str | None = None
    direction: str = "egress"
    os_family: str = "windows"
    dataset: str | None = None
    sensor: Literal["endpoint", "sysmon"] = "endpoint"
    profile: Literal["resilient", "strict"] = "resilient"

    @property
    def process_name(self) -> str | Many | None:
        return _READERS[self.profile].process_name(self.process)

    def flow(self) -> Flow:
        return _READERS[self.profile].flow(
            self.direction, self.destination_port, self.destination_ip, self.destination_address
        )

    def kind(self) -> EventKind:
        return _READERS[self.profile].kind(self._fields(), self.process_name)

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        del kind
        reader = _READERS[self.profile]
        return reader.context(reader.instance(self._fields()), reader.domain(self.destination_domain), flow)

    def host(self) -> str | None:
        return _READERS[self.profile].clock_host(self.host_id, self.host_name, None)

    def _fields(self) -> Fields:
        return Fields(
            category="network",
            dataset=self.dataset,
            os_family=self.os_family,
            sysmon=self.sensor == "sysmon",
            host_id=self.host_id,
            host_name=self.host_name,
            entity_id=self.process_entity_id,
            pid=self.pid,
            executable=self.executable,
            user_name=self.user_name,
            user_domain=self.user_domain,
        )
