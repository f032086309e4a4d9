"""Follow docs/backtest.md: run its commands and Python in order and compare their output with the page's."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import yaml

from paths import ROOT
from streamdetect.config import Expectations, KeyPattern
from streamdetect.config.expectations import MustAlert

DOCS = ROOT / "docs"
PAGE = (DOCS / "backtest.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
_VARYING = re.compile(r'(?<= in )[\d.]+ s, [\d,]+(?= a second)|(?<=time=")[\d.]+(?=")')
_PROGRESS = re.compile(r"^(?:\d+ %, )?[\d,]+ records, [\d,]+ a second\n", re.MULTILINE)


class Block(NamedTuple):
    """A code block of the page. `before` is the text between it and the previous block."""

    kind: Literal["sh", "python", "yaml", "text"]
    text: str
    before: str


def blocks() -> Iterator[Block]:
    """Shell, Python, YAML and output blocks, in the order of the page."""
    end = 0
    for found in _BLOCK.finditer(PAGE):
        before = PAGE[end : found.start()]
        end = found.end()
        if found[3] is not None:
            yield Block("sh", re.sub("^ {4}", "", found[3], flags=re.MULTILINE), before)
            continue
        assert found[1] in {"python", "yaml", "text"}, f"no check for a block of {found[1]}"
        yield Block(found[1], found[2], before)  # type: ignore[arg-type] # as asserted


def target_file(block: Block) -> str:
    """The file that a YAML block is written to: the one named last before it."""
    names: list[str] = re.findall(r"`([\w./-]+\.ya?ml)`", block.before)
    return names[-1]


def shell(script: str, programs: Path) -> str:
    """Stdout and stderr, interleaved as in a terminal."""
    environ = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environ,
        check=False,
        timeout=120,
        text=True,
    )
    return _PROGRESS.sub("", done.stdout)


def pattern(shown: str) -> re.Pattern[str]:
    """Regular expression of an output block: a line `...` matches any lines; ` ...` ends a line with any text."""
    parts = []
    for line in _VARYING.sub("_", shown).splitlines():
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        elif line.endswith(" ..."):
            parts.append(re.escape(line.removesuffix(" ...")) + r".*\n")
        else:
            parts.append(re.escape(line) + r"\n")
    return re.compile("".join(parts))


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with a `streamdetect` program that runs this Python."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "streamdetect"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamdetect "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return folder


def test_blocks_give_the_output_shown(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every output block matches the output of the block before it, apart from durations."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    names: dict[str, object] = {}
    output, compared = "", 0
    for block in blocks():
        if block.kind == "yaml":
            path = work / target_file(block)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.kind == "sh":
            output = shell(block.text, programs)
        elif block.kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, "docs/backtest.md", "exec"), names)
            output = printed.getvalue()
        else:
            actual = _VARYING.sub("_", output)
            assert pattern(block.text).fullmatch(actual), (
                f"the page shows:\n{block.text}\nit gives:\n{output}"
            )
            compared += 1
    assert compared >= 10


def test_the_ci_gate_is_a_command_of_the_page() -> None:
    """The workflow runs a command that the page ran above it."""
    commands = {line for block in blocks() if block.kind == "sh" for line in block.text.splitlines()}
    files = {target_file(block): block.text for block in blocks() if block.kind == "yaml"}
    workflow = next(text for name, text in files.items() if "workflows/" in name)
    steps = yaml.safe_load(workflow)["jobs"]["backtest"]["steps"]
    gates = [step["run"] for step in steps if "streamdetect backtest" in step.get("run", "")]
    assert gates
    assert set(gates) <= commands


def test_every_field_of_the_expectations_is_documented() -> None:
    """The two tables of the reference contain exactly the sections and fields of the file."""
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    text = reference.partition("\n#### Expectations\n")[2].partition("\n### ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    fields = [field.alias or field.validation_alias or name for name, field in MustAlert.model_fields.items()]
    assert sorted(documented) == sorted([*Expectations.model_fields, *map(str, fields)])
    assert set(KeyPattern.FIELDS) <= set(documented)
