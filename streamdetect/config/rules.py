"""The `rules` settings: what is detected as a beacon. The default is the hunt of docs/semantics.md."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator, model_validator

from streamdetect.config.section import Port, Section, Text
from streamdetect.config.units import Duration, Network, duration, normal_destination

HUNT_ID = "ed254a22-e7bb-4a36-9291-196b77762dd8"
HUNT_NAME = "High count of network connection over extended period by process"
HUNT_PROCESSES = ("chrome.exe", "msedge.exe", "iexplore.exe", "firefox.exe", "svchost.exe")
HUNT_DATASETS = ("endpoint.events.network", "windows.sysmon_operational")
# semantics.md §1, in its order: 23 of IPv4, 3 of IPv6.
HUNT_EXCLUDED_NETWORKS = (
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.9/32",
    "192.0.0.10/32",
    "192.0.0.170/32",
    "192.0.0.171/32",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.168.0.0/16",
    "192.88.99.0/24",
    "224.0.0.0/4",
    "100.64.0.0/10",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "::1",
    "fe80::/10",
    "ff00::/8",
)


class RuleException(Section):
    """Events that do not count for a rule. Every field that is set must match; a missing field matches all."""

    destination: Text | None = None
    """Destination: an address, a network (CIDR), or a name as in destination.address."""
    process: Text | None = None
    """Process name."""
    host: Text | None = None
    """Host id or host name."""

    @field_validator("destination")
    @classmethod
    def _destination(cls, destination: str | None) -> str | None:
        return None if destination is None else normal_destination(destination)

    @model_validator(mode="after")
    def _not_everything(self) -> RuleException:
        if self.destination is None and self.process is None and self.host is None:
            raise ValueError("matches every event; name a destination, process or host, or disable the rule")
        return self


class RuleSettings(Section):
    """One rule: which events count, and how many, over which time, from how many hosts give an alert."""

    id: Text = HUNT_ID
    """Name of the rule in ids and alerts. Changing it starts new episodes. Unique among the rules."""
    name: Text = HUNT_NAME
    """Title, shown to people."""
    enabled: bool = True
    """Whether the rule is evaluated."""
    severity: int = Field(default=47, strict=True, ge=1, le=100)
    """Severity and risk score of alerts, 1 to 100: 21 low, 47 medium, 73 high, 99 critical."""
    processes: tuple[Text, ...] = Field(default=HUNT_PROCESSES, min_length=1)
    """Process names that count."""
    excluded_ports: tuple[Port, ...] = (53,)
    """Destination ports that do not count, 0 to 65535."""
    excluded_networks: tuple[Network, ...] = HUNT_EXCLUDED_NETWORKS
    """Destination networks (CIDR, or one address) that do not count."""
    extra_excluded_networks: tuple[Network, ...] = ()
    """Additional networks that do not count, on top of `excluded_networks`."""
    datasets: tuple[Text, ...] = HUNT_DATASETS
    """Values of data_stream.dataset (else event.dataset) that count; events without one always do."""
    min_connections_per_hour: int = Field(default=120, strict=True, ge=1, le=1_000_000_000)
    """Fewest events an hour, on average over the span; 1 or more."""
    min_duration_hours: int = Field(default=4, strict=True, ge=0, le=87_600)
    """Fewest hours between first and last event, rounded half up; 0 requires no span."""
    max_hosts: int = Field(default=1, strict=True, ge=1, le=100)
    """Most distinct hosts of a key, 1 to 100."""
    max_processes: int = Field(default=1, strict=True, ge=1, le=100)
    """Most distinct process instances of a key, 1 to 100."""
    renotify_ms: Duration = duration("6h", alias="renotify", minimum="1ms")
    """Time between two alerts of an open episode; more than 0."""
    exceptions: tuple[RuleException, ...] = ()
    """Events that do not count for this rule."""

    def networks(self) -> list[str]:
        """Every network that does not count: excluded and extra ones."""
        return [*self.excluded_networks, *self.extra_excluded_networks]

    def detection(self) -> dict[str, object]:
        """The settings that decide what this rule detects, independent of the order of lists."""
        shown = self.model_dump(
            mode="json",
            by_alias=True,
            exclude={"id", "name", "severity", "enabled", "extra_excluded_networks"},
        )
        shown["excluded_networks"] = sorted(set(self.networks()), key=_network_order)
        for name in ("processes", "excluded_ports", "datasets"):
            shown[name] = sorted(set(shown[name]))
        shown["exceptions"] = sorted(shown["exceptions"], key=repr)
        return shown


def _network_order(text: str) -> tuple[int, bytes, int]:
    network = ipaddress.ip_network(text)
    return network.version, network.network_address.packed, network.prefixlen
