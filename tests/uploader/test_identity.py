"""A run directory is known again, and told from every other and from its copy."""

import shutil
from pathlib import Path

import pytest

from uploader.identity import identity
from uploader.layout import RunDirectory


def test_it_stays_and_is_its_own(tmp_path: Path, directory: RunDirectory) -> None:
    other = RunDirectory(tmp_path / "other")
    other.path.mkdir()
    assert identity(directory) == identity(directory)
    assert identity(other) != identity(directory)


def test_a_directory_that_moved_is_the_same_and_a_copy_is_not(
    tmp_path: Path, directory: RunDirectory
) -> None:
    name = identity(directory)
    directory.path.rename(tmp_path / "moved")
    assert identity(RunDirectory(tmp_path / "moved")) == name
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert identity(RunDirectory(tmp_path / "copy")) != name


@pytest.mark.parametrize("data", [b"", b"\0" * 33, b"0123\n", b"g" * 32 + b"\n"])
def test_one_that_cannot_be_read_is_made_anew(directory: RunDirectory, data: bytes) -> None:
    name = identity(directory)
    directory.identity_file.write_bytes(data)
    assert identity(directory) != name
    assert identity(directory) == identity(directory)
