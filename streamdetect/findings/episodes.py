"""Episodes from the alerts of one run, in the order of publication (semantics.md §5)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamdetect.config import parse_time_ms
from streamdetect.detect.alerts import Key

_BLOCKS = ("host", "process", "user", "destination")
_FIGURES = ("count_connections", "duration_hours", "number_of_con_per_hour", "hosts", "count_unique_pids")
_THRESHOLDS = ("min_connections_per_hour", "min_duration_hours", "max_hosts", "max_processes")
_DATE = re.compile(r"([0-9]{4}|[+-][0-9]{4,9})(-[0-9]{2}-.*)")
_YEARS_MS = 146_097 * 86_400_000  # 400 years, after which the Gregorian calendar repeats


class KeyName(NamedTuple):
    """A key under its rule. `address` is None for the null key, `sensor` is None under the profile `strict`."""

    rule_id: str
    address: str | None
    process: str
    sensor: str | None

    def order(self) -> tuple[object, ...]:
        """Sorts by address, process, sensor, rule; null first."""
        return (*Key(self.address, self.process, self.sensor).order(), self.rule_id)


@dataclass(slots=True)
class Episode:
    """One episode, derived from its alerts. Times in ms since the epoch, UTC.

    `opened_ms` is None if the `opened` alert is missing, `resolved_ms` and `reason` are None while it is open.
    `figures` are the figures of the first alert, `last_figures` the figures of the last one that is not `resolved` (of
    the first, if all are), both under the names of the alert. `context` holds the blocks host, process, user and
    destination of the first alert, `message` is its message. `panes` is {pane start: events} of all its alerts
    together; None unless requested.
    """

    id: str
    key: KeyName
    rule_name: str
    severity: int
    opened_ms: int | None
    first_alert_ms: int
    last_alert_ms: int
    thresholds: dict[str, int]
    figures: dict[str, int]
    last_figures: dict[str, int]
    context: dict[str, dict[str, Any]]
    message: str
    resolved_ms: int | None = None
    reason: str | None = None
    alerts: int = 0
    panes: dict[int, int] | None = None

    @property
    def host(self) -> str | None:
        """The host's name, else its id; several joined by commas."""
        block = self.context.get("host", {})
        shown = block.get("name") or block.get("id")
        return ", ".join(shown) if isinstance(shown, list) else shown


class NotAnAlertError(ValueError):
    """The document is not an alert of streamdetect; the message says what is missing."""


@dataclass(slots=True)
class Episodes:
    """Collects alerts into episodes, in the order of their first alert. Keeps only what an `Episode` holds."""

    keep_panes: bool = False
    found: dict[str, Episode] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def take(self, body: bytes | str) -> None:
        """Add an alert. A duplicate (same alert id) is ignored. Raises NotAnAlertError."""
        document = _document(body)
        alert = _of_one_alert(document, keep_panes=self.keep_panes)
        alert_id = _text(document, "event", "id")
        if alert_id in self._taken:
            return
        self._taken.add(alert_id)
        if alert.id in self.found:
            _join(self.found[alert.id], alert)
        else:
            self.found[alert.id] = alert

    def listed(self) -> list[Episode]:
        return list(self.found.values())


def episodes_of(bodies: Iterable[bytes | str], *, keep_panes: bool = False) -> list[Episode]:
    """The episodes of these alerts."""
    collected = Episodes(keep_panes=keep_panes)
    for body in bodies:
        collected.take(body)
    return collected.listed()


def parse_iso_ms(text: str) -> int:
    """The inverse of `detect.alerts.iso`, including years beyond `datetime`. Raises ValueError for other texts."""
    match = _DATE.fullmatch(text)
    if match is None:
        return parse_time_ms(text)
    periods, year = divmod(int(match[1]), 400)
    return parse_time_ms(f"{2000 + year}{match[2]}") + (periods - 5) * _YEARS_MS


