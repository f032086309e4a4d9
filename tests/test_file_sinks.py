"""Standard output and files as sinks: lines, safety, and errors that say what to do."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from streamdetect.errors import SinkError
from streamdetect.model import Alert, DeadLetter, Partition, Record
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sinks.files import FileAlertSink, FileDeadLetterSink, NullDeadLetterSink, StdoutAlertSink
from streamdetect.sinks.packed import packed_file


def alert(number: int) -> Alert:
    return Alert(str(number), "episode", "rule", "opened", 0, b'{"n":%d}' % number)


def letter(value: bytes | None, timestamp_ms: int | None = 5) -> DeadLetter:
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
    sink.write([letter(b"\x00not json\n"), letter(None, None)])
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
    sink: DeadLetterSink = NullDeadLetterSink()
    sink.write([letter(b"x")])
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
        with packed_file(str(tmp_path / name)) as stream:
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
        with packed_file(str(old)) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f.zst", b"old")]


def test_packed_files_write_through_devices() -> None:
    """A device is written, not replaced; its errors are SinkErrors."""
    with packed_file("/dev/null") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)

    def fill() -> None:
        with packed_file("/dev/full") as stream:
            stream.write(b"x")

    with pytest.raises(SinkError, match="No space left"):
        fill()


def test_dead_letters_begin_anew_or_go_on(tmp_path: Path) -> None:
    """Without `append` older letters are gone, with it new ones come behind them."""
    path = str(tmp_path / "d")
    for append, expected in ((False, 1), (True, 2), (False, 1)):
        sink = FileDeadLetterSink(path, append=append)
        sink.write([letter(b"x")])
        sink.close()
        assert len(Path(path).read_bytes().splitlines()) == expected


def test_a_full_disk_is_told_of_dead_letters() -> None:
    """What a flush cannot write is a SinkError (exit 8) that names the file and says what to do."""
    sink = FileDeadLetterSink("/dev/full")
    sink.write([letter(b"x")])
    with pytest.raises(SinkError, match=r"/dev/full cannot be written .* Make room") as told:
        sink.flush()
    assert told.value.exit_code == 8
    with pytest.raises(SinkError):
        sink.close()
