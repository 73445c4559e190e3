"""A link in the place of a file or a directory is never followed: to write, to read, or to delete."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save
from steps import SMALL, make_service, make_step, node_record
from torch import ones

from uploader import below, files, layout
from uploader.buffers import PartBuffers
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.discard import discard_local
from uploader.errors import CorruptError, DiskError, OwnershipError, StoreError
from uploader.layout import RunDirectory, RunKeys
from uploader.record import CommitRecord
from uploader.restore import check, damage, restore
from uploader.run import RunFile
from uploader.store.local import LocalStore
from uploader.store.memory import MemoryStore, Operation
from uploader.watch import LocalSteps, read_step
from wmtp.checkpoint.load import read_checkpoint
from wmtp.checkpoint.session import trainer_lock

pytestmark = pytest.mark.anyio

NESTED = {"a.bin": b"a" * 100, "sub/deep/b.bin": b"b" * 100, "sub/c.bin": b"c" * 100}


class Outside:
    """A directory that is none of the run's, and must stay as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "a.bin").write_bytes(b"mine")
        (path / "keep").mkdir()
        self._before = self._files()

    def _files(self) -> dict[str, bytes | None]:
        found = sorted(self.path.rglob("*"))
        return {str(one): one.read_bytes() if one.is_file() else None for one in found}

    def require_untouched(self) -> None:
        assert self._files() == self._before


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path / "outside")


class Download:
    """A stored checkpoint with files in subdirectories, to be restored into a run directory."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory, self.store = directory, MemoryStore()
        self.temporary, self.target = directory.temporary(7, 2), directory.step(7)

    async def __call__(self) -> None:
        node = node_record(7, files=NESTED)
        for name, data in NESTED.items():
            await self.store.put(f"step_7/g1/{name}", data)
        await self.store.put("step_7/g1/node-0000.json", node.encode())
        record, buffers = CommitRecord.merge([node.encode()]), PartBuffers(BLOCK_SIZE_BYTES, 2)
        await restore(
            self.store, RunKeys().step_prefix(7, 1), record, self.temporary, self.target,
            self.directory.trash, buffers, lambda _: None,
        )  # fmt: skip

    def require_whole(self) -> None:
        """It is there as a directory of its own, and nothing is left beside it."""
        assert not self.target.is_symlink() and not os.path.lexists(self.temporary)
        assert [*self.directory.trash.glob("*")] == []
        check(self.target, read_step(self.target).record.files)


def put_link(place: Path, leads_to: Path) -> None:
    place.symlink_to(leads_to)


@pytest.fixture
def download(directory: RunDirectory) -> Download:
    return Download(directory)


@pytest.mark.parametrize("name", ["temporary", "target"])
@pytest.mark.parametrize("leads_to", ["", "keep", "a.bin", "nowhere"])
async def test_a_link_where_a_step_is_restored_is_replaced(
    download: Download, outside: Outside, name: str, leads_to: str
) -> None:
    put_link(getattr(download, name), outside.path / leads_to)
    await download()
    download.require_whole()
    outside.require_untouched()


@pytest.mark.parametrize("made", ["sub", "deep"])
async def test_a_directory_swapped_for_a_link_before_a_file_is_created(
    download: Download, outside: Outside, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    mkdir = os.mkdir

    def mkdir_then_swap(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        if path == made:
            os.rmdir(path, dir_fd=dir_fd)
            os.symlink(outside.path, path, dir_fd=dir_fd)

    monkeypatch.setattr(below.os, "mkdir", mkdir_then_swap)
    with pytest.raises(DiskError, match="creating"):
        await download()
    outside.require_untouched()
    assert not download.target.exists()


@pytest.mark.parametrize("name", [".", "sub", "sub/deep"])
async def test_a_directory_swapped_for_a_link_while_files_are_written(
    download: Download, outside: Outside, name: str
) -> None:
    swapped: list[Path] = []

    def swap(operation: Operation) -> None:
        place = download.temporary / name
        if operation.name == "get_range" and not swapped:
            swapped.append(place.rename(download.directory.path / "moved"))
            place.symlink_to(outside.path)

    download.store.faults = swap
    try:
        await download()
    except DiskError as error:
        assert name == "." and "put in its place" in str(error)
    outside.require_untouched()
    assert swapped
    if download.target.exists():  # committed, but what was swapped is told from what was restored
        with pytest.raises(CorruptError):
            check(download.target, read_step(download.target).record.files)


async def test_a_file_that_somebody_puts_there_first_is_not_written_to(
    download: Download, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = below.create_below

    def after_a_link(directory: int, path: str) -> int:
        if path == "a.bin":
            os.symlink(outside.path / "a.bin", path, dir_fd=directory)
        return create(directory, path)

    monkeypatch.setattr("uploader.restore.below.create_below", after_a_link)
    with pytest.raises(DiskError, match=r"a\.bin"):
        await download()
    outside.require_untouched()


def _link_same_bytes(place: Path, outside: Path) -> None:
    shutil.copyfile(place, outside / "same")
    place.unlink()
    place.symlink_to(outside / "same")


def _link_parent(place: Path, outside: Path) -> None:
    shutil.copytree(place.parent, outside / "parent")
    shutil.rmtree(place.parent)
    place.parent.symlink_to(outside / "parent")


def _pipe(place: Path, _: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def _directory(place: Path, _: Path) -> None:
    place.unlink()
    place.mkdir()


@pytest.mark.parametrize("spoil", [_link_same_bytes, _link_parent, _pipe, _directory])
@pytest.mark.parametrize("deep", [True, False])
def test_what_is_no_plain_file_is_damage_whatever_it_leads_to(
    directory: RunDirectory, tmp_path: Path, spoil: Callable[[Path, Path], None], deep: bool
) -> None:
    """Even where the bytes are right: they are not the checkpoint's, and may change behind its back."""
    target = directory.path / "step_7"
    files_ = {"sub/shard.safetensors": save({"w": ones(4)}), "sub/other.bin": b"x"}
    record = node_record(7, files=files_)
    (target / "sub").mkdir(parents=True)
    for name, data in files_.items():
        (target / name).write_bytes(data)
    check(target, record.files)

    (tmp_path / "elsewhere").mkdir()
    spoil(target / "sub/shard.safetensors", tmp_path / "elsewhere")
    errors = [str(error) for error in damage(target, record.files, deep=deep)]
    assert errors and all("no plain file" in error for error in errors)
    with pytest.raises(CorruptError, match="no plain file"):
        read_checkpoint(target, record)


