"""Read-only access to a checkpoint directory, which a `run` may be writing meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from streamdetect.checkpoint import CheckpointStore, Stored
from streamdetect.checkpoint.decoding import decoding_rows
from streamdetect.checkpoint.rows import first_difference
from streamdetect.config import Settings
from streamdetect.errors import CheckpointError

Result = TypeVar("Result")


def read_checkpoint(store: CheckpointStore, read: Callable[[Stored], Result]) -> Result:
    """The result of `read` for the last checkpoint. All its rows are of one checkpoint, whatever is saved meanwhile.

    Raises CheckpointError for damage, and if there is no checkpoint.
    """
    stored = store.load()
    if stored is None:
        raise CheckpointError(
            "There is no checkpoint yet: the run that created this directory has not saved one. Let it run for "
            "checkpoint.interval."
        )
    with decoding_rows():
        return read(stored)


def settings_of(stored: Stored, runtime: Settings | None = None) -> Settings:
    """The detection settings that a checkpoint was made with; all others from `runtime`, or defaults."""
    with decoding_rows():
        found = Settings.from_detection(stored.settings)
    if runtime is None:
        return found
    return runtime.model_copy(update={"profile": found.profile, "time": found.time, "rules": found.rules})


def check_settings(stored: Stored, wanted: Settings) -> None:
    """Raises CheckpointError that names the first detection setting with another value in the checkpoint."""
    name = first_difference(stored.settings, wanted.detection())
    if name is not None:
        raise CheckpointError(
            f"The checkpoint was made with another value of {name}, which changes what is detected. Set it back, "
            "or omit --config to use the settings that the checkpoint was made with."
        )
