"""Blocks of decompressed bytes out of a file: plain, gzip or zstandard, of one or many members."""

from __future__ import annotations

import io
import os
import select
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import zstandard
from isal import isal_zlib
from isal.igzip_lib import IsalError

# Blocks above 128 KiB come from mmap, and reading them is half as fast.
PLAIN_BLOCK = 128 * 1024
PACKED_BLOCK = 32 * 1024

_SNIFFED = 4
_GZIP_WINDOW = 31


class DamagedError(Exception):
    """The bytes of a file are not what they claim to be. The text says how."""


class RawFile:
    """A file as it lies on disk, with a count of the bytes read. `-` is standard input.

    OSError when it cannot be opened or read. A pipe (or terminal) is asked for data only when it has some, so that
    waiting for it never keeps other files, or a signal to stop, from their turn.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.bytes_read = 0
        self._file = io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)
        status = os.fstat(self._file.fileno())
        self.is_pipe = not stat.S_ISREG(status.st_mode)
        self.size = status.st_size

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int) -> bytes | None:
        """The next bytes, b"" at the end, or None where a pipe has none yet."""
        if self.is_pipe and not select.select([self._file], [], [], 0)[0]:
            return None
        data = self._file.read(size)
        if data is not None:
            self.bytes_read += len(data)
        return data

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class _Codec:
    """A compression: how its members begin, what decompresses one of them, what that raises."""

    name: str
    suffix: str
    magic: tuple[bytes, ...]
    decoder: Callable[[], Any]
    error: type[Exception]


_CODECS = (
    # Of the standard library's zlib, isal is the same three times as fast.
    _Codec("gzip", ".gz", (b"\x1f\x8b",), lambda: isal_zlib.decompressobj(_GZIP_WINDOW), IsalError),  # type: ignore[arg-type]  # its stub calls the class an instance
    _Codec(
        "zstandard",
        ".zst",
        # The second is a frame to skip over, with which parallel compressors begin; its first byte varies.
        (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
        lambda: zstandard.ZstdDecompressor().decompressobj(),
        zstandard.ZstdError,
    ),
)


def blocks(file: RawFile) -> Iterator[bytes]:
    """The decompressed bytes of a file; b"" means that nothing has come yet. DamagedError when they break off.

    A name that ends in .gz or .zst says what the file is; else its first bytes do.
    """
    head = b""
    while len(head) < _SNIFFED:
        piece = file.read(PLAIN_BLOCK)
        if piece == b"":
            break
        head += piece or b""
        if piece is None:
            yield b""
    codec = _codec(file.path, head)
    if codec is not None:
        yield from _unpacked(file, head, codec)
        return
    if head:
        yield head
    while (block := file.read(PLAIN_BLOCK)) != b"":
        yield block or b""


def _codec(path: str, head: bytes) -> _Codec | None:
    for codec in _CODECS:
        if path.endswith(codec.suffix) or head.startswith(codec.magic):
            return codec
    return None


def _unpacked(file: RawFile, head: bytes, codec: _Codec) -> Iterator[bytes]:
    members = _Members(codec)
    data: bytes | None = head
    while data != b"":
        yield from [b""] if data is None else members.feed(data)
        data = file.read(PACKED_BLOCK)
    if not members.complete:
        raise DamagedError(f"its {codec.name} data breaks off before its end")


class _Members:
    """The members of a compressed file, one behind the other."""

    def __init__(self, codec: _Codec) -> None:
        self._codec = codec
        self._decoder: Any = None
        self._begun = 0

    @property
    def complete(self) -> bool:
        """Whether the data so far ends where a member ends; no member at all is no compressed file."""
        return self._decoder is None and self._begun > 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes of the file decompress to."""
        while data := self._at_member(data):
            try:
                block = self._decoder.decompress(data)
            except self._codec.error as error:
                raise DamagedError(f"its {self._codec.name} data is damaged ({error})") from None
            data = b""
            if self._decoder.eof:
                data, self._decoder = self._decoder.unused_data, None
            if block:
                yield block

    def _at_member(self, data: bytes) -> bytes:
        """Begin the next member if none is open. Zeros between members of gzip are padding, as gzip has it."""
        if self._decoder is None and self._begun and self._codec.name == "gzip":
            data = data.lstrip(b"\0")
        if self._decoder is None and data:
            self._decoder, self._begun = self._codec.decoder(), self._begun + 1
        return data
