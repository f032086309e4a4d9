"""A complete live run against Flink SQL, which computes only the hunt's panes, from one topic of a real broker.

Flink is installed by pip (850 MB, on first use) with its Kafka connector from Maven Central, and needs Java 17 or
newer. Its clusters stay up and run in turn with streamdetect. The first job of each warms it up and writes its panes to
files: they must contain as many events as streamdetect counts.

How Flink is measured: planning and starting a job takes seconds, and its code is slow at first, but users' jobs run for
months. So measurement starts after a third of the topic. Flink commits its offsets with each checkpoint, once a second;
throughput is measured from the first such commit after that third to the last one, with the CPU time of the JVM between
them. streamdetect has no such advantage: it is measured from its first poll.
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
from live import FilledTopic, Measurement, fill_topic, live, measure_in_turns, peer_rule

from broker import Broker, java

COUNT = 400_000
PARTITIONS = 4
"""Two partitions for each of two tasks."""
WARM = 1 / 3
POLL_SECONDS = 0.05
JOB_SECONDS = 120.0
CONNECTOR = "flink-sql-connector-kafka"
VERSION = "5.0.0-2.2"
MAVEN = "https://repo1.maven.org/maven2/org/apache/flink"


def flink_python() -> Path:
    """The interpreter of Flink's environment, with the connector among Flink's own jars, as in a real installation."""
    python = python_with("flink")
    (folder,) = python.parent.parent.glob("lib/python*/site-packages/pyflink/lib")
    jar = folder / f"{CONNECTOR}-{VERSION}.jar"
    if not jar.exists():
        download = jar.with_suffix(".part")
        urllib.request.urlretrieve(f"{MAVEN}/{CONNECTOR}/{VERSION}/{jar.name}", download)
        download.rename(jar)
    return python


class Flink:
    """A process with a Flink cluster, on the cores that this process has when it is created."""

    def __init__(self, python: Path, topic: FilledTopic, parallelism: int) -> None:
        self._topic = topic
        rule = json.dumps(peer_rule(topic.shape))
        program = [str(python), "-P", str(PEERS / "flink.py")]
        command = [*program, topic.bootstrap, topic.topic, str(parallelism), rule]
        environment = os.environ | {"JAVA_HOME": str(Path(java()).resolve().parent.parent)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        self._jvm = int(self._answer())
        self._partitions = [TopicPartition(topic.topic, number) for number in range(topic.partitions)]
        self._ends = self._all_ends()

    def counted(self) -> int:
        """Run a job that writes its panes, and return how many events they contain."""
        with tempfile.TemporaryDirectory() as folder:
            self._send(f"bench-{uuid.uuid4().hex[:8]}", folder)
            self._answer()
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            return sum(int(row.split(",")[3]) for path in files for row in path.read_text().splitlines())

    def throughput(self) -> Measurement:
        """Run a job that writes nothing; extrapolates the last two thirds to the whole topic."""
        group = f"bench-{uuid.uuid4().hex[:8]}"
        commits: list[tuple[int, float, float]] = []
        with _group_client(self._topic.bootstrap, group) as consumer:
            self._send(group, None)
            while not select.select([self._answers], [], [], POLL_SECONDS)[0]:
                read = sum(max(0, one.offset) for one in consumer.committed(self._partitions, timeout=10))
                if read > WARM * self._topic.count and (not commits or read > commits[-1][0]):
                    commits.append((read, time.perf_counter(), self._cpu_seconds()))
            self._answer()
        if len(commits) < 2:
            raise SystemExit(f"Flink was too fast to measure with {self._topic.count:,} records")
        (first, started, cpu_started), (last, ended, cpu_ended) = commits[0], commits[-1]
        scale = self._topic.count / (last - first)
        return Measurement((ended - started) * scale, (cpu_ended - cpu_started) * scale)

    def close(self) -> None:
        """Close its input, at which its JVM exits."""
        self._commands.close()
        self._process.wait(30)

    def _send(self, group: str, folder: str | None) -> None:
        self._commands.write(json.dumps({"group": group, "ends": self._ends, "folder": folder}) + "\n")
        self._commands.flush()

    def _answer(self) -> str:
        if select.select([self._answers], [], [], JOB_SECONDS)[0]:
            line = str(self._answers.readline())
            if line:
                return line
        self._process.kill()
        raise SystemExit(f"Flink has exited, or did not answer within {JOB_SECONDS:g} s")

    def _all_ends(self) -> list[int]:
        with _group_client(self._topic.bootstrap, "bench") as consumer:
            return [consumer.get_watermark_offsets(one, timeout=10)[1] for one in self._partitions]

    def _cpu_seconds(self) -> float:
        """CPU seconds of the JVM, including its compiler and garbage collector."""
        fields = Path(f"/proc/{self._jvm}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _group_client(bootstrap: str, group: str) -> Iterator[Any]:
    """A client that can query a consumer group without being a member."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def on(cores: set[int], task: Callable[[], Measurement]) -> Callable[[], Measurement]:
    """The task, run with this process on these cores only."""

    def pinned() -> Measurement:
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
        topic, alerts = fill_topic(broker, "defend", COUNT, PARTITIONS), broker.make_topic()

        def started(cores: set[int], parallelism: int) -> Flink:
            os.sched_setaffinity(0, cores)
            flink = Flink(python, topic, parallelism)
            stack.callback(flink.close)
            os.sched_setaffinity(0, every)
            return flink

        clusters = {
            "Flink SQL, one core, parallelism 1": started(one, 1),
            f"Flink SQL, {len(every)} cores, parallelism 1": started(every, 1),
            f"Flink SQL, {len(every)} cores, parallelism {len(every)}": started(every, len(every)),
        }
        tasks = {
            "live, one core": on(one, lambda: live(topic, alerts)),
            "live, one core, confluent reader": on(one, lambda: live(topic, alerts, reader="confluent")),
            f"live, {len(every)} cores": lambda: live(topic, alerts),
        }
        tasks |= {name: flink.throughput for name, flink in clusters.items()}
        first = {name: flink.counted() for name, flink in clusters.items()}
        measured = measure_in_turns(tasks)
        show(topic, measured, first)


def show(topic: FilledTopic, measured: dict[str, Measurement], panes: dict[str, int]) -> None:
    base = measured["live, one core"]
    for name, counted in panes.items():
        if counted != base.counted:
            raise SystemExit(f"{name} counted {counted:,} events, live {base.counted:,}")
    rows = [
        (
            name,
            f"{base.seconds / one.seconds:.2f}x",
            f"{base.cpu_seconds / one.cpu_seconds:.2f}x",
            f"{topic.count / one.seconds:,.0f}",
            f"{topic.count / one.cpu_seconds:,.0f}",
        )
        for name, one in measured.items()
    ]
    title = f"{topic.title()}; the broker shares the machine"
    table(title, ("", "ratio", "CPU ratio", "records/s", "records/CPU s"), rows)


if __name__ == "__main__":
    main()
