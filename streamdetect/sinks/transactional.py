"""The contract of a transactional sink: outputs, the positions of their records and commit metadata, in one commit.

The commit metadata names the instance and the checkpoint of the commit. It is stored in the metadata field of the
consumer group's committed offsets, which a Kafka transaction carries (KIP-447), so it changes atomically with the rest.
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
    """States that `owner` has published checkpoint `number` of the store `state`.

    `epoch` counts owners; `heartbeat` counts the commits of an owner since its last checkpoint whose only purpose is to
    show that it is alive. Ticks up to `evaluated_ms` have been evaluated. `released`: the owner has shut down cleanly.
    """

    epoch: int
    owner: str
    state: str
    number: int
    heartbeat: int = 0
    evaluated_ms: int | None = None
    released: bool = False

    def text(self) -> str:
        """The committed text, well under Kafka's default limit of 4,096 bytes. The heartbeat's key is "beat"."""
        fields = {"beat" if name == "heartbeat" else name: value for name, value in asdict(self).items()}
        return json.dumps({"streamdetect": _VERSION, **fields}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> CommitMetadata | None:
        """Return None for text that `text()` did not write: another program has committed for the consumer group."""
        try:
            fields = json.loads(text)
            if fields.pop("streamdetect") != _VERSION:
                return None
            return cls(heartbeat=fields.pop("beat", 0), **fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def order(self) -> tuple[int, int, int]:
        """Sort key: newer commits compare greater."""
        return self.epoch, self.number, self.heartbeat


@dataclass(frozen=True, slots=True)
class Committed:
    """What a consumer group has committed: positions by partition, and the newest commit metadata among them."""

    positions: Mapping[Partition, int] = field(default_factory=dict)
    metadata: CommitMetadata | None = None


class TransactionalSink(Protocol):
    """Publishes outputs and commits positions atomically. Thread-safe; commits are serialised by a lock."""

    def fetch_committed(self, partitions: Collection[Partition]) -> Committed:
        """Read what is committed, without fencing the owner. The answer may be stale.

        Raises KafkaError when there is no answer.
        """
        ...

    def fence(self, partitions: Collection[Partition]) -> Committed:
        """Abort the open transaction of every earlier owner and fence them: they can no longer commit.

        Returns what is committed after that.
        """
        ...

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        metadata: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        """Commit all of it atomically. Retries transient errors while `patience()` is true.

        Raises FencedError when another owner has taken over, SinkError for a permanent failure, and KafkaError when
        `patience()` is false: then it is unknown whether the commit took place, and the next `fence` returns it.
        """
        ...

    def close(self) -> None:
        """Release resources within bounded time."""
        ...
