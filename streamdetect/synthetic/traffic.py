"""The activities of a host over a day, before any sensor renders them.

Why only planted beacons can match the default hunt (120 an hour for 4 h, one host, one process):

* A browser instance lives for less than 190 minutes and is then replaced. "4 hours" begin at 3 h 30 min, so a
  key with one browser instance cannot span them, and one that does has two instances.
* svchost.exe lives as long as the host does, but all its public connections together are at most 40 an hour
  (80 records where Elastic Defend writes start and end): below 120 for every destination, whatever the rate.
* Everything else is not a process of the hunt, or private, link-local, ingress or port 53.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from streamdetect.synthetic.draws import Weighted, below, between, chance, pick, stream, whole
from streamdetect.synthetic.hosts import Host
from streamdetect.synthetic.internet import Internet, Peer, Servers, peer
from streamdetect.synthetic.programs import (
    APPS,
    BROWSERS,
    EDGE,
    KERNEL,
    LSASS,
    NETWORK_SERVICE,
    SVCHOST,
    SYSTEM,
    TOOLS,
    UNKNOWN,
    Account,
    Process,
    Program,
)  # fmt: skip
from streamdetect.synthetic.scenario import HOUR_MS, Scenario

SLOT_MS = 300_000  # traffic is generated in slots of this length, which divides an hour

CONNECTION, LOOKUP, PROCESS, FILE = range(4)  # kinds of activities
START, END, WHOLE = range(3)  # a record of a connection: its start, its end, or both

_BROWSER_LIFE_MS = (40 * 60_000, 185 * 60_000)  # including the slot in which it ends: under 190 minutes
_SVCHOST_PER_HOUR = 40.0

# Activity of a user by hour of the day (UTC), relative: office hours with a lunch, a quiet night.
_DAY = (3, 2, 2, 2, 3, 6, 22, 66, 96, 100, 100, 92, 74, 90, 100, 98, 90, 78, 50, 32, 22, 16, 9, 5)
_ACTIVITY = tuple(24 * part / sum(_DAY) for part in _DAY)


class Activity(NamedTuple):
    """One activity. `port` is the host's own: ephemeral, or the listening port of an ingress."""

    kind: int
    process: Process
    phase: int = START
    peer: Peer | None = None
    port: int = 0
    ingress: bool = False
    text: str = ""  # the name looked up, or the file written


class TimedActivity(NamedTuple):
    """An activity at a time; `noise` (0 <= noise < 1) is randomness for its record, so that renderers draw none."""

    time_ms: int
    activity: Activity
    noise: float


# Shares of a host's activities. Activities of a user follow the day, activities of the system do not.
_USER_SHARES = {
    "browse": 16.5, "intranet": 9.0, "lookup": 13.0, "app": 14.0,
    "process": 7.0, "file": 8.0, "loopback": 2.0,
}  # fmt: skip
_SYSTEM_SHARES = {"resolve": 12.0, "directory": 6.0, "files": 4.0, "served": 6.0, "neighbours": 4.0}
_SVCHOST_SHARE = 4.5
_TOTAL = sum(_USER_SHARES.values()) + sum(_SYSTEM_SHARES.values()) + _SVCHOST_SHARE


