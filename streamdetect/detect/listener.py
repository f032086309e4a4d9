"""What the engine reports. Every method does nothing; override the methods of interest."""

from __future__ import annotations

from streamdetect.model import Partition


class Listener:
    """Receives the engine's reports, in the engine's thread."""

    def late_arrival(self, partition: Partition) -> None:
        """An event of a partition that was idle belongs to ticks already evaluated; it counts from the next one on."""

    def evaluated(self, tick_ms: int, keys: int) -> None:
        """A tick with pending panes or timers has been evaluated; `keys` keys are live after it."""

    def evicted(self, rule_id: str, keys: int) -> None:
        """Keys were evicted because `limits.max_keys` was exceeded (docs/semantics.md §6)."""
