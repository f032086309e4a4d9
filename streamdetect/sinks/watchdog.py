"""Calls that may never return, given up after a time.

Transaction calls of kafka-python 3.0.12 can wait for ever after a broker outage: the sender drops the pending request,
and the wait has no time-out. Closing the producer from another thread does not free them. So each call runs in a
thread of its own; one that hangs is left behind with its producer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


class HungError(Exception):
    """A call did not return in time; it may still be running."""


def within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What `work` returns or raises, else HungError."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, name="streamdetect-kafka-call", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise HungError(f"no answer in {seconds:.3g} s") from None
