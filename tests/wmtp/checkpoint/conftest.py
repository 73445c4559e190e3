"""A run directory, and hypothesis without a clock: the machine may be busy."""

from pathlib import Path

import pytest
from hypothesis import settings

from uploader.layout import RunDirectory

settings.register_profile("checkpoint", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("checkpoint")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)
