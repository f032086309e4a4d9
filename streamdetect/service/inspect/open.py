"""A checkpoint looked into from outside: nothing in it is changed, and a `run` may be writing it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from streamdetect.checkpoint import CheckpointStore, Stored
from streamdetect.checkpoint.decoding import decoding_rows
from streamdetect.config import Settings
from streamdetect.errors import CheckpointError

Found = TypeVar("Found")


def of_last(store: CheckpointStore, look: Callable[[Stored], Found]) -> Found:
    """What `look` makes of the last checkpoint: a store that is read only gives one, whatever is saved meanwhile.

    Raises CheckpointError for damage, and where there is no checkpoint at all.
    """
    stored = store.load()
    if stored is None:
        raise CheckpointError(
            "There is no checkpoint yet: the run that made this directory has not saved one. Let it run for "
            "checkpoint.interval."
        )
    with decoding_rows():
        return look(stored)


def settings_of(stored: Stored, others: Settings | None = None) -> Settings:
    """The settings that a checkpoint was made with; those that decide nothing are taken from `others`."""
    with decoding_rows():
        found = Settings.from_detection(stored.settings)
    if others is None:
        return found
    return others.model_copy(update={"profile": found.profile, "time": found.time, "rules": found.rules})


def check_settings(stored: Stored, wanted: Settings) -> None:
    """CheckpointError by the name of the first setting that was another when the checkpoint was made."""
    before, now = dict(_leaves(stored.settings)), dict(_leaves(wanted.detection()))
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise CheckpointError(
            f"The checkpoint was made with another value of {changed[0]}, which changes what is detected. Set it back, "
            "or leave out --config to look into it with the settings that it was made with."
        )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, item in value.items():
        yield from _leaves(item, f"{path}.{name}" if path else name)
