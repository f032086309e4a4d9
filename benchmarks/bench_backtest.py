"""Backtests of 20 variants against plain replays of the same file, with and without worker processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from common import measure_in_turns, pin, table, write_records

from streamdetect.config import NamedSettings, Settings, varied
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.bounded.variant_replay import ReplayOptions, run_backtest
from streamdetect.sinks.files import NullSink
from streamdetect.sources.files import FileSource

COUNT = 300_000
HOSTS = 400
FILES = 4
THRESHOLDS = varied(
    None, vary=["min_connections_per_hour=30,60,90,120,240", "max_hosts=1,2", "min_duration_hours=2,4"]
)
NETWORKS = varied(
    None, vary=["extra_excluded_networks=" + ",".join(f"[{first}.0.0.0/8]" for first in range(60, 79))]
)


def replay(paths: Sequence[Path]) -> None:
    settings = Settings()
    with closing(FileSource(list(map(str, paths)))) as source:
        run_replay(settings=settings, source=source, alert_sink=NullSink(), dead_letter_sink=NullSink())


def backtest(paths: Sequence[Path], variants: Sequence[NamedSettings], jobs: int = 1) -> None:
    with closing(FileSource(list(map(str, paths)))) as source:
        run_backtest(variants=variants, source=source, options=ReplayOptions(jobs=jobs))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "day.jsonl"
        write_records(whole, COUNT, "defend", HOSTS)
        pieces = _split(whole, Path(folder))
        both = measure_in_turns(
            {
                "replay": lambda: replay(pieces),
                "20 variants, in process": lambda: backtest(pieces, THRESHOLDS[:20]),
                "20 variants, 2 workers": lambda: backtest(pieces, THRESHOLDS[:20], jobs=2),
            },
            clock=time.monotonic,
        )
        core = pin()
        one = measure_in_turns(
            {
                "replay": lambda: replay([whole]),
                "base only": lambda: backtest([whole], THRESHOLDS[:1]),
                "20 variants of thresholds": lambda: backtest([whole], THRESHOLDS[:20]),
                "20 variants of networks": lambda: backtest([whole], NETWORKS[:20]),
            }
        )
    table(
        f"{COUNT:,} records, one core ({core}), CPU seconds",
        ("", "cost", "records/s", "CPU s"),
        [
            (name, f"{took / one['replay']:.2f}x", f"{COUNT / took:,.0f}", f"{took:.2f}")
            for name, took in one.items()
        ],
    )
    table(
        f"the same records in {FILES} files, both cores, wall clock seconds",
        ("", "cost", "records/s", "s"),
        [
            (name, f"{took / both['replay']:.2f}x", f"{COUNT / took:,.0f}", f"{took:.2f}")
            for name, took in both.items()
        ],
    )


def _split(path: Path, folder: Path) -> list[Path]:
    """The same records, distributed over several files in turn."""
    files = [folder / f"piece-{number}.jsonl" for number in range(FILES)]
    streams = [file.open("wb") for file in files]
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            streams[number % FILES].write(line)
    for out in streams:
        out.close()
    return files


if __name__ == "__main__":
    main()
