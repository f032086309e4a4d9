"""The stream of an estate: documents in the order in which they arrive.

Made slot by slot: what every host does in five minutes is drawn, put in order of arrival and given out; what
arrives later waits for the next slot. So memory holds one slot, however long the plan.
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
from streamdetect.synthetic.plan import Scenario
from streamdetect.synthetic.shapes import Renderer, renderer
from streamdetect.synthetic.traffic import SLOT_MS, Flow, Traffic

# Arrival time, a number that makes the order total, event time, who writes it down, what happened, noise.
_Arrival = tuple[int, int, int, Renderer, Flow, float]


def documents(plan: Scenario) -> Iterator[tuple[int, dict[str, Any]]]:
    """(event time in ms, document) in order of arrival, which is that of the event times give or take 100 s.

    Documents share their unchanging parts with each other: copy one before changing it.
    """
    for arrival_ms, _, time_ms, render, flow, noise in Estate(plan).arrivals():
        yield time_ms, render(time_ms, arrival_ms, flow, noise)


def keyed_records(plan: Scenario) -> Iterator[tuple[str, int, bytes]]:
    """(id of the host, event time in ms, the document as JSON) in order of arrival, for a topic keyed by host."""
    estate = Estate(plan)
    ids = estate.machine_ids()
    for arrival_ms, _, time_ms, render, flow, noise in estate.arrivals():
        yield ids[id(render)], time_ms, orjson.dumps(render(time_ms, arrival_ms, flow, noise))


def lines(plan: Scenario) -> Iterator[bytes]:
    """The documents as JSON lines, each with its line feed."""
    dumps, newline = orjson.dumps, orjson.OPT_APPEND_NEWLINE
    for _, document in documents(plan):
        yield dumps(document, option=newline)


def placements(plan: Scenario) -> list[Placement]:
    """What a plan plants, without making its traffic: for tests, and for telling people what to expect."""
    return [calls.placement for calls in Estate(plan).beacons]


class Estate:
    """Hosts, their traffic and the planted beacons of one plan."""

    def __init__(self, plan: Scenario) -> None:
        self._plan = plan
        hosts = make_hosts(plan)
        internet = Internet(stream(plan.seed, 0), min(20_000, 1000 + 20 * plan.hosts))
        servers = Servers()
        self._hosts = hosts
        self._renderers = {host.index: renderer(host) for host in hosts}
        self._traffic = [(host, Traffic(plan, host, internet, servers)) for host in hosts]
        self.beacons = plant(plan, hosts, internet)

    def machine_ids(self) -> dict[int, str]:
        """The machine's id by the identity of what renders its host: an arrival holds no host."""
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
            for time_ms, flow, noise in traffic.slot(slot_ms):
                if time_ms >= start_ms:
                    yield _arrival_ms(time_ms, noise, sysmon), next(serial), time_ms, render, flow, noise
        for calls in self.beacons:
            for host, (time_ms, flow, noise) in calls.slot(slot_ms):
                arrival_ms = _arrival_ms(time_ms, noise, host.sysmon)
                yield arrival_ms, next(serial), time_ms, renderers[host.index], flow, noise


def _arrival_ms(time_ms: int, noise: float, sysmon: bool) -> int:
    """1-25 s later for Sysmon, up to 6 s for Elastic Defend; one in 500 is a straggler of 30-100 s."""
    if noise > 0.998:
        return time_ms + 30_000 + int((noise - 0.998) * 35_000_000)
    square = noise * noise
    return time_ms + (1000 + int(square * 24_000) if sysmon else 80 + int(square * 6_000))
