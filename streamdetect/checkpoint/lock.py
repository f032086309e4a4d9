"""Exclusive OS lock on a checkpoint directory. Acquiring it proves that the previous holder has exited.

The operating system releases the lock when the process ends, however it ends. The lock is no fence: a suspended process
still holds it. The fences are `CheckpointStore.claim` and Kafka's transactional id.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from streamdetect.checkpoint.sqlitefile import create_directory
from streamdetect.errors import StateError

LOCK_FILE = "owner.lock"


class DirectoryLock:
    """The lock of `directory`, which is created if missing. Raises StateError if that fails."""

    def __init__(self, directory: str) -> None:
        path = create_directory(directory) / LOCK_FILE
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(
                f"{path} cannot be opened for writing ({error.strerror}). Make {directory} writable, "
                "or choose another checkpoint.path."
            ) from None
        self._path = Path(path)

    def acquire(self) -> bool:
        """Try to acquire the lock, without waiting."""
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StateError(
                f"{self._path} cannot be locked ({error.strerror}). Choose another checkpoint.path."
            ) from None
        return True

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
