"""The command line through its real entry point: exit codes, output texts, streams, signals."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import Outcome, call, command
from rich.console import Console

import streamdetect
from paths import SAMPLE
from streamdetect.cli import entry, logs
from streamdetect.cli.output import Meter
from streamdetect.cli.signals import stopping
from streamdetect.cli.summary import summary_text
from streamdetect.config import Settings, load_settings
from streamdetect.errors import FencedError
from streamdetect.service.summary import Summary
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.testing import ManualClock
from tools import environment

COMMANDS = (
    "",
    "run",
    "replay",
    "explain",
    "generate",
    "state",
    "state show",
    "state verify",
    "state export",
    "config",
    "config check",
    "config show",
    "config schema",
)
SECRET = "hunter2-hunter2"
START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z


def events(count: int, every_ms: int) -> bytes:
    """A beacon in the format of Elastic Defend: `count` events, one every `every_ms`."""
    document: dict[str, Any] = {
        "event": {"category": ["network"], "dataset": "endpoint.events.network"},
        "network": {"direction": "egress"},
        "host": {"id": "h1", "name": "WS-1", "os": {"family": "windows"}},
        "process": {"name": "chrome.exe", "entity_id": "p1", "pid": 7},
        "destination": {"ip": "45.83.64.1", "address": "45.83.64.1", "port": 443},
    }
    lines = [json.dumps({"@timestamp": START_MS + index * every_ms, **document}) for index in range(count)]
    return "\n".join(lines).encode() + b"\n"


@pytest.fixture
def beacon(tmp_path: Path) -> str:
    """Five hours of a beacon every 20 s: 180 an hour from one process on one host."""
    path = tmp_path / "beacon.jsonl"
    path.write_bytes(events(5 * 180, 20_000))
    return str(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """`--help` works without a configuration and shows an example call."""
    result = call(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    example = result.out.partition("Example")[2]
    assert f"streamdetect {command}".strip() in example


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_accepts_the_common_options(command: str) -> None:
    """-v, -q and --log-format are accepted before and after the name of any command."""
    result = call("-q", *command.split(), "-v", "--log-format", "json", "--help")
    assert result.code == 0
    assert "--log-format [text|json]" in result.out


def test_version() -> None:
    """`--version` prints the package's version."""
    assert call("--version").out == f"streamdetect, version {streamdetect.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """Each shell has a completion script, and commands and options complete."""
    assert "_STREAMDETECT_COMPLETE" in call(environ={"_STREAMDETECT_COMPLETE": f"{shell}_source"}).out
    if shell == "bash":
        variables = {"_STREAMDETECT_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
        assert call(environ={"COMP_WORDS": "streamdetect re", **variables}).out == "plain,replay\n"
        variables["COMP_CWORD"] = "2"
        assert (
            call(environ={"COMP_WORDS": "streamdetect replay --fail", **variables}).out
            == "plain,--fail-on-alert\n"
        )


def test_replay_detects_the_beacon(beacon: str, tmp_path: Path) -> None:
    """Only alerts go to stdout; the summary accounts for every record, as text and as JSON."""
    summary_path = tmp_path / "summary.json"
    result = call("replay", beacon, "--summary-json", str(summary_path))
    assert result.code == 0
    (alert,) = map(json.loads, result.out.splitlines())
    assert alert["event"]["action"] == "opened"
    # 3 h 30 min are reached by the event at 03:30:00.000, so the first tick after it is 03:35.
    assert alert["@timestamp"] == "2026-03-02T03:35:00.000Z"
    summary = json.loads(summary_path.read_text())
    assert {name: summary[name] for name in ("consumed", "counted", "filtered", "late", "dead_lettered")} == {
        "consumed": 900,
        "counted": 900,
        "filtered": {},
        "late": 0,
        "dead_lettered": {},
    }
    assert summary["alerts"] == {"opened": 1}
    assert {"ticks", "keys_peak", "suspect_leaps", "seconds"} <= summary.keys()
    assert "900 records in" in result.err
    assert "1 opened" in result.err


def balanced(summary: Mapping[str, Any]) -> bool:
    """Whether every consumed record is in exactly one count."""
    parts = [*summary["filtered"].values(), *summary["dead_lettered"].values()]
    return bool(summary["consumed"] == summary["counted"] + summary["late"] + sum(parts))


def test_replay_of_the_sample_day(tmp_path: Path) -> None:
    """One of three planted beacons is detected, at 04:35 and every 6 h; stdout is JSON with sorted keys only."""
    summary_path = tmp_path / "summary.json"
    result = call("replay", str(SAMPLE), "--summary-json", str(summary_path))
    assert result.code == 0
    alerts = [json.loads(line) for line in result.out.splitlines()]
    assert {(alert["destination"]["address"], alert["process"]["name"]) for alert in alerts} == {
        ("185.39.46.150", "chrome.exe")
    }
    assert [(alert["@timestamp"][11:16], alert["event"]["action"]) for alert in alerts] == [
        ("04:35", "opened"),
        ("10:35", "updated"),
        ("16:35", "updated"),
        ("22:35", "updated"),
    ]
    compact = [
        json.dumps(alert, sort_keys=True, ensure_ascii=False, separators=(",", ":")) for alert in alerts
    ]
    assert result.out == "".join(f"{line}\n" for line in compact)
    summary = json.loads(summary_path.read_text())
    assert summary["consumed"] == 47_354
    assert balanced(summary)
    assert summary["alerts"] == {"opened": 1, "updated": 3}
    # 24 h in panes of 5 min: the first tick at 00:05, the last at 24:00.
    assert summary["ticks"] == 24 * 12


def test_replay_reads_every_input_format(beacon: str, tmp_path: Path) -> None:
    """Every compression and layout of the same records gives byte-identical output."""
    content = Path(beacon).read_bytes()
    array = b"[" + b",".join(content.splitlines()) + b"]"
    expected = call("replay", "-q", beacon)
    assert (expected.code, expected.err, expected.out.count("\n")) == (0, "", 1)
    (tmp_path / "day").mkdir()
    files = {
        "day/a.jsonl.gz": content,
        "a.zst": content,
        "a.json": array,
        "e.json": b'{"events": %b}' % array,
    }
    for name, data in files.items():
        with atomic_file(str(tmp_path / name)) as stream:
            stream.write(data)
        assert call("replay", "-q", str(tmp_path / name)) == expected, name
    assert call("replay", "-q", "-", stdin=content) == expected
    assert call("replay", "-q", str(tmp_path / "day")) == expected


def test_replay_writes_to_a_file(beacon: str, tmp_path: Path) -> None:
    """With --output, stdout stays empty and an existing file is replaced."""
    output = tmp_path / "alerts.jsonl"
    output.write_text("old")
    result = call("replay", "-q", "-o", str(output), beacon)
    assert (result.code, result.out) == (0, "")
    assert json.loads(output.read_text())["event"]["action"] == "opened"


def test_fail_on_alert_sets_the_exit_code(beacon: str) -> None:
    """20 with an alert, 0 without, for checks in a pipeline."""
    assert call("replay", "-q", "--fail-on-alert", beacon).code == 20
    assert call("replay", "-q", "--fail-on-alert", "--set", "rules.0.max_hosts=1", "-", stdin=b"").code == 0
    assert (
        call("replay", "--fail-on-alert", "--set", "rules.0.min_connections_per_hour=10000", beacon).code == 0
    )


def test_replay_merges_settings_from_all_sources(beacon: str, tmp_path: Path) -> None:
    """--set, the environment and a file change the result; --profile is recorded in the alert."""
    none = call("replay", "-q", beacon, environ={"STREAMDETECT__RULES__0__EXCLUDED_PORTS": "[443]"})
    assert (none.code, none.out) == (0, "")
    assert (
        json.loads(call("replay", "-q", "--profile", "strict", beacon).out)["streamdetect"]["profile"]
        == "strict"
    )
    config = tmp_path / "c.yaml"
    config.write_text("rules: [{min_duration_hours: 2, severity: 99}]")
    alert = json.loads(call("replay", "-q", "-c", str(config), beacon).out)
    assert alert["event"]["severity"] == 99


def test_replay_writes_dead_letters_only_to_a_configured_file(tmp_path: Path) -> None:
    """Dead letters are always counted, written only to a configured file, and never sent to Kafka."""
    path = tmp_path / "dead.jsonl"
    result = call("replay", "-", stdin=b"no json\n")
    assert (result.code, "1 not_json" in result.err) == (0, True)
    overrides = ["--set", "dead_letters.sink=file", "--set", f"dead_letters.path={path}"]
    assert call("replay", "-q", *overrides, "-", stdin=b"no json\n").code == 0
    assert json.loads(path.read_text())["streamdetect.reason"] == "not_json"


USAGE_ERRORS = [
    (["replay"], "Name a PATH"),
    (["replay", "--from-kafka", "x"], "exclude each other"),
    (["replay", "x", "--to", "latest"], "Add --from-kafka"),
    (["replay", "--from-kafka", "--from", "yesterday"], "'yesterday' is not a time"),
    (["replay", "--nonsense"], "No such option"),
    (["relay"], "No such command"),
    (["run"], "Missing option"),
    (["config", "check"], "Missing argument"),
    (["explain", "--destination", "a", "--process", "b"], "PATHs or --checkpoint"),
    (["generate"], "either --output FILE or --topic"),
    (["generate", "-o", "-", "--beacon", "often"], "PERIOD,JITTER"),
    (["generate", "-o", "-", "--hosts", "0"], "--hosts"),
    (["generate", "-o", "-", "--hours", "nan"], "hours must be above 0"),
    (["generate", "-o", "-", "--beacon", "0s,20%"], "at least 1 ms"),
    (["generate", "-o", "-", "--beacon", "10s,200%"], "shorter than its period"),
    (
        ["explain", "--destination", "a", "--process", "b", "--checkpoint", "state", "x"],
        "PATHs or --checkpoint",
    ),
    (["state", "verify", "state", "x", "--from-kafka"], "exclude each other"),
    (["state", "show"], "Missing argument"),
    (["replay", "x", "--log-format", "xml"], "'xml' is not one of"),
    (["replay", "x", "--profile", "lax"], "'lax' is not one of"),
]


@pytest.mark.parametrize(
    ("arguments", "text"), USAGE_ERRORS, ids=[" ".join(words) for words, _ in USAGE_ERRORS]
)
def test_usage_errors_are_2(arguments: list[str], text: str) -> None:
    """The message names the problem, without a traceback."""
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert text in result.err
    assert "Traceback" not in result.err


def test_inputs_are_never_overwritten(beacon: str) -> None:
    """An alert, summary or dead-letter path that is an input, or in an input directory, is rejected."""
    before = Path(beacon).read_bytes()
    dead_letters = ["--set", "dead_letters.sink=file", "--set", f"dead_letters.path={beacon}"]
    for path in (beacon, str(Path(beacon).parent)):
        for options in (["-o", beacon], ["--summary-json", beacon], dead_letters):
            result = call("replay", path, *options)
            assert (result.code, result.out) == (2, "")
            assert "is an input and would be overwritten" in result.err
    assert Path(beacon).read_bytes() == before


def test_two_outputs_must_be_two_files(beacon: str, tmp_path: Path) -> None:
    """The same file for alerts and summary is rejected, because one would replace the other; a device is accepted."""
    both = str(tmp_path / "both")
    result = call("replay", beacon, "-o", both, "--summary-json", both)
    assert (result.code, Path(both).exists()) == (2, False)
    assert "is named for two outputs" in result.err
    assert call("replay", beacon, "-o", "/dev/null", "--summary-json", "/dev/null").code == 0


INVALID_SETTINGS = [
    (
        "rules.0.min_duration_hour=2",
        "rules.0.min_duration_hour: is not a setting; did you mean rules.0.min_duration_hours?",
    ),
    ("kafka.topik=a", "kafka.topik: is not a setting; did you mean kafka.topics?"),
    (
        "rules.0.extra_excluded_networks=[10.0.0/33]",
        "rules.0.extra_excluded_networks.0: '10.0.0/33' is neither a network nor an address",
    ),
    ("rules.0.excluded_networks=[10.0.0.1/8]", "has bits set after its prefix; write 10.0.0.0/8"),
    ("time.lookback=7m", "time.lookback: 7m is not a multiple of interval 5m; write for example 5m"),
    ("time.lookback", 'has no "="; write --set path.to.key=value'),
]


@pytest.mark.parametrize(("override", "text"), INVALID_SETTINGS, ids=[text for text, _ in INVALID_SETTINGS])
def test_an_invalid_override_is_3(beacon: str, override: str, text: str) -> None:
    """One problem, with the value to use instead and the override's position."""
    result = call("replay", beacon, "--set", override)
    assert (result.code, result.out) == (3, "")
    first, second = result.err.splitlines()
    assert first == "streamdetect: error: the configuration is not valid, 1 problem:"
    assert text in second
    assert "--set number 1" in second


