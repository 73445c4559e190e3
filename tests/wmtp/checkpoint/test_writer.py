"""A step is on disk whole or not at all, however and whenever the disk stops; errors say what to do."""

import errno
import fcntl
import itertools
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from toys import damage, describe, make_step, sources

from uploader import layout, restore
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import DiskError
from uploader.events import CheckpointSaved
from uploader.layout import RunDirectory
from uploader.queue import EventQueue
from uploader.record import FileRecord, NodeRecord, RankRecord
from uploader.watch import LocalSteps
from wmtp.checkpoint import disk as disk_module
from wmtp.checkpoint import writer
from wmtp.checkpoint.disk import (
    Announce,
    Answer,
    Clear,
    Disk,
    FileSource,
    Operation,
    Operations,
    Read,
    Remove,
    Rename,
    SyncDirectory,
    Trash,
    Write,
)
from wmtp.checkpoint.session import trainer_lock
from wmtp.checkpoint.writer import write_checkpoint

FILES = {"model": b"m" * 100, "state": b"{}"}


def operations(directory: RunDirectory, step: int = 7, number: int = 3) -> Operations[NodeRecord]:
    return write_checkpoint(directory, sources(**FILES), describe(step, number))


class Noting(Disk):
    """Performs one operation after the other, and remembers them."""

    files_at_once = 1

    def __init__(self) -> None:
        self.performed: list[Operation] = []

    def perform(self, operation: Operation) -> Answer:
        self.performed.append(operation)
        return super().perform(operation)


def performed(steps: Operations[NodeRecord]) -> list[Operation]:
    disk = Noting()
    disk.run(steps)
    return disk.performed


def test_the_order_is_data_record_rename_event(directory: RunDirectory) -> None:
    temporary, target = directory.path / "step_7.g3.tmp", directory.path / "step_7"
    names = [
        (type(one).__name__, getattr(one, "path", None) or getattr(one, "source", None))
        for one in performed(operations(directory))
    ]
    assert names == [
        ("Clear", temporary),
        ("Write", temporary / "model.bin"),
        ("Write", temporary / "state.bin"),
        ("Write", temporary / "rank-00000.json"),
        ("Read", temporary / "rank-00000.json"),
        ("Write", temporary / "node-0000.json"),
        ("Remove", temporary / "rank-00000.json"),
        ("SyncDirectory", temporary),
        ("Trash", target),
        ("Rename", temporary),
        ("SyncDirectory", directory.path),
        ("Announce", None),
    ]


def test_the_record_says_what_lies_there(directory: RunDirectory) -> None:
    record = Disk().run(operations(directory))
    (local,), errors = LocalSteps(directory).scan()
    assert errors == []
    assert local.record == record
    assert {file.path for file in record.files} == {"model.bin", "state.bin"}
    assert set(os.listdir(local.path)) == {"model.bin", "state.bin", "node-0000.json"}
    assert list(restore.damage(local.path, record.files)) == []
    assert (record.step, record.generation, record.metrics) == (7, 3, {"loss": 0.125})
    events = EventQueue(directory.events(0)).receive()
    assert events == [CheckpointSaved(generation=3, step=7)]


def test_damage_is_found_where_it_is(directory: RunDirectory) -> None:
    record = Disk().run(operations(directory))
    damage(directory.step(7) / "model.bin")
    (error,) = restore.damage(directory.step(7), record.files)
    assert "model.bin" in error.subject


def test_a_step_of_the_same_number_gives_way(directory: RunDirectory) -> None:
    make_step(directory, 7, 2)
    Disk().run(operations(directory))
    (local,), _ = LocalSteps(directory).scan()
    assert local.generation == 3
    assert list(directory.trash.iterdir()) == []


def test_what_a_dead_trainer_left_half_written_is_cleared(directory: RunDirectory) -> None:
    left = directory.temporary(7, 3)
    left.mkdir()
    (left / "of another life.bin").write_bytes(b"?")
    Disk().run(operations(directory))
    assert not (directory.step(7) / "of another life.bin").exists()


# --- bytes -------------------------------------------------------------------------------------------------

