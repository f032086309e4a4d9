"""Standard output and files as sinks: one JSON object a line."""

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
    """Alerts on standard output, or on another open stream."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        if stream is None and sys.stdout is None:  # started with >&-
            raise SinkError(
                "standard output is closed. Open it, or have alerts written elsewhere (alerts.sink)."
            )
        self._lines = _Lines("standard output", sys.stdout.buffer if stream is None else stream)

    def write(self, alerts: Sequence[Alert]) -> None:
        """Write and push on: whoever reads the other end waits for alerts."""
        self._lines.write(alert.body for alert in alerts)
        self._lines.push()

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        """Flush. The stream stays open: it is not ours."""
        self._lines.flush()


class _FileSink:
    """What both file sinks have in common: a file from its beginning, or with `append` behind what is there."""

    def __init__(self, path: str, *, append: bool = False) -> None:
        self._lines = _opened(path, append=append)

    def offset(self) -> dict[str, Any]:
        return self._lines.offset()

    def truncate(self, offset: dict[str, Any]) -> None:
        self._lines.truncate(offset)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class FileAlertSink(_FileSink):
    """Alerts in a file."""

    def write(self, alerts: Sequence[Alert]) -> None:
        self._lines.write(alert.body for alert in alerts)


class FileDeadLetterSink(_FileSink):
    """Dead letters in a file: the headers that Kafka would carry as fields, bytes in base64."""

    def write(self, dead_letters: Sequence[DeadLetter]) -> None:
        self._lines.write(_dead_letter_line(dead_letter) for dead_letter in dead_letters)


class NullSink:
    """Drops what it is given; the summary still counts it."""

    def write(self, items: Sequence[object]) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class _Lines:
    """Lines into a stream called `name`; every OSError becomes a SinkError that names it."""

    def __init__(self, name: str, stream: BinaryIO, *, append: bool = False) -> None:
        self._name = name
        self._stream = stream
        self._unsafe = False
        self._unmended = append

    def write(self, lines: Iterable[bytes]) -> None:
        try:
            self._mend()
            for line in lines:
                self._stream.write(line)
                self._stream.write(b"\n")
                self._unsafe = True
        except OSError as error:
            raise write_error(self._name, error) from None

    def _mend(self) -> None:
        """End a line that a crash cut short, so that only it is lost. Not before we write: the file may be
        another's.
        """
        if self._unmended and _ends_within_a_line(Path(self._name)):
            self._stream.write(b"\n")
        self._unmended = False

    def push(self) -> None:
        """Hand what was written to the operating system."""
        try:
            self._stream.flush()
        except OSError as error:
            raise write_error(self._name, error) from None

    def flush(self) -> None:
        """Return once everything written would survive a crash; a pipe or terminal has no more to give than it took."""
        if not self._unsafe:
            return
        try:
            self._stream.flush()
            if _is_file(self._stream):
                os.fsync(self._stream.fileno())
        except OSError as error:
            raise write_error(self._name, error) from None
        self._unsafe = False

    def offset(self) -> dict[str, Any]:
        """The file and its length in bytes. All that was written has been flushed before."""
        try:
            known = os.fstat(self._stream.fileno()) if _is_file(self._stream) else None
        except OSError as error:
            raise write_error(self._name, error) from None
        if known is None:
            return {"path": self._name, "length": None, "inode": None}
        return {"path": self._name, "length": known.st_size, "inode": known.st_ino}

    def truncate(self, offset: dict[str, Any]) -> None:
        """To the length of a mark; not a file that is another one by now, or has been rotated away."""
        now = self.offset()
        if now["length"] is None or offset.get("path") != now["path"] or offset.get("length") is None:
            return
        if offset.get("inode") != now["inode"] or now["length"] < offset["length"]:
            log.warning("%s is not as we left it (rotated?): going on at its end", self._name)
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
            self._abandon()

    def _abandon(self) -> None:
        """Close; what the failed flush could not write would fail here again, and was told already."""
        with contextlib.suppress(OSError):
            self._stream.close()


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # a stream in memory has no descriptor
        return False


def _opened(path: str, *, append: bool) -> _Lines:
    try:
        _check_pipe(path)
        stream = open(path, "ab" if append else "wb")  # noqa: PTH123, SIM115 - _Lines closes it
    except OSError as error:
        raise write_error(path, error) from None
    return _Lines(path, stream, append=append)


def _check_pipe(path: str) -> None:
    """Opening a named pipe that nobody reads would wait for ever: OSError instead."""
    if Path(path).is_fifo():
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def make_folder(path: str) -> None:
    """A directory for output files, with its parents, if it is not there. SinkError if it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def standard_output(instead: str) -> BinaryIO:
    """Standard output for bytes. SinkError if the program was started without (`>&-`): open it, or `instead`."""
    if sys.stdout is None:
        raise SinkError(f"standard output is closed. Open it, or {instead}.")
    return sys.stdout.buffer


def write_error(name: str, error: OSError) -> SinkError:
    """What to raise when `name` could not be written."""
    if isinstance(error, BrokenPipeError):
        return SinkError(f"{name} was closed by its reader, so not everything could be written.")
    advice = "Make room or make it writable, then start again."
    if isinstance(error, FileNotFoundError):
        advice = "Make the directory that it is to lie in, or name another file."
    elif isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
        advice = "There is something else under this name. Name another."
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