def test_invalid_configuration_is_3(beacon: str, tmp_path: Path) -> None:
    """All problems are reported at once, one per line, by every command that reads a configuration."""
    config = tmp_path / "c.yaml"
    config.write_text("kafka: {topcs: [a]}\ntime: {interval: 5}\n")
    for arguments in (
        ["config", "check", str(config)],
        ["config", "show", str(config)],
        ["replay", "-c", str(config), beacon],
        ["run", "-c", str(config)],
    ):
        result = call(*arguments)
        assert (result.code, result.out) == (3, "")
        lines = result.err.splitlines()
        assert lines[0].startswith(f"streamdetect: error: {config} is not valid, ")
        assert "kafka.topcs: is not a setting; did you mean kafka.topics? (line 1)" in lines
        assert "time.interval: 5 has no unit; write 5s, 5m or 5ms (line 2)" in lines
    assert call("run", "-c", str(tmp_path / "none.yaml")).code == 3


def test_unreachable_kafka_is_4(tmp_path: Path) -> None:
    """The error names the broker that does not answer."""
    config = tmp_path / "c.yaml"
    # Port 1 on loopback: nothing listens there.
    config.write_text(
        "kafka: {bootstrap_servers: ['127.0.0.1:1'], topics: [a], client: {bootstrap_timeout_ms: 300}}"
    )
    for arguments in (["run", "-c", str(config)], ["replay", "--from-kafka", "-c", str(config)]):
        result = call(*arguments)
        assert result.code == 4
        assert "127.0.0.1:1" in result.err
        assert "Traceback" not in result.err


