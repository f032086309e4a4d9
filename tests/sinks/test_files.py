"""Sinks for standard output and files: lines, durability, truncation, errors with advice."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from streamdetect.errors import SinkError
from streamdetect.model import Alert, DeadLetter, Partition, Record
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.sinks.files import FileAlertSink, FileDeadLetterSink, NullSink, StdoutAlertSink


def alert(number: int) -> Alert:
    return Alert(str(number), "episode", "rule", "opened", 0, b'{"n":%d}' % number)


def dead_letter(value: bytes | None, timestamp_ms: int | None = 5) -> DeadLetter:
    headers = (("trace", b"\xff\x00"),)
    return DeadLetter(Record(Partition("t", 3), 42, timestamp_ms, b"k", value, headers), "not_json", "see ä")


def test_alerts_are_lines_in_order(tmp_path: Path) -> None:
    """One line per alert body; after `flush` another process can read them. `close` is idempotent."""
    sink: AlertSink = FileAlertSink(str(tmp_path / "a"))
    sink.write([alert(1), alert(2)])
    sink.write([alert(3)])
    sink.flush()
    assert (tmp_path / "a").read_bytes() == b'{"n":1}\n{"n":2}\n{"n":3}\n'
    sink.close()
    sink.close()


OpenSink = Callable[..., Any]
FILE_SINKS = [(FileAlertSink, alert), (FileDeadLetterSink, lambda number: dead_letter(b"%d" % number))]
"""Each file sink, and a function that makes an item for it."""


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process writes: as on a full disk, a write fails after writing what fits."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_overwritten_or_appended(tmp_path: Path) -> None:
    """Without `append` the file is overwritten; with it lines are appended, also after a line truncated by a crash."""
    path = tmp_path / "a"
    path.write_bytes(b'{"n":0}\n{"cut')
    appending = FileAlertSink(str(path), append=True)
    appending.write([alert(1)])
    appending.close()
    assert path.read_bytes() == b'{"n":0}\n{"cut\n{"n":1}\n'
    FileAlertSink(str(path)).close()
    assert path.read_bytes() == b""


def test_stdout_is_flushed_at_each_write_and_stays_open() -> None:
    """The reader of a pipe gets each alert immediately; closing the sink does not close the stream."""
    raw = io.BytesIO()
    stream = io.BufferedWriter(raw)
    sink = StdoutAlertSink(stream)
    sink.write([alert(1)])
    assert raw.getvalue() == b'{"n":1}\n'
    sink.close()
    assert not stream.closed


def test_dead_letters_keep_everything(tmp_path: Path) -> None:
    """A line has the names of the Kafka headers, and key, headers and value in base64; a null value stays null."""
    sink: DeadLetterSink = FileDeadLetterSink(str(tmp_path / "d"))
    sink.write([dead_letter(b"\x00not json\n"), dead_letter(None, None)])
    sink.close()
    first, second = map(json.loads, (tmp_path / "d").read_text(encoding="utf-8").splitlines())
    assert first == {
        "streamdetect.origin-topic": "t",
        "streamdetect.origin-partition": 3,
        "streamdetect.origin-offset": 42,
        "streamdetect.origin-timestamp": 5,
        "streamdetect.reason": "not_json",
        "streamdetect.detail": "see ä",
        "key": base64.b64encode(b"k").decode(),
        "headers": [["trace", base64.b64encode(b"\xff\x00").decode()]],
        "value": base64.b64encode(b"\x00not json\n").decode(),
    }
    assert (second["value"], second["streamdetect.origin-timestamp"]) == (None, None)


def test_a_path_that_is_not_utf_8_is_still_json(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is escaped."""
    sink = FileDeadLetterSink(str(tmp_path / "d"))
    sink.write(
        [DeadLetter(Record(Partition(os.fsdecode(b"\xff.jsonl")), 0, None, None, b"x"), "no_time", "")]
    )
    sink.close()
    assert json.loads((tmp_path / "d").read_bytes())["value"] == "eA=="


