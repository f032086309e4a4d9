"""`streamdetect explain`: the arithmetic behind an alert, or behind its absence."""

from __future__ import annotations

from contextlib import closing

import click

from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.cli import logs
from streamdetect.cli.options import (
    common_options,
    config_option,
    example,
    settings_options,
    time_option,
    verbosity,
)
from streamdetect.cli.output import emit
from streamdetect.config import load_settings
from streamdetect.errors import UsageError
from streamdetect.sources.files import FileSource


@click.command(
    name="explain",
    epilog=example(
        "streamdetect explain --destination 45.83.64.1 --process chrome.exe monday.jsonl.zst",
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
    sets: tuple[str, ...],
    profile: str | None,
) -> None:
    """Show what the detector knows of one destination and process, and which conditions hold.

    Reads PATHs as `replay` does, or a checkpoint, which a `run` may be writing.
    """
    if bool(paths) == (checkpoint is not None):
        raise UsageError("name either PATHs or --checkpoint, to say what to look into.")
    from streamdetect.service import explain as explain_service  # noqa: PLC0415 - help needs no engine

    settings = load_settings(config_path, sets, profile=profile, required_for="replay")
    logs.configure(settings.log, verbosity())
    asked = explain_service.Question(destination=destination, process=process, at_ms=at_ms)
    if checkpoint is not None:
        given = config_path is not None or sets or profile is not None
        with closing(SqliteStore(checkpoint, None)) as store:
            wanted = settings if given else None
            emit(explain_service.explain_checkpoint(store=store, settings=wanted, question=asked))
        return
    with closing(FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)) as source:
        emit(explain_service.explain_source(settings=settings, source=source, question=asked))
