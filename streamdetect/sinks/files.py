"""Sinks that write JSON lines to standard output and files."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from streamdetect.errors import SinkError
from streamdetect.model import Alert, DeadLetter

log = logging.getLogger(__name__)


class StdoutAlertSink:
    """Writes alerts to standard output, or to another open stream."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        if stream is None and sys.stdout is None:  # started with >&-
            raise SinkError("standard output is closed. Open it, or choose another alerts.sink.")
        self._lines = _Lines("standard output", sys.stdout.buffer if stream is None else stream)

    def write(self, alerts: Sequence[Alert]) -> None:
        """Write and flush to the stream at once, so that the reading process gets each alert immediately."""
        self._lines.write(alert.body for alert in alerts)
        self._lines.flush_buffer()

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        """Flush. The stream stays open; it belongs to the caller."""
        self._lines.flush()


class _FileSink:
    """The base of both file sinks. Overwrites the file, or with `append` writes at its end."""

    def __init__(self, path: str, *, append: bool = False) -> None:
        self._lines = _open(path, append=append)

    def offset(self) -> dict[str, Any]:
        return self._lines.offset()

    def truncate(self, offset: dict[str, Any]) -> None:
        self._lines.truncate(offset)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class FileAlertSink(_FileSink):
    """Writes alerts to a file."""

    def write(self, alerts: Sequence[Alert]) -> None:
        self._lines.write(alert.body for alert in alerts)


class FileDeadLetterSink(_FileSink):
    """Writes dead letters to a file: the Kafka headers become fields, bytes are base64."""

    def write(self, dead_letters: Sequence[DeadLetter]) -> None:
        self._lines.write(_dead_letter_line(dead_letter) for dead_letter in dead_letters)


class NullSink:
    """Discards alerts and dead letters; the summary still counts them."""

    def write(self, items: Sequence[object]) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class _Lines:
    """Writes lines to the stream `name`. Turns each OSError into a SinkError with that name."""

    def __init__(self, name: str, stream: BinaryIO, *, append: bool = False) -> None:
        self._name = name
        self._stream = stream
        self._unsynced = False
        self._check_last_line = append

    def write(self, lines: Iterable[bytes]) -> None:
        try:
            self._end_partial_line()
            for line in lines:
                self._stream.write(line)
                self._stream.write(b"\n")
                self._unsynced = True
        except OSError as error:
            raise write_error(self._name, error) from None

    def _end_partial_line(self) -> None:
        """End a line that a crash truncated, so that only this line is lost. Called by the first write, not on opening:
        until then the file may belong to another process.
        """
        if self._check_last_line and _ends_within_a_line(Path(self._name)):
            self._stream.write(b"\n")
        self._check_last_line = False

    def flush_buffer(self) -> None:
        """Flush Python's buffer to the operating system."""
        try:
            self._stream.flush()
        except OSError as error:
            raise write_error(self._name, error) from None

    def flush(self) -> None:
        """Make everything written durable: fsync a file. A pipe or terminal is only flushed."""
        if not self._unsynced:
            return
        try:
            self._stream.flush()
            if _is_file(self._stream):
                os.fsync(self._stream.fileno())
        except OSError as error:
            raise write_error(self._name, error) from None
        self._unsynced = False

    def offset(self) -> dict[str, Any]:
        """The file and its length in bytes. Call `flush` first."""
        try:
            status = os.fstat(self._stream.fileno()) if _is_file(self._stream) else None
        except OSError as error:
            raise write_error(self._name, error) from None
        if status is None:
            return {"path": self._name, "length": None, "inode": None}
        return {"path": self._name, "length": status.st_size, "inode": status.st_ino}

    def truncate(self, offset: dict[str, Any]) -> None:
        """Truncate to an earlier length. Leaves a file that was replaced or rotated since as it is."""
        now = self.offset()
        if now["length"] is None or offset.get("path") != now["path"] or offset.get("length") is None:
            return
        if offset.get("inode") != now["inode"] or now["length"] < offset["length"]:
            log.warning("%s has changed since the last run (rotated?): appending at its end", self._name)
            return
        try:
            os.ftruncate(self._stream.fileno(), offset["length"])
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise write_error(self._name, error) from None

    def close(self) -> None:
        if self._stream.closed:
            return
        try:
            self.flush()
        finally:
            self._close_quietly()

    def _close_quietly(self) -> None:
        """Close. An error here repeats the error of the failed flush, which was raised already."""
        with contextlib.suppress(OSError):
            self._stream.close()


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # an in-memory stream has no descriptor
        return False


def _open(path: str, *, append: bool) -> _Lines:
    try:
        _check_pipe(path)
        stream = open(path, "ab" if append else "wb")  # noqa: PTH123, SIM115 - _Lines closes it
    except OSError as error:
        raise write_error(path, error) from None
    return _Lines(path, stream, append=append)


def _check_pipe(path: str) -> None:
    """Raise OSError for a named pipe without a reader, because opening it would block for ever."""
    if Path(path).is_fifo():
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def make_directory(path: str) -> None:
    """Create a directory for output files, with its parents. Raises SinkError if that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def standard_output(instead: str) -> BinaryIO:
    """Standard output as a byte stream. Raises SinkError with the advice `instead` if it is closed (`>&-`)."""
    if sys.stdout is None:
        raise SinkError(f"standard output is closed. Open it, or {instead}.")
    return sys.stdout.buffer


def write_error(name: str, error: OSError) -> SinkError:
    """The SinkError for an OSError while writing `name`."""
    if isinstance(error, BrokenPipeError):
        return SinkError(f"{name} was closed by its reader, so not everything could be written.")
    advice = "Free disk space or make it writable, then start again."
    if isinstance(error, FileNotFoundError):
        advice = "Create its directory, or name another file."
    elif isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
        advice = "The name is in use for something else. Choose another name."
    return SinkError(f"{name} cannot be written ({error.strerror}). {advice}")


def _dead_letter_line(dead_letter: DeadLetter) -> bytes:
    record = dead_letter.record
    fields = {
        "streamdetect.origin-topic": record.partition.topic,
        "streamdetect.origin-partition": record.partition.number,
        "streamdetect.origin-offset": record.offset,
        "streamdetect.origin-timestamp": record.timestamp_ms,
        "streamdetect.reason": dead_letter.reason,
        "streamdetect.detail": dead_letter.detail,
        "key": base64_text(record.key),
        "headers": [[name, base64_text(value)] for name, value in record.headers],
        "value": base64_text(record.value),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def base64_text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode("ascii")
