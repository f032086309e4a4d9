"""A crew in this process, and sources out of data sets, for tests of readers side by side."""

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
        source.add(Partition(f"file-{number}"), *map(record, records))
    return source


def record(given: Any) -> Any:
    document, timestamp_ms = given if isinstance(given, tuple) else (given, None)
    raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    return raw if timestamp_ms is None else (raw, timestamp_ms)


class SideBySide:
    """A crew of gatherers in this process. Each does what it was given, and reports, when chance will have it."""

    copies = True

    def __init__(self, stems: Sequence[InputGroup], workers: int, rng: Random) -> None:
        self._stations = [Worker(pickle.loads(pickle.dumps(list(stems)))) for _ in range(workers)]
        self._given: list[list[WorkerCommand]] = [[] for _ in range(workers)]
        self._of: dict[Partition, int] = {}
        self._rng = rng

    def give(self, message: WorkerCommand) -> None:
        number = self._of.setdefault(message.partition, len(self._of) % len(self._stations))
        self._given[number].append(message)

    def busy(self) -> frozenset[Partition]:
        return frozenset(one for one, number in self._of.items() if len(self._given[number]) >= 3)

    def harvests(self) -> Iterator[PartialResult]:
        for number, messages in enumerate(self._given):
            if messages and self._rng.random() < 0.5:
                yield self._work(number, messages.pop(0))

    def finish(self) -> Iterator[PartialResult]:
        for number, messages in enumerate(self._given):
            while messages:
                yield self._work(number, messages.pop(0))

    def _work(self, number: int, message: WorkerCommand) -> PartialResult:
        """As it comes out of a pipe."""
        harvest: PartialResult = pickle.loads(pickle.dumps(self._stations[number].work(message)))
        return harvest

    def wait(self) -> None:
        """Nobody works meanwhile."""

    def close(self) -> None:
        """Nothing to end."""
