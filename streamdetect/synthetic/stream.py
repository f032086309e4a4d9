"""The stream of a scenario: documents in order of arrival.

Generated slot by slot: the activities of every host in five minutes are drawn, sorted by arrival and emitted; later
arrivals wait for the next slot. So memory holds one slot, however long the scenario.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson

from streamdetect.synthetic.beacons import Placement, plant
from streamdetect.synthetic.draws import stream
from streamdetect.synthetic.hosts import make_hosts
from streamdetect.synthetic.internet import Internet, Servers
from streamdetect.synthetic.scenario import Scenario
from streamdetect.synthetic.shapes import Renderer, renderer
from streamdetect.synthetic.traffic import SLOT_MS, Activity, Traffic

# Arrival time, a tie breaker, event time, renderer, activity, noise.
_Arrival = tuple[int, int, int, Renderer, Activity, float]


def documents(scenario: Scenario) -> Iterator[tuple[int, dict[str, Any]]]:
    """(event time in ms, document) in order of arrival, at most 100 s away from the order of event times.

    Documents share constant parts: copy one before changing it.
    """
    for arrival_ms, _, time_ms, render, activity, noise in ScenarioStream(scenario).arrivals():
        yield time_ms, render(time_ms, arrival_ms, activity, noise)


def keyed_records(scenario: Scenario) -> Iterator[tuple[str, int, bytes]]:
    """(id of the host, event time in ms, the document as JSON) in order of arrival, for a topic keyed by host."""
    stream_of = ScenarioStream(scenario)
    ids = stream_of.machine_ids()
    for arrival_ms, _, time_ms, render, activity, noise in stream_of.arrivals():
        yield ids[id(render)], time_ms, orjson.dumps(render(time_ms, arrival_ms, activity, noise))


def lines(scenario: Scenario) -> Iterator[bytes]:
    """The documents as JSON lines, each with a line feed."""
    dumps, newline = orjson.dumps, orjson.OPT_APPEND_NEWLINE
    for _, document in documents(scenario):
        yield dumps(document, option=newline)


def placements(scenario: Scenario) -> list[Placement]:
    """The planted beacons of a scenario, without generating its traffic."""
    return [calls.placement for calls in ScenarioStream(scenario).beacons]


class ScenarioStream:
    """Hosts, their traffic and the planted beacons of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._plan = scenario
        hosts = make_hosts(scenario)
        internet = Internet(stream(scenario.seed, 0), min(20_000, 1000 + 20 * scenario.hosts))
        servers = Servers()
        self._hosts = hosts
        self._renderers = {host.index: renderer(host) for host in hosts}
        self._traffic = [(host, Traffic(scenario, host, internet, servers)) for host in hosts]
        self.beacons = plant(scenario, hosts, internet)

    def machine_ids(self) -> dict[int, str]:
        """The machine id by the identity of the host's renderer: arrivals do not contain the host."""
        return {id(self._renderers[host.index]): host.machine.id for host in self._hosts}

    def arrivals(self) -> Iterator[_Arrival]:
        serial = count()
        waiting: list[_Arrival] = []
        first_ms = self._plan.start_ms - self._plan.start_ms % SLOT_MS
        for slot_ms in range(first_ms, self._plan.end_ms, SLOT_MS):
            waiting.extend(self._begun(slot_ms, serial))
            waiting.sort()
            arrived = bisect_left(waiting, slot_ms + SLOT_MS, key=lambda arrival: arrival[0])
            yield from waiting[:arrived]
            del waiting[:arrived]
        yield from waiting

    def _begun(self, slot_ms: int, serial: count[int]) -> Iterator[_Arrival]:
        renderers, start_ms = self._renderers, self._plan.start_ms
        for host, traffic in self._traffic:
            render, sysmon = renderers[host.index], host.sysmon
            for time_ms, activity, noise in traffic.slot(slot_ms):
                if time_ms >= start_ms:
                    yield _arrival_ms(time_ms, noise, sysmon), next(serial), time_ms, render, activity, noise
        for calls in self.beacons:
            for host, (time_ms, activity, noise) in calls.slot(slot_ms):
                arrival_ms = _arrival_ms(time_ms, noise, host.sysmon)
                yield arrival_ms, next(serial), time_ms, renderers[host.index], activity, noise


def _arrival_ms(time_ms: int, noise: float, sysmon: bool) -> int:
    """1-25 s later for Sysmon, up to 6 s for Elastic Defend; one in 500 is a straggler of 30-100 s."""
    if noise > 0.998:
        return time_ms + 30_000 + int((noise - 0.998) * 35_000_000)
    square = noise * noise
    return time_ms + (1000 + int(square * 24_000) if sysmon else 80 + int(square * 6_000))
