"""The fuzzer: generates rounds of records from a seed, checks them, and shrinks the records of a fault.

A round is independent: it is generated from the seed and its number only, and runs in new pipelines. Three of four
records are mutated or random; the others are valid, so that keys have a past and episodes open. The command is
scripts/fuzz.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, TypeVar

from fuzz_checks import PROFILES, CheckedPipeline, Entry, FaultError, RecordChecker, RoundOptions, run_round
from fuzz_mutations import mutated, restamped
from fuzz_seeds import MONDAY_8_MS, seeds

ROUND = 1_500  # mutated and random records
_VALID_SHARE = 0.25
# How far each partition is behind: records of a partition that was idle are late.
_BEHIND_MS = (0, 20_000, 180_000)
_MAX_ATTEMPTS = 4_000  # of shrinking
_COUNTERS = ("consumed", "counted", "late", "ticks", "late_arrivals", "evicted")

Items = TypeVar("Items", bytes, list[Entry])


class RecordFaultError(FaultError):
    """A fault of a single record."""

    def __init__(self, fault: FaultError, entry: Entry) -> None:
        super().__init__(fault.kind, fault.detail)
        self.entry = entry


@dataclass
class Tally:
    """Counts so far. `records` are the mutated and random ones, `valid` the others; each runs in every profile."""

    records: int = 0
    valid: int = 0
    saves: int = 0
    verdicts: dict[str, Counter[str]] = field(
        default_factory=lambda: {profile: Counter() for profile in PROFILES}
    )

    def add(self, profile: str, outcome: dict[str, Any]) -> None:
        """Add the summary of a round: records by outcome, and alerts by action."""
        verdicts = self.verdicts[profile]
        verdicts.update({name: outcome[name] for name in _COUNTERS})
        for group in ("filtered", "dead_lettered", "alerts"):
            verdicts.update({f"{group} {name}": count for name, count in outcome[group].items()})


class Failure(NamedTuple):
    """A fault, the fewest and smallest records found that still show it, and how they were run."""

    fault: FaultError
    options: RoundOptions
    number: int
    entries: list[Entry]


def fuzz(
    records: int, seed: int, progress: Callable[[Tally], None] = lambda _: None
) -> tuple[Tally, Failure | None]:
    """Run rounds until this many mutated and random records have been checked, or until a fault."""
    tally = Tally()
    number = 0
    while tally.records < records:
        entries, fuzzed = make_round(seed, number, min(ROUND, records - tally.records))
        for options in options_of(number):
            try:
                check_records(entries, options)
                tally.add(options.profile, check_round(entries, options).outcome())
            except FaultError as fault:
                return tally, shrink_failure(fault, options, number, entries)
        tally.records += fuzzed
        tally.valid += len(entries) - fuzzed
        tally.saves += sum(entry.save for entry in entries)
        progress(tally)
        number += 1
    return tally, None


def options_of(number: int) -> Iterator[RoundOptions]:
    """Both profiles; record timestamps, live mode and a low key limit vary with the round number."""
    for profile in PROFILES:
        yield RoundOptions(profile, number % 2 == 0, number % 3 == 0, 40 if number % 5 == 4 else 2_000_000)


def make_round(seed: int, number: int, fuzzed: int) -> tuple[list[Entry], int]:
    """A round with this many mutated and random records: batches of random partitions, with time advancing."""
    rng = Random(f"{seed}/{number}")
    now_ms = MONDAY_8_MS + rng.randrange(86_400_000)
    entries: list[Entry] = []
    found = batch = 0
    while found < fuzzed:
        partition = rng.randrange(len(_BEHIND_MS))
        for _ in range(rng.choice((1, 2, 5, 20, 80))):
            if found == fuzzed:
                break
            now_ms += int(rng.random() ** 3 * 15_000)
            event_ms = now_ms - _BEHIND_MS[partition]
            valid = rng.random() < _VALID_SHARE
            value = restamped(rng.choice(seeds()), event_ms) if valid else mutated(rng, event_ms)
            found += not valid
            timestamp_ms, save = _timestamp(rng, event_ms), rng.random() < 0.01
            entries.append(Entry(batch, partition, value, timestamp_ms, now_ms, save))
        batch += 1
    return entries, found


def _timestamp(rng: Random, event_ms: int) -> int | None:
    """Close to the event time; rarely missing or impossible."""
    if rng.random() < 0.97:
        return event_ms + rng.randrange(-1000, 30_000)
    return rng.choice((None, -1, 0, 2**63 - 1, -(2**63), event_ms - 600_000, event_ms - 600_001))


def check_records(entries: Sequence[Entry], options: RoundOptions) -> None:
    """Check each record separately."""
    checker = RecordChecker(options.profile)
    for entry in entries:
        try:
            checker.check(entry.value)
        except FaultError as fault:
            raise RecordFaultError(fault, entry) from fault


def check_round(entries: Sequence[Entry], options: RoundOptions) -> CheckedPipeline:
    """Check a round with these options; returns one of its pipelines."""
    return run_round([applied(entry, options) for entry in entries], options)


def applied(entry: Entry, options: RoundOptions) -> Entry:
    """The entry without what these options exclude: record timestamps or the wall clock."""
    return entry._replace(
        timestamp_ms=entry.timestamp_ms if options.timestamps else None,
        now_ms=entry.now_ms if options.live else None,
    )


# -------------------------------------------------------------------------------------------------- shrinking


def shrink_failure(fault: FaultError, options: RoundOptions, number: int, entries: list[Entry]) -> Failure:
    """Remove records, then bytes of each, while the same kind of fault occurs."""
    attempts = iter(range(_MAX_ATTEMPTS))
    check = check_records if isinstance(fault, RecordFaultError) else check_round

    def fails(some: Sequence[Entry]) -> bool:
        if next(attempts, None) is None:
            return False
        try:
            check(some, options)
        except FaultError as found:
            return found.kind == fault.kind
        return False

    fewest = [fault.entry] if isinstance(fault, RecordFaultError) else shrink(entries, fails)
    for index in range(len(fewest)):
        fewest = _shrink_value(fewest, index, fails)
    return Failure(fault, options, number, fewest)


def _shrink_value(entries: list[Entry], index: int, fails: Callable[[list[Entry]], bool]) -> list[Entry]:
    """The entries with fewer bytes in one of them."""

    def with_value(value: bytes) -> list[Entry]:
        return [*entries[:index], entries[index]._replace(value=value), *entries[index + 1 :]]

    value = entries[index].value
    return entries if value is None else with_value(shrink(value, lambda less: fails(with_value(less))))


def shrink(items: Items, fails: Callable[[Items], bool]) -> Items:
    """Remove as much as possible while `fails` holds: halves first, then ever smaller parts, down to one item."""
    halves = [len(items) >> shift for shift in range(1, len(items).bit_length())]
    for size in [size for size in halves if size > 12] + [*range(12, 0, -1)]:
        start = 0
        while start < len(items):
            fewer = items[:start] + items[start + size :]
            if fails(fewer):
                items = fewer
            else:
                start += size
    return items