def test_the_null_sink_writes_nothing(tmp_path: Path) -> None:
    """The sink of `none` accepts everything and writes nothing."""
    sink: DeadLetterSink = NullSink()
    sink.write([dead_letter(b"x")])
    sink.flush()
    sink.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sink", [FileAlertSink, FileDeadLetterSink])
def test_a_missing_directory(tmp_path: Path, sink: Callable[[str], object]) -> None:
    """Opening raises SinkError (exit 8) with the path and the cause."""
    with pytest.raises(SinkError, match=r"none/a cannot be written \(No such file or directory\)") as raised:
        sink(str(tmp_path / "none" / "a"))
    assert raised.value.exit_code == 8


def test_a_full_disk() -> None:
    """`flush` raises SinkError for /dev/full; `close` raises SinkError too, and no other error."""
    sink = FileAlertSink("/dev/full")
    sink.write([alert(1)])
    with pytest.raises(SinkError, match=r"/dev/full cannot be written \(No space left on device\)"):
        sink.flush()
    with pytest.raises(SinkError):
        sink.close()


def test_a_closed_pipe() -> None:
    """The message names the closed reader, without advice about disks."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as stream:
        sink = StdoutAlertSink(stream)
        with pytest.raises(SinkError, match="standard output was closed by its reader"):
            sink.write([alert(1)])


@pytest.mark.parametrize(
    ("name", "unpack"),
    [("f", bytes), ("f.gz", gzip.decompress), ("f.zst", lambda data: zstandard.decompress(data, 100))],
)
def test_atomic_files_are_complete(tmp_path: Path, name: str, unpack: Callable[[bytes], bytes]) -> None:
    """The suffix chooses the compression; the same content gives the same bytes; the file appears at the end."""
    contents: list[bytes] = []
    for _ in range(2):
        with atomic_file(str(tmp_path / name)) as stream:
            stream.write(b"hello\n")
            assert not contents or (tmp_path / name).read_bytes() == contents[0]
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert unpack(contents[0]) == b"hello\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_atomic_file_keeps_the_old_one(tmp_path: Path) -> None:
    """When the block raises, no partial file is left, and an older file of that name is unchanged."""
    old = tmp_path / "f.zst"
    old.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(str(old)) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f.zst", b"old")]


def test_devices_are_written_not_replaced() -> None:
    """A device is written, not replaced; its errors become SinkError."""
    with atomic_file("/dev/null") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)

    def fill() -> None:
        with atomic_file("/dev/full") as stream:
            stream.write(b"x")

    with pytest.raises(SinkError, match="No space left"):
        fill()


def test_dead_letters_are_overwritten_or_appended(tmp_path: Path) -> None:
    """Without `append` earlier dead letters are removed; with it new ones follow them."""
    path = str(tmp_path / "d")
    for append, expected in ((False, 1), (True, 2), (False, 1)):
        sink = FileDeadLetterSink(path, append=append)
        sink.write([dead_letter(b"x")])
        sink.close()
        assert len(Path(path).read_bytes().splitlines()) == expected


def test_a_full_disk_for_dead_letters() -> None:
    """`flush` raises SinkError (exit 8) with the file and advice."""
    sink = FileDeadLetterSink("/dev/full")
    sink.write([dead_letter(b"x")])
    with pytest.raises(SinkError, match=r"/dev/full cannot be written .* Free disk space") as raised:
        sink.flush()
    assert raised.value.exit_code == 8
    with pytest.raises(SinkError):
        sink.close()


# -- offsets and truncation


@pytest.mark.parametrize("reopened", [False, True], ids=["same process", "next process"])
@pytest.mark.parametrize(("open_sink", "item"), FILE_SINKS)
def test_truncate_removes_exactly_what_was_written_later(
    tmp_path: Path, open_sink: OpenSink, item: Callable[[int], Any], reopened: bool
) -> None:
    """`truncate` restores the content as of `offset`; later writes follow it."""
    path = str(tmp_path / "a")
    sink = open_sink(path, append=True)
    sink.write([item(1), item(2)])
    sink.flush()
    offset, before = json.loads(json.dumps(sink.offset())), Path(path).read_bytes()
    sink.write([item(3), item(4)])
    sink.flush()
    if reopened:
        sink.close()
        sink = open_sink(path, append=True)
    sink.truncate(offset)
    assert Path(path).read_bytes() == before
    sink.write([item(5)])
    sink.close()
    lines = Path(path).read_bytes().splitlines(keepends=True)
    assert (b"".join(lines[:2]), len(lines)) == (before, 3)


def test_the_offset_of_an_empty_file(tmp_path: Path) -> None:
    """Everything is removed, the file stays."""
    sink = FileAlertSink(str(tmp_path / "a"))
    offset = sink.offset()
    sink.write([alert(1)])
    sink.flush()
    sink.truncate(offset)
    assert (tmp_path / "a").read_bytes() == b""
    assert offset == {"path": str(tmp_path / "a"), "length": 0, "inode": (tmp_path / "a").stat().st_ino}


def test_the_offset_of_another_file(tmp_path: Path) -> None:
    """After a change of the configured path, the offset of the old file does not truncate the new one."""
    (tmp_path / "a").write_bytes(b"old\n")
    offset = FileAlertSink(str(tmp_path / "a"), append=True).offset()
    other = FileAlertSink(str(tmp_path / "b"))
    other.write([alert(1), alert(2)])
    other.flush()
    other.truncate(offset)
    assert (tmp_path / "b").read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert (tmp_path / "a").read_bytes() == b"old\n"


def test_a_rotated_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A shorter new file has the old name: it is neither truncated nor extended, and a warning is logged."""
    path = tmp_path / "a"
    sink = FileAlertSink(str(path))
    sink.write([alert(1), alert(2)])
    sink.close()
    offset = FileAlertSink(str(path), append=True).offset()
    path.rename(tmp_path / "a.1")
    path.write_bytes(b"new\n")
    sink = FileAlertSink(str(path), append=True)
    with caplog.at_level(logging.WARNING):
        sink.truncate(offset)
    sink.write([alert(3)])
    sink.close()
    assert path.read_bytes() == b'new\n{"n":3}\n'
    assert (tmp_path / "a.1").read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert "has changed since the last run" in caplog.text


