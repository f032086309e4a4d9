"""Where the state is kept: one contract, SQLite in a directory, and memory for tests.

Belongs here: writing changes so that all of a checkpoint is there or nothing of it, finding damage when it is opened,
formats, and who may write. Does not belong here: what the state means (detect), or when it is saved (service).

The door of sqlite3.
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
    """What has changed since the checkpoint before, `number` - 1.

    `keys` are `key` and `forgotten` rows, each key once; `waiting` are new `waiting` rows; those of ticks up to
    `done_ms` that were saved before are dropped. `partitions`, `pending` and `file_offsets` are whole each time: positions
    and clocks, what was decided but is not yet known to be published, and how long each output file was before that.
    What is iterable may be iterated again, should a save have failed.
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
    """All that a store holds: the last checkpoint, added up. `rows()` gives it in the order that an import takes.

    `keys` and `waiting` are read while they are iterated, once, and raise CheckpointError for damage. `settings` are
    those it was made with.
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
        yield self.progress
        yield from self.partitions
        yield from self.keys
        yield from self.waiting


class CheckpointStore(Protocol):
    """Keeps the last checkpoint. One thread at a time calls it."""

    @property
    def state(self) -> str:
        """The name of this state, made up when the store was made: another directory has another one."""
        ...

    def claim(self, owner: str) -> None:
        """From now on only this owner's saves are taken. Raises StateError if that cannot be written."""
        ...

    def load(self) -> Stored | None:
        """The last checkpoint, None if there never was one.

        Raises CheckpointError for anything that is there and cannot be used: never a silent fresh start.
        """
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint to what is stored: all of it or nothing.

        Raises StateError, then nothing has changed; FencedError if somebody else has claimed the store since.
        """
        ...

    def size_bytes(self) -> int:
        """What is stored takes this much."""
        ...

    def close(self) -> None:
        """Give back what is held open; a second call does nothing."""
        ...
