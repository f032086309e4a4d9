"""Invented estates of hosts: documents for demos, tests and benchmarks.

The rule of this room: it makes documents up, and nothing else. It knows no Kafka and no files, uses the
standard library and orjson only, imports nothing of streamdetect but model and errors, and decides nothing
about detection. Every name, id and address is invented. The same plan gives the same bytes on every Python
>= 3.11: all chance comes from `Random.random()`, the one method whose sequence Python promises to keep.

Why only planted beacons can pass the default hunt stands in `traffic`.
"""

from __future__ import annotations

from streamdetect.synthetic.beacons import Placement
from streamdetect.synthetic.plan import SHAPES, Beacon, Scenario, parse_beacon
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
