"""The contract of a ledger: results and the positions they come from become final in one step, with a note.

The note says whose step it was. It lies in the metadata of a group's committed offsets (KIP-447 transactions carry
them), so it changes in the same instant as everything else of a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

from streamdetect.model import Partition
from streamdetect.sinks import Outputs

_VERSION = 1


@dataclass(frozen=True, slots=True)
class CommitMetadata:
    """Checkpoint `number` of `state` has been published, by `owner`.

    `epoch` counts owners, `beat` what an owner wrote since its last checkpoint only to show that it lives. Ticks up to
    `evaluated_ms` have been evaluated. `released`: the owner has ended in order.
    """

    epoch: int
    owner: str
    state: str
    number: int
    beat: int = 0
    evaluated_ms: int | None = None
    released: bool = False

    def text(self) -> str:
        """As it is committed; well under the 4,000 bytes that Kafka's metadata take."""
        return json.dumps({"streamdetect": _VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> CommitMetadata | None:
        """None for what is no note of ours: another program has committed for the group."""
        try:
            values = json.loads(text)
            if values.pop("streamdetect") != _VERSION:
                return None
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def order(self) -> tuple[int, int, int]:
        """Later notes are greater."""
        return self.epoch, self.number, self.beat


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed: positions by partition, and the newest note among them."""

    positions: Mapping[Partition, int] = field(default_factory=dict)
    note: CommitMetadata | None = None


class TransactionalSink(Protocol):
    """Several threads may call it; it takes one commit at a time."""

    def look(self, partitions: Collection[Partition]) -> Committed:
        """What is committed, without disturbing anybody. It may be a moment old. KafkaError without an answer."""
        ...

    def claim(self, partitions: Collection[Partition]) -> Committed:
        """End whatever an earlier owner has begun; the earlier owner can commit nothing more. Then what is
        committed.
        """
        ...

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        note: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        """All of it in one step. Tries again whatever can be tried again, as long as `patience()` is true.

        Raises FencedError when somebody else owns the ledger by now, SinkError for what will not be better the next
        time, KafkaError when patience has run out: then it is not known whether it was committed, which the next
        claim tells.
        """
        ...

    def close(self) -> None:
        """Give back what is held open, within bounded time."""
        ...
