"""Programs that a test needs and pip cannot install, and the environment of commands that it starts."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from broker import free_ports

REQUIRED = "STREAMDETECT_REQUIRE_TOOLS"
"""Set to 1 where every tool must be installed: a missing one then fails the test instead of skipping it."""


def environment() -> dict[str, str]:
    """The environment of a command in a child process: without the STREAMDETECT settings of this process.

    It listens on a free port: if another test used the same one, a warning would be added to the command's output.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("STREAMDETECT")}
    return {**plain, "STREAMDETECT__HTTP__PORT": str(free_ports(1)[0])}


def need(*programs: str) -> None:
    """Skip the test if one of the programs is missing, and name it."""
    missing = [program for program in programs if find(program) is None]
    if missing:
        skip_or_fail(f"not installed: {', '.join(missing)}")


def skip_or_fail(reason: str) -> None:
    """Skip the test, or fail it where tools are required."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1")
    pytest.skip(reason)


def find(program: str) -> str | None:
    """The path of a program: next to this Python, where pip installs programs, else on PATH."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
