"""The counts of a run: the values of `--summary-json` (docs/reference.md, Summary)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Summary:
    """Counts of records and alerts. Always consumed = counted + filtered + late + dead_lettered."""

    consumed: int = 0
    counted: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    late: int = 0
    dead_lettered: dict[str, int] = field(default_factory=dict)
    alerts: dict[str, int] = field(default_factory=dict)
    ticks: int = 0
    keys_peak: int = 0
    suspect_leaps: int = 0
    seconds: float = 0.0
    late_arrivals: int = 0
    evicted: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
