"""`streamdetect run` in a process that kills itself (SIGKILL) after a step of the commit protocol.

python tests/support/crash_driver.py STEP OCCURRENCE CONFIG
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack

from streamdetect.cli.run import open_dependencies
from streamdetect.cli.signals import stopping
from streamdetect.config import load_settings
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.loop import run_live


class KillingListener(RunListener):
    """Sends SIGKILL to its process at the given occurrence of a step, counted from 1."""

    def __init__(self, step: int, occurrence: int) -> None:
        self._step, self._left = step, occurrence

    def step_done(self, step: int, number: int) -> None:
        del number
        self._left -= step == self._step
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    step, occurrence, config = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    settings = load_settings(config, (), required_for="run")
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        run_live(
            settings=settings,
            dependencies=open_dependencies(settings, stack),
            stop=stop,
            listener=KillingListener(step, occurrence),
        )


if __name__ == "__main__":
    main()
