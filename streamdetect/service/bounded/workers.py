"""Pre-aggregation in worker processes, so that several partitions are decoded on several cores.

Workers decode and pre-aggregate; the main process evaluates. Workers read files themselves, a few batches per command;
from any other source the main process reads the records and sends them. A partition always belongs to the same worker,
because its clock is kept there.

A worker process is a new Python interpreter (`worker_main`) that reads pickled commands from its standard input.
Unlike `multiprocessing` this neither re-runs the caller's script nor forks its threads, so it works in a notebook too.
A worker answers each command with one partial result before it reads the next, and exits when its input ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from struct import Struct
from threading import Condition, Thread
from typing import IO, NamedTuple, Protocol

import streamdetect
from streamdetect.errors import InputError, StreamdetectError
from streamdetect.model import Batch, Partition
from streamdetect.service.bounded.preaggregation import InputGroup, PartialResult, PreAggregator
from streamdetect.sources.files import FileSource

_LENGTH = Struct("<Q")
_MOST_IN_FLIGHT = 3
"""Commands in flight from which on a worker counts as busy."""

_WAIT_SECONDS = 0.5
_READ_FILE_BATCHES = 4  # per `ReadFile` command: some 8,000 records


class WorkerLostError(StreamdetectError):
    """A worker process has exited, and what it had read is lost."""


class AddPartition(NamedTuple):
    """A partition will be read."""

    partition: Partition


class EndPartition(NamedTuple):
    """A partition has ended."""

    partition: Partition


class ReadFile(NamedTuple):
    """Read the next batches of a file, whose path is the partition's topic."""

    partition: Partition
    max_record_bytes: int


