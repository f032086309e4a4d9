"""What a checkpoint holds: in short (`state show`), row by row (`state export`), and whether it is whole.

Whether it is what its records give is `rederive`; both make `state verify`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.config import Settings
from streamdetect.detect import Detector, serde
from streamdetect.detect.alerts import Key, figures_block, iso
from streamdetect.detect.conditions import Limits
from streamdetect.detect.episodes import evaluate
from streamdetect.detect.windows import unpack_panes
from streamdetect.errors import CheckpointError
from streamdetect.model import EventContext, Partition
from streamdetect.service.inspect.open import of_last, settings_of
from streamdetect.service.live.outbox import output_rows, outputs_of
from streamdetect.service.live.recovery import PREDECESSOR

_SHORT = ("min_connections_per_hour", "min_duration_hours", "max_hosts", "max_processes", "renotify")
_COUNTED = ("excluded_ports", "excluded_networks", "datasets", "exceptions")

KeyGroupId = tuple[str, str, str | None]
"""Rule id, process and sensor."""


def describe(store: CheckpointStore) -> dict[str, Any]:
    """A checkpoint in short, as plain JSON data. Raises CheckpointError."""
    return of_last(store, lambda stored: _Description(stored, store).as_dict())


class _Description:
    """One pass over all rows; only open episodes are kept."""

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
            self._take(row)
        return {
            "number": stored.number,
            "state": self._store.state,
            "size_bytes": self._store.size_bytes(),
            "evaluated": _iso(self._evaluated_ms),
            "ticks": progress["ticks"],
            "keys_peak": progress["keys_peak"],
            "settings": _settings_in_short(self._settings),
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
            "marks": {name: mark for name, mark in sorted(stored.file_offsets.items()) if name != PREDECESSOR},
        }

    def _take(self, row: Row) -> None:
        address, process, sensor = row["key"]
        self._keys[row["rule"], process, sensor] += 1
        self._events += sum(events for _, _, events in row["panes"])
        episode = serde.episode_of(row)
        if episode is None or self._evaluated_ms is None:
            return
        found = evaluate(serde.state_of(row), episode, self._evaluated_ms, self._limits[row["rule"]])
        shown = {
            "rule": row["rule"],
            "destination": address,
            "process": process,
            "sensor": sensor,
            "opened": iso(episode.opened_ms),
            "alerted": iso(episode.alerted_ms),
            "figures": figures_block(found.figures),
        }
        self._episodes.append(((Key(address, process, sensor).order(), row["rule"]), shown))


def _iso(time_ms: int | None) -> str | None:
    return None if time_ms is None else iso(time_ms)


def _settings_in_short(settings: Settings) -> dict[str, Any]:
    stored: dict[str, Any] = settings.detection()
    rules = [
        {
            "id": rule_id,
            "processes": rule["processes"],
            **{name: rule[name] for name in _SHORT},
            **{name: len(rule[name]) for name in _COUNTED},
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
    """Records in a row that were too far ahead to be believed yet."""
    return {"records": records, "from": iso(min_ms), "host": host}


def _waiting(stored: Stored) -> dict[str, Any]:
    partials, events = Counter[int](), Counter[int]()
    for row in stored.waiting:
        partials[row["tick_ms"]] += 1
        events[row["tick_ms"]] += row["partial"][0]
    return {
        "partials": partials.total(),
        "events": events.total(),
        "ticks": [
            {"tick": iso(tick_ms), "partials": count, "events": events[tick_ms]}
            for tick_ms, count in sorted(partials.items())
        ],
    }


def _pending(rows: list[Row]) -> dict[str, Any]:
    outputs = outputs_of(rows)
    return {
        "alerts": [
            {"action": alert.action, "tick": iso(alert.tick_ms), "rule": alert.rule_id, "id": alert.id}
            for alert in outputs.alerts
        ],
        "dead_letters": dict(sorted(Counter(dead_letter.reason for dead_letter in outputs.dead_letters).items())),
    }


def export_lines(store: CheckpointStore) -> list[bytes]:
    """Every row as a line of JSON. The same rows give the same lines, in whatever order they were saved."""
    return of_last(store, lambda stored: list(_lines(stored)))


def _lines(stored: Stored) -> Iterator[bytes]:
    """By kind; within it in an order of their own, only outputs in the one in which they were decided."""
    yield _line(stored.progress)
    for row in sorted(stored.partitions, key=serde.partition_of):
        yield _line(row)
    for rows in (stored.keys, stored.waiting):
        yield from (line for _, line in sorted((_place(row), _line(row)) for row in rows))
    for row in output_rows(outputs_of(stored.pending)):
        yield _line({"kind": "pending", "output": row})


def _place(row: Row) -> tuple[object, ...]:
    return (Key(*row["key"]).order(), row["rule"], row.get("tick_ms", 0), row.get("pane_ms", 0))


def _line(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint found whole, and loaded. `settings` decide what it decided, the rest of them is the caller's."""

    number: int
    state: str
    settings: Settings
    evaluated_ms: int | None
    keys_peak: int
    offsets: dict[Partition, int]
    detector: Detector
    waiting: int
    pending: int

    def topics(self) -> list[str]:
        return sorted({partition.topic for partition in self.offsets})

    def text(self) -> str:
        """What was looked through."""
        episodes = sum(self.detector.open_episodes().values())
        return (
            f"Checkpoint {self.number} is whole: keys {self.detector.keys:,}, open episodes {episodes:,}, waiting "
            f"partials {self.waiting:,}, partitions {len(self.offsets):,}, unpublished results {self.pending:,}."
        )


