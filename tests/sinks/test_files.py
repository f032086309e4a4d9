"""Standard output and files as sinks: lines, safety, and errors that say what to do."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
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
    """Alert bodies are written as they are, one a line; `flush` puts them where another process can read them."""
    sink: AlertSink = FileAlertSink(str(tmp_path / "a"))
    sink.write([alert(1), alert(2)])
    sink.write([alert(3)])
    sink.flush()
    assert (tmp_path / "a").read_bytes() == b'{"n":1}\n{"n":2}\n{"n":3}\n'
    sink.close()
    sink.close()


Opened = Callable[..., Any]
FILE_SINKS = [(FileAlertSink, alert), (FileDeadLetterSink, lambda number: dead_letter(b"%d" % number))]
"""How each file sink is opened, and what it is given."""


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: the system refuses as it does on a full disk, after it has
    written what still fits.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_replay_begins_its_file_anew_and_a_run_goes_on(tmp_path: Path) -> None:
    """Without `append` what was there is gone; with it, new lines come behind, also behind a line cut by a crash."""
    path = tmp_path / "a"
    path.write_bytes(b'{"n":0}\n{"cut')
    appending = FileAlertSink(str(path), append=True)
    appending.write([alert(1)])
    appending.close()
    assert path.read_bytes() == b'{"n":0}\n{"cut\n{"n":1}\n'
    FileAlertSink(str(path)).close()
    assert path.read_bytes() == b""


def test_stdout_is_flushed_at_each_write_and_stays_open() -> None:
    """Whoever reads the pipe sees an alert at once, and closing the sink does not close the stream."""
    raw = io.BytesIO()
    stream = io.BufferedWriter(raw)
    sink = StdoutAlertSink(stream)
    sink.write([alert(1)])
    assert raw.getvalue() == b'{"n":1}\n'
    sink.close()
    assert not stream.closed


def test_dead_letters_keep_everything(tmp_path: Path) -> None:
    """A line has the names of Kafka's headers, and key, headers and value in base64; a null value stays null."""
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


def test_paths_that_are_no_text_are_still_json(tmp_path: Path) -> None:
    """A file name that is not UTF-8 does not break the line."""
    sink = FileDeadLetterSink(str(tmp_path / "d"))
    sink.write(
        [DeadLetter(Record(Partition(os.fsdecode(b"\xff.jsonl")), 0, None, None, b"x"), "no_time", "")]
    )
    sink.close()
    assert json.loads((tmp_path / "d").read_bytes())["value"] == "eA=="


def test_null_sink_drops(tmp_path: Path) -> None:
    """The sink of `none` takes everything and leaves nothing."""
    sink: DeadLetterSink = NullSink()
    sink.write([dead_letter(b"x")])
    sink.flush()
    sink.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sink", [FileAlertSink, FileDeadLetterSink])
def test_a_path_that_cannot_be_written_is_told(tmp_path: Path, sink: Callable[[str], object]) -> None:
    """SinkError (exit 8) names the path and the cause when the sink is opened."""
    with pytest.raises(SinkError, match=r"none/a cannot be written \(No such file or directory\)") as told:
        sink(str(tmp_path / "none" / "a"))
    assert told.value.exit_code == 8


def test_a_full_disk_is_told() -> None:
    """The device /dev/full refuses what is flushed; the error says so, and closing does not raise anything else."""
    sink = FileAlertSink("/dev/full")
    sink.write([alert(1)])
    with pytest.raises(SinkError, match=r"/dev/full cannot be written \(No space left on device\)"):
        sink.flush()
    with pytest.raises(SinkError):
        sink.close()


def test_a_closed_pipe_is_told_quietly() -> None:
    """A reader that went away is named as the cause, without advice about disks."""
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
def test_packed_files_appear_whole(tmp_path: Path, name: str, unpack: Callable[[bytes], bytes]) -> None:
    """The name chooses the compression, the same content gives the same bytes, and until the end nothing is there."""
    contents: list[bytes] = []
    for _ in range(2):
        with atomic_file(str(tmp_path / name)) as stream:
            stream.write(b"hello\n")
            assert not contents or (tmp_path / name).read_bytes() == contents[0]
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert unpack(contents[0]) == b"hello\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_packed_file_leaves_what_was_there(tmp_path: Path) -> None:
    """Left by an exception, no partial file stays and an older file of that name is untouched."""
    old = tmp_path / "f.zst"
    old.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(str(old)) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f.zst", b"old")]


