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
from streamdetect.report.html import key_page
from streamdetect.report.words import moment, span, visible
from streamdetect.service.inspect.explain import ExplainQuery, Explanation, explain_checkpoint, explain_source
from streamdetect.service.inspect.timeline import Timeline, TimelineTable
from streamdetect.sinks.atomic_file import packed_file
from streamdetect.sources.files import FileSource

HEAD = ("tick (UTC)", "events", "hours", "rate", "hosts", "procs", "what fails")
"""Short, so that a tick stays on one line where there are 80 columns."""


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
    help="Destination address, as an alert gives it; null for events without one.",
)
@click.option("--process", required=True, help="Process name.")
@time_option("--at", "at_ms", help="The tick to look at.  [default: the last one]")
@click.option(
    "--checkpoint",
    type=click.Path(),
    help="Look into the state in this directory instead of files, with the settings it was made with.",
)
@click.option(
    "--report",
    "report_path",
    metavar="FILE",
    help="Write the course of the key as one HTML file, with plots.",
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
    """Show what the detector knows of one destination and process, and which conditions hold.

    Reads PATHs as `replay` does, or a checkpoint, which a `run` may be writing.
    """
    if bool(paths) == (checkpoint is not None):
        raise UsageError("name either PATHs or --checkpoint, to say what to look into.")
    if report_path is not None and checkpoint is not None:
        raise UsageError(
            "--report is for PATHs: a checkpoint holds one window, not how it came to that. Leave one of them out."
        )
    settings = load_settings(config_path, sets, profile=profile, required_for="replay")
    logs.configure(settings.log, verbosity())
    asked = ExplainQuery(destination=destination, process=process, at_ms=at_ms)
    if checkpoint is not None:
        given = config_path is not None or sets or profile is not None
        with closing(SqliteStore(checkpoint, None)) as store:
            wanted = settings if given else None
            emit(_lines(explain_checkpoint(store=store, settings=wanted, question=asked)))
        return
    with closing(FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)) as source:
        check_outputs(source, report_path)
        found = explain_source(settings=settings, source=source, question=asked)
    if report_path is not None:
        _write(found, report_path, settings.time.interval_ms)
    emit(explanation_text(found, settings.time.interval_ms))


def _write(found: Explanation, path: str, interval_ms: int) -> None:
    with packed_file(path) as stream:
        stream.write(key_page(found.title, found.tracks, interval_ms).encode())


def explanation_text(found: Explanation, interval_ms: int, console: Console | None = None) -> str:
    """Each key's arithmetic with its timeline behind it."""
    console = console or Console()
    parts: list[str] = []
    for one in found.keys:
        parts.append(_lines(one.text, one.course))
        if one.timeline is not None:
            parts.append(_timeline(one.course, one.timeline, interval_ms, console))
    return "\n\n".join([*parts, *map(_lines, found.remarks)])


def _lines(text: str, course: Timeline | None = None) -> str:
    """The text with nothing in it that a terminal would obey, but for the ends of its lines.

    Those in the names of a course are in its title, the first line, and end none.
    """
    lines = text.split("\n")
    if course is not None:
        names = (course.key.process, course.key.address, course.key.sensor, course.rule.name, course.rule.id)
        end = 1 + sum((name or "").count("\n") for name in names)
        lines[:end] = ["\n".join(lines[:end])]
    return "\n".join(map(visible, lines))


def _timeline(course: Timeline, shown: TimelineTable, interval_ms: int, console: Console) -> str:
    every = (
        "every tick"
        if shown.stride == 1
        else f"every {shown.stride} ticks ({span(shown.stride * interval_ms)})"
    )
    title = f"Timeline, {len(shown.rows):,} of {shown.ticks:,} ticks: {every}, and where the verdict changed"
    if shown.left_out:
        title += f" ({shown.left_out:,} earlier changes are in the list above)"
    limits = course.rule.limits
    rows = [
        (
            moment(row.tick_ms),
            row.figures.events,
            row.figures.duration_hours,
            row.figures.connections_per_hour,
            _seen(course, row.figures.hosts, limits.max_hosts),
            _seen(course, row.figures.processes, limits.max_processes),
            row.verdict,
        )
        for row in shown.rows
    ]
    return table_text(title, HEAD, rows, console)


def _seen(course: Timeline, count: int, limit: int) -> int | str:
    """A number; with a plus where it may be more."""
    return count if course.counted(count, limit) == str(count) else f"{count}+"
