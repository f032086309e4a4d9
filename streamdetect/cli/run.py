"""`streamdetect run`: live detection."""

from __future__ import annotations

from contextlib import ExitStack, closing

import click

from streamdetect.cli import logs
from streamdetect.cli.options import common_options, config_option, example, settings_options, verbosity
from streamdetect.cli.output import note
from streamdetect.cli.signals import stopping
from streamdetect.cli.summary import summary_text
from streamdetect.config import Settings, load_settings
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sinks.files import FileAlertSink, FileDeadLetterSink, NullDeadLetterSink, StdoutAlertSink
from streamdetect.sinks.kafka import KafkaAlertSink, KafkaDeadLetterSink, Outbox
from streamdetect.sources.kafka import KafkaSource


@click.command(
    name="run",
    epilog=example(
        "streamdetect run --config streamdetect.yaml",
        "STREAMDETECT__KAFKA__TOPICS='[endpoint.events]' streamdetect run --config streamdetect.yaml",
    ),
)
@config_option(required=True)
@settings_options
@common_options
def command(*, config_path: str, sets: tuple[str, ...], profile: str | None) -> None:
    """Read Kafka and write alerts until stopped by SIGTERM or SIGINT (Ctrl-C)."""
    from streamdetect.service import live as live_service  # noqa: PLC0415 - help needs no engine

    settings = load_settings(config_path, sets, profile=profile, required_for="run")
    logs.configure(settings.log, verbosity())
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        alert_sink, dead_letter_sink = _sinks(settings, stack)
        source = stack.enter_context(closing(KafkaSource(settings.kafka, exclude=settings.written_topics())))
        summary = live_service.run_live(
            settings=settings,
            source=source,
            alert_sink=alert_sink,
            dead_letter_sink=dead_letter_sink,
            stop=stop,
        )
    if not verbosity().quiet:
        note(summary_text(summary))


def _sinks(settings: Settings, stack: ExitStack) -> tuple[AlertSink, DeadLetterSink]:
    """The configured sinks, which `stack` closes; both share one producer where both write to Kafka."""
    outbox: Outbox | None = None
    if settings.written_topics():
        outbox = Outbox(settings.kafka)
        stack.callback(outbox.close)
        for topic in settings.written_topics():
            outbox.require(topic)
    alert_sink = _alert_sink(settings, outbox)
    stack.callback(alert_sink.close)
    dead_letter_sink = _dead_letter_sink(settings, outbox)
    stack.callback(dead_letter_sink.close)
    return alert_sink, dead_letter_sink


def _alert_sink(settings: Settings, outbox: Outbox | None) -> AlertSink:
    if settings.alerts.sink == "kafka" and outbox is not None:
        return KafkaAlertSink(outbox, settings.alerts.topic)
    if settings.alerts.path is not None and settings.alerts.sink == "file":
        return FileAlertSink(settings.alerts.path, append=True)
    return StdoutAlertSink()


def _dead_letter_sink(settings: Settings, outbox: Outbox | None) -> DeadLetterSink:
    if settings.dead_letters.sink == "kafka" and outbox is not None:
        return KafkaDeadLetterSink(outbox, settings.dead_letters.topic)
    if settings.dead_letters.path is not None and settings.dead_letters.sink == "file":
        return FileDeadLetterSink(settings.dead_letters.path, append=True)
    return NullDeadLetterSink()
