"""Real processes and a real broker: killed after every step of the commit protocol and at random, and stopped."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import chaos
import pytest
from chaos import Results, RunProcess, Sandbox, Shards, running

from broker import Broker
from paths import ROOT

DRIVER = str(ROOT / "tests" / "support" / "crash_driver.py")

MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def shards() -> Shards:
    return chaos.synthetic_shards(seed=5, hours=6, hosts=8)


@pytest.fixture(scope="module")
def expected(broker: Broker, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of an undisturbed run."""
    results = chaos.undisturbed(Sandbox(broker, tmp_path_factory.mktemp("undisturbed")), shards)
    assert len(results.alerts) > 10
    assert len(results.dead_letters) > 10
    return results


@pytest.fixture
def make_sandbox(broker: Broker, tmp_path: Path) -> MakeSandbox:
    return lambda **chosen: Sandbox(broker, tmp_path / "sandbox", **chosen)


def without_values(results: Results) -> list[tuple[str, ...]]:
    """Dead letters without the value, which those from a file do not have."""
    return [dead_letter[:3] for dead_letter in results.dead_letters]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sinks", [("kafka", "file"), ("file", "kafka")], ids=["alerts-kafka", "alerts-file"])
def test_a_kill_in_each_gap(
    make_sandbox: MakeSandbox, shards: Shards, expected: Results, step: int, sinks: tuple[str, str]
) -> None:
    """After step 1, 2, 3, 4, 5 of the third checkpoint (the first is empty), for each kind of sink: the same bytes."""
    sandbox = make_sandbox(alerts=sinks[0], dead_letters=sinks[1])
    sandbox.write(shards)
    killed = RunProcess(sandbox, driver=[DRIVER, str(step), "3"])
    assert killed.process.wait(chaos.WAIT_SECONDS) == -signal.SIGKILL, killed.output()
    with running(sandbox) as process:
        process.finish()
    found = sandbox.results()
    assert found.alerts == expected.alerts
    assert without_values(found) == without_values(expected)


@pytest.mark.parametrize("sink", ["kafka", "file"])
def test_kills_at_random_moments(
    make_sandbox: MakeSandbox, shards: Shards, expected: Results, sink: str
) -> None:
    """A short `make chaos`."""
    sandbox = make_sandbox(alerts=sink)
    assert chaos.run_with_random_kills(sandbox, shards, 8, Random(sink)).difference(expected) == ""


def test_sigterm_at_any_moment_is_a_clean_end(
    make_sandbox: MakeSandbox, shards: Shards, expected: Results
) -> None:
    """SIGTERM during start, restore and checkpoints: exit code 0, nothing lost, no wait at the next start.

    Before the program is loaded the signal ends the process immediately, and no work has begun.
    """
    sandbox, rng = make_sandbox(), Random(3)
    for piece in chaos.slices(shards, 6):
        sandbox.write(piece)
        with running(sandbox) as process:
            try:
                process.process.wait(rng.uniform(0.5, 3.0))
            except subprocess.TimeoutExpired:
                process.signal(signal.SIGTERM)
            if process.process.wait(chaos.WAIT_SECONDS) == -signal.SIGTERM:
                assert process.output() == ""
            else:
                process.wait_for_exit()
    with running(sandbox) as process:
        process.finish()
    assert sandbox.results().difference(expected) == ""
