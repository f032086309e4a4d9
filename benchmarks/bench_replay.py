"""Replay of files against DuckDB and Polars, which compute the hunt's aggregates once, at the last tick.

On one core, and on both: then in four files, because streamdetect distributes work by file. Each task of each round is
a process of its own; measurement starts after its imports and includes reading and parsing. The replay evaluates every
tick; the others compute only the last one, whose window contains all records. All must count the same events and find
the same keys.
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
"""Options of `streamdetect replay` in the table of both cores."""
NETWORKS_6 = {"::1": "^(::1|0:0:0:0:0:0:0:1)$", "fe80::/10": "^fe[89ab].:", "ff00::/8": "^ff..:"}
"""The IPv6 networks that the hunt excludes, as patterns of the texts that sensors write."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One round of a task, or the medians of several rounds. `result` has counts for comparison."""

    seconds: float
    cpu_seconds: float
    result: Json


def hunt_of(shape: str, paths: Sequence[Path], threads: int) -> Json:
    """The hunt as plain JSON, for peers, which run without streamdetect."""
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
    """Replay in this process with default settings and without sinks."""
    settings = Settings()
    wall, cpu = time.perf_counter(), time.process_time()
    with closing(FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)) as source:
        summary = run_replay(
            settings=settings, source=source, alert_sink=NullSink(), dead_letter_sink=NullSink()
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, **_counts(summary.as_dict())}


def _counts(summary: Json) -> Json:
    return {
        "counted": summary["counted"],
        "keys": summary["keys_peak"],
        "filtered": sum(summary["filtered"].values()),
        "ticks": summary["ticks"],
        "alerts": summary["alerts"],
    }


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """While active, processes started from here run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measurement_of(command: Sequence[str | Path]) -> Measurement:
    """Run a process and return the measurement that it prints."""
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Measurement(result.pop("seconds"), result.pop("cpu_seconds"), result)


def replay_process(paths: Sequence[Path]) -> Measurement:
    return measurement_of([sys.executable, __file__, "--paths", *map(str, paths)])


def peer(name: str, hunt: Json) -> Measurement:
    return measurement_of([python_with(name), "-P", PEERS / f"{name}.py", json.dumps(hunt)])


def command(paths: Sequence[Path], options: Sequence[str]) -> Measurement:
    """`streamdetect replay` from start to end, workers included, with discarded alerts."""
    with tempfile.TemporaryDirectory() as folder:
        summary_path = Path(folder) / "summary.json"
        outputs = ("--quiet", "--output", os.devnull, "--summary-json", str(summary_path))
        wall, cpu = time.perf_counter(), _children_seconds()
        subprocess.run(
            [sys.executable, "-m", "streamdetect", "replay", *outputs, *options, *map(str, paths)],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        wall, cpu = time.perf_counter() - wall, _children_seconds() - cpu
        return Measurement(wall, cpu, _counts(json.loads(summary_path.read_text())))


def _children_seconds() -> float:
    """CPU seconds of all ended child processes, and of their ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_in_turns(tasks: dict[str, Callable[[], Measurement]]) -> dict[str, Measurement]:
    """The median of each task; tasks run in turn. Raises SystemExit unless their results agree."""
    rounds: dict[str, list[Measurement]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            rounds[name].append(task())
    medians = {
        name: Measurement(
            median(one.seconds for one in all_), median(one.cpu_seconds for one in all_), all_[0].result
        )
        for name, all_ in rounds.items()
    }
    for figure in ("counted", "keys", "hosts", "processes"):
        values = {name: one.result[figure] for name, one in medians.items() if figure in one.result}
        if len(set(values.values())) > 1:
            raise SystemExit(f"results differ: {figure} are {values}")
    return medians


def net(whole: Callable[[], Measurement], start: Callable[[], Measurement]) -> Measurement:
    """The work of a command without its startup, which is measured separately."""
    startup, total = start(), whole()
    return Measurement(total.seconds - startup.seconds, total.cpu_seconds - startup.cpu_seconds, total.result)


def show(title: str, measured: dict[str, Measurement], base: str, count: int, size: int) -> None:
    def name_of(name: str, one: Measurement) -> str:
        return f"{name} {one.result['version']}" if "version" in one.result else name

    table(
        title,
        ("", "ratio", "CPU ratio", "records/s", "MB/s", "s", "CPU s"),
        [
            (
                name_of(name, one),
                f"{measured[base].seconds / one.seconds:.2f}x",
                f"{measured[base].cpu_seconds / one.cpu_seconds:.2f}x",
                f"{count / one.seconds:,.0f}",
                f"{size / one.seconds / 1e6:.0f}",
                f"{one.seconds:.2f}",
                f"{one.cpu_seconds:.2f}",
            )
            for name, one in measured.items()
        ],
    )


def one_core(shape: str, path: Path, count: int) -> None:
    core = max(os.sched_getaffinity(0))
    hunt, size = hunt_of(shape, [path], 1), path.stat().st_size
    with on({core}):
        measured = measure_in_turns(
            {
                "replay": partial(replay_process, [path]),
                "DuckDB": partial(peer, "duckdb", hunt),
                "Polars": partial(peer, "polars", hunt),
            }
        )
    result = measured["replay"].result
    title = f"{shape}: {count:,} records of {size / count:,.0f} B, {result['filtered'] / count:.0%} filtered"
    show(f"{title}, core {core}", measured, "DuckDB", count, size)
    print(f"  replay: {result['ticks']} ticks, {result['keys']:,} keys, alerts {result['alerts']}")


def both_cores(shape: str, path: Path, count: int, folder: Path) -> None:
    """The same records in files that follow each other in time, like days, and in files of the same time, like those of
    several collectors.
    """
    cores = sorted(os.sched_getaffinity(0))[-2:]
    days = [folder / f"{shape}-day-{number}.jsonl" for number in range(FILES)]
    collectors = [folder / f"{shape}-collector-{number}.jsonl" for number in range(FILES)]
    firsts = [folder / f"{shape}-first-{number}.jsonl" for number in range(FILES)]
    split(path, days, lambda number: number * FILES // count)
    split(path, collectors, lambda number: number % FILES)
    for first, day in zip(firsts, days, strict=True):
        with day.open("rb") as stream:
            first.write_bytes(stream.readline())
    hunt, size = hunt_of(shape, days, len(cores)), path.stat().st_size
    start = partial(command, firsts, BOTH_CORES)
    with on(set(cores)):
        measured = measure_in_turns(
            {
                "replay, consecutive files": partial(net, partial(command, days, BOTH_CORES), start),
                "replay, simultaneous files": partial(net, partial(command, collectors, BOTH_CORES), start),
                "DuckDB": partial(peer, "duckdb", hunt),
                "Polars": partial(peer, "polars", hunt),
            }
        )
    options = " ".join(BOTH_CORES) or "no option"
    show(
        f"{shape}: the same records in {FILES} files, cores {cores}, replay with {options}",
        measured,
        "DuckDB",
        count,
        size,
    )


def split(path: Path, paths: Sequence[Path], file_of: Callable[[int], int]) -> None:
    """Distribute the records of a file over several files."""
    streams = [one.open("wb") for one in paths]
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            streams[file_of(number)].write(line)
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
