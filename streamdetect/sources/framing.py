"""Splits blocks of bytes into records: lines, or the elements of a file that is a single JSON array.

Records are not parsed: each is returned with its bytes unchanged, and the decoder validates it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from io import BytesIO
from itertools import chain
from typing import Literal

from streamdetect.sources.compressed import DamagedError

MAX_BUFFERED = 64 * 1024 * 1024
"""Most bytes of one record that are kept in memory."""

FileFormat = Literal["lines", "document"]

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BLANK = b" \t\r\n"
_EVENTS = b'{"events":['
_FIRST_OF_ELEMENT = b'{["-0123456789tfn]'
_HEAD_LIMIT = 65_536
# A whole string (without its closing quote where the data ends inside it), or a structural character.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)
_QUOTE, _COMMA, _ARRAY_END = b'",]'
_OPENING, _CLOSING = b"[{", b"]}"


def records(blocks: Iterator[bytes], max_record_bytes: int) -> Iterator[list[bytes]]:
    """The records of a file in lists; an empty list means that no data is available yet.

    A record over `MAX_BUFFERED` bytes is truncated to `max_record_bytes + 1`, enough to reject it as too large.
    Raises DamagedError when the data ends too early, or is neither lines nor one JSON array.
    """
    head = b""
    layout: FileFormat | None = None
    for block in blocks:
        head += block
        layout = None if len(head) < len(_BOM) else _layout(head)
        if layout is not None:
            break
        yield []
    else:
        layout = _layout(head)
    head = head.removeprefix(_BOM)
    if layout == "document":
        head, layout = yield from _first_line(head, blocks)
    if layout == "document":
        yield from _elements(head, blocks)
    else:
        yield from _lines(chain([head], blocks), max_record_bytes)


def _layout(head: bytes) -> FileFormat | None:
    """The probable layout of a file that starts with `head`; None if more bytes are needed."""
    if head.startswith(_UTF16):
        raise DamagedError(
            "it is UTF-16 text; convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"
        )
    shape = head[:_HEAD_LIMIT].removeprefix(_BOM).translate(None, _BLANK)
    if shape.startswith(_EVENTS) or (len(shape) > 1 and shape[:1] == b"[" and shape[1] in _FIRST_OF_ELEMENT):
        return "document"
    undecided = shape == b"[" or _EVENTS.startswith(shape)
    return None if undecided and len(head) <= _HEAD_LIMIT else "lines"


def _first_line(
    head: bytes, blocks: Iterator[bytes]
) -> Generator[list[bytes], None, tuple[bytes, FileFormat]]:
    """Decides whether the first line is (the start of) the document or the first of many records.

    It is a record if its brackets close within it and anything follows: then the file is not one array. Returns all
    data read so far: up to the first byte after that line, at most about `MAX_BUFFERED` bytes.
    """
    buffer = bytearray(head.lstrip(_BLANK))
    line_end = buffer.find(b"\n")
    for block in blocks:
        if len(buffer) > MAX_BUFFERED or (line_end >= 0 and buffer[line_end:].strip(_BLANK)):
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
    """The end of the array or object at the start of `data`, or None if it is not complete."""
    depth = 0
    for token in _TOKEN.finditer(data):
        char = data[token.start()]
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth == 0:
            return token.end()
    return None


def _elements(head: bytes, blocks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """The elements of the document's array, with their bytes unchanged."""
    start = head.index(b"[") + 1
    parts, size, min_size = [head[start:]], len(head) - start, 0
    for block in chain([b""], blocks, [None]):
        if block is not None:
            parts.append(block)
            size += len(block)
            # Rescanning an incomplete element only after it has doubled keeps the total time linear.
            if size < min_size:
                continue
        data = b"".join(parts)
        found, end, ended = _split(data)
        yield found
        if ended:
            _check_rest(chain([data[end:]], blocks), within_object=head.lstrip(_BLANK).startswith(b"{"))
            return
        if len(data) - end > MAX_BUFFERED:
            raise DamagedError(f"an element of its JSON array is over {MAX_BUFFERED // 1024**2} MiB")
        parts, size = [data[end:]], len(data) - end
        min_size = 2 * size
    raise DamagedError("its JSON array ends too early")


def _split(data: bytes) -> tuple[list[bytes], int, bool]:
    """The complete elements in `data`, the index after the last of them, and whether the array ended there."""
    found: list[bytes] = []
    start = depth = 0
    for token in _TOKEN.finditer(data):
        char = data[token.start()]
        if char == _QUOTE:
            if not token[1]:
                break
        elif char in _OPENING:
            depth += 1
        elif depth:
            depth -= char in _CLOSING
        elif char in (_COMMA, _ARRAY_END):
            element = data[start : token.start()].strip(_BLANK)
            start = token.end()
            if element:
                found.append(element)
            if char == _ARRAY_END:
                return found, start, True
    return found, start, False


def _check_rest(blocks: Iterator[bytes], *, within_object: bool) -> None:
    """Raises DamagedError if data follows the array, or if the object around the array is not closed."""
    last = b""
    for block in blocks:
        last = block.rstrip(_BLANK)[-1:] or last
    if within_object and last != b"}":
        raise DamagedError('its {"events": [...]} ends too early')
    if not within_object and last:
        raise DamagedError("data follows the end of its JSON array")


def _lines(blocks: Iterator[bytes], max_record_bytes: int) -> Iterator[list[bytes]]:
    """The lines without line ends; blank lines are skipped.

    Hot path. `BytesIO.readlines` finds line ends with memchr; `bytes.split` takes four times as long.
    """
    parts: list[bytes] = []  # of the incomplete last line
    size = 0
    for block in blocks:
        lines = BytesIO(block).readlines()
        tail = b"" if block.endswith(b"\n") or not block else lines.pop()
        if not lines:
            size += len(tail)
            parts = (
                [*parts, tail] if size <= MAX_BUFFERED else [_joined([*parts, tail], size, max_record_bytes)]
            )
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
    """The line of these parts; truncated if it is too long, to a length that is still rejected."""
    whole = b"".join(parts)
    return whole if size <= MAX_BUFFERED else whole[: max_record_bytes + 1] + b"\n"
