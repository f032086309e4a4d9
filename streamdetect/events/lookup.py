"""One field of a JSON document, wherever it stands: nested, dotted, or inside an array of objects."""

from __future__ import annotations

from collections.abc import Iterator


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
    if not path:
        if value is not None:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _values(item, path)
    elif isinstance(value, dict):
        for length in range(1, len(path) + 1):
            key = ".".join(path[:length])
            if key in value:
                yield from _values(value[key], path[length:])
