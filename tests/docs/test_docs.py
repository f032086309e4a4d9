"""Documentation and program agree in both directions: nothing is undocumented, and nothing documented is missing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from paths import ROOT
from streamdetect import errors
from streamdetect.cli.entry import BUG, INTERRUPTED, app
from streamdetect.cli.options import Verbosity, common_options, config_option, settings_options
from streamdetect.config import json_schema, load_settings
from streamdetect.detect.rules import FILTER_REASONS
from streamdetect.model import REFUSAL_REASONS, Partition
from streamdetect.service.status.http import Endpoints
from streamdetect.service.status.state import LastCheckpoint, PartitionStatus, RunStatus, StatusSnapshot
from streamdetect.service.summary import Summary
from streamdetect.sources import Bounds

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "streamdetect" / "samples" / "README.md",
]
SAMPLE = ROOT / "streamdetect" / "samples" / "day.jsonl.zst"
_CODE = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def section(title: str) -> str:
    """The text below a heading of the reference, up to the next heading of the same or a higher level."""
    rank = title.partition(" ")[0]
    assert f"\n{title}\n" in REFERENCE, f"the reference has no heading {title!r}"
    start = REFERENCE.index(f"\n{title}\n") + len(title) + 2
    end = re.compile(rf"^#{{1,{len(rank)}}} ", re.MULTILINE).search(REFERENCE, start)
    return REFERENCE[start : end.start() if end else None]


def rows(text: str) -> Iterator[list[str]]:
    """The body rows of all tables in a text."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def codes(text: str) -> set[str]:
    return set(_CODE.findall(text))


def commands() -> dict[str, click.Command]:
    """Every command by its full name."""
    found: dict[str, click.Command] = {}

    def walk(group: click.Group, outer: str) -> None:
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            found[f"{outer}{name}"] = command
            if isinstance(command, click.Group):
                walk(command, f"{outer}{name} ")

    walk(app, "")
    return found


def options(command: click.Command) -> set[str]:
    return {
        text
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for text in [*parameter.opts, *parameter.secondary_opts]
    }


def shared_options() -> set[str]:
    """The options that the reference documents once for all commands."""
    everything = common_options(settings_options(config_option()(lambda **_: None)))
    return options(click.command()(everything)) | {"-h", "--help", "--version"}


def test_every_command_and_option_is_documented() -> None:
    """Each command has its own heading or is listed under its group's, with a table of exactly its own options.

    In a group whose commands have options of their own, each has a heading below the group's.
    """
    before = section("## Commands").partition("\n### ")[0]
    documented = {option for row in rows(before) for option in _OPTION.findall(row[0])}
    assert documented | {"--version"} == shared_options()
    for name, command in commands().items():
        own = f"#### `streamdetect {name}`"
        title = own if own in REFERENCE else f"### `streamdetect {name.split()[0]}`"
        text = section(title).partition("\n#### ")[0]
        assert title == own or f"streamdetect {name}" in text or " " not in name
        documented = {option for row in rows(text) for option in _OPTION.findall(row[0])}
        assert documented == options(command) - shared_options(), name


def test_every_heading_is_a_command() -> None:
    """The reference documents no command that does not exist."""
    documented = re.findall(r"^### `streamdetect (.+)`$", REFERENCE, re.MULTILINE)
    assert documented == [name for name in commands() if " " not in name]
    assert set(re.findall(r"^#### `streamdetect (.+)`$", REFERENCE, re.MULTILINE)) <= commands().keys()


def schema_settings() -> dict[str, dict[str, Any]]:
    """Every setting of the schema by its path; `.0` represents every entry of a list."""
    schema = json_schema()
    found: dict[str, dict[str, Any]] = {}

    def walk(node: dict[str, Any], outer: str) -> None:
        for name, given in node["properties"].items():
            inner = given.get("$ref") or given.get("items", {}).get("$ref")
            entry = ".0" if "items" in given else ""
            if inner is None or "default" in given:
                found[outer + name] = given
            if inner is not None:
                walk(schema["$defs"][inner.rpartition("/")[2]], f"{outer}{name}{entry}.")

    walk(schema, "")
    return found


def setting_rows() -> dict[str, list[str]]:
    return {row[0].strip("`"): row for row in rows(section("## Settings"))}


