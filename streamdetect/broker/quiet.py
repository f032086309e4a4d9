"""The client's log while it closes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def client_unheard() -> Iterator[None]:
    """Without the client's log, unless that is wanted in full: while it closes it reads from connections that it
    has just closed, and tells of that as an error with a traceback. What matters was confirmed or raised before.
    """
    client = logging.getLogger("kafka")
    before = client.level
    if client.getEffectiveLevel() > logging.DEBUG:
        client.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        client.setLevel(before)
