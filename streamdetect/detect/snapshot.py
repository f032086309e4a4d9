"""What a checkpoint has to write: everything that changed since the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streamdetect.detect import serde
from streamdetect.detect.keystate import ChangedKeys, KeyGroup
from streamdetect.detect.pending import PendingPane, Place, segment_rows


class Changes(NamedTuple):
    """Rows of progress and partitions, changed keys, and new segments of pending panes.

    Segments of ticks up to `progress["evaluated_ms"]` that were written earlier are obsolete.
    """

    progress: serde.Row
    partitions: list[serde.Row]
    keys: dict[KeyGroup, ChangedKeys]
    segments: dict[Place, PendingPane]

    def release(self) -> None:
        """Call after the changes were written. Frees in pieces: freeing a million keys at once would hold the GIL."""
        for changed in self.keys.values():
            while changed.states:
                changed.states.popitem()
        for segment in self.segments.values():
            segment.lent = False

    def key_rows(self) -> Iterator[serde.Row]:
        """A `key` row for each changed key, or a `forgotten` row."""
        for group, changed in self.keys.items():
            for address_key, state in changed.states.items():
                key = group.key(address_key)
                if state is None:
                    yield serde.forgotten_row(group.rule.id, key)
                else:
                    yield serde.key_row(group.rule.id, key, state, changed.episodes.get(address_key))

    def waiting_rows(self) -> Iterator[serde.Row]:
        """A `waiting` row for each pre-aggregate of the new segments."""
        for place, segment in self.segments.items():
            yield from segment_rows(place, segment)
