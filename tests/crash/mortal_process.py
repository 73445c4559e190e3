"""A process that kills itself by SIGKILL at a moment; its arguments: ``MOMENT ROLE …``.

Roles: ``upload DIR`` is the uploader as ``wmtp uploader --once`` runs it; ``train DIR RESUME STEP…`` is a
trainer's start (the real one, on the real store), then the local write of these steps. The product knows
nothing of moments: what has to die is wrapped here, before it is started.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uploader import files, layout, queue
from uploader.events import CheckpointSaved, RunFinished
from uploader.journal import Journal
from uploader.layout import MANIFEST_KEY, RunDirectory
from uploader.record import NodeRecord
from uploader.run import RunFile
from uploader.store.s3 import S3Store
from wmtp.checkpoint.disk import Announce, Answer, Disk, FileSource, Operation, Rename, Write
from wmtp.checkpoint.session import take_over, trainer_lock
from wmtp.checkpoint.writer import Description, write_checkpoint
from wmtp.settings.resume import Resume

MODEL, STATE = "model-rank00000-0001.safetensors", "state-rank00000.json"
PART_BYTES = 8 * 1024**2


def content(step: int, name: str) -> bytes:
    """What a file of a step holds: the first has three parts."""
    text = f"{name} of step {step} ".encode()
    return (text * (2 * PART_BYTES // len(text) + 9)) if name == MODEL else text


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a signal to oneself may come a moment later


def _dies(target: type, name: str, is_it: Callable[..., bool], *, after: bool) -> None:
    """The process dies before or after the first call of a method that is meant."""
    call = getattr(target, name)

    @functools.wraps(call)
    async def mortal(self: Any, *args: Any, **more: Any) -> Any:
        meant = is_it(*args)
        if meant and not after:
            die()
        result = await call(self, *args, **more)
        if meant:
            die()
        return result

    setattr(target, name, mortal)


def at_request(name: str, key: str, number: int = 0, *, after: bool) -> None:
    """At a request for a key that ends like this; of a batch of deletions the first key counts."""

    def is_it(keys: Any, *args: Any) -> bool:
        first = keys if isinstance(keys, str) else keys[0]
        return first.endswith(key) and (not number or args[1] == number)

    _dies(S3Store, name, is_it, after=after)


def at_operation(is_it: Callable[[Operation], bool]) -> None:
    """After an operation of the local write."""
    perform = Disk.perform

    def mortal(self: Disk, operation: Operation) -> Answer:
        answer = perform(self, operation)
        if is_it(operation):
            die()
        return answer

    Disk.perform = mortal  # type: ignore[method-assign]
    Disk.files_at_once = 1


def at_call(target: Any, name: str) -> None:
    """Before a call."""
    setattr(target, name, lambda *_, **__: die())


def at_trash() -> None:
    """After a step was moved to the trash, before it is deleted."""
    empty_trash = files.empty_trash

    def mortal(trash: Path) -> None:
        if trash.is_dir() and any(trash.iterdir()):
            die()
        empty_trash(trash)

    files.empty_trash = mortal


def at_second_part(marker: str) -> None:
    """Before the second part the process stands still until the marker is gone."""
    upload_part, halts = S3Store.upload_part, iter([Path(marker)])

    def halt(path: Path) -> None:
        path.touch()
        while path.exists():
            time.sleep(0.01)

    async def waiting(self: S3Store, key: str, upload_id: str, number: int, *more: Any) -> str:
        if number == 2:
            for path in halts:
                halt(path)
        return await upload_part(self, key, upload_id, number, *more)

    S3Store.upload_part = waiting  # type: ignore[method-assign]


def announces(kind: type, operation: Operation) -> bool:
    return isinstance(operation, Announce) and isinstance(operation.event, kind)


def writes(name: str, operation: Operation) -> bool:
    return isinstance(operation, Write) and operation.path.name == name


def renames(operation: Operation) -> bool:
    return isinstance(operation, Rename)


before, after = {"after": False}, {"after": True}
RECORD = layout.COMMIT_RECORD_NAME
MOMENTS: dict[str, Callable[[], None]] = {
    "never": lambda: None,
    "writing_shards": lambda: at_operation(functools.partial(writes, MODEL)),
    "some_shards_sent_ahead": lambda: at_operation(lambda one: isinstance(one, Announce)),
    "node_record_before_rename": lambda: at_operation(functools.partial(writes, layout.node_record(0))),
    "rename_before_event": lambda: at_operation(renames),
    "event_before_upload": lambda: at_operation(functools.partial(announces, CheckpointSaved)),
    "upload_begun_before_journal": lambda: at_call(Journal, "begin"),
    "some_parts_uploaded": lambda: at_request("upload_part", MODEL, 1, **after),
    "file_completed_before_its_answer": lambda: at_request("complete_upload", MODEL, **after),
    "files_before_commit_record": lambda: at_request("put", RECORD, **before),
    "commit_record_before_manifest": lambda: at_request("put", MANIFEST_KEY, **before),
    "manifest_before_acknowledge": lambda: at_request("put", MANIFEST_KEY, **after),
    "marked_deleting": lambda: at_request("delete", RECORD, **before),
    "commit_record_deleted": lambda: at_request("delete", RECORD, **after),
    "objects_deleted_before_drop": lambda: at_request("delete", MODEL, **after),
    "moved_to_trash": at_trash,
    "generation_taken": lambda: None,  # ``train`` dies in its load
    "loaded_before_adoption": lambda: at_call(RunFile, "write"),
    "run_file_before_adoption": lambda: at_request("put", MANIFEST_KEY, **before),
    "half_restored": lambda: at_request("get_range", layout.node_record(0), **before),
}


def train(moment: str, path: Path, resume: str, steps: list[int]) -> None:
    """A trainer without a model: start, save, and end as planned if it has saved."""
    directory, run = RunDirectory(path), RunFile.model_validate_json((path.parent / "run.json").read_bytes())

    def load(step: Path, record: NodeRecord) -> None:
        if moment == "generation_taken":
            die()
        for file in record.files:
            assert (step / file.path).read_bytes() == content(record.step, file.path)

    with trainer_lock(directory):
        what = Resume.parse(resume, path)
        started = take_over(directory, run, what, load, print, fresh=False, store_timeout_s=30.0)
        print(f"goes on after step {started.step}")
        for step in steps:
            number = started.run.generation
            describe = Description("run", step, number, started.run.owner.since, {}, {})  # type: ignore[union-attr, arg-type]
            sources = [FileSource(name, memoryview(content(step, name))) for name in (MODEL, STATE)]
            Disk().run(write_checkpoint(directory, sources, describe))
        if steps:
            queue.put(directory.events(0), RunFinished(generation=started.run.generation, step=steps[-1]))


def upload(path: Path) -> None:
    """What ``wmtp uploader --watch DIR --once`` does."""
    from wmtp.cli import main

    sys.argv = ["wmtp", "uploader", "--watch", str(path), "--once"]
    main()


def main() -> None:
    """What the process runs."""
    moment, role, directory, *words = sys.argv[1:]
    if moment.startswith("/"):
        at_second_part(moment)
    else:
        MOMENTS[moment]()
    if role == "train":
        train(moment, Path(directory), words[0], [int(word) for word in words[1:]])
    else:
        upload(Path(directory))
