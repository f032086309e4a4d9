"""Blocks of bytes to records: one a line, or one an element where the file is a single JSON array.

Nothing is parsed: a record is handed over as its bytes stand in the file, and whoever reads it judges it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from io import BytesIO
from itertools import chain
from typing import Literal

from streamdetect.sources.compressed import DamagedError

LONGEST = 64 * 1024 * 1024
"""Most bytes of one record that are held in memory."""

FileFormat = Literal["lines", "document"]

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BLANK = b" \t\r\n"
_EVENTS = b'{"events":['
_ELEMENT_BEGINS = b'{["-0123456789tfn]'
_HEAD_LIMIT = 65_536
# A whole string (without its end where the bytes break off inside it), or what gives an array its shape.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)
_QUOTE, _COMMA, _ARRAY_END = b'",]'
_OPENING, _CLOSING = b"[{", b"]}"


def records(blocks: Iterator[bytes], max_record_bytes: int) -> Iterator[list[bytes]]:
    """The records of a file, some at a time; an empty list means that nothing has come yet.

    A record over `LONGEST` bytes is cut to `max_record_bytes + 1`, which is enough to refuse it.
    DamagedError when the bytes break off, or are neither lines nor one JSON array.
    """
    head = b""
    kind: FileFormat | None = None
    for block in blocks:
        head += block
        kind = None if len(head) < len(_BOM) else _kind(head)
        if kind is not None:
            break
        yield []
    else:
        kind = _kind(head)
    head = head.removeprefix(_BOM)
    if kind == "document":
        head, kind = yield from _first_line(head, blocks)
    if kind == "document":
        yield from _elements(head, blocks)
    else:
        yield from _lines(chain([head], blocks), max_record_bytes)


def _kind(head: bytes) -> FileFormat | None:
    """How a file that begins with `head` seems to be laid out; None where that needs more bytes."""
    if head.startswith(_UTF16):
        raise DamagedError("it is UTF-16 text; convert it first, for example with iconv -f UTF-16 -t UTF-8")
    shape = head[:_HEAD_LIMIT].removeprefix(_BOM).translate(None, _BLANK)
    if shape.startswith(_EVENTS) or (len(shape) > 1 and shape[:1] == b"[" and shape[1] in _ELEMENT_BEGINS):
        return "document"
    undecided = shape == b"[" or _EVENTS.startswith(shape)
    return None if undecided and len(head) <= _HEAD_LIMIT else "lines"


def _first_line(
    head: bytes, blocks: Iterator[bytes]
) -> Generator[list[bytes], None, tuple[bytes, FileFormat]]:
    """Decide whether the first line is (the begin of) the document or the first of many records.

    It is a record if its brackets close within it and anything follows: then the file is not one array. Returns all
    that was read for it: up to the first byte after that line, at most `LONGEST` bytes.
    """
    buffer = bytearray(head.lstrip(_BLANK))
    line_end = buffer.find(b"\n")
    for block in blocks:
        if len(buffer) > LONGEST or (line_end >= 0 and buffer[line_end:].strip(_BLANK)):
            buffer += block
            break
        searched = len(buffer)
        buffer += block
        line_end = buffer.find(b"\n", searched) if line_end < 0 else line_end
        yield []
    first = bytes(buffer if line_end < 0 else buffer[:line_end])
    value_end = _value_end(first)
    follows = value_end is not None and buffer[value_end:].strip(_BLANK)
    return bytes(buffer), "lines" if follows else "document"


def _value_end(data: bytes) -> int | None:
    """Where the array or object that `data` begins with ends, or None if it does not."""
    depth = 0
    for token in _TOKEN.finditer(data):
        mark = data[token.start()]
        depth += (mark in _OPENING) - (mark in _CLOSING)
        if depth == 0:
            return token.end()
    return None


def _elements(head: bytes, blocks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """The elements of the document's array, as they stand."""
    begin = head.index(b"[") + 1
    pieces, size, wanted = [head[begin:]], len(head) - begin, 0
    for block in chain([b""], blocks, [None]):
        if block is not None:
            pieces.append(block)
            size += len(block)
            # Scanning an unfinished element again only once it has doubled keeps the whole linear.
            if size < wanted:
                continue
        data = b"".join(pieces)
        found, end, ended = _split(data)
        yield found
        if ended:
            _check_rest(chain([data[end:]], blocks), within_object=head.lstrip(_BLANK).startswith(b"{"))
            return
        if len(data) - end > LONGEST:
            raise DamagedError(f"an element of its JSON array is over {LONGEST // 1024**2} MiB")
        pieces, size = [data[end:]], len(data) - end
        wanted = 2 * size
    raise DamagedError("its JSON array breaks off before its end")


def _split(data: bytes) -> tuple[list[bytes], int, bool]:
    """The finished elements in `data`, the place behind the last of them, and whether the array ended there."""
    found: list[bytes] = []
    start = depth = 0
    for token in _TOKEN.finditer(data):
        mark = data[token.start()]
        if mark == _QUOTE:
            if not token[1]:
                break
        elif mark in _OPENING:
            depth += 1
        elif depth:
            depth -= mark in _CLOSING
        elif mark in (_COMMA, _ARRAY_END):
            element = data[start : token.start()].strip(_BLANK)
            start = token.end()
            if element:
                found.append(element)
            if mark == _ARRAY_END:
                return found, start, True
    return found, start, False


def _check_rest(blocks: Iterator[bytes], *, within_object: bool) -> None:
    """Behind an array is nothing; behind that of an object is the rest of the object. DamagedError if not."""
    last = b""
    for block in blocks:
        last = block.rstrip(_BLANK)[-1:] or last
    if within_object and last != b"}":
        raise DamagedError('its {"events": [...]} breaks off before its end')
    if not within_object and last:
        raise DamagedError("there is more behind the end of its JSON array")


def _lines(blocks: Iterator[bytes], max_record_bytes: int) -> Iterator[list[bytes]]:
    """Lines without their ends, and without blank ones.

    The hot path. `BytesIO.readlines` looks for the ends with memchr; `bytes.split` takes four times as long.
    """
    parts: list[bytes] = []  # of the line that has not ended yet
    size = 0
    for block in blocks:
        lines = BytesIO(block).readlines()
        tail = b"" if block.endswith(b"\n") or not block else lines.pop()
        if not lines:
            size += len(tail)
            parts = [*parts, tail] if size <= LONGEST else [_joined([*parts, tail], size, max_record_bytes)]
            yield []
            continue
        lines[0] = _joined([*parts, lines[0]], size + len(lines[0]), max_record_bytes)
        parts, size = [tail], len(tail)
        if b"\r" in block or lines[0].endswith(b"\r\n"):
            yield [line.rstrip(b"\r\n") for line in lines if not line.isspace()]
        else:
            yield [line[:-1] for line in lines if not line.isspace()]
    last = _joined(parts, size, max_record_bytes).rstrip(b"\r\n")
    if last and not last.isspace():
        yield [last]


def _joined(parts: list[bytes], size: int, max_record_bytes: int) -> bytes:
    """A line out of its parts; of one that is too long only what is enough to refuse it."""
    whole = b"".join(parts)
    return whole if size <= LONGEST else whole[: max_record_bytes + 1] + b"\n"