def test_every_setting_is_documented() -> None:
    """The tables contain exactly the paths of the JSON Schema."""
    assert setting_rows().keys() == schema_settings().keys()


@pytest.mark.parametrize("path", schema_settings())
def test_documented_defaults_and_ranges_match_the_schema(path: str) -> None:
    """Default, range and allowed values of each setting in the tables."""
    given = schema_settings()[path]
    _, default, allowed, *_ = setting_rows()[path]
    if path == "rules.0.excluded_networks":
        assert default.startswith(f"{len(given['default'])} networks")
    else:
        assert yaml.safe_load(re.sub(r"(?<=\d),(?=\d{3})", "", default.strip("`"))) == given["default"]
    limits = given.get("items", given)
    for low, high in (("minimum", "maximum"), ("x-minimum", "x-maximum")):
        if low in limits:
            numbers = re.sub(r"[`,]|list", "", allowed).strip()
            assert numbers == f"{limits[low]} to {limits[high]}"
    values = [value for choice in given.get("anyOf", [given]) for value in choice.get("enum", ())]
    assert not values or codes(allowed) == set(values)


def test_every_exit_code_is_documented() -> None:
    """The table lists the codes of the error tree, plus 0, 130 and those of click."""
    tree = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.StreamdetectError)
    }
    documented = [int(row[0]) for row in rows(section("## Exit codes"))]
    assert documented == sorted(tree | {0, BUG, click.UsageError.exit_code, INTERRUPTED})


def test_every_reason_and_summary_count_is_documented() -> None:
    """The tables list exactly the dead-letter reasons, the filter reasons and the summary's counts."""
    headers_and_reasons = {row[0].strip("`") for row in rows(section("## Dead letter")) if "-" not in row[0]}
    assert headers_and_reasons - {"streamdetect.reason", "streamdetect.detail"} == set(REFUSAL_REASONS)
    numbers = {row[0].strip("`"): row[1] for row in rows(section("## Summary"))}
    assert numbers.keys() == Summary().as_dict().keys()
    assert codes(numbers["filtered"]) == set(FILTER_REASONS)


