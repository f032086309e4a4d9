"""SIGTERM and SIGINT ask a command to stop. The one place that touches signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """A function that says whether somebody asked to stop; the handlers are put back at the end.

    The second signal does what it does without us: a command that hangs while it stops can still be ended.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal asked
        asked = True
        for known, before in previous.items():
            signal.signal(known, before)

    previous = {known: signal.getsignal(known) for known in _SIGNALS}
    for known in _SIGNALS:
        signal.signal(known, ask)
    try:
        yield lambda: asked
    finally:
        for known, before in previous.items():
            signal.signal(known, before)
