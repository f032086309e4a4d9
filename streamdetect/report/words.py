"""Values in words: times, spans, numbers, reasons, the arithmetic of a condition. No markup."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamdetect.detect.alerts import iso
from streamdetect.detect.conditions import ConditionName, Thresholds

LONGEST = 80
"""Most characters of a value in a table; the full text is in its title."""

_HOUR_MS = 3_600_000
_MOST_MARKS = 2
# Controls, format characters (bidi, zero width), surrogates, unassigned, line separators: which hide or reorder text.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

REASONS = {
    "expired": "no event was left in the window",
    "second_host": "more hosts than the rule allows had contacted it",
    "second_process": "more process instances than the rule allows had contacted it",
    "no_host": "no host was known any more",
    "no_process": "no process instance was known any more",
    "duration": "the time from the first to the last event in the window had become too short",
    "rate": "too few connections an hour were left in the window",
}


@dataclass(frozen=True, slots=True)
class ConditionText:
    """One of the four conditions of semantics.md §3 at one tick, in words. `missing` is None where it holds."""

    name: str
    value: int
    threshold: int
    holds: bool
    sentence: str
    missing: str | None


def visible(text: str) -> str:
    """The text with characters that hide, reorder or pile up text written as their code points."""
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = 0
    for character in text:
        kind = unicodedata.category(character)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        hidden = kind in _HIDDEN or (kind == "Zs" and character != " ") or marks > _MOST_MARKS
        shown.append(f"⟨U+{ord(character):04X}⟩" if hidden else character)
    return "".join(shown)


def sound(text: str) -> str:
    """The text with lone surrogates (possible in file names) escaped, so that it can be encoded in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def joined(value: object) -> str | None:
    """A value of an event as one text: several are joined by commas; None if missing."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    return str(value)


def destination_text(address: str | None) -> str:
    return "no address" if address is None else address


def number(value: float) -> str:
    """Whole numbers with separators, others with one decimal."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def moment(ms: int) -> str:
    """2026-03-02 04:00, with seconds only if they are not zero."""
    text = iso(ms)[:-5].replace("T", " ")
    return text.removesuffix(":00")


def span(ms: float) -> str:
    """`340 ms`, `42.5 s`, `12 min`, `3 h 5 min`, `4 d 2 h`."""
    if ms < 1_000:
        return f"{round(ms)} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f}".removesuffix(".0") + " s"
    minutes = round(ms / 60_000)
    if minutes < 120 and minutes != 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def exact(ms: int) -> str:
    """A span without rounding: `27.5 s`, `30 min 10 s`, `5 min 0.002 s`, `3 h 30 min`, `2 d 1 h`."""
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 120_000:
        return _seconds(ms)
    hours, rest_ms = divmod(ms, _HOUR_MS)
    days, hours = divmod(hours, 24) if hours >= 48 else (0, hours)
    minutes, rest_ms = divmod(rest_ms, 60_000)
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join([*parts, _seconds(rest_ms)] if rest_ms else parts)


def _seconds(ms: int) -> str:
    whole, thousandths = divmod(ms, 1_000)
    return f"{whole}.{thousandths:03d}".rstrip("0").rstrip(".") + " s"


def share(part: float, digits: int) -> float:
    """A rounded share. A share below 1 is never rounded up to 1."""
    rounded = round(part, digits)
    return 1 - 10**-digits if part < 1 <= rounded else rounded


def shift(ms: int) -> str:
    """`5 min later`, `1 h earlier`."""
    return f"{span(abs(ms))} {'later' if ms >= 0 else 'earlier'}"


def conditions(
    figures: Mapping[str, int], thresholds: Mapping[str, int], told_apart: int = 0
) -> Sequence[ConditionText]:
    """The four conditions in words, from figures and thresholds under the names of the alert.

    Up to `told_apart` hosts and processes were counted, also beyond the threshold.
    """
    limits = Thresholds(**thresholds)
    rate, hours = figures.get("number_of_con_per_hour", 0), figures.get("duration_hours", 0)
    hosts, processes = figures.get("hosts", 0), figures.get("count_unique_pids", 0)
    texts: dict[ConditionName, tuple[str, str]] = {
        "rate": _rate(figures.get("count_connections", 0), rate, hours, limits),
        "duration": _duration(figures.get("first_seen_ms"), figures.get("last_seen_ms"), hours, limits),
        "hosts": _distinct("host", hosts, limits.max_hosts, told_apart),
        "processes": _distinct("process instance", processes, limits.max_processes, told_apart),
    }
    return [
        ConditionText(
            *condition, texts[condition.name][0], None if condition.holds else texts[condition.name][1]
        )
        for condition in limits.conditions(rate, hours, hosts, processes)
    ]


def _rate(events: int, rate: int, hours: int, limits: Thresholds) -> tuple[str, str]:
    """The sentence, and what is missing."""
    return (
        f"{number(events)} connections // {number(max(1, hours))} h = {number(rate)} an hour,"
        f" at least {number(limits.min_connections_per_hour)}",
        f"{number(limits.events_for(hours) - events)} connections more at {number(max(1, hours))} h",
    )


def _duration(first_ms: int | None, last_ms: int | None, hours: int, limits: Thresholds) -> tuple[str, str]:
    if first_ms is None or last_ms is None:
        span_ms, text = 0, "no event in the window"
    else:
        span_ms = last_ms - first_ms
        text = f"{iso(first_ms)} to {iso(last_ms)} is {span_ms / 1000:,.3f} s, rounded {number(hours)} h"
    return (
        f"{text}, at least {number(limits.min_duration_hours)}",
        f"{exact(limits.min_span_ms - span_ms)} more from the first to the last event",
    )


def _distinct(noun: str, count: int, most: int, told_apart: int) -> tuple[str, str]:
    counted = f"at least {number(count)}" if count > max(most, told_apart) else number(count)
    allowed = "1" if most == 1 else f"1 to {number(most)}"
    missing = f"at most {number(most)} {noun}{'' if most == 1 else 's'}, seen {counted}"
    return (
        f"{counted} {noun}{'' if count == 1 else 's'} (allowed: {allowed})",
        f"a known {noun}" if count == 0 else missing,
    )
