"""Errors of decoding checkpoint rows."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from streamdetect.errors import CheckpointError


@contextmanager
def decoding_rows() -> Iterator[None]:
    """Raise CheckpointError where the block fails on rows that are undamaged, but are not what this version writes."""
    try:
        yield
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"The checkpoint contains rows that this version cannot read: {error!r}. Use the version that wrote it, "
            "or start over with --reset-state."
        ) from error
