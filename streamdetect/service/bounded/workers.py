"""Gatherers in processes of their own, so that several partitions are read on several cores.

The program itself evaluates; workers decode and gather. What is a file they read themselves, a piece at each message;
the bytes of anything else the program reads for them. A partition belongs to one worker, since its clock is one.

Each worker is this Python started anew (`service.worker`), fed through its standard input: unlike the ways of
`multiprocessing`, that neither runs the caller's script again nor copies its threads, be it in a notebook. A worker
answers each message with a harvest before it takes the next one. When its input ends, it ends.
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
_AHEAD = 3
"""Batches that wait at most for each worker."""

_WAIT_SECONDS = 0.5
_PIECE_BATCHES = 4  # of a file at one message: some 8,000 records


class WorkerLostError(StreamdetectError):
    """A worker is gone, and what it had read with it."""


class ExpectPartition(NamedTuple):
    """A partition will be read."""

    partition: Partition


class EndPartition(NamedTuple):
    """A partition has ended."""

    partition: Partition


class ReadFile(NamedTuple):
    """Read the next piece of a file, whose path is the partition's topic."""

    partition: Partition
    max_record_bytes: int


WorkerCommand = ExpectPartition | EndPartition | ReadFile | Batch


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> object:
    """Read one message. EOFError at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 - from our own process, through a pipe that nobody else holds


class Worker:
    """A gatherer and the files that it reads: what happens at a message."""

    def __init__(self, stems: Sequence[InputGroup]) -> None:
        self._gatherer = PreAggregator(stems)
        self._files: dict[Partition, FileSource] = {}

    def work(self, message: object) -> PartialResult:
        """What one message comes to."""
        files: dict[Partition, int] = {}
        problem: InputError | None = None
        if isinstance(message, Batch):
            self._gatherer.feed(message)
        elif isinstance(message, ReadFile):
            try:
                files[message.partition] = self._read(*message)
            except InputError as error:
                problem = error
        elif isinstance(message, ExpectPartition):
            self._gatherer.expect(message.partition)
        elif isinstance(message, EndPartition):
            self._gatherer.end(message.partition)
        harvest = self._gatherer.take()
        harvest.files, harvest.problem = files, problem
        return harvest

    def _read(self, partition: Partition, max_record_bytes: int) -> int:
        """Feed the next piece; gives the bytes read so far."""
        file = self._files.get(partition)
        if file is None:
            file = self._files[partition] = FileSource([partition.topic], max_record_bytes=max_record_bytes)
        for _ in range(_PIECE_BATCHES):
            for batch in file.poll((), 0):
                self._gatherer.feed(Batch(partition, batch.values, batch.offsets))
            if file.at_end():
                self._gatherer.end(partition)
                break
        return file.progress()[0]


class Pool(Protocol):
    """Who decodes and gathers. One thread calls it. `copies`: what it gives comes from other processes."""

    copies: bool

    def give(self, message: WorkerCommand) -> None:
        """Hand over a message."""
        ...

    def busy(self) -> frozenset[Partition]:
        """Partitions of which nothing more should be given for now."""
        ...

    def harvests(self) -> Iterator[PartialResult]:
        """What has come since."""
        ...

    def finish(self) -> Iterator[PartialResult]:
        """The rest: until everything given has been done."""
        ...

    def wait(self) -> None:
        """Until there may be something new, for half a second at most."""
        ...

    def close(self) -> None:
        """End what is left of it."""
        ...


def pool_for(stems: Sequence[InputGroup], jobs: int) -> Pool:
    """Workers, or nobody else where one is enough."""
    return InProcessPool(stems) if jobs <= 1 else WorkerPool(stems, jobs)


class InProcessPool:
    """All in this process, at once."""

    def __init__(self, stems: Sequence[InputGroup]) -> None:
        self._station = Worker(stems)
        self._found: list[PartialResult] = []
        self.copies = False

    def give(self, message: WorkerCommand) -> None:
        """Do it at once."""
        self._found.append(self._station.work(message))

    def busy(self) -> frozenset[Partition]:
        """No partition has to wait."""
        return frozenset()

    def harvests(self) -> Iterator[PartialResult]:
        """What there is now."""
        found, self._found = self._found, []
        yield from found

    def finish(self) -> Iterator[PartialResult]:
        """Everything that was given has been done."""
        yield from self.harvests()

    def wait(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to end."""


