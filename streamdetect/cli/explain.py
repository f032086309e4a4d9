"""`streamdetect explain`: the arithmetic behind an alert, or behind its absence."""

from __future__ import annotations

from contextlib import closing

import click
from rich.console import Console

from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.cli import logs
from streamdetect.cli.inputs import check_outputs
from streamdetect.cli.options import (
    common_options,
    config_option,
    example,
    settings_options,
    time_option,
    verbosity,
)
from streamdetect.cli.output import emit
from streamdetect.cli.tables import table_text
from streamdetect.config import load_settings
from streamdetect.errors import UsageError
from streamdetect.findings.timeline import Timeline, TimelineTable
from streamdetect.report.html import key_page
from streamdetect.report.words import moment, span, visible
from streamdetect.service.inspect.explain import ExplainQuery, Explanation, explain_checkpoint, explain_source
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.sources.files import FileSource

HEAD = ("tick (UTC)", "events", "hours", "rate", "hosts", "procs", "what fails")
"""Short, so that a row fits into 80 columns."""


@click.command(
    name="explain",
    epilog=example(
        "streamdetect explain --destination 45.83.64.1 --process chrome.exe monday.jsonl.zst",
        "streamdetect explain --destination 45.83.64.1 --process chrome.exe --report key.html monday.jsonl.zst",
        "streamdetect explain --destination 45.83.64.1 --process chrome.exe --checkpoint state",
    ),
)
@click.argument("paths", nargs=-1, type=click.Path(allow_dash=True), metavar="[PATH]...")
@config_option()
@click.option(
    "--destination",
    required=True,
    help="Destination address as in an alert; null for events without one.",
)
@click.option("--process", required=True, help="Process name.")
@time_option("--at", "at_ms", help="The tick to explain.  [default: the last one]")
@click.option(
    "--checkpoint",
    type=click.Path(),
    help="Read the checkpoint in this directory instead of files, with the settings it was made with.",
)
@click.option(
    "--report",
    "report_path",
    metavar="FILE",
    help="Write the timeline of the key as one HTML file, with plots.",
)
@settings_options
@common_options
def command(  # noqa: PLR0913 - one for each option
    *,
    paths: tuple[str, ...],
    config_path: str | None,
    destination: str,
    process: str,
    at_ms: int | None,
    checkpoint: str | None,
    report_path: str | None,
    sets: tuple[str, ...],
    profile: str | None,
) -> None:
    """Show the figures of one destination and process, and which conditions hold.

    Reads PATHs as `replay` does, or a checkpoint, which a `run` may be writing.
    """
    if bool(paths) == (checkpoint is not None):
        raise UsageError("name either PATHs or --checkpoint, as input.")
    if report_path is not None and checkpoint is not None:
        raise UsageError(
            "--report needs PATHs: a checkpoint holds only one window. Leave out one of the two options."
        )
    settings = load_settings(config_path, sets, profile=profile, required_for="replay")
    logs.configure(settings.log, verbosity())
    query = ExplainQuery(destination=destination, process=process, at_ms=at_ms)
    if checkpoint is not None:
        given = config_path is not None or sets or profile is not None
        with closing(SqliteStore(checkpoint, None)) as store:
            wanted = settings if given else None
            emit(_lines(explain_checkpoint(store=store, settings=wanted, query=query)))
        return
    with closing(FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)) as source:
        check_outputs(source, report_path)
        found = explain_source(settings=settings, source=source, query=query)
    if report_path is not None:
        _write(found, report_path, settings.time.interval_ms)
    emit(explanation_text(found, settings.time.interval_ms))


def _write(found: Explanation, path: str, interval_ms: int) -> None:
    with atomic_file(path) as stream:
        stream.write(key_page(found.title, found.tracked, interval_ms).encode())


def explanation_text(found: Explanation, interval_ms: int, console: Console | None = None) -> str:
    """Each key's arithmetic followed by its timeline."""
    console = console or Console()
    parts: list[str] = []
    for one in found.keys:
        parts.append(_lines(one.text, one.timeline))
        if one.table is not None:
            parts.append(_table(one.timeline, one.table, interval_ms, console))
    return "\n\n".join([*parts, *map(_lines, found.remarks)])


def _lines(text: str, timeline: Timeline | None = None) -> str:
    """The text without control characters other than line ends.

    Line ends within names of the timeline, all in the title (the first line), are made visible too.
    """
    lines = text.split("\n")
    if timeline is not None:
        names = (
            timeline.key.process,
            timeline.key.address,
            timeline.key.sensor,
            timeline.rule.name,
            timeline.rule.id,
        )
        end = 1 + sum((name or "").count("\n") for name in names)
        lines[:end] = ["\n".join(lines[:end])]
    return "\n".join(map(visible, lines))


def _table(timeline: Timeline, table: TimelineTable, interval_ms: int, console: Console) -> str:
    every = (
        "every tick"
        if table.stride == 1
        else f"every {table.stride} ticks ({span(table.stride * interval_ms)})"
    )
    title = f"Timeline, {len(table.rows):,} of {table.ticks:,} ticks: {every}, and where the verdict changed"
    if table.left_out:
        title += f" ({table.left_out:,} earlier changes are in the list above)"
    limits = timeline.rule.limits
    rows = [
        (
            moment(row.tick_ms),
            row.figures.events,
            row.figures.duration_hours,
            row.figures.connections_per_hour,
            _count(timeline, row.figures.hosts, limits.max_hosts),
            _count(timeline, row.figures.processes, limits.max_processes),
            row.verdict,
        )
        for row in table.rows
    ]
    return table_text(title, HEAD, rows, console)


def _count(timeline: Timeline, count: int, limit: int) -> int | str:
    """A number, with a plus if it may be more."""
    return count if timeline.count_text(count, limit) == str(count) else f"{count}+"
