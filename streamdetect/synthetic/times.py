"""Times as the sensors write them. Texts of seconds are cached: neighbours in a stream share them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=1024)
def second_text(second: int) -> str:
    """`2026-03-02T08:15:30`."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def _spaced(second: int) -> str:
    return second_text(second).replace("T", " ")


def iso_ms(time_ms: int) -> str:
    """`2026-03-02T08:15:30.123Z`, as Beats writes it."""
    return f"{second_text(time_ms // 1000)}.{time_ms % 1000:03d}Z"


def iso_100ns(time_ms: int, ticks: int) -> str:
    """`2026-03-02T08:15:30.1234567Z`, as Elastic Defend writes it; `ticks` (0-9999) go below the ms."""
    return f"{second_text(time_ms // 1000)}.{time_ms % 1000:03d}{ticks:04d}Z"


def utc_time(time_ms: int) -> str:
    """`2026-03-02 08:15:30.123`, as Sysmon writes UtcTime: UTC without a zone."""
    return f"{_spaced(time_ms // 1000)}.{time_ms % 1000:03d}"


def local_time(time_ms: int, offset_hours: int) -> str:
    """`2026-03-02 09:15:30`, as NXLog writes EventTime: local time without a zone."""
    return _spaced(time_ms // 1000 + offset_hours * 3600)
