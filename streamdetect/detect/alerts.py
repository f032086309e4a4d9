"""The alert document (docs/reference.md, Alert): ECS 8.x names, keys sorted, with the full arithmetic."""

from __future__ import annotations

import json
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from streamdetect import __version__
from streamdetect.detect.conditions import Figures, Thresholds
from streamdetect.detect.context import context_blocks
from streamdetect.detect.episodes import Evaluation
from streamdetect.detect.rules import Rule
from streamdetect.detect.windows import unpack_panes
from streamdetect.model import Alert

_EPISODES = uuid5(NAMESPACE_URL, "https://streamdetect/episode")
_DAY_MS = 86_400_000


class Key(NamedTuple):
    """A key of semantics.md §2. `address` is None for the null key, `sensor` is None under the profile `strict`."""

    address: str | None
    process: str
    sensor: str | None

    def order(self) -> tuple[bool, str, str, bool, str]:
        """Sorts by address, process, sensor; null first."""
        address, process, sensor = self
        return address is not None, address or "", process, sensor is not None, sensor or ""


def episode_id(rule_id: str, key: Key, opened_ms: int) -> UUID:
    return uuid5(_EPISODES, _compact([rule_id, *key, opened_ms]))


def alert_id(episode: UUID, action: str, tick_ms: int) -> UUID:
    return uuid5(episode, _compact([action, tick_ms]))


def build(rule: Rule, key: Key, tick_ms: int, outcome: Evaluation) -> Alert:
    """The alert that an evaluation asks for."""
    action = outcome.action or ""
    episode = episode_id(rule.id, key, outcome.opened_ms)
    own_id = alert_id(episode, action, tick_ms)
    document = _document(rule, key, tick_ms, outcome)
    document["event"] |= {"id": str(own_id)}
    document["streamdetect"] |= {"episode_id": str(episode)}
    body = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return Alert(str(own_id), str(episode), rule.id, action, tick_ms, body)


def _document(rule: Rule, key: Key, tick_ms: int, outcome: Evaluation) -> dict[str, dict[str, object]]:
    context = {} if outcome.state is None else context_blocks(outcome.state[1], key.address)
    document: dict[str, object] = {
        "@timestamp": iso(tick_ms),
        "ecs": {"version": "8.17.0"},
        "event": _event(rule, outcome),
        "message": _message(key, outcome, context.get("host", {})),
        "rule": {
            "uuid": rule.id,
            "name": rule.name,
            "category": "Command and Control",
            "reference": "https://attack.mitre.org/techniques/T1071/",
        },
        "threat": {
            "framework": "MITRE ATT&CK",
            "tactic": {"id": ["TA0011"], "name": ["Command and Control"]},
            "technique": {"id": ["T1071"], "name": ["Application Layer Protocol"]},
        },
        "streamdetect": _arithmetic(rule, key, tick_ms, outcome),
        **{block: values for block, values in context.items() if block in ("host", "user")},
        "process": context.get("process", {}) | {"name": key.process},
        "destination": context.get("destination", {}) | {"address": key.address},
    }
    related = _related(context)
    if related:
        document["related"] = related
    return document  # type: ignore[return-value]  # the blocks that build() adds to are objects


def _event(rule: Rule, outcome: Evaluation) -> dict[str, object]:
    event: dict[str, object] = {
        "kind": "alert",
        "category": ["network"],
        "type": ["info"],
        "module": "streamdetect",
        "dataset": "streamdetect.alert",
        "action": outcome.action,
        "severity": rule.severity,
        "risk_score": rule.severity,
    }
    figures = outcome.figures
    if figures.events:
        event["start"] = iso(figures.first_ms)
        event["end"] = iso(figures.last_ms)
        event["duration"] = figures.span_ms * 1_000_000
    return event


def _message(key: Key, outcome: Evaluation, host: dict[str, object]) -> str:
    host_text = _text(host.get("name") or host.get("id") or "unknown host")
    destination = "unknown destination" if key.address is None else key.address
    if outcome.action == "resolved":
        return (
            f"{key.process} on {host_text} no longer meets the conditions for {destination}: {outcome.reason}"
        )
    figures = outcome.figures
    return (
        f"{key.process} on {host_text} contacted {destination} for {figures.duration_hours} h"
        f" at {figures.connections_per_hour} connections an hour"
    )


def _arithmetic(rule: Rule, key: Key, tick_ms: int, outcome: Evaluation) -> dict[str, object]:
    limits = rule.limits
    panes = [] if outcome.state is None else unpack_panes(outcome.state[0])
    block: dict[str, object] = {
        "action": outcome.action,
        "reason": outcome.reason,
        "profile": rule.profile,
        "version": __version__,
        "window": {
            "start": iso(tick_ms - limits.lookback_ms),
            "end": iso(tick_ms),
            "interval_seconds": _seconds(limits.interval_ms),
        },
        "figures": figures_block(outcome.figures),
        "thresholds": thresholds_block(limits),
        "pane_counts": [[pane.first_ms - pane.first_ms % limits.interval_ms, pane.events] for pane in panes],
    }
    if key.sensor is not None:
        block["sensor"] = key.sensor
    return block


def thresholds_block(thresholds: Thresholds) -> dict[str, int]:
    """The thresholds under the names of the settings."""
    return {
        "min_connections_per_hour": thresholds.min_connections_per_hour,
        "min_duration_hours": thresholds.min_duration_hours,
        "max_hosts": thresholds.max_hosts,
        "max_processes": thresholds.max_processes,
    }


def figures_block(figures: Figures) -> dict[str, int]:
    """The figures under the names of semantics.md §2 and §3; no first and last where there is no event."""
    block: dict[str, int] = {
        "count_connections": figures.events,
        "duration_hours": figures.duration_hours,
        "number_of_con_per_hour": figures.connections_per_hour,
        "hosts": figures.hosts,
        "count_unique_pids": figures.processes,
    }
    if figures.events:
        block["first_seen_ms"] = figures.first_ms
        block["last_seen_ms"] = figures.last_ms
    return block


def _related(context: dict[str, dict[str, object]]) -> dict[str, object]:
    related: dict[str, object] = {}
    if "ip" in context.get("destination", {}):
        related["ip"] = [context["destination"]["ip"]]
    name = context.get("host", {}).get("name")
    if name is not None:
        related["hosts"] = list(name) if isinstance(name, tuple) else [name]
    return related


def _text(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _seconds(ms: int) -> int | float:
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


def _compact(values: list[object]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def iso(ms: int) -> str:
    """2026-03-02T04:00:00.000Z; a year beyond 9999 or before 0 has a sign, as in ISO 8601's expanded form.

    `datetime` ends at year 9999, and one wild clock in a file is enough to get beyond.
    """
    days, rest = divmod(ms, _DAY_MS)
    year, month, day = _civil(days)
    text = f"{year:04d}" if 0 <= year <= 9999 else f"{year:+06d}"
    seconds, millis = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{text}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}.{millis:03d}Z"


def _civil(days: int) -> tuple[int, int, int]:
    """(year, month, day) of a day since the epoch, proleptic Gregorian; years begin in March while counting."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    return year, month, day_of_year - (153 * shifted_month + 2) // 5 + 1
