"""The floor plan of docs/design.md: imports point down, rooms on one floor do not know each other, one door each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "streamdetect"
FLOORS = {
    "errors": 0,
    "model": 0,
    "remembered": 0,
    "config": 0,
    "detect": 1,
    "events": 2,
    "broker": 2,
    "findings": 2,
    "sources": 3,
    "sinks": 3,
    "checkpoint": 3,
    "estate": 3,
    "report": 3,
    "service": 4,
    "testing": 5,
    "api": 5,
    "cli": 5,
}
# On the ground floor, words come before settings.
GROUND = {"config": {"errors", "model"}, "model": set(), "errors": set(), "remembered": set()}
DOORS = {
    "kafka": {"broker", "sources", "sinks"},
    "confluent_kafka": {"sources"},
    "msgspec": {"events"},
    "orjson": {"events", "estate", "sinks", "checkpoint"},
    "sqlite3": {"checkpoint"},
    "sortedcontainers": {"detect"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "yaml": {"config"},
    "click": {"cli"},
    "rich": {"cli"},
    "prometheus_client": {"service"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "pygal": {"report"},
    "zstandard": {"sources", "sinks"},
    "isal": {"sources", "sinks"},
}
PURE_MUST_NOT = {"time", "datetime", "logging", "os", "io", "pathlib", "random", "socket", "threading", "sys"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room(path) != "__init__")


def test_every_room_has_a_floor() -> None:
    """A new room is put on a floor before it is used."""
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A room imports itself and rooms on lower floors, nothing else of the house."""
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "streamdetect" or len(parts) == 1 or parts[1] not in FLOORS or parts[1] == here:
            continue
        if FLOORS[here] == 0:
            assert parts[1] in GROUND[here], f"{here} imports {name}"
        else:
            assert FLOORS[parts[1]] < FLOORS[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_has_its_doors(path: Path) -> None:
    """A third-party library is imported only in the rooms that are its door."""
    for name in imports(path):
        library = name.split(".")[0]
        if library in DOORS:
            assert room(path) in DOORS[library], f"{room(path)} imports {library}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "detect").rglob("*.py")), ids=lambda path: path.name)
def test_detection_is_pure(path: Path) -> None:
    """detect/ knows no clock, file, network, thread or log."""
    assert not {name.split(".")[0] for name in imports(path)} & PURE_MUST_NOT


def test_each_package_opens_with_its_rule() -> None:
    """The docstring of a room says what belongs there."""
    for init in PACKAGE.glob("*/__init__.py"):
        assert len(ast.get_docstring(ast.parse(init.read_text())) or "") > 80, init
