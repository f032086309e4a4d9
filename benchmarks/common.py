"""Shared by the benchmarks: pinning to a core, synthetic data, measuring in turns, tables."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from streamdetect.synthetic import Beacon, Scenario, lines  # noqa: E402 - found by the path above

HOUR_MS = 3_600_000
MONDAY_8_MS = 1_772_409_600_000 + 8 * HOUR_MS
ROUNDS = 3
RESULTS = os.environ.get("BENCH_RESULTS")
"""The file to which results are also written, if any."""


def pin() -> int:
    """Pin this process, and threads it starts from now on, to one core; returns its number."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def records(count: int, shape: str, start_ms: int = MONDAY_8_MS, hosts: int = 300) -> list[bytes]:
    """The first records of a day of synthetic data, without line feeds."""
    return [line.rstrip(b"\n") for line in islice(_lines(shape, start_ms, hosts), count)]


def write_records(path: Path, count: int, shape: str, hosts: int) -> None:
    with path.open("wb") as stream:
        stream.writelines(islice(_lines(shape, MONDAY_8_MS, hosts), count))


def _lines(shape: str, start_ms: int, hosts: int) -> Iterator[bytes]:
    beacons = (Beacon(25_000, 5_000), Beacon(20_000, 2_000))
    return lines(Scenario(hosts=hosts, hours=24, start_ms=start_ms, beacons=beacons, shape=shape))


def measure_in_turns(
    tasks: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median seconds of each task. Tasks run in turn, so that other load on the machine affects all of them alike.

    By default CPU seconds of this process, which vary less than wall clock time on a shared machine.
    """
    measured: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = clock()
            task()
            measured[name].append(clock() - started)
    return {name: median(seconds) for name, seconds in measured.items()}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first left-aligned, the others right-aligned. Also append them to `RESULTS`."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    print(f"\n{title}")
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())
    sys.stdout.flush()
    if RESULTS is not None:
        _append(Path(RESULTS), title, head, rows)


def _append(page: Path, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Append a table as Markdown, after a header if the page is new."""
    exists = page.exists()
    with page.open("a") as stream:
        if not exists:
            packages = ("kafka-python", "confluent-kafka", "orjson", "msgspec")
            versions = ", ".join(f"{name} {version(name)}" for name in packages)
            print(
                f"# Results of `make bench`\n\nGenerated on {date.today()}: {os.cpu_count()} shared cores, Python "  # noqa: DTZ011 - local date
                f"{platform.python_version()}, {versions}. Explained in [performance](../docs/performance.md).",
                file=stream,
            )
        print(f"\n**{title}**\n", file=stream)
        for row in (head, ["---"] * len(head), *rows):
            print(f"| {' | '.join(row)} |", file=stream)
