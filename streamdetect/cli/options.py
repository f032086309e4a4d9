"""Options and value types that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from streamdetect.config import parse_time_ms

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(slots=True)
class Verbosity:
    """The values of `-v`, `-q` and `--log-format`, before or after the command's name."""

    level: int = 0
    log_format: str | None = None

    @property
    def quiet(self) -> bool:
        return self.level < 0


def verbosity() -> Verbosity:
    """The verbosity of the running command."""
    return _verbosity(click.get_current_context())


def common_options(command: Decorated) -> Decorated:
    """`-v`, `-q` and `--log-format`."""
    options = (
        click.option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=_louder,
            help="More verbose (-vv: everything).",
        ),
        click.option(
            "-q",
            "--quiet",
            count=True,
            expose_value=False,
            callback=_quieter,
            help="Only warnings and errors.",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            expose_value=False,
            callback=_set_format,
            help="Format of logs on standard error.  [default: the setting log.format]",
        ),
    )
    return _with(options, command)


def settings_options(command: Decorated) -> Decorated:
    """`--set` and `--profile`."""
    options = (
        click.option(
            "--set",
            "sets",
            metavar="PATH=VALUE",
            multiple=True,
            help="Override one setting, like --set rules.0.min_duration_hours=2. May be repeated.",
        ),
        click.option(
            "--profile",
            type=click.Choice(["strict", "resilient"]),
            help="Read documents as Elasticsearch stores them (strict) or as an analyst means them (resilient).",
        ),
    )
    return _with(options, command)


def jobs_option(command: Decorated) -> Decorated:
    """`--jobs`."""
    option = click.option(
        "--jobs",
        type=click.IntRange(1, 256),
        help="Worker processes that read and decode; 1 disables workers.  [default: one per core, if there are as many "
        "partitions and the input is large enough]",
    )
    return option(command)


def config_option(*, required: bool = False) -> Callable[[Decorated], Decorated]:
    """`--config`."""
    text = "Configuration file (YAML)." + ("" if required else "  [default: built-in settings]")
    return click.option("-c", "--config", "config_path", type=click.Path(), required=required, help=text)


def time_option(*names: str, words: Sequence[str] = (), **settings: Any) -> Callable[[Decorated], Decorated]:
    """An option for an ISO 8601 time, passed in milliseconds since the epoch; `words` are passed unchanged."""
    metavar = "|".join(["TIME", *words])

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
        if value is None or value in words:
            return value
        try:
            return parse_time_ms(value)
        except ValueError as error:
            also = "".join(f", or {word}" for word in words)
            raise click.BadParameter(f"{value!r} {error}{also}") from None

    return click.option(*names, metavar=metavar, callback=parse, **settings)


def example(*lines: str) -> str:
    """The epilog of a command: example command lines, unwrapped."""
    return "\n\n".join(
        ["Example:" if len(lines) == 1 else "Examples:", "\b\n" + "\n".join(f"  {line}" for line in lines)]
    )


def _with(options: tuple[Callable[[Any], Any], ...], command: Decorated) -> Decorated:
    for option in reversed(options):
        command = option(command)
    return command


def _verbosity(ctx: click.Context) -> Verbosity:
    return ctx.find_root().ensure_object(Verbosity)


def _louder(ctx: click.Context, _: click.Parameter, times: int) -> None:
    _verbosity(ctx).level += times


def _quieter(ctx: click.Context, _: click.Parameter, times: int) -> None:
    _verbosity(ctx).level -= times


def _set_format(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        _verbosity(ctx).log_format = value
