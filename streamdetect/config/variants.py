"""Variants of a configuration: `--vary name=value,value` and other files, as settings to compare."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from streamdetect.config.loading import RequiredFor, load_settings
from streamdetect.config.names import closest, fields
from streamdetect.config.overrides import Override
from streamdetect.config.rules import RuleSettings
from streamdetect.config.settings import Settings
from streamdetect.errors import UsageError

MOST = 1_000
"""Most variants of one call: more are unreadable in a table, and most likely a typing error."""

_OPENING, _CLOSING = "[{(", "]})"
_RULE_FIELDS = frozenset(fields(RuleSettings))
_SECTIONS = ("profile", "time", "rules", "limits")
Vary = str | tuple[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class NamedSettings:
    """One variant. `changes` are the settings that differ from the base: path to value as written."""

    name: str
    changes: Mapping[str, str]
    settings: Settings


def varied(
    path: str | os.PathLike[str] | None,
    sets: Sequence[str] = (),
    *,
    profile: str | None = None,
    vary: Sequence[Vary] = (),
    files: Sequence[str] = (),
    required_for: RequiredFor | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[NamedSettings]:
    """The base (named `base`), every combination of the values of `vary`, and each of `files`.

    A name without a dot that is a setting of rules means that setting of every enabled rule; any other name is a path
    as in `--set`. Values are separated by commas outside of brackets and quotes, or given one by one. Raises
    ConfigError with every problem of the first invalid settings, UsageError for a malformed `vary` or one that does not
    affect detection.
    """
    base = load_settings(path, sets, environ, profile, required_for)
    found = [NamedSettings("base", {}, base)]
    grid = [_values(given) for given in vary]
    _check(grid, base)
    for chosen in product(*([(name, value) for value in values] for name, values in grid)) if grid else ():
        changes = dict(chosen)
        overrides = [
            Override(tuple(step.split(".")), value, f"--vary {name}")
            for name, value in changes.items()
            for step in _paths(name, base)
        ]
        settings = load_settings(path, sets, environ, profile, required_for, overrides=overrides)
        name = " ".join(f"{name}={value}" for name, value in changes.items())
        found.append(NamedSettings(name, changes, settings))
    for file in files:
        if file in [one.name for one in found]:
            raise UsageError(f"the variant {file} is given twice. Name each file once.")
        settings = load_settings(file, sets, environ, profile)
        found.append(NamedSettings(file, {"file": file}, settings))
    return found


def _check(grid: Sequence[tuple[str, list[str]]], base: Settings) -> None:
    count = 1
    known: dict[str, str] = {}
    for name, values in grid:
        for path in _paths(name, base):
            if path in known:
                raise UsageError(
                    f"--vary {known[path]} and --vary {name} are the same setting. Give all its values at once, "
                    "separated by commas."
                )
            known[path] = name
        count *= len(values)
    if count > MOST:
        raise UsageError(f"these are {count:,} variants; at most {MOST:,} are allowed at once.")


def _values(given: Vary) -> tuple[str, list[str]]:
    """Name and values of `name=value,value`."""
    text = given if isinstance(given, str) else f"{given[0]}={','.join(given[1])}"
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or not name:
        missing = 'no "="' if not equals else "no name"
        raise UsageError(f"--vary {text!r} has {missing}. Write it like min_connections_per_hour=60,90,120.")
    if name not in _RULE_FIELDS and name.split(".")[0] not in _SECTIONS:
        meant = _meant(name)
        hint = f"Did you mean {meant}? " if meant else ""
        raise UsageError(
            f"--vary {name}: this setting does not affect detection. {hint}Vary a setting of rules (like "
            "min_connections_per_hour), of time (like time.lateness), limits.max_keys, or profile."
        )
    values = [value.strip() for value in (_parted(rest) if isinstance(given, str) else given[1])]
    if not values or "" in values:
        raise UsageError(f"--vary {text!r} has an empty value. Write it like {name}=A,B.")
    if len(set(values)) < len(values):
        raise UsageError(f"--vary {text!r} has a duplicate value. Name each once.")
    return name, values


def _meant(name: str) -> str | None:
    """The closest setting that can be varied."""
    meant = closest(("rules", 0, name.rsplit(".", maxsplit=1)[-1])) or closest(
        (name.rsplit(".", maxsplit=1)[-1],)
    )
    if meant is None or meant.split(".")[0] not in _SECTIONS:
        return None
    last = meant.split(".")[-1]
    return last if meant.startswith("rules") else meant


def _parted(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes. A quote within a word is a letter. Raises UsageError for an open
    one.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (depth or not parts[-1].strip()):
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if quote or depth:
        what = f"the quote {quote}" if quote else "a bracket"
        raise UsageError(f"--vary …={text}: {what} is not closed. Close it, or quote the whole value.")
    return parts


def _paths(name: str, base: Settings) -> list[str]:
    """The paths that a name stands for."""
    if name not in _RULE_FIELDS:
        return [name]
    return [f"rules.{place}.{name}" for place, rule in enumerate(base.rules) if rule.enabled]
