"""Times as Elasticsearch's default `date` field reads them (docs/semantics.md §1).

All functions return whole milliseconds since the epoch, UTC, or None for a text that is not a time. Extra digits are
truncated, not rounded.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

from streamdetect.events.values import flatten

# 292 million years, 278,000 years less than the range of 64 bits: panes, ticks and windows around a time must fit
# too, and no setting is longer than ten years.
_MAX_MS: Final = 292_000_000 * 31_556_952_000

# ISO 8601 as in strict_date_optional_time: parts are optional from the right.
_DATE = r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?"
_CLOCK = r"(\d{2})(?::(\d{2})(?::(\d{2})(?:[.,](\d{1,%s}))?)?)?"
_ZONE = r"(Z|[+-]\d{2}(?::?\d{2}(?::?\d{2})?)?)?"
_STRICT = re.compile(_DATE + "(?:T(?:" + _CLOCK % "9" + _ZONE + ")?)?", re.ASCII)
_RESILIENT = re.compile(_DATE + "(?:[T ](?:" + _CLOCK % "" + _ZONE + ")?)?", re.ASCII)
_EPOCH_TEXT = re.compile(r"(-?\d{5,19})(?:\.\d*)?", re.ASCII)

_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_ORDINALS_IN_400_YEARS: Final = 146_097
_HOUR_MS: Final = 3_600_000
_MINUTE_MS: Final = 60_000
_MAX_OFFSET_MS: Final = 18 * _HOUR_MS
_CACHE_SIZE: Final = 16_384


class TimeReader:
    """Reads `@timestamp` values under one profile.

    Caches texts up to the second, because records of one batch share them and only the fraction differs.
    """

    def __init__(self, *, resilient: bool) -> None:
        self._pattern = _RESILIENT if resilient else _STRICT
        self._seconds: dict[str, int] = {}
        self._utc_minutes: dict[str, int] = {}  # separate: their blank is accepted nowhere else in `strict`

    def read(self, value: object) -> int | None:
        """Milliseconds of a JSON value: a text, a number of epoch milliseconds, or a list with exactly one value."""
        if type(value) is str:
            # The most frequent form: 2026-03-02T00:00:00.123(4567)Z
            base = self._seconds.get(value[:20])
            if base is not None:
                digits = value[20:-1]
                if digits.isdigit() and 2 < len(digits) < 10 and value[-1] == "Z" and value.isascii():
                    return base + int(digits[:3])
            return self._text(value)
        if isinstance(value, bool):
            return None
        if isinstance(value, (int, float)):
            return int(value) if abs(value) <= _MAX_MS else None
        if isinstance(value, list):
            return self._single(value)
        return None

    def read_utc(self, text: str) -> int | None:
        """`read_utc_time` with a cache of minutes."""
        if len(text) == 23 and text[10] == " " and text[19] == "." and text.isascii():
            base = self._utc_minutes.get(text[:17])
            if base is None:
                base = read_utc_time(text[:17] + "00.000")
                if base is None:
                    return None
                _store(self._utc_minutes, text[:17], base)
            digits = text[17:19] + text[20:]
            if digits < "60" and digits.isdigit():
                return base + int(digits)
        return read_utc_time(text)

    def _single(self, values: list[object]) -> int | None:
        """A date field of a data stream accepts one value; an array with exactly one is that value."""
        present = list(flatten(values))
        return self.read(present[0]) if len(present) == 1 else None

    def _text(self, text: str) -> int | None:
        match = self._pattern.fullmatch(text)
        if match is None:
            match = _EPOCH_TEXT.fullmatch(text)
            return None if match is None else _bounded(int(match[1]))
        ms = _from_parts(match.groups())
        if ms is not None and text[10:11] == "T" and text[19:20] == "." and text[-1] == "Z":
            _store(self._seconds, text[:20], ms - ms % 1000)
        return ms


def _store(cache: dict[str, int], text: str, ms: int) -> None:
    if len(cache) > _CACHE_SIZE:
        cache.clear()
    cache[text] = ms


def read_utc_time(value: object) -> int | None:
    """Sysmon's `UtcTime`: `YYYY-MM-DD HH:MM:SS.mmm`, UTC, no zone (docs/events.md). None if malformed."""
    if not isinstance(value, str) or len(value) < 10:
        return None
    match = _RESILIENT.fullmatch(value.strip())
    return None if match is None else _from_parts(match.groups())


def _from_parts(parts: tuple[str | None, ...]) -> int | None:
    year, month, day, hour, minute, second, fraction, zone = parts
    days = _days(int(year or 0), int(month or 1), int(day or 1))
    if days is None:
        return None
    h, m, s = int(hour or 0), int(minute or 0), int(second or 0)
    if h > 23 or m > 59 or s > 59:
        return None
    offset = _offset_ms(zone)
    if offset is None:
        return None
    ms = int((fraction or "")[:3].ljust(3, "0"))
    return days * 86_400_000 + h * _HOUR_MS + m * _MINUTE_MS + s * 1000 + ms - offset


def _days(year: int, month: int, day: int) -> int | None:
    """Days since the epoch. Year 0 is valid for Elasticsearch, but not for `datetime`."""
    shift = 400 if year < 400 else 0  # the calendar repeats every 400 years
    try:
        ordinal = date(year + shift, month, day).toordinal()
    except ValueError:
        return None
    return ordinal - _EPOCH_ORDINAL - (_ORDINALS_IN_400_YEARS if shift else 0)


def _offset_ms(zone: str | None) -> int | None:
    if zone is None or zone == "Z":
        return 0
    digits = zone[1:].replace(":", "").ljust(6, "0")
    h, m, s = int(digits[:2]), int(digits[2:4]), int(digits[4:6])
    offset = h * _HOUR_MS + m * _MINUTE_MS + s * 1000
    if m > 59 or s > 59 or offset > _MAX_OFFSET_MS:
        return None
    return -offset if zone[0] == "-" else offset


def _bounded(ms: int) -> int | None:
    return ms if abs(ms) <= _MAX_MS else None
