"""`streamdetect replay`: detection over a bounded input, from files or a stretch of Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import click

from streamdetect.cli import logs
from streamdetect.cli.options import (
    common_options,
    config_option,
    example,
    settings_options,
    time_option,
    verbosity,
)
from streamdetect.cli.output import Meter, note, standard_output
from streamdetect.cli.signals import stopping
from streamdetect.cli.summary import summary_text
from streamdetect.config import RequiredFor, Settings, load_settings
from streamdetect.errors import AlertOpened, UsageError
from streamdetect.service import replay as replay_service
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sinks.files import FileAlertSink, FileDeadLetterSink, NullSink, StdoutAlertSink
from streamdetect.sinks.packed import packed_file
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource

Moment = int | Literal["earliest", "latest"]


@click.command(
    name="replay",
    epilog=example(
        "streamdetect replay monday.jsonl.zst tuesday.jsonl.zst > alerts.jsonl",
        "streamdetect replay --config streamdetect.yaml --set rules.0.min_duration_hours=2 captures/",
        "streamdetect replay --config streamdetect.yaml --from-kafka --from 2026-03-02T00:00:00Z",
    ),
)
@click.argument("paths", nargs=-1, type=click.Path(allow_dash=True), metavar="[PATH]...")
@config_option()
@click.option("--from-kafka", is_flag=True, help="Read Kafka instead of files.")
@click.option(
    "--topic", "topics", multiple=True, help="Topic to read with --from-kafka.  [default: kafka.topics]"
)
@time_option("--from", "start", words=["earliest"], help="Where to begin in Kafka.")
@time_option("--to", "end", words=["latest"], help="Where to end in Kafka.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="Write alerts to this file, not to standard output.",
)
@click.option(
    "--summary-json", type=click.Path(dir_okay=False), help="Write the summary as a JSON object to this file."
)
@click.option("--fail-on-alert", is_flag=True, help="Leave with exit code 20 when an alert was opened.")
@settings_options
@common_options
def command(  # noqa: PLR0913 - one for each option
    *,
    paths: tuple[str, ...],
    config_path: str | None,
    from_kafka: bool,
    topics: tuple[str, ...],
    start: Moment | None,
    end: Moment | None,
    output: str | None,
    summary_json: str | None,
    fail_on_alert: bool,
    sets: tuple[str, ...],
    profile: str | None,
) -> None:
    """Run the detection over files, or over a stretch of Kafka, and write the alerts as JSON lines.

    Each PATH is one partition: JSON lines (plain, .gz or .zst, - for standard input), or one JSON array. A directory
    means every file in it. Alerts go to standard output, progress and a summary to standard error; nothing is
    written to Kafka.
    """
    _check_usage(paths, from_kafka, topics, start, end)
    required_for: RequiredFor = "kafka-replay" if from_kafka and not topics else "replay"
    settings = load_settings(config_path, sets, profile=profile, required_for=required_for)
    logs.configure(settings.log, verbosity())
    with ExitStack() as stack:
        source, read = _source(settings, paths, topics, start, end, from_kafka=from_kafka)
        stack.enter_context(closing(source))
        if not from_kafka:
            _check_outputs(source, output, summary_json, _dead_letter_path(settings))
        meter = stack.enter_context(Meter(quiet=verbosity().quiet))
        alert_sink = stack.enter_context(closing(_alert_sink(output, meter)))
        dead_letter_sink = stack.enter_context(closing(_dead_letter_sink(settings)))
        stop = stack.enter_context(stopping())
        summary = replay_service.run_replay(
            settings=settings,
            source=source,
            alert_sink=alert_sink,
            dead_letter_sink=dead_letter_sink,
            progress=lambda so_far: meter.tell(so_far.consumed, *read()),
            stop=stop,
        )
        stopped = stop()
    _tell(summary, summary_json, stopped=stopped)
    opened = summary.alerts.get("opened", 0)
    if fail_on_alert and opened:
        raise AlertOpened(f"{opened} alert{'s were' if opened > 1 else ' was'} opened (--fail-on-alert).")


def _check_usage(
    paths: tuple[str, ...],
    from_kafka: bool,
    topics: tuple[str, ...],
    start: Moment | None,
    end: Moment | None,
) -> None:
    if from_kafka and paths:
        raise UsageError("PATHs and --from-kafka exclude each other. Name files, or read Kafka.")
    if not from_kafka and not paths:
        raise UsageError(
            "there is nothing to read. Name a PATH (- for standard input), or give --from-kafka."
        )
    if not from_kafka and (topics or start is not None or end is not None):
        raise UsageError("--topic, --from and --to are for Kafka. Add --from-kafka, or leave them out.")


def _check_outputs(source: Source, *outputs: str | None) -> None:
    """An output that is also an input would be emptied before it is read; two outputs in one file mix."""
    inputs = [Path(path) for path, _ in source.partitions() if path != "-"]
    seen: set[Path] = set()
    for output in outputs:
        if output is None or (Path(output).exists() and not Path(output).is_file()):
            continue  # a device, like /dev/null, takes all
        if Path(output).exists() and any(map(Path(output).samefile, inputs)):
            raise UsageError(f"{output} is read and would be overwritten. Write to another file.")
        if Path(output).resolve() in seen:
            raise UsageError(f"{output} is named for two outputs. Write each to a file of its own.")
        seen.add(Path(output).resolve())


def _source(
    settings: Settings,
    paths: tuple[str, ...],
    topics: tuple[str, ...],
    start: Moment | None,
    end: Moment | None,
    *,
    from_kafka: bool,
) -> tuple[Source, Callable[[], tuple[int, int | None]]]:
    """The source, and a function that says how much of how much was read."""
    if not from_kafka:
        files = FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)
        return files, files.progress
    from streamdetect.sources.kafka import KafkaRange  # noqa: PLC0415 - files need no Kafka client

    kafka = KafkaRange(
        settings.kafka, topics, start or "earliest", end or "latest", exclude=settings.written_topics()
    )
    return kafka, lambda: (0, None)


def _alert_sink(output: str | None, meter: Meter) -> AlertSink:
    return StdoutAlertSink(standard_output(meter)) if output is None else FileAlertSink(output)


def _dead_letter_sink(settings: Settings) -> DeadLetterSink:
    """The configured file, else nothing: a replay counts dead letters, but never writes to Kafka."""
    path = _dead_letter_path(settings)
    return NullSink() if path is None else FileDeadLetterSink(path)


def _dead_letter_path(settings: Settings) -> str | None:
    return settings.dead_letters.path if settings.dead_letters.sink == "file" else None


def _tell(summary: Summary, summary_json: str | None, *, stopped: bool) -> None:
    if summary_json is not None:
        with packed_file(summary_json) as stream:
            stream.write(json.dumps(summary.as_dict(), indent=2).encode() + b"\n")
    if not verbosity().quiet:
        note(summary_text(summary, stopped=stopped))
