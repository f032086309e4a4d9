"""The result of a backtest: made by `service.bounded`, shown by `report`. Times in ms since the epoch, UTC."""

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
    """Records of one hour of event time by verdict: `counted`, `late`, or a filter reason.

    Dead letters with a readable time are in `future_time`; the others have no hour.
    """

    start_ms: int
    by_verdict: dict[str, int]


@dataclass(slots=True)
class InputSummary:
    """What was read. `shapes` counts records by shape (`events.shapes`).

    `first_ms` is the time of the earliest event that counts, `last_ms` the newest partition clock; neither includes
    leaps that were not believed. None if there is none.
    """

    inputs: tuple[str, ...]
    first_ms: int | None
    last_ms: int | None
    shapes: dict[str, int]
    volumes: list[Volume]


@dataclass(slots=True)
class Variant:
    """One set of settings. `changes` are the settings that differ from the base, path to value as text.

    `summary` is the summary of `replay --summary-json`. `diff` is against the base; None for the base itself.
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
    """The whole result of a backtest. `variants` are all variants except `base`.

    `near` are the near misses of the base, the closest first, at most `near_limit`. `tracked_keys` are keys with an
    episode in the base, as far as they were kept (`detect.near_misses`). `compared_with` is the other side of `diff`.
    `stopped` means that the input was not read to its end: the run was interrupted, or ended by `problem`.
    """

    settings: Settings
    reading: InputSummary
    base: Variant
    variants: Sequence[Variant]
    near: Sequence[TrackedKey]
    tracked_keys: Mapping[KeyName, TrackedKey]
    first_tick_ms: int | None
    last_tick_ms: int | None
    seconds: float
    stopped: bool = False
    problem: StreamdetectError | None = None
    near_limit: int = 0
    diff: Diff | None = None
    compared_with: str | None = None
    verdicts: Sequence[Verdict] = ()
    remarks: list[str] = field(default_factory=list)

    @property
    def days(self) -> float:
        """Days of evaluated event time, at least one tick."""
        if self.first_tick_ms is None or self.last_tick_ms is None:
            return 0.0
        interval_ms = self.settings.time.interval_ms
        return (self.last_tick_ms - self.first_tick_ms + interval_ms) / 86_400_000