def leaves(node: dict[str, Any], outer: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{outer}{name}.")
        else:
            yield outer + name


def test_every_alert_field_is_documented() -> None:
    """The sample day's alerts have the fields of the table, except the domain, which none of its sensors reports."""
    done = subprocess.run(
        [sys.executable, "-m", "streamdetect", "replay", "-q", str(SAMPLE)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    fields = {field for line in done.stdout.splitlines() for field in leaves(json.loads(line))}
    documented = {name for row in rows(section("## Alert")) for name in codes(row[0])}
    assert documented == fields | {"destination.domain"}


def typed_lines() -> list[str]:
    """Every line of a code block of the README and the reference that calls the program."""
    text = (ROOT / "README.md").read_text(encoding="utf-8") + REFERENCE
    blocks = re.findall(r"(?:^ {4}.*\n)+|^```.*?^```", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^(?: {4})?(?:\S*/)?(streamdetect .*)$", "".join(blocks), re.MULTILINE)


@pytest.mark.parametrize("line", typed_lines())
def test_example_commands_parse(line: str) -> None:
    """The command line accepts each example, and its overrides name existing settings."""
    words = shlex.split(line)[1:]
    words = words[: next((place for place, word in enumerate(words) if word in {">", "|"}), None)]
    command: click.Command = app
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    ctx = command.make_context(command.name, words, obj=Verbosity())
    load_settings(None, cast("tuple[str, ...]", ctx.params.get("sets", ())), environ={})


def test_every_command_has_an_example() -> None:
    """Each command that is not a group occurs in a code block."""
    lines = typed_lines()
    for name, command in commands().items():
        if not isinstance(command, click.Group):
            assert any(f"{line} ".startswith(f"streamdetect {name} ") for line in lines), name


def test_commands_named_in_sentences_exist() -> None:
    """A command in a sentence may omit its arguments, but its name and options exist."""
    for path in DOCUMENTS:
        for code in _CODE.findall(path.read_text(encoding="utf-8")):
            if not code.startswith("streamdetect ") or "..." in code:
                continue
            _, *words = code.split()
            name = " ".join(words[:2]) if " ".join(words[:2]) in commands() else words[0]
            if name.startswith("--"):
                assert name in shared_options(), code
                continue
            assert name in commands(), f"{path.name}: {code}"
            known = options(commands()[name]) | shared_options()
            assert set(_OPTION.findall(" ".join(words))) <= known, code


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(document: Path) -> None:
    """Every relative link points to an existing file, and its anchor to a heading of that file."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{document.name} links to {target}"


# -- operations


OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SOURCE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "streamdetect").rglob("*.py"))


def test_operations_covers_every_exit_code() -> None:
    """The table has the codes of the error tree, in order."""
    start = OPERATIONS.index("## Exit codes")
    documented = [
        int(row[0]) for row in rows(OPERATIONS[start : OPERATIONS.index("## Kafka is unavailable")])
    ]
    tree = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.StreamdetectError)
    }
    assert documented == sorted(tree | {0})


def test_messages_quoted_in_operations_exist() -> None:
    """Each quote in the first column of the table "the message says" is part of a message in the source."""
    start = OPERATIONS.index("| the message says")
    quoted = [
        piece for row in rows(OPERATIONS[start:]) for text in codes(row[0]) for piece in text.split(" ... ")
    ]
    assert len(quoted) >= 8
    messages = re.sub(r'"\s*\n\s*f?"', "", SOURCE)
    assert [piece for piece in quoted if piece not in messages] == []


def test_docs_and_docstring_list_the_same_protocol_steps() -> None:
    """Five numbered steps, word for word."""
    from streamdetect.service.live import commit  # noqa: PLC0415

    def steps(text: str, mark: str) -> list[str]:
        found = re.findall(
            r"^(?:\d)\. (.+?)(?=^\d\. |^$)", text[text.index(mark) :], re.MULTILINE | re.DOTALL
        )
        return [" ".join(step.replace("**", "").split()) for step in found][:5]

    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert steps(design, "## The commit protocol") == steps(commit.__doc__ or "", "One checkpoint")
    assert len(steps(design, "## The commit protocol")) == 5


def test_every_metric_is_documented_with_labels_and_type() -> None:
    """The table of metrics in operations.md lists exactly what a scrape returns."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = {
        (name, frozenset(labels.split(",")) if labels else frozenset(), row[1])
        for row in rows(text)
        if (found := re.fullmatch(r"`(streamdetect_\w+)(?:\{(.+)\})?`", row[0])) is not None
        for name, labels in [(found[1], found[2])]
    }
    assert documented == set(scraped())


def scraped() -> Iterator[tuple[str, frozenset[str], str]]:
    """Name, labels and type of every metric of a run that has read something."""
    partition = Partition("t", 0)
    status = RunStatus(load_settings(None))
    status.bounds = {partition: Bounds(0, 1)}
    status.last_checkpoint = LastCheckpoint(1, 0.0, {partition: 1})
    one = PartitionStatus(position=1, lag=0, clock_ms=0, watermark_ms=0, idle=False, held=False)
    status.snapshot = StatusSnapshot(0.0, Summary(), {partition: 1}, {partition: one}, 0, 0, 0, {})
    body = Endpoints(status).get("/metrics").body.decode()
    for family in text_string_to_metric_families(body):
        if family.name.startswith("streamdetect_"):
            labels = frozenset(family.samples[0].labels) - {"le"}
            yield family.name + ("_total" if family.type == "counter" else ""), labels, family.type


def test_documented_stage_costs_match_the_benchmark_results() -> None:
    """The stages in docs/performance.md and README's bytes per key are those of benchmarks/results.md."""
    results = (ROOT / "benchmarks/results.md").read_text().splitlines()
    page = (ROOT / "docs/performance.md").read_text()
    documented = re.findall(r"^\| [a-z][^|]* \| -?[\d.]+x \| -?[\d,]+ \|$", page, re.MULTILINE)
    assert len(documented) == 2 * 10
    assert set(documented) <= set(results)
    (one, many) = re.findall(
        r"takes (\d+) bytes at a million of them, (\d+) with 60,000", (ROOT / "README.md").read_text()
    )[0]
    sizes = [line.split(" | ")[2:4] for line in results if line.startswith("| 1,000,000 | 1 | ")]
    assert [["600", one], ["60,000", many]] == sizes[:2]
