"""A run directory, and labs to run in (see ``real_runs``)."""

from pathlib import Path

import pytest
from real_runs import lab

from uploader.layout import RunDirectory

__all__ = ["lab"]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)
