"""Planted beacons: which process on which host calls which destination, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from streamdetect.synthetic.draws import between, stream
from streamdetect.synthetic.hosts import Host
from streamdetect.synthetic.internet import Internet, Peer
from streamdetect.synthetic.programs import CHROME, EDGE, FIREFOX, SVCHOST, SYSTEM, Process, Program
from streamdetect.synthetic.scenario import HOUR_MS, Beacon, Scenario
from streamdetect.synthetic.traffic import CONNECTION, SLOT_MS, START, WHOLE, Activity, TimedActivity

_PROGRAMS: tuple[Program, ...] = (CHROME, SVCHOST, EDGE, FIREFOX)  # of the first, second, ... beacon


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """A planted beacon. Call k comes at `first_ms + k * period + U` with `0 <= U <= jitter`.

    So every gap lies within period +- jitter, and the number of calls is exact: the k with
    `first_ms + k * period + jitter < end_ms`.
    """

    beacon: Beacon
    callers: tuple[tuple[Host, Process], ...]  # in turn
    destination: Peer
    first_ms: int
    end_ms: int

    @property
    def calls(self) -> int:
        room_ms = self.end_ms - self.first_ms - self.beacon.jitter_ms
        return max(0, -(-room_ms // self.beacon.period_ms))


def plant(scenario: Scenario, hosts: list[Host], internet: Internet) -> list[Calls]:
    """Place each beacon on hosts of its own, as far as there are enough."""
    rng = stream(scenario.seed, 4)
    free = sorted(hosts, key=lambda _: rng.random())
    planted: list[Calls] = []
    for number, beacon in enumerate(scenario.beacons):
        # Hosts of one beacon have one kind of sensor: the sensor is part of the detector's key.
        alike = sorted(free, key=lambda host: host.sysmon != free[0].sysmon)
        chosen = alike[: beacon.hosts]
        free = [host for host in free if host not in chosen] + chosen  # hosts with a beacon come last
        planted.append(
            Calls(_place(scenario, number, beacon, chosen, internet), stream(scenario.seed, 5, number))
        )
    return planted


def _place(
    scenario: Scenario, number: int, beacon: Beacon, hosts: list[Host], internet: Internet
) -> Placement:
    """Place one beacon: from hour 1 on, or over the whole scenario if it is shorter than 6 hours."""
    rng = stream(scenario.seed, 6, number)
    wait_ms = HOUR_MS if scenario.hours >= 6 else 0
    first_ms = scenario.start_ms + wait_ms + between(rng, 0, min(beacon.period_ms, SLOT_MS))
    program = _PROGRAMS[number % len(_PROGRAMS)]
    callers = [
        (host, host.launcher.start(program, SYSTEM if program is SVCHOST else host.user, first_ms - 1000))
        for host in hosts
        for _ in range(beacon.processes)
    ]
    return Placement(beacon, tuple(callers), internet.beacon(rng), first_ms, scenario.end_ms)


class Calls:
    """A placement's calls, slot by slot."""

    def __init__(self, placement: Placement, rng: Random) -> None:
        self.placement = placement
        self._rng = rng
        self._next = 0

    def slot(self, start_ms: int) -> Iterator[tuple[Host, TimedActivity]]:
        """The calls due in the slot. Jitter may move them after it, never before it."""
        placement, beacon, rng = self.placement, self.placement.beacon, self._rng
        while self._next < placement.calls:
            due_ms = placement.first_ms + self._next * beacon.period_ms
            if due_ms >= start_ms + SLOT_MS:
                return
            host, process = placement.callers[self._next % len(placement.callers)]
            phase = WHOLE if host.shape.startswith("defend-8.18") else START
            activity = Activity(
                CONNECTION, process, phase, placement.destination, between(rng, 49_152, 65_536)
            )
            yield host, TimedActivity(due_ms + between(rng, 0, beacon.jitter_ms + 1), activity, rng.random())
            self._next += 1
