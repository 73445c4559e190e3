"""Foreign checkpoints become local steps once whole and still; they are committed if they stay so."""

import dataclasses
import os
import socket
from collections.abc import Callable, Set
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from foreign_files import PICKLE, dcp, hugging_face, safetensors, torch_zip
from steps import NOW, Time, assert_whole, keys, make_step, run_file

from uploader import taken
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import CorruptError, NotDurable, SettingsError, StoreDenied
from uploader.foreign import ForeignSteps
from uploader.generation import Claim
from uploader.host import Fallback, is_run_directory, serve, serve_parent, serve_run
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import FileRecord
from uploader.retention import Committed, Retention
from uploader.service import RunService
from uploader.settings import StorageSettings, UploadSettings
from uploader.status import Status, StatusFile, read_status
from uploader.store.local import LocalStore
from uploader.store.memory import Fault, MemoryStore, Operation

pytestmark = pytest.mark.anyio

KEEP_ALL = Retention(keep_last=None)
QUIET_S = 10.0


class Foreign:
    """A run directory of a foreign trainer, its store, and an uploader whose clock stands until told."""

    def __init__(self, directory: RunDirectory, retention: Retention = KEEP_ALL) -> None:
        self.path, self.directory, self.store, self.time = directory.path, directory, MemoryStore(), Time()
        upload = UploadSettings(quiet_s=QUIET_S)
        self.run = run_file(Claim(), retention=retention, upload=upload)
        directory.uploader_directory.mkdir()
        self.restart()

    def restart(self) -> None:
        """The uploader as after a start of its process."""
        clocks = self.time.clocks
        first = Status(run="run", destination=self.run.destination, pid=1, updated_at=NOW)
        status = StatusFile(self.directory, clocks.now, first)
        self.steps = ForeignSteps(self.directory, self.run, clocks.monotonic)
        self.service = RunService(self.directory, self.run, self.store, status, clocks, steps=self.steps)

    async def rounds(self, *waits_s: float) -> list[str]:
        """A round, and another after each wait; the live steps then."""
        await self.service.round()
        for wait_s in waits_s:
            self.time.s += wait_s
            await self.service.round()
        return await self.live()

    async def live(self) -> list[str]:
        index = await self.index()
        return [entry.name for entry in index.live.values()]

    async def index(self) -> Manifest:
        return await ManifestFile(self.store, "run", RunKeys()).read() or Manifest(run="run")

    @property
    def status(self) -> Status:
        status = read_status(self.directory.status_file)
        assert status is not None
        return status

    def write(self, name: str, data: bytes | None = None) -> Path:
        (self.path / name).write_bytes(torch_zip() if data is None else data)
        return self.path / name


@pytest.fixture
def foreign(directory: RunDirectory) -> Foreign:
    return Foreign(directory)


def all_of(found: list[Committed]) -> Set[int]:
    return {one.step for one in found}


async def test_a_file_that_its_format_proves(foreign: Foreign) -> None:
    data = torch_zip(os.urandom(BLOCK_SIZE_BYTES + 5))
    path = foreign.write("checkpoint_step_12.pt", data)
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    assert await foreign.rounds() == []  # seen once: somebody may be writing
    assert await foreign.rounds(1) == ["step_12@g0"]
    await assert_whole(foreign.store)
    assert await keys(foreign.store, "step_") == [
        f"step_12/g0/{name}" for name in ("checkpoint.json", "checkpoint_step_12.pt", "node-0000.json")
    ]
    assert (await foreign.store.get("step_12/g0/checkpoint_step_12.pt"))[0] == data
    entry = (await foreign.index()).live["step_12"]
    assert entry.created_at == datetime.fromtimestamp(1_700_000_000, UTC).replace(microsecond=123_456)
    assert foreign.status.newest_durable_step == 12
    assert path.read_bytes() == data


