"""The file source: every layout and compression, damage, round robin, and pipes."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdetect.errors import InputError
from streamdetect.model import Partition
from streamdetect.sources import Source, framing
from streamdetect.sources.compressed import PLAIN_BLOCK
from streamdetect.sources.files import FileSource
from streamdetect.sources.framing import records

Write = Callable[[str, bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, content)` creates a file and returns its path."""

    def written(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return written


def drain(source: FileSource) -> dict[Partition, list[bytes]]:
    """All records of a source by partition; offsets must count up from 0 without gaps."""
    found: dict[Partition, list[bytes]] = {partition: [] for partition in source.partitions()}
    while len(source.at_end()) < len(source.partitions()):
        for batch in source.poll((), 100):
            values = found[batch.partition]
            assert list(batch.offsets) == list(range(len(values), len(values) + len(batch)))
            assert batch.timestamps_ms is None
            values.extend(value for value in batch.values if value is not None)
    source.close()
    return found


def read(path: str, **how: Any) -> list[bytes]:
    """The records of one file."""
    (values,) = drain(FileSource([path], **how)).values()
    return values


def zst(*parts: bytes) -> bytes:
    return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in parts)


TWO = [b'{"a":1}', b'{"b":"2"}']
LAYOUTS = {
    "lines": b'{"a":1}\n{"b":"2"}\n',
    "no newline at the end": b'{"a":1}\n{"b":"2"}',
    "CRLF": b'{"a":1}\r\n{"b":"2"}\r\n',
    "blank lines": b'\n  \n{"a":1}\n\r\n\t\n{"b":"2"}\n\n',
    "byte order mark": b'\xef\xbb\xbf{"a":1}\n{"b":"2"}',
    "array": b'[{"a":1},{"b":"2"}]',
    "array, byte order mark, newline": b'\xef\xbb\xbf [ {"a":1} , {"b":"2"} ] \n',
    "array, one element a line": b'[\n{"a":1},\n{"b":"2"}\n]\n',
    "events": b'{"events": [{"a":1},{"b":"2"}]}',
    "events, spread out": b'{\n  "events" :\n [\n{"a":1},\n\n{"b":"2"}\n]\n}\n',
    "events and more": b'{"events":[{"a":1},{"b":"2"}],"total":2}\n\n',
}


@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_layouts_give_the_same_records(write: Write, content: bytes, suffix: str) -> None:
    """The source returns the same two records for every layout and compression."""
    compressors: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}
    compress = compressors[suffix]
    assert read(write("f.jsonl" + suffix, compress(content))) == TWO


RECORDS = {
    "an events object is the first line of many": (
        b'{"events": [1]}\n{"a":1}\n',
        [b'{"events": [1]}', b'{"a":1}'],
    ),
    "an array is the first line of many": (b'[1,"]"]\n\n{"a":1}', [b'[1,"]"]', b'{"a":1}']),
    "a log line that begins with a bracket": (
        b"[2026-03-02] x\n[ERROR] y\n",
        [b"[2026-03-02] x", b"[ERROR] y"],
    ),
    "a single log line with brackets": (b"[1] started", [b"[1] started"]),
    "events is not an array": (b'{"events": {"a": 1}}', [b'{"events": {"a": 1}}']),
    "an empty array": (b"[]", []),
    "no events": (b'{"events": [ ]}\n', []),
    "nothing": (b"", []),
    "blanks": (b" \n\n", []),
    "a single byte": (b"x", [b"x"]),
    "brackets and escapes in strings": (
        b'[{"a":"]},\\"[{"}, "x\\\\", [1,[2]], -1]',
        [b'{"a":"]},\\"[{"}', b'"x\\\\"', b"[1,[2]]", b"-1"],
    ),
}


@pytest.mark.parametrize(("content", "expected"), RECORDS.values(), ids=RECORDS.keys())
def test_records_are_unchanged(write: Write, content: bytes, expected: list[bytes]) -> None:
    """Lines stay lines unless the file is one array; no record is validated here."""
    assert read(write("f", content)) == expected


def test_pretty_elements_keep_their_bytes(write: Write) -> None:
    """An element over several lines is returned with its blanks, because a dead letter holds the raw bytes."""
    events = [{"a": [1, {"b": "x,]"}]}, {"c": None}]
    for document in (events, {"events": events}):
        values = read(write("f", json.dumps(document, indent=2).encode()))
        assert [json.loads(value) for value in values] == events
        assert b"\n" in values[0]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.binary(min_size=1).map(lambda raw: raw.hex().encode() + b"\r x"), max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_blocks_make_no_difference_to_lines(values: list[bytes], cuts: list[int], end: bytes) -> None:
    """The records are the same wherever a block ends inside a line."""
    assert in_blocks(end.join(values), cuts) == values


