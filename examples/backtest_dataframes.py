"""Backtest three rates over the same files, and look at the result as data frames.

python examples/backtest_dataframes.py PATH...    (needs pandas or polars)
"""

import sys

import streamdetect

try:
    from pandas import DataFrame
except ImportError:
    from polars import DataFrame


def main(paths: list[str]) -> int:
    result = streamdetect.backtest(paths, vary={"min_connections_per_hour": [60, 90, 120]}, near=5)
    variants = DataFrame(result.variants)
    print(variants[["variant", "episodes", "hosts"]])
    episodes = DataFrame(result.episodes)
    print(episodes[["variant", "destination", "number_of_con_per_hour"]])
    print(DataFrame(result.near)[["destination", "process", "nearness"]])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
