"""The contract in memory, for tests: rows go through JSON text, so that nothing is shared with the engine."""

from __future__ import annotations

import json
from typing import Any

from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.errors import StateError


class MemoryStore:
    """A store that is gone with the process. `fail_next` makes the next save fail, as a full disk would."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._progress: str = "null"
        self._partitions: str = "[]"
        self._pending: str = "[]"
        self._keys: dict[str, str] = {}
        self._waiting: list[tuple[int, str]] = []
        self.fail_next = False

    def load(self) -> Stored | None:
        if self._number is None:
            return None
        return Stored(
            number=self._number,
            progress=json.loads(self._progress),
            partitions=json.loads(self._partitions),
            keys=[json.loads(text) for text in self._keys.values()],
            waiting=[json.loads(text) for _, text in self._waiting],
            pending=json.loads(self._pending),
        )

    def save(self, checkpoint: Checkpoint) -> None:
        keys, waiting = list(checkpoint.keys), list(checkpoint.waiting)
        if self.fail_next:
            self.fail_next = False
            raise StateError("the store was told to fail here")
        for row in keys:
            name = key_name(row)
            if row["kind"] == "forgotten":
                self._keys.pop(name, None)
            else:
                self._keys[name] = _text(row)
        kept = [
            (tick_ms, text) for tick_ms, text in self._waiting if not is_done(tick_ms, checkpoint.done_ms)
        ]
        new = [
            (row["tick_ms"], _text(row)) for row in waiting if not is_done(row["tick_ms"], checkpoint.done_ms)
        ]
        self._waiting = kept + new
        self._number = checkpoint.number
        self._progress = _text(checkpoint.progress)
        self._partitions, self._pending = _text(list(checkpoint.partitions)), _text(list(checkpoint.pending))

    def size_bytes(self) -> int:
        texts = (*self._keys.values(), *(text for _, text in self._waiting), self._partitions, self._pending)
        return sum(map(len, texts))

    def close(self) -> None:
        """Nothing to give back."""


def key_name(row: Row) -> str:
    """A key's name in a store."""
    return _text([row["rule"], *row["key"]])


def is_done(tick_ms: int, done_ms: int | None) -> bool:
    """Whether what waited for a tick has been folded."""
    return done_ms is not None and tick_ms <= done_ms


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