def test_a_longer_file_under_the_old_name_is_not_truncated(tmp_path: Path) -> None:
    """After a rotation the new file has grown beyond the offset."""
    path = tmp_path / "a"
    path.write_bytes(b"old\n")
    offset = FileAlertSink(str(path), append=True).offset()
    path.rename(tmp_path / "a.1")
    path.write_bytes(b"newer and longer\n")
    FileAlertSink(str(path), append=True).truncate(offset)
    assert path.read_bytes() == b"newer and longer\n"


def test_copytruncate(tmp_path: Path) -> None:
    """The same file, shorter than the offset, is not extended."""
    path = tmp_path / "a"
    path.write_bytes(b"a line\n")
    sink = FileAlertSink(str(path), append=True)
    offset = sink.offset()
    path.write_bytes(b"")
    sink.truncate(offset)
    sink.write([alert(1)])
    sink.close()
    assert path.read_bytes() == b'{"n":1}\n'


def test_a_partial_line_is_untouched_until_the_first_write(tmp_path: Path) -> None:
    """Opening, `offset`, `flush` and `close` change nothing, because the file may belong to another program. `truncate`
    removes the partial line; without it, the next write starts a new line.
    """
    path = tmp_path / "a"
    whole, torn = b'{"n":0}\n', b'{"n":0}\n{"cut'
    path.write_bytes(torn)
    sink = FileAlertSink(str(path), append=True)
    assert sink.offset()["length"] == len(torn)
    sink.flush()
    sink.close()
    assert path.read_bytes() == torn
    sink = FileAlertSink(str(path), append=True)
    sink.truncate(sink.offset() | {"length": len(whole)})
    assert path.read_bytes() == whole
    sink.write([alert(1)])
    sink.close()
    assert path.read_bytes() == whole + b'{"n":1}\n'
    path.write_bytes(torn)
    sink = FileAlertSink(str(path), append=True)
    for number in (1, 2):
        sink.write([alert(number)])
    sink.close()
    assert path.read_bytes() == torn + b'\n{"n":1}\n{"n":2}\n'


