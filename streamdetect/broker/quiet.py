"""The client's log: heard where it says more than its errors, and kept from the user where it says nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Ears(logging.Handler):
    """Hears what the client logs while somebody listens, whatever level the user's logging is set to.

    What it hears goes no further, except at level DEBUG: a client that cannot connect repeats itself four
    times a second, and our error says it once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._listeners: list[list[str]] = []
        self._client = logging.getLogger("kafka")
        self._before = (logging.NOTSET, True)
        self._passes_on = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for said in tuple(self._listeners):
            said.append(text)

    def handle(self, record: logging.LogRecord) -> bool:
        if self._passes_on:
            logging.getLogger().handle(record)
        return super().handle(record) if record.levelno >= logging.INFO else False

    def start(self, said: list[str]) -> None:
        with self._guard:
            if not self._listeners:
                self._before = (self._client.level, self._client.propagate)
                level = self._client.getEffectiveLevel()
                self._passes_on = level <= logging.DEBUG and self._client.propagate
                self._client.setLevel(min(level, logging.INFO))
                self._client.propagate = False
                self._client.addHandler(self)
            self._listeners.append(said)

    def stop(self, said: list[str]) -> None:
        with self._guard:
            self._listeners[:] = [one for one in self._listeners if one is not said]
            if not self._listeners:
                self._client.removeHandler(self)
                self._client.setLevel(self._before[0])
                self._client.propagate = self._before[1]


_ears = _Ears()


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the client logs in this block, in any thread; it goes no further."""
    said: list[str] = []
    _ears.start(said)
    try:
        yield said
    finally:
        _ears.stop(said)


@contextmanager
def client_unheard() -> Iterator[None]:
    """Without the client's log, unless that is wanted in full: while it closes it reads from connections that it
    has just closed, and tells of that as an error with a traceback. What matters was confirmed or raised before.
    """
    with listening():
        yield
