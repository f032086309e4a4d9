"""Files as a source: JSON lines or one JSON array, plain or compressed, each path a partition, read to its end."""

from __future__ import annotations

import errno
import os
import select
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from streamdetect.errors import InputError
from streamdetect.model import Batch, Partition
from streamdetect.sources.compressed import DamagedError, RawFile, blocks
from streamdetect.sources.framing import records

MAX_RECORD_BYTES = 1_048_576
"""The limit where nobody gives another; the one of a run is `limits.max_record_bytes`."""


class FileSource:
    """Reads files in turn, one batch of one file at each `poll`. `-` is standard input.

    All of them are opened before anything is read, so a wrong path is told at once. A file that turns out damaged
    ends the run, after everything before the damage was handed over. Both are InputError.
    """

    def __init__(
        self, paths: Sequence[str], batch_records: int = 2048, max_record_bytes: int = MAX_RECORD_BYTES
    ) -> None:
        self._batch_records = batch_records
        self.max_record_bytes = max_record_bytes
        self._files: list[_File] = []
        try:
            for partition in _partitions(paths):
                self._files.append(_File(partition, max_record_bytes))
        except BaseException:
            self.close()
            raise
        self._turns = deque(self._files)
        self._ended: set[Partition] = set()
        self._lent: dict[Partition, _File] = {}

    def partitions(self) -> tuple[Partition, ...]:
        """One for each path, in the order given; a path given twice has the numbers 0 and 1."""
        return tuple(file.partition for file in self._files)

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        """The next records of the file whose turn it is. Empty when all are held, ended, or pipes without data.

        InputError when a file cannot be read any further.
        """
        waiting: list[RawFile] = []
        for _ in range(len(self._turns)):
            file = self._turns.popleft()
            if file.partition in hold:
                self._turns.append(file)
                continue
            batch = file.read(self._batch_records)
            if file.ended:  # it may be known only at the poll after its last record
                self._ended.add(file.partition)
            else:
                self._turns.append(file)
            if batch is not None:
                return [batch]
            if file.raw.is_pipe and not file.ended:
                waiting.append(file.raw)
        if waiting:
            select.select(waiting, [], [], timeout_ms / 1000)
        return []

    def lend(self) -> tuple[Partition, ...]:
        """The files that another process may read by their paths; they are not read here any more. Pipes stay."""
        self._lent = {file.partition: file for file in self._turns if not file.raw.is_pipe}
        self._turns = deque(file for file in self._turns if file.raw.is_pipe)
        return tuple(self._lent)

    def was_read(self, partition: Partition, size: int, *, ended: bool) -> None:
        """How many bytes of a lent file have been read elsewhere, and whether that was all."""
        self._lent[partition].read_elsewhere = size
        if ended:
            self._ended.add(partition)

    def at_end(self) -> frozenset[Partition]:
        """The files that were read to their end."""
        return frozenset(self._ended)

    def progress(self) -> tuple[int, int | None]:
        """Bytes read and bytes in all, as they lie on disk (compressed); None in all where a pipe is among them."""
        total = (
            None
            if any(file.raw.is_pipe for file in self._files)
            else sum(file.raw.size for file in self._files)
        )
        return sum(file.raw.bytes_read + file.read_elsewhere for file in self._files), total

    def close(self) -> None:
        for file in self._files:
            file.raw.close()


class _File:
    """One file being read: what it gave so far, and what has been decoded but not handed over."""

    def __init__(self, partition: Partition, max_record_bytes: int) -> None:
        self.partition = partition
        try:
            self.raw = RawFile(partition.topic)
        except OSError as error:
            why = f"cannot be opened ({error.strerror}). {_advice(error)}"
            raise InputError(f"{partition.topic or 'an empty path'} {why}") from None
        self._incoming = records(blocks(self.raw), max_record_bytes)
        self._exhausted = False
        self._failure: DamagedError | OSError | None = None
        self._pending: list[bytes] = []
        self._begin = 0  # of what is pending
        self.read_elsewhere = 0  # bytes
        self._offset = 0

    @property
    def ended(self) -> bool:
        """Whether everything was handed over."""
        return self._exhausted and self._begin >= len(self._pending)

    def read(self, most: int) -> Batch | None:
        """Up to `most` records, or None if there are none (then `ended` says whether any can come)."""
        if self._begin >= len(self._pending):
            self._pending, self._begin = self._more(most), 0
        values = self._pending[self._begin : self._begin + most]
        if not values:
            if self._failure is not None:
                raise self._broken(self._failure)
            return None
        self._begin += len(values)
        first, self._offset = self._offset, self._offset + len(values)
        return Batch(self.partition, values, range(first, self._offset))

    def _more(self, most: int) -> list[bytes]:
        """The next records that come without waiting, about `most` of them. A failure waits until they are taken."""
        gathered: list[bytes] = []
        try:
            while len(gathered) < most and self._failure is None:
                found = next(self._incoming, None)
                if found is None:
                    self._exhausted = True
                    break
                if not found and self.raw.is_pipe:
                    break
                gathered += found
        except (DamagedError, OSError) as error:
            self._failure = error
        return gathered

    def _broken(self, error: DamagedError | OSError) -> InputError:
        path, so_far = self.partition.topic, f"{self._offset} records were read before that"
        if isinstance(error, OSError):
            return InputError(
                f"{path} cannot be read any further ({error.strerror}); {so_far}. {_advice(error)}"
            )
        return InputError(f"{path}: {error}; {so_far}. Fetch the file again, or take it out of the replay.")


def _partitions(paths: Sequence[str]) -> Iterator[Partition]:
    """The files that the paths mean, the n-th time of a path under number n."""
    times: Counter[str] = Counter()
    for given in paths:
        for path in _files_of(given):
            if path == "-" and times[path]:
                raise InputError(
                    "- (standard input) is named twice, but can be read only once. Name it once."
                )
            yield Partition(path, times[path])
            times[path] += 1


def _files_of(path: str) -> list[str]:
    """The path itself, or the files of a directory by name; hidden files and directories within are left out."""
    if path in {"", "-"} or not Path(path).is_dir():  # Path("") would be the current directory
        return [path]
    try:
        names = sorted(entry.name for entry in Path(path).iterdir() if not entry.is_dir())
    except OSError as error:
        raise InputError(f"{path} cannot be listed ({error.strerror}). {_advice(error)}") from None
    visible = [os.path.join(path, name) for name in names if not name.startswith(".")]  # noqa: PTH118 - keeps ./
    if not visible:
        raise InputError(f"{path} is a directory without files. Name one that has some, or files.")
    return visible


def _advice(error: OSError) -> str:
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return "Allow more open files (ulimit -n), or replay fewer at a time."
    if error.errno == errno.ENOENT:
        return "Correct the path."
    return "Make it readable for this user, or take it out of the replay."