def test_the_loader_reads_no_state_through_a_link(directory: RunDirectory, outside: Outside) -> None:
    local = make_step(directory, 7)
    state = local.path / layout.state_file(0)
    state.unlink()
    (outside.path / "state").write_bytes(b'{"model": {}, "optim": {}, "extra": {}}')
    state.symlink_to(outside.path / "state")
    record = node_record(7, files={layout.state_file(0): b"{}"})
    with pytest.raises(CorruptError, match="no plain file"):
        read_checkpoint(local.path, record)


@pytest.fixture
def linked(directory: RunDirectory, outside: Outside, tmp_path: Path) -> RunDirectory:
    """A run whose step 7 is a link to a whole checkpoint elsewhere."""
    elsewhere = RunDirectory(tmp_path / "elsewhere")
    make_step(elsewhere, 7)
    directory.step(7).symlink_to(elsewhere.step(7))
    return directory


async def test_a_step_that_is_a_link_is_left_alone(linked: RunDirectory) -> None:
    elsewhere = linked.step(7).resolve()
    before = sorted(elsewhere.iterdir())
    steps, errors = LocalSteps(linked).scan()
    assert steps == [] and "step_7" in errors[0].subject and "is a link" in str(errors[0])

    assert await discard_local(linked, [read_step(linked.step(7))]) == []
    assert not files.discard_unless_read(linked.step(7), linked.trash)
    assert linked.step(7).is_symlink() and sorted(elsewhere.iterdir()) == before


async def test_the_uploader_neither_sends_nor_prunes_it(linked: RunDirectory) -> None:
    store = MemoryStore()
    for step in (8, 9, 10, 11):
        make_step(linked, step)
    service = make_service(linked, store)
    with pytest.raises(CorruptError, match="is a link"):
        await service.once()
    keys = {info.key.partition("/")[0] async for info in store.list()}
    assert keys == {"step_9", "step_10", "step_11", "manifest.json"}
    assert linked.step(7).is_symlink() and read_step(linked.step(7)).step == 7


def test_the_trash_is_no_way_out(directory: RunDirectory, outside: Outside) -> None:
    directory.trash.symlink_to(outside.path)
    files.empty_trash(directory.trash)
    outside.require_untouched()

    local = make_step(directory, 7)
    (local.path / "link").symlink_to(outside.path)
    assert files.discard_unless_read(local.path, directory.trash)
    assert not directory.trash.is_symlink()
    (directory.trash / "to-a-directory").symlink_to(outside.path)
    (directory.trash / "to-nothing").symlink_to(outside.path / "nothing")
    files.empty_trash(directory.trash)
    assert os.listdir(directory.trash) == []
    outside.require_untouched()


@pytest.mark.parametrize("name", ["step_7.g1.tmp", ".fork", ".fork.tmp"])
def test_a_new_trainer_clears_links_and_not_what_they_lead_to(
    directory: RunDirectory, outside: Outside, name: str
) -> None:
    (directory.path / name).symlink_to(outside.path)
    with trainer_lock(directory):
        assert not os.path.lexists(directory.path / name)
    outside.require_untouched()


def test_a_json_file_of_ours_is_no_link(directory: RunDirectory, outside: Outside) -> None:
    (outside.path / "run.json").write_bytes(b"{}")
    directory.run_file.symlink_to(outside.path / "run.json")
    with pytest.raises(CorruptError, match="no plain file"):
        RunFile.read(directory)


def test_nothing_is_written_through_a_link(directory: RunDirectory, outside: Outside) -> None:
    link = directory.path / f".run.json.{os.getpid()}.tmp"
    link.symlink_to(outside.path / "a.bin")
    with pytest.raises(OSError, match="symbolic links"):
        files.replace(directory.run_file, b"{}")
    outside.require_untouched()


@pytest.mark.parametrize("key", ["link/a.bin", "../outside/a.bin", "/etc/passwd", "link", "a\0"])
async def test_a_directory_as_a_store_has_no_keys_outside(
    directory: RunDirectory, outside: Outside, key: str
) -> None:
    store = LocalStore(directory.path)
    (directory.path / "link").symlink_to(outside.path)
    for call in (store.get(key), store.put(key, b"x"), store.delete([key]), store.head(key)):
        with pytest.raises((StoreError, OwnershipError), match="no key"):
            await call
    assert [info.key async for info in store.list()] == []
    outside.require_untouched()


def test_the_plain_case_is_read(directory: RunDirectory) -> None:
    local = make_step(directory, 7)
    assert list(damage(local.path, local.record.files)) == []
    with below.opened_below(local.path, next(iter(SMALL))) as descriptor:
        assert os.read(descriptor, 10**6) == next(iter(SMALL.values()))
