"""The commit protocol: how what was decided leaves the program, so that a crash loses nothing and doubles nothing.

One checkpoint is on its way at a time; steps 2 to 5 run beside the loop.

1. Cut. Between two turns: take what changed, the positions, the outputs decided since the last cut, and how long the
   output files are.
2. Save. Write it all to the checkpoint directory as checkpoint N, durably, all or nothing.
3. Write. Outputs that go to a file or to standard output are written, files synced.
4. Publish. One Kafka transaction: outputs that go to Kafka, the positions of the group, and a note in their metadata:
   "N, of this state, by this owner".
5. Confirm. N is done; the next cut may come.

The process dies
- before 2 has ended: checkpoint N-1 and its note are there. The next start goes on from N-1; the records are read
  again and give the same answers.
- between 2 and 3: checkpoint N, the note of N-1. The next start cuts the files back to their length at the cut,
  then does 3 to 5 with the outputs saved in N.
- between 3 and 4: the same, and the files are longer. They are cut back first.
- within 4: the same, or the note of N. The next owner's start aborts an open transaction; then the note says which.
- between 4 and 5: checkpoint N and its note. Nothing is left to do.

`recovery` is the other half. docs/design.md has the same list.
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
"""A disk that is full for a moment is survived; one that stays full ends the run."""

STALLED_SECONDS = 60.0
"""A loop that has not moved for so long does not deserve a beat: somebody else should take over."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Step 1: all that one checkpoint consists of. `checkpoint` is None where it is saved already (recovery).

    `let_go` is called when it is done, in the thread of the protocol.
    """

    checkpoint: Checkpoint | None
    outputs: Outputs
    positions: Mapping[Partition, int]
    note: CommitMetadata
    let_go: Callable[[], None] = lambda: None


class CommitListener:
    """What the protocol reports, from its own thread. Every method does nothing; override what you want to hear."""

    def reached(self, step: int, number: int) -> None:
        """Step 1 to 5 of checkpoint `number` has just been done."""

    def saved(self, number: int, seconds: float, size_bytes: int) -> None:
        """A checkpoint is on the disk."""

    def confirmed(self, number: int, positions: Mapping[Partition, int]) -> None:
        """Step 5: the next start goes on at these positions."""

    def save_failed(self, error: StateError) -> None:
        """A save has failed; it is tried again a few times."""


class Committer:
    """Takes one cut at a time through steps 2 to 5 in a thread of its own, and beats meanwhile in another.

    `note` and `positions` are those last committed. A failure in a thread is raised by the next call of `check`.
    """

    def __init__(  # noqa: PLR0913 - all that it depends on
        self,
        *,
        store: CheckpointStore,
        ledger: TransactionalSink,
        local: LocalSinks,
        note: CommitMetadata,
        positions: Mapping[Partition, int],
        beat_seconds: float,
        listener: CommitListener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._local = local
        self._listener = listener or CommitListener()
        self._clock = clock
        self._beat_seconds = beat_seconds
        self._committing = threading.Lock()
        self._note = note
        self._positions = dict(positions)
        self._news = threading.Condition()
        self._cut: Cut | None = None
        self._failure: BaseException | None = None
        self._deadline: float | None = None
        self._moved = clock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="streamdetect-checkpoint", daemon=True),
            threading.Thread(target=self._beat, name="streamdetect-beat", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def note(self) -> CommitMetadata:
        """The note last committed."""
        return self._note

    def use(self, store: CheckpointStore) -> None:
        """From now on this store. Only while not `busy`."""
        self._store = store

    def release(self) -> None:
        """Say that the group is free though we have made no checkpoint; if Kafka does not take it at once, so be it."""
        with self._committing:
            try:
                self._renew(released=True, patience=lambda: False)
            except StreamdetectError as error:
                log.debug("the group could not be released: %s", error)

    @property
    def busy(self) -> bool:
        """Whether a cut is on its way."""
        return self._cut is not None

    def check(self) -> None:
        """Raise what has failed. The loop calls this each turn, which also shows that it moves."""
        self._moved = self._clock()
        if self._failure is not None:
            raise self._failure

    def hand_over(self, cut: Cut) -> None:
        """Step 1 has been done. Only while not `busy`."""
        with self._news:
            if self._cut is not None:
                raise RuntimeError("a cut is still on its way")
            self._listener.reached(1, cut.note.number)
            self._cut = cut
            self._news.notify_all()

    def wait(self, seconds: float | None = None) -> None:
        """Until no cut is on its way; then `check`. After `seconds` Kafka is not waited for any more: KafkaError."""
        if seconds is not None:
            self._deadline = self._clock() + seconds
        with self._news:
            self._news.wait_for(lambda: self._cut is None or self._failure is not None)
        self.check()

    def still_busy(self, seconds: float) -> bool:
        """Wait for the cut on its way, but no longer than this; then `check`."""
        with self._news:
            self._news.wait_for(lambda: self._cut is None or self._failure is not None, seconds)
        self.check()
        return self.busy

    def close(self) -> None:
        """End the threads; a cut on its way may be left behind as by a crash."""
        self._closing.set()
        with self._news:
            self._news.notify_all()
        for thread in self._threads:
            thread.join(timeout=5.0)

    # -- the thread of the protocol

    def _work(self) -> None:
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._cut is not None or self._closing.is_set())
                    cut = self._cut
                if cut is None:
                    return
                self._take_through(cut)
                cut.let_go()
                with self._news:
                    self._cut = None
                    self._news.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again by `check`
            self._fail(error)

    def _take_through(self, cut: Cut) -> None:
        number = cut.note.number
        # 2. Save.
        if cut.checkpoint is not None:
            self._save(cut.checkpoint)
        self._listener.reached(2, number)
        # 3. Write.
        self._local.write(cut.outputs)
        self._listener.reached(3, number)
        # 4. Publish.
        self._commit(cut.outputs, cut.positions, cut.note)
        self._listener.reached(4, number)
        # 5. Confirm: the caller lets the next cut come.
        self._listener.confirmed(number, cut.positions)
        self._listener.reached(5, number)

    def _save(self, checkpoint: Checkpoint) -> None:
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            started = self._clock()
            try:
                self._store.save(checkpoint)
            except StateError as error:
                self._listener.save_failed(error)
                if attempt == SAVE_ATTEMPTS:
                    raise
                log.warning("checkpoint %d failed, trying again: %s", checkpoint.number, error)
                self._closing.wait(SAVE_PAUSE_SECONDS)
            else:
                self._listener.saved(checkpoint.number, self._clock() - started, self._store.size_bytes())
                return

    def _commit(self, outputs: Outputs, positions: Mapping[Partition, int], note: CommitMetadata) -> None:
        with self._committing:
            self._ledger.commit(outputs, positions, note, self._patience)
            self._note = note
            self._positions |= positions

    def _patience(self) -> bool:
        return not self._closing.is_set() and (self._deadline is None or self._clock() < self._deadline)

    # -- the thread that shows that we live

    def _beat(self) -> None:
        try:
            while not self._closing.wait(self._beat_seconds):
                if self._clock() - self._moved < STALLED_SECONDS and not self._note.released:
                    self._beat_once()
        except BaseException as error:  # noqa: BLE001 - raised again by `check`
            self._fail(error)

    def _beat_once(self) -> None:
        """The last note again, one beat later, on one partition: the smallest thing that is fenced."""
        with self._committing:
            if self._note.released or self._failure is not None:
                return
            self._renew(released=False, patience=self._patience)

    def _renew(self, *, released: bool, patience: Callable[[], bool]) -> None:
        note = replace(self._note, beat=self._note.beat + 1, released=released)
        partition = min(self._positions)
        self._ledger.commit(Outputs(), {partition: self._positions[partition]}, note, patience)
        self._note = note

    def _fail(self, error: BaseException) -> None:
        if self._closing.is_set() and isinstance(error, StreamdetectError):
            log.debug("while closing: %s", error)
        with self._news:
            self._failure = self._failure or error
            self._news.notify_all()
