"""The status page: one document without a build step, that replaces its own middle every few seconds.

Everything that came from the network is escaped, and the policy lets nothing run or load but the two texts here. No
setting of the Kafka connection is on it.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from streamdetect import __version__
from streamdetect.detect.alerts import figures_block, iso, thresholds_block
from streamdetect.detect.ranking import KeyStatus, closest_keys, open_keys
from streamdetect.model import Partition
from streamdetect.report.words import conditions
from streamdetect.service.status.state import PartitionStatus, RunStatus, StatusSnapshot

_MOST_ROWS = 50
_NEAREST = 10
_LONGEST = 80
_SURVEY_SECONDS = 10.0
_SURVEY_SHARE = 20
"""A survey of all keys is made at most so often, and takes at most this part of the time."""

_HOUR_MS = 3_600_000

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8").strip()
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; style-src 'sha256-{_digest(_STYLE)}'; script-src 'sha256-{_digest(_SCRIPT)}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of every answer."""


class Page:
    """The page of one run. Several threads may ask."""

    def __init__(self, vitals: RunStatus) -> None:
        self._vitals = vitals
        self._lock = threading.Lock()
        self._surveyed = float("-inf")
        self._pause = 0.0
        self._nearest: list[KeyStatus] = []

    def whole(self) -> str:
        """The document."""
        group = escape(self._vitals.settings.kafka.group_id)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>streamdetect: {group}</title><link rel="icon" href="data:,">'
            '<noscript><meta http-equiv="refresh" content="10"></noscript>'
            f"<style>{_STYLE}</style></head><body><main>{self.part()}</main>"
            f'<p class="soft">streamdetect {__version__} · <span id="seen" class="soft">all times are UTC</span> · '
            f'<a href="metrics">metrics</a></p><script>{_SCRIPT}</script></body></html>'
        )

    def part(self) -> str:
        """What is refreshed."""
        picture = self._vitals.picture
        parts = [self._head()]
        if picture is not None:
            parts += [
                self._cards(picture),
                *self._keys(),
                _partitions(picture.partitions),
                _letters(picture.summary.dead_lettered),
                _outcomes(picture),
            ]
        return "".join(parts)

    def _head(self) -> str:
        vitals = self._vitals
        objection = vitals.unready()
        kind, state = ("good", "detecting") if objection is None else ("bad", escape(objection))
        settings = vitals.settings
        topics = settings.kafka.topic_pattern or ", ".join(settings.kafka.topics)
        return (
            f'<h1>streamdetect · {escape(settings.kafka.group_id)}</h1><p class="state {kind}">{state}</p>'
            f'<p class="soft">reads {escape(topics)}, profile {escape(settings.profile)}, '
            f"rules: {', '.join(escape(rule.name) for rule in settings.rules if rule.enabled)}</p>"
        )

    def _cards(self, picture: StatusSnapshot) -> str:
        saved, summary = self._vitals.saved_last, picture.summary
        lags = [one.lag for one in picture.partitions.values() if one.lag is not None]
        behind = "-"
        if picture.watermark_ms is not None:
            behind = _span(picture.taken - picture.watermark_ms / 1000)
        return _cards(
            [
                ("behind the clock", behind),
                ("watermark", "-" if picture.watermark_ms is None else _short(picture.watermark_ms)),
                ("records waiting", _number(sum(lags)) if lags else "-"),
                ("open episodes", _number(sum(picture.open_episodes.values()))),
                ("alerts of this run", _number(sum(summary.alerts.values()))),
                ("live keys", f"{_number(picture.keys)} of {_number(self._vitals.settings.limits.max_keys)}"),
                ("dead letters", _number(sum(summary.dead_lettered.values()))),
                (
                    "last checkpoint",
                    "none yet" if saved is None else f"{_span(picture.taken - saved.at)} ago",
                ),
            ]
        )

    def _keys(self) -> list[str]:
        detector = self._vitals.detector
        if detector is None:
            return []
        episodes = open_keys(detector)
        head = ("destination", "process", "host", "since", "connections", "an hour", "hours", "last event")
        rows = [_episode(standing) for standing in episodes[:_MOST_ROWS]]
        more = (
            f'<p class="soft">and {len(episodes) - _MOST_ROWS} more</p>' if len(episodes) > _MOST_ROWS else ""
        )
        near = [_near(standing) for standing in self._nearby()]
        return [
            "<h2>Open episodes</h2>",
            _table(head, rows, "keys") + more if rows else '<p class="soft">none</p>',
            "<h2>Nearest to the threshold</h2>",
            _table(("destination", "process", "host", "has", "still needs"), near, "keys")
            if near
            else '<p class="soft">no other key has an eighth of the events that it needs</p>',
        ]

    def _nearby(self) -> list[KeyStatus]:
        """Made anew only now and then: it walks all keys."""
        detector = self._vitals.detector
        with self._lock:
            begun = time.monotonic()
            if detector is not None and begun - self._surveyed >= self._pause:
                self._nearest = closest_keys(detector, _NEAREST)
                self._surveyed = time.monotonic()
                self._pause = max(_SURVEY_SECONDS, _SURVEY_SHARE * (self._surveyed - begun))
            return self._nearest


