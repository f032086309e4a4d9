"""The class that renders each shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamdetect.synthetic import sysmon_raw
from streamdetect.synthetic.defend import Defend
from streamdetect.synthetic.hosts import Host
from streamdetect.synthetic.sysmon_ecs import SysmonEcs
from streamdetect.synthetic.traffic import Activity

Renderer = Callable[[int, int, Activity, float], dict[str, Any]]
"""(event time, arrival time, activity, noise) -> document."""

_CLASSES: dict[str, Callable[[Host], Renderer]] = {
    "agent-raw": sysmon_raw.AgentRaw,
    "azure-eventdata-string": sysmon_raw.AzureString,
    "defend-8.12": Defend,
    "defend-8.18": Defend,
    "defend-8.18-full": Defend,
    "defend-scalars": Defend,
    "evtx-dump": sysmon_raw.EvtxDump,
    "logstash-raw": sysmon_raw.LogstashRaw,
    "nxlog-flat": sysmon_raw.NxlogFlat,
    "python-evtx": sysmon_raw.PythonEvtx,
    "sysmon-ecs": SysmonEcs,
    "sysmon-ecs-forwarded": SysmonEcs,
    "winlogbeat6": sysmon_raw.Winlogbeat6,
    "winlogbeat7-ecs": SysmonEcs,
    "winlogbeat8-forwarded": sysmon_raw.Forwarded8,
    "winlogbeat8-raw": sysmon_raw.Winlogbeat8,
}


def renderer(host: Host) -> Renderer:
    """The renderer of a host's documents."""
    return _CLASSES[host.shape](host)
