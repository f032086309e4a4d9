"""What to generate: how many hosts, for how long, with which beacons."""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamdetect.config.units import parse_duration_ms

HOUR_MS = 3_600_000

SHAPES = ("defend", "sysmon-raw", "sysmon-ecs", "mixed")

_PERCENT = re.compile(r"([0-9]+)%")


_LAST_MS = 253_370_764_800_000  # 9999-01-01T00:00:00Z: local times are written too


@dataclass(frozen=True, slots=True)
class Beacon:
    """A call every `period_ms`; the gap between two calls is `period_ms` plus or minus `jitter_ms`.

    One call is one record in every shape. Several `processes` or `hosts` call in turn: the default hunt must
    not detect such a beacon.
    """

    period_ms: int
    jitter_ms: int = 0
    processes: int = 1
    hosts: int = 1

    def __post_init__(self) -> None:
        if self.period_ms < 1:
            raise ValueError(f"a beacon's period must be at least 1 ms, not {self.period_ms} ms")
        if not 0 <= self.jitter_ms < self.period_ms:
            given = f"{self.jitter_ms} ms against {self.period_ms} ms"
            raise ValueError(f"a beacon's jitter must be shorter than its period, not {given}")
        if self.processes < 1 or self.hosts < 1:
            raise ValueError("a beacon needs at least one process and one host")


def parse_beacon(text: str) -> Beacon:
    """`30s,20%` or `30s,5s`: period, then jitter as a share of the period or as a duration."""
    period_text, comma, jitter_text = (part.strip() for part in text.partition(","))
    if not comma:
        raise ValueError(f"a beacon is PERIOD,JITTER like 25s,20% or 25s,5s, not {text!r}")
    period_ms = _duration_ms(period_text, "period", text)
    percent = _PERCENT.fullmatch(jitter_text)
    jitter_ms = period_ms * int(percent[1]) // 100 if percent else _duration_ms(jitter_text, "jitter", text)
    return Beacon(period_ms, jitter_ms)


def _duration_ms(text: str, what: str, whole: str) -> int:
    try:
        return parse_duration_ms(text)
    except ValueError:
        wanted = "a duration like 500ms, 25s or 5m" + (", or a share like 20%" if what == "jitter" else "")
        raise ValueError(f"the {what} of the beacon {whole!r} must be {wanted}, not {text!r}") from None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario. `events_per_host_hour` is the mean over a day; nights are quieter. Beacons are added."""

    hosts: int = 50
    hours: float = 24
    start_ms: int = 1_772_409_600_000  # 2026-03-02T00:00:00Z, a Monday
    beacons: tuple[Beacon, ...] = ()
    seed: int = 1
    shape: str = "mixed"
    events_per_host_hour: float = 120

    def __post_init__(self) -> None:
        if self.hosts < 1:
            raise ValueError(f"a scenario needs at least one host, not {self.hosts}")
        if not 0 < self.hours < 1_000_000:
            raise ValueError(f"hours must be above 0 and below 1,000,000, not {self.hours:g}")
        if self.start_ms < 0 or self.end_ms > _LAST_MS:
            raise ValueError("a scenario must begin in 1970 or later and end before the year 9999")
        if not 0 <= self.events_per_host_hour < 1_000_000:
            raise ValueError(f"events per host and hour must be 0 or more, not {self.events_per_host_hour}")
        if any(beacon.hosts > self.hosts for beacon in self.beacons):
            raise ValueError(f"a beacon cannot run on more hosts than the {self.hosts} of the scenario")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}: choose one of {', '.join(SHAPES)}")

    @property
    def end_ms(self) -> int:
        return self.start_ms + round(self.hours * HOUR_MS)
