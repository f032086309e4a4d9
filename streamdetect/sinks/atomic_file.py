"""Atomically written output files, compressed by their suffix."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

import zstandard

from streamdetect.sinks.files import standard_output, write_error


@contextmanager
def atomic_file(path: str) -> Iterator[IO[bytes]]:
    """A writable stream to the file `path` (.gz and .zst are compressed; `-` is standard output).

    A file appears when the block ends; when the block raises, an earlier file stays unchanged. The same input gives the
    same bytes. Raises SinkError when the file cannot be written.
    """
    try:
        if path == "-":
            out = standard_output("name a file with --output")
            yield out
            out.flush()
        elif Path(path).exists() and not Path(path).is_file():
            with ExitStack() as stack:  # a device or a pipe cannot be replaced
                yield _stream(stack, path, path)
        else:
            with _replacing(path) as stream:
                yield stream
    except OSError as error:
        name = "standard output" if path == "-" else path
        raise write_error(name, error) from None


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A stream to `path`.partial, which replaces `path` when the block ends."""
    partial = Path(f"{path}.partial")
    try:
        with ExitStack() as stack:
            yield _stream(stack, str(partial), path)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _stream(stack: ExitStack, path: str, name: str) -> IO[bytes]:
    """Open the file `path` for writing, compressed by the suffix of `name`; `stack` closes it."""
    file: IO[bytes] = stack.enter_context(Path(path).open("wb"))  # noqa: SIM115 - stack closes it
    if name.endswith(".gz"):
        packer = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
        return cast("IO[bytes]", packer)
    if name.endswith(".zst"):
        return stack.enter_context(zstandard.ZstdCompressor(write_checksum=True).stream_writer(file))
    return file
