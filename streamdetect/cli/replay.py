"""`streamdetect replay`: detection over a bounded input, from files or a range of Kafka."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing

import click

from streamdetect.cli import logs
from streamdetect.cli.inputs import Input, check_outputs, input_options
from streamdetect.cli.options import (
    common_options,
    config_option,
    example,
    jobs_option,
    settings_options,
    verbosity,
)
from streamdetect.cli.output import Meter, remark, standard_output
from streamdetect.cli.signals import stopping
from streamdetect.cli.summary import summary_text
from streamdetect.config import Settings, load_settings
from streamdetect.errors import AlertOpened
from streamdetect.service.bounded import parallel_replay
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.sinks.files import FileAlertSink, FileDeadLetterSink, NullSink, StdoutAlertSink


@click.command(
    name="replay",
    epilog=example(
        "streamdetect replay monday.jsonl.zst tuesday.jsonl.zst > alerts.jsonl",
        "streamdetect replay --config streamdetect.yaml --set rules.0.min_duration_hours=2 captures/",
        "streamdetect replay --config streamdetect.yaml --from-kafka --from 2026-03-02T00:00:00Z",
    ),
)
@input_options
@config_option()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="Write alerts to this file instead of standard output.",
)
@click.option(
    "--summary-json", type=click.Path(dir_okay=False), help="Write the summary as a JSON object to this file."
)
@click.option("--fail-on-alert", is_flag=True, help="Exit with code 20 when an alert was opened.")
@jobs_option
@settings_options
@common_options
def command(  # noqa: PLR0913 - one for each option
    *,
    read: Input,
    config_path: str | None,
    output: str | None,
    summary_json: str | None,
    fail_on_alert: bool,
    jobs: int | None,
    sets: tuple[str, ...],
    profile: str | None,
) -> None:
    """Run the detection over files, or over a range of Kafka, and write the alerts as JSON lines.

    Each PATH is one partition: JSON lines (plain, .gz or .zst, - for standard input), or one JSON array. A directory
    means every file in it. Alerts go to standard output, progress and a summary to standard error; nothing is
    written to Kafka.
    """
    read.check()
    settings = load_settings(config_path, sets, profile=profile, required_for=read.required_for)
    logs.configure(settings.log, verbosity())
    with ExitStack() as stack:
        source, done = read.open(settings)
        stack.enter_context(closing(source))
        if not read.from_kafka:
            check_outputs(source, output, summary_json, _dead_letter_path(settings))
        meter = stack.enter_context(Meter(quiet=verbosity().quiet))
        alert_sink = stack.enter_context(closing(_alert_sink(output, meter)))
        dead_letter_sink = stack.enter_context(closing(_dead_letter_sink(settings)))
        stop = stack.enter_context(stopping())
        summary = parallel_replay.replay(
            settings=settings,
            source=source,
            alert_sink=alert_sink,
            dead_letter_sink=dead_letter_sink,
            jobs=parallel_replay.jobs_for(jobs, source, done()[1] if not read.from_kafka else None),
            progress=lambda consumed: meter.tell(consumed, *done()),
            stop=stop,
        )
        stopped = stop()
    _tell(summary, summary_json, stopped=stopped)
    opened = summary.alerts.get("opened", 0)
    if fail_on_alert and opened:
        raise AlertOpened(f"{opened} alert{'s were' if opened > 1 else ' was'} opened (--fail-on-alert).")


def _alert_sink(output: str | None, meter: Meter) -> AlertSink:
    return StdoutAlertSink(standard_output(meter)) if output is None else FileAlertSink(output)


def _dead_letter_sink(settings: Settings) -> DeadLetterSink:
    """The configured file, else none: a replay counts dead letters and never writes to Kafka."""
    path = _dead_letter_path(settings)
    return NullSink() if path is None else FileDeadLetterSink(path)


def _dead_letter_path(settings: Settings) -> str | None:
    return settings.dead_letters.path if settings.dead_letters.sink == "file" else None


def _tell(summary: Summary, summary_json: str | None, *, stopped: bool) -> None:
    if summary_json is not None:
        with atomic_file(summary_json) as stream:
            stream.write(json.dumps(summary.as_dict(), indent=2).encode() + b"\n")
    if not verbosity().quiet:
        remark(summary_text(summary, stopped=stopped))
