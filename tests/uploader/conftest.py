"""A run directory, and hypothesis without a clock: the machine may be busy."""

from pathlib import Path

import pytest
from hypothesis import settings

from uploader.layout import RunDirectory

settings.register_profile("uploader", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("uploader")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)
