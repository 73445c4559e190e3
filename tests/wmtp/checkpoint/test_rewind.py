"""Going back to an older step, or starting over, with a crash at every request and at every change on disk.

Wherever it dies: nothing that was committed is lost, what is live can be loaded, and the next start goes on
from where the run was or from where it was taken back to, as ``run.json`` says.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from machines import LATEST, Machine, index_of, live, said, step_named

from uploader.errors import StoreDenied
from uploader.layout import RunKeys
from uploader.manifest_file import ManifestFile
from uploader.restore import check_stored, read_commit_record
from uploader.run import RunFile
from uploader.store.memory import Fault, MemoryStore, Operation
from wmtp.checkpoint.session import trainer_lock
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.anyio

STEPS = (500, 600, 700)
ALL = ["step_700@g1", "step_600@g1", "step_500@g1"]


class Died(BaseException):
    """The process is gone."""


WAYS: dict[str, tuple[Resume | None, bool, list[str]]] = {
    "back to a step on this disk": (step_named(500), False, ["step_500@g1"]),
    "back to a step in the store": (step_named(500), False, ["step_500@g1"]),
    "starting over": (None, True, []),
}
"""What is asked for, ``--fresh``, and what is live afterwards."""


async def three_steps(path: Path, way: str) -> Machine:
    here = Machine(path / "run", MemoryStore())
    await here.trained(*STEPS)
    if way == "back to a step in the store":
        for step in STEPS:
            for file in here.directory.step(step).iterdir():
                file.unlink()
            here.directory.step(step).rmdir()
    here.loaded.clear()
    return here


async def assert_nothing_lost(here: Machine) -> None:
    """Each committed step is listed, whole, and can be restored by another machine, superseded or not."""
    index = await index_of(here.store)
    assert index.names() == {*ALL} and not index.deleting
    for entry in [*index.live.values(), *index.superseded.values()]:
        problems: list[Any] = []
        record = await read_commit_record(here.store, entry)
        prefix = RunKeys().step_prefix(entry.step, entry.generation)
        await check_stored(here.store, prefix, record, problems.append)
        assert problems == []
    assert index.latest == max((entry.step for entry in index.live.values()), default=None)


async def assert_goes_on(here: Machine, way: str, *, adopted: bool, tmp_path: Path) -> None:
    """The next start: of the run as it was, or of the run taken back."""
    _, fresh, left = WAYS[way]
    with trainer_lock(here.directory):  # which sweeps what a dead trainer was writing
        pass
    await assert_nothing_lost(here)
    here.loaded.clear()
    if adopted and fresh:
        assert (await here.start(None, fresh=True)).step == 0
    else:
        started = await here.start(LATEST)
        assert started.step == (500 if adopted else 700)
        assert here.loaded == [said(started.step)]
    assert await live(here.store) == (left if adopted else ALL)
    await assert_nothing_lost(here)
    assert (await index_of(here.store)).generation == here.owner.generation
    assert [path.name for path in here.directory.path.glob("*.tmp")] == []
    other = Machine(tmp_path / "other" / "run", here.store)
    assert (await other.start(step_named(700, 1), forced=True)).step == 700, "superseded is not lost"
    assert other.loaded == [said(700)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_crash_at_any_request(tmp_path: Path, way: str, when: str) -> None:
    asked, fresh, _ = WAYS[way]
    struck = 0
    for at in range(200):
        here = await three_steps(tmp_path / str(at), way)
        seen = 0

        def crash(_: Operation) -> Fault | None:
            nonlocal seen
            seen += 1
            if seen <= at:  # noqa: B023
                return None
            return Fault(StoreDenied("the process died"), when if seen == at + 1 else "before")  # type: ignore[arg-type]  # noqa: B023

        here.store.faults = crash
        try:
            await here.start(asked, fresh=fresh)
        except StoreDenied:
            struck += 1
        else:
            here.store.faults = None
            assert seen <= at
            await assert_goes_on(here, way, adopted=True, tmp_path=tmp_path / str(at))
            break
        here.store.faults = None
        # run.json is what decides: it is written before the manifest
        await assert_goes_on(here, way, adopted=here.owner.generation > 1, tmp_path=tmp_path / str(at))
    assert struck > 8


CALLS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "pwrite", "write")


@contextmanager
def dying(at: int, when: str) -> Iterator[list[int]]:
    """The process dies at the ``at``-th change (from 0) on the disk, and changes nothing any more."""
    seen: list[int] = []

    def dies(call: Any) -> Any:
        def changed(*args: Any, **more: Any) -> Any:
            seen.append(1)
            if len(seen) <= at:
                return call(*args, **more)
            if len(seen) == at + 1 and when == "after":
                call(*args, **more)
            raise Died

        return changed

    with pytest.MonkeyPatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, dies(getattr(os, name)))
        yield seen


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_crash_at_any_change_on_the_disk(tmp_path: Path, way: str, when: str) -> None:
    asked, fresh, _ = WAYS[way]
    struck = 0
    for at in range(200):
        here = await three_steps(tmp_path / str(at), way)
        try:
            with dying(at, when) as seen:
                await here.start(asked, fresh=fresh)
        except Died:
            struck += 1
        else:
            assert len(seen) <= at
            break
        run = RunFile.read(here.directory)
        assert run is not None
        await assert_goes_on(here, way, adopted=run.generation > 1, tmp_path=tmp_path / str(at))
    assert struck >= 3


async def test_the_steps_left_behind_are_live_in_no_lineage_and_the_new_ones_are(tmp_path: Path) -> None:
    here = await three_steps(tmp_path, "back to a step on this disk")
    await here.start(step_named(500))
    await here.upload(here.save(600))
    index = await index_of(here.store)
    assert {*index.live} == {"step_500", "step_600"} and index.live["step_600"].generation == 2
    assert {*index.superseded} == {"step_600@g1", "step_700@g1"}
    assert {one.superseded_by for one in index.superseded.values()} == {2}
    rebuilt = await ManifestFile(here.store, "run", RunKeys()).rebuild()
    assert (rebuilt.live, {*rebuilt.superseded}) == (index.live, {*index.superseded})
    here.loaded.clear()
    assert (await here.start(step_named(600))).step == 600
    assert here.loaded == [said(600, 2)]
