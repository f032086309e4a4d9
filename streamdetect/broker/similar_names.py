"""Suggestions of similar names, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def similar_names(name: str, names: Collection[str]) -> str:
    """A clause for an error message with up to three similar names; empty if none is similar."""
    close = difflib.get_close_matches(name, names, n=3)
    return f" (similar: {', '.join(close)})" if close else ""
