"""Shapes of records (docs/events.md), in the coarse groups of a report."""

from __future__ import annotations

from typing import Final

from streamdetect.events import sysmon

DEFEND: Final = "Elastic Defend"
ECS_SYSMON: Final = "Sysmon, ECS"
RAW_SYSMON: Final = "Sysmon, raw"
OTHER: Final = "other"
SHAPES: Final = (DEFEND, ECS_SYSMON, RAW_SYSMON, OTHER)


def of_dataset(dataset: object) -> str:
    """The shape of a data_stream.dataset (or event.dataset)."""
    if dataset == sysmon.DATASET:
        return ECS_SYSMON
    return DEFEND if isinstance(dataset, str) and dataset.startswith("endpoint.") else OTHER
