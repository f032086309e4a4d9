"""Main program of a worker process (`workers`): reads input groups, then commands, and answers each with a result."""

from __future__ import annotations

import contextlib
import sys
from typing import IO

from streamdetect.service.bounded.workers import Worker, receive, send
from streamdetect.service.gc import infrequent_gc


def serve(commands: IO[bytes], results: IO[bytes]) -> None:
    """Process commands until their stream ends, or results are no longer read."""
    with contextlib.suppress(EOFError, BrokenPipeError), infrequent_gc():
        worker = Worker(receive(commands))  # type: ignore[arg-type]  # the first message: input groups
        while True:
            send(results, worker.process(receive(commands)))


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