@pytest.mark.parametrize("sink", [StdoutAlertSink(io.BytesIO()), NullSink()], ids=["stdout", "none"])
def test_sinks_that_cannot_be_truncated(sink: object) -> None:
    """Standard output and the null sink are not rewindable."""
    assert not hasattr(sink, "offset")
    assert not hasattr(sink, "truncate")


def test_a_device_has_no_length() -> None:
    """A path that is not a regular file can be written, and is never truncated."""
    sink = FileAlertSink("/dev/null", append=True)
    offset = sink.offset()
    assert offset == {"path": "/dev/null", "length": None, "inode": None}
    sink.write([alert(1)])
    sink.truncate(offset)
    sink.truncate({"path": "/dev/null", "length": 0})
    sink.close()


def test_incomplete_offsets(tmp_path: Path) -> None:
    """An offset without path or length, possibly from another version, truncates nothing."""
    sink = FileAlertSink(str(tmp_path / "a"))
    sink.write([alert(1)])
    sink.flush()
    for offset in ({}, {"path": str(tmp_path / "a")}, {"length": 0}):
        sink.truncate(offset)
    assert (tmp_path / "a").read_bytes() == b'{"n":1}\n'


# -- full disks


@pytest.mark.parametrize("size", [10, 5_000, 20_000], ids=["short", "long", "longer than the buffer"])
def test_a_disk_full_at_any_byte(tmp_path: Path, size: int) -> None:
    """Writing raises SinkError (exit 8) at whatever byte the disk is full. With space again, the next start truncates
    to the offset and writes again: every line is there once, complete.
    """
    path = tmp_path / "a"
    kept, again = b'{"n":1}\n', [Alert(str(n), "e", "r", "opened", 0, b"%d" % n * size) for n in (2, 3)]
    expected = kept + b"".join(each.body + b"\n" for each in again)
    for limit in range(len(kept), len(expected), max(1, size // 7)):
        path.write_bytes(kept)
        offset = FileAlertSink(str(path), append=True).offset()
        raised = _written_within(limit, path, again)
        assert raised is not None
        assert raised.exit_code == 8
        assert re.search("cannot be written.*Free disk space", str(raised))
        assert path.stat().st_size <= limit
        sink = FileAlertSink(str(path), append=True)
        sink.truncate(offset)
        assert path.read_bytes() == kept
        sink.write(again)
        sink.close()
        assert path.read_bytes() == expected


def _written_within(limit: int, path: Path, alerts: list[Alert]) -> SinkError | None:
    """Write until it fails, and close; return the first error. Prints nothing, as stdout may be a limited file too."""
    sink = FileAlertSink(str(path), append=True)
    raised = None
    with file_size_limit(limit):
        try:
            sink.write(alerts)
            sink.flush()
        except SinkError as error:
            raised = error
        try:
            sink.close()
        except SinkError as error:
            raised = raised or error
    return raised


def test_a_full_disk_when_a_partial_line_is_ended(tmp_path: Path) -> None:
    """When even the newline does not fit, the write raises SinkError and the file stays as it was."""
    path = tmp_path / "a"
    path.write_bytes(b'{"cut')
    raised = _written_within(5, path, [alert(1)])
    assert raised is not None
    assert path.read_bytes() == b'{"cut'


def test_a_pipe_without_a_reader(tmp_path: Path) -> None:
    """Raises SinkError, because opening the pipe would block for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SinkError, match="pipe"):
        FileAlertSink(str(tmp_path / "pipe"), append=True)


def test_closed_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises SinkError when the program was started with `>&-`."""
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SinkError, match="standard output is closed"):
        StdoutAlertSink()
