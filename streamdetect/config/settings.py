"""All settings, and the checks between sections. Each default is defined on its field, nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import InitErrorDetails

from streamdetect.config.kafka import KafkaSettings, Topic
from streamdetect.config.rules import HUNT_ID, RuleSettings
from streamdetect.config.section import PROBLEM, Port, Section, Text, custom_problem, problem_at
from streamdetect.config.units import Duration, duration, format_duration


class TimeSettings(Section):
    """Event time: panes, window, and limits for wrong clocks (semantics.md §4)."""

    interval_ms: Duration = duration("5m", alias="interval", minimum="1s", maximum_ms=30 * 86_400_000)
    """Time between two evaluations, and the width of a pane; 1s to 30d: window states count milliseconds in 32 bits."""
    lookback_ms: Duration = duration("24h", alias="lookback", minimum="1s")
    """Length of the window; a multiple of `interval`."""
    lateness_ms: Duration = duration("2m", alias="lateness", minimum="0s")
    """How far the watermark of a partition stays behind its newest event; 0s or more."""
    idle_timeout_ms: Duration = duration("1m", alias="idle_timeout", minimum="0s")
    """Live: time without records after which a partition at its end no longer holds the watermark back; 0s or more."""
    max_future_skew_ms: Duration = duration("10m", alias="max_future_skew", minimum="0s")
    """How far an event may be ahead of its record's timestamp, and live of the wall clock; 0s or more."""
    max_future_jump_ms: Duration = duration("1h", alias="max_future_jump", minimum="1s")
    """How far one event may move a partition's clock without confirmation by others; 1s or more."""

    @field_validator("lookback_ms")
    @classmethod
    def _multiple(cls, lookback_ms: int, info: ValidationInfo) -> int:
        interval_ms = info.data.get("interval_ms")
        if interval_ms is None or lookback_ms % interval_ms == 0:
            return lookback_ms
        closest_ms = max(1, round(lookback_ms / interval_ms)) * interval_ms
        raise ValueError(
            f"{format_duration(lookback_ms)} is not a multiple of interval {format_duration(interval_ms)}; "
            f"write for example {format_duration(closest_ms)}"
        )


class AlertSinkSettings(Section):
    """Where alerts go."""

    sink: Literal["kafka", "file", "stdout"] = "kafka"
    """`kafka`, `file` or `stdout`. `replay` ignores it: it writes to stdout or `--output`."""
    topic: Topic = "streamdetect.alerts"
    """Topic of the `kafka` sink. Must not be one of the topics that are read."""
    path: Text | None = None
    """File of the `file` sink."""

    @field_validator("path")
    @classmethod
    def _path(cls, path: str | None, info: ValidationInfo) -> str | None:
        return _path_of_file_sink(path, info)


class DeadLetterSinkSettings(Section):
    """Where dead letters (refused records) go."""

    sink: Literal["kafka", "file", "none"] = "kafka"
    """`kafka`, `file`, or `none`: refused records are only counted."""
    topic: Topic = "streamdetect.dead-letters"
    """Topic of the `kafka` sink. Must not be one of the topics that are read."""
    path: Text | None = None
    """File of the `file` sink."""

    @field_validator("path")
    @classmethod
    def _path(cls, path: str | None, info: ValidationInfo) -> str | None:
        return _path_of_file_sink(path, info)


def _path_of_file_sink(path: str | None, info: ValidationInfo) -> str | None:
    if path is None and info.data.get("sink") == "file":
        raise ValueError("is missing, but sink is file; name the file to write to")
    return path


class CheckpointSettings(Section):
    """Where state is saved, so that a restart continues where the last run stopped."""

    path: Text = "./state"
    """Directory of the checkpoint."""
    interval_ms: Duration = duration("30s", alias="interval", minimum="1s")
    """Time between two checkpoints; 1s or more."""


class LimitSettings(Section):
    """Bounds on memory."""

    max_keys: int = Field(default=2_000_000, strict=True, ge=1, le=1_000_000_000)
    """Most keys in memory; 1 or more."""
    max_record_bytes: int = Field(default=1_048_576, strict=True, ge=1, le=67_108_864)
    """Largest accepted record in bytes, up to 64 MiB; larger ones are dead letters."""


class HttpSettings(Section):
    """Where metrics and health are served."""

    host: Text = "127.0.0.1"
    """Address to listen on."""
    port: Port = 9464
    """Port to listen on, 0 to 65535; 0 takes any free one."""