WorkerCommand = AddPartition | EndPartition | ReadFile | Batch


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> object:
    """Read one message. Raises EOFError at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 - from our own process, through a pipe that no other process holds


class Worker:
    """Processes commands: a pre-aggregator and the files that it reads."""

    def __init__(self, input_groups: Sequence[InputGroup]) -> None:
        self._pre_aggregator = PreAggregator(input_groups)
        self._files: dict[Partition, FileSource] = {}

    def process(self, command: object) -> PartialResult:
        """Process one command and return its result."""
        file_bytes: dict[Partition, int] = {}
        error: InputError | None = None
        if isinstance(command, Batch):
            self._pre_aggregator.feed(command)
        elif isinstance(command, ReadFile):
            try:
                file_bytes[command.partition] = self._read(*command)
            except InputError as caught:
                error = caught
        elif isinstance(command, AddPartition):
            self._pre_aggregator.add_partition(command.partition)
        elif isinstance(command, EndPartition):
            self._pre_aggregator.end_partition(command.partition)
        result = self._pre_aggregator.take_result()
        result.file_bytes, result.error = file_bytes, error
        return result

    def _read(self, partition: Partition, max_record_bytes: int) -> int:
        """Feed the next batches of a file; returns how many of its bytes have been read so far."""
        file = self._files.get(partition)
        if file is None:
            file = self._files[partition] = FileSource([partition.topic], max_record_bytes=max_record_bytes)
        for _ in range(_READ_FILE_BATCHES):
            for batch in file.poll((), 0):
                self._pre_aggregator.feed(batch)
            if file.at_end():
                self._pre_aggregator.end_partition(partition)
                break
        return file.progress()[0]


class Pool(Protocol):
    """Workers that decode and pre-aggregate. Not thread-safe. `remote`: results are copies from other processes."""

    remote: bool

    def submit(self, command: WorkerCommand) -> None:
        """Queue a command for the worker of its partition."""

    def busy_partitions(self) -> frozenset[Partition]:
        """Partitions for which nothing more should be submitted for now."""

    def results(self) -> Iterator[PartialResult]:
        """Results that have arrived since the last call."""

    def drain(self) -> Iterator[PartialResult]:
        """All remaining results, until every submitted command has been processed."""

    def wait(self) -> None:
        """Block until a result may have arrived, half a second at most."""

    def close(self) -> None:
        """End the workers."""


def create_pool(input_groups: Sequence[InputGroup], jobs: int) -> Pool:
    """A pool of worker processes; an in-process pool for one job."""
    return InProcessPool(input_groups) if jobs <= 1 else WorkerPool(input_groups, jobs)


class InProcessPool:
    """One worker in this process, which processes each command in `submit`."""

    def __init__(self, input_groups: Sequence[InputGroup]) -> None:
        self._worker = Worker(input_groups)
        self._results: list[PartialResult] = []
        self.remote = False

    def submit(self, command: WorkerCommand) -> None:
        self._results.append(self._worker.process(command))

    def busy_partitions(self) -> frozenset[Partition]:
        return frozenset()

    def results(self) -> Iterator[PartialResult]:
        results, self._results = self._results, []
        yield from results

    def drain(self) -> Iterator[PartialResult]:
        yield from self.results()

    def wait(self) -> None:
        """Return at once: no command is ever in flight."""

    def close(self) -> None:
        """Nothing to end."""


class WorkerPool:
    """Worker processes. Raises WorkerLostError when one of them has exited."""

    def __init__(self, input_groups: Sequence[InputGroup], workers: int) -> None:
        self._changed = Condition()
        self._results: SimpleQueue[PartialResult] = SimpleQueue()
        self._workers: list[WorkerProcess] = []
        self._worker_of: dict[Partition, WorkerProcess] = {}
        self.remote = True
        try:
            for number in range(workers):
                self._workers.append(WorkerProcess(number, input_groups, self._report))
        except BaseException:
            self.close()
            raise

    def _report(self, result: PartialResult | None) -> None:
        if result is not None:
            self._results.put(result)
        with self._changed:
            self._changed.notify_all()

    def submit(self, command: WorkerCommand) -> None:
        """Queue a command for the worker of its partition; a new partition goes to the worker with the fewest."""
        partition = command.partition
        worker = self._worker_of.get(partition)
        if worker is None:
            worker = min(self._workers, key=lambda one: (one.partitions, one.number))
            self._worker_of[partition] = worker
            worker.partitions += 1
        worker.commands.put(command)
        worker.submitted += 1

    def busy_partitions(self) -> frozenset[Partition]:
        return frozenset(p for p, worker in self._worker_of.items() if worker.in_flight >= _MOST_IN_FLIGHT)

    def results(self) -> Iterator[PartialResult]:
        """Results that have arrived since the last call. The results of each worker are in order."""
        while True:
            try:
                yield self._results.get_nowait()
            except Empty:
                break
        self._check()

    def _check(self) -> None:
        for worker in self._workers:
            if worker.failure is not None:
                raise WorkerLostError(worker.failure)

    def wait(self) -> None:
        with self._changed:
            if self._results.empty():
                self._changed.wait(_WAIT_SECONDS)

    def drain(self) -> Iterator[PartialResult]:
        while any(worker.in_flight for worker in self._workers):
            self._check()
            self.wait()
            yield from self.results()
        yield from self.results()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _import_path() -> list[str]:
    """The directory of this package first, so that a worker runs the same code, however it was found."""
    return [str(Path(streamdetect.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


class WorkerProcess:
    """One worker process, and the thread that sends its commands and receives its results."""

    def __init__(
        self, number: int, input_groups: Sequence[InputGroup], report: Callable[[PartialResult | None], None]
    ) -> None:
        self.number = number
        self.partitions = 0
        self.commands: SimpleQueue[WorkerCommand | None] = SimpleQueue()
        self.submitted = 0  # commands, counted by the caller
        self._answered = 0  # commands, counted by the thread
        self.failure: str | None = None
        self._closing = False
        self._report = report
        # A session of its own: Ctrl-C on the terminal reaches only the main process, which lets its workers finish.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "streamdetect.service.bounded.worker_main"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = Thread(target=self._run, args=(input_groups,), name=f"worker-{number}", daemon=True)
        self._thread.start()

    @property
    def in_flight(self) -> int:
        """Commands that are queued or being processed."""
        return self.submitted - self._answered

    def _run(self, input_groups: Sequence[InputGroup]) -> None:
        commands, results = self._process.stdin, self._process.stdout
        assert commands is not None  # noqa: S101 - for the type checker
        assert results is not None  # noqa: S101 - as above
        try:
            send(commands, list(input_groups))
            while (command := self.commands.get()) is not None:
                send(commands, command)
                result = receive(results)
                assert isinstance(result, PartialResult)  # noqa: S101 - for the type checker
                self._report(result)
                self._answered += 1
                self._report(None)
        except (OSError, EOFError, pickle.PickleError):
            if not self._closing:
                self._fail()

    def _fail(self) -> None:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        hint = (
            " Memory may have run out: evaluate fewer variants at a time, or use --jobs 1."
            if code == -9
            else ""
        )
        self.failure = f"a worker process {how}; what it had read is lost.{hint}"
        self._report(None)

    def close(self) -> None:
        self._closing = True
        self.commands.put(None)
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # its buffer can no longer be written
                    continue
