"""PURE: events and times in, alerts out.

Everything that decides lives here: which events count, partition clocks, windows, conditions, episodes. No Kafka,
files, wall clock or logging; time is an argument and never goes back. The work on one key is in functions of that key's
state alone (`preaggregate`, `windows`, `conditions`, `episodes`), so that the same code runs in the embedded engine
(`engine.Detector`) and inside a keyed operator of a distributed engine (`keyed.KeyedStep`). State is explicit data.

The door of sortedcontainers.
"""

from streamdetect.detect.engine import Detector
from streamdetect.detect.keyed import KeyedStep
from streamdetect.detect.listener import Listener
from streamdetect.detect.partitions import COUNTED, FUTURE, LATE, PartitionProcessor
from streamdetect.detect.rules import Rule
from streamdetect.detect.snapshot import Changes

__all__ = [
    "COUNTED",
    "FUTURE",
    "LATE",
    "Changes",
    "Detector",
    "KeyedStep",
    "Listener",
    "PartitionProcessor",
    "Rule",
]
