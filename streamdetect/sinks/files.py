"""Standard output and files as sinks: one JSON object a line."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from streamdetect.errors import SinkError
from streamdetect.model import Alert, DeadLetter


class StdoutAlertSink:
    """Alerts on standard output, or on another open stream."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
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


class FileAlertSink:
    """Alerts in a file: from its beginning, or with `append` behind what is there."""

    def __init__(self, path: str, *, append: bool = False) -> None:
        self._lines = _opened(path, append=append)

    def write(self, alerts: Sequence[Alert]) -> None:
        self._lines.write(alert.body for alert in alerts)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class FileDeadLetterSink:
    """Dead letters in a file: the headers that Kafka would carry as fields, bytes in base64."""

    def __init__(self, path: str, *, append: bool = False) -> None:
        self._lines = _opened(path, append=append)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        self._lines.write(_letter_line(letter) for letter in letters)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class NullDeadLetterSink:
    """Drops dead letters; the summary still counts them."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Nothing to do."""

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class _Lines:
    """Lines into a stream called `name`; every OSError becomes a SinkError that names it."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self._name = name
        self._stream = stream
        self._unsafe = False

    def write(self, lines: Iterable[bytes]) -> None:
        try:
            for line in lines:
                self._stream.write(line)
                self._stream.write(b"\n")
                self._unsafe = True
        except OSError as error:
            raise write_error(self._name, error) from None

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
    """The file, ready for whole lines: a line that a crash cut short is ended first, so that only it is lost."""
    try:
        cut_short = append and _ends_within_a_line(Path(path))
        stream = open(path, "ab" if append else "wb")  # noqa: PTH123, SIM115 - _Lines closes it
        if cut_short:
            stream.write(b"\n")
    except OSError as error:
        raise write_error(path, error) from None
    return _Lines(path, stream)


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def write_error(name: str, error: OSError) -> SinkError:
    """What to raise when `name` could not be written."""
    if isinstance(error, BrokenPipeError):
        return SinkError(f"{name} was closed by its reader, so not everything could be written.")
    return SinkError(
        f"{name} cannot be written ({error.strerror}). Make room or make it writable, then start again."
    )


def _letter_line(letter: DeadLetter) -> bytes:
    record = letter.record
    fields = {
        "streamdetect.origin-topic": record.partition.topic,
        "streamdetect.origin-partition": record.partition.number,
        "streamdetect.origin-offset": record.offset,
        "streamdetect.origin-timestamp": record.timestamp_ms,
        "streamdetect.reason": letter.reason,
        "streamdetect.detail": letter.detail,
        "key": _base64(record.key),
        "headers": [[name, _base64(value)] for name, value in record.headers],
        "value": _base64(record.value),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode("ascii")
