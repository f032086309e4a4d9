"""Decides how a run starts, from the checkpoint and the commit metadata: the counterpart of `commit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamdetect.checkpoint import Stored
from streamdetect.errors import CheckpointError
from streamdetect.model import Partition
from streamdetect.sinks.transactional import CommitMetadata, Committed

PREDECESSOR = "follows"
"""Among the file offsets of a state's first checkpoint: the commit metadata that was committed before it."""

_CHOICES = (
    "Restore that directory; or rebuild the state from the last time.lookback of Kafka, without republishing published "
    "alerts (--rebuild); or start fresh at kafka.start (--reset-state), which may publish alerts again, under the same "
    "ids."
)


@dataclass(frozen=True, slots=True)
class StartPlan:
    """`fresh`: no state yet. `resume`: from the checkpoint. `rebuild`: from Kafka.

    `pending` describes the outputs saved in the checkpoint: `published`; `unpublished`, so publish them now; or
    `unknown`: some may be published, which only reading the sinks back shows.
    """

    kind: Literal["fresh", "resume", "rebuild"]
    pending: Literal["published", "unpublished", "unknown"] = "published"


def plan_start(
    *,
    stored: Stored | None,
    state: str,
    committed: Committed,
    group: str,
    rebuild: bool,
    reset: bool,
) -> StartPlan:
    """Raises CheckpointError where continuing would lose or duplicate outputs, so that an operator has to choose."""
    metadata = committed.metadata
    if reset:
        return StartPlan("fresh")
    if rebuild:
        return _plan_rebuild(metadata, group)
    if metadata is None and committed.positions and not _same_positions(stored, committed):
        raise CheckpointError(
            f"The positions of the consumer group {group} were committed by another program: they have no commit "
            "metadata of streamdetect. Choose another kafka.group_id, or delete the group's offsets. To start reading "
            "elsewhere, set kafka.start and use --reset-state."
        )
    if stored is None:
        if metadata is None or metadata.number == 0:
            return StartPlan("fresh")
        raise CheckpointError(
            f"The consumer group {group} has published checkpoint {metadata.number}, but checkpoint.path contains no "
            f"checkpoint: the state was lost, or is in another directory. {_CHOICES}"
        )
    return _plan_resume(stored, state, metadata, group)


def _plan_rebuild(metadata: CommitMetadata | None, group: str) -> StartPlan:
    if metadata is None:
        raise CheckpointError(
            f"--rebuild needs the commit metadata of the consumer group {group} in Kafka, and there is none: the "
            "group's offsets were deleted or have expired, or the name is wrong. If checkpoint.path still contains the "
            "checkpoint, a start without --rebuild continues from it. Otherwise start fresh at kafka.start "
            "(--reset-state), which may publish alerts again, under the same ids."
        )
    return StartPlan("rebuild" if metadata.number else "fresh")


def _plan_resume(stored: Stored, state: str, metadata: CommitMetadata | None, group: str) -> StartPlan:
    published = _published_number(stored, state, metadata)
    if published is None and metadata is not None:
        raise CheckpointError(
            f"The checkpoint in checkpoint.path is not the latest of the consumer group {group}: another checkpoint "
            f"directory was used since (its checkpoint {metadata.number} is published). {_CHOICES}"
        )
    if published is not None and published > stored.number:
        raise CheckpointError(
            f"The checkpoint in checkpoint.path is number {stored.number}, but number {published} is published: it is "
            f"an old copy. {_CHOICES}"
        )
    if published == stored.number:
        return StartPlan("resume")
    if published is None or metadata is None or metadata.number == 0:
        return StartPlan("resume", "unpublished" if published == stored.number - 1 else "unknown")
    if published < stored.number - 1:
        raise CheckpointError(
            f"The checkpoint in checkpoint.path is number {stored.number}, but the last published one is {published}: "
            "the outputs of the checkpoints in between are missing from Kafka. Kafka has lost commits, or the "
            f"directory was used with another cluster. {_CHOICES}"
        )
    return StartPlan("resume", "unpublished")


def _published_number(stored: Stored, state: str, metadata: CommitMetadata | None) -> int | None:
    """The number of the last published checkpoint of this state; None if the metadata says nothing about it."""
    if metadata is None:
        return None
    if metadata.state == state:
        return metadata.number
    predecessor: dict[str, Any] = stored.file_offsets.get(PREDECESSOR, {})
    if metadata.number == 0 or predecessor == predecessor_of(metadata):
        return 0
    return None


def _same_positions(stored: Stored | None, committed: Committed) -> bool:
    """Whether the committed positions equal the checkpoint's: then only the commit metadata was lost."""
    if stored is None:
        return False
    saved = {Partition(row["topic"], row["number"]): row["offset"] for row in stored.partitions}
    return all(
        saved.get(partition, offset) in (offset, None) for partition, offset in committed.positions.items()
    )


def predecessor_of(metadata: CommitMetadata | None) -> dict[str, Any]:
    """What the first checkpoint of a state stores under `PREDECESSOR`."""
    return {} if metadata is None else {"state": metadata.state, "number": metadata.number}
