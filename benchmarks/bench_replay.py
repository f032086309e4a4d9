"""Replay of files against DuckDB and Polars computing the hunt's aggregates at the last tick, once, over the same ones.

On one core, and on both: there in four files, since the product parts work by file. Each task of each round is a
process of its own; what is measured begins after its imports and includes reading and parsing. The replay evaluates
every tick on its way; the others answer for the last one only, whose window holds all records. All must count the
same events and find the same keys.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, collapse_addresses, ip_network
from pathlib import Path
from statistics import median
from typing import Any

from common import HOUR_MS, MONDAY_8_MS, ROOT, table, write_records
from environments import PEERS, python_with

from streamdetect.config import Settings
from streamdetect.service.bounded.replay import run_replay
from streamdetect.sinks.files import NullSink
from streamdetect.sources.files import FileSource

COUNTS = {"defend": 300_000, "sysmon-raw": 200_000}
HOSTS = 400
FILES = 4
ROUNDS = 5
BOTH_CORES = ("--jobs", "2")
"""Options of `streamdetect replay` for the table of both cores."""
NETWORKS_6 = {"::1": "^(::1|0:0:0:0:0:0:0:1)$", "fe80::/10": "^fe[89ab].:", "ff00::/8": "^ff..:"}
"""What the hunt excludes of IPv6, as patterns of the texts that sensors write."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Taken:
    """One round of a task, or the medians of several."""

    seconds: float
    cpu_seconds: float
    found: Json


def question(shape: str, paths: Sequence[Path], threads: int) -> Json:
    """The hunt, in words that need no streamdetect."""
    rule = Settings().rules[0]
    networks = [ip_network(text) for text in rule.networks()]
    fours = collapse_addresses(network for network in networks if isinstance(network, IPv4Network))
    return {
        "shape": shape,
        "paths": [str(path) for path in paths],
        "threads": threads,
        "processes": list(rule.processes),
        "datasets": list(rule.datasets),
        "ports": list(rule.excluded_ports),
        "networks": [(int(network[0]), int(network[-1])) for network in fours],
        "networks_6": "|".join(NETWORKS_6[text] for text in rule.networks() if ":" in text),
        "from_ms": MONDAY_8_MS,
        "to_ms": MONDAY_8_MS + 24 * HOUR_MS,
    }


def replay(paths: Sequence[str]) -> Json:
    """The work of a process of our own: default settings, no sink."""
    settings = Settings()
    wall, cpu = time.perf_counter(), time.process_time()
    with closing(FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)) as source:
        summary = run_replay(
            settings=settings, source=source, alert_sink=NullSink(), dead_letter_sink=NullSink()
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, **_found(summary.as_dict())}


def _found(summary: Json) -> Json:
    return {
        "counted": summary["counted"],
        "keys": summary["keys_peak"],
        "filtered": sum(summary["filtered"].values()),
        "ticks": summary["ticks"],
        "alerts": summary["alerts"],
    }


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Within: processes started from here have these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def told(command: Sequence[str | Path]) -> Taken:
    """What a process printed of its own work."""
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Taken(found.pop("seconds"), found.pop("cpu_seconds"), found)


def ours(paths: Sequence[Path]) -> Taken:
    return told([sys.executable, __file__, "--paths", *map(str, paths)])


def peer(name: str, asked: Json) -> Taken:
    return told([python_with(name), "-P", PEERS / f"{name}.py", json.dumps(asked)])