def test_a_failing_sink_is_8(beacon: str, tmp_path: Path) -> None:
    """An output that cannot be opened or written gives exit code 8 and is named."""
    for output in (str(tmp_path / "none" / "a"), "/dev/full"):
        result = call("replay", "-q", "-o", output, beacon)
        assert result.code == 8
        assert output in result.err
        assert "Traceback" not in result.err


COMMANDS_WITH_OUTPUT = {
    "alerts": ["replay", "-q", str(SAMPLE)],
    "explain": ["explain", "--destination", "185.39.46.150", "--process", "chrome.exe", "/dev/null"],
    "generate": ["generate", "-q", "--hosts", "2", "--hours", "1", "-o", "-"],
    "config show": ["config", "show"],
    "config schema": ["config", "schema"],
}


def call_with_stdout(stdout: Any, *arguments: str, environ: Mapping[str, str] | None = None) -> Outcome:
    """Run the program with this stdout."""
    done = subprocess.run(
        command(*arguments),
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
        env={**environment(), **(environ or {})},
    )
    return Outcome(done.returncode, "", done.stderr.decode())


@pytest.mark.parametrize(
    ("name", "unbuffered"), [*((name, "") for name in COMMANDS_WITH_OUTPUT), ("config schema", "1")]
)
def test_a_closed_pipe_is_8_without_a_traceback(name: str, unbuffered: str) -> None:
    """`... | head -c0` gives one line and none of Python's own messages about the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        result = call_with_stdout(
            stdout, *COMMANDS_WITH_OUTPUT[name], environ={"PYTHONUNBUFFERED": unbuffered}
        )
    assert result.err == (
        "streamdetect: error: standard output was closed by its reader, so not everything could be written.\n"
    )
    assert result.code == 8


@pytest.mark.parametrize("name", COMMANDS_WITH_OUTPUT)
def test_a_full_standard_output_is_8(name: str) -> None:
    """A full disk under stdout is reported in one line."""
    with Path("/dev/full").open("wb") as stdout:
        result = call_with_stdout(stdout, *COMMANDS_WITH_OUTPUT[name])
    assert result.err == (
        "streamdetect: error: standard output cannot be written (No space left on device). "
        "Free disk space or make it writable, then start again.\n"
    )
    assert result.code == 8


def test_a_full_disk_is_8_for_every_output(beacon: str) -> None:
    """Summary and dead letters fail as alerts do, naming the file."""
    dead_letters = ["--set", "dead_letters.sink=file", "--set", "dead_letters.path=/dev/full"]
    for arguments in (["--summary-json", "/dev/full", beacon], [*dead_letters, "-"]):
        result = call("replay", "-q", *arguments, stdin=b"no json\n")
        assert result.code == 8
        assert result.err.startswith("streamdetect: error: /dev/full cannot be written")
        assert result.err.count("\n") == 1


def test_a_closed_standard_output_is_8(beacon: str) -> None:
    """Started with `>&-`, a replay reports that stdout is closed."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m streamdetect replay -q "{beacon}" >&-'],
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
    )
    assert done.returncode == 8
    assert done.stderr == (
        b"streamdetect: error: standard output is closed. Open it, or name a file with --output.\n"
    )


