"""`--set path.to.key=value` and `STREAMDETECT__PATH__TO__KEY=value`, which override the file.

A value is parsed as YAML (a scalar, or a list like `[a, b]`), except for text settings: those take it unchanged unless
it is quoted or `null`, so that a password may contain `#` or look like a number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamdetect.config.names import SettingPath, Shape, closest, dotted, shape_at
from streamdetect.config.settings import Settings
from streamdetect.config.yamlfile import YamlError, read_yaml

ENVIRONMENT_PREFIX = "STREAMDETECT__"


@dataclass(frozen=True, slots=True)
class Override:
    """One value from outside the file; `origin` names its source in messages."""

    path: tuple[str, ...]
    text: str
    origin: str


def from_sets(sets: Sequence[str]) -> list[Override]:
    """The overrides of `--set`. One without `=` gets an empty path, which `apply` reports."""
    overrides = []
    for number, item in enumerate(sets, start=1):
        name, equals, text = item.partition("=")
        path = tuple(name.strip().split(".")) if equals else ()
        overrides.append(Override(path, text, f"--set number {number}"))
    return overrides


def from_environment(environ: Mapping[str, str]) -> list[Override]:
    """The overrides of the environment, entries of lists in the order of their indexes."""
    overrides = [
        Override(tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")), text, name)
        for name, text in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    ]
    return sorted(overrides, key=lambda override: [(len(step), step) for step in override.path])


def apply(override: Override, data: dict[str, Any]) -> SettingPath:
    """Set the override in `data` and return its path. Raises ValueError with a complete problem line."""
    if not override.path:
        raise ValueError(f'{override.origin}: has no "="; write --set path.to.key=value')
    path, shape = _locate(override)
    try:
        value = _value(override.text, shape)
    except YamlError as error:
        raise ValueError(
            f"{dotted(path)}: the value {error.problem}; write a number, a text, or a list like ['a', 'b'] "
            f"({override.origin})"
        ) from None
    _put(data, path, value, override.origin)
    return path


def _locate(override: Override) -> tuple[SettingPath, Shape]:
    """The path with numeric indexes and the rest of a client option's name as one step, and the shape there."""
    path: list[str | int] = []
    for position, step in enumerate(override.path):
        shape = shape_at(path)
        if shape is not None and shape.kind == "mapping":
            path.append(".".join(override.path[position:]))
            break
        if shape is not None and shape.kind == "list":
            if not step.isdecimal():
                example = dotted([*path, 0, *override.path[position:]])
                raise ValueError(
                    f"{dotted(path)}: is a list; name the entry by its index, like {example} ({override.origin})"
                )
            path.append(int(step))
        else:
            path.append(step)
    shape = shape_at(path)
    if shape is None:
        raise ValueError(unknown(path, override.origin))
    return tuple(path), shape


def unknown(path: Sequence[str | int], origin: str | None) -> str:
    """The problem line of an unknown setting."""
    meant = closest(path)
    hint = f"did you mean {meant}?" if meant else "see `streamdetect config show` for all of them"
    return f"{dotted(path)}: is not a setting; {hint}" + (f" ({origin})" if origin else "")


def _value(text: str, shape: Shape) -> Any:
    if shape.kind not in {"text", "secret"}:
        return read_yaml(text)[0]
    if text.strip() in {"", "~", "null"}:
        return None
    if text.strip()[0] in "'\"":
        try:
            return read_yaml(text)[0]
        except YamlError:
            return text
    return text


def _put(data: dict[str, Any], path: SettingPath, value: Any, origin: str) -> None:
    """Set `path` in `data`, creating missing sections and lists.

    Stops at a value of the wrong kind: that is an error in the file, which validation reports.
    """
    here: Any = data
    for depth, step in enumerate(path):
        if not _make_room(here, step, dotted(path[:depth]), origin):
            return
        if depth == len(path) - 1:
            here[step] = value
        elif here[step] is None:
            here[step] = _default(path[: depth + 1])
        here = here[step]


def _make_room(here: Any, step: str | int, name: str, origin: str) -> bool:
    """Whether `here`, the value of `name`, can contain `step`; a new list entry begins as None."""
    if isinstance(step, str):
        if isinstance(here, dict):
            here.setdefault(step)
        return isinstance(here, dict)
    if not isinstance(here, list):
        return False
    if step > len(here):
        raise ValueError(f"{name}: has {len(here)} entries; the next one is {name}.{len(here)} ({origin})")
    if step == len(here):
        here.append(None)
    return True


def _default(path: SettingPath) -> Any:
    """The value at an unset `path`: lists with their default entries, sections empty."""
    shape = shape_at(path)
    if shape is None or shape.kind != "list":
        return {}
    here: Any = Settings().model_dump(mode="json", by_alias=True)
    for step in path:
        here = here[0] if isinstance(step, int) else here[step]
    return copy.deepcopy(here)
