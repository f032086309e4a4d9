"""`streamdetect backtest` and `streamdetect.backtest` as a user calls them: outputs, gates, errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamdetect
from streamdetect.errors import UsageError
from streamdetect.synthetic import Beacon, Scenario, lines

COMMAND = [sys.executable, "-m", "streamdetect", "backtest"]
Run = subprocess.CompletedProcess[bytes]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight hours of 20 hosts with a beacon of 144 an hour, which is detected, and one of 90, which is not."""
    path = tmp_path_factory.mktemp("history") / "day.jsonl"
    scenario = Scenario(hosts=20, hours=8, beacons=(Beacon(25_000), Beacon(40_000)), seed=3, shape="defend")
    with path.open("wb") as stream:
        stream.writelines(lines(scenario))
    return path


def run(*arguments: str | Path, **more: Any) -> Run:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, **more)


def first_alert(history: Path) -> dict[str, Any]:
    """The first alert under default settings: the one that opens."""
    command = [sys.executable, "-m", "streamdetect", "-q", "replay", str(history)]
    bodies = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    found: dict[str, Any] = json.loads(bodies[0])
    return found


def test_expectations_gate(history: Path, tmp_path: Path) -> None:
    """A met expectation gives 0; a failed one gives 21 and is named on stderr and in the JUnit file."""
    destination = first_alert(history)["destination"]["address"]
    expected, junit = tmp_path / "expected.yaml", tmp_path / "result.xml"
    expected.write_text(f"must_alert: [{{destination: {destination}}}]\n")
    assert run("-q", "--expect", expected, "--junit", junit, history).returncode == 0
    assert b'failures="0"' in junit.read_bytes()
    expected.write_text(f"must_not_alert: [{{name: calm, destination: {destination}}}]\n")
    failed = run("-q", "--expect", expected, "--junit", junit, history)
    assert failed.returncode == 21
    assert b"1 of 1 expectations failed" in failed.stderr
    assert b"calm" in failed.stderr
    assert b'failures="1"' in junit.read_bytes()


def test_an_ineffective_expectation_is_reported(history: Path, tmp_path: Path) -> None:
    """An unknown rule and a `*` that is not a wildcard hold whatever is found; each gives a remark."""
    expected = tmp_path / "expected.yaml"
    expected.write_text("must_not_alert: [{rule: no-such-rule}, {process: 'svc*'}]\n")
    output = run("-q", "--expect", expected, history).stdout
    assert b"No enabled rule is called 'no-such-rule'" in output
    assert b"'svc*' in an expectation is compared literally" in output


def test_unrelated_or_missing_alerts_are_reported(history: Path, tmp_path: Path) -> None:
    """A comparison with alerts of other rule ids says so; one with an empty file says that it holds no alerts."""
    alerts = tmp_path / "alerts"
    assert run("-q", "--alerts", alerts, history).returncode == 0
    output = run("-q", "--set", "rules.0.id=mine", "--against", alerts / "base.jsonl", history).stdout
    assert b"belongs to a rule of this backtest" in output
    empty = tmp_path / "none.jsonl"
    empty.write_bytes(b"")
    assert b"holds no alerts" in run("-q", "--against", empty, history).stdout


def outputs(folder: Path) -> dict[str, list[str]]:
    """For each kind of input file, command-line arguments that would also write to it."""
    config, expected, variant, alerts = (folder / name for name in ("c.yaml", "e.yaml", "v.yaml", "a.jsonl"))
    config.write_text("profile: resilient\n")
    expected.write_text("must_not_alert: [{process: x.exe}]\n")
    variant.write_text("profile: strict\n")
    alerts.write_text("")
    return {
        "config": ["--config", str(config), "--output", str(config)],
        "expectations": ["--expect", str(expected), "--report", str(expected)],
        "junit": ["--expect", str(expected), "--junit", str(expected)],
        "variant": ["--variant", str(variant), "--output", str(variant)],
        "against": ["--against", str(alerts), "--output", str(alerts)],
        "other config": ["--against-config", str(config), "--report", str(config)],
        "two outputs": ["--report", str(folder / "same"), "--output", str(folder / "same")],
    }


@pytest.mark.parametrize(
    "case",
    ["config", "expectations", "junit", "variant", "against", "other config", "two outputs", "input"],
)
def test_inputs_are_never_overwritten(case: str, history: Path, tmp_path: Path) -> None:
    """An output that is also an input of the same call is a usage error, and no file changes."""
    cases = outputs(tmp_path) | {"input": ["--report", str(history)]}
    before = {path: path.read_bytes() for path in (*tmp_path.iterdir(), history)}
    rejected = run("-q", *cases[case], history)
    assert rejected.returncode == 2, rejected.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_missing_output_directory_is_reported_before_reading(history: Path, tmp_path: Path) -> None:
    """Exit code 8 before any input is read."""
    rejected = run("--report", tmp_path / "nowhere" / "x.html", history)
    assert rejected.returncode == 8
    assert b"Create its directory" in rejected.stderr
    assert b"records" not in rejected.stderr


