"""One owner: two real processes of one group, and what becomes of the work when one of them goes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import chaos
import pytest
from chaos import Results, Shards, Stage, running

from broker import Broker

MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def shards() -> Shards:
    return chaos.made_up(seed=9, hours=6, hosts=8)


@pytest.fixture(scope="module")
def expected(broker: Broker, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return chaos.undisturbed(Stage(broker, tmp_path_factory.mktemp("calm")), shards)


@pytest.fixture
def stage(broker: Broker, tmp_path: Path, shards: Shards) -> Stage:
    """The first half of the records is there."""
    made = Stage(broker, tmp_path / "stage")
    made.write(chaos.slices(shards, 2)[0])
    return made


@pytest.mark.parametrize("shared", [True, False], ids=["shared directory", "own directory"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_standby_takes_over(
    stage: Stage, shards: Shards, expected: Results, shared: bool, end: signal.Signals
) -> None:
    """It reads nothing while the first works; then it goes on from the shared checkpoint, or rebuilds the state."""
    with running(stage) as first:
        first.wait_for("reading ")
        with running(stage, config=None if shared else stage.other_directory()) as second:
            second.wait_for("standing by")
            first.until_done()
            second.wait_for("is alive")
            assert "reading " not in second.said()
            first.signal(end)
            first.process.wait(chaos.WAIT_SECONDS)
            stage.write(chaos.slices(shards, 2)[1])
            second.finish()
            said = second.said()
    assert ("continuing from checkpoint" in said) is shared
    assert ("rebuilt: " in said) is not shared
    assert stage.results().difference(expected) == ""


def test_a_zombie_is_fenced(stage: Stage, shards: Shards, expected: Results) -> None:
    """A process that was stopped in the middle (SIGSTOP) and comes back after another took over ends with exit 6."""
    with running(stage) as first:
        first.wait_for("reading ")
        first.until_done()
        first.signal(signal.SIGSTOP)
        with running(stage) as second:
            second.wait_for("taking over")
            second.wait_for("reading ")
            stage.write(chaos.slices(shards, 2)[1])
            first.signal(signal.SIGCONT)
            said = first.end(expected=6)
            assert "taken over" in said
            second.finish()
    assert stage.results().difference(expected) == ""


def test_a_second_instance_refuses_if_told_so(stage: Stage) -> None:
    """Exit 6, and the first is not disturbed."""
    with running(stage) as first:
        first.wait_for("reading ")
        with running(
            stage, "--set", "kafka.second_instance=refuse", config=stage.other_directory()
        ) as second:
            assert "second_instance" in second.end(expected=6)
        first.finish()


def test_a_lost_directory_is_5_and_a_rebuild_goes_on(stage: Stage, shards: Shards, expected: Results) -> None:
    """The choices are named; --rebuild sends nothing again and loses nothing."""
    with running(stage) as process:
        process.finish()
    shutil.rmtree(stage.folder / "state")
    with running(stage) as process:
        said = process.end(expected=5)
    assert "--rebuild" in said
    assert "--reset-state" in said
    stage.write(chaos.slices(shards, 2)[1])
    with running(stage, "--rebuild") as process:
        process.finish()
    assert stage.results().difference(expected) == ""


def test_a_reset_sends_again_under_the_same_ids(stage: Stage) -> None:
    """--reset-state begins at kafka.start, whatever was there."""
    for arguments in ((), ("--reset-state",)):
        with running(stage, *arguments) as process:
            process.wait_for("reading ")
            process.finish()
    alerts = stage.results().alerts
    assert alerts[: len(alerts) // 2] == alerts[len(alerts) // 2 :]


def test_changed_settings_are_5(stage: Stage) -> None:
    """The message names the setting and the way on."""
    with running(stage) as process:
        process.finish()
    with running(stage, "--set", "rules.0.min_connections_per_hour=60") as process:
        said = process.end(expected=5)
    assert "min_connections_per_hour" in said
    assert "--reset-state" in said


def test_a_damaged_checkpoint_is_5(stage: Stage) -> None:
    """Never a silent fresh start."""
    with running(stage) as process:
        process.finish()
    (stage.folder / "state" / "state.sqlite3").write_bytes(b"rubbish")
    with running(stage) as process:
        assert "state.sqlite3" in process.end(expected=5)