ELEMENTS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=200, deadline=None)
@given(
    events=st.lists(ELEMENTS, max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    within=st.booleans(),
)
def test_blocks_make_no_difference_to_elements(events: list[Any], cuts: list[int], within: bool) -> None:
    """The same for the elements of an array, compared with the standard library's parser."""
    text = json.dumps({"events": events} if within else events, indent=1, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    found = in_blocks(text, cuts)
    assert [json.loads(value.decode("utf-8", "surrogatepass")) for value in found] == events


def in_blocks(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    blocks = (data[begin:end] for begin, end in pairwise(edges))
    return [value for found in records(blocks, 1_000) for value in found]


def test_many_members_and_frames_are_one_file(write: Write) -> None:
    """Concatenated gzip members (with zeros between them) and zstandard frames (with skippable ones) are all read."""
    parts = [b'{"n":%d}\n' % n for n in range(3)]
    expected = [part.strip() for part in parts]
    assert read(write("f.gz", b"\0\0".join(gzip.compress(part) for part in parts) + b"\0" * 9)) == expected
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert read(write("f.zst", skipped + zst(*parts))) == expected


def test_compression_is_detected_without_a_suffix(write: Write) -> None:
    """By the first bytes."""
    assert read(write("a", gzip.compress(b"x\n"))) == read(write("b", zst(b"x\n"))) == [b"x"]


def lines(count: int) -> bytes:
    """Lines that do not compress well."""
    return b"".join(os.urandom(500).hex().encode() + b"\n" for _ in range(count))


@pytest.mark.parametrize("pack", [gzip.compress, zst], ids=["gzip", "zstandard"])
def test_truncated_files_end_after_the_last_whole_record(
    write: Write, pack: Callable[[bytes], bytes]
) -> None:
    """Whole records are returned, the truncated one is not; then InputError names the file."""
    content = lines(300)
    path = write("cut.gz" if pack is gzip.compress else "cut.zst", pack(content)[:-2_000])
    source = FileSource([path])
    found: list[bytes | None] = []

    def read_on() -> None:
        while True:
            for batch in source.poll((), 0):
                found.extend(batch.values)

    with pytest.raises(InputError, match=r"cut\.\w+: its \w+ data ends too early; \d+ records") as raised:
        read_on()
    assert found == content.split(b"\n")[: len(found)]
    assert len(found) > 250
    assert f"{len(found)} records were read before that" in str(raised.value)


BROKEN = {
    "damaged.gz": gzip.compress(b"x\n")[:-5] + b"\xff" * 5,
    "no.gz": b'{"a":1}\n',
    "empty.gz": b"",
    "trailing.gz": gzip.compress(b"x\n") + b"garbage",
    "no.zst": b"plain text",
    "empty.zst": b"",
    "utf16.jsonl": '{"a":1}'.encode("utf-16"),
    "array.json": b'[{"a":1},{"a"',
    "events.json": b'{"events":[{"a":1}]',
    "more.json": b'[\n{"a":1}]\n{"b":2}',
}


@pytest.mark.parametrize(("name", "content"), BROKEN.items(), ids=BROKEN.keys())
def test_damage_is_an_input_error(write: Write, name: str, content: bytes) -> None:
    """A file that does not match its format ends with exit code 10 and its name, instead of returning fewer records."""
    with pytest.raises(InputError, match=name) as raised:
        read(write(name, content))
    assert raised.value.exit_code == 10


def test_long_lines_are_returned_whole(write: Write) -> None:
    """A line over the record limit is returned unchanged, for its dead letter; the next line is not affected."""
    long = b"x" * (3 * PLAIN_BLOCK)
    assert read(write("f", long + b"\nnext\n" + long), max_record_bytes=10) == [long, b"next", long]


def test_endless_lines_are_truncated(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the memory limit only enough bytes are kept to reject the record as too large."""
    monkeypatch.setattr(framing, "MAX_BUFFERED", 1_000_000)
    path = write("f", b"x" * 2_500_000 + b"\nnext\n" + b"y" * 1_500_000)
    assert read(path, max_record_bytes=10) == [b"x" * 11, b"next", b"y" * 11]


def test_partitions_are_the_paths_in_order(write: Write, tmp_path: Path) -> None:
    """A directory means its files by name, without hidden ones and subdirectories; a repeated path has number 1."""
    for name in ("d/b.jsonl", "d/a.jsonl", "d/.hidden", "d/deeper/x.jsonl"):
        write(name, name.encode())
    last = write("last", b"z")
    source = FileSource([last, str(tmp_path / "d"), last])
    a, b = str(tmp_path / "d" / "a.jsonl"), str(tmp_path / "d" / "b.jsonl")
    assert source.partitions() == (Partition(last), Partition(a), Partition(b), Partition(last, 1))
    assert list(drain(source).values()) == [[b"z"], [b"d/a.jsonl"], [b"d/b.jsonl"], [b"z"]]


def test_wrong_paths_are_reported_before_anything_is_read(write: Write, tmp_path: Path) -> None:
    """A missing file, an empty directory and standard input given twice are InputErrors at once."""
    good = write("good", b"x")
    (tmp_path / "empty").mkdir()
    for bad, message in (
        ([str(tmp_path / "none")], r"none cannot be opened \(No such file or directory\)"),
        ([str(tmp_path / "empty")], "empty is a directory without files"),
        (["-", "-"], "given twice"),
        ([str(tmp_path / "good" / "x")], "cannot be opened"),
    ):
        with pytest.raises(InputError, match=message):
            FileSource([good, *bad])


def test_one_partition_per_poll_round_robin(write: Write) -> None:
    """Each poll returns one batch of one partition, round robin; held partitions are skipped."""
    paths = [write(name, b"1\n2\n3\n") for name in "abc"]
    source: Source = FileSource(paths, batch_records=2)
    a, b, c = source.partitions()
    polled = []
    for hold in ((), (), (a, c), (), (), (b,), ()):
        polled += [(batch.partition, list(batch.values)) for batch in source.poll(hold, 0)]
    assert polled[:4] == [(a, [b"1", b"2"]), (b, [b"1", b"2"]), (b, [b"3"]), (c, [b"1", b"2"])]
    assert source.poll((a, b, c), 0) == []
    while source.poll((), 0):
        pass
    assert source.at_end() == {a, b, c}
    assert source.poll((), 0) == []
    source.close()


def test_progress_counts_stored_bytes(write: Write) -> None:
    """Read and total are compressed bytes, so that a progress bar reaches its end."""
    paths = [write("a.gz", gzip.compress(lines(50))), write("b", b"x\n")]
    total = sum(Path(path).stat().st_size for path in paths)
    source = FileSource(paths)
    assert source.progress() == (0, total)
    drain(source)
    assert source.progress() == (total, total)


def test_a_pipe_does_not_block_other_files(write: Write, tmp_path: Path) -> None:
    """A pipe without data is skipped; with data, only whole lines are returned; its total is unknown."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    source = FileSource([fifo, write("file", b"f\n")])
    pipe, file = source.partitions()
    assert [batch.partition for batch in source.poll((), 0)] == [file]
    assert source.poll((), 1) == []
    assert source.progress()[1] is None
    os.write(writer, b'{"a":1}\n{"b"')
    assert [list(batch.values) for batch in source.poll((), 1_000)] in ([[b'{"a":1}']], [])
    os.write(writer, b":2}\n")
    os.close(writer)
    last: list[bytes | None] = []
    while source.at_end() != {pipe, file}:
        last += [value for batch in source.poll((), 100) for value in batch.values]
    assert last[-1] == b'{"b":2}'
    source.close()


def test_a_file_that_is_deleted_or_truncated_while_it_is_read(write: Write) -> None:
    """Files stay open: a deleted one is read to its end, a truncated one ends where it was truncated."""
    kept, cut = write("kept", b"1\n2\n"), write("cut", b"x" * PLAIN_BLOCK + b"\ny\n")
    source = FileSource([kept, cut])
    os.unlink(kept)  # noqa: PTH108 - removes the name only
    os.truncate(cut, 3)
    first, second = drain(source).values()
    assert (first, second) == ([b"1", b"2"], [b"xxx"])


def test_a_path_given_twice_is_read_twice(write: Write) -> None:
    """Both partitions return all records with their own offsets, also of a compressed file."""
    path = write("f.gz", gzip.compress(b"1\n2\n"))
    found = drain(FileSource([path, path], batch_records=1))
    assert found == {Partition(path): [b"1", b"2"], Partition(path, 1): [b"1", b"2"]}


def test_an_empty_path_is_not_the_current_directory() -> None:
    """`replay "$UNSET"` must not read the files of the current directory."""
    with pytest.raises(InputError, match=r"an empty path cannot be opened \(No such file or directory\)"):
        FileSource([""])
