"""A replay with workers against a replay without: the same alerts, summary and dead letters."""

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
from worker_pools import RandomOrderPool, source_of

EXAMPLES = int(os.environ.get("STREAMDETECT_EXAMPLES", "20"))

Result = tuple[list[bytes], dict[str, Any], dict[Partition, list[DeadLetter]]]


def result_of(source: Source, own: Settings, **parallel: Any) -> Result:
    """Alerts, the summary without its seconds, and each partition's dead letters."""
    alerts, dead_letters = MemoryAlertSink(), MemoryDeadLetterSink()
    run = replay if parallel else run_replay
    summary = run(settings=own, source=source, alert_sink=alerts, dead_letter_sink=dead_letters, **parallel)
    by_partition: dict[Partition, list[DeadLetter]] = {}
    for dead_letter in dead_letters.dead_letters:
        by_partition.setdefault(dead_letter.record.partition, []).append(dead_letter)
    return [alert.body for alert in alerts.alerts], {**summary.as_dict(), "seconds": 0}, by_partition


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.sampled_from([None, 1, 3]), st.randoms(use_true_random=False))
def test_parallel_workers_give_the_result_of_one_process(
    data: DataSet, max_keys: int | None, rng: Random
) -> None:
    """Whichever worker reads a partition, and whenever results arrive: the same result, with evictions too."""
    own = settings_from(data.settings)
    if max_keys is not None:
        own = own.model_copy(update={"limits": own.limits.model_copy(update={"max_keys": max_keys})})
    expected = result_of(source_of(data.partitions), own)
    parallel = result_of(
        source_of(data.partitions),
        own,
        jobs=3,
        create_pool=lambda groups, jobs: RandomOrderPool(groups, jobs, rng),
    )
    assert parallel == expected


def days(folder: Path) -> list[Path]:
    """Three files of three successive hours each; one is compressed, and every 500th record is not JSON."""
    beacons = (Beacon(25_000, 5_000),)
    plan = Scenario(hosts=40, hours=9, beacons=beacons, seed=5, shape="mixed")
    by_file: list[list[bytes]] = [[], [], []]
    for number, line in enumerate(lines(plan)):
        hour = int(json.loads(line)["@timestamp"][11:13]) if b'"@timestamp"' in line else 0
        by_file[min(2, hour // 3)].append(b"{\n" if number % 500 == 0 else line)
    paths = [folder / "0.jsonl", folder / "1.jsonl.gz", folder / "2.jsonl"]
    for path, content in zip(paths, by_file, strict=True):
        raw = b"".join(content)
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return paths


def read_files(paths: Sequence[Path], jobs: int) -> Result:
    with closing(FileSource([str(path) for path in paths])) as source:
        result = result_of(source, Settings(), jobs=jobs)
        assert source.progress() == (sum(path.stat().st_size for path in paths),) * 2
    return result


def test_workers_read_files_themselves(tmp_path: Path) -> None:
    """Worker processes give the result of one process, and report how much of the files they have read."""
    paths = days(tmp_path)
    parallel = read_files(paths, jobs=2)
    assert parallel == read_files(paths, jobs=1)
    assert parallel[0]
    assert parallel[1]["dead_lettered"]["not_json"] > 10


def test_a_damaged_file_ends_the_replay_after_its_readable_records(tmp_path: Path) -> None:
    """A truncated gzip file: an error that names it, after its worker has delivered the records before that."""
    paths = days(tmp_path)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    dead_letters = MemoryDeadLetterSink()
    with (
        closing(FileSource([str(path) for path in paths])) as source,
        pytest.raises(InputError, match=r"1\.jsonl\.gz"),
    ):
        replay(
            settings=Settings(),
            source=source,
            alert_sink=MemoryAlertSink(),
            dead_letter_sink=dead_letters,
            jobs=3,
        )
    assert {dead_letter.record.partition.topic for dead_letter in dead_letters.dead_letters} >= {
        str(paths[1])
    }


def test_the_number_of_workers_fits_the_input(tmp_path: Path) -> None:
    """At most one worker per partition; by default none for small input and one per core for large input."""
    for number in range(300):
        (tmp_path / f"{number}.jsonl").touch()
    cores = len(os.sched_getaffinity(0))
    with closing(FileSource([str(tmp_path)])) as source:
        assert [jobs_for(wanted, source, 10**9) for wanted in (1, 7, 500)] == [1, 7, 300]
        assert [jobs_for(None, source, size) for size in (23_999_999, 24_000_000, None)] == [1, cores, cores]
