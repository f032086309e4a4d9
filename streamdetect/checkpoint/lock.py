"""The lock of a checkpoint directory: who holds it is alive, and who gets it knows that the one before is dead.

The operating system takes the lock back when a process ends, however it ends. It is no fence: a process that was
stopped in the middle still holds it. Fences are `CheckpointStore.claim` and Kafka's transactional id.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from streamdetect.checkpoint.sqlitefile import made
from streamdetect.errors import StateError

LOCK_FILE = "owner.lock"


class DirectoryLock:
    """The lock of `directory`, which is made if it is not there. Raises StateError if that cannot be done."""

    def __init__(self, directory: str) -> None:
        path = made(directory) / LOCK_FILE
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(
                f"{path} cannot be opened for writing ({error.strerror}). Make {directory} writable for us, "
                "or choose checkpoint.path anew."
            ) from None
        self._path = Path(path)

    def acquire(self) -> bool:
        """Take the lock if nobody has it; does not wait."""
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StateError(
                f"{self._path} cannot be locked ({error.strerror}). Choose checkpoint.path anew."
            ) from None
        return True

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
