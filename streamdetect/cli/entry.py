"""The program around a command: the list of commands, and the exit code and message of each error."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

import streamdetect
from streamdetect.cli import logs
from streamdetect.cli.options import Verbosity, common_options, example
from streamdetect.errors import AlertOpened, StreamdetectError

PROGRAM = "streamdetect"
BUG = 1
INTERRUPTED = 130
REPORT = "This is a bug in streamdetect. Please report it with the lines above and the command you ran."

# Name and help text. A module is imported when its command is used, so that completion and help do not load the
# engine.
_COMMANDS = {
    "run": "Detect live: read Kafka and write alerts until stopped.",
    "replay": "Detect in files, or in a range of Kafka, and exit.",
    "backtest": "Replay history and show what other settings would have detected.",
    "explain": "Show why one destination and process alerts, or why not.",
    "generate": "Generate synthetic events of many hosts, with beacons among them.",
    "state": "Inspect a checkpoint: show, verify or export it.",
    "config": "Check a configuration, show the effective settings, or print the JSON Schema.",
}


class _Commands(click.Group):
    """The commands, each imported on use from the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"streamdetect.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Names and help texts from the table, without importing every command."""
        found = [
            click.shell_completion.CompletionItem(name, help=text)
            for name, text in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example(
        "streamdetect generate --hours 6 --beacon 25s,20% -o day.jsonl.zst",
        "streamdetect replay day.jsonl.zst",
        'eval "$(_STREAMDETECT_COMPLETE=bash_source streamdetect)"   # completion; also zsh_source, fish_source',
    ),
)
@click.version_option(streamdetect.__version__, prog_name=PROGRAM)
@common_options
def app() -> None:
    """Find beacons in endpoint network events, continuously and with exact windows."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Expected errors become a message without a traceback."""
    verbosity = Verbosity()
    try:
        code = app.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=verbosity)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except AlertOpened as outcome:
        _tell("info", str(outcome), verbosity)
        return outcome.exit_code
    except StreamdetectError as error:
        _report(error, verbosity)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the last line of defence
        traceback.print_exc()
        _say(REPORT)
        return BUG
    return code if isinstance(code, int) else 0


def _report(error: StreamdetectError, verbosity: Verbosity) -> None:
    """Write an error to standard error: a log record where logs are JSON, else text with one problem a line."""
    _close_broken_stdout()
    _tell("error", str(error), verbosity)


def _tell(level: str, text: str, verbosity: Verbosity) -> None:
    if verbosity.log_format == "json" or logs.as_json():
        with contextlib.suppress(BrokenPipeError):
            click.echo(logs.json_line(PROGRAM, level, text), err=True)
    else:
        _say(f"error: {text}" if level == "error" else text)


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"{PROGRAM}: {text}", err=True)


def _close_broken_stdout() -> None:
    """Redirect standard output if its reader has gone: Python would report the error again at exit."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
