"""What a start finds, and what it makes of it: the other half of the commit protocol (`commit`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamdetect.checkpoint import Stored
from streamdetect.errors import CheckpointError
from streamdetect.model import Partition
from streamdetect.sinks.transactional import CommitMetadata, Committed

FOLLOWS = "follows"
"""Among the marks of a state's first checkpoints: the note that was committed before it."""

_CHOICES = (
    "Bring that directory back; or build the state anew from the last time.lookback of Kafka, without sending again "
    "what was sent (--rebuild); or begin as if for the first time at kafka.start (--reset-state), which may send "
    "alerts again, under the same ids."
)


@dataclass(frozen=True, slots=True)
class StartPlan:
    """`fresh`: no state yet. `resume`: from the checkpoint. `rebuild`: from Kafka.

    `pending` says what to do with the outputs saved in the checkpoint: they are `published`, they have to be `sent`, or
    some of them may have been published, which only the topics tell (`unknown`).
    """

    kind: Literal["fresh", "resume", "rebuild"]
    pending: Literal["published", "sent", "unknown"] = "published"


def plan(
    *,
    stored: Stored | None,
    state: str,
    committed: Committed,
    group: str,
    rebuild: bool,
    reset: bool,
) -> StartPlan:
    """Raises CheckpointError where going on would lose or double something, and only a person can choose."""
    note = committed.note
    if reset:
        return StartPlan("fresh")
    if rebuild:
        return _rebuilt(note, group)
    if note is None and committed.positions and not _at(stored, committed):
        raise CheckpointError(
            f"The positions of the group {group} were committed by another program (they carry no note of ours). "
            "Choose another kafka.group_id, or delete the group's offsets. To read from elsewhere, set kafka.start and "
            "use --reset-state."
        )
    if stored is None:
        if note is None or note.number == 0:
            return StartPlan("fresh")
        raise CheckpointError(
            f"The group {group} has a history in Kafka (checkpoint {note.number}), but checkpoint.path holds none: the "
            f"state was lost, or is elsewhere. {_CHOICES}"
        )
    return _resumed(stored, state, note, group)


def _rebuilt(note: CommitMetadata | None, group: str) -> StartPlan:
    if note is None:
        raise CheckpointError(
            f"--rebuild needs the note that the group {group} has in Kafka, and there is none: its offsets were "
            "deleted or have expired, or this is not its name. If checkpoint.path still holds the checkpoint, a "
            "start without --rebuild goes on from it. Else begin as if for the first time at kafka.start "
            "(--reset-state), which may send alerts again, under the same ids."
        )
    return StartPlan("rebuild" if note.number else "fresh")


def _resumed(stored: Stored, state: str, note: CommitMetadata | None, group: str) -> StartPlan:
    published = _published(stored, state, note)
    if published is None and note is not None:
        raise CheckpointError(
            f"The checkpoint in checkpoint.path is not the last of the group {group}: another state has gone on since "
            f"(its checkpoint {note.number}). {_CHOICES}"
        )
    if published is not None and published > stored.number:
        raise CheckpointError(
            f"The checkpoint in checkpoint.path is number {stored.number}, but number {published} was published: it is "
            f"an old copy. {_CHOICES}"
        )
    if published == stored.number:
        return StartPlan("resume")
    if published is None or note is None or note.number == 0:
        return StartPlan("resume", "sent" if published == stored.number - 1 else "unknown")
    if published < stored.number - 1:
        raise CheckpointError(
            f"The checkpoint in checkpoint.path is number {stored.number}, but the last that was published is "
            f"{published}: what was decided in between is not in Kafka. Kafka has lost commits, or the directory was "
            f"used with something else. {_CHOICES}"
        )
    return StartPlan("resume", "sent")


def _published(stored: Stored, state: str, note: CommitMetadata | None) -> int | None:
    """The number of our checkpoint that the note says was published; None if it says nothing of ours."""
    if note is None:
        return None
    if note.state == state:
        return note.number
    follows: dict[str, Any] = stored.marks.get(FOLLOWS, {})
    if note.number == 0 or (follows.get("state"), follows.get("number")) == (note.state, note.number):
        return 0
    return None


def _at(stored: Stored | None, committed: Committed) -> bool:
    """Whether the group is where our checkpoint is: then its notes were only lost."""
    if stored is None:
        return False
    ours = {Partition(row["topic"], row["number"]): row["offset"] for row in stored.partitions}
    return all(
        ours.get(partition, offset) in (offset, None) for partition, offset in committed.positions.items()
    )


def follows(note: CommitMetadata | None) -> dict[str, Any]:
    """The mark of a first checkpoint."""
    return {} if note is None else {"state": note.state, "number": note.number}