SIZES = [0, 1, 4095, 4096, 4097, BLOCK_SIZE_BYTES - 1, BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES + 1]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The flags of every file the writer opens."""
    flags: list[int] = []
    real = os.open

    def spy(path: str | Path, flag: int, mode: int = 0o777) -> int:
        flags.append(flag)
        return real(path, flag, mode)

    monkeypatch.setattr(disk_module.os, "open", spy)
    return flags


def page_aligned(size_bytes: int) -> tuple[memoryview, memoryview]:
    """The same bytes without and with padding to whole pages, as they lie in an arena."""
    memory = mmap.mmap(-1, max(size_bytes + (-size_bytes % 4096), 4096))
    memory.write(Random(size_bytes).randbytes(size_bytes))
    padded = memoryview(memory)[: size_bytes + (-size_bytes % 4096)]
    return padded[:size_bytes], padded


@pytest.mark.parametrize("size_bytes", SIZES)
def test_direct_and_buffered_writes_leave_equal_files(
    tmp_path: Path, size_bytes: int, opened: list[int]
) -> None:
    data, padded = page_aligned(size_bytes)
    direct = disk_module.write_file(tmp_path / "one.bin", FileSource("", data, padded))
    assert bool(opened.pop() & os.O_DIRECT) == (size_bytes >= BLOCK_SIZE_BYTES)
    buffered = disk_module.write_file(tmp_path / "two.bin", FileSource("", data))
    assert not opened.pop() & os.O_DIRECT
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes() == data
    assert direct == FileRecord.of_bytes("one.bin", data)
    assert buffered == FileRecord.of_bytes("two.bin", data)


def test_a_file_system_without_direct_writes_gets_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT", str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(disk_module.os, "open", refuse)
    data, padded = page_aligned(BLOCK_SIZE_BYTES + 1)
    record = disk_module.write_file(tmp_path / "one.bin", FileSource("", data, padded))
    assert record == FileRecord.of_bytes("one.bin", (tmp_path / "one.bin").read_bytes())


def test_a_direct_write_that_is_refused_goes_on_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a short write the rest need not be aligned; some file systems refuse any direct write."""
    real, refused = os.pwrite, []

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        if direct and at % BLOCK_SIZE_BYTES:
            refused.append(at)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, data[:4096] if direct else data, at)

    monkeypatch.setattr(disk_module.os, "pwrite", pwrite)
    data, padded = page_aligned(2 * BLOCK_SIZE_BYTES + 1)
    record = disk_module.write_file(tmp_path / "one.bin", FileSource("", data, padded))
    assert refused == [4096]
    assert record == FileRecord.of_bytes("one.bin", (tmp_path / "one.bin").read_bytes())
    assert record.size_bytes == len(data)


def test_what_is_refused_without_direct_writes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(disk_module.os, "pwrite", refuse)
    data, padded = page_aligned(BLOCK_SIZE_BYTES)
    with pytest.raises(OSError, match="Invalid argument"):
        disk_module.write_file(tmp_path / "one.bin", FileSource("", data, padded))


def test_a_file_system_that_cannot_reserve_space_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(disk_module.os, "posix_fallocate", refuse)
    data, padded = page_aligned(BLOCK_SIZE_BYTES)
    record = disk_module.write_file(tmp_path / "one.bin", FileSource("", data, padded))
    assert record == FileRecord.of_bytes("one.bin", (tmp_path / "one.bin").read_bytes())


# --- a disk that refuses -----------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tiny file system in memory, with options."""
    mounts: set[Path] = set()

    def mount(options: str) -> Path:
        path = tmp_path / "mounted"
        path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if os.getuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount")
        mounts.add(path)
        return path

    yield mount
    for path in mounts:
        subprocess.run(["umount", str(path)], check=True)  # noqa: S607


def assert_one_line(error: DiskError, path: Path, hint: str) -> None:
    assert "\n" not in str(error)
    assert str(path) in error.subject
    assert hint in error.hint


@pytest.mark.parametrize("size_bytes", [100_000, BLOCK_SIZE_BYTES + 1])
def test_a_full_disk_leaves_the_last_step_and_nothing_else(
    mounted: Callable[[str], Path], size_bytes: int
) -> None:
    directory = RunDirectory(mounted("size=256k") / "run")
    directory.path.mkdir()
    make_step(directory, 1, 3)
    data, padded = page_aligned(size_bytes)
    files = [FileSource(f"{number}.bin", data, padded) for number in range(4)]
    with pytest.raises(DiskError, match="No space left on device") as caught:
        Disk().run(write_checkpoint(directory, files, describe(2, 3)))
    assert_one_line(caught.value, directory.temporary(2, 3), "free some space")
    assert [one.step for one in LocalSteps(directory).scan()[0]] == [1]
    assert directory.temporary(2, 3).exists()
    with trainer_lock(directory):
        assert not directory.temporary(2, 3).exists()
    make_step(directory, 2, 4)
    assert [one.step for one in LocalSteps(directory).scan()[0]] == [2, 1]


