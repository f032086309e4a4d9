"""Names that look like another, for error texts."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest(name: str, names: Collection[str]) -> str:
    """A clause for an error text: the names that look like `name`, or nothing."""
    close = difflib.get_close_matches(name, names, n=3)
    return f" (there is {', '.join(close)})" if close else ""
