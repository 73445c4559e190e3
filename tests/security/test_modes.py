"""What is made is for this user only, whatever the umask; what was there keeps its mode."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_runs import Lab
from steps import make_service

from uploader import checksum, files
from uploader.layout import RunDirectory
from uploader.steptimes import StepTimes, path_of
from uploader.store.local import LocalStore
from uploader.store.memory import MemoryStore
from wmtp.data.corpus import open_corpus
from wmtp.data.packed import PackedTokens
from wmtp.data.tokenizer import ByteTokenizer
from wmtp.training.tracking import MetricsLog

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def umask_of(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    with umask_of(request.param):
        yield request.param


def open_to_others(root: Path) -> dict[str, str]:
    """What below a directory, or the directory itself, others than its owner may touch."""
    found = {}
    for path in [root, *root.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and (mode & 0o077 or mode & 0o600 != 0o600):
            found[str(path.relative_to(root.parent))] = f"{mode:o}"
    return found


def test_files_and_directories_made_for_a_run(tmp_path: Path, umask: int) -> None:
    directory = RunDirectory(tmp_path / "base" / "run")
    files.make_directory(directory.uploader_directory)
    files.replace(directory.run_file, b"{}")
    lock = files.lock(directory.trainer_lock)
    assert lock is not None
    os.close(lock)
    StepTimes(path_of(directory, 0)).close()
    assert {path.name for path in directory.path.iterdir()} >= {"run.json", ".trainer.lock", ".uploader"}
    assert open_to_others(tmp_path / "base") == {}


async def test_what_an_uploader_makes(directory: RunDirectory, umask: int) -> None:
    directory.path.chmod(0o700)
    service = make_service(directory, MemoryStore())
    (directory.uploader_directory).chmod(0o700)
    await service.once()
    assert directory.status_file.exists()
    assert open_to_others(directory.path) == {}


async def test_what_a_directory_as_a_store_holds(tmp_path: Path, umask: int) -> None:
    store = LocalStore(tmp_path / "store")
    await store.put("a/b", b"x")
    upload = await store.create_upload("c/d")
    await store.upload_part("c/d", upload, 1, b"x", checksum.of_bytes(b"x"))
    assert (tmp_path / "store/a/b").exists() and [*(tmp_path / "store").rglob("00001-*")]
    assert open_to_others(tmp_path / "store") == {}


def test_what_caches_and_metrics_hold(tmp_path: Path, umask: int) -> None:
    with umask_of(0o022):
        (tmp_path / "text").mkdir()
        (tmp_path / "text/a.txt").write_text("one")
    PackedTokens.open(open_corpus(str(tmp_path / "text")), ByteTokenizer(), tmp_path / "made/cache")
    with contextlib.closing(MetricsLog(tmp_path / "made/run/metrics.jsonl", resume_step=0)) as log:
        log.log(1, {"loss": 1.0})
    assert open_to_others(tmp_path / "made") == {}


def test_what_was_there_keeps_its_mode(tmp_path: Path) -> None:
    """A directory that its user shares with others stays shared."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    files.make_directory(shared / "run")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o775
    assert stat.S_IMODE((shared / "run").stat().st_mode) == 0o700
    (shared / "run").chmod(0o750)
    files.make_directory(shared / "run")
    assert stat.S_IMODE((shared / "run").stat().st_mode) == 0o750


@pytest.mark.e2e
def test_a_whole_run(lab: Lab) -> None:
    """Checkpoints, queue, journal, logs, metrics and caches of real processes, under no umask at all."""
    words = [sys.executable, "-m", "wmtp", "train", "--max-steps", "10"]
    done = subprocess.run(words, cwd=lab.path, env=lab.env, umask=0, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    made = [lab.path / "ckpt", lab.path / ".cache"]
    assert [*lab.directory.glob("step_*")] and [*made[1].iterdir()]
    assert {name: mode for root in made for name, mode in open_to_others(root).items()} == {}