def test_packed_files_write_through_devices() -> None:
    """A device is written, not replaced; its errors are SinkErrors."""
    with atomic_file("/dev/null") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)

    def fill() -> None:
        with atomic_file("/dev/full") as stream:
            stream.write(b"x")

    with pytest.raises(SinkError, match="No space left"):
        fill()


def test_dead_letters_begin_anew_or_go_on(tmp_path: Path) -> None:
    """Without `append` older letters are gone, with it new ones come behind them."""
    path = str(tmp_path / "d")
    for append, expected in ((False, 1), (True, 2), (False, 1)):
        sink = FileDeadLetterSink(path, append=append)
        sink.write([dead_letter(b"x")])
        sink.close()
        assert len(Path(path).read_bytes().splitlines()) == expected


def test_a_full_disk_is_told_of_dead_letters() -> None:
    """What a flush cannot write is a SinkError (exit 8) that names the file and says what to do."""
    sink = FileDeadLetterSink("/dev/full")
    sink.write([dead_letter(b"x")])
    with pytest.raises(SinkError, match=r"/dev/full cannot be written .* Free disk space") as told:
        sink.flush()
    assert told.value.exit_code == 8
    with pytest.raises(SinkError):
        sink.close()


# -- marks, and cutting back to them


@pytest.mark.parametrize("anew", [False, True], ids=["same process", "next process"])
@pytest.mark.parametrize(("opened", "made"), FILE_SINKS)
def test_cut_back_takes_exactly_what_came_after(
    tmp_path: Path, opened: Opened, made: Callable[[int], Any], anew: bool
) -> None:
    """A mark says where the file was; cutting back leaves that and no more, and what is written next follows it."""
    path = str(tmp_path / "a")
    sink = opened(path, append=True)
    sink.write([made(1), made(2)])
    sink.flush()
    mark, before = json.loads(json.dumps(sink.offset())), Path(path).read_bytes()
    sink.write([made(3), made(4)])
    sink.flush()
    if anew:
        sink.close()
        sink = opened(path, append=True)
    sink.truncate(mark)
    assert Path(path).read_bytes() == before
    sink.write([made(5)])
    sink.close()
    lines = Path(path).read_bytes().splitlines(keepends=True)
    assert (b"".join(lines[:2]), len(lines)) == (before, 3)


def test_a_mark_of_an_empty_file(tmp_path: Path) -> None:
    """Everything goes, the file stays."""
    sink = FileAlertSink(str(tmp_path / "a"))
    mark = sink.offset()
    sink.write([alert(1)])
    sink.flush()
    sink.truncate(mark)
    assert (tmp_path / "a").read_bytes() == b""
    assert mark == {"path": str(tmp_path / "a"), "length": 0, "inode": (tmp_path / "a").stat().st_ino}


def test_a_mark_of_another_file(tmp_path: Path) -> None:
    """A file under another name, set in the configuration since, is not cut by the old one's mark."""
    (tmp_path / "a").write_bytes(b"old\n")
    mark = FileAlertSink(str(tmp_path / "a"), append=True).offset()
    other = FileAlertSink(str(tmp_path / "b"))
    other.write([alert(1), alert(2)])
    other.flush()
    other.truncate(mark)
    assert (tmp_path / "b").read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert (tmp_path / "a").read_bytes() == b"old\n"