def test_unreadable_input_is_10(tmp_path: Path) -> None:
    """A path that is missing or empty, or a directory without files, is named in one line."""
    (tmp_path / "empty").mkdir()
    for path, text in (
        (str(tmp_path / "none"), "none cannot be opened (No such file or directory). Correct the path."),
        (str(tmp_path / "empty"), "empty is a directory without files. Give one with files, or files."),
        ("", "an empty path cannot be opened"),
    ):
        result = call("replay", path)
        assert (result.code, result.out, result.err.count("\n")) == (10, "", 1)
        assert text in result.err


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_input_is_10_after_the_alerts_so_far(beacon: str, tmp_path: Path, suffix: str) -> None:
    """Alerts before the truncation are written; then one line gives the number of records read."""
    packed = tmp_path / f"cut{suffix}"
    with atomic_file(str(packed)) as stream:
        stream.write(Path(beacon).read_bytes() + os.urandom(200_000).hex().encode())
    packed.write_bytes(packed.read_bytes()[:-1_000])
    result = call("replay", str(packed))
    assert result.code == 10
    assert json.loads(result.out)["event"]["action"] == "opened"
    assert result.err.count("\n") == 1
    assert "ends too early; 900 records were read before that" in result.err


def test_invalid_lines_do_not_end_a_replay(beacon: str, tmp_path: Path) -> None:
    """Six invalid lines become dead letters of four reasons, and the beacon is still detected."""
    bad = [b"no json", b"[1]", b'{"a":1}', b'{"@timestamp":"soon"}', b"\xff{}", b"x" * 1_048_577]
    first, *rest = Path(beacon).read_bytes().splitlines()
    summary_path = tmp_path / "summary.json"
    stdin = b"\n".join([first, *bad, *rest])
    result = call("replay", "-", "--summary-json", str(summary_path), stdin=stdin)
    assert (result.code, result.out) == (0, call("replay", "-q", beacon).out)
    summary = json.loads(summary_path.read_text())
    assert summary["dead_lettered"] == {"no_time": 2, "not_an_object": 1, "not_json": 2, "too_large": 1}
    assert summary["consumed"] == 906
    assert balanced(summary)