def _episode(one: KeyStatus) -> list[str]:
    figures = one.figures
    return [
        *_who(one),
        "-" if one.episode is None else _short(one.episode.opened_ms),
        _number(figures.events),
        _number(figures.connections_per_hour),
        str(figures.duration_hours),
        _short(figures.last_ms),
    ]


def _near(one: KeyStatus) -> list[str]:
    figures = one.figures
    has = (
        f"{_number(figures.events)} connections in {(figures.last_ms - figures.first_ms) / _HOUR_MS:.1f} h, "
        f"{_number(figures.connections_per_hour)} an hour"
    )
    return [*_who(one), has, "; ".join(lacking(one)) or "the next tick"]


def lacking(one: KeyStatus) -> list[str]:
    """What still separates a key from its thresholds (semantics.md §3)."""
    found = conditions(figures_block(one.figures), thresholds_block(one.rule.limits))
    return [condition.missing for condition in found if condition.missing is not None]


def _who(one: KeyStatus) -> list[str]:
    host = one.context.host_name or one.context.host_id or "-"
    process = one.key.process if one.key.sensor is None else f"{one.key.process} ({one.key.sensor})"
    address = "no address" if one.key.address is None else one.key.address
    return [_cut(address), process, _cut(host if isinstance(host, str) else ", ".join(host))]


def _cut(text: str) -> str:
    """A keyword may have a thousand characters."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _partitions(partitions: Mapping[Partition, PartitionStatus]) -> str:
    rows = []
    worst = sorted(partitions.items(), key=lambda item: (-(item[1].lag or 0), item[0]))
    for where, one in worst[:_MOST_ROWS]:
        state = (
            "held back" if one.held else "idle" if one.idle else "at its end" if one.lag == 0 else "reading"
        )
        rows.append(
            [
                f"{where.topic} {where.number}",
                "-" if one.lag is None else _number(one.lag),
                "-" if one.position is None else str(one.position),
                "-" if one.watermark_ms is None else _short(one.watermark_ms),
                state,
            ]
        )
    more = f'<p class="soft">and {len(worst) - _MOST_ROWS} more</p>' if len(worst) > _MOST_ROWS else ""
    return "<h2>Partitions</h2>" + _table(("partition", "lag", "offset", "watermark", "state"), rows) + more


def _letters(refused: dict[str, int]) -> str:
    if not refused:
        return '<h2>Dead letters</h2><p class="soft">none</p>'
    rows = [[reason, _number(count)] for reason, count in refused.items()]
    return "<h2>Dead letters</h2>" + _table(("reason", "records"), rows)


def _outcomes(picture: StatusSnapshot) -> str:
    summary = picture.summary
    rows = [["count for a rule", _number(summary.counted)], ["too late", _number(summary.late)]]
    rows += [[f"filtered by {reason}", _number(count)] for reason, count in summary.filtered.items()]
    return f"<h2>Records</h2><p>{_number(summary.consumed)} read by this run</p>" + _table(
        ("outcome", "records"), rows
    )


def _cards(cards: Iterable[tuple[str, str]]) -> str:
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{name}</span></div>' for name, value in cards
    )
    return f'<div class="cards">{inner}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    names = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{name}">{escape(value)}</td>' for name, value in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    body = f"<thead><tr>{names}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def _number(value: int) -> str:
    return f"{value:,}"


def _short(ms: int) -> str:
    """To the second, without the letters."""
    return iso(ms)[:-5].replace("T", " ")


def _span(seconds: float) -> str:
    """`42 s`, `12 min`, `3 h 5 min`, `4 d 2 h`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
