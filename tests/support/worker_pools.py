"""A worker pool in this process, and sources made from data sets, for tests of parallel pre-aggregation."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from streamdetect.model import Partition
from streamdetect.service.bounded.preaggregation import InputGroup, PartialResult
from streamdetect.service.bounded.workers import Worker, WorkerCommand
from streamdetect.testing import MemorySource


def source_of(partitions: Sequence[Sequence[Any]], batch_records: int = 7) -> MemorySource:
    """The records of a data set as a bounded source."""
    source = MemorySource([Partition(f"file-{number}") for number in range(len(partitions))], batch_records)
    for number, records in enumerate(partitions):
        source.add(Partition(f"file-{number}"), *map(encoded, records))
    return source


def encoded(record: Any) -> Any:
    """A record (a document, or a document with its record timestamp) as bytes, with the timestamp if it has one."""
    document, timestamp_ms = record if isinstance(record, tuple) else (record, None)
    raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    return raw if timestamp_ms is None else (raw, timestamp_ms)


class RandomOrderPool:
    """Workers in this process that process commands at random times; messages are pickled as for a process."""

    remote = True

    def __init__(self, input_groups: Sequence[InputGroup], workers: int, rng: Random) -> None:
        self._workers = [Worker(pickle.loads(pickle.dumps(list(input_groups)))) for _ in range(workers)]
        self._queues: list[list[WorkerCommand]] = [[] for _ in range(workers)]
        self._worker_of: dict[Partition, int] = {}
        self._rng = rng

    def submit(self, command: WorkerCommand) -> None:
        number = self._worker_of.setdefault(command.partition, len(self._worker_of) % len(self._workers))
        self._queues[number].append(command)

    def busy_partitions(self) -> frozenset[Partition]:
        return frozenset(p for p, number in self._worker_of.items() if len(self._queues[number]) >= 3)

    def results(self) -> Iterator[PartialResult]:
        for number, queue in enumerate(self._queues):
            if queue and self._rng.random() < 0.5:
                yield self._process(number, queue.pop(0))

    def drain(self) -> Iterator[PartialResult]:
        for number, queue in enumerate(self._queues):
            while queue:
                yield self._process(number, queue.pop(0))

    def _process(self, number: int, command: WorkerCommand) -> PartialResult:
        """The result as it would come out of a pipe."""
        result: PartialResult = pickle.loads(pickle.dumps(self._workers[number].process(command)))
        return result

    def wait(self) -> None:
        """Return at once: commands are processed in `results`."""

    def close(self) -> None:
        """Nothing to end."""