def _document(body: bytes | str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise NotAnAlertError("is not an alert of streamdetect: it is not JSON") from None
    if not isinstance(document, dict):
        raise NotAnAlertError("is not an alert of streamdetect: it is not an object")
    return document


def _of_one_alert(document: dict[str, Any], *, keep_panes: bool) -> Episode:
    """The episode from one alert."""
    episode_id = _text(document, "streamdetect", "episode_id")
    action = _text(document, "streamdetect", "action")
    if action not in {"opened", "updated", "resolved"}:
        raise _wrong("neither opened, updated nor resolved", "streamdetect", "action")
    tick_ms = _time_ms(document, "@timestamp")
    figures = _numbers(document, _FIGURES, "streamdetect", "figures")
    ended = action == "resolved"
    return Episode(
        id=episode_id,
        key=_key(document),
        rule_name=_text(document, "rule", "name"),
        severity=_number(_at(document, "event", "severity"), "event", "severity"),
        opened_ms=tick_ms if action == "opened" else None,
        first_alert_ms=tick_ms,
        last_alert_ms=tick_ms,
        thresholds=_numbers(document, _THRESHOLDS, "streamdetect", "thresholds"),
        figures=figures,
        last_figures=figures,
        context=_context(document),
        message=_text(document, "message"),
        resolved_ms=tick_ms if ended else None,
        reason=_text(document, "streamdetect", "reason") if ended else None,
        alerts=1,
        panes=_panes(document) if keep_panes else None,
    )


def _join(known: Episode, later: Episode) -> None:
    """Add a later alert to its episode."""
    known.alerts += later.alerts
    known.last_alert_ms = max(known.last_alert_ms, later.last_alert_ms)
    if later.opened_ms is not None:
        known.opened_ms = later.opened_ms
    if later.resolved_ms is None:
        known.last_figures = later.last_figures
    else:
        known.resolved_ms, known.reason = later.resolved_ms, later.reason
    if known.panes is not None:
        known.panes.update(later.panes or {})


def _key(document: dict[str, Any]) -> KeyName:
    """The key of an alert. `address` is None for the null key, `sensor` is None under the profile `strict`."""
    null_group = _at(document, "destination", "address") is None
    strict = "sensor" not in _at(document, "streamdetect")
    return KeyName(
        rule_id=_text(document, "rule", "uuid"),
        address=None if null_group else _text(document, "destination", "address"),
        process=_text(document, "process", "name"),
        sensor=None if strict else _text(document, "streamdetect", "sensor"),
    )


def _context(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The alert's context blocks, without nested objects, which a pipeline has added, like `destination.geo`."""
    blocks = {name: document[name] for name in _BLOCKS if isinstance(document.get(name), dict)}
    return {
        name: {field_name: value for field_name, value in block.items() if _is_plain(value)}
        for name, block in blocks.items()
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, (str, int))


def _panes(document: dict[str, Any]) -> dict[int, int]:
    where = ("streamdetect", "pane_counts")
    counts = _at(document, *where)
    try:
        return {_number(start_ms, *where): _number(count, *where) for start_ms, count in counts}
    except (TypeError, ValueError):
        raise _wrong("not a list of [pane start, events]", *where) from None


def _at(document: dict[str, Any], *path: str) -> Any:
    here: Any = document
    for depth, step in enumerate(path):
        if not isinstance(here, dict):
            raise _wrong("no object", *path[:depth])
        if step not in here:
            raise _wrong("missing", *path[: depth + 1])
        here = here[step]
    return here


def _text(document: dict[str, Any], *path: str) -> str:
    value = _at(document, *path)
    if not isinstance(value, str):
        raise _wrong("no text", *path)
    return value


def _number(value: object, *path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong("not a whole number", *path)
    return value


def _numbers(document: dict[str, Any], names: Iterable[str], *path: str) -> dict[str, int]:
    """A block of numbers with at least these names."""
    for name in names:
        _at(document, *path, name)
    return {name: _number(value, *path, name) for name, value in _at(document, *path).items()}


def _time_ms(document: dict[str, Any], *path: str) -> int:
    text = _text(document, *path)
    try:
        return parse_iso_ms(text)
    except ValueError:
        raise _wrong("no time", *path) from None


def _wrong(what: str, *path: str) -> NotAnAlertError:
    return NotAnAlertError(f"is not an alert of streamdetect: {'.'.join(path)} is {what}")