def test_json_logs_cover_all_of_standard_error(beacon: str, tmp_path: Path) -> None:
    """With --log-format json every line is an ECS object: summary, outcome, error and messages of generate."""
    generate = ["generate", "--hosts", "2", "--hours", "1", "--beacon", "20s,2s", "-o", str(tmp_path / "g")]
    for arguments, code, text in (
        (["replay", beacon], 0, "900 records in"),
        (["replay", "-q", "--fail-on-alert", beacon], 20, "1 alert was opened"),
        (["replay", "--fail-on-alert", beacon], 20, "1 alert was opened"),
        (["replay", str(tmp_path / "none")], 10, "cannot be opened"),
        (["replay", beacon, "--set", "a=b"], 3, "is not a setting"),
        (generate, 0, "beacon: "),
    ):
        result = call("--log-format", "json", *arguments)
        assert result.code == code
        lines = [json.loads(line) for line in result.err.splitlines()]
        assert all(
            {"@timestamp", "log.level", "message", "ecs.version", "log.logger"} <= line.keys()
            for line in lines
        )
        assert any(text in line["message"] for line in lines)


def test_explain_shows_the_arithmetic() -> None:
    """On the sample: the figures at the tick before the alert and at the alert, next to their thresholds."""
    arguments = ["explain", "--destination", "185.39.46.150", "--process", "CHROME.EXE", str(SAMPLE)]
    before = call(*arguments, "--at", "2026-03-02T04:30:00Z")
    assert (before.code, before.err) == (0, "")
    # The span from 01:00:10.769 is not yet 3 h 30 min at 04:30, so it rounds to 3 h.
    assert "holds  504 connections // 3 h = 168 an hour, at least 120" in before.out
    assert "rounded 3 h, at least 4" in before.out
    assert before.out.count("FAILS") == 1
    at = call(*arguments, "--at", "2026-03-02T04:35:00Z").out
    assert "holds  516 connections // 4 h = 129 an hour, at least 120" in at
    assert (
        "2026-03-02T01:00:10.769Z to 2026-03-02T04:34:45.595Z is 12,874.826 s, rounded 4 h, at least 4" in at
    )
    assert "FAILS" not in at
    assert "2026-03-02T04:35:00.000Z  true: the condition holds" in at


