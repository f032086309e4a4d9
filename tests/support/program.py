"""Run the program in a child process and read its output as text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from tools import environment

WAIT = 120.0
"""Upper limit in seconds for a command."""


class Outcome(NamedTuple):
    """Exit code and output of a process."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "streamdetect", *arguments]


def call(*arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Outcome:
    """Run the program to its end, with `environ` added to its environment."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        check=False,
        timeout=WAIT,
        env={**environment(), **(environ or {})},
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
