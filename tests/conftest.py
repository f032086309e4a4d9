"""Fixtures: a real broker per test session (per worker under pytest-xdist). Tests that need it are never skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from broker import Broker
from paths import ROOT

LONGEST = (
    "end_to_end/test_failures.py",
    "parity/test_parity.py",
    "sources/test_kafka.py",
    "end_to_end/test_commands.py",
    "sinks/test_outages.py",
    "parity/test_oracle.py",
    "end_to_end/test_chaos.py",
    "service/live/test_commit.py",
    "deploy/test_image.py",
    "service/bounded/test_backtest.py",
    "service/inspect/test_explain.py",
)
"""The slowest test files, slowest first: a worker that started one of them last would delay the whole run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first; keep the order of the rest."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Restore the log levels that a command run inside the test process has set."""
    loggers = [logging.getLogger(name) for name in (None, "kafka")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The shared broker, plaintext only. Tests create their own topics and never stop it."""
    with Broker() as started:
        yield started


@pytest.fixture(scope="session")
def secure_broker() -> Iterator[Broker]:
    """A broker with every secure listener; started only when a test uses it."""
    with Broker(secure=True) as started:
        yield started


@pytest.fixture
def make_topic(broker: Broker) -> Callable[..., str]:
    """`make_topic(name=None, partitions=1, **configs)` creates a topic on the shared broker; returns its name."""
    return broker.make_topic
