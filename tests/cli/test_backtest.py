"""`streamdetect backtest` and `streamdetect.backtest` as somebody uses them: outputs, gates, mistakes."""

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
    """Eight hours of 20 hosts with a beacon of 144 calls an hour that is found, and one of 90 that is not."""
    path = tmp_path_factory.mktemp("history") / "day.jsonl"
    plan = Scenario(hosts=20, hours=8, beacons=(Beacon(25_000), Beacon(40_000)), seed=3, shape="defend")
    with path.open("wb") as stream:
        stream.writelines(lines(plan))
    return path


def run(*arguments: str | Path, **more: Any) -> Run:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, **more)


def alerting(history: Path) -> dict[str, Any]:
    """The one alert that opens under default settings."""
    command = [sys.executable, "-m", "streamdetect", "-q", "replay", str(history)]
    bodies = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    found: dict[str, Any] = json.loads(bodies[0])
    return found


def test_expectations_gate(history: Path, tmp_path: Path) -> None:
    """What is expected and so gives 0; what fails gives 21, is named on standard error and in the JUnit file."""
    destination = alerting(history)["destination"]["address"]
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


def test_an_expectation_that_means_nothing_is_told(history: Path, tmp_path: Path) -> None:
    """A rule that does not exist, and a star that is no wildcard, hold whatever is found: both are remarked."""
    expected = tmp_path / "expected.yaml"
    expected.write_text("must_not_alert: [{rule: no-such-rule}, {process: 'svc*'}]\n")
    said = run("-q", "--expect", expected, history).stdout
    assert b"No enabled rule is called 'no-such-rule'" in said
    assert b"'svc*' in an expectation is compared literally" in said


def test_alerts_of_other_rules_are_told(history: Path, tmp_path: Path) -> None:
    """A comparison with alerts of other rule ids says why nothing is the same; one with none, that there are none."""
    alerts = tmp_path / "alerts"
    assert run("-q", "--alerts", alerts, history).returncode == 0
    said = run("-q", "--set", "rules.0.id=mine", "--against", alerts / "base.jsonl", history).stdout
    assert b"belongs to a rule of this backtest" in said
    empty = tmp_path / "none.jsonl"
    empty.write_bytes(b"")
    assert b"holds no alerts" in run("-q", "--against", empty, history).stdout


def outputs(folder: Path) -> dict[str, list[str]]:
    """For each file that is read, how the command would be told to write to it."""
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
def test_nothing_that_is_read_is_overwritten(case: str, history: Path, tmp_path: Path) -> None:
    """An output that is any file of the call is wrong usage, and the file is as it was."""
    cases = outputs(tmp_path) | {"input": ["--report", str(history)]}
    before = {path: path.read_bytes() for path in (*tmp_path.iterdir(), history)}
    refused = run("-q", *cases[case], history)
    assert refused.returncode == 2, refused.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_an_output_without_a_directory_is_told_before_reading(history: Path, tmp_path: Path) -> None:
    """A report that has nowhere to go costs no pass over the data: nothing is read, exit code 8."""
    refused = run("--report", tmp_path / "nowhere" / "x.html", history)
    assert refused.returncode == 8
    assert b"Make the directory" in refused.stderr
    assert b"records" not in refused.stderr


def test_one_output_that_fails_costs_no_other(history: Path, tmp_path: Path) -> None:
    """A full disk under the report: findings and JUnit are there all the same, and the exit code is 8."""
    expected, junit = tmp_path / "expected.yaml", tmp_path / "result.xml"
    expected.write_text("must_not_alert: [{process: x.exe}]\n")
    failed = run("-q", "--report", "/dev/full", "--expect", expected, "--junit", junit, history)
    assert failed.returncode == 8
    assert b"Episodes:" in failed.stdout
    assert b'tests="1"' in junit.read_bytes()


def test_closed_standard_output_is_told(history: Path) -> None:
    """Without anywhere to write findings to, the exit code is 8, as it is for replay."""
    closed = subprocess.run(
        ["/bin/sh", "-c", f"exec {' '.join(COMMAND)} -q {history} >&-"], capture_output=True, check=False
    )
    assert closed.returncode == 8
    assert b"standard output is closed" in closed.stderr


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_broken_input_leaves_what_was_found(jobs: str, history: Path, tmp_path: Path) -> None:
    """Input that breaks off gives exit code 10 and a report, marked as partial, of what was read before."""
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
def test_interrupted_it_says_so(number: signal.Signals, history: Path, tmp_path: Path) -> None:
    """Ctrl-C while standard input gives nothing more: exit code 0, and a report that says it is partial."""
    report = tmp_path / "r.html"
    running = subprocess.Popen(
        [*COMMAND, "--jobs", "1", "--report", str(report), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert running.stdin is not None
    running.stdin.write(history.read_bytes())  # returns when nearly all of it was read
    running.stdin.flush()
    running.send_signal(number)
    out = b"" if running.stdout is None else running.stdout.read()
    assert running.wait(60) == 0
    assert b"PARTIAL" in out
    assert "partial" in report.read_text().lower()


def test_every_format_has_the_episode(history: Path) -> None:
    """JSON, Markdown, CSV and text name the destination of the episode."""
    destination = alerting(history)["destination"]["address"].encode()
    for name in ("json", "markdown", "csv", "text"):
        assert destination in run("-q", "--format", name, history).stdout


def test_from_python_as_from_the_command(history: Path, tmp_path: Path) -> None:
    """The interface gives the alerts of a replay, flat rows of equal keys, and the report of the command."""
    result = streamdetect.backtest(history, vary={"min_connections_per_hour": [60, 120], "renotify": ["1h"]})
    assert result.alerts[0] == alerting(history)
    assert [row["variant"] for row in result.variants] == [
        "base", "min_connections_per_hour=60 renotify=1h", "min_connections_per_hour=120 renotify=1h",
    ]  # fmt: skip
    for rows in (result.episodes, result.variants, result.near, result.volumes):
        assert {tuple(row) for row in rows} == {tuple(rows[0])}
    # 3600 / 40 = 90 an hour for 7 h: an episode at 60 only, and near at 120.
    assert [row["process"] for row in result.near] == ["svchost.exe"]
    result.report(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == result.html()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda _: streamdetect.backtest([]),
        lambda path: streamdetect.backtest(path, jobs=0),
        lambda path: streamdetect.backtest(path, near=-1),
        lambda path: streamdetect.backtest(path, near=5000),
        lambda path: streamdetect.backtest(path, vary={"max_hosts": 5}),  # type: ignore[dict-item]  # that is the mistake
        lambda path: streamdetect.backtest(path, vary={"profile": "strict"}),
        lambda path: streamdetect.backtest(path, vary={"max_hosts": [object()]}),
        lambda path: streamdetect.backtest(path, against=path, against_config=path),
    ],
)
def test_mistakes_in_python_are_usage_errors(wrong: Callable[[Path], object], history: Path) -> None:
    """What the command refuses, the interface refuses with the same error."""
    with pytest.raises(UsageError):
        wrong(history)


def test_values_from_python_are_taken_as_they_are(history: Path) -> None:
    """A text with a comma or a quote in it is one value."""
    result = streamdetect.backtest(history, vary={"name": ["it's fine", "a, b"]})
    assert [row["variant"] for row in result.variants] == ["base", "name=it's fine", "name=a, b"]