def test_explain_of_an_unknown_destination(beacon: str) -> None:
    """A destination without events is reported; a time after the last tick is a usage error."""
    arguments = ["explain", "--process", "chrome.exe", beacon, "--destination"]
    result = call(*arguments, "192.0.2.77")
    assert (result.code, result.err) == (0, "")
    assert "No event of chrome.exe to 192.0.2.77 counts for any rule" in result.out
    assert "900 of 900 records count for some key; filtered: none." in result.out
    late = call(*arguments, "45.83.64.1", "--at", "2027-01-01")
    assert (late.code, late.out) == (2, "")
    assert "the last tick of this input is 2026-03-02T05:00:00.000Z" in late.err


def test_explain_finishes_after_a_leap_of_a_million_years(beacon: str) -> None:
    """After a believed clock leap, verdicts are printed where they change, not at every tick."""
    leaps = b"".join(
        json.dumps({"@timestamp": 9 * 10**18 + number, "host": {"id": f"h{number}"}}).encode() + b"\n"
        for number in range(4)
    )
    Path(beacon).write_bytes(Path(beacon).read_bytes() + leaps)
    result = call("explain", "--destination", "45.83.64.1", "--process", "chrome.exe", beacon)
    assert (result.code, result.err) == (0, "")
    assert "false: expired" in result.out


def test_explain_accepts_the_null_key(tmp_path: Path) -> None:
    """In strict, events without a destination.address share a key, which `null` selects."""
    path = tmp_path / "null.jsonl"
    document = json.loads(events(1, 1_000).splitlines()[0])
    document["destination"].pop("address", None)
    path.write_text(json.dumps(document))
    result = call(
        "explain", "--profile", "strict", "--destination", "null", "--process", "chrome.exe", str(path)
    )
    assert "chrome.exe to no address (null)" in result.out


def test_evictions_are_reported_even_when_quiet(tmp_path: Path) -> None:
    """-q does not suppress the remark about limits.max_keys."""
    path = tmp_path / "many.jsonl"
    documents = [json.loads(line) for line in events(20, 60_000).splitlines()]
    for number, document in enumerate(documents):
        document["destination"] |= {"ip": f"9.9.9.{number}", "address": f"9.9.9.{number}"}
    path.write_text("\n".join(map(json.dumps, documents)))
    result = call("-q", "replay", "--set", "limits.max_keys=1", str(path))
    assert result.code == 0
    assert "limits.max_keys" in result.err


@pytest.mark.parametrize("start", ["9999-12-31T23:00:00Z", "0001-01-01T00:00:00Z"])
def test_generate_rejects_years_it_cannot_write(tmp_path: Path, start: str) -> None:
    """Exit code 2 without a traceback."""
    result = call("generate", "--start", start, "--hours", "2", "-o", str(tmp_path / "x.jsonl"))
    assert result.code == 2
    assert "Traceback" not in result.err


def test_an_unexpected_error_is_1_and_requests_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug prints its traceback and the request to report it."""

    def broken(**_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry.app, "main", broken)
    assert entry.run([]) == 1
    stderr = capsys.readouterr().err
    assert "ZeroDivisionError" in stderr
    assert stderr.endswith(
        "This is a bug in streamdetect. Please report it with the lines above and the command you ran.\n"
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_expected_errors_have_their_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """The exit code is the error's; with JSON logs the message is JSON too."""

    def fenced(*, obj: Any, **_: Any) -> None:
        obj.log_format = log_format
        raise FencedError("another instance took over.")

    monkeypatch.setattr(entry.app, "main", fenced)
    assert entry.run([]) == 6
    stderr = capsys.readouterr().err
    if log_format == "text":
        assert stderr == "streamdetect: error: another instance took over.\n"
    else:
        line = json.loads(stderr)
        assert (line["log.level"], line["message"], line["log.logger"]) == (
            "error",
            "another instance took over.",
            "streamdetect",
        )


def test_config_show_round_trips(tmp_path: Path) -> None:
    """The output of `config show` is an equivalent configuration."""
    result = call(
        "config", "show", "--set", "rules.0.severity=73", environ={"STREAMDETECT__KAFKA__TOPICS": "[a]"}
    )
    assert (result.code, result.err) == (0, "")
    path = tmp_path / "shown.yaml"
    path.write_text(result.out)
    shown = load_settings(path, environ={})
    assert (shown.rules[0].severity, shown.kafka.topics) == (73, ("a",))
    assert yaml.safe_load(call("config", "show").out)["time"]["lookback"] == "24h"


def test_config_check_reports_doubts(tmp_path: Path) -> None:
    """A valid file is reported as valid, with notes on settings that are probably unintended."""
    path = tmp_path / "c.yaml"
    path.write_text("rules: [{enabled: false}]")
    result = call("config", "check", str(path))
    assert result.code == 0
    assert result.out.splitlines()[0] == f"{path} is valid"
    assert "note: rules: no rule is enabled, so nothing is detected" in result.out