def examine(store: CheckpointStore, others: Settings | None = None) -> VerifiedCheckpoint:
    """Walk every row, and load all of it into a detector. Raises CheckpointError for what is wrong with it."""
    return of_last(store, lambda stored: _examined(stored, store, others))


def _examined(stored: Stored, store: CheckpointStore, others: Settings | None) -> VerifiedCheckpoint:
    detector = Detector(settings_of(stored, others))
    limits = {rule.id: rule.limits for rule in detector.rules}
    seen: Counter[str] = Counter()

    def checked() -> Iterator[Row]:
        for row in stored.rows():
            seen[row["kind"]] += 1
            if row["kind"] in _CHECKS:
                _CHECKS[row["kind"]](row, limits[row["rule"]])
            yield row

    detector.import_state(checked())
    return VerifiedCheckpoint(
        number=stored.number,
        state=store.state,
        settings=detector.settings,
        evaluated_ms=stored.progress["evaluated_ms"],
        keys_peak=stored.progress["keys_peak"],
        offsets={serde.partition_of(row): row["offset"] or 0 for row in stored.partitions},
        detector=detector,
        waiting=seen["waiting"],
        pending=len(outputs_of(stored.pending)),
    )


def _check_key(row: Row, limits: Limits) -> None:
    """That the engine could have made this history, which no checksum tells."""
    panes = list(unpack_panes(serde.state_of(row)[0]))
    indices = [pane.first_ms // limits.interval_ms for pane in panes]
    if not panes or indices != sorted(set(indices)):
        raise _odd(row, "its panes are none, or out of order")
    ends = [pane.last_ms // limits.interval_ms for pane in panes]
    if ends != indices or any(pane.events < 1 for pane in panes):
        raise _odd(row, "a pane has no events, or some of another pane")
    if len(row["details"]) != len(EventContext._fields):
        raise _odd(row, "the details of its latest event are not those of this version")


def _check_waiting(row: Row, limits: Limits) -> None:
    """The same for events that wait."""
    count, first_ms, last_ms, context, _, _ = serde.pre_aggregate_of(row)
    pane_ms, interval_ms = row["pane_ms"], limits.interval_ms
    if (
        count < 1
        or row["tick_ms"] % interval_ms
        or not pane_ms <= first_ms <= last_ms < pane_ms + interval_ms
    ):
        raise _odd(row, "events that wait for a tick are none, or not of their pane")
    if len(context) != len(EventContext._fields):
        raise _odd(row, "the details of its latest event are not those of this version")


_CHECKS = {"key": _check_key, "waiting": _check_waiting}


def _odd(row: Row, what: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint is not whole: of key {row['key']} of rule {row['rule']}, {what}. Restore it from a backup, or "
        "rebuild it from Kafka with --rebuild."
    )
