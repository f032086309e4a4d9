"""`streamdetect generate`: synthetic events of many hosts, for tests and demos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click

from streamdetect.cli import logs
from streamdetect.cli.options import common_options, config_option, example, time_option, verbosity
from streamdetect.cli.output import Meter, remark
from streamdetect.cli.signals import stopping
from streamdetect.config import LogSettings, format_duration, load_settings
from streamdetect.errors import UsageError
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.synthetic import (
    SHAPES,
    Beacon,
    Placement,
    Scenario,
    keyed_records,
    lines,
    parse_beacon,
    placements,
)

_DEFAULT = Scenario()
_ASK_EVERY = 256


def _parse_beacons(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[Beacon, ...]:
    try:
        return tuple(parse_beacon(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    name="generate",
    epilog=example(
        "streamdetect generate --hosts 50 --hours 24 --beacon 25s,20% -o day.jsonl.zst",
        "streamdetect generate --hours 6 --beacon 20s,2s --shape defend -o - | streamdetect replay -",
        "streamdetect generate --hosts 20 --beacon 25s,20% --config streamdetect.yaml --topic endpoint.events",
    ),
)
@click.option(
    "--hosts", type=click.IntRange(min=1), default=_DEFAULT.hosts, show_default=True, help="Number of hosts."
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULT.hours,
    show_default=True,
    help="How long.",
)
@click.option(
    "--beacon",
    "beacons",
    callback=_parse_beacons,
    metavar="PERIOD,JITTER",
    multiple=True,
    help="Add a beacon that calls every PERIOD plus or minus JITTER, like 25s,20% or 5m,30s. May be repeated.",
)
@click.option(
    "--seed", type=int, default=_DEFAULT.seed, show_default=True, help="The same seed gives the same bytes."
)
@click.option(
    "--shape",
    type=click.Choice(SHAPES),
    default=_DEFAULT.shape,
    show_default=True,
    help="Sensor and shape of the events.",
)
@time_option("--start", default="2026-03-02T00:00:00Z", show_default=True, help="Time of the first event.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="File to write (.gz and .zst compress), or - for standard output.",
)
@click.option(
    "--topic",
    help="Kafka topic to write to instead, with the connection of --config; key: the host, timestamp: the event time.",
)
@config_option()
@common_options
def command(  # noqa: PLR0913 - what can be asked for, by name
    *,
    hosts: int,
    hours: float,
    beacons: tuple[Beacon, ...],
    seed: int,
    shape: str,
    start: int,
    output: str | None,
    topic: str | None,
    config_path: str | None,
) -> None:
    """Generate synthetic network events of many hosts as JSON lines, with beacons among them.

    If stopped early it leaves no file; records already sent to a topic remain.
    """
    if (output is None) == (topic is None):
        raise UsageError("name either --output FILE or --topic TOPIC.")
    if output is not None and config_path is not None:
        raise UsageError("--config is only for --topic: a file needs no configuration.")
    try:
        scenario = Scenario(hosts=hosts, hours=hours, start_ms=start, beacons=beacons, seed=seed, shape=shape)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    if output is not None:
        logs.configure(LogSettings(), verbosity())
        written = _into_file(scenario, output)
    else:
        written = _into_topic(scenario, config_path, str(topic))
    if not verbosity().quiet:
        _tell(scenario, written)


def _into_file(scenario: Scenario, output: str) -> int:
    with _counting(scenario) as count, atomic_file(output) as stream:
        return count(stream.write(line) for line in lines(scenario))


def _into_topic(scenario: Scenario, config_path: str | None, topic: str) -> int:
    settings = load_settings(config_path)
    logs.configure(settings.log, verbosity())
    from streamdetect.sinks.publisher import Publisher  # noqa: PLC0415 - a file needs no Kafka client

    with _counting(scenario) as count, Publisher(settings.kafka, topic) as publisher:
        return count(publisher.send_all(keyed_records(scenario)))


@contextmanager
def _counting(scenario: Scenario) -> Iterator[Callable[[Iterable[object]], int]]:
    """A function that runs all steps with progress and returns their number. A signal aborts it."""
    expected = scenario.hosts * scenario.hours * scenario.events_per_host_hour
    with Meter(quiet=verbosity().quiet) as meter, stopping() as stop:

        def count(steps: Iterable[object]) -> int:
            written = 0
            for written, _ in enumerate(steps, 1):
                if written % _ASK_EVERY == 0:
                    meter.tell(written, written, expected)
                    if stop():
                        raise click.Abort
            return written

        yield count


def _tell(scenario: Scenario, written: int) -> None:
    remark(f"{written:,} events of {scenario.hosts} hosts")
    for placement in placements(scenario):
        remark(f"  beacon: {_beacon_text(placement)}")


def _beacon_text(placement: Placement) -> str:
    beacon = placement.beacon
    host, process = placement.callers[0]
    every = f"every {format_duration(beacon.period_ms)} +- {format_duration(beacon.jitter_ms)}"
    where = f"{process.program.name} on {host.machine.name}"
    return f"{where} calls {placement.destination.ip} {every}, {placement.calls:,} times"
