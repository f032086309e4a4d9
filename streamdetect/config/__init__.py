"""Settings: their names, values, defaults and sources.

Belongs here: the models, which hold every default (`settings`, `kafka`, `rules`), loading from YAML, `--set` and the
environment (`loading`), and every message about an invalid setting. Does not belong here: anything that acts on a
setting.
"""

from __future__ import annotations

from streamdetect.config.expectations import (
    Expectations,
    KeyPattern,
    MustAlert,
    MustNotAlert,
    load_expectations,
)
from streamdetect.config.kafka import KafkaSettings
from streamdetect.config.loading import RequiredFor, load_settings
from streamdetect.config.rules import RuleException, RuleSettings
from streamdetect.config.settings import (
    AlertSinkSettings,
    CheckpointSettings,
    DeadLetterSinkSettings,
    HttpSettings,
    LimitSettings,
    LogSettings,
    Settings,
    TimeSettings,
)
from streamdetect.config.showing import doubts, json_schema, show
from streamdetect.config.units import format_duration, parse_duration_ms, parse_time_ms
from streamdetect.config.variants import NamedSettings, varied

__all__ = [
    "AlertSinkSettings",
    "CheckpointSettings",
    "DeadLetterSinkSettings",
    "Expectations",
    "HttpSettings",
    "KafkaSettings",
    "KeyPattern",
    "LimitSettings",
    "LogSettings",
    "MustAlert",
    "MustNotAlert",
    "NamedSettings",
    "RequiredFor",
    "RuleException",
    "RuleSettings",
    "Settings",
    "TimeSettings",
    "doubts",
    "format_duration",
    "json_schema",
    "load_expectations",
    "load_settings",
    "parse_duration_ms",
    "parse_time_ms",
    "show",
    "varied",
]
