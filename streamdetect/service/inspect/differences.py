"""What a comparison of two states comes to, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from streamdetect.errors import CheckpointError

SHOWN: Final = 20
"""Most differences that are listed."""


class Difference(NamedTuple):
    """What is not the same: on the side of the checkpoint, and in what the records give."""

    where: str
    what: str
    stored: str
    derived: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: in the checkpoint {self.stored}, from the records {self.derived}"


@dataclass(slots=True)
class Comparison:
    """How much was compared, and what is not the same. `late` is what live arrival explains (`comparing`)."""

    keys: int = 0
    events: int = 0
    partitions: int = 0
    differences: list[Difference] = field(default_factory=list)
    late: list[Difference] = field(default_factory=list)
    evicting: bool = False

    def verdict(self) -> str:
        """What was compared. Raises CheckpointError where something differs that nothing explains."""
        compared = f"{self.keys:,} keys and {self.events:,} events (or waiting ones) of {self.partitions:,} partitions"
        if self.differences:
            raise CheckpointError(
                f"The checkpoint is not what its records give, in {_listed(self.differences)}"
                f"{self._late_text()}\nCompared: {compared}. {self._ways_on()}"
            )
        if self.late:
            return f"Its records give the same but for events that came late: {compared}.{self._late_text()}"
        return f"Its records give the same: {compared}."

    def _late_text(self) -> str:
        if not self.late:
            return ""
        return (
            "\nEvents of partitions that were idle came, live, after their ticks. They count from the next tick on, "
            "so they wait in the checkpoint; afterwards both are the same. This is no damage, in "
            f"{_listed(self.late)}"
        )

    def _ways_on(self) -> str:
        evicting = (
            "Keys were given up on one of the sides (limits.max_keys), which alone may be the cause. "
            if self.evicting
            else ""
        )
        return (
            f"{evicting}If the records are those that the run has read (none deleted since, none before the place "
            "where it began), and no late event has moved an episode, the state is wrong: build it anew with run "
            "--rebuild."
        )


def _listed(differences: list[Difference]) -> str:
    more = f" (the first {SHOWN})" if len(differences) > SHOWN else ""
    places = "1 place" if len(differences) == 1 else f"{len(differences):,} places"
    return "\n".join([f"{places}{more}:", *(f"  {difference}" for difference in differences[:SHOWN])])