def test_config_schema_is_json() -> None:
    """It is JSON and names its draft."""
    result = call("config", "schema")
    assert json.loads(result.out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("verbose", [[], ["-v"], ["-vv"]])
def test_no_output_contains_a_secret(tmp_path: Path, verbose: list[str]) -> None:
    """`config show`, errors and debug logs of a failing login do not contain the password."""
    config = tmp_path / "c.yaml"
    config.write_text(
        "kafka: {bootstrap_servers: ['127.0.0.1:1'], topics: [a], security_protocol: SASL_PLAINTEXT, "
        "sasl_mechanism: PLAIN, username: u, client: {bootstrap_timeout_ms: 200}}"
    )
    environ = {"STREAMDETECT__KAFKA__PASSWORD": SECRET}
    for arguments in (
        ["config", "show", str(config)],
        ["config", "check", str(config), "--set", "kafka.passwort=" + SECRET],
        ["run", "-c", str(config)],
    ):
        result = call(*arguments, *verbose, environ=environ)
        assert SECRET not in result.out + result.err


@pytest.mark.parametrize("name", ["day.jsonl", "day.jsonl.gz", "day.jsonl.zst"])
def test_replay_detects_the_generated_beacon(tmp_path: Path, name: str) -> None:
    """A generated beacon of 180 an hour over 5 h is detected, and the same seed gives the same file."""
    path = tmp_path / name
    arguments = ["generate", "--hosts", "3", "--hours", "5.5", "--beacon", "20s,2s", "--shape", "defend"]
    result = call(*arguments, "-o", str(path))
    assert result.code == 0
    assert "beacon: chrome.exe on " in result.err
    first = path.read_bytes()
    assert call(*arguments, "-q", "-o", str(path)).err == ""
    assert path.read_bytes() == first
    other = tmp_path / "other" / name
    other.parent.mkdir()
    assert call(*arguments, "-q", "--seed", "2", "-o", str(other)).code == 0
    assert other.read_bytes() != first
    assert call("replay", "-q", "--fail-on-alert", str(path)).code == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_generate_leaves_no_file(tmp_path: Path, number: int) -> None:
    """It exits with 130 and leaves neither the file nor a temporary one."""
    path = tmp_path / "day.jsonl"
    arguments = ["generate", "--hosts", "200", "--hours", "100000", "-o", str(path)]
    with subprocess.Popen(
        [sys.executable, "-m", "streamdetect", *arguments], stderr=subprocess.PIPE
    ) as process:
        wait_for(lambda: any(file.stat().st_size for file in tmp_path.iterdir()), process)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read() == b"streamdetect: interrupted\n"
        assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_replay_stops_cleanly_on_a_signal(number: int) -> None:
    """A replay waiting on stdin exits with 0 and reports that it stopped before the end."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "streamdetect", "replay", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(events(5 * 180, 20_000))
        process.stdin.flush()
        assert process.stdout.readline().startswith(b'{"@timestamp"')  # so it is running
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert b"Stopped before the end" in err


def test_a_long_replay_can_be_stopped(tmp_path: Path) -> None:
    """SIGINT in the middle of eight days read in parallel: exit code 0, complete lines, a consistent summary."""
    summary_path = tmp_path / "summary.json"
    paths = [str(SAMPLE)] * 8
    with subprocess.Popen(
        [sys.executable, "-m", "streamdetect", "replay", "--summary-json", str(summary_path), *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # `communicate` would lose what `readline` had buffered
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # of 04:35 or before: most of the input is still to come
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert all(json.loads(line)["event"]["kind"] == "alert" for line in [first, *out.splitlines()])
    assert b"Stopped before the end: the last windows were not evaluated." in err
    summary = json.loads(summary_path.read_text())
    assert 0 < summary["consumed"] < 8 * 47_354
    assert balanced(summary)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Poll until `condition` holds; fail if the process exits before."""
    while not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"ended with {process.wait(0.02)}")


def test_signal_handlers_are_restored() -> None:
    """The first signal requests a stop and restores the previous handler, so a second one ends the process."""
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert signal.getsignal(signal.SIGTERM) == before  # a second signal ends the process
    assert signal.getsignal(signal.SIGTERM) == before