def test_a_file_that_was_rotated_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under the old name there is a shorter, new file: nothing is cut or filled up, and the log says so."""
    path = tmp_path / "a"
    sink = FileAlertSink(str(path))
    sink.write([alert(1), alert(2)])
    sink.close()
    mark = FileAlertSink(str(path), append=True).offset()
    path.rename(tmp_path / "a.1")
    path.write_bytes(b"new\n")
    sink = FileAlertSink(str(path), append=True)
    with caplog.at_level(logging.WARNING):
        sink.truncate(mark)
    sink.write([alert(3)])
    sink.close()
    assert path.read_bytes() == b'new\n{"n":3}\n'
    assert (tmp_path / "a.1").read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert "has changed since the last run" in caplog.text


def test_a_longer_file_under_the_old_name_is_not_cut(tmp_path: Path) -> None:
    """Rotated away, and the new one has grown beyond the mark."""
    path = tmp_path / "a"
    path.write_bytes(b"old\n")
    mark = FileAlertSink(str(path), append=True).offset()
    path.rename(tmp_path / "a.1")
    path.write_bytes(b"newer and longer\n")
    FileAlertSink(str(path), append=True).truncate(mark)
    assert path.read_bytes() == b"newer and longer\n"


def test_a_file_that_was_cut_short_under_us(tmp_path: Path) -> None:
    """`copytruncate`: the same file, shorter than the mark; it is not filled up."""
    path = tmp_path / "a"
    path.write_bytes(b"a line\n")
    sink = FileAlertSink(str(path), append=True)
    mark = sink.offset()
    path.write_bytes(b"")
    sink.truncate(mark)
    sink.write([alert(1)])
    sink.close()
    assert path.read_bytes() == b'{"n":1}\n'


def test_a_line_cut_by_a_crash_is_left_alone_until_we_write(tmp_path: Path) -> None:
    """Opening, marking, flushing and closing change nothing, as the file may be another program's; a mark takes the
    half line away; and without a mark for it, the next line begins on a line of its own.
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
def test_what_cannot_be_cut_back_does_not_pretend(sink: object) -> None:
    """Standard output has gone to its reader: it has no mark. Neither has the sink that drops."""
    assert not hasattr(sink, "truncate")
    assert not hasattr(sink, "truncate")


def test_a_device_has_no_length() -> None:
    """A path that is no regular file can be written, and is never cut."""
    sink = FileAlertSink("/dev/null", append=True)
    mark = sink.offset()
    assert mark == {"path": "/dev/null", "length": None, "inode": None}
    sink.write([alert(1)])
    sink.truncate(mark)
    sink.truncate({"path": "/dev/null", "length": 0})
    sink.close()


def test_marks_that_say_nothing(tmp_path: Path) -> None:
    """A mark without path or length, as another version may have left, cuts nothing."""
    sink = FileAlertSink(str(tmp_path / "a"))
    sink.write([alert(1)])
    sink.flush()
    for mark in ({}, {"path": str(tmp_path / "a")}, {"length": 0}):
        sink.truncate(mark)
    assert (tmp_path / "a").read_bytes() == b'{"n":1}\n'


# -- a disk that is full


@pytest.mark.parametrize("size", [10, 5_000, 20_000], ids=["short", "long", "longer than the buffer"])
def test_a_disk_full_at_any_byte(tmp_path: Path, size: int) -> None:
    """Wherever the disk is full, writing is a SinkError (exit 8) that says to make room; and when there is room the
    next start cuts back to its mark and writes again: every line is there once, whole.
    """
    path = tmp_path / "a"
    kept, again = b'{"n":1}\n', [Alert(str(n), "e", "r", "opened", 0, b"%d" % n * size) for n in (2, 3)]
    expected = kept + b"".join(each.body + b"\n" for each in again)
    for limit in range(len(kept), len(expected), max(1, size // 7)):
        path.write_bytes(kept)
        mark = FileAlertSink(str(path), append=True).offset()
        told = _written_within(limit, path, again)
        assert told is not None
        assert (told.exit_code, "cannot be written" in str(told), "Free disk space" in str(told)) == (8, True, True)
        assert path.stat().st_size <= limit
        sink = FileAlertSink(str(path), append=True)
        sink.truncate(mark)
        assert path.read_bytes() == kept
        sink.write(again)
        sink.close()
        assert path.read_bytes() == expected


def _written_within(limit: int, path: Path, alerts: list[Alert]) -> SinkError | None:
    """One process writes until it fails, and ends. Nothing is printed here: what takes the output may be a file too."""
    sink = FileAlertSink(str(path), append=True)
    told = None
    with file_size_limit(limit):
        try:
            sink.write(alerts)
            sink.flush()
        except SinkError as error:
            told = error
        try:
            sink.close()
        except SinkError as error:
            told = told or error
    return told


def test_a_full_disk_when_a_torn_line_is_ended(tmp_path: Path) -> None:
    """Not even the one byte that ends another's half line fits: a SinkError, and the file as it was."""
    path = tmp_path / "a"
    path.write_bytes(b'{"cut')
    told = _written_within(5, path, [alert(1)])
    assert told is not None
    assert path.read_bytes() == b'{"cut'


def test_a_pipe_without_a_reader_is_told(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SinkError, match="pipe"):
        FileAlertSink(str(tmp_path / "pipe"), append=True)


def test_closed_standard_output_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was started with `>&-`."""
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SinkError, match="standard output is closed"):
        StdoutAlertSink()
