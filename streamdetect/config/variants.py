"""Variants of a configuration: `--vary name=value,value` and other files, as settings to be tried side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from streamdetect.config.loading import RequiredFor, load_settings
from streamdetect.config.names import fields, nearest
from streamdetect.config.overrides import Override
from streamdetect.config.rules import RuleSettings
from streamdetect.config.settings import Settings
from streamdetect.errors import UsageError

MOST = 1_000
"""Most variants of one call: beyond that a table says nothing any more, and somebody has mistyped."""

_OPENING, _CLOSING = "[{(", "]})"
_RULE_FIELDS = frozenset(fields(RuleSettings))
_SECTIONS = ("profile", "time", "rules", "limits")
Vary = str | tuple[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class NamedSettings:
    """Settings to be tried. `changes` are those that differ from the base, path to value as it was written."""

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

    A name without a dot that is a setting of rules means that setting of every enabled rule; else it is a path as in
    `--set`. Values are parted by commas outside of brackets and quotes, or are given one by one. Raises ConfigError
    with every problem of the first settings that are not valid, UsageError for a `vary` that cannot be read, or alters
    nothing that is detected.
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
                    "parted by commas."
                )
            known[path] = name
        count *= len(values)
    if count > MOST:
        raise UsageError(f"these are {count:,} variants; try at most {MOST:,} at once.")


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
            f"--vary {name}: that is no setting that decides what is detected. {hint}Vary a setting of rules (like "
            "min_connections_per_hour), of time (like time.lateness), limits.max_keys, or profile."
        )
    values = [value.strip() for value in (_parted(rest) if isinstance(given, str) else given[1])]
    if not values or "" in values:
        raise UsageError(f"--vary {text!r} has an empty value. Write it like {name}=A,B.")
    if len(set(values)) < len(values):
        raise UsageError(f"--vary {text!r} has a value twice. Name each once.")
    return name, values


def _meant(name: str) -> str | None:
    """The setting that somebody who wrote this may have meant, as far as it can be varied."""
    meant = nearest(("rules", 0, name.rsplit(".", maxsplit=1)[-1])) or nearest(
        (name.rsplit(".", maxsplit=1)[-1],)
    )
    if meant is None or meant.split(".")[0] not in _SECTIONS:
        return None
    last = meant.split(".")[-1]
    return last if meant.startswith("rules") else meant


def _parted(text: str) -> list[str]:
    """At commas outside of brackets and quotes. A quote within a word is a letter. UsageError for an open one."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (depth or not parts[-1].strip()):
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if quote or depth:
        what = f"the quote {quote}" if quote else "a bracket"
        raise UsageError(f"--vary …={text}: {what} is not closed. Close it, or quote the whole value.")
    return parts


def _paths(name: str, base: Settings) -> list[str]:
    """The settings that a name means."""
    if name not in _RULE_FIELDS:
        return [name]
    return [f"rules.{place}.{name}" for place, rule in enumerate(base.rules) if rule.enabled]
