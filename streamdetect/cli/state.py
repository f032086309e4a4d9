"""`streamdetect state`: inspect a checkpoint, also while a `run` is writing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.cli import logs
from streamdetect.cli.options import common_options, config_option, example, verbosity
from streamdetect.cli.output import Meter, emit
from streamdetect.cli.tables import table_text
from streamdetect.config import Settings, load_settings
from streamdetect.errors import UsageError
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource

if TYPE_CHECKING:
    from streamdetect.service.inspect.integrity import VerifiedCheckpoint

_DIRECTORY = click.argument("directory", type=click.Path(), metavar="DIR")


@click.group(
    name="state",
    epilog=example(
        "streamdetect state show state",
        "streamdetect state verify state --config streamdetect.yaml --from-kafka",
        "streamdetect state export state -o state.jsonl.zst",
    ),
)
@common_options
def command() -> None:
    """Inspect a checkpoint: show, verify or export it.

    DIR is the directory of checkpoint.path. It is only read, and a `run` may be writing it at the same time.
    """


@command.command(
    short_help="Show the contents of a checkpoint.", epilog=example("streamdetect state show state")
)
@_DIRECTORY
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@common_options
def show(directory: str, form: str) -> None:
    """Show the checkpoint in DIR: settings, partitions, keys, pending events, open episodes, sizes."""
    from streamdetect.service.inspect import describe  # noqa: PLC0415 - help needs no engine

    with closing(SqliteStore(directory, None)) as store:
        found = describe.describe(store)
    emit(
        json.dumps(found, indent=2, ensure_ascii=False)
        if form == "json"
        else _description_text(found, Console())
    )


@command.command(
    short_help="Check a checkpoint, by itself or against its records.",
    epilog=example(
        "streamdetect state verify state",
        "streamdetect state verify state partition-0.jsonl.zst partition-1.jsonl.zst",
        "streamdetect state verify state --config streamdetect.yaml --from-kafka",
    ),
)
@_DIRECTORY
@click.argument("paths", nargs=-1, type=click.Path(allow_dash=True), metavar="[PATH]...")
@click.option("--from-kafka", is_flag=True, help="Derive the state from the records in Kafka, and compare.")
@config_option()
@common_options
def verify(directory: str, paths: tuple[str, ...], from_kafka: bool, config_path: str | None) -> None:
    """Check that the checkpoint in DIR is intact; exit code 5 if it is not.

    With PATHs, one for each partition by topic and number, or --from-kafka: read its records again and compare the
    resulting state. The configuration gives the Kafka connection and the limits; the detection settings are those that
    the checkpoint was made with.
    """
    if from_kafka and paths:
        raise UsageError("PATHs and --from-kafka exclude each other. Name files, or read Kafka.")
    from streamdetect.service.inspect.integrity import check_integrity  # noqa: PLC0415 - help needs no engine
    from streamdetect.service.inspect.verify import kafka_start_ms, rederive  # noqa: PLC0415 - as above

    settings = load_settings(config_path)
    logs.configure(settings.log, verbosity())
    with closing(SqliteStore(directory, None)) as store:
        verified = check_integrity(store, settings)
    emit(verified.text())
    if not paths and not from_kafka:
        return
    with ExitStack() as stack:
        start_ms = kafka_start_ms(verified) if from_kafka else None
        source, read = _records(verified, settings, paths, start_ms)
        stack.enter_context(closing(source))
        meter = stack.enter_context(Meter(quiet=verbosity().quiet))
        compared = rederive(
            verified, source, start_ms=start_ms, progress=lambda records: meter.tell(records, *read())
        )
    emit(compared.verdict())


def _records(
    verified: VerifiedCheckpoint, settings: Settings, paths: tuple[str, ...], start_ms: int | None
) -> tuple[Source, Callable[[], tuple[int, int | None]]]:
    """The records of the checkpoint, and a function that returns (read, total) for progress."""
    if paths:
        from streamdetect.service.inspect.verify import FilePartitions  # noqa: PLC0415 - help needs no engine

        files = FileSource(paths, max_record_bytes=settings.limits.max_record_bytes)
        return FilePartitions(files, verified.offsets), files.progress
    from streamdetect.sources.kafka_range import KafkaRange  # noqa: PLC0415 - files need no Kafka client

    kafka = KafkaRange(
        settings.kafka, verified.topics(), "earliest" if start_ms is None else start_ms, verified.offsets
    )
    return kafka, lambda: (0, None)


@command.command(
    short_help="Write a checkpoint as JSON lines.",
    epilog=example("streamdetect state export state -o state.jsonl.zst"),
)
@_DIRECTORY
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="-",
    help="Write to this file (.gz and .zst compress) instead of standard output.",
)
@common_options
def export(directory: str, output: str) -> None:
    """Write every row of the checkpoint in DIR as a line of JSON, in an order that depends only on the rows."""
    from streamdetect.service.inspect import describe  # noqa: PLC0415 - help needs no engine

    with closing(SqliteStore(directory, None)) as store:
        lines = describe.export_lines(store)
    if Path(output).resolve().parent == Path(directory).resolve():
        raise UsageError(
            f"{output} is in the checkpoint directory, which is read-only here. Choose another directory."
        )
    with atomic_file(output) as stream:
        stream.writelines(line + b"\n" for line in lines)


def _description_text(found: dict[str, Any], console: Console) -> str:
    """The description as text."""
    settings, keys, waiting = found["settings"], found["keys"], found["waiting"]
    evaluated = "no tick yet" if found["evaluated"] is None else f"up to {found['evaluated']}"
    times = ", ".join(f"{name} {value}" for name, value in settings["time"].items())
    lines = [
        f"checkpoint {found['number']:,} of state {found['state']}, {found['size_bytes']:,} bytes",
        f"evaluated {evaluated}, {found['ticks']:,} ticks, at most {found['keys_peak']:,} keys",
        f"made with profile {settings['profile']}; {times}",
        *(_rule_line(rule) for rule in settings["rules"]),
        f"{keys['count']:,} keys with {keys['events']:,} events, and {waiting['events']:,} pending events",
    ]
    tables = {
        "partitions": _partition_rows(found["partitions"]),
        "keys": keys["groups"],
        "pending for later ticks": waiting["ticks"],
        "open episodes": _episode_rows(found["episodes"]),
        "output not confirmed as published": _pending_rows(found["pending"]),
        "output files": [{"output": name, **mark} for name, mark in found["marks"].items()],
    }
    # With one rule its id would be the widest column, equal in every row.
    left_out = {"rule"} if len(settings["rules"]) == 1 else set()
    texts = []
    for title, rows in tables.items():
        head = [name for name in rows[0] if name not in left_out] if rows else []
        texts.append(table_text(title, head, [[row[name] for name in head] for row in rows], console))
    return "\n\n".join(["\n".join(lines), *texts])


def _rule_line(rule: dict[str, Any]) -> str:
    return (
        f"rule {rule['id']}: {', '.join(rule['processes'])}; at least {rule['min_connections_per_hour']:,} an hour "
        f"for {rule['min_duration_hours']:,} h, at most {rule['max_hosts']} hosts and {rule['max_processes']} "
        f"processes, renotify {rule['renotify']}; excludes {rule['excluded_networks']} networks, "
        f"{rule['excluded_ports']} ports, {rule['exceptions']} exceptions"
    )


def _partition_rows(partitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for found in partitions:
        behind_ms, leaps = found["behind_ms"], found["leaps"]
        rows.append(
            {
                "topic": found["topic"],
                "number": found["number"],
                "offset": found["offset"],
                "clock": found["clock"],
                "behind": None if behind_ms is None else f"{behind_ms / 1000:,.1f} s",
                "idle": found["idle"],
                "too far ahead": leaps and f"{leaps['records']} records from {leaps['from']} on",
            }
        )
    return rows


def _episode_rows(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **{
                name: found[name]
                for name in ("rule", "destination", "process", "sensor", "opened", "alerted")
            },
            "events": found["figures"]["count_connections"],
            "hours": found["figures"]["duration_hours"],
            "an hour": found["figures"]["number_of_con_per_hour"],
        }
        for found in episodes
    ]


def _pending_rows(pending: dict[str, Any]) -> list[dict[str, Any]]:
    dead_letters = (
        {"what": f"dead letters, {reason}", "count": n} for reason, n in pending["dead_letters"].items()
    )
    alerts: dict[tuple[str, str], int] = {}
    for alert in pending["alerts"]:
        named = alert["action"], alert["tick"]
        alerts[named] = alerts.get(named, 0) + 1
    texts = ({"what": f"alerts, {action} at {tick}", "count": n} for (action, tick), n in alerts.items())
    return [*texts, *dead_letters]
