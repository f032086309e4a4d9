"""Garbage collection while records are processed.

The hot path creates hardly any cycles, but many short-lived objects, and each full collection traverses all live
objects: half a second at a million keys. So objects that exist at the start are frozen, and collections are less
frequent. Reference counting frees everything else immediately, as always.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (200_000, 50, 100)


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Collect rarely within the block, and not the objects that existed before it. Restores the thresholds."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
