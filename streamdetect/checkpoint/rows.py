"""What both stores have to know of a row."""

from __future__ import annotations

import json
from typing import Any

from streamdetect.checkpoint import Row
from streamdetect.errors import FencedError


def key_name(row: Row) -> str:
    """A key's name in a store."""
    return text([row["rule"], *row["key"]])


def is_done(tick_ms: int, done_ms: int | None) -> bool:
    """Whether what waited for a tick has been folded."""
    return done_ms is not None and tick_ms <= done_ms


def check_owner(where: object, claimed_by: str | None, owner: str | None) -> None:
    """FencedError if somebody else has claimed the store since we did."""
    if owner is not None and claimed_by != owner:
        raise FencedError(
            f"Another instance has taken over the checkpoint in {where}. This one ends; nothing of it is lost."
        )


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