async def test_a_directory_with_all_it_holds(foreign: Foreign) -> None:
    path = hugging_face(foreign.path / "checkpoint-5")
    (path / "with space.json").write_text("{}")
    (path / "empty.txt").touch()
    (path / ".cache").mkdir()
    (path / ".cache" / "debris").touch()
    assert await foreign.rounds(1) == ["step_5@g0"]
    names = {path.name for path in path.iterdir()} - {".cache"} | {"node-0000.json", "checkpoint.json"}
    assert {*await keys(foreign.store, "step_5/")} == {f"step_5/g0/{name}" for name in names}


@pytest.mark.parametrize("name", ["step-7", "step_7", "checkpoint-7", "iter_0000007"])
async def test_dcp_is_uploaded_with_its_index_when_it_is_quiet(foreign: Foreign, name: str) -> None:
    path = dcp(foreign.path / name)
    assert await foreign.rounds(QUIET_S - 1) == []
    (path / "late.json").write_text("{}")
    assert await foreign.rounds(1, QUIET_S - 2) == []
    assert await foreign.rounds(1) == ["step_7@g0"]
    assert "step_7/g0/.metadata" in await keys(foreign.store)


async def test_a_file_that_grows_is_left_alone(foreign: Foreign) -> None:
    data = safetensors(5000)
    for end in range(500, len(data), 500):
        foreign.write("step_1.safetensors", data[:end])
        assert await foreign.rounds(1) == []
    assert await foreign.rounds(1000) == []  # however long it stops
    foreign.write("step_1.safetensors", data)
    assert await foreign.rounds(1) == ["step_1@g0"]


async def test_what_no_format_proves_must_be_quiet(foreign: Foreign) -> None:
    foreign.write("step_1.pt", PICKLE)
    assert await foreign.rounds(QUIET_S - 1) == []
    foreign.write("step_1.pt", PICKLE * 2)
    assert await foreign.rounds(1, QUIET_S - 2) == []
    assert await foreign.rounds(1) == ["step_1@g0"]


async def test_a_stop_in_a_subdirectory_is_no_end(foreign: Foreign) -> None:
    """A directory's own times tell nothing of what is written below it."""
    path = foreign.path / "step_3" / "deep"
    path.mkdir(parents=True)
    for size in range(1, 5):
        (path / "weights.bin2").write_bytes(b"x" * size)
        assert await foreign.rounds(QUIET_S - 1) == []
    assert await foreign.rounds(QUIET_S) == ["step_3@g0"]


async def test_newest_first_and_older_ones_are_not_read_before(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    describe = taken._describe

    async def noted(path: Path, *more: object) -> FileRecord | None:
        order.append(f"read {path.name}")
        return await describe(path, *more)  # type: ignore[arg-type]

    def note(operation: Operation) -> None:
        if operation.name == "put" and operation.key.endswith("checkpoint.json"):
            order.append(f"committed {operation.key}")

    monkeypatch.setattr(taken, "_describe", noted)
    foreign.store.faults = note
    for step in (1, 3, 2):
        foreign.write(f"step_{step}.pt")
    assert await foreign.rounds(1) == ["step_3@g0", "step_2@g0", "step_1@g0"]
    assert order == [
        line
        for step in (3, 2, 1)
        for line in (f"read step_{step}.pt", f"committed step_{step}/g0/checkpoint.json")
    ]


async def test_a_restart_reads_nothing_again(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.write("step_1.pt")
    foreign.store.faults = lambda operation: (
        Fault(StoreDenied("no", subject=operation.key)) if operation.name == "put" else None
    )
    await foreign.rounds(1)
    assert [path.name for path in (foreign.path / ".uploader/foreign").iterdir()] == ["step_1.json"]
    foreign.store.faults = None
    monkeypatch.setattr(taken, "_describe", None)
    foreign.restart()
    assert await foreign.rounds() == ["step_1@g0"]  # and nothing need be waited for
    await assert_whole(foreign.store)


async def test_what_was_kept_and_cannot_be_read_is_made_anew_and_goes_with_its_checkpoint(
    foreign: Foreign,
) -> None:
    foreign.write("step_1.pt")
    await foreign.rounds(1)
    kept = foreign.path / ".uploader/foreign/step_1.json"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-20])
    foreign.restart()
    assert not kept.exists()
    foreign.steps.scan()
    foreign.time.s += 1
    foreign.steps.scan()
    await foreign.steps.take(all_of)
    assert kept.read_bytes() == whole
    (foreign.path / "step_1.pt").unlink()
    await foreign.rounds()
    assert not kept.exists()