def test_log_lines_use_ecs_field_names() -> None:
    """JSON logs use ECS names and include the error's type and stack trace, if any."""
    from streamdetect.cli.logs import EcsFormatter, TextFormatter  # noqa: PLC0415 - next to its use

    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("a.b", logging.WARNING, "", 0, "%s!", ("oh",), sys.exc_info())
    record.created = START_MS / 1000
    line = json.loads(EcsFormatter().format(record))
    assert (line["@timestamp"], line["log.level"], line["message"], line["log.logger"]) == (
        "2026-03-02T00:00:00.000Z",
        "warning",
        "oh!",
        "a.b",
    )
    assert (line["error.type"], line["error.message"]) == ("ValueError", "why")
    assert TextFormatter().format(record).startswith("2026-03-02T00:00:00.000Z WARNING a.b: oh!\nTraceback")


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """With `quiet` there is no progress output."""
    for quiet, expected in (
        (False, ["50 %, 1,000 records, 100 a second", "2,100 records, 105 a second"]),
        (True, []),
    ):
        times = iter([0.0, 5.0, 10.0, 12.0, 20.0])
        with Meter(quiet=quiet, clock=lambda times=times: next(times)) as meter:  # type: ignore[misc]
            for records, total in ((500, 100), (1_000, 100), (1_200, 100), (2_100, None)):
                meter.tell(records, 50, total)
        assert capsys.readouterr().err.splitlines() == expected


def test_progress_on_a_terminal_is_a_bar() -> None:
    """The bar shows share and rate, and is hidden while other lines are written."""
    output = io.StringIO()
    times = iter([0.0, 1.0])
    with Meter(
        clock=lambda: next(times), console=Console(file=output, force_terminal=True, width=100)
    ) as meter:
        meter.tell(1_000, 50, 100)
        with meter.paused():
            output.write("alert\n")
    assert "50%" in output.getvalue()
    assert "1,000 records, 1,000 a second" in output.getvalue()


def test_summary_text_includes_remarks() -> None:
    """Counts with their parts, largest first, and a remark for each condition that may hide alerts."""
    summary = Summary(
        consumed=1_234,
        counted=1_000,
        filtered={"process.name": 30, "destination.port": 200},
        late=3,
        dead_lettered={"not_json": 1},
        alerts={"opened": 2},
        suspect_leaps=4,
        evicted=5,
        seconds=2.0,
    )
    text = summary_text(summary, stopped=True)
    assert "1,234 records in 2.0 s, 617 a second" in text
    assert "filtered       230  200 destination.port, 30 process.name" in text
    for remark in ("Stopped before the end", "time.max_future_jump", "limits.max_keys"):
        assert remark in text


def test_defaults_equal_an_empty_configuration() -> None:
    """Without a file and with an empty environment, the settings are the built-in ones."""
    assert load_settings(None, environ={}) == Settings()


def test_kafka_client_logs_are_rate_limited() -> None:
    """Each message at most every 30 s and without a traceback; messages of other loggers pass unchanged."""
    clock = ManualClock()
    log_filter = logs.CalmClient(30.0, clock)

    def record(name: str, text: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "", 0, text, None, (ValueError, ValueError("x"), None))

    first = record("kafka.cluster", "no node %s")
    assert log_filter.filter(first)
    assert first.exc_info is None
    assert not log_filter.filter(record("kafka.cluster", "no node %s"))
    assert log_filter.filter(record("kafka.cluster", "another thing"))
    clock.move(30)
    assert log_filter.filter(record("kafka.cluster", "no node %s"))
    busy = record("kafka.net.selector", "its loop is busy")
    busy.levelno = logging.WARNING
    assert not log_filter.filter(busy)
    ours = record("streamdetect.service", "mine")
    assert all(log_filter.filter(ours) for _ in range(3))
    assert ours.exc_info is not None


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ("alerts: {sink: file, path: STATE/state.sqlite3}", "alerts.path is in checkpoint.path"),
        (
            "alerts: {sink: file, path: STATE/../out}\ndead_letters: {sink: file, path: STATE/../out}",
            "are the same file",
        ),
    ],
)
def test_conflicting_output_paths_are_3(tmp_path: Path, sections: str, expected: str) -> None:
    """Detected before anything is opened, so no file is created."""
    state = tmp_path / "state"
    config = tmp_path / "c.yaml"
    config.write_text(
        f"kafka: {{topics: [a], bootstrap_servers: ['127.0.0.1:1']}}\ncheckpoint: {{path: {state}}}\n"
        + sections.replace("STATE", str(state))
    )
    result = call("run", "-c", str(config))
    assert result.code == 3
    assert expected in result.err
    assert not state.exists()
