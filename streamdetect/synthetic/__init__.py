"""Synthetic data: documents of invented hosts, for demos, tests and benchmarks.

Belongs here: generating documents. Does not belong here: Kafka, files, anything about detection. Uses the standard
library and orjson only. Every name, id and address is invented. The same scenario gives the same bytes on every Python
>= 3.11: all randomness comes from `Random.random()`, the only method whose sequence Python guarantees.

`traffic` explains why only planted beacons can match the default hunt.
"""

from __future__ import annotations

from streamdetect.synthetic.beacons import Placement
from streamdetect.synthetic.scenario import SHAPES, Beacon, Scenario, parse_beacon
from streamdetect.synthetic.stream import documents, keyed_records, lines, placements

__all__ = [
    "SHAPES",
    "Beacon",
    "Placement",
    "Scenario",
    "documents",
    "keyed_records",
    "lines",
    "parse_beacon",
    "placements",
]
