"""Integrity check of a checkpoint: reads every row, checks it, and loads all of them into a detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.config import Settings
from streamdetect.detect import Detector, serde
from streamdetect.detect.conditions import Limits
from streamdetect.detect.windows import unpack_panes
from streamdetect.errors import CheckpointError
from streamdetect.model import EventContext, Partition
from streamdetect.service.inspect.open import read_checkpoint, settings_of
from streamdetect.service.live.outbox import outputs_of


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """An intact checkpoint, loaded. Detection settings come from it, all other settings from the caller."""

    number: int
    state: str
    settings: Settings
    evaluated_ms: int | None
    keys_peak: int
    offsets: dict[Partition, int]
    detector: Detector
    waiting: int
    pending: int

    def topics(self) -> list[str]:
        return sorted({partition.topic for partition in self.offsets})

    def text(self) -> str:
        """What was checked."""
        episodes = sum(self.detector.open_episodes().values())
        return (
            f"Checkpoint {self.number} is intact: keys {self.detector.keys:,}, open episodes {episodes:,}, waiting "
            f"pre-aggregates {self.waiting:,}, partitions {len(self.offsets):,}, pending outputs {self.pending:,}."
        )


def check_integrity(store: CheckpointStore, runtime: Settings | None = None) -> VerifiedCheckpoint:
    """Check and load the last checkpoint; `runtime` gives the settings that do not affect detection.

    Raises CheckpointError for damage, and for rows that no engine writes.
    """
    return read_checkpoint(store, lambda stored: _check(stored, store, runtime))


def _check(stored: Stored, store: CheckpointStore, runtime: Settings | None) -> VerifiedCheckpoint:
    detector = Detector(settings_of(stored, runtime))
    limits = {rule.id: rule.limits for rule in detector.rules}
    kinds: Counter[str] = Counter()

    def checked_rows() -> Iterator[Row]:
        for row in stored.rows():
            kinds[row["kind"]] += 1
            if row["kind"] in _CHECKS:
                _CHECKS[row["kind"]](row, limits[row["rule"]])
            yield row

    detector.import_state(checked_rows())
    return VerifiedCheckpoint(
        number=stored.number,
        state=store.state,
        settings=detector.settings,
        evaluated_ms=stored.progress["evaluated_ms"],
        keys_peak=stored.progress["keys_peak"],
        offsets={serde.partition_of(row): row["offset"] or 0 for row in stored.partitions},
        detector=detector,
        waiting=kinds["waiting"],
        pending=len(outputs_of(stored.pending)),
    )


def _check_key(row: Row, limits: Limits) -> None:
    """Checks that an engine can have written this window state, which a checksum does not show."""
    panes = list(unpack_panes(serde.state_of(row)[0]))
    indices = [pane.first_ms // limits.interval_ms for pane in panes]
    if not panes or indices != sorted(set(indices)):
        raise _invalid(row, "there are no panes, or they are out of order")
    ends = [pane.last_ms // limits.interval_ms for pane in panes]
    if ends != indices or any(pane.events < 1 for pane in panes):
        raise _invalid(row, "a pane has no events, or events of another pane")
    _check_context(row, len(row["details"]))


def _check_waiting(row: Row, limits: Limits) -> None:
    """Check that the engine can have made this pre-aggregate, as `_check_key` does for a window state."""
    count, first_ms, last_ms, context, _, _ = serde.pre_aggregate_of(row)
    pane_ms, interval_ms = row["pane_ms"], limits.interval_ms
    if (
        count < 1
        or row["tick_ms"] % interval_ms
        or not pane_ms <= first_ms <= last_ms < pane_ms + interval_ms
    ):
        raise _invalid(row, "a waiting pre-aggregate has no events, or events of another pane")
    _check_context(row, len(context))


def _check_context(row: Row, fields: int) -> None:
    if fields != len(EventContext._fields):
        raise _invalid(
            row, "the context of its latest event has another number of fields than in this version"
        )


_CHECKS = {"key": _check_key, "waiting": _check_waiting}


def _invalid(row: Row, problem: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint is damaged: for key {row['key']} of rule {row['rule']}, {problem}. Restore it from a backup, "
        "or rebuild it from Kafka with --rebuild."
    )
