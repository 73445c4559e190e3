"""Runs to look at. Every test has a working directory of its own: no config of the project is read."""

from pathlib import Path

import pytest
from cli_runs import Run

from uploader.location import Location
from uploader.settings import StorageSettings


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose trainer has just started; its store is another directory."""
    made = Run(tmp_path / "ckpt" / "demo", Location("", str(tmp_path / "store" / "demo")), StorageSettings())
    made.start()
    return made


@pytest.fixture
def in_place(tmp_path: Path) -> Run:
    """A run whose directory is its store."""
    path = tmp_path / "checkpoints" / "demo"
    made = Run(path, Location("", str(path)), StorageSettings())
    made.start()
    return made
