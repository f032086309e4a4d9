"""`streamdetect config`: check a file, show the effective settings, print the JSON Schema."""

from __future__ import annotations

import json

import click

from streamdetect.cli.options import common_options, example, settings_options
from streamdetect.cli.output import emit
from streamdetect.config import doubts, json_schema, load_settings, show


@click.group(
    name="config",
    epilog=example(
        "streamdetect config check streamdetect.yaml", "streamdetect config show --profile strict"
    ),
)
@common_options
def command() -> None:
    """Check a configuration, show the effective settings, or print the JSON Schema.

    Environment variables apply as for every command: STREAMDETECT__KAFKA__GROUP_ID=x sets kafka.group_id.
    """


@command.command(
    short_help="List every problem of a file.", epilog=example("streamdetect config check streamdetect.yaml")
)
@click.argument("file", type=click.Path())
@settings_options
@common_options
def check(file: str, sets: tuple[str, ...], profile: str | None) -> None:
    """Read FILE and list every problem in it; exit code 3 if there is any.

    Valid but probably unintended settings are reported too.
    """
    settings = load_settings(file, sets, profile=profile)
    emit(f"{file} is valid")
    for doubt in doubts(settings):
        emit(f"note: {doubt}")


@command.command(
    name="show",
    short_help="Print the effective settings.",
    epilog=example(
        "streamdetect config show streamdetect.yaml",
        "streamdetect config show --set rules.0.severity=73 > streamdetect.yaml",
    ),
)
@click.argument("file", type=click.Path(), required=False)
@settings_options
@common_options
def show_settings(file: str | None, sets: tuple[str, ...], profile: str | None) -> None:
    """Print the effective settings as YAML, from FILE, the environment, --set and the defaults.

    Secrets are shown as ********. Without FILE it prints the defaults, a starting point for a file of your own.
    """
    emit(show(load_settings(file, sets, profile=profile)).rstrip("\n"))


@command.command(
    short_help="Print the JSON Schema.",
    epilog=example("streamdetect config schema > streamdetect.schema.json"),
)
@common_options
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors and validators."""
    emit(json.dumps(json_schema(), indent=2))
