"""Output of commands: results on standard output, progress and summaries on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Self, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from streamdetect.cli import logs
from streamdetect.errors import SinkError
from streamdetect.sinks import files
from streamdetect.sinks.files import write_error

LINE_SECONDS = 10.0
BAR_SECONDS = 0.1


def emit(text: str) -> None:
    """Write a result to standard output. Raises SinkError if that fails."""
    if sys.stdout is None:  # started with >&-
        raise SinkError("standard output is closed. Open it, or name a file with --output.")
    try:
        click.echo(text)
    except OSError as error:
        raise write_error("standard output", error) from None


def remark(text: str) -> None:
    """Write a remark to standard error; as a log record where logs are JSON."""
    click.echo(logs.json_line("streamdetect", "info", text) if logs.as_json() else text, err=True)


class Meter:
    """Progress on standard error: a bar on a terminal, else a line every 10 seconds, or nothing if `quiet`.

    `tell` is cheap and may be called for every batch.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self._clock = clock
        self._console = console or Console(stderr=True)
        self._bar = _bar(self._console) if self._console.is_terminal and not quiet else None
        self._seconds = BAR_SECONDS if self._bar is not None else LINE_SECONDS
        self._quiet = quiet
        self._started = self._last_shown = clock()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, records: int, done: float, total: float | None) -> None:
        """Report `records` so far, and `done` of `total` in any unit (None: the total is unknown)."""
        now = self._clock()
        if self._quiet or now - self._last_shown < self._seconds:
            return
        self._last_shown = now
        rate = records / max(now - self._started, 0.001)
        text = f"{records:,} records, {rate:,.0f} a second"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text)
        else:
            share = f"{min(100.0, 100 * done / total):.0f} %, " if total else ""
            remark(f"{share}{text}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the bar while other lines are written."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


def _bar(console: Console) -> Progress:
    bar = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    bar.add_task("", total=None)
    return bar


class _BesideBar:
    """Standard output on the terminal of the bar: each flush removes the bar for a moment."""

    closed = False

    def __init__(self, stream: BinaryIO, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        return len(data)

    def flush(self) -> None:
        with self._meter.paused():
            self._stream.write(self._waiting)
            self._stream.flush()
        self._waiting.clear()

    def fileno(self) -> int:
        return self._stream.fileno()


def standard_output(meter: Meter) -> BinaryIO:
    """Standard output for bytes, which does not break a bar on the same terminal."""
    stream = files.standard_output("name a file with --output")
    return cast(BinaryIO, _BesideBar(stream, meter)) if sys.stdout.isatty() else stream
