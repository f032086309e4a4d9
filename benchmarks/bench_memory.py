"""What a live key costs: memory, time for each event, time for a tick.

Keys of one event each: 20,000 hosts, 3 processes a host, every destination another one, spread over 23 hours.
Events go straight into the engine, so that JSON is not measured. Each size runs in a process of its own.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from random import Random
from statistics import median
from typing import Any

from common import HOUR_MS, MONDAY_8_MS, ROUNDS, pin, table

from streamdetect.config import Settings
from streamdetect.detect import Detector, Lane
from streamdetect.model import Connection, Details, Facts, Partition

HOSTS = 20_000
PROCESSES = ("chrome.exe", "msedge.exe", "svchost.exe")
SPREAD_MS = 23 * HOUR_MS
PANE_MS = 300_000
EVENTS, TOUCHED = 200_000, 10_000
SMALL, MEDIUM, LARGE = 10_000, 100_000, 1_000_000


class Known:
    """An event that needs no reading."""

    __slots__ = ("_connection", "_details", "process_name", "time_ms")

    def __init__(self, time_ms: int, connection: Connection, details: Facts) -> None:
        self.time_ms = time_ms
        self.process_name = connection.process_name
        self._connection = connection
        self._details = details

    def connection(self) -> Connection:
        return self._connection

    def unsure(self) -> bool:
        return False

    def reread(self) -> Connection:
        return self._connection

    def glance(self) -> tuple[str, int, str]:
        return "egress", 443, str(self._connection.ip)

    def details(self) -> Facts:
        return self._details

    def host(self) -> str | None:
        return str(self._details[0][0])


def address(number: int) -> str:
    return f"45.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


class Estate:
    """Details are shared by all events of a process instance, as the decoder does."""

    def __init__(self) -> None:
        self._details: dict[int, Facts] = {}

    def event(self, key: int, time_ms: int) -> Known:
        instance = key % (HOSTS * len(PROCESSES))
        name = PROCESSES[instance % len(PROCESSES)]
        details = self._details.get(instance)
        if details is None:
            details = self._details[instance] = _details(instance, name)
        text = address(key)
        connection = Connection(
            dataset="endpoint.events.network",
            os_family="windows",
            category="network",
            direction="egress",
            process_name=name,
            port=443,
            ip=text,
            addresses=(text,),
            sensor="endpoint",
        )
        return Known(time_ms, connection, details)


def _details(instance: int, name: str) -> Facts:
    host = f"070a98ea-087a-5164-3e11-{instance // len(PROCESSES):012x}"
    entity = f"MjhhYzNmYzctY2ZiNS1hN2YxLWVjNGEtYWM3OGNjZjVkMGZmLTEyMjkyLTEz{instance:024x}"
    return tuple(
        Details(
            hosts=(host,),
            processes=(entity.lower(),),
            host_id=host,
            host_name=f"HEL-WS-{instance // len(PROCESSES):05d}",
            entity_id=entity,
            pid=1000 + instance,
            executable=f"C:\\Program Files\\Google\\Chrome\\Application\\{name}",
            user_name=f"user{instance // len(PROCESSES)}",
            user_domain="NORDHAVN".lower(),
            domain=None,
            port=443,
            ip=None,
        )
    )


def rss_bytes() -> int:
    with open("/proc/self/statm") as stream:  # noqa: PTH123
        return int(stream.read().split()[1]) * 4096


def arrivals(keys: int, touched: Iterator[int], start_ms: int, minutes: int) -> Iterator[tuple[int, int]]:
    """(key, time) of EVENTS events, evenly over some minutes."""
    for number in range(EVENTS):
        yield next(touched) % keys, start_ms + number * minutes * 60_000 // EVENTS


def feed(detector: Detector, lane: Lane, events: list[Known]) -> float:
    """CPU seconds to take these events, with a look at the watermark after every 1,000."""
    begun = time.process_time()
    for place in range(0, len(events), 1000):
        for event in events[place : place + 1000]:
            lane.accept(event)
        detector.advance()
    return time.process_time() - begun


def measure(keys: int) -> dict[str, Any]:
    """One process's work."""
    pin()
    detector, estate = Detector(Settings()), Estate()
    lane = detector.lane(Partition("events"))
    gc.collect()
    empty = rss_bytes()
    ticks: list[float] = []
    evaluated_ms = 0
    for number in range(keys):
        lane.accept(estate.event(number, MONDAY_8_MS + number * SPREAD_MS // keys))
        if number % 256 == 0:
            begun = time.process_time()
            detector.advance()
            if detector.evaluated_ms != evaluated_ms:
                ticks.append(time.process_time() - begun)
                evaluated_ms = detector.evaluated_ms
    end_ms = MONDAY_8_MS + SPREAD_MS
    detector.advance_to(end_ms)
    gc.collect()
    used = rss_bytes() - empty
    found: dict[str, Any] = {"keys": detector.keys, "bytes": used / keys, "last_ticks": ticks[-12:]}
    group = next(iter(detector._groups.values()))  # noqa: SLF001
    found["tracked"] = gc.is_tracked(next(iter(group.histories.values())))
    begun = time.process_time()
    gc.collect()
    found["gc"] = time.process_time() - begun
    # 10,000 keys chosen all over the whole, then all of them; a quarter of an hour each time.
    rng = Random(1)
    chosen = rng.sample(range(keys), TOUCHED)
    for name, touched in (
        ("same", iter(lambda: chosen[rng.randrange(TOUCHED)], None)),
        ("all", iter(lambda: rng.randrange(keys), None)),
    ):
        seconds = []
        for _ in range(ROUNDS):
            events = [estate.event(key, at) for key, at in arrivals(keys, touched, end_ms, 15)]
            end_ms += 15 * 60_000
            seconds.append(feed(detector, lane, events) / EVENTS)
            del events
        found[name] = median(seconds)
    return found


def in_subprocess(keys: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, str(keys)], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    results = {keys: in_subprocess(keys) for keys in (SMALL, MEDIUM, LARGE)}
    base = results[SMALL]
    table(
        f"keys of one event, {HOSTS:,} hosts; ratio: cost of an event to one of the same {TOUCHED:,} keys",
        (
            "live keys",
            "ratio",
            "us/event",
            "us/event, any key",
            "bytes/key",
            "tick ms",
            "full gc ms",
            "tracked",
        ),
        [
            (
                f"{keys:,}",
                f"{found['same'] / base['same']:.2f}x",
                f"{found['same'] * 1e6:.2f}",
                f"{found['all'] * 1e6:.2f}",
                f"{found['bytes']:.0f}",
                f"{median(found['last_ticks']) * 1e3:.1f}",
                f"{found['gc'] * 1e3:.0f}",
                "yes" if found["tracked"] else "no",
            )
            for keys, found in results.items()
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
