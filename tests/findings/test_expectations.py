"""Expectations: their file and every kind of error in it, the verdicts, and the JUnit report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, TestSuite
from pydantic import ValidationError

from streamdetect.config import Expectations, KeyPattern, MustAlert, MustNotAlert, load_expectations
from streamdetect.errors import ConfigError, ExpectationFailed
from streamdetect.findings.episodes import Episode, KeyName
from streamdetect.findings.expectations import Verdict, check_expectations
from streamdetect.report.junit import junit

T0_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
HOUR_MS = 3_600_000
Load = Callable[[str], Expectations]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load(yaml_text)`."""

    def load_text(text: str) -> Expectations:
        path = tmp_path / "expectations.yaml"
        path.write_text(text, encoding="utf-8")
        return load_expectations(path)

    return load_text


def problems(load: Load, text: str) -> list[str]:
    """The problems of an invalid file."""
    with pytest.raises(ConfigError) as raised:
        load(text)
    assert all(problem in str(raised.value) for problem in raised.value.problems)
    assert raised.value.exit_code == 3
    return raised.value.problems


# ---------------------------------------------------------------------------------------------------------- the file

COMPLETE = """\
labels:
  red team:
    - {destination: 45.83.64.1, process: chrome.exe, host: WS-042}
    - {name: fallback, destination: "::FFFF:198.51.100.7"}
  cdn:
    - {destination: 151.101.0.0/16}
must_alert:
  - {destination: Evil.example, process: chrome.exe}
  - {name: C2 of the exercise, destination: 198.51.100.7, by: 2026-03-02T06:00:00Z}
  - {label: red team, by: 2026-03-03}
must_not_alert:
  - {process: svchost.exe, rule: r, sensor: sysmon}
  - {label: cdn}
"""


def test_a_complete_file(load: Load) -> None:
    """Every field, with addresses normalised and times in UTC."""
    assert load(COMPLETE) == Expectations(
        labels={
            "red team": (
                KeyPattern(destination="45.83.64.1", process="chrome.exe", host="WS-042"),
                KeyPattern(name="fallback", destination="198.51.100.7"),
            ),
            "cdn": (KeyPattern(destination="151.101.0.0/16"),),
        },
        must_alert=(
            MustAlert(destination="Evil.example", process="chrome.exe"),
            MustAlert(name="C2 of the exercise", destination="198.51.100.7", by_ms=T0_MS + 6 * HOUR_MS),
            MustAlert(label="red team", by_ms=T0_MS + 24 * HOUR_MS),
        ),
        must_not_alert=(
            MustNotAlert(process="svchost.exe", rule="r", sensor="sysmon"),
            MustNotAlert(label="cdn"),
        ),
    )


