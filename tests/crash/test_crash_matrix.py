"""Each row of the crash table in ARCHITECTURE.md: real processes, SIGKILL at that very point, a real server.

``test_crash_table`` simulates the same rows and is where to look first. All of these run with ``make crash``,
some with every ``make test``.
"""

import itertools
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mortal_process import MODEL, MOMENTS, PART_BYTES, content, main
from real_runs import SLOW, Bucket, Finished, Mortal, Running, kill, plain_env, until

from uploader.journal import Journal
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.retention import Retention
from uploader.run import RunFile
from uploader.settings import StorageSettings, UploadSettings
from uploader.watch import LocalSteps
from wmtp.seaweedfs import find_process

pytestmark = pytest.mark.crash

QUICK = ("rename_before_event", "some_parts_uploaded")
"""These run with every ``make test``."""


class Place:
    """A run directory, the bucket that it goes to, and the processes that come and go."""

    def __init__(self, path: Path, location: Location, storage: StorageSettings) -> None:
        self.directory, self.bucket = RunDirectory(path / "run"), Bucket(location, storage)
        self._path, self._numbers = path, itertools.count()
        run = RunFile(
            run="run",
            destination=str(location),
            storage=storage,
            retention=Retention(keep_last=2),
            upload=UploadSettings(part_size_bytes=PART_BYTES, parts_in_flight=1),
        )
        (path / "run.json").write_text(run.model_dump_json())

    def start(self, moment: str, role: str, *words: str) -> Running:
        words = (moment, role, str(self.directory.path), *words)
        name = f"process-{next(self._numbers)}"
        return Running([*words], self._path, plain_env(self._path), name, main)

    def finish(self, process: Running, code: int = 0) -> Finished:
        ended = process.wait()
        assert ended.code == code, ended.out + ended.err
        return ended

    def train(self, resume: str = "auto", *steps: int) -> int:
        """A trainer that nobody kills; the step it goes on after."""
        said = self.finish(self.start("never", "train", resume, *map(str, steps)))
        found = re.search(r"goes on after step (\d+)", said.out)
        assert found is not None
        return int(found[1])

    def upload(self) -> None:
        """An uploader that nobody kills."""
        self.finish(self.start("never", "upload"))

    def train_dies(self, moment: str, resume: str = "auto", *steps: int) -> None:
        self.finish(self.start(moment, "train", resume, *map(str, steps)), -signal.SIGKILL)

    def upload_dies(self, moment: str) -> None:
        self.finish(self.start(moment, "upload"), -signal.SIGKILL)

    def local(self) -> list[int]:
        return sorted(one.step for one in LocalSteps(self.directory).scan()[0])

    def require(self, *live: int) -> None:
        """Exactly these steps are durable, byte for byte, and there is no debris here or there."""
        assert self.bucket.live_steps() == [*live]
        self.bucket.require_exact()
        for step in live:
            entry = (self.bucket.manifest() or {})["live"][f"step_{step}"]
            key = entry["record"].replace("checkpoint.json", MODEL)
            assert self.bucket.get(key) == content(step, MODEL)
        assert Journal(self.directory).all() == []
        assert not [one.name for one in self.directory.path.iterdir() if one.name.endswith(".tmp")]
        assert not self.directory.trash.exists() or not any(self.directory.trash.iterdir())


@pytest.fixture
def place(tmp_path: Path, s3_place: tuple[Location, StorageSettings]) -> Iterator[Place]:
    """Step 10 is durable."""
    location, storage = s3_place
    place = Place(tmp_path, location.join("run"), storage)
    place.train("auto", 10)
    place.upload()
    place.require(10)
    yield place


Story = Callable[[Place, str], None]


def the_step_does_not_exist(place: Place, moment: str) -> None:
    """The trainer dies while it saves step 20: the next one goes on from 10."""
    place.train_dies(moment, "auto", 20)
    assert place.local() == [10]
    place.upload()
    assert place.bucket.live_steps() == [10]
    assert place.train() == 10
    place.upload()
    place.require(10)


def the_step_is_there(place: Place, moment: str) -> None:
    """The trainer dies when step 20 is committed here: it is found, with an event or without."""
    place.train_dies(moment, "auto", 20)
    assert place.local() == [10, 20]
    place.upload()
    place.require(10, 20)
    assert place.train() == 20


