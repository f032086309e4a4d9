"""A checkpoint and commit metadata of version 0.1.0 stay readable.

`tests/data/checkpoint-0.1.0` was written by that version: a run over two partitions that was killed after it had saved
checkpoint 18, with open episodes, waiting pre-aggregates, pending outputs and a file offset; `state export` of it; the
records that follow; and what the next start of that version published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from paths import DATA
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.checkpoint.sqlitefile import FILE
from streamdetect.cli import entry
from streamdetect.config import Settings
from streamdetect.model import Alert, Batch, Partition
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.service.live.loop import run_live
from streamdetect.sinks.transactional import CommitMetadata, Committed
from streamdetect.testing import ManualClock, MemoryLock, MemorySource, MemoryTransactionalSink

FOLDER = DATA / "checkpoint-0.1.0"
RUN: dict[str, Any] = json.loads((FOLDER / "run.json").read_text())
COMMITTED = {Partition(topic, number): (offset, text) for topic, number, offset, text in RUN["committed"]}
PUBLISHED = zstandard.decompress((FOLDER / "alerts.jsonl.zst").read_bytes()).decode().splitlines()


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / FILE).write_bytes(zstandard.decompress((FOLDER / f"{FILE}.zst").read_bytes()))
    return str(tmp_path)


class StoredFile:
    """The alert file, which was truncated already; `truncated_to` is the offset from the checkpoint."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.truncated_to: dict[str, Any] | None = None

    def write(self, alerts: Sequence[Alert]) -> None:
        self.lines += [alert.body.decode() for alert in alerts]

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to release."""

    def offset(self) -> dict[str, Any]:
        return {"length": len(self.lines)}

    def truncate(self, offset: dict[str, Any]) -> None:
        self.truncated_to = offset


class Records(MemorySource):
    """The records that follow. Partitions become idle once all are read; `leaps` counts polls after that."""

    def __init__(self, move: Callable[[float], object]) -> None:
        super().__init__(COMMITTED)
        self._move, self.leaps = move, 0
        for line in (FOLDER / "records.jsonl").read_text().splitlines():
            number, offset, value = json.loads(line)
            partition = Partition("events", number)
            self.add(partition, *[b""] * (offset - self.bounds()[partition].end), value.encode())

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        at_end = not any(self.lags().values())
        self.leaps += at_end
        self._move(61.0 if at_end else 3.0)
        return super().poll(hold, timeout_ms)


def comparable(lines: list[str]) -> list[dict[str, Any]]:
    """The alerts without the message, whose wording may change, and without the version of the program."""
    alerts = [json.loads(line) for line in lines]
    for alert in alerts:
        del alert["message"], alert["streamdetect"]["version"]
    return alerts


def test_the_export_is_the_same(directory: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Every row is read: keys with open episodes, waiting pre-aggregates, pending outputs."""
    assert entry.run(["state", "export", directory]) == 0
    exported = capfd.readouterr().out
    assert exported == (FOLDER / "export.jsonl").read_text()
    rows = [json.loads(line) for line in exported.splitlines()]
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "progress": 1,
        "partition": 2,
        "key": 27,
        "waiting": 22,
        "pending": 7,
    }
    assert sum(row["kind"] == "key" and row["episode"] is not None for row in rows) == 16


def test_a_start_continues_from_it(directory: str) -> None:
    """The settings count as equal, the file is truncated, and the alerts are those that version 0.1.0 published."""
    settings = Settings.model_validate(RUN["settings"])
    clock, sink, file = ManualClock(), MemoryTransactionalSink(), StoredFile()
    metadata = {CommitMetadata.parse(text) for _, text in COMMITTED.values()}
    sink._shared["committed"] = Committed({p: offset for p, (offset, _) in COMMITTED.items()}, *metadata)
    source = Records(clock.move)
    run_live(
        settings=settings,
        dependencies=Dependencies(
            source=source,
            sink=sink,
            lock=MemoryLock(),
            open_store=lambda: SqliteStore(directory, settings.detection(), RUN["consumer_group"]),
            reset_store=pytest.fail,
            open_window=lambda _start_ms, _ends: pytest.fail("nothing is rebuilt"),
            local_sinks=LocalSinks(alerts=file),
        ),
        stop=lambda: source.leaps >= 2,
        wall_ms=lambda: 1 << 60,
        clock=clock,
        wait=clock.move,
    )
    assert file.truncated_to == RUN["file_offset"]
    assert comparable(sink.lines()) == comparable(PUBLISHED)
    assert file.lines == sink.lines()
    assert [(dead_letter.record.offset, dead_letter.reason) for dead_letter in sink.dead_letters] == [
        (158, "not_json"),
        (184, "not_json"),
    ]


def test_commit_metadata_is_read_and_written_in_the_same_form() -> None:
    """The heartbeat's key is "beat" in both directions; a key that this version does not know is another program's."""
    text = (
        '{"streamdetect":1,"epoch":3,"owner":"a-1","state":"s","number":17,"beat":4,'
        '"evaluated_ms":1772415000000,"released":true}'
    )
    metadata = CommitMetadata(3, "a-1", "s", 17, 4, 1_772_415_000_000, released=True)
    assert CommitMetadata.parse(text) == metadata
    assert metadata.text() == text
    assert CommitMetadata.parse(text.replace('"beat"', '"heartbeat"')) is None
    for _, stored in COMMITTED.values():
        parsed = CommitMetadata.parse(stored)
        assert parsed is not None
        assert parsed.text() == stored
