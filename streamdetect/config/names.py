"""Names of settings: which paths exist, the kind of their values, and the closest known name.

A path is what `--set` takes: YAML names from the outside in, list entries by index. Derived from the models, so that a
new setting needs no change here.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from streamdetect.config.section import Section
from streamdetect.config.settings import Settings
from streamdetect.config.units import DURATION_MARK

SettingPath = tuple[str | int, ...]
ValueKind = Literal["section", "list", "mapping", "text", "secret", "duration", "value"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The value at a path: its kind, and for sections and lists the model or the annotation of the entries."""

    kind: ValueKind
    inner: Any = None


ROOT = Shape("section", Settings)
_KINDS: dict[Any, ValueKind] = {
    tuple: "list",
    dict: "mapping",
    Literal: "text",
    str: "text",
    SecretStr: "secret",
}


def fields(section: type[Section]) -> dict[str, FieldInfo]:
    """The settings of a section under their YAML names."""
    return {str(info.validation_alias or name): info for name, info in section.model_fields.items()}


def shape_at(path: Sequence[str | int]) -> Shape | None:
    """The shape of the value at `path`, None if there is no such setting."""
    shape: Shape | None = ROOT
    for step in path:
        shape = None if shape is None else _inside(shape, step)
    return shape


def yaml_path(path: Sequence[str | int]) -> SettingPath:
    """`path` with YAML names instead of attribute names (pydantic reports an invalid default by attribute)."""
    named: list[str | int] = []
    for step in path:
        shape = shape_at(named)
        info = shape.inner.model_fields.get(step) if shape is not None and shape.kind == "section" else None
        named.append(step if info is None else str(info.validation_alias or step))
    return tuple(named)


def is_secret(path: Sequence[str | int]) -> bool:
    """Whether a value at `path` may be or contain a secret, so that no message may show it."""
    shape = shape_at(path)
    return shape is None or shape.kind in {"secret", "mapping", "section"} or "password" in str(path[-1:])


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def closest(path: Sequence[str | int]) -> str | None:
    """The known setting closest to an unknown `path`, dotted."""
    *outer, name = path
    wanted = str(name).replace("-", "_").lower()
    shape = shape_at(outer)
    if shape is not None and shape.kind == "section":
        close = difflib.get_close_matches(wanted, fields(shape.inner), n=1)
        if close:
            return dotted([*outer, close[0]])
    by_name = {known.rpartition(".")[2]: known for known in reversed(list(_all_names(Settings)))}
    close = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.8)
    return by_name[close[0]] if close else None


def _all_names(section: type[Section], outer: str = "") -> Iterator[str]:
    """Every setting, dotted, without the indexes of lists."""
    for name, info in fields(section).items():
        yield outer + name
        shape = _shape(info.annotation)
        if shape.kind == "list":
            shape = _shape(shape.inner)
        if shape.kind == "section":
            yield from _all_names(shape.inner, f"{outer}{name}.")


def _inside(shape: Shape, step: str | int) -> Shape | None:
    if shape.kind == "section":
        info = fields(shape.inner).get(str(step))
        if info is None:
            return None
        return Shape("duration") if DURATION_MARK in info.metadata else _shape(info.annotation)
    if shape.kind == "list":
        return _shape(shape.inner) if str(step).isdecimal() else None
    return Shape("mapping") if shape.kind == "mapping" else None


def _shape(annotation: Any) -> Shape:
    """The shape of an annotation, ignoring None and constraints."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shape(parts[0])
    if origin in {Union, types.UnionType}:
        return _shape(next(part for part in parts if part is not type(None)))
    if origin in _KINDS:
        return Shape(_KINDS[origin], parts[0])
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Shape("section", annotation)
    return Shape(_KINDS.get(annotation, "value"))
