"""Programs that a test needs and pip cannot bring along, and the environment of commands that it starts."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from broker import free_ports

REQUIRED = "STREAMDETECT_REQUIRE_TOOLS"
"""Set to 1 where every tool must be there: a missing one then fails the test instead of skipping it."""


def environment() -> dict[str, str]:
    """For a command in a process of its own: without settings that whoever runs the tests may have.

    It listens where nothing else does: if another test had the port, a warning would stand beside what it says.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("STREAMDETECT")}
    return {**plain, "STREAMDETECT__HTTP__PORT": str(free_ports(1)[0])}


def need(*programs: str) -> None:
    """Skip the test if one of the programs is missing, and say which."""
    missing = [program for program in programs if find(program) is None]
    if missing:
        lack(f"not installed: {', '.join(missing)}")


def lack(why: str) -> None:
    """Skip, or fail where tools are required."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{why}, and {REQUIRED}=1")
    pytest.skip(why)


def find(program: str) -> str | None:
    """Beside this Python, where pip puts programs, else on PATH."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
