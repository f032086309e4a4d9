"""`streamdetect generate`: an invented estate's events, for trying things out."""

from __future__ import annotations

from typing import IO

import click

from streamdetect.cli import logs
from streamdetect.cli.options import common_options, example, time_option, verbosity
from streamdetect.cli.output import Meter, note
from streamdetect.cli.signals import stopping
from streamdetect.config import LogSettings, format_duration
from streamdetect.errors import UsageError
from streamdetect.estate import SHAPES, Beacon, Placement, Plan, lines, parse_beacon, placements
from streamdetect.sinks.packed import packed_file

_DEFAULT = Plan()
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
    ),
)
@click.option(
    "--hosts", type=click.IntRange(min=1), default=_DEFAULT.hosts, show_default=True, help="How many hosts."
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
    help="Hide a beacon that calls every PERIOD give or take JITTER, like 25s,20% or 5m,30s. May be repeated.",
)
@click.option(
    "--seed", type=int, default=_DEFAULT.seed, show_default=True, help="The same seed gives the same bytes."
)
@click.option(
    "--shape",
    type=click.Choice(SHAPES),
    default=_DEFAULT.shape,
    show_default=True,
    help="Who writes the events.",
)
@time_option("--start", default="2026-03-02T00:00:00Z", show_default=True, help="Time of the first event.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    required=True,
    help="File to write (.gz and .zst compress), or - for standard output.",
)
@common_options
def command(
    *, hosts: int, hours: float, beacons: tuple[Beacon, ...], seed: int, shape: str, start: int, output: str
) -> None:
    """Invent the network events of an estate of hosts, as JSON lines, with beacons hidden among them.

    Stopped half-way, it leaves no file behind.
    """
    try:
        plan = Plan(hosts=hosts, hours=hours, start_ms=start, beacons=beacons, seed=seed, shape=shape)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    logs.configure(LogSettings(), verbosity())
    with Meter(quiet=verbosity().quiet) as meter, packed_file(output) as stream:
        written = _write(plan, stream, meter)
    if not verbosity().quiet:
        _tell(plan, written)


def _write(plan: Plan, stream: IO[bytes], meter: Meter) -> int:
    """Write all events; the number of them. Asked to stop, it gives up, and with it the file goes."""
    expected = plan.hosts * plan.hours * plan.events_per_host_hour
    written = 0
    with stopping() as stop:
        for line in lines(plan):
            stream.write(line)
            written += 1
            if written % _ASK_EVERY == 0:
                meter.tell(written, written, expected)
                if stop():
                    raise click.Abort
    return written


def _tell(plan: Plan, written: int) -> None:
    note(f"{written:,} events of {plan.hosts} hosts")
    for placement in placements(plan):
        note(f"  beacon: {_beacon_text(placement)}")


def _beacon_text(placement: Placement) -> str:
    beacon = placement.beacon
    host, process = placement.callers[0]
    every = f"every {format_duration(beacon.period_ms)} +- {format_duration(beacon.jitter_ms)}"
    where = f"{process.program.name} on {host.machine.name}"
    return f"{where} calls {placement.destination.ip} {every}, {placement.calls:,} times"
