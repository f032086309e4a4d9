"""`streamdetect run`: live detection."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamdetect.cli import logs
from streamdetect.cli.options import common_options, config_option, example, settings_options, verbosity
from streamdetect.cli.output import remark
from streamdetect.cli.signals import stopping
from streamdetect.cli.summary import summary_text
from streamdetect.config import Settings, load_settings
from streamdetect.errors import ConfigError, KafkaError, UsageError

if TYPE_CHECKING:
    from streamdetect.service.live.dependencies import Dependencies
    from streamdetect.sinks import AlertSink, DeadLetterSink


@click.command(
    name="run",
    epilog=example(
        "streamdetect run --config streamdetect.yaml",
        "STREAMDETECT__KAFKA__TOPICS='[endpoint.events]' streamdetect run --config streamdetect.yaml",
        "streamdetect run --config streamdetect.yaml --rebuild   # the checkpoint directory was lost",
    ),
)
@config_option(required=True)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Rebuild the state from the last time.lookback of Kafka, without republishing published alerts; "
    "for a lost checkpoint.",
)
@click.option(
    "--reset-state",
    is_flag=True,
    help="Delete the checkpoint and begin at kafka.start; alerts may be published again, under the same ids.",
)
@settings_options
@common_options
def command(
    *, config_path: str, rebuild: bool, reset_state: bool, sets: tuple[str, ...], profile: str | None
) -> None:
    """Read Kafka and write alerts until stopped by SIGTERM or SIGINT (Ctrl-C).

    Continues where the last run stopped, with the state in checkpoint.path.
    """
    if rebuild and reset_state:
        raise UsageError("--rebuild and --reset-state exclude each other: choose one.")
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        settings = load_settings(config_path, sets, profile=profile, required_for="run")
        logs.configure(settings.log, verbosity())
        # Imported here because help needs no engine; signals are handled during the import already.
        from streamdetect.service.live import loop  # noqa: PLC0415
        from streamdetect.service.status.http import status_server  # noqa: PLC0415
        from streamdetect.service.status.stalls import stall_monitor  # noqa: PLC0415
        from streamdetect.service.status.state import RunStatus  # noqa: PLC0415

        status = RunStatus(settings)
        stack.enter_context(status_server(settings.http, status))
        try:
            dependencies = open_dependencies(settings, stack)
        except KafkaError:
            if stop():  # stopped before the start
                return
            raise
        stack.enter_context(stall_monitor(status))
        summary = loop.run_live(
            settings=settings,
            dependencies=dependencies,
            stop=stop,
            choice="rebuild" if rebuild else "reset" if reset_state else "continue",
            listener=status,
        )
    if not verbosity().quiet:
        remark(summary_text(summary))


def open_dependencies(settings: Settings, stack: ExitStack) -> Dependencies:
    """The real dependencies, closed by `stack`. The directory comes first: it is the most frequent error, and cheap."""
    from streamdetect.checkpoint.lock import DirectoryLock  # noqa: PLC0415 - help needs none of these
    from streamdetect.checkpoint.sqlite import SqliteStore  # noqa: PLC0415
    from streamdetect.checkpoint.sqlitefile import reset  # noqa: PLC0415
    from streamdetect.service.live.dependencies import Dependencies  # noqa: PLC0415
    from streamdetect.service.live.local_sinks import LocalSinks  # noqa: PLC0415
    from streamdetect.sinks.kafka import KafkaTransactionalSink  # noqa: PLC0415
    from streamdetect.sources import readback  # noqa: PLC0415
    from streamdetect.sources.kafka_live import KafkaSource  # noqa: PLC0415
    from streamdetect.sources.kafka_range import KafkaRange  # noqa: PLC0415

    _check_outputs(settings)
    kafka, written = settings.kafka, settings.written_topics()
    lock = stack.enter_context(closing(DirectoryLock(settings.checkpoint.path)))
    alerts = settings.alerts.topic if settings.alerts.sink == "kafka" else None
    dead_letters = settings.dead_letters.topic if settings.dead_letters.sink == "kafka" else None
    transactional_sink = stack.enter_context(closing(KafkaTransactionalSink(kafka, alerts, dead_letters)))
    alert_sink, dead_letter_sink = _alert_sink(settings), _dead_letter_sink(settings)
    for sink in (alert_sink, dead_letter_sink):
        if sink is not None:
            stack.callback(sink.close)
    return Dependencies(
        source=stack.enter_context(closing(KafkaSource(kafka, exclude=written))),
        sink=transactional_sink,
        lock=lock,
        open_store=lambda: SqliteStore(settings.checkpoint.path, settings.detection(), kafka.group_id),
        reset_store=lambda: reset(settings.checkpoint.path),
        open_window=lambda start_ms, ends: KafkaRange(kafka, start=start_ms, end=ends, exclude=written),
        local_sinks=LocalSinks(alert_sink, dead_letter_sink),
        published_alerts=partial(readback.alerts_in_topic, kafka, alerts)
        if alerts is not None
        else partial(readback.alerts_in_file, settings.alerts.path),
        published_dead_letters=partial(readback.dead_letters_in_topic, kafka, dead_letters)
        if dead_letters is not None
        else partial(readback.dead_letters_in_file, settings.dead_letters.path),
    )


def _check_outputs(settings: Settings) -> None:
    """Raises ConfigError for output files that would overwrite each other or the state."""
    named = {
        "alerts": settings.alerts.path if settings.alerts.sink == "file" else None,
        "dead_letters": settings.dead_letters.path if settings.dead_letters.sink == "file" else None,
    }
    paths = {name: Path(path).resolve() for name, path in named.items() if path is not None}
    for name, path in paths.items():
        if path.parent == Path(settings.checkpoint.path).resolve():
            raise ConfigError(
                f"{name}.path is in checkpoint.path, which is reserved for the state. Choose another directory."
            )
    if len(set(paths.values())) < len(paths):
        raise ConfigError("alerts.path and dead_letters.path are the same file. Use two files.")


def _alert_sink(settings: Settings) -> AlertSink | None:
    """None if alerts go to Kafka."""
    from streamdetect.sinks.files import FileAlertSink, StdoutAlertSink  # noqa: PLC0415

    if settings.alerts.sink == "kafka":
        return None
    if settings.alerts.path is not None and settings.alerts.sink == "file":
        return FileAlertSink(settings.alerts.path, append=True)
    return StdoutAlertSink()


def _dead_letter_sink(settings: Settings) -> DeadLetterSink | None:
    """None if dead letters go to Kafka."""
    from streamdetect.sinks.files import FileDeadLetterSink, NullSink  # noqa: PLC0415

    if settings.dead_letters.sink == "kafka":
        return None
    if settings.dead_letters.path is not None and settings.dead_letters.sink == "file":
        return FileDeadLetterSink(settings.dead_letters.path, append=True)
    return NullSink()
