"""Checkpoint stores: the contract, one store in SQLite, and one in memory for tests.

Belongs here: saving changes atomically, detecting damage on opening, file formats, and fencing earlier owners. Does not
belong here: the meaning of the state (detect), or when it is saved (service).

The only package that imports sqlite3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Checkpoint", "CheckpointStore", "Row", "Stored"]

Row = dict[str, Any]
"""Plain JSON data, as `streamdetect.detect.serde` makes it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The changes since the previous checkpoint, `number` - 1.

    `keys` are `key` and `forgotten` rows, each key once. `waiting` are new `waiting` rows; stored ones of ticks up to
    `done_ms` are deleted. `partitions` (positions and clocks), `pending` (outputs that are decided and possibly not yet
    published) and `file_offsets` (the length of each output file before those outputs) replace the stored ones.
    Iterables must be iterable again, because a failed save is retried.
    """

    number: int
    progress: Row
    partitions: Sequence[Row]
    keys: Iterable[Row] = ()
    waiting: Iterable[Row] = ()
    done_ms: int | None = None
    pending: Iterable[Row] = ()
    file_offsets: Mapping[str, Row] = field(default_factory=dict)


@dataclass(slots=True)
class Stored:
    """The whole state as of the last checkpoint.

    `keys` and `waiting` can be iterated once, are read from the store meanwhile, and raise CheckpointError for damage.
    `settings` are the settings that the checkpoint was made with.
    """

    number: int
    progress: Row
    partitions: list[Row]
    keys: Iterable[Row] = field(default_factory=list)
    waiting: Iterable[Row] = field(default_factory=list)
    pending: list[Row] = field(default_factory=list)
    file_offsets: dict[str, Row] = field(default_factory=dict)
    settings: Row = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """The rows of the detector's state, in the order that its import requires."""
        yield self.progress
        yield from self.partitions
        yield from self.keys
        yield from self.waiting


class CheckpointStore(Protocol):
    """Keeps the last checkpoint. Not thread-safe."""

    @property
    def state(self) -> str:
        """A random id that the store got when it was created."""
        ...

    def claim(self, owner: str) -> None:
        """Fence earlier owners: from now on only saves of `owner` succeed. Raises StateError if that fails."""
        ...

    def load(self) -> Stored | None:
        """The last checkpoint, None if none was ever saved.

        Raises CheckpointError if the store has content that cannot be used: never a silent fresh start.
        """
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Apply a checkpoint atomically.

        Raises StateError when it fails, and FencedError when another owner has claimed the store; the last checkpoint
        is intact then.
        """
        ...

    def size_bytes(self) -> int:
        """The size of the stored data."""
        ...

    def close(self) -> None:
        """Release resources. Idempotent."""
        ...
