"""Captures or mutes the log of the Kafka clients."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _CaptureHandler(logging.Handler):
    """Captures the clients' log records of level INFO and above while a capture is active, at any user log level.

    Captured records are not propagated, except at level DEBUG: a client that cannot connect repeats itself four times a
    second, and the error of this program reports the cause once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._capture_lock = threading.Lock()
        self._captures: list[list[str]] = []
        self._client_logger = logging.getLogger("kafka")
        self._restored = (logging.NOTSET, True)
        self._propagates = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for lines in tuple(self._captures):
            lines.append(text)

    def handle(self, record: logging.LogRecord) -> bool:
        if self._propagates:
            logging.getLogger().handle(record)
        return super().handle(record) if record.levelno >= logging.INFO else False

    def start(self, lines: list[str]) -> None:
        with self._capture_lock:
            if not self._captures:
                self._restored = (self._client_logger.level, self._client_logger.propagate)
                level = self._client_logger.getEffectiveLevel()
                self._propagates = level <= logging.DEBUG and self._client_logger.propagate
                self._client_logger.setLevel(min(level, logging.INFO))
                self._client_logger.propagate = False
                self._client_logger.addHandler(self)
            self._captures.append(lines)

    def stop(self, lines: list[str]) -> None:
        with self._capture_lock:
            self._captures[:] = [one for one in self._captures if one is not lines]
            if not self._captures:
                self._client_logger.removeHandler(self)
                self._client_logger.setLevel(self._restored[0])
                self._client_logger.propagate = self._restored[1]


_handler = _CaptureHandler()


@contextmanager
def client_log_captured() -> Iterator[list[str]]:
    """The list of lines that the clients log during the block, in any thread. They are not propagated."""
    lines: list[str] = []
    _handler.start(lines)
    try:
        yield lines
    finally:
        _handler.stop(lines)


@contextmanager
def client_log_muted() -> Iterator[None]:
    """Without the clients' log, unless the level is DEBUG.

    While a client closes, it reads from connections that it has just closed and logs that as an error with a
    traceback. Anything important was confirmed or raised before.
    """
    with client_log_captured():
        yield
