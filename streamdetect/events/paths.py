"""Finds a field of a JSON document: nested, dotted, or inside an array of objects."""

from __future__ import annotations

import re
from collections.abc import Iterator

# The last part of a used field name has only these characters; a backslash starts an escaped letter.
_DOTTED_NAME = re.compile(rb'\.[A-Za-z0-9_\\]*"\s*:')


def may_be_dotted(raw: bytes) -> bool:
    """Whether a record may have a used field name that contains a dot. A false positive only costs time."""
    return _DOTTED_NAME.search(raw) is not None or b"\\u002" in raw


class Finder:
    """Finds the fields of one document. `dotted`: whether its field names may contain a dot."""

    __slots__ = ("_document", "_dotted")

    def __init__(self, document: dict[str, object], *, dotted: bool = True) -> None:
        self._document = document
        self._dotted = dotted

    def __call__(self, path: tuple[str, ...]) -> object:
        """The value of a field: None if absent, the value if it occurs once, a list of the values if more often."""
        if not self._dotted:
            value: object = self._document
            for name in path:
                if type(value) is not dict:
                    break
                value = value.get(name)
            else:
                return value
            if type(value) is not list:
                return None
        found = list(_values(self._document, path))
        if not found:
            return None
        return found[0] if len(found) == 1 else found


def _values(value: object, path: tuple[str, ...]) -> Iterator[object]:
    """All values at a path, in document order. Not recursive, as `values.flatten`."""
    pending = [(value, path)]
    while pending:
        value, path = pending.pop()
        if not path:
            if value is not None:
                yield value
        elif isinstance(value, list):
            pending += [(item, path) for item in reversed(value)]
        elif isinstance(value, dict):
            keys = [(".".join(path[:length]), path[length:]) for length in range(len(path), 0, -1)]
            pending += [(value[key], rest) for key, rest in keys if key in value]
