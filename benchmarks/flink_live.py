"""The whole product against the hunt's panes in Flink SQL, from one topic of a real broker.

Flink comes by pip (850 MB, on first use) with its Kafka connector from Maven Central, and needs Java 17 or newer. Its
clusters stay up and take turns with the product. A first job of each, which warms it, writes its panes to files: they
must hold as many events as the product counts.

How Flink is measured: a job takes seconds to be planned and to start, and its code is slow at first, but users' jobs
run for months. So its time does not begin before a third of the topic was read. With each checkpoint, once a second, it
commits where it is; what lies between the first such commit behind that third and the last one is its throughput, and
the CPU time between is the JVM's. The product has no such advantage: it is measured from its first poll.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import table
from confluent_kafka import Consumer, TopicPartition
from environments import PEERS, python_with
from live import Filled, Taken, fill, in_rounds, live, peer_rule

from broker import Broker, java

COUNT = 400_000
PARTITIONS = 4
"""Two for each of two tasks."""
WARM = 1 / 3
LOOK_SECONDS = 0.05
JOB_SECONDS = 120.0
CONNECTOR = "flink-sql-connector-kafka"
VERSION = "5.0.0-2.2"
MAVEN = "https://repo1.maven.org/maven2/org/apache/flink"


def flink_python() -> Path:
    """Flink's interpreter; the connector lies among Flink's own jars, as an installation would have it."""
    python = python_with("flink")
    (folder,) = python.parent.parent.glob("lib/python*/site-packages/pyflink/lib")
    jar = folder / f"{CONNECTOR}-{VERSION}.jar"
    if not jar.exists():
        part = jar.with_suffix(".part")
        urllib.request.urlretrieve(f"{MAVEN}/{CONNECTOR}/{VERSION}/{jar.name}", part)
        part.rename(jar)
    return python


class Flink:
    """A process with Flink in it, on the cores of this one at its start."""

    def __init__(self, python: Path, filled: Filled, parallelism: int) -> None:
        self._filled = filled
        rule = json.dumps(peer_rule(filled.shape))
        program = [str(python), "-P", str(PEERS / "flink.py")]
        command = [*program, filled.bootstrap, filled.topic, str(parallelism), rule]
        around = os.environ | {"JAVA_HOME": str(Path(java()).resolve().parent.parent)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=around
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked, self._answers = self._process.stdin, self._process.stdout
        self._jvm = int(self._answer())
        self._partitions = [TopicPartition(filled.topic, number) for number in range(filled.partitions)]
        self._ends = self._all_ends()

    def counted(self) -> int:
        """Run a job that writes its panes; how many events are in them."""
        with tempfile.TemporaryDirectory() as folder:
            self._ask(f"bench-{uuid.uuid4().hex[:8]}", folder)
            self._answer()
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            return sum(int(row.split(",")[3]) for path in files for row in path.read_text().splitlines())

    def throughput(self) -> Taken:
        """Run a job that writes nothing; what it takes for the whole topic at the pace of its last two thirds."""
        group = f"bench-{uuid.uuid4().hex[:8]}"
        seen: list[tuple[int, float, float]] = []
        with _watcher(self._filled.bootstrap, group) as consumer:
            self._ask(group, None)
            while not select.select([self._answers], [], [], LOOK_SECONDS)[0]:
                read = sum(max(0, one.offset) for one in consumer.committed(self._partitions, timeout=10))
                if read > WARM * self._filled.count and (not seen or read > seen[-1][0]):
                    seen.append((read, time.perf_counter(), self._cpu_seconds()))
            self._answer()
        if len(seen) < 2:
            raise SystemExit(f"Flink was too fast to be measured with {self._filled.count:,} records")
        (first, begun, cpu_begun), (last, ended, cpu_ended) = seen[0], seen[-1]
        scale = self._filled.count / (last - first)
        return Taken((ended - begun) * scale, (cpu_ended - cpu_begun) * scale)

    def close(self) -> None:
        """Its JVM ends when its input does."""
        self._asked.close()
        self._process.wait(30)

    def _ask(self, group: str, folder: str | None) -> None:
        self._asked.write(json.dumps({"group": group, "ends": self._ends, "folder": folder}) + "\n")
        self._asked.flush()

    def _answer(self) -> str:
        if select.select([self._answers], [], [], JOB_SECONDS)[0]:
            line = str(self._answers.readline())
            if line:
                return line
        self._process.kill()
        raise SystemExit(f"Flink gave no answer, or none within {JOB_SECONDS:g} s")

    def _all_ends(self) -> list[int]:
        with _watcher(self._filled.bootstrap, "bench") as consumer:
            return [consumer.get_watermark_offsets(one, timeout=10)[1] for one in self._partitions]

    def _cpu_seconds(self) -> float:
        """Of the JVM, with its compiler and garbage collector."""
        fields = Path(f"/proc/{self._jvm}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _watcher(bootstrap: str, group: str) -> Iterator[Any]:
    """A client that can ask about a group without being in it."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def on(cores: set[int], task: Callable[[], Taken]) -> Callable[[], Taken]:
    """The same task with only these cores for this process."""

    def pinned() -> Taken:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            return task()
        finally:
            os.sched_setaffinity(0, before)

    return pinned


def main() -> None:
    every = os.sched_getaffinity(0)
    one = {max(every)}
    python = flink_python()
    with Broker() as broker, ExitStack() as stack:
        filled, alerts = fill(broker, "defend", COUNT, PARTITIONS), broker.make_topic()

        def started(cores: set[int], parallelism: int) -> Flink:
            os.sched_setaffinity(0, cores)
            flink = Flink(python, filled, parallelism)
            stack.callback(flink.close)
            os.sched_setaffinity(0, every)
            return flink

        clusters = {
            "Flink SQL, one core, parallelism 1": started(one, 1),
            f"Flink SQL, {len(every)} cores, parallelism 1": started(every, 1),
            f"Flink SQL, {len(every)} cores, parallelism {len(every)}": started(every, len(every)),
        }
        tasks = {
            "live, one core": on(one, lambda: live(filled, alerts)),
            "live, one core, confluent reader": on(one, lambda: live(filled, alerts, reader="confluent")),
            f"live, {len(every)} cores": lambda: live(filled, alerts),
        }
        tasks |= {name: flink.throughput for name, flink in clusters.items()}
        first = {name: flink.counted() for name, flink in clusters.items()}
        taken = in_rounds(tasks)
        show(filled, taken, first)


def show(filled: Filled, taken: dict[str, Taken], panes: dict[str, int]) -> None:
    base = taken["live, one core"]
    for name, counted in panes.items():
        if counted != base.counted:
            raise SystemExit(f"{name} counted {counted:,} events, live {base.counted:,}")
    rows = [
        (
            name,
            f"{base.seconds / one.seconds:.2f}x",
            f"{base.cpu_seconds / one.cpu_seconds:.2f}x",
            f"{filled.count / one.seconds:,.0f}",
            f"{filled.count / one.cpu_seconds:,.0f}",
        )
        for name, one in taken.items()
    ]
    title = f"{filled.title()}; the broker shares the machine"
    table(title, ("", "ratio", "CPU ratio", "records/s", "records/CPU s"), rows)


if __name__ == "__main__":
    main()
