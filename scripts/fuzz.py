"""Feeds mutated and random records to the decoder and the detector until a number of records or a fault is reached.

    python scripts/fuzz.py [--records 1000000] [--seed N]

The mutations and checks are in tests/support/fuzz_*.py. The same seed gives the same records. Exit code 1 is a fault:
the records that cause it are shrunk and printed in hexadecimal.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("tests/support", "")]

from fuzzing import Failure, Tally, fuzz  # noqa: E402 - found by the path above


def main() -> int:
    """Run the fuzzer and return the exit code: 1 for a fault."""
    parser = argparse.ArgumentParser(description="Feed mutated and random records to decoder and detector.")
    parser.add_argument(
        "--records",
        type=int,
        default=1_000_000,
        help="number of mutated and random records; valid ones are added [%(default)s]",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the random generator [%(default)s]")
    options = parser.parse_args()
    started = time.monotonic()

    def progress(tally: Tally) -> None:
        if sys.stderr.isatty():
            end = "\r" if tally.records < options.records else "\n"
            print(f"{tally.records:,} records", end=end, file=sys.stderr, flush=True)

    tally, failure = fuzz(options.records, options.seed, progress)
    print(summary(tally, options.seed, time.monotonic() - started), flush=True)
    if failure is None:
        return 0
    print(report(failure), file=sys.stderr)
    return 1


def summary(tally: Tally, seed: int, seconds: float) -> str:
    """Records and their outcomes by profile."""
    rate = tally.records / seconds
    lines = [
        f"seed {seed}: {tally.records:,} mutated or random records and {tally.valid:,} valid ones in each profile,",
        f"state saved and restored {tally.saves:,} times; {seconds:.0f} s, {rate:,.0f} records a second",
    ]
    for profile, counts in tally.verdicts.items():
        lines.append(f"{profile}:")
        lines += [f"  {name:32}{count:>12,}" for name, count in sorted(counts.items())]
    return "\n".join(lines)


def report(failure: Failure) -> str:
    """The fault, the options of the round, and the records that cause it."""
    options = failure.options
    lines = [f"FAULT in round {failure.number}, {options}: {failure.fault}", "records (hexadecimal):"]
    for entry in failure.entries:
        value = "null" if entry.value is None else entry.value.hex()
        lines.append(f"  partition {entry.partition}, timestamp {entry.timestamp_ms}: {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable()  # rounds with a low key limit warn of evictions
    sys.exit(main())