def command(paths: Sequence[Path], options: Sequence[str]) -> Taken:
    """`streamdetect replay` from start to end, its workers included; without its results on the screen."""
    with tempfile.TemporaryDirectory() as folder:
        told_in = Path(folder) / "summary.json"
        outputs = ("--quiet", "--output", os.devnull, "--summary-json", str(told_in))
        wall, cpu = time.perf_counter(), _children_seconds()
        subprocess.run(
            [sys.executable, "-m", "streamdetect", "replay", *outputs, *options, *map(str, paths)],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        wall, cpu = time.perf_counter() - wall, _children_seconds() - cpu
        return Taken(wall, cpu, _found(json.loads(told_in.read_text())))


def _children_seconds() -> float:
    """CPU seconds of all processes we have waited for, and of those they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_rounds(tasks: dict[str, Callable[[], Taken]]) -> dict[str, Taken]:
    """Medians of each task; they take turns. Raises SystemExit where they do not answer alike."""
    rounds: dict[str, list[Taken]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            rounds[name].append(task())
    medians = {
        name: Taken(
            median(one.seconds for one in all_), median(one.cpu_seconds for one in all_), all_[0].found
        )
        for name, all_ in rounds.items()
    }
    for figure in ("counted", "keys", "hosts", "processes"):
        answers = {name: one.found[figure] for name, one in medians.items() if figure in one.found}
        if len(set(answers.values())) > 1:
            raise SystemExit(f"not the same question: {figure} are {answers}")
    return medians


def net(whole: Callable[[], Taken], start: Callable[[], Taken]) -> Taken:
    """A command's work without its start, which is measured beside it."""
    begun, done = start(), whole()
    return Taken(done.seconds - begun.seconds, done.cpu_seconds - begun.cpu_seconds, done.found)


def show(title: str, taken: dict[str, Taken], base: str, count: int, size: int) -> None:
    def name_of(name: str, one: Taken) -> str:
        return f"{name} {one.found['version']}" if "version" in one.found else name

    table(
        title,
        ("", "ratio", "CPU ratio", "records/s", "MB/s", "s", "CPU s"),
        [
            (
                name_of(name, one),
                f"{taken[base].seconds / one.seconds:.2f}x",
                f"{taken[base].cpu_seconds / one.cpu_seconds:.2f}x",
                f"{count / one.seconds:,.0f}",
                f"{size / one.seconds / 1e6:.0f}",
                f"{one.seconds:.2f}",
                f"{one.cpu_seconds:.2f}",
            )
            for name, one in taken.items()
        ],
    )


def one_core(shape: str, path: Path, count: int) -> None:
    core = max(os.sched_getaffinity(0))
    asked, size = question(shape, [path], 1), path.stat().st_size
    with on({core}):
        taken = in_rounds(
            {
                "replay": partial(ours, [path]),
                "DuckDB": partial(peer, "duckdb", asked),
                "Polars": partial(peer, "polars", asked),
            }
        )
    found = taken["replay"].found
    title = (
        f"{shape}: {count:,} records of {size / count:,.0f} B, {found['filtered'] / count:.0%} not counting"
    )
    show(f"{title}, core {core}", taken, "DuckDB", count, size)
    print(f"  replay: {found['ticks']} ticks, {found['keys']:,} keys, alerts {found['alerts']}")


def both_cores(shape: str, path: Path, count: int, folder: Path) -> None:
    """The same records in files one after another in time, as days are, and side by side, as collectors write them."""
    cores = sorted(os.sched_getaffinity(0))[-2:]
    days = [folder / f"{shape}-day-{number}.jsonl" for number in range(FILES)]
    dealt = [folder / f"{shape}-part-{number}.jsonl" for number in range(FILES)]
    firsts = [folder / f"{shape}-first-{number}.jsonl" for number in range(FILES)]
    part(path, days, lambda number: number * FILES // count)
    part(path, dealt, lambda number: number % FILES)
    for first, day in zip(firsts, days, strict=True):
        with day.open("rb") as stream:
            first.write_bytes(stream.readline())
    asked, size = question(shape, days, len(cores)), path.stat().st_size
    start = partial(command, firsts, BOTH_CORES)
    with on(set(cores)):
        taken = in_rounds(
            {
                "replay, like days": partial(net, partial(command, days, BOTH_CORES), start),
                "replay, side by side": partial(net, partial(command, dealt, BOTH_CORES), start),
                "DuckDB": partial(peer, "duckdb", asked),
                "Polars": partial(peer, "polars", asked),
            }
        )
    options = " ".join(BOTH_CORES) or "no option"
    show(
        f"{shape}: the same in {FILES} files, cores {cores}, replay with {options}",
        taken,
        "DuckDB",
        count,
        size,
    )


def part(path: Path, paths: Sequence[Path], place: Callable[[int], int]) -> None:
    """Each record of a file goes into one of several."""
    streams = [one.open("wb") for one in paths]
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            streams[place(number)].write(line)
    for one in streams:
        one.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for shape, count in COUNTS.items():
            path = Path(folder) / f"{shape}.jsonl"
            write_records(path, count, shape, HOSTS)
            one_core(shape, path, count)
            both_cores(shape, path, count, Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--paths"]:
        print(json.dumps(replay(sys.argv[2:])))
    else:
        main()
