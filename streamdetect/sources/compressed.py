"""Reads a file as blocks of decompressed bytes: plain, gzip or zstandard, with one or many members."""

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

# Buffers above 128 KiB are allocated by mmap, which halves the read speed.
PLAIN_BLOCK = 128 * 1024
COMPRESSED_BLOCK = 32 * 1024

_MAGIC_BYTES = 4
_GZIP_WINDOW = 31


class DamagedError(Exception):
    """The content of a file does not match its format. The text says how."""


class RawFile:
    """The stored (compressed) bytes of a file, with a count of the bytes read. `-` is standard input.

    Raises OSError when the file cannot be opened or read. A pipe (or terminal) is read only when it has data, so it
    never blocks other files or a signal to stop.
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
        """The next bytes, b"" at the end, or None while a pipe has no data."""
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
    """A compression format: magic bytes and decoder of a member, and the error that the decoder raises."""

    name: str
    suffix: str
    magic: tuple[bytes, ...]
    decoder: Callable[[], Any]
    error: type[Exception]


_CODECS = (
    # isal decodes the same as zlib of the standard library, three times as fast.
    _Codec("gzip", ".gz", (b"\x1f\x8b",), lambda: isal_zlib.decompressobj(_GZIP_WINDOW), IsalError),  # type: ignore[arg-type]  # its stub calls the class an instance
    _Codec(
        "zstandard",
        ".zst",
        # The others are skippable frames, with which parallel compressors begin.
        (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
        lambda: zstandard.ZstdDecompressor().decompressobj(),
        zstandard.ZstdError,
    ),
)


def blocks(file: RawFile) -> Iterator[bytes]:
    """The decompressed bytes of a file; b"" means that no data is available yet. Raises DamagedError.

    The suffix .gz or .zst gives the format, else the first bytes do.
    """
    head = b""
    while len(head) < _MAGIC_BYTES:
        block = file.read(PLAIN_BLOCK)
        if block == b"":
            break
        head += block or b""
        if block is None:
            yield b""
    codec = _codec(file.path, head)
    if codec is not None:
        yield from _decompressed(file, head, codec)
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


def _decompressed(file: RawFile, head: bytes, codec: _Codec) -> Iterator[bytes]:
    members = _Members(codec)
    data: bytes | None = head
    while data != b"":
        yield from [b""] if data is None else members.feed(data)
        data = file.read(COMPRESSED_BLOCK)
    if not members.complete:
        raise DamagedError(f"its {codec.name} data ends too early")


class _Members:
    """Decoder of the concatenated members of a compressed file."""

    def __init__(self, codec: _Codec) -> None:
        self._codec = codec
        self._decoder: Any = None
        self._started = 0

    @property
    def complete(self) -> bool:
        """Whether the data so far ends at the end of a member. False without any member."""
        return self._decoder is None and self._started > 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decompressed blocks of the next bytes of the file."""
        while data := self._start_member(data):
            try:
                block = self._decoder.decompress(data)
            except self._codec.error as error:
                raise DamagedError(f"its {self._codec.name} data is damaged ({error})") from None
            data = b""
            if self._decoder.eof:
                data, self._decoder = self._decoder.unused_data, None
            if block:
                yield block

    def _start_member(self, data: bytes) -> bytes:
        """Start the next member if none is open. Zeros between gzip members are padding, as for gzip itself."""
        if self._decoder is None and self._started and self._codec.name == "gzip":
            data = data.lstrip(b"\0")
        if self._decoder is None and data:
            self._decoder, self._started = self._codec.decoder(), self._started + 1
        return data