def test_a_read_only_disk_is_named(mounted: Callable[[str], Path]) -> None:
    path = mounted("size=256k")
    (path / "run").mkdir()
    mounted("size=256k,remount,ro")
    with pytest.raises(DiskError, match="Read-only file system") as caught:
        Disk().run(operations(RunDirectory(path / "run")))
    assert_one_line(caught.value, path / "run", "read-only")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_whatever_the_disk_refuses_is_one_line(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(DiskError, match=os.strerror(code)) as caught:
            Disk().run(operations(directory))
    assert_one_line(caught.value, directory.path, "")
    assert caught.value.hint
    assert LocalSteps(directory).scan() == ([], [])


def test_a_path_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match=r"Not a directory|File exists") as caught:
        Disk().run(operations(RunDirectory(tmp_path / "file" / "run")))
    assert caught.value.hint


# --- a disk that stops -------------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    """A file's bytes as they are read, and what a crash leaves of them: None is anything."""

    data: bytes
    durable: bytes | None = None


@dataclass(eq=False)
class Directory:
    """A directory's names as they are read, and as they were at its last fsync."""

    names: "dict[str, File | Directory]" = field(default_factory=dict)
    durable: "dict[str, File | Directory]" = field(default_factory=dict)

    def sync(self) -> None:
        self.durable = dict(self.names)


class Stopped(Exception):
    """The machine lost its power."""


class ModelDisk(Disk):
    """A disk in memory that keeps no more than it promised, and stops at an operation or within it.

    Args:
        stop_at: the number of the operation that is not performed any more.
        within: a write that is stopped has begun.
    """

    files_at_once = 1

    def __init__(self, root: Path, stop_at: int | None = None, *, within: bool = False) -> None:
        self.root, self.stop_at, self.within = root, stop_at, within
        self.top, self.count = Directory(), 0
        self.announced: list[CheckpointSaved] = []

    def _find(self, path: Path) -> tuple[Directory, str]:
        directory = self.top
        *parents, name = path.relative_to(self.root).parts
        for parent in parents:
            found = directory.names[parent]
            assert isinstance(found, Directory)
            directory = found
        return directory, name

    def perform(self, operation: Operation) -> Answer:
        stopped = self.count == self.stop_at
        self.count += 1
        if stopped and self.within and isinstance(operation, Write):
            parent, name = self._find(operation.path)
            parent.names[name] = File(bytes(operation.source.data[:1]))
        if stopped:
            raise Stopped
        return self._perform(operation)

    def _perform(self, operation: Operation) -> Answer:
        match operation:
            case Clear(path):
                parent, name = self._find(path)
                parent.names[name] = Directory()
                parent.sync()
            case Write(path, source):
                parent, name = self._find(path)
                parent.names[name] = File(bytes(source.data), bytes(source.data))
                return FileRecord.of_bytes(name, source.data)
            case Read(path):
                parent, name = self._find(path)
                found = parent.names[name]
                assert isinstance(found, File)
                return found.data
            case Remove(path):
                parent, name = self._find(path)
                del parent.names[name]
            case SyncDirectory(path):
                self._directory(path).sync()
            case Trash(path, _):
                parent, name = self._find(path)
                if parent.names.pop(name, None):
                    parent.sync()
            case Rename(source, target):
                (parent, name), (other, new_name) = self._find(source), self._find(target)
                assert new_name not in other.names
                other.names[new_name] = parent.names.pop(name)
            case Announce(_, event):
                assert isinstance(event, CheckpointSaved)
                self.announced.append(event)
        return None

    def _directory(self, path: Path) -> Directory:
        if path == self.root:
            return self.top
        parent, name = self._find(path)
        found = parent.names[name]
        assert isinstance(found, Directory)
        return found

    def after_power_loss(self, path: Path, random: Random) -> None:
        """Lay out on the real disk what may be left: each name since the last fsync there or not."""
        self._lay_out(self.top, path, random)

    def _lay_out(self, directory: Directory, path: Path, random: Random) -> None:
        path.mkdir(parents=True)
        for name in {**directory.durable, **directory.names}:
            before, now = directory.durable.get(name), directory.names.get(name)
            kept = random.choice([before, now])
            if isinstance(kept, Directory):
                self._lay_out(kept, path / name, random)
            elif kept is not None:
                (path / name).write_bytes(kept.data[:0] if kept.durable is None else kept.durable)


