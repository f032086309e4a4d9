"""Cost of a live key: memory, and time for each event, by number of keys and number of events.

Events are passed to the engine directly, so that JSON is not measured. Memory is resident memory above that of an
engine without keys. It includes what the keys of one process instance share: host, entity id, executable, user. Every
key has a destination of its own and one process instance. Each size runs in a process of its own; timed sizes are
measured in turn. `--large` adds five million keys, and a million keys with 100 events each, which are restored from
rows instead of fed: some ten minutes.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from random import Random
from statistics import median

from common import HOUR_MS, MONDAY_8_MS, pin, table

from streamdetect.config import Settings
from streamdetect.detect import Detector, PartitionProcessor
from streamdetect.model import ContextTuple, EventContext, EventKind, Flow, Partition

HOSTS = 20_000
PROCESSES = ("chrome.exe", "msedge.exe", "svchost.exe")
INSTANCES = HOSTS * len(PROCESSES)
FEW, ENDPOINTS = 600, 100_000
SPREAD_MS = 23 * HOUR_MS
PANE_MS = 300_000
EVENTS, TOUCHED, ROUNDS = 200_000, 10_000, 3
SMALL, MEDIUM, LARGE, HUGE = 10_000, 100_000, 1_000_000, 5_000_000
BUSY, MOST_FED = 10_000, 50_000_000
KINDS = {
    name: EventKind("endpoint.events.network", "windows", "network", name, "endpoint", sysmon=False)
    for name in PROCESSES
}


@dataclass(frozen=True, slots=True)
class Load:
    """A number of keys with the same number of events each, distributed over process instances."""

    keys: int
    events: int = 1
    instances: int = INSTANCES


LOADS = (
    Load(LARGE, instances=FEW),
    Load(LARGE),
    Load(LARGE, instances=ENDPOINTS * len(PROCESSES)),
    Load(LARGE, events=10),
    Load(BUSY, events=300),
)
MORE_LOADS = (Load(HUGE, instances=FEW), Load(HUGE), Load(MEDIUM, events=300), Load(LARGE, events=100))


class PreparedEvent:
    """An event whose fields are derived in advance."""

    __slots__ = ("_context", "_flow", "process_name", "time_ms")

    def __init__(self, time_ms: int, flow: Flow, process_name: str, context: ContextTuple) -> None:
        self.time_ms = time_ms
        self.process_name = process_name
        self._flow = flow
        self._context = context

    def flow(self) -> Flow:
        return self._flow

    def kind(self) -> EventKind:
        return KINDS[self.process_name]

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        del flow, kind
        return self._context

    def host(self) -> str | None:
        return str(self._context[0][0])


def address(number: int) -> str:
    return f"45.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


class EventFactory:
    """Makes events by key. All events of a process instance share one context, as those of the decoder do."""

    def __init__(self, instances: int = INSTANCES) -> None:
        self._instances = instances
        self._contexts: dict[int, ContextTuple] = {}

    def event(self, key: int, time_ms: int) -> PreparedEvent:
        instance = key % self._instances
        name = PROCESSES[instance % len(PROCESSES)]
        context = self._contexts.get(instance)
        if context is None:
            context = self._contexts[instance] = _context(instance, name)
        text = address(key)
        return PreparedEvent(time_ms, Flow.to("egress", 443, text, (text,)), name, context)


def _context(instance: int, name: str) -> ContextTuple:
    host = f"070a98ea-087a-5164-3e11-{instance // len(PROCESSES):012x}"
    entity = f"MjhhYzNmYzctY2ZiNS1hN2YxLWVjNGEtYWM3OGNjZjVkMGZmLTEyMjkyLTEz{instance:024x}"
    return tuple(
        EventContext(
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


def fill(detector: Detector, processor: PartitionProcessor, factory: EventFactory, load: Load) -> None:
    """Add one event to each key per round, all events evenly over 23 hours."""
    total, number = load.keys * load.events, 0
    for _ in range(load.events):
        for key in range(load.keys):
            processor.accept(factory.event(key, MONDAY_8_MS + number * SPREAD_MS // total))
            number += 1
            if number % 256 == 0:
                detector.advance()
    detector.advance_to(MONDAY_8_MS + SPREAD_MS)


def restore(detector: Detector, factory: EventFactory, load: Load) -> None:
    """Like `fill`, from checkpoint rows: every key has its events at the same times, each in a pane of its own."""
    times = [MONDAY_8_MS + number * SPREAD_MS // load.events for number in range(load.events)]
    panes = [[time_ms, time_ms, 1] for time_ms in times]
    rule = detector.rules[0].id
    for key in range(load.keys):
        event = factory.event(key, 0)
        name = [address(key), event.process_name, event.kind().sensor]
        context = event.context(event.flow(), event.kind())
        row = {"kind": "key", "rule": rule, "key": name, "panes": panes, "details": context}
        detector.import_state([row | {"recent": None, "episode": None}])


def engine(keys: int) -> tuple[Detector, PartitionProcessor]:
    detector = Detector(Settings.model_validate({"limits": {"max_keys": max(keys, 2_000_000)}}))
    return detector, detector.processor(Partition("events"))


def bytes_per_key(load: Load) -> float:
    """Resident bytes of a key. Call in a process of its own."""
    detector, processor = engine(load.keys)
    factory = EventFactory(load.instances)
    gc.collect()
    empty = rss_bytes()
    if load.keys * load.events <= MOST_FED:
        fill(detector, processor, factory, load)
    else:
        restore(detector, factory, load)
    gc.collect()
    if detector.keys != load.keys:
        raise SystemExit(f"{detector.keys:,} keys are live instead of {load.keys:,}")
    return (rss_bytes() - empty) / load.keys


def arrivals(keys: int, touched: Iterator[int], start_ms: int, minutes: int) -> Iterator[tuple[int, int]]:
    """(key, time) of `EVENTS` events, evenly over some minutes."""
    for number in range(EVENTS):
        yield next(touched) % keys, start_ms + number * minutes * 60_000 // EVENTS


def feed(
    detector: Detector, processor: PartitionProcessor, events: list[PreparedEvent], end_ms: int
) -> float:
    """CPU seconds for these events, with `advance` after every 1,000, and for all of their ticks."""
    started = time.process_time()
    for start in range(0, len(events), 1000):
        for event in events[start : start + 1000]:
            processor.accept(event)
        detector.advance()
    detector.advance_to(end_ms)
    return time.process_time() - started


def timed(keys: int) -> None:
    """Print CPU ms of a full garbage collection; then, for each line of standard input, CPU us of an event of 10,000
    randomly chosen keys, and of any key.

    Each measurement is a quarter of an hour of event time. Ends with the input.
    """
    detector, processor = engine(keys)
    factory = EventFactory()
    fill(detector, processor, factory, Load(keys))
    rng, end_ms = Random(1), MONDAY_8_MS + SPREAD_MS
    chosen = rng.sample(range(keys), TOUCHED)
    same = iter(lambda: chosen[rng.randrange(TOUCHED)], None)
    any_key = iter(lambda: rng.randrange(keys), None)
    started = time.process_time()
    gc.collect()
    print(json.dumps([(time.process_time() - started) * 1e3]), flush=True)
    for _ in sys.stdin:
        measured = []
        for touched in (same, any_key):
            events = [factory.event(key, at) for key, at in arrivals(keys, touched, end_ms, 15)]
            end_ms += 15 * 60_000
            measured.append(feed(detector, processor, events, end_ms) / EVENTS * 1e6)
            del events
        print(json.dumps(measured), flush=True)


class Engine:
    """A process that runs `timed`."""

    def __init__(self, keys: int, stack: ExitStack) -> None:
        command = [sys.executable, __file__, "--timed", str(keys)]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self.rounds: list[tuple[float, float]] = []
        (self.gc_ms,) = self._read()

    def _read(self) -> list[float]:
        assert self._process.stdout is not None
        numbers: list[float] = json.loads(self._process.stdout.readline())
        return numbers

    def round(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        same, any_key = self._read()
        self.rounds.append((same, any_key))

    def medians(self) -> tuple[float, float]:
        return median(same for same, _ in self.rounds), median(any_key for _, any_key in self.rounds)


def show_time() -> None:
    core = pin()
    with ExitStack() as stack:
        engines = {keys: Engine(keys, stack) for keys in (SMALL, MEDIUM, LARGE)}
        for _ in range(ROUNDS + 1):
            for one in engines.values():
                one.round()
    for one in engines.values():
        del one.rounds[0]  # in the first, tables still grow
    base = engines[SMALL].medians()
    table(
        f"CPU time of an event, core {core}; ratio: cost relative to that with {SMALL:,} live keys",
        ("live keys", f"same {TOUCHED:,} keys", "us", "any key", "us", "full gc ms"),
        [
            (
                f"{keys:,}",
                f"{one.medians()[0] / base[0]:.2f}x",
                f"{one.medians()[0]:.2f}",
                f"{one.medians()[1] / base[1]:.2f}x",
                f"{one.medians()[1]:.2f}",
                f"{one.gc_ms:.0f}",
            )
            for keys, one in engines.items()
        ],
    )


def in_subprocess(load: Load) -> float:
    command = [sys.executable, __file__, "--bytes", *map(str, astuple(load))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show_memory(loads: Sequence[Load]) -> None:
    with ThreadPoolExecutor(2) as pool:
        sizes = dict(zip(loads, pool.map(in_subprocess, loads), strict=True))
    few, many = (sizes[Load(LARGE, instances=count)] for count in (FEW, INSTANCES))
    instance = (many - few) * LARGE / (INSTANCES - FEW)
    table(
        f"memory; a process instance takes {instance:.0f} bytes (from the rows with {FEW} and {INSTANCES:,})",
        ("live keys", "events each", "process instances", "bytes/key", "of which shared", "MB"),
        [
            (
                f"{load.keys:,}",
                f"{load.events}",
                f"{load.instances:,}",
                f"{size:.0f}",
                f"{instance * min(load.instances, load.keys) / load.keys:.0f}",
                f"{size * load.keys / 1e6:.0f}",
            )
            for load, size in sizes.items()
        ],
    )


def main() -> None:
    match sys.argv[1:]:
        case ["--timed", keys]:
            timed(int(keys))
        case ["--bytes", *numbers]:
            print(bytes_per_key(Load(*map(int, numbers))))
        case options:
            show_memory((*LOADS, *(MORE_LOADS if options == ["--large"] else ())))
            show_time()


if __name__ == "__main__":
    main()
