"""The commit protocol: publishes outputs and positions so that a crash neither loses nor duplicates anything.

One checkpoint is in flight at a time; steps 2 to 5 run in a thread beside the loop.

1. Cut. Between two turns of the loop: take the state changes, the positions, the outputs since the last cut, and the
   file offsets of the output files.
2. Save. Write all of it to the checkpoint directory as checkpoint N, durably and atomically.
3. Write. Write the outputs that go to a file or to standard output, and sync the files.
4. Publish. Commit one Kafka transaction: the outputs that go to Kafka, and the positions of the consumer group with the
   commit metadata "N, of this state, by this owner".
5. Confirm. N is complete; the next cut may follow.

If the process dies
- before 2 is complete: checkpoint N-1 and its commit metadata exist. The next start continues from N-1; it reads the
  records again and computes the same results.
- between 2 and 3: checkpoint N and the commit metadata of N-1 exist. The next start truncates the files to their
  length at the cut, then does 3 to 5 with the outputs saved in N.
- between 3 and 4: the same, and the files are longer. They are truncated first.
- during 4: the same, or the commit metadata of N. The next owner aborts an open transaction; then the commit metadata
  shows which.
- between 4 and 5: checkpoint N and its commit metadata exist. Nothing is left to do.

`recovery` is the counterpart at the start. docs/design.md has the same list.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from streamdetect.checkpoint import Checkpoint, CheckpointStore
from streamdetect.errors import StateError, StreamdetectError
from streamdetect.model import Partition
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.sinks import Outputs
from streamdetect.sinks.transactional import CommitMetadata, TransactionalSink

log = logging.getLogger(__name__)

SAVE_ATTEMPTS = 5
SAVE_PAUSE_SECONDS = 2.0
"""The run survives a disk that is full for a moment; a disk that stays full ends it."""

STALLED_SECONDS = 60.0
"""If the loop has made no progress for this long, stop sending heartbeats so that a standby takes over."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Step 1: everything that one checkpoint consists of. `checkpoint` is None if it is saved already (recovery).

    `release` is called when the cut is confirmed, in the protocol's thread.
    """

    checkpoint: Checkpoint | None
    outputs: Outputs
    positions: Mapping[Partition, int]
    metadata: CommitMetadata
    release: Callable[[], None] = lambda: None


class CommitListener:
    """What the protocol reports, from its own thread. Every method does nothing; override those of interest."""

    def step_done(self, step: int, number: int) -> None:
        """Step 1 to 5 of checkpoint `number` is complete."""

    def saved(self, number: int, seconds: float, size_bytes: int) -> None:
        """A checkpoint is on disk."""

    def confirmed(self, number: int, positions: Mapping[Partition, int]) -> None:
        """Step 5: the next start continues at these positions."""

    def save_failed(self, error: StateError) -> None:
        """A save has failed; it is attempted `SAVE_ATTEMPTS` times."""


class Committer:
    """Runs steps 2 to 5 of the commit protocol for one cut at a time in one thread, and sends heartbeats in another.

    `metadata` and `positions` are those last committed. The next call of `check` raises an error of either thread.
    """

    def __init__(  # noqa: PLR0913 - its dependencies
        self,
        *,
        store: CheckpointStore,
        sink: TransactionalSink,
        local_sinks: LocalSinks,
        metadata: CommitMetadata,
        positions: Mapping[Partition, int],
        heartbeat_seconds: float,
        listener: CommitListener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._sink = sink
        self._local_sinks = local_sinks
        self._listener = listener or CommitListener()
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._committing = threading.Lock()
        self._metadata = metadata
        self._positions = dict(positions)
        self._changed = threading.Condition()
        self._cut: Cut | None = None
        self._failure: BaseException | None = None
        self._deadline: float | None = None
        self._last_progress = clock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._commit_cuts, name="streamdetect-checkpoint", daemon=True),
            threading.Thread(target=self._send_heartbeats, name="streamdetect-heartbeat", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def metadata(self) -> CommitMetadata:
        """The commit metadata last committed."""
        return self._metadata

    def replace_store(self, store: CheckpointStore) -> None:
        """Use this store from now on. Only while not `busy`."""
        self._store = store

    def release_group(self) -> None:
        """Release the consumer group without a checkpoint. Tries once; if Kafka refuses, the heartbeat times out."""
        with self._committing:
            try:
                self._commit_heartbeat(released=True, patience=lambda: False)
            except StreamdetectError as error:
                log.debug("the consumer group was not released: %s", error)

    @property
    def busy(self) -> bool:
        """Whether a cut is in flight."""
        return self._cut is not None

    def check(self) -> None:
        """Raise the first error of a thread. The loop calls this at each turn, which also proves its progress."""
        self._last_progress = self._clock()
        if self._failure is not None:
            raise self._failure

    def submit(self, cut: Cut) -> None:
        """Start steps 2 to 5 of the commit protocol for a cut. Only while not `busy`."""
        with self._changed:
            if self._cut is not None:
                raise RuntimeError("a cut is still in flight")
            self._listener.step_done(1, cut.metadata.number)
            self._cut = cut
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until no cut is in flight, then `check`. After `seconds` Kafka is not retried any more: KafkaError."""
        if seconds is not None:
            self._deadline = self._clock() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._cut is None or self._failure is not None)
        self.check()

    def busy_after(self, seconds: float) -> bool:
        """Wait at most this long for the cut in flight, then `check`. Returns whether it is still in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._cut is None or self._failure is not None, seconds)
        self.check()
        return self.busy

    def close(self) -> None:
        """Stop the threads. A cut in flight may be left incomplete, as after a crash."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5.0)

    # -- the protocol's thread

    def _commit_cuts(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._cut is not None or self._closing.is_set())
                    cut = self._cut
                if cut is None:
                    return
                self._run_steps(cut)
                cut.release()
                with self._changed:
                    self._cut = None
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again by `check`
            self._fail(error)

    def _run_steps(self, cut: Cut) -> None:
        # 1. Cut. Between two turns of the loop: take the state changes, the positions, the outputs since the last cut,
        #    and the file offsets of the output files.
        number = cut.metadata.number
        # 2. Save. Write all of it to the checkpoint directory as checkpoint N, durably and atomically.
        if cut.checkpoint is not None:
            self._save(cut.checkpoint)
        self._listener.step_done(2, number)
        # 3. Write. Write the outputs that go to a file or to standard output, and sync the files.
        self._local_sinks.write(cut.outputs)
        self._listener.step_done(3, number)
        # 4. Publish. Commit one Kafka transaction: the outputs that go to Kafka, and the positions of the consumer
        #    group with the commit metadata "N, of this state, by this owner".
        self._publish(cut)
        self._listener.step_done(4, number)
        # 5. Confirm. N is complete; the next cut may follow.
        self._listener.confirmed(number, cut.positions)
        self._listener.step_done(5, number)

    def _save(self, checkpoint: Checkpoint) -> None:
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            started = self._clock()
            try:
                self._store.save(checkpoint)
            except StateError as error:
                self._listener.save_failed(error)
                if attempt == SAVE_ATTEMPTS:
                    raise
                attempts = f"attempt {attempt} of {SAVE_ATTEMPTS}, next in {SAVE_PAUSE_SECONDS:g} s"
                log.warning("checkpoint %d could not be saved (%s): %s", checkpoint.number, attempts, error)
                self._closing.wait(SAVE_PAUSE_SECONDS)
            else:
                self._listener.saved(checkpoint.number, self._clock() - started, self._store.size_bytes())
                return

    def _publish(self, cut: Cut) -> None:
        with self._committing:
            self._sink.commit(cut.outputs, cut.positions, cut.metadata, self._patience)
            self._metadata = cut.metadata
            self._positions |= cut.positions

    def _patience(self) -> bool:
        return not self._closing.is_set() and (self._deadline is None or self._clock() < self._deadline)

    # -- the heartbeat thread

    def _send_heartbeats(self) -> None:
        try:
            while not self._closing.wait(self._heartbeat_seconds):
                if self._clock() - self._last_progress < STALLED_SECONDS and not self._metadata.released:
                    self._send_heartbeat()
        except BaseException as error:  # noqa: BLE001 - raised again by `check`
            self._fail(error)

    def _send_heartbeat(self) -> None:
        with self._committing:
            if self._metadata.released or self._failure is not None:
                return
            self._commit_heartbeat(released=False, patience=self._patience)

    def _commit_heartbeat(self, *, released: bool, patience: Callable[[], bool]) -> None:
        """Commit the last metadata again with the next heartbeat, on one partition: the smallest fenced commit."""
        metadata = replace(self._metadata, heartbeat=self._metadata.heartbeat + 1, released=released)
        partition = min(self._positions)
        self._sink.commit(Outputs(), {partition: self._positions[partition]}, metadata, patience)
        self._metadata = metadata

    def _fail(self, error: BaseException) -> None:
        if self._closing.is_set() and isinstance(error, StreamdetectError):
            log.debug("error during shutdown: %s", error)
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
