"""The content of a checkpoint: a summary (`state show`) and all rows (`state export`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.config import Settings
from streamdetect.detect import Detector, serde
from streamdetect.detect.alerts import Key, figures_block, iso
from streamdetect.detect.episodes import evaluate
from streamdetect.service.inspect.open import read_checkpoint, settings_of
from streamdetect.service.live.outbox import output_rows, outputs_of
from streamdetect.service.live.recovery import PREDECESSOR

_SHOWN_SETTINGS = ("min_connections_per_hour", "min_duration_hours", "max_hosts", "max_processes", "renotify")
_COUNTED_SETTINGS = ("excluded_ports", "excluded_networks", "datasets", "exceptions")

KeyGroupId = tuple[str, str, str | None]
"""Rule id, process and sensor."""


def describe(store: CheckpointStore) -> dict[str, Any]:
    """A summary of the last checkpoint as plain JSON data. Raises CheckpointError."""
    return read_checkpoint(store, lambda stored: _Description(stored, store).as_dict())


class _Description:
    """Describes a checkpoint in one pass over its rows; keeps only open episodes in memory."""

    def __init__(self, stored: Stored, store: CheckpointStore) -> None:
        self._stored = stored
        self._store = store
        settings = settings_of(stored)
        self._settings = settings
        self._limits = {rule.id: rule.limits for rule in Detector(settings).rules}
        self._evaluated_ms: int | None = stored.progress["evaluated_ms"]
        self._keys: Counter[KeyGroupId] = Counter()
        self._events = 0
        self._episodes: list[tuple[tuple[object, ...], dict[str, Any]]] = []

    def as_dict(self) -> dict[str, Any]:
        stored, progress = self._stored, self._stored.progress
        for row in stored.keys:
            self._add_key(row)
        return {
            "number": stored.number,
            "state": self._store.state,
            "size_bytes": self._store.size_bytes(),
            "evaluated": _iso(self._evaluated_ms),
            "ticks": progress["ticks"],
            "keys_peak": progress["keys_peak"],
            "settings": _settings_summary(self._settings),
            "partitions": _partitions(stored.partitions),
            "keys": {
                "count": self._keys.total(),
                "events": self._events,
                "groups": [
                    {"rule": rule, "process": process, "sensor": sensor, "keys": count}
                    for (rule, process, sensor), count in sorted(self._keys.items(), key=str)
                ],
            },
            "waiting": _waiting(stored),
            "episodes": [episode for _, episode in sorted(self._episodes, key=lambda item: item[0])],
            "pending": _pending(stored.pending),
            "marks": {
                name: mark for name, mark in sorted(stored.file_offsets.items()) if name != PREDECESSOR
            },
        }

    def _add_key(self, row: Row) -> None:
        address, process, sensor = row["key"]
        self._keys[row["rule"], process, sensor] += 1
        self._events += sum(events for _, _, events in row["panes"])
        episode = serde.episode_of(row)
        if episode is None or self._evaluated_ms is None:
            return
        outcome = evaluate(serde.state_of(row), episode, self._evaluated_ms, self._limits[row["rule"]])
        shown = {
            "rule": row["rule"],
            "destination": address,
            "process": process,
            "sensor": sensor,
            "opened": iso(episode.opened_ms),
            "alerted": iso(episode.alerted_ms),
            "figures": figures_block(outcome.figures),
        }
        self._episodes.append(((Key(address, process, sensor).order(), row["rule"]), shown))


def _iso(time_ms: int | None) -> str | None:
    return None if time_ms is None else iso(time_ms)


def _settings_summary(settings: Settings) -> dict[str, Any]:
    stored: dict[str, Any] = settings.detection()
    rules = [
        {
            "id": rule_id,
            "processes": rule["processes"],
            **{name: rule[name] for name in _SHOWN_SETTINGS},
            **{name: len(rule[name]) for name in _COUNTED_SETTINGS},
        }
        for rule_id, rule in stored["rules"].items()
    ]
    return {"profile": stored["profile"], "time": stored["time"], "rules": rules}


def _partitions(rows: list[Row]) -> list[dict[str, Any]]:
    newest_ms = max((row["clock_ms"] for row in rows if row["clock_ms"] is not None), default=0)
    return [
        {
            "topic": row["topic"],
            "number": row["number"],
            "offset": row["offset"],
            "clock": _iso(row["clock_ms"]),
            "behind_ms": None if row["clock_ms"] is None else newest_ms - row["clock_ms"],
            "idle": row["idle"],
            "leaps": row["run"] and _leaps(*row["run"]),
        }
        for row in sorted(rows, key=serde.partition_of)
    ]


def _leaps(records: int, min_ms: int, host: str | None) -> dict[str, Any]:
    """Consecutive records too far ahead of the partition's clock, not yet confirmed by others (semantics.md §4)."""
    return {"records": records, "from": iso(min_ms), "host": host}


def _waiting(stored: Stored) -> dict[str, Any]:
    pre_aggregates, events = Counter[int](), Counter[int]()
    for row in stored.waiting:
        pre_aggregates[row["tick_ms"]] += 1
        events[row["tick_ms"]] += row["partial"][0]
    return {
        "partials": pre_aggregates.total(),
        "events": events.total(),
        "ticks": [
            {"tick": iso(tick_ms), "partials": count, "events": events[tick_ms]}
            for tick_ms, count in sorted(pre_aggregates.items())
        ],
    }


def _pending(rows: list[Row]) -> dict[str, Any]:
    outputs = outputs_of(rows)
    return {
        "alerts": [
            {"action": alert.action, "tick": iso(alert.tick_ms), "rule": alert.rule_id, "id": alert.id}
            for alert in outputs.alerts
        ],
        "dead_letters": dict(
            sorted(Counter(dead_letter.reason for dead_letter in outputs.dead_letters).items())
        ),
    }


def export_lines(store: CheckpointStore) -> list[bytes]:
    """Every row as a line of JSON. The same rows give the same lines, whatever the order they were saved in."""
    return read_checkpoint(store, lambda stored: list(_lines(stored)))


def _lines(stored: Stored) -> Iterator[bytes]:
    """Sorted by kind, then by content; pending outputs in the order in which they were created."""
    yield _line(stored.progress)
    for row in sorted(stored.partitions, key=serde.partition_of):
        yield _line(row)
    for rows in (stored.keys, stored.waiting):
        yield from (line for _, line in sorted((_order(row), _line(row)) for row in rows))
    for row in output_rows(outputs_of(stored.pending)):
        yield _line({"kind": "pending", "output": row})


def _order(row: Row) -> tuple[object, ...]:
    return (Key(*row["key"]).order(), row["rule"], row.get("tick_ms", 0), row.get("pane_ms", 0))


def _line(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
