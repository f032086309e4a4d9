"""Kills `streamdetect run` at random moments, and compares what Kafka holds in the end with an undisturbed run.

    python scripts/run_chaos.py [--kills 200] [--seed 1] [--sink kafka|file]

Starts a broker of its own (Java and Kafka come with pip: the `test` extra). Exit 1 if an alert or dead letter was lost,
doubled or differs by a byte.
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
    parser.add_argument("--kills", type=int, default=200, help="how often the process is killed [200]")
    parser.add_argument("--seed", type=int, default=1, help="of the data and the moments [1]")
    parser.add_argument("--sink", choices=["kafka", "file"], default="kafka", help="where alerts go [kafka]")
    asked = parser.parse_args()
    shards = chaos.made_up(asked.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamdetect-chaos-") as folder, Broker() as broker:
        calm = chaos.Stage(broker, Path(folder) / "calm", alerts=asked.sink)
        expected = chaos.undisturbed(calm, shards)
        print(
            f"undisturbed: {len(expected.alerts)} alerts, {len(expected.dead_letters)} dead letters",
            flush=True,
        )
        wild = chaos.Stage(broker, Path(folder) / "wild", alerts=asked.sink)

        def tell(number: int, seconds: float) -> None:
            if number % 10 == 0:
                print(f"{number} kills, the last after {seconds:.2f} s", flush=True)

        found = chaos.killed_at_random(wild, shards, asked.kills, Random(asked.seed), tell)  # noqa: S311 - moments, no secrets
    difference = found.difference(expected)
    seconds = time.monotonic() - started
    print(
        f"{asked.kills} kills in {seconds:.0f} s: {difference or 'nothing lost, nothing doubled, the same bytes'}"
    )
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
