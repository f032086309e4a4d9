"""Settings for people and tools: the effective YAML, the JSON Schema, and warnings about valid but odd values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from streamdetect.config.settings import Settings
from streamdetect.config.units import format_duration

MASK = "********"
_SECRET_OPTION = re.compile(r"pass|secret|token|credential|jaas|key", re.IGNORECASE)
_HOUR_MS = 3_600_000


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values in one line."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        nested = any(isinstance(item, dict) for item in sequence)
        return super().represent_sequence(
            tag, sequence, flow_style=not nested if flow_style is None else flow_style
        )


def show(settings: Settings) -> str:
    """The effective settings as YAML that `load_settings` accepts; secrets are shown as `********`."""
    shown = settings.model_dump(mode="json", by_alias=True)
    kafka = shown["kafka"]
    if kafka["password"] is not None:
        kafka["password"] = MASK
    kafka["client"] = {
        name: MASK if _SECRET_OPTION.search(name) and value is not None else value
        for name, value in kafka["client"].items()
    }
    return yaml.dump(
        shown, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the configuration file."""
    schema = Settings.model_json_schema(by_alias=True, mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "streamdetect configuration",
    }


def doubts(settings: Settings) -> list[str]:
    """Valid but probably unintended settings, one line each, as `config check` prints them."""
    kafka = settings.kafka
    found = []
    if not kafka.topics and kafka.topic_pattern is None:
        found.append("kafka.topics: neither topics nor topic_pattern is set; run needs one of them")
    if kafka.sasl_mechanism is not None and not kafka.security_protocol.startswith("SASL_"):
        found.append(f"kafka.sasl_mechanism: has no effect with security_protocol {kafka.security_protocol}")
    for name in ("ca_file", "cert_file", "key_file", "password_file"):
        file = getattr(kafka, name)
        if file is not None and not Path(file).is_file():
            found.append(f"kafka.{name}: {file} does not exist on this machine")
    if not settings.enabled_rules():
        found.append("rules: no rule is enabled, so nothing is detected")
    return found + _never_true(settings)


def _never_true(settings: Settings) -> list[str]:
    """Rules that require a longer span than the window (semantics.md §3: hours round half up)."""
    lookback_ms = settings.time.lookback_ms
    longest_hours = (lookback_ms - 1 + _HOUR_MS // 2) // _HOUR_MS
    return [
        f"rules.{index}.min_duration_hours: {rule.min_duration_hours} hours never fit into time.lookback "
        f"{format_duration(lookback_ms)}, so the rule never fires"
        for index, rule in enumerate(settings.rules)
        if rule.enabled and rule.min_duration_hours > longest_hours
    ]
