"""Shared by commands over a bounded input: the choice of the input, and checks of outputs against it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EISDIR, ENOENT
from pathlib import Path
from typing import Any, Literal

import click

from streamdetect.cli.options import Decorated, time_option
from streamdetect.config import RequiredFor, Settings
from streamdetect.errors import UsageError
from streamdetect.sinks.files import write_error
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource

Moment = int | Literal["earliest", "latest"]
Progress = Callable[[], tuple[int, int | None]]


@dataclass(frozen=True, slots=True)
class Input:
    """Files, or a range of Kafka."""

    paths: tuple[str, ...]
    from_kafka: bool
    topics: tuple[str, ...]
    start: Moment | None
    end: Moment | None

    def check(self) -> None:
        """Raises UsageError for no input, or for options that exclude each other."""
        if self.from_kafka and self.paths:
            raise UsageError("PATHs and --from-kafka exclude each other. Name files, or read Kafka.")
        if not self.from_kafka and not self.paths:
            raise UsageError(
                "there is nothing to read. Name a PATH (- for standard input), or give --from-kafka."
            )
        if not self.from_kafka and (self.topics or self.start is not None or self.end is not None):
            raise UsageError("--topic, --from and --to are for Kafka. Add --from-kafka, or leave them out.")

    @property
    def required_for(self) -> RequiredFor:
        """Which settings are required."""
        return "kafka-replay" if self.from_kafka and not self.topics else "replay"

    def open(self, settings: Settings, max_record_bytes: int | None = None) -> tuple[Source, Progress]:
        """The source, and a function that returns (read, total) for progress.

        `max_record_bytes` is the largest of all variants.
        """
        if not self.from_kafka:
            files = FileSource(
                self.paths, max_record_bytes=max_record_bytes or settings.limits.max_record_bytes
            )
            return files, files.progress
        from streamdetect.sources.kafka_range import KafkaRange  # noqa: PLC0415 - files need no Kafka client

        kafka = KafkaRange(
            settings.kafka,
            self.topics,
            self.start or "earliest",
            self.end or "latest",
            exclude=settings.written_topics(),
        )
        return kafka, kafka.progress


def input_options(command: Decorated) -> Decorated:
    """PATHs, `--from-kafka`, `--topic`, `--from` and `--to`, passed as one `read`."""

    def command_with_input(
        *,
        paths: tuple[str, ...],
        from_kafka: bool,
        topics: tuple[str, ...],
        start: Moment | None,
        end: Moment | None,
        **rest: Any,
    ) -> Any:
        return command(read=Input(paths, from_kafka, topics, start, end), **rest)

    command_with_input.__doc__ = command.__doc__
    options: tuple[Callable[[Any], Any], ...] = (
        click.argument("paths", nargs=-1, type=click.Path(allow_dash=True), metavar="[PATH]..."),
        click.option("--from-kafka", is_flag=True, help="Read Kafka instead of files."),
        click.option(
            "--topic",
            "topics",
            multiple=True,
            help="Topic to read with --from-kafka.  [default: kafka.topics]",
        ),
        time_option("--from", "start", words=["earliest"], help="Start of the range in Kafka."),
        time_option("--to", "end", words=["latest"], help="End of the range in Kafka."),
    )
    decorated: Any = command_with_input
    decorated.__click_params__ = getattr(command, "__click_params__", [])
    for option in reversed(options):
        decorated = option(decorated)
    found: Decorated = decorated
    return found


def check_outputs(source: Source | None, *outputs: str | None, also_read: Sequence[str | None] = ()) -> None:
    """Refuse an output that is also an input, two outputs to one file, and an output in a missing directory.

    `source` are files, None for Kafka; `also_read` are further input files. Raises UsageError, or SinkError for a
    missing directory.
    """
    inputs = [Path(path) for path, _ in source.partitions() if path != "-"] if source is not None else []
    inputs += [Path(path) for path in also_read if path is not None]
    seen: set[Path] = set()
    for output in outputs:
        if output is None or output == "-":
            continue
        if not Path(output).parent.is_dir():
            raise write_error(output, FileNotFoundError(ENOENT, os.strerror(ENOENT)))
        if Path(output).is_dir():
            raise write_error(output, IsADirectoryError(EISDIR, os.strerror(EISDIR)))
        if Path(output).exists() and not Path(output).is_file():
            continue  # a device, like /dev/null, accepts several
        if Path(output).exists() and any(Path(output).samefile(path) for path in inputs if path.exists()):
            raise UsageError(f"{output} is an input and would be overwritten. Write to another file.")
        if Path(output).resolve() in seen:
            raise UsageError(f"{output} is named for two outputs. Write each to a file of its own.")
        seen.add(Path(output).resolve())