def rewrite(path: Path) -> None:
    path.write_bytes(torch_zip(b"others!"))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def add_another(path: Path) -> None:
    (path.parent / "more.bin2").touch()


@pytest.mark.parametrize("change", [rewrite, grow, replace, add_another])
async def test_what_changes_while_it_is_uploaded_is_not_committed(
    foreign: Foreign, change: Callable[[Path], None]
) -> None:
    path = hugging_face(foreign.path / "checkpoint-5") / "optimizer.pt"

    def strike(operation: Operation) -> None:
        if operation.name == "put" and operation.key.endswith("optimizer.pt"):
            foreign.store.faults = None
            change(path)

    foreign.store.faults = strike
    assert await foreign.rounds(1) == []
    assert not [
        key for key in await keys(foreign.store) if key.endswith(("node-0000.json", "checkpoint.json"))
    ]
    assert foreign.status.failed_steps == {}
    if change is grow:  # until somebody writes all of it
        assert await foreign.rounds(60) == []
        rewrite(path)
    assert await foreign.rounds(60, 60) == ["step_5@g0"]
    await assert_whole(foreign.store)


async def test_what_changes_while_it_is_read_is_not_uploaded(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = foreign.write("step_1.pt", torch_zip(b"x" * 100))
    checksums = taken._checksums

    def change(*arguments: object) -> list[str]:
        monkeypatch.setattr(taken, "_checksums", checksums)
        rewrite(path)
        return checksums(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(taken, "_checksums", change)
    assert await foreign.rounds(1) == []
    assert await keys(foreign.store, "step_") == []
    assert await foreign.rounds(1) == ["step_1@g0"]
    assert (await foreign.store.get("step_1/g0/step_1.pt"))[0] == path.read_bytes()


async def test_what_is_deleted_before_it_is_uploaded_is_said(
    foreign: Foreign, caplog: pytest.LogCaptureFixture
) -> None:
    path = foreign.write("step_1.pt", PICKLE)
    await foreign.rounds(1)
    path.unlink()
    assert await foreign.rounds(60) == []
    assert "step_1: deleted by its trainer before it was uploaded" in caplog.text
    assert foreign.status.skipped_total == 1


async def test_what_is_deleted_while_it_is_uploaded_is_not_committed(
    foreign: Foreign, caplog: pytest.LogCaptureFixture
) -> None:
    path = foreign.write("step_2.pt")
    foreign.write("step_1.pt")

    def strike(operation: Operation) -> None:
        if operation.name == "put" and operation.key.endswith("step_2.pt"):
            path.unlink(missing_ok=True)

    foreign.store.faults = strike
    with anyio.fail_after(30):
        assert await foreign.rounds(1, 1, 60) == ["step_1@g0"]
    assert "step_2@g0: not committed: " in caplog.text
    assert "it was deleted while it was uploaded" in caplog.text
    assert await keys(foreign.store, "step_2/g0/node") == []
    assert foreign.status.failed_steps == {}


async def test_nothing_of_a_foreign_trainer_is_deleted_here(directory: RunDirectory) -> None:
    foreign = Foreign(directory, Retention(keep_last=1))
    for step in (1, 2):
        foreign.write(f"step_{step}.pt")
        await foreign.rounds(1)
    assert await foreign.live() == ["step_2@g0"]
    assert await keys(foreign.store, "step_1/") == []
    await foreign.rounds(60)
    foreign.restart()
    assert await foreign.rounds(1, 60) == ["step_2@g0"]
    assert sorted(path.name for path in foreign.path.glob("step_*")) == ["step_1.pt", "step_2.pt"]


async def test_what_retention_would_prune_is_not_even_read(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = Foreign(directory, Retention(keep_last=2))
    for step in range(1, 6):
        foreign.write(f"step_{step}.pt")
    assert await foreign.rounds(1, 60) == ["step_5@g0", "step_4@g0"]
    assert {path.name for path in (foreign.path / ".uploader/foreign").iterdir()} == {
        "step_4.json",
        "step_5.json",
    }
    assert foreign.status.skipped_total == 3


async def test_one_checkpoint_a_step_and_the_other_is_an_error(foreign: Foreign) -> None:
    foreign.write("epoch=0-step=5.ckpt")
    other = foreign.write("epoch=0-step=5-v1.ckpt", torch_zip(b"later"))
    assert await foreign.rounds(1, 60) == ["step_5@g0"]
    assert "step_5/g0/epoch=0-step=5-v1.ckpt" in await keys(foreign.store)
    double = str(foreign.path / "epoch=0-step=5.ckpt")
    assert "epoch=0-step=5-v1.ckpt is the checkpoint of step 5 already" in foreign.status.failed_steps[double]
    hugging_face(foreign.path / "checkpoint-5")  # goes first in the table, but it comes too late
    await foreign.rounds(60)
    foreign.restart()
    await foreign.rounds(60)
    assert {*foreign.status.failed_steps} == {double, str(foreign.path / "checkpoint-5")}
    with pytest.raises(CorruptError, match="is the checkpoint of step 5 already"):
        await foreign.service.once()
    assert other.exists()


async def test_what_somebody_puts_right_is_no_error_any_more(foreign: Foreign) -> None:
    other = foreign.write("step_5.pt")
    foreign.write("step-5.pt")
    await foreign.rounds(1)
    assert len(foreign.status.failed_steps) == 1
    other.unlink()
    await foreign.rounds(1)
    assert foreign.status.failed_steps == {}
    await foreign.service.once()
    assert foreign.status.state == "drained"


async def test_a_step_of_ours_goes_first(foreign: Foreign) -> None:
    make_step(foreign.directory, 5, 0)
    foreign.write("step_5.pt")
    assert await foreign.rounds(1) == ["step_5@g0"]
    assert [*foreign.status.failed_steps] == [str(foreign.path / "step_5.pt")]
    assert "step_5/g0/step_5.pt" not in await keys(foreign.store)


async def test_a_checkpoint_written_again_after_its_commit_is_told(foreign: Foreign) -> None:
    path = foreign.write("step_5.pt")
    await foreign.rounds(1)
    rewrite(path)
    os.utime(path, ns=(0, 5_000_000_000))
    await foreign.rounds(1, 1)
    assert "the store has another checkpoint of step 5" in foreign.status.failed_steps[str(path)]
    assert (await foreign.store.get("step_5/g0/step_5.pt"))[0] == torch_zip()
    foreign.restart()
    await foreign.rounds(1)
    with pytest.raises(CorruptError, match="the store has another checkpoint of step 5"):
        await foreign.service.once()


async def test_a_checkpoint_that_was_only_touched_is_the_same(foreign: Foreign) -> None:
    path = foreign.write("step_5.pt")
    await foreign.rounds(1)
    os.utime(path, ns=(0, 5_000_000_000))
    await foreign.rounds(1, 1, 60)
    assert foreign.status.failed_steps == {}


async def test_durable_ones_are_not_read_again_when_what_was_kept_is_lost(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 5):
        foreign.write(f"step_{step}.pt")
    await foreign.rounds(1)
    for kept in (foreign.path / ".uploader/foreign").iterdir():
        kept.unlink()
    foreign.restart()
    await foreign.rounds(1, 60)
    assert [kept.name for kept in (foreign.path / ".uploader/foreign").iterdir()] in ([], ["step_4.json"])
    assert foreign.status.failed_steps == {}


def link_outside(path: Path) -> None:
    (path.parent.parent / "secret").write_text("secret")
    (path / "bad").symlink_to("../../secret")


def link_to_nothing(path: Path) -> None:
    (path / "bad").symlink_to("not-there")


def link_to_a_directory(path: Path) -> None:
    (path / "bad").symlink_to(".")


def pipe(path: Path) -> None:
    os.mkfifo(path / "bad")


def bad_name(path: Path) -> None:
    (path / "bad\n").touch()


def name_of_a_record(path: Path) -> None:
    (path / "checkpoint.json").touch()


def twice(path: Path) -> None:
    (path / "BAD").touch()
    (path / "bad").touch()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (link_outside, "bad: it is a link to ../../secret"),
        (link_to_nothing, "bad: it is a link to not-there"),
        (link_to_a_directory, "bad: it is a link to ."),
        (pipe, "bad: it is a pipe"),
        (bad_name, "its name can't be part of a key"),
        (name_of_a_record, "checkpoint.json: its name is that of a record"),
        (twice, "in case only"),
    ],
)
async def test_what_cannot_be_uploaded_is_named_and_its_step_left_out(
    foreign: Foreign, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(hugging_face(foreign.path / "checkpoint-5"))
    foreign.write("step_4.pt")
    assert await foreign.rounds(1, 60) == ["step_4@g0"]
    (error,) = foreign.status.failed_steps.values()
    assert says in error
    assert await keys(foreign.store, "step_5/") == []


async def test_a_link_within_the_checkpoint_is_followed(foreign: Foreign) -> None:
    path = hugging_face(foreign.path / "checkpoint-5")
    (path / "best.safetensors").symlink_to("model.safetensors")
    assert await foreign.rounds(1) == ["step_5@g0"]
    stored = await foreign.store.get("step_5/g0/best.safetensors")
    assert stored[0] == (path / "model.safetensors").read_bytes()


async def test_a_checkpoint_that_is_a_link_or_a_socket(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    hugging_face(foreign.path.parent / "elsewhere")
    (foreign.path / "checkpoint-5").symlink_to(foreign.path.parent / "elsewhere")
    monkeypatch.chdir(foreign.path)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("step_6.pt")
        assert await foreign.rounds(1, 60) == []
    errors = sorted(foreign.status.failed_steps.values())
    assert "checkpoint-5: it is a link" in errors[0]
    assert "step_6.pt: it is a socket" in errors[1]


async def test_it_does_not_end_when_no_trainer_holds_a_lock(foreign: Foreign) -> None:
    foreign.write("step_1.pt")
    await foreign.rounds(1)
    foreign.time.s += 10**6
    assert not foreign.service._is_over([])


async def test_an_idle_round_asks_the_store_nothing(foreign: Foreign) -> None:
    foreign.write("step_1.pt")
    await foreign.rounds(1, 1)
    foreign.store.operations.clear()
    for _ in range(3):
        foreign.time.s += 60
        await foreign.service.round()
    assert foreign.store.operations == []


async def test_once_names_what_is_not_complete(foreign: Foreign) -> None:
    hugging_face(foreign.path / "checkpoint-5", state=False)
    foreign.write("step_4.pt")
    await foreign.rounds(1)
    with pytest.raises(NotDurable, match=r"checkpoint-5 \(trainer_state\.json is missing\)") as raised:
        await foreign.service.once()
    assert raised.value.exit_code == 3
    assert await foreign.live() == ["step_4@g0"]
    assert foreign.status.state == "failed"


async def test_a_timer_that_ends_a_little_early_costs_no_checkpoint(foreign: Foreign) -> None:
    """``once`` waits twice: until they are still, and until they are quiet."""
    dcp(foreign.path / "step-7")

    async def early(wait_s: float) -> None:
        foreign.time.s += wait_s - 1e-6

    clocks = foreign.time.clocks
    foreign.time.clocks = dataclasses.replace(clocks, retry=dataclasses.replace(clocks.retry, sleep=early))
    foreign.restart()
    await foreign.service.once()
    assert await foreign.live() == ["step_7@g0"]


def fallback(remote: Path, **more: object) -> Fallback:
    return Fallback(
        Location.parse(str(remote)),
        StorageSettings(),
        upload=UploadSettings(quiet_s=0.05, **more),  # type: ignore[arg-type]
    )


async def live_at(remote: Path, name: str) -> list[str]:
    index = await ManifestFile(LocalStore(remote / name), name, RunKeys()).read()
    return [*index.live] if index else []


async def test_once_looks_again_however_slow_the_store_is(foreign: Foreign) -> None:
    """When the last answer of a round comes, the time for which a checkpoint must be still may be over."""
    foreign.write("step_1.pt")
    foreign.write("step_2.pt", PICKLE)

    def slow(one: Operation) -> None:
        foreign.time.s += QUIET_S + 1 if one.name == "list_uploads" else 0

    foreign.store.faults = slow
    await foreign.service.once()
    assert await foreign.live() == ["step_2@g0", "step_1@g0"]


async def test_once_takes_its_time_and_no_more(directory: RunDirectory, tmp_path: Path) -> None:
    """All kinds in one directory, at their real pace."""
    (directory.path / "step_1.pt").write_bytes(PICKLE)
    (directory.path / "step_2.pt").write_bytes(torch_zip())
    dcp(directory.path / "step-3")
    hugging_face(directory.path / "checkpoint-4", shards=2)
    with anyio.fail_after(30):
        await serve(directory.path, fallback=fallback(tmp_path / "remote"), once=True)
    assert await live_at(tmp_path / "remote", "run") == ["step_4", "step_3", "step_2", "step_1"]


async def test_a_parent_of_foreign_runs(tmp_path: Path) -> None:
    parent = tmp_path / "ckpt"
    hugging_face(parent / "one" / "checkpoint-5")
    dcp(parent / "two" / "step-6")
    dcp(parent / "tmp-three" / "step-6")
    (parent / "run-4").mkdir()
    with anyio.fail_after(30):
        await serve(parent, fallback=fallback(tmp_path / "remote"), once=True)
    assert await live_at(tmp_path / "remote", "one") == ["step_5"]
    assert await live_at(tmp_path / "remote", "two") == ["step_6"]
    assert sorted(path.name for path in (tmp_path / "remote").iterdir()) == ["one", "two"]


async def test_a_run_whose_name_cannot_be_one_is_told(tmp_path: Path) -> None:
    hugging_face(tmp_path / "ckpt" / "my run" / "checkpoint-5")
    with pytest.raises(SettingsError, match="my run: the name of the directory can't be that of a run"):
        await serve_parent(tmp_path / "ckpt", fallback=fallback(tmp_path / "remote"), once=True)


async def test_a_run_is_not_stored_among_its_own_checkpoints(directory: RunDirectory) -> None:
    hugging_face(directory.path / "checkpoint-5")
    with pytest.raises(SettingsError, match="stored among themselves"):
        await serve_run(directory.path, fallback=fallback(directory.path.parent), once=True)


def test_what_makes_a_run_directory(tmp_path: Path) -> None:
    for name in ("logs", "run-1", "runs", "500"):
        (tmp_path / name).mkdir()
    (tmp_path / "last.ckpt").touch()
    assert not is_run_directory(tmp_path)
    (tmp_path / "500" / ".metadata").touch()
    assert is_run_directory(tmp_path)
    (tmp_path / "500" / ".metadata").unlink()
    (tmp_path / "epoch=0-step=1.ckpt").touch()
    assert is_run_directory(tmp_path)


async def test_take_says_whether_there_was_one(foreign: Foreign) -> None:
    foreign.write("step_1.pt")
    foreign.steps.scan()
    assert foreign.steps.settles_in_s() == 1
    assert not await foreign.steps.take(all_of)
    assert foreign.steps.incomplete() == ["step_1.pt (it is being written)"]
    foreign.time.s += 1
    foreign.steps.scan()
    assert not await foreign.steps.take(lambda found: set())
    assert await foreign.steps.take(all_of)
    assert not await foreign.steps.take(all_of)
    assert (foreign.steps.settles_in_s(), foreign.steps.incomplete()) == (None, [])
    steps, errors = foreign.steps.scan()
    assert ([one.name for one in steps], errors) == (["step_1@g0"], [])
