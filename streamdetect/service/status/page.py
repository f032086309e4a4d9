"""The status page: one HTML document that refreshes its content every few seconds.

Everything that came from the network is escaped, and the Content-Security-Policy allows only page.css and page.js,
which are inlined. The page shows no setting of the Kafka connection.
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
from streamdetect.findings.ranking import KeyStatus, closest_keys, open_keys
from streamdetect.model import Partition
from streamdetect.report.words import conditions
from streamdetect.service.status.state import PartitionStatus, RunStatus, StatusSnapshot

_MOST_ROWS = 50
_MOST_CLOSEST = 10
_MOST_CHARACTERS = 80
_RANKING_SECONDS = 10.0
_RANKING_SHARE = 20
"""All keys are ranked at most once in so many seconds, and for at most one part in so many of the time."""

_HOUR_MS = 3_600_000

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8").strip()
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; style-src 'sha256-{_digest(_STYLE)}'; script-src 'sha256-{_digest(_SCRIPT)}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of every response."""


class Page:
    """The page of one run. Thread-safe."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status
        self._lock = threading.Lock()
        self._ranked_at = float("-inf")
        self._pause = 0.0
        self._closest: list[KeyStatus] = []

    def document(self) -> str:
        """The whole HTML document."""
        group = escape(self._status.settings.kafka.group_id)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>streamdetect: {group}</title><link rel="icon" href="data:,">'
            '<noscript><meta http-equiv="refresh" content="10"></noscript>'
            f"<style>{_STYLE}</style></head><body><main>{self.content()}</main>"
            f'<p class="soft">streamdetect {__version__} · <span id="seen" class="soft">all times are UTC</span> · '
            f'<a href="metrics">metrics</a></p><script>{_SCRIPT}</script></body></html>'
        )

    def content(self) -> str:
        """The part that is refreshed."""
        snapshot = self._status.snapshot
        parts = [self._head()]
        if snapshot is not None:
            parts += [
                self._cards(snapshot),
                *self._keys(),
                _partitions(snapshot.partitions),
                _dead_letters(snapshot.summary.dead_lettered),
                _records(snapshot),
            ]
        return "".join(parts)

    def _head(self) -> str:
        status = self._status
        reason = status.not_ready_reason()
        kind, state = ("good", "detecting") if reason is None else ("bad", escape(reason))
        settings = status.settings
        topics = settings.kafka.topic_pattern or ", ".join(settings.kafka.topics)
        return (
            f'<h1>streamdetect · {escape(settings.kafka.group_id)}</h1><p class="state {kind}">{state}</p>'
            f'<p class="soft">reads {escape(topics)}, profile {escape(settings.profile)}, '
            f"rules: {', '.join(escape(rule.name) for rule in settings.rules if rule.enabled)}</p>"
        )

    def _cards(self, snapshot: StatusSnapshot) -> str:
        saved, summary = self._status.last_checkpoint, snapshot.summary
        lags = [one.lag for one in snapshot.partitions.values() if one.lag is not None]
        limit = self._status.settings.limits.max_keys
        behind, saved_ago = "-", "none yet"
        if saved is not None:
            saved_ago = f"{_span(snapshot.wall_seconds - saved.wall_seconds)} ago"
        if snapshot.watermark_ms is not None:
            behind = _span(snapshot.wall_seconds - snapshot.watermark_ms / 1000)
        return _cards(
            [
                ("behind the clock", behind),
                ("watermark", "-" if snapshot.watermark_ms is None else _short(snapshot.watermark_ms)),
                ("unread records", _number(sum(lags)) if lags else "-"),
                ("open episodes", _number(sum(snapshot.open_episodes.values()))),
                ("alerts of this run", _number(sum(summary.alerts.values()))),
                ("live keys", f"{_number(snapshot.keys)} of {_number(limit)}"),
                ("dead letters", _number(sum(summary.dead_lettered.values()))),
                ("last checkpoint", saved_ago),
            ]
        )

    def _keys(self) -> list[str]:
        detector = self._status.detector
        if detector is None:
            return []
        episodes = open_keys(detector)
        head = ("destination", "process", "host", "since", "connections", "an hour", "hours", "last event")
        rows = [_episode_row(one) for one in episodes[:_MOST_ROWS]]
        more = (
            f'<p class="soft">and {len(episodes) - _MOST_ROWS} more</p>' if len(episodes) > _MOST_ROWS else ""
        )
        closest = [_closest_row(one) for one in self._closest_keys()]
        return [
            "<h2>Open episodes</h2>",
            _table(head, rows, "keys") + more if rows else '<p class="soft">none</p>',
            "<h2>Closest to the thresholds</h2>",
            _table(("destination", "process", "host", "has", "still needs"), closest, "keys")
            if closest
            else '<p class="soft">no other key has at least an eighth of the required events</p>',
        ]

    def _closest_keys(self) -> list[KeyStatus]:
        """Cached: a ranking iterates over all keys."""
        detector = self._status.detector
        with self._lock:
            started = time.monotonic()
            if detector is not None and started - self._ranked_at >= self._pause:
                self._closest = closest_keys(detector, _MOST_CLOSEST)
                self._ranked_at = time.monotonic()
                self._pause = max(_RANKING_SECONDS, _RANKING_SHARE * (self._ranked_at - started))
            return self._closest


def _episode_row(one: KeyStatus) -> list[str]:
    figures = one.figures
    return [
        *_key_cells(one),
        "-" if one.episode is None else _short(one.episode.opened_ms),
        _number(figures.events),
        _number(figures.connections_per_hour),
        str(figures.duration_hours),
        _short(figures.last_ms),
    ]


def _closest_row(one: KeyStatus) -> list[str]:
    figures = one.figures
    has = (
        f"{_number(figures.events)} connections in {(figures.last_ms - figures.first_ms) / _HOUR_MS:.1f} h, "
        f"{_number(figures.connections_per_hour)} an hour"
    )
    return [*_key_cells(one), has, "; ".join(lacking(one)) or "the next tick"]


def lacking(one: KeyStatus) -> list[str]:
    """What a key still lacks of each threshold (semantics.md §3)."""
    found = conditions(figures_block(one.figures), thresholds_block(one.rule.limits))
    return [condition.missing for condition in found if condition.missing is not None]


def _key_cells(one: KeyStatus) -> list[str]:
    host = one.context.host_name or one.context.host_id or "-"
    process = one.key.process if one.key.sensor is None else f"{one.key.process} ({one.key.sensor})"
    address = "no address" if one.key.address is None else one.key.address
    return [_cut(address), process, _cut(host if isinstance(host, str) else ", ".join(host))]


def _cut(text: str) -> str:
    """Truncated, because a keyword may have a thousand characters."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


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


def _dead_letters(refused: dict[str, int]) -> str:
    if not refused:
        return '<h2>Dead letters</h2><p class="soft">none</p>'
    rows = [[reason, _number(count)] for reason, count in refused.items()]
    return "<h2>Dead letters</h2>" + _table(("reason", "records"), rows)


def _records(snapshot: StatusSnapshot) -> str:
    summary = snapshot.summary
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
    """A time to the second, without T and Z."""
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
