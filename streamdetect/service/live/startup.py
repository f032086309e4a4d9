"""The start of a live run, up to the first poll.

1. become the owner of the group, standing by while somebody else is (`ownership`); from then on the note is renewed,
2. load the checkpoint and decide what it is worth (`recovery`): go on from it, begin anew, or rebuild the state
(`rebuild`),
3. publish what the checkpoint has decided and nobody has published.
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
from streamdetect.service.live.leader import BEATS, Ownership, become_owner
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.outbox import outputs_of
from streamdetect.service.live.rebuild import (
    Continued,
    alerts_start_ms,
    read_window,
    take_up_episodes,
    window_start_ms,
)
from streamdetect.service.live.recovery import StartPlan, plan
from streamdetect.service.pipeline import Pipeline
from streamdetect.sinks import Outputs
from streamdetect.sinks.files import NullSink
from streamdetect.sinks.transactional import CommitMetadata

log = logging.getLogger(__name__)

Choice = Literal["continue", "rebuild", "reset"]
_ROWS_BETWEEN_LOOKS = 1_000
_SENT_MARGIN_MS = 3_600_000


class StoppedError(Exception):
    """Somebody asked to stop before the start was finished."""


class StoreOpener:
    """Opens the store once our directory's lock is held, and takes it away first where a person said so."""

    def __init__(self, around: Dependencies, choice: Choice) -> None:
        self._around = around
        self._choice = choice
        self._opened: CheckpointStore | None = None

    def state(self) -> str:
        """The name of the state that is there now."""
        if self._opened is None:
            try:
                self._opened = self._around.open_store()
            except CheckpointError:
                if self._choice == "continue":
                    raise
                return "unreadable"
        return self._opened.state

    def check(self) -> None:
        """Whether what is there is ours at all; told before anybody is disturbed."""
        if self._choice == "continue":
            self.state()
            if not self._around.lock.acquire():
                self.close()  # whoever has the directory may put another file there while we stand by

    def opened(self, owner: str) -> CheckpointStore:
        """The store to work with."""
        if self._choice != "continue":
            self.anew()
        if self._opened is None:
            self._opened = self._around.open_store()
        self._opened.claim(owner)
        return self._opened

    def anew(self) -> None:
        """Take away what is there."""
        self.close()
        self._around.reset_store()

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