def test_all_problems_are_in_one_list(load: Load) -> None:
    """Unknown names with the closest known one, invalid values, undefined labels; each with its line."""
    text = """\
labels:
  red team:
    - {destinatoin: 45.83.64.1}
  empty: []
must_alrt: []
must_alert:
  - {proces: chrome.exe, by: tomorrow}
  - {label: red taem}
  - {name: everything}
  - {destination: 10.0.0.1/8}
  - {destination: 151.101, process: ""}
must_not_alert:
  - {process: svchost.exe, by: 2026-03-02}
  - {label: cdn, process: svchost.exe}
  - {sensor: zeek, process: svchost.exe}
  - just text
"""
    assert sorted(problems(load, text)) == sorted(
        [
            "labels.red team.0.destinatoin: is not known; did you mean destination? (line 3)",
            "labels.empty: is empty; name at least one, or leave the setting out (line 4)",
            "must_alrt: is not known; did you mean must_alert? (line 5)",
            "must_alert.0.proces: is not known; did you mean process? (line 7)",
            "must_alert.0.by: is not a time; write it like 2026-03-02T04:00:00Z (no zone means UTC) (line 7)",
            "must_alert.1.label: 'red taem' is not defined under labels; did you mean red team? (line 8)",
            "must_alert.2: matches every key; name a label, destination, process, host, rule or sensor (line 9)",
            "must_alert.3.destination: '10.0.0.1/8' has bits set after its prefix;"
            " write 10.0.0.0/8 or 10.0.0.1 (line 10)",
            "must_alert.4.destination: the value is not text; put it in quotes (line 11)",
            "must_alert.4.process: is empty; write a text, or leave the setting out (line 11)",
            "must_not_alert.0.by: is not known; write one of name, destination, process, host, rule, sensor,"
            " label (line 13)",
            "must_not_alert.1.label: 'cdn' is not defined under labels; write one of red team, empty (line 14)",
            "must_not_alert.2.sensor: the value is not known; write 'endpoint' or 'sysmon' (line 15)",
            "must_not_alert.3: must be a group of settings; write `name: value` lines under it (line 16)",
        ]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "file: contains no expectation; write keys under must_alert or must_not_alert"),
        (
            "must_alert:\n  # - {process: a.exe}\n",
            "file: contains no expectation; write keys under must_alert or must_not_alert",
        ),
        (
            "labels: {a: [{process: a.exe}]}",
            "file: contains no expectation; write keys under must_alert or must_not_alert",
        ),
        (
            "- {process: a.exe}",
            "file: contains no expectations; write sections labels, must_alert, must_not_alert",
        ),
        (
            "must_alert: [{label: a}]",
            "must_alert.0.label: 'a' is not defined under labels; no label is (line 1)",
        ),
        (
            "labels: {a: [{process: p}]}\nmust_alert: [{label: a, process: p}]",
            "must_alert.0: has a label and fields of a key; write either (line 2)",
        ),
        (
            "labels: {a: [{name: all}]}\nmust_alert: [{label: a}]",
            "labels.a.0: matches every key; name a destination, process, host, rule or sensor (line 1)",
        ),
        (
            "must_alert: [{process: a, process: b}]",
            "line 1: 'process' is set twice (first in line 1); keep one",
        ),
        ("must_alert: [", "line 1: is not valid YAML: "),
    ],
)
def test_unusable_files(load: Load, text: str, problem: str) -> None:
    """Each has exactly one problem."""
    (found,) = problems(load, text)
    assert found.startswith(problem)


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file and one that is not text are configuration errors that say what to do."""
    with pytest.raises(ConfigError, match=r"cannot be read .* name a readable file"):
        load_expectations(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_expectations(tmp_path / "binary.yaml")


def test_a_pattern_that_matches_every_key_is_rejected() -> None:
    """In code as in a file."""
    with pytest.raises(ValidationError, match="matches every key"):
        KeyPattern()


# ------------------------------------------------------------------------------------------------------ the verdicts


def episode(number: int = 1, **more: Any) -> Episode:
    """An episode of chrome.exe on WS-042 to 45.83.64.1, opened at 04:00 plus `number` hours."""
    begin_ms = T0_MS + (4 + number) * HOUR_MS
    values: dict[str, Any] = {
        "id": f"episode-{number}",
        "key": KeyName("rule-1", "45.83.64.1", "chrome.exe", "endpoint"),
        "rule_name": "The Hunt",
        "severity": 47,
        "opened_ms": begin_ms,
        "first_alert_ms": begin_ms,
        "last_alert_ms": begin_ms,
        "thresholds": {},
        "figures": {
            "count_connections": 524,
            "duration_hours": 4,
            "number_of_con_per_hour": 131,
            "hosts": 1,
            "count_unique_pids": 1,
        },
        "last_figures": {},
        "context": {
            "host": {"id": "{ABCD-01}", "name": "WS-042"},
            "destination": {"address": "45.83.64.1", "ip": "45.83.64.1"},
        },
        "message": "",
    }
    return Episode(**values | more)


DETAIL = (
    "opened 2026-03-02T05:00:00.000Z: chrome.exe on WS-042 to 45.83.64.1, rule The Hunt;"
    " 524 connections over 4 h, 131 an hour, hosts 1, processes 1; episode episode-1"
)
NAMED = episode(
    key=KeyName("rule-1", "C2.Example", "chrome.exe", None),
    context={
        "host": {"id": ["h1", "h2"]},
        "destination": {"address": "C2.Example", "ip": "2001:db8::1", "domain": "other.example"},
    },
)
MAPPED = episode(key=KeyName("rule-1", "::ffff:45.83.64.1", "chrome.exe", None), context={})
NULL_KEY = episode(key=KeyName("rule-1", None, "chrome.exe", None), context={})


@pytest.mark.parametrize(
    ("found", "pattern", "matches"),
    [
        (episode(), {"destination": "45.83.64.1"}, True),
        (episode(), {"destination": "::ffff:45.83.64.1"}, True),
        (episode(), {"destination": "45.83.0.0/16"}, True),
        (episode(), {"destination": "::ffff:45.83.0.0/112"}, True),
        (episode(), {"destination": "45.83.64.2"}, False),
        (episode(), {"destination": "45.84.0.0/16"}, False),
        (episode(), {"destination": "::/0"}, False),
        (MAPPED, {"destination": "45.83.64.1"}, True),
        (MAPPED, {"destination": "45.83.64.0/24"}, True),
        (NAMED, {"destination": "c2.EXAMPLE"}, True),
        (NAMED, {"destination": "2001:DB8:0::1"}, True),
        (NAMED, {"destination": "2001:db8::/32"}, True),
        (NAMED, {"destination": "other.example"}, False),
        (NAMED, {"destination": "example"}, False),
        (NULL_KEY, {"destination": "0.0.0.0/0"}, False),
        (NULL_KEY, {"process": "chrome.exe"}, True),
        (episode(), {"process": "CHROME.exe"}, True),
        (episode(), {"process": "chrome"}, False),
        (episode(), {"host": "ws-042"}, True),
        (episode(), {"host": "abcd-01"}, True),
        (episode(), {"host": "{Abcd-01}"}, True),
        (episode(), {"host": "WS-04"}, False),
        (NAMED, {"host": "h2"}, True),
        (MAPPED, {"host": "h2"}, False),
        (episode(), {"rule": "rule-1"}, True),
        (episode(), {"rule": "the hunt"}, True),
        (episode(), {"rule": "rule"}, False),
        (episode(), {"sensor": "endpoint"}, True),
        (episode(), {"sensor": "sysmon"}, False),
        (NAMED, {"sensor": "endpoint"}, False),
        (episode(), {"destination": "45.83.64.1", "process": "chrome.exe", "host": "WS-042"}, True),
        (episode(), {"destination": "45.83.64.1", "process": "chrome.exe", "host": "WS-043"}, False),
    ],
)
def test_pattern_matching(found: Episode, pattern: dict[str, Any], matches: bool) -> None:
    """Every field must match; must_alert and must_not_alert match the same episodes and give opposite verdicts."""
    expected = Expectations(must_alert=(MustAlert(**pattern),), must_not_alert=(MustNotAlert(**pattern),))
    assert [verdict.holds for verdict in check_expectations(expected, [found])] == [matches, not matches]


def test_verdicts_follow_the_file_and_describe_the_first_episode(load: Load) -> None:
    """One verdict per key of a label; the first episode is the one that opened first."""
    second = episode(2, key=KeyName("rule-1", "151.101.1.1", "chrome.exe", "endpoint"), context={})
    third = episode(3, key=KeyName("rule-1", "151.101.9.9", "chrome.exe", "endpoint"), context={})
    assert check_expectations(load(COMPLETE), [third, second, episode()]) == [
        Verdict("chrome.exe to Evil.example", "must_alert", False, "no episode matches"),
        Verdict("C2 of the exercise, by 2026-03-02T06:00:00.000Z", "must_alert", False, "no episode matches"),
        Verdict(
            "red team: chrome.exe to 45.83.64.1 on WS-042, by 2026-03-03T00:00:00.000Z",
            "must_alert",
            True,
            f"1 episode, {DETAIL}",
        ),
        Verdict("red team: fallback, by 2026-03-03T00:00:00.000Z", "must_alert", False, "no episode matches"),
        Verdict(
            "svchost.exe to any destination, rule r, sensor sysmon",
            "must_not_alert",
            True,
            "no episode matches",
        ),
        Verdict(
            "cdn: any process to 151.101.0.0/16",
            "must_not_alert",
            False,
            "2 episodes, the first opened 2026-03-02T06:00:00.000Z: chrome.exe on unknown host to 151.101.1.1,"
            " rule The Hunt; 524 connections over 4 h, 131 an hour, hosts 1, processes 1; episode episode-2",
        ),
    ]


def verdicts_of(episodes: list[Episode], *, by_ms: int | None = None, stopped: bool = False) -> list[Verdict]:
    """The verdicts on chrome.exe: must_alert (by the time, if given) and must_not_alert."""
    expected = Expectations(
        must_alert=(MustAlert(process="chrome.exe", by_ms=by_ms),),
        must_not_alert=(MustNotAlert(process="chrome.exe"),),
    )
    return check_expectations(expected, episodes, stopped=stopped)


@pytest.mark.parametrize(("offset_ms", "holds"), [(-1, False), (0, True), (1, True)])
def test_an_alert_must_open_by_its_time(offset_ms: int, holds: bool) -> None:
    """Opened at 05:00: in time for 05:00:00.000 but not for one millisecond earlier; the detail gives the time."""
    verdict = verdicts_of([episode()], by_ms=T0_MS + 5 * HOUR_MS + offset_ms)[0]
    assert (verdict.holds, verdict.detail) == (
        holds,
        ("" if holds else "too late: ") + f"1 episode, {DETAIL}",
    )


def test_an_episode_without_its_opened_alert_opened_by_its_first_alert() -> None:
    """First alert at 05:00: it was open by then, but not provably at 04:59."""
    unopened = episode(opened_ms=None)
    by_five = verdicts_of([unopened], by_ms=T0_MS + 5 * HOUR_MS)[0]
    assert by_five.holds
    assert "opened at or before 2026-03-02T05:00:00.000Z" in by_five.detail
    assert verdicts_of([unopened], by_ms=T0_MS + 5 * HOUR_MS - 60_000)[0].holds is False


def test_a_stopped_run_leaves_absent_episodes_undecided() -> None:
    """Found episodes and late openings are decided; an absent episode could still have opened."""
    assert [verdict.holds for verdict in verdicts_of([episode()], stopped=True)] == [True, False]
    assert verdicts_of([episode()], by_ms=T0_MS, stopped=True)[0].holds is False
    undecided = verdicts_of([], stopped=True)
    assert [verdict.holds for verdict in undecided] == [None, None]
    assert all("stopped before its end" in verdict.detail for verdict in undecided)
    assert [verdict.holds for verdict in verdicts_of([])] == [False, True]


def test_a_failed_expectation_has_its_own_exit_code() -> None:
    """21, next to 20 of `replay --fail-on-alert`."""
    assert ExpectationFailed.exit_code == 21


# ------------------------------------------------------------------------------------------------- the JUnit report

verdicts = st.lists(
    st.builds(
        Verdict,
        name=st.text(st.characters(exclude_categories=())),
        kind=st.sampled_from(["must_alert", "must_not_alert"]),
        holds=st.sampled_from([True, False, None]),
        detail=st.text(st.characters(exclude_categories=())),
    ),
    max_size=6,
)


def representable(text: str) -> str:
    """The text as XML 1.0 can represent it: characters outside §2.2 replaced (also CR, which does not round-trip)."""
    return "".join(char if is_char(ord(char)) else "\ufffd" for char in text)


def is_char(code: int) -> bool:
    return (
        code in {0x9, 0xA}
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )


@given(verdicts, st.text(st.characters(exclude_categories=())), st.floats(0, 10**6))
def test_any_text_round_trips(given_verdicts: list[Verdict], suite: str, seconds: float) -> None:
    """With hostile names and details, the file parses and contains what XML can represent."""
    root = ET.fromstring(junit(given_verdicts, suite=suite, seconds=seconds))
    (cases,) = root
    assert cases.get("name") == representable(suite)
    read = [(case.get("classname"), case.get("name"), tag_and_text(case)) for case in cases]
    assert read == [
        (verdict.kind, representable(verdict.name), (TAGS[verdict.holds], representable(verdict.detail)))
        for verdict in given_verdicts
    ]
    counts = [sum(verdict.holds is wanted for verdict in given_verdicts) for wanted in (False, None)]
    for element in (root, cases):
        numbers = [int(element.get(name, "")) for name in ("tests", "failures", "errors")]
        assert numbers == [len(given_verdicts), *counts]


TAGS = {True: "system-out", False: "failure", None: "error"}


def tag_and_text(case: ET.Element) -> tuple[str, str]:
    (outcome,) = case
    return outcome.tag, outcome.get("message", outcome.text or "")


@given(verdicts)
def test_junitparser_counts_the_same(given_verdicts: list[Verdict]) -> None:
    """It recomputes the statistics from the cases."""
    (suite,) = JUnitXml.fromstring(junit(given_verdicts, suite="backtest", seconds=1.5))
    assert isinstance(suite, TestSuite)
    reported = (suite.tests, suite.failures, suite.errors, suite.skipped, suite.time)
    suite.update_statistics()  # type: ignore[no-untyped-call]
    assert reported[:4] == (suite.tests, suite.failures, suite.errors, suite.skipped)
    assert reported[4] == 1.5
    outcomes = [
        Failure if verdict.holds is False else Error for verdict in given_verdicts if not verdict.holds
    ]
    assert [type(result) for case in suite for result in case.result] == outcomes
    assert not any(
        case.is_passed for case, verdict in zip(suite, given_verdicts, strict=True) if not verdict.holds
    )


def test_a_sample_report() -> None:
    """One case of each outcome."""
    text = junit(
        [
            Verdict("a", "must_alert", True, "found <it>"),
            Verdict("b & c", "must_not_alert", False, 'found "it"\n'),
            Verdict("d\x00", "must_alert", None, "stopped"),
        ],
        suite="backtest",
        seconds=2,
    )
    assert text.decode() == (
        """<?xml version='1.0' encoding='utf-8'?>
<testsuites name="backtest" tests="3" failures="1" errors="1" time="2.000">
  <testsuite name="backtest" tests="3" failures="1" errors="1" time="2.000" skipped="0">
    <testcase classname="must_alert" name="a">
      <system-out>found &lt;it&gt;</system-out>
    </testcase>
    <testcase classname="must_not_alert" name="b &amp; c">
      <failure message="found &quot;it&quot;&#10;" type="must_not_alert" />
    </testcase>
    <testcase classname="must_alert" name="d\ufffd">
      <error message="stopped" type="must_alert" />
    </testcase>
  </testsuite>
</testsuites>
"""
    )
