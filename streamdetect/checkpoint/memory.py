"""A checkpoint store in memory, for tests. Rows are kept as JSON text, so no object is shared with the detector."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field

from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.checkpoint.rows import check_owner, is_done, key_name, text
from streamdetect.errors import StateError


@dataclass(slots=True)
class _Disk:
    """What a file would contain."""

    state: str = field(default_factory=lambda: uuid.uuid4().hex)
    owner: str | None = None
    number: int | None = None
    replaced: str = "{}"
    keys: dict[str, str] = field(default_factory=dict)
    waiting: list[tuple[int, str]] = field(default_factory=list)


class MemoryStore:
    """A store that ends with the process. The next `fail_next` saves raise StateError, as on a full disk."""

    def __init__(self) -> None:
        self.fail_next = 0
        self.saves = 0
        self._medium = _Disk()
        self._owner: str | None = None

    def opened_again(self) -> MemoryStore:
        """The same store, opened as by another process."""
        other = MemoryStore()
        other._medium = self._medium
        return other

    @property
    def state(self) -> str:
        return self._medium.state

    def claim(self, owner: str) -> None:
        self._medium.owner = self._owner = owner

    def load(self) -> Stored | None:
        medium = self._medium
        if medium.number is None:
            return None
        return Stored(
            number=medium.number,
            keys=[json.loads(line) for line in medium.keys.values()],
            waiting=[json.loads(line) for _, line in medium.waiting],
            **json.loads(medium.replaced),
        )

    def save(self, checkpoint: Checkpoint) -> None:
        medium, done_ms = self._medium, checkpoint.done_ms
        check_owner("memory", medium.owner, self._owner)
        keys, waiting = list(checkpoint.keys), list(checkpoint.waiting)
        if self.fail_next:
            self.fail_next -= 1
            raise StateError("this save fails because of fail_next")
        for row in keys:
            name = key_name(row)
            if row["kind"] == "forgotten":
                medium.keys.pop(name, None)
            else:
                medium.keys[name] = text(row)
        kept = [(tick_ms, line) for tick_ms, line in medium.waiting if not is_done(tick_ms, done_ms)]
        new = [(row["tick_ms"], text(row)) for row in waiting if not is_done(row["tick_ms"], done_ms)]
        medium.waiting = kept + new
        medium.number = checkpoint.number
        medium.replaced = text(_replaced(checkpoint))
        self.saves += 1

    def size_bytes(self) -> int:
        medium = self._medium
        texts = (*medium.keys.values(), *(line for _, line in medium.waiting), medium.replaced)
        return sum(map(len, texts))

    def close(self) -> None:
        """Nothing to release."""


def _replaced(checkpoint: Checkpoint) -> Row:
    """The parts that each checkpoint replaces."""
    return {
        "progress": checkpoint.progress,
        "partitions": list(checkpoint.partitions),
        "pending": list(checkpoint.pending),
        "file_offsets": dict(checkpoint.file_offsets),
    }
