"""The product equals the oracle of docs/semantics.md, byte for byte, on random data sets."""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import run

from oracle import replay, to_line
from strategies import DataSet, data_sets
from streamdetect.detect import tick_engine

EXAMPLES = int(os.environ.get("STREAMDETECT_EXAMPLES", "100"))
THOROUGH = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def compare(
    data_set: DataSet,
    rng: Random | None = None,
    saves: float = 0.0,
    checkpoints: float = 0.0,
    slices: float = 0.0,
) -> None:
    """The same alerts, byte for byte, and the same counts."""
    expected = replay(data_set.partitions, data_set.settings)
    found = run(data_set.partitions, data_set.settings, rng, saves, checkpoints, slices)
    assert found.lines == [to_line(alert) for alert in expected.alerts]
    assert (found.counted, found.filtered, found.late) == (
        expected.counted,
        expected.filtered_total,
        expected.late,
    )
    assert found.dead_lettered == expected.dead_lettered
    assert (found.detector.ticks, found.detector.suspect_leaps) == (expected.ticks, expected.suspect_leaps)


@THOROUGH
@given(data_sets())
def test_replay_equals_the_oracle(data_set: DataSet) -> None:
    """Files one after the other."""
    compare(data_set)


@THOROUGH
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_incremental_checkpoints_are_complete(data_set: DataSet, seed: int) -> None:
    """At random records only the changes are saved; sometimes a new detector continues from everything saved so far."""
    compare(data_set, Random(seed), checkpoints=0.1)


@THOROUGH
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_any_interleaving_and_any_save_equal_the_oracle(data_set: DataSet, seed: int) -> None:
    """Records with timestamps, interleaved at random; before some of them the state is saved and restored as text."""
    compare(data_set, Random(seed), saves=0.05)


@THOROUGH
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_ticks_in_slices_equal_the_oracle(data_set: DataSet, seed: int) -> None:
    """One key per slice with records in between, and sometimes a checkpoint with a new detector."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tick_engine, "_SLICE_KEYS", 1)
        compare(data_set, Random(seed), checkpoints=0.05, slices=0.8)