def the_upload_goes_on(place: Place, moment: str) -> None:
    """The uploader dies on its way with step 20: nobody sees it until the next one has finished."""
    place.train("auto", 20)
    place.upload_dies(moment)
    seen = [10, 20] if moment == "manifest_before_acknowledge" else [10]
    assert place.bucket.live_steps() == seen
    place.upload()
    place.require(10, 20)
    assert not place.directory.event_files()


def the_pruning_goes_on(place: Place, moment: str) -> None:
    """The uploader dies on its way to delete step 10: the two newer ones are there all the time."""
    place.train("auto", 20, 30)
    place.upload_dies(moment)
    assert place.bucket.live_steps() in ([20, 30], [10, 20, 30])
    place.upload()
    place.require(20, 30)
    assert place.local() == [20, 30]


def nothing_is_superseded(place: Place, moment: str) -> None:
    """The trainer dies on its way back to step 10: step 20 still leads to now."""
    place.train("auto", 20)
    place.upload()
    place.train_dies(moment, "step_10")
    assert place.bucket.live_steps() == [10, 20]
    assert place.train() == 20
    place.upload()
    place.require(10, 20)


def the_next_round_supersedes(place: Place, moment: str) -> None:
    """The trainer dies when ``run.json`` says that it went back to step 10: the uploader does the rest."""
    place.train("auto", 20)
    place.upload()
    place.train_dies(moment, "step_10")
    assert place.bucket.live_steps() == [10, 20]
    place.upload()
    assert place.bucket.live_steps() == [10]
    assert place.train() == 10


def the_download_begins_anew(place: Place, moment: str) -> None:
    """The trainer dies while it restores step 10 to an empty disk."""
    shutil.rmtree(place.directory.step(10))
    place.train_dies(moment)
    assert place.local() == []
    assert place.train() == 10
    assert place.local() == [10]
    place.upload()
    place.require(10)


STORIES: dict[str, Story] = {
    "writing_shards": the_step_does_not_exist,
    "some_shards_sent_ahead": the_step_does_not_exist,
    "node_record_before_rename": the_step_does_not_exist,
    "rename_before_event": the_step_is_there,
    "event_before_upload": the_step_is_there,
    "upload_begun_before_journal": the_upload_goes_on,
    "some_parts_uploaded": the_upload_goes_on,
    "file_completed_before_its_answer": the_upload_goes_on,
    "files_before_commit_record": the_upload_goes_on,
    "commit_record_before_manifest": the_upload_goes_on,
    "manifest_before_acknowledge": the_upload_goes_on,
    "marked_deleting": the_pruning_goes_on,
    "commit_record_deleted": the_pruning_goes_on,
    "objects_deleted_before_drop": the_pruning_goes_on,
    "moved_to_trash": the_pruning_goes_on,
    "generation_taken": nothing_is_superseded,
    "loaded_before_adoption": nothing_is_superseded,
    "run_file_before_adoption": the_next_round_supersedes,
    "half_restored": the_download_begins_anew,
}


@pytest.mark.parametrize("row", [row if row in QUICK else pytest.param(row, marks=SLOW) for row in STORIES])
def test_killed(place: Place, row: str) -> None:
    STORIES[row](place, row)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_is_killed_between_two_parts(tmp_path: Path, mortal: Mortal) -> None:
    server, lab = mortal
    assert lab.base is not None
    place = Place(tmp_path, lab.base.join("run"), server.storage())
    place.train("auto", 10)
    marker = tmp_path / "halt"
    uploader = place.start(str(marker), "upload")
    until(marker.exists, "the second part is to be sent")
    pid = find_process(server.data / "objects")
    assert pid is not None
    kill(pid)
    marker.unlink()
    until(lambda: '"retrying"' in place.directory.status_file.read_text(), "it waits for the server")
    server.start()
    place.finish(uploader)
    place.require(10)


def test_the_rows_are_those_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    table = text[text.index("| dies after | on restart |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert rows == [*STORIES] == [*MOMENTS][1:]
    assert {*QUICK} <= {*rows}