class Traffic:
    """One host's activities, slot by slot."""

    def __init__(self, scenario: Scenario, host: Host, internet: Internet, servers: Servers) -> None:
        self._rng = stream(scenario.seed, 3, host.index)
        self._host = host
        self._internet = internet
        self._servers = servers
        self._end_ms = scenario.end_ms
        wanted = _USER_SHARES.keys() - ({"lookup", "process", "file"} if host.network_only else set())
        self._users = _Mix(self, {name: share for name, share in _USER_SHARES.items() if name in wanted})
        self._systems = _Mix(self, _SYSTEM_SHARES)
        records_a_flow = 1.7 if host.start_and_end else 1  # 7 of 10 flows are connections
        activities = scenario.events_per_host_hour / records_a_flow
        self._user_per_hour = activities * sum(_USER_SHARES.values()) / _TOTAL
        self._system_per_hour = activities * sum(_SYSTEM_SHARES.values()) / _TOTAL
        self._svchost_per_hour = min(activities * _SVCHOST_SHARE / _TOTAL, _SVCHOST_PER_HOUR)
        self._settle(scenario.start_ms)

    def _settle(self, start_ms: int) -> None:
        """Processes that run since before the scenario begins."""
        rng, launcher, user = self._rng, self._host.launcher, self._host.user

        def running(program: Program, account: Account = SYSTEM) -> Process:
            return launcher.start(program, account, start_ms - between(rng, 60_000, 30 * HOUR_MS))

        self._services = [running(SVCHOST) for _ in range(4)]
        self._resolver = running(SVCHOST, NETWORK_SERVICE)
        self._lsass, self._kernel, self._unknown = running(LSASS), running(KERNEL), running(UNKNOWN)
        self._apps = [running(program, user) for program in APPS]
        self._tools = list(TOOLS)
        self._browser_program = BROWSERS[Weighted((55, 33, 12)).index(rng.random())]
        self._browsers: dict[Program, tuple[Process, int]] = {}
        self._favourites = [pick(rng, self._internet.sites) for _ in range(12)]

    def slot(self, start_ms: int) -> Iterator[TimedActivity]:
        """Activities that begin in `[start_ms, start_ms + SLOT_MS)`, unordered; they may end later."""
        rng = self._rng
        share = SLOT_MS / HOUR_MS
        activity = _ACTIVITY[start_ms // HOUR_MS % 24]
        for mean, make in (
            (self._user_per_hour * activity * share, self._users.one),
            (self._system_per_hour * share, self._systems.one),
            (self._svchost_per_hour * share, self._service),
        ):
            for _ in range(whole(rng, mean)):
                time_ms = start_ms + int(rng.random() * SLOT_MS)
                if time_ms < self._end_ms:
                    yield from self._recorded(TimedActivity(time_ms, make(time_ms, start_ms), rng.random()))

    def _recorded(self, timed: TimedActivity) -> Iterator[TimedActivity]:
        """One record, or the start and the end of a connection."""
        yield timed
        activity = timed.activity
        if activity.kind == CONNECTION and self._host.start_and_end:
            end_ms = timed.time_ms + 40 + int(timed.noise * timed.noise * 90_000)
            if end_ms < self._end_ms:
                yield TimedActivity(end_ms, activity._replace(phase=END), self._rng.random())

    def _connect(self, process: Process, to: Peer) -> Activity:
        phase = WHOLE if self._host.shape.startswith("defend-8.18") else START
        return Activity(CONNECTION, process, phase, to, 49_152 + int(self._rng.random() * 16_384))

    def _browser(self, slot_ms: int) -> Process:
        """The browser instance of this slot. Edge is used now and then on every host."""
        program = EDGE if chance(self._rng, 0.08) else self._browser_program
        running = self._browsers.get(program)
        if running is None or running[1] <= slot_ms:
            process = self._host.launcher.start(program, self._host.user, slot_ms)
            running = self._browsers[program] = (process, slot_ms + between(self._rng, *_BROWSER_LIFE_MS))
        return running[0]

    def _site(self) -> Peer:
        if chance(self._rng, 0.2):
            return pick(self._rng, self._favourites)
        return self._internet.sites[self._internet.law.index(self._rng.random())]

    # One method per kind of activity: (time, start of its slot) -> Activity.

    def browse(self, _time_ms: int, slot_ms: int) -> Activity:
        return self._connect(self._browser(slot_ms), self._site())

    def intranet(self, _time_ms: int, slot_ms: int) -> Activity:
        return self._connect(self._browser(slot_ms), pick(self._rng, self._servers.intranet))

    def lookup(self, _time_ms: int, slot_ms: int) -> Activity:
        process = self._browser(slot_ms) if chance(self._rng, 0.6) else pick(self._rng, self._apps)
        return Activity(LOOKUP, process, text=self._site().domain or "wpad.nordhavn.example")

    def app(self, _time_ms: int, _slot_ms: int) -> Activity:
        process = self._unknown if chance(self._rng, 0.02) else pick(self._rng, self._apps)
        return self._connect(process, pick(self._rng, self._internet.apps))

    def process(self, time_ms: int, _slot_ms: int) -> Activity:
        started = self._host.launcher.start(pick(self._rng, self._tools), self._host.user, time_ms)
        return Activity(PROCESS, started)

    def file(self, _time_ms: int, slot_ms: int) -> Activity:
        process = self._browser(slot_ms) if chance(self._rng, 0.4) else pick(self._rng, self._apps)
        name = f"{below(self._rng, 1 << 32):08x}.tmp"
        return Activity(
            FILE, process, text=f"C:\\Users\\{self._host.user.name}\\AppData\\Local\\Temp\\{name}"
        )

    def loopback(self, _time_ms: int, slot_ms: int) -> Activity:
        return self._connect(self._browser(slot_ms), pick(self._rng, self._servers.loopback))

    def resolve(self, _time_ms: int, _slot_ms: int) -> Activity:
        return self._connect(self._resolver, pick(self._rng, self._servers.dns))

    def directory(self, _time_ms: int, _slot_ms: int) -> Activity:
        return self._connect(self._lsass, pick(self._rng, self._servers.directory))

    def files(self, _time_ms: int, _slot_ms: int) -> Activity:
        return self._connect(self._kernel, pick(self._rng, self._servers.files))

    def neighbours(self, _time_ms: int, _slot_ms: int) -> Activity:
        return self._connect(self._resolver, pick(self._rng, self._servers.neighbours))

    def served(self, _time_ms: int, _slot_ms: int) -> Activity:
        """An inbound connection: an administrator, a scanner, a printer server."""
        rng = self._rng
        served = ((self._kernel, 445), (self._services[0], 135), (self._services[1], 3389))
        process, port = pick(rng, served)
        client = peer(f"10.20.9.{between(rng, 1, 255)}", between(rng, 49_152, 65_536))
        return self._connect(process, client)._replace(ingress=True, port=port)

    def _service(self, _time_ms: int, _slot_ms: int) -> Activity:
        return self._connect(pick(self._rng, self._services), pick(self._rng, self._internet.microsoft))


class _Mix:
    """Kinds of activities by their shares: `one` makes the next."""

    def __init__(self, traffic: Traffic, shares: dict[str, float]) -> None:
        self._rng: Random = traffic._rng
        self._law = Weighted(list(shares.values()))
        self._makers: list[Callable[[int, int], Activity]] = [getattr(traffic, name) for name in shares]

    def one(self, time_ms: int, slot_ms: int) -> Activity:
        return self._makers[self._law.index(self._rng.random())](time_ms, slot_ms)