def test_a_failing_output_does_not_affect_the_others(history: Path, tmp_path: Path) -> None:
    """With a full disk under the report, findings and JUnit are still written, and the exit code is 8."""
    expected, junit = tmp_path / "expected.yaml", tmp_path / "result.xml"
    expected.write_text("must_not_alert: [{process: x.exe}]\n")
    failed = run("-q", "--report", "/dev/full", "--expect", expected, "--junit", junit, history)
    assert failed.returncode == 8
    assert b"Episodes:" in failed.stdout
    assert b'tests="1"' in junit.read_bytes()


def test_a_closed_standard_output_is_8(history: Path) -> None:
    """As for replay."""
    closed = subprocess.run(
        ["/bin/sh", "-c", f"exec {' '.join(COMMAND)} -q {history} >&-"], capture_output=True, check=False
    )
    assert closed.returncode == 8
    assert b"standard output is closed" in closed.stderr


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_truncated_input_gives_a_partial_report(jobs: str, history: Path, tmp_path: Path) -> None:
    """Exit code 10, and a report marked as partial over the records read before the end."""
    broken, whole = tmp_path / "broken.jsonl.gz", tmp_path / "whole.jsonl"
    packed = subprocess.run(["gzip", "-c", str(history)], capture_output=True, check=True).stdout
    broken.write_bytes(packed[: len(packed) // 2])
    whole.write_bytes(history.read_bytes())
    report = tmp_path / "r.html"
    failed = run("-q", "--jobs", jobs, "--report", report, broken, whole)
    assert failed.returncode == 10
    assert b"PARTIAL" in failed.stdout
    assert b"ended before the end of the input" in failed.stdout
    assert "partial" in report.read_text().lower()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backtest_is_marked_as_partial(
    number: signal.Signals, history: Path, tmp_path: Path
) -> None:
    """A signal while stdin is idle: exit code 0, and a report marked as partial."""
    report = tmp_path / "r.html"
    running = subprocess.Popen(
        [*COMMAND, "--jobs", "1", "--report", str(report), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert running.stdin is not None
    running.stdin.write(history.read_bytes())  # returns when nearly all of it has been read
    running.stdin.flush()
    running.send_signal(number)
    out = b"" if running.stdout is None else running.stdout.read()
    assert running.wait(60) == 0
    assert b"PARTIAL" in out
    assert "partial" in report.read_text().lower()


def test_every_format_contains_the_episode(history: Path) -> None:
    """JSON, Markdown, CSV and text contain the episode's destination."""
    destination = first_alert(history)["destination"]["address"].encode()
    for name in ("json", "markdown", "csv", "text"):
        assert destination in run("-q", "--format", name, history).stdout


def test_the_python_interface_matches_the_command(history: Path, tmp_path: Path) -> None:
    """It returns the alerts of a replay, flat rows with equal keys, and the report of the command."""
    result = streamdetect.backtest(history, vary={"min_connections_per_hour": [60, 120], "renotify": ["1h"]})
    assert result.alerts[0] == first_alert(history)
    assert [row["variant"] for row in result.variants] == [
        "base", "min_connections_per_hour=60 renotify=1h", "min_connections_per_hour=120 renotify=1h",
    ]  # fmt: skip
    for rows in (result.episodes, result.variants, result.near, result.volumes):
        assert {tuple(row) for row in rows} == {tuple(rows[0])}
    # 3600 / 40 = 90 an hour for 7 h: an episode at 60 only, and a near miss at 120.
    assert [row["process"] for row in result.near] == ["svchost.exe"]
    result.report(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == result.html()


@pytest.mark.parametrize(
    "call",
    [
        lambda _: streamdetect.backtest([]),
        lambda path: streamdetect.backtest(path, jobs=0),
        lambda path: streamdetect.backtest(path, near=-1),
        lambda path: streamdetect.backtest(path, near=5000),
        lambda path: streamdetect.backtest(path, vary={"max_hosts": 5}),  # type: ignore[dict-item]  # on purpose
        lambda path: streamdetect.backtest(path, vary={"profile": "strict"}),
        lambda path: streamdetect.backtest(path, vary={"max_hosts": [object()]}),
        lambda path: streamdetect.backtest(path, against=path, against_config=path),
    ],
)
def test_invalid_arguments_in_python_are_usage_errors(call: Callable[[Path], object], history: Path) -> None:
    """The Python interface raises the same error as the command."""
    with pytest.raises(UsageError):
        call(history)


def test_values_in_python_are_not_parsed(history: Path) -> None:
    """Text that contains a comma or a quote is one value."""
    result = streamdetect.backtest(history, vary={"name": ["it's fine", "a, b"]})
    assert [row["variant"] for row in result.variants] == ["base", "name=it's fine", "name=a, b"]
