"""What a backtest found: `service.backtest` fills it in, `report` shows it. Times in ms since the epoch, UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamdetect.config import Settings
from streamdetect.detect.near_misses import TrackedKey
from streamdetect.errors import StreamdetectError
from streamdetect.findings.diff import Diff
from streamdetect.findings.episodes import Episode, KeyName
from streamdetect.findings.expectations import Verdict


@dataclass(slots=True)
class Volume:
    """Records of one hour of event time, by what became of them: `counted`, `late`, or a reason of filtering.

    Dead letters with a readable time (`future_time`) are in `future_time`; the others have no hour.
    """

    start_ms: int
    by_verdict: dict[str, int]


@dataclass(slots=True)
class InputSummary:
    """What was read. `shapes` counts records by who wrote them (`events.shapes`).

    `first_ms` is the time of the earliest event that counts, `last_ms` the newest partition clock: wild ones are in
    neither. None where there is none.
    """

    inputs: tuple[str, ...]
    first_ms: int | None
    last_ms: int | None
    shapes: dict[str, int]
    volumes: list[Volume]


@dataclass(slots=True)
class Variant:
    """One set of settings that was tried. `changes` are the settings that differ from the base, path to value as text.

    `summary` is that of `replay --summary-json`. `diff` is against the base; None for the base itself.
    """

    name: str
    changes: Mapping[str, str]
    settings: Settings
    summary: Mapping[str, Any]
    episodes: Sequence[Episode]
    diff: Diff | None = None
    verdicts: Sequence[Verdict] = ()

    @property
    def hosts(self) -> int:
        """Distinct hosts in its episodes."""
        return len({episode.host for episode in self.episodes if episode.host is not None})


@dataclass(slots=True)
class Outcome:
    """Everything a backtest found. `variants` are those beside `base`.

    `near` are the keys without an episode in the base that came nearest, the nearest first. `tracks` hold the course of
    keys with an episode in the base, as far as they were kept (`detect.tracks`). `compared_with` names what `diff` is
    against. `stopped` says that the input was not read to its end: it was interrupted, or `problem` broke it off.
    `asked_near` is how many near misses were asked for.
    """

    settings: Settings
    reading: InputSummary
    base: Variant
    variants: Sequence[Variant]
    near: Sequence[TrackedKey]
    tracks: Mapping[KeyName, TrackedKey]
    first_tick_ms: int | None
    last_tick_ms: int | None
    seconds: float
    stopped: bool = False
    problem: StreamdetectError | None = None
    asked_near: int = 0
    diff: Diff | None = None
    compared_with: str | None = None
    verdicts: Sequence[Verdict] = ()
    remarks: list[str] = field(default_factory=list)

    @property
    def days(self) -> float:
        """Days of event time that were evaluated, at least one tick."""
        if self.first_tick_ms is None or self.last_tick_ms is None:
            return 0.0
        interval_ms = self.settings.time.interval_ms
        return (self.last_tick_ms - self.first_tick_ms + interval_ms) / 86_400_000
