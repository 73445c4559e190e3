"""One uploader a run directory; every run below a parent; a run that goes on is not left alone."""

import os
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError
from steps import FIRST, Time, claim, make_step, run_file

from uploader import files, generation, host, queue, service
from uploader.errors import CorruptError, OwnershipError, SettingsError
from uploader.events import RunFinished
from uploader.generation import Claim, GenerationFile
from uploader.host import Fallback, is_run_directory, serve, serve_parent, serve_run
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest_file import ManifestFile
from uploader.run import RunFile
from uploader.service import RunService
from uploader.settings import StorageSettings, UploadSettings
from uploader.status import Status, read_status
from uploader.store.local import LocalStore
from uploader.watch import changes

pytestmark = pytest.mark.anyio


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote"


def run_of(directory: RunDirectory, remote: Path, one: Claim = FIRST, idle_exit_s: float = 0) -> RunFile:
    destination = str(remote / directory.path.name)
    run = run_file(one, destination=destination, upload=UploadSettings(idle_exit_s=idle_exit_s))
    return run.model_copy(update={"run": directory.path.name})


async def start(directory: RunDirectory, run: RunFile, step: int) -> None:
    """What a trainer does at its start, and its first checkpoint."""
    file = GenerationFile(
        run=run.run,
        created_at=Time().clocks.now(),
        generation=run.generation,
        lineage=run.lineage,
        owner=run.owner,
    )
    await generation.take(LocalStore(run.location.directory), file)
    run.write(directory)
    made = make_step(directory, step, run.generation)
    record = made.record.model_copy(update={"run": run.run})
    (made.path / "node-0000.json").write_bytes(record.encode())


async def live(remote: Path, name: str = "run", *, in_place: bool = False) -> list[str]:
    index = await ManifestFile(LocalStore(remote / name), name, RunKeys(in_place=in_place)).read()
    return [entry.name for entry in index.live.values()] if index else []


def shown(directory: RunDirectory) -> Status:
    status = read_status(directory.status_file)
    assert status is not None
    return status


async def test_once_does_what_there_is_to_do(directory: RunDirectory, remote: Path) -> None:
    await start(directory, run_of(directory, remote), 1)
    await serve_run(directory.path, once=True)
    assert await live(remote) == ["step_1@g1"]
    status = shown(directory)
    assert (status.state, status.pid, status.destination) == ("drained", os.getpid(), f"file://{remote}/run")
    assert not files.is_locked(directory.uploader_lock)


async def test_in_place(directory: RunDirectory) -> None:
    run = run_of(directory, directory.path.parent)
    await start(directory, run, 1)
    await serve_run(directory.path)
    assert await live(directory.path.parent, in_place=True) == ["step_1@g1"]


async def test_two_uploaders_of_one_directory_are_one(directory: RunDirectory, remote: Path) -> None:
    await start(directory, run_of(directory, remote), 1)
    files.make_directory(directory.uploader_directory)
    held = files.lock(directory.uploader_lock)
    assert held is not None
    with pytest.raises(OwnershipError, match=f"{directory.path}: another uploader serves it already"):
        await serve_run(directory.path)
    os.close(held)


async def test_without_a_destination_it_says_what_to_name(directory: RunDirectory) -> None:
    with pytest.raises(SettingsError, match=r"there is no run\.json.*--to s3://"):
        await serve_run(directory.path, once=True)


