"""Variants of a backtest against separate replays, byte for byte; workers against one process; near misses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import event, settings_from

from strategies import DataSet, data_sets
from streamdetect.cli.findings import findings_text
from streamdetect.config import NamedSettings, Settings, varied
from streamdetect.detect.near_misses import KeyTracker
from streamdetect.detect.pane_aggregator import PaneAggregator, watermark_ms
from streamdetect.detect.variants import Variants
from streamdetect.errors import ConfigError, UsageError
from streamdetect.events import Decoder, Refusal
from streamdetect.findings.outcome import Outcome
from streamdetect.model import Partition
from streamdetect.report.html import page
from streamdetect.report.plain import json_text
from streamdetect.service.bounded.preaggregation import InputGroup
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.bounded.variant_replay import ReplayOptions, run_backtest
from streamdetect.service.bounded.workers import WorkerPool
from streamdetect.sources.files import FileSource
from streamdetect.synthetic import Beacon, Scenario, lines
from streamdetect.testing import MemoryAlertSink, MemoryDeadLetterSink, MemorySource
from worker_pools import RandomOrderPool, source_of

EXAMPLES = int(os.environ.get("STREAMDETECT_EXAMPLES", "20"))
T0_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z


def replayed(partitions: Sequence[Sequence[Any]], own: Settings) -> tuple[list[bytes], dict[str, Any]]:
    """The alerts of a separate replay with these settings, and its summary without the seconds."""
    alerts, dead_letters = MemoryAlertSink(), MemoryDeadLetterSink()
    summary = run_replay(
        settings=own, source=source_of(partitions), alert_sink=alerts, dead_letter_sink=dead_letters
    )
    return [alert.body for alert in alerts.alerts], {**summary.as_dict(), "seconds": 0}


def backtested(
    partitions: Sequence[Sequence[Any]], variants: Sequence[Settings], options: ReplayOptions | None = None
) -> tuple[Outcome, list[list[bytes]]]:
    named = [NamedSettings(f"v{number}", {}, own) for number, own in enumerate(variants)]
    sinks = {one.name: MemoryAlertSink() for one in named}
    outcome = run_backtest(variants=named, source=source_of(partitions), sinks=sinks, options=options)
    return outcome, [[alert.body for alert in sink.alerts] for sink in sinks.values()]


def altered(plain: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The oracle's settings with some of them, or of the first rule's, changed."""
    rules = [dict(rule) for rule in plain["rules"]]
    rules[0] |= {name: value for name, value in change.items() if name not in plain}
    return {**plain, "rules": rules} | {name: value for name, value in change.items() if name in plain}


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "min_connections_per_hour": st.integers(1, 12),
        "min_duration_hours": st.integers(0, 3),
        "max_hosts": st.integers(1, 3),
        "max_processes": st.integers(1, 3),
        "renotify_ms": st.sampled_from([60_000, 900_000, 3_600_000]),
        "severity": st.integers(1, 99),
        # These change the input group: other events count, other clocks, other fields.
        "excluded_ports": st.sampled_from([[53], [], [443]]),
        "processes": st.sampled_from([["chrome.exe"], ["svchost.exe", "Chrome.exe"]]),
        "exceptions": st.sampled_from([[], [{"process": "chrome.exe"}], [{"host": "h1"}]]),
        "profile": st.sampled_from(["strict", "resilient"]),
        "lateness_ms": st.sampled_from([0, 120_000]),
        "max_future_jump_ms": st.sampled_from([60_000, 3_600_000]),
    },
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data_sets(timestamps=True),
    st.lists(CHANGES, min_size=1, max_size=5),
    st.sampled_from([None, None, 1, 3, 6]),
)
def test_each_variant_is_a_replay(data: DataSet, changes: list[dict[str, Any]], max_keys: int | None) -> None:
    """Alerts and summary of each variant equal those of a separate replay with its settings, byte for byte."""
    plain = [data.settings, *(altered(data.settings, change) for change in changes)]
    variants = [settings_from(one) for one in plain]
    if max_keys is not None:
        variants = [
            one.model_copy(update={"limits": one.limits.model_copy(update={"max_keys": max_keys})})
            for one in variants
        ]
    outcome, alerts = backtested(data.partitions, variants)
    summaries = [{**variant.summary, "seconds": 0} for variant in (outcome.base, *outcome.variants)]
    for own, bodies, summary in zip(variants, alerts, summaries, strict=True):
        expected, numbers = replayed(data.partitions, own)
        assert bodies == expected
        assert summary == numbers


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(), st.lists(CHANGES, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_parallel_workers_give_the_same(data: DataSet, changes: list[dict[str, Any]], rng: Random) -> None:
    """Workers that each read some of the partitions and deliver at random times give the outcome of one process."""
    variants = [settings_from(altered(data.settings, change)) for change in ({}, *changes)]
    named = [NamedSettings(f"v{number}", {}, own) for number, own in enumerate(variants)]
    single, expected = backtested(data.partitions, variants)
    sinks = {one.name: MemoryAlertSink() for one in named}
    parallel = run_backtest(
        variants=named,
        source=source_of(data.partitions),
        sinks=sinks,
        options=ReplayOptions(jobs=3, create_pool=lambda groups, jobs: RandomOrderPool(groups, jobs, rng)),
    )
    assert [[alert.body for alert in sink.alerts] for sink in sinks.values()] == expected
    assert json_text(untimed(parallel)) == json_text(untimed(single))


def untimed(outcome: Outcome) -> Outcome:
    """The outcome with 0 as its seconds."""
    for variant in (outcome.base, *outcome.variants):
        variant.summary = {**variant.summary, "seconds": 0}
    outcome.seconds = 0
    return outcome


def day(folder: Path, files: int = 3) -> list[Path]:
    """Eight hours of 30 hosts with a beacon, distributed over files."""
    plan = Scenario(hosts=30, hours=8, beacons=(Beacon(25_000, 5_000),), seed=5, shape="mixed")
    paths = [folder / f"{number}.jsonl" for number in range(files)]
    streams = [path.open("wb") for path in paths]
    for number, line in enumerate(lines(plan)):
        streams[number % files].write(line)
    for stream in streams:
        stream.close()
    return paths


def run_over(paths: Sequence[Path], jobs: int) -> Outcome:
    named = varied(None, vary=["min_connections_per_hour=60,120", "profile=strict,resilient"], environ={})
    with closing(FileSource([str(path) for path in paths])) as source:
        return run_backtest(variants=named, source=source, options=ReplayOptions(jobs=jobs))


def test_workers_give_the_same(tmp_path: Path) -> None:
    """Worker processes give the whole outcome that one process gives."""
    paths = day(tmp_path)
    parallel = run_over(paths, jobs=2)
    assert parallel.base.episodes
    assert json_text(untimed(parallel)) == json_text(untimed(run_over(paths, jobs=1)))


def test_a_lost_worker_is_reported(tmp_path: Path) -> None:
    """A killed worker ends the backtest with a problem that says so; nothing hangs, and no worker is left."""
    pools: list[WorkerPool] = []

    def create_pool(groups: Sequence[InputGroup], jobs: int) -> WorkerPool:
        pools.append(WorkerPool(groups, jobs))
        return pools[-1]

    def kill(records: int) -> None:
        del records
        pools[0]._workers[0]._process.kill()

    named = varied(None, environ={})
    with closing(FileSource([str(path) for path in day(tmp_path)])) as source:
        outcome = run_backtest(
            variants=named,
            source=source,
            progress=kill,
            options=ReplayOptions(jobs=2, create_pool=create_pool),
        )
    assert outcome.stopped
    assert "was killed by signal 9" in str(outcome.problem)
    assert [worker._process.poll() is not None for worker in pools[0]._workers] == [True, True]


def test_a_worker_exits_at_the_end_of_its_input() -> None:
    """A worker whose standard input is closed exits with 0 and prints nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "streamdetect.service.bounded.worker_main"],
        input=b"",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_outcome_that_was_stopped_early_is_marked(tmp_path: Path) -> None:
    """A backtest stopped after two polls is marked as partial in text and report."""
    stops = iter([False, False, True])
    named = varied(None, environ={})
    with closing(FileSource([str(path) for path in day(tmp_path)])) as source:
        outcome = run_backtest(variants=named, source=source, stop=lambda: next(stops))
    assert outcome.stopped
    # There were two polls, each with one batch of at most 2,048 records.
    assert 0 < outcome.base.summary["consumed"] <= 2 * 2048
    assert "PARTIAL" in findings_text(outcome)
    assert "partial" in page(outcome).lower()


def beacon(count: int, gap_ms: int, **more: Any) -> list[bytes]:
    """A connection every `gap_ms` from midnight on."""
    return [event(T0_MS + number * gap_ms, **more) for number in range(count)]


def found(records: Sequence[bytes], **rule: Any) -> Outcome:
    """The outcome over one partition with a rule of these thresholds."""
    own = Settings.model_validate({"rules": [{"id": "r", "name": "r", **rule}]})
    source = MemorySource([Partition("events")])
    source.add(Partition("events"), *records)
    return run_backtest(variants=[NamedSettings("base", {}, own)], source=source)


def test_a_near_miss_has_its_closest_tick() -> None:
    """A connection every 40 s for 5 h is 90 an hour: closest before the span rounds up to 5 h, and the rate failed."""
    outcome = found(beacon(450, 40_000), min_connections_per_hour=120)
    assert outcome.base.episodes == []
    (tracked,) = outcome.near
    # At 4:30 there are 4.5 * 90 = 405 events, and the span still rounds to 4 h: 405 of 4 * 120 = 480.
    assert tracked.closeness == (405 / 480, 1, 1, 1)
    assert tracked.closest.tick_ms == T0_MS + 270 * 60_000
    assert tracked.closest.failed == "rate"
    assert sum(tracked.panes.values()) == 450
    # It is tracked from the tick on at which it has 480 / 8 = 60 events: the 40 min before 0:40 hold 40 * 60 / 40.
    assert tracked.points[0].tick_ms == T0_MS + 40 * 60_000
    assert tracked.points[0].figures.events == 60
    assert tracked.gaps == Counter({40_000: 450 - 60})


def test_a_key_on_two_hosts_is_a_near_miss() -> None:
    """A key that only fails for its second host has closeness 1/2 in hosts, and figures with two hosts."""
    records = [
        event(T0_MS + number * 20_000, host={"id": f"h{number % 2}", "os": {"family": "windows"}})
        for number in range(900)
    ]
    outcome = found(records)
    (tracked,) = outcome.near
    assert tracked.closest.figures.hosts == 2
    assert tracked.closest.failed == "second_host"
    assert tracked.closeness == (1, 1, 0.5, 1)


def test_the_points_of_a_tracked_key_agree_with_its_alerts() -> None:
    """A tracked key has the pane counts of its alerts, and their figures at the tick of each alert."""
    outcome = found(beacon(900, 25_000), renotify="15m")
    (episode,) = outcome.base.episodes
    tracked = outcome.tracked_keys[episode.key]
    assert episode.panes is not None
    assert episode.panes.items() <= tracked.panes.items()
    points = {point.tick_ms: point for point in tracked.points}
    opened = points[episode.first_alert_ms]
    assert opened.failed is None
    assert opened.figures.events == episode.figures["count_connections"]
    assert opened.figures.connections_per_hour == episode.figures["number_of_con_per_hour"]
    assert all(point.failed is not None for tick, point in points.items() if tick < episode.first_alert_ms)


def test_the_closest_keys_are_kept() -> None:
    """Of many near misses the closest are kept, however often others are dropped in between."""
    most = 5
    records = []
    for key in range(40):  # key k has 60 + 3 k of the 480 events that it needs
        records += [
            event(
                T0_MS + number * 60_000 + key,
                destination={"address": f"d{key}", "ip": "45.83.64.1", "port": 443},
            )
            for number in range(60 + 3 * key)
        ]
    records.sort(key=lambda raw: json.loads(raw)["@timestamp"])
    own = Settings()
    variants = Variants([own], tracked_keys := KeyTracker(most=most))
    aggregator = PaneAggregator(own, 9, 9, timed=True)
    processor = aggregator.processor(Partition("p"))
    decoder = Decoder("resilient", 1 << 20)
    for raw in records:
        decoded = decoder.decode(raw)
        assert not isinstance(decoded, Refusal)
        assert processor.accept(decoded) == "counted"
        variants.put(aggregator.take())
        now_ms = watermark_ms(aggregator.clocks(), own.time.lateness_ms)
        variants.advance_to(now_ms or 0)
    processor.idle = True
    variants.put(aggregator.take())
    variants.advance_to(T0_MS + 4 * 3_600_000)
    assert [tracked.key.address for tracked in tracked_keys.near_misses(5)] == [
        f"d{key}" for key in (39, 38, 37, 36, 35)
    ]


def test_a_run_against_itself_is_unchanged(tmp_path: Path) -> None:
    """A run compared with its own file of alerts has no difference."""
    path = day(tmp_path, files=1)[0]
    alerts = tmp_path / "alerts"
    command = [sys.executable, "-m", "streamdetect", "-q", "backtest", str(path)]
    subprocess.run([*command, "--alerts", str(alerts)], check=True, capture_output=True)
    replay = [sys.executable, "-m", "streamdetect", "-q", "replay", str(path)]
    assert (
        subprocess.run(replay, check=True, capture_output=True).stdout == (alerts / "base.jsonl").read_bytes()
    )
    again = subprocess.run(
        [*command, "--against", str(alerts / "base.jsonl")], check=True, capture_output=True
    )
    assert b"1 unchanged, no difference" in again.stdout


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        (
            ["min_connections_per_hour=60, 90"],
            ["base", "min_connections_per_hour=60", "min_connections_per_hour=90"],
        ),
        (
            ["max_hosts=1,2", "time.lateness=1m"],
            ["base", "max_hosts=1 time.lateness=1m", "max_hosts=2 time.lateness=1m"],
        ),
        (["renotify=1h,2h"], ["base", "renotify=1h", "renotify=2h"]),
        (["name=o'brien,x"], ["base", "name=o'brien", "name=x"]),
        (["processes=[a.exe,b.exe],[c.exe]"], ["base", "processes=[a.exe,b.exe]", "processes=[c.exe]"]),
    ],
)
def test_variants_are_every_combination(vary: list[str], expected: list[str]) -> None:
    """Values are split at commas outside of brackets, and combined."""
    assert [one.name for one in varied(None, vary=vary, environ={})] == expected


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        (["max_hosts"], 'has no "="'),
        (["max_hosts=1,1"], "a duplicate value"),
        (["max_hosts=1,"], "an empty value"),
        (["kafka.group_id=a,b"], "does not affect detection"),
        (["max_hosts=1", "max_hosts=2"], "are the same setting"),
        (["max_hosts=1", "rules.0.max_hosts=2"], "are the same setting"),
        (["=1"], "has no name"),
        (["name='a,b"], "the quote ' is not closed"),
        (["processes=[a,b"], "a bracket is not closed"),
        (["min_conections_per_hour=6"], "Did you mean min_connections_per_hour?"),
        (["lateness=1m"], "Did you mean time.lateness?"),
        (["max_hosts=" + ",".join(map(str, range(1, 1003)))], "1,002 variants"),
    ],
)
def test_wrong_vary_options_are_usage_errors(vary: list[str], says: str) -> None:
    """The error says what is wrong, and where possible what to write instead."""
    with pytest.raises(UsageError, match=re.escape(says)):
        varied(None, vary=vary, environ={})


def test_a_wrong_value_names_its_option() -> None:
    """A value out of range is a configuration error that names the option it came from."""
    with pytest.raises(ConfigError, match=r"max_hosts.*--vary max_hosts"):
        varied(None, vary=["max_hosts=0"], environ={})


def test_a_setting_without_a_path_applies_to_every_enabled_rule() -> None:
    """A rule setting without a path is set in each enabled rule."""
    sets = ["rules.1.id=b", "rules.1.name=b", "rules.2.id=c", "rules.2.enabled=false"]
    _, one = varied(None, sets, vary=["max_hosts=7"], environ={})
    assert [rule.max_hosts for rule in one.settings.rules] == [7, 7, 1]
