"""SIGTERM and SIGINT stop a command. The only module that handles signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """A function that returns whether a signal has arrived; the handlers are restored at the end.

    A second signal has its default effect, so that a command that hangs during shutdown can still be ended.
    """
    stop_requested = False

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal stop_requested
        stop_requested = True
        for known, before in previous.items():
            signal.signal(known, before)

    previous = {known: signal.getsignal(known) for known in _SIGNALS}
    for known in _SIGNALS:
        signal.signal(known, ask)
    try:
        yield lambda: stop_requested
    finally:
        for known, before in previous.items():
            signal.signal(known, before)
