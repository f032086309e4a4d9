"""The program of a worker process (`pool`): stems first, then messages, each answered with a harvest, until the end."""

from __future__ import annotations

import contextlib
import sys
from typing import IO

from streamdetect.service.bounded.workers import Worker, receive, send
from streamdetect.service.gc import collecting_rarely


def serve(messages: IO[bytes], answers: IO[bytes]) -> None:
    """Until the messages end, or nobody takes the answers any more."""
    with contextlib.suppress(EOFError, BrokenPipeError), collecting_rarely():
        station = Worker(receive(messages))  # type: ignore[arg-type]  # the first message is the stems
        while True:
            send(answers, station.work(receive(messages)))


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
