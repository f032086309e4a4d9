"""docs/backtest.md is followed to the letter: its commands and Python run in order, and give what the page shows."""

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
    """A piece of the page. `before` is the text that leads to it."""

    kind: Literal["sh", "python", "yaml", "text"]
    text: str
    before: str


def blocks() -> Iterator[Block]:
    """What is typed, what is written to a file and what comes out, in the order of the page."""
    end = 0
    for found in _BLOCK.finditer(PAGE):
        before = PAGE[end : found.start()]
        end = found.end()
        if found[3] is not None:
            yield Block("sh", re.sub("^ {4}", "", found[3], flags=re.MULTILINE), before)
            continue
        assert found[1] in {"python", "yaml", "text"}, f"nobody checks a block of {found[1]}"
        yield Block(found[1], found[2], before)  # type: ignore[arg-type] # as asserted


def written_to(block: Block) -> str:
    """The file of a block of YAML is the one that was named last before it."""
    names: list[str] = re.findall(r"`([\w./-]+\.ya?ml)`", block.before)
    return names[-1]


def shell(script: str, programs: Path) -> str:
    """Both outputs, as a terminal shows them."""
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
    """Of what a page shows: a line of three dots is any number of lines, at the end of a line they are its rest."""
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
    """A directory with the program of this Python, wherever that was installed."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "streamdetect"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamdetect "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return folder


def test_the_page_is_true(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block that is followed by output gives that output, apart from how long things took."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    names: dict[str, object] = {}
    output, compared = "", 0
    for block in blocks():
        if block.kind == "yaml":
            path = work / written_to(block)
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
            came = _VARYING.sub("_", output)
            assert pattern(block.text).fullmatch(came), f"the page shows:\n{block.text}\nit gives:\n{output}"
            compared += 1
    assert compared >= 10


def test_the_gate_in_ci_is_the_command_of_the_page() -> None:
    """What the workflow runs is a command that was run above it."""
    typed = {line for block in blocks() if block.kind == "sh" for line in block.text.splitlines()}
    files = {written_to(block): block.text for block in blocks() if block.kind == "yaml"}
    workflow = next(text for name, text in files.items() if "workflows/" in name)
    steps = yaml.safe_load(workflow)["jobs"]["backtest"]["steps"]
    gates = [step["run"] for step in steps if "streamdetect backtest" in step.get("run", "")]
    assert gates
    assert set(gates) <= typed


def test_every_field_of_the_expectations_is_told() -> None:
    """The two tables of the reference have the sections and the fields of the file, no more and no less."""
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    text = reference.partition("\n#### Expectations\n")[2].partition("\n### ")[0]
    told = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    fields = [field.alias or field.validation_alias or name for name, field in MustAlert.model_fields.items()]
    assert sorted(told) == sorted([*Expectations.model_fields, *map(str, fields)])
    assert set(KeyPattern.FIELDS) <= set(told)
