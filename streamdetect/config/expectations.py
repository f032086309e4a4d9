"""A file of expectations: which keys must alert in a backtest, and which must not."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from streamdetect.config.names import SettingPath, fields
from streamdetect.config.problems import problem_lines
from streamdetect.config.section import Section, Text, custom_problem
from streamdetect.config.units import normal_destination, parse_time_ms
from streamdetect.config.yamlfile import read_yaml_file
from streamdetect.errors import ConfigError


def _time(value: object, info: ValidationInfo) -> object:
    """A time as text in milliseconds. Without a validation context (in code) it is in milliseconds already."""
    return value if value is None or info.context is None else parse_time_ms(str(value))


Time = Annotated[int, BeforeValidator(_time)]


class KeyPattern(Section):
    """Keys of episodes. Every field that is set must match, ignoring case; a missing field matches all."""

    FIELDS: ClassVar = ("destination", "process", "host", "rule", "sensor")

    name: Text | None = None
    """Name in the verdict; by default made of the fields."""
    destination: Text | None = None
    """Destination: an address, a network (CIDR), or a name as in destination.address."""
    process: Text | None = None
    """Process name."""
    host: Text | None = None
    """Host id or host name."""
    rule: Text | None = None
    """Rule id or rule name."""
    sensor: Literal["endpoint", "sysmon"] | None = None
    """Sensor; keys of the strict profile have none."""

    @field_validator("destination")
    @classmethod
    def _destination(cls, destination: str | None) -> str | None:
        return None if destination is None else normal_destination(destination)

    @model_validator(mode="after")
    def _names_keys(self) -> Self:
        if not self._has_fields():
            raise ValueError("matches every key; name a destination, process, host, rule or sensor")
        return self

    def _has_fields(self) -> bool:
        return any(getattr(self, name) is not None for name in self.FIELDS)


class MustNotAlert(KeyPattern):
    """Keys, or the keys of a label, that must not have an episode."""

    label: Text | None = None
    """Name of keys under `labels`, instead of the fields of a key."""

    @field_validator("label")
    @classmethod
    def _label(cls, label: str | None, info: ValidationInfo) -> str | None:
        known = (info.context or {}).get("labels")
        if label is not None and known is not None and label not in known:
            raise ValueError(f"{label!r} is not defined under labels; {_hint(label, known)}")
        return label

    @model_validator(mode="after")
    def _names_keys(self) -> Self:
        if self.label is not None and self._has_fields():
            raise ValueError("has a label and fields of a key; write either")
        if self.label is None and not self._has_fields():
            raise ValueError("matches every key; name a label, destination, process, host, rule or sensor")
        return self


class MustAlert(MustNotAlert):
    """Keys, or each of the keys of a label, that must have an episode."""

    by_ms: Time | None = Field(default=None, validation_alias="by", serialization_alias="by")
    """Time (ISO 8601, no zone means UTC) at which the episode must have opened, or earlier."""


class Expectations(Section):
    """Which keys must have an episode in a backtest, and which must not."""

    labels: dict[Text, Annotated[tuple[KeyPattern, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Names for lists of keys."""
    must_alert: tuple[MustAlert, ...] = ()
    """Keys that must have an episode."""
    must_not_alert: tuple[MustNotAlert, ...] = ()
    """Keys that must not have an episode."""

    def keys(self, entry: MustNotAlert) -> tuple[KeyPattern, ...]:
        """The keys of an entry: the keys of its label, or its own key."""
        return (entry,) if entry.label is None else self.labels[entry.label]


def load_expectations(path: str | os.PathLike[str]) -> Expectations:
    """The expectations of a YAML file; ConfigError with every problem in one list."""
    name = os.fspath(path)
    data, lines = _read(name)
    origins = {where: f"line {line}" for where, line in lines.items()}
    labels = data.get("labels")
    try:
        expectations = Expectations.model_validate(
            data,
            by_alias=True,
            by_name=False,
            context={"labels": labels if isinstance(labels, dict) else {}},
        )
    except ValidationError as error:
        raise ConfigError.listing(name, _problems(error, origins)) from None
    if not expectations.must_alert and not expectations.must_not_alert:
        raise ConfigError.listing(
            name, ["file: contains no expectation; write keys under must_alert or must_not_alert"]
        )
    return expectations


def _read(path: str) -> tuple[dict[str, Any], dict[SettingPath, int]]:
    """The sections of a file (without those whose every line is commented out) and the line of every path."""
    value, lines = read_yaml_file(path)
    if value is not None and not isinstance(value, dict):
        known = ", ".join(fields(Expectations))
        raise ConfigError.listing(path, [f"file: contains no expectations; write sections {known}"])
    return {name: section for name, section in (value or {}).items() if section is not None}, lines


def _problems(error: ValidationError, origins: Mapping[SettingPath, str]) -> list[str]:
    """As `problem_lines`, but an unknown name gets a hint from the names of this file, not from the settings."""
    details = []
    for detail in error.errors(include_url=False):
        kind: str | PydanticCustomError = detail["type"]
        if kind == "extra_forbidden":
            known = fields(_section_at(detail["loc"]))
            kind = custom_problem(f"is not known; {_hint(str(detail['loc'][-1]), known)}")
        details.append(
            InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {}))
        )
    return problem_lines(ValidationError.from_exception_data("expectations", details), origins)


def _section_at(path: SettingPath) -> type[Section]:
    """The section that contains the last name of a path."""
    if len(path) == 1:
        return Expectations
    return {"labels": KeyPattern, "must_alert": MustAlert}.get(str(path[0]), MustNotAlert)


def _hint(name: str, known: Collection[str]) -> str:
    """The closest known name, or all of them."""
    names = [str(each) for each in known]
    close = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(name.lower(), names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"write one of {', '.join(names)}" if names else "no label is"