async def test_a_foreign_run_goes_below_the_fallback_by_its_name(
    directory: RunDirectory, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step(directory, 1, 0)
    monkeypatch.chdir(directory.path)
    await serve_run(Path(), fallback=Fallback(Location.parse(str(remote)), StorageSettings()), once=True)
    assert await live(remote) == ["step_1@g0"]


async def test_it_waits_for_a_trainer_to_write_run_json(
    directory: RunDirectory, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "POLL_S", 0.05)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(serve_run, directory.path)
            await anyio.wait_all_tasks_blocked()
            await start(directory, run_of(directory, remote), 1)
    assert await live(remote) == ["step_1@g1"]


async def test_a_trainer_that_waits_for_the_end_sees_it(directory: RunDirectory, remote: Path) -> None:
    held = files.lock(directory.trainer_lock)
    assert held is not None
    await start(directory, run_of(directory, remote, idle_exit_s=3600), 1)
    queue.put(directory.events(0), RunFinished(generation=1, step=1))
    with anyio.fail_after(30):
        await serve_run(directory.path)
    status = shown(directory)
    assert (status.state, status.newest_durable_step, status.durable_total) == ("drained", 1, 1)
    os.close(held)


async def test_a_trainer_that_starts_while_it_ends_is_served(
    directory: RunDirectory, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(directory, run_of(directory, remote), 1)
    end, second = RunService._end, run_of(directory, remote, claim((1, None), (2, 1)))

    def end_while_another_starts(self: RunService, events: list[RunFinished]) -> None:
        end(self, events)  # type: ignore[arg-type]
        if self.run.generation == 1:
            make_step(directory, 2, 2)
            second.write(directory)

    monkeypatch.setattr(RunService, "_end", end_while_another_starts)
    await serve_run(directory.path)
    assert await live(remote) == ["step_2@g2", "step_1@g1"]
    assert shown(directory).generation == 2


async def test_a_new_destination_gets_everything(
    directory: RunDirectory, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "POLL_S", 0.05)
    await start(directory, run_of(directory, remote), 1)
    other, once = run_of(directory, tmp_path / "other"), RunService.round

    async def move_after_a_round(self: RunService) -> list[object]:
        events = await once(self)
        if RunFile.read(directory) != other:
            await generation.take(
                LocalStore(tmp_path / "other" / "run"),
                GenerationFile(run="run", created_at=Time().clocks.now(), **dict(FIRST)),
            )
            other.write(directory)
            monkeypatch.setattr(RunService, "_is_over", lambda *_: False)
        else:
            monkeypatch.setattr(RunService, "_is_over", lambda *_: self.run == other)
        return list(events)

    monkeypatch.setattr(RunService, "round", move_after_a_round)
    with anyio.fail_after(30):
        await serve_run(directory.path)
    assert await live(remote) == ["step_1@g1"]
    assert await live(tmp_path / "other") == ["step_1@g1"]


async def test_an_error_is_in_the_status_and_a_stop_too(
    directory: RunDirectory, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(directory, run_of(directory, remote), 1)
    (directory.step(1) / "state-rank00000.json").unlink()
    with pytest.raises(CorruptError, match=r"state-rank00000\.json"):
        await serve_run(directory.path, once=True)
    status = shown(directory)
    assert status.state == "failed"
    assert status.error is not None
    assert "state-rank00000.json" in status.error

    async def stop(_: RunService) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunService, "once", stop)
    with pytest.raises(KeyboardInterrupt):
        await serve_run(directory.path, once=True)
    assert shown(directory).state == "stopped"
    assert not files.is_locked(directory.uploader_lock)


def test_what_a_run_directory_is(tmp_path: Path) -> None:
    assert not is_run_directory(tmp_path)
    (tmp_path / "run1" / "step_1").mkdir(parents=True)
    assert is_run_directory(tmp_path / "run1")
    assert not is_run_directory(tmp_path)
    (tmp_path / ".trainer.lock").touch()
    assert is_run_directory(tmp_path)


async def test_every_run_of_a_parent_is_served_and_one_failure_is_its_own(
    tmp_path: Path, remote: Path
) -> None:
    parent = tmp_path / "ckpt"
    for name in ("run1", "run10", "broken"):
        directory = RunDirectory(parent / name)
        directory.path.mkdir(parents=True)
        await start(directory, run_of(directory, remote), 1)
    (parent / "broken" / "step_1" / "state-rank00000.json").unlink()
    (parent / "not-a-run").mkdir()
    with pytest.raises(CorruptError, match=r"broken/step_1/state-rank00000\.json"):
        await serve_parent(parent, once=True)
    assert await live(remote, "run1") == await live(remote, "run10") == ["step_1@g1"]
    assert await live(remote, "broken") == []


async def test_new_runs_of_a_parent_are_picked_up_and_ended_ones_again_when_they_change(
    tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "POLL_S", 0.05)
    parent = tmp_path / "ckpt"
    parent.mkdir()
    directory = RunDirectory(parent / "late")

    async def until(names: list[str]) -> None:
        async with aclosing(changes(parent, poll_s=0.01)) as wakes:
            async for _ in wakes:
                if await live(remote, "late") == names and not files.is_locked(directory.uploader_lock):
                    return

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(serve_parent, parent)
            await anyio.wait_all_tasks_blocked()
            directory.path.mkdir()
            await start(directory, run_of(directory, remote), 1)
            await until(["step_1@g1"])
            make_step(directory, 2, run="late")
            await until(["step_2@g1", "step_1@g1"])
            group.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["run", "parent"])
async def test_serve_finds_out_what_it_was_given(tmp_path: Path, remote: Path, kind: str) -> None:
    directory = RunDirectory(tmp_path / "ckpt" / "run")
    directory.path.mkdir(parents=True)
    await start(directory, run_of(directory, remote), 1)
    await serve(directory.path if kind == "run" else directory.path.parent, once=True)
    assert await live(remote) == ["step_1@g1"]


def test_a_run_file_comes_back_absolute(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RunFile.read(directory) is None
    monkeypatch.chdir(directory.path)
    run = run_file(destination="file://./elsewhere")
    assert run.destination == f"file://{directory.path}/elsewhere"
    run.write(directory)
    assert RunFile.read(directory) == run
    directory.run_file.write_bytes(directory.run_file.read_bytes()[:-9])
    with pytest.raises(CorruptError, match=r"run\.json.*start the trainer again"):
        RunFile.read(directory)


@pytest.mark.parametrize("name", ["keep_superseded_s", "delete_grace_s", "stale_upload_s", "max_wait_s"])
def test_what_json_cannot_hold_is_no_setting(name: str) -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValidationError, match=name):
            UploadSettings.model_validate({name: value})


def test_what_takes_another_service() -> None:
    first, second = run_file(), run_file(claim((1, None), (2, 5)))
    assert first.setting() == second.setting()
    assert first.setting() != run_file(upload=UploadSettings(parts_in_flight=2)).setting()
