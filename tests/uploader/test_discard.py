"""Local steps go by way of the trash: only the one that is meant, and not while somebody reads it."""

import os

import pytest
from steps import make_step

from uploader import files
from uploader.discard import discard_local, empty_trash
from uploader.layout import RunDirectory

pytestmark = pytest.mark.anyio


async def test_a_step_that_is_loaded_waits(directory: RunDirectory) -> None:
    steps = [make_step(directory, step) for step in (1, 2)]
    with files.held_for_reading(steps[0].path):
        assert await discard_local(directory, steps) == [2]
    assert steps[0].path.exists()
    assert await discard_local(directory, steps) == [1]
    assert sorted(os.listdir(directory.trash)) == ["step_1.0", "step_2.0"]
    await empty_trash(directory)
    assert os.listdir(directory.trash) == []


async def test_a_step_that_a_rewind_wrote_anew_is_not_the_one_to_discard(directory: RunDirectory) -> None:
    old = make_step(directory, 7, 1)
    files.move_to_trash(old.path, directory.trash)
    make_step(directory, 7, 2)
    assert await discard_local(directory, [old]) == []
    assert directory.step(7).exists()


async def test_what_a_crash_left_in_the_trash_goes(directory: RunDirectory) -> None:
    (directory.trash / "step_1.0").mkdir(parents=True)
    (directory.trash / "step_1.0" / "model").write_bytes(b"x")
    await empty_trash(directory)
    assert os.listdir(directory.trash) == []
