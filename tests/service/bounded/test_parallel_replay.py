"""A replay by several readers against the replay of one: the same alerts, numbers and dead letters."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import settings_from
from teams import SideBySide, source_of

from strategies import DataSet, data_sets
from streamdetect.config import Settings
from streamdetect.errors import InputError
from streamdetect.model import DeadLetter, Partition
from streamdetect.service.bounded.parallel_replay import jobs_for, replay
from streamdetect.service.bounded.replay import run_replay
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource
from streamdetect.synthetic import Beacon, Scenario, lines
from streamdetect.testing import MemoryAlertSink, MemoryDeadLetterSink

EXAMPLES = int(os.environ.get("STREAMDETECT_EXAMPLES", "20"))

Answer = tuple[list[bytes], dict[str, Any], dict[Partition, list[DeadLetter]]]


def answer(source: Source, own: Settings, **how: Any) -> Answer:
    """Alerts, the summary without its seconds, and each partition's dead letters."""
    alerts, letters = MemoryAlertSink(), MemoryDeadLetterSink()
    run = replay if how else run_replay
    summary = run(settings=own, source=source, alert_sink=alerts, dead_letter_sink=letters, **how)
    by_partition: dict[Partition, list[DeadLetter]] = {}
    for letter in letters.letters:
        by_partition.setdefault(letter.record.partition, []).append(letter)
    return [alert.body for alert in alerts.alerts], {**summary.as_dict(), "seconds": 0}, by_partition


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.sampled_from([None, 1, 3]), st.randoms(use_true_random=False))
def test_readers_side_by_side_give_what_one_gives(data: DataSet, max_keys: int | None, rng: Random) -> None:
    """Whoever reads which partition and reports when: the same answer, also where keys have to go."""
    own = settings_from(data.settings)
    if max_keys is not None:
        own = own.model_copy(update={"limits": own.limits.model_copy(update={"max_keys": max_keys})})
    expected = answer(source_of(data.partitions), own)
    together = answer(
        source_of(data.partitions), own, jobs=3, pool_for=lambda stems, jobs: SideBySide(stems, jobs, rng)
    )
    assert together == expected


def days(folder: Path) -> list[Path]:
    """Three files of three hours each, one after the other; one is compressed, and every 500th record is no JSON."""
    beacons = (Beacon(25_000, 5_000),)
    plan = Scenario(hosts=40, hours=9, beacons=beacons, seed=5, shape="mixed")
    found: list[list[bytes]] = [[], [], []]
    for number, line in enumerate(lines(plan)):
        hour = int(json.loads(line)["@timestamp"][11:13]) if b'"@timestamp"' in line else 0
        found[min(2, hour // 3)].append(b"{\n" if number % 500 == 0 else line)
    paths = [folder / "0.jsonl", folder / "1.jsonl.gz", folder / "2.jsonl"]
    for path, some in zip(paths, found, strict=True):
        raw = b"".join(some)
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return paths


def read_files(paths: Sequence[Path], jobs: int) -> Answer:
    with closing(FileSource([str(path) for path in paths])) as source:
        found = answer(source, Settings(), jobs=jobs)
        assert source.progress() == (sum(path.stat().st_size for path in paths),) * 2
    return found


def test_workers_read_files_themselves(tmp_path: Path) -> None:
    """Real processes give what one process gives, and tell how much of the files they have read."""
    paths = days(tmp_path)
    together = read_files(paths, jobs=2)
    assert together == read_files(paths, jobs=1)
    assert together[0]
    assert together[1]["dead_lettered"]["not_json"] > 10


def test_a_damaged_file_ends_the_replay_after_what_was_before(tmp_path: Path) -> None:
    """A gzip file that breaks off: an error that names it, and what its worker read before has been handed on."""
    paths = days(tmp_path)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    letters = MemoryDeadLetterSink()
    with (
        closing(FileSource([str(path) for path in paths])) as source,
        pytest.raises(InputError, match=r"1\.jsonl\.gz"),
    ):
        replay(
            settings=Settings(),
            source=source,
            alert_sink=MemoryAlertSink(),
            dead_letter_sink=letters,
            jobs=3,
        )
    assert {letter.record.partition.topic for letter in letters.letters} >= {str(paths[1])}


def test_no_more_workers_than_pay(tmp_path: Path) -> None:
    """At most one a partition; by themselves none for small input, and one for each core for what is large."""
    for number in range(300):
        (tmp_path / f"{number}.jsonl").touch()
    cores = len(os.sched_getaffinity(0))
    with closing(FileSource([str(tmp_path)])) as source:
        assert [jobs_for(wanted, source, 10**9) for wanted in (1, 7, 500)] == [1, 7, 300]
        assert [jobs_for(None, source, size) for size in (23_999_999, 24_000_000, None)] == [1, cores, cores]
