"""Settings from a YAML file, the environment and `--set`; later sources win."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from streamdetect.config.names import SettingPath, fields, shape_at
from streamdetect.config.overrides import Override, apply, from_environment, from_sets
from streamdetect.config.problems import problem_lines
from streamdetect.config.settings import Settings
from streamdetect.config.yamlfile import read_yaml_file
from streamdetect.errors import ConfigError

RequiredFor = Literal["run", "replay", "kafka-replay"]


def load_settings(
    path: str | os.PathLike[str] | None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    profile: str | None = None,
    required_for: RequiredFor | None = None,
    *,
    overrides: Sequence[Override] = (),
) -> Settings:
    """The effective settings. Raises ConfigError with every problem in one list.

    `path` None means defaults, `environ` None the environment of the process. `profile` wins over everything except
    `overrides`. With `required_for` `run` or `kafka-replay` the topics to read are required.
    """
    name = "the configuration" if path is None else os.fspath(path)
    data, lines = ({}, {}) if path is None else _read(os.fspath(path))
    origins = {where: f"line {line}" for where, line in lines.items()}
    laid = [*from_environment(os.environ if environ is None else environ), *from_sets(sets)]
    if profile is not None:
        laid.append(Override(("profile",), profile, "--profile"))
    problems = _apply_all([*laid, *overrides], data, origins)
    problems += _missing(data, required_for)
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(data, by_alias=True, by_name=False, context={"written": True})
    except ValidationError as error:
        problems += problem_lines(error, origins)
    if problems or settings is None:
        raise ConfigError.listing(name, problems)
    return settings


def _read(path: str) -> tuple[dict[str, Any], dict[SettingPath, int]]:
    """The mapping of a file (an empty section has no settings) and the line of every path."""
    value, lines = read_yaml_file(path)
    if value is None:
        return {}, {}
    if not isinstance(value, dict):
        known = ", ".join(fields(Settings))
        raise ConfigError.listing(
            path, [f"file: contains no settings; write `name: value` lines, with {known}"]
        )
    return {key: _opened((key,), item) for key, item in value.items()}, lines


def _opened(path: SettingPath, value: object) -> object:
    """A section whose lines are all commented out is null in YAML, and means its defaults."""
    shape = shape_at(path)
    return {} if value is None and shape is not None and shape.kind == "section" else value


def _apply_all(overrides: list[Override], data: dict[str, Any], origins: dict[SettingPath, str]) -> list[str]:
    """Apply every override to `data`, record its origin, and return the problems."""
    problems = []
    for override in overrides:
        try:
            path = apply(override, data)
        except ValueError as error:
            problems.append(str(error))
            continue
        for known in [known for known in origins if known[: len(path)] == path]:
            del origins[known]
        origins[path] = override.origin
    return problems


def _missing(data: Mapping[str, Any], required_for: RequiredFor | None) -> list[str]:
    kafka = data.get("kafka") or {}
    if required_for not in {"run", "kafka-replay"} or not isinstance(kafka, dict):
        return []
    if kafka.get("topics") or kafka.get("topic_pattern"):
        return []
    command = "run" if required_for == "run" else "replay --from-kafka"
    return [
        f"kafka.topics: is missing, and {command} requires it; name the topics to read, or set kafka.topic_pattern"
    ]
