"""Real processes against a real broker: killed in every gap of the commit protocol and at random, stopped, replaced."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import chaos
import pytest
from chaos import Process, Results, Shards, Stage, running

from broker import Broker
from paths import ROOT

DRIVER = str(ROOT / "tests" / "support" / "crash_driver.py")

MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def shards() -> Shards:
    return chaos.made_up(seed=5, hours=6, hosts=8)


@pytest.fixture(scope="module")
def expected(broker: Broker, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The answer of a run that nobody disturbs."""
    results = chaos.undisturbed(Stage(broker, tmp_path_factory.mktemp("calm")), shards)
    assert len(results.alerts) > 10
    assert len(results.dead_letters) > 10
    return results


@pytest.fixture
def make_stage(broker: Broker, tmp_path: Path) -> MakeStage:
    return lambda **chosen: Stage(broker, tmp_path / "stage", **chosen)


def without_values(results: Results) -> list[tuple[str, ...]]:
    """Dead letters as a file tells them too."""
    return [dead_letter[:3] for dead_letter in results.dead_letters]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sinks", [("kafka", "file"), ("file", "kafka")], ids=["alerts-kafka", "alerts-file"])
def test_a_kill_in_each_gap(
    make_stage: MakeStage, shards: Shards, expected: Results, step: int, sinks: tuple[str, str]
) -> None:
    """After step 1, 2, 3, 4, 5 of the second checkpoint with something in it, for either kind of sink: the same
    bytes.
    """
    stage = make_stage(alerts=sinks[0], dead_letters=sinks[1])
    stage.write(shards)
    dies = Process(stage, driver=[DRIVER, str(step), "3"])
    assert dies.process.wait(chaos.WAIT_SECONDS) == -signal.SIGKILL, dies.said()
    with running(stage) as process:
        process.finish()
    found = stage.results()
    assert found.alerts == expected.alerts
    assert without_values(found) == without_values(expected)


@pytest.mark.parametrize("sink", ["kafka", "file"])
def test_kills_at_random_moments(make_stage: MakeStage, shards: Shards, expected: Results, sink: str) -> None:
    """The short form of `make chaos`."""
    stage = make_stage(alerts=sink)
    assert chaos.killed_at_random(stage, shards, 8, Random(sink)).difference(expected) == ""


def test_sigterm_at_any_moment_is_a_clean_end(
    make_stage: MakeStage, shards: Shards, expected: Results
) -> None:
    """During start, restore and checkpoints: exit 0, nothing lost; the next one need not wait.

    Before it has loaded the program the signal ends it as it ends any process, and nothing was begun.
    """
    stage, rng = make_stage(), Random(3)
    for piece in chaos.slices(shards, 6):
        stage.write(piece)
        with running(stage) as process:
            try:
                process.process.wait(rng.uniform(0.5, 3.0))
            except subprocess.TimeoutExpired:
                process.signal(signal.SIGTERM)
            if process.process.wait(chaos.WAIT_SECONDS) == -signal.SIGTERM:
                assert process.said() == ""
            else:
                process.end()
    with running(stage) as process:
        process.finish()
    assert stage.results().difference(expected) == ""
