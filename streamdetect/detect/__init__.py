"""PURE: events and times in, alerts out.

Everything that decides lives here: which events count, partition clocks, windows, conditions, episodes. No Kafka,
no files, no wall clock, no logging; time arrives as an argument and never goes back. The work on one key is in
functions of that key's state alone (`history`, `episodes`, `keyed`), so that the same code runs in the embedded engine
(`engine.Detector`) and inside a keyed operator of a distributed engine (`keyed.KeyedStep`). State is explicit data.

The door of sortedcontainers.
"""

from streamdetect.detect.engine import Detector, Listener
from streamdetect.detect.keyed import KeyedStep
from streamdetect.detect.keystate import Changes
from streamdetect.detect.partitions import COUNTED, FUTURE, LATE, PartitionProcessor
from streamdetect.detect.rules import Rule

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
