"""Checks of the layout in docs/design.md: imports point down, no module cycles, one door for each library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "streamdetect"
FLOORS = {
    "errors": 0,
    "model": 0,
    "cache": 0,
    "config": 0,
    "detect": 1,
    "events": 2,
    "broker": 2,
    "findings": 2,
    "sources": 3,
    "sinks": 3,
    "checkpoint": 3,
    "synthetic": 3,
    "report": 3,
    "service": 4,
    "testing": 5,
    "api": 5,
    "cli": 5,
    "__main__": 6,
}
GROUND = {"config": {"errors", "model"}, "model": set(), "errors": set(), "cache": set()}
"""On the ground floor, `config` may import `model` and `errors`."""
WINGS: dict[str, set[str]] = {
    "live": set(),
    "bounded": set(),
    "inspect": {"bounded", "live"},
    "status": {"live"},
}
"""Wings of `service/`, and the other wings that each may import."""
DOORS = {
    "kafka": {"broker", "sources", "sinks"},
    "confluent_kafka": {"sources"},
    "msgspec": {"events"},
    "orjson": {"events", "synthetic", "checkpoint"},
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
    "isal": {"sources"},
}
PURE_MUST_NOT = {"time", "datetime", "logging", "os", "io", "pathlib", "random", "socket", "threading", "sys"}


def module_name(path: Path) -> str:
    """Dotted name, like `streamdetect.detect.engine`; an `__init__` file has the name of its package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def wing(path: Path) -> str | None:
    """The wing of a module of `service/`, None for a module at its top level."""
    parts = path.relative_to(PACKAGE).parts
    return parts[1] if parts[0] == "service" and len(parts) == 3 else None


def imports(path: Path) -> Iterator[str]:
    """Every name that a file imports, at any level, including type-checking blocks."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ALL_FILES = sorted(PACKAGE.rglob("*.py"))
FILES = [path for path in ALL_FILES if room(path) != "__init__"]
MODULES = {module_name(path) for path in ALL_FILES}


def test_every_room_has_a_floor() -> None:
    """Each module or package at the top level is listed in FLOORS."""
    assert {room(path) for path in FILES} - {"__main__"} == set(FLOORS) - {"__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A room imports only itself and rooms on lower floors."""
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "streamdetect" or len(parts) == 1 or parts[1] not in FLOORS or parts[1] == here:
            continue
        if FLOORS[here] == 0:
            assert parts[1] in GROUND[here], f"{here} imports {name}"
        else:
            assert FLOORS[parts[1]] < FLOORS[here], f"{here} imports {name}"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if room(path) == "service"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_wings_import_only_allowed_wings(path: Path) -> None:
    """A wing of `service/` imports itself, the top level of `service/`, and the wings that WINGS lists for it."""
    here = wing(path)
    allowed = set() if here is None else {here} | WINGS[here]
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["streamdetect", "service"] and len(parts) > 2 and parts[2] in WINGS:
            assert parts[2] in allowed, f"{path.relative_to(PACKAGE)} imports {name}"


def test_no_module_cycles() -> None:
    """No two modules import each other, directly or indirectly; type-checking blocks count too."""
    graph = {
        module_name(path): {name for name in imports(path) if name in MODULES and name != "streamdetect"}
        - {module_name(path)}
        for path in ALL_FILES
        if path.name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library: str) -> None:
    """A third-party library is imported in each room that is its door, and in no other."""
    users = {room(path) for path in FILES if library in {name.split(".")[0] for name in imports(path)}}
    assert users == DOORS[library]


@pytest.mark.parametrize("path", sorted((PACKAGE / "detect").rglob("*.py")), ids=lambda path: path.name)
def test_detection_is_pure(path: Path) -> None:
    """detect/ imports no clock, file, network, thread or log module."""
    assert not {name.split(".")[0] for name in imports(path)} & PURE_MUST_NOT


def test_each_package_docstring_states_its_rule() -> None:
    """The docstring of a room or wing says what belongs in it."""
    for init in PACKAGE.glob("*/**/__init__.py"):
        assert len(ast.get_docstring(ast.parse(init.read_text())) or "") > 80, init


LIBRARY_NAMES = {"kafka": "kafka-python", "confluent_kafka": "confluent-kafka", "yaml": "PyYAML"}
"""Library names in docs/design.md that differ from the module name by more than `-` for `_`."""


def design_rows() -> list[tuple[int, list[str], str]]:
    """(floor, rooms, libraries) of each row of the table in docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## The house")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:2] == "| "
    ]
    return [
        (int(floor), [name.strip("`/ ") for name in rooms.split(",")], doors)
        for floor, rooms, _, doors in (row for row in rows if len(row) == 4 and row[0].isdigit())
    ]


def test_the_design_page_matches() -> None:
    """The table of docs/design.md has each room on its floor and each library in the row of each of its doors."""
    drawn = {room: floor for floor, rooms, _ in design_rows() for room in rooms}
    assert drawn == {room: floor for room, floor in FLOORS.items() if room != "__main__"}
    for library, rooms in DOORS.items():
        name = LIBRARY_NAMES.get(library, library.replace("_", "-"))
        shown = {room for _, row_rooms, doors in design_rows() if name in doors for room in row_rooms}
        assert library == "pydantic_core" or rooms <= shown, f"{name} is missing in a row of {rooms}"