class Startup:
    """What a start comes to: a detector with its state, a source that has begun, and a committer at work.

    `number` is that of the last checkpoint, `found` the note before our first.
    """

    def __init__(  # noqa: PLR0913 - all that it depends on
        self,
        *,
        settings: Settings,
        around: Dependencies,
        choice: Choice,
        stop: Callable[[], bool],
        clock: Callable[[], float],
        wait: Callable[[float], None],
        listener: RunListener,
        stack: ExitStack,
    ) -> None:
        """Raises StoppedError, and what the parts raise. `stack` closes what was opened."""
        self._settings = settings
        self._around = around
        self._stop = stop
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stores = StoreOpener(around, choice)
        stack.callback(self._stores.close)
        self._stores.check()
        takeover_seconds = settings.kafka.takeover_after_ms / 1000
        self.number = 0
        self.detector = Detector(settings)
        listener.entered("waiting")
        claim, note, positions = self._own(choice, takeover_seconds, clock, wait)
        listener.entered("restoring")
        self.found = claim.committed.note
        self.store = self._stores.opened(self._owner)
        self.committer = Committer(
            store=self.store,
            ledger=around.ledger,
            local=around.local,
            note=note,
            positions=positions,
            beat_seconds=takeover_seconds / BEATS,
            listener=listener,
            clock=clock,
        )
        stack.callback(self.committer.close)
        try:
            self._take_up(*self._plan(claim, choice), claim)
        except (CheckpointError, StoppedError):
            self.committer.release()
            raise

    def _own(
        self,
        choice: Choice,
        takeover_seconds: float,
        clock: Callable[[], float],
        wait: Callable[[float], None],
    ) -> tuple[Ownership, CommitMetadata, dict[Partition, int]]:
        """Become the owner and say so. Of two that stood by one is quicker, and the other stands by again."""
        while True:
            claim = become_owner(
                ledger=self._around.ledger,
                lock=self._around.lock,
                own_state=self._stores.state,
                partitions=self._around.source.partitions(),
                refuse=self._why_not_wait(choice),
                takeover_seconds=takeover_seconds,
                stop=self._stop,
                clock=clock,
                wait=wait,
            )
            if claim is None:
                raise StoppedError
            if choice == "rebuild":
                # Before anything is thrown away: whether there is something to rebuild from.
                self._planned(None, claim, choice)
            try:
                return claim, *self._first_note(claim)
            except FencedError as error:
                if self._why_not_wait(choice) is not None:
                    raise
                log.info("another instance was quicker, standing by: %s", error)

    def _why_not_wait(self, choice: Choice) -> str | None:
        if choice != "continue":
            return "--rebuild and --reset-state do not wait for its end"
        return "kafka.second_instance is refuse" if self._settings.kafka.second_instance == "refuse" else None

    def _first_note(self, claim: Ownership) -> tuple[CommitMetadata, dict[Partition, int]]:
        """It says nothing new but who we are; from here on whoever was before is out.

        At once, before anything is loaded: until it is there an older owner that is slow and not dead would win the
        group back.
        """
        before, positions = claim.committed.note, dict(claim.committed.positions)
        note = CommitMetadata(1, self._owner, self._stores.state(), 0)
        if before is not None:
            note = replace(before, epoch=before.epoch + 1, owner=self._owner, beat=0, released=False)
        first = min(positions or self._around.source.partitions())
        positions.setdefault(first, 0)
        self._around.ledger.commit(Outputs(), {first: positions[first]}, note, lambda: not self._stop())
        return note, positions

    def _take_up(self, stored: Stored | None, decided: StartPlan, claim: Ownership) -> None:
        if decided.kind == "resume" and stored is not None:
            self._resume(stored, decided)
        elif decided.kind == "rebuild":
            self._rebuild(claim)
        else:
            self.detector.track_changes()
            self._around.source.begin()

    def _plan(self, claim: Ownership, choice: Choice) -> tuple[Stored | None, StartPlan]:
        """A standby whose own directory does not hold the last state rebuilds it, and asks nobody."""
        try:
            stored = self.store.load()
            return stored, self._planned(stored, claim, choice)
        except CheckpointError as error:
            if not claim.stood_by:
                raise
            log.warning(
                "taking over with a directory of our own, so the state is rebuilt from Kafka: %s", error
            )
            self._stores.anew()
            self.store = self._stores.opened(self._owner)
            self.committer.use(self.store)
            return None, StartPlan("rebuild")

    def _planned(self, stored: Stored | None, claim: Ownership, choice: Choice) -> StartPlan:
        return plan(
            stored=stored,
            state="" if stored is None else self.store.state,
            committed=claim.committed,
            group=self._settings.kafka.group_id,
            rebuild=choice == "rebuild",
            reset=choice == "reset",
        )

    def _resume(self, stored: Stored, decided: StartPlan) -> None:
        partitions = set(self._around.source.partitions())
        rows = {Partition(row["topic"], row["number"]): row for row in stored.partitions}
        gone = sorted(rows.keys() - partitions)
        if gone:
            log.warning("no longer read, so forgotten: %s", ", ".join(f"{p.topic}-{p.number}" for p in gone))
        stored.partitions = [row for partition, row in rows.items() if partition in partitions]
        with decoding_rows():
            self.detector.import_state(self._while_wanted(stored.rows()))
            pending = outputs_of(stored.pending)
        self.detector.track_changes()
        self.number = stored.number
        positions = {partition: row["offset"] for partition, row in rows.items() if partition in partitions}
        self._around.source.begin(positions, {row["topic"]: row["topic_id"] for row in stored.partitions})
        log.info("going on from checkpoint %d with %d keys", stored.number, self.detector.keys)
        if decided.pending != "published":
            self._publish(stored, pending, decided)

    def _publish(self, stored: Stored, pending: Outputs, decided: StartPlan) -> None:
        """Steps 3 to 5 of the protocol for the checkpoint that a crash has left without them."""
        self._around.local.cut_back(stored.marks)
        if decided.pending == "unknown" and len(pending):
            log.warning(
                "Kafka has lost the note of checkpoint %d; asking the topics what was sent", stored.number
            )
            pending = self._unsent(pending)
        positions = {Partition(row["topic"], row["number"]): row["offset"] or 0 for row in stored.partitions}
        note = replace(
            self.committer.note,
            state=self.store.state,
            number=stored.number,
            beat=0,
            evaluated_ms=stored.progress["evaluated_ms"],
        )
        log.info("publishing what checkpoint %d had decided: %d results", stored.number, len(pending))
        self.committer.hand_over(Cut(None, pending, positions, note))
        while self.committer.still_busy(1.0):
            self._stop()  # finished all the same, but it shows that we live

    def _unsent(self, pending: Outputs) -> Outputs:
        since_ms = min((alert.tick_ms for alert in pending.alerts), default=0) - _SENT_MARGIN_MS
        sent = {_alert_id(body) for body in self._around.sent_alerts(since_ms)} if pending.alerts else set()
        stamps = [letter.record.timestamp_ms or 0 for letter in pending.letters]
        letters = self._around.sent_letters(min(stamps) - _SENT_MARGIN_MS) if stamps else ()
        return Outputs(
            [alert for alert in pending.alerts if alert.id not in sent],
            [
                letter
                for letter in pending.letters
                if (*letter.record.partition, letter.record.offset) not in letters
            ],
        )

    def _rebuild(self, claim: Ownership) -> None:
        """See `rebuild`. What was refused or found there was sent long ago."""
        note, positions = claim.committed.note, claim.committed.positions
        evaluated_ms = None if note is None else note.evaluated_ms
        self.detector.track_changes()
        if evaluated_ms is not None:
            start_ms = window_start_ms(self._settings, evaluated_ms)
            log.info("rebuilding the state from Kafka's records since %s", iso(start_ms))
            pipeline = Pipeline(self._settings, NullSink(), NullSink(), detector=self.detector)
            with closing(self._around.window(start_ms, positions)) as window:
                continued = Continued(window, self.detector, start_ms)
                if not read_window(pipeline, continued, evaluated_ms, self._stop):
                    raise StoppedError
            sent = self._around.sent_alerts(alerts_start_ms(self._settings, evaluated_ms))
            episodes = take_up_episodes(self.detector, sent)
            log.info("rebuilt: %d keys, %d open episodes", self.detector.keys, episodes)
        self._around.source.begin(positions)

    def _while_wanted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """A restore of many keys takes a while, and can be stopped."""
        for index, row in enumerate(rows):
            if index % _ROWS_BETWEEN_LOOKS == 0:
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
