"""One field of a JSON document, wherever it stands: nested, dotted, or inside an array of objects."""

from __future__ import annotations

import re
from collections.abc import Iterator

# The last part of a field name that matters is made of these; a backslash begins an escaped letter.
_DOTTED_NAME = re.compile(rb'\.[A-Za-z0-9_\\]*"\s*:')


def may_be_dotted(raw: bytes) -> bool:
    """Whether a record may hold one of our field names with a dot in it. Wrongly True costs time, never an answer."""
    return _DOTTED_NAME.search(raw) is not None or b"\\u002" in raw


class Finder:
    """Finds the fields of one document. `dotted` says whether it may have field names with a dot in them."""

    __slots__ = ("_document", "_dotted")

    def __init__(self, document: dict[str, object], *, dotted: bool = True) -> None:
        self._document = document
        self._dotted = dotted

    def __call__(self, path: tuple[str, ...]) -> object:
        """A field's value: None when nowhere, the value when in one place, a list of all when in several."""
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
    """Every value at a path, in document order. Not by recursion, as `values.flatten`."""
    ahead = [(value, path)]
    while ahead:
        value, path = ahead.pop()
        if not path:
            if value is not None:
                yield value
        elif isinstance(value, list):
            ahead += [(item, path) for item in reversed(value)]
        elif isinstance(value, dict):
            keys = [(".".join(path[:length]), path[length:]) for length in range(len(path), 0, -1)]
            ahead += [(value[key], rest) for key, rest in keys if key in value]
