"""One line for each problem: `path: what is wrong; what to do`. Never shows a value that may be a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from streamdetect.config.names import SettingPath, dotted, fields, is_secret, shape_at, yaml_path
from streamdetect.config.overrides import unknown
from streamdetect.config.section import PROBLEM
from streamdetect.config.units import format_duration

_LONGEST_VALUE = 60
_BOUNDS = {
    "greater_than_equal": ("small", "at least"),
    "less_than_equal": ("large", "at most"),
}
_WHOLE_NUMBER = "{shown} is not a whole number; write one without quotes"
_TRUE_OR_FALSE = "{shown} is neither true nor false; write one of them"
_SECTION = "must be a group of settings; write `name: value` lines under it{known}"
_SENTENCES = {
    "literal_error": "{shown} is not known; write {expected}",
    "string_type": "{shown} is not text; put it in quotes",
    "string_too_short": "is empty; write a text, or leave the setting out",
    "too_short": "is empty; name at least one, or leave the setting out",
    "tuple_type": "is not a list; write it like [a, b]",
    "int_type": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "bool_type": _TRUE_OR_FALSE,
    "bool_parsing": _TRUE_OR_FALSE,
    "model_type": _SECTION,
    "dict_type": _SECTION,
}


def problem_lines(error: ValidationError, origins: Mapping[SettingPath, str]) -> list[str]:
    """Every problem of a validation; `origins` gives the source of the value at a path."""
    details = error.errors(include_url=False)
    return [_line(detail, origins) for detail in details if not _follows(detail, details)]


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether a problem only repeats others: a list whose items are all invalid is also reported as empty."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in details
    )


def _line(detail: ErrorDetails, origins: Mapping[SettingPath, str]) -> str:
    path = yaml_path(detail["loc"])
    origin = _origin(path, origins)
    if detail["type"] == "extra_forbidden":
        return unknown((*path[:-1], detail["loc"][-1]), origin)  # as it was written, not as it was parsed
    return f"{dotted(path)}: {_sentence(detail, path)}" + (f" ({origin})" if origin else "")


def _origin(path: SettingPath, origins: Mapping[SettingPath, str]) -> str | None:
    """The source of the value, or of the closest section around it."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return origins[path[:end]]
    return None


def _sentence(detail: ErrorDetails, path: SettingPath) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "value_error":
        return str(context["error"])
    if kind == PROBLEM:
        return str(context["message"])
    shown = _shown(path, detail["input"])
    if kind in _BOUNDS:
        return _bound(path, shown, *_BOUNDS[kind], limit=next(iter(context.values())))
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(shown=shown, known=_known(path), **context)
    return f"is not usable; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _bound(path: SettingPath, shown: str, wrong: str, right: str, limit: int) -> str:
    shape = shape_at(path)
    if shape is not None and shape.kind == "duration":
        return f"is too {wrong}; write {right} {format_duration(limit)}"
    return f"{shown} is too {wrong}; write {right} {limit}"


def _known(path: SettingPath) -> str:
    """The settings inside a section, or nothing for a free mapping."""
    shape = shape_at(path)
    return f": {', '.join(fields(shape.inner))}" if shape is not None and shape.kind == "section" else ""


def _shown(path: SettingPath, value: object) -> str:
    """The value as a message may show it, else `the value`."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if is_secret(path) or not isinstance(value, (str, int, float)):
        return "the value"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"
