"""The start of a live run, up to the first poll.

1. become the owner of the consumer group, as a standby while another instance is alive (`leader`); send heartbeats from
then on,
2. load the checkpoint and decide how to start (`recovery`): resume from it, start fresh, or rebuild the state
(`rebuild`),
3. publish the outputs in the checkpoint that are not published yet.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Literal

from streamdetect.checkpoint import CheckpointStore, Row, Stored
from streamdetect.checkpoint.decoding import decoding_rows
from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.detect.alerts import iso
from streamdetect.errors import CheckpointError, FencedError
from streamdetect.model import Partition
from streamdetect.service.live.commit import Committer, Cut
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.leader import HEARTBEATS_PER_TAKEOVER, Ownership, become_owner
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.outbox import outputs_of
from streamdetect.service.live.rebuild import (
    MidPartitionSource,
    alerts_start_ms,
    read_window,
    restore_episodes,
    window_start_ms,
)
from streamdetect.service.live.recovery import StartPlan, plan_start
from streamdetect.service.pipeline import Pipeline
from streamdetect.sinks import Outputs
from streamdetect.sinks.files import NullSink
from streamdetect.sinks.transactional import CommitMetadata

log = logging.getLogger(__name__)

Choice = Literal["continue", "rebuild", "reset"]
_ROWS_BETWEEN_CHECKS = 1_000
_READBACK_MARGIN_MS = 3_600_000


class StoppedError(Exception):
    """The run was stopped before its start was complete."""


class StoreOpener:
    """Opens the store in the checkpoint directory, and deletes it first for `--rebuild` and `--reset-state`."""

    def __init__(self, dependencies: Dependencies, choice: Choice) -> None:
        self._dependencies = dependencies
        self._choice = choice
        self._store: CheckpointStore | None = None

    def state(self) -> str:
        """The name of the state that is in the directory now."""
        if self._store is None:
            try:
                self._store = self._dependencies.open_store()
            except CheckpointError:
                if self._choice == "continue":
                    raise
                return "unreadable"
        return self._store.state

    def check(self) -> None:
        """Raise CheckpointError for an unusable checkpoint before the start affects another instance."""
        if self._choice == "continue":
            self.state()
            if not self._dependencies.lock.acquire():
                self.close()  # the holder of the lock may replace the file while this instance stands by

    def open(self, owner: str) -> CheckpointStore:
        """The store, claimed by `owner`."""
        if self._choice != "continue":
            self.reset()
        if self._store is None:
            self._store = self._dependencies.open_store()
        self._store.claim(owner)
        return self._store

    def reset(self) -> None:
        """Delete the store."""
        self.close()
        self._dependencies.reset_store()

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()


class Startup:
    """The result of a start: a detector with its state, a source that has begun, and a running committer.

    `number` is the number of the last checkpoint, `previous_metadata` the commit metadata before this instance's first.
    """

    def __init__(  # noqa: PLR0913 - its dependencies
        self,
        *,
        settings: Settings,
        dependencies: Dependencies,
        choice: Choice,
        stop: Callable[[], bool],
        clock: Callable[[], float],
        wait: Callable[[float], None],
        listener: RunListener,
        stack: ExitStack,
    ) -> None:
        """`stack` closes what was opened. Raises StoppedError, and the errors of the dependencies."""
        self._settings = settings
        self._dependencies = dependencies
        self._source = dependencies.source
        self._choice = choice
        self._stop = stop
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stores = StoreOpener(dependencies, choice)
        stack.callback(self._stores.close)
        self._stores.check()
        takeover_seconds = settings.kafka.takeover_after_ms / 1000
        self.number = 0
        self.detector = Detector(settings)
        listener.stage_entered("waiting")
        ownership, metadata, positions = self._become_owner(takeover_seconds, clock, wait)
        listener.stage_entered("restoring")
        self.previous_metadata = ownership.committed.metadata
        self.store = self._stores.open(self._owner)
        self.committer = Committer(
            store=self.store,
            sink=dependencies.sink,
            local_sinks=dependencies.local_sinks,
            metadata=metadata,
            positions=positions,
            heartbeat_seconds=takeover_seconds / HEARTBEATS_PER_TAKEOVER,
            listener=listener,
            clock=clock,
        )
        stack.callback(self.committer.close)
        try:
            self._restore_state(*self._load(ownership), ownership)
        except (CheckpointError, StoppedError):
            self.committer.release_group()
            raise

    def _become_owner(
        self, takeover_seconds: float, clock: Callable[[], float], wait: Callable[[float], None]
    ) -> tuple[Ownership, CommitMetadata, dict[Partition, int]]:
        """Become the owner and commit its first metadata. If another standby commits first, stand by again."""
        while True:
            ownership = become_owner(
                sink=self._dependencies.sink,
                lock=self._dependencies.lock,
                own_state=self._stores.state,
                partitions=self._source.partitions(),
                refuse_reason=self._why_no_standby(),
                takeover_seconds=takeover_seconds,
                stop=self._stop,
                clock=clock,
                wait=wait,
            )
            if ownership is None:
                raise StoppedError
            if self._choice == "rebuild":
                # Before the store is deleted: check that there is something to rebuild from.
                self._plan(None, ownership)
            try:
                return ownership, *self._commit_first_metadata(ownership)
            except FencedError as error:
                if self._why_no_standby() is not None:
                    raise
                log.info("another instance took over first, standing by again: %s", error)

    def _why_no_standby(self) -> str | None:
        if self._choice != "continue":
            return "--rebuild and --reset-state do not wait until it stops"
        return "kafka.second_instance is refuse" if self._settings.kafka.second_instance == "refuse" else None

    def _commit_first_metadata(self, ownership: Ownership) -> tuple[CommitMetadata, dict[Partition, int]]:
        """Commit the metadata again with the new owner, which fences the previous owner.

        Before anything is loaded: until then a previous owner that is slow but alive would regain the group.
        """
        previous, positions = ownership.committed.metadata, dict(ownership.committed.positions)
        metadata = CommitMetadata(1, self._owner, self._stores.state(), 0)
        if previous is not None:
            metadata = replace(
                previous, epoch=previous.epoch + 1, owner=self._owner, heartbeat=0, released=False
            )
        first = min(positions or self._source.partitions())
        positions.setdefault(first, 0)
        first_position = {first: positions[first]}
        self._dependencies.sink.commit(Outputs(), first_position, metadata, lambda: not self._stop())
        return metadata, positions

    def _restore_state(self, stored: Stored | None, start: StartPlan, ownership: Ownership) -> None:
        if start.kind == "resume" and stored is not None:
            self._resume(stored, start)
        elif start.kind == "rebuild":
            self._rebuild(ownership)
        else:
            self.detector.track_changes()
            self._source.begin()

    def _load(self, ownership: Ownership) -> tuple[Stored | None, StartPlan]:
        """A standby whose own directory does not hold the latest state rebuilds it; no operator has to choose."""
        try:
            stored = self.store.load()
            return stored, self._plan(stored, ownership)
        except CheckpointError as error:
            if not ownership.saw_live_owner:
                raise
            log.warning(
                "this checkpoint directory does not have the latest state, rebuilding it from Kafka: %s",
                error,
            )
            self._stores.reset()
            self.store = self._stores.open(self._owner)
            self.committer.replace_store(self.store)
            return None, StartPlan("rebuild")

    def _plan(self, stored: Stored | None, ownership: Ownership) -> StartPlan:
        return plan_start(
            stored=stored,
            state="" if stored is None else self.store.state,
            committed=ownership.committed,
            group=self._settings.kafka.group_id,
            rebuild=self._choice == "rebuild",
            reset=self._choice == "reset",
        )

    def _resume(self, stored: Stored, start: StartPlan) -> None:
        partitions = set(self._source.partitions())
        rows = {Partition(row["topic"], row["number"]): row for row in stored.partitions}
        gone = sorted(rows.keys() - partitions)
        if gone:
            names = ", ".join(f"{partition.topic}-{partition.number}" for partition in gone)
            log.warning("dropping the offsets of partitions that are no longer read: %s", names)
        stored.partitions = [row for partition, row in rows.items() if partition in partitions]
        with decoding_rows():
            self.detector.import_state(self._stoppable(stored.rows()))
            pending = outputs_of(stored.pending)
        self.detector.track_changes()
        self.number = stored.number
        positions = {partition: row["offset"] for partition, row in rows.items() if partition in partitions}
        self._source.begin(positions, {row["topic"]: row["topic_id"] for row in stored.partitions})
        log.info("continuing from checkpoint %d with %d keys", stored.number, self.detector.keys)
        if start.pending != "published":
            self._publish(stored, pending, start)

    def _publish(self, stored: Stored, pending: Outputs, start: StartPlan) -> None:
        """Steps 3 to 5 of the commit protocol, which a crash has left undone for the stored checkpoint."""
        self._dependencies.local_sinks.truncate(stored.file_offsets)
        if start.pending == "unknown" and len(pending):
            log.warning(
                "the commit metadata of checkpoint %d is missing in Kafka; reading the sinks to find which of its "
                "alerts and dead letters were published",
                stored.number,
            )
            pending = self._unpublished(pending)
        positions = {Partition(row["topic"], row["number"]): row["offset"] or 0 for row in stored.partitions}
        metadata = replace(
            self.committer.metadata,
            state=self.store.state,
            number=stored.number,
            heartbeat=0,
            evaluated_ms=stored.progress["evaluated_ms"],
        )
        log.info("publishing %d pending outputs of checkpoint %d", len(pending), stored.number)
        self.committer.submit(Cut(None, pending, positions, metadata))
        while self.committer.busy_after(1.0):
            self._stop()  # reports progress; a stop waits until these outputs are published

    def _unpublished(self, pending: Outputs) -> Outputs:
        since_ms = min((alert.tick_ms for alert in pending.alerts), default=0) - _READBACK_MARGIN_MS
        alerts = self._dependencies.published_alerts(since_ms) if pending.alerts else ()
        alert_ids = {_alert_id(body) for body in alerts}
        stamps = [dead_letter.record.timestamp_ms or 0 for dead_letter in pending.dead_letters]
        since_ms = min(stamps, default=0) - _READBACK_MARGIN_MS
        origins = self._dependencies.published_dead_letters(since_ms) if stamps else ()
        return Outputs(
            [alert for alert in pending.alerts if alert.id not in alert_ids],
            [
                dead_letter
                for dead_letter in pending.dead_letters
                if (*dead_letter.record.partition, dead_letter.record.offset) not in origins
            ],
        )

    def _rebuild(self, ownership: Ownership) -> None:
        """Rebuild the state from Kafka (`rebuild`). Alerts and dead letters of those records are published already."""
        metadata, positions = ownership.committed.metadata, ownership.committed.positions
        evaluated_ms = None if metadata is None else metadata.evaluated_ms
        self.detector.track_changes()
        if evaluated_ms is not None:
            start_ms = window_start_ms(self._settings, evaluated_ms)
            log.info("rebuilding the state from Kafka records since %s", iso(start_ms))
            pipeline = Pipeline(self._settings, NullSink(), NullSink(), detector=self.detector)
            with closing(self._dependencies.open_window(start_ms, positions)) as window:
                source = MidPartitionSource(window, self.detector, start_ms)
                if not read_window(pipeline, source, evaluated_ms, self._stop):
                    raise StoppedError
            published = self._dependencies.published_alerts(alerts_start_ms(self._settings, evaluated_ms))
            episodes = restore_episodes(self.detector, published)
            log.info("state rebuilt: %d keys, %d open episodes", self.detector.keys, episodes)
        self._source.begin(positions)

    def _stoppable(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows. Raises StoppedError in between: restoring many keys takes a while."""
        for index, row in enumerate(rows):
            if index % _ROWS_BETWEEN_CHECKS == 0:
                self.committer.check()
                if self._stop():
                    raise StoppedError
            yield row


def _alert_id(body: bytes) -> str | None:
    try:
        found = json.loads(body)["event"]["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
