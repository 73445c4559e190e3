"""Whose life an uploader tells: that of its directory's newest trainer, and of nobody else."""

from pathlib import Path

import pytest
from steps import FIRST, Time, claim, run_file

from uploader import heartbeat, manifest
from uploader.errors import OwnershipError
from uploader.layout import RunDirectory, RunKeys
from uploader.life import Life
from uploader.manifest_file import ManifestFile
from uploader.run import RunFile
from uploader.settings import UploadSettings
from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

SECOND = claim((1, None), (2, 5))


class Place:
    """A run directory whose uploader serves the first generation."""

    def __init__(self, directory: RunDirectory, run: RunFile | None = None) -> None:
        self.store, self.there, clocks = MemoryStore(), True, Time().clocks
        self.life = Life(
            directory, run or run_file(FIRST), self.store, clocks.retry,
            is_ours=lambda: self.there, newest_step=lambda: 7, sleep=clocks.sleep,
        )  # fmt: skip

    async def beat(self) -> None:
        async with self.life.told():
            pass

    async def taken_by_second(self) -> None:
        file = ManifestFile(self.store, "run", RunKeys())
        await file.update(lambda index: manifest.adopted(index, SECOND))

    async def told(self) -> dict[int, int | None]:
        """The newest step of each generation that is told to live."""
        found = {number: await heartbeat.read(self.store, number) for number in (1, 2)}
        return {number: one.newest_step for number, one in found.items() if one is not None}


async def test_that_of_the_run_it_serves(directory: RunDirectory) -> None:
    place = Place(directory)
    await place.beat()
    assert await place.told() == {1: 7}


@pytest.mark.parametrize("upload", [UploadSettings(), UploadSettings(parts_in_flight=1)])
async def test_that_of_the_next_trainer_before_it_is_served(
    directory: RunDirectory, upload: UploadSettings
) -> None:
    """Whatever it has changed: the upload that goes on for the former one must not be broken off."""
    place = Place(directory)
    run_file(SECOND, upload=upload).write(directory)
    await place.taken_by_second()
    await place.beat()
    assert await place.told() == {2: 7}


async def test_of_a_next_trainer_that_goes_elsewhere_nothing_is_told_here(directory: RunDirectory) -> None:
    place = Place(directory)
    run_file(SECOND, destination="file:///another/run").write(directory)
    await place.beat()
    assert await place.told() == {}


async def test_of_a_directory_that_was_deleted_nothing_is_told(directory: RunDirectory) -> None:
    place = Place(directory)
    place.there = False
    await place.beat()
    assert await place.told() == {}


@pytest.mark.parametrize("kind", ["in place", "another node"])
async def test_where_others_tell_nothing_is_told(directory: RunDirectory, kind: str) -> None:
    run = run_file(FIRST, node=1, nodes=2)
    if kind == "in place":
        run = run_file(FIRST, destination=str(directory.path))
    place = Place(directory, run)
    await place.beat()
    await place.life.end(1)
    assert place.store.operations == []
    assert place.life.is_over(1) and not place.life.is_over(2)


async def test_a_run_that_another_machine_took_is_lost(directory: RunDirectory) -> None:
    place = Place(directory)
    run_file(FIRST).write(directory)
    await place.taken_by_second()
    with pytest.raises(OwnershipError):
        await place.beat()


async def test_the_end_is_that_of_one_generation(directory: RunDirectory, tmp_path: Path) -> None:
    place = Place(directory)
    await place.life.end(1)
    ended = await heartbeat.read(place.store, 1)
    assert ended is not None and ended.released
    run_file(SECOND).write(directory)
    await place.taken_by_second()
    await place.beat()
    beat = await heartbeat.read(place.store, 2)
    assert beat is not None and not beat.released
    assert not place.life.is_over(2)
