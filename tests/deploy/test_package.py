"""The wheel and the source distribution: complete, typed, with metadata, and runnable as a module."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from trove_classifiers import classifiers

import streamdetect
from paths import ROOT
from tools import environment

VERSION = streamdetect.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source distribution, built by the build backend of pyproject.toml."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f"streamdetect-{VERSION}-py3-none-any.whl")


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"streamdetect-{VERSION}.dist-info/METADATA"))


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Modules, samples, templates and the py.typed marker; no tests or tools."""
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "streamdetect").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package
    assert {"streamdetect/py.typed", "streamdetect/__main__.py"} <= names


def test_metadata(wheel: zipfile.ZipFile, metadata: Message) -> None:
    """Links, known classifiers, license and the command."""
    urls = dict(str(line).split(", ", 1) for line in metadata.get_all("Project-URL", []))
    assert urls.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    declared = set(metadata.get_all("Classifier", []))
    assert declared <= set(classifiers)
    assert "Typing :: Typed" in declared
    assert metadata["License-Expression"] == "Apache-2.0"
    entries = wheel.read(f"streamdetect-{VERSION}.dist-info/entry_points.txt").decode()
    assert "streamdetect = streamdetect.cli:main" in entries


def test_the_wheel_runs_as_a_module(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """`python -m streamdetect` from the unpacked wheel runs the command."""
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "streamdetect", "--version"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"streamdetect, version {VERSION}\n"


def test_the_source_distribution_can_be_tested_and_documented(built: Path) -> None:
    """It has the tests, the docs and the files that they read."""
    with tarfile.open(built / f"streamdetect-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "Makefile",
        "mkdocs.yml",
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "LICENSE",
    }
    needed |= {"docs/api.md", "docs/overrides/site.css", "scripts/mkdocs_hooks.py", "streamdetect/py.typed"}
    needed |= {"tests/deploy/test_package.py", "benchmarks/results.md"}
    assert needed - names == set()
