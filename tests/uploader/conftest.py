"""A run directory."""

from pathlib import Path

import pytest

from uploader.layout import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)
