"""Handmade outcomes as a backtest returns them; every text in them can be replaced by a hostile one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from streamdetect.config import Settings
from streamdetect.detect import Rule
from streamdetect.detect.alerts import Key
from streamdetect.detect.conditions import Closeness, Figures, failed_condition
from streamdetect.detect.near_misses import Point, TrackedKey
from streamdetect.findings.diff import Diff, Moved
from streamdetect.findings.episodes import Episode, KeyName
from streamdetect.findings.expectations import Verdict
from streamdetect.findings.outcome import InputSummary, Outcome, Variant, Volume
from streamdetect.model import EventContext

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
HOUR_MS = 3_600_000
PANE_MS = 300_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class Texts:
    """Every text that comes from events, files or users."""

    address: str = "45.83.64.1"
    process: str = "chrome.exe"
    sensor: str = "endpoint"
    host: str = "WS-042"
    host_id: str = "0b8e1d5c-9b5e-4f8a-a1c7-3f6e"
    user: str = "m.keller"
    domain: str = "CORP"
    executable: str = r"C:\Program Files\Google\Chrome\Application\chrome.exe"
    entity_id: str = "MTIzNDUtNjc4OQ=="
    name: str = "cdn.telemetry-sync.example"
    rule: str = "High count of network connection over extended period by process"
    reason: str = "rate"
    message: str = "chrome.exe on WS-042 contacted 45.83.64.1 for 4 h at 131 connections an hour"
    variant: str = "rate 60"
    change: str = "60"
    remark: str = "2 of 3 files have no records of Sysmon."
    path: str = "events/day-1.jsonl.zst"
    shape: str = "defend"
    expectation: str = "the planted beacon"
    detail: str = "opened 2026-03-02T04:00:00.000Z, episode 4d0f"
    compared: str = "alerts-yesterday.jsonl"
    refusal: str = "not_json"
    input: str = "events/day-2.jsonl.zst"

    @classmethod
    def all(cls, text: str) -> Texts:
        """The same text in every place."""
        return cls(**{one.name: text for one in fields(cls)})


HARMLESS = Texts()


@dataclass
class Beacon:
    """Event times of one key: about every `period_ms` for about `hours`."""

    period_ms: int = 27_500
    hours: float = 9.0
    start_ms: int = START_MS + 30 * 60_000
    seed: int = 1
    times: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng, time_ms = Random(self.seed), self.start_ms
        while time_ms < self.start_ms + self.hours * HOUR_MS:
            self.times.append(time_ms)
            time_ms += round(self.period_ms * rng.uniform(0.8, 1.2) * (6 if rng.random() < 0.01 else 1))


def figures_at(times: Sequence[int], tick_ms: int, lookback_ms: int, hosts: int = 1) -> Figures:
    in_window = [ms for ms in times if tick_ms - lookback_ms <= ms < tick_ms]
    if not in_window:
        return Figures(0, 0, 0, 0, 0)
    return Figures(len(in_window), in_window[0], in_window[-1], hosts, 1)


def tracked_key_of(
    rule: Rule, key: Key, times: Sequence[int], end_ms: int, texts: Texts, *, hosts: int = 1
) -> TrackedKey:
    """The tracked key of these event times."""
    limits = rule.limits
    points = []
    for tick_ms in range(times[0] - times[0] % PANE_MS + PANE_MS, end_ms + 1, PANE_MS):
        figures = figures_at(times, tick_ms, limits.lookback_ms, hosts)
        points.append(Point(tick_ms, figures, failed_condition(figures, limits)))
    closest = max(points, key=lambda one: one.figures.events)
    return TrackedKey(
        rule=rule,
        key=key,
        closest=closest,
        closeness=Closeness(min(1.0, closest.figures.connections_per_hour / 120), 0.9, 1.0 / hosts, 1.0),
        context=event_context(texts),
        points=points,
        panes=dict(Counter(ms - ms % PANE_MS for ms in times)),
        gaps=Counter(
            int(f"{later - before:.3g}".split("e")[0]) if later - before < 1000 else round(later - before, -2)
            for before, later in pairwise(times)
        ),
    )


def event_context(texts: Texts) -> EventContext:
    return EventContext(
        hosts=(texts.host_id,),
        processes=(texts.entity_id,),
        host_id=texts.host_id,
        host_name=texts.host,
        entity_id=texts.entity_id,
        pid=4711,
        executable=texts.executable,
        user_name=texts.user,
        user_domain=texts.domain,
        domain=texts.name,
        port=443,
        ip=None,
    )


def episode_of(
    rule: Rule,
    key: Key,
    tracked: TrackedKey,
    texts: Texts,
    *,
    resolved_ms: int | None = None,
    opened_ms: int | None = None,
) -> Episode:
    """The episode of a tracked key, by default opened at the first tick at which its condition is true."""
    first = next(one for one in tracked.points if one.failed is None)
    opened = first.tick_ms if opened_ms is None else opened_ms
    last = tracked.points[-1] if resolved_ms is None else first
    return Episode(
        id=str(uuid5(NAMESPACE_URL, repr((key, opened)))),
        key=KeyName(rule.id, *key),
        rule_name=texts.rule,
        severity=47,
        opened_ms=opened,
        first_alert_ms=opened,
        last_alert_ms=resolved_ms or opened,
        thresholds={
            "min_connections_per_hour": 120,
            "min_duration_hours": 4,
            "max_hosts": 1,
            "max_processes": 1,
        },
        figures=plain_figures(first.figures),
        last_figures=plain_figures(last.figures),
        context={
            "host": {"name": texts.host, "id": texts.host_id},
            "user": {"name": texts.user, "domain": texts.domain},
            "process": {
                "name": texts.process,
                "entity_id": texts.entity_id,
                "pid": 4711,
                "executable": [texts.executable, texts.executable],
            },
            "destination": {"address": texts.address, "ip": texts.address, "port": 443, "domain": texts.name},
        },
        message=texts.message,
        resolved_ms=resolved_ms,
        reason=None if resolved_ms is None else texts.reason,
        alerts=3,
        panes=dict(tracked.panes),
    )


def plain_figures(figures: Figures) -> dict[str, int]:
    return {
        "count_connections": figures.events,
        "duration_hours": figures.duration_hours,
        "number_of_con_per_hour": figures.connections_per_hour,
        "hosts": figures.hosts,
        "count_unique_pids": figures.processes,
        "first_seen_ms": figures.first_ms,
        "last_seen_ms": figures.last_ms,
    }


def summary(episodes: int, **more: Any) -> dict[str, Any]:
    """Consistent counts: consumed = counted + filtered + late + dead_lettered."""
    plain: dict[str, Any] = {
        "counted": 41_352,
        "filtered": {"process.name": 310_220, "network.direction": 22_118, "destination.ip": 9_004},
        "late": 17,
        "dead_lettered": {"not_json": 3, "future_time": 2},
        "alerts": {"opened": episodes, "resolved": max(0, episodes - 1), "updated": 2},
        "ticks": 288,
        "keys_peak": 18_230,
        "suspect_leaps": 2,
        "seconds": 6.5,
        "late_arrivals": 0,
        "evicted": 0,
    }
    plain["consumed"] = (
        plain["counted"]
        + sum(plain["filtered"].values())
        + plain["late"]
        + sum(plain["dead_lettered"].values())
    )
    return plain | more


def outcome(
    texts: Texts = HARMLESS,
    *,
    episodes: int = 3,
    variants: int = 4,
    near: int = 3,
    hours: int = 24,
    stopped: bool = False,
    plain: bool = False,
) -> Outcome:
    """The outcome of a backtest over a day; with `plain`, one without comparison and expectations."""
    settings = Settings.model_validate(
        {
            "rules": [
                {
                    "name": settable(texts.rule),
                    "exceptions": [{"host": settable(texts.host), "process": "svchost.exe"}],
                }
            ],
            "kafka": {
                "bootstrap_servers": ["broker-of-nobody:9092"],
                "username": "never-shown-either",
                "password": "never-shown-anywhere",
            },
            "http": {"host": "127.0.0.9"},
            "alerts": {"topic": "topic-of-nobody"},
        }
    )
    rule = Rule(settings.rules[0], settings)
    end_ms = START_MS + DAY_MS
    found: list[Episode] = []
    tracked_keys = {}
    for index in range(episodes):
        key = Key(f"{texts.address}{index or ''}" if index else texts.address, texts.process, texts.sensor)
        if index < 8:
            beacon = Beacon(
                hours=9 + index % 5, start_ms=START_MS + (30 + 7 * index % 300) * 60_000, seed=index
            )
            tracked = tracked_key_of(rule, key, beacon.times, end_ms, texts)
        resolved = None if index % 3 == 2 else end_ms - (index % 40) * PANE_MS
        episode = episode_of(rule, key, tracked, texts, resolved_ms=resolved)
        found.append(episode)
        if index % 7 != 6:
            tracked_keys[episode.key] = tracked
    near_misses = [
        tracked_key_of(
            rule,
            Key(f"{texts.address}0{index}", texts.process, texts.sensor if index % 2 else None),
            Beacon(period_ms=34_000 + 2_000 * index, hours=5 - index % 3, seed=100 + index).times,
            end_ms,
            texts,
            hosts=1 + index % 2,
        )
        for index in range(near)
    ]
    verdicts = () if plain else _verdicts(texts)
    base = Variant("base", {}, settings, summary(episodes), found, verdicts=verdicts)
    diff = None
    if not plain and found:
        other = episode_of(
            rule, Key(None, texts.process, None), tracked_keys[found[0].key], texts, resolved_ms=end_ms
        )
        earlier = episode_of(
            rule,
            Key(texts.address, texts.process, texts.sensor),
            tracked_keys[found[0].key],
            texts,
            opened_ms=(found[0].opened_ms or 0) - 3 * PANE_MS,
        )
        diff = Diff(
            appeared=found[1:2],
            gone=[other],
            moved=[Moved(earlier, found[0])],
            unchanged=found[2:],
            ended_otherwise=[Moved(found[2], found[2])] if len(found) > 2 else [],
            outside=4,
        )
    return Outcome(
        settings=settings,
        reading=InputSummary(
            inputs=(texts.path, texts.input),
            first_ms=START_MS + 12_345,
            last_ms=START_MS + hours * HOUR_MS - 1,
            shapes={texts.shape: 300_000, "sysmon-raw": 82_716},
            volumes=_volumes(hours),
        ),
        base=base,
        variants=[_variant(index, texts, settings, found, verdicts) for index in range(variants)],
        near=near_misses,
        tracked_keys=tracked_keys,
        first_tick_ms=START_MS + PANE_MS,
        last_tick_ms=max(end_ms, START_MS + hours * HOUR_MS),
        seconds=6.5,
        stopped=stopped,
        diff=diff,
        compared_with=None if diff is None else texts.compared,
        verdicts=verdicts,
        remarks=[] if plain else [texts.remark],
    )


def settable(text: str) -> str:
    """The text as a valid value of a setting: not empty, and UTF-8."""
    return text.encode("utf-8", "ignore").decode() or "x"


def _verdicts(texts: Texts) -> tuple[Verdict, ...]:
    return (
        Verdict(texts.expectation, "must_alert", holds=True, detail=texts.detail),
        Verdict("the updater", "must_not_alert", holds=False, detail=texts.detail),
        Verdict("svchost.exe to 20.1.2.3", "must_alert", holds=None, detail="stopped early"),
    )


def _variant(
    index: int, texts: Texts, settings: Settings, found: list[Episode], verdicts: tuple[Verdict, ...]
) -> Variant:
    kept = found[: max(0, len(found) - index)]
    return Variant(
        name=f"{texts.variant} {index}",
        changes={"rules.0.min_connections_per_hour": texts.change, "kafka.password": "never-shown-anywhere"},
        settings=settings,
        summary=summary(len(kept) + 3 * index),
        episodes=kept,
        diff=Diff(gone=found[len(kept) :], unchanged=kept),
        verdicts=verdicts,
    )


def _volumes(hours: int) -> list[Volume]:
    rng = Random(7)
    return [
        Volume(
            START_MS + hour * HOUR_MS,
            {
                "counted": rng.randint(1_200, 2_400),
                "process.name": rng.randint(8_000, 16_000) + (9_000 if 8 <= hour % 24 <= 17 else 0),
                "network.direction": rng.randint(400, 900),
                "late": rng.randint(0, 3),
                "future_time": rng.randint(0, 1),
            },
        )
        for hour in range(hours)
    ]
