"""`streamdetect backtest`: which alerts these settings, and variants of them, would have given."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import click

from streamdetect.cli import logs
from streamdetect.cli.findings import findings_text
from streamdetect.cli.inputs import Input, check_outputs, input_options
from streamdetect.cli.options import (
    common_options,
    config_option,
    example,
    jobs_option,
    settings_options,
    verbosity,
)
from streamdetect.cli.output import Meter, remark
from streamdetect.cli.signals import stopping
from streamdetect.cli.summary import summary_text
from streamdetect.config import NamedSettings, load_expectations, varied
from streamdetect.errors import ExpectationFailed, SinkError, UsageError
from streamdetect.findings.outcome import Outcome
from streamdetect.report import html, plain
from streamdetect.report.junit import junit
from streamdetect.report.words import visible
from streamdetect.service.bounded.backtest import MOST_NEAR, BacktestRequest, Baseline, backtest
from streamdetect.service.summary import Summary
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.sinks.files import FileAlertSink, make_directory

FORMATS: dict[str, Callable[[Outcome], str]] = {
    "json": plain.json_text,
    "markdown": plain.markdown,
    "csv": plain.csv_text,
}


@click.command(
    name="backtest",
    epilog=example(
        "streamdetect backtest --vary min_connections_per_hour=60,90,120,240 --vary max_hosts=1,2 october/",
        "streamdetect backtest --config new.yaml --against-config old.yaml --report diff.html october/",
        "streamdetect backtest --config new.yaml --expect expected.yaml --junit result.xml captures/",
        "streamdetect backtest --config new.yaml --from-kafka --from 2026-03-02T00:00:00Z --against-topic",
    ),
)
@input_options
@config_option()
@click.option(
    "--vary",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Values of a setting of every rule, or of a path. Repeated: every combination.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="FILE",
    help="A variant: the settings of this file. May be repeated.",
)
@click.option("--against", metavar="FILE", help="Compare with the alerts of an earlier run in this file.")
@click.option(
    "--against-config", metavar="FILE", help="Compare with the result of the settings of this file."
)
@click.option(
    "--against-topic",
    is_flag=False,
    flag_value="",
    metavar="[TOPIC]",
    help="Compare with the alerts in this Kafka topic.  [default: alerts.topic]",
)
@click.option(
    "--expect",
    "expect_path",
    metavar="FILE",
    help="Expectations: what must alert and what must not; exit code 21 if one does not hold.",
)
@click.option(
    "--junit", "junit_path", metavar="FILE", help="Write the verdicts on expectations as JUnit XML, for CI."
)
@click.option(
    "--near",
    type=click.IntRange(0, MOST_NEAR),
    default=20,
    show_default=True,
    help="How many near misses to show.",
)
@click.option("--report", "report_path", metavar="FILE", help="Write a report as one HTML file.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", *FORMATS]),
    default="text",
    show_default=True,
    help="Format of the findings on standard output.",
)
@click.option(
    "-o", "--output", metavar="FILE", help="Write the findings to this file instead of standard output."
)
@click.option(
    "--alerts", "alerts_dir", metavar="DIR", help="Write each variant's alerts to a file in this directory."
)
@jobs_option
@settings_options
@common_options
def command(  # noqa: PLR0913 - one for each option
    *,
    read: Input,
    config_path: str | None,
    vary: tuple[str, ...],
    variants: tuple[str, ...],
    against: str | None,
    against_config: str | None,
    against_topic: str | None,
    expect_path: str | None,
    junit_path: str | None,
    near: int,
    report_path: str | None,
    output_format: str,
    output: str | None,
    alerts_dir: str | None,
    jobs: int | None,
    sets: tuple[str, ...],
    profile: str | None,
) -> None:
    """Replay history once with the live code, and show which alerts the settings and their variants would have given.

    Reads PATHs or Kafka as `replay` does. All variants are evaluated in one pass; each gives the alerts of a separate
    replay. Findings go to standard output, progress and a summary to standard error; nothing is written to Kafka.
    """
    read.check()
    if junit_path is not None and expect_path is None:
        raise UsageError("--junit needs --expect: name the file with the expectations.")
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        named = varied(
            config_path, sets, profile=profile, vary=vary, files=variants, required_for=read.required_for
        )
        base = named[0].settings
        logs.configure(base.log, verbosity())
        topic = against_topic if against_topic != "" else base.alerts.topic
        compared = _against(against, against_config, topic, sets, profile)
        expectations = None if expect_path is None else load_expectations(expect_path)
        source, done = read.open(base, _largest_record([*named, *compared.variants]))
        stack.enter_context(closing(source))
        files = _alert_files(alerts_dir, named)
        if alerts_dir is not None:
            make_directory(alerts_dir)
        check_outputs(
            None if read.from_kafka else source,
            *(output, report_path, junit_path, *files.values()),
            also_read=(config_path, expect_path, against, against_config, *variants),
        )
        sinks = {name: stack.enter_context(closing(FileAlertSink(path))) for name, path in files.items()}
        meter = stack.enter_context(Meter(quiet=verbosity().quiet))
        request = BacktestRequest(
            variants=named, against=compared, expectations=expectations, sinks=sinks, jobs=jobs, near=near
        )
        size = None if read.from_kafka else done()[1]
        outcome = backtest(
            request, source, size=size, progress=lambda records: meter.tell(records, *done()), stop=stop
        )
    problem = _write(outcome, report_path, junit_path, output, output_format)
    if not verbosity().quiet:
        remark(_summary(outcome))
    first = outcome.problem or problem
    if first is not None:
        raise first
    _gate(outcome)


def _against(
    path: str | None, config: str | None, topic: str | None, sets: Sequence[str], profile: str | None
) -> Baseline:
    if sum(given is not None for given in (path, config, topic)) > 1:
        raise UsageError(
            "--against, --against-config and --against-topic exclude each other. Compare with one."
        )
    if config is not None:
        settings = varied(config, sets, profile=profile)[0].settings
        return Baseline(config, variants=(NamedSettings(config, {"file": config}, settings),))
    if topic is not None:
        return Baseline(topic, topic=topic)
    return Baseline(path or "", path=path)


def _largest_record(variants: Sequence[NamedSettings]) -> int:
    return max(one.settings.limits.max_record_bytes for one in variants)


def _alert_files(folder: str | None, variants: Sequence[NamedSettings]) -> dict[str, str]:
    """One file for each variant, named after it as far as the file system allows."""
    if folder is None:
        return {}
    names: dict[str, str] = {}
    for number, one in enumerate(variants):
        safe = re.sub(r"[^A-Za-z0-9._=-]+", "_", one.name)[:100]
        names[one.name] = str(Path(folder) / (f"{safe}.jsonl" if number == 0 else f"{number}-{safe}.jsonl"))
    return names


def _write(
    outcome: Outcome, report_path: str | None, junit_path: str | None, output: str | None, output_format: str
) -> SinkError | None:
    """Write every output even if another fails; returns the first error."""

    def findings() -> bytes:
        text = findings_text(outcome) if output_format == "text" else FORMATS[output_format](outcome)
        return text.rstrip("\n").encode() + b"\n"

    wanted: list[tuple[str | None, Callable[[], bytes]]] = [
        (output or "-", findings),
        (junit_path, lambda: junit(outcome.verdicts, suite="streamdetect backtest", seconds=outcome.seconds)),
        (report_path, lambda: html.page(outcome).encode()),
    ]
    problems: list[SinkError] = []
    for path, made in wanted:
        if path is not None:
            try:
                with atomic_file(path) as stream:
                    stream.write(made())
            except SinkError as problem:
                problems.append(problem)
    return problems[0] if problems else None


def _summary(outcome: Outcome) -> str:
    numbers = {**outcome.base.summary, "seconds": outcome.seconds}
    return summary_text(Summary(**numbers), stopped=outcome.stopped)


def _gate(outcome: Outcome) -> None:
    """Raises ExpectationFailed unless every expectation holds for certain."""
    failed = [verdict for verdict in outcome.verdicts if verdict.holds is False]
    open_ones = [verdict for verdict in outcome.verdicts if verdict.holds is None]
    if not failed and not open_ones:
        return
    lines = [visible(f"  {verdict.name}: {verdict.detail}") for verdict in (*failed, *open_ones)]
    counts = f"{len(failed)} of {len(outcome.verdicts)} expectations failed" + (
        f", {len(open_ones)} are undecided because the input was not read to its end" if open_ones else ""
    )
    raise ExpectationFailed("\n".join([f"{counts}:", *lines]))