class LogSettings(Section):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is written."""
    format: Literal["text", "json"] = "text"
    """`text` for people, `json` with ECS field names for machines."""


class Settings(Section):
    """Every setting of streamdetect."""

    profile: Literal["strict", "resilient"] = "resilient"
    """How documents are read: `strict` as Elasticsearch stores them, `resilient` as an analyst means them."""
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    """The cluster and topics to read from."""
    time: TimeSettings = Field(default_factory=TimeSettings)
    """Event time, windows and clocks."""
    rules: tuple[RuleSettings, ...] = Field(default_factory=lambda: (RuleSettings(),))
    """What is detected as a beacon; each rule alerts on its own."""
    alerts: AlertSinkSettings = Field(default_factory=AlertSinkSettings)
    """Where alerts go."""
    dead_letters: DeadLetterSinkSettings = Field(default_factory=DeadLetterSinkSettings)
    """Where dead letters (refused records) go."""
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    """Where state is saved."""
    limits: LimitSettings = Field(default_factory=LimitSettings)
    """Bounds on memory."""
    http: HttpSettings = Field(default_factory=HttpSettings)
    """Metrics and health."""
    log: LogSettings = Field(default_factory=LogSettings)
    """Logs."""

    @field_validator("rules", mode="wrap")
    @classmethod
    def _unique_ids(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> tuple[RuleSettings, ...]:
        """A wrap validator, so that a duplicate id is reported together with other problems of the rules."""
        duplicates = _duplicate_ids(value)
        try:
            rules: tuple[RuleSettings, ...] = handler(value)
        except ValidationError as error:
            raise _with_duplicates(error, duplicates) from None
        if duplicates:
            raise _with_duplicates(None, duplicates)
        return rules

    @field_validator("alerts", "dead_letters")
    @classmethod
    def _not_read(
        cls, sink: AlertSinkSettings | DeadLetterSinkSettings, info: ValidationInfo
    ) -> AlertSinkSettings | DeadLetterSinkSettings:
        """Refuse an output topic that is also read: dead letters would loop forever.

        A matching pattern is valid: the source skips `written_topics`.
        """
        kafka = info.data.get("kafka")
        if sink.sink == "kafka" and kafka is not None and sink.topic in kafka.topics:
            message = f"{sink.topic!r} is among kafka.topics, so it would be read again; name another topic"
            raise problem_at("topic", message)
        return sink

    def written_topics(self) -> tuple[str, ...]:
        """The topics that `run` writes to, which a topic_pattern never matches."""
        sinks = (self.alerts, self.dead_letters)
        return tuple(sink.topic for sink in sinks if sink.sink == "kafka")

    def enabled_rules(self) -> tuple[RuleSettings, ...]:
        """The rules that are evaluated, in the order of the configuration."""
        return tuple(rule for rule in self.rules if rule.enabled)

    def detection(self) -> dict[str, object]:
        """The settings that decide what is detected, as JSON values: stored with the state, to name a changed one."""
        return {
            "profile": self.profile,
            "time": self.time.model_dump(mode="json", by_alias=True),
            "rules": {rule.id: rule.detection() for rule in self.enabled_rules()},
        }

    @classmethod
    def from_detection(cls, stored: Mapping[str, Any]) -> Settings:
        """Settings with this `detection()`; all others have their defaults.

        Rule names are not part of it, so rules other than the hunt are named by their ids. Raises ValueError, KeyError,
        TypeError or AttributeError for any other input.
        """
        rules = [
            {**rule, "id": rule_id, **({} if rule_id == HUNT_ID else {"name": rule_id})}
            for rule_id, rule in stored["rules"].items()
        ]
        return cls.model_validate({**stored, "rules": rules})


def _duplicate_ids(rules: object) -> list[tuple[int, str]]:
    """Index and id of every rule with the id of an earlier one."""
    if not isinstance(rules, (list, tuple)):
        return []
    default = RuleSettings.model_fields["id"].default
    ids = [rule.get("id", default) if isinstance(rule, dict) else getattr(rule, "id", None) for rule in rules]
    seen: Counter[object] = Counter()
    duplicates = []
    for index, rule_id in enumerate(ids):
        if isinstance(rule_id, str):
            seen[rule_id] += 1
            if seen[rule_id] > 1:
                duplicates.append((index, rule_id))
    return duplicates


def _with_duplicates(error: ValidationError | None, duplicates: list[tuple[int, str]]) -> ValidationError:
    """`error` with one more problem for every duplicate id."""
    lines = [
        InitErrorDetails(
            type=custom_problem(f"{rule_id!r} is the id of an earlier rule; give each rule its own"),
            loc=(index, "id"),
            input=None,
        )
        for index, rule_id in duplicates
    ]
    for detail in error.errors(include_url=False) if error is not None else ():
        context = detail.get("ctx", {})
        kind = custom_problem(context["message"]) if detail["type"] == PROBLEM else detail["type"]
        lines.append(InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context))
    return ValidationError.from_exception_data("settings", lines)
