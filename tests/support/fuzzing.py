"""The fuzzer: rounds of records made from a seed, checked, and on a fault shrunk. scripts/fuzz.py is its command.

A round stands for itself: it is made from the seed and its number alone, and runs in new pipelines. Three of four
records in it are mutated or random; the rest are whole, so that keys have a past and episodes open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, TypeVar

from fuzz_checks import PROFILES, Entry, FaultError, Judge, Side, Terms, run_round
from fuzz_mutations import mutated, restamped
from fuzz_seeds import MONDAY_8_MS, seeds

ROUND = 1_500  # mutated and random records
_WHOLE = 0.25
# How far each partition is behind: what comes from one that was idle is late.
_BEHIND_MS = (0, 20_000, 180_000)
_ATTEMPTS = 4_000  # at shrinking
_NUMBERS = ("consumed", "counted", "late", "ticks", "late_arrivals", "evicted")

Items = TypeVar("Items", bytes, list[Entry])


class AloneError(FaultError):
    """A fault that one record shows by itself."""

    def __init__(self, fault: FaultError, entry: Entry) -> None:
        super().__init__(fault.kind, fault.detail)
        self.entry = entry


@dataclass
class Tally:
    """What has been seen so far. `records` are the mutated and random ones; each goes through every profile."""

    records: int = 0
    whole: int = 0
    saves: int = 0
    verdicts: dict[str, Counter[str]] = field(
        default_factory=lambda: {profile: Counter() for profile in PROFILES}
    )

    def add(self, profile: str, outcome: dict[str, Any]) -> None:
        """Count a round's summary: records by what became of them, and alerts by action."""
        verdicts = self.verdicts[profile]
        verdicts.update({name: outcome[name] for name in _NUMBERS})
        for group in ("filtered", "dead_lettered", "alerts"):
            verdicts.update({f"{group} {name}": count for name, count in outcome[group].items()})


class Failure(NamedTuple):
    """A fault, with the fewest and smallest records found that still show it, and how they were run."""

    fault: FaultError
    terms: Terms
    number: int
    entries: list[Entry]


def fuzz(
    records: int, seed: int, progress: Callable[[Tally], None] = lambda _: None
) -> tuple[Tally, Failure | None]:
    """Rounds until that many mutated and random records have been checked, or until a fault."""
    tally = Tally()
    number = 0
    while tally.records < records:
        entries, wrong = make_round(seed, number, min(ROUND, records - tally.records))
        for terms in terms_of(number):
            try:
                check_alone(entries, terms)
                tally.add(terms.profile, check_together(entries, terms).outcome())
            except FaultError as fault:
                return tally, shrunk(fault, terms, number, entries)
        tally.records += wrong
        tally.whole += len(entries) - wrong
        tally.saves += sum(entry.save for entry in entries)
        progress(tally)
        number += 1
    return tally, None


def terms_of(number: int) -> Iterator[Terms]:
    """Both profiles; rounds take turns in having record timestamps, being live, and holding few keys."""
    for profile in PROFILES:
        yield Terms(profile, number % 2 == 0, number % 3 == 0, 40 if number % 5 == 4 else 2_000_000)


def make_round(seed: int, number: int, wrong: int) -> tuple[list[Entry], int]:
    """A round with that many mutated and random records: batches of random partitions, time moving on."""
    rng = Random(f"{seed}/{number}")
    now_ms = MONDAY_8_MS + rng.randrange(86_400_000)
    entries: list[Entry] = []
    found = batch = 0
    while found < wrong:
        partition = rng.randrange(len(_BEHIND_MS))
        for _ in range(rng.choice((1, 2, 5, 20, 80))):
            if found == wrong:
                break
            now_ms += int(rng.random() ** 3 * 15_000)
            event_ms = now_ms - _BEHIND_MS[partition]
            whole = rng.random() < _WHOLE
            value = restamped(rng.choice(seeds()), event_ms) if whole else mutated(rng, event_ms)
            found += not whole
            timestamp_ms, save = _timestamp(rng, event_ms), rng.random() < 0.01
            entries.append(Entry(batch, partition, value, timestamp_ms, now_ms, save))
        batch += 1
    return entries, found


def _timestamp(rng: Random, event_ms: int) -> int | None:
    """About the event's time; rarely missing, or one that no clock shows."""
    if rng.random() < 0.97:
        return event_ms + rng.randrange(-1000, 30_000)
    return rng.choice((None, -1, 0, 2**63 - 1, -(2**63), event_ms - 600_000, event_ms - 600_001))


def check_alone(entries: Sequence[Entry], terms: Terms) -> None:
    """What must hold for each record by itself."""
    judge = Judge(terms.profile)
    for entry in entries:
        try:
            judge.check(entry.value)
        except FaultError as fault:
            raise AloneError(fault, entry) from fault


def check_together(entries: Sequence[Entry], terms: Terms) -> Side:
    """What must hold for a round under these terms; gives one of its pipelines."""
    return run_round([under(entry, terms) for entry in entries], terms)


def under(entry: Entry, terms: Terms) -> Entry:
    """Without what these terms do not have: a file has no record timestamps, a replay no wall clock."""
    return entry._replace(
        timestamp_ms=entry.timestamp_ms if terms.timestamps else None,
        now_ms=entry.now_ms if terms.live else None,
    )


# -------------------------------------------------------------------------------------------------- shrinking


def shrunk(fault: FaultError, terms: Terms, number: int, entries: list[Entry]) -> Failure:
    """Fewer records, then fewer bytes in each, for as long as the same kind of fault shows."""
    attempts = iter(range(_ATTEMPTS))
    prove = check_alone if isinstance(fault, AloneError) else check_together

    def fails(some: Sequence[Entry]) -> bool:
        if next(attempts, None) is None:
            return False
        try:
            prove(some, terms)
        except FaultError as found:
            return found.kind == fault.kind
        return False

    few = [fault.entry] if isinstance(fault, AloneError) else shorter(entries, fails)
    for index in range(len(few)):
        few = _smaller_value(few, index, fails)
    return Failure(fault, terms, number, few)


def _smaller_value(entries: list[Entry], index: int, fails: Callable[[list[Entry]], bool]) -> list[Entry]:
    """The entries with fewer bytes in one of them."""

    def having(value: bytes) -> list[Entry]:
        return [*entries[:index], entries[index]._replace(value=value), *entries[index + 1 :]]

    value = entries[index].value
    return entries if value is None else having(shorter(value, lambda less: fails(having(less))))


def shorter(items: Items, fails: Callable[[Items], bool]) -> Items:
    """Leave out as much as possible: halves first, then ever smaller parts, down to one."""
    halves = [len(items) >> shift for shift in range(1, len(items).bit_length())]
    for size in [size for size in halves if size > 12] + [*range(12, 0, -1)]:
        begin = 0
        while begin < len(items):
            fewer = items[:begin] + items[begin + size :]
            if fails(fewer):
                items = fewer
            else:
                begin += size
    return items