class WorkerPool:
    """Workers side by side. One thread calls it. Raises WorkerLostError when a worker is gone."""

    def __init__(self, stems: Sequence[InputGroup], workers: int) -> None:
        self._changed = Condition()
        self._found: SimpleQueue[PartialResult] = SimpleQueue()
        self._workers: list[WorkerProcess] = []
        self._of: dict[Partition, WorkerProcess] = {}
        self.copies = True
        try:
            for number in range(workers):
                self._workers.append(WorkerProcess(number, stems, self._report))
        except BaseException:
            self.close()
            raise

    def _report(self, harvest: PartialResult | None) -> None:
        if harvest is not None:
            self._found.put(harvest)
        with self._changed:
            self._changed.notify_all()

    def give(self, message: WorkerCommand) -> None:
        """Hand a message to the worker of its partition; a new partition goes to the one that has the fewest."""
        partition = message.partition
        worker = self._of.get(partition)
        if worker is None:
            worker = self._of[partition] = min(self._workers, key=lambda one: (one.partitions, one.number))
            worker.partitions += 1
        worker.messages.put(message)
        worker.waiting += 1

    def busy(self) -> frozenset[Partition]:
        """Partitions whose worker has enough to do."""
        return frozenset(p for p, worker in self._of.items() if worker.undone >= _AHEAD)

    def harvests(self) -> Iterator[PartialResult]:
        """What has come since, in the order of each worker."""
        while True:
            try:
                yield self._found.get_nowait()
            except Empty:
                break
        self._check()

    def _check(self) -> None:
        for worker in self._workers:
            if worker.problem is not None:
                raise WorkerLostError(worker.problem)

    def wait(self) -> None:
        """Until a worker has something to say, or half a second."""
        with self._changed:
            if self._found.empty():
                self._changed.wait(_WAIT_SECONDS)

    def finish(self) -> Iterator[PartialResult]:
        """The rest: until everything given has been done."""
        while any(worker.undone for worker in self._workers):
            self._check()
            self.wait()
            yield from self.harvests()
        yield from self.harvests()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _import_path() -> list[str]:
    """Where this package is, before all else: a worker must run the same code, however that was found."""
    return [str(Path(streamdetect.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


class WorkerProcess:
    """One process and the thread that talks with it."""

    def __init__(
        self, number: int, stems: Sequence[InputGroup], report: Callable[[PartialResult | None], None]
    ) -> None:
        self.number = number
        self.partitions = 0
        self.messages: SimpleQueue[WorkerCommand | None] = SimpleQueue()
        self.waiting = 0  # messages given, counted by the caller
        self._done = 0  # messages answered, counted by the thread
        self.problem: str | None = None
        self._closing = False
        self._report = report
        # A session of its own: Ctrl-C on the terminal is for the program, which then lets its workers finish.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "streamdetect.service.bounded.worker_main"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = Thread(target=self._talk, args=(stems,), name=f"worker-{number}", daemon=True)
        self._thread.start()

    @property
    def undone(self) -> int:
        return self.waiting - self._done

    def _talk(self, stems: Sequence[InputGroup]) -> None:
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None  # noqa: S101 - for the type checker
        assert answers is not None  # noqa: S101 - as above
        try:
            send(to, list(stems))
            while (message := self.messages.get()) is not None:
                send(to, message)
                harvest = receive(answers)
                assert isinstance(harvest, PartialResult)  # noqa: S101 - for the type checker
                self._report(harvest)
                self._done += 1
                self._report(None)
        except (OSError, EOFError, pickle.PickleError):
            if not self._closing:
                self._lost()

    def _lost(self) -> None:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = (
            " Memory may have run out: read fewer variants at a time, or use --jobs 1." if code == -9 else ""
        )
        self.problem = f"a worker process {how}, and what it had read is lost.{hint}"
        self._report(None)

    def close(self) -> None:
        self._closing = True
        self.messages.put(None)
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not written any more
                    continue
