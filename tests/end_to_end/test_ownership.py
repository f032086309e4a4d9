"""Ownership: two real processes of one consumer group, and a takeover when one of them ends."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import chaos
import pytest
from chaos import Results, Sandbox, Shards, running

from broker import Broker

MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def shards() -> Shards:
    return chaos.synthetic_shards(seed=9, hours=6, hosts=8)


@pytest.fixture(scope="module")
def expected(broker: Broker, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return chaos.undisturbed(Sandbox(broker, tmp_path_factory.mktemp("undisturbed")), shards)


@pytest.fixture
def sandbox(broker: Broker, tmp_path: Path, shards: Shards) -> Sandbox:
    """A sandbox with the first half of the records."""
    sandbox = Sandbox(broker, tmp_path / "sandbox")
    sandbox.write(chaos.slices(shards, 2)[0])
    return sandbox


@pytest.mark.parametrize("shared", [True, False], ids=["shared directory", "own directory"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_standby_takes_over(
    sandbox: Sandbox, shards: Shards, expected: Results, shared: bool, end: signal.Signals
) -> None:
    """It reads nothing while the first is alive; then continues from the shared checkpoint, or rebuilds the state."""
    with running(sandbox) as first:
        first.wait_for_log("reading ")
        with running(sandbox, config=None if shared else sandbox.other_directory()) as second:
            second.wait_for_log("standing by")
            first.wait_until_caught_up()
            second.wait_for_log("is alive")
            assert "reading " not in second.output()
            first.signal(end)
            first.process.wait(chaos.WAIT_SECONDS)
            sandbox.write(chaos.slices(shards, 2)[1])
            second.finish()
            output = second.output()
    assert ("continuing from checkpoint" in output) is shared
    assert ("rebuilt: " in output) is not shared
    assert sandbox.results().difference(expected) == ""


def test_a_zombie_is_fenced(sandbox: Sandbox, shards: Shards, expected: Results) -> None:
    """A process that is suspended (SIGSTOP) and resumes after a takeover ends with exit code 6."""
    with running(sandbox) as first:
        first.wait_for_log("reading ")
        first.wait_until_caught_up()
        first.signal(signal.SIGSTOP)
        with running(sandbox) as second:
            second.wait_for_log("taking over")
            second.wait_for_log("reading ")
            sandbox.write(chaos.slices(shards, 2)[1])
            first.signal(signal.SIGCONT)
            output = first.wait_for_exit(expected=6)
            assert "taken over" in output
            second.finish()
    assert sandbox.results().difference(expected) == ""


def test_a_second_instance_ends_if_it_must_not_stand_by(sandbox: Sandbox) -> None:
    """Exit code 6, and the first instance is not affected."""
    with running(sandbox) as first:
        first.wait_for_log("reading ")
        with running(
            sandbox, "--set", "kafka.second_instance=refuse", config=sandbox.other_directory()
        ) as second:
            assert "second_instance" in second.wait_for_exit(expected=6)
        first.finish()


def test_a_lost_directory_is_5_and_a_rebuild_continues(
    sandbox: Sandbox, shards: Shards, expected: Results
) -> None:
    """The message names the choices; --rebuild neither loses nor duplicates anything."""
    with running(sandbox) as process:
        process.finish()
    shutil.rmtree(sandbox.folder / "state")
    with running(sandbox) as process:
        output = process.wait_for_exit(expected=5)
    assert "--rebuild" in output
    assert "--reset-state" in output
    sandbox.write(chaos.slices(shards, 2)[1])
    with running(sandbox, "--rebuild") as process:
        process.finish()
    assert sandbox.results().difference(expected) == ""


def test_a_reset_publishes_again_under_the_same_ids(sandbox: Sandbox) -> None:
    """--reset-state starts at kafka.start, whatever the checkpoint contains."""
    for arguments in ((), ("--reset-state",)):
        with running(sandbox, *arguments) as process:
            process.wait_for_log("reading ")
            process.finish()
    alerts = sandbox.results().alerts
    assert alerts[: len(alerts) // 2] == alerts[len(alerts) // 2 :]


def test_changed_settings_are_5(sandbox: Sandbox) -> None:
    """The message names the setting and what to do."""
    with running(sandbox) as process:
        process.finish()
    with running(sandbox, "--set", "rules.0.min_connections_per_hour=60") as process:
        output = process.wait_for_exit(expected=5)
    assert "min_connections_per_hour" in output
    assert "--reset-state" in output


def test_a_damaged_checkpoint_is_5(sandbox: Sandbox) -> None:
    """Never a silent fresh start."""
    with running(sandbox) as process:
        process.finish()
    (sandbox.folder / "state" / "state.sqlite3").write_bytes(b"rubbish")
    with running(sandbox) as process:
        assert "state.sqlite3" in process.wait_for_exit(expected=5)
