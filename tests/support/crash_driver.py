"""`streamdetect run`, but the process kills itself (SIGKILL) at a step of the commit protocol.

python tests/crash_driver.py STEP TIME CONFIG
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack

from streamdetect.cli.run import surroundings
from streamdetect.cli.signals import stopping
from streamdetect.config import load_settings
from streamdetect.service.live.listener import RunListener
from streamdetect.service.live.loop import run_live


class Kills(RunListener):
    """SIGKILL when a step has been done for the so-manieth time."""

    def __init__(self, step: int, time: int) -> None:
        self._step, self._left = step, time

    def step_done(self, step: int, number: int) -> None:
        del number
        self._left -= step == self._step
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    step, time, config = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    settings = load_settings(config, (), required_for="run")
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        run_live(
            settings=settings,
            dependencies=surroundings(settings, stack),
            stop=stop,
            listener=Kills(step, time),
        )


if __name__ == "__main__":
    main()
