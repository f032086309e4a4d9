"""Garbage collection while records stream by.

The hot path makes hardly any cycles, but many short-lived objects, and each full collection walks everything that
is alive: half a second at a million keys. So what is alive at the start is set aside, and collections are rarer.
Reference counting frees all the rest at once, as always.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = (200_000, 50, 100)


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Within: rare collections that leave alone what was there before. Afterwards as it was."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
