"""What both stores share: names of keys, the checks of ticks and owners, and the comparison of settings."""

from __future__ import annotations

import json
from typing import Any

from streamdetect.checkpoint import Row
from streamdetect.errors import FencedError


def key_name(row: Row) -> str:
    """The name of a row's key in a store."""
    return text([row["rule"], *row["key"]])


def is_done(tick_ms: int, done_ms: int | None) -> bool:
    """Whether a `waiting` row of this tick has been folded into the window state."""
    return done_ms is not None and tick_ms <= done_ms


def check_owner(where: object, claimed_by: str | None, owner: str | None) -> None:
    """Raise FencedError if another owner has claimed the store."""
    if owner is not None and claimed_by != owner:
        raise FencedError(
            f"Another instance has taken over the checkpoint in {where}. This instance ends; nothing is lost."
        )


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def first_difference(stored: Any, wanted: Any, path: str = "") -> str | None:
    """The dotted name of the first setting with another value, None if all are equal."""
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        stored, wanted = dict(enumerate(stored)), dict(enumerate(wanted))
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return None if stored == wanted else path
    for name in sorted({*stored, *wanted}):
        found = first_difference(stored.get(name), wanted.get(name), f"{path}.{name}" if path else str(name))
        if found is not None:
            return found
    return None
