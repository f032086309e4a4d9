"""The file source: JSON lines or one JSON array, plain or compressed. Each path is a partition, read to its end."""

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
"""The default limit; a run passes `limits.max_record_bytes`."""


class FileSource:
    """Reads files round robin, one batch of one file per `poll`. `-` is standard input.

    Raises InputError for a wrong path at once, because all files are opened before any is read, and for a damaged file
    after all records before the damage were returned.
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
        self._queue = deque(self._files)
        self._ended: set[Partition] = set()
        self._delegated: dict[Partition, _File] = {}

    def partitions(self) -> tuple[Partition, ...]:
        """One for each path, in the order given; a path given twice gets the numbers 0 and 1."""
        return tuple(file.partition for file in self._files)

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        """The next records of the next file. Empty when all files are held, ended, or pipes without data.

        Raises InputError when a file cannot be read further.
        """
        waiting: list[RawFile] = []
        for _ in range(len(self._queue)):
            file = self._queue.popleft()
            if file.partition in hold:
                self._queue.append(file)
                continue
            batch = file.read(self._batch_records)
            if file.ended:  # may become True only at the poll after the last record
                self._ended.add(file.partition)
            else:
                self._queue.append(file)
            if batch is not None:
                return [batch]
            if file.raw.is_pipe and not file.ended:
                waiting.append(file.raw)
        if waiting:
            select.select(waiting, [], [], timeout_ms / 1000)
        return []

    def delegate(self) -> tuple[Partition, ...]:
        """Give up the files, which another process will read by their paths; pipes stay."""
        self._delegated = {file.partition: file for file in self._queue if not file.raw.is_pipe}
        self._queue = deque(file for file in self._queue if file.raw.is_pipe)
        return tuple(self._delegated)

    def report_read(self, partition: Partition, size: int, *, ended: bool) -> None:
        """Records how many bytes of a delegated file another process has read, and whether it reached the end."""
        self._delegated[partition].read_elsewhere = size
        if ended:
            self._ended.add(partition)

    def at_end(self) -> frozenset[Partition]:
        """The files read to their end."""
        return frozenset(self._ended)

    def progress(self) -> tuple[int, int | None]:
        """Stored (compressed) bytes read and in total; the total is None if a pipe is among the files."""
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
    """One open file: its position, and records that are decoded and not returned yet."""

    def __init__(self, partition: Partition, max_record_bytes: int) -> None:
        self.partition = partition
        try:
            self.raw = RawFile(partition.topic)
        except OSError as error:
            reason = f"cannot be opened ({error.strerror}). {_advice(error)}"
            raise InputError(f"{partition.topic or 'an empty path'} {reason}") from None
        self._records = records(blocks(self.raw), max_record_bytes)
        self._exhausted = False
        self._failure: DamagedError | OSError | None = None
        self._pending: list[bytes] = []
        self._taken = 0  # of the pending records
        self.read_elsewhere = 0  # bytes
        self._offset = 0

    @property
    def ended(self) -> bool:
        """Whether all records were returned."""
        return self._exhausted and self._taken >= len(self._pending)

    def read(self, at_most: int) -> Batch | None:
        """Up to `at_most` records, or None if there are none (then `ended` says whether more can come)."""
        if self._taken >= len(self._pending):
            self._pending, self._taken = self._available(at_most), 0
        values = self._pending[self._taken : self._taken + at_most]
        if not values:
            if self._failure is not None:
                raise self._input_error(self._failure)
            return None
        self._taken += len(values)
        first, self._offset = self._offset, self._offset + len(values)
        return Batch(self.partition, values, range(first, self._offset))

    def _available(self, about: int) -> list[bytes]:
        """The next records that are available without waiting, at least `about` if there are so many.

        A failure is kept until they are returned.
        """
        available: list[bytes] = []
        try:
            while len(available) < about and self._failure is None:
                found = next(self._records, None)
                if found is None:
                    self._exhausted = True
                    break
                if not found and self.raw.is_pipe:
                    break
                available += found
        except (DamagedError, OSError) as error:
            self._failure = error
        return available

    def _input_error(self, error: DamagedError | OSError) -> InputError:
        path, so_far = self.partition.topic, f"{self._offset} records were read before that"
        if isinstance(error, OSError):
            return InputError(f"{path} cannot be read further ({error.strerror}); {so_far}. {_advice(error)}")
        return InputError(f"{path}: {error}; {so_far}. Fetch the file again, or leave it out of the replay.")


def _partitions(paths: Sequence[str]) -> Iterator[Partition]:
    """A partition for each file of the paths; a repeated path gets the numbers 0, 1, ..."""
    occurrences: Counter[str] = Counter()
    for given in paths:
        for path in _files_of(given):
            if path == "-" and occurrences[path]:
                raise InputError(
                    "- (standard input) is given twice, but can be read only once. Give it once."
                )
            yield Partition(path, occurrences[path])
            occurrences[path] += 1


def _files_of(path: str) -> list[str]:
    """The path itself, or the files of a directory by name, without hidden files and subdirectories."""
    if path in {"", "-"} or not Path(path).is_dir():  # Path("") would be the current directory
        return [path]
    try:
        names = sorted(entry.name for entry in Path(path).iterdir() if not entry.is_dir())
    except OSError as error:
        raise InputError(f"{path} cannot be listed ({error.strerror}). {_advice(error)}") from None
    visible = [os.path.join(path, name) for name in names if not name.startswith(".")]  # noqa: PTH118 - keeps ./
    if not visible:
        raise InputError(f"{path} is a directory without files. Give one with files, or files.")
    return visible


def _advice(error: OSError) -> str:
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return "Allow more open files (ulimit -n), or replay fewer at a time."
    if error.errno == errno.ENOENT:
        return "Correct the path."
    return "Make it readable for this user, or leave it out of the replay."
