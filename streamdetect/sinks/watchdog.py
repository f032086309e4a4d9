"""A timeout for calls that may never return.

Transaction calls of kafka-python 3.0.12 can block for ever after a broker outage: the sender drops the pending request,
and the wait has no timeout. Closing the producer from another thread does not unblock them. So each call runs in its
own thread; a thread that hangs is abandoned together with its producer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


class HungError(Exception):
    """A call did not return in time; it may still be running."""


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return or raise what `work` returns or raises; raise HungError after `seconds`."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            future.set_exception(error)

    threading.Thread(target=run, name="streamdetect-kafka-call", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise HungError(f"no answer in {seconds:.3g} s") from None
