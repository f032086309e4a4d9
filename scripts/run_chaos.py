"""Kills `streamdetect run` at random times and compares the final content of Kafka with an undisturbed run.

    python scripts/run_chaos.py [--kills 200] [--seed 1] [--sink kafka|file]

Starts its own broker (Java and Kafka are installed with the `test` extra). Exit code 1 if an alert or dead letter is
lost, duplicated or differs by a byte.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import chaos

from broker import Broker


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="number of kills [200]")
    parser.add_argument("--seed", type=int, default=1, help="seed of the data and the times [1]")
    parser.add_argument("--sink", choices=["kafka", "file"], default="kafka", help="where alerts go [kafka]")
    options = parser.parse_args()
    shards = chaos.synthetic_shards(options.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamdetect-chaos-") as folder, Broker() as broker:
        undisturbed = chaos.Sandbox(broker, Path(folder) / "undisturbed", alerts=options.sink)
        expected = chaos.undisturbed(undisturbed, shards)
        print(
            f"undisturbed: {len(expected.alerts)} alerts, {len(expected.dead_letters)} dead letters",
            flush=True,
        )
        killed = chaos.Sandbox(broker, Path(folder) / "killed", alerts=options.sink)

        def report(number: int, seconds: float) -> None:
            if number % 10 == 0:
                print(f"{number} kills, the last after {seconds:.2f} s", flush=True)

        found = chaos.run_with_random_kills(killed, shards, options.kills, Random(options.seed), report)  # noqa: S311 - not for secrets
    difference = found.difference(expected)
    seconds = time.monotonic() - started
    print(
        f"{options.kills} kills in {seconds:.0f} s: {difference or 'nothing lost, nothing duplicated, the same bytes'}"
    )
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
