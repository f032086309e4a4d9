"""The result of comparing a checkpoint with the state derived from its records, and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from streamdetect.errors import CheckpointError

SHOWN: Final = 20
"""How many differences are listed at most."""


class Difference(NamedTuple):
    """One value that differs: in the checkpoint (`stored`) and derived from the records."""

    where: str
    what: str
    stored: str
    derived: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: in the checkpoint {self.stored}, from the records {self.derived}"


@dataclass(slots=True)
class Comparison:
    """How much was compared, and what differs. `late` are differences explained by late events (`compare`)."""

    keys: int = 0
    events: int = 0
    partitions: int = 0
    differences: list[Difference] = field(default_factory=list)
    late: list[Difference] = field(default_factory=list)
    evicting: bool = False

    def verdict(self) -> str:
        """The result as text. Raises CheckpointError for differences that late events do not explain."""
        events = f"{self.events:,} events (including waiting ones)"
        compared = f"{self.keys:,} keys and {events} of {self.partitions:,} partitions"
        if self.differences:
            raise CheckpointError(
                f"The checkpoint differs from the state that its records give in {_listed(self.differences)}"
                f"{self._late_text()}\nCompared: {compared}. {self._advice()}"
            )
        if self.late:
            return f"Its records give the same state except for late events: {compared}.{self._late_text()}"
        return f"Its records give the same state: {compared}."

    def _late_text(self) -> str:
        if not self.late:
            return ""
        return (
            "\nIn the live run, events of idle partitions arrived after their ticks. They count from the next tick on, "
            "so they wait in the checkpoint; after that tick both states are the same. This is not damage. "
            f"It concerns {_listed(self.late)}"
        )

    def _advice(self) -> str:
        evicting = (
            "Keys were evicted in one of the two states (limits.max_keys), which alone may be the cause. "
            if self.evicting
            else ""
        )
        return (
            f"{evicting}If these are the records that the run has read (none deleted since, none from before its "
            "start) and no late event has moved an episode, the state is wrong: rebuild it with run --rebuild."
        )


def _listed(differences: list[Difference]) -> str:
    more = f" (the first {SHOWN})" if len(differences) > SHOWN else ""
    places = "1 place" if len(differences) == 1 else f"{len(differences):,} places"
    return "\n".join([f"{places}{more}:", *(f"  {difference}" for difference in differences[:SHOWN])])