OPERATIONS = 12


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("stop_at", range(OPERATIONS + 1))
@pytest.mark.parametrize("replaces", [False, True])
def test_a_power_loss_leaves_the_whole_step_or_none(
    tmp_path: Path, stop_at: int, within: bool, replaces: bool
) -> None:
    disk = ModelDisk(tmp_path / "run")
    if replaces:
        disk.run(operations(RunDirectory(disk.root), step=7, number=2))
        disk.announced.clear()
    disk.stop_at, disk.within, disk.count = stop_at, within, 0
    finished = True
    try:
        disk.run(operations(RunDirectory(disk.root)))
    except Stopped:
        finished = False
    assert finished == (stop_at == OPERATIONS)
    for seed in range(12):
        left = RunDirectory(tmp_path / f"left{seed}" / "run")
        disk.after_power_loss(left.path, Random(seed))
        steps, errors = LocalSteps(left).scan()
        assert errors == []
        assert all(list(restore.damage(one.path, one.record.files)) == [] for one in steps)
        assert [one.generation for one in steps] in ([], [2], [3])
        if not replaces:
            assert [one.generation for one in steps] != [2]
        if disk.announced or finished:
            assert [(one.step, one.generation) for one in steps] == [(7, 3)]


@pytest.mark.parametrize(
    ("forgotten", "of"),
    [(SyncDirectory, "step_7.g3.tmp"), (SyncDirectory, "run")],
)
def test_the_model_disk_catches_a_forgotten_fsync(tmp_path: Path, forgotten: type, of: str) -> None:
    """The premise of the test above: without one of the fsyncs it would fail."""

    class Careless(ModelDisk):
        def perform(self, operation: Operation) -> Answer:
            if isinstance(operation, forgotten) and operation.path.name == of:  # type: ignore[attr-defined]
                return None
            return super().perform(operation)

    disk = Careless(tmp_path / "run")
    disk.run(operations(RunDirectory(disk.root)))
    outcomes = set()
    for seed in range(12):
        left = RunDirectory(tmp_path / f"left{seed}" / "run")
        disk.after_power_loss(left.path, Random(seed))
        steps, _ = LocalSteps(left).scan()
        whole = [one for one in steps if not list(restore.damage(one.path, one.record.files))]
        outcomes.add(len(whole))
    assert 0 in outcomes  # announced, and yet not there


def test_a_real_disk_that_stops_anywhere_leaves_what_the_next_start_clears(tmp_path: Path) -> None:
    class Stops(Disk):
        files_at_once = 1

        def perform(self, operation: Operation) -> Answer:
            if next(self.counter) == self.stop_at:
                raise Stopped
            return super().perform(operation)

    for stop_at in range(OPERATIONS):
        directory = RunDirectory(tmp_path / f"run{stop_at}")
        directory.path.mkdir()
        make_step(directory, 6, 3)
        disk = Stops()
        disk.counter, disk.stop_at = itertools.count(), stop_at  # type: ignore[attr-defined]
        with pytest.raises(Stopped):
            disk.run(operations(directory))
        with trainer_lock(directory):
            steps, errors = LocalSteps(directory).scan()
        assert errors == []
        assert [one.step for one in steps] == ([7, 6] if stop_at > 9 else [6])
        assert {path.name for path in directory.path.iterdir() if path.name.endswith(".tmp")} == set()


# --- several ranks of one node -----------------------------------------------------------------------------


def test_the_leader_merges_the_records_of_its_ranks(directory: RunDirectory) -> None:
    from dataclasses import replace

    both = [replace(describe(7, 3), rank=rank, local_ranks=(0, 1), world_size=2) for rank in (0, 1)]
    temporary = directory.temporary(7, 3)
    temporary.mkdir()
    for what in both:
        name = f"model-rank{what.rank:05d}.bin"
        record = Disk().perform(Write(temporary / name, FileSource(name, memoryview(b"x"))))
        assert isinstance(record, FileRecord)
        rank = RankRecord(
            run="run", step=7, generation=3, world_size=2, created_at=what.created_at, files=[record],
            rank=what.rank,
        )  # fmt: skip
        (temporary / layout.rank_record(what.rank)).write_bytes(rank.encode())
    record = Disk().run(writer.commit_node(directory, both[0]))
    assert record.ranks == [0, 1]
    assert {file.path for file in record.files} == {"model-rank00000.bin", "model-rank00001.bin"}
    assert not list(directory.step(7).glob("rank-*"))
