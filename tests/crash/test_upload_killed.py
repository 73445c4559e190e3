"""An uploader that dies by SIGKILL in the middle of a file goes on where it was: nothing is sent twice.

The uploader is a process of its own and the server is real; a gate between them holds the request at which
the process is to die.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gate import Asked, Decision, Gate
from real_runs import SLOW, Bucket, Running, plain_env
from steps import FIRST, generation_file, make_step, run_file

from uploader.journal import Journal
from uploader.layout import RunDirectory, generation_key
from uploader.location import Location
from uploader.run import RunFile
from uploader.settings import StorageSettings, UploadSettings

pytestmark = pytest.mark.crash

PART_BYTES = 8 * 1024**2
IN_FLIGHT = 3
NAME = "model-rank00000-0001.safetensors"
KEY = f"step_7/g1/{NAME}"


class Place:
    """A run directory with one step of one file, and the bucket that it goes to, behind a gate."""

    def __init__(self, path: Path, gate: Gate, location: Location, storage: StorageSettings) -> None:
        self.directory, self.gate = RunDirectory(path), gate
        self.bucket, self._path, self._numbers = Bucket(location, storage), path.parent, itertools.count()
        path.mkdir(parents=True)
        self.bucket.put(generation_key(1), generation_file(FIRST).model_dump_json().encode())
        run: RunFile = run_file(
            FIRST,
            destination=str(location),
            upload=UploadSettings(part_size_bytes=PART_BYTES, parts_in_flight=IN_FLIGHT),
        )
        behind_gate = storage.model_copy(update={"endpoint_url": gate.url})
        run.model_copy(update={"storage": behind_gate}).write(self.directory)

    def save(self, parts: int) -> bytes:
        """A step with a file of so many parts, the last one short; returns its bytes."""
        block = os.urandom(PART_BYTES - 16)
        data = b"".join(number.to_bytes(16, "big") + block for number in range(parts))[:-1000]
        make_step(self.directory, 7, files={NAME: data})
        return data

    def upload(self) -> Running:
        words, name = (
            ["uploader", "--watch", str(self.directory.path), "--once"],
            f"process-{next(self._numbers)}",
        )
        return Running(words, self._path, plain_env(self._path), name)

    def killed(self, decide: Callable[[Asked], Decision], held: int = 1) -> None:
        """An uploader that is killed when so many of its requests are held."""
        self.gate.decide = decide
        process = self.upload()
        try:
            self.gate.wait_for(lambda: len(self.gate.held) >= held, f"{held} requests are held")
        finally:
            ended = process.kill()
        assert ended.code == -signal.SIGKILL

    def finished(self) -> None:
        """An uploader that nobody kills."""
        self.gate.reset()
        self.upload().wait().require()

    def require_durable(self, data: bytes) -> None:
        assert self.bucket.live_steps() == [7]
        assert self.bucket.get(KEY) == data
        self.bucket.require_exact()
        assert Journal(self.directory).all() == []


@pytest.fixture
def place(tmp_path: Path, s3_place: tuple[Location, StorageSettings]) -> Iterator[Place]:
    location, storage = s3_place
    server = urlsplit(storage.endpoint_url or "")
    with Gate(server.hostname or "", server.port or 0).open() as gate:
        yield Place(tmp_path / "ckpt" / "run", gate, location.join("run"), storage)


def after_parts(count: int) -> Callable[[Asked], Decision]:
    """So many parts are taken; of the further ones some reach the store, but no answer comes back."""
    taken = 0

    def decide(asked: Asked) -> Decision:
        nonlocal taken
        if asked.part is None or not asked.key.endswith(NAME):
            return "pass"
        taken += 1
        return "pass" if taken <= count else "hold answer" if taken % 2 else "hold"

    return decide


def test_only_what_was_in_flight_is_sent_again(place: Place) -> None:
    data = place.save(parts=11)
    place.killed(after_parts(5), held=IN_FLIGHT)
    first = place.gate.parts(NAME)
    assert len(first) == 5 + IN_FLIGHT
    in_flight = sorted(one.part for one in place.gate.held if one.part)
    place.finished()
    assert place.gate.parts(NAME) == sorted({*range(1, 12)} - ({*first} - {*in_flight}))
    assert len([*first, *place.gate.parts(NAME)]) - 11 <= IN_FLIGHT
    place.require_durable(data)


def test_killed_again_and_again(place: Place) -> None:
    data, sent = place.save(parts=9), 0
    for kills in range(1, 4):
        place.killed(after_parts(2), held=IN_FLIGHT)
        sent += len(place.gate.parts(NAME))
        assert sent <= 2 * kills + IN_FLIGHT * kills
        place.gate.reset()
    place.finished()
    assert len(place.gate.parts(NAME)) == 9 - 2 * 3, "each got two further"
    place.require_durable(data)


def test_a_machine_that_dies_loses_the_end_of_the_journal(place: Place) -> None:
    data = place.save(parts=6)
    place.killed(after_parts(3), held=IN_FLIGHT)
    (journal,) = place.directory.uploads.glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:-3])
    place.finished()
    assert len(place.gate.parts(NAME)) == 5, "the part whose line is whole is there"
    place.require_durable(data)


def test_a_journal_that_cannot_be_read_costs_the_file_and_nothing_else(place: Place) -> None:
    data = place.save(parts=4)
    place.killed(after_parts(2), held=2)
    (journal,) = place.directory.uploads.glob("*.jsonl")
    journal.write_bytes(b"\0" * 100 + b"\n")
    place.finished()
    assert place.gate.parts(NAME) == [1, 2, 3, 4]
    place.require_durable(data)


def at(method: str, ending: str) -> Callable[[Asked], bool]:
    return lambda asked: asked.method == method and asked.key.endswith(ending)


MOMENTS: dict[str, tuple[Callable[[Asked], bool], int]] = {
    # the request at which the process dies, and how many of the four parts the next one may send
    "begin": (lambda one: at("POST", NAME)(one) and "uploads" in one.query, 4),
    "part": (lambda one: at("PUT", NAME)(one) and one.part == 4, IN_FLIGHT),
    "complete": (lambda one: at("POST", NAME)(one) and "uploadId" in one.query, 0),
    "node record": (at("PUT", "node-0000.json"), 0),
    "commit record": (at("PUT", "checkpoint.json"), 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", ["hold answer", pytest.param("hold", marks=SLOW)])
def test_at_any_moment(place: Place, moment: str, how: Decision) -> None:
    """With ``hold answer`` at ``begin`` the process dies between the upload's begin and its journal."""
    is_it, sent_by_next = MOMENTS[moment]
    data = place.save(parts=4)
    place.killed(lambda one: how if is_it(one) else "pass")
    sent = len(place.gate.parts(NAME))
    place.finished()
    assert len(place.gate.parts(NAME)) <= sent_by_next
    assert sent + len(place.gate.parts(NAME)) - 4 <= IN_FLIGHT
    place.require_durable(data)
