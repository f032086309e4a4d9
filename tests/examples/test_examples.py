"""The programs of examples/, run as their readme says, and the public interface that they use."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import streamdetect
from broker import Broker
from commands import Message, produce
from paths import ROOT, SAMPLE

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DESTINATION = "185.39.46.150"
"""Where the beacon of the sample day calls: 516 connections in 4 h are 129 an hour (516 // 4)."""


def run(name: str, *arguments: str) -> str:
    """Standard output of an example; it must succeed and write nothing to standard error."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_replay() -> None:
    """One episode opens on the sample day, and the counts of records add up."""
    first, last = run("replay.py", str(SAMPLE)).splitlines()
    assert DESTINATION in first
    assert first.endswith("516 connections // 4 h = 129 an hour")
    assert last.startswith("47354 records, ")


def test_replay_reports_an_error_in_one_line() -> None:
    """A missing file ends the example with the message that the command gives."""
    command = [sys.executable, str(ROOT / "examples" / "replay.py"), "missing.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "missing.jsonl" in done.stderr


def test_backtest_dataframes() -> None:
    """60 and 90 an hour find a second host, 120 only the beacon."""
    text = run("backtest_dataframes.py", str(SAMPLE))
    assert DESTINATION in text
    assert "min_connections_per_hour=90" in text


def test_embed_detector() -> None:
    """The beacon calls every 25 s: 3,600 / 25 = 144 an hour; the restart in the middle does not show."""
    (line,) = run("embed_detector.py").splitlines()
    assert line == "opened chrome.exe on WS-042 contacted 45.83.64.1 for 4 h at 129 connections an hour"


def test_consume_alerts(broker: Broker, make_topic: Callable[..., str]) -> None:
    """An alert that was written twice is printed once."""
    bodies = streamdetect.replay(SAMPLE).bodies
    topic = make_topic()
    produce(broker, topic, [[Message(body) for body in (*bodies, *bodies)]])
    lines = run("consume_alerts.py", broker.bootstrap, topic).splitlines()
    assert len(lines) == len(bodies)
    assert [line.split()[1] for line in lines] == [json.loads(body)["event"]["action"] for body in bodies]


def test_public_names_exist_and_are_documented() -> None:
    """`dir(streamdetect)` lists what `__all__` does; each name exists, and all but the version have a docstring."""
    assert dir(streamdetect) == sorted(streamdetect.__all__)
    for name in streamdetect.__all__:
        public = getattr(streamdetect, name)
        assert name == "__version__" or public.__doc__, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = streamdetect.no_such_name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_use_public_names_only(path: Path) -> None:
    """No example imports a module of the package, or a name that is not exported."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streamdetect"):
            assert node.module == "streamdetect"
            assert {alias.name for alias in node.names} <= set(streamdetect.__all__)
        if isinstance(node, ast.Import):
            assert all(
                alias.name.partition(".")[2] == "" for alias in node.names if "streamdetect" in alias.name
            )


def test_every_example_is_in_the_readme_and_tested() -> None:
    """A new example gets a line in the readme and a test here."""
    readme, tests = (ROOT / "examples" / "README.md").read_text(), Path(__file__).read_text()
    for path in EXAMPLES:
        assert f"({path.name})" in readme
        assert f"def test_{path.stem}(" in tests


def test_a_network_event_is_read_like_a_record() -> None:
    """The same event from JSON and from fields: equal flow, kind, context and clock host, in both profiles."""
    record = {
        "@timestamp": 1_772_409_600_000,
        "event": {"category": ["network"]},
        "host": {"id": "H1", "name": "WS-1", "os": {"family": "windows"}},
        "network": {"direction": "egress"},
        "process": {"name": "Chrome.exe", "entity_id": "{P1}", "pid": 7, "executable": "C:\\c.exe"},
        "user": {"name": "ada", "domain": "CORP"},
        "destination": {"ip": "::ffff:9.9.9.9", "port": 443, "domain": "x.example"},
    }
    for profile in ("resilient", "strict"):
        decoded = streamdetect.Decoder(profile, 1_000_000).decode(json.dumps(record).encode())
        assert not isinstance(decoded, streamdetect.Refusal)
        own = streamdetect.NetworkEvent(
            time_ms=1_772_409_600_000,
            process="Chrome.exe",
            process_entity_id="{P1}",
            host_id="H1",
            host_name="WS-1",
            destination_ip="::ffff:9.9.9.9",
            destination_port=443,
            destination_domain="x.example",
            pid=7,
            executable="C:\\c.exe",
            user_name="ada",
            user_domain="CORP",
            profile=profile,
        )
        assert (own.time_ms, own.process_name) == (decoded.time_ms, decoded.process_name)
        assert (own.flow(), own.kind(), own.host()) == (decoded.flow(), decoded.kind(), decoded.host())
        found = decoded.context(decoded.flow(), decoded.kind())
        assert own.context(own.flow(), own.kind()) == found


def test_the_interface_works_without_importing_it_first() -> None:
    """`import_module` and attribute access give the same objects; nothing is imported before it is used."""
    code = (
        "import sys, streamdetect; print('streamdetect.api' in sys.modules, streamdetect.Detector.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False Detector\n"
    assert import_module("streamdetect.api").replay is streamdetect.replay
