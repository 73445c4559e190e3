"""A fork begins with another run's checkpoint and changes nothing over there."""

import shutil
from pathlib import Path

import pytest
from toys import claim, damage, make_step, take, upload

from uploader.errors import CorruptError, NothingToResume, StartRefused
from uploader.generation import Claim
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest_file import ManifestFile
from uploader.record import NodeRecord
from uploader.run import RunFile
from uploader.store.local import LocalStore
from uploader.store.memory import MemoryStore
from wmtp.checkpoint.fork import load_fork
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.anyio

FIRST, REWOUND = claim((1, None)), claim((1, None), (2, 10))


class Fork:
    """A new run that begins somewhere else."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.directory = RunDirectory(path)
        self.run = RunFile(run=path.name, destination="s3://bucket/new")
        self.loaded: list[str] = []
        self.said: list[str] = []

    def load(self, path: Path, record: NodeRecord) -> None:
        self.loaded.append((path / record.files[0].path).read_text())

    async def from_(self, path: Path) -> tuple[int, str]:
        location = Location.parse(str(path))
        return await load_fork(location, self.run, self.directory, self.load, self.said.append)

    async def start(self, store: MemoryStore, path: Path, *, fresh: bool = False) -> Started:
        resume = Resume(str(path), "location", location=Location.parse(str(path)))
        takeover = Takeover(self.directory, self.run, store, self.load, self.said.append)
        return await takeover.start(resume, fresh=fresh)


@pytest.fixture
def fork(tmp_path: Path) -> Fork:
    return Fork(tmp_path / "mine" / "new")


@pytest.fixture
def other(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "theirs" / "run"
    path.mkdir(parents=True)
    return RunDirectory(path)


def contents(path: Path) -> dict[str, bytes]:
    files = [one for one in path.rglob("*") if one.is_file()]
    return {str(one.relative_to(path)): one.read_bytes() for one in files}


async def store_of(other: RunDirectory, owner: Claim, tmp_path: Path) -> Path:
    """The run's checkpoints as a store's objects; the run directory is gone."""
    path = tmp_path / "stored" / "run"
    store = LocalStore(path)
    await take(store, FIRST)
    steps = [make_step(other, step, 1) for step in (10, 20)]
    await upload(store, owner, *steps)
    shutil.rmtree(other.path)
    return path


async def test_the_newest_local_step_of_a_run(fork: Fork, other: RunDirectory) -> None:
    for step in (10, 20):
        make_step(other, step)
    before = contents(other.path)
    assert await fork.from_(other.path) == (20, str(other.step(20)))
    assert fork.loaded == ["step 20 of generation 1"]
    assert contents(other.path) == before


async def test_one_local_step(fork: Fork, other: RunDirectory) -> None:
    for step in (10, 20):
        make_step(other, step)
    assert await fork.from_(other.step(10)) == (10, str(other.step(10)))


async def test_a_step_that_the_other_run_left_behind_must_be_asked_for(
    fork: Fork, other: RunDirectory
) -> None:
    for step in (10, 20):
        make_step(other, step)
    RunFile(run="run", destination="s3://bucket/run", **dict(REWOUND)).write(other)
    assert (await fork.from_(other.path))[0] == 10
    assert (await fork.from_(other.step(20)))[0] == 20


async def test_a_damaged_local_step_is_passed_over_loudly(fork: Fork, other: RunDirectory) -> None:
    for step in (10, 20, 30):
        make_step(other, step)
    damage(other.step(20) / "data.bin")
    (other.step(30) / "node-0000.json").write_bytes(b"{")
    assert (await fork.from_(other.path))[0] == 10
    assert [line.startswith("passed over") for line in fork.said] == [True, True]
    with pytest.raises(CorruptError, match="differ from the record"):
        await fork.from_(other.step(20))
    with pytest.raises(CorruptError, match=r"node-0000\.json"):
        await fork.from_(other.step(30))


async def test_the_newest_stored_step(fork: Fork, other: RunDirectory, tmp_path: Path) -> None:
    stored = await store_of(other, FIRST, tmp_path)
    before = contents(stored)
    step, source = await fork.from_(stored)
    assert (step, source) == (20, f"file://{stored}/step_20/g1")
    assert fork.loaded == ["step 20 of generation 1"]
    assert contents(stored) == before
    assert {path.name for path in fork.directory.path.iterdir()} <= {".trash"}


async def test_one_stored_step(fork: Fork, other: RunDirectory, tmp_path: Path) -> None:
    stored = await store_of(other, FIRST, tmp_path)
    assert (await fork.from_(stored / "step_10"))[0] == 10
    with pytest.raises(NothingToResume, match="there are: step_20, step_10"):
        await fork.from_(stored / "step_15")


async def test_a_damaged_stored_step_is_passed_over_loudly(
    fork: Fork, other: RunDirectory, tmp_path: Path
) -> None:
    stored = await store_of(other, FIRST, tmp_path)
    damage(stored / "step_20" / "g1" / "data.bin")
    assert (await fork.from_(stored))[0] == 10
    assert any(line.startswith("passed over") for line in fork.said)
    with pytest.raises(CorruptError, match="differ from the record"):
        await fork.from_(stored / "step_20")
    assert {path.name for path in fork.directory.path.iterdir()} <= {".trash"}


@pytest.mark.parametrize("name", ["nothing", "nothing/step_5"])
async def test_nothing_there_is_said(fork: Fork, tmp_path: Path, name: str) -> None:
    with pytest.raises(NothingToResume, match="there is no checkpoint; there are: none"):
        await fork.from_(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


async def test_a_fork_owns_its_own_run_only(fork: Fork, other: RunDirectory) -> None:
    make_step(other, 10)
    before = contents(other.path)
    store = MemoryStore()
    started = await fork.start(store, other.path)
    assert (started.step, started.source, started.run.generation) == (10, str(other.step(10)), 1)
    index = await ManifestFile(store, "new", RunKeys()).read()
    assert index is not None
    assert (index.generation, index.live, index.superseded) == (1, {}, {})
    data, _ = await store.get("generations/0001.json")
    assert str(other.path) in data.decode()  # where it was forked from
    assert contents(other.path) == before


async def test_a_fork_into_a_run_that_has_checkpoints_is_refused(fork: Fork, other: RunDirectory) -> None:
    make_step(other, 10)
    store = MemoryStore()
    await fork.start(store, other.path)
    await upload(store, FIRST, make_step(fork.directory, 15, run="new"))
    with pytest.raises(StartRefused, match="step_15"):
        await fork.start(store, other.path)
    started = await fork.start(store, other.path, fresh=True)
    assert (started.step, started.run.generation) == (10, 2)
    index = await ManifestFile(store, "new", RunKeys()).read()
    assert index is not None
    assert [*index.superseded] == ["step_15@g1"]


async def test_a_fork_that_fails_changes_nothing(fork: Fork, other: RunDirectory) -> None:
    make_step(other, 10)
    damage(other.step(10) / "data.bin")
    store = MemoryStore()
    with pytest.raises(CorruptError):
        await fork.start(store, other.path)
    assert await ManifestFile(store, "new", RunKeys()).read() is None
    assert RunFile.read(fork.directory) is None
